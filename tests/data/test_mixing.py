"""Rates of several tasks against the formulas by hand."""

from __future__ import annotations

import numpy as np
import pytest

from distillkit.data.mixing import mixing_rates

SIZES = np.asarray([10, 100, 1_000_000, 0])


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({}, [10, 100, 1_000_000, 0]),
        ({"cap": 200}, [10, 100, 200, 0]),
        ({"exponent": 0.0}, [1, 1, 1, 0]),
        ({"exponent": 1 / 2, "cap": 10_000}, [10**0.5, 10, 100, 0]),
        ({"cap": 5}, [1, 1, 1, 0]),
    ],
)
def test_rates_are_capped_sizes_to_a_power(settings: dict[str, float], weights: list[float]) -> None:
    rates = mixing_rates(SIZES, **settings)
    assert rates == pytest.approx(np.asarray(weights) / sum(weights))


def test_a_task_without_a_size_has_the_share_that_it_is_given() -> None:
    rates = mixing_rates(SIZES, cap=200, apart=0.25)
    assert rates == pytest.approx([0.75 * 10 / 310, 0.75 * 100 / 310, 0.75 * 200 / 310, 0, 0.25])
    with pytest.raises(ValueError, match="no task"):
        mixing_rates(np.zeros(3, dtype=np.int64))
