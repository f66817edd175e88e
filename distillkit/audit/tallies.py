"""Sums over a corpus in a memory that does not grow with it: lengths, and which sentences come often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

CUT = 200
"""Characters by which sentences are told apart here."""


@dataclass(frozen=True)
class Lengths:
    """Of a distribution of lengths: the mean, quantiles by nearest rank, and the ends."""

    mean: float
    shortest: int
    p5: int
    median: int
    p95: int
    longest: int

    @classmethod
    def of(cls, counts: Counter[int]) -> Lengths:
        """counts: how often each length occurs."""
        total = counts.total()
        if not total:
            return cls(0.0, 0, 0, 0, 0, 0)
        ordered = sorted(counts.items())

        def quantile(share: float) -> int:
            seen = 0
            for length, count in ordered:
                seen += count
                if seen >= share * total:
                    return length
            return ordered[-1][0]

        mean = sum(length * count for length, count in ordered) / total
        return cls(mean, ordered[0][0], quantile(0.05), quantile(0.5), quantile(0.95), ordered[-1][0])


class Frequent:
    """The most frequent texts in one pass (Misra & Gries 1982, many at once): keeps 2 x `capacity` and those
    of one call, and counts each at most `missed` times too rarely.
    """

    def __init__(self, capacity: int = 50_000) -> None:
        self._capacity = capacity
        self._counts: Counter[str] = Counter()
        self.missed = 0

    def add(self, texts: Iterable[str]) -> None:
        """Count texts; of long ones the beginning."""
        self._counts.update(text[:CUT] for text in texts)
        if len(self._counts) > 2 * self._capacity:
            cut = sorted(self._counts.values(), reverse=True)[self._capacity]
            self._counts = Counter({text: count - cut for text, count in self._counts.items() if count > cut})
            self.missed += cut

    def most(self, number: int) -> list[tuple[str, int]]:
        """The most frequent texts that came more than once, by count, then in the order of the texts."""
        ordered = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        return [(text, count) for text, count in ordered[:number] if count > 1]
