"""What the terms on scores share: softened distributions, and divergences between them.

Every function takes logits `[N, V]` and returns one value an answer, in fp32 and nats; both sides go through
log_softmax. A perfect student costs 0.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from distillkit.errors import ConfigError
from distillkit.losses.base import TEACHER, Loss
from distillkit.losses.gold import squared_error
from distillkit.losses.trust import check_trust, num_judged, trusted_mean
from distillkit.settings import Trust
from distillkit.types import Access, Batch, Reads, Spec, Step, Want

_TINY = 1e-7
"""Least mass that the classes beyond the top k are taken to have: log(0) has no gradient."""


def softened(logits_NV: Tensor, temperature: float) -> Tensor:
    """Log-probabilities at a temperature."""
    return functional.log_softmax(logits_NV.float() / temperature, dim=-1)


def kl_divergence(target_NV: Tensor, other_NV: Tensor) -> Tensor:
    """`[N]` KL(target || other) of log-probabilities, summed over classes; a class of probability 0 adds 0.

    Not torch's kl_div with its default reduction, which divides by the number of classes too.
    """
    return functional.kl_div(other_NV, target_NV, reduction="none", log_target=True).sum(dim=-1)


def top_k_with_tail(student_NV: Tensor, teacher_NV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities `[N, k + 1]` of both sides: the k classes that the teacher finds most likely, and all
    others as one class. KL of these is never more than KL of the whole, and equal where k covers all.
    """
    if k >= teacher_NV.shape[-1]:
        return student_NV, teacher_NV
    top_Nk, index_Nk = teacher_NV.topk(k, dim=-1)
    mine_Nk = student_NV.gather(-1, index_Nk)

    def with_tail(kept_Nk: Tensor) -> Tensor:
        tail_N1 = (1.0 - kept_Nk.exp().sum(dim=-1, keepdim=True)).clamp(min=_TINY).log()
        return torch.cat([kept_Nk, tail_N1], dim=-1)

    return with_tail(mine_Nk), with_tail(top_Nk)


class ScoreLoss(Loss):
    """Base of the terms on softened scores: T^2 times a divergence, weighted by trust, meaned over answers.

    T^2 keeps the gradient's size when T changes (Hinton et al. 2015, section 2). On regression there is
    nothing to soften: the squared difference to the teacher's value.
    """

    needs = Want(access=Access.SCORES)

    def __init__(self, *, temperature: float, trust: Trust) -> None:
        super().__init__()
        if not (math.isfinite(temperature) and temperature > 0):
            raise ConfigError(
                f"temperature {temperature} is not a positive number",
                where="temperature",
                hint="1 to 10 is usual",
            )
        self.temperature, self.trust = temperature, trust
        self.needs_labels = trust == "right"
        self.num_labels = 0

    def bind(self, student: Spec, teachers: Mapping[str, Spec]) -> None:
        check_trust(self.trust, student)
        self.num_labels = student.num_labels

    def reads(self) -> Reads:
        """Probabilities at its temperature, and at 1 where the teacher's confidence counts; the value itself
        of a regression.
        """
        if self.num_labels == 1:
            return Reads(temperatures=None)
        also = {1.0} if self.trust == "confidence" else set()
        return Reads(temperatures=frozenset({self.temperature} | also))

    @abstractmethod
    def divergence(self, student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
        """`[N]` between logits, at this temperature, without T^2."""

    def count(self, batch: Batch) -> int:
        return num_judged(batch, self.trust)

    def forward(self, step: Step) -> Tensor:
        student_NV, teacher_NV = step.student.logits, step.teachers[TEACHER].logits
        if student_NV.shape[-1] == 1:
            return squared_error(student_NV, teacher_NV.squeeze(-1))
        terms_N = self.divergence(student_NV, teacher_NV)
        return trusted_mean(terms_N, step, self.trust) * self.temperature**2
