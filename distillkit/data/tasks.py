"""A task: its rows by split, its labels by name, and what was noticed on the way. Knows nothing of models.

A kind of task is an object (`KINDS`) that turns a cell into an answer; classification and regression are
here, token classification and text to text find their place beside them. Labels are matched by name,
never by position: ids are positions in `Labels.names`, which is sorted (numerically where all names are
whole numbers) unless the recipe gives it.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import os
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillkit.data.builtin import builtin_table
from distillkit.data.hub import hub_table
from distillkit.data.reading import (
    Problems,
    Table,
    check_file,
    find_tables,
    half_character,
    read_table,
    shown,
)
from distillkit.errors import ConfigError, DataError
from distillkit.settings import Labels, TaskSettings
from distillkit.types import IGNORED

_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")
_INTEGER = re.compile(r"-?\d+")
_DECIMAL = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?")
_MOST_CLASSES = 1000
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Rows:
    """One split. ids: `[n]` int64, stable example ids; texts: one tuple of segments per row; labels:
    `[n]` class ids (int64) or targets (float32), None where unlabelled; digest: content hash."""

    ids: NDArray[np.int64]
    texts: tuple[tuple[str, ...], ...]
    labels: NDArray[Any] | None
    digest: str

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Task:
    settings: TaskSettings
    labels: Labels
    train: Rows
    validation: Rows
    test: Rows | None
    notes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Changes with every row, every label name and the order of either."""
        splits = [self.train, self.validation] + ([self.test] if self.test is not None else [])
        return _sha(repr((self.labels, [rows.digest for rows in splits])))


class Kind(ABC):
    """What a task predicts: how cells become answers."""

    @abstractmethod
    def labels(self, settings: TaskSettings, train: Table) -> Labels:
        """The task's labels, found in the training rows or given."""

    @abstractmethod
    def answer(self, cell: Any, labels: Labels) -> int | float:
        """The answer of one cell; raises ValueError with the reason where there is none."""

    @abstractmethod
    def array(self, answers: Sequence[int | float]) -> NDArray[Any]:
        """Answers as an array of the dtype that losses expect."""

    def anchors(self, rows: Rows) -> NDArray[np.int64]:
        """Positions of rows that training cannot do without: here the first."""
        return np.zeros(1, dtype=np.int64)


class Classification(Kind):
    """One class per row. A cell is a string, a whole number or a boolean; its text is the class name."""

    def labels(self, settings: TaskSettings, train: Table) -> Labels:
        found = {name for name in map(_class_name, train.columns[settings.label]) if name}
        _one_type(train, settings)
        if settings.labels is not None:
            _check_listed(settings.labels, found)
            return Labels(kind="classification", names=settings.labels)
        found = {name for name in found if not (_INTEGER.fullmatch(name) and name.startswith("-"))}
        if len(found) == 1 and not settings.allow_single_class:
            raise DataError(
                f"all training rows have the label {shown(next(iter(found)))}",
                where=str(train.path),
                hint="set task.allow_single_class: true to go on",
            )
        numeric = all(_INTEGER.fullmatch(name) for name in found)
        names = sorted(found, key=lambda name: (int(name), name)) if numeric else sorted(found)
        if len(names) > _MOST_CLASSES:
            raise DataError(
                f"{len(names)} different labels",
                where=f"{train.path}, column {settings.label!r}",
                hint="is this the label column?",
            )
        return Labels(kind="classification", names=tuple(names))

    def answer(self, cell: Any, labels: Labels) -> int:
        if isinstance(cell, list | dict):
            raise ValueError(f"{shown(cell)} is not one class")
        if isinstance(cell, float):
            raise ValueError(f"{cell!r} is not a class; use task.kind: regression?")
        name = _class_name(cell)
        if not name:
            raise ValueError("the label is missing")
        if surrogate := half_character(name):
            raise ValueError(surrogate)
        if name not in labels.names:
            known = ", ".join(map(shown, labels.names[:10]))
            range_note = f", 0 to {labels.num_labels - 1}" if _INTEGER.fullmatch(name) else ""
            count = labels.num_labels
            raise ValueError(
                f"label {shown(name)} is not one of the task's {count} labels ({known}{range_note})"
            )
        return labels.names.index(name)

    def array(self, answers: Sequence[int | float]) -> NDArray[Any]:
        return np.asarray(answers, dtype=np.int64)

    def anchors(self, rows: Rows) -> NDArray[np.int64]:
        """The first row of every class."""
        first: NDArray[np.int64] = np.unique(rows.labels, return_index=True)[1]  # type: ignore[call-overload]
        return first


