"""Text to text: what distillation adds to a small encoder-decoder that is trained alone, what of its teacher
is kept, and how much faster it writes; on parsing, spelling, translation and summarisation, three seeds.

Inputs are plentiful and targets are not: of the sources of a task some have their target (`labelled`), the
others are there without it. A task's teacher, of a shallow encoder and a decoder twice as deep, is trained
once, long, on the labelled rows. There are two students: `half` has the teacher's encoder and every other
block of its decoder, and starts from them; `small` has half the width and two blocks a side, and starts from
nothing. All arms of a student see as many rows in training, start from the same weights and keep the last
ones:

    alone     the targets of the labelled rows
    word      + the teacher's scores after each prefix of them (word level)
    trusted   the same, but only where its likeliest token is the target's
    sequence  the teacher's texts for these sources in the place of the targets (sequence level)
    both      + its scores after each prefix of its texts
    more      both, for the sources without a target too, so that each row comes less often

Beside the scores stands how often the teacher's texts for its training sources are the targets themselves: as
far as they are, the sequence level can teach nothing that the targets do not.

Texts are written greedily, sizes and speed are those of the artifact in ONNX Runtime, timed once a task on
texts of a fixed length. Each cell is kept when it is done: an interrupted study goes on with the next, also
from the committed results on another machine, and what is there is always summed up.
Usage: python benchmarks/seq2seq.py [--minutes N] [--seeds 1 2 3] [--tasks scan spelling ...]
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from common import DATA, RUNS, asked, draw, interval, measured, run, scores, subset, take_up, write_result
from numpy.typing import NDArray

FOLDER = RUNS / "seq2seq"
SHAPE = {"layers": 3, "decoder_layers": 6, "width": 128, "heads": 4, "sentinels": 1}
TIMED_SEED = 1
"""Its students alone are timed: other weights have the same speed."""
WATCHED = (1, 16)
"""Batch sizes of the timed texts."""


@dataclass(frozen=True)
class Study:
    """One task: its folder, metric, rows and tokens, its teacher, and how long models train. passes: over all
    sources in the arm `more`; rows: of validation and test.
    """

    data: str
    metric: str
    labelled: int
    unlabelled: int
    rows: tuple[int, int]
    tokens: tuple[int, int]
    timed: tuple[int, int]
    teacher_epochs: int
    passes: int
    examples: int = 32
    teacher: Mapping[str, Any] = field(default_factory=lambda: {"use": "t5"})

    @property
    def epochs(self) -> int:
        """Over the labelled rows, of the arms that know no others."""
        return self.passes * (self.labelled + self.unlabelled) // self.labelled


TASKS = {
    "scan": Study(
        "scan_simple",
        "exact_match",
        labelled=4000,
        unlabelled=8000,
        rows=(500, 1000),
        tokens=(16, 56),
        timed=(8, 16),
        teacher_epochs=20,
        passes=1,
        teacher={"use": "t5", "vocab_size": 128, "dropout": 0.0},
    ),
    "spelling": Study(
        "spelling",
        "exact_match",
        labelled=14000,
        unlabelled=28000,
        rows=(500, 2000),
        tokens=(24, 24),
        timed=(12, 12),
        teacher_epochs=12,
        passes=1,
        examples=64,
        teacher={"use": "t5", "vocab_size": 192},
    ),
    "multi30k": Study(
        "multi30k_en_de",
        "bleu",
        labelled=9000,
        unlabelled=18000,
        rows=(500, 1000),
        tokens=(40, 40),
        timed=(16, 16),
        teacher_epochs=15,
        passes=1,
        teacher={"use": "t5", "vocab_size": 3000},
    ),
    "scitldr": Study(
        "scitldr_a",
        "rouge1",
        labelled=1992,
        unlabelled=0,
        rows=(300, 618),
        tokens=(160, 40),
        timed=(128, 24),
        teacher_epochs=15,
        passes=4,
        teacher={"use": "t5", "vocab_size": 3000},
    ),
}
GOLD = {"gold": {"use": "gold"}}
WORD: dict[str, dict[str, Any]] = {
    "gold": {"use": "gold", "weight": 0.5},
    "kd": {"use": "logits", "temperature": 1.0, "weight": 0.5},
}
WRITTEN = {"beams": 4}
ARMS: dict[str, dict[str, Any]] = {
    "alone": {"losses": GOLD},
    "word": {"losses": WORD},
    "trusted": {"losses": {**WORD, "kd": {**WORD["kd"], "trust": "right"}}},
    "sequence": {"losses": GOLD, "written": WRITTEN},
    "both": {"losses": WORD, "written": WRITTEN},
    "more": {"losses": WORD, "written": WRITTEN},
}
STUDENTS: dict[str, dict[str, Any]] = {
    "half": {"use": "seq2seq", "decoder_layers": 3, "dropout": 0.0, "initialise": {"from": "teacher"}},
    "small": {
        "use": "seq2seq",
        "encoder_layers": 2,
        "decoder_layers": 2,
        "width": 64,
        "heads": 2,
        "dropout": 0.0,
    },
}
RATES = {"teacher": 1e-3, "half": 5e-4, "small": 2e-3}
KEYS = ("seed", "task", "student", "arm")


@dataclass(frozen=True)
class Cell:
    """One student: trained once, kept in a file of its own."""

    seed: int
    task: str
    student: str
    arm: str

    @property
    def path(self) -> Path:
        return FOLDER / "cells" / f"{self.task}-{self.student}-{self.arm}-{self.seed}.json"


def cells(seeds: Sequence[int], tasks: Sequence[str]) -> Iterator[Cell]:
    """In an order that leaves every arm as many seeds as the others whenever the study stops."""
    for seed in seeds:
        for task in tasks:
            for student in STUDENTS:
                for arm in ARMS:
                    if arm != "more" or TASKS[task].unlabelled:
                        yield Cell(seed, task, student, arm)


def parts(task: str) -> tuple[Path, Path, list[str]]:
    """The labelled rows, the sources of the others, and what is hidden of the latter: drawn once for all."""
    study, folder = TASKS[task], FOLDER / task
    with gzip.open(DATA / study.data / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    order = np.random.default_rng(0).permutation(len(rows))
    first, more = order[: study.labelled], order[study.labelled : study.labelled + study.unlabelled]
    folder.mkdir(parents=True, exist_ok=True)
    labelled, sources = folder / "labelled.jsonl", folder / "sources.jsonl"
    for path, chosen, columns in ((labelled, first, ("source", "target")), (sources, more, ("source",))):
        lines = [json.dumps({name: rows[index][name] for name in columns}) + "\n" for index in chosen]
        if not path.exists():
            path.write_text("".join(lines), encoding="utf-8")
    return labelled, sources, [str(rows[index]["target"]) for index in more]


def task_config(task: str) -> dict[str, Any]:
    study = TASKS[task]
    labelled, _, _ = parts(task)
    judged = {
        name: str(subset(DATA / study.data / f"{name}.jsonl.gz", FOLDER / task / f"{name}.jsonl", count))
        for name, count in zip(("validation", "test"), study.rows, strict=True)
    }
    return {
        "kind": "text_to_text",
        "text": "source",
        "label": "target",
        "train": str(labelled),
        **judged,
        "max_length": study.tokens[0],
        "max_target": study.tokens[1],
    }


def batch(study: Study) -> dict[str, int]:
    return {"tokens": study.examples * sum(study.tokens), "examples": study.examples}


def teacher_folder(task: str) -> Path:
    """The run whose teacher is trained on the task's labelled rows."""
    study = TASKS[task]
    config = {
        "name": f"seq2seq-{task}-teacher",
        "seed": 0,
        "task": task_config(task),
        "teacher": {
            **SHAPE,
            **study.teacher,
            "finetune": {
                "epochs": study.teacher_epochs,
                "batch": batch(study),
                "optimizer": {"lr": RATES["teacher"], "warmup": 0.1},
                "save_every": 10_000,
            },
            "allow_weak": True,
        },
        "student": {"use": "seq2seq"},
        "distill": {"losses": GOLD},
    }
    return run(config, until="teacher")


