"""kill -9 in a real process, at chosen places of a run and of a checkpoint write, then resumed: the same
weights.
"""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tinyrun import write_config, write_data

CHILD = """
import os, signal, sys
import torch
from distillkit import files, pipeline

where, after, config, name = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
left = after

def die_at(real):
    def call(*given, **named):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **named)
    return call

if where == "write":  # inside the writing of a folder: some files are there, its name is not
    os.fsync = die_at(os.fsync)
elif where == "rename":
    os.replace = die_at(os.replace)
elif where == "step":
    torch.optim.AdamW.step = die_at(torch.optim.AdamW.step)
pipeline.run(config, overrides=[f"name={name}"], until="student", progress="quiet")
"""


def child(config: Path, name: str, where: str = "", after: int = 0) -> int:
    """The exit status of a process that runs `config`, and kills itself at the `after`-th call of a place."""
    arguments = [sys.executable, "-c", CHILD, where, str(after), str(config), name]
    done = subprocess.run(arguments, cwd=config.parent, capture_output=True, text=True, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def weights(config: Path, name: str) -> dict[str, str]:
    run = config.parent / "runs" / name
    return {
        stage: hashlib.sha256((run / stage / "model.safetensors").read_bytes()).hexdigest()
        for stage in ("pretrain", "teacher", "student")
    }


def disturbed(folder: Path, kills: list[tuple[str, int]]) -> None:
    """One run killed at each place in turn must end with the weights of one that nobody touched."""
    write_data(folder)
    config = write_config(folder)
    assert child(config, "quiet") == 0
    for where, after in kills:
        assert child(config, "killed", where, after) == -signal.SIGKILL, f"{where} {after} came too late"
    assert child(config, "killed") == 0
    assert weights(config, "killed") == weights(config, "quiet")
    left = [path.name for path in (folder / "runs" / "killed").rglob(".tmp-*")]
    assert not left


def test_killed_in_a_step_and_in_a_checkpoint_write(tmp_path: Path) -> None:
    disturbed(tmp_path, [("write", 22), ("step", 30)])


@pytest.mark.slow
def test_killed_at_eight_places_four_of_them_inside_a_write(tmp_path: Path) -> None:
    disturbed(
        tmp_path,
        [
            ("write", 8),
            ("step", 3),
            ("rename", 12),
            ("step", 17),
            ("write", 15),
            ("step", 11),
            ("write", 9),
            ("step", 7),
        ],
    )
