"""Metric names, the measured value, and the bootstrap behind its interval. numpy only, no torch.

Intervals are percentile bootstrap intervals (Efron and Tibshirani, An Introduction to the Bootstrap,
1993, 13.3) over rows; models scored on the same rows share their resamples, so that a difference of two
models is a paired bootstrap. Resampling n rows with replacement and counting is the same as one
multinomial draw over the distinct rows. For classification a row is its cell (gold, prediction of each
model), so a thousand resamples cost a thousand draws over few cells and are exact for every metric that
is a function of the confusion matrix. For correlations each row keeps its weight. Where a row has several
answers (words, masked tokens), rows are drawn whole, and metrics are functions of sums over rows.

Degenerate inputs have defined values and raise no warning: a correlation or MCC whose denominator is 0
(one class, constant answers) is 0, "no association"; macro-F1 averages over the classes that occur in
gold or in the predictions. An interval of a model without a single error has width 0: the bootstrap
cannot see errors that did not happen.

Shapes: M models, n rows, R resamples, K distinct cells, V classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LOWER_IS_BETTER = frozenset({"mse", "cross_entropy", "perplexity"})
"""Errors and costs; all others are shares or correlations, which end at 1."""

_INTERVAL = (0.025, 0.975)
_CELLS_PER_CHUNK = 200_000
_CONSTANT_VARIANCE = 1e-12


@dataclass(frozen=True)
class Measured:
    """A metric on n rows with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class ClassScore:
    """Precision, recall and F1 of one class; `support` counts its gold rows. Undefined ratios are 0."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class ReliabilityBin:
    """Rows whose highest probability lies in one of the equal-width bins; the last two fields are means."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error and the bins it came from (empty bins are left out)."""

    ece: float
    bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True)
class Baseline:
    """The constant answer that the training rows suggest, and how it scores."""

    answer: str
    metrics: dict[str, float]


def interval(value: float, resampled_R: Floats, n: int) -> Measured:
    """The value with the 2.5 % and 97.5 % quantiles of its resamples."""
    low, high = np.quantile(resampled_R, _INTERVAL)
    return Measured(value=float(value), low=float(low), high=float(high), n=n)


