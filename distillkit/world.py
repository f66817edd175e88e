"""The processes of one run: who writes, and where all wait for each other.

Started alone, a run is rank 0 of 1 and nothing here does anything. Started by torchrun or `distillkit run
--gpus N` (launching.py), the ranks share every forward and backward of training; rank 0 alone writes,
exports and measures.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from distillkit.settings import RuntimeSettings

PATIENCE = timedelta(hours=12)
"""How long a rank waits for rank 0 to tokenise or evaluate; a rank that dies ends the others at once
(torchrun).
"""


@dataclass(frozen=True)
class World:
    rank: int
    size: int

    @classmethod
    def join(cls, runtime: RuntimeSettings) -> World:
        """This process's place, from torchrun's environment; joins the process group where there are
        several.
        """
        rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        if size > 1 and not dist.is_initialized():
            on_gpu = runtime.device != "cpu" and torch.cuda.is_available()
            if on_gpu:
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            dist.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
        return cls(rank, size)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Return when every rank is here."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Rank 0 goes through the block before the others do (it fills a cache that they then read)."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()


def leave(code: int) -> None:
    """End this process if it is one of several; the last thing that a program of ranks does.

    Threads of torch.distributed that outlive Python may abort a process that has done all its work (seen with
    gloo and sharded parameters in torch 2.13), so Python's own shutdown is left out.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