class Regression(Kind):
    """One finite number per row."""

    def labels(self, settings: TaskSettings, train: Table) -> Labels:
        if settings.labels is not None:
            raise ConfigError(
                "regression has no label names",
                where="task.labels",
                hint="leave it out, or set kind: classification",
            )
        return Labels(kind="regression")

    def answer(self, cell: Any, labels: Labels) -> float:
        if cell is None or cell == "":
            raise ValueError("the target is missing")
        try:
            if isinstance(cell, bool) or "_" in str(cell):
                raise ValueError
            value = float(cell)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{shown(cell)} is not a number") from None
        if not abs(value) <= _LARGEST:
            raise ValueError(f"the target {shown(cell)} is not a finite number (of 32 bits)")
        return value

    def array(self, answers: Sequence[int | float]) -> NDArray[Any]:
        return np.asarray(answers, dtype=np.float32)


class _Unlabelled(Kind):
    """Rows that have no answers."""

    def labels(self, settings: TaskSettings, train: Table) -> Labels:
        raise NotImplementedError("rows without labels name none")

    def answer(self, cell: Any, labels: Labels) -> int:
        return IGNORED

    def array(self, answers: Sequence[int | float]) -> NDArray[Any]:
        return np.asarray(answers, dtype=np.int64)


KINDS: Mapping[str, Kind] = {"classification": Classification(), "regression": Regression()}


def load_task(settings: TaskSettings, *, base: Path, seed: int) -> Task:
    """Read, check and label every split. Raises DataError (3) or ConfigError (2), all bad rows of a file
    at once."""
    kind = KINDS[settings.kind]
    tables = {"train": _table(settings, settings.train, "train", base)}
    for split in ("validation", "test"):
        source = getattr(settings, split)
        if source is not None:
            tables[split] = _table(settings, source, split, base)
        elif _brings(settings.train, split, base):
            tables[split] = _table(settings, settings.train, split, base)
    labels = kind.labels(settings, tables["train"])
    notes = [note for table in tables.values() for note in table.notes]
    splits = {}
    for split, table in tables.items():
        splits[split], more = _rows(settings, kind, labels, table)
        notes += more
    if "validation" not in splits:
        rows = splits["train"]
        anchors = kind.anchors(rows)
        splits["train"], splits["validation"] = _hold_out(rows, anchors, settings.holdout, seed)
        notes.append(
            f"no validation rows given: {len(splits['validation'])} rows held out of train (seed {seed})"
        )
    notes += _leaks(splits)
    _classes_seen(settings, labels, splits, notes)
    return Task(settings, labels, splits["train"], splits["validation"], splits.get("test"), tuple(notes))


def load_unlabelled(settings: TaskSettings, source: str, *, base: Path) -> tuple[Rows, tuple[str, ...]]:
    """Rows of the task's own form without labels, and what was noticed; a label column is not read. Raises
    DataError (3), or ConfigError (2) for a text column that is not there.
    """
    columns, skip = text_columns(settings), settings.on_bad_row == "skip"
    table = read_table(
        base / source, columns, encoding=settings.encoding, delimiter=settings.delimiter, skip=skip
    )
    cells = {**table.columns, settings.label: [None] * len(table.lines)}
    rows, notes = _rows(settings, _Unlabelled(), Labels(kind="regression"), replace(table, columns=cells))
    return replace(rows, labels=None), (*table.notes, *notes)


def _brings(source: str, split: str, base: Path) -> bool:
    """Whether a source of training rows has that split of its own."""
    if source.startswith("builtin:"):
        return split == "validation"
    path = base / source
    return path.is_dir() and split in find_tables(path)


def text_columns(settings: TaskSettings) -> tuple[str, ...]:
    return (settings.text,) if isinstance(settings.text, str) else settings.text


