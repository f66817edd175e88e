"""How requests come: one after the other, all at once, or by chance (the scenarios single-stream, offline and
server of MLPerf Inference, Reddi et al. 2020, section 4.1).

Rows are as long as they are, not padded to one length. Departures from MLPerf: seconds in the place of its 10
minutes, percentiles without its early stopping, and rows of the task in the place of its data.

Shapes: n requests.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from distillkit.data.batching import Encoded, collate, drawn, sequential_batches
from distillkit.settings import BenchSettings
from distillkit.types import Batch

Request = Callable[[Batch], object]
Seconds = NDArray[np.float64]
Serve = Callable[[NDArray[np.int64]], object]
_ROWS = 512
"""Rows that a scenario draws of the task's, at most."""
_OFFLINE_TOKENS = 4096
"""Tokens of a batch, padding included, as `distillkit predict` has them."""
_FEWEST = 100
"""Requests of a trial: the share of late ones is counted in hundredths."""
_QUANTILE = 0.99
_RESOLUTION = 0.05
_LOWEST = 1 / 64
"""Of what can be served at all: rates below are not looked at."""
_CALLS = 5


class Scenario(ABC):
    """Requests to one loaded model, in an order that the seed draws."""

    def __init__(self, request: Request, samples: Encoded, settings: BenchSettings, *, seed: int) -> None:
        self.request, self.settings = request, settings
        self.rows = drawn(samples, _ROWS, seed=seed)
        self.generator = np.random.default_rng([seed, 0x6C6F6164])
        self.order = self.generator.permutation(len(self.rows))

    def round(self) -> None:  # noqa: B027 - not all go by rounds
        """What is measured in each of the rounds; nothing where it is measured once."""

    @abstractmethod
    def told(self) -> dict[str, Any]:
        """What came of it, by name."""


