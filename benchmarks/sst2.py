"""SST-2 from nothing: a BERT pretrained on ../shared/data/corpus, fine-tuned, distilled, exported, measured.

Usage: python benchmarks/sst2.py (needs the data, or DISTILLKIT_DATA). An interrupted run goes on.
"""

from __future__ import annotations

from typing import Any

from common import DATA, facts, run, write_result

SEED = 13


def config() -> dict[str, Any]:
    folder = DATA / "sst2"
    batch = {"tokens": 2048, "examples": 128}
    return {
        "name": "sst2-from-scratch",
        "seed": SEED,
        "task": {
            "kind": "classification",
            **{split: str(folder / f"{split}.jsonl.gz") for split in ("train", "validation", "test")},
            "max_length": 64,
        },
        "teacher": {
            "use": "bert",
            "layers": 4,
            "width": 192,
            "heads": 3,
            "vocab_size": 8192,
            "positions": 128,
            "pretrain": {
                "corpus": str(DATA / "corpus"),
                "steps": 2000,
                "max_length": 64,
                "batch": 32,
                "optimizer": {"lr": 1e-3},
            },
            "finetune": {"epochs": 2, "batch": batch, "optimizer": {"lr": 5e-4}},
        },
        "student": {"use": "transformer", "layers": 2, "initialise": {"from": "teacher", "layers": [2, 4]}},
        "distill": {
            "epochs": 2,
            "batch": batch,
            "optimizer": {"lr": 5e-4},
            "losses": {
                "gold": {"use": "gold", "weight": 0.3},
                "kd": {"use": "logits", "weight": 0.7, "temperature": 2.0},
                "states": {"use": "hidden_cosine"},
            },
        },
        "bench": {"batch": [1, 32], "length": [16, 64], "threads": 1},
    }


def main() -> None:
    settings = config()
    told = facts(run(settings))
    name = told.task.metric
    lines = ["# SST-2 with a teacher pretrained in this repo", "", f"{told.task.rows} rows.", ""]
    lines += ["| model | parameters | test accuracy | 95 % interval |", "|---|---|---|---|"]
    for role, model in (("teacher", told.teacher), ("student", told.student)):
        value = model.metrics[name]
        lines.append(
            f"| {role} | {model.parameters:,} | {value.value:.4f} | {value.low:.4f} to {value.high:.4f} |"
        )
    lines += ["", "| model | runtime | batch | length | p50 ms | p95 ms |", "|---|---|---|---|---|---|"]
    for row in told.bench:
        for cell in row.cells:
            lines.append(
                f"| {row.role} | {row.backend} | {cell.batch} | {cell.length} | {cell.p50_ms:.2f} | "
                f"{cell.p95_ms:.2f} |"
            )
    spent = ", ".join(f"{stage} {seconds:,.0f} s" for stage, seconds in told.timings.items())
    lines += ["", f"Majority class {told.task.baseline.metrics[name]:.4f}. Time: {spent}."]
    lines += [f"Largest difference of the artifact to PyTorch: {told.parity['max_abs_difference']:.2e}."]
    content = {
        "seed": SEED,
        "config": {**settings, "task": "sst2 of the data folder"},
        "teacher": {key: vars(value) for key, value in told.teacher.metrics.items()},
        "student": {key: vars(value) for key, value in told.student.metrics.items()},
        "timings": told.timings,
        "parity": told.parity["max_abs_difference"],
    }
    write_result("sst2", content, lines)


if __name__ == "__main__":
    main()
