"""`distillkit init`: what it sees in a file, and that what it writes validates."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from distillkit import catalog, recipe
from distillkit.cli import main
from distillkit.errors import ConfigError, DataError
from distillkit.init import SCHEMA_FILE, look_at, write_config
from distillkit.sources import check_sources

SENTENCES = [f"this is sentence number {number} of the file" for number in range(40)]


def write(path: Path, rows: list[dict[str, object]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def classes(text: str = "text", label: str = "label") -> list[dict[str, object]]:
    return [{text: sentence, label: ("no", "yes")[row % 2]} for row, sentence in enumerate(SENTENCES)]


def pairs() -> list[dict[str, object]]:
    return [
        {"id": row, "one": sentence, "two": sentence[::-1], "score": row / 7}
        for row, sentence in enumerate(SENTENCES)
    ]


def load(path: Path) -> recipe.Loaded:
    loaded = recipe.load(path, components=catalog.components)
    check_sources(loaded)
    return loaded


@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t"])
@pytest.mark.parametrize(
    ("text", "label"), [("text", "label"), ("Film: Review #1", "who's 'it'?"), ("größe", "yes")]
)
def test_what_is_written_validates(text: str, label: str, delimiter: str, tmp_path: Path) -> None:
    data = write(tmp_path / "my data.csv", classes(text, label), delimiter)
    write_config(data, tmp_path / "config.yaml")
    task = load(tmp_path / "config.yaml").config.task
    assert (task.kind, task.text, task.label) == ("classification", text, label)
    assert task.train == "my data.csv"


def test_a_pair_and_a_number_are_seen(tmp_path: Path) -> None:
    write_config(write(tmp_path / "train.csv", pairs()), tmp_path / "config.yaml")
    config = load(tmp_path / "config.yaml").config
    assert config.task.kind == "regression"
    assert (config.task.text, config.task.label) == (("one", "two"), "score")


def test_json_lines_are_seen(tmp_path: Path) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in classes("sentence", "intent")))
    look = look_at(data)
    assert (look.text, look.label, look.classes, look.rows) == (("sentence",), "intent", ("no", "yes"), 40)


def test_a_folder_brings_its_splits(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split in ("train", "dev", "test"):
        write(tmp_path / "data" / f"{split}.csv", classes())
    write_config(tmp_path / "data", tmp_path / "config.yaml")
    task = load(tmp_path / "config.yaml").config.task
    assert (task.train, task.validation, task.test) == ("data/train.csv", "data/dev.csv", "data/test.csv")


def test_the_label_is_found_by_its_name_among_candidates(tmp_path: Path) -> None:
    rows = [
        {"label": row["label"], "text": row["text"], "source": "ab"[i % 2]} for i, row in enumerate(classes())
    ]
    assert look_at(write(tmp_path / "t.csv", rows)).label == "label"


def test_a_config_elsewhere_finds_its_data(tmp_path: Path) -> None:
    data = write(tmp_path / "train.csv", classes())
    write_config(data, tmp_path / "deep" / "er" / "config.yaml")
    assert load(tmp_path / "deep" / "er" / "config.yaml").config.task.train == "../../train.csv"


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    data = write(tmp_path / "train.csv", classes())
    config = tmp_path / "config.yaml"
    config.write_text("mine")
    with pytest.raises(ConfigError, match="there is a file already"):
        write_config(data, config)
    assert config.read_text() == "mine"


def test_editors_find_the_schema(tmp_path: Path) -> None:
    write_config(write(tmp_path / "train.csv", classes()), tmp_path / "config.yaml")
    first = (tmp_path / "config.yaml").read_text().splitlines()[0]
    assert first == f"# yaml-language-server: $schema={SCHEMA_FILE}"
    assert "properties" in json.loads((tmp_path / SCHEMA_FILE).read_text())


def test_a_file_without_texts_is_refused_in_words(tmp_path: Path) -> None:
    data = write(tmp_path / "t.csv", [{"a": row % 2, "b": row % 3} for row in range(20)])
    with pytest.raises(ConfigError, match="no column looks like a text; found 'a', 'b'"):
        look_at(data)


def test_a_file_without_labels_is_refused_in_words(tmp_path: Path) -> None:
    data = write(tmp_path / "t.csv", [{"text": sentence} for sentence in SENTENCES])
    with pytest.raises(ConfigError, match="no column looks like a label"):
        look_at(data)


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        look_at(tmp_path / "none.csv")


def test_the_command_says_what_it_saw_and_what_is_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "train.csv", classes())
    monkeypatch.chdir(tmp_path)
    assert main(["init", "train.csv"]) == 0
    said = capsys.readouterr().out
    assert "classification of 'text' into 2 classes ('label'), 40 rows" in said
    assert "distillkit plan config.yaml" in said
    assert main(["init", "train.csv"]) == 2


def test_texts_for_texts_are_seen_by_their_names(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"target": f"say {' '.join(reversed(text.split()))}", "source": text} for text in SENTENCES
    ]
    said = write_config(write(tmp_path / "train.csv", rows), tmp_path / "config.yaml")
    assert "text_to_text of 'source' into a text ('target'), 40 rows" in said
    config = load(tmp_path / "config.yaml").config
    task = config.task
    assert (task.kind, task.text, task.label, task.max_target) == ("text_to_text", "source", "target", 32)
    assert (config.teacher.use, config.student.use) == ("t5", "seq2seq")


def test_classes_and_numbers_are_no_texts_whatever_their_name(tmp_path: Path) -> None:
    for target, kind in (("yes", "classification"), (0.5, "regression")):
        rows: list[dict[str, object]] = [
            {"input": text, "target": ("no", target)[row % 2] if kind == "classification" else row / 7}
            for row, text in enumerate(SENTENCES)
        ]
        assert look_at(write(tmp_path / f"{kind}.csv", rows)).kind == kind
