"""Tokens of the vocabulary that a model predicts: their loss, and what is told of it.

Shapes: N predicted tokens, V vocabulary entries.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional

from distillkit.objectives.base import LossTerm
from distillkit.objectives.corrupted import share

_ACCURACY, _COST = "accuracy", "cost"
_MOST = 700.0
"""Cost in nats whose exponential is still a number."""


def term(scores_NV: Tensor, targets_N: Tensor) -> LossTerm:
    """Mean cross-entropy in fp32, an attached zero where nothing is predicted; with the tallies of
    `figures`."""
    costs_N = functional.cross_entropy(scores_NV.float(), targets_N, reduction="none")
    right_N = scores_NV.detach().argmax(-1) == targets_N
    told = {_ACCURACY: share(right_N), _COST: share(costs_N.detach())}
    return LossTerm(costs_N.sum() / max(1, len(costs_N)), len(costs_N), tallies=told)


def figures(tallies: Mapping[str, Tensor]) -> dict[str, float]:
    """`accuracy` of the best guess and `perplexity`, exp of the mean cost; nothing where nothing was
    predicted."""
    means = {name: float(total / number) for name, (total, number) in tallies.items() if number}
    if not means:
        return {}
    return {_ACCURACY: means[_ACCURACY], "perplexity": math.exp(min(means[_COST], _MOST))}
