"""What an encoder-decoder gains from rebuilding corrupted texts, at equal FLOPs: BART's noises and T5's
objectives, each family in one architecture, on one corpus, with the published orders beside ours.

Every arm is pretrained for the same FLOPs (distillkit's honest ones: matrix products, 3 forwards a step) and
fine-tuned with one recipe on two tasks cast as text. Primary metric, stated before anything was run: exact
match on TREC's test questions, whose answer is the name of a class, so that no noise resembles the task. Then
spelling, where rebuilding is the task itself. Differences are paired, with 95 % intervals over test rows and
seeds together; an order is claimed where the interval leaves out 0, and of gaps that the papers have below a
point, equivalence within MARGIN is asked instead. A thousandth of the published pretraining is not done here:
most orders will stay open, and are then called so.

Published: Lewis et al. 2020, table 1 (MNLI accuracy, base size); Raffel et al. 2020, tables 1, 2, 4, 5 and 7
(GLUE average, base size).

Each cell is kept when it is done: an interrupted study goes on with the next, also from the committed results
on another machine.
Usage: python benchmarks/denoising.py [--minutes N] [--seeds 1 2 3] [--tasks bart t5]
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import DATA, RUNS, asked, measured, run, subset, take_up, write_result
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from distillkit.flops import HONEST
from distillkit.model import TrainableTeacherSource
from distillkit.rundir import MetricsLog
from distillkit.teachers.bart import Bart
from distillkit.teachers.t5 import T5

FOLDER = RUNS / "denoising"
SIZE = {"layers": 2, "width": 128, "heads": 2, "vocab_size": 4000, "positions": 128}
BUDGET = 3e12
"""FLOPs of one pretraining."""
BATCH, LENGTH, RATE = 32, 96, 1e-3
NOTHING = "nothing"
SOURCES: Mapping[str, type[Bart] | type[T5]] = {"bart": Bart, "t5": T5}
FAMILIES: dict[str, dict[str, dict[str, Any]]] = {
    "bart": {
        NOTHING: {},
        "token masking": {"masking": "tokens", "permute": 0.0},
        "token deletion": {"masking": "deletion", "permute": 0.0},
        "infilling": {"permute": 0.0},
        "rotation": {"share": 0.0, "permute": 0.0, "rotate": 1.0},
        "permutation": {"share": 0.0},
        "infilling + permutation": {},
    },
    "t5": {
        NOTHING: {},
        "spans": {},
        "tokens": {"objective": "tokens"},
        "drop": {"objective": "drop"},
        "BERT-style": {"objective": "bert"},
        "MASS-style": {"objective": "mass"},
        "deshuffling": {"objective": "deshuffle"},
        "prefix LM": {"objective": "prefix_lm"},
        "LM": {"objective": "lm"},
    },
}
PUBLISHED: dict[str, dict[str, float]] = {
    "bart": {
        "token masking": 84.1,
        "token deletion": 84.1,
        "infilling": 84.0,
        "rotation": 75.3,
        "permutation": 81.5,
        "infilling + permutation": 83.8,
    },
    "t5": {
        NOTHING: 66.22,
        "spans": 83.28,
        "tokens": 83.28,
        "drop": 84.44,
        "BERT-style": 82.96,
        "MASS-style": 82.32,
        "deshuffling": 73.17,
        "prefix LM": 80.69,
        "LM": 79.56,
    },
}
BASE = {"bart": "infilling", "t5": "spans"}
"""The arm that the others are compared with."""
MARGIN = 3.0
"""Points within which two arms are called equivalent."""
TUNED: dict[str, dict[str, Any]] = {
    "trec": {"columns": ("text", "label"), "rows": (4952, 500, 500), "epochs": 4, "max_target": 8},
    "spelling": {"columns": ("source", "target"), "rows": (8000, 300, 1000), "epochs": 3, "max_target": 24},
}
PRIMARY = "trec"
KEYS = ("family", "arm", "seed")


@dataclass(frozen=True)
class Cell:
    """One pretraining, and a fine-tuning on each task."""

    family: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.family}-{self.arm}-{self.seed}".replace(" + ", "-").replace(" ", "-")

    @property
    def path(self) -> Path:
        return FOLDER / "cells" / f"{self.name}.json"


def cells(families: Sequence[str], seeds: Sequence[int]) -> Iterator[Cell]:
    """In an order that leaves every arm as many seeds as the others whenever the study stops."""
    for seed in seeds:
        for family in families:
            for arm in FAMILIES[family]:
                yield Cell(family, arm, seed)


def task_config(task: str) -> dict[str, Any]:
    how = TUNED[task]
    files = {
        split: str(subset(DATA / task / f"{split}.jsonl.gz", FOLDER / f"{task}-{split}.jsonl", count))
        for split, count in zip(("train", "validation", "test"), how["rows"], strict=True)
    }
    text, label = how["columns"]
    named = {"text": text, "label": label, "max_length": 64, "max_target": how["max_target"]}
    return {"kind": "text_to_text", **files, **named}


def config(name: str, task: str, teacher: Mapping[str, Any], seed: int) -> dict[str, Any]:
    return {
        "name": name,
        "output": str(FOLDER),
        "seed": seed,
        "task": task_config(task),
        "teacher": {**teacher, "allow_weak": True},
        "student": {"use": "seq2seq"},
        "distill": {"losses": {"gold": {"use": "gold"}}},
    }


def pretrained(cell: Cell, steps: int) -> Path:
    """The run of one pretraining."""
    section = {
        "corpus": str(DATA / "corpus" / "us_speeches.jsonl.gz"),
        "steps": steps,
        "batch": BATCH,
        "max_length": LENGTH,
        "optimizer": {"lr": RATE, "warmup": 0.1},
        "save_every": 10_000,
    }
    teacher = {"use": cell.family, **SIZE, **FAMILIES[cell.family][cell.arm], "pretrain": section}
    return run(config(cell.name, PRIMARY, teacher, cell.seed), until="pretrain")


def steps_of(cell: Cell, tokenizer: PreTrainedTokenizerBase) -> int:
    """Optimizer steps that cost the budget."""
    source: TrainableTeacherSource = SOURCES[cell.family](**{**SIZE, **FAMILIES[cell.family][cell.arm]})
    with torch.device("meta"):
        model, objective = source.pretraining(tokenizer)
    return max(1, round(BUDGET / HONEST.training(objective.flops(model, LENGTH), BATCH)))


def tuned(cell: Cell, folder: Path, task: str) -> list[int]:
    """1 for each test row whose answer is right after fine-tuning."""
    how = {
        "epochs": TUNED[task]["epochs"],
        "batch": {"tokens": 4096, "examples": 64},
        "optimizer": {"lr": RATE, "warmup": 0.1},
        "keep": "last",
        "save_every": 10_000,
    }
    teacher = {"use": "pretrained", "path": str(folder), "finetune": how}
    made = run(config(f"{cell.name}-{task}", task, teacher, cell.seed), until="teacher")
    written = json.loads((made / "teacher" / "texts.json").read_text(encoding="utf-8"))
    lines = Path(task_config(task)["test"]).read_text(encoding="utf-8").splitlines()
    wanted = [json.loads(line)[TUNED[task]["columns"][1]] for line in lines]
    return [int(text == right) for text, right in zip(written, wanted, strict=True)]


def measure(cell: Cell) -> dict[str, Any]:
    """One step stands for no pretraining: it leaves first weights and the vocabulary that all arms have."""
    start = time.monotonic()
    FOLDER.mkdir(parents=True, exist_ok=True)
    begun = pretrained(Cell(cell.family, NOTHING, cell.seed), 1)
    found: dict[str, Any] = {"steps": 0}
    if cell.arm == NOTHING:
        folder = begun
    else:
        found["steps"] = steps_of(cell, AutoTokenizer.from_pretrained(begun / "pretrain"))
        folder = pretrained(cell, found["steps"])
        found["last"] = logged(folder)
    found["right"] = {task: tuned(cell, folder / "pretrain", task) for task in TUNED}
    return {**found, "seconds": time.monotonic() - start}


def logged(folder: Path) -> dict[str, float]:
    """Means over the last tenth of pretraining: the loss, and figures."""
    rows = [row for row in MetricsLog(folder / "metrics.jsonl").records() if "terms" in row]
    kept: dict[str, list[float]] = {}
    for row in rows[-max(1, len(rows) // 10) :]:
        for name, value in {**row["terms"], **row.get("figures", {})}.items():
            kept.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in kept.items()}


Found = Mapping[Cell, Mapping[str, Any]]


def points(found: Found, family: str, arm: str, task: str) -> list[float]:
    """Exact match of each seed, in points."""
    return [
        100 * float(np.mean(told["right"][task]))
        for cell, told in found.items()
        if (cell.family, cell.arm) == (family, arm)
    ]


def difference(
    found: Found, family: str, one: str, other: str, task: str
) -> tuple[float, float, float, int] | None:
    """Points that one arm is above the other, 95 % interval, seeds: rows and seeds drawn together, the same
    of both arms. None where no seed has both.
    """
    gaps = [
        np.asarray(told["right"][task]) - np.asarray(found[Cell(family, other, cell.seed)]["right"][task])
        for cell, told in found.items()
        if (cell.family, cell.arm) == (family, one) and Cell(family, other, cell.seed) in found
    ]
    if not gaps:
        return None
    gaps_SR, generator = np.stack(gaps), np.random.default_rng(0)
    seeds, rows = gaps_SR.shape
    drawn = [
        gaps_SR[generator.integers(0, seeds, seeds)][:, generator.integers(0, rows, rows)].mean()
        for _ in range(4000)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return 100 * float(gaps_SR.mean()), 100 * float(low), 100 * float(high), seeds


def shown(values: Sequence[float]) -> str:
    """Mean, smallest and largest."""
    if not values:
        return "-"
    low, high = min(values), max(values)
    return f"{np.mean(values):.1f}" + (f" ({low:.1f} to {high:.1f})" if len(values) > 1 else "")


def table(found: Found, family: str) -> list[str]:
    """Each arm's figures, its place among the arms, and its place in the paper."""
    arms = FAMILIES[family]
    ours = {arm: points(found, family, arm, PRIMARY) for arm in arms}
    places = {"ours": {arm: np.mean(one) for arm, one in ours.items() if one}, "paper": PUBLISHED[family]}
    lines = [
        f"| arm | steps | {PRIMARY} (primary) | spelling | paper | place | place in the paper | seeds |",
        "|---" * 8 + "|",
    ]
    both = places["ours"].keys() & places["paper"].keys()
    for arm in arms:
        steps = [told["steps"] for cell, told in found.items() if (cell.family, cell.arm) == (family, arm)]
        ranks = [
            str(1 + sum(values[other] > values[arm] for other in both)) if arm in both else "-"
            for values in places.values()
        ]
        paper = f"{PUBLISHED[family][arm]:.1f}" if arm in PUBLISHED[family] else "-"
        spelling = shown(points(found, family, arm, "spelling"))
        lines.append(
            f"| {arm} | {steps[0] if steps else '-'} | {shown(ours[arm])} | "
            f"{spelling} | {paper} | {' | '.join(ranks)} | {len(ours[arm])} |"
        )
    return lines


