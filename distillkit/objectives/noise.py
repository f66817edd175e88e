"""Noises of BART and of T5's study that change a text, one object each.

Sources: Lewis et al. 2020, section 2.2, with fairseq's DenoisingDataset; Raffel et al. 2020, section 3.3.1.
Departures: what stands in for a token at random is any entry of the vocabulary that stands for text, where
fairseq also draws special ones; special tokens are no part of a text, so that shares are of its own tokens;
sentences are those of the corpus, where fairseq looks for full stops and finds none in other tokenizers.

Shapes: B texts, L tokens, V vocabulary entries.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from distillkit.data.masking import Bool, Ints, keyed_uniform
from distillkit.data.noising import (
    Spans,
    Text,
    inserted,
    masked_spans,
    masked_tokens,
    number_of_lengths,
    permuted_sentences,
    poisson_spans,
    rotated,
    share_of,
    shuffled,
    single_units,
    units_of,
    without_spans,
)
from distillkit.data.spans import Floats
from distillkit.data.tokenizers import continuing
from distillkit.errors import ModelError

SENTINEL = "<extra_id_{}>"
_DRAWS = 16
"""Draws that one noise of a stack may use."""


@dataclass(frozen=True)
class Vocabulary:
    """What an objective must know of a tokenizer. before: ids that stand before a text; eos: after it; start:
    what the decoder reads first; sentinel: the first of `sentinels` that go down from it; special: entries
    that stand for no text; text: all others; begins `[V]`: those that begin a word.
    """

    pad: int
    before: tuple[int, ...]
    eos: int
    start: int
    mask: int
    sentinel: int
    sentinels: int
    special: Ints
    text: Ints
    begins: Bool

    @classmethod
    def of_t5(cls, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        """Texts end with </s>, the decoder starts from <pad>, and the first sentinel stands for a mask."""
        pieces = _pieces(tokenizer)
        sentinels = sum(piece.startswith("<extra_id_") for piece in pieces)
        first = pieces.index(SENTINEL.format(0)) if sentinels else 0
        wanted = [SENTINEL.format(number) for number in range(sentinels)]
        if not sentinels or pieces[first + 1 - sentinels : first + 1][::-1] != wanted:
            raise ModelError(
                "the tokenizer has no sentinels that stand one below the other from <extra_id_0> down",
                hint="train one with distillkit.data.unigram.train_unigram",
            )
        eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        return cls(pad, (), eos, pad, first, first, sentinels, *_entries(tokenizer, pieces))

    @classmethod
    def of_bart(cls, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        """Texts stand between <s> and </s>, from which the decoder starts too."""
        eos, pad, mask = tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id
        entries = _entries(tokenizer, _pieces(tokenizer))
        return cls(pad, (tokenizer.bos_token_id,), eos, eos, mask, mask, 1, *entries)

    @property
    def framing(self) -> int:
        """Tokens that stand around a text."""
        return len(self.before) + 1

    def marks(self, ids: Ints) -> Bool:
        """Where sentinels or masks stand."""
        found: Bool = (ids <= self.sentinel) & (ids > self.sentinel - self.sentinels)
        return found

    def random(self, uniform: Floats) -> Ints:
        """An entry that stands for text for each uniform number."""
        drawn: Ints = self.text[(uniform * len(self.text)).astype(np.int64)]
        return drawn


@dataclass(frozen=True)
class Keys:
    """Uniform numbers of rows, keyed by (seed, epoch, row, position) and by what they are for."""

    seed: int
    epoch: int
    rows: Ints
    first: int = 0

    def uniform(self, width: int, draw: int) -> Floats:
        """`[B, width]` in [0, 1)."""
        return keyed_uniform(self.seed, self.epoch, self.rows, width, draw=self.first + draw)

    def part(self, number: int) -> Keys:
        """Those of one noise of a stack."""
        return replace(self, first=self.first + _DRAWS * (number + 1))


class Noise(ABC):
    """Changes texts; a pure function of the texts and the keys."""

    @abstractmethod
    def __call__(self, text: Text, vocabulary: Vocabulary, keys: Keys) -> Text:
        """The texts, corrupted."""

    def length(self, raw: float) -> float:
        """Tokens that a text of `raw` has afterwards, on average."""
        return raw

    def longest(self, raw: int) -> int:
        """Tokens that it has at most, but for what is too rare to leave room for."""
        return raw


class Stack(Noise):
    """Noises one after the other. fairseq's order is sentence permutation, masking or infilling, insertion,
    rotation."""

    def __init__(self, noises: Sequence[Noise]) -> None:
        self.noises = tuple(noises)

    def __call__(self, text: Text, vocabulary: Vocabulary, keys: Keys) -> Text:
        for number, noise in enumerate(self.noises):
            text = noise(text, vocabulary, keys.part(number))
        return text

    def length(self, raw: float) -> float:
        for noise in self.noises:
            raw = noise.length(raw)
        return raw

    def longest(self, raw: int) -> int:
        for noise in self.noises:
            raw = noise.longest(raw)
        return raw


@dataclass(frozen=True)
class SentencePermutation(Noise):
    """ceil(share * sentences) of the sentences take each other's places."""

    share: float = 1.0

    def __call__(self, text: Text, vocabulary: Vocabulary, keys: Keys) -> Text:
        width = text.ids.shape[1] + 1
        return permuted_sentences(text, self.share, keys.uniform(width, 0), keys.uniform(width, 1))


@dataclass(frozen=True)
class TokenMasking(Noise):
    """ceil(share * tokens) are masks, or with probability `random` any token. whole_word: of the words."""

    share: float = 0.3
    random: float = 0.1
    whole_word: bool = False

    def __call__(self, text: Text, vocabulary: Vocabulary, keys: Keys) -> Text:
        spans, unit_BL = _single(self, text, vocabulary, keys)
        return masked_tokens(text, spans, unit_BL, _fill(text.ids.shape[1], self.random, vocabulary, keys))