class SingleStream(Scenario):
    """One row at a time, the next when the one before is answered."""

    def __init__(self, request: Request, samples: Encoded, settings: BenchSettings, *, seed: int) -> None:
        super().__init__(request, samples, settings, seed=seed)
        self._batches = [collate(self.rows, self.order[place : place + 1]) for place in range(len(self.rows))]
        self._times: list[float] = []

    def round(self) -> None:
        settings, done = self.settings, 0
        for batch in self._batches[: -(-settings.warmup // settings.rounds)]:
            self.request(batch)
        start = time.perf_counter()
        while (
            done * settings.rounds < settings.iterations
            or (time.perf_counter() - start) * settings.rounds < settings.seconds
        ):
            batch = self._batches[len(self._times) % len(self._batches)]
            before = time.perf_counter()
            self.request(batch)
            self._times.append(time.perf_counter() - before)
            done += 1

    def told(self) -> dict[str, Any]:
        p50, p90, p95, p99 = np.percentile(self._times, [50, 90, 95, 99]) * 1000
        return {
            "requests": len(self._times),
            "p50_ms": float(p50),
            "p90_ms": float(p90),
            "p95_ms": float(p95),
            "p99_ms": float(p99),
            "examples_per_s": len(self._times) / sum(self._times),
        }


class Offline(Scenario):
    """All rows are there at once: batches of rows of nearly one length, until time is over."""

    def __init__(self, request: Request, samples: Encoded, settings: BenchSettings, *, seed: int) -> None:
        super().__init__(request, samples, settings, seed=seed)
        parts = sequential_batches(self.rows.lengths, tokens=_OFFLINE_TOKENS)
        self._batches = [collate(self.rows, part) for part in parts]
        self._rates: list[float] = []

    def round(self) -> None:
        self.request(self._batches[0])
        passes, start = 0, time.perf_counter()
        while not passes or (time.perf_counter() - start) * self.settings.rounds < self.settings.seconds:
            for batch in self._batches:
                self.request(batch)
            passes += 1
        self._rates.append(passes * len(self.rows) / (time.perf_counter() - start))

    def told(self) -> dict[str, Any]:
        rate = float(np.median(self._rates))
        tokens = float(self.rows.lengths.mean())
        return {"examples_per_s": rate, "tokens_per_s": rate * tokens, "rounds_per_s": self._rates}


class Server(Scenario):
    """Rows come by chance (Poisson) and wait for one server, which takes all that wait, at most the largest
    batch: the highest rate at which 99 of 100 are answered within the bound. It is looked for once, at the
    end.
    """

    def told(self) -> dict[str, Any]:
        bound, most = self.settings.bound_ms / 1000, max(self.settings.batch)
        capacity = self._capacity(most)
        count = max(_FEWEST, int(capacity * self.settings.seconds))
        gaps = self.generator.exponential(size=count)  # the same chance at every rate
        trials: dict[float, Seconds] = {}

        def meets(rate: float) -> bool:
            size = max(_FEWEST, int(rate * self.settings.seconds))
            arrivals = np.cumsum(gaps[:size]) / rate
            trials[rate] = latencies(arrivals, self._serve, WallClock(), most=most, bound=bound)
            return late(trials[rate]) <= bound

        rate = highest_rate(meets, capacity)
        curve = [
            {"rate_per_s": one, "p50_ms": 1000 * float(np.median(waited)), "p99_ms": 1000 * late(waited)}
            for one, waited in sorted(trials.items())
            if np.isfinite(waited).all()
        ]
        best = next((point for point in curve if point["rate_per_s"] == rate), {})
        return {
            "rate_per_s": rate,
            **best,
            "bound_ms": self.settings.bound_ms,
            "capacity_per_s": capacity,
            "trials": len(trials),
            "curve": curve,
        }

    def _serve(self, requests: NDArray[np.int64]) -> object:
        return self.request(collate(self.rows, self.order[requests % len(self.order)]))

    def _capacity(self, most: int) -> float:
        """Rows a second when there are always enough for the largest batch."""
        times = []
        for number in range(_CALLS):
            before = time.perf_counter()
            self._serve(np.arange(number * most, (number + 1) * most))
            times.append(time.perf_counter() - before)
        return most / float(np.median(times))


SCENARIOS: Mapping[str, type[Scenario]] = {
    "single-stream": SingleStream,
    "offline": Offline,
    "server": Server,
}


class Clock(Protocol):
    """Seconds from anywhere."""

    def now(self) -> float: ...

    def wait(self, until: float) -> None: ...


class WallClock:
    """The machine's."""

    def now(self) -> float:
        return time.perf_counter()

    def wait(self, until: float) -> None:
        time.sleep(max(0.0, until - self.now()))


def latencies(arrivals_n: Seconds, serve: Serve, clock: Clock, *, most: int, bound: float) -> Seconds:
    """`[n]` seconds from each request's scheduled arrival to its answer, so that what waits while the server
    computes is counted (no coordinated omission).

    One server takes the requests that are there, in their order, at most `most` of them; arrivals ascend from
    0. Ends as soon as 99 of 100 can no longer be within the bound: what was not served then is infinite.
    """
    waited = np.full(len(arrivals_n), np.inf)
    served, over, start = 0, 0, clock.now()
    while served < len(arrivals_n) and over <= _may_be_late(len(arrivals_n)):
        clock.wait(start + arrivals_n[served])
        there = int(np.searchsorted(arrivals_n, clock.now() - start, side="right"))
        end = min(served + most, max(there, served + 1))
        serve(np.arange(served, end))
        waited[served:end] = clock.now() - start - arrivals_n[served:end]
        over += int((waited[served:end] > bound).sum())
        served = end
    return waited


def late(waited_n: Seconds) -> float:
    """The latency within which 99 of 100 requests are, one of those that were measured."""
    return float(np.sort(waited_n)[len(waited_n) - 1 - _may_be_late(len(waited_n))])


def highest_rate(meets: Callable[[float], bool], top: float) -> float:
    """The highest rate that meets a bound, by bisection to 5 %; where one does, all lower ones are taken to.
    0 where none down to a 64th of `top` does; at most `top`.
    """
    if meets(top):
        return top
    low, high = 0.0, top
    while high - low > _RESOLUTION * high and high > _LOWEST * top:
        middle = (low + high) / 2
        if meets(middle):
            low = middle
        else:
            high = middle
    return low


def _may_be_late(count: int) -> int:
    return int((1 - _QUANTILE) * (count - 1) + 1e-9)
