"""How the answers to each kind of task are judged: an object per kind, which `distillkit.evaluate` asks.

gold is `[n]` class ids or targets of rows, or `[N, 2]` label and row of each answer where a row has several;
an answer is what `distillkit.answers` keeps of it. Entities are those of the CoNLL shared tasks as seqeval
reads
them: a span counts where type, start and end agree. Intervals resample rows, never single words, whose errors
hang together.

Shapes: M models, n rows, N answers, V labels, R resamples, K sums.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from seqeval.metrics.sequence_labeling import get_entities
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from distillkit.answers import BEST, BEST_LOG, GOLD_LOG
from distillkit.data.tasks import begins_entities
from distillkit.errors import DataError, DivergedError, ModelError
from distillkit.metrics import (
    class_metrics,
    entity_f1,
    likelihood_metrics,
    resample_classes,
    resample_sums,
    resample_values,
    value_metrics,
)
from distillkit.runtime.answers import log_softmax as log_softmax
from distillkit.settings import Labels
from distillkit.types import IMPOSSIBLE

Array = NDArray[Any]
Scores = dict[str, float]
Resamples = dict[str, NDArray[np.float64]]


class Judge(ABC):
    """What is asked of the answers to one kind of task."""

    @abstractmethod
    def metrics(self, labels: Labels) -> tuple[str, ...]:
        """Names of the metrics; the first chooses weights and leads the report where the recipe names
        none.
        """

    def gate(self, labels: Labels) -> str:
        """The metric in which a teacher must beat the constant answer."""
        return "accuracy"

    @abstractmethod
    def width(self, labels: Labels) -> int:
        """Numbers kept of one answer."""

    @abstractmethod
    def values(self, labels: Labels, gold: Array, answers: Array) -> Scores:
        """Every metric."""

    @abstractmethod
    def resample(
        self, labels: Labels, gold: Array, answers: Sequence[Array], *, seed: int, resamples: int
    ) -> Resamples:
        """Every metric of each model on the same resamples of the rows: `[M, R]`."""

    @abstractmethod
    def constant(self, labels: Labels, train_gold: Array, gold: Array) -> Array:
        """The answers of a model that says the same whatever it reads, as the training rows suggest."""

    @abstractmethod
    def said(self, labels: Labels, answers: Array) -> str:
        """The first answer in words."""

    def classes(self, answers: Array) -> NDArray[np.int64] | None:
        """`[N]` the class that each answer names; None where answers are numbers."""
        best: NDArray[np.int64] = answers.argmax(axis=1)
        return best

    def confidence(self, answers: Array) -> NDArray[np.float64]:
        """`[N]` the probability of the class that it names."""
        best: NDArray[np.float64] = np.exp(log_softmax(answers).max(axis=1))
        return best

    def strength(self, teacher: Array, student: Array) -> NDArray[np.float64]:
        """`[N]` how far apart two models are; 0 where they give the same answer."""
        differs = teacher.argmax(axis=1) != student.argmax(axis=1)
        return np.where(differs, kl_divergence(teacher, student) + np.finfo(np.float64).tiny, 0.0)

    def closeness(self, teacher: Array, student: Array) -> Scores:
        """How alike two models answer, beside how often they agree."""
        return {"kl": float(kl_divergence(teacher, student).mean())}

    def num_rows(self, gold: Array) -> int:
        """Rows that were answered."""
        return len(gold)

    def check(self, labels: Labels, answers: Array, asked: int) -> None:
        """Raises DataError where nothing was asked, ModelError for another shape, DivergedError for what is
        not finite.
        """
        if asked == 0:
            raise DataError("there are no rows to score")
        if answers.shape != (asked, self.width(labels)):
            raise ModelError(
                f"the model gave logits of shape {list(answers.shape)}, not {[asked, self.width(labels)]}",
                hint="logits are [rows, classes] in the order of the task's labels, [rows, 1] for regression",
            )
        bad = int((~np.isfinite(answers)).any(axis=1).sum())
        if bad:
            raise DivergedError(f"the model's answers are not finite for {bad} of {asked} rows")


class ClassJudge(Judge):
    """One class per row."""

    def metrics(self, labels: Labels) -> tuple[str, ...]:
        return ("accuracy", "macro_f1", "mcc")

    def width(self, labels: Labels) -> int:
        return labels.num_labels

    def values(self, labels: Labels, gold: Array, answers: Array) -> Scores:
        ids = gold.astype(np.int64)
        check_ids(labels, ids)
        predicted = answers.argmax(axis=1)
        return {
            "accuracy": float(accuracy_score(ids, predicted)),
            "macro_f1": float(f1_score(ids, predicted, average="macro", zero_division=0.0)),
            "mcc": _mcc(ids, predicted),
        }

    def resample(
        self, labels: Labels, gold: Array, answers: Sequence[Array], *, seed: int, resamples: int
    ) -> Resamples:
        predicted = np.stack([one.argmax(axis=1) for one in answers])
        ids = gold.astype(np.int64)
        return resample_classes(ids, predicted, labels.num_labels, seed=seed, resamples=resamples)

    def constant(self, labels: Labels, train_gold: Array, gold: Array) -> Array:
        """The most frequent training class (ties: the first)."""
        counts = np.bincount(train_gold.astype(np.int64), minlength=labels.num_labels)
        return np.tile(np.eye(labels.num_labels)[counts.argmax()], (len(gold), 1))

    def said(self, labels: Labels, answers: Array) -> str:
        return labels.names[int(answers[0].argmax())]


class TasksJudge(ClassJudge):
    """One class per row, of those of the row's own task: every metric as the mean over the tasks, and of each
    task by itself. Rows are resampled within their task.
    """

    def metrics(self, labels: Labels) -> tuple[str, ...]:
        means = super().metrics(labels)
        return (*means, *(f"{task}.{name}" for task in labels.tasks for name in means))

    def values(self, labels: Labels, gold: Array, answers: Array) -> Scores:
        check_ids(labels, gold.astype(np.int64))
        found = {
            task: super(TasksJudge, self).values(own, gold[rows] - first, answers[rows][:, columns])
            for task, own, rows, first, columns in self._tasks(labels, gold)
        }
        return {name: float(value) for name, value in _with_means(found).items()}

    def resample(
        self, labels: Labels, gold: Array, answers: Sequence[Array], *, seed: int, resamples: int
    ) -> Resamples:
        found = {}
        for task, own, rows, first, columns in self._tasks(labels, gold):
            said = [one[rows][:, columns] for one in answers]
            chance = task_seed(labels, task, seed)
            found[task] = super().resample(own, gold[rows] - first, said, seed=chance, resamples=resamples)
        return _with_means(found)

    def constant(self, labels: Labels, train_gold: Array, gold: Array) -> Array:
        """The most frequent training class of the row's task."""
        answers = np.full((len(gold), labels.num_labels), IMPOSSIBLE)
        asked = {task: rows for task, _, rows, _, _ in self._tasks(labels, gold)}
        for task, own, rows, first, columns in self._tasks(labels, train_gold):
            if task in asked:
                answers[asked[task], columns] = super().constant(
                    own, train_gold[rows] - first, gold[asked[task]]
                )
        return answers

    def said(self, labels: Labels, answers: Array) -> str:
        """What each task's rows are told."""
        told = dict.fromkeys(answers.argmax(axis=1).tolist())
        return ", ".join(labels.names[index] for index in sorted(told))

    @staticmethod
    def _tasks(labels: Labels, gold: Array) -> Iterator[tuple[str, Labels, NDArray[np.bool_], int, slice]]:
        """Each task that has rows: its name, its labels, which rows, its first class, its columns."""
        for task, rows in rows_of_tasks(labels, gold).items():
            if rows.any():
                columns = labels.columns[task]
                yield task, labels.of(task), rows, columns.start, columns


