"""The student's stage where its teacher learns too: peers, and averages of itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from distillkit.data.batching import Feed, TaskFeed
from distillkit.licences import carry
from distillkit.losses.base import TEACHER
from distillkit.metrics import LOWER_IS_BETTER
from distillkit.model import LEFT, STUDENT, WHO, FixedTeacher, LearningTeacherSource, Material, Student
from distillkit.peers import InTurn, Peers, peers_of
from distillkit.stacks import bind
from distillkit.stages.job import INTERCHANGE, PEERS, Job, Save
from distillkit.stages.rows import phase_rows
from distillkit.stages.training import (
    fit,
    interchange_accuracy,
    phase_settings,
    save_model,
    scores_now,
    validation,
)
from distillkit.train import Distillation, keyed_seed


def together(job: Job, source: LearningTeacherSource) -> Save:
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
        feed: Feed = TaskFeed(job.encoded(phase_rows(job, name, phase)), phase.batch, seed=seed)
        if isinstance(program, Peers) and program.in_turn:
            feed = InTurn(feed, len(students))
        stack = job.stacks[index]
        how = phase_settings(job, name, phase, stack)
        fit(job, program, feed, how, validation(job, name, program, students))
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
    scores = {name: scores_now(job, model)[job.metric] for name, model in students.items()}
    lower = job.metric in LOWER_IS_BETTER
    order = sorted(scores, key=lambda name: scores[name] if lower else -scores[name])
    chosen = STUDENT if source.keep == STUDENT else order[0]
    left = next(name for name in order if name != chosen)
    places = {chosen: folder, left: folder / LEFT}
    for name, model in students.items():
        place = places.get(name, folder / PEERS / name)
        place.mkdir(parents=True, exist_ok=True)
        save_model(job, model, place)
        carry(job.student_source.origins, place)
        (place / WHO).write_text(json.dumps({"name": STUDENT if name == LEFT else name}))
    told = interchange_accuracy(job, FixedTeacher(students[chosen]), FixedTeacher(students[left]))
    (folder / INTERCHANGE).write_text(json.dumps(told))


def who(folder: Path) -> str:
    """The name of the peer in a folder."""
    return str(json.loads((folder / WHO).read_text())["name"])


def beside(job: Job) -> Iterator[tuple[str, Path]]:
    """The peers that are kept beside the student, by name, the best of them first."""
    student = job.folder("student")
    for folder in (student / LEFT, *sorted(student.glob(f"{PEERS}/*"))):
        yield who(folder), folder
