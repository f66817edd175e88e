"""Any loss at the exits of a student, with its own deepest answer, or the teacher, to learn from."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from distillkit.errors import ConfigError
from distillkit.losses.base import TEACHER, Loss
from distillkit.types import Access, Batch, Outputs, Reads, Spec, Step, Want


class AtExits(Loss):
    """The sum over all exits but the deepest of a loss between an exit and its teacher (Be Your Own Teacher,
    Zhang et al. 2019, section 3.2: the deepest teaches the shallower, and learns nothing from them).

    An exit shows two states, what it reads and what its classifier reads, so that `layer_map: last` is the
    paper's hint (its L2 loss is a sum over features; `hidden_mse` is their mean). The deepest shows its final
    state twice. What it says is detached: these losses train what an exit shares with it, and not its answer.
    Each exit has a copy of the loss, and with it projections of its own.

    teacher: "deepest", or "teacher" for the run's.
    """

    trains_logits = False

    def __init__(self, loss: Loss, teacher: Literal["deepest", "teacher"]) -> None:
        super().__init__()
        if loss.needs.attention or loss.needs.access >= Access.INTERVENTIONS:
            raise ConfigError(
                "an exit shows its answer and its states, no attention and no interventions",
                hint="take a loss on labels, scores or hidden states",
            )
        self._loss = [loss]  # a list: only its copies are trained
        self.teacher = teacher
        self.copies = nn.ModuleList()
        asks = loss.needs_teacher and teacher == "teacher"
        self.needs = replace(loss.needs if asks else Want(), exits=True)
        self.needs_teacher, self.needs_labels, self.kinds = asks, loss.needs_labels, loss.kinds

    def bind(self, student: Spec, teachers: Mapping[str, Spec]) -> None:
        """Raises ConfigError for a student that has no exits."""
        if not student.exits:
            raise ConfigError(
                "the student has no exits to learn this",
                hint="student: {use: exits, at: [2], of: {...}} answers after its second block too",
            )
        shown = replace(student, num_layers=1, attention=False)
        told = teachers if self.teacher == "teacher" else {TEACHER: shown}
        self.copies = nn.ModuleList(copy.deepcopy(self._loss[0]) for _ in student.exits)
        for one in self.copies:
            one.bind(shown, told)  # type: ignore[operator]

    def reads(self) -> Reads:
        return self.copies[0].reads() if self.needs_teacher else Reads()  # type: ignore[operator]

    def count(self, batch: Batch) -> int:
        return self._loss[0].count(batch)

    def forward(self, step: Step) -> Tensor:
        *exits, deepest = step.student.exits
        told = step.teachers if self.teacher == "teacher" else {TEACHER: _detached(deepest)}
        steps = (Step(step.batch, said, told) for said in exits)
        return torch.stack([loss(one) for loss, one in zip(self.copies, steps, strict=True)]).sum()


def _detached(said: Outputs) -> Outputs:
    return Outputs(said.logits.detach(), tuple(state.detach() for state in said.hidden))
