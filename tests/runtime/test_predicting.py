"""`distillkit predict`: rows in, answers out, in order; bad rows by file and line."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pytest
from artifacts import make
from pyarrow import parquet

from distillkit.cli import main
from distillkit.runtime import Artifact

ROOT = Path(__file__).parents[2]
TEXTS = ["bafa good", "bad fan dan " * 20, "x", "gan"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made") / "whole").folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[dict[str, Any]]:
    return [answer.as_json() for answer in Artifact.load(folder).predict(TEXTS)]


def typed(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))


def written(folder: Path, name: str) -> Path:
    """TEXTS as a file of that kind, with a column that no model reads."""
    path = folder / name
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.table({"text": TEXTS, "key": list("abcd")}), path)
    elif path.suffix == ".jsonl":
        path.write_text(
            "".join(
                json.dumps({"text": text, "key": key}) + "\n" for text, key in zip(TEXTS, "abcd", strict=True)
            )
        )
    else:
        with path.open("w", newline="") as file:
            csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows(
                [("text", "key"), *zip(TEXTS, "abcd", strict=True)]
            )
    return path


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.jsonl", "rows.parquet"])
def test_every_kind_of_file_is_answered_in_its_order(
    name: str,
    folder: Path,
    expected: list[dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = written(tmp_path, name)
    assert main(["predict", str(folder), str(path), "--keep", "key"]) == 0
    said = capsys.readouterr()
    told = [json.loads(line) for line in said.out.splitlines()]
    first = {"csv": 2, "tsv": 2}.get(path.suffix[1:], 1)
    for place, (line, answer) in enumerate(zip(told, expected, strict=True)):
        assert line.pop("line") == first + place and line.pop("key") == "abcd"[place]
        assert line.pop("probabilities") == pytest.approx(answer["probabilities"], abs=1e-6)
        assert line == {
            **{key: value for key, value in answer.items() if key in line},
            "probability": line["probability"],
        }
    assert "1 of 4 rows were cut" in said.err


def test_lines_of_stdin_are_texts(
    folder: Path,
    expected: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An empty line is a text too, so that answers and lines stay side by side."""
    typed(monkeypatch, "\ufeff".encode() + "\r\n".join([*TEXTS, "", "last"]).encode())
    assert main(["predict", str(folder), "--quiet"]) == 0
    said = capsys.readouterr()
    told = [json.loads(line) for line in said.out.splitlines()]
    assert [line["line"] for line in told] == [1, 2, 3, 4, 5, 6] and said.err == ""
    assert [line["label"] for line in told[:4]] == [answer["label"] for answer in expected]


