"""What an artifact answers to a row, and how it is read from the logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillkit.runtime.description import TaskRows
from distillkit.runtime.rows import Row

Array = NDArray[Any]


@dataclass(frozen=True)
class Said:
    """What a model said of one row: logits `[V]`, or `[L, V]` where it answers tokens; exit: by which of its
    exits the row left, from 1 (None: the model is whole); written: the text, where it writes one.
    """

    logits: NDArray[np.float32]
    exit: int | None = None
    written: str = ""


@dataclass(frozen=True)
class Answer(ABC):
    """truncated: the row lost characters or tokens before it was answered; exit: as in `Said`."""

    truncated: bool = field(kw_only=True)
    exit: int | None = field(default=None, kw_only=True)

    @abstractmethod
    def cells(self) -> dict[str, Any]:
        """What fits a table: the answer in plain values, without what depends on the number of classes."""

    def as_json(self) -> dict[str, Any]:
        """Everything in plain values."""
        left = {} if self.exit is None else {"exit": self.exit}
        return {**self.cells(), "truncated": self.truncated, **left}


@dataclass(frozen=True)
class ClassAnswer(Answer):
    """The likeliest class, its probability, and that of every class by name."""

    label: str
    probability: float
    probabilities: dict[str, float]

    def cells(self) -> dict[str, Any]:
        return {"label": self.label, "probability": self.probability}

    def as_json(self) -> dict[str, Any]:
        return {**super().as_json(), "probabilities": self.probabilities}


@dataclass(frozen=True)
class ValueAnswer(Answer):
    """A number."""

    value: float

    def cells(self) -> dict[str, Any]:
        return {"value": self.value}


@dataclass(frozen=True)
class TagsAnswer(Answer):
    """A tag for each word, and its probability; None for a word that the tokenizer makes nothing of, or that
    lies past the maximal length.
    """

    tags: tuple[str | None, ...]
    probabilities: tuple[float | None, ...]

    def cells(self) -> dict[str, Any]:
        return {"tags": list(self.tags)}

    def as_json(self) -> dict[str, Any]:
        return {**super().as_json(), "probabilities": list(self.probabilities)}


@dataclass(frozen=True)
class TextAnswer(Answer):
    """A text that the model wrote."""

    written: str

    def cells(self) -> dict[str, Any]:
        return {"written": self.written}


def log_softmax(logits: Array) -> NDArray[np.float64]:
    """Over the last axis in float64, without overflow."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def class_answer(task: TaskRows, row: Row, said: Said) -> ClassAnswer:
    """The classes of the row's own task, by their probabilities."""
    odds = np.exp(log_softmax(said.logits[task.logits]))
    best = int(odds.argmax())
    by_name = dict(zip(task.labels, odds.tolist(), strict=True))
    return ClassAnswer(task.labels[best], float(odds[best]), by_name, truncated=row.cut, exit=said.exit)


def value_answer(task: TaskRows, row: Row, said: Said) -> ValueAnswer:
    return ValueAnswer(float(said.logits[task.first]), truncated=row.cut, exit=said.exit)


def text_answer(task: TaskRows, row: Row, said: Said) -> TextAnswer:
    return TextAnswer(said.written, truncated=row.cut, exit=said.exit)


def tags_answer(task: TaskRows, row: Row, said: Said) -> TagsAnswer:
    """The first piece of a word answers for it."""
    tags: list[str | None] = [None] * row.num_words
    sure: list[float | None] = [None] * row.num_words
    odds_LV = np.exp(log_softmax(said.logits[:, task.logits]))
    for word, place in row.words:
        best = int(odds_LV[place].argmax())
        tags[word], sure[word] = task.labels[best], float(odds_LV[place, best])
    return TagsAnswer(tuple(tags), tuple(sure), truncated=row.cut, exit=said.exit)


def finite(said: Sequence[Said]) -> bool:
    return all(bool(np.isfinite(one.logits).all()) for one in said)
