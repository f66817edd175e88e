"""From a model to numbers: predictions in row order, metrics with intervals, what two models share.

Classification metrics are scikit-learn's (accuracy, macro-F1, Matthews correlation); regression has
Pearson, Spearman and the mean squared error; what each kind of task is judged by stands in
`distillkit.judging`. Every interval is a 95 % bootstrap over rows (see `distillkit.metrics`, also for what
degenerate inputs give).

gold is `[n]`, a label of each row, or `[N, 2]`, label and row of each answer (`Encoded.gold`); answers are
what `distillkit.answers` keeps: logits `[n, V]` (V = 1 for regression), or three numbers of each answer over
a vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import Tensor

from distillkit.answers import Keep, collect, logits
from distillkit.data.batching import Encoded
from distillkit.errors import DataError
from distillkit.judging import Judge, judge_of, log_softmax, rows_of_tasks
from distillkit.metrics import Baseline, Calibration, ClassScore, Measured, ReliabilityBin, interval
from distillkit.settings import Labels
from distillkit.types import Batch, Outputs

Array = NDArray[Any]
_CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Verdict:
    """Whether a model beats the constant answer beyond noise, the interval that decided it, and words."""

    passes: bool
    advantage: Measured
    sentence: str


def default_metric(labels: Labels) -> str:
    """The metric that chooses weights and leads the report where the recipe names none."""
    return judge_of(labels).metrics(labels)[0]


def predict(
    model_outputs: Callable[[Batch], Outputs],
    encoded: Encoded,
    *,
    keep: Keep = logits,
    tokens: int = 4096,
    device: torch.device,
) -> NDArray[np.float32]:
    """What is kept of every answer, in row order: `[n, V]` logits unless `keep` says otherwise.

    Rows run longest first in batches of at most `tokens` tokens, padding included, without gradients; putting
    the model into eval mode is the caller's part. Raises ModelError where the logits are not one row per
    answer, DivergedError where one is not finite, DataError where there are no rows.
    """

    def forward(batch: Batch) -> Tensor:  # what is right, a model that is measured must not know
        return model_outputs(replace(batch, labels=None).to(device)).logits.float()

    return collect(forward, encoded, keep, tokens=tokens)


def score(
    labels: Labels, gold: Array, answers: Array, *, seed: int, resamples: int = 1000
) -> dict[str, Measured]:
    """The task's metrics by name, each with its 95 % bootstrap interval.

    Raises DivergedError where an answer is not finite, ModelError where the shape does not fit the labels,
    DataError where there are no rows.
    """
    (plain,), resampled = _scored(labels, gold, [answers], seed, resamples)
    n = judge_of(labels).num_rows(gold)
    return {name: interval(plain[name], resampled[name][0], n) for name in plain}


def values(labels: Labels, gold: Array, answers: Array) -> dict[str, float]:
    """The task's metrics by name, without intervals. Errors as in `score`."""
    return _values(labels, gold, [answers])[0]


def compare_scores(
    labels: Labels, gold: Array, first: Array, second: Array, *, seed: int, resamples: int = 1000
) -> dict[str, Measured]:
    """Metrics of `first` minus those of `second` on the same rows, with paired bootstrap intervals.

    An interval that holds 0 means that the rows do not tell the two apart. Errors as in `score`.
    """
    (one, two), resampled = _scored(labels, gold, [first, second], seed, resamples)
    n = judge_of(labels).num_rows(gold)
    return {name: interval(one[name] - two[name], resampled[name][0] - resampled[name][1], n) for name in one}


def majority(labels: Labels, train_gold: Array, gold: Array) -> Baseline:
    """The constant answer that the training rows suggest (the most frequent class, the mean target, how often
    each entry of the vocabulary occurs), scored on `gold`."""
    constant = _constant(labels, train_gold, gold)
    metrics = values(labels, gold, constant)
    return Baseline(answer=judge_of(labels).said(labels, constant), metrics=metrics)