def test_pairs_and_words_are_read_from_lines_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = make(tmp_path / "pairs", columns=("one", "two")).folder
    words = make(tmp_path / "words", "token_classification", labels=("O", "B-x")).folder
    typed(monkeypatch, b"bafa\tgood\n")
    assert main(["predict", str(pairs)]) == 0
    label = json.loads(capsys.readouterr().out)["label"]
    assert label == Artifact.load(pairs).predict([("bafa", "good")])[0].as_json()["label"]
    typed(monkeypatch, b"bafa  good dan\n")
    assert main(["predict", str(words), "--format", "csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert len(json.loads(row["tags"])) == 3
    typed(monkeypatch, b"one\ttwo\nno tab\n")
    assert main(["predict", str(pairs)]) == 3
    assert "stdin:2" in capsys.readouterr().err


def test_columns_are_those_of_the_training_or_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make(tmp_path / "model", columns=("premise", "hypothesis")).folder
    (tmp_path / "rows.csv").write_text("hypothesis,premise,b\nx good,bafa,dan\n")
    answers = []
    first, second = ["--text", "premise"], ["--text", "hypothesis"]
    for options in ([], [*first, *second], [*second, *first]):
        assert main(["predict", str(model), str(tmp_path / "rows.csv"), *options]) == 0
        answers.append(json.loads(capsys.readouterr().out)["probabilities"])
    assert answers[0] == answers[1] != answers[2]
    assert main(["predict", str(model), str(tmp_path / "rows.csv"), "--text", "premise"]) == 2
    assert "in training: premise, hypothesis" in capsys.readouterr().err


def test_a_run_is_its_artifact(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("name: x")
    (tmp_path / "run" / "export").symlink_to(folder)
    typed(monkeypatch, b"good\n")
    assert main(["predict", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize(
    ("content", "options", "code", "words"),
    [
        ('{"text": "a"}\n{"text": null}\n', [], 3, ("rows.jsonl:2", "None")),
        ('{"text": "a"}\n{"text": 7}\n{"text": ["b"]}\n', [], 3, ("rows.jsonl:2", "rows.jsonl:3")),
        ('{"text": "a"}\n{"text"\n', [], 3, ("rows.jsonl:2",)),
        ('{"text": "\\ud800"}\n', [], 3, ("rows.jsonl:1", "lone surrogate")),
        ('{"txt": "a"}\n', [], 2, ("'text'", "did you mean 'txt'")),
        ('{"text": "a"}\n', ["--text", "txt"], 2, ("'txt'",)),
        ('{"text": "a"}\n', ["--task", "sst"], 2, ("'sst'",)),
        ('{"text": "a"}\n', ["--format", "xml"], 2, ("'xml'", "jsonl or csv")),
        ('{"text": "a", "label": 1}\n', ["--keep", "label"], 2, ("'label'", "--keep")),
        ('{"text": "a"}\n', ["--provider", "tpu"], 2, ("'tpu'",)),
        ('{"text": "a"}\n', ["--output", "no/such/folder/x.csv"], 2, ("no/such/folder",)),
        ('{"text": "a"}\n', ["--output", "rows.jsonl"], 2, ("rows.jsonl", "replace")),
        ("", [], 3, ("empty",)),
    ],
)
def test_what_cannot_be_answered_is_told_with_its_place(
    content: str,
    options: list[str],
    code: int,
    words: tuple[str, ...],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(content)
    assert main(["predict", str(folder), "rows.jsonl", *options]) == code
    said = capsys.readouterr()
    assert [word for word in words if word not in said.err] == [], said.err
    assert said.out == "" and {path.name for path in tmp_path.iterdir()} == {"rows.jsonl"}


def test_a_file_of_answers_appears_whole_or_not_at_all(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second chunk is bad: nothing of the first is left, and what was there before still is."""
    monkeypatch.setattr("distillkit.predicting._CHUNK", 2)
    target = tmp_path / "answers.jsonl"
    target.write_text("before")
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n{"text": 3}\n')
    assert main(["predict", str(folder), str(tmp_path / "rows.jsonl"), "-o", str(target)]) == 3
    assert target.read_text() == "before"
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n')
    assert main(["predict", str(folder), str(tmp_path / "rows.jsonl"), "-o", str(target)]) == 0
    assert [json.loads(line)["line"] for line in target.read_text().splitlines()] == [1, 2, 3]
    assert {path.name for path in tmp_path.iterdir()} == {"answers.jsonl", "rows.jsonl"}


def test_s11_a_spreadsheet_computes_nothing_of_an_answer(tmp_path: Path) -> None:
    """A label or a column that is carried along may come from anybody."""
    labels = ("=cmd|'/c calc'!A1", "+1", "-1", "@x")
    model = make(tmp_path / "model", labels=labels).folder
    rows = [{"text": text, "key": key} for text, key in zip(TEXTS, ("=1", "\tx", "fine", "-2"), strict=True)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "answers.csv"
    command = ["predict", str(model), str(tmp_path / "rows.jsonl"), "--keep", "key", "-o", str(out)]
    assert main([*command, "--spreadsheet"]) == 0
    safe = list(csv.DictReader(io.StringIO(out.read_text())))
    assert [row["key"] for row in safe] == ["'=1", "'\tx", "fine", "'-2"]
    assert all(row["label"].startswith("'") for row in safe)
    assert main(command) == 0
    plain = list(csv.DictReader(io.StringIO(out.read_text())))
    assert [row["key"] for row in plain] == ["=1", "\tx", "fine", "-2"]


def test_no_torch_is_imported(folder: Path) -> None:
    code = f"""
import sys
from distillkit.cli import main
code = main(["predict", {str(folder)!r}, "--threads", "1"])
print(code, [name for name in ("torch", "transformers", "onnx", "sklearn") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="good\n",
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
