"""run(config) -> RunDir: the stages in order, each skipped when its manifest is there.

A stage is one function of a `Job` that writes one folder (distillkit/stages/). Its digest covers the
settings and the content it depends on and the digests of the stages before it, so that a changed config
reruns exactly the stages that the change touches. Objects passed from Python take the place of the components
that the config names.
"""

from __future__ import annotations

import copy
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from distillkit import catalog, checkpoint, files, links, preflight, recipe, stages
from distillkit.data.several import load_tasks
from distillkit.data.tokenizers import load_tokenizer
from distillkit.digests import contents, stage_digests, trainings
from distillkit.errors import ConfigError, DistillkitError, ErrorGroup, StoppedError
from distillkit.licences import CARD
from distillkit.losses.base import Loss, LossStack
from distillkit.model import LearningTeacherSource, StudentSource, TeacherSource
from distillkit.progress import Progress
from distillkit.rundir import RunDir, environment
from distillkit.settings import RunConfig
from distillkit.signals import Signals
from distillkit.stacks import build_stacks, check_access, check_student
from distillkit.stages import STAGES, Job
from distillkit.train import enough_memory
from distillkit.world import World

_MAIN_ONLY = ("export", "bench", "report")


@dataclass(frozen=True)
class Parts:
    """Objects from Python that take the place of what the config names; None and {} leave the config's
    choice.

    losses: name -> (weight, Loss), in place of the losses of a one-phase config.
    """

    teacher: TeacherSource | None = None
    student: StudentSource | None = None
    losses: Mapping[str, tuple[float, Loss]] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where a run works, whom it listens to and what it tells."""

    run: RunDir
    world: World
    signals: Signals
    progress: Progress
    force: bool = False


def run(
    config: str | Path | RunConfig | recipe.Loaded,
    *,
    overrides: Sequence[str] = (),
    parts: Parts | None = None,
    until: str = "report",
    progress: str = "auto",
    force: bool = False,
) -> RunDir:
    """Run every stage up to and including `until`, going on where an earlier run of the same folder stopped.

    force: go on from a checkpoint even where the settings or the data of its training changed since.
    Raises DistillkitError subclasses only, for what a user can cause; `status.json` in the run says the same.
    """
    if until not in STAGES:
        raise ConfigError(f"there is no stage {until!r}", hint=f"stages are {', '.join(STAGES)}")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    loaded = _load(config, overrides)
    world = World.join(loaded.config.runtime)
    run_dir = RunDir.open(run_path(loaded), data_paths=_data_paths(loaded))
    again = f"distillkit run {shlex.quote(str(run_dir.path))}"
    with run_dir.lock() if world.main else nullcontext(), Signals() as signals:
        place = Place(run_dir, world, signals, Progress.make(progress, world.main), force)
        call = _Call(loaded, place, progress)
        try:
            taught = call.chain(parts or Parts(), until)
            if taught is not None:
                call.members(*taught, until)
                job = prepare(*taught, place)
                todo = _todo(job, until)
                call.begin()
                _run_stages(job, todo)
                if world.main and STAGES.index(until) >= STAGES.index("bench"):
                    stages.check_floors(job)
        except DistillkitError as error:
            state = "stopped" if error.exit_code in (75, 130) else "failed"
            if world.main:
                run_dir.status(state, error.exit_code, str(error), again)
            raise
        if world.main:
            run_dir.status("done" if until == "report" else f"done: {until}", 0, "", again)
    return run_dir


def prepare(loaded: recipe.Loaded, parts: Parts, place: Place, *, made: bool = True) -> Job:
    """Read the data, build the named objects and work out every stage's digest; trains nothing.

    made: the runs that this one is made of are done, and for this recipe.
    """
    config, base = loaded.config, loaded.base
    task = load_tasks(config.task, base=base, seed=config.seed)
    teacher = parts.teacher or catalog.build("teacher", config.teacher, base=base)
    if teacher.members:
        teacher.placed(run_path(loaded).absolute() / links.MEMBERS, config.task.max_length, made=made)
    student = parts.student or catalog.build("student", config.student, base=base)
    if isinstance(teacher, LearningTeacherSource):
        student = teacher.joined(student)
    stacks = _stacks(config, parts, base)
    check_access(config, stacks, teacher, task.labels)
    check_student(config, student, task.labels)
    data = contents(config, base, task, teacher)
    digests = stage_digests(config, task, teacher, student, stacks, data, vars(parts))
    return Job(
        loaded=loaded,
        run=place.run,
        task=task,
        teacher_source=teacher,
        student_source=student,
        stacks=stacks,
        digests=digests,
        trainings=trainings(data, digests),
        world=place.world,
        signals=place.signals,
        progress=place.progress,
        force=place.force,
    )


class _Call:
    """One call of `run`: the runs that this one is made of come first."""

    def __init__(self, loaded: recipe.Loaded, place: Place, shown: str) -> None:
        self.loaded, self.place, self.shown = loaded, place, shown

    def begin(self) -> None:
        """Keep the recipe in the run's folder, once it is known that it can work."""
        run_dir, config = self.place.run, self.loaded.config
        if self.place.world.main:
            files.atomic_write(run_dir.path / "config.yaml", recipe.dump(self.loaded))
            threads = config.runtime.threads or torch.get_num_threads()
            run_dir.write_json("environment.json", environment(config.seed, threads))
        self.place.world.wait()

    def chain(self, parts: Parts, until: str) -> tuple[recipe.Loaded, Parts] | None:
        """Run every assistant; the run as its last assistant teaches it. None where it was to stop before
        there is a student.
        """
        chain = list(links.assistants(self.loaded, self.place.run.path))
        if not chain:
            return self.loaded, parts
        if parts.student is not None:
            raise ConfigError(
                "assistants and a student from Python cannot be joined: the next run could not load it",
                where="assistants",
                hint="name the student in the config (a class of your own by --code)",
            )
        first: Any = self.loaded.config.teacher
        if getattr(first, "peers", None) and first.keep != "student":
            raise ConfigError(
                "the best of the peers is known when they are trained, too late to teach an assistant",
                where="teacher.keep",
                hint="keep: student, or a run of its own for the peers and `use: distilled` here",
            )
        own = [one.distill is not None for one in self.loaded.config.assistants]
        given = [
            Parts(None if number else parts.teacher, None, {} if changed else parts.losses)
            for number, changed in enumerate(own)
        ]
        if STAGES.index(until) < STAGES.index("student"):
            self.begin()
            self._run(chain[0], given[0], until)
            return None
        self._run(chain[0], given[0], "tokenizer")
        final = links.last(self.loaded, chain[-1]), Parts(losses=parts.losses)
        runs = list(zip(chain, given, strict=True))
        self._foresee([*runs, final], load_tokenizer(run_path(chain[0]) / "tokenizer"))
        self.begin()
        for number, (link, its) in enumerate(runs, start=1):
            self.place.progress.say(f"=== assistant {number} of {len(chain)}: {run_path(link)}")
            self._run(link, its, "student")
        self.place.progress.say(f"=== the student of assistant {len(chain)}")
        return final

    def members(self, loaded: recipe.Loaded, parts: Parts, until: str) -> None:
        """Run every member of the teacher up to what teaches."""
        if parts.teacher is not None or not hasattr(loaded.config.teacher, "members"):
            return
        named, folder = list(loaded.config.teacher.members), self.place.run.path
        runs = [links.member(loaded, folder, name, number) for number, name in enumerate(named)]
        for link in runs:
            self._run(link, Parts(), "tokenizer")
        if until == "tokenizer":
            return
        source = catalog.build("teacher", loaded.config.teacher, base=loaded.base)
        source.placed(folder / links.MEMBERS, loaded.config.task.max_length, made=False)
        self._foresee([(loaded, parts)], source.tokenizer([]))
        self.begin()
        for name, link in zip(named, runs, strict=True):
            self.place.progress.say(f"=== member {name} of the teacher: {run_path(link)}")
            self._run(link, Parts(), min(until, "teacher", key=STAGES.index))

    def _run(self, link: recipe.Loaded, parts: Parts, until: str) -> None:
        self.place.signals.check(f"before {run_path(link)}")
        run(link, parts=parts, until=until, progress=self.shown, force=self.place.force)

    def _foresee(
        self, runs: Sequence[tuple[recipe.Loaded, Parts]], tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """Look at every run of a chain before the first is trained: each one's student is the next one's
        teacher.
        """
        teacher = runs[0][1].teacher
        for number, (link, parts) in enumerate(runs, start=1):
            try:
                job = prepare(link, replace(parts, teacher=teacher), self.place, made=False)
                prospect = preflight.build(stages.named(job), tokenizer, self.place.run.path)
                preflight.findings(prospect)
            except DistillkitError as error:
                if number == len(runs) or isinstance(error, ErrorGroup):
                    raise
                problem = f"assistant {number}: {error.problem}"
                raise type(error)(problem, where=error.where, hint=error.hint) from None
            teacher = preflight.Upcoming(prospect.student, tokenizer)


def run_path(loaded: recipe.Loaded) -> Path:
    """The run's folder: output, relative to where the command runs, and the run's name."""
    return Path(loaded.config.output) / loaded.config.name


def _todo(job: Job, until: str) -> list[str]:
    """The stages that are not there. Raises ConfigError or DataError for what a stopped training left of
    other settings or data: now, and not after the stages before it were made again.
    """
    wanted = [name for name in STAGES[: STAGES.index(until) + 1] if _applies(job, name)]
    todo = [name for name in wanted if not job.run.stage(name).done(job.digests[name])]
    for training in job.trainings.values():
        if training.stage in todo and not job.force:
            checkpoint.check(
                job.run.checkpoints(training.name), settings=training.settings, data=training.data
            )
    return todo


def _run_stages(job: Job, todo: list[str]) -> None:
    again = f"distillkit run {shlex.quote(str(job.run.path))}"
    if "student" in todo and "tokenizer" not in todo:
        stages.check(job)
    if not todo:
        job.progress.say(f"{job.run.path}: already complete, nothing to do")
    for name in todo:
        if not job.world.main and name in _MAIN_ONLY:
            return
        job.signals.check(f"before {name}")
        if job.world.main:
            job.run.status("running", 0, name, again)
        job.progress.say(f"== {name}")
        try:
            _make(job, name)
        except Exception as error:
            if name != "report" or isinstance(error, StoppedError):
                raise
            job.progress.say(f"warning: no report ({type(error).__name__}: {error}); every result is kept")
        if name not in _MAIN_ONLY:
            job.world.wait()
        if name == "tokenizer" and "student" in todo:
            stages.check(job)


def _make(job: Job, name: str) -> None:
    start = time.monotonic()
    with enough_memory(name):
        save = stages.MAKE[name](job.alone if name in _MAIN_ONLY else job)
        if not job.world.main:
            return
        with job.run.stage(name).write(job.digests[name], seconds=lambda: time.monotonic() - start) as folder:
            save(folder)
    for checkpoints in job.run.checkpoints(name).parent.glob(f"{name}*"):
        files.remove(checkpoints)  # a finished stage needs them no longer
    if name == "report":
        places = ("report.html", job.run.path), *((CARD, job.folder(one)) for one in ("student", "export"))
        for source, target in places:
            files.atomic_write(target / source, (job.folder("report") / source).read_bytes())


def _applies(job: Job, name: str) -> bool:
    if name == "teacher":
        return not isinstance(job.teacher_source, LearningTeacherSource)
    return name != "pretrain" or (job.trainable is not None and job.trainable.pretrain is not None)


def _load(config: str | Path | RunConfig | recipe.Loaded, overrides: Sequence[str]) -> recipe.Loaded:
    if isinstance(config, recipe.Loaded):
        return config
    if isinstance(config, RunConfig):
        return recipe.Loaded(config=config, origins={}, base=Path.cwd())
    return recipe.load(Path(config), overrides, components=catalog.components)


def _data_paths(loaded: recipe.Loaded) -> list[Path]:
    sources = [
        source
        for task in loaded.config.task.single.values()
        for source in (task.train, task.validation, task.test)
    ]
    return [loaded.base / source for source in sources if source and ":" not in source]


def _stacks(config: RunConfig, parts: Parts, base: Path) -> tuple[LossStack, ...]:
    if parts.losses:
        if len(config.phases) > 1:
            raise ConfigError(
                "losses were given as objects for a config of several phases",
                where="distill",
                hint="name them in the config, or use one phase",
            )
        return (LossStack(copy.deepcopy(dict(parts.losses))),)  # the caller's own objects stay untouched
    return build_stacks(config, base)
