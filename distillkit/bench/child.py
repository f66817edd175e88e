"""The process that measures one variant: `python -m distillkit.bench.child request.json result.json`.

It loads one model once, runs nothing else, and leaves result.json and answers.npy beside it.
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

from distillkit.answers import KEPT
from distillkit.bench.samples import load_samples
from distillkit.bench.timing import Opened, measure_opened
from distillkit.bench.writing import writing_cell
from distillkit.errors import DistillkitError, MissingError
from distillkit.export.bundle import MODEL
from distillkit.export.decoding import DECODER, ENCODER, OnnxWriter
from distillkit.export.parity import run as run_session
from distillkit.flops import flops_per_example
from distillkit.opening import open_model
from distillkit.runtime.session import open_session
from distillkit.settings import GenerationSettings
from distillkit.types import Batch, Want
from distillkit.writing import write_tokens

TOKENS = "tokens.json"
"""What a model that writes wrote for each sample."""


def serve(measure: Callable[[Mapping[str, Any]], dict[str, Any]], arguments: list[str]) -> int:
    """Read the request, measure, write the result (or the error, in words); the exit code."""
    request, target = json.loads(Path(arguments[0]).read_text()), Path(arguments[1])
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
    opened.peak = lambda: _peak_memory(request["provider"])
    scratch = Path(request["samples"])
    samples = load_samples(scratch)
    how = None if request["writing"] is None else GenerationSettings(**request["writing"])
    if how is not None and opened.writer is not None:
        opened.cell = writing_cell(opened.writer, opened.device, how)
    told, answers = measure_opened(opened, samples, request["settings"], KEPT[request["kind"]])
    np.save(scratch / "answers.npy", answers, allow_pickle=False)
    if how is not None and opened.writer is not None:
        texts = write_tokens(opened.writer, samples, how, device=opened.device)
        (scratch / TOKENS).write_text(json.dumps(texts))
    return {**told, "load_seconds": loaded}


def _open_pytorch(folder: Path, provider: str, threads: int) -> Opened:
    if provider == "cuda" and not torch.cuda.is_available():
        raise MissingError("PyTorch has no CUDA device here", where="bench.provider")
    device = torch.device(provider)
    model = open_model(folder).eval().to(device)
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
    opened.writer, opened.device = model.writer, device
    return opened


def _open_onnxruntime(folder: Path, provider: str, threads: int) -> Opened:
    if (folder / DECODER).is_file():
        return _open_graphs(folder, provider, threads)
    session = open_session(folder / MODEL, provider=provider, threads=threads)  # type: ignore[arg-type]
    config = json.loads((folder / "config.json").read_text())
    size = (folder / MODEL).stat().st_size
    return Opened(
        lambda batch: run_session(session, batch), session.get_providers()[0], size, config["max_length"]
    )


def _open_graphs(folder: Path, provider: str, threads: int) -> Opened:
    """An encoder and a decoder."""
    made = OnnxWriter.open(folder, threads=threads, provider=provider)  # type: ignore[arg-type]
    config = json.loads((folder / "config.json").read_text())
    size = sum((folder / name).stat().st_size for name in (ENCODER, DECODER))
    opened = Opened(made.logits, made.provider_name, size, config["max_length"])
    opened.writer = made
    return opened


OPEN: Mapping[str, Callable[[Path, str, int], Opened]] = {
    "pytorch": _open_pytorch,
    "onnxruntime": _open_onnxruntime,
}


def _peak_memory(provider: str) -> int:
    if provider == "cuda" and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    return peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Most memory this process ever had in RAM. Not `ru_maxrss` where there is another way: on Linux a
    process inherits that of the one which started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    sys.exit(serve(measure, sys.argv[1:]))
