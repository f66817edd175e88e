"""XLNet's permutation language model and its memory against the forward of `transformers`, and loops."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from test_electra_objective import corpus_of
from test_electra_training import SHAPE, run, told
from tiny import documents, tokenizer
from torch import Tensor
from torch.nn import functional
from training import StopAfter, digest
from transformers import XLNetLMHeadModel

from distillkit.data.masking import choose_spans
from distillkit.flops import counted
from distillkit.objectives.packing import pack
from distillkit.objectives.xlnet import XLNetObjective, hidden_from, target_mapping
from distillkit.teachers.xlnet import Xlnet
from distillkit.types import IGNORED, Batch

LENGTH = 32


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "corpus"
    texts = documents()
    texts[0][0] += " [MASK] [SEP] [CLS]"  # a corpus may spell them
    XLNetObjective().prepare(iter(texts), tokenizer(), folder, max_length=LENGTH)
    return folder


def made(folder: Path, rows: int = 12, **settings: Any) -> tuple[XLNetLMHeadModel, XLNetObjective, Batch]:
    """A model without dropout whose weights are large enough to tell effects apart, and a padded batch."""
    torch.manual_seed(0)
    model, objective = Xlnet(**{**SHAPE, "layers": 2, "dropout": 0.0, **settings}).pretraining(tokenizer())
    assert isinstance(model, XLNetLMHeadModel) and isinstance(objective, XLNetObjective)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    batch = objective.collate(objective.examples(folder, epoch=0, seed=3), range(rows), epoch=0, seed=3)
    assert not batch.full
    return model, objective, batch


def targets_of(batch: Batch) -> Tensor:
    assert batch.labels is not None
    return batch.labels != IGNORED


def scores(model: XLNetLMHeadModel, objective: XLNetObjective, batch: Batch) -> Tensor:
    """`[B, L, V]`: what the objective makes of each predicted token, NaN elsewhere."""
    seen: list[Tensor] = []
    handle = model.lm_loss.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        objective.loss(model, batch)
    handle.remove()
    (flat,) = seen
    found = torch.full((*batch.mask.shape, flat.shape[1]), math.nan)
    targets, step, done = targets_of(batch), objective.memory or batch.mask.shape[1], 0
    for start in range(0, batch.mask.shape[1], step):
        here = torch.zeros_like(targets)
        here[:, start : start + step] = targets[:, start : start + step]
        found[here] = flat[done : done + int(here.sum())]
        done += int(here.sum())
    return found


def same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-5, rtol=1e-5)


def test_an_earlier_token_is_never_told_of_a_later_one_nor_of_itself(prepared: Path) -> None:
    """Each token of a sequence is changed in turn; who predicts differently is who may read it."""
    model, objective, batch = made(prepared, rows=4)
    before, targets = scores(model, objective, batch), targets_of(batch)
    assert batch.uniform is not None
    heard = 0
    for column in range(batch.mask.shape[1]):
        ids = batch.inputs["input_ids"].clone()
        ids[:, column] = (ids[:, column] + 50) % 100
        after = scores(model, objective, replace(batch, inputs={**batch.inputs, "input_ids": ids}))
        for row, place in targets.nonzero().tolist():
            changed = not same(before[row, place], after[row, place])
            later = bool(targets[row, column] and batch.uniform[row, column] >= batch.uniform[row, place])
            if later or not batch.mask[row, column]:
                assert torch.equal(before[row, place], after[row, place]), "bit for bit"
            else:
                assert changed, "what may be read is read"
                heard += bool(targets[row, column])
    assert heard > 3, "predicted tokens of lower rank are among what is read"


def test_the_loss_is_a_loop_over_the_predicted_tokens(prepared: Path) -> None:
    """A forward of `transformers` for each of them alone, with masks that are written out."""
    model, objective, batch = made(prepared, rows=5)
    targets, ids = targets_of(batch), batch.inputs["input_ids"]
    assert batch.uniform is not None
    costs, right = [], 0
    for row, place in targets.nonzero().tolist():
        length = int(batch.mask[row].sum())
        hidden = torch.zeros(1, length, length)
        for i in range(length):
            for j in range(length):
                rank_i = float(batch.uniform[row, i]) if targets[row, i] else -1.0
                hidden[0, i, j] = bool(targets[row, j]) and float(batch.uniform[row, j]) >= rank_i
        mapping = torch.zeros(1, 1, length)
        mapping[0, 0, place] = 1.0
        with torch.no_grad():
            logits = model(
                ids[row : row + 1, :length],
                token_type_ids=batch.inputs["token_type_ids"][row : row + 1, :length],
                perm_mask=hidden,
                target_mapping=mapping,
            ).logits[0, 0]
        costs.append(-float(logits.log_softmax(-1)[ids[row, place]]))
        right += int(logits.argmax()) == int(ids[row, place])
    term = objective.loss(model, batch)["permutation"]
    assert term.value.item() == pytest.approx(np.mean(costs), rel=1e-5)
    assert (term.count, term.weight) == (len(costs), 1.0)
    assert dict(objective.counts(batch)) == {"permutation": len(costs)}
    assert objective.figures(dict(term.tallies)) == {"accuracy": right / len(costs)}


def test_who_may_read_whom_is_an_order_of_the_predicted_tokens() -> None:
    targets = torch.tensor([[False, True, True, False, True]])
    hidden = hidden_from(targets, torch.tensor([[0.9, 0.5, 0.1, 0.0, 0.7]], dtype=torch.float64))[0]
    assert hidden.tolist() == [
        [0, 1, 1, 0, 1],
        [0, 1, 0, 0, 1],
        [0, 1, 1, 0, 1],
        [0, 1, 1, 0, 1],
        [0, 0, 0, 0, 1],
    ]
    mapping, counted_BP = target_mapping(torch.tensor([[False, True, True], [False, False, True]]))
    assert mapping.tolist() == [[[0, 1, 0], [0, 0, 1]], [[0, 0, 1], [0, 0, 0]]]
    assert counted_BP.tolist() == [[True, True], [True, False]]
    nothing, none = target_mapping(torch.zeros(2, 3, dtype=torch.bool))
    assert nothing.tolist() == [[[0, 0, 0]]] * 2 and not bool(none.any())


def test_the_inputs_are_whole_and_no_functional_token_is_predicted(prepared: Path) -> None:
    objective = XLNetObjective()
    examples = objective.examples(prepared, epoch=0, seed=3)
    batch = objective.collate(examples, range(len(examples.lengths)), epoch=0, seed=3)
    targets, ids = targets_of(batch), batch.inputs["input_ids"]
    assert batch.labels is not None and torch.equal(ids[targets], batch.labels[targets])
    special = set(examples.corpus.special.tolist())
    for row, length in enumerate(examples.lengths.tolist()):
        room = sum(token not in special for token in ids[row, :length].tolist())
        assert int(targets[row].sum()) == min(max(1, round(length / 6)), room)
    assert not special & set(ids[targets].tolist())
    again = objective.collate(examples, [7], epoch=0, seed=3)
    width = again.mask.shape[1]
    assert again.labels is not None and torch.equal(again.labels[0], batch.labels[7, :width])
    assert again.uniform is not None and batch.uniform is not None
    assert torch.equal(again.uniform[0], batch.uniform[7, :width]), "whatever batch it is in"


def test_spans_hit_every_position_alike() -> None:
    corpus = corpus_of([[58]] * 4000, 60)
    objective = XLNetObjective()
    packed = pack(corpus, random.Random(1), 0.0)
    batch = objective.collate(packed, range(len(packed.lengths)), epoch=0, seed=3)
    chosen = targets_of(batch).numpy()
    assert (chosen.sum(axis=1) == 10).all() and not chosen[:, [0, 59]].any()
    assert stats.chisquare(chosen[:, 1:59].sum(axis=0)).pvalue > 1e-4
    runs = (np.diff(chosen.astype(int), axis=1) == 1).sum(axis=1)
    assert runs.mean() < 7, "in spans"


def test_spans_are_a_plain_loop() -> None:
    generator = np.random.default_rng(0)
    candidates = generator.random((60, 40)) < 0.8
    candidates[0], candidates[1, 3:] = False, False
    counts = generator.integers(1, 12, size=60)
    starts, lengths = generator.random((60, 40)), generator.random((60, 40))
    chosen = choose_spans(candidates, counts, starts, lengths, longest=4)
    edges = np.cumsum([1, 1 / 2, 1 / 3, 1 / 4]) / (1 + 1 / 2 + 1 / 3 + 1 / 4)
    for row in range(60):
        places = np.flatnonzero(candidates[row])
        wanted: set[int] = set()
        for index in np.argsort(starts[row, places]):
            span = 1 + int((edges <= lengths[row, places[index]]).sum())
            for inside in range(span):
                if len(wanted) < counts[row]:
                    wanted.add(int(places[(index + inside) % len(places)]))
        assert set(np.flatnonzero(chosen[row]).tolist()) == wanted


def test_padding_left_or_right_or_more_of_it_changes_nothing(prepared: Path) -> None:
    model, objective, _ = made(prepared)
    examples = objective.examples(prepared, epoch=0, seed=3)
    short = np.argsort(examples.lengths, kind="stable")[:6].tolist()
    small = objective.collate(examples, short, epoch=0, seed=3)
    assert small.labels is not None and small.uniform is not None and small.mask.shape[1] < LENGTH
    wanted = objective.loss(model, small)["permutation"].value.item()
    room = LENGTH - small.mask.shape[1]
    for sides in ((0, room), (room, 0)):

        def padded(tensor: Tensor, value: float, sides: tuple[int, int] = sides) -> Tensor:
            return functional.pad(tensor, sides, value=value)

        wide = replace(
            small,
            inputs={name: padded(value, 0) for name, value in small.inputs.items()},
            labels=padded(small.labels, IGNORED),
            mask=padded(small.mask, False),
            uniform=padded(small.uniform, 0.5),
            full=False,
        )
        assert objective.loss(model, wide)["permutation"].value.item() == pytest.approx(wanted, rel=1e-5)
    rows = np.flatnonzero(examples.lengths == LENGTH)[:4].tolist()
    full = objective.collate(examples, rows, epoch=0, seed=3)
    plain, masked = (
        objective.loss(model, one)["permutation"].value for one in (full, replace(full, full=False))
    )
    assert full.full and plain.item() == pytest.approx(masked.item(), rel=1e-5)


def long_forward(model: XLNetLMHeadModel, batch: Batch, step: int) -> Tensor:
    """`[B, P, V]`: one forward of whole sequences in which each segment reads itself and the one before."""
    assert batch.uniform is not None
    targets = targets_of(batch)
    hidden = hidden_from(targets, batch.uniform)
    segment = torch.arange(batch.mask.shape[1]) // step
    apart = segment[:, None] - segment[None, :]
    hidden = torch.where(apart == 0, hidden, ((apart < 0) | (apart > 1)).float())
    mapping, _ = target_mapping(targets)
    told: Tensor = model(**batch.inputs, perm_mask=hidden, target_mapping=mapping, use_mems=False).logits
    return told


@pytest.mark.parametrize("memory", [16, 10])
def test_segments_with_memory_are_one_long_sequence_that_sees_one_segment_back(
    prepared: Path, memory: int
) -> None:
    """In values at every layer, for whole sequences of one segment (of the memory, `transformers` takes
    every token as of the first)."""
    model, objective, batch = made(prepared, memory=memory, rows=40)
    batch = replace(batch, inputs={**batch.inputs, "token_type_ids": torch.zeros_like(batch.mask).long()})
    found, targets = scores(model, objective, batch), targets_of(batch)
    with torch.no_grad():
        whole = long_forward(model, batch, memory)
    _, counted_BP = target_mapping(targets)
    assert bool(targets[:, memory:].any())
    torch.testing.assert_close(found[targets], whole[counted_BP], atol=2e-5, rtol=1e-4)
    bare = XLNetObjective(memory=None)
    assert not same(scores(model, bare, batch)[targets], found[targets])


def test_no_gradient_goes_into_the_memory(prepared: Path) -> None:
    """The gradient is that of each segment alone, its memory being numbers; of one long sequence it is
    another."""
    model, objective, batch = made(prepared, memory=16)
    batch = replace(batch, inputs={**batch.inputs, "token_type_ids": torch.zeros_like(batch.mask).long()})
    targets = targets_of(batch)
    assert batch.labels is not None and batch.uniform is not None
    parameters = list(model.parameters())
    mine = torch.autograd.grad(objective.loss(model, batch)["permutation"].value, parameters)
    pieces, memories = [], None
    for here in (slice(0, 16), slice(16, None)):
        mapping, counted_BP = target_mapping(targets[:, here])
        asked = {name: value[:, here] for name, value in batch.inputs.items()}
        hidden = hidden_from(targets[:, here], batch.uniform[:, here])
        told = model(**asked, perm_mask=hidden, target_mapping=mapping, mems=memories).logits[counted_BP]
        wanted = batch.labels[:, here][targets[:, here]]
        pieces.append(functional.cross_entropy(told, wanted, reduction="sum"))
        with torch.no_grad():
            memories = model(**asked, perm_mask=hidden, use_mems=True).mems
    theirs = torch.autograd.grad(sum(pieces) / int(targets.sum()), parameters)
    _, counted_BP = target_mapping(targets)
    whole = functional.cross_entropy(long_forward(model, batch, 16)[counted_BP], batch.labels[targets])
    other = torch.autograd.grad(whole, parameters)
    for one, same_one in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, same_one, atol=1e-5, rtol=1e-3)
    assert any(not torch.allclose(a, b, atol=1e-4) for a, b in zip(mine, other, strict=True))


def test_a_batch_in_which_nothing_can_be_predicted_adds_nothing_and_still_trains(prepared: Path) -> None:
    model, objective, batch = made(prepared, memory=16)
    assert batch.labels is not None
    term = objective.loss(model, replace(batch, labels=torch.full_like(batch.labels, IGNORED)))["permutation"]
    assert (term.count, term.value.item()) == (0, 0.0) and objective.figures(dict(term.tallies)) == {}
    term.value.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


def test_bf16_autocast_gives_a_loss_in_fp32_close_to_that_of_fp32(prepared: Path) -> None:
    model, objective, batch = made(prepared, memory=16)
    plain = objective.loss(model, batch)["permutation"].value
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fast = objective.loss(model, batch)["permutation"].value
    assert fast.dtype == torch.float32 and fast.item() == pytest.approx(plain.item(), rel=0.1)


@pytest.mark.parametrize("memory", [None, 12])
def test_its_forward_is_what_torch_counts(prepared: Path, memory: int | None) -> None:
    model, objective, _ = made(prepared, memory=memory)
    ids = torch.randint(5, 100, (3, 24))
    labels = torch.full_like(ids, IGNORED)
    for place in (3, 4, 13, 20):
        labels[:, place] = ids[:, place]
    ones = torch.ones_like(ids)
    inputs = {"input_ids": ids, "attention_mask": ones, "token_type_ids": torch.zeros_like(ids)}
    ranks = torch.rand(ids.shape, dtype=torch.float64)
    rows = Batch(inputs, labels, ones.bool(), torch.arange(3), uniform=ranks, full=True)
    assert counted(lambda: objective.loss(model, rows)) == 3 * objective.flops(model, 24)


@pytest.mark.parametrize("memory", [None, 10])
def test_a_resumed_pretraining_ends_with_the_same_weights_bit_for_bit(
    tmp_path: Path, memory: int | None
) -> None:
    source = Xlnet(**SHAPE, memory=memory)
    whole = run(tmp_path / "whole", source=source)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", progress=StopAfter(3), source=source)
    assert digest(run(tmp_path / "cut", source=source)) == digest(whole)
    assert told(tmp_path / "cut") == told(tmp_path / "whole")


def test_micro_batches_add_up_to_the_whole_batch(tmp_path: Path) -> None:
    source = Xlnet(**SHAPE, dropout=0.0, memory=10)
    made = [run(tmp_path / str(micro), micro=micro, source=source) for micro in (1, 4)]
    for mine, theirs in zip(made[0].parameters(), made[1].parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=3e-5)
