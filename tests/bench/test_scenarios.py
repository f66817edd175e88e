"""Requests one after the other, all at once, and by chance."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny import encoded

from distillkit.bench.scenarios import Offline, Server, SingleStream, WallClock, highest_rate, late, latencies
from distillkit.settings import BenchSettings
from distillkit.types import Batch

FAST = BenchSettings(batch=[1, 4], rounds=2, warmup=2, iterations=6, seconds=0.0, bound_ms=50.0)


class Virtual:
    """A clock that stands still while nobody waits or serves."""

    def __init__(self, seconds: float) -> None:
        self.time, self.seconds = 0.0, seconds
        self.served: list[list[int]] = []

    def now(self) -> float:
        return self.time

    def wait(self, until: float) -> None:
        self.time = max(self.time, until)

    def serve(self, requests: NDArray[np.int64]) -> None:
        self.served.append(requests.tolist())
        self.time += self.seconds


def poisson(rate: float, count: int = 2000) -> NDArray[np.float64]:
    return np.cumsum(np.random.default_rng(3).exponential(size=count)) / rate


@pytest.mark.parametrize("rate", [1.0, 6.0, 9.0])
def test_waits_of_one_server_are_lindleys(rate: float) -> None:
    """W_{i+1} = max(0, W_i + S - A_i) (Lindley 1952), of requests served one by one in S seconds."""
    clock, service, arrivals = Virtual(0.1), 0.1, poisson(rate)
    found = latencies(arrivals, clock.serve, clock, most=1, bound=1e9)
    wait, wanted = 0.0, []
    for gap in [*np.diff(arrivals).tolist(), 0.0]:
        wanted.append(wait + service)
        wait = max(0.0, wait + service - gap)
    assert np.allclose(found, wanted)


def test_the_wait_is_counted_from_the_scheduled_arrival() -> None:
    """One answer takes a second and nine requests come meanwhile: a loop that sends the next request when it
    has the last answer would see one slow answer and nine fast ones (coordinated omission)."""
    clock = Virtual(0.0)
    stalls = iter([1.0, *[0.0] * 20])

    def serve(requests: NDArray[np.int64]) -> None:
        clock.time += next(stalls)

    found = latencies(np.arange(10) / 10, serve, clock, most=1, bound=1e9)
    assert np.allclose(found, [1.0 - one / 10 for one in range(10)])


def test_what_waits_is_answered_together_in_its_order() -> None:
    clock = Virtual(1.0)
    found = latencies(np.asarray([0.0, 0.1, 0.2, 0.3, 5.0]), clock.serve, clock, most=2, bound=1e9)
    assert clock.served == [[0], [1, 2], [3], [4]]
    assert np.allclose(found, [1.0, 1.9, 1.8, 2.7, 1.0])


def test_a_trial_ends_when_its_bound_can_no_longer_hold() -> None:
    clock = Virtual(1.0)
    found = latencies(poisson(100.0, 1000), clock.serve, clock, most=1, bound=1.5)
    assert late(found) == np.inf and len(clock.served) < 30
    slow = Virtual(1.0)
    assert np.isfinite(latencies(poisson(0.001, 200), slow.serve, slow, most=1, bound=1.5)).all()


@pytest.mark.parametrize("count", [100, 101, 250, 1000])
def test_at_most_one_of_a_hundred_is_later(count: int) -> None:
    waited = np.random.default_rng(count).permutation(count).astype(float)
    over = int((waited > late(waited)).sum())
    assert over <= 0.01 * count < over + 2


@pytest.mark.parametrize("limit", [0.3, 1.7, 40.0, 99.0])
def test_the_highest_rate_is_found_to_five_per_cent(limit: float) -> None:
    asked: list[float] = []

    def meets(rate: float) -> bool:
        asked.append(rate)
        return rate <= limit

    found = highest_rate(meets, 100.0)
    assert found == 0.0 if limit < 100 / 64 else found <= limit <= 1.06 * found
    assert len(asked) < 16 and highest_rate(lambda rate: True, 100.0) == 100.0


def test_rows_come_one_by_one_as_long_as_they_are(tmp_path: Path) -> None:
    samples = encoded(tmp_path, 20)
    seen: list[Batch] = []
    scenario = SingleStream(seen.append, samples, FAST, seed=1)
    for _ in range(2):
        scenario.round()
    told = scenario.told()
    assert told["requests"] == 6 and len(seen) == 6 + 2
    assert {len(batch.ids) for batch in seen} == {1} and all(batch.full for batch in seen)
    lengths = dict(zip(samples.ids.tolist(), samples.lengths.tolist(), strict=True))
    assert all(lengths[int(batch.ids[0])] == batch.mask.shape[1] for batch in seen)
    assert [int(batch.ids[0]) for batch in seen[2:]] != sorted(int(batch.ids[0]) for batch in seen[2:])
    again = SingleStream(lambda batch: None, samples, FAST, seed=1)
    assert again.order.tolist() == scenario.order.tolist()
    assert SingleStream(lambda batch: None, samples, FAST, seed=2).order.tolist() != again.order.tolist()


def test_all_rows_at_once_are_each_answered_in_every_pass(tmp_path: Path) -> None:
    samples = encoded(tmp_path, 20)
    seen: list[int] = []

    def request(batch: Batch) -> None:
        seen.extend(batch.ids.tolist())

    scenario = Offline(request, samples, FAST, seed=1)
    first = len(scenario._batches[0].ids)
    scenario.round()
    assert sorted(seen[first:]) == list(range(20))
    told = scenario.told()
    mean = float(samples.lengths.mean())
    assert (
        told["tokens_per_s"] == pytest.approx(mean * told["examples_per_s"])
        and len(told["rounds_per_s"]) == 1
    )


def test_a_server_says_what_rate_it_holds(tmp_path: Path) -> None:
    """Of one that answers at once, all that it can do; of one slower than the bound, nothing."""
    samples = encoded(tmp_path, 20)

    def told(seconds: float, bound: float) -> dict[str, Any]:
        settings = FAST.model_copy(update={"bound_ms": bound, "batch": [4]})
        return Server(lambda batch: time.sleep(seconds), samples, settings, seed=1).told()

    slow = told(0.02, 1.0)
    assert slow["rate_per_s"] == 0.0 and slow["capacity_per_s"] < 4 / 0.02
    quick = told(0.0005, 200.0)
    assert quick["rate_per_s"] > 0 and quick["p99_ms"] <= 200.0 and quick["trials"] >= 1
    assert all(one["p50_ms"] <= one["p99_ms"] for one in quick["curve"])


def test_the_clock_of_the_wall_waits() -> None:
    clock = WallClock()
    until = clock.now() + 0.02
    clock.wait(until)
    assert clock.now() >= until
    clock.wait(until - 1)
