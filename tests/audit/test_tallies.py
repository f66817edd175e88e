"""Lengths and frequent sentences against plain counting."""

from __future__ import annotations

from collections import Counter

import numpy as np

from distillkit.audit.tallies import CUT, Frequent, Lengths


def test_lengths_are_those_of_numpy() -> None:
    values = np.random.default_rng(1).integers(0, 50, size=999)
    lengths = Lengths.of(Counter(values.tolist()))
    expected = np.quantile(values, [0, 0.05, 0.5, 0.95, 1], method="inverted_cdf").tolist()
    assert [lengths.shortest, lengths.p5, lengths.median, lengths.p95, lengths.longest] == expected
    assert np.isclose(lengths.mean, values.mean())
    assert Lengths.of(Counter()).longest == 0


def test_counts_are_exact_while_there_is_room() -> None:
    frequent = Frequent(capacity=10)
    frequent.add(["b", "a", "b", "c", "a", "b", "x" * (CUT + 5), "x" * (CUT + 9)])
    assert frequent.most(3) == [("b", 3), ("a", 2), ("x" * CUT, 2)]
    assert frequent.most(9)[-1][1] > 1 and frequent.missed == 0


def test_what_is_frequent_stays_where_there_is_no_room_and_is_missed_by_no_more_than_said() -> None:
    """Its memory is bounded: a thousand sentences that come once each cannot push it out."""
    generator = np.random.default_rng(2)
    texts = [
        *("often" for _ in range(400)),
        *("less" for _ in range(300)),
        *(f"once {n}" for n in range(3000)),
    ]
    generator.shuffle(texts)
    frequent = Frequent(capacity=20)
    for start in range(0, len(texts), 50):
        frequent.add(texts[start : start + 50])
        assert len(frequent._counts) <= 40
    (first, most), (second, more) = frequent.most(2)
    assert (first, second) == ("often", "less") and frequent.missed > 0
    assert 400 - frequent.missed <= most <= 400 and 300 - frequent.missed <= more <= 300
