"""From a request to its answer: what the routes of `app` call, without a word of HTTP's wire."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from distillkit.errors import DistillkitError
from distillkit.runtime.artifact import Artifact
from distillkit.serving.batcher import Batcher, Full
from distillkit.serving.limits import Limits
from distillkit.serving.metrics import Metrics
from distillkit.serving.requests import Asked, Refused, parse

_QUIET = 0.25
"""Seconds without a request after which a server that was told to stop does."""
Value = TypeVar("Value")


class Gone(Exception):
    """The client went away."""


class Service:
    """One artifact, its queue, its counters, and whether it takes requests."""

    def __init__(self, model: Artifact, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.model, self.limits, self.metrics, self._clock = model, limits, Metrics(), clock
        self.batcher = Batcher(
            model.run,
            model.size,
            most=limits.queue,
            tokens=limits.tokens,
            window=limits.window,
            watch=self.metrics.batch,
        )
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="tokens")
        self._worker: asyncio.Task[None] | None = None
        self._drained_at = self._last = 0.0
        self.draining = False
        self.in_flight = 0

    @property
    def ready(self) -> bool:
        return self._worker is not None and not self._worker.done() and not self.draining

    async def open(self) -> None:
        """Begin to work."""
        self._worker = asyncio.create_task(self.batcher.work())

    async def close(self) -> None:
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        self.batcher.close()
        self._reading.shutdown(wait=False, cancel_futures=True)

    def drain(self) -> None:
        """Take no new requests; those that are inside are answered."""
        if not self.draining:
            self._drained_at = self._last = self._clock()
            self.draining = True

    @property
    def drained(self) -> bool:
        """Whether there is nothing left to answer after `drain`, or no time for it."""
        now = self._clock()
        if self.in_flight:
            self._last = now
        over = now - self._drained_at > self.limits.seconds
        return self.draining and (over or now - self._last > _QUIET)

    async def answer(self, body: bytes, gone: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
        """The answers to a body. Raises Refused, and Gone where what `gone` gives is done before them."""
        if not self.ready:
            raise Refused(503, "the server is stopping", after=1)
        asked = parse(body, self.model, self.limits)
        try:
            with self.batcher.place(len(asked.rows)):
                return await _unless(self._answers(asked), gone(), self.limits.seconds)
        except Full as full:
            raise Refused(429, "too much to do: the queue is full", after=full.after) from None
        except TimeoutError:
            raise Refused(503, f"no answer within {self.limits.seconds:g} s", after=1) from None
        except DistillkitError as error:
            raise Refused(500, error.problem) from None

    async def _answers(self, asked: Asked) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        rows = await loop.run_in_executor(self._reading, self.model.read, asked.rows, asked.task)
        said = await self.batcher.ask(rows)
        pairs = zip(rows, said, strict=True)
        answers = [self.model.answer(row, one, asked.task).as_json() for row, one in pairs]
        if not asked.probabilities:
            for answer in answers:
                answer.pop("probabilities", None)
        return {"answers": answers}

    def warm(self) -> None:
        """A first forward: ONNX Runtime takes its memory then."""
        task = self.model.description.tasks[0]
        words = self.model.description.kind == "token_classification" or len(task.columns) == 2
        self.model.predict([["a", "b"] if words else "a"], task=task.name)


async def _unless(work: Awaitable[Value], gone: Awaitable[Any], seconds: float) -> Value:
    """What `work` gives. Raises Gone where `gone` is done first, TimeoutError after so many seconds; then the
    work is cancelled and has ended.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone)
    try:
        done, _ = await asyncio.wait({working, leaving}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if working in done:
            return working.result()
        raise Gone if leaving in done else TimeoutError
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
