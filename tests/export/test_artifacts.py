"""Artifacts that must not be opened (B89-B93), and the gate that an export must pass."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from tiny import LABELS, encoded, encoder, tokenizer
from torch import Tensor, nn
from transformers import AutoConfig

from distillkit import files
from distillkit.data.batching import collate
from distillkit.encoder import Encoder
from distillkit.errors import DistillkitError, ExportError, MissingError
from distillkit.export.bundle import export
from distillkit.export.parity import compare, exact_batch, run
from distillkit.runtime import Artifact, ClassAnswer
from distillkit.runtime.check import check_model
from distillkit.runtime.session import open_session
from distillkit.settings import ExportSettings
from distillkit.students.exits import WithExits
from distillkit.students.vocabulary import Renumbered
from distillkit.types import Want


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact")
    student = encoder(3)
    samples = encoded(folder / "cache", 40)
    (folder / "export").mkdir()
    export(student, tokenizer(), LABELS, samples, folder / "export", ExportSettings())
    return folder / "export"


def external(folder: Path, **facts: str) -> Path:
    """A small model whose weight lies in weights.bin beside it, as `facts` say."""
    (folder / "weights.bin").write_bytes(np.ones(4, dtype=np.float32).tobytes())
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "weights.bin", **facts}.items():
        weight.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def refused(path: Path, code: int, *words: str) -> None:
    for check in (check_model, lambda path: open_session(path, provider="cpu", threads=1)):
        with pytest.raises(DistillkitError) as caught:
            check(path)
        assert caught.value.exit_code == code, str(caught.value)
        assert all(word in str(caught.value) for word in words), str(caught.value)


def test_external_data_beside_the_model_is_fine(tmp_path: Path) -> None:
    session = open_session(external(tmp_path), provider="cpu", threads=1)
    assert session.run(None, {"x": np.zeros(4, dtype=np.float32)})[0].tolist() == [1.0] * 4


def test_b89_a_missing_data_file_is_named(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "weights.bin").unlink()
    refused(path, 10, "weights.bin", "missing")


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
        lambda path: path.unlink(),
    ],
    ids=["empty", "cut", "random", "missing"],
)
def test_b90_a_broken_model_file_is_refused(
    artifact: Path, tmp_path: Path, harm: Callable[[Path], Any]
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes((artifact / "model.onnx").read_bytes())
    harm(path)
    refused(path, 10, "model.onnx")


@pytest.mark.parametrize(
    "facts",
    [
        {"location": "../weights.bin"},
        {"location": "/etc/passwd"},
        {"location": "link.bin"},
        {"location": "hard.bin"},
        {"offset": "-4"},
        {"length": "4096"},
        {"surprise": "1"},
        {"location": "*/_ORT_MEM_ADDR_/*"},
        {"location": ""},
        {"offset": "four"},
    ],
    ids=lambda facts: "-".join(f"{key}={value}" for key, value in facts.items()),
)
def test_b91_external_data_that_lies_or_leaves_its_folder_is_refused(
    tmp_path: Path, facts: dict[str, str]
) -> None:
    (tmp_path / "inside").mkdir()
    path = external(tmp_path / "inside", **facts)
    secret = tmp_path / "weights.bin"
    secret.write_bytes(bytes(64))
    os.symlink(secret, tmp_path / "inside" / "link.bin")
    os.link(secret, tmp_path / "inside" / "hard.bin")
    refused(path, 11, "'w'")


def test_b92_a_provider_that_is_not_there_is_refused_not_replaced(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingError, match="CUDAExecutionProvider") as caught:
        open_session(artifact / "model.onnx", provider="cuda", threads=1)
    assert caught.value.exit_code == 5


def test_b92_a_session_that_quietly_falls_back_is_refused(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime lists CUDA, cannot load it, and runs on the CPU without a word."""
    import onnxruntime

    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    real = onnxruntime.InferenceSession

    def quiet(path: str, sess_options: Any, providers: list[str]) -> Any:
        return real(path, sess_options=sess_options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", quiet)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    with pytest.raises(MissingError, match="asked for CUDAExecutionProvider, got CPUExecutionProvider"):
        open_session(artifact / "model.onnx", provider="cuda", threads=1)


def test_the_artifact_takes_any_batch_and_length(artifact: Path, tmp_path: Path) -> None:
    session, student = open_session(artifact / "model.onnx", provider="cpu", threads=1), encoder(3).eval()
    samples = encoded(tmp_path, 40)
    for size, length in ((1, 1), (1, 5), (7, 32), (3, 2), (64, 9)):
        batch = exact_batch(samples, size, length)
        expected = student.outputs(batch, want=Want()).logits.detach().numpy()
        assert np.abs(run(session, batch) - expected).max() < 1e-5


def test_the_runtime_answers_as_pytorch_does(artifact: Path, tmp_path: Path) -> None:
    """The whole way: texts in, the same probabilities out."""
    folder, samples = Path(shutil.copytree(artifact, tmp_path / "copy")), encoded(tmp_path / "cache", 40)
    files.seal(folder, {})
    answers = Artifact.load(folder, threads=1).predict([text for (text,) in samples.texts], tokens=100)
    batch = collate(samples, np.arange(40))
    odds = encoder(3).eval().outputs(batch, want=Want()).logits.softmax(-1).tolist()
    for answer, expected in zip(answers, odds, strict=True):
        assert isinstance(answer, ClassAnswer)
        assert list(answer.probabilities.values()) == pytest.approx(expected, abs=1e-5)


def test_the_artifact_carries_what_a_reader_needs(artifact: Path) -> None:
    model = onnx.load(str(artifact / "model.onnx"))
    onnx.checker.check_model(model, full_check=True)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts["labels"]) == ["bad", "good"] and facts["kind"] == "classification"
    dims = [dim.dim_param for value in model.graph.input for dim in value.type.tensor_type.shape.dim]
    assert set(dims) == {"batch", "length"}
    config = json.loads((artifact / "config.json").read_text())
    assert config["num_layers"] == 2 and config["inputs"][0] == "input_ids"
    assert not {path.suffix for path in artifact.iterdir()} & {".bin", ".pt", ".pkl"}