def _table(settings: TaskSettings, source: str, split: str, base: Path) -> Table:
    columns = [*text_columns(settings), settings.label]
    if len(set(columns)) < len(columns):
        raise ConfigError(
            f"a column is named twice: {columns}",
            where="task.text, task.label",
            hint="text and label are different columns",
        )
    skip = settings.on_bad_row == "skip"
    if source.startswith("builtin:"):
        return builtin_table(source.removeprefix("builtin:"), split, columns)
    if source.startswith("hf:"):
        return hub_table(source.removeprefix("hf:"), split, columns)
    if any(sign in source for sign in "*?[") and not os.path.lexists(base / source):
        raise ConfigError(
            f"{source!r} is a pattern",
            where=f"task.{split}",
            hint="name one file, or a folder with train, validation and test files",
        )
    path = base / source
    if path.is_dir():
        files = find_tables(path)
        if split not in files:
            check_file(path)
        path = files[split]
    return read_table(path, columns, encoding=settings.encoding, delimiter=settings.delimiter, skip=skip)


def _rows(settings: TaskSettings, kind: Kind, labels: Labels, table: Table) -> tuple[Rows, list[str]]:
    problems = Problems(table.path, settings.on_bad_row == "skip")
    names = text_columns(settings)
    seen: Counter[str] = Counter()
    first: dict[str, int] = {}
    texts, answers, ids = [], [], []
    cells = zip(
        table.lines, *(table.columns[name] for name in names), table.columns[settings.label], strict=True
    )
    for row, (line, *segments, label) in enumerate(cells):
        bad = next(
            (
                reason
                for name, text in zip(names, segments, strict=True)
                if (reason := _text_problem(name, text))
            ),
            "",
        )
        if bad:
            problems.add(line, bad)
            continue
        try:
            answer = kind.answer(label, labels)
        except ValueError as error:
            problems.add(
                line,
                f"column {settings.label!r}: {error}",
                "set task.on_bad_row: skip to leave such rows out",
            )
            continue
        for oddity in _oddities(segments, settings.max_chars):
            seen[oddity] += 1
            first.setdefault(oddity, line)
        texts.append(tuple(text[: settings.max_chars] for text in segments))
        answers.append(answer)
        ids.append(row)
    notes = [
        *problems.finish(),
        *(f"{table.path}: {count} rows {what}, first at line {first[what]}" for what, count in seen.items()),
    ]
    if not texts:
        raise DataError("no usable rows are left", where=str(table.path))
    digest = _sha(
        repr((table.digest, names, settings.label, settings.max_chars, settings.on_bad_row, labels))
    )
    return Rows(np.asarray(ids, dtype=np.int64), tuple(texts), kind.array(answers), digest), notes


def _text_problem(name: str, text: Any) -> str:
    if text is None:
        return f"column {name!r} is missing"
    if not isinstance(text, str):
        return f"column {name!r} is {type(text).__name__} {shown(text)}, not text"
    surrogate = half_character(text)
    return f"column {name!r} {surrogate}" if surrogate else ""


def _oddities(segments: Sequence[str], max_chars: int) -> list[str]:
    found = []
    if any(not text.strip() for text in segments):
        found.append("have an empty text")
    if any("\0" in text for text in segments):
        found.append("hold a NUL character")
    if any(len(text) > max_chars for text in segments):
        found.append(f"are cut at {max_chars} characters (task.max_chars)")
    if any("\x1b" in text or _BIDI.search(text) for text in segments):
        found.append("hold terminal escapes or direction marks (shown escaped)")
    return found


def _class_name(cell: Any) -> str:
    if cell is None or isinstance(cell, list | dict) or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    return cell.strip() if isinstance(cell, str) else str(cell)


