"""The runtime where nothing else is: ONNX Runtime, tokenizers and NumPy, as docs/runtime.md tells users."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from installations import (
    MAX_LENGTH,
    ROOT,
    answered,
    install,
    made,
    new_environment,
    packages,
    pinned,
    real_texts,
)

from distillkit.settings import Labels

NAMES = ("positive", "mixed", "negative")
HEAVY = {"torch", "transformers", "onnx", "scikit-learn", "pydantic", "datasets", "typer"}
ANSWER = """
import json, sys
from distillkit.runtime import Artifact

folder, texts = json.load(sys.stdin)
answers = Artifact.load(folder, threads=1).predict(texts)
told = [[answer.label, *answer.probabilities.values()] for answer in answers]
print(json.dumps([told, sorted(sys.modules)]))
"""


def wheel(python: str, folder: Path) -> Path:
    """The package as `pip wheel --no-deps .` makes it of a checkout."""
    source = folder / "checkout"
    source.mkdir()
    for name in ("distillkit", "teachers", "students"):
        shutil.copytree(
            ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run(
        [python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)],
        check=True,
    )
    (found,) = folder.glob("distillkit-*.whl")
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_real_texts_are_answered_as_by_pytorch_without_torch(tmp_path: Path) -> None:
    opened = made(tmp_path, "bert", Labels(kind="classification", names=NAMES))
    python = new_environment(tmp_path / "venv")
    install(python, *map(pinned, ("onnxruntime", "tokenizers", "numpy")))
    install(python, "--no-deps", str(wheel(python, tmp_path)))
    assert not HEAVY & set(packages(python))
    texts = real_texts(1000)
    (tmp_path / "elsewhere").mkdir()
    told, modules = answered(python, ANSWER, [str(opened.folder / "export"), texts], tmp_path / "elsewhere")
    assert "distillkit.runtime" in modules and "torch" not in modules
    labels = set()
    for text, (label, *odds) in zip(texts, told, strict=True):
        inputs = opened.tokenizer([text], truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
        with torch.inference_mode():
            expected = opened.student.model(**inputs).logits[0].softmax(-1)
        assert label == NAMES[int(expected.argmax())]
        assert odds == pytest.approx(expected.tolist(), abs=1e-5)
        labels.add(label)
    assert labels == set(NAMES)
