"""The stages of a run: each makes the content of one folder from the folders of the stages before it.

    tokenizer/  pretrain/  teacher/  student/  export/  bench/  report/

A stage knows nothing of being skipped: the pipeline asks for it only where its folder is not there, and the
training loop goes on from the stage's own checkpoints. It returns a function that writes the folder; rank 0
alone calls it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from distillkit import document, evaluate, preflight
from distillkit.answers import KEPT
from distillkit.augmenting import Augmentation, Place, augment, check_model
from distillkit.bench.leaving import RESULT, measure_exits
from distillkit.bench.measure import Backend, Role, Variant
from distillkit.bench.measure import bench as measure_all
from distillkit.bench.timing import Opened
from distillkit.data.augment import joined
from distillkit.data.batching import Encoded, Feed, TaskFeed, drawn, encode, measured
from distillkit.data.corpora import documents
from distillkit.data.tasks import Rows, Task, load_unlabelled, text_columns, unlabelled_rows
from distillkit.data.tokenizers import load_tokenizer
from distillkit.digests import Training, digest
from distillkit.early_exit import FACTS as EXITS
from distillkit.encoder import Encoder
from distillkit.errors import ModelError
from distillkit.export.bundle import export as export_student
from distillkit.export.exits import export_exits
from distillkit.flops import flops_per_example
from distillkit.interchange import Interchange, Intervened
from distillkit.links import ASSISTANTS, MEMBERS
from distillkit.losses.base import TEACHER, LossStack
from distillkit.losses.gold import Gold
from distillkit.metrics import LOWER_IS_BETTER
from distillkit.model import (
    LEFT,
    STUDENT,
    WHO,
    FixedTeacher,
    LearningTeacherSource,
    Material,
    Student,
    StudentSource,
    Teacher,
    TeacherSource,
    TrainableTeacherSource,
)
from distillkit.objectives.feed import ObjectiveFeed
from distillkit.peers import InTurn, Peers, peers_of
from distillkit.progress import Progress
from distillkit.recipe import Loaded
from distillkit.report.card import write_model_card
from distillkit.report.contexts import shown
from distillkit.report.curves import read_curves
from distillkit.report.facts import Link, RunFacts, flat_settings, load_bench, load_exits
from distillkit.report.gather import SCORES, Judged, link, task_facts
from distillkit.report.page import write_report
from distillkit.rundir import RunDir
from distillkit.settings import (
    Augment,
    BatchSettings,
    FinetuneSettings,
    Labels,
    Phase,
    PretrainSettings,
    RunConfig,
)
from distillkit.signals import Signals
from distillkit.stacks import bind, interchange_of
from distillkit.teachers.cached import Keep, check_unchanging, record
from distillkit.tracking import trackers
from distillkit.train import (
    Distillation,
    Hooks,
    Pretraining,
    Program,
    TrainSettings,
    keyed_seed,
    make_accelerator,
    resolve_precision,
    train,
)
from distillkit.types import Access, Batch, Outputs, Want
from distillkit.world import World

Save = Callable[[Path], None]
"""Writes what a stage made into an empty folder, which then appears whole under the stage's name."""
Array = NDArray[Any]

ANSWERS, INTERCHANGE = "answers.npy", "interchange.json"
PEERS = "peers"
"""Folder in the student's of the peers that are neither what the run ends with nor the best beside it."""
INTERCHANGE_ROWS = 500
"""Rows that interchange accuracy is measured on: five forwards of two models for each."""
PREFLIGHT = "preflight.json"


