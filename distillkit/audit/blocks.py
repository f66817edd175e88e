"""A corpus as blocks of documents whose words are 64-bit numbers, from which any run of words gets one too.

A word is a run of letters, marks and digits in lower case (NFKC); where a script does not part its words
(Han, Kana, Thai, Lao, Burmese, Khmer), each character is one. W words, S sentences, D documents of a block.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.uint64]
Offsets = NDArray[np.int64]

BLOCK_CHARACTERS = 1 << 19
"""A block ends with the document that reaches this."""
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)
_CODES = 0x34000
"""Code points that can be part of a word; no letter is assigned above."""
_NOT, _PART, _WHOLE = range(3)
_UNPARTED = (
    (0x0E00, 0x0F00),
    (0x1000, 0x10A0),
    (0x1780, 0x1800),
    (0x3040, 0x3100),
    (0x3400, 0xA000),
    (0x20000, _CODES),
)


def digest(text: str) -> int:
    """A number of 64 bits for a text (BLAKE2b); among n texts two share one with probability n^2 / 2^65."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def mixed(numbers: NDArray[Any]) -> Numbers:
    """A bijection after which every bit depends on every bit (the last step of SplitMix64, Steele et al.
    2014).
    """
    state = numbers.astype(np.uint64)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


class Runs:
    """Numbers for runs of items: the same for the same items, wherever they stand.

    Of a run it is sum(items[start + i] * base^i) modulo 2^64, from prefix sums, mixed.
    """

    def __init__(self, items: Numbers) -> None:
        size = len(items)
        self._sums = np.zeros(size + 1, np.uint64)
        np.cumsum(items * _powers(_BASE, size), out=self._sums[1:])
        self._shift = _powers(_INVERSE, size + 1)

    def numbers(self, starts: Offsets, ends: Offsets) -> Numbers:
        """Of the runs items[start:end]."""
        return mixed((self._sums[ends] - self._sums[starts]) * self._shift[starts])


@dataclass(frozen=True)
class Block:
    """Some documents after each other. words: `[W]`; sentences: `[S + 1]` offsets into words; ends: `[D + 1]`
    offsets into sentences; first: number of the first document, from 0.
    """

    texts: Sequence[Sequence[str]]
    words: Numbers
    sentences: Offsets
    ends: Offsets
    first: int

    @classmethod
    def of(cls, texts: Sequence[Sequence[str]], first: int = 0) -> Block:
        """The documents as they are."""
        plain = [_normal(sentence) for document in texts for sentence in document]
        characters = np.cumsum([0, *(len(sentence) + 1 for sentence in plain)])
        words, starts = _words("\n".join(plain))
        ends = np.cumsum([0, *map(len, texts)])
        return cls(texts, words, np.searchsorted(starts, characters), ends, first)

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def documents(self) -> Offsets:
        """`[D + 1]` offsets into words."""
        return self.sentences[self.ends]

    @cached_property
    def runs(self) -> Runs:
        """Numbers for runs of its words."""
        return Runs(self.words)

    def ngrams(self, length: int) -> tuple[Numbers, Offsets]:
        """(numbers of all runs of `length` words inside a document, `[D + 1]` offsets into them)."""
        counts = np.maximum(0, np.diff(self.documents) - length + 1)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        owners = np.repeat(np.arange(len(self)), counts)
        starts = self.documents[owners] + np.arange(offsets[-1]) - offsets[owners]
        return self.runs.numbers(starts, starts + length), offsets


def blocks(documents: Iterable[Sequence[str]]) -> Iterator[Block]:
    """Read documents block by block; never holds more than one block."""
    gathered: list[Sequence[str]] = []
    size = first = 0
    for document in documents:
        gathered.append(document)
        size += sum(map(len, document))
        if size >= BLOCK_CHARACTERS:
            yield Block.of(gathered, first)
            first, gathered, size = first + len(gathered), [], 0
    if gathered:
        yield Block.of(gathered, first)


def _normal(text: str) -> str:
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).lower()


def _words(text: str) -> tuple[Numbers, Offsets]:
    """Numbers of the words of a text, and where they start."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    kinds = _kinds()[np.minimum(codes, _CODES)]
    part, whole = kinds == _PART, kinds == _WHOLE
    begins, ends = part | whole, part | whole
    begins[1:] &= ~part[:-1] | whole[1:]
    ends[:-1] &= ~part[1:] | whole[:-1]
    starts = np.flatnonzero(begins)
    return Runs(mixed(codes)).numbers(starts, np.flatnonzero(ends) + 1), starts


@lru_cache(maxsize=1)
def _kinds() -> NDArray[np.uint8]:
    """Of each code point: part of a word, a word by itself, or neither."""
    category = unicodedata.category
    kinds = np.array([category(chr(code))[0] in "LMN" for code in range(_CODES)] + [False], np.uint8)
    for start, end in _UNPARTED:
        kinds[start:end] *= _WHOLE
    return kinds


def _powers(base: int, count: int) -> Numbers:
    """1, base, base^2 ... modulo 2^64."""
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    return np.cumprod(powers, dtype=np.uint64)
