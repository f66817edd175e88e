"""The sentences say what the figures say, also where the result is bad."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report_sample import bench_row, classification, measured, minimal, regression

from distillkit.metrics import Measured
from distillkit.report import summary
from distillkit.report.facts import RunFacts


def _with_student(accuracy: float, half: float = 0.02) -> RunFacts:
    facts = classification()
    metrics = {**facts.student.metrics, "accuracy": measured(accuracy, half)}
    return replace(facts, student=replace(facts.student, metrics=metrics))


def _with_student_row(**changes: object) -> RunFacts:
    facts = classification()
    return replace(facts, bench=(*facts.bench[:3], replace(facts.bench[3], **changes)))


def test_the_result_is_one_sentence_with_quality_size_and_speed() -> None:
    assert summary.headline(classification()) == (
        "The student keeps 97.1 % of the teacher’s accuracy (0.842 vs 0.867), is 2.5× smaller "
        "and 3.9× faster at batch 1, length 64 in ONNX Runtime on CPU."
    )


def test_without_measurements_the_sentence_speaks_of_parameters() -> None:
    assert summary.headline(replace(classification(), bench=())) == (
        "The student keeps 97.1 % of the teacher’s accuracy (0.842 vs 0.867) and has 2.5× fewer parameters."
    )


def test_a_student_that_is_slower_or_larger_is_called_so() -> None:
    slow = bench_row("student", "onnxruntime", 8.4, 90_000_000, 4_390_000, 0.842)
    facts = replace(classification(), bench=(*classification().bench[:3], slow))
    assert "is 2.0× larger and 2.0× slower at batch 1, length 64" in summary.headline(facts)
    assert "The exported student is slower than PyTorch" in summary.warnings(facts)[0]


def test_equal_speed_is_not_called_faster() -> None:
    same = bench_row("student", "onnxruntime", 4.2, 17_000_000, 4_390_000, 0.842)
    facts = replace(classification(), bench=(*classification().bench[:3], same))
    assert "and as fast as the teacher at batch 1" in summary.headline(facts)


def test_unknown_sizes_on_disk_fall_back_to_parameters_and_stay_grammatical() -> None:
    facts = _with_student_row(size_bytes=None)
    assert "has 2.5× fewer parameters and is 3.9× faster at" in summary.headline(facts)


def test_a_student_above_its_teacher_is_not_said_to_keep_a_share() -> None:
    better = replace(_with_student(0.88), difference={"accuracy": Measured(0.013, 0.004, 0.022, 872)})
    assert summary.headline(better).startswith(
        "The student is above its teacher in accuracy (0.880 vs 0.867), is 2.5× smaller"
    )
    unsure = replace(better, difference={"accuracy": Measured(0.013, -0.004, 0.03, 872)})
    assert summary.headline(unsure).startswith(
        "The student is as good as its teacher in accuracy, within noise (0.880 vs 0.867), is 2.5× smaller"
    )


def test_a_student_like_its_teacher_is_neither_smaller_nor_better() -> None:
    assert summary.headline(minimal()) == (
        "The student equals its teacher in accuracy (0.800) and has as many parameters."
    )


@pytest.mark.parametrize("accuracy", [0.45, 0.509, 0.52])
def test_a_student_no_better_than_the_majority_has_not_learned_the_task(accuracy: float) -> None:
    """97 % kept of a teacher that also fails would otherwise read as a success."""
    facts = _with_student(accuracy)
    assert summary.headline(facts).startswith("The student has not learned the task")
    assert "no better than always answering “positive” beyond noise" in summary.warnings(facts)[0]


def test_a_weak_teacher_is_a_warning_too() -> None:
    facts = classification()
    weak = replace(facts.teacher, metrics={**facts.teacher.metrics, "accuracy": measured(0.51)})
    said = summary.warnings(replace(facts, teacher=weak))
    assert any(sentence.startswith("The teacher is no better") for sentence in said)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-0.04, -0.01, "is more than chance"),
        (-0.04, 0.0, "do not tell the two apart"),
        (-0.04, 0.01, "do not tell the two apart"),
        (0.01, 0.04, "is more than chance"),
    ],
)
def test_an_interval_that_holds_zero_is_called_chance(low: float, high: float, words: str) -> None:
    facts = replace(classification(), difference={"accuracy": Measured((low + high) / 2, low, high, 872)})
    assert words in summary.certainty(facts)
    assert "872 validation rows" in summary.certainty(facts)


def test_no_test_split_and_few_rows_are_said() -> None:
    said = " ".join(summary.warnings(minimal()))
    assert "There is no test split" in said
    few = replace(minimal(), student=replace(minimal().student, metrics={"accuracy": measured(0.8, n=40)}))
    assert "Only 40 rows were measured" in " ".join(summary.warnings(few))
    assert not any("test split" in sentence for sentence in summary.warnings(regression()))


def test_an_artifact_that_scores_otherwise_than_the_model_is_said() -> None:
    facts = _with_student_row(metrics={"accuracy": measured(0.83)})
    assert any("The exported student scores 0.830 in accuracy" in one for one in summary.warnings(facts))
    assert not any("exported" in one for one in summary.warnings(classification()))


def test_a_failed_measurement_is_said_and_not_used() -> None:
    facts = _with_student_row(status="out of memory", cells=())
    assert "student-onnxruntime could not be measured: out of memory." in summary.warnings(facts)
    pair = summary.reference_pair(facts)
    assert pair is not None
    assert (pair.student.backend, pair.place) == ("pytorch", "batch 1, length 64 in PyTorch on CPU")


def test_regression_is_told_in_correlation() -> None:
    assert summary.headline(regression()).startswith(
        "The student keeps 94.0 % of the teacher’s Pearson correlation (0.790 vs 0.840)"
    )


def test_a_ratio_to_a_teacher_at_or_below_zero_is_not_formed() -> None:
    facts = regression()
    broken = replace(facts, teacher=replace(facts.teacher, metrics={"pearson": measured(-0.1)}))
    assert summary.kept(broken) is None
    assert "scores 0.790 vs −0.100 of the teacher" in summary.headline(broken)