@dataclass(frozen=True)
class Job:
    """What the stages of one run share: the recipe, the data, the objects it names, and where it runs."""

    loaded: Loaded
    run: RunDir
    task: Task
    teacher_source: TeacherSource
    student_source: StudentSource
    stacks: tuple[LossStack, ...]
    digests: Mapping[str, str]
    trainings: Mapping[str, Training]
    world: World
    signals: Signals
    progress: Progress
    force: bool = False

    @property
    def config(self) -> RunConfig:
        return self.loaded.config

    @property
    def alone(self) -> Job:
        """The same job for rank 0 by itself: it waits for nobody; the others must not need what it does."""
        return replace(self, world=World(rank=0, size=1))

    @property
    def trainable(self) -> TrainableTeacherSource | None:
        """The teacher's source where this run trains or adapts it."""
        return self.teacher_source if isinstance(self.teacher_source, TrainableTeacherSource) else None

    @property
    def metric(self) -> str:
        return self.config.task.metric or evaluate.default_metric(self.task.labels)

    @property
    def cache(self) -> Path:
        return self.run.path / "cache"

    @property
    def judged(self) -> Rows:
        """The rows that the report's figures are measured on: test, or validation where there is no test."""
        return self.task.validation if self.task.test is None else self.task.test

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.folder("tokenizer"))

    @cached_property
    def device(self) -> torch.device:
        device: torch.device = make_accelerator(self.config.runtime).device
        return device

    def folder(self, stage: str) -> Path:
        if stage == "teacher" and isinstance(self.teacher_source, LearningTeacherSource):
            return self.run.stage("student").folder / LEFT
        return self.run.stage(stage).folder

    def encoded(self, rows: Rows) -> Encoded:
        with self.world.main_first():
            return encode(rows, self.tokenizer, max_length=self.config.task.max_length, cache=self.cache)

    def samples(self, rows: Rows) -> Encoded:
        """Rows as models are measured on them: what is asked of them is fixed."""
        return measured(self.encoded(rows))

    def teacher(self) -> Teacher:
        return self.teacher_source.teacher(self.folder("teacher"), self.task.labels).to(self.device)

    def predict(self, model: Teacher | Student, samples: Encoded) -> Array:
        """What is kept of the answers of a model in eval mode. Raises StoppedError after a signal where
        this process is alone; several stop together, at a step of training.
        """
        want = Want()

        def outputs(batch: Batch) -> Outputs:
            if self.world.size == 1:
                self.signals.check("while a model was evaluated")
            return model.outputs(batch, want=want)

        keep = KEPT[self.task.labels.kind]
        return evaluate.predict(outputs, samples, keep=keep, device=self.device)

    def documents(self, source: str) -> Iterator[list[str]]:
        """A corpus; a signal stops between two documents."""
        for sentences in documents(source, base=self.loaded.base):
            self.signals.check("while a corpus was read")
            yield sentences


def tokenizer(job: Job) -> Save:
    """The teacher's tokenizer, or one trained on its corpus (on the task's training texts where it has
    none).
    """

    def save(folder: Path) -> None:
        job.teacher_source.tokenizer(_tokenizer_texts(job)).save_pretrained(folder)

    return save


def named(job: Job) -> preflight.Named:
    """What the job's recipe names."""
    return preflight.Named(job.config, job.task, job.teacher_source, job.student_source, job.stacks)


def check(job: Job) -> None:
    """Build teacher and student untrained and look at all that can be known of them, so that what cannot work
    is said now and not after the teacher was trained; warnings are said, and kept for the report. Raises
    DistillkitError.
    """
    prospect = preflight.build(named(job), job.tokenizer, job.folder("teacher"))
    found = preflight.findings(prospect)
    warnings = [finding for finding in found if finding.severity == "warning"]
    for warning in warnings:
        job.progress.say(f"warning: {warning.place}: {warning.sentence}")
    if job.world.main:
        job.run.write_json(PREFLIGHT, {"findings": [asdict(finding) for finding in found]})
    for phase, stack in zip(job.config.phases, job.stacks, strict=True):
        _check_extra_rows(job, phase, prospect.teacher if stack.needs_teacher else None)
    if any(phase.cache is not None and phase.corpus is None for phase in job.config.phases):
        check_unchanging(job.encoded(job.task.train))


def _check_extra_rows(job: Job, phase: Phase, asked: Teacher | None) -> None:
    """Read the rows that a phase adds, and open the model that makes more, as far as they are there; `asked`
    is the teacher that answers them.
    """
    if phase.unlabelled is not None:
        rows, notes = load_unlabelled(job.config.task, phase.unlabelled, base=job.loaded.base)
        if asked is not None:
            asked.check_rows(rows, "unlabelled")
        for note in notes:
            job.progress.say(note)
    if phase.augment is not None and phase.augment.model is not None:
        check_model(_augmentation(job, phase.augment), _watched(job))