def told_apart(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether all of one lie below all of the other: what several rounds say of two latencies. By chance
    alone that comes to pass for three rounds each in one case of ten, for five in one of 126.
    """
    return max(first) < min(second) or max(second) < min(first)


def resample_classes(
    gold_n: Integers, predicted_Mn: Integers, num_classes: int, *, seed: int, resamples: int
) -> dict[str, Floats]:
    """Accuracy, macro-F1 and MCC of each model on the same resamples: metric -> `[M, R]`."""
    cells, counts = np.unique(np.vstack([gold_n[None], predicted_Mn]), axis=1, return_counts=True)
    one_hot = np.eye(num_classes)
    gold_KV = one_hot[cells[0]]
    total = len(gold_n)
    parts: list[dict[str, Floats]] = []
    for rng, size in _chunks(seed, resamples, counts.size):
        drawn_RK = rng.multinomial(total, counts / total, size=size).astype(np.float64)
        support_RV = drawn_RK @ gold_KV
        rows = []
        for predicted in cells[1:]:
            answered_KV = one_hot[predicted]
            rows.append(class_metrics(drawn_RK @ (gold_KV * answered_KV), support_RV, drawn_RK @ answered_KV))
        parts.append({name: np.stack([row[name] for row in rows]) for name in rows[0]})
    return _join(parts)


def class_metrics(correct_RV: Floats, support_RV: Floats, answered_RV: Floats) -> dict[str, Floats]:
    """Accuracy, macro-F1 and MCC (Gorodkin 2004, R_K), each `[R]`, from hits, gold rows, answers by class."""
    total_R = support_RV.sum(axis=1)
    hits_R = correct_RV.sum(axis=1)
    both_RV = support_RV + answered_RV
    f1_RV = _ratio(2 * correct_RV, both_RV)
    covariance_R = hits_R * total_R - (support_RV * answered_RV).sum(axis=1)
    spread_R = (total_R**2 - (support_RV**2).sum(axis=1)) * (total_R**2 - (answered_RV**2).sum(axis=1))
    return {
        "accuracy": hits_R / total_R,
        "macro_f1": f1_RV.sum(axis=1) / (both_RV > 0).sum(axis=1),
        "mcc": _ratio(covariance_R, np.sqrt(spread_R)),
    }


def resample_values(gold_n: Floats, predicted_Mn: Floats, *, seed: int, resamples: int) -> dict[str, Floats]:
    """Pearson, Spearman and mean squared error of each model on the same resamples: metric -> `[M, R]`."""
    metrics = [value_metrics(gold_n, predicted_n) for predicted_n in predicted_Mn]
    total = len(gold_n)
    parts: list[dict[str, Floats]] = []
    for rng, size in _chunks(seed, resamples, total):
        drawn = rng.integers(0, total, size=(size, total)) + total * np.arange(size)[:, None]
        weights_Rn = (
            np.bincount(drawn.ravel(), minlength=size * total).reshape(size, total).astype(np.float64)
        )
        rows = [metric(weights_Rn) for metric in metrics]
        parts.append({name: np.stack([row[name] for row in rows]) for name in rows[0]})
    return _join(parts)


def value_metrics(gold_n: Floats, predicted_n: Floats) -> Callable[[Floats], dict[str, Floats]]:
    """A function of row weights `[R, n]` that gives Pearson, Spearman and mean squared error, each `[R]`.

    Weights of 1 give the plain metrics. Spearman ranks anew in every resample, with the average rank for
    ties.
    """
    gold_scaled, predicted_scaled = _scaled(gold_n), _scaled(predicted_n)
    gold_ranks, predicted_ranks = _ranker(gold_n), _ranker(predicted_n)
    squared_n = (gold_n - predicted_n) ** 2

    def metrics(weights_Rn: Floats) -> dict[str, Floats]:
        return {
            "pearson": _correlation(weights_Rn, gold_scaled[None], predicted_scaled[None]),
            "spearman": _correlation(weights_Rn, gold_ranks(weights_Rn), predicted_ranks(weights_Rn)),
            "mse": weights_Rn @ squared_n / weights_Rn.sum(axis=1),
        }

    return metrics


def resample_sums(sums_MnK: Floats, *, seed: int, resamples: int) -> Floats:
    """Sums over the rows of each resample, the same rows for each model: `[M, n, K]` -> `[M, R, K]`."""
    total = sums_MnK.shape[1]
    parts = []
    for rng, size in _chunks(seed, resamples, total):
        drawn_Rn = rng.multinomial(total, np.full(total, 1 / total), size=size).astype(np.float64)
        parts.append(drawn_Rn @ sums_MnK)
    return np.concatenate(parts, axis=1)


def entity_f1(sums_R3: Floats) -> Floats:
    """Micro-averaged F1 from the numbers of entities in both, predicted and gold; 0 where there are none."""
    return _ratio(2 * sums_R3[:, 0], sums_R3[:, 1] + sums_R3[:, 2])


def likelihood_metrics(sums_R3: Floats) -> dict[str, Floats]:
    """Accuracy, cross-entropy (nats) and perplexity, each `[R]`, from right answers, their cost and
    answers.
    """
    cost_R = _ratio(sums_R3[:, 1], sums_R3[:, 2])
    return {
        "accuracy": _ratio(sums_R3[:, 0], sums_R3[:, 2]),
        "cross_entropy": cost_R,
        "perplexity": np.exp(cost_R),
    }


def _chunks(seed: int, resamples: int, cells: int) -> Iterator[tuple[np.random.Generator, int]]:
    """One generator for all chunks, and the resamples of each chunk: bounded memory at any number of rows."""
    rng = np.random.Generator(np.random.PCG64(seed))
    size = max(1, _CELLS_PER_CHUNK // cells)
    for start in range(0, resamples, size):
        yield rng, min(size, resamples - start)


def _join(parts: list[dict[str, Floats]]) -> dict[str, Floats]:
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """The quotient, 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def _scaled(values_n: Floats) -> Floats:
    """Centred and scaled to [-1, 1], so that sums of squares keep their digits; a constant becomes 0."""
    centred = values_n - values_n.mean()
    largest = float(np.abs(centred).max())
    constant = largest <= 1e-12 * float(np.abs(values_n).max())
    return np.zeros_like(centred) if constant else centred / largest


def _correlation(weights_Rn: Floats, left_Rn: Floats, right_Rn: Floats) -> Floats:
    """Weighted Pearson correlation of two series in [-1, 1], 0 where one of them is constant."""
    total_R = weights_Rn.sum(axis=1)
    weighted_left, weighted_right = weights_Rn * left_Rn, weights_Rn * right_Rn
    mean_left, mean_right = weighted_left.sum(axis=1) / total_R, weighted_right.sum(axis=1) / total_R
    covariance = _row_dot(weighted_left, right_Rn) / total_R - mean_left * mean_right
    variance = (_row_dot(weighted_left, left_Rn) / total_R - mean_left**2) * (
        _row_dot(weighted_right, right_Rn) / total_R - mean_right**2
    )
    varies = variance > _CONSTANT_VARIANCE**2
    result = np.divide(
        covariance, np.sqrt(np.where(varies, variance, 1.0)), out=np.zeros_like(covariance), where=varies
    )
    clipped: Floats = np.clip(result, -1.0, 1.0)
    return clipped


def _row_dot(left_Rn: Floats, right_Rn: Floats) -> Floats:
    """Sums of products along rows; `right_Rn` may be one row for all."""
    product: Floats = np.einsum("rn,rn->r", left_Rn, np.broadcast_to(right_Rn, left_Rn.shape))
    return product


def _ranker(values_n: Floats) -> Callable[[Floats], Floats]:
    """A function of weights `[R, n]` giving each row's average rank in the weighted sample, in [-1, 1]."""
    _, group_n, counts = np.unique(values_n, return_inverse=True, return_counts=True)
    order = np.argsort(group_n, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])

    def ranks(weights_Rn: Floats) -> Floats:
        grouped = np.add.reduceat(weights_Rn.take(order, axis=1), starts, axis=1)
        middle = np.cumsum(grouped, axis=1) - grouped / 2
        total_R1 = weights_Rn.sum(axis=1, keepdims=True)
        scaled: Floats = (2 * middle / total_R1 - 1).take(group_n, axis=1)
        return scaled

    return ranks
