"""Evaluation texts that occur in a corpus.

As in GPT-3 (Brown et al. 2020, section 4 and appendix C): words without case and punctuation, and a text
counts as overlapping where any run of 13 of its words stands in a document of the corpus; of 8 words where it
has no 13. Departures: N is 13 or 8 by the length of the text (there the 5th percentile of a data set, between
8 and 13), runs that occur often are not left out, and a text of fewer than 8 words is only looked for as a
whole: it overlaps where it is a sentence or document of the corpus, so that "a good film" does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distillkit.audit.blocks import Block, Numbers

LONG, SHORT = 13, 8
_SHOWN = 3
_TABLE_BITS = 24


@dataclass(frozen=True)
class Evaluation:
    """Texts that a model is to be measured on."""

    name: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Overlap:
    """Evaluation texts (those without a word left out) that occur in a corpus.

    short: have fewer than 8 words; whole: are a sentence or a document of it; overlapping: share a run of
    words with it; verbatim: of these, share every run; contaminated: whole or overlapping; examples: their
    numbers, from 1.
    """

    name: str
    texts: int
    short: int
    whole: int
    overlapping: int
    verbatim: int
    contaminated: int
    examples: tuple[int, ...]

    @property
    def share(self) -> float:
        return self.contaminated / max(1, self.texts)


class Contamination:
    """Looks for evaluation texts in a corpus; holds about 60 bytes for each of their words, and 50 MB."""

    def __init__(self, evaluations: Sequence[Evaluation]) -> None:
        self._evaluations = evaluations
        block = Block.of([[text] for evaluation in evaluations for text in evaluation.texts])
        self._sizes = np.diff(block.documents)
        self._whole = _Sought(block.runs.numbers(block.documents[:-1], block.documents[1:]))
        self._grams = {length: _Sought(*block.ngrams(length)) for length in (LONG, SHORT)}

    def add(self, block: Block) -> None:
        if not len(self._sizes):
            return
        for offsets in (block.sentences, block.documents):
            self._whole.look_in(block.runs.numbers(offsets[:-1], offsets[1:]))
        for length, sought in self._grams.items():
            sought.look_in(block.ngrams(length)[0])

    def found(self) -> tuple[Overlap, ...]:
        """What of each evaluation set occurs."""
        asked = self._sizes > 0
        whole = (self._whole.found() > 0) & asked
        share = np.where(self._sizes < LONG, self._grams[SHORT].found(), self._grams[LONG].found())
        overlaps, start = [], 0
        for evaluation in self._evaluations:
            part = slice(start, start + len(evaluation.texts))
            either = whole[part] | (share[part] > 0)
            overlaps.append(
                Overlap(
                    name=evaluation.name,
                    texts=int(asked[part].sum()),
                    short=int((self._sizes[part][asked[part]] < SHORT).sum()),
                    whole=int(whole[part].sum()),
                    overlapping=int((share[part] > 0).sum()),
                    verbatim=int((share[part] == 1).sum()),
                    contaminated=int(either.sum()),
                    examples=tuple((np.flatnonzero(either)[:_SHOWN] + 1).tolist()),
                )
            )
            start = part.stop
        return tuple(overlaps)


class _Sought:
    """Numbers that are looked for, and which of them were found; `offsets` says whose they are (one each,
    where it is not given).
    """

    def __init__(self, numbers: Numbers, offsets: NDArray[np.int64] | None = None) -> None:
        self._offsets = np.arange(len(numbers) + 1) if offsets is None else offsets
        self._numbers, self._where = np.unique(numbers, return_inverse=True)
        self._found = np.zeros(len(self._numbers), bool)
        self._maybe = np.zeros(1 << _TABLE_BITS, bool)
        self._maybe[_slot(self._numbers)] = True

    def look_in(self, numbers: Numbers) -> None:
        """Most are ruled out by a table before the search."""
        numbers = numbers[self._maybe[_slot(numbers)]]
        places = np.minimum(np.searchsorted(self._numbers, numbers), len(self._numbers) - 1)
        self._found[places[self._numbers[places] == numbers]] = True

    def found(self) -> NDArray[np.float64]:
        """Of each text the share of its numbers that were found, 0 where it has none."""
        sums = np.concatenate([[0], np.cumsum(self._found[self._where])])
        counts = np.diff(self._offsets)
        shares: NDArray[np.float64] = np.diff(sums[self._offsets]) / np.maximum(1, counts)
        return shares


def _slot(numbers: Numbers) -> Numbers:
    return numbers >> np.uint64(64 - _TABLE_BITS)
