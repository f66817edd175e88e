"""The teacher's scores after an intervention, learnt by the student after the same one."""

from __future__ import annotations

from torch import Tensor

from distillkit.losses.base import TEACHER, Loss, counterfactual_of
from distillkit.losses.gold import squared_error
from distillkit.losses.logits import soft_target_kl
from distillkit.settings import Positive
from distillkit.types import Access, Step, Want


class CausalKl(Loss):
    """Counterfactual scores: T^2 * KL(teacher || student) of both models' answers when states of another
    example stand in the place of their own, at the same tokens and matching blocks (DIITO, Wu et al. 2022,
    equation 5). What is swapped is the phase's `interchange` section. On regression, the squared difference.

    Settings:
        temperature: Divides the logits of both sides before the softmax.
    """

    needs = Want(access=Access.INTERVENTIONS)

    def __init__(self, *, temperature: Positive = 2.0) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, step: Step) -> Tensor:
        swapped = counterfactual_of(step)
        student_NV, teacher_NV = swapped.student.logits, swapped.teachers[TEACHER].logits
        if student_NV.shape[-1] == 1:
            return squared_error(student_NV, teacher_NV.squeeze(-1))
        return soft_target_kl(student_NV, teacher_NV, temperature=self.temperature)
