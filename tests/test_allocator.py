"""What freed_memory_kept changes can be seen from outside: pages that the kernel hands out."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from contextlib import nullcontext
from distillkit.allocator import freed_memory_kept

def faults(context):
    def step():
        held = [torch.ones(20_000_000 // 4) for _ in range(8)]
    with context:
        step()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            step()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(nullcontext()), faults(freed_memory_kept()), faults(nullcontext()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is told")
def test_pages_are_kept_within_and_given_back_after() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    before, within, after = map(int, done.stdout.split())
    assert within < before / 10 and after > 10 * within


HELD = """
import torch
from distillkit.allocator import freed_memory_kept, give_back_excess

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 // 2**20

with freed_memory_kept():
    held = [torch.ones(20_000_000 // 4) for _ in range(20)]
    last = torch.ones(1000)
    full = resident()
    del held
    kept = resident()
    give_back_excess(limit=2**30)
    below = resident()
    give_back_excess(limit=2**20)
    print(full, kept, below, resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is told")
def test_memory_that_is_freed_and_never_used_again_is_given_back_from_a_limit_on() -> None:
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True)
    full, kept, below, after = map(int, done.stdout.split())
    assert full - kept < 20 and full - below < 20, "kept up to the limit"
    assert full - after > 300
