"""What a pretraining objective is worth at equal FLOPs: masked language model, Replace-MLM, ELECTRA 15 %,
All-Tokens MLM and ELECTRA, in one architecture, on one corpus, from the same sequences.

Primary metric, stated before anything was run: accuracy of a linear probe of frozen states on the words of
CoNLL-2000 chunking's test part, the block chosen on validation words. Then minimal pairs (BLiMP, within a
family of scores only) and fine-tuning, by one recipe for all that `electra_recipe.py` chose on validation
rows. An order is claimed where two 95 % intervals of the paired difference leave out 0: a bootstrap of seeds
and sentences, and Student's t over seeds; of gaps that the paper has at 0.2 points or less, equivalence
within MARGIN is asked instead, of both intervals. FLOPs are distillkit's honest ones: matrix products, 3
forwards a step.

Beside the arms, mechanisms on held-out documents: the generator's width, what is tied, and how DeBERTa-v3
shares its table. One teacher is pretrained longer, and asked whether it beats random weights on every task.
Each cell is kept when it is done: an interrupted study goes on with the next, also from the committed results
on another machine. --scale gpu: the shape of ELECTRA-Small on one GPU; also two-stage and adversarial.
Usage: python benchmarks/electra_orderings.py [--scale cpu] [--minutes N] [--seeds 1 2 3]
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from arms import (
    ARMS,
    FOLDER,
    MECHANISMS,
    RANDOM,
    RECIPE,
    SCALES,
    SHARING,
    TASKS,
    Scale,
    pretrained,
    tuned,
    untrained,
)
from common import draw, measured, take_up, write_result
from numpy.typing import NDArray
from probes import chunking, masked_likelihood, minimal_pairs, original_odds
from scipy import stats

FAMILIES = {"MLM": masked_likelihood, "ELECTRA": original_odds, "ELECTRA 15 %": original_odds}
LONGER = 1
"""Seed of the teacher that is pretrained longer; it and random weights of this seed are fine-tuned too."""
PRIMARY = "chunking"
MARGIN = 1.5
"""Points within which two arms are called equivalent."""
ASKED = (
    ("ELECTRA", "ELECTRA 15 %", 2.6, "order"),
    ("All-Tokens MLM", "MLM", 2.1, "order"),
    ("ELECTRA", "MLM", 2.8, "order"),
    ("ELECTRA", "All-Tokens MLM", 0.7, "order"),
    ("Replace-MLM", "MLM", 0.2, "equivalence"),
    ("ELECTRA 15 %", "MLM", 0.2, "equivalence"),
)
"""Pairs of arms, the paper's gap on GLUE in points (table 5, base size), and what is asked of them."""
Cell = tuple[str, str, float, int]
"""Scale, arm, budget, seed."""
Found = Mapping[Cell, Mapping[str, Any]]


@dataclass(frozen=True)
class Apart:
    """Points between two models; 95 % intervals by a bootstrap of seeds and sentences together, and by
    Student's t over seeds (None of one seed)."""

    mean: float
    drawn: tuple[float, float]
    by_t: tuple[float, float] | None
    seeds: int

    def inside(self, low: float, high: float) -> bool:
        return all(low < one[0] and one[1] < high for one in (self.drawn, self.by_t) if one is not None)

    def __str__(self) -> str:
        told = f"{self.mean:+.2f} ({self.drawn[0]:+.2f} to {self.drawn[1]:+.2f}"
        by_t = "" if self.by_t is None else f"; t {self.by_t[0]:+.2f} to {self.by_t[1]:+.2f}"
        return f"{told}{by_t})"


def slug(cell: Cell) -> str:
    scale, arm, budget, seed = cell
    kept = "".join(sign if sign.isalnum() else "-" for sign in arm.lower())
    return f"{scale}-{kept}-{budget:.0e}-{seed}".replace("+", "").replace("--", "-")


