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
_MOST = 2**30
"""Freed bytes that are kept at most where less than that is in use."""


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


def give_back_excess(limit: int = _MOST) -> None:
    """Give freed memory back where more than `limit` bytes of it, and more than is in use, are kept: batches
    of many lengths leave holes that no later one fills.
    """
    libc = _glibc()
    if libc is None or not hasattr(libc, "mallinfo2"):
        return
    libc.mallinfo2.restype = _Held
    held = libc.mallinfo2()
    if held.fordblks > max(limit, held.uordblks):
        libc.malloc_trim(0)


class _Held(ctypes.Structure):
    """mallinfo2(3); uordblks: bytes in use, fordblks: bytes free."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
