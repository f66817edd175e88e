"""The contract of a loss, and the stack that adds losses up.

A loss file holds a pure function of tensors and a thin class: settings are keyword-only typed `__init__`
arguments (the recipe's schema is derived from the signature; value types come from `distillkit.settings`),
`needs` says what the step must carry, `bind` makes projections once sizes are known, `forward` returns a
scalar mean over counted positions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Literal

import torch
from torch import Tensor, nn

from distillkit.errors import ConfigError, DivergedError
from distillkit.settings import Schedule, place_of
from distillkit.types import IGNORED, Access, Batch, Reads, Spec, Step, Want

TEACHER = "teacher"
"""The name a single teacher has in `Step.teachers`."""


@dataclass(frozen=True)
class Compared:
    """Two places inside the models that a loss compares.

    part: states are numbered as in `Outputs.hidden` (0 = embeddings), those of a decoder likewise, blocks of
    attention from 1. student:
    None where the loss chooses among all. how: what is between them (a projection), or what both are cut
    into.
    """

    part: Literal["state", "decoder state", "attention"]
    student: int | None
    teacher: int
    how: str = ""


class Loss(nn.Module, ABC):
    """One term. Computes in fp32, averages over positions that count, returns an attached zero where none
    does, and never calls a model."""

    needs: Want = Want()
    """What it asks of the student's forward and of every teacher's; its `access` is the rung of the ladder.
    """
    needs_teacher: bool = True
    needs_labels: bool = False
    trains_logits: bool = True
    """Whether it reaches the student's answers, which the task's validation judges."""
    kinds: tuple[str, ...] = (
        "classification",
        "regression",
        "token_classification",
        "mlm",
        "text_to_text",
    )
    """Task kinds it is defined for."""

    def bind(self, student: Spec, teachers: Mapping[str, Spec]) -> None:
        """Called when sizes are known, and again should they change; makes projections, whose first weights
        torch's generator draws; raises ConfigError where sizes clash.
        """

    def reads(self) -> Reads:
        """What it looks at in the teacher's outputs, known once it is bound: by default all that `needs` asks
        for.

        A loss that says less makes the cache of a teacher smaller; what it does not say it cannot read there.
        """
        if not self.needs_teacher:
            return Reads()
        last = frozenset({-1} if self.needs.access == Access.FINAL_STATES else ())
        states = None if self.needs.access > Access.FINAL_STATES else last
        return Reads(states, None if self.needs.attention else frozenset(), temperatures=None)

    def count(self, batch: Batch) -> int:
        """What the mean is taken over (by default the answers: examples, or scored tokens); lets
        micro-batches and ranks be joined exactly.
        """
        return batch.num_answers

    def compared(self) -> Sequence[Compared]:
        """Once bound: the places inside the models that it compares; none for a term on answers alone."""
        return ()

    @abstractmethod
    def forward(self, step: Step) -> Tensor:
        """The mean of the term over its counted positions, a scalar attached to the student's graph."""