def measure(cell: Cell) -> dict[str, Any]:
    kind, arm, budget, seed = cell
    scale, name, start = SCALES[kind], slug(cell), time.monotonic()
    found: dict[str, Any] = {}
    if arm == RANDOM:
        folder = untrained(scale, seed)
    else:
        folder, seen = pretrained(scale, name, arm, budget, seed)
        found |= seen
    if arm == RANDOM or arm in ARMS:
        found["tasks"] = {PRIMARY: chunking(folder, scale.length)}
    if budget == scale.long or (arm == RANDOM and seed == LONGER):
        for task in TASKS:
            found["tasks"][task] = tuned(scale, name, folder, task, seed, RECIPE, test=True)
    if arm in FAMILIES:
        found["blimp"] = minimal_pairs(folder, FAMILIES[arm])
    if arm != RANDOM:
        shutil.rmtree(folder)
    return found | {"seconds": time.monotonic() - start}


def wanted(kind: str, seeds: list[int]) -> list[Cell]:
    """In the order in which they are made, so that a study that was cut off says as much as it can."""
    scale = SCALES[kind]
    cells: list[Cell] = []
    for seed in seeds:
        cells.append((kind, RANDOM, 0.0, seed))
        cells += [(kind, arm, scale.budget, seed) for arm in {**scale.more, **ARMS}]
        if seed == LONGER:
            cells.append((kind, "MLM", scale.long, seed))
    for seed in seeds:
        cells += [(kind, arm, scale.small, seed) for arm in {**MECHANISMS, **SHARING}]
    cells.append((kind, "ELECTRA", scale.long, LONGER))
    return cells


def points(told: Mapping[str, Any], task: str = PRIMARY) -> float:
    counts = told["tasks"][task]
    return 100 * sum(counts["right"]) / sum(counts["words"])


def difference(found: Found, task: str, one: tuple[str, float], other: tuple[str, float]) -> Apart | None:
    """Of two arms, each at a budget, on the same rows from the same seeds; None where no seed has both."""
    pairs = []
    for (kind, arm, at, seed), told in found.items():
        against = found.get((kind, other[0], other[1], seed))
        if (arm, at) == one and against and all(task in side.get("tasks", {}) for side in (told, against)):
            both = told["tasks"][task], against["tasks"][task]
            pairs.append(np.asarray(both[0]["right"]) - np.asarray(both[1]["right"]))
            words = np.asarray(both[0]["words"])
    return apart(np.stack(pairs), words) if pairs else None


def apart(gaps_SR: NDArray[np.int64], words_R: NDArray[np.int64]) -> Apart:
    """Of answers more that are right, by seed and row, and how many answers a row has."""
    seeds, rows = gaps_SR.shape
    generator = np.random.default_rng(0)
    means = []
    for _ in range(4000):
        row = generator.integers(0, rows, rows)
        seed = generator.integers(0, seeds, seeds)
        means.append(100 * gaps_SR[np.ix_(seed, row)].sum() / (seeds * words_R[row].sum()))
    low, high = np.quantile(means, (0.025, 0.975))
    each = 100 * gaps_SR.sum(axis=1) / words_R.sum()
    by_t = None
    if seeds > 1:
        half = float(stats.t.ppf(0.975, seeds - 1) * each.std(ddof=1) / seeds**0.5)
        by_t = float(each.mean()) - half, float(each.mean()) + half
    return Apart(float(each.mean()), (float(low), float(high)), by_t, seeds)


def shown(values: list[float]) -> str:
    """Mean, smallest and largest."""
    if not values:
        return "-"
    low, high = min(values), max(values)
    return f"{np.mean(values):.1f}" + (f" ({low:.1f} to {high:.1f})" if len(values) > 1 else "")


def of(found: Found, arm: str, budget: float) -> list[Mapping[str, Any]]:
    return [one for (_, name, at, _), one in found.items() if (name, at) == (arm, budget)]


