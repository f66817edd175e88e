"""Texts that teacher and student write for the judged rows, and how near they come to the wanted ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from distillkit.metrics import Measured
from distillkit.model import Writer
from distillkit.settings import GenerationSettings, TaskSettings
from distillkit.stages.job import Job
from distillkit.text_metrics import score_texts
from distillkit.writing import spelled, write_tokens

TEXTS = "texts.json"
"""In a model's folder: what it wrote for each judged row, where it writes."""


def writing(job: Job) -> GenerationSettings:
    """How the task's texts are written."""
    task = job.config.task
    assert isinstance(task, TaskSettings), "several tasks are classifications"
    return task.writing


def wanted(job: Job) -> list[str]:
    """The targets of the judged rows."""
    assert job.judged.labels is not None
    return [str(text) for text in job.judged.labels]


def corrected(job: Job) -> list[str]:
    """The sources of the judged rows, where targets are corrections of them; else none."""
    task = job.config.task
    return [text for (text,) in job.judged.texts] if isinstance(task, TaskSettings) and task.edits else []


def save_texts(job: Job, writer: Writer, folder: Path) -> dict[str, Measured]:
    """Write texts.json; the metrics of what was written. Raises StoppedError after a signal."""
    tokens = write_tokens(
        writer,
        job.samples(job.judged),
        writing(job),
        device=job.device,
        check=lambda: job.signals.check("while texts were written"),
    )
    texts = spelled(tokens, job.tokenizer)
    (folder / TEXTS).write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
    return score_texts(wanted(job), texts, sources=corrected(job), seed=job.config.seed)


def read_texts(folder: Path) -> Sequence[str] | None:
    """What a model wrote; None where it writes nothing."""
    path = folder / TEXTS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
