"""What a pretraining objective is worth at equal FLOPs: masked language model, Replace-MLM, ELECTRA 15 %,
All-Tokens MLM and ELECTRA, in one architecture, on one corpus, from the same sequences.

Primary metric, stated before anything was run: accuracy of a linear probe of frozen states on the words of
CoNLL-2000 chunking's test part, the block chosen on validation words. Then minimal pairs (BLiMP, within a
family of scores only) and fine-tuning on Rotten Tomatoes and TREC. Orders are claimed where the interval of
the paired difference leaves out 0; of gaps that the paper has at 0.2 points or less, equivalence within
MARGIN is asked instead. FLOPs are distillkit's honest ones: matrix products, 3 forwards a step.

Beside the arms, mechanisms: the generator's width, and what is tied. Each cell is kept when it is done: an
interrupted study goes on with the next, also from the committed results on another machine.
--scale gpu: the shape of ELECTRA-Small on one GPU; also two-stage, adversarial and generator sizes.
Usage: python benchmarks/electra_orderings.py [--scale cpu] [--minutes N] [--seeds 1 2 3]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from common import DATA, RUNS, draw, measured, run, scores, take_up, write_result
from numpy.typing import NDArray
from probes import chunking, masked_likelihood, minimal_pairs, original_odds
from transformers import AutoTokenizer

from distillkit.flops import HONEST
from distillkit.rundir import MetricsLog
from distillkit.teachers.electra import Electra

FOLDER = RUNS / "electra-orderings"
ARMS: dict[str, dict[str, Any]] = {
    "MLM": {"objective": "replace_mlm", "generator": "mask"},
    "Replace-MLM": {"objective": "replace_mlm"},
    "ELECTRA 15 %": {"objective": "electra_15"},
    "All-Tokens MLM": {"objective": "all_tokens_mlm"},
    "ELECTRA": {},
}
RANDOM = "random weights"
MECHANISMS: dict[str, dict[str, Any]] = {
    "generator 1/4": {"generator_width": 0.25},
    "generator 1/1": {"generator_width": 1.0},
    "untied": {"tie": "none"},
}
FAMILIES = {"MLM": masked_likelihood, "ELECTRA": original_odds, "ELECTRA 15 %": original_odds}
TUNED = {"rotten_tomatoes": 3, "trec": 6}
"""Epochs of fine-tuning."""
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


@dataclass(frozen=True)
class Scale:
    """size: shape of the main model; budgets: FLOPs of pretraining; batch and length of its sequences."""

    size: dict[str, Any]
    budgets: tuple[float, ...]
    batch: int
    length: int
    lr: float
    precision: str
    files: tuple[str, ...]
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)


SCALES = {
    "cpu": Scale(
        size={"size": "tiny", "vocab_size": 4096, "positions": 128, "mask_rate": 0.2},
        budgets=(4e12, 1.6e13),
        batch=64,
        length=64,
        lr=2e-3,
        precision="fp32",
        files=("openstax", "standardebooks", "us_speeches"),
        arms={**ARMS, **MECHANISMS},
    ),
    "gpu": Scale(
        size={"size": "small", "vocab_size": 8192, "positions": 128},
        budgets=(1e16, 4e16),
        batch=1024,
        length=128,
        lr=1e-3,
        precision="bf16",
        files=("openstax", "standardebooks", "us_speeches", "imdb_unsup"),
        arms={
            **ARMS,
            **MECHANISMS,
            "generator 1/2": {"generator_width": 0.5},
            "two stages": {"generator": "two_stage", "generator_width": 1.0, "tie": "none"},
            "adversarial": {"generator": "adversarial"},
        },
    ),
}
Cell = tuple[str, str, float, int]
"""Scale, arm, budget, seed."""


def corpus(scale: Scale) -> Path:
    """The scale's files of ../shared/data/corpus in one folder."""
    folder = FOLDER / f"corpus-{len(scale.files)}"
    if not folder.exists():
        folder.mkdir(parents=True)
        for name in scale.files:
            (folder / f"{name}.jsonl.gz").symlink_to((DATA / "corpus" / f"{name}.jsonl.gz").resolve())
    return folder


