"""Measures each model in each runtime, every one in a process of its own, and its quality again as it really
runs.

A variant that fails, crashes or hangs is a row with its reason; the others go on. `measurements.json` holds
the machine, the settings and one row per variant, in the form that the report reads
(distillkit/report/facts.py, BenchRow).
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from distillkit import evaluate
from distillkit.answers import KEPT
from distillkit.bench.samples import save_samples
from distillkit.bench.timing import Opened, measure_opened
from distillkit.bench.writing import Texts, writing_cell
from distillkit.data.batching import Encoded
from distillkit.errors import MissingError
from distillkit.metrics import Measured
from distillkit.runtime.session import require_provider
from distillkit.settings import BenchSettings, Labels
from distillkit.writing import write_tokens

Role = Literal["teacher", "student"]
Backend = Literal["pytorch", "onnxruntime"]
_START_UP = 120.0
_SLACK = 20.0
_LOOK_UP = 0.5
"""Seconds between two looks at whether a stop was asked for; rare enough not to disturb what is timed."""
_TOLD = ("provider", "size_bytes", "parameters", "flops", "peak_memory_bytes", "load_seconds")


@dataclass(frozen=True)
class Variant:
    """A model in a runtime: `folder` holds what `Student.save` wrote (pytorch) or the artifact
    (onnxruntime). One that lives in this process alone is opened by `live`; where there is neither, `absent`
    says why there is nothing to measure. format: the form of the artifact.
    """

    name: str
    role: Role
    backend: Backend
    folder: Path | None
    absent: str = ""
    live: Callable[[], Opened] | None = None
    format: str = "fp32"


@dataclass(frozen=True)
class Cell:
    """One batch x length. Times are milliseconds for the whole batch; spread is (p95 - p50) / p50. Of a model
    that writes texts: of whole texts, with tokens a second and the median time until the first token.
    """

    batch: int
    length: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    examples_per_s: float
    iterations: int
    spread: float
    tokens_per_s: float | None = None
    first_ms: float | None = None


@dataclass(frozen=True)
class Measurement:
    """One row: status is "ok" or the reason why there is nothing else. difference: of another form of an
    artifact, its metrics minus those of the plain form, on the same rows.
    """

    name: str
    role: Role
    backend: Backend
    provider: str
    status: str = "ok"
    threads: int = 0
    size_bytes: int | None = None
    parameters: int | None = None
    flops: float | None = None
    peak_memory_bytes: int | None = None
    load_seconds: float | None = None
    cells: list[Cell] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    format: str = "fp32"
    difference: dict[str, Any] = field(default_factory=dict)


def bench(
    variants: Sequence[Variant],
    settings: BenchSettings,
    samples: Encoded,
    labels: Labels,
    folder: Path,
    *,
    seed: int,
    command: Sequence[str],
    texts: Texts | None = None,
    between: Callable[[], None] = lambda: None,
) -> list[Measurement]:
    """Measure every variant with `command` request.json result.json, and write folder/measurements.json.

    texts: how models write, where they do, and how that is scored; between: called while a process measures;
    what it raises ends that process and this call.
    """
    provider = _provider(settings)
    threads = settings.threads or physical_cores()
    load_before = os.getloadavg()
    rows: list[Measurement] = []
    plain: dict[tuple[str, str], NDArray[Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        save_samples(samples, Path(scratch))
        for variant in variants:
            between()
            bare = Measurement(
                variant.name,
                variant.role,
                variant.backend,
                provider,
                threads=threads,
                format=variant.format,
            )
            if variant.live is not None:
                rows.append(_measure_here(bare, variant.live, settings, samples, labels, texts, seed=seed))
                continue
            if variant.folder is None:
                rows.append(replace(bare, status=variant.absent))
                continue
            request = {
                "backend": variant.backend,
                "folder": str(variant.folder.absolute()),
                "provider": provider,
                "threads": threads,
                "kind": labels.kind,
                "writing": None if texts is None else texts.how.model_dump(mode="json"),
                "samples": scratch,
                "settings": settings.model_dump(mode="json"),
            }
            result, reason = run_child(
                command, request, Path(scratch), limit=_limit(settings), between=between
            )
            if result is None:
                rows.append(replace(bare, status=reason))
                continue
            answers = np.load(Path(scratch) / "answers.npy", allow_pickle=False)
            scores = evaluate.score(labels, _gold(samples), answers, seed=seed)
            row = _measured(bare, result, {**scores, **_of_texts(texts, Path(scratch))})
            if variant.format == "fp32":
                plain[variant.role, variant.backend] = answers
            elif (variant.role, variant.backend) in plain:
                first = plain[variant.role, variant.backend]
                told = evaluate.compare_scores(labels, _gold(samples), answers, first, seed=seed)
                row = replace(row, difference={name: asdict(value) for name, value in told.items()})
            rows.append(row)
    rows = _share_flops(rows)
    machine = {
        "system": f"{platform.system()} {platform.machine()}",
        "threads": threads,
        "load_before": load_before,
        "load_after": os.getloadavg(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if provider == "cuda" else "cpu",
        "spinning": False,
    }
    content = {
        "machine": machine,
        "settings": settings.model_dump(mode="json"),
        "measurements": [asdict(row) for row in rows],
    }
    (folder / "measurements.json").write_text(json.dumps(content, indent=1))
    return rows


def _of_texts(texts: Texts | None, scratch: Path) -> Mapping[str, Measured]:
    """The metrics of what a process wrote; none where it writes nothing."""
    path = scratch / "tokens.json"
    if texts is None or not path.is_file():
        return {}
    scores = texts.score(json.loads(path.read_text()))
    path.unlink()
    return scores


def run_child(
    command: Sequence[str],
    request: dict[str, Any],
    scratch: Path,
    *,
    limit: float,
    between: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Any] | None, str]:
    """(result, "") of one child process, or (None, why there is none). A signal to this process's group does
    not reach it.
    """
    ask, answer = scratch / "request.json", scratch / "result.json"
    answer.unlink(missing_ok=True)
    ask.write_text(json.dumps(request))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(request["threads"]),
        "TOKENIZERS_PARALLELISM": "false",
    }
    started = time.monotonic()
    with subprocess.Popen(
        [*command, str(ask), str(answer)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as child:
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    _, said = child.communicate(timeout=_LOOK_UP)
                    break
                between()
                if time.monotonic() - started > limit:
                    return None, f"did not finish within {limit:.0f} s"
        finally:
            child.kill()
    if child.returncode < 0:
        return None, f"the process was killed by signal {-child.returncode}"
    if not answer.is_file():
        lines = [line for line in said.splitlines() if line.strip()]
        return None, f"failed (exit code {child.returncode}): {lines[-1] if lines else 'no message'}"
    result: dict[str, Any] = json.loads(answer.read_text())
    return (result, "") if "error" not in result else (None, str(result["error"]))


def _measure_here(
    bare: Measurement,
    live: Callable[[], Opened],
    settings: BenchSettings,
    samples: Encoded,
    labels: Labels,
    texts: Texts | None,
    *,
    seed: int,
) -> Measurement:
    """The row of somebody's own code, which may raise anything. Memory is not told: it would be the run's."""
    before = torch.get_num_threads()
    torch.set_num_threads(bare.threads)
    try:
        opened = live()
        written: Mapping[str, Measured] = {}
        if texts is not None and opened.writer is not None:
            opened.cell = writing_cell(opened.writer, opened.device, texts.how)
            written = texts.score(write_tokens(opened.writer, samples, texts.how, device=opened.device))
        told, answers = measure_opened(opened, samples, settings.model_dump(mode="json"), KEPT[labels.kind])
    except Exception as error:
        return replace(bare, status=f"failed: {type(error).__name__}: {error}")
    finally:
        torch.set_num_threads(before)
    return _measured(bare, told, {**evaluate.score(labels, _gold(samples), answers, seed=seed), **written})


def physical_cores() -> int:
    import psutil

    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def _measured(bare: Measurement, result: dict[str, Any], scores: Mapping[str, Measured]) -> Measurement:
    """The row of a variant that ran: what its process measured, and the quality of what it answered."""
    told = {name: result[name] for name in _TOLD if name in result}
    cells = [Cell(**cell) for cell in result["cells"]]
    return replace(bare, **told, cells=cells, metrics={name: asdict(value) for name, value in scores.items()})


def _gold(samples: Encoded) -> NDArray[Any]:
    assert samples.gold is not None
    return samples.gold


def _share_flops(rows: list[Measurement]) -> list[Measurement]:
    """An ONNX row takes the count and the parameters of the PyTorch row of its role: the same computation."""
    counted = {row.role: row for row in rows if row.flops is not None}
    return [
        replace(row, flops=counted[row.role].flops, parameters=counted[row.role].parameters)
        if row.flops is None and row.role in counted
        else row
        for row in rows
    ]


def _provider(settings: BenchSettings) -> Literal["cpu", "cuda"]:
    """The device to measure on. Raises MissingError (5) where the one asked for is not there."""
    if settings.provider == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if settings.provider == "cuda":
        if "pytorch" in settings.backends and not torch.cuda.is_available():
            raise MissingError(
                "there is no CUDA device", where="bench.provider", hint="set bench.provider: cpu"
            )
        if "onnxruntime" in settings.backends:
            require_provider("cuda")
    return settings.provider


def _limit(settings: BenchSettings) -> float:
    cells = len(settings.batch) * len(settings.length)
    return _START_UP + cells * (settings.seconds + _SLACK)
