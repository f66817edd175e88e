"""The teacher's answers as labels."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional

from distillkit.losses.base import TEACHER, Loss
from distillkit.losses.trust import check_trust, num_judged, trusted_mean
from distillkit.settings import Trust
from distillkit.types import Access, Batch, Reads, Spec, Step, Want


def hard_label_terms(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """`[N]` cross-entropy of the student against the teacher's most likely class (Touvron et al. 2021, DeiT,
    section 4, hard-label distillation; without its equal split with the gold labels: weights do that here).
    """
    return functional.cross_entropy(student_NV.float(), teacher_NV.argmax(dim=-1), reduction="none")


class HardLabels(Loss):
    """Learn the class that the teacher answers, whatever its other scores are.

    Settings:
        trust: always, only where the teacher is right, or by the probability it gives its answer.
    """

    needs = Want(access=Access.LABELS)
    kinds = ("classification", "token_classification", "mlm", "text_to_text")

    def __init__(self, *, trust: Trust = "always") -> None:
        super().__init__()
        self.trust = trust
        self.needs_labels = trust == "right"
        if trust == "confidence":
            self.needs = Want(access=Access.SCORES)

    def bind(self, student: Spec, teachers: Mapping[str, Spec]) -> None:
        check_trust(self.trust, student)

    def reads(self) -> Reads:
        """Which logit is largest, and how likely that is where the teacher's confidence counts."""
        return Reads(temperatures=frozenset({1.0} if self.trust == "confidence" else ()))

    def count(self, batch: Batch) -> int:
        return num_judged(batch, self.trust)

    def forward(self, step: Step) -> Tensor:
        terms_N = hard_label_terms(step.student.logits, step.teachers[TEACHER].logits)
        return trusted_mean(terms_N, step, self.trust)
