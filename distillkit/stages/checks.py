"""What is looked at before anything is trained."""

from __future__ import annotations

from dataclasses import asdict

from distillkit import preflight
from distillkit.augmenting import check_model
from distillkit.data.tasks import load_unlabelled
from distillkit.model import Teacher
from distillkit.settings import Phase
from distillkit.stages.job import PREFLIGHT, Job
from distillkit.stages.rows import augmentation, watched
from distillkit.teachers.cached import check_unchanging


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
        check_model(augmentation(job, phase.augment), watched(job))
