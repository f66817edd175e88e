"""What is measured, and the rows that come of it, as they stand in measurements.json."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from distillkit.bench.timing import Opened
from distillkit.metrics import told_apart
from distillkit.settings import BackendName

Role = Literal["teacher", "student"]
MEASUREMENTS = "measurements.json"
PLAIN = "fp32"
"""The form of an artifact that the others are made from."""


@dataclass(frozen=True)
class Variant:
    """A model in a runtime: `folder` holds what `Student.save` wrote, or the artifact. One that lives in
    this process alone is opened by `live`; where there is neither, `absent` says why there is nothing to
    measure. format: the form of the artifact.
    """

    name: str
    role: Role
    backend: BackendName
    folder: Path | None
    absent: str = ""
    live: Callable[[], Opened] | None = None
    format: str = PLAIN


@dataclass(frozen=True)
class Cell:
    """One batch x length. Times are milliseconds for the whole batch, percentiles over all rounds; spread is
    (p95 - p50) / p50; rounds_ms: the median of each round; noisy: whether these overlap with those of another
    variant of its role, so that the two are not told apart. Of a model that writes texts: of whole texts,
    with tokens a second and the median time until the first token.
    """

    batch: int
    length: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    examples_per_s: float
    iterations: int
    spread: float
    rounds_ms: list[float] = field(default_factory=list)
    noisy: bool = False
    tokens_per_s: float | None = None
    first_ms: float | None = None


@dataclass(frozen=True)
class Measurement:
    """One row: status is "ok" or the reason why there is nothing else. first_seconds: until the first answer
    of the loaded model; precision: of its arithmetic; difference: metrics minus those of the role's plain
    form on the same rows; agreement: with its answers.
    """

    name: str
    role: Role
    backend: BackendName
    provider: str
    status: str = "ok"
    threads: int = 0
    precision: str = PLAIN
    size_bytes: int | None = None
    parameters: int | None = None
    flops: float | None = None
    peak_memory_bytes: int | None = None
    load_seconds: float | None = None
    first_seconds: float | None = None
    cells: list[Cell] = field(default_factory=list)
    scenarios: dict[str, dict[str, Any]] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    format: str = PLAIN
    difference: dict[str, Any] = field(default_factory=dict)
    agreement: dict[str, float] = field(default_factory=dict)


def share_counts(rows: Sequence[Measurement]) -> list[Measurement]:
    """A row that cannot count FLOPs and parameters takes those of its role: the same computation."""
    counted = {row.role: row for row in rows if row.flops is not None}
    return [
        replace(row, flops=counted[row.role].flops, parameters=counted[row.role].parameters)
        if row.flops is None and row.role in counted
        else row
        for row in rows
    ]


def with_noise(rows: Sequence[Measurement]) -> list[Measurement]:
    """Say of each cell whether its ranking is inside the noise."""
    return [replace(row, cells=[replace(c, noisy=_noisy(row, c, rows)) for c in row.cells]) for row in rows]


def _noisy(row: Measurement, cell: Cell, rows: Sequence[Measurement]) -> bool:
    if len(cell.rounds_ms) < 2:
        return False
    return any(not told_apart(cell.rounds_ms, other.rounds_ms) for other in _beside(row, cell, rows))


def _beside(row: Measurement, cell: Cell, rows: Sequence[Measurement]) -> Iterator[Cell]:
    for other in rows:
        if other.role == row.role and other.name != row.name:
            for one in other.cells:
                if (one.batch, one.length) == (cell.batch, cell.length):
                    yield one
