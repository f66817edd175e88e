"""How a tokenised corpus is cut into the texts that a denoising objective corrupts.

Shapes: B texts, L tokens, D documents, n texts of an epoch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from distillkit.data.masking import Bool, Ints
from distillkit.data.noising import Text
from distillkit.errors import DataError
from distillkit.objectives.corpus import Corpus


class Passages(ABC):
    """The texts of one epoch."""

    corpus: Corpus

    @property
    @abstractmethod
    def sizes(self) -> Ints:
        """`[n]` tokens of each text."""

    @abstractmethod
    def text(self, rows: Ints) -> Text:
        """The chosen texts."""


@dataclass(frozen=True)
class JoinedDocuments(Passages):
    """All documents one after the other, cut into texts of `raw` tokens wherever that is: T5's packing.

    The released code joins 128 documents without a separator, each cut at 65,536 tokens; here all are joined
    in an order drawn for the epoch, which begins anywhere and goes around. first, size `[D]`: tokens of the
    corpus, of each document in that order; ends `[D]`: where it ends in the stream; start: where the first
    text begins; closing: what stands behind each document, () for nothing.
    """

    corpus: Corpus
    first: Ints
    size: Ints
    ends: Ints
    start: int
    raw: int
    closing: tuple[int, ...] = ()

    @classmethod
    def drawn(
        cls, corpus: Corpus, raw: int, generator: np.random.Generator, closing: tuple[int, ...] = ()
    ) -> JoinedDocuments:
        """In a random order, from a random place. Raises DataError for a single token, of which nothing can
        be missing."""
        order = generator.permutation(len(corpus.documents) - 1)
        edges = corpus.sentences[corpus.documents]
        size = np.diff(edges)[order]
        ends = np.cumsum(size + len(closing))
        if ends[-1] < 2:
            raise DataError("the corpus is a single token", hint="look at the corpus files")
        return cls(corpus, edges[order], size, ends, int(generator.integers(ends[-1])), raw, closing)

    @cached_property
    def sizes(self) -> Ints:
        """One that is left over counts where it has two tokens at least, or there is no other."""
        whole, rest = divmod(int(self.ends[-1]), self.raw)
        return np.asarray([self.raw] * whole + [rest] * (rest > 1 or not whole), dtype=np.int64)

    def text(self, rows: Ints) -> Text:
        lengths_B = self.sizes[rows]
        place = rows[:, None] * self.raw + np.arange(int(lengths_B.max()))
        place = (self.start + place) % self.ends[-1]
        number = np.searchsorted(self.ends, place, side="right")
        size = self.size[number]
        offset = place - (self.ends[number] - size - len(self.closing))
        closed = offset == size
        tokens = self.first[number] + np.minimum(offset, size - 1)
        ids = np.where(closed, self.closing or 0, self.corpus.tokens[tokens]).astype(np.int64)
        return Text(ids, lengths_B, _ends(self.corpus, tokens))


@dataclass(frozen=True)
class WholeSentences(Passages):
    """Whole sentences of one document, as many as fit: BART's packing (fairseq's complete_doc).

    A sentence that does not fit by itself is cut. start, end `[n]`: ranges of the corpus's tokens.
    """

    corpus: Corpus
    start: Ints
    end: Ints

    @classmethod
    def packed(cls, corpus: Corpus, room: int) -> WholeSentences:
        """The same in every epoch."""
        start, end = np.asarray(list(_ranges(corpus, room)), dtype=np.int64).T
        return cls(corpus, start, end)

    @property
    def sizes(self) -> Ints:
        return self.end - self.start

    def text(self, rows: Ints) -> Text:
        lengths_B = self.sizes[rows]
        inside = np.arange(int(lengths_B.max())) < lengths_B[:, None]
        tokens = self.start[rows][:, None] + np.where(inside, np.arange(inside.shape[1]), 0)
        ids = self.corpus.tokens[tokens].astype(np.int64)
        return Text(ids, lengths_B, _ends(self.corpus, tokens))


def _ranges(corpus: Corpus, room: int) -> Iterator[tuple[int, int]]:
    edges = corpus.sentences.tolist()
    for first, stop in pairwise(corpus.documents.tolist()):
        while first < stop:
            last = min(stop, bisect_right(edges, edges[first] + room) - 1)
            if last > first:
                yield edges[first], edges[last]
                first = last
            else:
                for start in range(edges[first], edges[first + 1], room):
                    yield start, min(start + room, edges[first + 1])
                first += 1


def _ends(corpus: Corpus, tokens_BL: Ints) -> Bool:
    """True at the last token of a sentence."""
    after = np.searchsorted(corpus.sentences, tokens_BL + 1)
    ends: Bool = corpus.sentences[after] == tokens_BL + 1
    return ends
