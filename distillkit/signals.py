"""Signals set a flag; the loops look at it between steps. A second signal stops at once."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any

from distillkit.errors import StoppedError

_STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if name in dir(signal))


class Signals:
    """Context manager: inside it, SIGTERM, SIGUSR1 (Slurm) and Ctrl-C ask for a stop after the step under
    way.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in _STOPPING:
            try:
                self._before[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread: the host program keeps its handlers
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def stopping(self) -> bool:
        return self.received is not None

    @property
    def interrupted(self) -> bool:
        """Asked by Ctrl-C (exit code 130) rather than by a scheduler (75)."""
        return self.received == signal.SIGINT

    def check(self, when: str) -> None:
        """Raise StoppedError where a stop was asked for, at a moment at which nothing is half done."""
        if self.stopping:
            raise StoppedError(
                f"stopped by a signal {when}; everything that was finished is kept",
                interrupted=self.interrupted,
                hint="the same command goes on",
            )

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(130 if number == signal.SIGINT else 75)
        self.received = number
