"""The demo over three seeds: the student against the majority class, and against the same student without its
teacher.

Both students see the same rows for the same number of steps; the one without a teacher learns the gold labels
alone. Only built-in data. Usage: python benchmarks/demo_study.py
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from common import RUNS, facts, scores, write_result

from distillkit import catalog, demo, pipeline, recipe

SEEDS = (1, 2, 3)


def one(seed: int) -> dict[str, Any]:
    """Distil, keep the figures, then train the same student alone in the same run folder (the teacher
    stays).
    """
    name = f"demo-study-{seed}"
    overrides = [
        f"output={RUNS}",
        f"name={name}",
        f"seed={seed}",
        "bench.seconds=0",
        "bench.iterations=1",
        "bench.warmup=0",
    ]
    loaded = recipe.load(demo.CONFIG, overrides, components=catalog.components)
    folder = pipeline.run(loaded, progress="plain").path
    told = facts(folder)
    distilled = told.student.metrics["accuracy"]
    alone_losses = json.dumps({"gold": {"use": "gold"}})
    alone = recipe.load(
        demo.CONFIG, [*overrides, f"distill.losses={alone_losses}"], components=catalog.components
    )
    folder = pipeline.run(alone, until="student", progress="plain").path
    return {
        "majority": told.task.baseline.metrics["accuracy"],
        "teacher": told.teacher.metrics["accuracy"].value,
        "distilled": distilled.value,
        "alone": scores(folder, "student")["accuracy"]["value"],
        "rows": distilled.n,
        "timings": told.timings,
    }


def main() -> None:
    results = {seed: one(seed) for seed in SEEDS}
    lines = [
        "# The demo over three seeds",
        "",
        "Accuracy on the held-out rows.",
        "",
        "| seed | majority | student alone | student distilled | teacher |",
        "|---|---|---|---|---|",
    ]
    for seed, row in results.items():
        lines.append(
            f"| {seed} | {row['majority']:.4f} | {row['alone']:.4f} | {row['distilled']:.4f} | "
            f"{row['teacher']:.4f} |"
        )
    gain = np.asarray([row["distilled"] - row["alone"] for row in results.values()])
    lines += [
        "",
        f"Distilled minus alone: mean {gain.mean():+.4f}, each "
        f"{', '.join(f'{value:+.4f}' for value in gain)} ({results[SEEDS[0]]['rows']} rows).",
    ]
    write_result("demo_study", {"seeds": SEEDS, "results": results}, lines)


if __name__ == "__main__":
    main()
