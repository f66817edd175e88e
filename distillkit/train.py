"""take_step and train(): the one loop, for pretraining, fine-tuning and distillation.

What is trained is a Program: a module whose forward takes a micro-batch and the counts of the whole step, and
returns this micro-batch's exact share of the total. Shares of micro-batches and ranks add up, so that 1 x 8 =
8 x 1 = 2 ranks x 4. Dropout is seeded by (seed, stage, step, micro-batch): a resumed run, or one on more
ranks, draws what it would have drawn. accelerate moves, casts and wraps the program; everything else is here.
"""

from __future__ import annotations

import hashlib
import math
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from distillkit import checkpoint
from distillkit.allocator import freed_memory_kept, give_back_excess
from distillkit.data.batching import Feed
from distillkit.dropout import seeded_dropout
from distillkit.embeddings import KeptGradients
from distillkit.errors import (
    ConfigError,
    DivergedError,
    MissingError,
    ModelError,
    ResourceError,
    StoppedError,
)
from distillkit.flops import counted, peak
from distillkit.interchange import Interchange, run_twice
from distillkit.losses.base import LossStack, gradient_shares, joined
from distillkit.metrics import LOWER_IS_BETTER
from distillkit.model import Student, Teacher
from distillkit.objectives.base import Objective
from distillkit.optim import build_optimizer, clip_gradient, layer_factors, lr_at, set_lr
from distillkit.parallel import parallel
from distillkit.progress import Progress
from distillkit.rundir import MetricsLog
from distillkit.settings import OptimizerSettings, RuntimeSettings
from distillkit.signals import Signals
from distillkit.types import Access, Batch, Outputs, Reads, Step, restricted

MOST_SKIPPED = 50
"""Steps in a row that the fp16 scaler may skip for an overflow before the training counts as diverged."""
PROBE_EVERY = 5
"""Logged steps between two measurements of the terms' gradient shares (each costs a forward and a backward
per term).
"""

COUNTED_ROWS = 4
"""Rows that FLOPs are counted on: counting keeps whole attention matrices."""


class Program(nn.Module, ABC):
    """What the loop trains: modules and what is computed from a batch."""

    @property
    @abstractmethod
    def weights(self) -> Mapping[str, float]:
        """Weight of each term in the total."""

    @abstractmethod
    def counts(self, batch: Batch) -> Mapping[str, int]:
        """Counted positions of each term, known before any forward."""

    @abstractmethod
    def terms(self, batch: Batch) -> Mapping[str, Tensor]:
        """Each term's unweighted mean over its counted positions, attached."""

    def forward(self, batch: Batch, totals: Mapping[str, int]) -> tuple[Tensor, dict[str, Tensor]]:
        """(this batch's share of the total, detached unweighted share of each term); see `joined`. Beside the
        terms may stand other sums over the batch, of which `figures` is made.
        """
        terms = self.terms(batch)  # a Pretraining learns its weights here
        return joined(terms, self.weights, self.counts(batch), totals)

    def flops_per_token(self, batch: Batch) -> float:
        """FLOPs of forward and backward for a token, padding included, as torch counts them on the first rows
        of a micro-batch; leaves no gradients.
        """
        rows = batch.take(torch.arange(min(COUNTED_ROWS, batch.num_examples), device=batch.mask.device))
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]

        def step() -> None:
            total = torch.stack(list(self.terms(rows).values())).sum()
            torch.autograd.grad(total, trained, allow_unused=True)

        return counted(step) / rows.num_places

    def figures(self, sums: Mapping[str, Tensor]) -> Mapping[str, float]:
        """Figures of a logged step beside its terms, from the sums over its micro-batches and ranks."""
        return {}

    def warnings(self, terms: Mapping[str, float], figures: Mapping[str, float]) -> Sequence[str]:
        """What is going wrong in a logged step, in sentences."""
        return ()

    def check(self, batch: Batch) -> None:
        """Raise where a configured term cannot act; called once with the first batch."""

    def go_to(self, step: int, total: int) -> None:
        """Called before every optimizer step, which is number `step` (from 0) of `total`."""

    turns: int = 1
    """Steps after each other that train different parts; the log shows all of them."""

    def groups(self) -> Sequence[Sequence[nn.Parameter]]:
        """Parameters whose gradients are clipped together."""
        return [list(self.parameters())]

    def layers(self) -> Sequence[Sequence[nn.Parameter]]:
        """Parameters by depth, from the embeddings up; what is not named learns at the whole rate."""
        return [list(self.parameters())]

    def after_step(self, step: int) -> None:
        """Called after every optimizer step. Of sharded parameters each rank sees its own part."""

    def place(self, device: torch.device) -> None:
        """Move what is not a submodule (teachers)."""


