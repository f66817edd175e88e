"""An artifact where only ONNX Runtime, tokenizers and NumPy are installed: real texts, PyTorch's answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from environments import LIMIT, fresh, run, succeeded
from tiny import LABELS, config

from distillkit import files
from distillkit.data.batching import collate, encode, sequential_batches
from distillkit.data.builtin import builtin_table
from distillkit.data.tasks import Rows
from distillkit.data.tokenizers import train_wordpiece
from distillkit.encoder import fresh as fresh_encoder
from distillkit.export.bundle import export
from distillkit.settings import ExportSettings
from distillkit.types import Want

ROOT = Path(__file__).parents[2]
ANSWERS = """
import json, sys
from importlib import metadata
from distillkit.runtime import Artifact
texts = json.load(open(sys.argv[2]))
answers = Artifact.load(sys.argv[1], threads=1).predict(texts)
told = {
    "answers": [list(answer.probabilities.values()) for answer in answers],
    "modules": sorted(name for name in sys.modules if "." not in name),
    "installed": sorted({one.metadata["Name"].lower() for one in metadata.distributions()}),
    "file": sys.modules["distillkit"].__file__,
}
json.dump(told, open(sys.argv[3], "w"))
"""
HEAVY = {"torch", "transformers", "onnx", "sklearn", "pydantic", "pyarrow", "datasets"}


@pytest.mark.slow
@pytest.mark.timeout(2 * LIMIT)
def test_a_thousand_real_texts_without_torch_are_answered_as_pytorch_does(tmp_path: Path) -> None:
    """As docs/runtime.md has it installed: three packages, and distillkit without what it depends on."""
    texts = builtin_table("rotten_tomatoes", "train", ("text", "label")).columns["text"][:1000]
    assert len(texts) == 1000
    trained = train_wordpiece(texts, vocab_size=800)
    torch.manual_seed(1)
    student = fresh_encoder(config(layers=2, width=32, vocab=800), LABELS).eval()
    with torch.no_grad():
        for layer in student.model.bert.encoder.layer:  # so that answers differ
            layer.attention.self.value.weight.mul_(10)
            layer.attention.output.dense.weight.mul_(10)
        student.model.bert.pooler.dense.weight.mul_(5)
        student.model.classifier.weight.mul_(20)
    rows = Rows(np.arange(1000), tuple((text,) for text in texts), np.zeros(1000, dtype=np.int64), "real")
    samples = encode(rows, trained, max_length=32, cache=tmp_path / "cache")
    folder = tmp_path / "artifact"
    folder.mkdir()
    export(student, trained, LABELS, samples, folder, ExportSettings(rows=16))
    files.seal(folder, {})
    wanted = np.zeros((1000, 2), dtype=np.float32)
    for part in sequential_batches(samples.lengths, tokens=4096):
        with torch.inference_mode():
            said = student.outputs(collate(samples, part), want=Want()).logits
        wanted[part] = said.softmax(-1).numpy()

    assert np.ptp(wanted[:, 0]) > 0.05
    python = fresh(tmp_path / "small", "onnxruntime", "tokenizers", "numpy")
    installed = run(python, "-m", "pip", "install", "--quiet", "--no-deps", str(ROOT))
    if "setuptools" in installed.stderr and installed.returncode:
        pytest.skip("the package cannot be built here: setuptools is not reached")
    succeeded(installed)
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    arguments = [str(folder), str(tmp_path / "texts.json"), str(tmp_path / "told.json")]
    succeeded(run(python, "-I", "-c", ANSWERS, *arguments, cwd=tmp_path))
    told = json.loads((tmp_path / "told.json").read_text())
    assert str(tmp_path / "small") in told["file"], "the installed package, not this checkout"
    assert not HEAVY & {*told["modules"], *told["installed"]}
    assert np.abs(np.asarray(told["answers"]) - wanted).max() < 1e-5
