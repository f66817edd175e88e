"""From a model to numbers: predictions in row order, metrics with intervals, what two models share.

Classification metrics are scikit-learn's (accuracy, macro-F1, Matthews correlation); regression has
Pearson, Spearman and the mean squared error. Every interval is a 95 % bootstrap over rows (see
`distillkit.metrics`, also for what degenerate inputs give).

Shapes: n rows, V classes (1 for regression).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    f1_score,
    matthews_corrcoef,
    precision_recall_fscore_support,
)

from distillkit.data.batching import Encoded, collate, sequential_batches
from distillkit.errors import DataError, DivergedError, ModelError
from distillkit.metrics import (
    METRICS,
    Baseline,
    Calibration,
    ClassScore,
    Measured,
    ReliabilityBin,
    interval,
    resample_classes,
    resample_values,
    value_metrics,
)
from distillkit.settings import Labels
from distillkit.types import Batch, Outputs

Array = NDArray[Any]
_CALIBRATION_BINS = 15

DEFAULT_METRIC = {kind: names[0] for kind, names in METRICS.items()}
"""The metric that chooses weights and leads the report where the recipe names none."""


@dataclass(frozen=True)
class Verdict:
    """Whether a model beats the constant answer beyond noise, the interval that decided it, and words."""

    passes: bool
    advantage: Measured
    sentence: str


def predict(
    model_outputs: Callable[[Batch], Outputs],
    encoded: Encoded,
    *,
    tokens: int = 4096,
    device: torch.device,
) -> NDArray[np.float32]:
    """Logits `[n, V]` of every row, in row order.

    Rows run longest first in batches of at most `tokens` tokens, padding included, without gradients; putting
    the model into eval mode is the caller's part. Only logits are kept, on the CPU. Raises ModelError where
    the logits are not one row per example, DivergedError where one is not finite, DataError where there are
    no rows.
    """
    logits_nV: NDArray[np.float32] | None = None
    with torch.inference_mode():
        for rows in sequential_batches(encoded.lengths, tokens=tokens):
            answer = model_outputs(collate(encoded, rows).to(device)).logits.float().cpu().numpy()
            if answer.ndim != 2 or answer.shape[0] != len(rows):
                raise ModelError(f"the model gave logits of shape {list(answer.shape)} for {len(rows)} rows")
            if not np.isfinite(answer).all():
                bad = encoded.ids[rows[~np.isfinite(answer).all(axis=1)]]
                raise DivergedError(f"the model gives NaN or infinity (example ids {bad.tolist()[:8]})")
            if logits_nV is None:
                logits_nV = np.empty((len(encoded), answer.shape[1]), dtype=np.float32)
            logits_nV[rows] = answer
    if logits_nV is None:
        raise DataError("there are no rows to predict")
    return logits_nV


def score(
    labels: Labels, gold: Array, logits: Array, *, seed: int, resamples: int = 1000
) -> dict[str, Measured]:
    """The task's metrics by name, each with its 95 % bootstrap interval.

    gold: `[n]` class ids or targets; logits: `[n, V]`. Raises DivergedError where a logit is not finite,
    ModelError where the shape does not fit the labels, DataError where there are no rows.
    """
    (plain,), resampled = _scored(labels, gold, [logits], seed, resamples)
    return {name: interval(plain[name], resampled[name][0], len(gold)) for name in plain}


def values(labels: Labels, gold: Array, logits: Array) -> dict[str, float]:
    """The task's metrics by name, without intervals. Errors as in `score`."""
    return _values(labels, gold, [logits])[0]


def compare_scores(
    labels: Labels, gold: Array, first: Array, second: Array, *, seed: int, resamples: int = 1000
) -> dict[str, Measured]:
    """Metrics of `first` minus those of `second` on the same rows, with paired bootstrap intervals.

    An interval that holds 0 means that the rows do not tell the two apart. Errors as in `score`.
    """
    (one, two), resampled = _scored(labels, gold, [first, second], seed, resamples)
    return {
        name: interval(one[name] - two[name], resampled[name][0] - resampled[name][1], len(gold))
        for name in one
    }


