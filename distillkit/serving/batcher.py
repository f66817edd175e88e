"""Rows of many requests through one model, together where that is cheap.

One thread computes. While it does, rows wait; then the oldest goes, with those of nearly its length. The
number of rows inside (read, waiting, computed) is bounded, so that a server that has too much to do says so
at once.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from distillkit.errors import DistillkitError, ExportError
from distillkit.runtime.answers import Said
from distillkit.runtime.rows import Row

MOST_PADDING = 0.25
"""Share of a batch that may be padding: more costs a CPU what batching gains."""
Run = Callable[[Sequence[Row]], Sequence[Said]]
Watch = Callable[[Sequence[Row], float], None]
"""Is told of each batch and the seconds that it took."""


class Full(Exception):
    """No room; `after`: in how many seconds there may be some."""

    def __init__(self, after: int) -> None:
        self.after = after
        super().__init__(f"full; try again after {after} s")


@dataclass(eq=False)
class _Waiting:
    row: Row
    said: asyncio.Future[Said]
    since: float


@dataclass
class _Speed:
    """Rows a second of the last batches, for a guess how long the queue takes."""

    rows: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=20))

    def seconds(self, rows: int) -> float:
        done, took = sum(count for count, _ in self.rows), sum(seconds for _, seconds in self.rows)
        return rows * took / done if done else 1.0


def choose(lengths: Sequence[int], tokens: int) -> list[int]:
    """Which rows go together: the first always, then those of the nearest lengths, as long as the batch holds
    at most `tokens` tokens, padding included, of which at most `MOST_PADDING` are padding.
    """
    chosen, longest, real = [0], lengths[0], lengths[0]
    for place in sorted(range(1, len(lengths)), key=lambda place: abs(lengths[place] - lengths[0])):
        width, together = max(longest, lengths[place]), real + lengths[place]
        size = width * (len(chosen) + 1)
        if size > tokens or size - together > MOST_PADDING * size:
            break
        chosen.append(place)
        longest, real = width, together
    return chosen


class Batcher:
    """Answers rows by `run`, which one thread calls with batches; `size` says the tokens that a row costs.
    Belongs to one event loop.
    """

    def __init__(
        self, run: Run, size: Callable[[Row], int], *, most: int, tokens: int, window: float, watch: Watch
    ) -> None:
        self._run, self._size, self._watch = run, size, watch
        self._most, self._tokens, self._window = most, tokens, window
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._waiting: list[_Waiting] = []
        self._some = asyncio.Event()
        self._speed = _Speed()
        self.inside = 0
        """Rows that have a place."""

    @property
    def waiting(self) -> int:
        """Rows that are not yet computed."""
        return len(self._waiting)

    @contextmanager
    def place(self, rows: int) -> Iterator[None]:
        """Room for so many rows while this lasts. Raises Full where there is none."""
        if self.inside + rows > self._most:
            raise Full(math.ceil(min(60.0, max(1.0, self._speed.seconds(self.inside)))))
        self.inside += rows
        try:
            yield
        finally:
            self.inside -= rows

    async def ask(self, rows: Sequence[Row]) -> list[Said]:
        """What the model says of these rows, in their order. A caller that is cancelled leaves nothing
        behind.
        """
        loop = asyncio.get_running_loop()
        mine = [_Waiting(row, loop.create_future(), loop.time()) for row in rows]
        self._waiting += mine
        self._some.set()
        try:
            return list(await asyncio.gather(*(one.said for one in mine)))
        finally:
            gone = {id(one) for one in mine if not one.said.done() or one.said.cancelled()}
            for one in mine:
                one.said.cancel()
            self._waiting = [one for one in self._waiting if id(one) not in gone]

    async def work(self) -> None:
        """Answer what comes, until cancelled."""
        while True:
            await self._some.wait()
            if not self._waiting:
                self._some.clear()
                continue
            await self._gather()
            if self._waiting:
                await self._answer(self._next())

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _gather(self) -> None:
        """Wait until the oldest row has waited for the window (under load it has), or a batch is full."""
        if sum(self._size(one.row) for one in self._waiting) >= self._tokens:
            return
        left = self._waiting[0].since + self._window - asyncio.get_running_loop().time()
        if left > 0:
            await asyncio.sleep(left)

    def _next(self) -> list[_Waiting]:
        chosen = {*choose([self._size(one.row) for one in self._waiting], self._tokens)}
        batch = [one for place, one in enumerate(self._waiting) if place in chosen]
        self._waiting = [one for place, one in enumerate(self._waiting) if place not in chosen]
        return batch

    async def _answer(self, batch: Sequence[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        rows, begun = [one.row for one in batch], loop.time()
        try:
            said = await loop.run_in_executor(self._thread, self._run, rows)
        except Exception as error:  # of one row, maybe: each gets its own chance
            if len(batch) > 1:
                for one in batch:
                    await self._answer([one])
            elif not batch[0].said.done():
                batch[0].said.set_exception(_told(error))
            return
        took = loop.time() - begun
        self._speed.rows.append((len(rows), took))
        self._watch(rows, took)
        for one, answer in zip(batch, said, strict=True):
            if not one.said.done():
                one.said.set_result(answer)


def _told(error: Exception) -> DistillkitError:
    """The error, without what a runtime's own may say of a text."""
    if isinstance(error, DistillkitError):
        return error
    return ExportError(f"the model failed on this row ({type(error).__name__})")
