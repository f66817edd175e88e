"""From Python's start to the first answer of an artifact, in processes of its own: `cold_start.py
ARTIFACT`.

Every sample is a process of its own that imports the runtime, opens the artifact and answers one text. The
files are in the page cache after the first, which does not count. PYTHON may be the interpreter of an
environment without torch (docs/runtime.md); by default it is this one. The aim is one second.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from common import write_result

AIM = 1.0
"""Seconds."""
PROGRAM = """
import sys, time
from distillkit.runtime import Artifact
imported = time.perf_counter()
model = Artifact.load(sys.argv[1], threads=int(sys.argv[2]))
loaded = time.perf_counter()
model.predict(["a text to judge"])
print(loaded - imported, time.perf_counter() - loaded, "torch" in sys.modules)
"""


def sample(python: str, artifact: Path, threads: int) -> tuple[float, float, float]:
    """Seconds of the whole process, of opening, and of the first answer."""
    start = time.perf_counter()
    done = subprocess.run(
        [python, "-c", PROGRAM, str(artifact), str(threads)], capture_output=True, text=True, check=True
    )
    whole = time.perf_counter() - start
    opened, first, torch = done.stdout.split()
    assert torch == "False", "the runtime imported torch"
    return whole, float(opened), float(first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path, help="a folder with one classifier of single texts")
    parser.add_argument("--python", default=sys.executable, help="interpreter that answers")
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    sample(given.python, given.artifact, given.threads)
    taken = np.array([sample(given.python, given.artifact, given.threads) for _ in range(given.samples)])
    size = (given.artifact / "model.onnx").stat().st_size
    rows = {
        name: [float(np.percentile(column, at)) for at in (50, 90, 100)]
        for name, column in zip(("whole process", "opening", "first answer"), taken.T, strict=True)
    }
    median = rows["whole process"][0]
    verdict = f"The median is {median:.2f} s, {'within' if median <= AIM else 'over'} the aim of {AIM:.0f} s."
    lines = [
        "# From Python's start to the first answer",
        f"model.onnx of {size / 2**20:.1f} MiB, {given.samples} processes after an uncounted one. {verdict}",
        "",
        "| seconds | p50 | p90 | largest |",
        "|---|---:|---:|---:|",
        *(f"| {name} | {' | '.join(f'{value:.3f}' for value in told)} |" for name, told in rows.items()),
    ]
    content = {"size_bytes": size, "threads": given.threads, "samples": taken.tolist(), "percentiles": rows}
    write_result("cold_start", content, lines)


if __name__ == "__main__":
    main()
