"""What a server counts, in the text format that Prometheus reads (version 0.0.4)."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distillkit.runtime.rows import Row

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PATHS = ("/predict", "/health", "/ready", "/metrics")
"""Paths that are counted by name; all others are one."""
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64)
_PAGE = 4096


@dataclass
class Histogram:
    """Counts by upper bound, and the sum of what was seen."""

    bounds: Sequence[float]
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def see(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str) -> Iterator[str]:
        so_far = 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            so_far += count
            yield f'{name}_bucket{{le="{bound}"}} {so_far}'
        yield f"{name}_sum {self.total:g}"
        yield f"{name}_count {so_far}"


class Metrics:
    """Counters of one server. No text and no label of a request is among them."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.seconds = Histogram(_SECONDS)
        self.batch_rows = Histogram(_ROWS)
        self.batch_seconds = Histogram(_SECONDS)
        self.tokens = self.padding = 0

    def request(self, path: str, status: int, seconds: float) -> None:
        """One that was answered; its time counts where it was answered with predictions."""
        self.requests[path if path in PATHS else "other", status] += 1
        if path == "/predict" and status == 200:
            self.seconds.see(seconds)

    def batch(self, rows: Sequence[Row], seconds: float) -> None:
        """One that was computed."""
        lengths = [len(row) for row in rows]
        self.batch_rows.see(len(rows))
        self.batch_seconds.see(seconds)
        self.tokens += sum(lengths)
        self.padding += max(lengths) * len(rows) - sum(lengths)

    def page(self, *, inside: int, waiting: int, ready: bool) -> str:
        """Everything, one line a value."""
        lines = ["# TYPE distillkit_requests_total counter"]
        for (path, status), count in sorted(self.requests.items()):
            lines.append(f'distillkit_requests_total{{path="{path}",status="{status}"}} {count}')
        for name, told in (
            ("distillkit_request_seconds", self.seconds),
            ("distillkit_batch_rows", self.batch_rows),
            ("distillkit_batch_seconds", self.batch_seconds),
        ):
            lines += [f"# TYPE {name} histogram", *told.lines(name)]
        values: tuple[tuple[str, str, float], ...] = (
            ("distillkit_tokens_total", "counter", self.tokens),
            ("distillkit_padding_tokens_total", "counter", self.padding),
            ("distillkit_rows_inside", "gauge", inside),
            ("distillkit_rows_waiting", "gauge", waiting),
            ("distillkit_ready", "gauge", int(ready)),
            ("process_resident_memory_bytes", "gauge", resident_bytes()),
        )
        for name, kind, value in values:
            lines += [f"# TYPE {name} {kind}", f"{name} {value}"]
        return "\n".join(lines) + "\n"


def resident_bytes(read: Callable[[Path], str] = Path.read_text) -> int:
    """Memory of this process that is in RAM, where Linux says it; else 0."""
    try:
        return int(read(Path("/proc/self/statm")).split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0
