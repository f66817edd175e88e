"""What a run comes to, in sentences: the result, and what a reader should know before believing it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distillkit.metrics import LOWER_IS_BETTER
from distillkit.report import text
from distillkit.report.best import SAME, find_row, forms, same_row, usual
from distillkit.report.facts import BenchRow, Cell, ModelFacts, RunFacts

_FEW_ROWS = 500


@dataclass(frozen=True)
class Pair:
    """Teacher and student in the same runtime, at the batch x length that the report leads with."""

    teacher: BenchRow
    student: BenchRow
    teacher_cell: Cell
    student_cell: Cell

    @property
    def place(self) -> str:
        """`batch 1, length 64 in ONNX Runtime on CPU`."""
        cell, row = self.student_cell, self.student
        where = f"{text.backend(row.backend)} on {text.provider(row.provider)}"
        return f"batch {cell.batch}, length {cell.length} in {where}"

    @property
    def speedup(self) -> float:
        return self.teacher_cell.p50_ms / self.student_cell.p50_ms


def reference_pair(facts: RunFacts) -> Pair | None:
    """The pair to lead with: ONNX Runtime where both ran there, the smallest batch, the length nearest 64."""
    for backend in ("onnxruntime", "pytorch"):
        teacher, student = find_row(facts, "teacher", backend), find_row(facts, "student", backend)
        if teacher is None or student is None:
            continue
        cells = {(cell.batch, cell.length): cell for cell in teacher.cells}
        shared = [cell for cell in student.cells if (cell.batch, cell.length) in cells]
        if shared:
            best = usual(shared)
            return Pair(teacher, student, cells[best.batch, best.length], best)
    return None


def headline(facts: RunFacts) -> str:
    """The result in one sentence."""
    clauses = [_quality(facts), _smaller(facts), _faster(facts)]
    said = [clause for clause in clauses if clause]
    if len(said) == 3 and said[1].startswith("has "):
        said[2] = f"is {said[2]}"
    if len(said) == 1:
        return said[0] + "."
    return ", ".join(said[:-1]) + " and " + said[-1] + "."


def certainty(facts: RunFacts) -> str:
    """Whether the difference in the leading metric is more than chance; empty where it was not measured."""
    name = facts.task.metric
    difference = facts.difference.get(name)
    if difference is None:
        return ""
    spread = (
        f"{text.signed(difference.value)}, 95 % interval {text.signed(difference.low)}"
        f" to {text.signed(difference.high)}, {difference.n:,} {facts.task.measured_on} "
        f"{text.units(facts.task.kind)}"
    )
    if difference.low <= 0 <= difference.high:
        return f"The rows do not tell the two apart in {text.metric(name)} ({spread})."
    return f"The difference in {text.metric(name)} is more than chance ({spread})."


def warnings(facts: RunFacts) -> tuple[str, ...]:
    """What makes the result bad or doubtful, the worst first."""
    failed = [row for row in facts.bench if row.status != "ok"]
    found = [
        _weak("student", facts.student, facts),
        _weak("teacher", facts.teacher, facts),
        *(f"{row.name} could not be measured: {row.status}." for row in failed),
        _artifact_differs(facts),
        _slower_artifact(facts),
        *_costly_forms(facts),
        _optimistic(facts),
        _few_rows(facts),
    ]
    return tuple(sentence for sentence in found if sentence)


def kept(facts: RunFacts) -> float | None:
    """Share of the teacher’s leading metric that the student keeps; None where a ratio says nothing."""
    name = facts.task.metric
    teacher, student = facts.teacher.metrics[name].value, facts.student.metrics[name].value
    if name in LOWER_IS_BETTER or teacher <= 0:
        return None
    return student / teacher


def parity(facts: RunFacts) -> str:
    """What the gate of the export compared, in a sentence; empty where it says nothing."""
    told = facts.parity
    if "max_abs_difference" not in told:
        return ""
    shapes = [shape for shape in told.get("shapes", {}) if shape.startswith("(")]
    also = f" and on inputs of batch × length {', '.join(shapes)}" if shapes else ""
    return (
        f"the logits differ by at most {told['max_abs_difference']:.1e} (allowed {told['tolerance']:.0e}) "
        f"on {told['rows']} {text.answers(facts.task.kind)}{also}; "
        f"the same answers for {text.percent(float(told['same_predictions']))}."
        f"{_same_texts(told)}"
    )


def _same_texts(told: Mapping[str, Any]) -> str:
    """How often the artifact wrote PyTorch's text; empty where it writes none."""
    if "same_texts" not in told:
        return ""
    return f" It writes the same text for {text.percent(told['same_texts'])} of {told['texts']} rows."


