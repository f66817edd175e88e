"""What each of several ranks does for test_distributed: a training stopped by a signal and gone on with,
beside an undisturbed one. Run by torchrun as `ranks.py FOLDER ddp|fsdp`; each rank writes FOLDER/rank-N.json.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tiny import feed
from torch import nn
from torch.distributed.tensor import DTensor
from training import digest, program, run, settings

from distillkit.errors import StoppedError
from distillkit.parallel import parallel
from distillkit.progress import Quiet
from distillkit.settings import RuntimeSettings
from distillkit.train import make_accelerator
from distillkit.world import World, leave


class Terminate(Quiet):
    """Sends SIGTERM at a step; the loop tells only rank 0 of its steps."""

    def step(self, stage: str, step: int, total: int, record: Mapping[str, Any]) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)


def held(module: nn.Module) -> int:
    """Numbers that this rank keeps of the module's parameters."""
    parameters = list(module.parameters())
    return sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in parameters)


def main(folder: Path, kind: str) -> None:
    how = settings(save_every=1000, log_every=1)
    runtime = RuntimeSettings.model_validate({**how.runtime.model_dump(), "parallel": kind})
    world = World.join(runtime)
    data = feed(folder / f"cache-{world.rank}")  # of each rank's own: nothing here says who fills one first
    how = replace(how, runtime=runtime)
    whole, result = run(folder / "whole", data=data, how=how)
    stopped = False
    try:
        run(folder / "cut", data=data, how=how, progress=Terminate())
    except StoppedError:
        stopped = True
    again, resumed = run(folder / "cut", data=data, how=how)
    accelerator = make_accelerator(runtime)
    made = program()
    total = held(made)
    shared = parallel(runtime, accelerator)
    shared.wrap(made)
    mine = held(made)
    with shared.whole():
        inside = held(made)
    found = {
        "whole": digest(whole),
        "again": digest(again),
        "stopped": stopped,
        "resumed_from": resumed.resumed_from,
        "steps": result.steps,
        "parameters": {"total": total, "mine": mine, "inside": inside},
    }
    (folder / f"rank-{accelerator.process_index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
    leave(0)
