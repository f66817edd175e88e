"""The scores of attention before the softmax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from distillkit.losses.base import TEACHER, Compared, Loss
from distillkit.losses.layer_maps import Pairs, layer_pairs
from distillkit.losses.relations import check_attention, check_heads, scaled_scores, score_distance
from distillkit.settings import LayerPairs
from distillkit.types import Access, Batch, Reads, Spec, Step, Want


class AttentionScores(Loss):
    """Make the student's attention scores the teacher's, head by head: mean squared difference of Q · Kᵀ / √d
    over pairs of real tokens, heads and mapped blocks (TinyBERT, Jiao et al. 2020, equation 7: before the
    softmax). Needs as many heads; widths may differ.

    Departures: only pairs of real tokens count, where the published code sets masked scores to 0 on both
    sides and means over all; blocks are meaned, not summed. What a model adds to its scores beside the mask
    (relative positions) is not compared.

    Settings:
        layer_map: uniform, skip, last, or [student, teacher] pairs of blocks, numbered from 1.
    """

    kinds = ("classification", "regression", "token_classification", "mlm")
    needs = Want(access=Access.ALL_STATES, attention=True)
    trains_logits = False

    def __init__(self, *, layer_map: Literal["uniform", "skip", "last"] | LayerPairs = "uniform") -> None:
        super().__init__()
        self.layer_map = layer_map
        self.pairs: Pairs = ()

    def bind(self, student: Spec, teachers: Mapping[str, Spec]) -> None:
        teacher = teachers[TEACHER]
        check_attention(student, "student")
        check_attention(teacher, "teacher")
        check_heads(student, teacher, "use minilm_v2, which cuts both into the same relation heads")
        self.pairs = layer_pairs(
            self.layer_map, student_layers=student.num_layers, teacher_layers=teacher.num_layers, first=1
        )

    def reads(self) -> Reads:
        return Reads(blocks=frozenset(high - 1 for _, high in self.pairs))

    def count(self, batch: Batch) -> int:
        """Pairs of real tokens."""
        return int(batch.mask.sum(dim=-1).square().sum())

    def compared(self) -> Sequence[Compared]:
        return [Compared("attention", low, high) for low, high in self.pairs]

    def forward(self, step: Step) -> Tensor:
        mine, told = step.student.attention, step.teachers[TEACHER].attention
        terms = []
        for low, high in self.pairs:
            student, teacher = mine[low - 1], told[high - 1]
            mine_BHLL, told_BHLL = (scaled_scores(side.query, side.key) for side in (student, teacher))
            terms.append(score_distance(mine_BHLL, told_BHLL, step.batch.mask))
        return torch.stack(terms).mean()
