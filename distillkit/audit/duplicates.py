"""Copies: texts that are the same, and documents that are nearly the same.

The same: a digest of 64 bits per text. Nearly the same: the Jaccard similarity of two documents' sets of word
5-grams, estimated by MinHash (Broder 1997) of 128 hashes of which 8 bits are kept (Li & Koenig 2010, "b-bit
minwise hashing"), between documents that share one of 16 bands of 8 hashes (Leskovec et al., "Mining of
Massive Datasets", section 3.4): a pair at 0.8 is compared with probability 0.95, one at 0.9 with 0.9999. The
estimate's standard error is 0.035 at 0.8. Nothing is random: the same corpus gives the same answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from distillkit.audit.blocks import Block, Numbers, Offsets, digest, mixed

SHINGLE = 5
"""Words of what the sets are made of; shorter documents are compared as a whole only."""
NEAR = 0.8
"""Jaccard similarity from which two documents count as near duplicates."""
NUM_HASHES, BAND = 128, 8
BYTES_PER_DOCUMENT = 300
"""Most memory that a document takes, the sorting at the end included."""
_NEIGHBOURS = 8
"""Documents after it in a bucket that each one is compared with."""
_PAIRS_AT_ONCE = 1 << 16
_SHOWN = 5
Pairs = NDArray[np.int64]


@dataclass(frozen=True)
class Copies:
    """distinct: different texts; copies: texts that have stood before; exact: counted, not estimated."""

    distinct: int
    copies: int
    exact: bool = True

    @property
    def share(self) -> float:
        return self.copies / max(1, self.distinct + self.copies)


@dataclass(frozen=True)
class Cluster:
    """Documents that are near duplicates: how many, the numbers (from 1) of the first ones, and the estimated
    similarity of the first two.
    """

    size: int
    documents: tuple[int, ...]
    similarity: float


@dataclass(frozen=True)
class NearCopies:
    """documents: those that nearly repeat an earlier one, exact copies left out; compared: documents of at
    least 5 words, exact copies left out; clusters: the largest.
    """

    documents: int
    compared: int
    clusters: tuple[Cluster, ...]


class DistinctTexts:
    """Counts copies in a fixed memory (16 bytes x `limit`, three times over while it tidies up).

    Past `limit` different digests only those are kept that end with a zero bit, then with two, and so on: all
    copies of a text stay or go together, so that what is left stands for all (adaptive sampling, Flajolet
    1990).
    """

    def __init__(self, limit: int = 1 << 21) -> None:
        self._limit, self._bits = limit, 0
        self._digests = np.zeros(0, np.uint64)
        self._counts = np.zeros(0, np.int64)
        self._new: list[Numbers] = []
        self._waiting = 0

    def add(self, digests: Numbers) -> None:
        """Count these texts."""
        digests = digests[self._kept(digests)]
        self._new.append(digests)
        self._waiting += len(digests)
        if self._waiting >= self._limit:
            self._tidy()

    def copies(self) -> Copies:
        """What was counted; an estimate once there were more than `limit` different texts."""
        self._tidy()
        factor, distinct = 1 << self._bits, len(self._digests)
        return Copies(distinct * factor, (int(self._counts.sum()) - distinct) * factor, self._bits == 0)

    def _kept(self, digests: Numbers) -> NDArray[np.bool_]:
        kept: NDArray[np.bool_] = digests & np.uint64((1 << self._bits) - 1) == 0
        return kept

    def _tidy(self) -> None:
        digests = np.concatenate([self._digests, *self._new])
        counts = np.concatenate([self._counts, np.ones(self._waiting, np.int64)])
        self._digests, where = np.unique(digests, return_inverse=True)
        self._counts = np.bincount(where, counts, len(self._digests)).astype(np.int64)
        self._new, self._waiting = [], 0
        while len(self._digests) > self._limit:
            self._bits += 1
            kept = self._kept(self._digests)
            self._digests, self._counts = self._digests[kept], self._counts[kept]


class Documents:
    """The sketches of all documents: 8 bytes of what each is, and 128 of what it is like."""

    def __init__(self) -> None:
        self._digests: list[Numbers] = []
        self._sketches: list[NDArray[np.uint8]] = []
        self._long: list[NDArray[np.bool_]] = []

    def add(self, block: Block) -> None:
        texts = (digest("\n".join(document)) for document in block.texts)
        self._digests.append(np.fromiter(texts, np.uint64, len(block)))
        sketched, long = sketches(block)
        self._sketches.append(sketched)
        self._long.append(long)

    def found(self) -> tuple[Copies, NearCopies]:
        """Exact copies of documents, and near ones among the rest."""
        if not self._digests:
            return Copies(0, 0), NearCopies(0, 0, ())
        digests = np.concatenate(self._digests)
        _, first = np.unique(digests, return_index=True)
        compared = np.sort(first[np.concatenate(self._long)[first]])
        return Copies(len(first), len(digests) - len(first)), self._near(compared)

    def _near(self, compared: Offsets) -> NearCopies:
        sketched = np.concatenate(self._sketches)[compared]
        clusters = linked(sketched)
        sizes = np.bincount(clusters) if len(clusters) else np.zeros(0, np.int64)
        largest = np.argsort(-sizes, kind="stable")[:_SHOWN]
        shown = [np.flatnonzero(clusters == cluster) for cluster in largest if sizes[cluster] > 1]
        return NearCopies(
            documents=len(compared) - len(sizes),
            compared=len(compared),
            clusters=tuple(
                Cluster(len(some), tuple((compared[some[:3]] + 1).tolist()), _similarity(sketched, some))
                for some in shown
            ),
        )


def sketches(block: Block) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """(MinHash of each document's word 5-grams `[D, 128]`, whether it has any `[D]`)."""
    shingles, offsets = block.ngrams(SHINGLE)
    long = np.diff(offsets) > 0
    sketched = np.zeros((len(block), NUM_HASHES), np.uint8)
    if not len(shingles):
        return sketched, long
    items, starts = (shingles >> np.uint64(32)).astype(np.uint32), offsets[:-1][long]
    hashed = np.empty_like(items)
    for column, (factor, shift) in enumerate(_hashes()):
        np.multiply(items, factor, out=hashed)
        np.add(hashed, shift, out=hashed)
        # the lowest bits of a product depend on the lowest bits of its factors alone
        sketched[long, column] = np.minimum.reduceat(hashed, starts) >> np.uint32(4)
    return sketched, long


def similarity(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Estimated Jaccard similarity of sketches `[..., 128]`, chance agreement of 8 bits taken off."""
    chance = 1 / 256
    agreed: NDArray[np.float64] = (left == right).mean(axis=-1)
    return (agreed - chance) / (1 - chance)


def linked(sketched: NDArray[np.uint8]) -> NDArray[np.int64]:
    """`[n]` cluster of each document: near duplicates, and theirs, are in one; numbered by first member."""
    count = len(sketched)
    clusters = np.arange(count)
    for left, right in _candidates(sketched):
        apart = clusters[left] != clusters[right]
        left, right = left[apart], right[apart]
        near = similarity(sketched[left], sketched[right]) >= NEAR
        if near.any():
            ends = clusters[left[near]], clusters[right[near]]
            graph = coo_array((np.ones(len(ends[0]), bool), ends), (count, count))
            _, joined = connected_components(graph, directed=False)
            clusters = joined[clusters].astype(np.int64)
    _, first, clusters = np.unique(clusters, return_index=True, return_inverse=True)
    order = np.empty(len(first), np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    return order[clusters]


def _candidates(sketched: NDArray[np.uint8]) -> Iterator[tuple[Pairs, Pairs]]:
    """Pairs of documents that agree in a whole band, some at a time."""
    bands = np.ascontiguousarray(sketched).view(np.uint64)
    for band in range(bands.shape[1]):
        order = np.argsort(bands[:, band], kind="stable")
        keys = bands[order, band]
        for step in range(1, _NEIGHBOURS + 1):
            same = np.flatnonzero(keys[step:] == keys[:-step])
            for start in range(0, len(same), _PAIRS_AT_ONCE):
                at = same[start : start + _PAIRS_AT_ONCE]
                yield order[at], order[at + step]
            if not len(same):
                break


def _similarity(sketched: NDArray[np.uint8], members: Sequence[int] | Offsets) -> float:
    return float(similarity(sketched[members[0]], sketched[members[1]]))


def _hashes() -> list[tuple[np.uint32, np.uint32]]:
    """128 maps x -> a x + b modulo 2^32 with odd a."""
    numbers = mixed(np.arange(1, 2 * NUM_HASHES + 1)).astype(np.uint32)
    return list(zip(numbers[::2] | np.uint32(1), numbers[1::2], strict=True))
