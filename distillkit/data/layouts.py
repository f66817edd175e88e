"""How a row becomes token ids, and which of them are answered: texts, words with tags, documents to mask.

A layout is what a kind of task knows of tokenising. It says nothing of labels by name, files or models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from distillkit.data.scoring import (
    SOURCE,
    TARGET,
    LabelledTokens,
    MaskedTokens,
    Scoring,
    TargetTokens,
    UnlabelledTokens,
    WholeExamples,
)
from distillkit.data.tokenizers import in_text
from distillkit.errors import ModelError
from distillkit.types import IGNORED

Texts = Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Pieces:
    """Some rows as tokens, laid end to end: ids, segment of each, label of each (none where labels belong to
    rows), tokens of each sequence; cut: sequences that lost tokens at the maximal length.
    """

    tokens: NDArray[np.int32]
    types: NDArray[np.int8]
    labels: NDArray[np.int32]
    lengths: list[int]
    cut: int


class Layout(ABC):
    """How rows of texts are laid out in tokens. Its repr stands for it in digests."""

    @abstractmethod
    def pieces(
        self, texts: Texts, labels: NDArray[Any] | None, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Pieces:
        """The tokens of some rows; `labels` are those of these rows. Raises ModelError for a tokenizer that
        cannot make them.
        """

    @abstractmethod
    def scoring(self, tokenizer: PreTrainedTokenizerBase, *, labelled: bool) -> Scoring:
        """Where a model answers in these tokens."""

    def plain(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        """A row as the one or two texts that any tokenizer takes."""
        return (" ".join(texts),)

    def targets(self, labels: NDArray[Any] | None) -> Iterable[str]:
        """The labels that are texts, which a tokenizer must know as well as those that are read."""
        return ()

    def num_labels(self, texts: tuple[str, ...]) -> int:
        """Labels that a row of these texts has."""
        return 1

    def take(self, texts: Texts, labels: NDArray[Any], index: NDArray[np.int64]) -> NDArray[Any]:
        """The labels of the chosen rows."""
        chosen: NDArray[Any] = labels[index]
        return chosen


@dataclass(frozen=True)
class Segments(Layout):
    """A text, or two as a pair; one label a row."""

    def pieces(
        self, texts: Texts, labels: NDArray[Any] | None, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Pieces:
        pair_n = np.asarray([len(text) == 2 for text in texts])
        if pair_n.any() and not pair_n.all():  # several tasks
            parts = [np.flatnonzero(~pair_n), np.flatnonzero(pair_n)]
            made = [
                self.pieces([texts[row] for row in part.tolist()], None, tokenizer, max_length)
                for part in parts
            ]
            return _in_order(made, parts)
        encoded: Any = tokenizer(
            [text[0] for text in texts],
            [text[1] for text in texts] if pair_n.any() else None,
            truncation="longest_first",
            max_length=max_length,
            return_attention_mask=False,
            verbose=False,
        )
        return _pieces(encoded, np.zeros(0, dtype=np.int32))

    def scoring(self, tokenizer: PreTrainedTokenizerBase, *, labelled: bool) -> Scoring:
        return WholeExamples()

    def plain(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        return texts


@dataclass(frozen=True)
class Words(Layout):
    """Words, each with a tag; the first piece of a word answers for it. Labels are those of all words, row
    after row. A word that the tokenizer makes nothing of, or that lies past the maximal length, is not asked.
    """

    def pieces(
        self, texts: Texts, labels: NDArray[Any] | None, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Pieces:
        encoded = _split_words(texts, tokenizer, max_length)
        ends = np.cumsum([len(words) for words in texts])
        tags = np.zeros(ends[-1], dtype=np.int32) if labels is None else labels
        places = [
            _first_pieces(encoding.word_ids, int(end) - len(words), tags)
            for encoding, end, words in zip(encoded.encodings, ends, texts, strict=True)
        ]
        return _pieces(encoded, np.concatenate(places))

    def scoring(self, tokenizer: PreTrainedTokenizerBase, *, labelled: bool) -> Scoring:
        return LabelledTokens() if labelled else UnlabelledTokens()

    def num_labels(self, texts: tuple[str, ...]) -> int:
        return len(texts)

    def take(self, texts: Texts, labels: NDArray[Any], index: NDArray[np.int64]) -> NDArray[Any]:
        starts = np.cumsum([0, *map(len, texts)])
        parts = [labels[starts[row] : starts[row + 1]] for row in index]
        return np.concatenate(parts) if parts else labels[:0]

    @staticmethod
    def answered(
        words: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> tuple[str, ...]:
        """The words of a row that a model answers for, in order."""
        (encoding,) = _split_words([words], tokenizer, max_length).encodings
        return tuple(words[word] for word in dict.fromkeys(encoding.word_ids) if word is not None)


@dataclass(frozen=True)
class TextToText(Layout):
    """A source, and behind it the target that is its label: segments of their own, of at most max_length and
    `max_target` tokens. `prefix` is put before every source.
    """

    prefix: str
    max_target: int

    def pieces(
        self, texts: Texts, labels: NDArray[Any] | None, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Pieces:
        assert labels is not None, "a row without a target says nothing of what is to be answered"
        sources: Any = tokenizer([self.prefix + text for (text,) in texts], **_cut_at(max_length))
        targets: Any = tokenizer(text_target=list(labels), **_cut_at(self.max_target))
        _check_ends(targets["input_ids"], tokenizer)
        both = [(left, right) for left, right in zip(sources["input_ids"], targets["input_ids"], strict=True)]
        tokens = np.fromiter(chain.from_iterable(chain.from_iterable(both)), dtype=np.int32)
        sizes = [len(part) for pair in both for part in pair]
        types = np.repeat(np.tile(np.asarray([SOURCE, TARGET], dtype=np.int8), len(both)), sizes)
        cut = sum(
            bool(left.overflowing or right.overflowing)
            for left, right in zip(sources.encodings, targets.encodings, strict=True)
        )
        gold = np.where(types == TARGET, tokens, IGNORED).astype(np.int32)
        return Pieces(tokens, types, gold, [len(left) + len(right) for left, right in both], cut)

    def scoring(self, tokenizer: PreTrainedTokenizerBase, *, labelled: bool) -> Scoring:
        return TargetTokens()

    def targets(self, labels: NDArray[Any] | None) -> Iterable[str]:
        return () if labels is None else (str(text) for text in labels)


@dataclass(frozen=True)
class Documents(Layout):
    """Documents of sentences, packed: as many whole sentences of one document as fit make a sequence; a
    sentence that is too long by itself is cut into several, so that no token is lost.

    seed, rate, scored: see `MaskedTokens`.
    """

    seed: int
    rate: float = 0.15
    scored: Literal["masked", "all"] = "masked"

    def pieces(
        self, texts: Texts, labels: NDArray[Any] | None, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Pieces:
        front, back = frame(tokenizer)
        room = max_length - len(front) - len(back)
        backend: Any = tokenizer.backend_tokenizer
        backend.no_truncation()
        sentences = list(chain.from_iterable(map(in_text, texts)))
        encodings = iter(backend.encode_batch(sentences, add_special_tokens=False))
        packed = [
            [*front, *inner, *back]
            for document in texts
            for inner in _packed([next(encodings).ids for _ in document], room)
        ]
        flat = np.fromiter(chain.from_iterable(packed), dtype=np.int32)
        nothing = np.zeros(0, dtype=np.int32)
        return Pieces(flat, np.zeros(len(flat), dtype=np.int8), nothing, list(map(len, packed)), 0)

    def scoring(self, tokenizer: PreTrainedTokenizerBase, *, labelled: bool) -> Scoring:
        if tokenizer.mask_token_id is None:
            raise ModelError(
                "the tokenizer has no mask token", hint="an mlm task needs a masked language model as teacher"
            )
        special = tuple(sorted({*tokenizer.all_special_ids} - {tokenizer.unk_token_id}))
        return MaskedTokens(
            self.seed, self.rate, self.scored, tokenizer.mask_token_id, len(tokenizer), special
        )


def frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and after one text."""
    probe = tokenizer.convert_ids_to_tokens(int(tokenizer.unk_token_id or 0))
    inner = tokenizer(probe, add_special_tokens=False).input_ids
    whole = tokenizer(probe).input_ids
    starts = [start for start in range(len(whole)) if whole[start : start + len(inner)] == inner]
    if not inner or not starts:
        raise ModelError("the special tokens of this tokenizer were not understood", where="tokenizer")
    return whole[: starts[0]], whole[starts[0] + len(inner) :]


