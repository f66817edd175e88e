"""The teacher's scores in two parts: how sure it is of the gold class, and how it ranks the others."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from distillkit.errors import ConfigError
from distillkit.losses.base import TEACHER, Loss, num_labelled, targets_of
from distillkit.losses.scores import kl_divergence
from distillkit.settings import NonNegative, Positive
from distillkit.types import IGNORED, Access, Batch, Step, Want


def decoupled(
    student_NV: Tensor, teacher_NV: Tensor, labels_N: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """(target-class term, non-target-class term), each `[N]`, in nats, without T^2 (Zhao et al. 2022,
    equation 7): KL of (gold, all others), and KL among the others alone. KL of the whole is the first plus
    the teacher's mass of the others times the second.
    """
    gold_NV = functional.one_hot(labels_N, student_NV.shape[-1]).bool()

    def parts(logits_NV: Tensor) -> tuple[Tensor, Tensor]:
        scaled_NV = logits_NV.float() / temperature
        others_NV = scaled_NV.masked_fill(gold_NV, -torch.inf)
        pair_N2 = torch.stack([scaled_NV[gold_NV], others_NV.logsumexp(dim=-1)], dim=-1)
        rest_NV = scaled_NV[~gold_NV].view(len(labels_N), scaled_NV.shape[-1] - 1)
        return functional.log_softmax(pair_N2, dim=-1), functional.log_softmax(rest_NV, dim=-1)

    (mine_N2, mine_rest), (told_N2, told_rest) = parts(student_NV), parts(teacher_NV)
    return kl_divergence(told_N2, mine_N2), kl_divergence(told_rest, mine_rest)


class DecoupledKd(Loss):
    """Learn the teacher's scores with the ranking of the wrong classes weighted by itself: T^2 times (alpha *
    target-class + beta * non-target-class divergence), meaned over answers with a label (Zhao et al. 2022,
    section 3.2). Plain distillation weights the second part by the teacher's doubt, so that a sure teacher
    hardly teaches it.

    With two classes there is one other class and its part is 0 (said by the check of the stack where beta is
    all that acts).

    Settings:
        temperature: Divides the logits of both sides before the softmax.
        alpha: Weight of the target-class part.
        beta: Weight of the non-target-class part.
    """

    needs = Want(access=Access.SCORES)
    needs_labels = True
    kinds = ("classification", "token_classification", "mlm", "text_to_text")

    def __init__(
        self, *, temperature: Positive = 4.0, alpha: NonNegative = 1.0, beta: NonNegative = 2.0
    ) -> None:
        super().__init__()
        self.temperature, self.alpha, self.beta = temperature, alpha, beta
        if alpha == beta == 0:
            raise ConfigError("alpha and beta are both 0", where="alpha", hint="the term could never act")

    def count(self, batch: Batch) -> int:
        return num_labelled(batch)

    def forward(self, step: Step) -> Tensor:
        targets_N = targets_of(step.batch)
        known_N = targets_N != IGNORED
        target_N, rest_N = decoupled(
            step.student.logits[known_N],
            step.teachers[TEACHER].logits[known_N],
            targets_N[known_N],
            self.temperature,
        )
        terms_N = self.alpha * target_N + self.beta * rest_N
        return terms_N.sum() / max(1, len(terms_N)) * self.temperature**2
