"""The contract of a loss, and the stack that adds losses up.

A loss file holds a pure function of tensors and a thin class: settings are keyword-only typed `__init__` arguments (the
recipe's schema is derived from the signature; value types come from `distillkit.settings`), `needs` says what the step
must carry, `bind` makes projections once sizes are known, `forward` returns a scalar mean over counted positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from distillkit.types import Batch, Spec, Step, Want


class Loss(nn.Module, ABC):
    """One term. Computes in fp32, averages over positions that count, returns an attached zero where none does, and
    never calls a model."""

    needs: Want = Want()
    """What it asks of the student's forward and of every teacher's; its `access` is the rung of the ladder."""
    needs_teacher: bool = True
    needs_labels: bool = False
    kinds: tuple[str, ...] = ("classification", "regression")
    """Task kinds it is defined for."""

    def bind(self, student: Spec, teachers: Mapping[str, Spec]) -> None:  # noqa: B027 - nothing to make for most
        """Called once when sizes are known; makes projections; raises ConfigError or ModelError where sizes clash."""

    def count(self, batch: Batch) -> int:
        """Positions the mean is taken over; lets micro-batches and ranks be joined exactly."""
        return batch.num_examples

    @abstractmethod
    def forward(self, step: Step) -> Tensor:
        """The mean of the term over its counted positions, a scalar attached to the student's graph."""