def better_than_majority(
    labels: Labels, train_gold: Array, gold: Array, answers: Array, *, seed: int, resamples: int = 1000
) -> Verdict:
    """Whether a model beats the constant answer beyond noise: the gate that a teacher must pass.

    Beats means that the whole 95 % interval of the paired difference lies above 0: accuracy (entity F1 where
    tags begin entities) minus the constant answer's, or, for regression, the mean squared error that the
    model saves over answering the training mean.
    """
    constant = _constant(labels, train_gold, gold)
    name = judge_of(labels).gate(labels)
    model, plain = (constant, answers) if name == "mse" else (answers, constant)
    advantage = compare_scores(labels, gold, model, plain, seed=seed, resamples=resamples)[name]
    scores, passes = _values(labels, gold, [answers, constant]), advantage.low > 0
    sentence = (
        f"{name} {scores[0][name]:.4f} against {scores[1][name]:.4f} of the constant answer "
        f"on {advantage.n} rows: {'better' if passes else 'no better'}"
        f" beyond noise (95 % interval of the advantage {advantage.low:+.4f} to {advantage.high:+.4f})"
    )
    return Verdict(passes=passes, advantage=advantage, sentence=sentence)


def by_task(
    labels: Labels, *golds: Array, answers: Array
) -> Iterator[tuple[str, Labels, list[Array], Array]]:
    """Each of several tasks: its name, its labels, its part of each gold array, and what is answered to the
    rows of the last of these. A single task has no name.
    """
    if not labels.tasks:
        yield "", labels, list(golds), answers
    rows = [rows_of_tasks(labels, gold) for gold in golds]
    for task, columns in labels.columns.items():
        own = [gold[part[task]] - columns.start for gold, part in zip(golds, rows, strict=True)]
        yield task, labels.of(task), own, answers[rows[-1][task]][:, columns]


def agreement(labels: Labels, teacher: Array, student: Array) -> dict[str, float]:
    """How alike two models answer, whatever is right.

    Classes, tags and masked tokens: `same` (share of equal predictions), `kappa` (Cohen 1960, agreement
    beyond chance; 1 where both give one and the same class throughout), and, but for masked tokens, `kl`
    (mean KL(teacher || student) in nats). Regression: `pearson` of the answers and their
    `mean_abs_difference`.
    """
    judge = _checked(labels, teacher, student)
    first, second = judge.classes(teacher), judge.classes(student)
    if first is None or second is None:
        return judge.closeness(teacher, student)
    same = float((first == second).mean())
    return {"same": same, "kappa": _kappa(first, second), **judge.closeness(teacher, student)}


def disagreements(labels: Labels, teacher: Array, student: Array, *, limit: int) -> NDArray[np.int64]:
    """Answers that differ between the two models, the strongest disagreement first, at most `limit`.

    Classes and tags: by KL(teacher || student); regression: by absolute difference; masked tokens: by the
    difference of what they think of the right one.
    """
    strength = _checked(labels, teacher, student).strength(teacher, student)
    order = np.argsort(-strength, kind="stable")[:limit]
    rows: NDArray[np.int64] = order[strength[order] > 0]
    return rows


def outcomes(labels: Labels, gold: Array, teacher: Array, student: Array) -> dict[str, int]:
    """Answers that both models get right, one of them, or neither; empty where answers are numbers."""
    judge = _checked(labels, teacher, student)
    first, second = judge.classes(teacher), judge.classes(student)
    if first is None or second is None:
        return {}
    taught, learned = first == _ids(gold), second == _ids(gold)
    return {
        "both right": int((taught & learned).sum()),
        "only the teacher right": int((taught & ~learned).sum()),
        "only the student right": int((~taught & learned).sum()),
        "both wrong": int((~taught & ~learned).sum()),
    }


def probabilities(logits: Array) -> NDArray[np.float64]:
    """Softmax over the last axis in float64, without overflow."""
    return np.exp(log_softmax(logits))


