"""Rows of many callers through one model: nothing is mixed up, nothing is left behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from distillkit.errors import ExportError
from distillkit.runtime.answers import Said
from distillkit.runtime.rows import Row
from distillkit.serving.batcher import MOST_PADDING, Batcher, Full, choose


def row(number: int, length: int = 3) -> Row:
    """A row that a model can tell from all others."""
    return Row(np.full(length, number, dtype=np.int64), np.zeros(length, dtype=np.int64), False)


def said(rows: Sequence[Row]) -> list[Said]:
    return [Said(np.asarray([one.ids[0]], dtype=np.float32)) for one in rows]


class Gated:
    """A model that answers once it may, and remembers what it was given."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.calls = 0
        self.batches: list[list[int]] = []

    def __call__(self, rows: Sequence[Row]) -> list[Said]:
        self.calls += 1
        self.gate.wait(60)
        self.batches.append([int(one.ids[0]) for one in rows])
        return said(rows)


def batcher(run: object = said, *, most: int = 100, tokens: int = 1000, window: float = 0.0) -> Batcher:
    return Batcher(run, len, most=most, tokens=tokens, window=window, watch=lambda rows, seconds: None)  # type: ignore[arg-type]


async def until(condition: object) -> None:
    """Let everything else run until it is so."""
    async with asyncio.timeout(60):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0)


def test_the_oldest_goes_with_those_of_nearly_its_length() -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        lengths = generator.integers(1, 60, size=int(generator.integers(1, 30))).tolist()
        tokens = int(generator.integers(1, 400))
        chosen = choose(lengths, tokens)
        width, real = max(lengths[one] for one in chosen), sum(lengths[one] for one in chosen)
        size = width * len(chosen)
        assert chosen[0] == 0 and len(set(chosen)) == len(chosen)
        assert len(chosen) == 1 or (size <= tokens and size - real <= MOST_PADDING * size)
        left = [place for place in range(len(lengths)) if place not in chosen]
        far = max(abs(lengths[one] - lengths[0]) for one in chosen)
        assert all(abs(lengths[place] - lengths[0]) >= far for place in left)
        if left:  # the nearest one of them does not fit
            near = min(left, key=lambda place: (abs(lengths[place] - lengths[0]), place))
            wider, more = max(width, lengths[near]), real + lengths[near]
            size = wider * (len(chosen) + 1)
            assert size > tokens or size - more > MOST_PADDING * size


def test_every_caller_gets_the_answers_to_its_own_rows() -> None:
    async def main() -> None:
        made = batcher(tokens=40)
        work = asyncio.create_task(made.work())
        generator = np.random.default_rng(1)
        asked, count = [], 0
        for _ in range(200):
            lengths = generator.integers(1, 12, size=int(generator.integers(1, 5))).tolist()
            asked.append([row(count + place, length) for place, length in enumerate(lengths)])
            count += len(lengths)
        told = await asyncio.gather(*map(made.ask, asked))
        for rows, answers in zip(asked, told, strict=True):
            assert [int(one.ids[0]) for one in rows] == [int(answer.logits[0]) for answer in answers]
        assert made.waiting == 0 and await made.ask([]) == []
        work.cancel()

    asyncio.run(main())


def test_rows_that_wait_are_answered_together_and_the_oldest_first() -> None:
    async def main() -> None:
        gated = Gated()
        made = batcher(gated, tokens=12)
        work = asyncio.create_task(made.work())
        first = asyncio.create_task(made.ask([row(0)]))
        await until(lambda: gated.calls == 1)
        later = [
            asyncio.create_task(made.ask([row(number, length)]))
            for number, length in ((1, 3), (2, 12), (3, 3), (4, 3), (5, 3), (6, 4))
        ]
        await until(lambda: made.waiting == 6)
        gated.gate.set()
        await asyncio.gather(first, *later)
        assert gated.batches == [[0], [1, 3, 4, 5], [2], [6]]
        work.cancel()

    asyncio.run(main())


def test_a_row_that_fails_fails_alone() -> None:
    def run(rows: Sequence[Row]) -> list[Said]:
        if any(one.ids[0] == 3 for one in rows):
            raise RuntimeError("it says: a text of somebody")
        return said(rows)

    async def main() -> None:
        made = batcher(run)
        work = asyncio.create_task(made.work())
        told = await asyncio.gather(*(made.ask([row(number)]) for number in range(6)), return_exceptions=True)
        assert [isinstance(one, ExportError) for one in told] == [number == 3 for number in range(6)]
        assert "somebody" not in str(told[3])
        assert (await made.ask([row(7)]))[0].logits[0] == 7
        work.cancel()

    asyncio.run(main())


def test_a_caller_that_is_cancelled_leaves_nothing_behind() -> None:
    async def main() -> None:
        gated = Gated()
        made = batcher(gated, most=300)
        work = asyncio.create_task(made.work())

        async def ask(number: int) -> None:
            with made.place(1):
                await made.ask([row(number)])

        first = asyncio.create_task(ask(0))
        await until(lambda: made.inside == 1 and made.waiting == 0)
        gone = [asyncio.create_task(ask(number)) for number in range(1, 201)]
        stays = asyncio.create_task(ask(999))
        await until(lambda: made.waiting == 201)
        for one in (first, *gone):
            one.cancel()
        await asyncio.gather(first, *gone, return_exceptions=True)
        assert (made.inside, made.waiting) == (1, 1)
        gated.gate.set()
        await stays
        assert (made.inside, made.waiting) == (0, 0) and gated.batches == [[0], [999]]
        work.cancel()

    asyncio.run(main())


def test_there_is_room_for_so_many_rows_and_no_more() -> None:
    async def main() -> None:
        made = batcher(most=10)
        with made.place(7):
            with pytest.raises(Full) as full, made.place(4):
                pass
            assert full.value.after >= 1 and made.inside == 7
            with made.place(3):
                assert made.inside == 10
        assert made.inside == 0

    asyncio.run(main())
