"""Predictions, scores and decisions against loops, scikit-learn and closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sk

from distillkit import evaluate
from distillkit.data.batching import Encoded
from distillkit.errors import DataError, DivergedError, ModelError
from distillkit.settings import Labels
from distillkit.types import Batch, Outputs

CLASSES = Labels(kind="classification", names=("bad", "fine", "good"))
NUMBERS = Labels(kind="regression")
CPU = torch.device("cpu")


def _logits(answers: np.ndarray, num_classes: int = 3, margin: float = 2.0) -> np.ndarray:
    return (margin * np.eye(num_classes)[answers]).astype(np.float32)


def _task(n: int = 400, accuracy: float = 0.7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Gold ids and the logits of a model that is right about that often."""
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, 3, n)
    return gold, _logits(np.where(rng.random(n) < accuracy, gold, rng.integers(0, 3, n)))


def _encoded(lengths: list[int]) -> Encoded:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows = len(lengths)
    return Encoded(
        tokens=np.arange(offsets[-1], dtype=np.int32) + 5,
        types=np.zeros(offsets[-1], dtype=np.int8),
        offsets=offsets,
        labels=None,
        ids=np.arange(rows, dtype=np.int64),
        texts=(("a",),) * rows,
        pad_id=0,
        truncated=0,
        unknown=0,
        digest="d",
    )


def _token_sums(seen: list[tuple[int, ...]]) -> Callable[[Batch], Outputs]:
    """A model whose logits name the row: (sum of its real tokens, its length)."""

    def outputs(batch: Batch) -> Outputs:
        assert not torch.is_grad_enabled()
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        seen.append(tuple(ids.shape))
        return Outputs(logits=torch.stack([(ids * mask).sum(1), mask.sum(1)], dim=1).double())

    return outputs


def test_predictions_come_back_in_row_order_from_length_sorted_batches() -> None:
    """Rows in batch order instead would score every task at random, silently."""
    lengths = [3, 9, 1, 7, 7, 2, 30, 4]
    encoded, seen = _encoded(lengths), []
    logits = evaluate.predict(_token_sums(seen), encoded, tokens=16, device=CPU)
    expected = [
        (float(encoded.tokens[start:end].sum()), end - start) for start, end in pairwise(encoded.offsets)
    ]
    np.testing.assert_array_equal(logits, np.array(expected, dtype=np.float32))
    assert logits.dtype == np.float32
    assert all(rows * width <= 16 or rows == 1 for rows, width in seen)
    assert len(seen) < len(lengths)


def test_a_model_that_answers_once_for_a_whole_batch_is_refused() -> None:
    """numpy would spread the one answer over all rows."""
    with pytest.raises(ModelError, match=r"\[1, 3\] for 4 answers"):
        evaluate.predict(lambda _: Outputs(logits=torch.zeros(1, 3)), _encoded([2] * 4), device=CPU)


def test_nothing_to_predict_is_an_error() -> None:
    with pytest.raises(DataError, match="no rows"):
        evaluate.predict(_token_sums([]), _encoded([]), device=CPU)


def test_class_scores_are_scikit_learns_inside_their_interval() -> None:
    gold, logits = _task()
    answers = logits.argmax(1)
    scores = evaluate.score(CLASSES, gold, logits, seed=1)
    assert scores["accuracy"].value == sk.accuracy_score(gold, answers)
    assert scores["macro_f1"].value == sk.f1_score(gold, answers, average="macro")
    assert scores["mcc"].value == sk.matthews_corrcoef(gold, answers)
    assert evaluate.values(CLASSES, gold, logits) == {name: one.value for name, one in scores.items()}
    for one in scores.values():
        assert one.low < one.value < one.high
        assert one.n == len(gold)
    assert scores == evaluate.score(CLASSES, gold, logits, seed=1)
    assert scores != evaluate.score(CLASSES, gold, logits, seed=2)


def test_regression_scores_are_scipys() -> None:
    rng = np.random.default_rng(3)
    gold = rng.normal(size=200).astype(np.float32)
    logits = (gold + rng.normal(size=200)).astype(np.float32)[:, None]
    scores = evaluate.score(NUMBERS, gold, logits, seed=0)
    exact = gold.astype(np.float64), logits[:, 0].astype(np.float64)
    assert scores["pearson"].value == pytest.approx(stats.pearsonr(*exact).statistic, abs=1e-12)
    assert scores["spearman"].value == pytest.approx(stats.spearmanr(*exact).statistic, abs=1e-12)
    assert scores["mse"].value == pytest.approx(sk.mean_squared_error(*exact), abs=1e-12)
    assert all(one.low < one.value < one.high for one in scores.values())


