"""Measures each model in each runtime, every one in a process of its own, in rounds that take turns, and its
quality again as it really runs.

A process stays between its rounds and computes nothing then. A variant that fails, crashes or hangs is a row
with its reason; the others go on. `measurements.json` holds the machine, the settings and one row per
variant, in the form that the report reads (distillkit/report/facts.py, BenchRow).
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from distillkit import evaluate
from distillkit.answers import KEPT
from distillkit.bench.backends import BACKENDS, Backend, Machine
from distillkit.bench.child import ANSWERS, TOKENS
from distillkit.bench.process import Child, FailedError
from distillkit.bench.rows import MEASUREMENTS, PLAIN, Cell, Measurement, Variant, share_counts, with_noise
from distillkit.bench.samples import save_samples
from distillkit.bench.timing import Opened, Subject
from distillkit.bench.writing import Texts, time_texts
from distillkit.data.batching import Encoded
from distillkit.errors import MissingError
from distillkit.metrics import Measured
from distillkit.runtime.session import require_provider
from distillkit.settings import BenchSettings, Labels
from distillkit.writing import write_tokens

_START_UP, _SLACK, _ANSWERING = 120.0, 20.0, 600.0
"""Seconds that a process may take to open a model, for a cell besides what is asked for, and to answer every
row."""
_TRIALS = 12
_TOLD = (
    "provider",
    "size_bytes",
    "parameters",
    "flops",
    "peak_memory_bytes",
    "load_seconds",
    "first_seconds",
    "scenarios",
)


@dataclass(frozen=True)
class Plan:
    """What all variants share. samples lie in `scratch` too; between: called while a process measures."""

    settings: BenchSettings
    machine: Machine
    samples: Encoded
    labels: Labels
    scratch: Path
    seed: int
    command: Sequence[str]
    texts: Texts | None
    between: Callable[[], None]

    def limit(self, backend: Backend, *, cells: bool = True) -> float:
        """Seconds that a round may take; without cells: what is left to do at the end."""
        settings = self.settings
        if not cells:
            return _ANSWERING + _TRIALS * (settings.seconds + _SLACK) * len(settings.scenarios)
        count = len(settings.batch) * len(settings.length)
        return _START_UP + count * (settings.seconds + _SLACK + backend.patience)


@dataclass(frozen=True)
class Finished:
    """What is left of a variant that was measured: figures by name, what is kept of its answers, and the
    metrics of what it wrote."""

    told: Mapping[str, Any]
    answers: NDArray[Any]
    written: Mapping[str, Measured]


class Taking(ABC):
    """A variant that takes its turns."""

    @abstractmethod
    def round(self) -> None:
        """Measure for one round; the first opens the model."""

    @abstractmethod
    def finish(self) -> Finished:
        """What was measured."""

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Let go of what it holds."""


class InChild(Taking):
    """In a process of its own, which is there from the first round on. Raises FailedError."""

    def __init__(self, variant: Variant, plan: Plan) -> None:
        self._variant, self._plan, self._backend = variant, plan, BACKENDS[variant.backend]
        self._child: Child | None = None
        self._opened: dict[str, Any] = {}

    def round(self) -> None:
        if self._child is None:
            self._child = Child(self._plan.command, threads=self._plan.machine.threads)
            limit = _START_UP + 2 * self._backend.patience
            self._opened = self._ask(limit, do="open", **self._what())
        self._ask(self._plan.limit(self._backend), do="round")

    def finish(self) -> Finished:
        plan = self._plan
        out = plan.scratch / self._variant.name
        out.mkdir()
        limit = plan.limit(self._backend, cells=False)
        told = self._ask(limit, do="finish", kind=plan.labels.kind, out=str(out))
        answers = np.load(out / ANSWERS, allow_pickle=False)
        written = {}
        if plan.texts is not None and (out / TOKENS).is_file():
            written = dict(plan.texts.score(json.loads((out / TOKENS).read_text())))
        return Finished({**self._opened, **told}, answers, written)

    def close(self) -> None:
        if self._child is not None:
            self._child.close()

    def _what(self) -> dict[str, Any]:
        plan, folder = self._plan, self._variant.folder
        assert folder is not None
        return {
            "backend": self._variant.backend,
            "folder": str(folder.absolute()),
            "machine": asdict(plan.machine),
            "settings": plan.settings.model_dump(mode="json"),
            "writing": None if plan.texts is None else plan.texts.how.model_dump(mode="json"),
            "samples": str(plan.scratch),
            "seed": plan.seed,
        }

    def _ask(self, limit: float, **question: Any) -> dict[str, Any]:
        assert self._child is not None
        return self._child.ask(question, limit=limit, between=self._plan.between)


