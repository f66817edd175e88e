"""Which form of the student to take on this machine: the fastest within the user's tolerance, and whether
that is more than noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import median

from distillkit.metrics import LOWER_IS_BETTER, told_apart
from distillkit.report import text
from distillkit.report.facts import PLAIN, BenchRow, Cell, RunFacts

_USUAL_LENGTH = 64
SAME = 1.05
"""Ratios nearer to 1 are called the same."""


@dataclass(frozen=True)
class Form:
    """Another form of the student's artifact, or its file in another runtime. speedup: over the plain form,
    at every batch x length that both were timed at, the median; lost: of the leading metric (more is worse),
    None where it was not measured.
    """

    row: BenchRow
    speedup: float | None
    lost: float | None

    @property
    def name(self) -> str:
        """`int8`, `OpenVINO bf16`."""
        row = self.row
        return row.format if row.backend == "onnxruntime" else text.runtime(row.backend, row.format)

    def within(self, tolerance: float) -> bool:
        return self.lost is not None and self.lost <= tolerance


def find_row(facts: RunFacts, role: str, backend: str) -> BenchRow | None:
    """A role in a runtime, in the plain form; None where it was not measured or failed."""
    wanted = (role, backend, "ok", PLAIN)
    return next(
        (row for row in facts.bench if (row.role, row.backend, row.status, row.format) == wanted), None
    )


def same_row(row: BenchRow, batch: int, length: int) -> Cell | None:
    """The row's cell at a batch x length."""
    return next((cell for cell in row.cells if (cell.batch, cell.length) == (batch, length)), None)


def usual(cells: Iterable[Cell]) -> Cell:
    """The cell to lead with: the smallest batch, the length nearest 64."""
    return min(cells, key=lambda cell: (cell.batch, abs(cell.length - _USUAL_LENGTH), cell.length))


def forms(facts: RunFacts) -> tuple[Form, ...]:
    """Every other form that was measured, in the order of the recipe."""
    return tuple(_forms(facts, [row for row in _students(facts) if not in_pytorch(row)]))


def fastest(facts: RunFacts) -> Form | None:
    """The fastest form within the tolerance, where it is faster than the plain one beyond `SAME`."""
    best = _best(facts, forms(facts))
    return best if best is not None and (best.speedup or 0.0) > SAME else None


def recommended(facts: RunFacts) -> str:
    """Which form of the artifact to take here, and whether PyTorch is faster; empty where there is nothing to
    choose.
    """
    return " ".join(sentence for sentence in (_chosen(facts), _beaten(facts)) if sentence)


def in_pytorch(row: BenchRow) -> bool:
    return row.backend.startswith("pytorch")


def _chosen(facts: RunFacts) -> str:
    if not forms(facts):
        return ""
    name, best = text.metric(facts.task.metric), fastest(facts)
    bound = f"at most {text.score(facts.tolerance)} of {name} lost"
    if best is None:
        return f"No other form is faster here with {bound}: take the plain one."
    changed = best.row.difference[facts.task.metric]
    return (
        f"Fastest here with {bound}: {best.name}, {best.speedup:.2f}× the plain form (median over all "
        f"shapes), {text.size(best.row.size_bytes)}, {name} {text.signed(changed.value)} "
        f"({text.signed(changed.low)} to {text.signed(changed.high)})."
        f"{_doubt(facts, best)}"
    )


def _doubt(facts: RunFacts, best: Form) -> str:
    """A sentence where the rounds do not tell the best form from another that may be taken."""
    plain = find_row(facts, "student", "onnxruntime")
    others = [("the plain form", plain)] if plain is not None else []
    others += [
        (form.name, form.row) for form in forms(facts) if form != best and form.within(facts.tolerance)
    ]
    alike = [name for name, row in others if _indistinct(best.row, row)]
    return f" The rounds do not tell it from {', '.join(alike)}: the ranking is noise." if alike else ""


def _beaten(facts: RunFacts) -> str:
    """A sentence where PyTorch, within the tolerance, is faster than the best artifact."""
    chosen = fastest(facts)
    taken = chosen.row if chosen is not None else find_row(facts, "student", "onnxruntime")
    best = _best(facts, list(_forms(facts, [row for row in _students(facts) if in_pytorch(row)])))
    if taken is None or best is None:
        return ""
    ratio = _speedup(taken, best.row)
    if ratio is None or ratio <= SAME:
        return ""
    return (
        f"PyTorch is faster here: {best.name}, {ratio:.2f}× {text.runtime(taken.backend, taken.format)} "
        f"(median over all shapes)."
    )


def _students(facts: RunFacts) -> Iterator[BenchRow]:
    plain = find_row(facts, "student", "onnxruntime")
    return (row for row in facts.bench if row.role == "student" and row.status == "ok" and row is not plain)


def _forms(facts: RunFacts, rows: Iterable[BenchRow]) -> Iterator[Form]:
    plain = find_row(facts, "student", "onnxruntime")
    return (
        Form(row, None if plain is None else _speedup(plain, row), _lost(row, facts.task.metric))
        for row in rows
    )


def _best(facts: RunFacts, found: Iterable[Form]) -> Form | None:
    good = [form for form in found if form.within(facts.tolerance) and form.speedup is not None]
    return max(good, key=lambda form: form.speedup or 0.0, default=None)


def _speedup(slow: BenchRow, fast: BenchRow) -> float | None:
    pairs = [(cell, same_row(slow, cell.batch, cell.length)) for cell in fast.cells]
    ratios = [other.p50_ms / cell.p50_ms for cell, other in pairs if other is not None]
    return median(ratios) if ratios else None


def _indistinct(first: BenchRow, second: BenchRow) -> bool:
    """Whether the rounds of two rows overlap at half of the shapes or more; where there was one round nothing
    is known of that.
    """
    pairs = [(cell, same_row(second, cell.batch, cell.length)) for cell in first.cells]
    told = [
        told_apart(cell.rounds_ms, other.rounds_ms)
        for cell, other in pairs
        if other is not None and min(len(cell.rounds_ms), len(other.rounds_ms)) > 1
    ]
    return bool(told) and 2 * sum(told) <= len(told)


def _lost(row: BenchRow, metric: str) -> float | None:
    if metric not in row.difference:
        return None
    value = row.difference[metric].value
    return value if metric in LOWER_IS_BETTER else -value
