"""Kill -9 at eight random moments, four of them inside a checkpoint write; the weights must not notice.

A small teacher and student on the bundled snippets, checkpoints every few steps. A moment inside a write is
one at which the folder that is being written aside (`.tmp-...`) can be seen.
Usage: python benchmarks/kill9.py
"""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import ROOT, write_result

SEED, KILLS = 9, 8
CONFIG: dict[str, Any] = {
    "seed": SEED,
    "task": {"kind": "classification", "train": "builtin:rotten_tomatoes", "max_length": 64},
    "teacher": {
        "use": "bert",
        "size": "tiny",
        "vocab_size": 4096,
        "pretrain": {"corpus": "builtin:rotten_tomatoes", "steps": 120, "max_length": 64, "save_every": 10},
        "finetune": {"epochs": 1, "save_every": 10, "optimizer": {"lr": 5e-4}},
        "allow_weak": True,
    },
    "student": {"use": "transformer", "layers": 1},
    "distill": {
        "epochs": 1,
        "save_every": 10,
        "optimizer": {"lr": 5e-4},
        "losses": {"gold": {"use": "gold"}, "kd": {"use": "logits"}, "states": {"use": "hidden_cosine"}},
    },
    "runtime": {"threads": 1},
}
STAGES = ("pretrain", "teacher", "student")


def start(folder: Path, name: str) -> subprocess.Popen[bytes]:
    config = folder / f"{name}.json"
    config.write_text(json.dumps({**CONFIG, "name": name, "output": str(folder / "runs")}))
    command = [sys.executable, "-m", "distillkit", "distill", "--quiet", str(config)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)


def weights(run: Path) -> dict[str, str]:
    return {
        stage: hashlib.sha256((run / stage / "model.safetensors").read_bytes()).hexdigest()
        for stage in STAGES
    }


def wait_for_training(child: subprocess.Popen[bytes], run: Path) -> None:
    """Return when the process has begun to train: it writes metrics.jsonl, or writes it anew to go on."""
    log = run / "metrics.jsonl"

    def seen() -> int:
        return log.stat().st_mtime_ns if log.exists() else 0

    before = seen()
    while seen() == before and child.poll() is None:
        time.sleep(0.01)


def kill_inside_a_write(child: subprocess.Popen[bytes], run: Path, after: float) -> str:
    """Wait, then kill as soon as a checkpoint is seen half written; '' where the run ended before that."""
    wait_for_training(child, run)
    deadline = time.monotonic() + after
    while child.poll() is None:
        if time.monotonic() > deadline:
            seen = next(run.glob("checkpoints/*/.tmp-*"), None)
            if seen is not None:
                child.send_signal(signal.SIGKILL)
                child.wait()
                left = seen.is_dir() and not (seen / "manifest.json").exists()
                return f"inside the write of {seen.parent.name}{' (no manifest yet)' if left else ''}"
        time.sleep(0.0002)
    return ""


def kill_anywhere(child: subprocess.Popen[bytes], run: Path, after: float) -> str:
    """Kill after a time of training; '' where the run ended before that."""
    wait_for_training(child, run)
    try:
        child.wait(after)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL)
        child.wait()
        return f"after {after:.1f} s of training"
    return ""


def main() -> None:
    chance = random.Random(SEED)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        child = start(folder, "undisturbed")
        wait_for_training(child, folder / "runs" / "undisturbed")
        begun = time.monotonic()
        if child.wait():
            sys.exit("the undisturbed run failed")
        whole = time.monotonic() - begun
        run = folder / "runs" / "killed"
        moments = []
        for index in range(KILLS):
            kill = kill_inside_a_write if index % 2 else kill_anywhere
            said = kill(start(folder, "killed"), run, chance.uniform(0.02, 0.1) * whole)
            if not said:
                break
            steps = sorted(path.relative_to(run).as_posix() for path in run.glob("checkpoints/*/[0-9]*"))
            moments.append({"moment": said, "newest checkpoint": steps[-1] if steps else "none"})
            print(moments[-1], flush=True)
        if start(folder, "killed").wait():
            sys.exit("the killed run did not go on")
        same = {
            stage: weights(run)[stage] == weights(folder / "runs" / "undisturbed")[stage] for stage in STAGES
        }
    inside = sum("inside" in moment["moment"] for moment in moments)
    lines = ["# Kill -9, resumed", "", "| kill | moment | newest checkpoint then |", "|---|---|---|"]
    lines += [
        f"| {index} | {moment['moment']} | {moment['newest checkpoint']} |"
        for index, moment in enumerate(moments, start=1)
    ]
    verdict = ", ".join(f"{stage} {'equal' if equal else 'DIFFERENT'}" for stage, equal in same.items())
    lines += [
        "",
        f"{len(moments)} kills, {inside} inside a checkpoint write. Weights, bit for bit: {verdict}.",
    ]
    write_result("kill9", {"seed": SEED, "kills": moments, "equal": same}, lines)
    sys.exit(0 if all(same.values()) and len(moments) == KILLS else 1)


if __name__ == "__main__":
    main()