def pretrain(job: Job) -> Save:
    """The teacher's body, trained on a corpus with its full objective."""
    source = job.trainable
    if source is None or source.pretrain is None:
        raise ModelError("this teacher has no `pretrain` section", where="teacher.pretrain")
    settings = source.pretrain
    torch.manual_seed(job.config.seed)  # the first weights of every rank
    model, objective = source.pretraining(job.tokenizer)
    corpus = job.cache / f"corpus-{job.digests['pretrain'][:16]}"
    with job.world.main_first():
        objective.prepare(
            job.documents(settings.corpus), job.tokenizer, corpus, max_length=settings.max_length
        )
    feed = ObjectiveFeed(objective, corpus, settings, seed=job.config.seed)
    said = feed.metrics(0)
    job.progress.say("pretrain: " + ", ".join(f"{name} {value:,.4g}" for name, value in said.items()))
    for remark in feed.remarks(0):
        job.progress.say(f"pretrain: {remark}")
    _train(
        job,
        Pretraining(model, objective),
        feed,
        _settings(job, "pretrain", settings, steps=settings.steps),
        None,
    )

    def save(folder: Path) -> None:
        model.save_pretrained(folder)  # type: ignore[operator]
        for config in folder.rglob("config.json"):  # of the model, and of one that is kept beside it
            job.tokenizer.save_pretrained(config.parent)
        (folder / "data.json").write_text(json.dumps(said))

    return save


def teacher(job: Job) -> Save:
    """The teacher of the task, fine-tuned where its settings ask for that, and what it scores."""
    source = job.trainable
    if source is None:
        fixed = job.teacher()
        return lambda folder: _save_scores(job.alone, fixed, folder)
    pretrained = job.folder("pretrain") if source.pretrain is not None else None
    torch.manual_seed(job.config.seed)  # a fresh head
    model = source.classifier(job.tokenizer, job.task.labels, job.config.task.max_length, pretrained)
    training = source.training(job.task.labels)
    if training is not None:
        stack = LossStack({"gold": (1.0, Gold())})
        stack.bind(model.spec, {})
        program = Distillation(model, stack, {})
        feed = _task_feed(job, training.batch)
        how = _settings(
            job,
            "teacher",
            training,
            epochs=training.epochs,
            keep=training.keep,
            layer_decay=training.layer_decay,
        )
        _train(job, program, feed, how, _validation(job, "teacher", program, {"teacher": model}))
    elif source.finetune is not None:
        job.progress.say("teacher: pretrained on masked tokens, which are the task: it is not fine-tuned")
    return lambda folder: _save_model(job.alone, model, folder)


def student(job: Job) -> Save:
    """The student, distilled through every phase, and what it scores.

    Raises ModelError for a teacher that has nothing to teach (its folder is there, to be looked at).
    """
    if isinstance(job.teacher_source, LearningTeacherSource):
        return _together(job, job.teacher_source)
    fixed = job.teacher()
    _gate(job, fixed)
    torch.manual_seed(job.config.seed)  # fresh weights
    model = job.student_source.build(job.tokenizer, job.task.labels, job.config.task.max_length, fixed)
    rows = job.encoded(job.task.train)
    job.student_source.start(model, Material(fixed, job.tokenizer, rows, job.device))
    names = [name for name, training in job.trainings.items() if training.stage == "student"]
    for index, (name, phase, stack) in enumerate(zip(names, job.config.phases, job.stacks, strict=True)):
        torch.manual_seed(keyed_seed(job.config.seed, name))  # first weights of projections
        bind(job.config, index, stack, student=model.spec, teacher=fixed.spec)
        feed = TaskFeed(job.encoded(_rows(job, name, phase)), phase.batch, seed=job.config.seed)
        told = _kept(job, phase, stack, fixed, feed)
        swapped = interchange_of(job.config, index, stack, student=model.spec, teacher=fixed.spec)
        program = Distillation(model, stack, {TEACHER: told}, swapped)
        judged = phase.corpus is None and stack.trains_logits
        how = _settings(
            job, name, phase, epochs=phase.epochs, keep=phase.keep or ("best" if judged else "last")
        )
        _train(job, program, feed, how, _validation(job, name, program, {STUDENT: model}))
    for remark in fixed.remarks():
        job.progress.say(remark)

    def save(folder: Path) -> None:
        _save_model(job.alone, model, folder)
        told = json.dumps(_interchange_accuracy(job.alone, FixedTeacher(model), fixed.to(job.device)))
        (folder / INTERCHANGE).write_text(told)

    return save