def _quality(facts: RunFacts) -> str:
    name = facts.task.metric
    teacher, student = facts.teacher.metrics[name].value, facts.student.metrics[name].value
    figures = f"{text.score(student)} vs {text.score(teacher)}"
    share = kept(facts)
    if _weak("student", facts.student, facts):
        return f"The student has not learned the task ({text.metric(name)} {figures} of the teacher)"
    if share is None:
        return f"The student scores {figures} of the teacher in {text.metric(name)}"
    if student == teacher:
        return f"The student equals its teacher in {text.metric(name)} ({text.score(student)})"
    difference = facts.difference.get(name)
    if student > teacher and difference is not None and difference.low <= 0:
        return f"The student is as good as its teacher in {text.metric(name)}, within noise ({figures})"
    if student > teacher:
        return f"The student is above its teacher in {text.metric(name)} ({figures})"
    return f"The student keeps {text.percent(share)} of the teacher’s {text.metric(name)} ({figures})"


def _smaller(facts: RunFacts) -> str:
    pair = reference_pair(facts)
    if pair is not None and pair.teacher.size_bytes and pair.student.size_bytes:
        ratio = pair.teacher.size_bytes / pair.student.size_bytes
        if 1 / SAME < ratio < SAME:
            return "is as large"
        return f"is {ratio:.1f}× smaller" if ratio > 1 else f"is {1 / ratio:.1f}× larger"
    fewer = _parameters(facts)
    return f"has {fewer}" if fewer else ""


def _parameters(facts: RunFacts) -> str:
    """`2.5× fewer parameters`; empty where the teacher's are not known."""
    if not facts.teacher.parameters or not facts.student.parameters:
        return ""
    ratio = facts.teacher.parameters / facts.student.parameters
    if 1 / SAME < ratio < SAME:
        return "as many parameters"
    return f"{ratio:.1f}× fewer parameters" if ratio > 1 else f"{1 / ratio:.1f}× more parameters"


def _faster(facts: RunFacts) -> str:
    pair = reference_pair(facts)
    if pair is None:
        return ""
    ratio = pair.speedup
    if 1 / SAME < ratio < SAME:
        return f"as fast as the teacher at {pair.place}"
    return f"{ratio:.1f}× faster at {pair.place}" if ratio > 1 else f"{1 / ratio:.1f}× slower at {pair.place}"


def _weak(role: str, model: ModelFacts, facts: RunFacts) -> str:
    """A sentence where the model is not beyond noise better than a constant answer."""
    name = next(name for name in ("entity_f1", "accuracy", "pearson") if name in model.metrics)
    measured = model.metrics[name]
    plain = 0.0 if name == "pearson" else facts.task.baseline.metrics[name]
    if measured.low > plain:
        return ""
    return (
        f"The {role} is no better than always answering “{facts.task.baseline.answer}” beyond noise: "
        f"{text.metric(name)} {text.score(measured.value)} "
        f"({text.score(measured.low)} to {text.score(measured.high)}) against {text.score(plain)}."
    )


def _artifact_differs(facts: RunFacts) -> str:
    row = find_row(facts, "student", "onnxruntime")
    name = facts.task.metric
    if row is None or name not in row.metrics:
        return ""
    artifact, model = row.metrics[name].value, facts.student.metrics[name].value
    if abs(artifact - model) < 5e-4:
        return ""
    return (
        f"The exported student scores {text.score(artifact)} in {text.metric(name)}, "
        f"the model in PyTorch {text.score(model)}."
    )


def _slower_artifact(facts: RunFacts) -> str:
    exported, plain = (find_row(facts, "student", backend) for backend in ("onnxruntime", "pytorch"))
    pair = reference_pair(facts)
    if pair is None or exported is None or plain is None:
        return ""
    cell = pair.student_cell
    left, right = (same_row(row, cell.batch, cell.length) for row in (exported, plain))
    if left is None or right is None or left.p50_ms <= right.p50_ms * SAME:
        return ""
    return (
        f"The exported student is slower than PyTorch at batch {cell.batch}, length {cell.length}: "
        f"{text.milliseconds(left.p50_ms)} against {text.milliseconds(right.p50_ms)}."
    )


def _costly_forms(facts: RunFacts) -> list[str]:
    name = text.metric(facts.task.metric)
    return [
        f"The {form.name} form loses {text.score(form.lost)} of {name}, more than "
        f"{text.score(facts.tolerance)}."
        for form in forms(facts)
        if form.lost is not None and not form.within(facts.tolerance)
    ]


def _optimistic(facts: RunFacts) -> str:
    if facts.task.measured_on == "test":
        return ""
    return (
        f"There is no test split: the figures are measured on the {facts.task.measured_on} rows, "
        "which may also have chosen the weights, and are a little optimistic."
    )


def _few_rows(facts: RunFacts) -> str:
    rows = facts.student.metrics[facts.task.metric].n
    if rows >= _FEW_ROWS:
        return ""
    return (
        f"Only {rows} {text.units(facts.task.kind)} were measured: read the intervals, not the third decimal."
    )
