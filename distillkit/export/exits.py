"""The parts of a student that may answer early, in its artifact: exported, compared with PyTorch, and the
rule by which examples leave, chosen on rows that nothing is reported on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distillkit import evaluate
from distillkit.data.batching import Encoded
from distillkit.early_exit import (
    FACTS,
    FOLDER,
    Budget,
    Entropy,
    Never,
    Patience,
    Rule,
    answered,
    by_exit,
    every_exit,
    mean_depth,
    simulate,
    write_rule,
)
from distillkit.export.bundle import facts
from distillkit.export.onnx import write_segments
from distillkit.export.parity import Parity, batches, compared
from distillkit.metrics import LOWER_IS_BETTER
from distillkit.model import Student
from distillkit.runtime.early_exit import EarlyExit
from distillkit.runtime.session import open_session
from distillkit.settings import ExportSettings, Labels
from distillkit.types import Batch, Outputs, Want

ENTROPIES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
BUDGETS = (0.8, 0.65, 0.5)
"""Mean depths, as shares of the whole."""
TOLERANCES = (0.05, 0.1, 0.2)
"""Of numbers that count as the same, as shares of their standard deviation."""
_WANT = Want(exits=True)

Array = NDArray[Any]


def export_exits(
    student: Student,
    labels: Labels,
    metric: str,
    held_out: Encoded,
    folder: Path,
    settings: ExportSettings,
) -> Parity:
    """Write `segments/` and `exits.json` into an artifact's folder. `held_out` has labels; by its rows the
    rule is chosen: the fewest blocks at no loss of the metric. Raises ExportError (10) where a part computes
    another thing than PyTorch.
    """
    student = student.eval().cpu()
    (folder / FOLDER).mkdir()
    told = facts(student, labels)
    paths = write_segments(student, folder / FOLDER, opset=settings.opset, metadata=told)
    depths = (*student.spec.exits, student.spec.num_layers)
    sessions = [open_session(path, provider="cpu", threads=1) for path in paths]
    opened = EarlyExit(sessions, depths, Never())
    pairs = _pairs(student, opened, held_out, settings.rows)
    parity = compared(pairs, settings.tolerance)
    gold = held_out.gold
    assert gold is not None
    said_EnV = exit_logits(student, held_out)
    rules = candidates(labels, said_EnV, depths)
    chosen = choose(labels, metric, gold, said_EnV, depths, rules)
    content = {
        "depths": depths,
        "rule": write_rule(chosen),
        "rules": [write_rule(rule) for rule in rules],
        "chosen_on": {"rows": len(held_out), "metric": metric},
    }
    (folder / FACTS).write_text(json.dumps(content, indent=1))
    return parity


def exit_logits(student: Student, samples: Encoded) -> Array:
    """`[E, n, V]`: what every exit says of every row."""

    def outputs(batch: Batch) -> Outputs:
        said = student.outputs(batch, want=_WANT).exits
        return Outputs(torch.cat([one.logits for one in said], dim=1))

    with torch.inference_mode():
        flat = evaluate.predict(outputs, samples, device=torch.device("cpu"))
    return by_exit(flat, len(student.spec.exits) + 1)


def candidates(labels: Labels, said_EnV: Array, depths: Sequence[int]) -> tuple[Rule, ...]:
    """The rules that are compared; those with something to fit are fitted to these rows."""
    patience = range(1, len(depths) - 1)
    if labels.kind == "regression":
        spread = float(said_EnV[-1].std())
        return (
            Never(),
            *(Patience(times, share * spread) for times in (*patience, 1)[:2] for share in TOLERANCES),
        )
    lowest = [share * depths[-1] for share in BUDGETS if share * depths[-1] > depths[0]]
    return (
        Never(),
        *(Entropy(threshold) for threshold in ENTROPIES),
        *(Patience(times) for times in patience),
        *(Budget.fit(said_EnV, depths, depth) for depth in lowest),
    )


def choose(
    labels: Labels, metric: str, gold: Array, said_EnV: Array, depths: Sequence[int], rules: Sequence[Rule]
) -> Rule:
    """The rule that goes through the fewest blocks among those that lose nothing of the metric on these rows;
    of equals the first.
    """
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    whole = sign * evaluate.values(labels, gold, said_EnV[-1])[metric]
    best: tuple[float, Rule] = (float(depths[-1]), Never())
    for rule in rules:
        exits = simulate(said_EnV, rule)
        depth = mean_depth(exits, depths)
        kept = sign * evaluate.values(labels, gold, answered(said_EnV, exits))[metric] >= whole
        if kept and depth < best[0]:
            best = (depth, rule)
    return best[1]


def _pairs(
    student: Student, opened: EarlyExit, samples: Encoded, rows: int
) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.float32]]]:
    """Each exit's answer by PyTorch and by the parts, none of which anything leaves."""
    for name, batch in batches(samples, rows, student.spec.max_length):
        with torch.inference_mode():
            expected = [one.logits.numpy() for one in student.outputs(batch, want=_WANT).exits]
        inputs = {key: value.numpy() for key, value in batch.inputs.items()}
        for index, got in enumerate(every_exit(opened.parts, inputs)):
            yield f"exit {index + 1}, shape {name}", expected[index], got.astype(np.float32)
