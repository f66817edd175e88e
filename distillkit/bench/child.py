"""The process that measures one variant: `python -m distillkit.bench.child request.json result.json`.

It loads one model once, runs nothing else, and leaves result.json and logits.npy beside it.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distillkit.data.batching import Encoded, collate, sequential_batches
from distillkit.encoder import Encoder
from distillkit.errors import DistillkitError, MissingError
from distillkit.export.bundle import MODEL
from distillkit.export.parity import exact_batch
from distillkit.export.parity import run as run_session
from distillkit.export.session import open_session
from distillkit.flops import flops_per_example
from distillkit.types import Batch, Want

Forward = Callable[[Batch], NDArray[np.float32]]
_EVALUATION_TOKENS = 2048


class Opened:
    """A loaded model: its forward from a CPU batch to logits on the CPU, and what is known of it."""

    def __init__(self, forward: Forward, provider: str, size: int, max_length: int) -> None:
        self.forward, self.provider, self.size, self.max_length = forward, provider, size, max_length
        self.parameters: int | None = None
        self.flops: Callable[[Batch], float] | None = None


def main(arguments: list[str]) -> int:
    """Read the request, measure, write the result (or the error, in words)."""
    request = json.loads(Path(arguments[0]).read_text())
    target = Path(arguments[1])
    try:
        result = measure(request)
    except DistillkitError as error:
        target.write_text(json.dumps({"error": error.problem}))
        return error.exit_code
    target.write_text(json.dumps(result))
    return 0


def measure(request: Mapping[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(request["threads"])
    start = time.perf_counter()
    opened = OPEN[request["backend"]](Path(request["folder"]), request["provider"], request["threads"])
    loaded = time.perf_counter() - start
    samples = _samples(Path(request["samples"]))
    settings = request["settings"]
    lengths = [length for length in settings["length"] if length <= opened.max_length]
    cells = [
        time_cell(opened.forward, exact_batch(samples, batch, length), settings)
        for batch in settings["batch"]
        for length in lengths
    ]
    peak = _peak_memory(request["provider"])
    middle = exact_batch(samples, 1, sorted(lengths)[len(lengths) // 2]) if lengths else None
    np.save(Path(request["samples"]) / "logits.npy", predict(opened.forward, samples), allow_pickle=False)
    return {
        "provider": opened.provider,
        "size_bytes": opened.size,
        "parameters": opened.parameters,
        "flops": opened.flops(middle) if opened.flops is not None and middle is not None else None,
        "peak_memory_bytes": peak,
        "load_seconds": loaded,
        "cells": cells,
    }


def time_cell(forward: Forward, batch: Batch, settings: Mapping[str, Any]) -> dict[str, Any]:
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


def predict(forward: Forward, samples: Encoded) -> NDArray[np.float32]:
    """Logits `[n, V]` of every row, in row order."""
    answers: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = [
        (rows, forward(collate(samples, rows)))
        for rows in sequential_batches(samples.lengths, tokens=_EVALUATION_TOKENS)
    ]
    logits = np.empty((len(samples), answers[0][1].shape[1]), dtype=np.float32)
    for rows, answer in answers:
        logits[rows] = answer
    return logits


def _open_pytorch(folder: Path, provider: str, threads: int) -> Opened:
    if provider == "cuda" and not torch.cuda.is_available():
        raise MissingError("PyTorch has no CUDA device here", where="bench.provider")
    device = torch.device(provider)
    model = Encoder.load(folder).eval().to(device)
    want = Want()

    def forward(batch: Batch) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = model.outputs(batch.to(device), want=want).logits.cpu().numpy()
        return logits

    opened = Opened(
        forward,
        f"PyTorch {device.type}",
        (folder / "model.safetensors").stat().st_size,
        model.spec.max_length,
    )
    opened.parameters = sum(parameter.numel() for parameter in model.parameters())
    opened.flops = lambda batch: flops_per_example(model, batch.to(device))
    return opened


def _open_onnxruntime(folder: Path, provider: str, threads: int) -> Opened:
    session = open_session(folder / MODEL, provider=provider, threads=threads)  # type: ignore[arg-type]
    config = json.loads((folder / "config.json").read_text())
    size = (folder / MODEL).stat().st_size
    return Opened(
        lambda batch: run_session(session, batch), session.get_providers()[0], size, config["max_length"]
    )


OPEN: Mapping[str, Callable[[Path, str, int], Opened]] = {
    "pytorch": _open_pytorch,
    "onnxruntime": _open_onnxruntime,
}


def _samples(folder: Path) -> Encoded:
    arrays = {
        name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("tokens", "types", "offsets")
    }
    rows = len(arrays["offsets"]) - 1
    return Encoded(
        **arrays,
        labels=None,
        ids=np.arange(rows),
        texts=((),) * rows,
        pad_id=json.loads((folder / "samples.json").read_text())["pad_id"],
        truncated=0,
        unknown=0,
        digest="",
    )


def _peak_memory(provider: str) -> int:
    if provider == "cuda" and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
