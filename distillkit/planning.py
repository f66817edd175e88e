"""`distillkit plan`: what a run would do and cost, and what cannot work, before anything is trained.

The models are built with their real sizes (a tokenizer that the run would train is trained on a sample,
so its vocabulary may come out a little smaller), the task's rows are tokenised, and a few steps of
every stage are timed on this machine.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from rich.text import Text

from distillkit import catalog
from distillkit.augmenting import Augmentation, Place, sample
from distillkit.data.batching import Encoded, TaskFeed, encode
from distillkit.data.corpora import documents
from distillkit.data.tasks import Rows, Task, load_task, load_unlabelled
from distillkit.estimates import ModelCost, model_cost, step_cost
from distillkit.losses.base import TEACHER, LossStack
from distillkit.losses.gold import Gold
from distillkit.losses.hidden_cosine import HiddenCosine
from distillkit.model import FixedTeacher, Student, Teacher, TeacherSource, TrainableTeacherSource
from distillkit.progress import duration
from distillkit.recipe import Loaded
from distillkit.report.text import clean, scaled, size
from distillkit.settings import Phase, RunConfig
from distillkit.stacks import bind, build_stacks, check_access
from distillkit.train import Distillation

SAMPLE_TEXTS, SAMPLE_ROWS = 5_000, 20_000
UNKNOWN_LIMIT = 0.05


@dataclass(frozen=True)
class LossPlan:
    """One term of a phase. needs: access to the teacher; pairs: (student state, teacher state) compared."""

    phase: int
    name: str
    use: str
    weight: float
    needs: str
    pairs: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class StagePlan:
    """One trained stage: optimizer steps, and seconds and bytes as estimated on this machine."""

    stage: str
    steps: int
    seconds: float
    memory: int


@dataclass(frozen=True)
class Plan:
    """All that `distillkit plan` shows. teacher: None where it has no weights to count."""

    name: str
    rows: Mapping[str, int]
    labels: Mapping[str, Mapping[str, int]]
    truncated: float
    unknown: float
    teacher: ModelCost | None
    student: ModelCost
    losses: tuple[LossPlan, ...]
    stages: tuple[StagePlan, ...]
    notes: tuple[str, ...]

    @property
    def majority(self) -> float:
        """Share of the most frequent class of the training rows; 0 for regression."""
        return max(self.labels["train"].values()) / self.rows["train"] if self.labels else 0.0

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "majority": self.majority}

    def table(self) -> Table:
        """For a terminal."""
        shown = Table(show_header=False, highlight=False, title=clean(self.name))
        for name, value in (*self._data(), *self._models(), *self._training()):
            shown.add_row(Text(name), Text(clean(value)))
        return shown

    def _data(self) -> Iterator[tuple[str, str]]:
        yield "rows", ", ".join(f"{split} {count:,}" for split, count in self.rows.items())
        for split, counts in self.labels.items():
            yield f"labels of {split}", ", ".join(f"{label} {count:,}" for label, count in counts.items())
        if self.labels:
            yield "majority class", f"{self.majority:.1%} of train"
        yield "truncated", f"{self.truncated:.1%} of the training rows"
        yield "unknown tokens", f"{self.unknown:.2%}"

    def _models(self) -> Iterator[tuple[str, str]]:
        for name, model in (("teacher", self.teacher), ("student", self.student)):
            if model is not None:
                sizes = f"{model.layers} layers x {model.width}, {scaled(model.parameters)} parameters"
                yield name, f"{sizes}, {scaled(model.flops)} FLOPs for the longest row"
        if self.teacher is not None:
            parameters = self.student.parameters / self.teacher.parameters
            flops = self.student.flops / self.teacher.flops
            yield "student / teacher", f"{parameters:.0%} of the parameters, {flops:.0%} of the FLOPs"

    def _training(self) -> Iterator[tuple[str, str]]:
        for loss in self.losses:
            pairs = (
                f", states [student, teacher]: {[list(pair) for pair in loss.pairs]}" if loss.pairs else ""
            )
            yield f"loss {loss.name}", f"{loss.weight:g} x {loss.use}, needs {loss.needs}{pairs}"
        for stage in self.stages:
            cost = f"about {duration(stage.seconds)}, {size(stage.memory)} of memory"
            yield f"train {stage.stage}", f"{stage.steps:,} steps, {cost}"
        for note in self.notes:
            yield "note", note


@dataclass(frozen=True)
class _Draft:
    """What the parts of a plan are made from."""

    config: RunConfig
    base: Path
    task: Task
    source: TeacherSource
    teacher: Teacher
    student: Student
    stacks: tuple[LossStack, ...]
    encoded: Encoded

    @property
    def scale(self) -> float:
        """Training rows over rows that were tokenised."""
        return len(self.task.train.texts) / len(self.encoded)


def plan(loaded: Loaded) -> Plan:
    """Work out what a run would do. Raises DistillkitError where it could not work."""
    with tempfile.TemporaryDirectory() as cache:
        draft = _draft(loaded, Path(cache))
        config, task, encoded = draft.config, draft.task, draft.encoded
        model = _model_of(draft.teacher)
        teacher = None if model is None else model_cost(model, config.task.max_length)
        student = model_cost(draft.student, config.task.max_length)
        unknown = encoded.unknown / max(1, int(encoded.lengths.sum()))
        return Plan(
            name=config.name,
            rows={split: len(rows.texts) for split, rows in _splits(task).items()},
            labels=_label_counts(task),
            truncated=encoded.truncated / len(encoded),
            unknown=unknown,
            teacher=teacher,
            student=student,
            losses=tuple(_loss_plans(draft)),
            stages=(*_teacher_stages(draft), *_student_stages(draft)),
            notes=(*_size_notes(teacher, student, unknown), *_extra_rows(draft, Path(cache)), *task.notes),
        )


def _draft(loaded: Loaded, cache: Path) -> _Draft:
    config, base = loaded.config, loaded.base
    stacks = build_stacks(config, base)
    source = catalog.build("teacher", config.teacher, base=base)
    student_source = catalog.build("student", config.student, base=base)
    task = load_task(config.task, base=base, seed=config.seed)
    check_access(config, stacks, source, task.labels)
    tokenizer = source.tokenizer(itertools.islice(_texts(source, task, base), SAMPLE_TEXTS))
    if isinstance(source, TrainableTeacherSource):
        model = source.classifier(tokenizer, task.labels, config.task.max_length, None)
        teacher: Teacher = FixedTeacher(model)
    else:
        teacher = source.teacher(base, task.labels)
    student = student_source.build(tokenizer, task.labels, config.task.max_length, teacher)
    for index, stack in enumerate(stacks):
        bind(config, index, stack, student=student.spec, teacher=teacher.spec)
    encoded = encode(_head(task.train), tokenizer, max_length=config.task.max_length, cache=cache)
    return _Draft(config, base, task, source, teacher, student, stacks, encoded)


def _model_of(teacher: Teacher) -> Student | None:
    return teacher.model if isinstance(teacher, FixedTeacher) else None


def _texts(source: TeacherSource, task: Task, base: Path) -> Iterator[str]:
    if isinstance(source, TrainableTeacherSource) and source.pretrain is not None:
        for document in documents(source.pretrain.corpus, base=base):
            yield from document
    else:
        for texts in task.train.texts:
            yield from texts


def _head(rows: Rows) -> Rows:
    if len(rows.texts) <= SAMPLE_ROWS:
        return rows
    labels = None if rows.labels is None else rows.labels[:SAMPLE_ROWS]
    return Rows(rows.ids[:SAMPLE_ROWS], rows.texts[:SAMPLE_ROWS], labels, f"{rows.digest} head")


def _splits(task: Task) -> dict[str, Rows]:
    splits = {"train": task.train, "validation": task.validation}
    return splits if task.test is None else {**splits, "test": task.test}


def _label_counts(task: Task) -> dict[str, dict[str, int]]:
    if task.labels.kind != "classification":
        return {}
    counts = {}
    for split, rows in _splits(task).items():
        assert rows.labels is not None
        found = np.bincount(rows.labels, minlength=task.labels.num_labels).tolist()
        counts[split] = dict(zip(task.labels.names, found, strict=True))
    return counts


def _size_notes(teacher: ModelCost | None, student: ModelCost, unknown: float) -> Iterator[str]:
    if teacher is not None and student.parameters > teacher.parameters:
        sizes = f"{student.parameters:,} parameters, not {teacher.parameters:,}"
        yield f"the student is larger than its teacher: {sizes}"
    if unknown > UNKNOWN_LIMIT:
        yield f"{unknown:.0%} of the tokens are unknown to the tokenizer: does it belong to this text?"


def _loss_plans(draft: _Draft) -> Iterator[LossPlan]:
    for index, (phase, stack) in enumerate(zip(draft.config.phases, draft.stacks, strict=True)):
        for name, loss in stack.terms.items():
            pairs = loss.pairs if isinstance(loss, HiddenCosine) else ()
            needs = loss.needs.access.name if loss.needs_teacher else "no teacher"
            yield LossPlan(index, name, phase.losses[name].use, stack.weights[name], needs, pairs)


def _teacher_stages(draft: _Draft) -> Iterator[StagePlan]:
    """Fine-tuning as timed; pretraining at the same speed per token, which leaves its output layers out."""
    source, model = draft.source, _model_of(draft.teacher)
    if not isinstance(source, TrainableTeacherSource) or source.finetune is None or model is None:
        return
    stack = LossStack({"gold": (1.0, Gold())})
    feed = TaskFeed(draft.encoded, source.finetune.batch, seed=draft.config.seed)
    cost = step_cost(Distillation(model.requires_grad_(True), stack, {}), feed)
    model.eval().requires_grad_(False)
    if source.pretrain is not None:
        a_step = source.pretrain.batch * source.pretrain.max_length
        ratio = a_step / (float(draft.encoded.lengths.sum()) / feed.num_steps(0))
        steps = source.pretrain.steps
        yield StagePlan("pretrain", steps, steps * cost.seconds * ratio, int(cost.memory * max(1.0, ratio)))
    steps = source.finetune.epochs * round(feed.num_steps(0) * draft.scale)
    yield StagePlan("teacher", steps, steps * cost.seconds, cost.memory)


def _student_stages(draft: _Draft) -> Iterator[StagePlan]:
    for index, (phase, stack) in enumerate(zip(draft.config.phases, draft.stacks, strict=True)):
        feed = TaskFeed(draft.encoded, phase.batch, seed=draft.config.seed)
        cost = step_cost(Distillation(draft.student, stack, {TEACHER: draft.teacher}), feed)
        steps = phase.epochs * round(feed.num_steps(0) * _rows(phase, draft) / len(draft.encoded))
        name = "student" if len(draft.stacks) == 1 else f"student, phase {index + 1}"
        yield StagePlan(name, steps, steps * cost.seconds, cost.memory)


def _rows(phase: Phase, draft: _Draft) -> int:
    """Rows of a phase; of the copies of a row as many as are asked for, though some may be left out."""
    if phase.corpus is None:
        rows = len(draft.task.train)
    else:
        rows = sum(len(document) for document in documents(phase.corpus, base=draft.base))
    if phase.unlabelled is not None:
        rows += len(load_unlabelled(draft.config.task, phase.unlabelled, base=draft.base)[0])
    return rows if phase.augment is None else rows * (1 + phase.augment.copies)


def _extra_rows(draft: _Draft, cache: Path) -> Iterator[str]:
    """How many rows each phase reads where that is not the task's own number, and some of its copies, where
    the model that makes them is there already.
    """
    for number, phase in enumerate(draft.config.phases, start=1):
        if phase.unlabelled is None and phase.augment is None:
            continue
        about = "up to " if phase.augment is not None else ""
        yield f"phase {number} reads {about}{_rows(phase, draft):,} rows"
        if phase.augment is not None and phase.augment.model is not None:
            how = Augmentation.of(phase.augment, draft.base, draft.base, draft.config)
            for before, after in sample(_head(draft.task.train), how, _unwatched(cache)):
                yield f"augment: {before!r:.200} -> {after!r:.200}"


def _unwatched(cache: Path) -> Place:
    return Place(torch.device("cpu"), cache, check=lambda: None, tell=lambda done, total: None)