def majority(labels: Labels, train_gold: Array, gold: Array) -> Baseline:
    """The most frequent training class (ties: the first), or the mean training target, scored on `gold`."""
    constant = _constant_logits(labels, train_gold, len(gold))
    metrics = values(labels, gold, constant)
    if labels.kind == "classification":
        return Baseline(answer=labels.names[int(constant[0].argmax())], metrics=metrics)
    return Baseline(answer=f"{float(constant[0, 0]):.4g}", metrics=metrics)


def better_than_majority(
    labels: Labels, train_gold: Array, gold: Array, logits: Array, *, seed: int, resamples: int = 1000
) -> Verdict:
    """Whether a model beats the constant answer beyond noise: the gate that a teacher must pass.

    Beats means that the whole 95 % interval of the paired difference lies above 0: accuracy minus the
    majority's, or, for regression, the mean squared error that the model saves over answering the
    training mean.
    """
    constant = _constant_logits(labels, train_gold, len(gold))
    if labels.kind == "classification":
        name, (model, plain) = "accuracy", (logits, constant)
    else:
        name, (model, plain) = "mse", (constant, logits)
    advantage = compare_scores(labels, gold, model, plain, seed=seed, resamples=resamples)[name]
    scores, passes = _values(labels, gold, [logits, constant]), advantage.low > 0
    sentence = (
        f"{name} {scores[0][name]:.4f} against {scores[1][name]:.4f} of the constant answer "
        f"on {len(gold)} rows: {'better' if passes else 'no better'}"
        f" beyond noise (95 % interval of the advantage {advantage.low:+.4f} to {advantage.high:+.4f})"
    )
    return Verdict(passes=passes, advantage=advantage, sentence=sentence)


def agreement(labels: Labels, teacher: Array, student: Array) -> dict[str, float]:
    """How alike two models answer, whatever is right.

    Classification: `same` (share of equal predictions), `kappa` (Cohen 1960, agreement beyond chance; 1
    where both give one and the same class throughout), `kl` (mean KL(teacher || student) in nats).
    Regression: `pearson` of the answers and their `mean_abs_difference`.
    """
    _check(labels, teacher, len(student))
    _check(labels, student, len(teacher))
    if labels.kind == "regression":
        left, right = _targets(teacher), _targets(student)
        pearson = value_metrics(left, right)(np.ones((1, len(left))))["pearson"]
        return {"pearson": float(pearson[0]), "mean_abs_difference": float(np.abs(left - right).mean())}
    first, second = teacher.argmax(axis=1), student.argmax(axis=1)
    return {
        "same": float((first == second).mean()),
        "kappa": _kappa(first, second),
        "kl": float(_kl(teacher, student).mean()),
    }


def disagreements(labels: Labels, teacher: Array, student: Array, *, limit: int) -> NDArray[np.int64]:
    """Rows where the two models answer differently, the strongest disagreement first, at most `limit`.

    Classification: rows with different predictions, by KL(teacher || student); regression: by absolute
    difference.
    """
    if labels.kind == "regression":
        strength = np.abs(_targets(teacher) - _targets(student))
    else:
        differs = teacher.argmax(axis=1) != student.argmax(axis=1)
        strength = np.where(differs, _kl(teacher, student) + np.finfo(np.float64).tiny, 0.0)
    order = np.argsort(-strength, kind="stable")[:limit]
    rows: NDArray[np.int64] = order[strength[order] > 0]
    return rows


def outcomes(gold: Array, teacher: Array, student: Array) -> dict[str, int]:
    """Rows that both models get right, one of them, or neither."""
    taught, learned = teacher.argmax(axis=1) == gold, student.argmax(axis=1) == gold
    return {
        "both right": int((taught & learned).sum()),
        "only the teacher right": int((taught & ~learned).sum()),
        "only the student right": int((~taught & learned).sum()),
        "both wrong": int((~taught & ~learned).sum()),
    }


def probabilities(logits: Array) -> NDArray[np.float64]:
    """Softmax over the last axis in float64, without overflow."""
    return np.exp(_log_softmax(logits))


def calibration(gold: Array, logits: Array, *, bins: int = _CALIBRATION_BINS) -> Calibration:
    """Expected calibration error of the predicted class (Guo et al. 2017, section 2) over equal-width bins.

    gold: `[n]` class ids; logits: `[n, V]`. A bin holds its upper edge.
    """
    probability = probabilities(logits)
    confidence_n, hit_n = probability.max(axis=1), probability.argmax(axis=1) == gold
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