@pytest.mark.parametrize(("gold_class", "answer"), [(0, 0), (0, 1)])
def test_one_class_and_constant_answers_have_defined_scores(gold_class: int, answer: int) -> None:
    gold = np.full(20, gold_class)
    scores = evaluate.score(CLASSES, gold, _logits(np.full(20, answer)), seed=0)
    right = float(gold_class == answer)
    assert (scores["accuracy"].value, scores["accuracy"].low, scores["accuracy"].high) == (right,) * 3
    assert scores["macro_f1"].value == right
    assert scores["mcc"].value == scores["mcc"].low == scores["mcc"].high == 0.0


def test_one_row_can_be_scored() -> None:
    assert evaluate.score(CLASSES, np.array([1]), _logits(np.array([1])), seed=0)["accuracy"].high == 1.0
    assert evaluate.score(NUMBERS, np.array([1.0]), np.array([[2.0]]), seed=0)["mse"].value == 1.0


def test_what_cannot_be_scored_is_refused_in_words() -> None:
    gold, logits = _task(10)
    with pytest.raises(ModelError, match=r"\[10, 2\], not \[10, 3\]"):
        evaluate.score(CLASSES, gold, logits[:, :2], seed=0)
    with pytest.raises(DivergedError, match="not finite for 1 of 10 rows"):
        evaluate.score(CLASSES, gold, np.where(np.arange(10)[:, None] == 4, np.nan, logits), seed=0)
    with pytest.raises(DataError, match="no rows"):
        evaluate.score(CLASSES, gold[:0], logits[:0], seed=0)
    with pytest.raises(DataError, match="class ids 0 to 3"):
        evaluate.score(CLASSES, np.where(np.arange(10) == 0, 3, 0), logits, seed=0)


def test_the_interval_of_a_difference_is_paired() -> None:
    """Two models that err on the same rows but a few: an unpaired interval would be far wider."""
    gold, first = _task(1000, 0.7)
    answers = first.argmax(1).copy()
    answers[:10] = (gold[:10] + 1) % 3
    second = _logits(answers)
    difference = evaluate.compare_scores(CLASSES, gold, first, second, seed=0)["accuracy"]
    alone = evaluate.score(CLASSES, gold, first, seed=0)["accuracy"]
    expected = (first.argmax(1) == gold).mean() - (answers == gold).mean()
    assert difference.value == pytest.approx(expected)
    assert difference.high - difference.low < 0.4 * (alone.high - alone.low)
    per_row = (first.argmax(1) == gold).astype(float) - (answers == gold)
    half = 1.96 * per_row.std() / math.sqrt(1000)
    assert difference.low == pytest.approx(expected - half, abs=0.3 * half)


def test_a_model_against_itself_differs_by_exactly_nothing() -> None:
    gold, logits = _task()
    for one in evaluate.compare_scores(CLASSES, gold, logits, logits, seed=0).values():
        assert (one.value, one.low, one.high) == (0.0, 0.0, 0.0)


def test_the_majority_comes_from_train_and_is_scored_on_the_other_rows() -> None:
    baseline = evaluate.majority(CLASSES, np.array([2, 2, 1]), np.array([1, 1, 1, 2]))
    assert baseline.answer == "good"
    assert baseline.metrics["accuracy"] == 0.25
    assert baseline.metrics["mcc"] == 0.0


def test_the_constant_answer_of_regression_is_the_training_mean() -> None:
    baseline = evaluate.majority(NUMBERS, np.array([1.0, 3.0]), np.array([1.0, 2.0]))
    assert (baseline.answer, baseline.metrics) == ("2", {"pearson": 0.0, "spearman": 0.0, "mse": 0.5})


@pytest.mark.parametrize(("accuracy", "passes"), [(0.0, False), (0.05, False), (0.6, True)])
def test_a_teacher_must_beat_the_majority_beyond_noise(accuracy: float, passes: bool) -> None:
    gold, logits = _task(300, accuracy, seed=5)
    verdict = evaluate.better_than_majority(CLASSES, gold, gold, logits, seed=0)
    assert verdict.passes is passes
    assert ("no better" in verdict.sentence) is not passes
    assert "on 300 rows" in verdict.sentence


def test_the_gate_of_regression_is_the_error_saved_over_the_mean() -> None:
    rng = np.random.default_rng(6)
    gold = rng.normal(size=200)
    close, noise = (gold + 0.3 * rng.normal(size=200))[:, None], rng.normal(size=(200, 1))
    assert evaluate.better_than_majority(NUMBERS, gold, gold, close, seed=0).passes
    assert not evaluate.better_than_majority(NUMBERS, gold, gold, noise, seed=0).passes


