"""Corpora: documents and sentences from every form, errors with file and line, order that does not change."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from distillkit.data.corpora import corpus_digest, documents, sentences
from distillkit.errors import DataError

TEXT = "First one. Second one!\nThird.\n\nAnother document? Yes.\n\n\n"
EXPECTED = [["First one.", "Second one!", "Third."], ["Another document?", "Yes."]]


@pytest.mark.parametrize("name", ["c.txt", "c.txt.gz", "c.jsonl", "c.jsonl.gz", "sentences.jsonl"])
def test_every_form_holds_the_same_documents(tmp_path: Path, name: str) -> None:
    if name == "sentences.jsonl":
        content = "\n".join(json.dumps({"sentences": document}) for document in EXPECTED)
    elif "jsonl" in name:
        texts = [part for part in TEXT.split("\n\n") if part.strip()]
        content = "\n".join(json.dumps({"text": text}) for text in texts) + "\n\n"
    else:
        content = TEXT
    data = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
    assert list(documents(name, base=tmp_path)) == EXPECTED


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "notes.md"):
        (tmp_path / name).write_text(f"From {name}.\n")
    assert list(documents(".", base=tmp_path)) == [["From a.txt."], ["From b.txt."]]
    before = corpus_digest(".", base=tmp_path)
    (tmp_path / "notes.md").write_text("changed")
    assert corpus_digest(".", base=tmp_path) == before
    (tmp_path / "a.txt").write_text("Changed.\n")
    assert corpus_digest(".", base=tmp_path) != before


@pytest.mark.parametrize(
    ("paragraph", "parts"),
    [
        ("One. Two? Three!", ["One.", "Two?", "Three!"]),
        ('He said "Go." Then he went.', ['He said "Go."', "Then he went."]),
        ("Version 2.10 of the e.g. tool.", ["Version 2.10 of the e.g. tool."]),
        ("No end", ["No end"]),
        ("  ", []),
    ],
)
def test_sentences_end_where_a_new_one_begins(paragraph: str, parts: list[str]) -> None:
    assert sentences(paragraph) == parts


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("c.txt", b"fine\n\xff\xfe bad\n", "c.txt:2"),
        ("c.jsonl", b'{"text": "fine."}\n{"text": 3}\n', "c.jsonl:2"),
        ("c.jsonl", b'{"text": "fine."}\n{"text": \n', "c.jsonl:2:"),
        ("c.jsonl", b'["a list"]\n', '"text"'),
        ("c.txt.gz", b"not gzip at all", "damaged"),
        ("c.txt.gz", gzip.compress(b"a line\n" * 5000, mtime=0)[:-12], "damaged"),
        ("c.txt.gz", bytearray(gzip.compress(b"a line\n" * 5000, mtime=0)), "damaged"),
        ("c.jsonl", b'{"text": "fine."}\n{"text": "half \\ud83d"}\n', "c.jsonl:2"),
        ("c.jsonl", b'{"sentences": ["fine.", "half \\ud83d"]}\n', "surrogate"),
        ("c.txt", b"", "empty (0 bytes)"),
        ("c.txt", b" \n\n", "no sentences"),
        ("c.csv", b"text\n", "unknown kind of corpus"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    if isinstance(content, bytearray):  # flipped bits inside the compressed data
        content[30] ^= 0xFF
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(documents(name, base=tmp_path))
    assert words in str(caught.value) and caught.value.exit_code == 3


def test_a_corpus_file_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.txt").write_text("A sentence.")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read everything
    for read in (corpus_digest, lambda name, base: list(documents(name, base=base))):
        with pytest.raises(DataError, match="no permission to read"):
            read("c.txt", base=tmp_path)


def test_a_corpus_that_is_not_there_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("A sentence.")
    with pytest.raises(DataError, match=r"corpus\.txt"):
        list(documents("corpsu.txt", base=tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no corpus files"):
        list(documents("empty", base=tmp_path))


def test_the_bundled_snippets_are_a_corpus_without_the_rows_held_out_of_the_task(tmp_path: Path) -> None:
    count = sum(1 for _ in documents("builtin:rotten_tomatoes", base=tmp_path))
    assert count == 8530 - 853