class LossStack(nn.Module):
    """Named losses, each with its weight in the total: total = sum of weight * mean over the term's
    positions.

    A weight is a number, or a Schedule over the training that the stack is told of by `go_to`. Owns the
    losses, so that their projections are trained, moved and saved beside the student and never reach the
    export. Raises ConfigError where there is none, or where a weight is never positive.
    """

    def __init__(self, losses: Mapping[str, tuple[float | Schedule, Loss]]) -> None:
        super().__init__()
        if not losses:
            raise ConfigError("there is no loss", where="distill.losses", hint="name at least one")
        for name, (weight, _) in losses.items():
            top = max(weight.start, weight.end) if isinstance(weight, Schedule) else weight
            if not 0 < top < float("inf"):
                raise ConfigError(
                    f"weight {weight} is not a positive number",
                    where=f"distill.losses.{name}.weight",
                    hint="leave the term out instead",
                )
        self.losses = nn.ModuleDict({name: loss for name, (_, loss) in losses.items()})
        self.schedules = {
            name: weight if isinstance(weight, Schedule) else Schedule(start=weight, end=weight)
            for name, (weight, _) in losses.items()
        }
        self.go_to(0.0)

    def go_to(self, progress: float) -> None:
        """Set every weight to what it is when `progress` (0 to 1) of the training is done."""
        self.weights = {name: schedule.at(progress) for name, schedule in self.schedules.items()}

    @property
    def terms(self) -> dict[str, Loss]:
        return dict(self.losses.items())  # type: ignore[arg-type]

    @property
    def needs(self) -> Want:
        """What one forward of the student and of each teacher must return for all terms."""
        return reduce(or_, (loss.needs for loss in self.terms.values()))

    @property
    def reads(self) -> Reads:
        """What all terms look at in the teacher's outputs, once they are bound."""
        return reduce(or_, (loss.reads() for loss in self.terms.values()))

    @property
    def needs_teacher(self) -> bool:
        return any(loss.needs_teacher for loss in self.terms.values())

    @property
    def trains_logits(self) -> bool:
        return any(loss.trains_logits for loss in self.terms.values())

    def bind(self, student: Spec, teachers: Mapping[str, Spec]) -> None:
        """Tell every loss the sizes of what it compares."""
        for loss in self.terms.values():
            loss.bind(student, teachers)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Counted positions of each term in this batch, known before any forward."""
        return {name: loss.count(batch) for name, loss in self.terms.items()}

    def forward(
        self, step: Step, totals: Mapping[str, int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(this batch's share of the total, detached unweighted share of each term).

        totals: counted positions of each term over all micro-batches and ranks of the optimizer step; the
        shares of all of them add up to the exact mean. By default this batch is the whole.
        """
        counts = self.counts(step.batch)
        return joined(self.raw(step), self.weights, counts, counts if totals is None else totals)

    def raw(self, step: Step) -> dict[str, Tensor]:
        """Each term's unweighted mean over this batch, attached."""
        return {name: loss(step) for name, loss in self.terms.items()}

    def check(self, step: Step, parameters: Sequence[nn.Parameter]) -> None:
        """Raise where a configured term cannot act on this batch: ConfigError (2), or DivergedError (6) for
        NaN.

        A term counts as acting when its gradient is not zero, or when it is already at its optimum (value 0).
        """
        for name, loss in self.terms.items():
            where = ".".join(("distill", *place_of(name)))
            if loss.needs_labels and step.batch.labels is None:
                raise ConfigError(
                    "this loss needs labels and the data has none",
                    where=where,
                    hint="use it in a phase on the task's rows",
                )
            if loss.count(step.batch) == 0:
                raise ConfigError(
                    "this loss counts no position of the first batch", where=where, hint="it could never act"
                )
            value = loss(step)
            size = float(value.detach())
            if not math.isfinite(size):
                raise DivergedError(
                    f"term {name!r} is {size} before the first step",
                    where=where,
                    hint=f"batch ids {step.batch.ids.tolist()[:10]}",
                )
            if not value.requires_grad:
                raise ConfigError(
                    "this loss does not depend on the student",
                    where=where,
                    hint="its value carries no gradient",
                )
            gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            if _norm(gradients) == 0.0 and abs(size) > 1e-6:
                raise ConfigError(
                    f"this loss has the value {size:.4g} but no gradient",
                    where=where,
                    hint="it could never act",
                )


def targets_of(batch: Batch) -> Tensor:
    """`[N]` the labels of a batch that must have some. Raises ConfigError where it has none."""
    if batch.targets is None:
        raise ConfigError(
            "this loss needs labels and the batch has none", hint="use it in a phase on the task's rows"
        )
    return batch.targets


def num_labelled(batch: Batch) -> int:
    """Answers whose class is known, or all targets of a regression."""
    targets = targets_of(batch)
    return targets.numel() if targets.is_floating_point() else int((targets != IGNORED).sum())


def counterfactual_of(step: Step) -> Step:
    """The step's swapped runs. Raises ConfigError where there are none."""
    if step.counterfactual is None:
        raise ConfigError(
            "this loss compares interventions and none was made", hint="train it by the loop of this package"
        )
    return step.counterfactual


def joined(
    terms: Mapping[str, Tensor],
    weights: Mapping[str, float],
    counts: Mapping[str, int],
    totals: Mapping[str, int],
) -> tuple[Tensor, dict[str, Tensor]]:
    """(a micro-batch's share of the weighted total of a step, detached unweighted share of each term).

    terms: means over this micro-batch's counted positions; counts: how many these are; totals: how many they
    are over all micro-batches and ranks of the step. The shares of all of them add up to the exact means.
    """
    shares = {name: value * (counts[name] / max(1, totals[name])) for name, value in terms.items()}
    total = torch.stack([weights[name] * share for name, share in shares.items()]).sum()
    return total, {name: share.detach() for name, share in shares.items()}


def gradient_shares(weighted: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> dict[str, float]:
    """Each weighted term's gradient norm as a share of the sum of all norms; leaves `.grad` alone, uses the
    graph up.

    Terms that pull against each other still have positive shares.
    """
    norms = {
        name: _norm(torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True))
        for name, value in weighted.items()
    }
    total = sum(norms.values())
    return {name: norm / total if total > 0 else 0.0 for name, norm in norms.items()}


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` is True, in fp32; an attached zero where nothing counts.

    values and mask have one shape; values that do not count may be NaN.
    """
    kept = torch.where(mask, values.float(), torch.zeros((), device=values.device))
    return kept.sum() / mask.sum().clamp(min=1)


def _norm(gradients: Iterable[Tensor | None]) -> float:
    squares = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0