def test_transformers_reads_what_the_artifact_is(artifact: Path) -> None:
    config = AutoConfig.from_pretrained(artifact, local_files_only=True)
    assert config.model_type == "bert"
    assert config.id2label == {0: "bad", 1: "good"}
    assert (config.num_hidden_layers, config.max_position_embeddings, config.vocab_size) == (2, 32, 120)


def test_a_student_around_another_is_to_transformers_what_the_other_is() -> None:
    """But for the table of a smaller vocabulary: the artifact takes every id of the tokenizer."""
    inner = encoder(3)
    assert inner.config["model_type"] == "bert"
    assert WithExits(inner, (1,), 4, joint=True).config == inner.config
    assert Renumbered(inner, torch.arange(300) % 120).config == {**inner.config, "vocab_size": 300}


def test_padding_does_not_change_an_answer_of_the_artifact(artifact: Path, tmp_path: Path) -> None:
    session = open_session(artifact / "model.onnx", provider="cpu", threads=1)
    batch = exact_batch(encoded(tmp_path, 40), 2, 6)
    wide = {name: np.pad(value.numpy(), ((0, 0), (0, 5))) for name, value in batch.inputs.items()}
    names = [entry.name for entry in session.get_inputs()]
    padded = session.run(["logits"], {name: wide[name] for name in names})[0]
    assert np.abs(padded - run(session, batch)).max() < 1e-5


class Shifted(nn.Module):
    """A student whose artifact computes something else."""

    def __init__(self, inner: nn.Module, shift: Tensor) -> None:
        super().__init__()
        self.inner, self.input_names = inner, inner.input_names
        self.register_buffer("shift", shift)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        logits: Tensor = self.inner(input_ids, attention_mask, token_type_ids)
        return logits + self.get_buffer("shift")


class Drifting(Encoder):
    shift = torch.tensor([0.01, 0.0])

    def exportable(self) -> nn.Module:
        return Shifted(super().exportable(), self.shift)