@dataclass(frozen=True)
class TokenDeletion(Noise):
    """ceil(share * tokens) are gone. whole_word: of the words."""

    share: float = 0.3
    whole_word: bool = False

    def __call__(self, text: Text, vocabulary: Vocabulary, keys: Keys) -> Text:
        return without_spans(text, *_single(self, text, vocabulary, keys))

    def length(self, raw: float) -> float:
        return raw * (1 - self.share)


@dataclass(frozen=True)
class TextInfilling(Noise):
    """Spans of Poisson lengths, of ceil(share * tokens) together, are one mask each, or with probability
    `random` any token; spans of length 0 put a mask between two tokens. whole_word: lengths are in words.

    The paper has a mean of 3, the recipe of its authors 3.5 (fairseq issue 1899).
    """

    share: float = 0.3
    mean_span: float = 3.0
    random: float = 0.1
    whole_word: bool = False

    def __call__(self, text: Text, vocabulary: Vocabulary, keys: Keys) -> Text:
        unit_BL, units_B = _units(text, vocabulary, self.whole_word)
        width = text.ids.shape[1]
        count = number_of_lengths(math.ceil(int(units_B.max()) * self.share), self.mean_span)
        starts = keys.uniform(width, 0)
        spans = poisson_spans(units_B, self.share, self.mean_span, keys.uniform(count, 1), starts)
        filled = masked_spans(text, spans, unit_BL, _fill(width, self.random, vocabulary, keys))
        longest = int((filled.lengths + spans.inserted).max())
        tokens = _fill(longest, self.random, vocabulary, keys, draw=4)
        return inserted(filled, spans.inserted, tokens, keys.uniform(longest, 6))

    def length(self, raw: float) -> float:
        """Spans fall anywhere, so that each token, and each span's mask, is covered by another one with
        probability 1 - exp(-share)."""
        spans, empty = raw * self.share / self.mean_span, math.exp(-self.mean_span)
        return math.exp(-self.share) * (raw + spans * (1 - empty)) + spans * empty


@dataclass(frozen=True)
class TokenInsertion(Noise):
    """ceil(share * tokens) are added anywhere: masks, or with probability `random` any token."""

    share: float = 0.1
    random: float = 0.1

    def __call__(self, text: Text, vocabulary: Vocabulary, keys: Keys) -> Text:
        counts_B = share_of(text.lengths, self.share)
        longest = int((text.lengths + counts_B).max())
        tokens = _fill(longest, self.random, vocabulary, keys)
        return inserted(text, counts_B, tokens, keys.uniform(longest, 0))

    def length(self, raw: float) -> float:
        return raw * (1 + self.share)

    def longest(self, raw: int) -> int:
        return raw + math.ceil(raw * self.share)


@dataclass(frozen=True)
class DocumentRotation(Noise):
    """With this probability a text begins anywhere in it, and what was before that comes last."""

    probability: float = 1.0

    def __call__(self, text: Text, vocabulary: Vocabulary, keys: Keys) -> Text:
        whether, where = (keys.uniform(1, draw)[:, 0] for draw in range(2))
        offsets_B = np.where(whether < self.probability, where * text.lengths, 0).astype(np.int64)
        return rotated(text, offsets_B)


@dataclass(frozen=True)
class Shuffling(Noise):
    """All tokens in any order (T5's deshuffling)."""

    def __call__(self, text: Text, vocabulary: Vocabulary, keys: Keys) -> Text:
        return shuffled(text, keys.uniform(text.ids.shape[1], 0))


@dataclass(frozen=True)
class RandomMasking(Noise):
    """Each token with probability `density` a mask, or in `random` of these cases any token. T5's BERT-style
    noise has a tenth of these, its MASS-style noise none."""

    density: float = 0.15
    random: float = 0.1

    def __call__(self, text: Text, vocabulary: Vocabulary, keys: Keys) -> Text:
        chosen_BL = keys.uniform(text.ids.shape[1], 0) < self.density
        fill_BL = _fill(text.ids.shape[1], self.random, vocabulary, keys)
        return replace(text, ids=np.where(chosen_BL, fill_BL, text.ids))


def _fill(width: int, random: float, vocabulary: Vocabulary, keys: Keys, draw: int = 2) -> Ints:
    """`[B, width]` masks, and with probability `random` any token."""
    kind, token = keys.uniform(width, draw), keys.uniform(width, draw + 1)
    return np.where(kind < random, vocabulary.random(token), vocabulary.mask)


def _units(text: Text, vocabulary: Vocabulary, whole_word: bool) -> tuple[Ints, Ints]:
    begins_BL = vocabulary.begins[text.ids] if whole_word else np.ones(text.ids.shape, dtype=bool)
    return units_of(text, begins_BL)


def _single(
    noise: TokenMasking | TokenDeletion, text: Text, vocabulary: Vocabulary, keys: Keys
) -> tuple[Spans, Ints]:
    unit_BL, units_B = _units(text, vocabulary, noise.whole_word)
    return single_units(units_B, noise.share, keys.uniform(text.ids.shape[1], 0)), unit_BL


def _pieces(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    pieces: list[str] = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return pieces


def _entries(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str]) -> tuple[Ints, Ints, Bool]:
    """(entries that stand for no text, entries that do, which entries begin a word)."""
    special = np.asarray(sorted(tokenizer.all_special_ids), dtype=np.int64)
    return special, np.setdiff1d(np.arange(len(pieces)), special), ~continuing(tokenizer)
