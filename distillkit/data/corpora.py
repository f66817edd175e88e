"""Corpora: documents of sentences, streamed.

* text files (.txt, .txt.gz): one paragraph or sentence a line, a blank line between documents;
* JSON Lines (.jsonl, .jsonl.gz): `{"text": "..."}` (its lines are paragraphs) or `{"sentences": ["...",
  ...]}`, one document a line;
* a folder of these, in the order of their names; or `builtin:NAME`.

Paragraphs are cut into sentences after `.`, `!` or `?` (and closing quotes) where white space and an
upper-case letter, a digit or a quote follow: a simple rule that now and then cuts after an abbreviation,
which the objectives tolerate.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from distillkit.data.builtin import builtin_path, builtin_texts
from distillkit.data.reading import check_file, file_digest, half_character, similar_files, text_lines
from distillkit.errors import DataError

_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(\s+)(?=[\"'(\[]?[A-Z0-9])")
_SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz")


def documents(source: str, *, base: Path) -> Iterator[list[str]]:
    """Documents as lists of non-empty sentences. Raises DataError naming file and line; an empty corpus is
    one.
    """
    empty = True
    for document in all_documents(source, base=base):
        if document:
            empty = False
            yield document
    if empty:
        raise DataError("the corpus has no sentences", where=source)


def corpus_digest(source: str, *, base: Path) -> str:
    """sha256 over the content of the corpus's files, in order."""
    if source.startswith("builtin:"):
        return file_digest(builtin_path(source.removeprefix("builtin:")))
    sums = "".join(file_digest(path) for path in corpus_files(source, base=base))
    return hashlib.sha256(sums.encode()).hexdigest()


def corpus_files(source: str, *, base: Path) -> list[Path]:
    """The files of a corpus, sorted by name. Raises DataError where there are none, or one cannot be read."""
    files = _files(base / source)
    for path in files:
        check_file(path)
    return files


def _files(path: Path) -> list[Path]:
    if path.is_file():
        if not path.name.endswith(_SUFFIXES):
            raise DataError(
                f"unknown kind of corpus {path.name!r}",
                where=str(path),
                hint=f"known: {', '.join(_SUFFIXES)}",
            )
        return [path]
    if not path.is_dir():
        raise DataError("there is no such file or folder", where=str(path), hint=similar_files(path))
    files = sorted(entry for entry in path.iterdir() if entry.is_file() and entry.name.endswith(_SUFFIXES))
    if not files:
        raise DataError(
            "the folder holds no corpus files", where=str(path), hint=f"known: {', '.join(_SUFFIXES)}"
        )
    return files


def sentences(paragraph: str) -> list[str]:
    """The sentences of one paragraph, by the rule above."""
    gaps = [match.span(1) for match in _SENTENCE_END.finditer(paragraph)]
    starts, ends = [0, *(end for _, end in gaps)], [*(start for start, _ in gaps), len(paragraph)]
    pieces = (paragraph[start:end].strip() for start, end in zip(starts, ends, strict=True))
    return [piece for piece in pieces if piece]


def all_documents(source: str, *, base: Path) -> Iterator[list[str]]:
    """The same with the empty ones: rows of JSON Lines without text. An empty corpus has none."""
    if source.startswith("builtin:"):
        for text in builtin_texts(source.removeprefix("builtin:")):
            yield [sentence for line in text.splitlines() for sentence in sentences(line)]
        return
    for path in corpus_files(source, base=base):
        yield from _json_documents(path) if ".jsonl" in path.name else _text_documents(path)


def _text_documents(path: Path) -> Iterator[list[str]]:
    document: list[str] = []
    for _, line in _lines(path):
        if line.strip():
            document += sentences(line)
        elif document:
            yield document
            document = []
    if document:
        yield document


def _json_documents(path: Path) -> Iterator[list[str]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"not JSON: {error.msg}", where=f"{path}:{number}:{error.colno}") from None
        if isinstance(row, dict) and isinstance(row.get("text"), str):
            _check_text(path, number, row["text"])
            yield [sentence for part in row["text"].splitlines() for sentence in sentences(part)]
        elif (
            isinstance(row, dict)
            and isinstance(row.get("sentences"), list)
            and all(isinstance(part, str) for part in row["sentences"])
        ):
            _check_text(path, number, *row["sentences"])
            yield [part.strip() for part in row["sentences"] if part.strip()]
        else:
            raise DataError(
                'a document needs "text" (a string) or "sentences" (a list of strings)',
                where=f"{path}:{number}",
            )


def _check_text(path: Path, number: int, *texts: str) -> None:
    """JSON can spell what no text holds."""
    for text in texts:
        if problem := half_character(text):
            raise DataError(f"the document {problem}", where=f"{path}:{number}")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    return text_lines(path, "utf-8", path.name.endswith(".gz"))
