"""Times one loaded model in rounds, batch by length, and collects its answers to every row."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distillkit.answers import Keep, collect
from distillkit.bench.scenarios import SCENARIOS, Scenario
from distillkit.data.batching import Encoded
from distillkit.export.parity import exact_batch
from distillkit.model import Writer
from distillkit.settings import BenchSettings
from distillkit.types import Batch

Forward = Callable[[Batch], NDArray[np.float32]]
Calls = Mapping[str, Callable[[], object]]
_EVALUATION_TOKENS = 2048
FORWARD, FIRST = "forward", "first token"
"""What is timed of a batch: a forward, or a text and its first token alone."""


class Opened:
    """A loaded model: its forward from a CPU batch to logits on the CPU, and what is known of it.

    device: where it computes; prepare: what is done to a timed batch before the clock runs; calls: what is
    timed of a batch, by name (by default its forward); request: what a scenario asks of a batch; peak: the
    peak memory so far, in bytes; writer: what writes texts.
    """

    def __init__(self, forward: Forward, provider: str, size: int | None, max_length: int) -> None:
        self.forward, self.provider, self.size, self.max_length = forward, provider, size, max_length
        self.parameters: int | None = None
        self.flops: Callable[[Batch], float] | None = None
        self.peak: Callable[[], int] | None = None
        self.prepare: Callable[[Batch], Batch] = lambda batch: batch
        self.calls: Callable[[Batch], Calls] = lambda batch: {FORWARD: lambda: self.forward(batch)}
        self.request: Callable[[Batch], object] = lambda batch: self.forward(batch)
        self.writer: Writer | None = None
        self.device = torch.device("cpu")


class Clocked:
    """One call and how long it took each time, in milliseconds, round after round."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call
        self.rounds: list[NDArray[np.float64]] = []

    def round(self, *, warmup: int, iterations: int, seconds: float) -> None:
        """Warm-up, then at least so many calls and so many seconds."""
        for _ in range(warmup):
            self.call()
        times: list[float] = []
        start = time.perf_counter()
        while len(times) < iterations or time.perf_counter() - start < seconds:
            before = time.perf_counter()
            self.call()
            times.append(1000 * (time.perf_counter() - before))
        self.rounds.append(np.asarray(times))

    @property
    def medians(self) -> list[float]:
        """Of each round."""
        return [float(np.median(times)) for times in self.rounds]

    def told(self) -> dict[str, Any]:
        """Percentiles over all single calls of all rounds, and the median of each round."""
        times = np.concatenate(self.rounds)
        p50, p95, p99 = (float(value) for value in np.percentile(times, [50, 95, 99]))
        return {
            "p50_ms": p50,
            "p95_ms": p95,
            "p99_ms": p99,
            "iterations": len(times),
            "spread": (p95 - p50) / p50,
            "rounds_ms": self.medians,
        }


class TimedCell:
    """What is timed of one batch."""

    def __init__(self, calls: Calls, batch: Batch, new_tokens: int) -> None:
        self.calls = {name: Clocked(call) for name, call in calls.items()}
        self.batch, self.new_tokens = batch, new_tokens

    def round(self, settings: BenchSettings) -> None:
        """A round's share of what the settings ask for."""
        count = settings.rounds
        for one in self.calls.values():
            one.round(
                warmup=-(-settings.warmup // count),
                iterations=-(-settings.iterations // count),
                seconds=settings.seconds / count,
            )

    def told(self) -> dict[str, Any]:
        size, length = self.batch.mask.shape
        main = self.calls[FORWARD]
        spent = sum(float(times.sum()) for times in main.rounds) / 1000
        told = main.told()
        per_second = size * told["iterations"] / spent
        found = {"batch": size, "length": length, **told, "examples_per_s": per_second}
        if FIRST in self.calls:
            found["tokens_per_s"] = per_second * self.new_tokens
            found["first_ms"] = self.calls[FIRST].told()["p50_ms"]
        return found


class Subject:
    """A loaded model while it is measured: a first answer, rounds, and at the end its answers to all rows."""

    def __init__(self, opened: Opened, samples: Encoded, settings: BenchSettings, *, seed: int) -> None:
        self.opened, self.samples, self.settings = opened, samples, settings
        lengths = sorted(length for length in settings.length if length <= opened.max_length)
        self._middle = exact_batch(samples, 1, lengths[len(lengths) // 2]) if lengths else None
        start = time.perf_counter()
        if self._middle is not None:
            opened.request(opened.prepare(self._middle))
        self._first_seconds = time.perf_counter() - start
        batches = [exact_batch(samples, size, length) for size in settings.batch for length in lengths]
        self._cells = [
            TimedCell(opened.calls(batch), batch, settings.new_tokens)
            for batch in map(opened.prepare, batches)
        ]
        self._scenarios: dict[str, Scenario] = {
            name: SCENARIOS[name](opened.request, samples, settings, seed=seed) for name in settings.scenarios
        }

    def round(self) -> None:
        """Time every cell and what of the scenarios goes by rounds."""
        for cell in self._cells:
            cell.round(self.settings)
        for scenario in self._scenarios.values():
            scenario.round()

    def finish(self, keep: Keep) -> tuple[dict[str, Any], NDArray[np.float32]]:
        """What was measured, by name, and what is kept of every answer to the samples."""
        scenarios = {name: scenario.told() for name, scenario in self._scenarios.items()}
        opened, middle = self.opened, self._middle
        told = {
            "provider": opened.provider,
            "size_bytes": opened.size,
            "parameters": opened.parameters,
            "peak_memory_bytes": opened.peak() if opened.peak is not None else None,  # of timed forwards
            "flops": opened.flops(middle) if opened.flops is not None and middle is not None else None,
            "first_seconds": self._first_seconds if middle is not None else None,
            "cells": [cell.told() for cell in self._cells],
            "scenarios": scenarios,
        }
        return told, predict(opened.forward, self.samples, keep)


def predict(forward: Forward, samples: Encoded, keep: Keep) -> NDArray[np.float32]:
    """What is kept of every answer, in row order."""
    return collect(lambda batch: torch.from_numpy(forward(batch)), samples, keep, tokens=_EVALUATION_TOKENS)