def steps_of(scale: Scale, arm: Mapping[str, Any], budget: float) -> int:
    """Optimizer steps that cost the budget; the sequences of all arms are the same ranges of the corpus."""
    with torch.device("meta"):
        source = Electra(**{**scale.size, **arm})
        pair, objective = source.pretraining(Sized(scale.size["vocab_size"]))  # type: ignore[arg-type]
    step = HONEST.training(objective.flops(pair, scale.length), scale.batch)
    return max(1, round(budget / step))


class Sized:
    """As much of a tokenizer as the sizes of a model need."""

    pad_token_id, cls_token_id, sep_token_id, mask_token_id = 0, 2, 3, 4

    def __init__(self, entries: int) -> None:
        self.entries = entries

    def __len__(self) -> int:
        return self.entries


def config(scale: Scale, name: str, teacher: Mapping[str, Any], task: str, seed: int) -> dict[str, Any]:
    folder = DATA / task
    return {
        "name": name,
        "output": str(FOLDER),
        "seed": seed,
        "task": {
            "kind": "classification",
            **{split: str(folder / f"{split}.jsonl.gz") for split in ("train", "validation", "test")},
            "max_length": 64,
        },
        "teacher": {**teacher, "allow_weak": True},
        "student": {"use": "transformer", "layers": 1},
        "distill": {"losses": {"gold": {"use": "gold"}}},
        "runtime": {"precision": scale.precision, "log_every": 20},
    }


def pretrained(scale: Scale, name: str, arm: str, budget: float, seed: int) -> Path:
    """The folder of one arm's pretrained model."""
    section = {
        "corpus": str(corpus(scale)),
        "steps": steps_of(scale, scale.arms[arm], budget),
        "batch": scale.batch,
        "max_length": scale.length,
        "optimizer": {"lr": scale.lr, "warmup": 0.06},
        "save_every": 2000,
    }
    teacher = {"use": "electra", **scale.size, **scale.arms[arm], "pretrain": section}
    return run(config(scale, name, teacher, "trec", seed), until="pretrain") / "pretrain"


def untrained(scale: Scale, seed: int) -> Path:
    """The main model as it begins, with the tokenizer that the arms of this seed have."""
    folder = FOLDER / f"random-{seed}"
    if not (folder / "config.json").exists():
        arm = next(iter(scale.arms))
        tokenizer = AutoTokenizer.from_pretrained(pretrained(scale, f"begin-{seed}", arm, 0.0, seed))
        torch.manual_seed(seed)
        pair, _ = Electra(**{**scale.size, "vocab_size": len(tokenizer)}).pretraining(tokenizer)
        tokenizer.save_pretrained(folder)
        pair.save_pretrained(folder)  # type: ignore[operator]
    return folder


def tuned(scale: Scale, name: str, folder: Path, seed: int) -> dict[str, float]:
    """Test accuracy after fine-tuning on each task."""
    found = {}
    for task, epochs in TUNED.items():
        how = {
            "epochs": epochs,
            "batch": {"tokens": 2048, "examples": 32},
            "optimizer": {"lr": 1e-3, "warmup": 0.1, "weight_decay": 0.0},
            "layer_decay": 0.8,
            "keep": "last",
            "save_every": 10_000,
        }
        teacher = {"use": "pretrained", "path": str(folder), "finetune": how}
        made = run(config(scale, f"{name}-{task}", teacher, task, seed), until="teacher")
        found[task] = scores(made, "teacher")["accuracy"]["value"]
    return found


