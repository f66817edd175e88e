"""Predictions become facts that agree with the evaluation they came from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distillkit import evaluate
from distillkit.data.tasks import Rows, Task
from distillkit.errors import DataError
from distillkit.metrics import Baseline
from distillkit.report.facts import Example, RunFacts, TaskFacts, load_facts
from distillkit.report.gather import Judged, task_facts
from distillkit.report.page import write_report
from distillkit.settings import Labels, TaskSettings
from distillkit.types import Spec

NOTHING = Baseline(answer="no", metrics={})
SPEC = Spec(num_layers=2, hidden_dim=8, num_heads=2, ffn_dim=16, vocab_size=30, num_labels=2, max_length=64)


def _rows(labels: np.ndarray | None, n: int) -> Rows:
    return Rows(
        ids=np.arange(n), texts=tuple((f"text {index}",) for index in range(n)), labels=labels, digest="d"
    )


def _task(kind: str, labels: np.ndarray, test: Rows | None = None) -> Task:
    return Task(
        settings=TaskSettings(kind=kind, train="t.csv", max_length=99),
        labels=Labels(kind=kind, names=("no", "yes") if kind == "classification" else ()),
        train=_rows(labels, len(labels)),
        validation=_rows(labels[:4], 4),
        test=test,
        notes=("a note",),
    )


def _task_facts(task: Task, metric: str) -> TaskFacts:
    judged = task.validation if task.test is None else task.test
    return task_facts(task, metric, evaluate.majority(task.labels, task.train.labels, judged.labels))


def _judged(kind: str) -> Judged:
    rng = np.random.default_rng(0)
    width = 2 if kind == "classification" else 1
    gold = rng.integers(0, 2, 60) if width == 2 else rng.normal(size=60)
    return Judged(
        labels=Labels(kind=kind, names=("no", "yes") if width == 2 else ()),
        texts=lambda index: (f"text {index}",),
        gold=gold,
        teacher=rng.normal(size=(60, width)),
        student=rng.normal(size=(60, width)),
        seed=1,
    )


def _facts(kind: str) -> RunFacts:
    judged = _judged(kind)
    return RunFacts(
        name="gathered",
        task=_task_facts(_task(kind, judged.gold), "accuracy" if kind == "classification" else "pearson"),
        teacher=judged.teacher_facts("bert", SPEC, 1000),
        student=judged.student_facts("transformer", SPEC, 100),
        difference=judged.difference(),
        agreement=judged.agreement(),
        outcomes=judged.outcomes(),
        examples=judged.examples(3),
    )


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_gathered_facts_make_a_page_and_come_back_from_their_file(kind: str, tmp_path: Path) -> None:
    """numpy scalars would not survive the file."""
    facts = _facts(kind)
    write_report(facts, tmp_path / "report.html")
    assert load_facts(tmp_path / "facts.json") == facts


def test_teacher_and_student_are_not_mixed_up() -> None:
    judged, facts = _judged("classification"), _facts("classification")
    plain = {
        role: evaluate.values(judged.labels, judged.gold, logits)["accuracy"]
        for role, logits in (("teacher", judged.teacher), ("student", judged.student))
    }
    assert plain["teacher"] != plain["student"]
    assert facts.teacher.metrics["accuracy"].value == plain["teacher"]
    assert facts.student.metrics["accuracy"].value == plain["student"]
    assert facts.difference["accuracy"].value == pytest.approx(plain["student"] - plain["teacher"])
    assert facts.teacher.sizes["num_layers"] == 2
    assert sum(sum(row) for row in facts.student.confusion) == 60


def test_examples_name_labels_and_the_confidence_in_the_given_answer() -> None:
    judged = Judged(
        labels=Labels(kind="classification", names=("no", "yes")),
        texts=[("a",), ("b", "c")].__getitem__,
        gold=np.array([0, 1]),
        teacher=np.array([[1.0, 0.0], [0.0, np.log(3.0)]]),
        student=np.array([[1.0, 0.0], [np.log(9.0), 0.0]]),
        seed=0,
    )
    (example,) = judged.examples(5)
    assert (example.texts, example.gold, example.teacher, example.student) == (("b", "c"), "yes", "yes", "no")
    assert (example.teacher_confidence, example.student_confidence) == pytest.approx((0.75, 0.9))
    assert judged.examples(0) == ()


def test_examples_of_regression_are_numbers() -> None:
    judged = Judged(
        Labels(kind="regression"),
        [("a",)].__getitem__,
        np.array([1.5]),
        np.array([[1.25]]),
        np.array([[3.0]]),
        0,
    )
    assert judged.examples(1) == (Example(("a",), "1.5", "1.25", "3"),)


def test_the_task_is_judged_on_test_where_there_is_one() -> None:
    labels = np.array([1, 1, 0, 1, 1])
    without = _task_facts(_task("classification", labels), "mcc")
    assert (without.measured_on, without.baseline.metrics["accuracy"]) == ("validation", 0.75)
    assert without.rows == {"train": 5, "validation": 4}
    assert without.label_counts["train"] == {"no": 1, "yes": 4}
    assert (without.metric, without.max_length, without.notes) == ("mcc", 99, ("a note",))
    test = _rows(np.array([0, 0, 1]), 3)
    tested = _task_facts(_task("classification", labels, test), "accuracy")
    assert (tested.measured_on, tested.baseline.answer) == ("test", "yes")
    assert tested.baseline.metrics["accuracy"] == pytest.approx(1 / 3)


def test_rows_without_labels_cannot_be_judged() -> None:
    with pytest.raises(DataError, match="no labels"):
        task_facts(_task("classification", np.array([0, 1, 1, 0]), _rows(None, 3)), "accuracy", NOTHING)
