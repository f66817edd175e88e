"""A bidirectional LSTM student."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from distillkit.errors import ConfigError
from distillkit.settings import Count, Fraction
from distillkit.students.layers import Layered, LayeredSource, Sizes, max_pool


class Bilstm(LayeredSource):
    """A bidirectional LSTM with max pooling, the student of Tang et al. (2019) with the pooling of InferSent.

    "Distilling Task-Specific Knowledge from BERT into Simple Neural Networks" (arXiv 1903.12136, section 3.1)
    reads the last state of each direction; the maximum over all tokens (Conneau et al. 2017, section 3.2.4)
    loses less of long texts.

    Settings:
        layers: LSTM layers, each in both directions.
        width: Width of a layer, both directions together.
        embedding: Width of the token table; default the same, a narrower one is widened by a linear map.
        vocabulary: Pieces with a row of their own, one of them for all the rest; default every piece.
        dropout: Probability of dropping an embedded value, a layer's output or a pooled value in training.
        initialise: Start the token table from the teacher's (principal components); default fresh.
    """

    def __init__(
        self,
        *,
        layers: Count = 1,
        width: Count = 300,
        embedding: Count | None = None,
        vocabulary: Count | None = None,
        dropout: Fraction = 0.1,
        initialise: Literal["teacher"] | None = None,
    ) -> None:
        if width < 2:
            raise ConfigError("one value cannot be halved", where="student.width", hint="at least 2")
        self.layers, self.width, self.embedding = layers, width, embedding or width
        self.vocabulary, self.dropout, self.initialise = vocabulary, dropout, initialise

    def model(self, sizes: Sizes) -> Layered:
        return Layered(sizes, [BothWays(sizes.width, sizes.dropout) for _ in range(sizes.layers)], max_pool)


class BothWays(nn.Module):
    """One LSTM layer in both directions, `[B, L, D]` -> `[B, L, D]`, half of D each.

    The way back reads each row's real tokens in reverse, which a gather turns round: padding is never seen
    before the text, as with packed sequences, and the same graph exports.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.ahead = nn.LSTM(width, width - width // 2, batch_first=True)
        self.back = nn.LSTM(width, width // 2, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        order_BL = reversal(mask_BL)
        ahead, _ = self.ahead(states_BLD)
        back, _ = self.back(_reorder(states_BLD, order_BL))
        states: Tensor = self.dropout(torch.cat([ahead, _reorder(back, order_BL)], dim=-1))
        return states


def reversal(mask_BL: Tensor) -> Tensor:
    """`[B, L]` positions that turn each row's real tokens round and leave padding, on the right, in place."""
    positions_L = torch.arange(mask_BL.shape[1], device=mask_BL.device)
    return torch.where(mask_BL, mask_BL.sum(1, keepdim=True) - 1 - positions_L, positions_L)


def _reorder(states_BLD: Tensor, order_BL: Tensor) -> Tensor:
    return states_BLD.gather(1, order_BL[..., None].expand(-1, -1, states_BLD.shape[-1]))
