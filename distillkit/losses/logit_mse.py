"""The teacher's scores as numbers: squared difference of the logits."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from distillkit.losses.base import TEACHER, Loss
from distillkit.losses.trust import check_trust, num_judged, trusted_mean
from distillkit.settings import Trust
from distillkit.types import Access, Batch, Spec, Step, Want


def logit_distance(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """`[N]` squared difference of the logits, summed over classes."""
    return (student_NV.float() - teacher_NV.float()).square().sum(dim=-1)


class LogitMse(Loss):
    """Learn the teacher's logits: squared difference, summed over classes, meaned over answers (Ba and
    Caruana 2014, section 2.2, there with a factor 1/2). Hinton et al. 2015, section 2.1, show it to be what
    the softened KL becomes at a high temperature, up to a factor, where logits have zero mean.

    The sum over classes, not their mean, keeps the pull on a class the same however many there are.

    Settings:
        trust: always, only where the teacher is right, or by the probability it gives its answer.
    """

    needs = Want(access=Access.SCORES)

    def __init__(self, *, trust: Trust = "always") -> None:
        super().__init__()
        self.trust = trust
        self.needs_labels = trust == "right"

    def bind(self, student: Spec, teachers: Mapping[str, Spec]) -> None:
        check_trust(self.trust, student)

    def count(self, batch: Batch) -> int:
        return num_judged(batch, self.trust)

    def forward(self, step: Step) -> Tensor:
        distance_N = logit_distance(step.student.logits, step.teachers[TEACHER].logits)
        return trusted_mean(distance_N, step, self.trust)
