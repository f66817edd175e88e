"""Students that learn from each other (deep mutual learning, Zhang et al. 2018), as one Program.

Each student has its own loss stack for each of the others; its total is the mean over these, so that terms on
scores are 1 / (K - 1) * sum over the others of KL(other || it), as in the paper, and terms on labels are what
they are alone. What the others say is detached: a student's loss reaches no other one. One AdamW over all
parameters is one for each of them, because every parameter has its own state; gradients are clipped for each
student by itself.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from distillkit.data.batching import Feed
from distillkit.losses.base import TEACHER, LossStack
from distillkit.model import Student
from distillkit.settings import RunConfig
from distillkit.stacks import bind
from distillkit.train import Program
from distillkit.types import Batch, Outputs, Projections, Step, restricted


class Peers(Program):
    """Two or more students and a stack for every ordered pair of them, bound to their sizes.

    in_turn: an optimizer step trains one student, the next step the next one on the same batch, with what the
    others say by then (the paper's Algorithm 1; see `InTurn`); else all learn from one forward of each, which
    the authors' code does.
    """

    def __init__(
        self,
        students: Mapping[str, Student],
        stacks: Mapping[tuple[str, str], LossStack],
        *,
        in_turn: bool = False,
    ) -> None:
        super().__init__()
        self.students = nn.ModuleDict({_key(name): student for name, student in students.items()})
        self.names = tuple(students)
        self.stacks = nn.ModuleDict({_pair(*pair): stack for pair, stack in stacks.items()})
        self.in_turn, self.turns = in_turn, len(students) if in_turn else 1
        self._learning = tuple(students)

    @property
    def weights(self) -> Mapping[str, float]:
        return {
            f"{name}.{term}": weight
            for name in self.names
            for term, weight in self._stacks(name)[0].weights.items()
        }

    def counts(self, batch: Batch) -> Mapping[str, int]:
        return {
            f"{name}.{term}": count
            for name in self._learning
            for term, count in self._stacks(name)[0].counts(batch).items()
        }

    def terms(self, batch: Batch) -> Mapping[str, Tensor]:
        terms: dict[str, Tensor] = {}
        for name, steps in self._steps(batch).items():
            pairs = zip(self._stacks(name), steps, strict=True)
            raw = [stack.raw(step) for stack, step in pairs]
            terms |= {f"{name}.{term}": torch.stack([one[term] for one in raw]).mean() for term in raw[0]}
        return terms

    def go_to(self, step: int, total: int) -> None:
        for stack in self.stacks.values():
            stack.go_to(step / total)  # type: ignore[operator]
        if self.in_turn:
            self._learning = (self.names[step % len(self.names)],)

    def check(self, batch: Batch) -> None:
        for name, steps in self._steps(batch).items():
            trained = self._trained_with(name)
            for stack, step in zip(self._stacks(name), steps, strict=True):
                stack.check(step, trained)

    def groups(self) -> Sequence[Sequence[nn.Parameter]]:
        return [self._trained_with(name) for name in self.names]

    def _steps(self, batch: Batch) -> dict[str, list[Step]]:
        """What each learning student is told: itself beside each of the others. Every student runs once."""
        want = self._stacks(self._learning[0])[0].needs
        said: dict[str, Outputs] = {}
        for name in self.names:
            with nullcontext() if name in self._learning else torch.no_grad():
                said[name] = restricted(self.students[_key(name)](batch, want), batch)
        told = {name: _detached(outputs) for name, outputs in said.items()}
        return {
            name: [Step(batch, said[name], {TEACHER: told[other]}) for other in self._others(name)]
            for name in self._learning
        }

    def _others(self, name: str) -> list[str]:
        return [other for other in self.names if other != name]

    def _stacks(self, name: str) -> list[LossStack]:
        return [self.stacks[_pair(name, other)] for other in self._others(name)]  # type: ignore[misc]

    def _trained_with(self, name: str) -> list[nn.Parameter]:
        """Of a student and of the projections of its losses."""
        own = [self.students[_key(name)], *self._stacks(name)]
        return [parameter for part in own for parameter in part.parameters() if parameter.requires_grad]


def peers_of(
    config: RunConfig, index: int, stack: LossStack, students: Mapping[str, Student], *, in_turn: bool
) -> Peers:
    """The students of a phase with a bound copy of its stack for every pair. Raises ConfigError where two do
    not fit.
    """
    pairs = {}
    for name, other in itertools.permutations(students, 2):
        pairs[name, other] = copy.deepcopy(stack)
        bind(config, index, pairs[name, other], student=students[name].spec, teacher=students[other].spec)
    return Peers(students, pairs, in_turn=in_turn)


class InTurn(Feed):
    """Each step of a feed once for every student, one after the other."""

    def __init__(self, feed: Feed, turns: int) -> None:
        self._feed, self._turns = feed, turns
        self.digest = hashlib.sha256(f"{feed.digest} {turns} in turn".encode()).hexdigest()
        self.micro = feed.micro

    def num_steps(self, epoch: int) -> int:
        return self._feed.num_steps(epoch) * self._turns

    def step(self, epoch: int, index: int) -> list[Batch]:
        return self._feed.step(epoch, index // self._turns)


def _key(name: str) -> str:
    """Apart from the names that a container of modules has itself."""
    return f"peer {name}"


def _pair(name: str, other: str) -> str:
    return f"{name} of {other}"


def _detached(outputs: Outputs) -> Outputs:
    return Outputs(
        outputs.logits.detach(),
        tuple(state.detach() for state in outputs.hidden),
        tuple(
            Projections(shown.query.detach(), shown.key.detach(), shown.value.detach())
            for shown in outputs.attention
        ),
    )
