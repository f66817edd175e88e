"""The bad-input table B01-B53 for data files (classification, pairs, regression): one row, one test id.

Each row is written to a folder and read as a task. It ends with the stated exit code and says the stated words,
or is accepted (code 0) with the stated note. B46 and B47 (truncation, unknown tokens) are tested with `encode`;
B41 (the teacher's label order) and B50 (HTML) where models and reports are; B52 (tags) and B53 (answer spans)
belong to kinds that are not here yet.
"""

# ruff: noqa: E501 - the table below has one case a line

from __future__ import annotations

import gzip
import io
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distillkit.data.tasks import Task, load_task
from distillkit.errors import DistillkitError, ErrorGroup
from distillkit.settings import TaskSettings

ROWS = "".join(f"row number {index},{('no', 'yes')[index % 2]}\n" for index in range(8))
GOOD = "text,label\n" + ROWS
HEAD = "text,label\na fine film,yes\na dull film,no\n"


@dataclass(frozen=True)
class Case:
    """One row: files to write (str is UTF-8 text, a callable writes the path itself), settings, and the answer."""

    id: str
    file: str | bytes | Callable[[Path], object]
    code: int
    says: tuple[str, ...]
    name: str = "train.csv"
    options: dict[str, Any] = field(default_factory=dict)
    validation: str | None = GOOD


def jsonl(*rows: Any) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def row(text: Any, label: Any) -> dict[str, Any]:
    return {"text": text, "label": label}


GOOD_JSON = [row(f"row number {index}", ("no", "yes")[index % 2]) for index in range(8)]
NUMBERS = "text,label\none,0.5\ntwo,1.5\nthree,2.5\n"
REGRESSION = {"kind": "regression"}


def parquet(**columns: list[Any]) -> bytes:
    data = io.BytesIO()
    pq.write_table(pa.table(columns), data)
    return data.getvalue()


def packed(content: str | bytes) -> bytes:
    return gzip.compress(content.encode() if isinstance(content, str) else content, mtime=0)


def a_folder(path: Path) -> None:
    path.mkdir()
    (path / "reviews.csv").write_text(GOOD)


def a_loop(path: Path) -> None:
    path.symlink_to(path.name)


