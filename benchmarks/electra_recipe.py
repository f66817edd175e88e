"""The recipe by which `electra_orderings.py` fine-tunes every model: chosen on validation rows, by random
weights and by a masked language model alike, before any test row was looked at.

The recipe with the highest mean over tasks and over both models is taken, so that neither is tuned for. Seed
0, which the study itself does not use.
Usage: python benchmarks/electra_recipe.py [--minutes N] [--tasks trec ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from arms import FOLDER, RANDOM, SCALES, TASKS, pretrained, recipe, tuned, untrained
from common import measured, write_result

NAME = "electra_recipe"
SCALE, SEED = SCALES["cpu"], 0
MODELS = (RANDOM, "MLM")
RATES, DECAYS = (3e-4, 1e-3, 3e-3), (0.8,)
Cell = tuple[str, str, float, float]
"""Task, model, rate, layer-wise decay."""


def measure(cell: Cell) -> dict[str, Any]:
    task, model, rate, decay = cell
    name = f"recipe-{'random' if model == RANDOM else 'mlm'}"
    if model == RANDOM:
        folder = untrained(SCALE, SEED)
    else:
        folder, _ = pretrained(SCALE, name, model, SCALE.budget, SEED)
    counts = tuned(SCALE, name, folder, task, SEED, recipe(rate, decay), test=False)
    return {"accuracy": sum(counts["right"]) / sum(counts["words"])}


def table(found: Mapping[Cell, Mapping[str, Any]], tasks: list[str]) -> list[str]:
    columns = [f"{task}, {model}" for task, model in product(tasks, MODELS)]
    lines = [f"| rate | layer decay | {' | '.join(columns)} | mean |", "|---" * (len(columns) + 3) + "|"]
    for rate, decay in product(RATES, DECAYS):
        cells = [(task, model, rate, decay) for task, model in product(tasks, MODELS)]
        if all(cell in found for cell in cells):
            values = [100 * found[cell]["accuracy"] for cell in cells]
            told = " | ".join(f"{value:.1f}" for value in values)
            lines.append(f"| {rate:g} | {decay:g} | {told} | {np.mean(values):.2f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no cell after so long")
    parser.add_argument("--tasks", nargs="+", default=["trec"], choices=list(TASKS))
    given = parser.parse_args()

    def place(cell: Cell) -> Path:
        return FOLDER / NAME / ("-".join(map(str, cell)).replace(" ", "-") + ".json")

    wanted = list(product(given.tasks, MODELS, RATES, DECAYS))
    found = measured(wanted, place, measure, given.minutes)
    lines = [
        "# How the study of orderings fine-tunes",
        f"Accuracy on validation rows, %, of random weights and of the masked language model at "
        f"{SCALE.budget:.0e} FLOPs, seed 0, after fine-tuning.",
        "",
        *table(found, given.tasks),
    ]
    names = ("task", "model", "rate", "decay")
    cells = [dict(zip(names, cell, strict=True)) | told for cell, told in found.items()]
    write_result(NAME, {"seed": SEED, "cells": cells}, lines)


if __name__ == "__main__":
    main()
