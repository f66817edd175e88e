"""Training sequences of two segments from the sentences of a corpus, as in the released ELECTRA code.

Sentences of a document gather up to a target length and are cut into two segments, one in ten into a single
one. Departure: a sentence never goes back to the first segment after one went to the second.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from distillkit.objectives.corpus import Corpus, Sequences

_SHORTEST = 5
_SINGLE = 0.1
"""Share of the sequences that have one segment."""


def pack(corpus: Corpus, generator: random.Random, short_sequences: float) -> Sequences:
    """One pass over all documents; `short_sequences` of the sequences aim at a random shorter length."""
    room = corpus.facts["max_length"]
    starts, documents = corpus.sentences.tolist(), corpus.documents.tolist()
    rows: list[tuple[int, int, int]] = []
    target = room
    for first, end in pairwise(documents):
        while first < end:
            last = first + 1
            while last < end and starts[last] - starts[first] < target:
                last += 1
            cut = _cut(starts[first : last + 1], target, generator)
            rows.append((starts[first], starts[first + cut], starts[last]))
            first = last
            short = generator.random() < short_sequences
            target = generator.randint(min(_SHORTEST, room), room) if short else room
    start, middle, stop = np.asarray(rows, dtype=np.int64).reshape(-1, 3).T
    a_end = np.minimum(middle, start + room - 2)
    b_end = np.minimum(stop, middle + np.maximum(0, room - 3 - (a_end - start)))
    return Sequences(corpus, start, a_end, middle, b_end)


def _cut(edges: Sequence[int], target: int, generator: random.Random) -> int:
    """How many of the sentences between these edges the first segment holds: at least one; those that fit
    into half of the target, and one that goes beyond in half of the cases.
    """
    sentences = len(edges) - 1
    if generator.random() < _SINGLE:
        return sentences
    half = (target - 3) // 2
    cut = 1
    while cut < sentences and edges[cut + 1] - edges[0] < half:
        cut += 1
    beyond = cut < sentences and edges[cut] - edges[0] < half and generator.random() < 0.5
    return cut + beyond


def described(sequences: Sequences) -> dict[str, float]:
    """Figures worth logging of an epoch's sequences."""
    return {
        "sequences": float(len(sequences.lengths)),
        "tokens": float(sequences.lengths.sum()),
        "single_segment": float((sequences.b_start == sequences.b_end).mean()),
        "mean_length": float(sequences.lengths.mean()),
    }