def test_agreement_is_share_kappa_and_kl() -> None:
    rng = np.random.default_rng(7)
    teacher, student = rng.normal(size=(2, 50, 3))
    found = evaluate.agreement(CLASSES, teacher, student)
    answers = teacher.argmax(1), student.argmax(1)
    assert found["same"] == (answers[0] == answers[1]).mean()
    assert found["kappa"] == pytest.approx(sk.cohen_kappa_score(*answers))
    left, right = (torch.from_numpy(side).log_softmax(-1) for side in (teacher, student))
    kl = torch.nn.functional.kl_div(right, left, log_target=True, reduction="batchmean")
    assert found["kl"] == pytest.approx(float(kl))


def test_agreement_with_itself_is_perfect_even_with_one_class() -> None:
    logits = _logits(np.zeros(8, dtype=int))
    assert evaluate.agreement(CLASSES, logits, logits) == {"same": 1.0, "kappa": 1.0, "kl": 0.0}
    numbers = np.arange(5.0)[:, None]
    assert evaluate.agreement(NUMBERS, numbers, numbers + 2) == {
        "pearson": pytest.approx(1.0),
        "mean_abs_difference": 2.0,
    }


def test_outcomes_count_every_row_once() -> None:
    gold = np.array([0, 0, 0, 0])
    found = evaluate.outcomes(CLASSES, gold, _logits(np.array([0, 0, 1, 1])), _logits(np.array([0, 1, 0, 2])))
    assert list(found.values()) == [1, 1, 1, 1]
    assert found["only the teacher right"] == 1


def test_disagreements_are_the_rows_that_differ_the_strongest_first() -> None:
    teacher = _logits(np.array([0, 1, 2, 0]))
    student = teacher.copy()
    student[1], student[3] = [0.1, 0.0, 0.0], [0.0, 9.0, 0.0]
    student[2] = [0.0, 0.0, 50.0]
    assert evaluate.disagreements(CLASSES, teacher, student, limit=5).tolist() == [3, 1]
    assert evaluate.disagreements(CLASSES, teacher, student, limit=1).tolist() == [3]
    assert evaluate.disagreements(CLASSES, teacher, student, limit=0).tolist() == []
    numbers = np.array([[1.0], [5.0], [2.0]])
    moved = np.array([[1.0], [5.1], [-1.0]])
    assert evaluate.disagreements(NUMBERS, numbers, moved, limit=5).tolist() == [2, 1]


def test_calibration_error_equals_a_loop_over_bins() -> None:
    rng = np.random.default_rng(8)
    logits = 2 * rng.normal(size=(500, 3))
    gold = rng.integers(0, 3, 500)
    found = evaluate.calibration(CLASSES, gold, logits)
    probability = torch.from_numpy(logits).softmax(-1).numpy()
    confidence, hit = probability.max(1), probability.argmax(1) == gold
    expected = 0.0
    for index in range(15):
        inside = (confidence > index / 15) & (confidence <= (index + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    assert found.ece == pytest.approx(expected)
    assert sum(entry.count for entry in found.bins) == 500
    assert all(entry.low < entry.confidence <= entry.high for entry in found.bins)


def test_calibration_holds_at_full_confidence_and_large_logits() -> None:
    found = evaluate.calibration(CLASSES, np.array([0, 0]), np.array([[1e4, -1e4], [-1e4, 1e4]]))
    assert found.ece == 0.5
    assert [(entry.count, entry.high) for entry in found.bins] == [(2, 1.0)]


def test_a_bin_holds_its_upper_edge() -> None:
    assert [
        entry.high for entry in evaluate.calibration(CLASSES, np.array([0]), np.zeros((1, 2)), bins=2).bins
    ] == [0.5]


def test_confusion_and_class_scores_keep_classes_that_do_not_occur() -> None:
    gold, logits = np.array([0, 0, 1]), _logits(np.array([0, 1, 1]))
    assert evaluate.confusion(CLASSES, gold, logits).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    rows = evaluate.per_class(CLASSES, gold, logits)
    assert [(row.name, row.support) for row in rows] == [("bad", 2), ("fine", 1), ("good", 0)]
    assert (rows[0].precision, rows[0].recall, rows[1].precision) == (1.0, 0.5, 0.5)
    assert (rows[2].precision, rows[2].recall, rows[2].f1) == (0.0, 0.0, 0.0)