def rows_of_tasks(labels: Labels, gold: Array) -> dict[str, NDArray[np.bool_]]:
    """Which rows are of each of several tasks, by their right answers."""
    return {task: (gold >= columns.start) & (gold < columns.stop) for task, columns in labels.columns.items()}


def task_seed(labels: Labels, task: str, seed: int) -> int:
    """Of the resamples of one of several tasks: with one seed for all, those of small tasks would rise and
    fall together.
    """
    return int(np.random.SeedSequence([seed, list(labels.tasks).index(task)]).generate_state(1)[0])


def _with_means(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Metrics of each task -> the mean of each over the tasks, and all by `task.metric`."""
    names = next(iter(found.values()))
    means = {name: sum(one[name] for one in found.values()) / len(found) for name in names}
    return means | {f"{task}.{name}": value for task, one in found.items() for name, value in one.items()}


class ValueJudge(Judge):
    """One number per row."""

    def metrics(self, labels: Labels) -> tuple[str, ...]:
        return ("pearson", "spearman", "mse")

    def gate(self, labels: Labels) -> str:
        return "mse"

    def width(self, labels: Labels) -> int:
        return 1

    def values(self, labels: Labels, gold: Array, answers: Array) -> Scores:
        ones = np.ones((1, len(gold)))
        metrics = value_metrics(gold.astype(np.float64), numbers(answers))(ones)
        return {name: float(value[0]) for name, value in metrics.items()}

    def resample(
        self, labels: Labels, gold: Array, answers: Sequence[Array], *, seed: int, resamples: int
    ) -> Resamples:
        series = np.stack([numbers(one) for one in answers])
        return resample_values(gold.astype(np.float64), series, seed=seed, resamples=resamples)

    def constant(self, labels: Labels, train_gold: Array, gold: Array) -> Array:
        """The mean training target."""
        return np.full((len(gold), 1), train_gold.astype(np.float64).mean())

    def said(self, labels: Labels, answers: Array) -> str:
        return f"{float(answers[0, 0]):.4g}"

    def classes(self, answers: Array) -> NDArray[np.int64] | None:
        return None

    def strength(self, teacher: Array, student: Array) -> NDArray[np.float64]:
        return np.abs(numbers(teacher) - numbers(student))

    def closeness(self, teacher: Array, student: Array) -> Scores:
        left, right = numbers(teacher), numbers(student)
        pearson = value_metrics(left, right)(np.ones((1, len(left))))["pearson"]
        return {"pearson": float(pearson[0]), "mean_abs_difference": float(np.abs(left - right).mean())}


class SumJudge(Judge):
    """Several answers per row; every metric is a function of sums over rows."""

    @abstractmethod
    def sums(self, labels: Labels, gold: Array, answers: Array) -> NDArray[np.float64]:
        """`[n, K]` what each row adds to the sums."""

    @abstractmethod
    def from_sums(self, labels: Labels, sums_RK: NDArray[np.float64]) -> Resamples:
        """Every metric of sums, each `[R]`."""

    def num_rows(self, gold: Array) -> int:
        return len(np.unique(gold[:, 1]))

    def values(self, labels: Labels, gold: Array, answers: Array) -> Scores:
        check_ids(labels, gold[:, 0])
        total = self.sums(labels, gold, answers).sum(axis=0, keepdims=True)
        return {name: float(value[0]) for name, value in self.from_sums(labels, total).items()}

    def resample(
        self, labels: Labels, gold: Array, answers: Sequence[Array], *, seed: int, resamples: int
    ) -> Resamples:
        sums_MnK = np.stack([self.sums(labels, gold, one) for one in answers])
        drawn_MRK = resample_sums(sums_MnK, seed=seed, resamples=resamples)
        models = [self.from_sums(labels, sums_RK) for sums_RK in drawn_MRK]
        return {name: np.stack([model[name] for model in models]) for name in models[0]}


class TagJudge(SumJudge):
    """One tag per word: accuracy and macro-F1 over words, F1 over entities where tags begin some."""

    def metrics(self, labels: Labels) -> tuple[str, ...]:
        names = ("accuracy", "macro_f1")
        return ("entity_f1", *names) if begins_entities(labels.names) else names

    def gate(self, labels: Labels) -> str:
        """Where nearly every word lies outside of entities, no accuracy tells a model from that answer."""
        return self.metrics(labels)[0]

    def width(self, labels: Labels) -> int:
        return labels.num_labels

    def sums(self, labels: Labels, gold: Array, answers: Array) -> NDArray[np.float64]:
        """Right, gold and predicted words by tag, then right, predicted and gold entities."""
        predicted, V = answers.argmax(axis=1), labels.num_labels
        rows, row_N = np.unique(gold[:, 1], return_inverse=True)
        right = gold[:, 0] == predicted
        parts = [
            _counts(row_N[right], predicted[right], len(rows), V),
            _counts(row_N, gold[:, 0], len(rows), V),
            _counts(row_N, predicted, len(rows), V),
        ]
        if begins_entities(labels.names):
            parts.append(_entity_counts(labels, gold, predicted))
        return np.concatenate(parts, axis=1)

    def from_sums(self, labels: Labels, sums_RK: NDArray[np.float64]) -> Resamples:
        V = labels.num_labels
        right, support, answered, entities = np.split(sums_RK, [V, 2 * V, 3 * V], axis=1)
        metrics = class_metrics(right, support, answered)
        if entities.shape[1]:
            metrics["entity_f1"] = entity_f1(entities)
        return {name: metrics[name] for name in self.metrics(labels)}

    def constant(self, labels: Labels, train_gold: Array, gold: Array) -> Array:
        """The most frequent training tag (ties: the first)."""
        counts = np.bincount(train_gold[:, 0], minlength=labels.num_labels)
        return np.tile(np.eye(labels.num_labels)[counts.argmax()], (len(gold), 1))

    def said(self, labels: Labels, answers: Array) -> str:
        return labels.names[int(answers[0].argmax())]


class PieceJudge(SumJudge):
    """The entry of the vocabulary that stood at each masked place, or that comes next in a target."""

    def metrics(self, labels: Labels) -> tuple[str, ...]:
        return ("accuracy", "cross_entropy", "perplexity")

    def width(self, labels: Labels) -> int:
        return 3

    def sums(self, labels: Labels, gold: Array, answers: Array) -> NDArray[np.float64]:
        """Right answers, nats that the right entries cost, answers."""
        row_N = np.unique(gold[:, 1], return_inverse=True)[1]
        right = (answers[:, BEST] == gold[:, 0]).astype(np.float64)
        columns = (right, -answers[:, GOLD_LOG].astype(np.float64), np.ones(len(gold)))
        return np.stack([np.bincount(row_N, weights=column) for column in columns], axis=1)

    def from_sums(self, labels: Labels, sums_RK: NDArray[np.float64]) -> Resamples:
        return likelihood_metrics(sums_RK)

    def constant(self, labels: Labels, train_gold: Array, gold: Array) -> Array:
        """How often each entry stands in the training text (each counted once more), whatever is around
        it.
        """
        entries = int(max(train_gold[:, 0].max(), gold[:, 0].max())) + 1
        counts = np.bincount(train_gold[:, 0], minlength=entries) + 1
        log = np.log(counts / counts.sum())
        best = np.full(len(gold), counts.argmax())
        return np.stack([best, log[best], log[gold[:, 0]]], axis=1)

    def said(self, labels: Labels, answers: Array) -> str:
        best = int(answers[0, BEST])
        return labels.names[best] if labels.names else f"entry {best}"

    def classes(self, answers: Array) -> NDArray[np.int64] | None:
        best: NDArray[np.int64] = answers[:, BEST].astype(np.int64)
        return best

    def confidence(self, answers: Array) -> NDArray[np.float64]:
        best: NDArray[np.float64] = np.exp(answers[:, BEST_LOG].astype(np.float64))
        return best

    def strength(self, teacher: Array, student: Array) -> NDArray[np.float64]:
        """How much more or less they think of the right entry, in nats, where they name different ones."""
        differs = teacher[:, BEST] != student[:, BEST]
        apart = np.abs(teacher[:, GOLD_LOG].astype(np.float64) - student[:, GOLD_LOG])
        return np.where(differs, apart + np.finfo(np.float64).tiny, 0.0)

    def closeness(self, teacher: Array, student: Array) -> Scores:
        return {}


JUDGES: Mapping[str, Judge] = {
    "classification": ClassJudge(),
    "regression": ValueJudge(),
    "token_classification": TagJudge(),
    "mlm": PieceJudge(),
    "text_to_text": PieceJudge(),
}


def judge_of(labels: Labels) -> Judge:
    """Who judges the answers to a task, or to several."""
    return TasksJudge() if labels.tasks else JUDGES[labels.kind]


def check_ids(labels: Labels, ids: NDArray[np.int64]) -> None:
    """Raises DataError for a class that the labels do not have."""
    if labels.names and (ids.min() < 0 or ids.max() >= labels.num_labels):
        raise DataError(f"class ids {ids.min()} to {ids.max()} do not fit the {labels.num_labels} labels")


def numbers(answers: Array) -> NDArray[np.float64]:
    """The answers of a regression."""
    return answers[:, 0].astype(np.float64)


def kl_divergence(teacher: Array, student: Array) -> NDArray[np.float64]:
    """KL(teacher || student) of each answer, never negative."""
    left, right = log_softmax(teacher), log_softmax(student)
    divergence: NDArray[np.float64] = (np.exp(left) * (left - right)).sum(axis=-1)
    return np.maximum(divergence, 0.0)


def _mcc(gold: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """Matthews correlation; 0 where gold and answers are all one class (scikit-learn warns there)."""
    if (gold == gold[0]).all() and (predicted == gold[0]).all():
        return 0.0
    return float(matthews_corrcoef(gold, predicted))


def _counts(row_N: Array, class_N: Array, rows: int, classes: int) -> NDArray[np.float64]:
    """`[rows, classes]` how often each class stands in each row."""
    flat = np.bincount(row_N * classes + class_N, minlength=rows * classes)
    return flat.reshape(rows, classes).astype(np.float64)


def _entity_counts(labels: Labels, gold: Array, predicted: Array) -> NDArray[np.float64]:
    """`[n, 3]` entities of each row: in both, predicted, gold."""
    counts = []
    for row in np.split(np.arange(len(gold)), np.flatnonzero(np.diff(gold[:, 1])) + 1):
        told, right = (
            set(get_entities([labels.names[tag] for tag in tags[row]])) for tags in (predicted, gold[:, 0])
        )
        counts.append((len(told & right), len(told), len(right)))
    return np.asarray(counts, dtype=np.float64)
