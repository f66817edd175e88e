"""The teacher's scores, softened by a temperature."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional

from distillkit.errors import ConfigError
from distillkit.losses.base import TEACHER, Loss
from distillkit.losses.gold import squared_error
from distillkit.settings import Positive
from distillkit.types import Access, Reads, Step, Want


def soft_target_kl(student_BV: Tensor, teacher_BV: Tensor, *, temperature: float) -> Tensor:
    """T^2 * KL(teacher || student) of the softened distributions, summed over classes, meaned over examples,
    in nats.

    Hinton et al. 2015, section 2 and 2.1: T^2 keeps the gradient's size when T changes. They use
    cross-entropy, which differs from KL by the teacher's entropy, a constant: the gradient is the same and a
    perfect student costs 0. Both sides go through log_softmax in fp32. Shapes `[B, V]`.
    """
    if student_BV.shape[0] == 0:
        return student_BV.float().sum() * 0.0
    student = functional.log_softmax(student_BV.float() / temperature, dim=-1)
    teacher = functional.log_softmax(teacher_BV.float() / temperature, dim=-1)
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


class Logits(Loss):
    """Learn the teacher's class probabilities: KL divergence at a temperature, times its square.

    On regression tasks there is nothing to soften: the squared difference to the teacher's value, whatever
    the temperature.

    Settings:
        temperature: Divides the logits of both sides before the softmax; higher shows more of the small
            scores.
    """

    needs = Want(access=Access.SCORES)

    def __init__(self, *, temperature: Positive = 2.0) -> None:
        super().__init__()
        if not (math.isfinite(temperature) and temperature > 0):
            raise ConfigError(
                f"temperature {temperature} is not a positive number",
                where="temperature",
                hint="1 to 10 is usual",
            )
        self.temperature = temperature

    def reads(self) -> Reads:
        return Reads(temperatures=frozenset({self.temperature}))

    def forward(self, step: Step) -> Tensor:
        student, teacher = step.student.logits, step.teachers[TEACHER].logits
        if student.shape[-1] == 1:
            return squared_error(student, teacher.squeeze(-1))
        return soft_target_kl(student, teacher, temperature=self.temperature)
