"""From answers to facts: what the pipeline calls to fill a RunFacts. Here and in contexts.py torch is needed.

Shapes: n rows, N answers, V classes (1 for regression).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillkit import evaluate
from distillkit.answers import BEST, BEST_LOG
from distillkit.data.tasks import Rows, Task
from distillkit.errors import DataError
from distillkit.metrics import Baseline, Measured
from distillkit.report.contexts import Shown
from distillkit.report.facts import Example, Link, ModelFacts, Role, TaskFacts
from distillkit.settings import Labels, SeveralTasks, TaskSettings
from distillkit.text_metrics import compare_texts, text_metrics, text_sums
from distillkit.types import Spec

SCORES = "scores.json"
"""In a model's folder: its number of parameters, and its metrics by name."""


@dataclass(frozen=True)
class Judged:
    """The rows that the report's figures are measured on, and the answers of both models.

    gold, teacher, student: as in `distillkit.evaluate`; labels name what they answer (the whole vocabulary
    for mlm); texts: what stands beside an answer, or beside a row of tags; scored: the teacher gives scores,
    not classes alone.
    """

    labels: Labels
    texts: Shown
    gold: NDArray[Any]
    teacher: NDArray[Any]
    student: NDArray[Any]
    seed: int
    scored: bool = True

    def teacher_facts(self, source: str, spec: Spec, parameters: int | None) -> ModelFacts:
        """The teacher's sizes and scores; `source` is its registered name."""
        facts = self._model(self.teacher, source, spec, parameters)
        return facts if self.scored else replace(facts, calibration=None)

    def student_facts(self, source: str, spec: Spec, parameters: int | None) -> ModelFacts:
        """The student's sizes and scores; `source` is its registered name."""
        return self._model(self.student, source, spec, parameters)

    def difference(self) -> dict[str, Measured]:
        """Student minus teacher, with paired intervals."""
        return evaluate.compare_scores(self.labels, self.gold, self.student, self.teacher, seed=self.seed)

    def agreement(self) -> dict[str, float]:
        """How alike they answer."""
        found = evaluate.agreement(self.labels, self.teacher, self.student)
        return found if self.scored else {name: value for name, value in found.items() if name != "kl"}

    def outcomes(self) -> dict[str, int]:
        """Answers by who is right; empty for regression."""
        return evaluate.outcomes(self.labels, self.gold, self.teacher, self.student)

    def examples(self, limit: int) -> tuple[Example, ...]:
        """The strongest disagreements, at most `limit`; 0 shows no text."""
        every = evaluate.disagreements(self.labels, self.teacher, self.student, limit=len(self.teacher))
        places = every.tolist()
        if self.labels.kind == "token_classification":  # all differing words of a row stand together
            places = list(dict.fromkeys(self.gold[every, 1].tolist()))
        return tuple(_EXAMPLES[self.labels.kind](self, place) for place in places[:limit])

    def _model(self, logits: NDArray[Any], source: str, spec: Spec, parameters: int | None) -> ModelFacts:
        labels, gold = self.labels, self.gold
        classes = labels.kind in ("classification", "token_classification")
        return ModelFacts(
            source=source,
            sizes={name: value for name, value in asdict(spec).items() if isinstance(value, int)},
            parameters=parameters,
            metrics=evaluate.score(labels, gold, logits, seed=self.seed),
            per_class=evaluate.per_class(labels, gold, logits) if classes else (),
            confusion=_rows(evaluate.confusion(labels, gold, logits)) if classes else (),
            calibration=evaluate.calibration(labels, gold, logits),
        )


@dataclass(frozen=True)
class JudgedTexts(Judged):
    """The same where both models wrote texts: `sources` and `wanted` of the rows, and what each wrote;
    corrected: the sources once more, where edits of them count.
    """

    sources: Sequence[str] = ()
    wanted: Sequence[str] = ()
    taught: Sequence[str] = ()
    learned: Sequence[str] = ()
    corrected: Sequence[str] = ()

    def difference(self) -> dict[str, Measured]:
        """Of answers to the tokens of targets, and of texts."""
        texts = compare_texts(self.wanted, self.learned, self.taught, sources=self.corrected, seed=self.seed)
        return {**super().difference(), **texts}

    def examples(self, limit: int) -> tuple[Example, ...]:
        """Rows for which they wrote different texts; those first whose chrF differs most."""
        taught, learned = (
            text_metrics(text_sums(self.wanted, one))["chrf"] for one in (self.taught, self.learned)
        )
        order = np.argsort(-np.abs(taught - learned), kind="stable")
        differ = [row for row in order.tolist() if self.taught[row] != self.learned[row]]
        return tuple(
            Example((self.sources[row],), self.wanted[row], self.taught[row], self.learned[row])
            for row in differ[:limit]
        )