def verdicts(found: Found, family: str) -> list[str]:
    """Every arm against the family's base, on each task."""
    lines = ["| pair | task | points apart (95 % interval) | seeds | the paper | answer |", "|---" * 6 + "|"]
    base, paper = BASE[family], PUBLISHED[family]
    for arm in FAMILIES[family]:
        for task in TUNED:
            told = difference(found, family, base, arm, task) if arm != base else None
            if told is None:
                continue
            mean, low, high, seeds = told
            gap = paper[base] - paper[arm] if arm in paper else None
            lines.append(
                f"| {base} - {arm} | {task} | {mean:+.1f} ({low:+.1f} to {high:+.1f}) | {seeds} | "
                f"{'-' if gap is None else f'{gap:+.1f}'} | {answer(low, high, seeds, gap)} |"
            )
    return lines


def answer(low: float, high: float, seeds: int, gap: float | None) -> str:
    """What an interval says; `gap` is the paper's."""
    if seeds < 2:
        return "one seed"
    if low > 0 or high < 0:
        return "above" if low > 0 else "below"
    if gap is not None and abs(gap) < 1 and low > -MARGIN and high < MARGIN:
        return f"equivalent within {MARGIN:g}"
    return "open"


def main() -> None:
    given = asked(list(FAMILIES))
    (FOLDER / "cells").mkdir(parents=True, exist_ok=True)
    take_up("denoising", lambda told: Cell(**{name: told.pop(name) for name in KEYS}).path)
    wanted = list(cells(given.tasks, given.seeds))
    found = measured(wanted, lambda cell: cell.path, measure, given.minutes)
    minutes = sum(told["seconds"] for told in found.values()) / 60
    lines = [
        "# Denoising objectives at equal FLOPs",
        f"{len(found)} of {len(wanted)} cells, {minutes:.0f} minutes, seeds {given.seeds}; {BUDGET:.0e} "
        f"FLOPs a pretraining, sequences of {LENGTH}, batches of {BATCH}, sizes {json.dumps(SIZE)}. Exact "
        "match in points, mean over seeds (smallest to largest).",
    ]
    for family in given.tasks:
        lines += ["", f"## {family}", "", *table(found, family), "", *verdicts(found, family)]
    content = {
        "seed": given.seeds[0],
        "published": PUBLISHED,
        "cells": [{**vars(cell), **told} for cell, told in found.items()],
    }
    write_result("denoising", content, lines)


if __name__ == "__main__":
    main()