class Distillation(Program):
    """A student, a stack of losses and the teachers they ask for; fine-tuning is a stack of gold and no
    teacher.
    """

    def __init__(
        self,
        student: Student,
        stack: LossStack,
        teachers: Mapping[str, Teacher],
        interchange: Interchange | None = None,
    ) -> None:
        super().__init__()
        self.student, self.stack = student, stack
        self._teachers, self._interchange = dict(teachers), interchange
        follow = {name: teacher for name, teacher in teachers.items() if teacher.follows}
        self.learning = nn.ModuleDict(follow)  # type: ignore[arg-type]

    @property
    def weights(self) -> Mapping[str, float]:
        return self.stack.weights

    def layers(self) -> Sequence[Sequence[nn.Parameter]]:
        return self.student.layers()

    def counts(self, batch: Batch) -> Mapping[str, int]:
        return self.stack.counts(batch)

    def terms(self, batch: Batch) -> Mapping[str, Tensor]:
        return self.stack.raw(self._step(batch))

    def go_to(self, step: int, total: int) -> None:
        self.stack.go_to(step / total)

    def _step(self, batch: Batch) -> Step:
        return take_step(self.student, self.stack, self._teachers, batch, self._interchange)

    def check(self, batch: Batch) -> None:
        step = self._step(batch)
        _check_teachers(step, self.stack.reads)
        self.stack.check(step, [parameter for parameter in self.parameters() if parameter.requires_grad])

    def after_step(self, step: int) -> None:
        for teacher in self._teachers.values():
            teacher.after_step(step)

    def place(self, device: torch.device) -> None:
        self._teachers = {name: teacher.to(device) for name, teacher in self._teachers.items()}


