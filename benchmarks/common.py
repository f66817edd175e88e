"""What the studies share: where the data lies, one run of a config, and results with the machine they came
from.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from distillkit import catalog, pipeline, recipe
from distillkit.report.facts import RunFacts, load_facts
from distillkit.rundir import environment

Cell = TypeVar("Cell")
ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("DISTILLKIT_DATA", ROOT.parent / "shared" / "data"))
RESULTS = ROOT / "benchmarks" / "results"
RUNS = Path(os.environ.get("DISTILLKIT_RUNS", ROOT / "runs" / "benchmarks"))
"""Folders of the studies' runs: an interrupted study goes on where it stopped."""


def run(config: Mapping[str, Any], *, until: str = "report") -> Path:
    """One run of a config given as plain values; returns its folder."""
    config = {"output": str(RUNS), **config}
    model = catalog.components().model_validate(config)
    loaded = recipe.Loaded(config=model, origins={}, base=ROOT)
    return pipeline.run(loaded, until=until, progress="plain").path


def facts(folder: Path) -> RunFacts:
    return load_facts(folder / "report" / "facts.json")


def scores(folder: Path, role: str) -> dict[str, dict[str, float]]:
    """Metric -> value, low, high, n of one role, read from the stage's own file."""
    content: dict[str, dict[str, float]] = json.loads((folder / role / "scores.json").read_text())["scores"]
    return content


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean, tasks and seeds drawn together."""
    draws = np.random.default_rng(0).choice(values, (10_000, len(values))).mean(axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(low), float(high)


def asked(tasks: Sequence[str], **flags: str) -> argparse.Namespace:
    """What a study that goes on where it stopped is asked on the command line; flags: name -> help."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no cell after so long")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--tasks", nargs="+", default=list(tasks), choices=list(tasks))
    for name, help_ in flags.items():
        parser.add_argument(f"--{name}", action="store_true", help=help_)
    return parser.parse_args()


def subset(path: Path, target: Path, count: int) -> Path:
    """`count` lines of a gzipped file, chosen once for all."""
    if not target.exists():
        with gzip.open(path, "rt", encoding="utf-8") as file:
            lines = file.readlines()
        target.parent.mkdir(parents=True, exist_ok=True)
        chosen = np.random.default_rng(0).permutation(len(lines))[:count]
        target.write_text("".join(lines[index] for index in sorted(chosen)), encoding="utf-8")
    return target


def take_up(name: str, path_of: Callable[[dict[str, Any]], Path]) -> None:
    """Lay the cells of a study's committed results beside those that were made here; `path_of` takes from a
    cell what names it.
    """
    committed = RESULTS / f"{name}.json"
    for told in json.loads(committed.read_text())["cells"] if committed.exists() else ():
        path = path_of(told)
        if not path.exists():
            path.write_text(json.dumps(told))


def measured(
    wanted: Sequence[Cell],
    path_of: Callable[[Cell], Path],
    measure: Callable[[Cell], dict[str, Any]],
    minutes: float,
) -> dict[Cell, dict[str, Any]]:
    """What a study's cells gave: those that are kept are read, the others made while there is time."""
    begin, found = time.monotonic(), {}
    for cell in wanted:
        path = path_of(cell)
        if not path.exists():
            if time.monotonic() - begin > 60 * minutes:
                continue
            told = measure(cell)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(told))
        found[cell] = json.loads(path.read_text())
    return found


def draw(name: str, drawn: Figure) -> None:
    """results/NAME.svg, the same bytes for the same figure."""
    drawn.tight_layout()
    plt.rcParams["svg.hashsalt"] = name
    drawn.savefig(RESULTS / f"{name}.svg", metadata={"Date": None})


def machine(seed: int) -> dict[str, Any]:
    return environment(seed, torch.get_num_threads())


def write_result(name: str, content: Mapping[str, Any], lines: Sequence[str]) -> None:
    """results/NAME.json with everything, results/NAME.md for people."""
    RESULTS.mkdir(exist_ok=True)
    facts = {"date": date.today().isoformat(), "machine": machine(int(content.get("seed", 0))), **content}
    written = json.dumps(facts, indent=1).replace(str(DATA), "../shared/data")  # wherever it lay
    (RESULTS / f"{name}.json").write_text(written + "\n")
    place = facts["machine"]
    head = [
        f"{place['cpu']}, {place['cores']} cores, {place['threads']} threads, {place['memory_gb']} GB; "
        f"Python {place['python']}, "
        + ", ".join(f"{key} {value}" for key, value in place["packages"].items()),
        f"{facts['date']}, commit {place['commit']}, written by benchmarks/{name}.py",
    ]
    (RESULTS / f"{name}.md").write_text("\n\n".join([lines[0], *head, "\n".join(lines[1:])]) + "\n")
    print("\n".join(lines))