def _together(job: Job, source: LearningTeacherSource) -> Save:
    """Students that learn from each other, or one that learns from what follows it, through every phase."""
    labels, length, seed = job.task.labels, job.config.task.max_length, job.config.seed
    nothing = source.prospect(job.tokenizer, labels, length, Path())
    torch.manual_seed(seed)  # fresh weights
    model = job.student_source.build(job.tokenizer, labels, length, nothing)
    rows = job.encoded(job.task.train)
    job.student_source.start(model, Material(nothing, job.tokenizer, rows, job.device))
    students = {STUDENT: model}
    for name, peer in source.peers.items():
        torch.manual_seed(keyed_seed(seed, "peer", name))
        students[name] = peer.build(job.tokenizer, labels, length, nothing)
        peer.start(students[name], Material(nothing, job.tokenizer, rows, job.device))
    names = [name for name, training in job.trainings.items() if training.stage == "student"]
    for index, (name, phase) in enumerate(zip(names, job.config.phases, strict=True)):
        torch.manual_seed(keyed_seed(seed, name))  # first weights of projections
        program = _learning(job, source, students, index)
        feed: Feed = TaskFeed(job.encoded(_rows(job, name, phase)), phase.batch, seed=seed)
        if isinstance(program, Peers) and program.in_turn:
            feed = InTurn(feed, len(students))
        stack = job.stacks[index]
        judged = phase.corpus is None and stack.trains_logits
        how = _settings(
            job, name, phase, epochs=phase.epochs, keep=phase.keep or ("best" if judged else "last")
        )
        _train(job, program, feed, how, _validation(job, name, program, students))
    if isinstance(program, Distillation):
        students[LEFT] = program.learning[TEACHER].model  # type: ignore[assignment]

    def save(folder: Path) -> None:
        _save_together(job.alone, students, source, folder)

    return save


def _learning(
    job: Job, source: LearningTeacherSource, students: Mapping[str, Student], index: int
) -> Peers | Distillation:
    """What one phase trains, its losses bound."""
    config, stack = job.config, job.stacks[index]
    if not source.peers:
        model = students[STUDENT]
        told = source.beside(model, job.tokenizer, job.task.labels, config.task.max_length)
        bind(config, index, stack, student=model.spec, teacher=told.spec)
        return Distillation(model, stack, {TEACHER: told})
    return peers_of(config, index, stack, students, in_turn=source.in_turn)


def _save_together(
    job: Job, students: Mapping[str, Student], source: LearningTeacherSource, folder: Path
) -> None:
    """The student that the run ends with, beside it the best of the others as the teacher, and all others."""
    scores = {name: _measured(job, model)[job.metric] for name, model in students.items()}
    lower = job.metric in LOWER_IS_BETTER
    order = sorted(scores, key=lambda name: scores[name] if lower else -scores[name])
    chosen = order[0] if source.keep == "best" else STUDENT
    left = next(name for name in order if name != chosen)
    places = {chosen: folder, left: folder / LEFT}
    for name, model in students.items():
        place = places.get(name, folder / PEERS / name)
        place.mkdir(parents=True, exist_ok=True)
        _save_model(job, model, place)
        (place / WHO).write_text(json.dumps({"name": STUDENT if name == LEFT else name}))
    told = _interchange_accuracy(job, FixedTeacher(students[chosen]), FixedTeacher(students[left]))
    (folder / INTERCHANGE).write_text(json.dumps(told))


def export(job: Job) -> Save:
    """The student as a verified ONNX artifact."""
    model = job.student_source.load(job.folder("student")).eval()
    samples = job.samples(job.judged)
    settings, labels = job.config.export, job.task.labels

    def save(folder: Path) -> None:
        parity = export_student(model, job.tokenizer, labels, samples, folder, settings)
        job.progress.say(f"export: largest difference to PyTorch {parity.max_abs_difference:.2e}")
        if model.spec.exits:
            held_out = job.samples(job.task.validation)
            parts = export_exits(model, labels, job.metric, held_out, folder, settings)
            job.progress.say(
                f"export: of its {len(model.spec.exits) + 1} parts {parts.max_abs_difference:.2e}"
            )

    return save


