"""A file of answers as the teacher: what another model, a service or people said of each row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from distillkit.blackbox import BlackBoxTeacher, log_probabilities, named_once
from distillkit.data.reading import (
    Problems,
    Table,
    check_file,
    column_names,
    file_digest,
    read_table,
    shown,
)
from distillkit.data.tasks import KINDS, Rows, row_id
from distillkit.data.tokenizers import brought_or_trained, tokenizer_key
from distillkit.errors import ConfigError, DataError
from distillkit.model import Teacher, TeacherSource
from distillkit.registry import did_you_mean
from distillkit.settings import Columns, Count, File, Folder, Labels
from distillkit.types import Access, Batch

Key = int | tuple[str, ...]
"""What a row is found by: its id, or its texts."""


class Predictions(TeacherSource):
    """A file with an answer for every row of the task: one class, or a score for each class.

    Rows are matched by `id` where that is given (`task.id` names the same column in the task's files), else
    by their texts, so that the order of the file does not matter. Every row that is trained or measured on
    needs an answer.

    Settings:
        path: File (csv, tsv, jsonl, parquet, each also .gz) of answers.
        text: Column with the text, or two for a pair; what rows are matched by without `id`.
        id: Column with the row's id, which `task.id` names in the task's files.
        label: Column with the class that it answers; the teacher then gives LABELS.
        score: Column with the number that it answers, for regression. Without `label` and `score` there is a
            column for each class, called by the name of the class.
        scale: What the columns of the classes hold, probabilities or logits.
        tokenizer: Folder of the tokenizer that the student reads with; without it, a WordPiece is trained on
            the task's training texts.
        vocab_size: Entries of the tokenizer that is trained.
    """

    reads_tokens = False

    def __init__(
        self,
        *,
        path: File,
        text: Columns = "text",
        id: str | None = None,
        label: str | None = None,
        score: str | None = None,
        scale: Literal["probabilities", "logits"] = "probabilities",
        tokenizer: Folder | None = None,
        vocab_size: Count = 8192,
    ) -> None:
        if label is not None and score is not None:
            raise ConfigError(
                "an answer is a class or a number, not both", where="teacher.score", hint="leave one out"
            )
        self.path, self.id, self.label, self.score, self.scale = Path(path), id, label, score, scale
        self.text = (text,) if isinstance(text, str) else tuple(text)
        self.folder, self.vocab_size = tokenizer, vocab_size
        self.access = Access.LABELS if label is not None else Access.SCORES
        self.rows_only = "text" if id is None else "id"

    def fingerprint(self) -> str:
        check_file(self.path)
        return f"{file_digest(self.path)} {tokenizer_key(self.folder)}"

    def tokenizer(self, corpus: Iterable[str]) -> PreTrainedTokenizerBase:
        return brought_or_trained(self.folder, corpus, self.vocab_size)

    def teacher(self, folder: Path, labels: Labels) -> Teacher:
        keys = (self.id,) if self.id is not None else self.text
        columns = self._answers(labels)
        found = column_names(self.path)
        for name in (*keys, *columns):
            if name not in found:
                raise ConfigError(
                    f"column {name!r} is not in {self.path}",
                    where="teacher",
                    hint=did_you_mean(name, found),
                )
        table = read_table(self.path, list(dict.fromkeys((*keys, *columns))))
        return PredictionsTeacher(self, table, keys, columns, labels)

    def _answers(self, labels: Labels) -> tuple[str, ...]:
        """The columns that hold the answer."""
        if labels.kind == "regression":
            if self.score is None:
                raise ConfigError(
                    "the task is a regression, and no column holds its answer",
                    where="teacher.score",
                    hint="name the column of the predicted number",
                )
            return (self.score,)
        if self.score is not None:
            raise ConfigError(
                f"the task is {labels.kind}, whose answers are classes",
                where="teacher.score",
                hint="name the class's column as teacher.label, or have one column for each class",
            )
        return (self.label,) if self.label is not None else labels.names


class PredictionsTeacher(BlackBoxTeacher):
    """Looks the answers up. Raises DataError for rows that have none, and for a file that holds bad ones."""

    live = False

    def __init__(
        self,
        source: Predictions,
        table: Table,
        keys: Sequence[str],
        columns: Sequence[str],
        labels: Labels,
    ) -> None:
        super().__init__(labels, source.access)
        self._source = source
        self._place: dict[Key, int] = {}
        problems, rows = Problems(source.path, skip=False), []
        values: list[NDArray[np.float32]] = []
        for row, line in enumerate(table.lines):
            try:
                key = self._key([table.columns[name][row] for name in keys])
                value = self._value([table.columns[name][row] for name in columns], columns)
            except ValueError as error:
                problems.add(line, str(error))
                continue
            place = self._place.setdefault(key, len(values))
            if place == len(values):
                values.append(value)
                rows.append(line)
            elif not np.array_equal(values[place], value):
                said = "its id" if source.id is not None else "its text"
                problems.add(line, f"{said} stands at line {rows[place]} too, with another answer")
        problems.finish()
        self._answers = np.stack(values)
        self._cut: dict[int, dict[Key, int]] = {}

    def check_rows(self, rows: Rows, name: str) -> None:
        places = range(len(rows))
        missing = [row for row in places if self._find(rows.ids[row], rows.texts[row]) is None]
        if missing:
            raise self._missing(len(missing), f"{len(rows):,} {name} rows", rows.texts[missing[0]])

    def answers(self, batch: Batch) -> NDArray[np.float32]:
        assert batch.texts is not None
        found = []
        for id_, texts in zip(batch.ids.tolist(), batch.texts, strict=True):
            place = self._find(id_, texts)
            if place is None:
                raise self._missing(1, "the rows of a batch", texts)
            found.append(place)
        answers: NDArray[np.float32] = self._answers[found]
        return answers

    def _find(self, id_: int, texts: tuple[str, ...]) -> int | None:
        """Where the answer to a row stands. A task may have cut its text (`task.max_chars`)."""
        if self._source.id is not None:
            return self._place.get(int(id_))
        found = self._place.get(texts)
        longest = max(map(len, texts))
        if found is None and longest < self._longest:
            if longest not in self._cut:
                self._cut[longest] = {
                    tuple(text[:longest] for text in key): place
                    for key, place in self._place.items()
                    if isinstance(key, tuple)
                }
            found = self._cut[longest].get(texts)
        return found

    @cached_property
    def _longest(self) -> int:
        """Characters of the longest text in the file."""
        return max(len(text) for key in self._place if isinstance(key, tuple) for text in key)

    def _key(self, cells: Sequence[Any]) -> Key:
        if self._source.id is not None:
            return row_id(cells[0])
        return KINDS[self.labels.kind].texts(self._source.text, cells)

    def _value(self, cells: Sequence[Any], columns: Sequence[str]) -> NDArray[np.float32]:
        """`[V]` logits, or `[1]` the number."""
        kind = KINDS[self.labels.kind]
        if self._source.label is not None:
            class_id = kind.answer(cells[0], self.labels, ())
            answers = named_once([class_id], self.labels.num_labels)
            return answers.reshape(-1)
        numbers = [_number(cell, name) for cell, name in zip(cells, columns, strict=True)]
        if self.labels.kind == "regression" or self._source.scale == "logits":
            return np.asarray(numbers, dtype=np.float32)
        return log_probabilities(np.asarray([numbers])).reshape(-1)

    def _missing(self, count: int, among: str, texts: tuple[str, ...]) -> DataError:
        by = f"by column {self._source.id!r}" if self._source.id is not None else "by their texts"
        first = " | ".join(shown(text) for text in texts)
        return DataError(
            f"there is no answer for {count:,} of {among} (matched {by}); the first is {first}",
            where=str(self._source.path),
            hint="every row that is trained or measured on needs one",
        )


def _number(cell: Any, column: str) -> float:
    try:
        if isinstance(cell, bool | None) or "_" in str(cell):
            raise ValueError
        value = float(cell)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"column {column!r}: {shown(cell)} is not a number") from None
    if not abs(value) <= float(np.finfo(np.float32).max):
        raise ValueError(f"column {column!r}: {shown(cell)} is not a finite number (of 32 bits)")
    return value