def _packed(sentences: Sequence[Sequence[int]], room: int) -> Iterator[list[int]]:
    """Runs of whole sentences of at most `room` tokens; a longer sentence in parts of its own."""
    run: list[int] = []
    for sentence in sentences:
        if run and len(run) + len(sentence) > room:
            yield run
            run = []
        if len(sentence) > room:
            cuts = [*range(0, len(sentence), room), len(sentence)]
            yield from (list(sentence[start:end]) for start, end in pairwise(cuts))
        else:
            run.extend(sentence)
    if run:
        yield run


def _cut_at(max_length: int) -> dict[str, Any]:
    """How a tokenizer is asked for texts of so many tokens."""
    return {
        "truncation": True,
        "max_length": max_length,
        "return_attention_mask": False,
        "verbose": False,
    }


def _check_ends(targets: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ModelError where a model could not learn when a text is over."""
    end = tokenizer.eos_token_id
    if end is None or any(not target or target[-1] != end for target in targets):
        raise ModelError(
            "this tokenizer does not put an end token behind a text: what is written would never end",
            where="tokenizer",
            hint="take the tokenizer of a T5 or BART",
        )


def _split_words(texts: Texts, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Any:
    try:
        return tokenizer(
            [in_text(words) for words in texts],
            is_split_into_words=True,
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            verbose=False,
        )
    except AssertionError as error:
        raise ModelError(
            f"this tokenizer takes no words: {error}",
            where="tokenizer",
            hint="save it with add_prefix_space=True",
        ) from None


def _first_pieces(word_ids: Sequence[int | None], start: int, tags: NDArray[Any]) -> NDArray[np.int32]:
    """The tag of each word at its first piece, IGNORED elsewhere; the row's tags begin at `start`."""
    labels = np.full(len(word_ids), IGNORED, dtype=np.int32)
    before: int | None = None
    for position, word in enumerate(word_ids):
        if word is not None and word != before:
            labels[position] = tags[start + word]
        before = word
    return labels


def _in_order(made: Sequence[Pieces], rows: Sequence[NDArray[np.int64]]) -> Pieces:
    """Pieces of some rows and of others, without labels, as the pieces of all in the order of the rows."""
    order = np.argsort(np.concatenate(rows))

    def ordered(name: str) -> NDArray[Any]:
        parts = [part for one in made for part in np.split(vars(one)[name], np.cumsum(one.lengths)[:-1])]
        return np.concatenate([parts[row] for row in order])

    lengths = [length for one in made for length in one.lengths]
    return Pieces(
        ordered("tokens"),
        ordered("types"),
        made[0].labels,
        [lengths[row] for row in order],
        sum(one.cut for one in made),
    )


def _pieces(encoded: Any, labels: NDArray[np.int32]) -> Pieces:
    """What a tokenizer's answer holds."""
    lengths = list(map(len, encoded["input_ids"]))
    tokens = np.fromiter(chain.from_iterable(encoded["input_ids"]), dtype=np.int32)
    types = np.zeros(len(tokens), dtype=np.int8)
    if "token_type_ids" in encoded:
        types = np.fromiter(chain.from_iterable(encoded["token_type_ids"]), dtype=np.int8)
    cut = sum(bool(encoding.overflowing) for encoding in encoded.encodings)
    return Pieces(tokens, types, labels, lengths, cut)
