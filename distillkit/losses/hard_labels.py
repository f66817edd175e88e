"""The teacher's answers as labels."""

from __future__ import annotations

from torch import Tensor

from distillkit.losses.base import TEACHER, Loss
from distillkit.losses.gold import cross_entropy
from distillkit.types import Access, Reads, Step, Want


def hard_label_loss(student_BV: Tensor, teacher_BV: Tensor) -> Tensor:
    """Mean cross-entropy of the student against the teacher's most likely class (Touvron et al. 2021, DeiT,
    section 4, hard-label distillation; without its equal split with the gold labels: weights do that here).
    """
    return cross_entropy(student_BV, teacher_BV.argmax(dim=-1))


class HardLabels(Loss):
    """Learn the class that the teacher answers; the teacher's confidence plays no part."""

    needs = Want(access=Access.LABELS)
    kinds = ("classification",)

    def __init__(self) -> None:
        super().__init__()

    def reads(self) -> Reads:
        return Reads()  # which logit is largest

    def forward(self, step: Step) -> Tensor:
        return hard_label_loss(step.student.logits, step.teachers[TEACHER].logits)
