"""Reads a table of rows (CSV, TSV, JSON Lines, Parquet, each also .gz) and accepts nothing silently.

Every problem is told with file, line, column and value, up to twenty of them in one pass. What can be used
but deserves a word becomes a note. Cells come out as they stand in the file: CSV cells are strings ("NA" and
"null" included), JSON cells have their JSON type; what they mean is decided by the task (tasks.py).
"""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import io
import json
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from distillkit.errors import ConfigError, DataError, DistillkitError, ErrorGroup
from distillkit.wording import half_character as half_character
from distillkit.wording import shown as shown

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
MAX_SHOWN = 20
MAX_CELL = 1 << 26
"""Characters of the longest CSV cell read; csv's own limit of 131,072 is too short for a long text."""
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_NOT_TEXT = {
    b"PK\x03\x04": "a zip archive or spreadsheet",
    b"%PDF": "PDF",
    b"\x89PNG": "a PNG image",
    b"BZh": "bzip2",
}
_UTF16 = (b"\xff\xfe", b"\xfe\xff")

Cells = tuple[int, Mapping[str, Any]]
"""Line number (row number in Parquet), and the row's cells by column name."""


@dataclass(frozen=True)
class Table:
    """The wanted columns of one file, row by row.

    columns: name -> cells; lines: 1-based line of each row (row number in Parquet);
    digest: sha256 of the file's bytes.
    """

    path: Path
    columns: Mapping[str, list[Any]]
    lines: list[int]
    digest: str
    notes: tuple[str, ...] = ()


@dataclass
class Problems:
    """Collects what is wrong with rows; `skip` counts them, otherwise they are raised together."""

    path: Path
    skip: bool
    found: list[DistillkitError] = field(default_factory=list)
    count: int = 0

    def add(self, line: int, problem: str, hint: str = "") -> None:
        self.report(DataError(problem, where=f"{self.path}:{line}", hint=hint))

    def report(self, error: DataError) -> None:
        self.count += 1
        if len(self.found) < MAX_SHOWN:
            self.found.append(error)

    def finish(self) -> tuple[str, ...]:
        """Raise what was found, or say how many rows were skipped."""
        if not self.count:
            return ()
        if self.skip:
            return (f"{self.path}: skipped {self.count} rows, the first because: {self.found[0]}",)
        if self.count > len(self.found):
            self.found.append(
                DataError(f"{self.count - len(self.found)} more rows have problems", where=str(self.path))
            )
        raise self.found[0] if len(self.found) == 1 else ErrorGroup(self.found)


def read_table(
    path: Path,
    columns: Sequence[str],
    *,
    encoding: str = "utf-8",
    delimiter: str | None = None,
    skip: bool = False,
    lists: bool = False,
) -> Table:
    """Read the wanted columns of a file; `lists`: a cell of Parquet may be a list.

    Raises DataError (3), or ConfigError (2) for a column that is not there.
    """
    check_file(path)
    suffix, zipped = kind_of(path)
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise ConfigError(
            f"{shown(delimiter)} cannot separate fields", where="task.delimiter", hint="give one character"
        )
    problems = Problems(path, skip)
    if suffix == ".parquet":
        rows: Iterator[Cells] = _parquet_rows(path, columns, lists)
    else:
        lines = text_lines(path, encoding, zipped)
        if suffix in (".csv", ".tsv"):
            dialect = _dialect(path, encoding, zipped, delimiter or ("\t" if suffix == ".tsv" else ","))
            rows = _csv_rows(path, lines, columns, dialect, problems)
        else:
            rows = _json_rows(path, lines, columns, problems)
    cells: dict[str, list[Any]] = {name: [] for name in columns}
    numbers: list[int] = []
    extra: set[str] = set()
    for line, row in rows:
        extra.update(name for name in row if name not in cells)
        numbers.append(line)
        for name in columns:
            cells[name].append(row.get(name))
    notes = list(problems.finish())
    if not numbers and not problems.count:
        raise DataError(
            "the file has a header but no rows" if suffix in (".csv", ".tsv") else "the file has no rows",
            where=str(path),
        )
    if extra:
        notes.append(f"{path}: columns not used: {', '.join(sorted(map(repr, extra))[:8])}")
    return Table(path, cells, numbers, file_digest(path), tuple(notes))


def column_names(path: Path, *, encoding: str = "utf-8", delimiter: str | None = None) -> list[str]:
    """The columns of a file, from its header, first object or schema."""
    check_file(path)
    suffix, zipped = kind_of(path)
    if suffix == ".parquet":
        return list(_open_parquet(path).schema_arrow.names)
    lines = text_lines(path, encoding, zipped)
    if suffix in (".csv", ".tsv"):
        dialect = _dialect(path, encoding, zipped, delimiter or ("\t" if suffix == ".tsv" else ","))
        return _header(path, lines, dialect)[0]
    for number, text in lines:
        if text.strip():
            return list(_json_object(path, number, text))
    raise DataError("the file has no rows", where=str(path))


