"""The C library's allocator, told to keep what a training step frees for the next one.

By default glibc hands freed memory back to the kernel, which clears each page anew when the next step asks
for it.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""
_LARGEST = 32 * 2**20
"""Bytes from which on memory comes straight from the kernel and goes back to it, the most that glibc lets one
ask for; so that a few large tensors do not break up the rest.
"""


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within, freed memory stays with the process; at the end it is given back. Only glibc is told."""
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
    libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST)  # where glibc's own adjustment ends up
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