def _check_listed(names: tuple[str, ...], found: set[str]) -> None:
    """The recipe's list and the training rows name the same classes, each once."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ConfigError(
            f"label {shown(twice[0])} is listed twice", where="task.labels", hint="a label is one class"
        )
    unused = [name for name in names if name not in found]
    if unused:
        close = difflib.get_close_matches(unused[0], found - set(names), n=1)
        hint = f"did you mean {shown(close[0])}? " if close else ""
        raise ConfigError(
            f"no training row has the label {', '.join(map(shown, unused[:10]))}",
            where="task.labels",
            hint=f"{hint}found: {', '.join(map(shown, sorted(found)[:10]))}",
        )


def _one_type(table: Table, settings: TaskSettings) -> None:
    """Refuse decimals, and labels of several types: 0 and "zero" in one column are a mistake, not two
    classes.

    A list of names in the recipe says that digits and decimals are names; JSON types must agree all the same.
    """
    first: dict[str, tuple[int, Any]] = {}
    for line, cell in zip(table.lines, table.columns[settings.label], strict=True):
        if cell is not None and cell != "":
            kind = type(cell).__name__ if settings.labels is not None else _label_type(cell)
            first.setdefault(kind, (line, cell))
    hint = "write them one way, or list the names in task.labels"
    if "decimal" in first:
        line, cell = first["decimal"]
        raise DataError(
            f"{shown(cell)} is not a class; use task.kind: regression?",
            where=f"{table.path}:{line}",
            hint=hint,
        )
    if len(first) > 1:
        places = "; ".join(f"{shown(cell)} at line {line}" for line, cell in first.values())
        raise DataError(
            f"column {settings.label!r} mixes types of labels: {places}",
            where=f"{table.path}:{max(line for line, _ in first.values())}",
            hint=hint,
        )


def _label_type(cell: Any) -> str:
    """The JSON type of a label; strings are told apart by what they spell."""
    if not isinstance(cell, str):
        return type(cell).__name__
    if _INTEGER.fullmatch(cell.strip()):
        return "digits"
    return "decimal" if _DECIMAL.fullmatch(cell.strip()) else "text"


def _hold_out(rows: Rows, anchors: NDArray[np.int64], share: float, seed: int) -> tuple[Rows, Rows]:
    """Random rows of train as validation; equal texts stay on one side, rows equal to an anchor in train."""
    number: dict[tuple[str, ...], int] = {}
    group = np.array([number.setdefault(texts, len(number)) for texts in rows.texts])
    sizes = np.bincount(group)
    sizes[group[anchors]] = 0
    order = np.random.default_rng([seed, 0x686F6C64]).permutation(len(sizes))
    order = order[sizes[order] > 0]
    if len(order) == 0:
        raise DataError(
            f"{len(rows)} rows are too few to hold any out",
            where="task.validation",
            hint="give a validation file",
        )
    enough = int(np.searchsorted(np.cumsum(sizes[order]), max(1, round(share * len(rows))))) + 1
    held_out = np.isin(group, order[:enough])
    return _take(rows, np.flatnonzero(~held_out), "train"), _take(
        rows, np.flatnonzero(held_out), "validation"
    )


def _take(rows: Rows, index: NDArray[np.int64], name: str) -> Rows:
    labels = None if rows.labels is None else rows.labels[index]
    digest = _sha(rows.digest + name + hashlib.sha256(index.tobytes()).hexdigest())
    return Rows(rows.ids[index], tuple(rows.texts[i] for i in index), labels, digest)


def _leaks(splits: Mapping[str, Rows]) -> list[str]:
    known = set(splits["train"].texts)
    counts = {
        name: sum(texts in known for texts in rows.texts) for name, rows in splits.items() if name != "train"
    }
    return [
        f"{count} of {len(splits[name])} {name} rows ({count / len(splits[name]):.1%}) also stand in train"
        for name, count in counts.items()
        if count
    ]


def _classes_seen(
    settings: TaskSettings, labels: Labels, splits: Mapping[str, Rows], notes: list[str]
) -> None:
    if labels.kind != "classification":
        return
    trained = {int(label) for label in splits["train"].labels}  # type: ignore[union-attr]
    for name, rows in splits.items():
        unseen = {int(label) for label in rows.labels} - trained  # type: ignore[union-attr]
        if unseen:
            names = ", ".join(repr(labels.names[label]) for label in sorted(unseen))
            raise DataError(
                f"labels {names} stand in {name} but never in train",
                where=f"task.{name}",
                hint="a class that is never trained cannot be predicted",
            )
    never = [name for index, name in enumerate(labels.names) if index not in trained]
    if never:
        notes.append(f"labels never seen in train: {', '.join(map(repr, never))}")
    if len(trained) == 1 and not settings.allow_single_class:
        raise DataError(
            f"all training rows have the label {labels.names[trained.pop()]!r}",
            where="task.train",
            hint="set task.allow_single_class: true to go on",
        )


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