def check_file(path: Path) -> None:
    """Refuse what is not a readable, non-empty regular file, without opening it (a pipe would block)."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise DataError("there is no such file", where=str(path), hint=similar_files(path)) from None
    except PermissionError:
        raise DataError(
            "no permission to read this file", where=str(path), hint="check the folder's mode"
        ) from None
    except OSError as error:
        raise DataError(
            f"cannot be opened: {error.strerror}", where=str(path), hint="a loop of links?"
        ) from None
    if stat.S_ISDIR(status.st_mode):
        inside = sorted(entry.name for entry in path.iterdir() if _is_table(entry))[:10]
        raise DataError(
            "this is a folder, not a file",
            where=str(path),
            hint=f"files in it: {', '.join(inside) or 'none that can be read'}",
        )
    if not stat.S_ISREG(status.st_mode):
        raise DataError(
            "not a regular file (a pipe, socket or device)",
            where=str(path),
            hint="write the data to a file first",
        )
    if status.st_size == 0:
        raise DataError("the file is empty (0 bytes)", where=str(path))
    if not os.access(path, os.R_OK):
        raise DataError("no permission to read this file", where=str(path), hint=f"chmod u+r {path}")


def kind_of(path: Path) -> tuple[str, bool]:
    """(suffix without .gz, whether the content is gzip), checked against the first bytes."""
    names = [suffix.lower() for suffix in path.suffixes]
    said_gzip = bool(names) and names[-1] == ".gz"
    suffix = next((name for name in reversed(names) if name != ".gz"), "")
    with path.open("rb") as file:
        magic = file.read(4)
    is_gzip = magic[:2] == _GZIP
    if said_gzip and not is_gzip:
        raise DataError(
            f"the name ends with .gz but the first bytes are {magic!r}: not gzip",
            where=str(path),
            hint="rename it without .gz",
        )
    if is_gzip and not said_gzip:
        raise DataError(
            f"the first bytes are {magic[:2]!r}: gzip, but the name does not end with .gz",
            where=str(path),
            hint="rename it",
        )
    if magic == _PARQUET and suffix != ".parquet":
        raise DataError(
            "the first bytes are 'PAR1': Parquet, but the name says otherwise",
            where=str(path),
            hint="rename it to .parquet",
        )
    content = next((kind for start, kind in _NOT_TEXT.items() if magic.startswith(start)), None)
    if content is not None:
        raise DataError(
            f"the first bytes are {magic!r}: {content}",
            where=str(path),
            hint=f"save it as one of {', '.join(SUFFIXES)}",
        )
    if suffix not in SUFFIXES:
        raise DataError(
            f"unknown kind of file {suffix or path.name!r}",
            where=str(path),
            hint=f"known: {', '.join(SUFFIXES)}, each also .gz",
        )
    return suffix, is_gzip


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def similar_files(path: Path) -> str:
    """A did-you-mean for a path that is not there."""
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} is not there either"
    close = difflib.get_close_matches(path.name, [entry.name for entry in folder.iterdir()], n=3)
    return f"did you mean {' or '.join(close)}?" if close else f"look into {folder}"


def missing_column(path: Path, wanted: str, found: Sequence[str]) -> ConfigError:
    """The error for a column that a recipe names and a file has not."""
    close = difflib.get_close_matches(wanted, found, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return ConfigError(
        f"column {shown(wanted)} not found; found {', '.join(map(shown, found[:12]))}",
        where=str(path),
        hint=hint + "columns are named in `task`",
    )


def words_per_cell(cells: Sequence[Any]) -> float:
    """Words (between white space) that a cell has on average; one that is no text has none."""
    texts = [cell for cell in cells if isinstance(cell, str)]
    return sum(len(text.split()) for text in texts) / len(cells) if texts else 0.0


def _is_table(path: Path) -> bool:
    return any(suffix.lower() in SUFFIXES for suffix in path.suffixes)


def text_lines(path: Path, encoding: str, zipped: bool) -> Iterator[tuple[int, str]]:
    """(line number, text with its line end), the byte order mark taken off. Raises DataError with the line
    where the bytes cannot be read.
    """
    with path.open("rb") as raw:
        file: Any = gzip.GzipFile(fileobj=raw) if zipped else raw
        number = 0
        try:
            for number, text in enumerate(_decoded(path, file, encoding), start=1):
                yield number, text
        except (EOFError, OSError, zlib.error) as error:
            what = "the gzip data is damaged" if zipped else "reading failed"
            raise DataError(f"{what} after line {number}: {error}", where=str(path)) from None
        if number == 0:
            raise DataError("the file is empty (nothing inside the gzip)", where=str(path))


def _decoded(path: Path, file: Any, encoding: str) -> Iterator[str]:
    try:
        wide = len("\n".encode(encoding)) > 1
    except (LookupError, UnicodeError):
        raise ConfigError(
            f"unknown encoding {encoding!r}", where="task.encoding", hint="for example utf-8, cp1252, latin-1"
        ) from None
    if wide:  # UTF-16 and UTF-32: bytes cannot be cut into lines before they are decoded
        try:
            with io.TextIOWrapper(file, encoding=encoding, newline="") as text:
                yield from text
        except UnicodeError as error:
            raise DataError(f"not {encoding}: {error}", where=str(path), hint="see task.encoding") from None
        return
    for number, data in enumerate(file, start=1):
        if number == 1:
            _refuse_utf16(path, data)
            data = data.removeprefix(b"\xef\xbb\xbf")
        yield _decode(path, number, data, encoding)


def _refuse_utf16(path: Path, line: bytes) -> None:
    """By its mark, or by zeros at every other byte."""
    start = line[:64]
    zeros = max(start[0::2].count(0), start[1::2].count(0))
    if start[:2] in _UTF16 or zeros > max(4, 0.4 * len(start) / 2):
        raise DataError(
            f"byte offset 0: {start[:4]!r} looks like UTF-16",
            where=f"{path}:1",
            hint="set task.encoding: utf-16 (or utf-16-le, utf-16-be), or save it as UTF-8",
        )


def _decode(path: Path, number: int, data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise DataError(
            f"byte 0x{byte:02X} at column {error.start + 1} is not {encoding}",
            where=f"{path}:{number}",
            hint="is the file cp1252 or latin-1? set task.encoding (a corpus is always UTF-8)",
        ) from None


@dataclass(frozen=True)
class _Dialect:
    """What separates cells, and whether double quotes around a cell are quotes or plain characters."""

    delimiter: str
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL

    def reader(self, lines: Iterable[tuple[int, str]]) -> Any:
        csv.field_size_limit(MAX_CELL)
        texts = (text for _, text in lines)
        return csv.reader(texts, delimiter=self.delimiter, quoting=self.quoting, strict=True)


def _dialect(path: Path, encoding: str, zipped: bool, delimiter: str) -> _Dialect:
    """Quotes are quotes, but for tab separated files that only make sense without (as most public ones
    are written): every line has as many tabs as the first, and read as quotes they would be broken or
    swallow lines."""
    quoted = _Dialect(delimiter)
    if delimiter != "\t":
        return quoted
    tabs = [text.count("\t") for _, text in text_lines(path, encoding, zipped) if text.strip("\r\n")]
    if len(set(tabs)) != 1:
        return quoted
    try:
        records = sum(1 for record in quoted.reader(text_lines(path, encoding, zipped)) if record)
    except csv.Error:
        records = 0
    return quoted if records == len(tabs) else _Dialect(delimiter, csv.QUOTE_NONE)


def _header(path: Path, lines: Iterable[tuple[int, str]], dialect: _Dialect) -> tuple[list[str], Any]:
    reader = dialect.reader(lines)
    try:
        header = next(reader)
    except StopIteration:
        raise DataError("the file has no header", where=str(path)) from None
    except csv.Error as error:
        raise DataError(f"the header cannot be read: {error}", where=f"{path}:1") from None
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(
            f"column {shown(twice[0])} stands twice in the header",
            where=f"{path}:1",
            hint="rename one of them",
        )
    return header, reader


def _csv_rows(
    path: Path,
    lines: Iterator[tuple[int, str]],
    columns: Sequence[str],
    dialect: _Dialect,
    problems: Problems,
) -> Iterator[Cells]:
    record: list[str] = []
    header, reader = _header(path, _remembered(lines, record), dialect)
    for name in columns:
        if name not in header:
            for other in (";", "\t", ",", "|"):
                if len(header) == 1 and other in header[0] and other != dialect.delimiter:
                    raise DataError(
                        f"column {name!r} not found; found {shown(header[0])}: is the delimiter {other!r}?",
                        where=f"{path}:1",
                        hint=f"set task.delimiter: {other!r}",
                    )
            raise missing_column(path, name, header)
    while True:
        start = reader.line_num + 1
        record.clear()
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise _broken_quote(path, start, "".join(record), dialect.delimiter, str(error)) from None
        if not row:
            continue
        if len(row) != len(header):
            problems.add(
                start,
                f"{len(row)} cells where the header has {len(header)}",
                "quote cells that hold the delimiter",
            )
            continue
        yield start, dict(zip(header, row, strict=True))


def _remembered(lines: Iterator[tuple[int, str]], record: list[str]) -> Iterator[tuple[int, str]]:
    """The same lines; their texts gather in `record`, which the reader of records empties."""
    for number, text in lines:
        record.append(text)
        yield number, text


def _broken_quote(path: Path, start: int, record: str, delimiter: str, reason: str) -> DataError:
    """Names the line and column where the quote opened, not the end of the file."""
    opened = _open_quote(record, delimiter)
    line = start + record.count("\n", 0, opened)
    column = opened - record.rfind("\n", 0, opened)
    unclosed = "unexpected end" in reason or "larger than" in reason
    return DataError(
        "a quote opened here is never closed" if unclosed else f"the quote opened here: {reason}",
        where=f"{path}:{line}:{column}",
        hint='double a quote inside a quoted cell: ""',
    )


def _open_quote(record: str, delimiter: str) -> int:
    """Offset of the last quote that opens a cell."""
    opened = start = 0
    while True:
        if record.startswith('"', start):
            opened = start
            close = record.find('"', start + 1)
            while close >= 0 and record.startswith('"', close + 1):
                close = record.find('"', close + 2)
            start = close + 1
            if close < 0 or record[start : start + 1] not in (delimiter, "\r", "\n", ""):
                return opened
        start = record.find(delimiter, start) + 1
        if start == 0:
            return opened


def _json_rows(
    path: Path, lines: Iterator[tuple[int, str]], columns: Sequence[str], problems: Problems
) -> Iterator[Cells]:
    keys: dict[str, None] = {}
    for number, text in lines:
        if not text.strip():
            continue
        if not keys and not problems.count and text.lstrip().startswith("["):
            raise DataError(
                "this is a JSON array, not JSON Lines",
                where=f"{path}:{number}",
                hint="write one object a line",
            )
        try:
            row = _json_object(path, number, text)
        except DataError as error:
            problems.report(error)
            continue
        keys.update(dict.fromkeys(row))
        missing = [name for name in columns if name not in row]
        if missing:
            problems.add(
                number, f"the row has no {missing[0]!r}", "set task.on_bad_row: skip to leave such rows out"
            )
            continue
        yield number, row
    for name in columns:
        if keys and name not in keys:
            raise missing_column(path, name, list(keys))


def _json_object(path: Path, number: int, text: str) -> dict[str, Any]:
    try:
        row = json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        cut = not text.endswith("\n")
        problem = "the last line has no end: is the file cut?" if cut else f"not JSON: {error.msg}"
        raise DataError(problem, where=f"{path}:{number}:{error.colno}") from None
    except RecursionError:
        raise DataError("nested too deeply", where=f"{path}:{number}") from None
    except ValueError as error:
        raise DataError(f"not usable: {error}", where=f"{path}:{number}") from None
    if not isinstance(row, dict):
        raise DataError(
            f"a line must be an object, not {type(row).__name__}",
            where=f"{path}:{number}",
            hint='like {"text": "...", "label": "..."}',
        )
    return row


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"key {shown(next(n for n in names if names.count(n) > 1))} stands twice in one object"
        )
    return row


def _open_parquet(path: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        data: Any = io.BytesIO(gzip.decompress(path.read_bytes())) if path.suffix == ".gz" else path
        return parquet.ParquetFile(data)
    except (pyarrow.ArrowException, OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"not a readable Parquet file: {str(error).splitlines()[0]}", where=str(path)
        ) from None


def _parquet_rows(path: Path, columns: Sequence[str], lists: bool) -> Iterator[Cells]:
    import pyarrow

    file = _open_parquet(path)
    schema = file.schema_arrow
    for name in columns:
        if name not in schema.names:
            raise missing_column(path, name, schema.names)
        kind = schema.field(name).type
        is_list = pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)
        if pyarrow.types.is_nested(kind) and not (lists and is_list):
            raise DataError(
                f"column {name!r} is {schema.field(name).type}, not text or a number",
                where=str(path),
                hint=f"schema: {schema.to_string()}",
            )
    number = 0
    try:
        for batch in file.iter_batches(columns=list(columns)):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"damaged after row {number}: {str(error).splitlines()[0]}", where=str(path)
        ) from None


def find_tables(folder: Path) -> dict[str, Path]:
    """The files of a dataset folder by split name (train, validation or dev, test)."""
    names: Mapping[str, Iterable[str]] = {
        "train": ("train",),
        "validation": ("validation", "valid", "val", "dev"),
        "test": ("test",),
    }
    found: dict[str, Path] = {}
    for entry in sorted(folder.iterdir()):
        stem = entry.name.split(".")[0].split("-")[0].lower()
        for split, aliases in names.items():
            if stem in aliases and _is_table(entry):
                if split in found:
                    raise DataError(
                        f"two files for {split}: {found[split].name} and {entry.name}",
                        where=str(folder),
                        hint="name the file",
                    )
                found[split] = entry
    return found