def calibration(
    labels: Labels, gold: Array, answers: Array, *, bins: int = _CALIBRATION_BINS
) -> Calibration | None:
    """Expected calibration error of the predicted class (Guo et al. 2017, section 2) over equal-width bins;
    None where answers are numbers. A bin holds its upper edge.
    """
    judge = judge_of(labels)
    predicted = judge.classes(answers)
    if predicted is None:
        return None
    confidence_n, hit_n = judge.confidence(answers), predicted == _ids(gold)
    edges = np.linspace(0.0, 1.0, bins + 1)
    bin_n = np.clip(np.searchsorted(edges, confidence_n, side="left") - 1, 0, bins - 1)
    filled = []
    for index in np.unique(bin_n):
        inside = bin_n == index
        filled.append(
            ReliabilityBin(
                low=float(edges[index]),
                high=float(edges[index + 1]),
                count=int(inside.sum()),
                confidence=float(confidence_n[inside].mean()),
                accuracy=float(hit_n[inside].mean()),
            )
        )
    ece = sum(entry.count * abs(entry.confidence - entry.accuracy) for entry in filled) / len(gold)
    return Calibration(ece=float(ece), bins=tuple(filled))


def confusion(labels: Labels, gold: Array, answers: Array) -> NDArray[np.int64]:
    """Counts `[V, V]`: row is the gold class, column the predicted one, both in id order."""
    judge_of(labels).check(labels, answers, len(gold))
    ids = np.arange(labels.num_labels)
    counts: NDArray[np.int64] = confusion_matrix(_ids(gold), answers.argmax(axis=1), labels=ids)
    return counts.astype(np.int64)


def per_class(labels: Labels, gold: Array, answers: Array) -> tuple[ClassScore, ...]:
    """Precision, recall, F1 and support of every class in id order."""
    judge_of(labels).check(labels, answers, len(gold))
    columns = precision_recall_fscore_support(
        _ids(gold), answers.argmax(axis=1), labels=np.arange(labels.num_labels), zero_division=0.0
    )
    return tuple(
        ClassScore(name, float(precision), float(recall), float(f1), int(support))
        for name, precision, recall, f1, support in zip(labels.names, *columns, strict=True)
    )


def _scored(
    labels: Labels, gold: Array, answers: list[Array], seed: int, resamples: int
) -> tuple[list[dict[str, float]], dict[str, NDArray[np.float64]]]:
    """Metrics of each model, and their resamples `[M, R]` by name."""
    plain = _values(labels, gold, answers)
    judge = judge_of(labels)
    return plain, judge.resample(labels, gold, answers, seed=seed, resamples=resamples)


def _values(labels: Labels, gold: Array, answers: list[Array]) -> list[dict[str, float]]:
    judge = judge_of(labels)
    for one in answers:
        judge.check(labels, one, len(gold))
    return [judge.values(labels, gold, one) for one in answers]


def _checked(labels: Labels, teacher: Array, student: Array) -> Judge:
    judge = judge_of(labels)
    judge.check(labels, teacher, len(student))
    judge.check(labels, student, len(teacher))
    return judge


def _ids(gold: Array) -> NDArray[np.int64]:
    """The label of each answer."""
    return gold.astype(np.int64) if gold.ndim == 1 else gold[:, 0]


def _constant(labels: Labels, train_gold: Array, gold: Array) -> Array:
    if len(train_gold) == 0:
        raise DataError("there are no training rows to take the majority from")
    if len(gold) == 0:
        raise DataError("there are no rows to score")
    return judge_of(labels).constant(labels, train_gold, gold)


def _kappa(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """Cohen's kappa from the marginals, however many classes there are."""
    same, n = float((first == second).mean()), len(first)
    if same == 1.0:
        return 1.0
    width = int(max(first.max(), second.max())) + 1
    one, two = (np.bincount(ids, minlength=width) / n for ids in (first, second))
    chance = float(one @ two)
    return (same - chance) / (1 - chance)