def confusion(labels: Labels, gold: Array, logits: Array) -> NDArray[np.int64]:
    """Counts `[V, V]`: row is the gold class, column the predicted one, both in id order."""
    _check(labels, logits, len(gold))
    ids = np.arange(labels.num_labels)
    counts: NDArray[np.int64] = confusion_matrix(gold, logits.argmax(axis=1), labels=ids).astype(np.int64)
    return counts


def per_class(labels: Labels, gold: Array, logits: Array) -> tuple[ClassScore, ...]:
    """Precision, recall, F1 and support of every class in id order."""
    _check(labels, logits, len(gold))
    columns = precision_recall_fscore_support(
        gold, logits.argmax(axis=1), labels=np.arange(labels.num_labels), zero_division=0.0
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
    if labels.kind == "regression":
        series = np.stack([_targets(logits) for logits in answers])
        return plain, resample_values(gold.astype(np.float64), series, seed=seed, resamples=resamples)
    predicted = np.stack([logits.argmax(axis=1) for logits in answers])
    ids = gold.astype(np.int64)
    return plain, resample_classes(ids, predicted, labels.num_labels, seed=seed, resamples=resamples)


def _values(labels: Labels, gold: Array, answers: list[Array]) -> list[dict[str, float]]:
    for logits in answers:
        _check(labels, logits, len(gold))
    if labels.kind == "regression":
        targets, ones = gold.astype(np.float64), np.ones((1, len(gold)))
        return [
            {name: float(value[0]) for name, value in value_metrics(targets, _targets(logits))(ones).items()}
            for logits in answers
        ]
    ids = gold.astype(np.int64)
    if ids.min() < 0 or ids.max() >= labels.num_labels:
        raise DataError(f"class ids {ids.min()} to {ids.max()} do not fit the {labels.num_labels} labels")
    return [_class_scores(ids, logits.argmax(axis=1)) for logits in answers]


def _targets(logits: Array) -> NDArray[np.float64]:
    return logits[:, 0].astype(np.float64)


def _class_scores(gold: NDArray[np.int64], predicted: NDArray[np.int64]) -> dict[str, float]:
    return {
        "accuracy": float(accuracy_score(gold, predicted)),
        "macro_f1": float(f1_score(gold, predicted, average="macro", zero_division=0.0)),
        "mcc": _mcc(gold, predicted),
    }


def _mcc(gold: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """Matthews correlation; 0 where gold and answers are all one class (scikit-learn warns there)."""
    if (gold == gold[0]).all() and (predicted == gold[0]).all():
        return 0.0
    return float(matthews_corrcoef(gold, predicted))


def _check(labels: Labels, logits: Array, rows: int) -> None:
    if rows == 0:
        raise DataError("there are no rows to score")
    if logits.shape != (rows, labels.num_labels):
        raise ModelError(
            f"the model gave logits of shape {list(logits.shape)}, not {[rows, labels.num_labels]}",
            hint="logits are [rows, classes] in the order of the task's labels, [rows, 1] for regression",
        )
    bad = int((~np.isfinite(logits)).any(axis=1).sum())
    if bad:
        raise DivergedError(f"the model's answers are not finite for {bad} of {rows} rows")


def _constant_logits(labels: Labels, train_gold: Array, rows: int) -> NDArray[np.float64]:
    if len(train_gold) == 0:
        raise DataError("there are no training rows to take the majority from")
    if labels.kind == "regression":
        return np.full((rows, 1), train_gold.astype(np.float64).mean())
    counts = np.bincount(train_gold.astype(np.int64), minlength=labels.num_labels)
    return np.tile(np.eye(labels.num_labels)[counts.argmax()], (rows, 1))


def _kappa(first: Array, second: Array) -> float:
    if (first == second).all():
        return 1.0
    return float(cohen_kappa_score(first, second))


def _log_softmax(logits: Array) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _kl(teacher: Array, student: Array) -> NDArray[np.float64]:
    """KL(teacher || student) per row, never negative."""
    left, right = _log_softmax(teacher), _log_softmax(student)
    divergence: NDArray[np.float64] = (np.exp(left) * (left - right)).sum(axis=-1)
    return np.maximum(divergence, 0.0)
