"""What an encoder reads of a text and what a decoder is to say of it, one object each.

T5's objective and those it was compared with: Raffel et al. 2020, sections 3.1.4 and 3.3. Departures: where
tokens are masked one by one, a noise run that begins a text has its sentinel in the targets too (in the
released code the sentinels of inputs and targets are then off by one); texts of the prefix language model are
cut from joined documents as all others are.

Shapes: B texts, L tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from distillkit.data.masking import Ints
from distillkit.data.noising import Text
from distillkit.data.spans import (
    Ends,
    Floats,
    Row,
    corrupted_lengths,
    even_ends,
    first_of_runs,
    noise_counts,
    packed,
    raw_length,
    span_mask,
    with_sentinels,
)
from distillkit.objectives.noise import Keys, Noise, Vocabulary

EndsLaw = Callable[[Ints, Ints, Ints, Floats], Ends]
"""`even_ends` or `released_ends`."""


class Pairing(ABC):
    """Makes inputs and targets from texts; a pure function of the texts and the keys.

    rebuilds: the target is the whole text; closed: documents end with EOS, and nothing else does.
    """

    rebuilds: ClassVar[bool] = False
    closed: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, text: Text, vocabulary: Vocabulary, keys: Keys) -> tuple[Row, Row]:
        """(inputs, targets), without what stands around them."""

    @abstractmethod
    def sizes(self, raw: int) -> tuple[float, float]:
        """Tokens of inputs and targets that `raw` tokens become, on average."""

    def raw_length(self, room: int) -> int:
        """Most tokens of a text whose inputs have at most `room`."""
        return room

    def sentinels(self, raw: int) -> int:
        """Sentinels that a text of `raw` tokens cannot do without."""
        return 0


@dataclass(frozen=True)
class SpanCorruption(Pairing):
    """T5's objective: round(density * L) tokens in spans of `mean_span` on average, a sentinel for each span;
    the targets are the spans. ends: how often the first and the last token of a text are noise.
    """

    density: float = 0.15
    mean_span: float = 3.0
    ends: EndsLaw = even_ends

    def __call__(self, text: Text, vocabulary: Vocabulary, keys: Keys) -> tuple[Row, Row]:
        counts = noise_counts(text.lengths, density=self.density, mean_span=self.mean_span)
        width = text.ids.shape[1]
        ends = self.ends(text.lengths, *counts, keys.uniform(1, 0)[:, 0])
        mask_BL = span_mask(text.lengths, *counts, ends, keys.uniform(width, 1), keys.uniform(width, 2))
        return with_sentinels(text.ids[:, : mask_BL.shape[1]], mask_BL, text.lengths, vocabulary.sentinel)

    def sizes(self, raw: int) -> tuple[float, float]:
        return corrupted_lengths(raw, density=self.density, mean_span=self.mean_span)

    def raw_length(self, room: int) -> int:
        return raw_length(room, density=self.density, mean_span=self.mean_span)

    def sentinels(self, raw: int) -> int:
        return int(noise_counts(np.asarray([raw]), density=self.density, mean_span=self.mean_span)[1][0])


@dataclass(frozen=True)
class TokenCorruption(Pairing):
    """The same with every token noise or not by itself ("replace spans" with i.i.d. masks)."""

    density: float = 0.15

    def __call__(self, text: Text, vocabulary: Vocabulary, keys: Keys) -> tuple[Row, Row]:
        mask_BL = (keys.uniform(text.ids.shape[1], 0) < self.density) & text.real
        mask_BL &= np.cumsum(first_of_runs(mask_BL), axis=1) <= vocabulary.sentinels
        return with_sentinels(text.ids, mask_BL, text.lengths, vocabulary.sentinel)

    def sizes(self, raw: int) -> tuple[float, float]:
        noise, runs = raw * self.density, raw * self.density * (1 - self.density)
        return raw - noise + runs, noise + runs


@dataclass(frozen=True)
class DroppedTokens(Pairing):
    """Every token is noise or not by itself; the inputs lack the noise, which is the target."""

    density: float = 0.15

    def __call__(self, text: Text, vocabulary: Vocabulary, keys: Keys) -> tuple[Row, Row]:
        mask_BL = keys.uniform(text.ids.shape[1], 0) < self.density
        return _row(text.kept(~mask_BL)), _row(text.kept(mask_BL))

    def sizes(self, raw: int) -> tuple[float, float]:
        return raw * (1 - self.density), raw * self.density


@dataclass(frozen=True)
class PrefixLM(Pairing):
    """The inputs are the first k tokens, k any of 1 to L - 1, the targets are the others."""

    def __call__(self, text: Text, vocabulary: Vocabulary, keys: Keys) -> tuple[Row, Row]:
        cut_B = 1 + (keys.uniform(1, 0)[:, 0] * np.maximum(0, text.lengths - 1)).astype(np.int64)
        first_BL = np.arange(text.ids.shape[1]) < cut_B[:, None]
        return _row(text.kept(first_BL)), _row(text.kept(~first_BL))

    def sizes(self, raw: int) -> tuple[float, float]:
        return raw / 2, raw / 2


@dataclass(frozen=True)
class PlainLM(Pairing):
    """The inputs are empty, the target is the text; EOS stands where a document ends."""

    rebuilds = True
    closed = True

    def __call__(self, text: Text, vocabulary: Vocabulary, keys: Keys) -> tuple[Row, Row]:
        return packed(np.zeros((len(text.lengths), 1), dtype=bool)), _row(text)

    def sizes(self, raw: int) -> tuple[float, float]:
        return 0, raw


@dataclass(frozen=True)
class Rebuilding(Pairing):
    """The inputs are the text after a noise, the target is the text."""

    noise: Noise
    rebuilds = True

    def __call__(self, text: Text, vocabulary: Vocabulary, keys: Keys) -> tuple[Row, Row]:
        return _row(self.noise(text, vocabulary, keys)), _row(text)

    def sizes(self, raw: int) -> tuple[float, float]:
        return self.noise.length(raw), raw

    def raw_length(self, room: int) -> int:
        return next(raw for raw in range(room, 0, -1) if self.noise.longest(raw) <= room)


def _row(text: Text) -> Row:
    return text.ids, text.lengths
