"""The task's own labels: cross-entropy for classes, squared error for targets."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from distillkit.losses.base import Loss, num_labelled, targets_of
from distillkit.settings import Fraction
from distillkit.types import IGNORED, Batch, Step


def cross_entropy(
    logits_NV: Tensor, labels_N: Tensor, *, smoothing: float = 0.0, allowed_NV: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy in nats over the answers that have a label (not IGNORED); `smoothing` spreads that
    much of the target evenly over all classes that are allowed (Szegedy et al. 2016, section 7).
    """
    logits_NV, known_N = logits_NV.float(), labels_N != IGNORED
    evenly = 0.0 if allowed_NV is not None else smoothing  # torch spreads it over every class
    total = functional.cross_entropy(
        logits_NV, labels_N, ignore_index=IGNORED, label_smoothing=evenly, reduction="sum"
    )
    if allowed_NV is not None and smoothing:
        costs_NV = -functional.log_softmax(logits_NV, dim=-1).masked_fill(~allowed_NV, 0.0)
        spread_N = costs_NV.sum(dim=-1) / allowed_NV.sum(dim=-1)
        total = (1 - smoothing) * total + smoothing * spread_N[known_N].sum()
    return total / known_N.sum().clamp(min=1)


def squared_error(values_N1: Tensor, targets_N: Tensor) -> Tensor:
    """Mean squared difference over examples."""
    if targets_N.numel() == 0:
        return values_N1.float().sum() * 0.0
    return functional.mse_loss(values_N1.float().squeeze(-1), targets_N.float())


class Gold(Loss):
    """Learn the labels of the data: cross-entropy (classes of examples or tokens) or squared error
    (regression).

    Settings:
        label_smoothing: Share of the target spread evenly over all classes (of several tasks, over those of
            the example's own); classes only.
    """

    needs_teacher = False
    needs_labels = True

    def __init__(self, *, label_smoothing: Fraction = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def count(self, batch: Batch) -> int:
        return num_labelled(batch)

    def forward(self, step: Step) -> Tensor:
        targets = targets_of(step.batch)
        if targets.is_floating_point():
            return squared_error(step.student.logits, targets)
        allowed = step.batch.allowed
        return cross_entropy(step.student.logits, targets, smoothing=self.label_smoothing, allowed_NV=allowed)
