"""Words with tags: what a row must be, and that each tag stands at the first piece of its word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny import WORDS, tokenizer

from distillkit.data.batching import Encoded, collate, drawn, encode
from distillkit.data.layouts import Words
from distillkit.data.tasks import Rows, Task, load_task, unlabelled_rows
from distillkit.errors import ConfigError, DataError
from distillkit.settings import TaskSettings
from distillkit.types import IGNORED

Row = dict[str, Any]
TAGS = ("B-x", "I-x", "O")
TOKENIZER = tokenizer()


def made(count: int, *, longest: int = 9, seed: int = 0) -> list[Row]:
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, longest, size=count)
    words = [["".join(generator.choice(WORDS, size=2)) for _ in range(size)] for size in sizes]
    return [{"tokens": row, "tags": generator.choice(TAGS, size=len(row)).tolist()} for row in words]


def load(folder: Path, rows: list[Row], validation: list[Row] | None = None, **options: Any) -> Task:
    for name, part in (("train", rows), ("validation", rows if validation is None else validation)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    given = {"validation": "validation.jsonl", **options}
    settings = TaskSettings(
        kind="token_classification", train="train.jsonl", text="tokens", label="tags", **given
    )
    return load_task(settings, base=folder, seed=1)


def encoded(rows: Rows, folder: Path, max_length: int = 12) -> Encoded:
    return encode(rows, TOKENIZER, max_length=max_length, cache=folder / "cache")


def slow_labels(words: list[str], tags: list[str], max_length: int) -> list[int]:
    """Each word tokenised by itself: its tag, then IGNORED for each further piece."""
    inner: list[int] = []
    for word, tag in zip(words, tags, strict=True):
        pieces = TOKENIZER(word, add_special_tokens=False).input_ids
        inner += [TAGS.index(tag), *[IGNORED] * (len(pieces) - 1)]
    return [IGNORED, *inner[: max_length - 2], IGNORED]


def test_each_tag_stands_at_the_first_piece_of_its_word_and_long_rows_are_cut(tmp_path: Path) -> None:
    rows = made(40)
    data = encoded(load(tmp_path, rows).train, tmp_path)
    batch = collate(data, np.arange(40)[::-1].copy())
    assert batch.labels is not None and batch.scored is not None and batch.targets is not None
    expected = [slow_labels(row["tokens"], row["tags"], 12) for row in rows[::-1]]
    assert max(map(len, expected)) == 12 and data.truncated > 0
    for found, real, labels in zip(batch.labels, batch.mask, expected, strict=True):
        assert found[real].tolist() == labels and (found[~real] == IGNORED).all()
    assert (batch.scored == (batch.labels != IGNORED)).all()
    flat = [label for labels in expected for label in labels if label != IGNORED]
    assert batch.targets.tolist() == flat and batch.num_answers == len(flat)


def test_gold_names_label_and_row_of_every_answer(tmp_path: Path) -> None:
    rows = made(10)
    data = encoded(load(tmp_path, rows).train, tmp_path)
    expected = [
        (label, place)
        for place, row in enumerate(rows)
        for label in slow_labels(row["tokens"], row["tags"], 12)
        if label != IGNORED
    ]
    assert data.gold is not None and data.gold.tolist() == [list(pair) for pair in expected]
    assert data.num_answers.tolist() == np.bincount([row for _, row in expected], minlength=10).tolist()


def test_a_word_without_pieces_is_not_asked_and_the_others_keep_their_tags(tmp_path: Path) -> None:
    """A tokenizer strips what it takes for control characters; a tag that moved on would be silent."""
    row = {"tokens": ["ba", "\u200d", "", "de"], "tags": ["B-x", "O", "O", "I-x"]}
    task = load(tmp_path, [row, *made(3)])
    data = encoded(task.train, tmp_path)
    assert data.gold is not None
    assert [TAGS[label] for label, place in data.gold if place == 0] == ["B-x", "I-x"]
    assert Words.answered(task.train.texts[0], TOKENIZER, 12) == ("ba", "de")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "1 tags for 2 words"),
        ({"tokens": [], "tags": []}, "empty list"),
        ({"tokens": "a b", "tags": ["O", "O"]}, "str 'a b', not a list of words"),
        ({"tokens": ["a", 3], "tags": ["O", "O"]}, "word 2: column 'tokens' is int 3"),
        ({"tokens": ["a", None], "tags": ["O", "O"]}, "word 2: column 'tokens' is missing"),
        ({"tokens": ["a"], "tags": "O"}, "'O' is not a list of tags"),
        ({"tokens": ["a"], "tags": [0]}, "tag 1 is 0, not a name"),
        ({"tokens": ["a", "b"], "tags": ["O", "B-y"]}, "tag 2, 'B-y', is not one of the task's 3 tags"),
    ],
)
def test_a_bad_row_is_refused_with_its_place_or_skipped(row: Row, words: str, tmp_path: Path) -> None:
    """B52 and its like. A tag that no training row has is found in validation."""
    train = [*made(6), {"tokens": ["x"] * 3, "tags": list(TAGS)}]
    validation = [train[-1], row]
    with pytest.raises(DataError, match=r"validation\.jsonl:2") as caught:
        load(tmp_path, train, validation)
    assert words in str(caught.value)
    task = load(tmp_path, train, validation, on_bad_row="skip")
    assert len(task.validation) == 1 and any("skipped 1 rows" in note for note in task.notes)


def test_lists_of_parquet_are_read_and_other_kinds_still_refuse_them(tmp_path: Path) -> None:
    rows = made(12)
    table = {name: [row[name] for row in rows] for name in ("tokens", "tags")}
    pq.write_table(pa.table(table), tmp_path / "train.parquet")
    options = {"train": "train.parquet", "validation": "train.parquet", "text": "tokens", "label": "tags"}
    task = load_task(TaskSettings(kind="token_classification", **options), base=tmp_path, seed=0)
    assert task.train.texts == tuple(tuple(row["tokens"]) for row in rows)
    with pytest.raises(DataError, match="list<"):
        load_task(TaskSettings(kind="classification", **options), base=tmp_path, seed=0)


def test_rows_held_out_leave_every_tag_in_train_and_take_their_tags_along(tmp_path: Path) -> None:
    rows = [{"tokens": [f"w{place}", "z"], "tags": ["O", "O"]} for place in range(30)]
    rows[7]["tags"] = ["B-x", "I-x"]
    load(tmp_path, rows)
    settings = TaskSettings(kind="token_classification", train="train.jsonl", text="tokens", label="tags")
    task = load_task(settings, base=tmp_path, seed=1)
    assert len(task.validation) == 3 and len(task.train) == 27
    place = [texts[0] for texts in task.train.texts].index("w7")
    assert task.train.labels is not None
    assert [TAGS[label] for label in task.train.labels[2 * place : 2 * place + 2]] == ["B-x", "I-x"]


def test_a_corpus_is_asked_at_first_pieces_without_labels(tmp_path: Path) -> None:
    task = load(tmp_path, made(4))
    rows = unlabelled_rows(task, [["ba de", "lo"], ["mu"]], "corpus")
    data = encoded(rows, tmp_path)
    batch = collate(data, np.arange(3))
    assert rows.texts == (("ba", "de"), ("lo",), ("mu",)) and data.gold is None
    assert batch.labels is None and batch.targets is None and batch.num_answers == 4


def test_entity_f1_is_refused_where_tags_begin_no_entity(tmp_path: Path) -> None:
    rows = [{"tokens": ["a", "b"], "tags": ["DET", "NOUN"]}]
    with pytest.raises(ConfigError, match="begin no entities"):
        load(tmp_path, rows, metric="entity_f1")
    assert load(tmp_path, rows).labels.names == ("DET", "NOUN")


def test_drawn_rows_keep_the_tags_of_their_words(tmp_path: Path) -> None:
    whole = encoded(load(tmp_path, made(30)).train, tmp_path)
    some = drawn(whole, 12, seed=3)
    mine, theirs = collate(some, np.arange(12)), collate(whole, np.flatnonzero(np.isin(whole.ids, some.ids)))
    assert mine.labels is not None and theirs.labels is not None and torch.equal(mine.labels, theirs.labels)
    assert torch.equal(mine.inputs["input_ids"], theirs.inputs["input_ids"])
    assert some.gold is not None and whole.gold is not None
    assert len(some.gold) == some.num_answers.sum() < len(whole.gold)
