"""What a person sees while it runs: a live line with every term by name on a terminal, plain lines
elsewhere.
"""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

QUIET_SECONDS = 15.0
"""Between two plain lines where there is no terminal."""


class Progress(ABC):
    """Told of stages and steps; never decides anything."""

    @staticmethod
    def make(style: str, main: bool) -> Progress:
        """auto: live on a terminal, plain lines elsewhere; plain; quiet (always quiet on ranks that do not
        write).
        """
        if style == "quiet" or not main:
            return Quiet()
        return OnTerminal() if style == "auto" and sys.stderr.isatty() else Plain()

    @abstractmethod
    def say(self, message: str) -> None:
        """One line that stays."""

    @abstractmethod
    def show(self, text: str, *, last: bool = False) -> None:
        """A line that the next one replaces; where it cannot, only some are said, and the last."""

    def step(self, stage: str, step: int, total: int, record: Mapping[str, Any]) -> None:
        """After a logged step; `record` is its line of metrics.jsonl."""
        self.show(line(stage, step, total, record), last=step == total)

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """The stage is over."""


class Quiet(Progress):
    def say(self, message: str) -> None:
        pass

    def show(self, text: str, *, last: bool = False) -> None:
        pass


class Plain(Progress):
    """One line per interval, for logs."""

    def __init__(self) -> None:
        self._last = 0.0

    def say(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    def show(self, text: str, *, last: bool = False) -> None:
        if time.monotonic() - self._last >= QUIET_SECONDS or last:
            self._last = time.monotonic()
            self.say(text)


class OnTerminal(Progress):
    """A live line on a terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._live: Live | None = None

    def say(self, message: str) -> None:
        self._console.print(Text(message))

    def show(self, text: str, *, last: bool = False) -> None:
        if self._live is None:
            self._live = Live(console=self._console, refresh_per_second=4)
            self._live.start()
        self._live.update(Text(text))

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def line(stage: str, step: int, total: int, record: Mapping[str, Any]) -> str:
    """Stage, step, time left, total and each term by name, speed."""
    left = record.get("eta_seconds", 0.0)
    terms = " ".join(f"{name} {value:.4f}" for name, value in record.get("terms", {}).items())
    return (
        f"{stage} {step}/{total} ({100 * step / total:.0f} %, {duration(left)} left)  total "
        f"{record.get('total', 0.0):.4f}  "
        f"{terms}  {record.get('tokens_per_s', 0.0):,.0f} tokens/s  {record.get('flops', 0.0):.3g} FLOPs"
    )


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
