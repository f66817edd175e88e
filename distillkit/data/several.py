"""Several tasks as one: their rows one after the other, their classes side by side.

A class of task `trec` called `LOC` is `trec/LOC`. Rows are numbered anew, and each keeps which task it is of
(`TaskOfRows`), so that a model is only ever asked for the classes of that one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from distillkit.data.layouts import Segments
from distillkit.data.tasks import Rows, Task, TaskOfRows, load_task
from distillkit.errors import DistillkitError
from distillkit.settings import Labels, SeveralTasks, TaskSettings


def load_tasks(settings: TaskSettings | SeveralTasks, *, base: Path, seed: int) -> Task:
    """The task, or several as one. Errors as of `load_task`, with the task that they are of.

    Test rows are there where every task has some; else all are measured on their validation rows.
    """
    if isinstance(settings, TaskSettings):
        return load_task(settings, base=base, seed=seed)
    held_out = seed if settings.holdout_seed is None else settings.holdout_seed
    tasks = {name: _load(name, one, base, held_out) for name, one in settings.tasks.items()}
    labels = _labels(tasks)
    notes = [f"{name}: {note}" for name, task in tasks.items() for note in task.notes]
    test = {name: task.test for name, task in tasks.items() if task.test is not None}
    if test and len(test) < len(tasks):
        without = ", ".join(name for name in tasks if name not in test)
        notes.append(f"all are measured on validation rows: no test rows of {without}")
    splits = [{name: task.train for name, task in tasks.items()}]
    splits += [{name: task.validation for name, task in tasks.items()}]
    splits += [test] if len(test) == len(tasks) else []
    merged = [_rows(split, labels, settings.exponent) for split in splits]
    return Task(settings, labels, merged[0], merged[1], merged[2] if len(merged) > 2 else None, tuple(notes))


def _load(name: str, settings: TaskSettings, base: Path, held_out: int) -> Task:
    try:
        return load_task(settings, base=base, seed=held_out)
    except DistillkitError as error:
        if error.where.startswith("task."):
            error.where = error.where.replace("task.", f"task.tasks.{name}.", 1)
        raise


def _labels(tasks: Mapping[str, Task]) -> Labels:
    names = tuple(f"{name}/{label}" for name, task in tasks.items() for label in task.labels.names)
    return Labels(
        kind="classification",
        names=names,
        tasks={name: task.labels.num_labels for name, task in tasks.items()},
    )


def _rows(parts: Mapping[str, Rows], labels: Labels, exponent: float) -> Rows:
    """The rows of one split of every task."""
    firsts = {name: columns.start for name, columns in labels.columns.items()}
    classes = np.zeros((len(parts), labels.num_labels), dtype=bool)
    for task, columns in enumerate(labels.columns.values()):
        classes[task, columns] = True
    sizes: Sequence[int] = [len(rows) for rows in parts.values()]
    digest = hashlib.sha256(
        repr((labels, exponent, [rows.digest for rows in parts.values()])).encode()
    ).hexdigest()
    return Rows(
        ids=np.arange(sum(sizes)),
        texts=tuple(texts for rows in parts.values() for texts in rows.texts),
        labels=np.concatenate([np.asarray(rows.labels) + firsts[name] for name, rows in parts.items()]),
        digest=digest,
        layout=Segments(),
        tasks=TaskOfRows(np.repeat(np.arange(len(parts)), sizes), classes, exponent),
    )
