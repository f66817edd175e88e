"""What leaving early keeps and saves: every rule of an artifact with exits, on real rows.

The parts answer every row once, so that quality and depth of each rule follow exactly; then the rules take
turns in walking real rows, beside the whole model. `python -m distillkit.bench.leaving` is the process that
does both; `measure_exits` asks it and adds what the rows' labels say.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillkit import evaluate
from distillkit.answers import logits
from distillkit.bench.measure import physical_cores
from distillkit.bench.process import Child, FailedError, serve
from distillkit.bench.samples import load_samples, save_samples
from distillkit.bench.timing import predict
from distillkit.data.batching import Encoded, collate
from distillkit.early_exit import (
    FACTS,
    Rule,
    answered,
    by_exit,
    every_exit,
    mean_depth,
    read_rule,
    simulate,
)
from distillkit.export.bundle import MODEL
from distillkit.metrics import Measured
from distillkit.runtime.early_exit import EarlyExit
from distillkit.runtime.session import open_session
from distillkit.settings import BenchSettings, Labels
from distillkit.types import Batch

RESULT = "exits.json"
"""In the bench's folder: one entry for each rule, in the form that the report reads (facts.ExitFacts)."""
_TIMED_ROWS = 96
"""Rows that every rule walks in each round, the first of them: a deployed model meets lengths as they come.
"""
_ROUNDS = 3
_LIMIT = 1200.0
_WHOLE = "whole"

Array = NDArray[Any]


def measure_exits(
    artifact: Path,
    settings: BenchSettings,
    samples: Encoded,
    labels: Labels,
    folder: Path,
    scratch: Path,
    *,
    seed: int,
    command: Sequence[str],
    between: Callable[[], None] = lambda: None,
) -> str:
    """Write folder/exits.json; returns what went wrong, or "". Measured on the CPU."""
    save_samples(samples, scratch)
    facts = json.loads((artifact / FACTS).read_text())
    request = {
        "folder": str(artifact.absolute()),
        "samples": str(scratch),
        "batch": settings.batch,
        "threads": settings.threads or physical_cores(),
    }
    result, reason = _asked(command, request, between)
    content: dict[str, Any] = {"depths": facts["depths"], "status": reason or "ok", "rules": []}
    if result is not None:
        said_EnV = np.load(scratch / "said.npy", allow_pickle=False)
        chosen = read_rule(facts["rule"])
        content["rules"] = [
            {
                "rule": rule.words,
                "chosen": rule == chosen,
                "ms": ms,
                "speedup": {size: result[_WHOLE][size] / value for size, value in ms.items()},
                **_judged(rule, said_EnV, facts["depths"], samples, labels, seed=seed),
            }
            for rule, ms in zip(map(read_rule, facts["rules"]), result["rules"], strict=True)
        ]
    (folder / RESULT).write_text(json.dumps(content, indent=1))
    return reason


def _asked(
    command: Sequence[str], request: Mapping[str, Any], between: Callable[[], None]
) -> tuple[dict[str, Any] | None, str]:
    """What the process measured, or None and why it did not."""
    with closing(Child(command, threads=request["threads"])) as child:
        try:
            return child.ask(request, limit=_LIMIT, between=between), ""
        except FailedError as failed:
            return None, str(failed)


def _judged(
    rule: Rule, said_EnV: Array, depths: Sequence[int], samples: Encoded, labels: Labels, *, seed: int
) -> dict[str, Any]:
    """What a rule makes of the rows: depth, shares by exit, quality, and what it costs of that."""
    gold = samples.gold
    assert gold is not None
    exits = simulate(said_EnV, rule)
    answers = answered(said_EnV, exits)
    calibration = evaluate.calibration(labels, gold, answers)
    lost = evaluate.compare_scores(labels, gold, answers, said_EnV[-1], seed=seed)
    return {
        "depth": mean_depth(exits, depths),
        "shares": (np.bincount(exits, minlength=len(depths)) / len(exits)).tolist(),
        "metrics": _plain(evaluate.score(labels, gold, answers, seed=seed)),
        "difference": _plain(lost),
        "ece": None if calibration is None else calibration.ece,
    }


def _plain(measured: Mapping[str, Measured]) -> dict[str, Any]:
    return {name: asdict(value) for name, value in measured.items()}


def measure(request: Mapping[str, Any]) -> dict[str, Any]:
    """Milliseconds a row, by batch size: of the whole model, and of each rule in the artifact's order."""
    folder, scratch = Path(request["folder"]), Path(request["samples"])
    opened = EarlyExit.open(folder, threads=request["threads"])
    whole = open_session(folder / MODEL, provider="cpu", threads=request["threads"])
    samples = load_samples(scratch)
    np.save(scratch / "said.npy", every_answer(opened, samples), allow_pickle=False)
    names = [entry.name for entry in whole.get_inputs()]
    walks: list[Callable[[Mapping[str, Array]], Any]] = [
        lambda inputs: whole.run(None, {name: inputs[name] for name in names})
    ]
    for rule in map(read_rule, json.loads((folder / FACTS).read_text())["rules"]):
        walks.append(lambda inputs, rule=rule: opened.run(inputs, rule))  # type: ignore[misc]
    timed: list[dict[str, float]] = [{} for _ in walks]
    for size in request["batch"]:
        batches = _in_order(samples, size)
        rows = sum(len(batch["attention_mask"]) for batch in batches)
        rounds = np.array([[_seconds(walk, batches) for walk in walks] for _ in range(_ROUNDS + 1)])[1:]
        for told, seconds in zip(timed, np.median(rounds, axis=0), strict=True):
            told[str(size)] = float(seconds) * 1000 / rows
    return {_WHOLE: timed[0], "rules": timed[1:]}


def every_answer(opened: EarlyExit, samples: Encoded) -> Array:
    """`[E, n, V]`: what every exit of the artifact says of every row; nothing leaves."""

    def forward(batch: Batch) -> NDArray[np.float32]:
        inputs = {name: value.numpy() for name, value in batch.inputs.items()}
        side_by_side: NDArray[np.float32] = np.concatenate(every_exit(opened.parts, inputs), axis=1)
        return side_by_side

    return by_exit(predict(forward, samples, logits), len(opened.parts))


def _in_order(samples: Encoded, size: int) -> list[dict[str, Array]]:
    count = min(_TIMED_ROWS, len(samples))
    starts = range(0, count, size)
    return [_inputs(samples, np.arange(start, min(start + size, count))) for start in starts]


def _inputs(samples: Encoded, rows: NDArray[np.int64]) -> dict[str, Array]:
    return {name: value.numpy() for name, value in collate(samples, rows).inputs.items()}


def _seconds(walk: Callable[[Mapping[str, Array]], Any], batches: Sequence[Mapping[str, Array]]) -> float:
    start = time.perf_counter()
    for batch in batches:
        walk(batch)
    return time.perf_counter() - start


if __name__ == "__main__":
    serve(measure)