def logged(folder: Path) -> dict[str, float]:
    """Means over the last tenth of pretraining: unweighted terms, and figures."""
    rows = [row for row in MetricsLog(folder / "metrics.jsonl").records() if "terms" in row]
    last = rows[-max(1, len(rows) // 10) :]
    kept: dict[str, list[float]] = {}
    for row in last:
        for name, value in {**row["terms"], **row.get("figures", {})}.items():
            kept.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in kept.items()}


def slug(cell: Cell) -> str:
    scale, arm, budget, seed = cell
    named = arm.lower().replace(" %", "").replace("/", "-").replace(" ", "-")
    return f"{scale}-{named}-{budget:.0e}-{seed}".replace("+", "")


def measure(cell: Cell) -> dict[str, Any]:
    kind, arm, budget, seed = cell
    scale, name, start = SCALES[kind], slug(cell), time.monotonic()
    found: dict[str, Any] = {}
    if arm == RANDOM:
        folder = untrained(scale, seed)
    else:
        folder = pretrained(scale, name, arm, budget, seed)
        found["logged"] = logged(folder.parent)
        found["steps"] = steps_of(scale, scale.arms[arm], budget)
    found["pretrain_seconds"] = time.monotonic() - start
    if arm not in MECHANISMS:
        found["chunking"] = chunking(folder, 128)
        found["tuned"] = tuned(scale, name, folder, seed)
    if arm in FAMILIES:
        found["blimp"] = minimal_pairs(folder, FAMILIES[arm])
    found["seconds"] = time.monotonic() - start
    return found


def wanted(kind: str, seeds: list[int]) -> list[Cell]:
    """Every arm at every budget; mechanisms and random weights once a seed."""
    scale = SCALES[kind]
    cells: list[Cell] = []
    for seed in seeds:
        cells.append((kind, RANDOM, 0.0, seed))
        for budget, arm in product(scale.budgets, scale.arms):
            if arm not in MECHANISMS or budget == scale.budgets[0]:
                cells.append((kind, arm, budget, seed))
    return cells


Found = Mapping[Cell, Mapping[str, Any]]


def probe(told: Mapping[str, Any]) -> float:
    """Points of the primary metric."""
    return 100 * sum(told["chunking"]["right"]) / sum(told["chunking"]["words"])


def difference(found: Found, one: str, other: str, budget: float) -> tuple[float, float, float, int] | None:
    """Points that one arm is above the other in the primary metric, 95 % interval, seeds: seeds and sentences
    drawn together, the same of both arms. None where no seed has both.
    """
    pairs = []
    for (kind, arm, at, seed), told in found.items():
        if (arm, at) == (one, budget) and (kind, other, at, seed) in found:
            both = (told["chunking"], found[kind, other, at, seed]["chunking"])
            pairs.append(np.asarray(both[0]["right"]) - np.asarray(both[1]["right"]))
            words = np.asarray(both[0]["words"])
    if not pairs:
        return None
    gaps: NDArray[np.int64] = np.stack(pairs)
    generator = np.random.default_rng(0)
    means = []
    for _ in range(4000):
        rows = generator.integers(0, gaps.shape[1], gaps.shape[1])
        seeds = generator.integers(0, len(gaps), len(gaps))
        means.append(100 * gaps[seeds][:, rows].sum() / (len(seeds) * words[rows].sum()))
    low, high = np.quantile(means, (0.025, 0.975))
    return 100 * gaps.sum() / (len(gaps) * words.sum()), float(low), float(high), len(gaps)


def shown(values: list[float]) -> str:
    """Mean, smallest and largest."""
    if not values:
        return "-"
    low, high = min(values), max(values)
    return f"{np.mean(values):.1f}" + (f" ({low:.1f} to {high:.1f})" if len(values) > 1 else "")


def table(found: Found, scale: Scale) -> list[str]:
    lines = [
        "| arm | FLOPs | chunking (primary) | Rotten Tomatoes | TREC | BLiMP | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, budget in [(RANDOM, 0.0), *((arm, at) for arm in ARMS for at in scale.budgets)]:
        told = [one for (_, name, at, _), one in found.items() if (name, at) == (arm, budget)]
        columns = [
            [probe(one) for one in told],
            *([100 * one["tuned"][task] for one in told] for task in TUNED),
            [100 * one["blimp"]["all"] for one in told if "blimp" in one],
        ]
        cost = f"{budget:.1e}" if budget else "0"
        lines.append(f"| {arm} | {cost} | {' | '.join(map(shown, columns))} | {len(told)} |")
    return lines


def verdicts(found: Found, scale: Scale) -> list[str]:
    lines = [
        "| pair | FLOPs | points apart (95 % interval) | seeds | the paper, GLUE | asked | answer |",
        "|---|---|---|---|---|---|---|",
    ]
    for (one, other, paper, asked), budget in product(ASKED, scale.budgets):
        told = difference(found, one, other, budget)
        if told is None:
            continue
        mean, low, high, seeds = told
        answer = "open"
        if seeds < 2:
            answer = "one seed"
        elif asked == "equivalence" and low > -MARGIN and high < MARGIN:
            answer = f"equivalent within {MARGIN}"
        elif low > 0 or high < 0:
            answer = "above" if low > 0 else "below"
        lines.append(
            f"| {one} - {other} | {budget:.1e} | {mean:+.2f} ({low:+.2f} to {high:+.2f}) | {seeds} | "
            f"{paper:+.1f} | {asked} | {answer} |"
        )
    return lines


def against_random(found: Found) -> list[str]:
    """Every pretrained model minus random weights of its seed, on every task."""
    lines = ["| task | models | mean gain, points | smallest | largest |", "|---|---|---|---|---|"]
    metrics = {"chunking": probe, **{task: tuned_on(task) for task in TUNED}}
    for name, metric in metrics.items():
        gains = [
            metric(told) - metric(found[kind, RANDOM, 0.0, seed])
            for (kind, arm, _, seed), told in found.items()
            if arm in ARMS and (kind, RANDOM, 0.0, seed) in found
        ]
        if gains:
            lines.append(
                f"| {name} | {len(gains)} | {np.mean(gains):+.1f} | {min(gains):+.1f} | {max(gains):+.1f} |"
            )
    return lines


def tuned_on(task: str) -> Any:
    return lambda told: 100 * told["tuned"][task]


def mechanisms(found: Found, scale: Scale) -> list[str]:
    """What generator and discriminator came to, at the smaller budget."""
    names = ("generator", "sampled_accuracy", "replaced_rate", "discriminator", "majority_loss", "auc")
    lines = [f"| ELECTRA with | {' | '.join(names)} | seeds |", "|---" * (len(names) + 2) + "|"]
    for arm in ("ELECTRA", *(name for name in scale.arms if name not in ARMS)):
        for budget in scale.budgets:
            told = [one["logged"] for (_, name, at, _), one in found.items() if (name, at) == (arm, budget)]
            if told:
                means = [np.mean([one[name] for one in told if name in one]) for name in names]
                values = " | ".join(f"{mean:.3f}" for mean in means)
                lines.append(f"| {arm}, {budget:.1e} FLOPs | {values} | {len(told)} |")
    return lines


def figure(found: Found, scale: Scale) -> None:
    """results/electra_orderings.svg: the primary metric against FLOPs, a dot for each seed."""
    drawn, axes = plt.subplots(figsize=(7, 4.5))
    for number, arm in enumerate(ARMS):
        points = [(at, probe(one)) for (_, name, at, _), one in found.items() if name == arm]
        means = [(at, np.mean([y for x, y in points if x == at])) for at in sorted({x for x, _ in points})]
        if points:
            axes.plot(*zip(*points, strict=True), "o", color=f"C{number}", alpha=0.4)
            axes.plot(*zip(*means, strict=True), "-", color=f"C{number}", label=arm)
    start = [probe(one) for (_, name, _, _), one in found.items() if name == RANDOM]
    if start:
        axes.axhline(float(np.mean(start)), color="grey", linewidth=0.8, label=RANDOM)
    axes.set_xscale("log")
    axes.set_xlabel("FLOPs of pretraining")
    axes.set_ylabel("chunking, % of words")
    axes.legend()
    draw("electra_orderings" if scale is SCALES["cpu"] else "electra_orderings_gpu", drawn)


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
    found = measured(wanted(given.scale, given.seeds), place, measure, given.minutes)
    hours = sum(told["seconds"] for told in found.values()) / 3600
    lines = [
        "# Pretraining objectives at equal FLOPs",
        f"{len(found)} of {len(wanted(given.scale, given.seeds))} cells, {hours:.1f} hours, seeds "
        f"{given.seeds}, {scale.precision}. Main model {json.dumps(scale.size)}, length {scale.length}, "
        f"batches of {scale.batch}, rate {scale.lr}. Mean over seeds (smallest to largest).",
        "",
        *table(found, scale),
        "",
        "BLiMP compares within a family of scores only: a pseudo-log-likelihood for MLM, the odds that each "
        "token is original for ELECTRA and ELECTRA 15 %.",
        "",
        *verdicts(found, scale),
        "",
        "## Pretrained here against random weights",
        "",
        *against_random(found),
        "",
        "## Generator and discriminator, over the last tenth of pretraining",
        "",
        *mechanisms(found, scale),
        "",
        f"![score against FLOPs]({name}.svg)",
    ]
    figure(found, scale)
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