def measure(cell: Cell) -> dict[str, Any]:
    """Train one student; one run folder a task, whose teacher and what it wrote stay."""
    study, more = TASKS[cell.task], cell.arm == "more"
    phase: dict[str, Any] = {
        **ARMS[cell.arm],
        "epochs": study.passes if more else study.epochs,
        "batch": batch(study),
        "optimizer": {"lr": RATES[cell.student], "warmup": 0.1},
        "keep": "last",
        "save_every": 10_000,
    }
    if more:
        phase["unlabelled"] = str(parts(cell.task)[1])
    length, tokens = study.timed
    config = {
        "name": f"seq2seq-{cell.task}",
        "seed": cell.seed,
        "task": task_config(cell.task),
        "teacher": {
            "use": "pretrained",
            "path": str(teacher_folder(cell.task) / "teacher"),
            "allow_weak": True,
        },
        "student": STUDENTS[cell.student],
        "distill": phase,
        "bench": {
            "batch": list(WATCHED),
            "length": [length],
            "new_tokens": tokens,
            "backends": ["onnxruntime"],
            "provider": "cpu",
            "iterations": 30,
            "seconds": 2.0,
            "threads": 1,
        },
    }
    timed = (cell.seed, cell.arm) == (TIMED_SEED, "alone")
    start = time.monotonic()
    folder = run(config, until="bench" if timed else "student")
    found: dict[str, Any] = {
        "scores": {
            role: {name: one["value"] for name, one in scores(folder, role).items()}
            for role in ("teacher", "student")
        }
    }
    if timed:
        found["speed"] = speed(folder)
    if "written" in phase:
        found["right"] = right(cell.task, folder, more=more)
    return {**found, "seconds": time.monotonic() - start}


