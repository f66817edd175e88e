"""The demo over three seeds: its student against the majority class, and against the same student alone.

All students have one shape and see the same rows for the same number of steps, at the same learning rate.
"alone" has no teacher: fresh weights and gold labels. "blocks only" learns from gold labels too, but starts
from its teacher's blocks: what distillation itself adds is the difference to that one.
Only built-in data. Usage: python benchmarks/demo_study.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from common import RUNS, facts, scores, write_result

from distillkit import catalog, demo, pipeline, recipe

SEEDS = (1, 2, 3)
SHAPE = {"width": "hidden_dim", "heads": "num_heads", "ffn": "ffn_dim"}


def one(seed: int) -> dict[str, Any]:
    """Distil and keep the figures; then train the two others in the same run folder (the teacher stays)."""
    overrides = [f"output={RUNS}", f"name=demo-study-{seed}", f"seed={seed}", "bench.seconds=0.1"]

    def go(*more: str, until: str) -> Path:
        loaded = recipe.load(demo.CONFIG, [*overrides, *more], components=catalog.components)
        return pipeline.run(loaded, until=until, progress="plain").path

    told = facts(go(until="report"))
    gold = f"distill.losses={json.dumps({'gold': {'use': 'gold'}})}"
    shape = [f"student.{name}={told.student.sizes[size]}" for name, size in SHAPE.items()]
    blocks = scores(go(gold, until="student"), "student")["accuracy"]["value"]
    alone = scores(go(gold, "student.initialise=null", *shape, until="student"), "student")["accuracy"][
        "value"
    ]
    return {
        "majority": told.task.baseline.metrics["accuracy"],
        "alone": alone,
        "blocks only": blocks,
        "distilled": told.student.metrics["accuracy"].value,
        "teacher": told.teacher.metrics["accuracy"].value,
        "rows": told.student.metrics["accuracy"].n,
        "seconds": told.timings,
    }


def main() -> None:
    results = {seed: one(seed) for seed in SEEDS}
    columns = ("majority", "alone", "blocks only", "distilled", "teacher")
    lines = [
        "# The demo over three seeds",
        "",
        f"Accuracy on the {results[SEEDS[0]]['rows']} rows held out.",
        "",
        f"| seed | {' | '.join(columns)} | seconds of the demo |",
        "|---|---|---|---|---|---|---|",
    ]
    for seed, row in results.items():
        cells = " | ".join(f"{row[name]:.4f}" for name in columns)
        lines.append(f"| {seed} | {cells} | {sum(row['seconds'].values()):.0f} |")
    lines.append("")
    for name in ("majority", "alone", "blocks only"):
        gain = np.asarray([row["distilled"] - row[name] for row in results.values()])
        each = ", ".join(f"{value:+.4f}" for value in gain)
        lines.append(f"Distilled minus {name}: mean {gain.mean():+.4f} (each seed: {each}).")
        lines.append("")
    write_result("demo_study", {"seeds": SEEDS, "results": results}, lines)


if __name__ == "__main__":
    main()
