"""The task's own labels: cross-entropy for classes, squared error for targets."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from distillkit.errors import ConfigError
from distillkit.losses.base import Loss
from distillkit.settings import Fraction
from distillkit.types import Step


def cross_entropy(logits_BV: Tensor, labels_B: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy in nats over examples; `smoothing` spreads that much of the target evenly over all
    classes (Szegedy et al. 2016, section 7)."""
    if labels_B.numel() == 0:
        return logits_BV.float().sum() * 0.0
    return functional.cross_entropy(logits_BV.float(), labels_B, label_smoothing=smoothing)


def squared_error(values_B1: Tensor, targets_B: Tensor) -> Tensor:
    """Mean squared difference over examples."""
    if targets_B.numel() == 0:
        return values_B1.float().sum() * 0.0
    return functional.mse_loss(values_B1.float().squeeze(-1), targets_B.float())


class Gold(Loss):
    """Learn the labels of the data: cross-entropy (classification) or squared error (regression).

    Settings:
        label_smoothing: Share of the target spread evenly over all classes; classification only.
    """

    needs_teacher = False
    needs_labels = True

    def __init__(self, *, label_smoothing: Fraction = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, step: Step) -> Tensor:
        labels = step.batch.labels
        if labels is None:
            raise ConfigError("gold needs labels and the batch has none", hint="use it on the task's rows")
        if labels.dtype.is_floating_point:
            return squared_error(step.student.logits, labels)
        return cross_entropy(step.student.logits, labels, smoothing=self.label_smoothing)
