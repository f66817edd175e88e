"""How the tokens of one block attend to each other, and how their values relate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from distillkit.losses.base import TEACHER, Compared, Loss
from distillkit.losses.relations import check_heads, chosen_block, relation_divergence
from distillkit.settings import Count
from distillkit.types import Access, Batch, Reads, Spec, Step, Want


class Minilm(Loss):
    """MiniLM (Wang et al. 2020, section 3): in one block of each, KL of the attention distributions (Q · Kᵀ)
    plus KL of the value relations (V · Vᵀ), both scaled by the square root of the head width, meaned over
    heads and real tokens. Needs as many heads; widths and depths may differ, without a projection.

    Settings:
        teacher_block: The teacher's block, numbered from 1; default the last.
        student_block: The student's block; default the last.
    """

    kinds = ("classification", "regression", "token_classification", "mlm")
    needs = Want(access=Access.ALL_STATES, attention=True)
    trains_logits = False

    def __init__(self, *, teacher_block: Count | None = None, student_block: Count | None = None) -> None:
        super().__init__()
        self.teacher_block, self.student_block = teacher_block, student_block

    def bind(self, student: Spec, teachers: Mapping[str, Spec]) -> None:
        teacher = teachers[TEACHER]
        self.mine = chosen_block(self.student_block, student, "student")
        self.told = chosen_block(self.teacher_block, teacher, "teacher")
        check_heads(student, teacher, "use minilm_v2, which cuts both into the same relation heads")

    def reads(self) -> Reads:
        return Reads(blocks=frozenset({self.told}))

    def count(self, batch: Batch) -> int:
        return batch.num_tokens

    def compared(self) -> Sequence[Compared]:
        return [Compared("attention", self.mine + 1, self.told + 1)]

    def forward(self, step: Step) -> Tensor:
        mine, told = step.student.attention[self.mine], step.teachers[TEACHER].attention[self.told]
        mask_BL = step.batch.mask
        attention = relation_divergence((mine.query, mine.key), (told.query, told.key), mask_BL)
        values = relation_divergence((mine.value, mine.value), (told.value, told.value), mask_BL)
        return attention + values