def bench(job: Job) -> Save:
    """Teacher and student in every runtime asked for: latency, memory, size, and quality of what really
    runs.
    """
    samples = job.samples(job.judged)

    def save(folder: Path) -> None:
        roles: tuple[Role, ...] = ("teacher", "student")
        variants = [
            _variant(job, role, backend, folder, samples)
            for role in roles
            for backend in job.config.bench.backends
        ]
        command = [sys.executable, "-m", "distillkit.bench.child"]
        measure_all(
            variants,
            job.config.bench,
            samples,
            job.task.labels,
            folder,
            seed=job.config.seed,
            command=command,
            between=between,
        )
        if (job.folder("export") / EXITS).is_file():
            with tempfile.TemporaryDirectory() as scratch:
                failed = measure_exits(
                    job.folder("export"),
                    job.config.bench,
                    samples,
                    job.task.labels,
                    folder,
                    Path(scratch),
                    seed=job.config.seed,
                    command=[sys.executable, "-m", "distillkit.bench.leaving"],
                    between=between,
                )
            if failed:
                job.progress.say(f"warning: bench: leaving early was not measured: {failed}")

    def between() -> None:
        job.signals.check("while a model was measured")

    return save


def report(job: Job) -> Save:
    """report.html, facts.json and the model card."""
    facts = gather(job)

    def save(folder: Path) -> None:
        write_report(facts, folder / "report.html")
        write_model_card(facts, folder / "README.md")

    return save


def gather(job: Job) -> RunFacts:
    """Everything the report shows, read from the stages' folders."""
    config, task = job.config, job.task
    answers = {
        role: np.load(job.folder(role) / ANSWERS, allow_pickle=False) for role in ("teacher", "student")
    }
    student_spec = job.student_source.load(job.folder("student")).spec
    samples, labels = job.samples(job.judged), _named(job, student_spec.num_labels)
    gold, train_gold = samples.gold, job.encoded(task.train).gold
    assert gold is not None and train_gold is not None
    texts = shown(labels.kind, samples, gold, job.tokenizer, config.task.max_length)
    told = job.teacher()
    judged = Judged(
        labels,
        texts,
        gold,
        answers["teacher"],
        answers["student"],
        config.seed,
        scored=told.access >= Access.SCORES,
    )
    sizes = {role: json.loads((job.folder(role) / SCORES).read_text()) for role in ("teacher", "student")}
    manifest = {stage: job.run.stage(stage).manifest for stage in STAGES if stage != "report"}
    return RunFacts(
        name=config.name,
        task=task_facts(task, job.metric, evaluate.majority(labels, train_gold, gold)),
        teacher=judged.teacher_facts(_source(job, "teacher"), told.spec, sizes["teacher"]["parameters"]),
        student=judged.student_facts(_source(job, "student"), student_spec, sizes["student"]["parameters"]),
        difference=judged.difference(),
        agreement=judged.agreement(),
        interchange=json.loads((job.folder("student") / INTERCHANGE).read_text()),
        outcomes=judged.outcomes(),
        learning=config.teacher.use if isinstance(job.teacher_source, LearningTeacherSource) else "",
        links=tuple(_links(job)),
        examples=judged.examples(config.report.samples),
        losses=_losses_in_words(config),
        curves=read_curves(job.run.metrics.path),
        bench=load_bench(job.folder("bench") / "measurements.json"),
        exits=load_exits(job.folder("bench") / RESULT),
        parity=json.loads((job.folder("export") / "parity.json").read_text()),
        environment=job.run.read_json("environment.json"),
        timings={stage: facts["seconds"] for stage, facts in manifest.items() if "seconds" in facts},
        settings=flat_settings(config.model_dump(mode="json"), job.loaded.origins),
        config=(job.run.path / "config.yaml").read_text(encoding="utf-8"),
        command=f"distillkit run {config.output}/{config.name}",
        notes=_warnings(job),
    )


def _source(job: Job, role: Role) -> str:
    """The registered name that a model came from."""
    if isinstance(job.teacher_source, LearningTeacherSource):
        return _who(job, job.folder(role))[1]
    return job.config.teacher.use if role == "teacher" else job.config.student.use


def _who(job: Job, folder: Path) -> tuple[str, str]:
    """The name and the registered name of the peer in a folder."""
    config, name = job.config, str(json.loads((folder / WHO).read_text())["name"])
    return name, getattr(config.teacher, "peers", {}).get(name, config.student).use


