"""Training sequences that run on across documents: a corpus as one stream, cut into blocks.

The stream is the tokens of all documents in their order, each document followed by `</s>`. A block is a range
of it behind a `<s>`; nothing is copied before a batch is made.

Shapes: B blocks, L tokens, S sentences, D documents.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from distillkit.data.masking import Ints
from distillkit.objectives.corpus import Corpus, Tokens

Packing = Literal["full_sentences", "doc_sentences"]


@dataclass(frozen=True)
class Stream:
    """Places of the stream. documents: `[D + 1]` where each document begins, its `</s>` being the last place
    before the next; ends: `[S]` the place behind each sentence.
    """

    documents: Ints
    ends: Ints

    @classmethod
    def of(cls, corpus: Corpus) -> Stream:
        before_S = np.repeat(np.arange(len(corpus.documents) - 1), np.diff(corpus.documents))
        starts_D = np.asarray(corpus.sentences)[corpus.documents]
        return cls(starts_D + np.arange(len(starts_D)), corpus.sentences[1:] + before_S)

    def document(self, places: Ints) -> Ints:
        """The document that each place is in."""
        numbers: Ints = np.searchsorted(self.documents, places, side="right") - 1
        return numbers


@dataclass(frozen=True)
class Blocks:
    """Ranges `[n]` of a corpus's stream, each behind a `<s>`; closed: a `</s>` follows each."""

    corpus: Corpus
    start: Ints
    end: Ints
    closed: bool

    @cached_property
    def stream(self) -> Stream:
        return Stream.of(self.corpus)

    @property
    def lengths(self) -> Ints:
        """Tokens of each, special tokens included."""
        return self.end - self.start + 1 + self.closed

    def lay_out(self, rows: Ints) -> Tokens:
        """`<s>`, the block and, where it is closed, `</s>`. What separates documents is no text."""
        facts, stream = self.corpus.facts, self.stream
        lengths = self.lengths[rows]
        position = np.arange(int(lengths.max()))[None, :]
        place = self.start[rows][:, None] + position - 1
        inside = (position >= 1) & (place < self.end[rows][:, None])
        place = np.where(inside, place, 0)
        document = stream.document(place)
        text = inside & (place + 1 < stream.documents[document + 1])
        real = position < lengths[:, None]
        ids = np.where(real, facts["sep"], facts["pad"])
        ids[:, 0] = facts["cls"]
        ids = np.where(text, self.corpus.tokens[np.where(text, place - document, 0)], ids).astype(np.int64)
        return Tokens(ids, np.zeros_like(ids), real, text, text & self.corpus.continues[ids])

    def metrics(self) -> Mapping[str, float]:
        """How many, how long, and the share that holds parts of several documents."""
        first, last = self.stream.document(self.start), self.stream.document(self.end - 1)
        return {
            "blocks": float(len(self.start)),
            "tokens": float(self.lengths.sum()),
            "several_documents": float((first != last).mean()),
            "mean_length": float(self.lengths.mean()),
        }


def sentence_blocks(corpus: Corpus, packing: Packing) -> Blocks:
    """As many consecutive whole sentences as fit, over the ends of documents (Liu et al. 2019, section 4.2:
    FULL-SENTENCES) or not beyond them (DOC-SENTENCES), between `<s>` and `</s>`.

    A sentence that is longer than a block fills blocks of its own, its rest stands before what follows: no
    token is lost, and none changes its place in the order.
    """
    stream, room = Stream.of(corpus), corpus.facts["max_length"] - 2
    sentences, separators = stream.ends.tolist(), (stream.documents[1:] - 1).tolist()
    rows: list[tuple[int, int]] = []
    place = document = 0
    while document < len(separators):
        limit = place + room
        if packing == "doc_sentences":
            limit = min(limit, separators[document])
        whole = bisect_right(sentences, limit) - 1
        end = sentences[whole] if whole >= 0 and sentences[whole] > place else limit
        rows.append((place, end))
        document = bisect_left(separators, end, lo=document)
        place = end
        if document < len(separators) and separators[document] == end:
            place, document = end + 1, document + 1
    start, stop = np.asarray(rows, dtype=np.int64).T
    return Blocks(corpus, start, stop, closed=True)


def full_blocks(corpus: Corpus) -> Blocks:
    """The stream from its begin to its end, cut without regard to sentences: all blocks but the last are as
    long as they may be.
    """
    room, total = corpus.facts["max_length"] - 1, int(Stream.of(corpus).documents[-1])
    start = np.arange(0, total, room, dtype=np.int64)
    return Blocks(corpus, start, np.minimum(start + room, total), closed=False)
