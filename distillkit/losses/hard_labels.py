"""The teacher's answers as labels."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional

from distillkit.losses.base import TEACHER, Loss
from distillkit.losses.trust import check_trust, trust_weights
from distillkit.settings import Trust
from distillkit.types import Access, Reads, Spec, Step, Want


def hard_label_loss(student_NV: Tensor, teacher_NV: Tensor, weights_N: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of the student against the teacher's most likely class (Touvron et al. 2021, DeiT,
    section 4, hard-label distillation; without its equal split with the gold labels: weights do that here).

    weights_N: what each answer counts for, in a mean over all of them.
    """
    terms_N = functional.cross_entropy(student_NV.float(), teacher_NV.argmax(dim=-1), reduction="none")
    weighted_N = terms_N if weights_N is None else terms_N * weights_N
    return weighted_N.sum() / max(1, len(terms_N))


class HardLabels(Loss):
    """Learn the class that the teacher answers, whatever its other scores are.

    Settings:
        trust: always, only where the teacher is right, or by the probability it gives its answer.
    """

    needs = Want(access=Access.LABELS)
    kinds = ("classification", "token_classification", "mlm")

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

    def forward(self, step: Step) -> Tensor:
        weights_N = trust_weights(step, self.trust)
        return hard_label_loss(step.student.logits, step.teachers[TEACHER].logits, weights_N)
