"""The tables of the report as rows of ready text: teacher against student, confusion, latency by cell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from distillkit.metrics import Measured
from distillkit.report import text
from distillkit.report.best import same_row, usual
from distillkit.report.facts import BenchRow, Cell, ModelFacts, RunFacts
from distillkit.report.summary import Pair, reference_pair

_MOST_CLASSES = 16
_MOST_CONFUSIONS = 12


@dataclass(frozen=True)
class Row:
    """One measure of teacher and student, and what changed between them."""

    name: str
    teacher: str
    student: str
    change: str = ""


@dataclass(frozen=True)
class Group:
    """Rows that belong together."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Latencies:
    """One batch x length: the cell of every measured artifact, None where it was not measured."""

    batch: int
    length: int
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class ConfusionRow:
    """A gold class: its predictions as (count, share of the row), and its name."""

    name: str
    cells: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Mixed:
    """Two classes that a model confuses: gold, predicted, how many rows, share of the gold class."""

    gold: str
    predicted: str
    count: int
    share: float


def comparison(facts: RunFacts) -> tuple[Group, ...]:
    """Teacher against student: quality with intervals, sizes, and the cost at the reference cell."""
    pair = reference_pair(facts)
    groups = [
        Group(f"Quality on {_measured_on(facts)} (95 % interval)", _quality_rows(facts)),
        Group("Size", _size_rows(facts, pair)),
    ]
    if pair is not None:
        groups.append(Group(f"Cost at {pair.place}", _cost_rows(pair)))
    return tuple(groups)


def for_terminal(facts: RunFacts) -> Table:
    """The comparison as a table of a terminal."""
    shown = Table(highlight=False)
    for column in ("", "teacher", "student", "change"):
        shown.add_column(column)
    for group in comparison(facts):
        shown.add_row(Text(group.title, style="bold"), "", "", "")
        for row in group.rows:
            shown.add_row(*(Text(cell) for cell in (f"  {row.name}", row.teacher, row.student, row.change)))
    return shown


def measured(value: Measured, *, sign: bool = False) -> str:
    """`0.842 (0.818 to 0.866)`."""
    show = text.signed if sign else text.score
    return f"{show(value.value)} ({show(value.low)} to {show(value.high)})"


def latencies(rows: tuple[BenchRow, ...]) -> tuple[Latencies, ...]:
    """Every batch x length that an artifact was measured at, in order."""
    places = sorted({(cell.batch, cell.length) for row in rows for cell in row.cells})
    return tuple(
        Latencies(batch, length, tuple(same_row(row, batch, length) for row in rows))
        for batch, length in places
    )


def leading_cell(rows: Iterable[BenchRow]) -> Cell | None:
    """The batch x length that rows are compared at; None where nothing was timed."""
    cells = [cell for row in rows for cell in row.cells]
    return usual(cells) if cells else None


def cell_at(row: BenchRow, led_by: Cell) -> Cell | None:
    """The row's cell at the leading batch x length."""
    return same_row(row, led_by.batch, led_by.length)


_COLUMNS = (
    *("model", "runtime", "size", "parameters", "metric", "against plain", "p50 / p95 / p99 ms"),
    *("per s", "memory", "cold", "status"),
)


def bench_for_terminal(rows: Sequence[BenchRow], metric: str) -> Table:
    """Everything that was measured, a row each; one that was not, with its reason."""
    led_by = leading_cell(rows)
    title = f"at batch {led_by.batch}, length {led_by.length}; {text.metric(metric)}" if led_by else ""
    shown = Table(highlight=False, title=title, box=SIMPLE, padding=(0, 1), collapse_padding=True)
    for column in _COLUMNS:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*(Text(cell) for cell in _bench_cells(row, metric, led_by)))
    return shown


def _bench_cells(row: BenchRow, metric: str, led_by: Cell | None) -> tuple[str, ...]:
    runtime = f"{text.runtime(row.backend, row.format)}, {text.provider(row.provider)}"
    if row.status != "ok":
        return (row.role, runtime, *[""] * (len(_COLUMNS) - 3), text.clean(row.status))
    cell = cell_at(row, led_by) if led_by is not None else None
    times = "–" if cell is None else " / ".join(f"{ms:.3g}" for ms in (cell.p50_ms, cell.p95_ms, cell.p99_ms))
    cold = row.cold_seconds
    return (
        row.role,
        runtime,
        text.size(row.size_bytes),
        text.count(row.parameters),
        measured(row.metrics[metric]) if metric in row.metrics else "–",
        measured(row.difference[metric], sign=True) if metric in row.difference else "–",
        times,
        text.count(row.throughput),
        text.size(row.peak_memory_bytes),
        "–" if cold is None else text.duration(cold),
        "noisy" if cell is not None and cell.noisy else "ok",
    )


