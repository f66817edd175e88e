"""The teacher's scores, seen from the student: what it believes must be likely to the teacher."""

from __future__ import annotations

from torch import Tensor

from distillkit.losses.scores import ScoreLoss, kl_divergence, softened
from distillkit.settings import Positive, Trust


class ReverseKl(ScoreLoss):
    """Learn some mode of the teacher's distribution: KL(student || teacher) at a temperature, times its
    square (Gu et al. 2024, MiniLLM, section 2.1: there over sequences drawn from the student, here over the
    classes of an answer, exactly). A student that puts mass where the teacher has none pays most.

    Settings:
        temperature: Divides the logits of both sides before the softmax.
        trust: always, only where the teacher is right, or by the probability it gives its answer.
    """

    def __init__(self, *, temperature: Positive = 1.0, trust: Trust = "always") -> None:
        super().__init__(temperature=temperature, trust=trust)

    def divergence(self, student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
        return kl_divergence(softened(student_NV, self.temperature), softened(teacher_NV, self.temperature))
