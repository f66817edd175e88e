"""`distillkit predict`: an artifact's answers to the rows of a file, or to lines of stdin. No torch here."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO

from distillkit.data.reading import read_table
from distillkit.errors import ConfigError, DataError
from distillkit.runtime.answers import Answer
from distillkit.runtime.artifact import Artifact
from distillkit.wording import shown

Format = Literal["jsonl", "csv"]
_CHUNK = 1024
"""Rows that are answered together, sorted by length, and written before the next are read."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_STDIN = "stdin"


@dataclass(frozen=True)
class Rows:
    """Some rows to answer: the line of each, what stands there, and the columns that are carried along."""

    lines: Sequence[int]
    given: Sequence[Any]
    kept: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Asked:
    """What of a file is answered and how it is written: text columns (none: those of the training), columns
    that are carried along, task of several, and whether cells that a spreadsheet would compute are quoted.
    """

    columns: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    task: str = ""
    encoding: str = "utf-8"
    delimiter: str | None = None
    tokens: int = 4096
    form: Format = "jsonl"
    quoted: bool = False


@dataclass(frozen=True)
class Told:
    """rows that were answered, and how many of them were cut."""

    rows: int
    cut: int


def predict(model: Artifact, source: Path | BinaryIO, asked: Asked, out: TextIO) -> Told:
    """Write an answer for each row of a file, or line of a stream, in their order.

    Raises DataError (3) with file and line, ConfigError (2) for columns and tasks that are not there.
    """
    name = str(source) if isinstance(source, Path) else _STDIN
    chunks = _table(model, source, asked) if isinstance(source, Path) else _lines(model, source, asked)
    rows = cut = 0
    write = _WRITERS[asked.form](out, asked)
    for chunk in chunks:
        lines = chunk.lines
        texts = model.check(chunk.given, asked.task, lambda place, lines=lines: f"{name}:{lines[place]}")  # type: ignore[misc]
        answers = model.answers(texts, task=asked.task, tokens=asked.tokens)
        write(zip(lines, chunk.kept, answers, strict=True))
        rows, cut = rows + len(answers), cut + sum(answer.truncated for answer in answers)
    return Told(rows, cut)


def _table(model: Artifact, path: Path, asked: Asked) -> Iterator[Rows]:
    columns = _columns(model, asked)
    words = model.description.kind == "token_classification"
    wanted = dict.fromkeys((*columns, *asked.keep))
    table = read_table(path, tuple(wanted), encoding=asked.encoding, delimiter=asked.delimiter, lists=words)
    given: list[Any] = table.columns[columns[0]]
    if len(columns) == 2:
        given = list(zip(*(table.columns[name] for name in columns), strict=True))
    kept = [{name: table.columns[name][row] for name in asked.keep} for row in range(len(given))]
    for start in range(0, len(given), _CHUNK):
        part = slice(start, start + _CHUNK)
        yield Rows(table.lines[part], given[part], kept[part])


def _columns(model: Artifact, asked: Asked) -> tuple[str, ...]:
    """The text columns that are asked for, or those of the training."""
    trained = model.description.task(asked.task).columns
    columns = asked.columns or trained
    if len(columns) != len(trained):
        raise ConfigError(
            f"{len(columns)} text columns where the model reads {len(trained)}",
            where="--text",
            hint=f"in training: {', '.join(trained)}",
        )
    taken = [name for name in asked.keep if name in _ANSWERED]
    if taken:
        raise ConfigError(f"{shown(taken[0])} is the name of a part of the answer", where="--keep")
    return columns


