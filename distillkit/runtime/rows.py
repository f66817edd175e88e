"""How a row becomes token ids: a text, a pair of texts, or words.

The same ids as in training (`distillkit.data.layouts`, which has transformers' tokenizers do it): a test
compares them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillkit.errors import DataError, DistillkitError, ErrorGroup, ExportError
from distillkit.runtime.description import TOKENIZER, TaskRows, Tokens
from distillkit.runtime.frame import Frame, kept
from distillkit.wording import half_character, shown

_MOST_SHOWN = 20
Where = Callable[[int], str]
"""Names the place of a row in a message."""


def nth(place: int) -> str:
    """A row by its number alone."""
    return f"row {place}"


@dataclass(frozen=True)
class Row:
    """A row in tokens. ids, types: `[L]` int64, types the segment of each; cut: it lost characters or tokens;
    words: (word, its first token) of the words that are answered, of `num_words`.
    """

    ids: NDArray[np.int64]
    types: NDArray[np.int64]
    cut: bool
    words: tuple[tuple[int, int], ...] = ()
    num_words: int = 0

    def __len__(self) -> int:
        return len(self.ids)


class Layout(ABC):
    """What a row of a kind of task is made of."""

    split = False
    """Whether a tokenizer is given words."""

    @abstractmethod
    def texts(self, given: Any, task: TaskRows) -> tuple[str, ...]:
        """The texts of a row as a caller gives it; raises ValueError with the reason where it is none."""

    def words(self, encoding: Any, kept: slice) -> tuple[tuple[int, int], ...]:
        """(word, its first token) of the tokens that are kept."""
        return ()

    def num_words(self, texts: tuple[str, ...]) -> int:
        return 0


class Texts(Layout):
    """A text, or two as a pair."""

    def texts(self, given: Any, task: TaskRows) -> tuple[str, ...]:
        if len(task.columns) == 1:
            if not isinstance(given, str):
                raise ValueError(f"{shown(given)} is not a text")
            return _checked([given])
        if not isinstance(given, tuple | list) or len(given) != 2:
            raise ValueError(f"{shown(given)} is not a pair of texts ({', '.join(task.columns)})")
        return _checked(given)


class Words(Layout):
    """Words; the first piece of each answers for it."""

    split = True

    def texts(self, given: Any, task: TaskRows) -> tuple[str, ...]:
        if isinstance(given, str) or not isinstance(given, tuple | list) or not given:
            raise ValueError(f"{shown(given)} is not a list of words")
        return _checked(given)

    def words(self, encoding: Any, kept: slice) -> tuple[tuple[int, int], ...]:
        first: dict[int, int] = {}
        for place, word in enumerate(encoding.word_ids[kept]):
            if word is not None:
                first.setdefault(word, place)
        return tuple(first.items())

    def num_words(self, texts: tuple[str, ...]) -> int:
        return len(texts)


class Reader:
    """Rows of an artifact's tasks as tokens, by its tokenizer.json."""

    def __init__(self, tokenizer: Any, tokens: Tokens, layout: Layout) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = tokens.split_special
        self.tokenizer, self.tokens, self.layout = tokenizer, tokens, layout
        self._frames: dict[int, Frame] = {}

    @classmethod
    def open(cls, folder: Path, tokens: Tokens, layout: Layout) -> Reader:
        """Raises ExportError (10) where tokenizer.json cannot be read."""
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        except Exception as error:  # tokenizers raises plain exceptions
            raise ExportError(
                f"not a tokenizer: {str(error).splitlines()[0]}",
                where=str(folder / TOKENIZER),
                hint="export it again",
            ) from None
        return cls(tokenizer, tokens, layout)

    def check(self, given: Sequence[Any], task: TaskRows, where: Where = nth) -> list[tuple[str, ...]]:
        """The texts of each row. Raises DataError (3) with what `where` says of a row's place (from 0)."""
        if isinstance(given, str | bytes) or not isinstance(given, Sequence):
            raise DataError(f"{shown(given)} is not a list of rows", where="rows", hint="give a list")
        rows: list[tuple[str, ...]] = []
        problems: list[DistillkitError] = []
        for place, one in enumerate(given):
            try:
                rows.append(self.layout.texts(one, task))
            except ValueError as error:
                problems.append(DataError(str(error), where=where(place)))
        if problems:
            raise problems[0] if len(problems) == 1 else ErrorGroup(list(problems[:_MOST_SHOWN]))
        return rows

    def read(self, rows: Sequence[tuple[str, ...]], task: TaskRows) -> list[Row]:
        """Checked rows in tokens."""
        if not rows:
            return []
        short = [tuple(text[: task.max_chars] for text in texts) for texts in rows]
        before = self.tokens.prefix
        split, parts = self.layout.split, 1 if self.layout.split else len(task.columns)
        told: list[Any] = (
            [*map(in_text, short)] if split else [before + text for texts in short for text in texts]
        )
        encodings = iter(self.tokenizer.encode_batch(told, is_pretokenized=split, add_special_tokens=False))
        return [
            self._row([next(encodings) for _ in range(parts)], self.layout.num_words(texts), texts != given)
            for texts, given in zip(short, rows, strict=True)
        ]

    def _row(self, encodings: Sequence[Any], num_words: int, shortened: bool) -> Row:
        """The tokens of a row from those of its texts."""
        frame, lengths = self._frame(len(encodings)), [len(one.ids) for one in encodings]
        stay = kept(lengths, self.tokens.max_length - frame.size)
        parts = [self._part(*counts) for counts in zip(lengths, stay, strict=True)]
        pairs = zip(encodings, parts, strict=True)
        ids, types = frame.row([np.asarray(one.ids[part], dtype=np.int64) for one, part in pairs])
        front = len(frame.special[0])
        words = tuple((word, place + front) for word, place in self.layout.words(encodings[0], parts[0]))
        types = types if self.tokens.segments else np.zeros_like(ids)
        return Row(ids, types, shortened or sum(stay) < sum(lengths), words, num_words)

    def spelled(self, tokens: Sequence[int]) -> str:
        """Tokens as a text, without special ones."""
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def _part(self, length: int, stays: int) -> slice:
        """Which of a text's tokens stay."""
        return slice(length - stays, length) if self.tokens.cut == "left" else slice(0, stays)

    def _frame(self, texts: int) -> Frame:
        if texts not in self._frames:
            self._frames[texts] = Frame.of(self.tokenizer, texts)
        return self._frames[texts]


