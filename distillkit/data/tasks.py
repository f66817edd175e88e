"""A task: its rows by split, its labels by name, and what was noticed on the way. Knows nothing of models.

A kind of task is an object (`KINDS`) that reads a source and turns its cells into texts and answers. Labels
are matched by name, never by position: ids are positions in `Labels.names`, which is sorted (numerically
where all names are whole numbers) unless the recipe gives it.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import os
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillkit.data import layouts
from distillkit.data.builtin import builtin_table
from distillkit.data.corpora import corpus_digest, documents
from distillkit.data.hub import hub_table
from distillkit.data.layouts import Documents, Layout, Segments, Words
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
from distillkit.settings import Labels, SeveralTasks, TaskSettings

_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")
_SPAN_TAG = re.compile(r"O|[BIESLU]-.+")
_INTEGER = re.compile(r"-?\d+")
_DECIMAL = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?")
_MOST_CLASSES = 1000
_HASHED = 2**60
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class TaskOfRows:
    """Which of several tasks each row is of, and which classes are whose.

    task: `[n]` int64; classes: `[T, V]` bool; exponent: rows of a task are drawn in proportion to their
    number to this power (see `drawn_rows`).
    """

    task: NDArray[np.int64]
    classes: NDArray[np.bool_]
    exponent: float

    def take(self, index: NDArray[np.int64]) -> TaskOfRows:
        return replace(self, task=self.task[index])

    def joined(self, more: TaskOfRows) -> TaskOfRows:
        """Of these rows, and after them of more."""
        return replace(self, task=np.concatenate([self.task, more.task]))

    def allowed(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """`[B, V]` the classes that each of some rows may have."""
        allowed: NDArray[np.bool_] = self.classes[self.task[rows]]
        return allowed


@dataclass(frozen=True)
class Rows:
    """One split. ids: `[n]` int64, stable example ids (rows of the file, or `row_id`); texts: a tuple per
    row, of its segments, words or sentences; labels: `[n]` class ids (int64), targets (float32) or texts
    (object), for words one after the other, None where unlabelled; digest: content hash; layout: how rows
    become tokens; tasks: which of several tasks each row is of.
    """

    ids: NDArray[np.int64]
    texts: tuple[tuple[str, ...], ...]
    labels: NDArray[Any] | None
    digest: str
    layout: Layout = Segments()  # noqa: RUF009 - frozen
    tasks: TaskOfRows | None = None

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def every_text(self) -> Iterator[str]:
        """What is read of the rows, and what is to be written."""
        yield from chain.from_iterable(self.texts)
        yield from self.layout.targets(self.labels)

    def take(self, index: NDArray[np.int64], name: str) -> Rows:
        """The chosen rows, called `name`."""
        labels = None if self.labels is None else self.layout.take(self.texts, self.labels, index)
        digest = _sha(self.digest + name + hashlib.sha256(index.tobytes()).hexdigest())
        return replace(
            self,
            ids=self.ids[index],
            texts=tuple(self.texts[row] for row in index),
            labels=labels,
            digest=digest,
            tasks=None if self.tasks is None else self.tasks.take(index),
        )


@dataclass(frozen=True)
class Task:
    settings: TaskSettings | SeveralTasks
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
    """What a task predicts: how a source is read and its cells become texts and answers."""

    too_few = "give a validation file"
    """What helps where no row can be held out."""

    @abstractmethod
    def labels(self, settings: TaskSettings, train: Table) -> Labels:
        """The task's labels, found in the training rows or given."""

    @abstractmethod
    def answer(self, cell: Any, labels: Labels, texts: tuple[str, ...]) -> Any:
        """The answer of one label cell; raises ValueError with the reason where there is none."""

    @abstractmethod
    def array(self, answers: Sequence[Any]) -> NDArray[Any] | None:
        """Answers as an array of the dtype that losses expect."""

    def layout(self, settings: TaskSettings, seed: int) -> Layout:
        """How its rows become tokens."""
        return Segments()

    def read(self, settings: TaskSettings, source: str, split: str, base: Path) -> Table:
        """The cells of one split."""
        return _table(settings, source, split, base)

    def brings(self, source: str, split: str, base: Path) -> bool:
        """Whether a source of training rows has that split of its own."""
        if source.startswith("builtin:"):
            return split == "validation"
        path = base / source
        return path.is_dir() and split in find_tables(path)

    def texts(self, columns: Sequence[str], cells: Sequence[Any]) -> tuple[str, ...]:
        """The texts of one row; raises ValueError with the reason where a cell is none."""
        for name, cell in zip(columns, cells, strict=True):
            if reason := _text_problem(name, cell):
                raise ValueError(reason)
        return tuple(cells)

    def unlabelled(self, document: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """The rows that a document of sentences makes."""
        return ((sentence,) for sentence in document)

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
        _check_number(len(names), settings, train)
        return Labels(kind="classification", names=tuple(names))

    def answer(self, cell: Any, labels: Labels, texts: tuple[str, ...]) -> int:
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

    def array(self, answers: Sequence[Any]) -> NDArray[Any]:
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

    def answer(self, cell: Any, labels: Labels, texts: tuple[str, ...]) -> float:
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

    def array(self, answers: Sequence[Any]) -> NDArray[Any]:
        return np.asarray(answers, dtype=np.float32)


class TokenClassification(Kind):
    """One tag per word. The cells of a row are a list of words and a list of as many tags, all strings."""

    def layout(self, settings: TaskSettings, seed: int) -> Layout:
        return Words()

    def read(self, settings: TaskSettings, source: str, split: str, base: Path) -> Table:
        return _table(settings, source, split, base, lists=True)

    def labels(self, settings: TaskSettings, train: Table) -> Labels:
        lists = [cell for cell in train.columns[settings.label] if isinstance(cell, list)]
        found = {tag for tags in lists for tag in tags if isinstance(tag, str) and tag}
        if settings.labels is not None:
            _check_listed(settings.labels, found)
        names = settings.labels or tuple(sorted(found))
        if settings.metric == "entity_f1" and not begins_entities(names):
            raise ConfigError(
                f"the tags begin no entities: {', '.join(map(shown, names[:10]))}",
                where="task.metric",
                hint="entity_f1 is for tags like B-person, I-person and O; use accuracy or macro_f1",
            )
        _check_number(len(names), settings, train)
        return Labels(kind="token_classification", names=names)

    def texts(self, columns: Sequence[str], cells: Sequence[Any]) -> tuple[str, ...]:
        (name,), (words,) = columns, cells
        if not isinstance(words, list):
            raise ValueError(f"column {name!r} is {type(words).__name__} {shown(words)}, not a list of words")
        if not words:
            raise ValueError(f"column {name!r} is an empty list")
        for place, word in enumerate(words, start=1):
            if reason := _text_problem(name, word):
                raise ValueError(f"word {place}: {reason}")
        return tuple(words)

    def unlabelled(self, document: Sequence[str]) -> Iterator[tuple[str, ...]]:
        return (tuple(sentence.split()) for sentence in document)

    def answer(self, cell: Any, labels: Labels, texts: tuple[str, ...]) -> list[int]:
        if not isinstance(cell, list):
            raise ValueError(f"{shown(cell)} is not a list of tags")
        if len(cell) != len(texts):
            raise ValueError(f"{len(cell)} tags for {len(texts)} words")
        for place, tag in enumerate(cell, start=1):
            if not isinstance(tag, str) or not tag:
                raise ValueError(f"tag {place} is {shown(tag)}, not a name")
            if tag not in labels.names:
                known = ", ".join(map(shown, labels.names[:10]))
                raise ValueError(
                    f"tag {place}, {shown(tag)}, is not one of the task's {len(labels.names)} tags ({known})"
                )
        return [labels.names.index(tag) for tag in cell]

    def array(self, answers: Sequence[Any]) -> NDArray[Any]:
        return np.fromiter(chain.from_iterable(answers), dtype=np.int64)

    def anchors(self, rows: Rows) -> NDArray[np.int64]:
        """The first row of every tag."""
        assert rows.labels is not None
        row_of_word = np.repeat(np.arange(len(rows)), list(map(len, rows.texts)))
        first = np.unique(rows.labels, return_index=True)[1]
        anchors: NDArray[np.int64] = np.unique(row_of_word[first])
        return anchors


class MaskedLanguageModel(Kind):
    """The tokens that are masked in the documents of a corpus; a row is a document, a tuple of its
    sentences.
    """

    too_few = "give a validation corpus, or set documents apart by blank lines"

    def layout(self, settings: TaskSettings, seed: int) -> Layout:
        return Documents(seed, settings.mask_rate, settings.scored)

    def read(self, settings: TaskSettings, source: str, split: str, base: Path) -> Table:
        if settings.id is not None:
            raise ConfigError("a corpus has no ids", where="task.id", hint="leave it out")
        texts: list[Any] = list(documents(source, base=base))
        columns = {name: texts for name in text_columns(settings)} | {settings.label: [None] * len(texts)}
        digest = corpus_digest(source, base=base)
        return Table(Path(source), columns, list(range(1, len(texts) + 1)), digest)

    def brings(self, source: str, split: str, base: Path) -> bool:
        """All files of a corpus's folder are training text."""
        return False

    def labels(self, settings: TaskSettings, train: Table) -> Labels:
        return Labels(kind="mlm")

    def texts(self, columns: Sequence[str], cells: Sequence[Any]) -> tuple[str, ...]:
        return tuple(cells[0])

    def unlabelled(self, document: Sequence[str]) -> Iterator[tuple[str, ...]]:
        return iter((tuple(document),))

    def answer(self, cell: Any, labels: Labels, texts: tuple[str, ...]) -> None:
        return None

    def array(self, answers: Sequence[Any]) -> None:
        """Labels come into being with the masks."""
        return None


class TextToText(Kind):
    """Another text for each text. The cells of a row are the source and the target."""

    def layout(self, settings: TaskSettings, seed: int) -> Layout:
        return layouts.TextToText(settings.prefix, settings.longest_target)

    def labels(self, settings: TaskSettings, train: Table) -> Labels:
        return Labels(kind="text_to_text")

    def answer(self, cell: Any, labels: Labels, texts: tuple[str, ...]) -> str:
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            raise ValueError("the target is missing")
        if not isinstance(cell, str):
            raise ValueError(f"the target is {type(cell).__name__} {shown(cell)}, not text")
        if surrogate := half_character(cell):
            raise ValueError(surrogate)
        return cell

    def array(self, answers: Sequence[Any]) -> NDArray[Any]:
        return np.asarray(answers, dtype=object)


class _Unlabelled(Kind):
    """Whole texts that no answer stands beside; a label column is not read."""

    def read(self, settings: TaskSettings, source: str, split: str, base: Path) -> Table:
        table = read_table(
            base / source,
            text_columns(settings),
            encoding=settings.encoding,
            delimiter=settings.delimiter,
            skip=settings.on_bad_row == "skip",
        )
        nothing: list[Any] = [None] * len(table.lines)
        return replace(table, columns={**table.columns, settings.label: nothing})

    def labels(self, settings: TaskSettings, train: Table) -> Labels:
        return Labels(kind=settings.kind)

    def answer(self, cell: Any, labels: Labels, texts: tuple[str, ...]) -> None:
        return None

    def array(self, answers: Sequence[Any]) -> None:
        return None


KINDS: Mapping[str, Kind] = {
    "classification": Classification(),
    "regression": Regression(),
    "token_classification": TokenClassification(),
    "mlm": MaskedLanguageModel(),
    "text_to_text": TextToText(),
}


def begins_entities(names: Sequence[str]) -> bool:
    """Whether tags are like B-person, I-person and O, so that they name spans (BIO, IOBES, BILOU)."""
    return any(name.startswith("B-") for name in names) and all(map(_SPAN_TAG.fullmatch, names))


def load_task(settings: TaskSettings, *, base: Path, seed: int) -> Task:
    """Read, check and label every split. Raises DataError (3) or ConfigError (2), all bad rows of a file
    at once."""
    kind = KINDS[settings.kind]
    tables = {"train": kind.read(settings, settings.train, "train", base)}
    for split in ("validation", "test"):
        source = getattr(settings, split)
        if source is not None:
            tables[split] = kind.read(settings, source, split, base)
        elif kind.brings(settings.train, split, base):
            tables[split] = kind.read(settings, settings.train, split, base)
    layout = kind.layout(settings, seed)
    labels = kind.labels(settings, tables["train"])
    notes = [note for table in tables.values() for note in table.notes]
    splits = {}
    for split, table in tables.items():
        rows, more = _rows(settings, kind, labels, table)
        splits[split] = replace(rows, layout=layout, digest=_sha(f"{rows.digest} {layout}"))
        notes += more
    _named_once(settings, splits)
    if "validation" not in splits:
        rows = splits["train"]
        anchors = kind.anchors(rows)
        chosen_by = seed if settings.holdout_seed is None else settings.holdout_seed
        splits["train"], splits["validation"] = _hold_out(settings, rows, anchors, chosen_by)
        notes.append(
            f"no validation rows given: {len(splits['validation'])} rows held out of train (seed {chosen_by})"
        )
    notes += _leaks(splits)
    _classes_seen(settings, labels, splits, notes)
    return Task(settings, labels, splits["train"], splits["validation"], splits.get("test"), tuple(notes))


def unlabelled_rows(task: Task, documents: Iterable[Sequence[str]], digest: str) -> Rows:
    """The documents of a corpus as rows of a task without labels; `digest` is the corpus's."""
    kind = KINDS[task.labels.kind]
    texts = tuple(texts for document in documents for texts in kind.unlabelled(document))
    return Rows(np.arange(len(texts)), texts, None, digest, task.train.layout)


def load_unlabelled(
    settings: TaskSettings | SeveralTasks, source: str, *, base: Path
) -> tuple[Rows, tuple[str, ...]]:
    """The rows of a file in the form of the task's own, without labels, and what was noticed.

    Raises DataError (3), or ConfigError (2) for a text column that is not there, or where there are several
    tasks.
    """
    if isinstance(settings, SeveralTasks):
        raise ConfigError(
            "unlabelled rows would be of none of several tasks",
            where="distill.unlabelled",
            hint="leave it out",
        )
    kind = _Unlabelled()
    table = kind.read(settings, source, "train", base)
    rows, notes = _rows(settings, kind, kind.labels(settings, table), table)
    return rows, (*table.notes, *notes)


def row_id(cell: Any) -> int:
    """The number of what a cell of an id column says: a whole number below 2^60 is itself, other text is
    hashed to one from there on. Raises ValueError with the reason where it names nothing.
    """
    if isinstance(cell, list | dict | bool | float) or cell is None or not str(cell).strip():
        raise ValueError(f"the id is {shown(cell)}, not a name or a whole number")
    name = str(cell).strip()
    if name.isascii() and name.isdigit() and str(int(name)) == name and int(name) < _HASHED:
        return int(name)
    hashed = hashlib.blake2b(name.encode("utf-8", "backslashreplace"), digest_size=8).digest()
    return _HASHED + int.from_bytes(hashed, "big") % _HASHED


def text_columns(settings: TaskSettings) -> tuple[str, ...]:
    return (settings.text,) if isinstance(settings.text, str) else settings.text


def _table(settings: TaskSettings, source: str, split: str, base: Path, *, lists: bool = False) -> Table:
    columns = [*text_columns(settings), settings.label, *([settings.id] if settings.id is not None else [])]
    if len(set(columns)) < len(columns):
        raise ConfigError(
            f"a column is named twice: {columns}",
            where="task.text, task.label, task.id",
            hint="text, label and id are different columns",
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
    return read_table(
        path, columns, encoding=settings.encoding, delimiter=settings.delimiter, skip=skip, lists=lists
    )


def _rows(settings: TaskSettings, kind: Kind, labels: Labels, table: Table) -> tuple[Rows, list[str]]:
    problems = Problems(table.path, settings.on_bad_row == "skip")
    names = text_columns(settings)
    seen: Counter[str] = Counter()
    first: dict[str, int] = {}
    named: dict[int, int] = {}
    texts, answers = [], []
    names_of_rows = table.columns.get(settings.id) if settings.id is not None else None
    cells = zip(
        table.lines, *(table.columns[name] for name in names), table.columns[settings.label], strict=True
    )
    for row, (line, *given, label) in enumerate(cells):
        try:
            segments = kind.texts(names, given)
        except ValueError as error:
            problems.add(line, str(error))
            continue
        try:
            answer = kind.answer(label, labels, segments)
        except ValueError as error:
            problems.add(
                line,
                f"column {settings.label!r}: {error}",
                "set task.on_bad_row: skip to leave such rows out",
            )
            continue
        try:
            number = row if names_of_rows is None else row_id(names_of_rows[row])
        except ValueError as error:
            problems.add(line, f"column {settings.id!r}: {error}")
            continue
        if number in named:
            problems.add(line, f"column {settings.id!r}: the id stands at line {named[number]} too")
            continue
        named[number] = line
        for oddity in _oddities(segments, settings.max_chars):
            seen[oddity] += 1
            first.setdefault(oddity, line)
        texts.append(tuple(text[: settings.max_chars] for text in segments))
        answers.append(answer)
    notes = [
        *problems.finish(),
        *(f"{table.path}: {count} rows {what}, first at line {first[what]}" for what, count in seen.items()),
    ]
    if not texts:
        raise DataError("no usable rows are left", where=str(table.path))
    read = (table.digest, names, settings.label, settings.max_chars, settings.on_bad_row, labels)
    digest = _sha(repr(read if names_of_rows is None else (*read, settings.id)))
    return Rows(
        np.fromiter(named, dtype=np.int64, count=len(named)), tuple(texts), kind.array(answers), digest
    ), notes


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


def _check_number(names: int, settings: TaskSettings, train: Table) -> None:
    if names > _MOST_CLASSES:
        raise DataError(
            f"{names} different labels",
            where=f"{train.path}, column {settings.label!r}",
            hint="is this the label column?",
        )


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


def _hold_out(settings: TaskSettings, rows: Rows, anchors: NDArray[np.int64], seed: int) -> tuple[Rows, Rows]:
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
            hint=KINDS[settings.kind].too_few,
        )
    share = max(1, round(settings.holdout * len(rows)))
    enough = int(np.searchsorted(np.cumsum(sizes[order]), share)) + 1
    held_out = np.isin(group, order[:enough])
    return rows.take(np.flatnonzero(~held_out), "train"), rows.take(np.flatnonzero(held_out), "validation")


def _named_once(settings: TaskSettings, splits: Mapping[str, Rows]) -> None:
    """Raise DataError for an id that stands in two splits: a prediction could not tell which row it is of."""
    owner: dict[int, str] = {}
    for name, rows in splits.items() if settings.id is not None else ():
        for number, texts in zip(rows.ids.tolist(), rows.texts, strict=True):
            if owner.setdefault(number, name) != name:
                raise DataError(
                    f"the {name} row {shown(texts[0])} has an id that stands in {owner[number]} too",
                    where=f"task.{name}, column {settings.id!r}",
                    hint="an id names one row over all files",
                )


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
    if not labels.names:
        return
    trained = set(np.unique(splits["train"].labels).tolist())  # type: ignore[arg-type]
    for name, rows in splits.items():
        unseen = set(np.unique(rows.labels).tolist()) - trained  # type: ignore[arg-type]
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
