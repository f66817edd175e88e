"""From predictions to facts: what the pipeline calls to fill a RunFacts. Alone here needs torch.

Shapes: n rows, V classes (1 for regression).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillkit import evaluate
from distillkit.data.tasks import Rows, Task
from distillkit.errors import DataError
from distillkit.metrics import Measured
from distillkit.report.facts import Example, ModelFacts, TaskFacts
from distillkit.settings import Labels
from distillkit.types import Spec


@dataclass(frozen=True)
class Judged:
    """The rows that the report's figures are measured on, and the answers of both models.

    gold: `[n]` class ids or targets; teacher, student: logits `[n, V]`; texts: a tuple per row, one entry
    per segment.
    """

    labels: Labels
    texts: Sequence[tuple[str, ...]]
    gold: NDArray[Any]
    teacher: NDArray[Any]
    student: NDArray[Any]
    seed: int

    def teacher_facts(self, source: str, spec: Spec, parameters: int | None) -> ModelFacts:
        """The teacher's sizes and scores; `source` is its registered name."""
        return self._model(self.teacher, source, spec, parameters)

    def student_facts(self, source: str, spec: Spec, parameters: int | None) -> ModelFacts:
        """The student's sizes and scores; `source` is its registered name."""
        return self._model(self.student, source, spec, parameters)

    def difference(self) -> dict[str, Measured]:
        """Student minus teacher, with paired intervals."""
        return evaluate.compare_scores(self.labels, self.gold, self.student, self.teacher, seed=self.seed)

    def agreement(self) -> dict[str, float]:
        """How alike they answer."""
        return evaluate.agreement(self.labels, self.teacher, self.student)

    def outcomes(self) -> dict[str, int]:
        """Rows by who is right; empty for regression."""
        if self.labels.kind == "regression":
            return {}
        return evaluate.outcomes(self.gold, self.teacher, self.student)

    def examples(self, limit: int) -> tuple[Example, ...]:
        """The strongest disagreements, at most `limit`; 0 shows no text."""
        rows = evaluate.disagreements(self.labels, self.teacher, self.student, limit=limit)
        return tuple(self._example(int(row)) for row in rows)

    def _model(self, logits: NDArray[Any], source: str, spec: Spec, parameters: int | None) -> ModelFacts:
        labels, gold = self.labels, self.gold
        classes = labels.kind == "classification"
        return ModelFacts(
            source=source,
            sizes=asdict(spec),
            parameters=parameters,
            metrics=evaluate.score(labels, gold, logits, seed=self.seed),
            per_class=evaluate.per_class(labels, gold, logits) if classes else (),
            confusion=_rows(evaluate.confusion(labels, gold, logits)) if classes else (),
            calibration=evaluate.calibration(gold, logits) if classes else None,
        )

    def _example(self, row: int) -> Example:
        if self.labels.kind == "regression":
            gold, teacher, student = (
                f"{float(value):.4g}"
                for value in (self.gold[row], self.teacher[row, 0], self.student[row, 0])
            )
            return Example(tuple(self.texts[row]), gold, teacher, student)
        names, answers = self.labels.names, (self.teacher[row], self.student[row])
        teacher, student = (names[int(logits.argmax())] for logits in answers)
        sure = [float(evaluate.probabilities(logits).max()) for logits in answers]
        return Example(tuple(self.texts[row]), names[int(self.gold[row])], teacher, student, *sure)


def task_facts(task: Task, metric: str) -> TaskFacts:
    """The task's splits, gold labels by split, and the constant answer's score on the measured rows."""
    splits = {"train": task.train, "validation": task.validation, "test": task.test}
    present = {name: rows for name, rows in splits.items() if rows is not None}
    measured_on = "validation" if task.test is None else "test"
    classes = task.labels.kind == "classification"
    return TaskFacts(
        kind=task.labels.kind,
        metric=metric,
        measured_on=measured_on,
        rows={name: len(rows.ids) for name, rows in present.items()},
        baseline=evaluate.majority(task.labels, _gold(task.train), _gold(present[measured_on])),
        labels=task.labels.names,
        max_length=task.settings.max_length,
        label_counts={name: _counts(task.labels, rows) for name, rows in present.items()} if classes else {},
        notes=task.notes,
    )


def _counts(labels: Labels, rows: Rows) -> dict[str, int]:
    counts = np.bincount(_gold(rows), minlength=len(labels.names))
    return {name: int(count) for name, count in zip(labels.names, counts, strict=True)}


def _gold(rows: Rows) -> NDArray[Any]:
    if rows.labels is None:
        raise DataError("these rows have no labels to be judged by")
    return rows.labels


def _rows(counts: NDArray[np.int64]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(count) for count in row) for row in counts)