def test_an_artifact_that_differs_fails_the_stage(tmp_path: Path) -> None:
    student = encoder(3)
    drifting = Drifting(student.model)
    (tmp_path / "export").mkdir()
    with pytest.raises(ExportError, match=r"differs from PyTorch by 0\.01") as caught:
        export(drifting, tokenizer(), LABELS, encoded(tmp_path, 40), tmp_path / "export", ExportSettings())
    assert caught.value.exit_code == 10


def test_predictions_that_differ_fail_even_within_a_wide_tolerance(tmp_path: Path) -> None:
    student = encoder(3).eval()
    logits = student.outputs(exact_batch(encoded(tmp_path, 40), 4, 5), want=Want()).logits.detach()
    gap = (logits[:, 0] - logits[:, 1]).abs().max().item()
    with torch.no_grad():
        student.model.classifier.weight.mul_(20)
    drifting = Drifting(student.model)
    drifting.shift = torch.tensor([40 * gap, 0.0])
    (tmp_path / "export").mkdir()
    settings = ExportSettings(tolerance=1e9)
    with pytest.raises(ExportError, match="predictions differ"):
        export(drifting, tokenizer(), LABELS, encoded(tmp_path, 40), tmp_path / "export", settings)


def test_a_model_that_cannot_be_followed_is_told_so(tmp_path: Path) -> None:
    class Opaque(Encoder):
        def exportable(self) -> nn.Module:
            inner = super().exportable()

            class Sliding(nn.Module):
                input_names = inner.input_names

                def forward(
                    self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
                ) -> Tensor:
                    if int(input_ids.sum().item()) % 2:
                        return torch.zeros(2, 2)
                    return torch.ones(2, 2)

            return Sliding()

    (tmp_path / "export").mkdir()
    with pytest.raises(ExportError, match="cannot follow"):
        export(
            Opaque(encoder().model),
            tokenizer(),
            LABELS,
            encoded(tmp_path, 8),
            tmp_path / "export",
            ExportSettings(),
        )


def test_exporting_leaves_the_student_as_it_was(tmp_path: Path) -> None:
    student = encoder(3)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    kind = student.model.config._attn_implementation
    (tmp_path / "export").mkdir()
    export(student, tokenizer(), LABELS, encoded(tmp_path, 8), tmp_path / "export", ExportSettings(rows=4))
    assert student.model.config._attn_implementation == kind
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())


def test_parity_says_what_was_compared(artifact: Path, tmp_path: Path) -> None:
    session = open_session(artifact / "model.onnx", provider="cpu", threads=1)
    parity = compare(encoder(3), session, encoded(tmp_path, 40), rows=16, tolerance=1e-4, max_length=32)
    assert parity.rows == 16 + 1 + 1 + 7 + 1 and parity.same_predictions == 1.0
    assert parity.max_abs_difference == max(parity.shapes.values()) <= 1e-4


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("bench.batch=[0]", "bench.batch"),
        ("bench.length=[0]", "bench.length"),
        ("export.opset=9", "export.opset"),
    ],
)
def test_b93_sizes_and_operator_sets_that_cannot_be_are_config_errors(
    tmp_path: Path, override: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from tinyrun import write_config, write_data

    from distillkit.cli import main

    write_data(tmp_path)
    assert main(["validate", str(write_config(tmp_path)), override]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_five_hundred_mutated_models_are_refused_in_words_or_pass(artifact: Path, tmp_path: Path) -> None:
    whole, generator = (artifact / "model.onnx").read_bytes(), np.random.default_rng(0)
    path = tmp_path / "model.onnx"
    for _ in range(500):
        changed = bytearray(whole)
        for place in generator.integers(0, len(whole), size=int(generator.integers(1, 30))):
            changed[int(place)] = int(generator.integers(256))
        path.write_bytes(bytes(changed[: int(generator.integers(1, len(changed) + 1))]))
        try:
            check_model(path)
        except DistillkitError as error:
            assert error.exit_code in (10, 11)
