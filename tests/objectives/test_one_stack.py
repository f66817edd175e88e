"""Causal and prefix language models on T5's objectives: who sees whom, and the loss by a plain loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from denoisers import SHAPE, model_of, objective_of, prepare
from torch.nn import functional
from transformers import T5EncoderModel

from distillkit.errors import ConfigError
from distillkit.flops import counted
from distillkit.objectives.denoising import Denoising
from distillkit.objectives.one_stack import OneStack, causal, causal_with_prefix
from distillkit.teachers.t5 import T5
from distillkit.types import IGNORED, Batch

KINDS = ("causal_lm", "prefix_lm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(objective_of("t5"), "t5", tmp_path_factory.mktemp("corpus") / "corpus")


def made(folder: Path, kind: str, rows: Any = range(4), **settings: Any) -> tuple[OneStack, Denoising, Batch]:
    model, objective = (
        model_of("t5", architecture=kind, **settings),
        objective_of("t5", architecture=kind, **settings),
    )
    assert isinstance(model, OneStack)
    examples = objective.examples(folder, epoch=0, seed=3)
    return model.eval(), objective, objective.collate(examples, list(rows), epoch=0, seed=3)


def both(folder: Path, rows: Any) -> tuple[Batch, Batch]:
    """The batch of an encoder-decoder, and of a language model of the same texts."""
    batches = []
    for kind in ("encoder_decoder", "causal_lm"):
        objective = objective_of("t5", architecture=kind)
        examples = objective.examples(folder, epoch=0, seed=3)
        batches.append(objective.collate(examples, list(rows), epoch=0, seed=3))
    return batches[0], batches[1]


def test_inputs_and_targets_stand_one_after_the_other(folder: Path) -> None:
    """By a loop; the texts of the last row are shorter, so that both parts are padded."""
    last = len(objective_of("t5").examples(folder, epoch=0, seed=3).passages.sizes) - 1
    pair, one = both(folder, [last, 0, 1])
    assert pair.labels is not None and one.labels is not None
    for row in range(3):
        inputs = pair.inputs["input_ids"][row][pair.mask[row]].tolist()
        targets = [token for token in pair.labels[row].tolist() if token != IGNORED]
        whole, size = inputs + targets, len(inputs) + len(targets) - 1
        assert one.inputs["input_ids"][row].tolist()[:size] == whole[:-1]
        assert one.inputs["prefix"][row].nonzero().flatten().tolist() == list(range(len(inputs)))
        assert one.mask[row].nonzero().flatten().tolist() == list(range(size))
        asked = {at: token for at, token in enumerate(one.labels[row].tolist()) if token != IGNORED}
        assert asked == {at: whole[at + 1] for at in range(len(inputs) - 1, size)}


def changed_states(model: OneStack, batch: Batch, place: int) -> list[bool]:
    """Which tokens of the first text notice that another token stands at a place."""
    ids, prefix = batch.inputs["input_ids"][:1], batch.inputs["prefix"][:1]
    other = ids.clone()
    other[0, place] = 5 if ids[0, place] != 5 else 6
    with torch.no_grad():
        before, after = (model.states(one, batch.mask[:1], prefix)[0] for one in (ids, other))
    return ((before - after).abs().amax(-1) > 1e-7).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_leaks_from_the_future_and_a_prefix_sees_itself(folder: Path, kind: str) -> None:
    model, _, batch = made(folder, kind)
    prefix, size = int(batch.inputs["prefix"][0].sum()), int(batch.mask[0].sum())
    for place in (0, prefix // 2, prefix - 1, prefix, size - 2):
        seen = changed_states(model, batch, place)
        first = 0 if kind == "prefix_lm" and place < prefix else place
        assert seen[:size] == [at >= first for at in range(size)], place


def test_patterns_hide_padding() -> None:
    real = torch.tensor([[True, True, True, False]])
    prefix = torch.tensor([[True, True, False, False]])
    assert causal(real, prefix)[0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]]
    seen = causal_with_prefix(real, prefix)[0].int().tolist()
    assert seen == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_each_text_by_itself(folder: Path, kind: str) -> None:
    last = len(objective_of("t5").examples(folder, epoch=0, seed=3).passages.sizes) - 1
    model, objective, batch = made(folder, kind, [last, 0, 1])
    assert batch.labels is not None and not batch.full
    (term,) = objective.loss(model, batch).values()
    costs = []
    for row in range(3):
        size = int(batch.mask[row].sum())
        ids, prefix = batch.inputs["input_ids"][row, :size], batch.inputs["prefix"][row, :size]
        whole = torch.ones(1, size, dtype=torch.bool)
        states = model.states(ids[None], whole, prefix[None])[0]
        scores = states @ model.body.shared.weight.T * model.config.d_model**-0.5
        for at in range(size):
            if batch.labels[row, at] != IGNORED:
                costs.append(functional.cross_entropy(scores[at], batch.labels[row, at]))
    assert term.count == len(costs)
    assert term.value.item() == pytest.approx(torch.stack(costs).mean().item(), rel=1e-5)
    figures = objective.figures(term.tallies)
    assert figures["input_length"] == pytest.approx(int(batch.inputs["prefix"].sum()) / 3)


def test_figures_of_the_text_are_those_of_the_encoder_decoder(folder: Path) -> None:
    pair, one = both(folder, range(5))
    told = []
    for kind, batch in (("encoder_decoder", pair), ("causal_lm", one)):
        objective, model = objective_of("t5", architecture=kind), model_of("t5", architecture=kind)
        (term,) = objective.loss(model, batch).values()
        told.append(dict(objective.figures(term.tallies)))
        told[-1].pop("token_accuracy")
    assert told[0] == pytest.approx(told[1])


@pytest.mark.parametrize("kind", KINDS)
def test_flops_are_what_torch_counts(folder: Path, kind: str) -> None:
    model, objective, batch = made(folder, kind, [0])
    found = counted(lambda: objective.loss(model, batch))
    inputs = int(batch.inputs["prefix"].sum())
    assert objective.flops(model, inputs) == found


def test_a_stack_has_half_the_blocks_and_its_folder_opens(tmp_path: Path) -> None:
    model = model_of("t5", architecture="prefix_lm")
    assert isinstance(model, OneStack)
    model.save_pretrained(tmp_path)
    opened = T5EncoderModel.from_pretrained(str(tmp_path), local_files_only=True)
    for name, tensor in model.body.state_dict().items():
        assert torch.equal(tensor, opened.state_dict()[name])
    with pytest.raises(ConfigError, match="output layer of its own"):
        T5(architecture="causal_lm", version="v1.1", **SHAPE)
