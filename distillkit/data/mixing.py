"""How often each of several tasks is trained on, by their sizes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def mixing_rates(
    sizes: NDArray[np.int64], *, exponent: float = 1.0, cap: float = math.inf, apart: float | None = None
) -> Floats:
    """`[n]` shares that add up to 1, in proportion to min(size, cap)^exponent (Raffel et al. 2020, section
    3.5.2); 0 for a task without rows.

    An exponent of 1 is examples-proportional mixing, 0 equal mixing, 1 / T what T5 calls a temperature T,
    0.75 BAM's (Clark et al. 2019). apart: the share of one more task that has no size of its own, as
    unsupervised text; it stands last, `[n + 1]`. Raises ValueError where no task has rows.
    """
    if not (sizes > 0).any():
        raise ValueError("no task has rows")
    weights = np.where(sizes > 0, np.minimum(sizes, cap).astype(np.float64) ** exponent, 0.0)
    rates: Floats = weights / weights.sum()
    return rates if apart is None else np.append(rates * (1 - apart), apart)