def _links(job: Job) -> Iterator[Link]:
    """The members of the teacher, or the teacher and the assistants before this student."""
    config, folder = job.config, job.run.path
    for name, component in getattr(config.teacher, "members", {}).items():
        yield link("member", name, component.use, folder / MEMBERS / name / "teacher")
    if getattr(config.teacher, "peers", None):
        student = job.folder("student")
        for path in (student, job.folder("teacher"), *sorted(student.glob(f"{PEERS}/*"))):
            yield link("peer", *_who(job, path), path)
    chain = folder / ASSISTANTS
    taught_by = Path(getattr(config.teacher, "path", ""))
    if config.teacher.use != "distilled" or taught_by.parent != chain.absolute():
        return
    for number in range(1, int(taught_by.name) + 1):
        made = RunDir(chain / str(number))
        recipe: Any = document.read(made.path / "config.yaml").value
        if number == 1:
            first = made.stage("teacher").folder
            left = made.stage("student").folder / LEFT  # of one that learned while the student did
            yield link(
                "first teacher", "teacher", recipe["teacher"]["use"], first if first.exists() else left
            )
        yield link("assistant", str(number), recipe["student"]["use"], made.stage("student").folder)


def _named(job: Job, width: int) -> Labels:
    """The task's labels by name: those of a masked language model are the tokenizer's entries."""
    if job.task.labels.kind != "mlm":
        return job.task.labels
    entries = job.tokenizer.convert_ids_to_tokens(list(range(len(job.tokenizer))))
    unused = [f"unused entry {index}" for index in range(len(entries), width)]
    return job.task.labels.model_copy(update={"names": (*entries, *unused)})


MAKE: Mapping[str, Callable[[Job], Save]] = {
    "tokenizer": tokenizer,
    "pretrain": pretrain,
    "teacher": teacher,
    "student": student,
    "export": export,
    "bench": bench,
    "report": report,
}
STAGES = tuple(MAKE)


def _validation(
    job: Job, stage: str, program: Program, students: Mapping[str, Student]
) -> Callable[[], Mapping[str, float]]:
    """Measures what is in training on the validation rows, and says what each scores; of several the mean."""

    def measure() -> dict[str, float]:
        program.eval()
        scores = {name: _measured(job, model) for name, model in students.items()}
        for name, values in scores.items():
            who = stage if len(scores) == 1 else f"{stage} ({name})"
            said = ", ".join(f"{metric} {value:.4f}" for metric, value in values.items())
            job.progress.say(f"{who}: validation {said}")
        metrics = next(iter(scores.values()))
        return {metric: sum(one[metric] for one in scores.values()) / len(scores) for metric in metrics}

    return measure


def _measured(job: Job, model: Student) -> dict[str, float]:
    """A model's metrics on the validation rows."""
    samples = job.samples(job.task.validation)
    gold = samples.gold
    assert gold is not None
    return evaluate.values(job.task.labels, gold, job.predict(model.eval(), samples))


def _settings(
    job: Job, name: str, settings: PretrainSettings | FinetuneSettings | Phase, **how_long: Any
) -> TrainSettings:
    """What the loop is told of one training of this job."""
    training = job.trainings[name]
    return TrainSettings(
        stage=name,
        optimizer=settings.optimizer,
        save_every=settings.save_every,
        metric=job.metric,
        seed=job.config.seed,
        runtime=job.config.runtime,
        settings_digest=training.settings,
        data_digest=training.data,
        force=job.force,
        **how_long,
    )


def _train(
    job: Job,
    program: Program,
    feed: Feed,
    settings: TrainSettings,
    measure: Callable[[], Mapping[str, float]] | None,
) -> None:
    with (
        trackers(job.config.track, job.run.path, job.config.name)
        if job.world.main
        else trackers([], job.run.path, "") as told
    ):
        hooks = Hooks(
            log=job.run.metrics, progress=job.progress, signals=job.signals, evaluate=measure, trackers=told
        )
        train(program, feed, settings, hooks, checkpoints=job.run.checkpoints(settings.stage))


def _kept(job: Job, phase: Phase, stack: LossStack, fixed: Teacher, feed: TaskFeed) -> Teacher:
    """The teacher of a phase: the one that answers in every step, or its answers from disk."""
    if phase.cache is None:
        return fixed
    keep = Keep(
        want=stack.needs,
        reads=stack.reads,
        settings=phase.cache,
        owner=digest(job.digests["teacher"], job.run.stage("teacher").manifest["files"]),
        device=job.device,
        precision=resolve_precision(job.config.runtime, job.device.type == "cpu"),
    )

    def watch(done: int, total: int) -> None:
        job.signals.check("while the teacher's answers were recorded; every whole shard is kept")
        if done * 10 // total > (done - 1) * 10 // total:
            job.progress.say(f"teacher cache: {done / total:.0%} of {len(feed.encoded):,} rows")

    with job.world.main_first():
        cached, remarks = record(fixed, feed.encoded, keep, job.cache, watch)
    for remark in remarks:
        job.progress.say(remark)
    fixed.to(torch.device("cpu"))  # its room on a GPU is the student's
    return cached