class Pretraining(Program):
    """A model and its pretraining objective."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self._objective = model, objective
        self._weights: dict[str, float] = {}
        self._tallies: dict[str, Tensor] = {}

    @property
    def weights(self) -> Mapping[str, float]:
        return self._weights

    def counts(self, batch: Batch) -> Mapping[str, int]:
        return self._objective.counts(batch)

    def terms(self, batch: Batch) -> Mapping[str, Tensor]:
        terms = self._objective.loss(self.model, batch)
        self._weights |= {name: term.weight for name, term in terms.items()}
        self._tallies = {name: sums for term in terms.values() for name, sums in term.tallies.items()}
        return {name: term.value for name, term in terms.items()}

    def forward(self, batch: Batch, totals: Mapping[str, int]) -> tuple[Tensor, dict[str, Tensor]]:
        total, shares = super().forward(batch, totals)
        return total, shares | self._tallies

    def figures(self, sums: Mapping[str, Tensor]) -> Mapping[str, float]:
        return self._objective.figures(sums)

    def warnings(self, terms: Mapping[str, float], figures: Mapping[str, float]) -> Sequence[str]:
        return self._objective.warnings(terms, figures)

    def go_to(self, step: int, total: int) -> None:
        self._objective.go_to(self.model, step, total)

    def groups(self) -> Sequence[Sequence[nn.Parameter]]:
        return self._objective.groups(self.model)


def take_step(
    student: Student,
    stack: LossStack,
    teachers: Mapping[str, Teacher],
    batch: Batch,
    interchange: Interchange | None = None,
) -> Step:
    """Run each forward that the stack asks for exactly once: every teacher where a loss needs one, and the
    student; both once more under the same intervention where a loss needs that.

    Raises ConfigError where a loss needs interventions and `interchange` is not given.
    """
    want = stack.needs
    asked = dict(teachers) if stack.needs_teacher else {}
    if want.access < Access.INTERVENTIONS:
        said = {name: restricted(teacher.outputs(batch, want=want), batch) for name, teacher in asked.items()}
        return Step(batch=batch, student=restricted(student(batch, want), batch), teachers=said)
    if interchange is None:
        raise ConfigError("a loss needs interventions, and nothing says what to swap", where="interchange")
    drawn = interchange.draw(batch)
    runs = {
        name: run_twice(teacher, batch, want, partial(interchange.teacher_swap, drawn))
        for name, teacher in asked.items()
    }
    base, swapped = run_twice(student, batch, want, partial(interchange.student_swap, drawn))
    counterfactual = Step(batch, swapped, {name: pair[1] for name, pair in runs.items()})
    return Step(batch, base, {name: pair[0] for name, pair in runs.items()}, counterfactual)


@dataclass(frozen=True)
class TrainSettings:
    """How long, how fast, what is kept. Either `epochs` or `steps` is given.

    settings_digest, data_digest: what checkpoints belong to (see checkpoint.Key); force: go on from one even
    where these changed.
    """

    stage: str
    optimizer: OptimizerSettings
    save_every: int
    seed: int
    runtime: RuntimeSettings
    settings_digest: str
    data_digest: str = ""
    force: bool = False
    epochs: int | None = None
    steps: int | None = None
    keep: Literal["best", "last"] = "last"
    metric: str = ""
    layer_decay: float = 1.0


@dataclass(frozen=True)
class TrainResult:
    steps: int
    seconds: float
    tokens: int
    best: checkpoint.Best | None
    resumed_from: int
    remarks: tuple[str, ...] = ()


@dataclass
class Hooks:
    """What the loop tells and asks while it runs."""

    log: MetricsLog
    progress: Progress
    signals: Signals
    evaluate: Callable[[], Mapping[str, float]] | None = None
    trackers: Sequence[Callable[[Mapping[str, Any]], None]] = field(default_factory=tuple)


def train(
    program: Program, feed: Feed, settings: TrainSettings, hooks: Hooks, *, checkpoints: Path
) -> TrainResult:
    """Train until the last step, going on from the newest valid checkpoint; `program` ends with the kept
    weights.

    Raises DivergedError (6) before a non-finite step is applied, StoppedError (75, 130) after a signal with a
    checkpoint saved, ResourceError (7) where memory or disk runs out.
    """
    return _Loop(program, feed, settings, hooks, checkpoints).run()


class _Loop:
    """The state of one call of `train`."""

    def __init__(
        self, program: Program, feed: Feed, settings: TrainSettings, hooks: Hooks, checkpoints: Path
    ) -> None:
        self.program, self.feed, self.settings, self.hooks, self.root = (
            program,
            feed,
            settings,
            hooks,
            checkpoints,
        )
        self.accelerator = make_accelerator(settings.runtime)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device
        self.by_hand = self.device.type == "cpu" and not settings.runtime.compile
        self.tables = KeptGradients(program) if self.by_hand and self.world == 1 else None
        program.to(self.device)
        program.place(self.device)
        self.parallel = parallel(settings.runtime, self.accelerator)
        self.key = checkpoint.Key(
            settings=settings.settings_digest,
            data=settings.data_digest,
            order=feed.digest,
            computed=self._computed(),
        )
        self.total = _total_steps(feed, settings)
        self.warned = False

    def _computed(self) -> dict[str, str | int]:
        """How this training is computed, as far as it may change the rounding."""
        on_cpu = self.device.type == "cpu"
        return {
            "torch": torch.__version__,
            "device": torch.backends.cpu.get_cpu_capability()
            if on_cpu
            else torch.cuda.get_device_name(self.device),
            "precision": self.accelerator.mixed_precision,
            "compile": int(self.settings.runtime.compile),
            "threads": torch.get_num_threads(),
            "processes": self.world,
            "micro": self.feed.micro,
        }

    def run(self) -> TrainResult:
        settings = self.settings
        self.state, slots, remarks = checkpoint.resume(
            self.root, self.key, self.program, force=settings.force
        )
        start = self.state.step
        for remark in remarks:
            self.hooks.progress.say(f"{settings.stage}: {remark}")
        if self.rank == 0:
            self.hooks.log.rewind(settings.stage, start)
        if start:
            self.hooks.progress.say(f"{settings.stage}: going on after step {start} of {self.total}")
        if start < self.total or self.state.unevaluated:
            with enough_memory(settings.stage), freed_memory_kept():
                self._prepare(slots)
                if self.state.unevaluated:
                    self._evaluate()
                    self._save()
                self._steps()
            self.parallel.unwrap()
        if settings.keep == "best" and self.state.best is not None:
            checkpoint.load_weights(self.root, self.state.best.step, self.program)
        self.hooks.progress.close()
        return TrainResult(
            self.total, self.state.seconds, self.state.tokens, self.state.best, start, tuple(remarks)
        )

    def _prepare(self, slots: Mapping[str, Tensor]) -> None:
        self.program.train()
        if self.state.index >= self.feed.num_steps(self.state.epoch):  # forced onto fewer rows
            self.state = replace(self.state, epoch=self.state.epoch + 1, index=0)
        torch.manual_seed(_key(self.settings, self.state.step, 0))
        telling = self._telling().to(self.device)
        self.program.check(telling)
        if not self.state.flops_per_token:
            self.state = replace(self.state, flops_per_token=self.program.flops_per_token(telling))
        self.peak = self._peak()
        self.wrapped = self.parallel.wrap(self.program)
        self.optimizer = build_optimizer(self.program, self.settings.optimizer, self._factors())
        checkpoint.load_slots(self.program, self.optimizer, slots)
        if self.settings.runtime.compile:
            self.wrapped = torch.compile(self.wrapped)  # type: ignore[assignment]
        self.scaler = self.accelerator.scaler
        if self.scaler is not None and self.state.scaler:
            self.scaler.load_state_dict(dict(self.state.scaler))

    def _peak(self) -> float | None:
        """FLOPs a second that all devices together can reach, where that is known."""
        if self.device.type == "cpu":
            return None
        one = peak(torch.cuda.get_device_name(self.device), self.accelerator.mixed_precision)
        return None if one is None else one * self.world

    def _factors(self) -> Mapping[nn.Parameter, float]:
        """Of the learning rate, by depth. Raises ConfigError for a model whose blocks are not known."""
        decay, layers = self.settings.layer_decay, self.program.layers()
        if decay != 1 and len(layers) == 1:
            raise ConfigError(
                f"layer_decay {decay} needs a model with blocks, and this one shows none",
                where="teacher.finetune.layer_decay",
                hint="leave it out",
            )
        return layer_factors(layers, decay)

    def _telling(self) -> Batch:
        """A batch to check the terms on: the first from here on, around the epoch, in which every term counts
        something, for a batch may well hold no labelled row; the next one where there is none.
        """
        epoch, index = self.state.epoch, self.state.index
        steps = chain(range(index, self.feed.num_steps(epoch)), range(index))
        batches = (batch for step in steps for batch in self.feed.step(epoch, step))
        return next(
            (batch for batch in batches if batch.labels is None or all(self.program.counts(batch).values())),
            self.feed.step(epoch, index)[0],
        )

    def _steps(self) -> None:
        clock, self.began = time.monotonic(), self.state
        window = _Window()
        while self.state.step < self.total:
            epoch, index = self.state.epoch, self.state.index
            micros = self.feed.step(epoch, index)
            sums, norm, skipped = self._one_step(micros)
            last_of_epoch = index + 1 == self.feed.num_steps(epoch)
            window.add(micros)
            self.state = replace(
                self.state,
                step=self.state.step + 1,
                epoch=epoch + last_of_epoch,
                index=0 if last_of_epoch else index + 1,
                seconds=self.began.seconds + time.monotonic() - clock,
                tokens=self.state.tokens + sum(micro.num_read for micro in micros),
                padded=self.state.padded + sum(micro.num_places for micro in micros),
                scaler=self.scaler.state_dict() if self.scaler is not None else {},
                skipped=self.state.skipped + 1 if skipped else 0,
            )
            done = self.state.step == self.total
            rounds = self.state.step // self.program.turns
            if done or rounds % self.settings.runtime.log_every == 0:
                self._log(sums, norm, micros, window)
                give_back_excess()
                window = _Window()
            evaluated = (last_of_epoch or done) and self._evaluate()
            if done or evaluated or self.state.step % self.settings.save_every == 0:
                self._save()
            self._stop_if_asked(saved=done)

    def _one_step(self, micros: list[Batch]) -> tuple[dict[str, Tensor], float, bool]:
        """Forward and backward of this rank's micro-batches, one optimizer step; (its share of the terms and
        of other sums, the gradient's norm, whether the fp16 scaler skipped it).
        """
        self.program.go_to(self.state.step, self.total)
        totals: Counter[str] = Counter()
        for micro in micros:
            totals.update(self.program.counts(micro))
        mine = [index for index in range(len(micros)) if index % self.world == self.rank]
        rounds = -(-len(micros) // self.world)
        sums: dict[str, Tensor] = {}
        for turn in range(rounds):
            # ranks exchange parameters and gradients together: one without a share takes part with weight 0
            absent = turn >= len(mine)
            index = 0 if absent else mine[turn]
            key = _key(self.settings, self.state.step, index)
            with self.parallel.exchanging(turn + 1 == rounds):
                with seeded_dropout(key, fast=self.by_hand), self.tables or nullcontext():
                    total, shares = self.wrapped(micros[index].to(self.device), totals)
                factor = 0.0 if absent else float(self.world)  # ranks' gradients are averaged; shares add up
                self.accelerator.backward(total * factor if factor != 1.0 else total)
            for name, share in shares.items():
                share = share * 0.0 if absent else share
                sums[name] = sums[name] + share if name in sums else share
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = self._clip()
        return sums, norm, self._apply(sums, micros, norm)

    def _clip(self) -> float:
        """Clip the gradients of each group; the norm of all of them before."""
        largest = self.settings.optimizer.clip
        groups = [[one for one in group if one.grad is not None] for group in self.program.groups()]
        return math.hypot(*(float(clip_gradient(group, largest)) for group in groups if group))

    def _apply(self, sums: Mapping[str, Tensor], micros: list[Batch], norm: float) -> bool:
        """The optimizer's step; whether the fp16 scaler skipped it for an overflow."""
        skipped = not math.isfinite(norm)
        if skipped:
            terms = self._over_ranks(sums)
            finite = all(bool(torch.isfinite(value).all()) for value in terms.values())
            if self.scaler is None or not finite or self.state.skipped >= MOST_SKIPPED:
                self._diverged(terms, micros, norm)
        set_lr(self.optimizer, lr_at(self.state.step, self.total, self.settings.optimizer))
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        if self.tables is not None:
            self.tables.clear()
        self.optimizer.zero_grad(set_to_none=True)
        self.program.after_step(self.state.step + 1)
        return skipped

    def _diverged(self, terms: Mapping[str, Tensor], micros: list[Batch], norm: float) -> None:
        """Stop before the step is applied, and leave a record of what it was made of."""
        bad = [name for name, value in terms.items() if not bool(torch.isfinite(value).all())]
        ids = [example for micro in micros for example in micro.ids.tolist()]
        record = {
            "stage": self.settings.stage,
            "step": self.state.step + 1,
            "diverged": bad or ["gradient"],
            "ids": ids,
        }
        if self.rank == 0:
            self.hooks.log.append(record)
        what = f"term {', '.join(map(repr, bad))}" if bad else f"the gradient (norm {norm})"
        if self.state.skipped:
            what += f", in {self.state.skipped + 1} steps in a row whatever its fp16 scale,"
        raise DivergedError(
            f"{what} stopped being finite at step {self.state.step + 1}; the step was not applied "
            f"(example ids {ids[:8]}...)",
            where=self.settings.stage,
            hint="lower optimizer.lr, or look at these rows; metrics.jsonl lists all ids",
        )

    def _log(self, sums: Mapping[str, Tensor], norm: float, micros: list[Batch], window: _Window) -> None:
        sums = self._over_ranks(sums)
        values = {name: float(value) for name, value in sums.items() if name in self.program.weights}
        acting = {name for micro in micros for name, count in self.program.counts(micro).items() if count}
        shown = {name: value for name, value in values.items() if name in acting}
        step = self.state.step
        pace = (self.state.seconds - self.began.seconds) / (step - self.began.step)
        record: dict[str, Any] = {
            "stage": self.settings.stage,
            "step": step,
            "epoch": self.state.epoch,
            "total": sum(self.program.weights[name] * value for name, value in values.items()),
            "terms": shown,
            "weighted": {name: self.program.weights[name] * value for name, value in shown.items()},
            "lr": lr_at(step - 1, self.total, self.settings.optimizer),
            "grad_norm": norm if math.isfinite(norm) else None,
            "tokens_per_s": window.speed,
            "padding": window.padding,
            "flops": self.state.padded * self.state.flops_per_token,
            "seconds": self.state.seconds,
            "eta_seconds": (self.total - step) * pace,
        }
        if self.peak is not None:
            record["mfu"] = window.padded_speed * self.state.flops_per_token / self.peak
        figures = self.program.figures({name: value for name, value in sums.items() if name not in values})
        if figures:
            record["figures"] = dict(figures)
        self._warn(record, self.program.warnings(shown, figures))
        if self.state.skipped:
            record["skipped"] = self.state.skipped  # steps in a row that overflowed in fp16
        if len(values) > 1 and (step // self.settings.runtime.log_every) % PROBE_EVERY == 1:
            record["gradient_share"] = self._gradient_shares(micros[0].to(self.device))
        if self.rank == 0:
            self.hooks.log.append(record)
            self.hooks.progress.step(self.settings.stage, step, self.total, record)
            for tracker in self.hooks.trackers:
                tracker(record)

    def _warn(self, record: dict[str, Any], warnings: Sequence[str]) -> None:
        """Every warning stands in its record; it is said once, and only in the second half of the training,
        for before that it may mend itself."""
        if not warnings:
            return
        record["warnings"] = list(warnings)
        if 2 * self.state.step >= self.total and not self.warned:
            self.warned = True
            for warning in warnings:
                self.hooks.progress.say(f"{self.settings.stage}: step {self.state.step}: {warning}")

    def _gradient_shares(self, batch: Batch) -> dict[str, float]:
        """On a graph of its own, with dropout drawn anew: the training step is not touched."""
        with self.parallel.whole():
            terms = self.program.terms(batch)
            weighted = {name: self.program.weights[name] * value for name, value in terms.items()}
            return gradient_shares(
                weighted, [parameter for parameter in self.program.parameters() if parameter.requires_grad]
            )

    def _over_ranks(self, terms: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if self.world == 1:
            return terms
        joint = torch.cat([value.float().flatten() for value in terms.values()])
        dist.all_reduce(joint)
        parts = torch.split(joint, [value.numel() for value in terms.values()])
        return {name: part.view_as(value) for (name, value), part in zip(terms.items(), parts, strict=True)}

    def _evaluate(self) -> bool:
        if self.hooks.evaluate is None:
            return False
        try:
            with self.parallel.whole():
                metrics = dict(self.hooks.evaluate())
        except StoppedError:
            self.state = replace(self.state, unevaluated=True)
            self._save()
            raise
        self.state = replace(self.state, unevaluated=False)
        self.program.train()
        value = metrics[self.settings.metric]
        lower = self.settings.metric in LOWER_IS_BETTER
        best = self.state.best
        if best is None or (value < best.value if lower else value > best.value):
            self.state = replace(self.state, best=checkpoint.Best(self.state.step, value, metrics))
        if self.rank == 0:
            self.hooks.log.append(
                {
                    "stage": self.settings.stage,
                    "step": self.state.step,
                    "epoch": self.state.epoch,
                    "validation": metrics,
                }
            )
        return True

    def _save(self) -> None:
        slots = checkpoint.optimizer_slots(self.program, self.optimizer, keep=self.rank == 0)
        with self.parallel.whole():
            if self.rank == 0:
                self.hooks.log.flush()
                keep = self.settings.runtime.keep_checkpoints
                checkpoint.save(self.root, self.state, self.key, self.program, slots, keep=keep)
        self.accelerator.wait_for_everyone()

    def _stop_if_asked(self, *, saved: bool) -> None:
        """All ranks stop after the same step, whichever was asked."""
        asked = torch.tensor([float(self.hooks.signals.stopping), float(self.hooks.signals.interrupted)])
        if self.world > 1:
            asked = asked.to(self.device)
            dist.all_reduce(asked)
        if asked[0] and not saved:
            self._save()
            self.hooks.progress.close()
            raise StoppedError(
                f"stopped by a signal after step {self.state.step} of {self.total} of "
                f"{self.settings.stage}; everything is saved",
                interrupted=bool(asked[1]),
                hint="the same command goes on",
            )


class _Window:
    """Speed and padding between two logged steps."""

    def __init__(self) -> None:
        self.start, self.real, self.all = time.monotonic(), 0, 0

    def add(self, micros: Sequence[Batch]) -> None:
        self.real += sum(micro.num_read for micro in micros)
        self.all += sum(micro.num_places for micro in micros)

    @property
    def speed(self) -> float:
        return self.real / max(1e-9, time.monotonic() - self.start)

    @property
    def padded_speed(self) -> float:
        return self.all / max(1e-9, time.monotonic() - self.start)

    @property
    def padding(self) -> float:
        return 1 - self.real / max(1, self.all)


@contextmanager
def enough_memory(where: str) -> Iterator[None]:
    """Memory that runs out, of a GPU or of the machine, as ResourceError (7)."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "DefaultCPUAllocator" not in text:
            raise  # also its subclasses, such as a compiler's errors
        raise ResourceError(
            f"out of memory: {text}",
            where=where,
            hint="in training raise `batch.micro`, the result stays the same; what was saved is kept",
        ) from None


def make_accelerator(runtime: RuntimeSettings) -> Accelerator:
    """Device, precision and wrapping. Raises MissingError (5) for a GPU that is not there, ConfigError (2)
    for fp16 on CPU.
    """
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise MissingError(
            "there is no CUDA device", where="runtime.device", hint="set runtime.device: cpu, or auto"
        )
    on_cpu = runtime.device == "cpu" or not torch.cuda.is_available()
    precision = resolve_precision(runtime, on_cpu)
    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    AcceleratorState._reset_state()  # a singleton; the next run in this process may use another precision
    return Accelerator(
        cpu=on_cpu,
        mixed_precision={"fp32": "no"}.get(precision, precision),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def resolve_precision(runtime: RuntimeSettings, on_cpu: bool) -> str:
    """fp32, bf16 or fp16; auto is bf16 where the hardware computes in it."""
    if runtime.precision == "fp16" and on_cpu:
        raise ConfigError(
            "fp16 training needs a GPU",
            where="runtime.precision, runtime.device",
            hint="use bf16 or fp32 on a CPU",
        )
    if runtime.precision != "auto":
        return runtime.precision
    if on_cpu:
        return (
            "bf16" if torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported() else "fp32"
        )
    return "bf16" if torch.cuda.is_bf16_supported() else "fp32"


def _total_steps(feed: Feed, settings: TrainSettings) -> int:
    if settings.steps is not None:
        return settings.steps
    if settings.epochs is None:
        raise ConfigError("neither epochs nor steps are given", where=settings.stage)
    return sum(feed.num_steps(epoch) for epoch in range(settings.epochs))


def _key(settings: TrainSettings, step: int, micro: int) -> int:
    """Seed of torch's generator for one micro-batch: the one place where the global generator is set, because
    dropout draws from nothing else."""
    return keyed_seed(settings.seed, settings.stage, step, micro)


def keyed_seed(*key: str | int) -> int:
    """A seed for torch's generator that depends on all of the key."""
    text = " ".join(map(str, key)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def _check_teachers(step: Step, reads: Reads) -> None:
    """Raise for answers, of a base or a swapped run, that would train the teacher, or are not finite."""
    for name, outputs in step.teachers.items():
        for tensor in _read(outputs, reads):
            if tensor.requires_grad:
                raise ModelError(
                    f"teacher {name!r} gives answers that carry a gradient: the loss would train it",
                    where="teacher",
                    hint="Teacher.outputs runs under torch.no_grad, or detaches what it returns",
                )
            if not bool(torch.isfinite(tensor).all()):
                raise DivergedError(
                    f"teacher {name!r} gives NaN or infinity (example ids {step.batch.ids.tolist()[:8]})",
                    where="teacher",
                    hint="nothing was trained; look at the teacher's weights",
                )
    if step.counterfactual is not None:
        _check_teachers(step.counterfactual, reads)


def _read(outputs: Outputs, reads: Reads) -> Iterator[Tensor]:
    """What the losses read of a teacher's answers."""
    yield outputs.logits
    for state in range(len(outputs.hidden)) if reads.states is None else reads.states:
        yield outputs.hidden[state]
    every = range(len(outputs.decoder_hidden))
    for state in every if reads.decoder_states is None else reads.decoder_states:
        yield outputs.decoder_hidden[state]
    for block in range(len(outputs.attention)) if reads.blocks is None else reads.blocks:
        shown = outputs.attention[block]
        yield from (shown.query, shown.key, shown.value)
