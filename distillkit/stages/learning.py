"""The stage that makes a student."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from distillkit import evaluate, preflight
from distillkit.data.batching import TaskFeed
from distillkit.licences import carry
from distillkit.losses.base import TEACHER, LossStack
from distillkit.model import STUDENT, FixedTeacher, LearningTeacherSource, Material, Teacher
from distillkit.settings import Phase
from distillkit.stacks import bind, interchange_of
from distillkit.stages.job import INTERCHANGE, Job, Save
from distillkit.stages.rows import taught_rows
from distillkit.stages.together import together
from distillkit.stages.training import fit, interchange_accuracy, phase_settings, save_model, validation
from distillkit.teachers.cached import Keep, record
from distillkit.train import Distillation, keyed_seed, resolve_precision


def student(job: Job) -> Save:
    """The student, distilled through every phase, and what it scores.

    Raises ModelError for a teacher that has nothing to teach (its folder is there, to be looked at).
    """
    if isinstance(job.teacher_source, LearningTeacherSource):
        return together(job, job.teacher_source)
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
        taught = taught_rows(job, name, phase, fixed)
        feed = TaskFeed(job.encoded(taught), phase.batch, seed=job.config.seed)
        told = _kept(job, phase, stack, fixed, feed)
        swapped = interchange_of(job.config, index, stack, student=model.spec, teacher=fixed.spec)
        program = Distillation(model, stack, {TEACHER: told}, swapped)
        how = phase_settings(job, name, phase, stack)
        fit(job, program, feed, how, validation(job, name, program, {STUDENT: model}))
    for remark in fixed.remarks():
        job.progress.say(remark)

    def save(folder: Path) -> None:
        save_model(job.alone, model, folder)
        carry([job.folder("teacher"), *job.student_source.origins], folder)
        told = json.dumps(interchange_accuracy(job.alone, FixedTeacher(model), fixed.to(job.device)))
        (folder / INTERCHANGE).write_text(told)

    return save


def _kept(job: Job, phase: Phase, stack: LossStack, fixed: Teacher, feed: TaskFeed) -> Teacher:
    """The teacher of a phase: the one that answers in every step, or its answers from disk."""
    if phase.cache is None:
        return fixed
    keep = Keep(
        want=stack.needs,
        reads=stack.reads,
        settings=phase.cache,
        owner=job.teacher_key,
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


def _gate(job: Job, fixed: Teacher) -> None:
    """Refuse a teacher that has nothing to teach, or one of those that it is made of."""
    recipe = job.config.teacher
    by_task = getattr(recipe, "combine", "") == "task"  # the whole is then judged on each of the tasks
    for name, part in fixed.parts.items() if not by_task else ():
        _judge(job, part, f"teacher.members.{name}", recipe.members[name].allow_weak)  # type: ignore[attr-defined]
    _judge(job, fixed, "teacher", recipe.allow_weak)


def _judge(job: Job, fixed: Teacher, named: str, allowed: bool) -> None:
    """Refuse a teacher that is no better than a constant answer on the validation rows (of each task), unless
    that is allowed. The test rows decide nothing.
    """
    samples = job.samples(job.task.validation)
    train, judged = job.encoded(job.task.train).gold, samples.gold
    assert train is not None and judged is not None
    answers = job.predict(fixed, samples)
    recipe = job.config.teacher
    members = recipe.members if getattr(recipe, "combine", "") == "task" else {}  # type: ignore[attr-defined]
    for task, labels, (seen, right), said in evaluate.by_task(
        job.task.labels, train, judged, answers=answers
    ):
        verdict = evaluate.better_than_majority(labels, seen, right, said, seed=job.config.seed)
        own = members[task].allow_weak if task in members else False
        if not verdict.passes and not (allowed or own):
            raise preflight.weak(verdict, f"{named}.members.{task}" if task in members else named, task)
        if not verdict.passes:
            who = f"{named} on {task}" if task else named
            job.progress.say(f"{who}: weak, and allowed to be: {verdict.sentence}")