def _task_feed(job: Job, settings: BatchSettings) -> TaskFeed:
    return TaskFeed(job.encoded(job.task.train), settings, seed=job.config.seed)


def _rows(job: Job, name: str, phase: Phase) -> Rows:
    """What a phase trains on: the task's rows or a corpus, rows without labels, and copies of all of them."""
    rows = job.task.train if phase.corpus is None else _corpus_rows(job, name, phase.corpus)
    if phase.unlabelled is not None:
        more, _ = load_unlabelled(job.config.task, phase.unlabelled, base=job.loaded.base)
        rows = joined(rows, more)
    if phase.augment is None:
        return rows
    with job.world.main_first():
        made = augment(rows, _augmentation(job, phase.augment), _watched(job))
    job.progress.say(f"{name}: {len(made) - len(rows):,} copies of {len(rows):,} rows")
    return made


def _augmentation(job: Job, settings: Augment) -> Augmentation:
    pretrained = job.folder("pretrain")
    found = None if job.trainable is None else job.trainable.masked_model(pretrained)
    return Augmentation.of(settings, found or pretrained, job.loaded.base, job.config)


def _watched(job: Job) -> Place:
    """Where copies of rows are made; a signal stops between two batches."""
    return Place(
        device=job.device,
        cache=job.cache,
        check=lambda: job.signals.check("while rows were augmented; every whole part is kept"),
        tell=lambda done, total: job.progress.say(f"augment: {done:,} of {total:,} rows"),
    )


def _corpus_rows(job: Job, name: str, corpus: str) -> Rows:
    """A corpus as unlabelled rows."""
    return unlabelled_rows(job.task, job.documents(corpus), job.trainings[name].data)


def _tokenizer_texts(job: Job) -> Iterator[str]:
    source = job.trainable
    if source is not None and source.pretrain is not None:
        for document in job.documents(source.pretrain.corpus):
            yield from document
    else:
        for texts in job.task.train.texts:
            yield from texts


def _save_model(job: Job, model: Student, folder: Path) -> None:
    model.save(folder, job.task.labels)
    job.tokenizer.save_pretrained(folder)
    _save_scores(job, FixedTeacher(model.to(job.device)), folder)


def _save_scores(job: Job, model: Teacher, folder: Path) -> None:
    """answers.npy to the judged rows, and scores.json."""
    samples = job.samples(job.judged)
    assert samples.gold is not None
    answers = job.predict(model, samples)
    np.save(folder / ANSWERS, answers, allow_pickle=False)
    scores = evaluate.score(job.task.labels, samples.gold, answers, seed=job.config.seed)
    facts = {
        "parameters": model.num_parameters,
        "scores": {name: asdict(value) for name, value in scores.items()},
    }
    (folder / SCORES).write_text(json.dumps(facts, indent=1))


def _interchange_accuracy(job: Job, model: Teacher, fixed: Teacher) -> dict[str, float]:
    """How alike student and teacher answer judged rows (INTERCHANGE_ROWS at most) under the same
    interventions (those of the last phase), by the names of `evaluate.agreement`, how many `rows` these are,
    and `changed`, the share of the teacher's answers that an intervention changes; empty where one of them
    cannot be intervened on.
    """
    if fixed.access < Access.INTERVENTIONS or not (fixed.spec.num_layers and model.spec.num_layers):
        return {}
    settings, seed = job.config.phases[-1].interchange, job.config.seed
    labels = job.task.labels
    samples = drawn(job.samples(job.judged), INTERCHANGE_ROWS, seed=seed)
    made = Interchange(settings, seed=seed, student=model.spec, teacher=fixed.spec)
    told = job.predict(Intervened(fixed, made, made.teacher_swap), samples)
    mine = job.predict(Intervened(model, made, made.student_swap), samples)
    found = evaluate.agreement(labels, told, mine)
    same = evaluate.agreement(labels, job.predict(fixed, samples), told)
    return {**found, "rows": len(samples), **({"changed": 1 - same["same"]} if "same" in same else {})}


