"""How much an answer of the teacher counts in a term that learns it."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.errors import ConfigError
from distillkit.losses.base import TEACHER, num_labelled, targets_of
from distillkit.settings import Trust
from distillkit.types import Batch, Spec, Step


def num_judged(batch: Batch, trust: Trust) -> int:
    """Answers that the mean is taken over: all, or for `right` those with a gold label."""
    return num_labelled(batch) if trust == "right" else batch.num_answers


def trusted_mean(terms_N: Tensor, step: Step, trust: Trust) -> Tensor:
    """The mean of a term over the answers that are judged. One that is not trusted adds nothing and still
    counts, so that the term is known to shrink where its teacher errs, and parts of a batch add up.
    """
    return (terms_N * trust_weights(step, trust)).sum() / max(1, num_judged(step.batch, trust))


def trust_weights(step: Step, trust: Trust) -> Tensor:
    """`[N]` in 0..1, without gradient: 1 (always), 1 where the teacher's class is the gold label and else 0
    (right), or the probability that the teacher gives its own class (confidence).
    """
    teacher_NV = step.teachers[TEACHER].logits.float()
    if trust == "confidence":
        return teacher_NV.softmax(dim=-1).amax(dim=-1)
    if trust == "right":
        return (teacher_NV.argmax(dim=-1) == targets_of(step.batch)).float()
    return torch.ones(teacher_NV.shape[0], device=teacher_NV.device)


def check_trust(trust: Trust, student: Spec) -> None:
    """Refuse what a regression teacher cannot say. Raises ConfigError."""
    if trust != "always" and student.num_labels == 1:
        raise ConfigError(
            f"trust: {trust} needs classes, and a regression has none", where="trust", hint="leave it out"
        )
