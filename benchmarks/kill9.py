"""Kill -9 at eight random moments, four of them inside a checkpoint write; the weights must not notice.

A small teacher and student on the bundled snippets, checkpoints every few steps. The moments are drawn from
all optimizer steps of pretraining, fine-tuning and distillation; one inside a write is the next at which the
folder that is being written aside (`.tmp-...`) can be seen.
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
from collections import Counter
from pathlib import Path
from typing import Any

from common import ROOT, write_result

from distillkit.rundir import MetricsLog

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
    "runtime": {"threads": 1, "log_every": 1},
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


def steps_done(run: Path) -> int:
    """Optimizer steps so far, over all stages."""
    last: Counter[str] = Counter()
    for row in MetricsLog(run / "metrics.jsonl").records():
        if "terms" in row:
            last[row["stage"]] = max(last[row["stage"]], row["step"])
    return last.total()


def wait_for_step(child: subprocess.Popen[bytes], run: Path, step: int) -> None:
    """Return once the run has got to a step, counted over all stages, or is over."""
    while steps_done(run) < step and child.poll() is None:
        time.sleep(0.02)


def kill_inside_a_write(child: subprocess.Popen[bytes], run: Path) -> str:
    """Kill as soon as a checkpoint is seen half written; '' where the run ended before that."""
    while child.poll() is None:
        seen = next(run.glob("checkpoints/*/.tmp-*"), None)
        if seen is not None:
            child.send_signal(signal.SIGKILL)
            child.wait()
            left = seen.is_dir() and not (seen / "manifest.json").exists()
            return f"inside the next write, of {seen.parent.name}{' (no manifest yet)' if left else ''}"
        time.sleep(0.0002)
    return ""


def kill_now(child: subprocess.Popen[bytes], run: Path) -> str:
    """Kill; '' where the run had ended before."""
    if child.poll() is not None:
        return ""
    child.send_signal(signal.SIGKILL)
    child.wait()
    return "at once"


def main() -> None:
    chance = random.Random(SEED)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        whole = folder / "runs" / "undisturbed"
        if start(folder, "undisturbed").wait():
            sys.exit("the undisturbed run failed")
        total = steps_done(whole)
        run = folder / "runs" / "killed"
        moments = []
        for index, step in enumerate(sorted(chance.sample(range(1, total - 10), KILLS))):
            child = start(folder, "killed")
            wait_for_step(child, run, step)
            said = (kill_inside_a_write if index % 2 else kill_now)(child, run)
            if not said:
                break
            newest = max(
                run.glob("checkpoints/*/[0-9]*"), key=lambda path: path.stat().st_mtime, default=None
            )
            name = newest.relative_to(run / "checkpoints").as_posix() if newest else "none"
            moments.append({"step": f"{step} of {total}", "moment": said, "newest checkpoint": name})
            print(moments[-1], flush=True)
        if start(folder, "killed").wait():
            sys.exit("the killed run did not go on")
        same = {stage: weights(run)[stage] == weights(whole)[stage] for stage in STAGES}
    inside = sum("inside" in moment["moment"] for moment in moments)
    lines = ["# Kill -9, resumed", "", "| step reached | killed | newest checkpoint then |", "|---|---|---|"]
    lines += [
        f"| {moment['step']} | {moment['moment']} | {moment['newest checkpoint']} |" for moment in moments
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