def confusion(model: ModelFacts, labels: tuple[str, ...]) -> tuple[ConfusionRow, ...]:
    """Counts and row shares by gold class; empty where there are too many classes for a table."""
    if not model.confusion or len(labels) > _MOST_CLASSES:
        return ()
    return tuple(
        ConfusionRow(name, tuple((count, count / max(sum(counts), 1)) for count in counts))
        for name, counts in zip(labels, model.confusion, strict=True)
    )


def most_confused(model: ModelFacts, labels: tuple[str, ...]) -> tuple[Mixed, ...]:
    """The largest off-diagonal counts, for tasks with too many classes for a table."""
    if len(labels) <= _MOST_CLASSES:
        return ()
    mixed = [
        Mixed(labels[gold], labels[predicted], count, count / sum(counts))
        for gold, counts in enumerate(model.confusion)
        for predicted, count in enumerate(counts)
        if gold != predicted and count
    ]
    return tuple(sorted(mixed, key=lambda entry: (-entry.count, -entry.share))[:_MOST_CONFUSIONS])


def ratio(teacher: float | None, student: float | None, less: str, more: str) -> str:
    """`5.2× smaller`: the student's figure against the teacher's, in the words for less and for more."""
    if not teacher or not student:
        return ""
    factor = teacher / student
    if 0.995 <= factor <= 1.005:
        return "the same"
    return f"{_times(factor)} {less}" if factor > 1 else f"{_times(1 / factor)} {more}"


def _measured_on(facts: RunFacts) -> str:
    return f"{facts.task.measured_on} {text.units(facts.task.kind)}"


def _times(factor: float) -> str:
    return f"{factor:.2f}×" if factor < 2 else f"{factor:.1f}×"


def _quality_rows(facts: RunFacts) -> tuple[Row, ...]:
    taught, learned, difference = facts.teacher.metrics, facts.student.metrics, facts.difference
    names = [facts.task.metric, *(name for name in learned if name != facts.task.metric)]
    rows = [
        Row(
            text.metric(name),
            measured(taught[name]),
            measured(learned[name]),
            measured(difference[name], sign=True) if name in difference else "",
        )
        for name in names
        if name in taught
    ]
    teacher, student = facts.teacher.calibration, facts.student.calibration
    if teacher and student:
        change = text.signed(student.ece - teacher.ece)
        rows.append(Row("calibration error", text.score(teacher.ece), text.score(student.ece), change))
    return tuple(rows)


def _size_rows(facts: RunFacts, pair: Pair | None) -> tuple[Row, ...]:
    teacher, student = facts.teacher, facts.student
    fewer = ratio(teacher.parameters, student.parameters, "fewer", "more")
    shape = Row("layers × width", _shape(teacher), _shape(student))
    parameters = Row("parameters", text.count(teacher.parameters), text.count(student.parameters), fewer)
    if pair is None:
        return shape, parameters
    left, right = pair.teacher.size_bytes, pair.student.size_bytes
    smaller = ratio(left, right, "smaller", "larger")
    return shape, parameters, Row("on disk", text.size(left), text.size(right), smaller)


def _cost_rows(pair: Pair) -> tuple[Row, ...]:
    left, right = pair.teacher_cell, pair.student_cell
    taught, learned = pair.teacher.throughput, pair.student.throughput
    memory = pair.teacher.peak_memory_bytes, pair.student.peak_memory_bytes
    flops = pair.teacher.flops, pair.student.flops
    return (
        *_writing_rows(left, right),
        _latency_row("p50", left.p50_ms, right.p50_ms),
        _latency_row("p95", left.p95_ms, right.p95_ms),
        _latency_row("p99", left.p99_ms, right.p99_ms),
        Row(
            "best throughput, any batch",
            f"{text.count(taught)} examples/s",
            f"{text.count(learned)} examples/s",
            ratio(learned, taught, "more", "fewer"),
        ),
        Row("FLOPs", text.scaled(flops[0]), text.scaled(flops[1]), ratio(*flops, "fewer", "more")),
        Row("peak memory", text.size(memory[0]), text.size(memory[1]), ratio(*memory, "less", "more")),
    )


def _writing_rows(left: Cell, right: Cell) -> tuple[Row, ...]:
    """Of models that write texts."""
    if left.first_ms is None or right.first_ms is None:
        return ()
    change = ratio(right.tokens_per_s, left.tokens_per_s, "more", "fewer")
    return (
        _latency_row("first token, p50", left.first_ms, right.first_ms),
        Row("tokens a second", text.count(left.tokens_per_s), text.count(right.tokens_per_s), change),
    )


def _latency_row(name: str, teacher: float, student: float) -> Row:
    change = ratio(teacher, student, "faster", "slower")
    return Row(f"{name} latency", text.milliseconds(teacher), text.milliseconds(student), change)


def _shape(model: ModelFacts) -> str:
    layers, width = model.sizes.get("num_layers", 0), model.sizes.get("hidden_dim", 0)
    return f"{layers} × {width}" if layers else "–"
