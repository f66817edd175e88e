"""Sampling tokens from a model's scores with one keyed random number a token.

Shapes: N tokens, V vocabulary entries.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_ROWS = 256
"""Rows of scores that are worked on at a time, which bounds the memory."""


def sample_tokens(scores_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """`[N]` entries drawn from softmax(scores), each the one at which the cumulative distribution passes its
    uniform number.

    The released ELECTRA code takes the largest score after adding Gumbel noise to each: the same
    distribution, for V random numbers a token. One number can be keyed by the token's place in the data, so
    that a sample does not depend on batches, workers, ranks or a resume. An entry whose score is -inf is
    never drawn.
    """
    drawn = [
        _inverted(scores, uniform)
        for scores, uniform in zip(
            torch.split(scores_NV.detach(), _ROWS), torch.split(uniform_N, _ROWS), strict=True
        )
    ]
    return torch.cat(drawn)


def without(scores_NV: Tensor, entries: Tensor) -> Tensor:
    """The scores in fp32 with -inf at entries `[E]` of every token."""
    return scores_NV.float().index_fill(1, entries, -math.inf)


def without_own(scores_NV: Tensor, entry_N: Tensor) -> Tensor:
    """The scores in fp32 with -inf at one entry of each token."""
    return scores_NV.float().scatter(1, entry_N[:, None], -math.inf)


def _inverted(scores_NV: Tensor, uniform_N: Tensor) -> Tensor:
    chances_NV = scores_NV.float().softmax(-1)
    cumulated_NV = chances_NV.cumsum(-1, dtype=torch.float64)  # in fp32 rare entries are lost
    wanted_N1 = uniform_N[:, None].double() * cumulated_NV[:, -1:]
    passed_N1 = torch.searchsorted(cumulated_NV, wanted_N1, right=True)
    return passed_N1.squeeze(1).clamp(max=scores_NV.shape[1] - 1)
