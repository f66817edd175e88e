"""The rows that a phase trains on."""

from __future__ import annotations

from distillkit.augmenting import Augmentation, Place, augment
from distillkit.data.augment import joined
from distillkit.data.batching import TaskFeed
from distillkit.data.tasks import Rows, load_unlabelled, unlabelled_rows
from distillkit.model import Teacher
from distillkit.settings import Augment, BatchSettings, Phase
from distillkit.stages.job import Job
from distillkit.stages.texts import writing
from distillkit.written import Author, written_rows


def task_feed(job: Job, settings: BatchSettings, seed: int) -> TaskFeed:
    return TaskFeed(job.encoded(job.task.train), settings, seed=seed)


def phase_rows(job: Job, name: str, phase: Phase) -> Rows:
    """What a phase trains on: the task's rows or a corpus, rows without labels, and copies of all of them."""
    rows = job.task.train if phase.corpus is None else _corpus_rows(job, name, phase.corpus)
    if phase.unlabelled is not None:
        more, _ = load_unlabelled(job.config.task, phase.unlabelled, base=job.loaded.base)
        rows = joined(rows, more)
    if phase.augment is None:
        return rows
    with job.world.main_first():
        made = augment(rows, augmentation(job, phase.augment), watched(job))
    job.progress.say(f"{name}: {len(made) - len(rows):,} copies of {len(rows):,} rows")
    return made


def taught_rows(job: Job, name: str, phase: Phase, fixed: Teacher) -> Rows:
    """The same, with the texts that the teacher writes, where they are asked for."""
    rows = phase_rows(job, name, phase)
    if phase.written is None:
        return rows
    assert fixed.writer is not None, "preflight refuses a teacher that writes none"
    author = Author(
        writer=fixed.writer,
        owner=job.teacher_key,
        tokenizer=job.tokenizer,
        max_length=job.config.task.max_length,
        longest=writing(job).max_length or 1,
        device=job.device,
        cache=job.cache,
        check=lambda: job.signals.check("while the teacher wrote; every whole part is kept"),
        tell=lambda done, total: job.progress.say(f"{name}: texts for {done:,} of {total:,} rows"),
    )
    with job.world.main_first():
        return written_rows(rows, phase.written, author)


def augmentation(job: Job, settings: Augment) -> Augmentation:
    pretrained = job.folder("pretrain")
    found = None if job.trainable is None else job.trainable.masked_model(pretrained)
    return Augmentation.of(settings, found or pretrained, job.loaded.base, job.config)


def watched(job: Job) -> Place:
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