CASES = [
    Case("B01-empty-file", b"", 3, ("train.csv", "empty (0 bytes)")),
    Case("B01-empty-gzip", packed(""), 3, ("train.csv.gz", "empty"), name="train.csv.gz"),
    Case("B02-header-only", "text,label\n", 3, ("train.csv", "has a header but no rows")),
    Case("B03-bom-csv", b"\xef\xbb\xbf" + GOOD.encode(), 0, ()),
    Case("B04-utf16", GOOD.encode("utf-16"), 3, ("train.csv", "byte offset 0", "looks like UTF-16", "task.encoding")),
    Case("B04-utf16-without-mark", GOOD.encode("utf-16-le"), 3, ("byte offset", "looks like UTF-16", "task.encoding")),
    Case("B04-utf16-without-zeros", "文本内容文本内容,标签".encode("utf-16"), 3, ("byte offset 0", "looks like UTF-16")),
    Case("B04-utf16-said", GOOD.encode("utf-16"), 0, (), options={"encoding": "utf-16"}),
    Case("B05-latin1", HEAD.encode() + b"caf\xe9,no\n", 3, ("train.csv:4", "0xE9", "cp1252", "latin-1")),
    Case("B05-latin1-said", HEAD.encode() + b"caf\xe9,no\n", 0, (), options={"encoding": "latin-1"}),
    Case("B05-no-such-encoding", GOOD, 2, ("task.encoding", "utf-9"), options={"encoding": "utf-9"}, validation=None),
    Case("B05-no-text-encoding", GOOD, 2, ("task.encoding", "base64"), options={"encoding": "base64"}, validation=None),
    Case("B06-nul", HEAD + "nul\0here,no\n", 0, ("1 row", "NUL", "line 4")),
    Case("B07-ragged", HEAD + "one,two,yes\n", 3, ("train.csv:4", "3", "header has 2")),
    Case("B07-ragged-skipped", HEAD + "one,two,yes\n", 0, ("skipped 1 row", "train.csv:4"), options={"on_bad_row": "skip"}),
    Case("B08-unclosed-quote", HEAD + '"never closed,no\nmore,yes\n', 3, ("train.csv:4", "never closed")),
    Case("B08-opened-on-a-later-line", 'a,text,label\n"x\ny","open,no\nz,w,yes\n', 3, ("train.csv:3", "never closed")),
    Case("B08-closed-too-early", HEAD + '"one"two,no\n', 3, ("train.csv:4", "quote")),
    Case("B09-semicolons", GOOD.replace(",", ";"), 3, ("'text'", "text;label", "';'", "delimiter")),
    Case("B09-tabs-in-csv", GOOD.replace(",", "\t"), 3, ("'text'", "delimiter", r"'\t'")),
    Case("B09-said", GOOD.replace(",", ";"), 0, (), options={"delimiter": ";"}),
    Case("B09-long-delimiter", GOOD, 2, ("task.delimiter", "';;'"), options={"delimiter": ";;"}),
    Case("B10-column-twice", "text,text,label\na,b,yes\n", 3, ("train.csv:1", "'text'", "twice")),
    Case("B10-key-twice", jsonl('{"text": "a", "text": "b", "label": "no"}', *GOOD_JSON), 3, ("train.jsonl:1", "twice"), "train.jsonl"),
    Case("B11-label-missing", HEAD + "no label here,\n", 3, ("train.csv:4", "label", "missing")),
    Case("B11-skipped", HEAD + "no label here,\n", 0, ("skipped 1 row", "train.csv:4"), options={"on_bad_row": "skip"}),
    Case("B11-null", jsonl(*GOOD_JSON, row("x", None)), 3, ("train.jsonl:9", "missing"), "train.jsonl"),
    Case("B12-mixed-labels", "text,label\na,0\nb,one\nc,0\n", 3, ("'0'", "line 2", "'one'", "line 3")),
    Case("B13-float-labels", "text,label\na,0.5\nb,1.5\n", 3, ("0.5", "not a class", "regression?")),
    Case("B13-float-labels-json", jsonl(row("a", 0.5), row("b", 1.5)), 3, ("0.5", "not a class", "regression?"), "train.jsonl"),
    Case("B14-na-texts", HEAD + "NA,no\nnull,no\nNone,yes\nnan,no\n", 0, ()),
    Case("B15-crlf", GOOD.replace("\n", "\r\n"), 0, ()),
    Case("B16-typo", GOOD, 2, ("'texts'", "did you mean 'text'"), options={"text": "texts"}),
    Case("B16-typo-json", jsonl(*GOOD_JSON), 2, ("'lable'", "did you mean 'label'"), "train.jsonl", {"label": "lable"}),
    Case("B16-typo-parquet", parquet(text=["a", "b"], label=["x", "y"]), 2, ("'lable'", "did you mean"), "train.parquet", {"label": "lable"}),
    Case("B16-one-column-for-both", GOOD, 2, ("text",), options={"label": "text"}),
    Case("B17-malformed", jsonl(GOOD_JSON[0], '{"text": "a" "label": 1}', *GOOD_JSON), 3, ("train.jsonl:2:14",), "train.jsonl"),
    Case("B17-skipped", jsonl(*GOOD_JSON, "{]"), 0, ("skipped 1 row", "train.jsonl:9"), "train.jsonl", {"on_bad_row": "skip"}),
    Case("B18-cut", jsonl(*GOOD_JSON) + '{"text": "a fi', 3, ("train.jsonl:9", "last line has no end", "cut?"), "train.jsonl"),
    Case("B18-cut-gzip", packed(jsonl(*GOOD_JSON))[:-12], 3, ("train.jsonl.gz", "gzip", "damaged"), "train.jsonl.gz"),
    Case("B19-bom-json", b"\xef\xbb\xbf" + jsonl(*GOOD_JSON).encode(), 0, (), "train.jsonl"),
    Case("B20-integer-then-string", jsonl(row("a", 0), row("b", "1")), 3, ("line 1", "line 2", "'1'"), "train.jsonl"),
    Case("B20-true-then-string", jsonl(row("a", True), row("b", "yes")), 3, ("line 1", "line 2"), "train.jsonl"),
    Case("B21-key-missing", jsonl(*GOOD_JSON, {"text": "x"}), 3, ("train.jsonl:9", "'label'"), "train.jsonl"),
    Case("B21-skipped", jsonl(*GOOD_JSON, {"text": "x"}), 0, ("skipped 1 row",), "train.jsonl", {"on_bad_row": "skip"}),
    Case("B21-key-missing-in-the-first-row", jsonl({"text": "x"}, *GOOD_JSON), 3, ("train.jsonl:1", "'label'"), "train.jsonl"),
    Case("B22-extra-key", jsonl(*GOOD_JSON, {**row("x", "no"), "stars": 3}), 0, ("not used", "'stars'"), "train.jsonl"),
    Case("B23-blank-lines", jsonl("", *GOOD_JSON, "   ", ""), 0, (), "train.jsonl"),
    Case("B23-blank-lines-csv", "text,label\n\n" + ROWS + "\n", 0, ()),
    Case("B24-empty-json", b"", 3, ("train.jsonl", "empty (0 bytes)"), "train.jsonl"),
    Case("B24-only-blank-lines", "\n\n", 3, ("train.jsonl", "no rows"), "train.jsonl"),
    Case("B25-nan-label", jsonl('{"text": "a", "label": NaN}', row("b", "no")), 3, ("train.jsonl",), "train.jsonl"),
    Case("B25-nan-target", jsonl(row("b", 1.0), '{"text": "a", "label": NaN}'), 3, ("train.jsonl:2", "nan"), "train.jsonl", REGRESSION),
    Case("B26-array", json.dumps(GOOD_JSON), 3, ("train.jsonl:1", "array", "one object a line"), "train.jsonl"),
    Case("B26-array-after-a-blank-line", "\n" + json.dumps(GOOD_JSON), 3, ("train.jsonl:2", "array"), "train.jsonl"),
    Case("B27-corrupt-parquet", b"PAR1" + bytes(64), 3, ("train.parquet", "Parquet"), "train.parquet"),
    Case("B27-cut-parquet", parquet(text=["a"] * 99, label=["b"] * 99)[:-40], 3, ("train.parquet",), "train.parquet"),
    Case("B27-no-parquet-at-all", GOOD, 3, ("train.parquet", "Parquet"), "train.parquet"),
    Case("B28-list-column", parquet(text=[["a"], ["b"]], label=["x", "y"]), 3, ("'text'", "list<", "string", "label"), "train.parquet"),
    Case("B28-number-column", parquet(text=[1, 2], label=["x", "y"]), 3, ("'text'", "not text"), "train.parquet"),
    Case("B29-gzip-without-gz", packed(GOOD), 3, ("train.csv", "1f\\x8b", "gzip")),
    Case("B29-gz-that-is-plain", GOOD, 3, ("train.csv.gz", "text", "not gzip"), "train.csv.gz"),
    Case("B29-parquet-named-csv", parquet(text=["a"], label=["b"]), 3, ("train.csv", "PAR1")),
    Case("B29-spreadsheet", b"PK\x03\x04" + bytes(40), 3, ("train.csv", "zip")),
    Case("B29-unknown-ending", GOOD, 3, ("train.xlsx", ".csv", ".parquet"), "train.xlsx"),
    Case("B30-folder", a_folder, 3, ("reviews.csv",), "data"),
    Case("B31-glob", GOOD, 2, ("*.tsv",), options={"train": "*.tsv"}),
    Case("B31-no-such-file", GOOD, 3, ("trian.csv", "did you mean train.csv"), options={"train": "trian.csv"}),
    Case("B34-link-loop", a_loop, 3, ("train.csv", "link")),
    Case("B34-fifo", lambda path: os.mkfifo(path), 3, ("train.csv", "pipe")),
    Case("B34-device", lambda path: path.symlink_to("/dev/zero"), 3, ("train.csv", "device")),
    Case("B35-not-in-labels", HEAD + "x,maybe\n", 3, ("train.csv:4", "'maybe'", "'no', 'yes'"), options={"labels": ("no", "yes")}),
    Case("B35-id-out-of-range", "text,label\na,0\nb,1\nc,2\n", 3, ("train.csv:4", "'2'", "0 to 1"), options={"labels": ("0", "1")}, validation=None),
    Case("B36-minus-one", "text,label\na,0\nb,1\nc,-1\n", 3, ("train.csv:4", "-1"), validation=None),
    Case("B36-minus-hundred", jsonl(row("a", 0), row("b", 1), row("c", -100)), 3, ("train.jsonl:3", "-100"), "train.jsonl", validation=None),
    Case("B37-one-class", "text,label\na,yes\nb,yes\nc,yes\n", 3, ("'yes'", "allow_single_class"), validation=None),
    Case("B37-allowed", "text,label\na,yes\nb,yes\nc,yes\n", 0, (), options={"allow_single_class": True}, validation=None),
    Case("B38-class-only-in-validation", HEAD, 3, ("validation.csv:3", "'perhaps'"), validation="text,label\nu,yes\nv,perhaps\n"),
    Case("B39-label-listed-twice", GOOD, 2, ("task.labels", "'no'", "twice"), options={"labels": ("no", "yes", "no")}),
    Case("B39-label-without-rows", GOOD, 2, ("task.labels", "'maybe'"), options={"labels": ("no", "yes", "maybe")}),
    Case("B39-label-misspelt", GOOD, 2, ("task.labels", "'yess'", "did you mean 'yes'"), options={"labels": ("no", "yess")}),
    Case("B39-labels-for-regression", NUMBERS, 2, ("task.labels",), options={"labels": ("a",), **REGRESSION}),
    Case("B40-yes-and-no", GOOD, 0, ()),
    Case("B42-list-as-label", jsonl(row("a", [0, 1]), row("b", [1, 0])), 3, ("train.jsonl:1", "[0, 1]"), "train.jsonl"),
    Case("B43-nan-target", NUMBERS + "four,nan\n", 3, ("train.csv:5", "nan", "finite"), options=REGRESSION),
    Case("B43-infinite-target", NUMBERS + "four,inf\n", 3, ("train.csv:5", "inf", "finite"), options=REGRESSION),
    Case("B43-too-large-for-float32", NUMBERS + "four,1e300\n", 3, ("train.csv:5", "1e300"), options=REGRESSION),
    Case("B43-word-as-target", NUMBERS + "four,high\n", 3, ("train.csv:5", "'high'", "not a number"), options=REGRESSION),
    Case("B43-decimal-comma", NUMBERS + 'four,"2,5"\n', 3, ("train.csv:5", "'2,5'"), options=REGRESSION),
    Case("B43-underscore", NUMBERS + "four,1_000\n", 3, ("train.csv:5", "'1_000'"), options=REGRESSION),
    Case("B43-true-as-target", jsonl(row("a", True), row("b", 1.0)), 3, ("train.jsonl:1",), "train.jsonl", REGRESSION),
    Case("B44-empty-text", HEAD + ",no\n   ,yes\n", 0, ("2 rows", "empty", "line 4")),
    Case("B45-ten-megabytes", HEAD + "x" * 10_000_000 + ",no\n", 0, ("1 row", "20000 characters", "line 4")),
    Case("B47-value-is-cut-in-messages", jsonl(row("a", "x" * 100_000), row("b", 1)), 3, ("line 1",), "train.jsonl"),
    Case("B48-lone-surrogate", jsonl(*GOOD_JSON, '{"text": "half \\ud83d", "label": "no"}'), 3, ("train.jsonl:9", "surrogate"), "train.jsonl"),
    Case("B48-lone-surrogate-in-label", jsonl(*GOOD_JSON, '{"text": "half", "label": "\\ud83d"}'), 3, ("train.jsonl:9", "surrogate"), "train.jsonl"),
    Case("B49-terminal-escapes", HEAD + "red \x1b[31m,no\n", 0, ("1 row", "escape", "line 4")),
    Case("B49-escapes-in-a-label", "text,label\na,\x1b[2J\nb,\x1b[2J\n", 3, ("\\x1b[2J",), validation=None),
    Case("B51-shared-rows", GOOD, 0, ("8 of 8 validation rows (100.0%) also stand in train",)),
]  # fmt: skip