def speed(folder: Path) -> dict[str, Any]:
    """Role -> parameters, bytes of the artifact, and p50 and p95 in milliseconds by batch size."""
    told = json.loads((folder / "bench" / "measurements.json").read_text())
    found: dict[str, Any] = {"load": told["machine"]["load_before"][0]}
    for row in told["measurements"]:
        assert row["status"] == "ok", row["status"]
        times = {
            str(one["batch"]): [one["p50_ms"], one["p95_ms"], one["tokens_per_s"]] for one in row["cells"]
        }
        parameters = json.loads((folder / row["role"] / "scores.json").read_text())["parameters"]
        found[row["role"]] = {"parameters": parameters, "bytes": row["size_bytes"], "times": times}
    return found


def right(task: str, folder: Path, *, more: bool) -> dict[str, float]:
    """How often the teacher's best text is the target: of the rows that it was trained on, and where it wrote
    for more, of those whose target nobody was told.
    """
    study = TASKS[task]
    labelled, _, hidden = parts(task)
    wanted = [json.loads(line)["target"] for line in labelled.read_text(encoding="utf-8").splitlines()]
    kept: dict[str, list[str]] = {}
    for part in sorted((folder / "cache").glob("written-*")):
        key = part.name.rsplit("-", 1)[0]
        lines = (part / "texts.jsonl").read_text(encoding="utf-8").splitlines()
        kept.setdefault(key, []).extend(json.loads(line)[0] for line in lines)
    count = study.labelled + (study.unlabelled if more else 0)
    texts = next(one for one in kept.values() if len(one) == count)
    pairs = {
        "labelled": zip(wanted, texts, strict=False),
        "others": zip(hidden, texts[len(wanted) :], strict=True),
    }
    equal = {name: [one == other for one, other in both] for name, both in pairs.items()}
    return {name: float(np.mean(same)) for name, same in equal.items() if same}


Found = Mapping[Cell, Mapping[str, Any]]


def of(found: Found, student: str, arm: str, task: str, role: str = "student") -> list[float]:
    return [
        told["scores"][role][TASKS[task].metric]
        for cell, told in found.items()
        if (cell.student, cell.arm, cell.task) == (student, arm, task)
    ]


def differences(found: Found, student: str, arm: str, tasks: Sequence[str]) -> NDArray[np.float64]:
    """Score of an arm minus that of the same student alone, for every task and seed that has both."""
    pairs = []
    for cell, told in found.items():
        other = found.get(Cell(cell.seed, cell.task, student, "alone"))
        if (cell.student, cell.arm) == (student, arm) and cell.task in tasks and other is not None:
            metric = TASKS[cell.task].metric
            pairs.append(told["scores"]["student"][metric] - other["scores"]["student"][metric])
    return np.asarray(pairs)


def shown(values: Sequence[float]) -> str:
    """Mean, and the deviation over seeds."""
    if not values:
        return "-"
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def quality(found: Found, student: str, tasks: Sequence[str]) -> list[str]:
    """Score and share of the teacher's, task by task."""
    lines = [
        f"| arm | {' | '.join(f'{task} | kept' for task in tasks)} |",
        "|---" * (2 * len(tasks) + 1) + "|",
    ]
    teachers = {task: of(found, student, "alone", task, "teacher") for task in tasks}
    first = " | ".join(f"{teachers[task][0]:.3f} |" if teachers[task] else "- |" for task in tasks)
    lines.append(f"| teacher | {first} |")
    for arm in ARMS:
        columns = []
        for task in tasks:
            values = of(found, student, arm, task)
            kept = (
                f"{100 * np.mean(values) / np.mean(teachers[task]):.1f} %"
                if values and teachers[task]
                else "-"
            )
            columns.append(f"{shown(values)} | {kept}")
        lines.append(f"| {arm} | {' | '.join(columns)} |")
    return lines


