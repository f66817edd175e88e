"""Rows on their way to a process that measures: tokens, which of them are answered, and which classes a row
may have where there are several tasks; no text and no label of a row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from distillkit.data.batching import Encoded
from distillkit.data.scoring import LabelledTokens, Scoring, TargetTokens, WholeExamples
from distillkit.data.tasks import TaskOfRows

_SCORINGS: Mapping[str, Scoring] = {
    "examples": WholeExamples(),
    "tokens": LabelledTokens(),
    "targets": TargetTokens(),
}


def save_samples(samples: Encoded, folder: Path) -> None:
    """Write what `load_samples` reads."""
    for name in ("tokens", "types", "offsets"):
        np.save(folder / f"{name}.npy", np.asarray(vars(samples)[name]), allow_pickle=False)
    if samples.scoring.by_token:
        np.save(folder / "labels.npy", np.asarray(samples.labels), allow_pickle=False)
    if samples.tasks is not None:
        np.save(folder / "task.npy", samples.tasks.task, allow_pickle=False)
        np.save(folder / "classes.npy", samples.tasks.classes, allow_pickle=False)
    scoring = next(name for name, one in _SCORINGS.items() if type(one) is type(samples.scoring))
    (folder / "samples.json").write_text(json.dumps({"pad_id": samples.pad_id, "scoring": scoring}))


def load_samples(folder: Path) -> Encoded:
    """The rows that `save_samples` wrote, without texts and labels of rows."""
    arrays = {
        name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("tokens", "types", "offsets")
    }
    told = json.loads((folder / "samples.json").read_text())
    scoring = _SCORINGS[told["scoring"]]
    rows = len(arrays["offsets"]) - 1
    tasks = None
    if (folder / "task.npy").is_file():
        task, classes = (np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("task", "classes"))
        tasks = TaskOfRows(task, classes, exponent=1.0)  # nothing is drawn there
    return Encoded(
        **arrays,
        labels=np.load(folder / "labels.npy", allow_pickle=False) if scoring.by_token else None,
        ids=np.arange(rows),
        texts=((),) * rows,
        pad_id=told["pad_id"],
        truncated=0,
        unknown=0,
        digest="",
        scoring=scoring,
        tasks=tasks,
    )