def _gate(job: Job, fixed: Teacher) -> None:
    """Refuse a teacher that has nothing to teach, or one of those that it is made of."""
    recipe = job.config.teacher
    for name, part in fixed.parts.items():
        _judge(job, part, f"teacher.members.{name}", recipe.members[name].allow_weak)  # type: ignore[attr-defined]
    _judge(job, fixed, "teacher", recipe.allow_weak)


def _judge(job: Job, fixed: Teacher, named: str, allowed: bool) -> None:
    """Refuse a teacher that is no better than a constant answer on the validation rows, unless that is
    allowed. The test rows decide nothing.
    """
    samples = job.samples(job.task.validation)
    train, judged = job.encoded(job.task.train).gold, samples.gold
    assert train is not None and judged is not None
    answers = job.predict(fixed, samples)
    verdict = evaluate.better_than_majority(job.task.labels, train, judged, answers, seed=job.config.seed)
    if verdict.passes:
        return
    if not allowed:
        raise preflight.weak(verdict, named)
    job.progress.say(f"{named}: weak, and allowed to be: {verdict.sentence}")


def _variant(job: Job, role: Role, backend: Backend, folder: Path, samples: Encoded) -> Variant:
    """What to measure, exported into `folder` where it has to be."""
    name, where = f"{role}-{backend}", job.folder(role)
    if role == "student" and backend == "onnxruntime":
        return Variant(name, role, backend, job.folder("export"))
    if role == "teacher" and job.trainable is None:
        teacher = job.teacher()
        if not teacher.live:
            return Variant(name, role, backend, None, "its answers come from a file: nothing is computed")
        if backend == "pytorch":
            return Variant(name, role, backend, None, live=lambda: _in_this_process(job, teacher))
        return Variant(name, role, backend, None, "a teacher from Python is not exported")
    source = job.student_source if role == "student" else job.trainable
    assert source is not None
    model = source.load(where).eval()
    if backend == "onnxruntime":
        where = folder / "teacher-onnx"
        where.mkdir()
        export_student(model, job.tokenizer, job.task.labels, samples, where, job.config.export)
    elif not isinstance(model, Encoder):  # of a class that the process which measures does not know
        return Variant(name, role, backend, None, live=lambda: _loaded_here(job, model, where))
    return Variant(name, role, backend, where)


def _loaded_here(job: Job, model: Student, folder: Path) -> Opened:
    """A model that a source read from its folder, timed in this process."""
    opened = _in_this_process(job, FixedTeacher(model))
    opened.size = (folder / "model.safetensors").stat().st_size
    opened.flops = lambda batch: flops_per_example(model, batch.to(job.device))
    return opened


def _in_this_process(job: Job, model: Teacher) -> Opened:
    """A model of somebody's own class, timed on token ids and their texts."""
    device = job.device
    model = model.to(device)
    want = Want()

    def forward(batch: Batch) -> NDArray[np.float32]:
        said = model.outputs(replace(batch, labels=None).to(device), want=want).logits
        logits: NDArray[np.float32] = said.float().cpu().numpy()
        return logits

    segments = range(len(text_columns(job.config.task)))

    def with_texts(batch: Batch) -> Batch:
        ids, types = batch.inputs["input_ids"], batch.inputs["token_type_ids"]
        spelled = [
            [[token for token, kind in zip(*row, strict=True) if kind == segment] for segment in segments]
            for row in zip(ids.tolist(), types.tolist(), strict=True)
        ]
        texts = (job.tokenizer.batch_decode(parts, skip_special_tokens=True) for parts in spelled)
        return replace(batch, texts=tuple(map(tuple, texts)))

    opened = Opened(forward, "this process", None, model.spec.max_length)
    opened.prepare = with_texts
    opened.parameters = model.num_parameters
    return opened


def _warnings(job: Job) -> tuple[str, ...]:
    found = job.run.read_json(PREFLIGHT).get("findings", [])
    return tuple(f"{one['place']}: {one['sentence']}" for one in found if one["severity"] == "warning")


def _losses_in_words(config: RunConfig) -> dict[str, str]:
    words = {}
    for number, phase in enumerate(config.phases, start=1):
        for name, loss in phase.terms.items():
            rest = loss.model_dump(mode="json", exclude={"use", "weight"})
            settings = "".join(f", {key} {value}" for key, value in rest.items())
            key = name if len(config.phases) == 1 else f"{name} (phase {number})"
            words[key] = f"{loss.shown_weight} x {loss.use}{settings}"
    return words
