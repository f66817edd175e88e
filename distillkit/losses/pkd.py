"""The direction of the first token's states in the blocks before the last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from distillkit.errors import ConfigError
from distillkit.losses.base import TEACHER, Compared, Loss
from distillkit.losses.layer_maps import Pairs, layer_pairs
from distillkit.losses.states import Projections
from distillkit.settings import LayerPairs, Projection
from distillkit.types import Access, Batch, Reads, Spec, Step, Want


def patient_distance(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """`[B]` squared distance of the normalised states, summed over the width, in fp32 (PKD, Sun et al. 2019,
    equation 7): 2 - 2 cosine."""
    student_BD, teacher_BD = (functional.normalize(side.float(), dim=-1) for side in (student_BD, teacher_BD))
    return (student_BD - teacher_BD).square().sum(dim=-1)


def patient_pairs(blocks: Literal["skip", "last"], *, student_layers: int, teacher_layers: int) -> Pairs:
    """Student blocks 1 to M - 1, each with a teacher block (PKD, section 3.2): skip takes every (N // M)-th,
    last those just before the last, in order. The last block is left to the terms on scores.
    """
    depth, height = student_layers, teacher_layers
    if depth < 2 or depth > height:
        raise ConfigError(
            f"layers {blocks!r} needs a student of 2 blocks or more and a teacher at least as deep: student "
            f"{depth}, teacher {height}",
            where="layers",
            hint="give [student, teacher] pairs",
        )
    if blocks == "skip":
        return layer_pairs("skip", student_layers=depth, teacher_layers=height)[:-1]
    return tuple((block, height - depth + block) for block in range(1, depth))


class Pkd(Loss):
    """Patient distillation: the student's [CLS] states point where the teacher's do, block by block (PKD, Sun
    et al. 2019).

    Departures: summed over the width, where the published code takes the mean over it (their weights of 10 to
    1,000 are 0.01 to 1.3 here at a width of 768); a linear map where widths differ, which the paper does not
    treat.

    Settings:
        layers: skip, last, or [student, teacher] pairs of blocks.
        projection: auto projects where widths differ, shared by one map for all pairs, linear by one a pair,
            none never.
    """

    kinds = ("classification", "regression", "token_classification", "mlm")
    needs = Want(access=Access.ALL_STATES)
    trains_logits = False

    def __init__(
        self, *, layers: Literal["skip", "last"] | LayerPairs = "skip", projection: Projection = "auto"
    ) -> None:
        super().__init__()
        self.layers, self.projection = layers, projection
        self.pairs: Pairs = ()

    def bind(self, student: Spec, teachers: Mapping[str, Spec]) -> None:
        teacher = teachers[TEACHER]
        for role, spec in (("student", student), ("teacher", teacher)):
            if spec.causal:
                raise ConfigError(
                    f"the {role} is causal: its first token, which this loss compares, has seen no other",
                    hint="use hidden_mse or hidden_cosine, which compare every token",
                )
        depths = {"student_layers": student.num_layers, "teacher_layers": teacher.num_layers}
        if isinstance(self.layers, str):
            self.pairs = patient_pairs(self.layers, **depths)
        else:
            self.pairs = layer_pairs(self.layers, first=1, **depths)
        self.projections = Projections(self.projection, student, teacher, len(self.pairs))

    def reads(self) -> Reads:
        return Reads(states=frozenset(high for _, high in self.pairs))

    def count(self, batch: Batch) -> int:
        return batch.num_examples

    def compared(self) -> Sequence[Compared]:
        how = self.projections.words(len(self.pairs))
        return [Compared("state", low, high, how) for low, high in self.pairs]

    def forward(self, step: Step) -> Tensor:
        mine, told = step.student.hidden, step.teachers[TEACHER].hidden
        terms = [
            patient_distance(self.projections(mine[low][:, 0], pair), told[high][:, 0])
            for pair, (low, high) in enumerate(self.pairs)
        ]
        return torch.stack(terms).sum() / (len(terms) * max(1, step.batch.num_examples))