class InThis(Taking):
    """Somebody's own code, which lives in this process alone and may raise anything. Memory is not told: it
    would be the run's.
    """

    def __init__(self, live: Callable[[], Opened], plan: Plan) -> None:
        self._live, self._plan = live, plan
        self._subject: Subject | None = None

    def round(self) -> None:
        self._quietly(self._round)

    def finish(self) -> Finished:
        finished: Finished = self._quietly(self._finish)
        return finished

    def _round(self) -> None:
        if self._subject is None:
            plan, opened = self._plan, self._live()
            if plan.texts is not None and opened.writer is not None:
                time_texts(opened, opened.writer, plan.texts.how, plan.settings.new_tokens)
            self._subject = Subject(opened, plan.samples, plan.settings, seed=plan.seed)
        self._subject.round()

    def _finish(self) -> Finished:
        assert self._subject is not None
        opened, plan = self._subject.opened, self._plan
        told, answers = self._subject.finish(KEPT[plan.labels.kind])
        written: Mapping[str, Measured] = {}
        if plan.texts is not None and opened.writer is not None:
            how = plan.texts.how
            written = plan.texts.score(write_tokens(opened.writer, plan.samples, how, device=opened.device))
        return Finished(told, answers, written)

    def _quietly(self, act: Callable[[], Any]) -> Any:
        before = torch.get_num_threads()
        torch.set_num_threads(self._plan.machine.threads)
        try:
            return act()
        except Exception as error:
            raise FailedError(f"failed: {type(error).__name__}: {error}") from error
        finally:
            torch.set_num_threads(before)


def bench(
    variants: Sequence[Variant],
    settings: BenchSettings,
    samples: Encoded,
    labels: Labels,
    folder: Path,
    *,
    seed: int,
    metric: str,
    command: Sequence[str],
    texts: Texts | None = None,
    between: Callable[[], None] = lambda: None,
) -> list[Measurement]:
    """Measure every variant, in processes that `command` starts, and write folder/measurements.json.

    metric: the one to lead with; texts: how models write, where they do, and how that is scored; between:
    called while a process measures; what it raises ends that process and this call.
    """
    machine = Machine(_provider(settings), settings.threads or physical_cores(), settings.spinning)
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory() as scratch:
        save_samples(samples, Path(scratch))
        plan = Plan(settings, machine, samples, labels, Path(scratch), seed, command, texts, between)
        finished = _take_turns(variants, plan)
    rows = with_noise(share_counts(_compared(variants, finished, plan)))
    content = {
        "machine": {**_described(machine), "load_before": load_before, "load_after": os.getloadavg()},
        "settings": settings.model_dump(mode="json"),
        "metric": metric,
        "measurements": [asdict(row) for row in rows],
    }
    (folder / MEASUREMENTS).write_text(json.dumps(content, indent=1))
    return rows


def _take_turns(variants: Sequence[Variant], plan: Plan) -> dict[str, Finished | str]:
    """Every variant by its name: what was measured, or why it was not. They take turns forward and backward,
    so that a machine that becomes slower favours none, and each is gone after its last turn.
    """
    found: dict[str, Finished | str] = {one.name: one.absent for one in variants if not _there(one)}
    taking = {one.name: _taking(one, plan) for one in variants if _there(one)}
    try:
        for number in range(plan.settings.rounds):
            for name in list(taking) if number % 2 == 0 else list(reversed(taking)):
                plan.between()
                try:
                    taking[name].round()
                    if number < plan.settings.rounds - 1:
                        continue
                    found[name] = taking[name].finish()
                except FailedError as error:
                    found[name] = str(error)
                taking.pop(name).close()
    finally:
        for one in taking.values():
            one.close()
    return found