def rows(scale: Scale) -> Iterator[tuple[str, float]]:
    yield RANDOM, 0.0
    yield from product({**ARMS, **scale.more}, (scale.budget, scale.long))


def cost(budget: float) -> str:
    return f"{budget:.0e}".replace("e+", "e") if budget else "0"


def table(found: Found, scale: Scale) -> list[str]:
    lines = [
        f"| arm | FLOPs | steps | {PRIMARY}, frozen (primary) | {' | '.join(TASKS)} | BLiMP | seeds |",
        "|---" * (len(TASKS) + 6) + "|",
    ]
    for arm, budget in rows(scale):
        if told := of(found, arm, budget):
            columns = [
                [points(one, task) for one in told if task in one["tasks"]] for task in (PRIMARY, *TASKS)
            ]
            columns.append([100 * one["blimp"]["all"] for one in told if "blimp" in one])
            steps = told[0].get("steps", 0)
            values = " | ".join(map(shown, columns))
            lines.append(f"| {arm} | {cost(budget)} | {steps} | {values} | {len(told)} |")
    return lines


def verdicts(found: Found, scale: Scale) -> list[str]:
    lines = [
        "| pair | FLOPs | points apart (95 % intervals) | seeds | the paper, GLUE | asked | answer |",
        "|---|---|---|---|---|---|---|",
    ]
    for (one, other, paper, asked), budget in product(ASKED, (scale.budget, scale.long)):
        told = difference(found, PRIMARY, (one, budget), (other, budget))
        if told is not None:
            lines.append(
                f"| {one} - {other} | {cost(budget)} | {told} | {told.seeds} | {paper:+.1f} | {asked} | "
                f"{answer(told, asked)} |"
            )
    return lines


def answer(told: Apart, asked: str) -> str:
    if told.seeds < 2:
        return "one seed: no claim"
    if asked == "equivalence":
        return f"equivalent within {MARGIN}" if told.inside(-MARGIN, MARGIN) else "open"
    if told.inside(0, np.inf):
        return "above"
    return "below" if told.inside(-np.inf, 0) else "open"


def against_random(found: Found, scale: Scale) -> list[str]:
    """Every pretrained model minus random weights of its seed, on every task."""
    lines = [
        "| pretrained | FLOPs | task | points above random weights (95 % intervals) | seeds | beats them |",
        "|---|---|---|---|---|---|",
    ]
    for (arm, budget), task in product(rows(scale), (PRIMARY, *TASKS)):
        told = difference(found, task, (arm, budget), (RANDOM, 0.0))
        if told is not None and arm != RANDOM:
            beats = "yes" if told.inside(0, np.inf) else "no"
            what = f"{task}, frozen" if task == PRIMARY else f"{task}, fine-tuned"
            lines.append(f"| {arm} | {cost(budget)} | {what} | {told} | {told.seeds} | {beats} |")
    return lines


def mechanisms(found: Found, scale: Scale) -> list[str]:
    """What generator and main model came to on held-out documents."""
    names = ("generator", "sampled_accuracy", "replaced_rate", "discriminator", "majority_loss", "auc")
    lines = [
        f"| pair | FLOPs | steps | {' | '.join(names)} | tokens judged, of these masked | seeds |",
        "|---" * (len(names) + 5) + "|",
    ]
    every = product({**ARMS, **scale.more}, (scale.budget, scale.long))
    for arm, budget in [*every, *product({**MECHANISMS, **SHARING}, [scale.small])]:
        held = [one["held"] for one in of(found, arm, budget)]
        if held and "generator" in held[0]:
            values = " | ".join(shown_rate([one[name] for one in held if name in one]) for name in names)
            read = max(value for name, value in held[0].items() if name.endswith(" tokens"))
            judged = f"{read:,.0f}, {held[0]['generator tokens']:,.0f}"
            steps = of(found, arm, budget)[0]["steps"]
            lines.append(f"| {arm} | {cost(budget)} | {steps} | {values} | {judged} | {len(held)} |")
    return lines