def gains(found: Found, tasks: Sequence[str]) -> list[str]:
    """What each arm adds to the student alone over tasks and seeds, and on how many tasks it adds."""
    lines = ["| student | arm | over alone, mean | 95 % interval | pairs | tasks above |", "|---" * 6 + "|"]
    for student in STUDENTS:
        for arm in ARMS:
            values = differences(found, student, arm, tasks)
            if arm == "alone" or not len(values):
                continue
            low, high = interval(values)
            told = f"{low:+.4f} to {high:+.4f}" if len(values) > 1 else "one pair"
            each = [differences(found, student, arm, [task]) for task in tasks]
            above = sum(float(np.mean(one)) > 0 for one in each if len(one))
            count = sum(len(one) > 0 for one in each)
            lines.append(
                f"| {student} | {arm} | {values.mean():+.4f} | {told} | {len(values)} | {above} of {count} |"
            )
    return lines


def speeds(found: Found) -> list[str]:
    """Sizes, and how long a text takes."""
    lines = [
        "| task | student | parameters | MB | "
        + " | ".join(f"p50 ms at {size} | speed" for size in WATCHED)
        + " | load |",
        "|---" * (5 + 2 * len(WATCHED)) + "|",
    ]
    for cell, told in found.items():
        if "speed" not in told:
            continue
        teacher, student = told["speed"]["teacher"], told["speed"]["student"]
        times = []
        for size in map(str, WATCHED):
            slow, fast = teacher["times"][size][0], student["times"][size][0]
            times.append(f"{slow:.1f} to {fast:.1f} | {slow / fast:.2f}x")
        lines.append(
            f"| {cell.task} | {cell.student} | {teacher['parameters']:,} to {student['parameters']:,} | "
            f"{teacher['bytes'] / 1e6:.1f} to {student['bytes'] / 1e6:.1f} | {' | '.join(times)} | "
            f"{told['speed']['load']:.1f} |"
        )
    return lines


def knowledge(found: Found) -> list[str]:
    """How often the teacher's texts are the targets."""
    lines = ["| task | on rows that it was trained on | on sources without a target |", "|---|---|---|"]
    told: dict[str, dict[str, float]] = {}
    for cell, one in found.items():
        told.setdefault(cell.task, {}).update(one.get("right", {}))
    for task, shares in told.items():
        columns = [f"{shares[name]:.3f}" if name in shares else "-" for name in ("labelled", "others")]
        lines.append(f"| {task} | {' | '.join(columns)} |")
    return lines


def figure(found: Found, tasks: Sequence[str]) -> None:
    """results/seq2seq.svg: share of the teacher's score, an arm beside the other."""
    drawn, axes = plt.subplots(1, len(STUDENTS), figsize=(10, 4), sharey=True)
    for place, (student, one) in enumerate(zip(STUDENTS, axes, strict=True)):
        for number, task in enumerate(tasks):
            teacher = of(found, student, "alone", task, "teacher")
            points = [
                (index, 100 * np.mean(values) / np.mean(teacher))
                for index, arm in enumerate(ARMS)
                if (values := of(found, student, arm, task))
            ]
            if points and teacher:
                one.plot(*zip(*points, strict=True), "o-", color=f"C{number}", label=task)
        one.axhline(97, color="grey", linewidth=0.8, linestyle=":")
        one.set_xticks(range(len(ARMS)), list(ARMS))
        one.set_title(student)
        if place == 0:
            one.set_ylabel("kept of the teacher, %")
            one.legend()
    draw("seq2seq", drawn)


def main() -> None:
    given = asked(list(TASKS))
    (FOLDER / "cells").mkdir(parents=True, exist_ok=True)
    take_up("seq2seq", lambda told: Cell(**{name: told.pop(name) for name in KEYS}).path)
    wanted = list(cells(given.seeds, given.tasks))
    found = measured(wanted, lambda cell: cell.path, measure, given.minutes)
    minutes = sum(told["seconds"] for told in found.values()) / 60
    named = ", ".join(f"{task} {study.metric}" for task, study in TASKS.items() if task in given.tasks)
    lines = [
        "# Text to text",
        f"{len(found)} of {len(wanted)} cells, {minutes:.0f} minutes, seeds {given.seeds}; mean and "
        f"deviation over seeds of what is written for test rows ({named}). Teacher {json.dumps(SHAPE)}.",
    ]
    for student in STUDENTS:
        lines += ["", f"## {student}", "", *quality(found, student, given.tasks)]
    lines += ["", "## Over the same student alone", "", *gains(found, given.tasks)]
    lines += ["", "## Size and speed, teacher to student", "", *speeds(found)]
    lines += ["", "## How often the teacher's text is the target", "", *knowledge(found)]
    figure(found, given.tasks)
    content = {
        "seed": given.seeds[0],
        "arms": ARMS,
        "cells": [{**vars(cell), **told} for cell, told in found.items()],
    }
    write_result("seq2seq", content, [*lines, "", "![what is kept](seq2seq.svg)"])


if __name__ == "__main__":
    main()
