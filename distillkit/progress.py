"""What a person sees while a run works: a live line on a terminal, one line per interval elsewhere, or nothing.

Progress is told about stages, steps and logged records; it never changes what is computed and keeps nothing. Names that
come from a recipe are stripped of control characters, so that a loss or label name cannot drive the terminal.
"""

from __future__ import annotations

import sys
import time
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

Mode = Literal["auto", "live", "lines", "quiet"]
LINE_SECONDS = 10.0
"""At most one line in so many seconds where there is no terminal."""


class Progress(ABC):
    """Told what happens; shows it in its way."""

    @staticmethod
    def make(mode: Mode, main: bool = True) -> Progress:
        """The display for this process: `auto` is live on a terminal and lines elsewhere; ranks but the first are quiet."""
        if mode == "quiet" or not main:
            return QuietProgress()
        if mode == "live" or (mode == "auto" and Console(stderr=True).is_terminal):
            return LiveProgress()
        return LineProgress()

    @abstractmethod
    def begin(self, stage: str, total: int, done: int) -> None:
        """A training of `total` steps starts or goes on, `done` of them behind it."""

    @abstractmethod
    def step(self, step: int) -> None:
        """Optimizer step number `step` is done; called at every step and cheap."""

    @abstractmethod
    def values(self, values: Mapping[str, float]) -> None:
        """Logged figures by name: the total, every term, the rate, a metric."""

    @abstractmethod
    def say(self, text: str) -> None:
        """A sentence for the person: what was resumed, skipped or measured."""

    @abstractmethod
    def end(self) -> None:
        """The training that began is over, or was left by an error."""


class QuietProgress(Progress):
    """Shows nothing."""

    def begin(self, stage: str, total: int, done: int) -> None:
        pass

    def step(self, step: int) -> None:
        pass

    def values(self, values: Mapping[str, float]) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def end(self) -> None:
        pass


class LineProgress(Progress):
    """One plain line per interval, for logs and pipes; a reader that has gone away is no error."""

    def __init__(self, stream: TextIO | None = None, *, seconds: float = LINE_SECONDS) -> None:
        self.stream, self.seconds = stream or sys.stderr, seconds
        self._stage, self._total, self._step, self._first = "", 0, 0, 0
        self._began = self._shown = time.monotonic()

    def begin(self, stage: str, total: int, done: int) -> None:
        self._stage, self._total, self._step, self._first = plain(stage), total, done, done
        self._began = time.monotonic()
        self._shown = self._began - self.seconds

    def step(self, step: int) -> None:
        self._step = step

    def values(self, values: Mapping[str, float]) -> None:
        now = time.monotonic()
        if now - self._shown < self.seconds and self._step < self._total:
            return
        self._shown = now
        done = self._step - self._first
        left = (now - self._began) / done * (self._total - self._step) if done else 0.0
        self.say(f"{self._stage} {self._step}/{self._total}  {figures(values)}  {duration(left)} left")

    def say(self, text: str) -> None:
        try:
            print(plain(text), file=self.stream, flush=True)
        except (OSError, ValueError):
            self.seconds = float("inf")

    def end(self) -> None:
        pass


class LiveProgress(Progress):
    """One live line on a terminal: stage, bar, steps, elapsed and remaining time, every term by name."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._bar: RichProgress | None = None

    def begin(self, stage: str, total: int, done: int) -> None:
        self.end()
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            console=self.console,
        )
        self._bar.add_task(plain(stage), total=total, completed=done, figures="")
        self._bar.start()

    def step(self, step: int) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step)

    def values(self, values: Mapping[str, float]) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], figures=figures(values))

    def say(self, text: str) -> None:
        self.console.print(Text(plain(text)))

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def figures(values: Mapping[str, float]) -> str:
    """`total 0.412  gold 0.69  lr 1.0e-04`: names and values, three digits that count."""
    return "  ".join(f"{plain(name)} {_short(value)}" for name, value in values.items())


def duration(seconds: float) -> str:
    """`1:02:03`, or `02:03` under an hour."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes:02}:{left:02}"


def plain(text: str) -> str:
    """The text without control characters and without marks that reorder it."""
    return "".join(char for char in text if char == " " or unicodedata.category(char) not in ("Cc", "Cf"))


def _short(value: float) -> str:
    small = value != 0 and abs(value) < 1e-3
    return f"{value:.1e}" if small else f"{value:.4g}"
