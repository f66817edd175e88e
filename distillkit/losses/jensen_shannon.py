"""The teacher's scores by a divergence that is symmetric and bounded."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distillkit.losses.scores import ScoreLoss, kl_divergence, softened
from distillkit.settings import Positive, Trust


def jensen_shannon(first_NV: Tensor, second_NV: Tensor) -> Tensor:
    """`[N]` mean of both KL divergences to the even mixture of two distributions of log-probabilities (Lin
    1991, equation 3.1): 0 to log 2 nats.
    """
    mixture_NV = torch.logaddexp(first_NV, second_NV) - math.log(2.0)
    return (kl_divergence(first_NV, mixture_NV) + kl_divergence(second_NV, mixture_NV)) / 2


class JensenShannon(ScoreLoss):
    """Learn the teacher's distribution by the Jensen-Shannon divergence at a temperature, times its square.

    It is bounded, so that a few answers on which both disagree cannot rule the batch. Near its optimum it is
    a quarter of KL: a weight of 4 gives it the size of the other terms on scores there.

    Settings:
        temperature: Divides the logits of both sides before the softmax.
        trust: always, only where the teacher is right, or by the probability it gives its answer.
    """

    def __init__(self, *, temperature: Positive = 1.0, trust: Trust = "always") -> None:
        super().__init__(temperature=temperature, trust=trust)

    def divergence(self, student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
        return jensen_shannon(softened(student_NV, self.temperature), softened(teacher_NV, self.temperature))
