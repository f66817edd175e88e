"""Times one loaded model, batch by length, and collects its answers to every row."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distillkit.answers import Keep, collect
from distillkit.data.batching import Encoded
from distillkit.export.parity import exact_batch
from distillkit.model import Writer
from distillkit.types import Batch

Forward = Callable[[Batch], NDArray[np.float32]]
Cell = Callable[[Batch, Mapping[str, Any]], dict[str, Any]]
_EVALUATION_TOKENS = 2048


class Opened:
    """A loaded model: its forward from a CPU batch to logits on the CPU, and what is known of it.

    device: where it computes; prepare: what is done to a timed batch before the clock runs; cell: what is
    timed of a batch, and how (by default its forward); peak: the peak memory so far, in bytes; writer: what
    writes texts.
    """

    def __init__(self, forward: Forward, provider: str, size: int | None, max_length: int) -> None:
        self.forward, self.provider, self.size, self.max_length = forward, provider, size, max_length
        self.parameters: int | None = None
        self.flops: Callable[[Batch], float] | None = None
        self.peak: Callable[[], int] | None = None
        self.prepare: Callable[[Batch], Batch] = lambda batch: batch
        self.cell: Cell = lambda batch, settings: time_cell(self.forward, batch, settings)
        self.writer: Writer | None = None
        self.device = torch.device("cpu")


def measure_opened(
    opened: Opened, samples: Encoded, settings: Mapping[str, Any], keep: Keep
) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """What was measured, by name, and what is kept of every answer to the samples."""
    lengths = [length for length in settings["length"] if length <= opened.max_length]
    cells = [
        opened.cell(opened.prepare(exact_batch(samples, batch, length)), settings)
        for batch in settings["batch"]
        for length in lengths
    ]
    peak = opened.peak() if opened.peak is not None else None  # of the timed forwards
    middle = exact_batch(samples, 1, sorted(lengths)[len(lengths) // 2]) if lengths else None
    told = {
        "provider": opened.provider,
        "size_bytes": opened.size,
        "parameters": opened.parameters,
        "flops": opened.flops(middle) if opened.flops is not None and middle is not None else None,
        "peak_memory_bytes": peak,
        "cells": cells,
    }
    return told, predict(opened.forward, samples, keep)


def time_cell(
    forward: Callable[[Batch], object], batch: Batch, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Warm-up, then at least `iterations` runs and `seconds` seconds; percentiles over single runs."""
    for _ in range(settings["warmup"]):
        forward(batch)
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < settings["iterations"] or time.perf_counter() - start < settings["seconds"]:
        before = time.perf_counter()
        forward(batch)
        times.append(time.perf_counter() - before)
    p50, p95, p99 = (float(value) for value in np.percentile(np.asarray(times) * 1000, [50, 95, 99]))
    size, length = batch.mask.shape
    return {
        "batch": size,
        "length": length,
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "examples_per_s": size * len(times) / sum(times),
        "iterations": len(times),
        "spread": (p95 - p50) / p50,
    }


def predict(forward: Forward, samples: Encoded, keep: Keep) -> NDArray[np.float32]:
    """What is kept of every answer, in row order."""
    return collect(lambda batch: torch.from_numpy(forward(batch)), samples, keep, tokens=_EVALUATION_TOKENS)
