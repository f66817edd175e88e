"""Dropout on a CPU from a fast generator: torch draws one number at a time there, which is up to a fifth of a
training step.

What is dropped is keyed by the caller, so that a resumed run, or one on more ranks, drops the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_STEPS = 2**16
"""Values of the 16 random bits that decide over an element."""


@contextmanager
def seeded_dropout(key: int, *, fast: bool) -> Iterator[None]:
    """Within, dropout (Srivastava et al. 2014), that of attention too, is keyed by `key`.

    fast: on a CPU, in code that is not compiled. The rate is then rounded to a multiple of 2^-16; what is
    kept is scaled by 1 / (1 - rate) in the tensor's own type, as torch does. Otherwise, and in modules that
    drop within one of torch's kernels (LSTM), the draws are torch's own.
    """
    torch.manual_seed(key)
    if fast:
        with _Dropout(key):
            yield
    else:
        yield


class _Dropout(TorchFunctionMode):
    """Takes the place of torch's two functions that drop elements."""

    def __init__(self, key: int) -> None:
        super().__init__()
        self._bits = np.random.SFC64(key)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func is F.dropout:
            return self._dropout(*args, **given)
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **given)
        return func(*args, **given)

    def _dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or not 0 < p < 1 or input.element_size() not in (2, 4):
            return F.dropout(input, p, training, inplace)
        noise = self._noise(input, p)
        return input.mul_(noise) if inplace else input * noise

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Attention whose probabilities are dropped, for which torch has no fast kernel on a CPU."""
        if not 0 < dropout_p < 1 or is_causal or enable_gqa:
            return F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=attn_mask,
                dropout_p=dropout_p,
                is_causal=is_causal,
                scale=scale,
                enable_gqa=enable_gqa,
            )
        scale = 1 / math.sqrt(query.size(-1)) if scale is None else scale
        with torch.autocast("cpu", enabled=False):
            scores = (query * scale) @ key.transpose(-2, -1)
            if attn_mask is not None:
                blocked = attn_mask.dtype == torch.bool
                scores = scores.masked_fill(~attn_mask, -math.inf) if blocked else scores + attn_mask
            chances = scores.softmax(-1).to(value.dtype)  # a bias in fp32 (T5's) makes the scores fp32
            return self._dropout(chances, dropout_p) @ value

    def _noise(self, like: Tensor, p: float) -> Tensor:
        """0 with probability p, else 1 / (1 - p); integers all along, which vectorise."""
        count = like.numel()
        drawn = torch.from_numpy(self._bits.random_raw(-(-count // 4)).view(np.int16))[:count]
        dropped = min(max(round(p * _STEPS), 1), _STEPS - 1)
        first = dropped - _STEPS // 2  # the smallest that is kept
        kept = drawn.clamp_(first - 1, first).sub_(first - 1).view(like.shape)
        scale = torch.tensor(1 / (1 - p), dtype=like.dtype)
        if like.element_size() == 2:
            return kept.mul_(int(scale.view(torch.int16))).view(like.dtype)
        return kept.to(like.dtype).mul_(scale)