def _value_example(judged: Judged, row: int) -> Example:
    gold, teacher, student = (
        f"{float(value):.4g}" for value in (judged.gold[row], judged.teacher[row, 0], judged.student[row, 0])
    )
    return Example(tuple(judged.texts(row)), gold, teacher, student)


def _class_example(judged: Judged, row: int) -> Example:
    names, answers = judged.labels.names, (judged.teacher[row], judged.student[row])
    teacher, student = (names[int(logits.argmax())] for logits in answers)
    sure = [float(evaluate.probabilities(logits).max()) for logits in answers]
    known = (sure[0] if judged.scored else None, sure[1])
    return Example(tuple(judged.texts(row)), names[int(judged.gold[row])], teacher, student, *known)


def _tag_example(judged: Judged, row: int) -> Example:
    """The words of a row, and the tags of those in which the models differ."""
    answers = np.flatnonzero(judged.gold[:, 1] == row)
    words = judged.texts(row)
    tags = [
        judged.gold[answers, 0],
        *(one[answers].argmax(axis=1) for one in (judged.teacher, judged.student)),
    ]
    differs = np.flatnonzero(tags[1] != tags[2])
    gold, teacher, student = (
        ", ".join(f"{words[at]} {judged.labels.names[one[at]]}" for at in differs) for one in tags
    )
    return Example((" ".join(words),), gold, teacher, student)


def _piece_example(judged: Judged, answer: int) -> Example:
    names, answers = judged.labels.names, (judged.teacher[answer], judged.student[answer])
    teacher, student = (names[int(one[BEST])] for one in answers)
    sure = [float(np.exp(one[BEST_LOG])) for one in answers]
    return Example(judged.texts(answer), names[int(judged.gold[answer, 0])], teacher, student, *sure)


_EXAMPLES: Mapping[str, Callable[[Judged, int], Example]] = {
    "classification": _class_example,
    "regression": _value_example,
    "token_classification": _tag_example,
    "mlm": _piece_example,
    "text_to_text": _piece_example,
}


def with_scores(facts: ModelFacts, scores: Mapping[str, Mapping[str, Any]]) -> ModelFacts:
    """A model's facts with what its folder says of it beside: the metrics of texts that it wrote."""
    more = {name: Measured(**value) for name, value in scores.items() if name not in facts.metrics}
    return replace(facts, metrics={**facts.metrics, **more})


def link(role: Role, name: str, source: str, folder: Path) -> Link:
    """What the scores in a model's folder say of it."""
    told = json.loads((folder / SCORES).read_text(encoding="utf-8"))
    metrics = {metric: Measured(**value) for metric, value in told["scores"].items()}
    return Link(role, name, source, told["parameters"], metrics)


def task_facts(task: Task, metric: str, baseline: Baseline) -> TaskFacts:
    """The task's splits and gold labels by split; `baseline` is the constant answer's score on the measured
    rows."""
    splits = {"train": task.train, "validation": task.validation, "test": task.test}
    present = {name: rows for name, rows in splits.items() if rows is not None}
    measured_on = "validation" if task.test is None else "test"
    return TaskFacts(
        kind=task.labels.kind,
        metric=metric,
        measured_on=measured_on,
        rows={name: len(rows.ids) for name, rows in present.items()},
        baseline=baseline,
        labels=task.labels.names,
        max_length=task.settings.max_length,
        tasks={name: (columns.start, columns.stop) for name, columns in task.labels.columns.items()},
        label_counts={name: _counts(task.labels, rows) for name, rows in present.items()}
        if task.labels.names
        else {},
        notes=task.notes,
        **_of_texts(task.settings),
    )


def _of_texts(settings: TaskSettings | SeveralTasks) -> dict[str, Any]:
    """What a reader of texts must know; nothing where none are written."""
    if settings.kind != "text_to_text" or isinstance(settings, SeveralTasks):
        return {}
    return {"prefix": settings.prefix, "max_target": settings.longest_target}


def _counts(labels: Labels, rows: Rows) -> dict[str, int]:
    counts = np.bincount(_gold(rows), minlength=len(labels.names))
    return {name: int(count) for name, count in zip(labels.names, counts, strict=True)}


def _gold(rows: Rows) -> NDArray[Any]:
    if rows.labels is None:
        raise DataError("these rows have no labels to be judged by")
    return rows.labels


def _rows(counts: NDArray[np.int64]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(count) for count in row) for row in counts)