def _there(variant: Variant) -> bool:
    return variant.live is not None or variant.folder is not None


def _taking(variant: Variant, plan: Plan) -> Taking:
    return InChild(variant, plan) if variant.live is None else InThis(variant.live, plan)


def _compared(
    variants: Sequence[Variant], finished: Mapping[str, Finished | str], plan: Plan
) -> list[Measurement]:
    """The row of each variant; of each but the plain form of its role, what it changes in that one's
    answers."""
    plain = _plain(variants, finished)
    rows = []
    for variant in variants:
        found = finished[variant.name]
        row = Measurement(
            variant.name,
            variant.role,
            variant.backend,
            plan.machine.provider,
            threads=plan.machine.threads,
            precision=BACKENDS[variant.backend].precision or _arithmetic(variant.format),
            format=variant.format,
        )
        if isinstance(found, str):
            rows.append(replace(row, status=found))
            continue
        row = _measured(row, found, plan)
        first = plain.get(variant.role)
        rows.append(row if first is None or first is found else _against(row, found, first, plan))
    return rows


def _arithmetic(form: str) -> str:
    """The precision of a form's arithmetic in ONNX Runtime."""
    return PLAIN if form == "fused" else form.partition("-")[0]


def _plain(variants: Sequence[Variant], finished: Mapping[str, Finished | str]) -> dict[str, Finished]:
    """By role what the others are compared with: the plain form in ONNX Runtime, or the model in PyTorch."""
    found: dict[str, Finished] = {}
    for backend in ("pytorch", "onnxruntime"):
        for variant in variants:
            one = finished[variant.name]
            if variant.backend == backend and variant.format == PLAIN and isinstance(one, Finished):
                found[variant.role] = one
    return found


def _measured(row: Measurement, found: Finished, plan: Plan) -> Measurement:
    """What its process measured, and the quality of what it answered."""
    told = {name: found.told[name] for name in _TOLD if name in found.told}
    scores = evaluate.score(plan.labels, _gold(plan.samples), found.answers, seed=plan.seed)
    metrics = {name: asdict(value) for name, value in {**scores, **found.written}.items()}
    return replace(row, **told, cells=[Cell(**cell) for cell in found.told["cells"]], metrics=metrics)


def _against(row: Measurement, found: Finished, plain: Finished, plan: Plan) -> Measurement:
    """With what it changes in the plain form's metrics and answers."""
    gold, answers = _gold(plan.samples), (found.answers, plain.answers)
    changed = evaluate.compare_scores(plan.labels, gold, *answers, seed=plan.seed)
    alike = evaluate.agreement(plan.labels, plain.answers, found.answers)
    return replace(row, difference={name: asdict(value) for name, value in changed.items()}, agreement=alike)


def _gold(samples: Encoded) -> NDArray[Any]:
    assert samples.gold is not None
    return samples.gold


def _described(machine: Machine) -> dict[str, Any]:
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "threads": machine.threads,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if machine.provider == "cuda" else "cpu",
        "spinning": machine.spinning,
    }


def physical_cores() -> int:
    import psutil

    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def _provider(settings: BenchSettings) -> Literal["cpu", "cuda"]:
    """The device to measure on. Raises MissingError (5) where the one asked for is not there."""
    if settings.provider == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if settings.provider == "cuda":
        backends = [BACKENDS[name] for name in settings.backends]
        if not all(one.exported for one in backends) and not torch.cuda.is_available():
            raise MissingError(
                "there is no CUDA device", where="bench.provider", hint="set bench.provider: cpu"
            )
        if "onnxruntime" in settings.backends:
            require_provider("cuda")
    return settings.provider