def read(folder: Path, case: Case) -> Task:
    path = folder / case.name
    if callable(case.file):
        case.file(path)
    else:
        path.write_bytes(case.file.encode() if isinstance(case.file, str) else case.file)
    chosen: dict[str, Any] = {"kind": "classification", "train": case.name, **case.options}
    if case.validation is not None and chosen["kind"] == "classification":
        content = case.validation.replace(",", chosen.get("delimiter", ","))
        (folder / "validation.csv").write_bytes(content.encode(chosen.get("encoding", "utf-8")))
        chosen["validation"] = "validation.csv"
    return load_task(TaskSettings(**chosen), base=folder, seed=0)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_a_bad_data_file_is_answered_as_the_table_says(case: Case, tmp_path: Path) -> None:
    if case.code == 0:
        task = read(tmp_path, case)
        notes = "\n".join(task.notes)
        assert all(word in notes for word in case.says), notes
        assert len(task.train) > 0
        return
    with pytest.raises(DistillkitError) as caught:
        read(tmp_path, case)
    message = str(caught.value)
    assert caught.value.exit_code == case.code, message
    assert all(word in message for word in case.says), message
    assert message.replace("\n", "").isprintable() and len(message) < 3000


def test_all_bad_rows_are_told_at_once_and_no_more_than_twenty(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\n" + "ragged\n" * 3 + ROWS)
    with pytest.raises(ErrorGroup) as three:
        load_task(TaskSettings(kind="classification", train="train.csv"), base=tmp_path, seed=0)
    assert [error.where.rsplit(":", 1)[1] for error in three.value.errors] == ["2", "3", "4"]

    (tmp_path / "train.csv").write_text("text,label\n" + "ragged\n" * 50 + ROWS)
    with pytest.raises(ErrorGroup) as many:
        load_task(TaskSettings(kind="classification", train="train.csv"), base=tmp_path, seed=0)
    assert len(many.value.errors) == 21 and "30 more rows" in str(many.value)


def test_texts_that_look_like_missing_values_stay_texts(tmp_path: Path) -> None:
    """B14: other readers turn them into None, and the whole column into numbers."""
    words = ["NA", "null", "None", "nan", "", "1", "true"]
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"{word},yes\n" for word in words) + ROWS)
    task = load_task(
        TaskSettings(kind="classification", train="train.csv", validation="train.csv"), base=tmp_path, seed=0
    )
    assert [text for (text,) in task.train.texts[: len(words)]] == words


