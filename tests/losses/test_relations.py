"""Terms on attention against references written from the papers, one example, one head, one token at a
time.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import batch, encoder, random_step
from torch import Tensor

from distillkit.errors import ConfigError
from distillkit.losses.attention_scores import AttentionScores
from distillkit.losses.minilm import Minilm
from distillkit.losses.minilm_v2 import MinilmV2
from distillkit.losses.relations import split_heads
from distillkit.types import Access, Outputs, Projections, Spec, Step, Want

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")


def spec(layers: int, width: int, heads: int = 2) -> Spec:
    return Spec(
        num_layers=layers,
        hidden_dim=width,
        num_heads=heads,
        ffn_dim=1,
        vocab_size=1,
        num_labels=2,
        max_length=8,
        attention=heads > 0,
    )


def relation_by_hand(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], mask: Tensor) -> float:
    """(1 / heads * real tokens) sum of KL(teacher row || student row), rows over real tokens alone."""
    terms = []
    for example in range(mask.shape[0]):
        real = mask[example].nonzero()[:, 0].tolist()
        for head in range(student[0].shape[1]):
            for query in real:
                rows = []
                for left, right in (teacher, student):
                    scores = [
                        float(left[example, head, query] @ right[example, head, key])
                        / math.sqrt(left.shape[-1])
                        for key in real
                    ]
                    weights = [math.exp(score) for score in scores]
                    rows.append([weight / sum(weights) for weight in weights])
                terms.append(sum(p * math.log(p / q) for p, q in zip(*rows, strict=True)))
    return sum(terms) / len(terms)


def last(step: Step) -> tuple[Projections, Projections]:
    return step.student.attention[-1], step.teachers["teacher"].attention[-1]


def test_minilm_is_the_papers_two_relations_of_the_last_block() -> None:
    step = random_step(width=6, teacher_width=10)
    loss = Minilm()
    loss.bind(spec(2, 6), {"teacher": spec(2, 10)})
    mine, told = last(step)
    mask = step.batch.mask
    attention = relation_by_hand((mine.query, mine.key), (told.query, told.key), mask)
    values = relation_by_hand((mine.value, mine.value), (told.value, told.value), mask)
    assert float(loss(step)) == pytest.approx(attention + values, rel=1e-6, abs=1e-6)


def test_minilm_v2_cuts_both_sides_into_the_same_relation_heads() -> None:
    step = random_step(width=8, teacher_width=16)
    loss = MinilmV2(relation_heads=4, teacher_block=1)
    loss.bind(spec(2, 8), {"teacher": spec(2, 16)})
    mine, told = step.student.attention[-1], step.teachers["teacher"].attention[0]
    expected = 0.0
    for part in ("query", "key", "value"):
        sides = []
        for side in (getattr(mine, part), getattr(told, part)):
            flat = torch.cat([side[:, head] for head in range(2)], dim=-1)  # [B, L, D], heads side by side
            sides.append(torch.stack(flat.chunk(4, dim=-1), dim=1))
        expected += relation_by_hand((sides[0], sides[0]), (sides[1], sides[1]), step.batch.mask)
    assert float(loss(step)) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_heads_cut_into_as_many_are_themselves() -> None:
    states = torch.randn(2, 4, 5, 3)
    assert torch.equal(split_heads(states, 4), states)


def test_attention_scores_are_a_loop_over_real_pairs() -> None:
    step = random_step(width=6, teacher_width=10)
    loss = AttentionScores(layer_map=[(1, 2)])
    loss.bind(spec(2, 6), {"teacher": spec(2, 10)})
    mine, told = step.student.attention[0], step.teachers["teacher"].attention[1]
    terms = []
    for example in range(5):
        real = step.batch.mask[example].nonzero()[:, 0].tolist()
        for head in range(2):
            for query in real:
                for key in real:
                    a, b = (
                        float(side.query[example, head, query] @ side.key[example, head, key])
                        / math.sqrt(side.key.shape[-1])
                        for side in (mine, told)
                    )
                    terms.append((a - b) ** 2)
    assert float(loss(step)) == pytest.approx(sum(terms) / len(terms), rel=1e-6, abs=1e-6)
    assert loss.count(step.batch) * 2 == len(terms)


def only(step: Step, row: int) -> Step:
    """One example without its padding."""
    length = int(step.batch.mask[row].sum())

    def cut(outputs: Outputs) -> Outputs:
        kept = (
            Projections(*(part[row : row + 1, :, :length] for part in (p.query, p.key, p.value)))
            for p in outputs.attention
        )
        return Outputs(outputs.logits[row : row + 1], attention=tuple(kept))

    alone = replace(
        step.batch, mask=step.batch.mask[row : row + 1, :length], ids=step.batch.ids[row : row + 1]
    )
    return Step(alone, cut(step.student), {"teacher": cut(step.teachers["teacher"])})


def test_an_example_costs_the_same_alone_and_padded(tmp_path: Path) -> None:
    """Padding must neither be attended to nor counted: checked with real models whose padded states are not
    zero.
    """
    student, teacher = encoder(1, layers=1, width=16).eval(), encoder(2, layers=2, width=16).eval()
    want = Want(access=Access.ALL_STATES, attention=True)
    for loss in (Minilm(), MinilmV2(relation_heads=8), AttentionScores(layer_map=[(1, 2)])):
        loss.bind(student.spec, {"teacher": teacher.spec})
        rows = batch(tmp_path, 6)
        step = Step(rows, student.outputs(rows, want=want), {"teacher": teacher.outputs(rows, want=want)})
        whole = float(loss(step)) * loss.count(rows)
        alone = 0.0
        for row in range(6):
            short = only(step, row)
            alone += float(loss(short)) * loss.count(short.batch)
        assert whole == pytest.approx(alone, rel=1e-3)


@pytest.mark.parametrize("loss", [Minilm(), AttentionScores()])
def test_other_head_counts_are_refused_with_a_way_out(loss: Minilm | AttentionScores) -> None:
    with pytest.raises(ConfigError, match="minilm_v2"):
        loss.bind(spec(2, 8, heads=2), {"teacher": spec(2, 16, heads=4)})


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (Minilm(teacher_block=5), "teacher block 5 does not exist"),
        (MinilmV2(relation_heads=3), "do not divide the widths 8"),
        (AttentionScores(layer_map=[(0, 1)]), "student block 0 does not exist"),
    ],
)
def test_impossible_blocks_and_heads_are_refused(loss: Minilm, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        loss.bind(spec(2, 8), {"teacher": spec(2, 16)})


@pytest.mark.parametrize("loss", [Minilm(), MinilmV2(), AttentionScores()])
def test_a_model_without_attention_is_refused(loss: Minilm) -> None:
    with pytest.raises(ConfigError, match="the student shows no queries"):
        loss.bind(spec(2, 8, heads=0), {"teacher": spec(2, 16)})
