"""A unigram language model of word pieces, trained the same way for the same words.

Kudo 2018, and SentencePiece. The trainer of the `tokenizers` package orders pieces, and adds up
probabilities, as its hash tables and threads have it, so that two runs give two vocabularies. Departures from
SentencePiece: pieces lie within words; what losing a piece would cost is weighed by its expected count, not
by its count in the best segmentations.

Shapes: N words of one length, L characters, M characters of the longest piece, P pieces.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma
from transformers import PreTrainedTokenizerBase, T5Tokenizer

from distillkit.errors import ModelError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

WORD = "\u2581"
"""Stands before each word, where a space does in the text."""
LONGEST_PIECE, LONGEST_WORD = 16, 48
"""Characters; longer words are left out."""
MOST_WORDS = 100_000
"""Different words that are looked at, the most frequent ones."""
_SEEDS = 10
"""Pieces at the start, for each that is wanted."""
_KEPT = 0.75
"""Share of the pieces that one round keeps."""
_ROUNDS = 2
"""Steps of expectation and maximisation between two prunings."""
_RARE = 0.5
"""Expected count below which a piece is dropped."""


@dataclass(frozen=True)
class Lattice:
    """All ways of cutting words of one length into pieces. pieces `[N, L, M]`: the piece that begins at a
    character with so many characters, or P where there is none; counts `[N]`: how often each word occurs."""

    pieces: Ints
    counts: Floats

    def totals(self, scores_P: Floats, *, best: bool = False) -> tuple[Floats, Floats]:
        """`[N, L + 1]` log probability of all that comes before each place, and of all that comes after it;
        best: of the best way alone."""
        join = np.maximum.reduce if best else np.logaddexp.reduce
        scores_NLM = np.append(scores_P, -np.inf)[self.pieces]
        words, length, most = scores_NLM.shape
        before, after = np.full((2, words, length + 1), -np.inf)
        before[:, 0] = after[:, length] = 0.0
        for place in range(1, length + 1):
            sizes = np.arange(1, min(most, place) + 1)
            before[:, place] = join(
                before[:, place - sizes] + scores_NLM[:, place - sizes, sizes - 1], axis=1
            )
            start, sizes = length - place, np.arange(1, min(most, place) + 1)
            after[:, start] = join(after[:, start + sizes] + scores_NLM[:, start, sizes - 1], axis=1)
        return before, after

    def expected(self, scores_P: Floats) -> Floats:
        """`[P]` how often each piece is expected in the words."""
        before, after = self.totals(scores_P)
        length, most = self.pieces.shape[1:]
        ends = np.minimum(np.arange(length)[:, None] + np.arange(1, most + 1), length)
        scores_NLM = np.append(scores_P, -np.inf)[self.pieces]
        whole = np.where(np.isfinite(before[:, -1]), before[:, -1], 0.0)[:, None, None]
        chances = np.exp(before[:, :-1, None] + scores_NLM + after[:, ends] - whole)
        weights = chances * self.counts[:, None, None]
        counts = np.bincount(self.pieces.ravel(), weights.ravel(), minlength=len(scores_P) + 1)
        return counts[:-1].astype(np.float64)


def train_unigram(
    texts: Iterable[str], *, vocab_size: int, sentinels: int = 100, max_length: int = 512
) -> PreTrainedTokenizerBase:
    """T5's tokenizer (Raffel et al. 2020, section 2.2), the same for the same texts: pieces that keep case,
    <pad>, </s> and <unk> before them, and sentinels after them, <extra_id_0> the last.

    A departure: characters stay as they are (SentencePiece puts them into a normal form), because
    `transformers`' T5 tokenizer opens without a normal form. vocab_size: entries without the sentinels.
    Raises ModelError where the texts hold no words.
    """
    words: Counter[str] = Counter()
    for text in texts:
        words.update(f"{WORD}{word}" for word in text.split())
    if not words:
        raise ModelError(
            "the texts hold no words to train a tokenizer on", hint="look at the text column or the corpus"
        )
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = unigram_pieces(words, max(1, vocab_size - len(special)))
    last = [(f"<extra_id_{number}>", 0.0) for number in reversed(range(sentinels))]
    return T5Tokenizer(vocab=[*special, *pieces, *last], extra_ids=sentinels, model_max_length=max_length)


def unigram_pieces(words: Mapping[str, int], size: int) -> list[tuple[str, float]]:
    """At most `size` pieces and their log probabilities, the most probable first; words: how often each
    occurs. Every character of the words is a piece, even beyond `size`."""
    kept = sorted(words, key=lambda word: (-words[word], word))[:MOST_WORDS]
    counts = {word: words[word] for word in sorted(kept) if len(word) <= LONGEST_WORD}
    pieces, frequencies = _seeds(counts, size)
    number = {piece: index for index, piece in enumerate(pieces)}
    needed = np.asarray([len(piece) == 1 for piece in pieces])
    lattices = _lattices(counts, number)
    inner = _lattices(dict.fromkeys(pieces, 1), number, within=True)
    order = np.argsort([(len(piece)) for piece in pieces], kind="stable")
    scores = np.log(frequencies / frequencies.sum())
    while True:
        for _ in range(_ROUNDS):
            expected = np.sum([one.expected(scores) for one in lattices], axis=0)
            scores = _likeliest(expected, needed)
        alive = int(np.isfinite(scores).sum())
        if alive <= max(size, int(needed.sum())):
            break
        instead = np.empty(len(pieces))
        instead[order] = np.concatenate([one.totals(scores, best=True)[0][:, -1] for one in inner])
        scores = _pruned(scores, expected, instead, needed, max(size, int(alive * _KEPT)))
    found = [(piece, float(score)) for piece, score in zip(pieces, scores, strict=True) if np.isfinite(score)]
    return sorted(found, key=lambda one: (-one[1], one[0]))


def _seeds(counts: Mapping[str, int], size: int) -> tuple[list[str], Floats]:
    """All characters, and of the longer pieces that occur twice at least those that cover most characters."""
    found: Counter[str] = Counter()
    for word, count in counts.items():
        for start in range(len(word)):
            for end in range(start + 1, min(len(word), start + LONGEST_PIECE) + 1):
                found[word[start:end]] += count
    letters = sorted(piece for piece in found if len(piece) == 1)
    longer = [piece for piece, count in found.items() if len(piece) > 1 and count > 1]
    longer.sort(key=lambda piece: (-found[piece] * len(piece), piece))
    pieces = letters + longer[: _SEEDS * size]
    return pieces, np.asarray([found[piece] for piece in pieces], dtype=np.float64)


def _lattices(counts: Mapping[str, int], number: Mapping[str, int], *, within: bool = False) -> list[Lattice]:
    """Words by their length, shortest first; within: no word is a piece of its own, but for characters."""
    by_length: dict[int, list[str]] = {}
    for word in counts:
        by_length.setdefault(len(word), []).append(word)
    made = []
    for length, words in sorted(by_length.items()):
        most = min(LONGEST_PIECE, length)
        table = np.full((len(words), length, most), len(number), dtype=np.int64)
        for row, word in enumerate(words):
            for start in range(length):
                for size in range(1, min(most, length - start) + 1):
                    if not within or size < length:
                        table[row, start, size - 1] = number.get(word[start : start + size], len(number))
        made.append(Lattice(table, np.asarray([counts[word] for word in words], dtype=np.float64)))
    return made


def _likeliest(expected_P: Floats, needed_P: NDArray[np.bool_]) -> Floats:
    """Log probabilities by expected counts, with SentencePiece's digamma, which makes rare pieces rarer."""
    counts = np.where(needed_P, np.maximum(expected_P, _RARE), expected_P)
    kept = counts >= _RARE
    total = digamma(counts[kept].sum())
    return np.where(kept, digamma(np.where(kept, counts, 1.0)) - total, -np.inf)


def _pruned(
    scores_P: Floats, expected_P: Floats, instead_P: Floats, needed_P: NDArray[np.bool_], size: int
) -> Floats:
    """The scores of the pieces that would be missed most; instead: of the best other way to say each."""
    missed = np.where(needed_P, np.inf, -np.inf)
    asked = np.isfinite(scores_P) & ~needed_P
    missed[asked] = expected_P[asked] * (scores_P[asked] - instead_P[asked])
    kept = np.argsort(-missed, kind="stable")[:size]
    pruned = np.full(len(scores_P), -np.inf)
    pruned[kept] = scores_P[kept]
    return pruned