def test_a_byte_order_mark_is_no_part_of_a_column_name(tmp_path: Path) -> None:
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "train.csv").write_bytes(GOOD.encode(encoding))
        said = "utf-8" if encoding == "utf-8-sig" else encoding
        task = load_task(
            TaskSettings(kind="classification", train="train.csv", validation="train.csv", encoding=said),
            base=tmp_path,
            seed=0,
        )
        assert task.train.texts[0] == ("row number 0",)


@pytest.mark.parametrize("name", ["with space.csv", "über.csv", "line\nend.csv", "-leading.csv", "a[1]*.csv"])
def test_b33_any_file_name_works(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(GOOD)
    task = load_task(TaskSettings(kind="classification", train=name, validation=name), base=tmp_path, seed=0)
    assert len(task.train) == 8


def test_b32_a_file_without_permission_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.csv").write_text(GOOD)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read everything
    with pytest.raises(DistillkitError) as caught:
        load_task(TaskSettings(kind="classification", train="train.csv"), base=tmp_path, seed=0)
    assert (
        caught.value.exit_code == 3 and "permission" in str(caught.value) and "train.csv" in str(caught.value)
    )


FORMATS = ("train.csv", "train.tsv", "train.jsonl", "train.jsonl.gz", "train.csv.gz", "train.tsv.gz")


def written(name: str) -> bytes:
    """The eight good rows in the format that a name asks for."""
    text = jsonl(*GOOD_JSON) if ".jsonl" in name else GOOD.replace(",", "\t") if ".tsv" in name else GOOD
    return packed(text) if name.endswith(".gz") else text.encode()


def mutated(content: bytes, generator: random.Random) -> bytes:
    """One to four random changes: bytes replaced, cut out, doubled or put in."""
    bad = (
        b'"',
        b"\0",
        b"\xff",
        b",",
        b"\n",
        b"\r",
        b"{",
        b"[" * 5,
        b"\\ud800",
        b"\x1b[2J",
        b"9" * 20,
        b"NaN",
        b"\t",
    )
    for _ in range(generator.randint(1, 4)):
        start = generator.randrange(len(content) + 1)
        end = min(len(content), start + generator.choice((0, 1, 3, 40)))
        content = content[:start] + generator.choice((b"", *bad, content[start:end] * 2)) + content[end:]
    return content


def check_mutated(seed: int, folder: Path) -> None:
    """Whatever is in the file, it is read or refused in printable words with code 2 or 3."""
    generator = random.Random(seed)
    name = generator.choice(FORMATS)
    (folder / name).write_bytes(mutated(written(name), generator))
    chosen = {
        "on_bad_row": generator.choice(("error", "skip")),
        "kind": generator.choice(("classification", "regression")),
    }
    try:
        task = load_task(TaskSettings(train=name, **chosen), base=folder, seed=0)
    except DistillkitError as error:
        assert error.exit_code in (2, 3)
        assert str(error).replace("\n", "").isprintable()
    else:
        assert (
            len(task.train) > 0
            and task.train.labels is not None
            and len(task.train.labels) == len(task.train)
        )
    finally:
        (folder / name).unlink()


QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=100, deadline=None, suppress_health_check=QUIET, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_a_mutated_file_never_ends_in_a_traceback(seed: int, tmp_path: Path) -> None:
    check_mutated(seed, tmp_path)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, suppress_health_check=QUIET)
@given(seed=st.integers(0, 2**32))
def test_many_mutated_files_never_end_in_a_traceback(seed: int, tmp_path: Path) -> None:
    check_mutated(seed, tmp_path)
