"""How the queries, the keys and the values of one block relate among themselves, for any number of heads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from distillkit.errors import ConfigError
from distillkit.losses.base import TEACHER, Compared, Loss
from distillkit.losses.relations import chosen_block, relation_divergence, split_heads
from distillkit.settings import Count
from distillkit.types import Access, Batch, Reads, Spec, Step, Want

_MOST_HEADS = 48


class MinilmV2(Loss):
    """MiniLM v2 (Wang et al. 2021, section 3): in one block of each, queries, keys and values are cut into
    the same number of relation heads; KL between the softmax of Q · Qᵀ, K · Kᵀ and V · Vᵀ, each scaled by the
    square root of its head width, summed over the three, meaned over relation heads and real tokens. Widths,
    depths and head counts may differ, without a projection.

    Settings:
        relation_heads: Heads that both sides are cut into; must divide both widths (the paper: 48 for base,
        64
            for large teachers). Default: the largest number up to 48 that divides both.
        teacher_block: The teacher's block, numbered from 1; default the last (the paper: 21 of 24 for large
            BERT).
        student_block: The student's block; default the last.
    """

    kinds = ("classification", "regression", "token_classification", "mlm")
    needs = Want(access=Access.ALL_STATES, attention=True)
    trains_logits = False

    def __init__(
        self,
        *,
        relation_heads: Count | None = None,
        teacher_block: Count | None = None,
        student_block: Count | None = None,
    ) -> None:
        super().__init__()
        self.relation_heads = relation_heads
        self.teacher_block, self.student_block = teacher_block, student_block

    def bind(self, student: Spec, teachers: Mapping[str, Spec]) -> None:
        teacher = teachers[TEACHER]
        self.mine = chosen_block(self.student_block, student, "student")
        self.told = chosen_block(self.teacher_block, teacher, "teacher")
        both = math.gcd(student.hidden_dim, teacher.hidden_dim)
        self.heads = self.relation_heads or max(n for n in range(1, _MOST_HEADS + 1) if both % n == 0)
        if both % self.heads:
            raise ConfigError(
                f"{self.heads} relation heads do not divide the widths {student.hidden_dim} (student) and "
                f"{teacher.hidden_dim} (teacher)",
                where="relation_heads",
                hint=f"take a divisor of {both}",
            )

    def reads(self) -> Reads:
        return Reads(blocks=frozenset({self.told}))

    def count(self, batch: Batch) -> int:
        return batch.num_tokens

    def compared(self) -> Sequence[Compared]:
        return [Compared("attention", self.mine + 1, self.told + 1, f"{self.heads} relation heads")]

    def forward(self, step: Step) -> Tensor:
        mine, told = step.student.attention[self.mine], step.teachers[TEACHER].attention[self.told]
        terms = []
        for left, right in ((mine.query, told.query), (mine.key, told.key), (mine.value, told.value)):
            student, teacher = (split_heads(side, self.heads) for side in (left, right))
            terms.append(relation_divergence((student, student), (teacher, teacher), step.batch.mask))
        return torch.stack(terms).sum()
