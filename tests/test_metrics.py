"""The bootstrap against full resampling loops with scikit-learn and scipy, and against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from distillkit.metrics import (
    class_metrics,
    interval,
    resample_classes,
    resample_values,
    value_metrics,
)


def _classes(n: int, num_classes: int, accuracy: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    gold = rng.choice(num_classes, size=n, p=rng.dirichlet(np.full(num_classes, 2.0)))
    return gold, np.where(rng.random(n) < accuracy, gold, rng.integers(0, num_classes, n))


@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_class_metrics_from_counts_are_scikit_learns(num_classes: int) -> None:
    gold, answers = _classes(150, num_classes, 0.6, seed=num_classes)
    table = sk.confusion_matrix(gold, answers, labels=np.arange(num_classes)).astype(float)
    ours = class_metrics(np.diag(table)[None], table.sum(axis=1)[None], table.sum(axis=0)[None])
    assert ours["accuracy"][0] == pytest.approx(sk.accuracy_score(gold, answers), abs=1e-12)
    assert ours["macro_f1"][0] == pytest.approx(sk.f1_score(gold, answers, average="macro"), abs=1e-12)
    assert ours["mcc"][0] == pytest.approx(sk.matthews_corrcoef(gold, answers), abs=1e-12)


def test_macro_f1_leaves_out_a_class_that_nobody_names() -> None:
    """As scikit-learn does; otherwise the interval would lie below the value on rows without the class."""
    hits, gold, answers = np.array([[[3.0, 2.0, 0.0]], [[4.0, 2.0, 0.0]], [[3.0, 3.0, 0.0]]])
    ours = class_metrics(hits, gold, answers)
    assert ours["macro_f1"][0] == pytest.approx((6 / 7 + 4 / 5) / 2)


def test_class_resamples_are_distributed_as_a_loop_over_resampled_rows() -> None:
    """One multinomial draw over cells must be distributed as rows drawn with replacement."""
    gold, answers = _classes(120, 3, 0.7, seed=0)
    ours = resample_classes(gold, answers[None], 3, seed=1, resamples=4000)
    rng = np.random.default_rng(2)
    loop: dict[str, list[float]] = {"accuracy": [], "macro_f1": [], "mcc": []}
    for _ in range(400):
        rows = rng.integers(0, len(gold), len(gold))
        loop["accuracy"].append(float((gold[rows] == answers[rows]).mean()))
        loop["macro_f1"].append(float(sk.f1_score(gold[rows], answers[rows], average="macro")))
        loop["mcc"].append(float(sk.matthews_corrcoef(gold[rows], answers[rows])))
    for name, values in loop.items():
        assert stats.ks_2samp(ours[name][0], values).pvalue > 1e-3, name


def test_accuracy_interval_is_close_to_the_binomial_one() -> None:
    gold = np.zeros(2000, dtype=np.int64)
    answers = np.zeros(2000, dtype=np.int64)
    answers[:500] = 1
    measured = interval(
        0.75, resample_classes(gold, answers[None], 2, seed=3, resamples=4000)["accuracy"][0], 2000
    )
    half = 1.96 * math.sqrt(0.75 * 0.25 / 2000)
    assert measured.low == pytest.approx(0.75 - half, abs=0.1 * half)
    assert measured.high == pytest.approx(0.75 + half, abs=0.1 * half)
    assert (measured.value, measured.n) == (0.75, 2000)


def test_models_share_their_resamples_so_that_a_difference_is_paired() -> None:
    gold, answers = _classes(300, 4, 0.7, seed=4)
    same = resample_classes(gold, np.stack([answers, answers]), 4, seed=5, resamples=50)
    for values in same.values():
        np.testing.assert_array_equal(values[0], values[1])
    noise = gold + np.random.default_rng(6).normal(size=300)
    pair = resample_values(gold.astype(float), np.stack([noise, noise]), seed=5, resamples=50)
    for values in pair.values():
        np.testing.assert_array_equal(values[0], values[1])


def test_value_resamples_equal_scipy_on_the_repeated_rows() -> None:
    """Row weights must mean what repeating the rows means, ties included."""
    rng = np.random.default_rng(7)
    gold = rng.integers(0, 6, 40).astype(float)
    answers = gold + rng.integers(-2, 3, 40)
    weights = np.stack([np.bincount(rng.integers(0, 40, 40), minlength=40) for _ in range(20)]).astype(float)
    ours = value_metrics(gold, answers)(weights)
    for index, row in enumerate(weights.astype(int)):
        left, right = np.repeat(gold, row), np.repeat(answers, row)
        assert ours["pearson"][index] == pytest.approx(stats.pearsonr(left, right).statistic, abs=1e-10)
        assert ours["spearman"][index] == pytest.approx(stats.spearmanr(left, right).statistic, abs=1e-10)
        assert ours["mse"][index] == pytest.approx(sk.mean_squared_error(left, right), abs=1e-10)


def test_value_resamples_are_distributed_as_a_loop_over_resampled_rows() -> None:
    rng = np.random.default_rng(8)
    gold = rng.normal(size=80)
    answers = gold + rng.normal(size=80)
    ours = resample_values(gold, answers[None], seed=9, resamples=3000)
    rows = rng.integers(0, 80, (1000, 80))
    pearson = [stats.pearsonr(gold[row], answers[row]).statistic for row in rows]
    spearman = [stats.spearmanr(gold[row], answers[row]).statistic for row in rows]
    assert stats.ks_2samp(ours["pearson"][0], pearson).pvalue > 1e-3
    assert stats.ks_2samp(ours["spearman"][0], spearman).pvalue > 1e-3


def test_pearson_keeps_its_digits_far_from_zero() -> None:
    rng = np.random.default_rng(10)
    gold = 1e6 + rng.normal(size=200)
    answers = gold + rng.normal(size=200)
    ours = value_metrics(gold, answers)(np.ones((1, 200)))["pearson"][0]
    assert ours == pytest.approx(stats.pearsonr(gold, answers).statistic, abs=1e-9)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e30])
def test_correlation_with_a_constant_is_zero_without_a_warning(constant: float) -> None:
    gold = np.arange(30.0)
    values = value_metrics(gold, np.full(30, constant))(np.ones((2, 30)))
    assert values["pearson"].tolist() == values["spearman"].tolist() == [0.0, 0.0]


def test_chunks_do_not_lose_or_repeat_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    gold, answers = _classes(50, 3, 0.5, seed=11)
    monkeypatch.setattr("distillkit.metrics._CELLS_PER_CHUNK", 30)
    values = resample_classes(gold, answers[None], 3, seed=12, resamples=101)["accuracy"][0]
    assert values.shape == (101,)
    assert len(np.unique(np.round(values * 50))) > 5
    assert resample_values(gold.astype(float), answers[None].astype(float), seed=1, resamples=7)[
        "mse"
    ].shape == (1, 7)


def test_the_seed_alone_decides_the_interval() -> None:
    gold, answers = _classes(90, 3, 0.5, seed=13)
    draws = [resample_classes(gold, answers[None], 3, seed=seed, resamples=20)["mcc"] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
