"""The contract of every registered student: whoever adds a student file gets these tests free."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import LABELS, encoded, encoder, tokenizer

from distillkit import catalog
from distillkit.data.batching import Encoded, collate
from distillkit.errors import ConfigError
from distillkit.export.onnx import write_onnx
from distillkit.export.parity import exact_batch, run
from distillkit.model import FixedTeacher, Material, Student, StudentSource
from distillkit.runtime.session import open_session
from distillkit.settings import Initialise, Labels
from distillkit.students.transformer import Transformer
from distillkit.types import Access, Batch, Want

FROM_TEACHER = Initialise.model_validate({"from": "teacher"})
ON_TEXTS = [
    name
    for name in catalog.names("student")
    if "classification" in catalog.REGISTRIES["student"].get(name, StudentSource).kinds
]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ON_TEXTS},
    "transformer": ("transformer", {"layers": 2, "width": 8, "heads": 2, "embedding": 4}),
    "narrowed": (
        "transformer",
        {"layers": 2, "width": 8, "heads": 1, "vocabulary": 60, "initialise": FROM_TEACHER},
    ),
    "bilstm": (
        "bilstm",
        {"layers": 2, "width": 7, "embedding": 5, "vocabulary": 60, "initialise": "teacher"},
    ),
    "cnn": ("cnn", {"layers": 2, "width": 8, "kernels": (2, 3, 5)}),
    "static": ("static", {"width": 6, "hidden": 5}),
    "exits": ("exits", {"of": Transformer(layers=3, width=8, heads=2), "at": [1, 2]}),
}
"""Small settings for what is built in, and a second transformer; another student is made with its
defaults.
"""
ALL = Want(Access.ALL_STATES)
LONGEST = 32


@dataclass(frozen=True)
class Case:
    """A started student, its source, and rows for it."""

    source: StudentSource
    student: Student
    samples: Encoded
    folder: Path

    @property
    def batch(self) -> Batch:
        return collate(self.samples, np.arange(6))


def make(name: str, labels: Labels, samples: Encoded, folder: Path) -> Case:
    registered, settings = CASES[name]
    if registered == "pretrained":
        start = encoder(3, layers=1, width=12)
        start.save(folder / "start", LABELS)
        tokenizer().save_pretrained(folder / "start")
        settings = {"path": str(folder / "start")}
    source = catalog.REGISTRIES["student"].get(registered, StudentSource)(**settings)
    teacher = FixedTeacher(encoder(7, width=16, labels=labels))
    torch.manual_seed(1)
    student = source.build(tokenizer(), labels, LONGEST, teacher)
    source.start(student, Material(teacher, tokenizer(), samples, torch.device("cpu")))
    return Case(source, student.eval(), samples, folder)


@pytest.fixture(scope="module", params=list(CASES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    return make(request.param, LABELS, encoded(folder / "cache"), folder)


def test_padding_changes_nothing(case: Case) -> None:
    batch = case.batch
    assert not batch.full
    together = case.student.outputs(batch, want=ALL)
    for index, length in enumerate(batch.mask.sum(1).tolist()):
        alone = case.student.outputs(_one(batch, index, length), want=ALL)
        assert torch.allclose(alone.logits[0], together.logits[index], atol=1e-5)
        for mine, padded in zip(alone.hidden, together.hidden, strict=True):
            assert torch.allclose(mine[0], padded[index, :length], atol=1e-5)


def test_states_have_the_depth_and_width_that_the_spec_says(case: Case) -> None:
    spec, batch = case.student.spec, case.batch
    told = case.student.outputs(batch, want=ALL)
    assert len(told.hidden) == spec.num_layers + 1
    assert {state.shape for state in told.hidden} == {(*batch.mask.shape, spec.hidden_dim)}
    assert told.logits.shape == (6, spec.num_labels) and told.logits.dtype == torch.float32
    (last,) = case.student.outputs(batch, want=Want(Access.FINAL_STATES)).hidden
    assert torch.equal(last, told.hidden[-1])
    assert case.student.outputs(batch, want=Want()).hidden == ()


def test_gradient_reaches_every_parameter(case: Case) -> None:
    case.student.zero_grad()
    said = case.student.outputs(case.batch, want=Want(exits=True))
    torch.stack([one.logits.square().sum() for one in (said, *said.exits[:-1])]).sum().backward()
    missed = [name for name, parameter in case.student.named_parameters() if parameter.grad is None]
    assert missed == []


def test_a_block_swapped_for_itself_is_the_identity_and_for_another_is_not(case: Case) -> None:
    batch, depth = case.batch, case.student.spec.num_layers
    plain = case.student.outputs(batch, want=Want()).logits
    for block in range(depth):
        same = case.student.outputs(batch, want=Want(), swap={block: lambda state: state})
        other = case.student.outputs(batch, want=Want(), swap={block: lambda state: state + 1.0})
        assert torch.equal(same.logits, plain) and not torch.equal(other.logits, plain)
    if depth == 0:
        with pytest.raises(ConfigError, match="block 0"):
            case.student.outputs(batch, want=Want(), swap={0: lambda state: state})


def test_what_is_saved_is_what_is_loaded(case: Case, tmp_path: Path) -> None:
    case.student.save(tmp_path, LABELS)
    again = case.source.load(tmp_path).eval()
    assert again.spec == case.student.spec
    assert torch.equal(_logits(again, case.batch), _logits(case.student, case.batch))
    config = (tmp_path / "config.json").read_text()
    assert json.loads(config) and all(name in config for name in LABELS.names)
    assert (tmp_path / "model.safetensors").is_file()


def test_the_artifact_computes_the_same_at_every_shape(case: Case) -> None:
    path = case.folder / "model.onnx"
    write_onnx(case.student, path, opset=18, metadata={})
    session = open_session(path, provider="cpu", threads=1)
    for batch in (case.batch, *_shapes(case.samples)):
        assert np.abs(run(session, batch) - _logits(case.student, batch).numpy()).max() < 1e-5


@pytest.mark.parametrize("name", list(CASES))
def test_a_regression_has_one_number_for_each_row(name: str, tmp_path: Path) -> None:
    made = make(name, Labels(kind="regression"), encoded(tmp_path / "cache"), tmp_path)
    assert _logits(made.student, made.batch).shape == (6, 1)


def _logits(student: Student, batch: Batch) -> torch.Tensor:
    with torch.inference_mode():
        return student.outputs(batch, want=Want()).logits


def _one(batch: Batch, index: int, length: int) -> Batch:
    """One row without its padding."""
    inputs = {name: value[index : index + 1, :length] for name, value in batch.inputs.items()}
    mask = batch.mask[index : index + 1, :length]
    return replace(batch, inputs=inputs, mask=mask, ids=batch.ids[index : index + 1], labels=None, full=True)


def _shapes(samples: Encoded) -> Iterator[Batch]:
    """(1, 1), (1, 5), (7, as long as can be), (1, as long as can be)."""
    for size, length in ((1, 1), (1, 5), (7, LONGEST), (1, LONGEST)):
        yield exact_batch(samples, size, length)