def in_text(sentences: Sequence[str]) -> list[str]:
    """Consecutive sentences or words as they stand in a text: with a space before all but the first, which
    is a part of the word to byte-level vocabularies and nothing to others.
    """
    return [f" {sentence}" if number else sentence for number, sentence in enumerate(sentences)]


def padded(rows: Sequence[Row], pad: int) -> dict[str, NDArray[np.int64]]:
    """A batch `[B, L]` by the names of a model's inputs, as long as its longest row."""
    width = max(map(len, rows))
    shape = (len(rows), width)
    ids_BL, types_BL = np.full(shape, pad, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    mask_BL = np.zeros(shape, dtype=np.int64)
    for place, row in enumerate(rows):
        ids_BL[place, : len(row)], types_BL[place, : len(row)] = row.ids, row.types
        mask_BL[place, : len(row)] = 1
    return {"input_ids": ids_BL, "attention_mask": mask_BL, "token_type_ids": types_BL}


def sequential_batches(lengths: NDArray[np.int64], *, tokens: int) -> list[NDArray[np.int64]]:
    """Every row once, the longest first, in batches of at most `tokens` tokens, padding included."""
    order = np.argsort(-lengths, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        size = max(1, tokens // int(lengths[order[start]]))
        batches.append(order[start : start + size])
        start += size
    return batches


def _checked(texts: Sequence[Any]) -> tuple[str, ...]:
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"{shown(text)} is {type(text).__name__}, not text")
        if problem := half_character(text):
            raise ValueError(f"{shown(text)} {problem}")
    return tuple(texts)
