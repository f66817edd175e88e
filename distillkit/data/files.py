"""Opening a data file without ever blocking, and saying in words why one cannot be read.

A path is looked at before it is opened (a FIFO or a device would hang), its first bytes must agree with its ending, and
bytes that are not text in the stated encoding are reported with file, line and offset.
"""

from __future__ import annotations

import codecs
import gzip
import io
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distillkit.data.findings import shown_name
from distillkit.errors import ConfigError, DataError

GZIP_MAGIC = b"\x1f\x8b"
MAGIC = {
    GZIP_MAGIC: "gzip",
    b"PAR1": "Parquet",
    b"PK\x03\x04": "a zip archive or an Excel sheet",
    b"\x89PNG": "a PNG image",
    b"%PDF": "PDF",
    b"BZh": "bzip2",
    b"\xfd7zX": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
}
LONGEST_LINE = 1 << 26
"""Characters; a longer line is no text file (and would fill the memory)."""


def check_regular(path: Path) -> None:
    """Refuse what is not a readable, non-empty, regular file; never opens it. Raises DataError."""
    name = shown_name(str(path))
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    if not stat.S_ISREG(status.st_mode):
        kind = next((word for test, word in _SPECIAL if test(status.st_mode)), "not a regular file")
        raise DataError(f"is {kind}, not a data file", where=name)
    if status.st_size == 0:
        raise DataError("file is empty (0 bytes)", where=name)


_SPECIAL = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO (named pipe)"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def unreadable(path: Path, error: OSError | ValueError) -> DataError:
    """The DataError for a path that the system does not let us read."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return DataError(f"cannot be read: {reason}", where=shown_name(str(path)))


def is_gzipped(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedIOBase]:
    """The file's bytes, decompressed where it ends in .gz. Raises DataError for all that can be wrong with it.

    Errors of the block are told too: a gzip stream that breaks off, a disk that fails.
    """
    check_regular(path)
    name = shown_name(str(path))
    try:
        with path.open("rb") as raw:
            _check_magic(raw.peek(4)[:4], path)
            if not is_gzipped(path):
                yield raw
                return
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield unpacked
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"the gzip stream is damaged or cut: {error}", where=name) from None
    except OSError as error:
        raise unreadable(path, error) from None


def _check_magic(first: bytes, path: Path) -> None:
    name, suffix = shown_name(str(path)), path.suffix.lower()
    found = next((word for magic, word in MAGIC.items() if first.startswith(magic)), None)
    expected = {".gz": "gzip", ".parquet": "Parquet"}.get(suffix)
    if found == expected:
        return
    if expected is not None:
        is_what = f"looks like {found}" if found else "does not"
        problem = f"ends in {suffix} but starts with bytes {first.hex(' ')}, which {is_what}"
        problem = problem if found else f"ends in {suffix} but starts with bytes {first.hex(' ')}: not {expected}"
        raise DataError(problem, where=name, hint="rename the file to what it is, or write it again")
    raise DataError(
        f"starts with bytes {first.hex(' ')}: this is {found}, not text",
        where=name,
        hint="add .gz to its name" if found == "gzip" else "save it as CSV, TSV, JSON Lines or Parquet",
    )


@contextmanager
def text_lines(path: Path, encoding: str) -> Iterator[Iterator[str]]:
    """The file's lines with their ends, decoded strictly; a byte order mark is dropped.

    Raises DataError (bytes that are no text: file:line, offset) and ConfigError (an encoding that does not exist).
    """
    codec = _codec(encoding)
    with opened(path) as binary:
        _check_not_utf16(binary, path, codec)
        try:
            yield _lines(io.TextIOWrapper(binary, encoding=codec, newline=""), path)
        except UnicodeError as error:
            raise _undecodable(path, codec, error) from None


def _codec(encoding: str) -> str:
    try:
        name = codecs.lookup(encoding).name
        io.TextIOWrapper(io.BytesIO(), encoding=name)
    except (LookupError, ValueError):
        raise ConfigError(
            f"{encoding!r} is not a text encoding", where="task.encoding", hint="for example utf-8, cp1252, utf-16"
        ) from None
    return "utf-8-sig" if name == "utf-8" else name


def _check_not_utf16(binary: io.BufferedIOBase, path: Path, codec: str) -> None:
    if codec != "utf-8-sig" or not isinstance(binary, io.BufferedReader | gzip.GzipFile):
        return
    first = binary.peek(512)[:512]
    zeros = max(first[0::2].count(0), first[1::2].count(0))
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or zeros > 0.4 * max(len(first) // 2, 8):
        raise DataError(
            f"byte offset 0: {first[:4].hex(' ')} is not UTF-8; looks like UTF-16",
            where=f"{shown_name(str(path))}:1",
            hint="set task.encoding: utf-16",
        )


def _lines(stream: io.TextIOWrapper, path: Path) -> Iterator[str]:
    number = 0
    while line := stream.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE:
            raise DataError(
                f"the line is longer than {LONGEST_LINE:,} characters", where=f"{shown_name(str(path))}:{number}"
            )
        yield line


def _undecodable(path: Path, codec: str, error: UnicodeError) -> DataError:
    """Read again up to the byte that is no text, counting lines."""
    decoder = codecs.getincrementaldecoder(codec)()
    name, offset, line, column = shown_name(str(path)), 0, 1, 1
    with opened(path) as binary:
        chunk = b"start"
        while chunk:
            chunk = binary.read(1 << 16)
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as bad:
                text = bad.object[: bad.start].decode(codec, errors="replace")
                offset += bad.start - (len(bad.object) - len(chunk))
                value = bad.object[bad.start]
                break
            except UnicodeError:
                break
            offset += len(chunk)
            line, column = _after(text, line, column)
        else:
            return DataError(f"is not text in {codec}: {error}", where=name)
    line, column = _after(text, line, column)
    return DataError(
        f"byte 0x{value:02X} at offset {offset} is not valid {codec.removesuffix('-sig')}",
        where=f"{name}:{line}:{column}",
        hint="set task.encoding (Windows or Western European text is often cp1252 or latin-1), or save it as UTF-8",
    )


def _after(text: str, line: int, column: int) -> tuple[int, int]:
    """Line and column after reading `text` from the given ones."""
    newlines = text.count("\n")
    return (line + newlines, len(text) - text.rfind("\n")) if newlines else (line, column + len(text))


def nonblocking_exists(path: Path) -> bool:
    """Whether something is there, a broken or looping link included."""
    return os.path.lexists(path)
