"""How much an answer of the teacher counts in a term that learns it."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.errors import ConfigError
from distillkit.losses.base import TEACHER
from distillkit.settings import Trust
from distillkit.types import Spec, Step


def trust_weights(step: Step, trust: Trust) -> Tensor:
    """`[N]` in 0..1, without gradient: 1 (always), 1 where the teacher's class is the gold label and else 0
    (right), or the probability that the teacher gives its own class (confidence).

    An answer that is not trusted adds nothing and still counts in the mean, so that the term is known to
    shrink where its teacher errs, and parts of a batch add up. A token without a gold label is not trusted.
    """
    teacher_NV = step.teachers[TEACHER].logits.float()
    if trust == "confidence":
        return teacher_NV.softmax(dim=-1).amax(dim=-1)
    if trust == "right":
        targets_N = step.batch.targets
        if targets_N is None:
            raise ConfigError(
                "trust: right needs labels and the batch has none", hint="use trust: confidence"
            )
        return (teacher_NV.argmax(dim=-1) == targets_N).float()
    return torch.ones(teacher_NV.shape[0], device=teacher_NV.device)


def check_trust(trust: Trust, student: Spec) -> None:
    """Refuse what a regression teacher cannot say. Raises ConfigError."""
    if trust != "always" and student.num_labels == 1:
        raise ConfigError(
            f"trust: {trust} needs classes, and a regression has none", where="trust", hint="leave it out"
        )
