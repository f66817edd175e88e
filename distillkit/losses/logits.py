"""The teacher's scores, softened by a temperature."""

from __future__ import annotations

from torch import Tensor

from distillkit.losses.scores import ScoreLoss, kl_divergence, softened, top_k_with_tail
from distillkit.settings import Count, Positive, Trust


def soft_target_kl(student_NV: Tensor, teacher_NV: Tensor, *, temperature: float) -> Tensor:
    """T^2 * KL(teacher || student) of the softened distributions, summed over classes, meaned over answers,
    in nats.

    Hinton et al. 2015, section 2 and 2.1: T^2 keeps the gradient's size when T changes. They use
    cross-entropy, which differs from KL by the teacher's entropy, a constant: the gradient is the same and a
    perfect student costs 0. Both sides go through log_softmax in fp32. Shapes `[N, V]`.
    """
    terms_N = kl_divergence(softened(teacher_NV, temperature), softened(student_NV, temperature))
    return terms_N.sum() / max(1, len(terms_N)) * temperature**2


class Logits(ScoreLoss):
    """Learn the teacher's class probabilities: KL divergence at a temperature, times its square.

    On regression tasks there is nothing to soften: the squared difference to the teacher's value, whatever
    the temperature.

    Settings:
        temperature: Divides the logits of both sides before the softmax; higher shows more of the small
            scores.
        top_k: Compare only the classes that the teacher finds most likely, and all others as one.
        trust: always, only where the teacher is right, or by the probability it gives its answer.
    """

    def __init__(
        self, *, temperature: Positive = 2.0, top_k: Count | None = None, trust: Trust = "always"
    ) -> None:
        super().__init__(temperature=temperature, trust=trust)
        self.top_k = top_k

    def divergence(self, student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
        student_NV, teacher_NV = (softened(side, self.temperature) for side in (student_NV, teacher_NV))
        if self.top_k is not None:
            student_NV, teacher_NV = top_k_with_tail(student_NV, teacher_NV, self.top_k)
        return kl_divergence(teacher_NV, student_NV)