def shown_rate(values: Sequence[float]) -> str:
    if not values:
        return "-"
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def masked_losses(found: Found, scale: Scale) -> list[str]:
    """Held-out loss of the arms that predict tokens at masked positions."""
    lines = ["| arm | FLOPs | held-out loss, nats a token | seeds |", "|---|---|---|---|"]
    for arm, budget in product(("MLM", "Replace-MLM"), (scale.budget, scale.long)):
        losses = [one["held"]["replace_mlm"] for one in of(found, arm, budget)]
        if losses:
            lines.append(f"| {arm} | {cost(budget)} | {shown_rate(losses)} | {len(losses)} |")
    return lines


def figure(found: Found, name: str, scale: Scale) -> None:
    """results/NAME.svg: the primary metric against FLOPs, a dot for each seed."""
    drawn, axes = plt.subplots(figsize=(7, 4.5))
    for number, arm in enumerate({**ARMS, **scale.more}):
        dots = [(at, points(one)) for (_, name, at, _), one in found.items() if name == arm]
        means = [(at, np.mean([y for x, y in dots if x == at])) for at in sorted({x for x, _ in dots})]
        if dots:
            axes.plot(*zip(*dots, strict=True), "o", color=f"C{number}", alpha=0.4)
            axes.plot(*zip(*means, strict=True), "-", color=f"C{number}", label=arm)
    start = [points(one) for one in of(found, RANDOM, 0.0)]
    if start:
        axes.axhline(float(np.mean(start)), color="grey", linewidth=0.8, label=RANDOM)
    axes.set_xscale("log")
    axes.set_xlabel("FLOPs of pretraining")
    axes.set_ylabel("chunking, % of words")
    axes.legend()
    draw(name, drawn)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", choices=list(SCALES), default="cpu")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no cell after so long")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    given = parser.parse_args()
    scale = SCALES[given.scale]
    name = "electra_orderings" if given.scale == "cpu" else "electra_orderings_gpu"
    (FOLDER / "cells").mkdir(parents=True, exist_ok=True)

    def place(cell: Cell) -> Path:
        return FOLDER / "cells" / f"{slug(cell)}.json"

    take_up(name, lambda told: place(tuple(told.pop(key) for key in ("scale", "arm", "budget", "seed"))))
    cells = wanted(given.scale, given.seeds)
    found = measured(cells, place, measure, given.minutes)
    hours = sum(told["seconds"] for told in found.values()) / 3600
    lines = [
        "# Pretraining objectives at equal FLOPs",
        f"{len(found)} of {len(cells)} cells, {hours:.1f} hours, seeds {given.seeds}, {scale.precision}. "
        f"Main model {json.dumps(scale.size)}, length {scale.length}, batches of {scale.batch}, rate "
        f"{scale.lr}. "
        f"Fine-tuning {json.dumps(RECIPE)}. Mean over seeds (smallest to largest).",
        "",
        *table(found, scale),
        "",
        "BLiMP compares within a family of scores only: a pseudo-log-likelihood for MLM, the odds that each "
        "token is original for ELECTRA and ELECTRA 15 %.",
        "",
        *verdicts(found, scale),
        "",
        "Intervals: a bootstrap of seeds and sentences; after `t`, Student's t over seeds. An answer needs "
        "both.",
        "",
        "## Pretrained here against random weights",
        "",
        *against_random(found, scale),
        "",
        "## Generator and discriminator on held-out documents",
        "",
        *mechanisms(found, scale),
        "",
        *masked_losses(found, scale),
        "",
        f"![score against FLOPs]({name}.svg)",
    ]
    figure(found, name, scale)
    content = {
        "seed": given.seeds[0],
        "cells": [
            {"scale": kind, "arm": arm, "budget": budget, "seed": seed, **told}
            for (kind, arm, budget, seed), told in found.items()
        ],
    }
    write_result(name, content, lines)


if __name__ == "__main__":
    main()
