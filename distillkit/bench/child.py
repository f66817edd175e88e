"""The process that measures one variant: `python -m distillkit.bench.child`, asked by `process.Child`.

It loads one model once, runs nothing else, and is asked to open it, for each round, and to finish.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distillkit.answers import KEPT
from distillkit.bench.backends import BACKENDS, Machine
from distillkit.bench.process import serve
from distillkit.bench.samples import load_samples
from distillkit.bench.timing import Subject
from distillkit.bench.writing import time_texts
from distillkit.settings import BenchSettings, GenerationSettings
from distillkit.writing import write_tokens

ANSWERS, TOKENS = "answers.npy", "tokens.json"
"""What is left of a variant in its folder: what is kept of its answers, and what a model that writes wrote
for each sample.
"""


class Measuring:
    """What the process holds: nothing until it is asked to open a model."""

    def __init__(self) -> None:
        self._subject: Subject | None = None

    def answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Do what `question` says: open, round, or finish."""
        if question["do"] == "open":
            return self._open(question)
        assert self._subject is not None, "nothing was opened"
        if question["do"] == "round":
            self._subject.round()
            return {}
        return self._finish(self._subject, question)

    def _open(self, question: Mapping[str, Any]) -> dict[str, Any]:
        settings, machine = BenchSettings(**question["settings"]), Machine(**question["machine"])
        torch.set_num_threads(machine.threads)
        start = time.perf_counter()
        self._opened = BACKENDS[question["backend"]].open(Path(question["folder"]), machine)
        loaded = time.perf_counter() - start
        self._opened.peak = lambda: _peak_memory(machine.provider)
        self._how = None if question["writing"] is None else GenerationSettings(**question["writing"])
        if self._how is not None and self._opened.writer is not None:
            time_texts(self._opened, self._opened.writer, self._how, settings.new_tokens)
        samples = load_samples(Path(question["samples"]))
        self._subject = Subject(self._opened, samples, settings, seed=question["seed"])
        return {"load_seconds": loaded}

    def _finish(self, subject: Subject, question: Mapping[str, Any]) -> dict[str, Any]:
        told, answers = subject.finish(KEPT[question["kind"]])
        out = Path(question["out"])
        np.save(out / ANSWERS, answers, allow_pickle=False)
        writer = self._opened.writer
        if self._how is not None and writer is not None:
            texts = write_tokens(writer, subject.samples, self._how, device=self._opened.device)
            (out / TOKENS).write_text(json.dumps(texts))
        return told


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
    serve(Measuring().answer)