def _lines(model: Artifact, stream: BinaryIO, asked: Asked) -> Iterator[Rows]:
    """Each line a row: a text, two texts with a tab between them, or words with spaces between them."""
    if asked.keep or asked.columns:
        raise ConfigError("lines have no columns", where="--text, --keep", hint="name a file")
    columns = model.description.task(asked.task).columns
    split = model.description.kind == "token_classification"
    numbered = enumerate(stream, start=1)
    while chunk := list(islice(numbered, _CHUNK)):
        texts = [_decoded(number, line, asked.encoding) for number, line in chunk]
        given: list[Any] = texts
        if split:
            given = [text.split() for text in texts]
        elif len(columns) == 2:
            given = [text.split("\t") for text in texts]
        yield Rows([number for number, _ in chunk], given, [{}] * len(chunk))


def _decoded(number: int, line: bytes, encoding: str) -> str:
    try:
        text = line.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"byte 0x{line[error.start]:02X} at column {error.start + 1} is not {encoding}",
            where=f"{_STDIN}:{number}",
            hint="give its encoding by --encoding",
        ) from None
    except LookupError:
        raise ConfigError(f"unknown encoding {shown(encoding)}", where="--encoding") from None
    return text.removeprefix("\ufeff" if number == 1 else "").rstrip("\r\n")


Answered = Iterable[tuple[int, dict[str, Any], Answer]]
_ANSWERED = ("line", "label", "probability", "probabilities", "value", "tags", "written", "truncated", "exit")


class _JsonLines:
    def __init__(self, out: TextIO, asked: Asked) -> None:
        self.out = out

    def __call__(self, answered: Answered) -> None:
        for line, kept, answer in answered:
            told = {"line": line, **kept, **answer.as_json()}
            self.out.write(json.dumps(told, ensure_ascii=False) + "\n")


class _Csv:
    """A table without the probabilities of every class; lists stand in it as JSON."""

    def __init__(self, out: TextIO, asked: Asked) -> None:
        self.writer, self.quoted, self.begun = csv.writer(out, lineterminator="\n"), asked.quoted, False

    def __call__(self, answered: Answered) -> None:
        for line, kept, answer in answered:
            told = {"line": line, **kept, **answer.cells(), "truncated": answer.truncated}
            if not self.begun:
                self.writer.writerow(map(self._cell, told))
                self.begun = True
            self.writer.writerow(map(self._cell, told.values()))

    def _cell(self, value: Any) -> Any:
        if isinstance(value, list | dict):
            value = json.dumps(value, ensure_ascii=False)
        return f"'{value}" if self.quoted and isinstance(value, str) and value.startswith(_FORMULA) else value


_WRITERS: Mapping[str, Callable[[TextIO, Asked], Callable[[Answered], None]]] = {
    "jsonl": _JsonLines,
    "csv": _Csv,
}


def to_file(model: Artifact, source: Path | BinaryIO, asked: Asked, target: Path) -> Told:
    """As `predict`, into a file that appears whole or not at all. Raises ConfigError (2) for a place where
    none can be written.
    """
    from distillkit.files import atomic_write

    if not target.parent.is_dir() or target.is_dir():
        raise ConfigError("no file can be written there", where=str(target), hint="name a file in a folder")
    if isinstance(source, Path) and source.exists() and target.exists() and source.samefile(target):
        raise ConfigError("the answers would replace the rows", where=str(target), hint="name another file")
    text = io.StringIO()
    told = predict(model, source, asked, text)
    atomic_write(target, text.getvalue())
    return told


def format_of(name: str, target: Path | None) -> Format:
    """The format that is asked for, or the one that a file's name says; JSON lines by themselves."""
    if not name:
        return "csv" if target is not None and target.suffix.lower() == ".csv" else "jsonl"
    if name not in _WRITERS:
        raise ConfigError(f"unknown format {shown(name)}", where="--format", hint="jsonl or csv")
    return "csv" if name == "csv" else "jsonl"


def run(model: Artifact, source: Path | None, asked: Asked, target: Path | None) -> Told:
    """What the command does: from a file or stdin to a file or stdout."""
    rows: Path | BinaryIO = sys.stdin.buffer if source is None else source
    if target is not None:
        return to_file(model, rows, asked, target)
    told = predict(model, rows, asked, sys.stdout)
    sys.stdout.flush()
    return told
