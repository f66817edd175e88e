"""Floors under what was measured: `accuracy: 0.9, p95: 10ms, size: 20MB`, for a pipeline that must not ship
what is worse.

They are met where one form of the exported student meets them all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from distillkit.errors import ConfigError, FloorError
from distillkit.metrics import LOWER_IS_BETTER
from distillkit.registry import did_you_mean
from distillkit.report import text
from distillkit.report.best import in_pytorch, same_row, usual
from distillkit.report.facts import BenchRow, Cell
from distillkit.wording import shown

METRIC = "metric"
"""The metric that leads the report."""
_NUMBER = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([A-Za-zµ/]*)")
_SHAPE = re.compile(r"(\d+)x(\d+)")
_MILLISECONDS: Mapping[str, float] = {"": 1.0, "ms": 1.0, "s": 1e3, "us": 1e-3, "µs": 1e-3}
_SECONDS: Mapping[str, float] = {"": 1.0, "s": 1.0, "ms": 1e-3}
_BYTES: Mapping[str, float] = {
    **{"": 1.0, "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9},
    **{"KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30},
}


@dataclass(frozen=True)
class Measure:
    """Something that has a floor. least: the bound is the lowest that will do, else the highest; of_cell: it
    is read at a batch x length."""

    units: Mapping[str, float]
    shown: Callable[[float], str]
    value: Callable[[BenchRow, Cell | None], float | None]
    least: bool = False
    of_cell: bool = False


def _latency(read: Callable[[Cell], float]) -> Measure:
    def value(row: BenchRow, cell: Cell | None) -> float | None:
        return None if cell is None else read(cell)

    return Measure(_MILLISECONDS, text.milliseconds, value, of_cell=True)


_MEASURES: Mapping[str, Measure] = {
    "p50": _latency(lambda cell: cell.p50_ms),
    "p95": _latency(lambda cell: cell.p95_ms),
    "p99": _latency(lambda cell: cell.p99_ms),
    "throughput": Measure(
        {"": 1.0, "/s": 1.0},
        lambda value: f"{text.count(value)} examples/s",
        lambda row, cell: row.throughput,
        least=True,
    ),
    "size": Measure(_BYTES, text.size, lambda row, cell: row.size_bytes),
    "memory": Measure(_BYTES, text.size, lambda row, cell: row.peak_memory_bytes),
    "cold": Measure(_SECONDS, text.duration, lambda row, cell: row.cold_seconds),
}


@dataclass(frozen=True)
class Floor:
    """One bound, in the unit of its measure; at: batch x length, None for the one that the report leads
    with."""

    name: str
    measure: Measure
    bound: float
    at: tuple[int, int] | None

    def read(self, row: BenchRow) -> float | None:
        """The row's figure; None where it was not measured."""
        return self.measure.value(row, self._cell(row))

    def met_by(self, row: BenchRow) -> bool:
        value = self.read(row)
        if value is None:
            return False
        return value >= self.bound if self.measure.least else value <= self.bound

    def unmet(self, row: BenchRow) -> str:
        """In words: what the row has, and the bound."""
        value, show = self.read(row), self.measure.shown
        has = "was not measured" if value is None else f"is {show(value)}"
        return (
            f"{self.name} {has}, {'at least' if self.measure.least else 'at most'} {show(self.bound)} asked"
        )

    def _cell(self, row: BenchRow) -> Cell | None:
        if not self.measure.of_cell or not row.cells:
            return None
        return usual(row.cells) if self.at is None else same_row(row, *self.at)


def read_floor(
    name: str, bound: float | str, metrics: Collection[str], shapes: Collection[tuple[int, int]]
) -> Floor:
    """A floor as it is written; `metrics` are those that the task has, `shapes` those that are timed. Raises
    ConfigError (2).
    """
    what, _, place = name.partition("@")
    measure = _MEASURES.get(what)
    if measure is None and what in (METRIC, *metrics):
        measure = _quality(what)
    if measure is None:
        known = did_you_mean(what, [METRIC, *metrics, *_MEASURES])
        raise ConfigError(f"{shown(what)} is nothing that is measured", hint=known)
    return Floor(name, measure, _bound(what, bound, measure), _place(place, name, measure, shapes))


def named(floors: Sequence[Floor], metric: str) -> list[Floor]:
    """The same, with the leading metric by its name."""
    return [
        Floor(metric, _quality(metric), one.bound, one.at) if one.name == METRIC else one for one in floors
    ]


def check(floors: Sequence[Floor], rows: Sequence[BenchRow]) -> BenchRow:
    """The fastest form of the student that meets every floor. Raises FloorError (12) with a line for each
    floor that the form which meets the most of them does not.
    """
    forms = [row for row in rows if row.role == "student" and not in_pytorch(row) and row.status == "ok"]
    if not forms:
        raise FloorError("no form of the exported student was measured", where="bench.floor")
    ranked = sorted(forms, key=lambda row: (sum(not one.met_by(row) for one in floors), _pace(row)))
    unmet = [one.unmet(ranked[0]) for one in floors if not one.met_by(ranked[0])]
    if unmet:
        raise FloorError("\n".join(f"{ranked[0].name}: {line}" for line in unmet))
    return ranked[0]


def _pace(row: BenchRow) -> float:
    return usual(row.cells).p50_ms if row.cells else float("inf")


def _quality(name: str) -> Measure:
    def value(row: BenchRow, cell: Cell | None) -> float | None:
        return row.metrics[name].value if name in row.metrics else None

    lower = name.rpartition(".")[2] in LOWER_IS_BETTER
    return Measure({"": 1.0}, lambda number: f"{number:.4f}", value, least=not lower)


def _bound(what: str, bound: float | str, measure: Measure) -> float:
    if not isinstance(bound, str):
        return float(bound)
    found = _NUMBER.fullmatch(bound.strip())
    if found is None or found[2] not in measure.units:
        units = ", ".join(unit for unit in measure.units if unit)
        with_unit = f" with or without a unit ({units})" if units else ""
        raise ConfigError(f"{shown(bound)} is no bound of {what}", hint=f"a number{with_unit}")
    return float(found[1]) * measure.units[found[2]]


def _place(
    place: str, name: str, measure: Measure, shapes: Collection[tuple[int, int]]
) -> tuple[int, int] | None:
    if not place:
        return None
    found = _SHAPE.fullmatch(place)
    at = None if found is None else (int(found[1]), int(found[2]))
    if not measure.of_cell or at not in shapes:
        listed = ", ".join(f"{batch}x{length}" for batch, length in sorted(shapes))
        hint = f"timed are {listed}" if measure.of_cell else "only latencies are of a batch x length"
        raise ConfigError(f"{shown(name)} names no batch x length that is timed", hint=hint)
    return at
