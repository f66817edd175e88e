"""A convolutional student: Kim's filter banks, stacked."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from distillkit.errors import ConfigError
from distillkit.settings import Count, Fraction, Kernels
from distillkit.students.layers import Layered, LayeredSource, Sizes, max_pool


class Cnn(LayeredSource):
    """A convolutional network with max pooling over time (Kim 2014), and dilated residual layers on top.

    "Convolutional Neural Networks for Sentence Classification" (section 2) has one layer. Departures: a
    window may reach past the ends of the text, where it sees zeros, so that every token has a state; further
    layers see twice as far as the one before (iterated dilated convolutions, Strubell et al. 2017, section 4)
    and add their input. Kernels and filters are Kim's by default.

    Settings:
        layers: Layers of filters; the first is Kim's, each further one spreads its windows twice as far.
        width: Filters of a layer, of all kernel widths together.
        kernels: Widths of the windows, in tokens; the filters are shared out evenly.
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
        kernels: Kernels = (3, 4, 5),
        embedding: Count | None = None,
        vocabulary: Count | None = None,
        dropout: Fraction = 0.1,
        initialise: Literal["teacher"] | None = None,
    ) -> None:
        if width < len(kernels):
            raise ConfigError(
                f"{width} filters for {len(kernels)} kernel widths", where="student.width", hint="one each"
            )
        self.layers, self.width, self.kernels = layers, width, tuple(kernels)
        self.embedding, self.vocabulary = embedding or width, vocabulary
        self.dropout, self.initialise = dropout, initialise

    def model(self, sizes: Sizes) -> Layered:
        further = [Residual(FilterBank(sizes, 2**layer)) for layer in range(1, sizes.layers)]
        return Layered(sizes, [FilterBank(sizes, 1), *further], max_pool)


class FilterBank(nn.Module):
    """Filters of several widths side by side over real tokens, `[B, L, D]` -> `[B, L, D]`, not negative."""

    def __init__(self, sizes: Sizes, dilation: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv1d(sizes.width, filters, kernel, dilation=dilation)
            for kernel, filters in zip(sizes.kernels, _shares(sizes), strict=True)
        )
        self.ends = [_ends(dilation * (kernel - 1)) for kernel in sizes.kernels]
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, states_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        seen_BDL = (states_BLD * mask_BL[..., None].to(states_BLD.dtype)).transpose(1, 2)
        banks = zip(self.convolutions, self.ends, strict=True)
        found_BDL = torch.cat([convolution(pad(seen_BDL, ends)) for convolution, ends in banks], dim=1)
        states: Tensor = self.dropout(found_BDL.relu().transpose(1, 2))
        return states


class Residual(nn.Module):
    """A block that adds what it computes to what it reads."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, states_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        states: Tensor = states_BLD + self.block(states_BLD, mask_BL)
        return states


def _ends(missing: int) -> tuple[int, int]:
    """Zeros before and after the text, so that there are as many windows as tokens."""
    return missing // 2, missing - missing // 2


def _shares(sizes: Sizes) -> list[int]:
    """Filters of each kernel width."""
    each, left = divmod(sizes.width, len(sizes.kernels))
    return [each + (index < left) for index in range(len(sizes.kernels))]
