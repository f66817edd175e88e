"""`distillkit plan`: what a run would do and cost, and what cannot work, before anything is trained.

The models are built with their real sizes (a tokenizer that the run would train is trained on a sample,
so its vocabulary may come out a little smaller), the task's rows are tokenised, a teacher that comes trained
answers some validation rows, and a few steps of every stage are timed on this machine.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from transformers.utils import logging as transformers_logging

from distillkit import catalog, links, preflight
from distillkit.augmenting import Augmentation, Place, sample
from distillkit.data.batching import Encoded, TaskFeed, encode, of_task
from distillkit.data.corpora import documents
from distillkit.data.several import load_tasks
from distillkit.data.tasks import KINDS, Rows, Task, load_unlabelled
from distillkit.estimates import BYTES_FIXED, ModelCost, free_memory, model_cost, step_cost
from distillkit.flops import HONEST
from distillkit.losses.base import TEACHER, LossStack
from distillkit.losses.gold import Gold
from distillkit.model import (
    STUDENT,
    FixedTeacher,
    Nothing,
    Student,
    Teacher,
    TeacherSource,
    TrainableTeacherSource,
)
from distillkit.optim import trained_bytes
from distillkit.peers import peers_of
from distillkit.preflight import Meeting, Named, Prospect
from distillkit.progress import duration
from distillkit.recipe import Loaded
from distillkit.report.text import clean, scaled, size
from distillkit.settings import Phase, PretrainSettings
from distillkit.stacks import build_stacks, check_access, check_student, interchange_of
from distillkit.train import Distillation, Program, make_accelerator
from distillkit.types import Finding

SAMPLE_TEXTS, SAMPLE_ROWS = 5_000, 20_000
UNKNOWN_LIMIT = 0.05
MOST_LABELS = 20
"""Labels that the table counts; the JSON counts all."""


@dataclass(frozen=True)
class LossPlan:
    """One term of a phase. weight: at the start; needs: access to the teacher."""

    phase: int
    name: str
    use: str
    weight: float
    shown_weight: str
    needs: str


@dataclass(frozen=True)
class StagePlan:
    """One trained stage: optimizer steps, seconds and bytes as estimated on this machine, and FLOPs of all
    its forwards and backwards (a multiply-add is 2; 0 where that is not known).
    """

    stage: str
    steps: int
    seconds: float
    memory: int
    flops: float


@dataclass(frozen=True)
class Plan:
    """All that `distillkit plan` shows. teacher: None where it has no weights to count."""

    name: str
    rows: Mapping[str, int]
    labels: Mapping[str, Mapping[str, int]]
    tasks: tuple[str, ...]
    truncated: float
    unknown: float
    teacher: ModelCost | None
    student: ModelCost
    losses: tuple[LossPlan, ...]
    layer_map: tuple[Meeting, ...]
    stages: tuple[StagePlan, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    @property
    def majority(self) -> float:
        """Share of the most frequent class or tag of the training rows, the mean over tasks where there are
        several; 0 where there is none.
        """
        shares = []
        for task in self.tasks or ("",):
            named = self.labels.get("train", {}).items()
            counts = [count for name, count in named if not task or name.startswith(f"{task}/")]
            shares.append(max(counts) / sum(counts) if counts else 0.0)
        return sum(shares) / len(shares)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "majority": self.majority}

    def shown(self) -> Group:
        """For a terminal: what is done, and which layer learns from which."""
        facts = Table(show_header=False, highlight=False, title=clean(self.name))
        for name, value in (*self._data(), *self._models(), *self._training(), *self._found()):
            facts.add_row(Text(name), Text(clean(value)))
        several = len({loss.phase for loss in self.losses}) > 1
        columns = ("loss", "student", "learns from the teacher's", "through")
        layers = Table(*columns, highlight=False, title="layer map")
        for line in self.layer_map:
            name = f"{line.loss} (phase {line.phase})" if several else line.loss
            layers.add_row(*(Text(clean(cell)) for cell in (name, line.student, line.teacher, line.how)))
        return Group(facts, layers)

    def _data(self) -> Iterator[tuple[str, str]]:
        yield "rows", ", ".join(f"{split} {count:,}" for split, count in self.rows.items())
        for split, counts in self.labels.items():
            most = sorted(counts, key=lambda label: -counts[label])[:MOST_LABELS]
            told = [f"{label} {counts[label]:,}" for label in counts if label in most]
            more = [f"and {len(counts) - len(most)} more"] if len(counts) > len(most) else []
            yield f"labels of {split}", ", ".join([*told, *more])
        if self.labels:
            yield "majority class", f"{self.majority:.1%} of train" + ", mean of tasks" * bool(self.tasks)
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
            yield f"loss {loss.name}", f"{loss.shown_weight} x {loss.use}, needs {loss.needs}"
        for stage in self.stages:
            cost = f"about {duration(stage.seconds)}, {_flops(stage.flops)}, {size(stage.memory)} of memory"
            yield f"train {stage.stage}", f"{stage.steps:,} steps, {cost}"
        if len(self.stages) > 1:
            flops = sum(stage.flops for stage in self.stages)
            yield (
                "train in all",
                f"about {duration(sum(stage.seconds for stage in self.stages))}, {_flops(flops)}",
            )

    def _found(self) -> Iterator[tuple[str, str]]:
        for found in self.findings:
            yield found.severity, f"{found.place}: {found.sentence}"
        for note in self.notes:
            yield "note", note


def _flops(value: float) -> str:
    return f"{scaled(value)} FLOPs" if value else "FLOPs not known"


@dataclass(frozen=True)
class _Draft:
    """What the parts of a plan are made from."""

    base: Path
    prospect: Prospect
    encoded: Encoded
    validation: Encoded
    device: torch.device

    @property
    def named(self) -> Named:
        return self.prospect.named

    @property
    def scale(self) -> float:
        """Training rows over rows that were tokenised."""
        return len(self.named.task.train) / len(self.encoded)

    def tokens_per_step(self, feed: TaskFeed) -> float:
        """Real tokens of a step, on average."""
        return float(self.encoded.lengths.sum()) / feed.num_steps(0)


def plan(loaded: Loaded) -> Plan:
    """Work out what a run would do. Raises DistillkitError where it could not work."""
    with tempfile.TemporaryDirectory() as cache:
        *before, (_, draft) = _chain(loaded, Path(cache))
        earlier = [
            replace(found, place=f"{label}: {found.place}")
            for label, link in before
            for found in preflight.findings(link.prospect)
        ]
        prospect, task, encoded = draft.prospect, draft.named.task, draft.encoded
        found = preflight.findings(prospect)
        model, length = _model_of(prospect.teacher), draft.named.config.task.max_length
        teacher = None if model is None else model_cost(model, length)
        student = model_cost(prospect.student, length)
        judged = preflight.judged(prospect, draft.encoded, draft.validation, draft.device)
        stages = (
            *(stage for label, link in before for stage in _labelled(label, _stages(link))),
            *_stages(draft),
        )
        return Plan(
            name=draft.named.config.name,
            rows={split: len(rows.texts) for split, rows in _splits(task).items()},
            labels=_label_counts(task),
            tasks=tuple(task.labels.tasks),
            truncated=encoded.truncated / len(encoded),
            unknown=encoded.unknown / max(1, int(encoded.lengths.sum())),
            teacher=teacher,
            student=student,
            losses=tuple(_loss_plans(draft)),
            layer_map=preflight.meetings(prospect),
            stages=stages,
            findings=(
                *earlier,
                judged,
                *found,
                *_extra_rows(draft, Path(cache)),
                *_unknown(encoded),
                *_too_large(stages, draft.device),
            ),
            notes=task.notes,
        )


def _chain(loaded: Loaded, cache: Path) -> Iterator[tuple[str, _Draft]]:
    """What is trained one after the other, by its name: every assistant, and the run itself (''), each taught
    by the student before it.
    """
    chain = list(links.assistants(loaded, Path(loaded.config.output) / loaded.config.name))
    runs = [(f"assistant {number}", link) for number, link in enumerate(chain, start=1)]
    runs.append(("", links.last(loaded, chain[-1]) if chain else loaded))
    teacher: TeacherSource | None = None
    for label, link in runs:
        draft = _draft(link, cache, teacher)
        yield label, draft
        teacher = preflight.Upcoming(draft.prospect.student, draft.prospect.tokenizer)


def _draft(loaded: Loaded, cache: Path, taught_by: TeacherSource | None) -> _Draft:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    config, base = loaded.config, loaded.base
    stacks = build_stacks(config, base)
    source = taught_by or catalog.build("teacher", config.teacher, base=base)
    student = catalog.build("student", config.student, base=base)
    task = load_tasks(config.task, base=base, seed=config.seed)
    check_access(config, stacks, source, task.labels)
    check_student(config, student, task.labels)
    tokenizer = source.tokenizer(itertools.islice(_texts(source, task, base), SAMPLE_TEXTS))
    prospect = preflight.build(Named(config, task, source, student, stacks), tokenizer, base)

    def encoded(rows: Rows) -> Encoded:
        return encode(rows, tokenizer, max_length=config.task.max_length, cache=cache)

    validation = encoded(preflight.sample(task.validation, preflight.JUDGED_ROWS))
    device = make_accelerator(config.runtime).device
    return _Draft(base, prospect, encoded(preflight.sample(task.train, SAMPLE_ROWS)), validation, device)


def _model_of(teacher: Teacher) -> Student | None:
    return teacher.model if isinstance(teacher, FixedTeacher) else None


def _texts(source: TeacherSource, task: Task, base: Path) -> Iterator[str]:
    if isinstance(source, TrainableTeacherSource) and source.pretrain is not None:
        for document in documents(source.pretrain.corpus, base=base):
            yield from document
    else:
        yield from task.train.every_text


def _splits(task: Task) -> dict[str, Rows]:
    splits = {"train": task.train, "validation": task.validation}
    return splits if task.test is None else {**splits, "test": task.test}


def _label_counts(task: Task) -> dict[str, dict[str, int]]:
    if not task.labels.names:
        return {}
    counts = {}
    for split, rows in _splits(task).items():
        assert rows.labels is not None
        found = np.bincount(rows.labels, minlength=task.labels.num_labels).tolist()
        counts[split] = dict(zip(task.labels.names, found, strict=True))
    return counts


def _unknown(encoded: Encoded) -> Iterator[Finding]:
    share = encoded.unknown / max(1, int(encoded.lengths.sum()))
    if share > UNKNOWN_LIMIT:
        words = f"{share:.0%} of the tokens are unknown to the tokenizer: does it belong to this text?"
        yield Finding("warning", "task", words)


def _too_large(stages: Sequence[StagePlan], device: torch.device) -> Iterator[Finding]:
    free = free_memory(device)
    for stage in stages:
        if stage.memory > free:
            words = f"it needs about {size(stage.memory)} of memory, and {size(free)} are free"
            yield Finding("warning", stage.stage, f"{words}: raise batch.micro, the result stays the same")


def _loss_plans(draft: _Draft) -> Iterator[LossPlan]:
    for index, (phase, stack) in enumerate(zip(draft.named.config.phases, draft.named.stacks, strict=True)):
        for name, loss in stack.terms.items():
            needs = loss.needs.access.name if loss.needs_teacher else "no teacher"
            component = phase.terms[name]
            yield LossPlan(index, name, component.use, stack.weights[name], component.shown_weight, needs)


def _stages(draft: _Draft) -> Iterator[StagePlan]:
    """What one run trains: its teacher, or each of those that it is made of, and its student."""
    by_task = getattr(draft.named.config.teacher, "combine", "") == "task"
    for name, source in draft.named.teacher.members.items():
        part = draft.prospect.teacher.parts[name]
        read = _of_task(draft, name) if by_task else draft
        if not len(read.encoded):  # a small task beside large ones, of which the sample holds no row
            continue
        named = replace(read.named, teacher=source)
        member = replace(read, prospect=replace(read.prospect, named=named, teacher=part))
        yield from _labelled(f"member {name}", _teacher_stages(member))
    yield from _teacher_stages(draft)
    yield from _student_stages(draft)


def _of_task(draft: _Draft, name: str) -> _Draft:
    """What one of several tasks alone is trained on."""
    task, rows = draft.named.task, draft.named.task.train
    assert rows.tasks is not None
    chosen = np.flatnonzero(rows.tasks.task == list(task.labels.tasks).index(name))
    own = replace(task, labels=task.labels.of(name), train=rows.take(chosen, name))
    named = replace(draft.named, task=own)
    encoded = of_task(draft.encoded, task.labels, name)
    return replace(draft, prospect=replace(draft.prospect, named=named), encoded=encoded)


def _labelled(label: str, stages: Iterator[StagePlan]) -> Iterator[StagePlan]:
    return (replace(stage, stage=f"{label}: {stage.stage}") for stage in stages)


def _teacher_stages(draft: _Draft) -> Iterator[StagePlan]:
    """Fine-tuning as timed; pretraining at the same speed per token, which leaves its output layers out."""
    source, model = draft.named.teacher, _model_of(draft.prospect.teacher)
    if not isinstance(source, TrainableTeacherSource) or source.finetune is None or model is None:
        return
    stack = LossStack({"gold": (1.0, Gold())})
    feed = TaskFeed(draft.encoded, source.finetune.batch, seed=draft.named.config.seed)
    program = Distillation(model.requires_grad_(True), stack, {})
    cost = step_cost(program, feed, draft.device, source.finetune.optimizer)
    trained = 0 if source.pretrain is None else trained_bytes(program, source.pretrain.optimizer)
    model.eval().requires_grad_(False)
    if source.pretrain is not None:
        a_step = source.pretrain.batch * source.pretrain.max_length
        ratio = a_step / draft.tokens_per_step(feed)
        steps = source.pretrain.steps
        memory = trained + int(cost.activations * max(1.0, ratio))
        flops = _pretraining_flops(source, source.pretrain, draft)
        yield StagePlan("pretrain", steps, steps * cost.seconds * ratio, memory, flops)
    training = source.training(draft.named.task.labels)
    if training is not None:
        steps = training.seeds * training.epochs * round(feed.num_steps(0) * draft.scale)
        flops = steps * draft.tokens_per_step(feed) * cost.flops_per_token
        yield StagePlan("teacher", steps, steps * cost.seconds, cost.memory, flops)


def _pretraining_flops(source: TrainableTeacherSource, settings: PretrainSettings, draft: _Draft) -> float:
    """Of all steps, were every sequence as long as it may be."""
    with torch.device("meta"):
        model, objective = source.pretraining(draft.prospect.tokenizer)
    return HONEST.training(objective.flops(model, settings.max_length), settings.steps * settings.batch)


def _student_stages(draft: _Draft) -> Iterator[StagePlan]:
    """Memory counts the teacher's weights too; its outputs are gone after each step."""
    config, prospect = draft.named.config, draft.prospect
    specs = {"student": prospect.student.spec, "teacher": prospect.teacher.spec}
    model = _model_of(prospect.teacher)
    fixed = 0 if model is None else BYTES_FIXED * preflight.parameters(model)
    sampled = len(preflight.sample(draft.named.task.train, SAMPLE_ROWS))
    for index, (phase, stack) in enumerate(zip(config.phases, draft.named.stacks, strict=True)):
        feed = TaskFeed(draft.encoded, phase.batch, seed=config.seed)
        swapped = interchange_of(config, index, stack, **specs)
        program: Program = Distillation(prospect.student, stack, {TEACHER: prospect.teacher}, swapped)
        if draft.named.teacher.peers:
            program = peers_of(config, index, stack, _students(draft), in_turn=False)
        cost = step_cost(program, feed, draft.device, phase.optimizer)
        steps = phase.epochs * round(feed.num_steps(0) * _rows(phase, draft) / sampled)
        flops = steps * draft.tokens_per_step(feed) * cost.flops_per_token
        name = "student" if len(config.phases) == 1 else f"student, phase {index + 1}"
        yield StagePlan(name, steps, steps * cost.seconds, cost.memory + fixed, flops)


def _students(draft: _Draft) -> dict[str, Student]:
    """The run's own and its peers."""
    prospect, config = draft.prospect, draft.named.config
    labels, length = draft.named.task.labels, config.task.max_length
    nothing = Nothing(labels, length, len(prospect.tokenizer))
    peers = draft.named.teacher.peers.items()
    made = {name: source.build(prospect.tokenizer, labels, length, nothing) for name, source in peers}
    return {STUDENT: prospect.student, **made}


def _rows(phase: Phase, draft: _Draft) -> int:
    """Rows of a phase; of the copies of a row as many as are asked for, though some may be left out."""
    if phase.corpus is None:
        rows = len(draft.named.task.train)
    else:
        kind = KINDS[draft.named.task.labels.kind]
        found = documents(phase.corpus, base=draft.base)
        rows = sum(1 for document in found for _ in kind.unlabelled(document))
    if phase.unlabelled is not None:
        rows += len(load_unlabelled(draft.named.config.task, phase.unlabelled, base=draft.base)[0])
    if phase.written is not None and phase.written.targets == "kept":
        rows *= 2
    return rows if phase.augment is None else rows * (1 + phase.augment.copies)


def _extra_rows(draft: _Draft, cache: Path) -> Iterator[Finding]:
    """How many rows each phase reads where that is not the task's own number, what was noticed in those that
    it adds, and some of its copies, where the model that makes them is there already.
    """
    config, task = draft.named.config, draft.named.task
    for number, phase in enumerate(config.phases, start=1):
        if phase.unlabelled is None and phase.augment is None:
            continue
        place = "distill" if len(config.phases) == 1 else f"distill, phase {number}"
        about = "up to " if phase.augment is not None else ""
        yield Finding("fact", place, f"it reads {about}{_rows(phase, draft):,} rows")
        if phase.unlabelled is not None:
            rows, notes = load_unlabelled(config.task, phase.unlabelled, base=draft.base)
            yield from (Finding("fact", place, note) for note in notes)
            if draft.named.stacks[number - 1].needs_teacher:
                draft.prospect.teacher.check_rows(rows, "unlabelled")
        if phase.augment is not None and phase.augment.model is not None:
            how = Augmentation.of(phase.augment, draft.base, draft.base, config)
            for before, after in sample(preflight.sample(task.train, SAMPLE_ROWS), how, _unwatched(cache)):
                yield Finding("fact", place, f"augment: {_quoted(before)} -> {_quoted(after)}")


def _quoted(texts: Sequence[str]) -> str:
    return " | ".join(f"{text!r:.200}" for text in texts)


def _unwatched(cache: Path) -> Place:
    return Place(torch.device("cpu"), cache, check=lambda: None, tell=lambda done, total: None)
