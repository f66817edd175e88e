"""Sources and targets: what a row must be, what of it a model reads and what it answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinytexts
import torch
from tiny import tokenizer as wordpiece

from distillkit.data.batching import collate, encode
from distillkit.data.tasks import load_task
from distillkit.errors import DataError, ModelError
from distillkit.settings import TaskSettings
from distillkit.types import IGNORED

SETTINGS: dict[str, Any] = {
    "kind": "text_to_text",
    "train": "train.jsonl",
    "validation": "train.jsonl",
    "text": "source",
    "label": "target",
}


def load(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> Any:
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_task(TaskSettings(**{**SETTINGS, **changes}), base=folder, seed=1)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_batch_holds_the_source_and_the_target_as_the_tokenizer_gives_each(
    family: tinytexts.FamilyName, tmp_path: Path
) -> None:
    read = tinytexts.tokenizer(family)
    rows = tinytexts.rows(12, prefix="ba : ")
    data = encode(rows, read, max_length=16, cache=tmp_path)
    batch = collate(data, np.arange(12)[::-1].copy())
    sources = [read("ba : " + text).input_ids for (text,) in rows.texts[::-1]]
    targets = [read(text).input_ids for text in rows.labels[::-1]]
    for name, real, wanted in (
        ("input_ids", batch.mask, sources),
        ("target_ids", batch.scored, targets),
    ):
        padded = batch.inputs[name]
        assert padded.shape == real.shape and real.sum(1).tolist() == [len(one) for one in wanted]
        for ids, mask, expected in zip(padded, real, wanted, strict=True):
            assert ids[mask].tolist() == expected and (ids[~mask] == read.pad_token_id).all()
            assert mask[: len(expected)].all(), "padding stands behind"
    assert (batch.inputs["attention_mask"] == batch.mask).all()
    flat = [token for target in targets for token in target]
    assert batch.targets.tolist() == flat and batch.num_answers == len(flat)
    assert (batch.labels[~batch.scored] == IGNORED).all()
    assert data.gold.tolist() == [
        [token, place] for place, target in enumerate(targets[::-1]) for token in target
    ]
    assert data.lengths.tolist() == [len(a) + len(b) for a, b in zip(sources, targets, strict=True)][::-1]
    assert batch.num_read == data.lengths.sum() and batch.num_places >= batch.num_read


def test_rows_that_are_cut_keep_their_end_and_are_counted(tmp_path: Path) -> None:
    read = tinytexts.tokenizer()
    data = encode(tinytexts.rows(30, longest=12, most=5), read, max_length=8, cache=tmp_path)
    batch = collate(data, np.arange(30))
    assert batch.mask.shape[1] == 8 and batch.scored.shape[1] == 5
    lengths = [len(text.split()) + 1 for (text,) in tinytexts.rows(30, longest=12).texts]
    assert data.truncated == sum(length > 5 for length in lengths)
    last = batch.scored.sum(1) - 1
    assert (batch.inputs["target_ids"].gather(1, last[:, None]) == read.eos_token_id).all()


def test_a_full_batch_says_so_only_where_no_source_is_padded(tmp_path: Path) -> None:
    """Rows of one length all told may hold sources of several."""
    data = tinytexts.encoded(tmp_path, 40)
    sizes = np.asarray([len(text.split()) for (text,) in data.texts])
    alike = np.flatnonzero(sizes == sizes[0])
    assert collate(data, alike).full and not collate(data, np.arange(40)).full


def test_the_columns_are_named_and_held_out_rows_share_no_source(tmp_path: Path) -> None:
    rows = [{"source": f"ba {index % 5}", "target": f"x {index}", "other": 1} for index in range(40)]
    task = load(tmp_path, rows, validation=None, holdout=0.3, prefix="p: ")
    assert {texts for texts in task.train.texts}.isdisjoint(task.validation.texts)
    assert len(task.train) + len(task.validation) == 40
    told = dict(zip(task.train.ids.tolist(), task.train.labels.tolist(), strict=True))
    assert all(rows[index]["target"] == text for index, text in told.items())
    assert load(tmp_path, rows, prefix="q: ").train.digest != load(tmp_path, rows, prefix="p: ").train.digest


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (None, "the target is missing"),
        ("  ", "the target is missing"),
        (3, "the target is int 3, not text"),
        (["a"], "the target is list ['a'], not text"),
    ],
)
def test_a_bad_target_is_refused_with_its_place_or_skipped(target: Any, words: str, tmp_path: Path) -> None:
    rows = [{"source": "a", "target": "b"}, {"source": "c", "target": target}]
    with pytest.raises(DataError, match=r"train\.jsonl:2") as caught:
        load(tmp_path, rows)
    assert words in str(caught.value)
    assert len(load(tmp_path, rows, on_bad_row="skip").train) == 1


def test_a_tokenizer_that_does_not_end_texts_is_refused(tmp_path: Path) -> None:
    """Nothing that was learned on such targets would ever stop."""
    with pytest.raises(ModelError, match="does not put an end token"):
        encode(tinytexts.rows(3), wordpiece(), max_length=16, cache=tmp_path)


def test_a_tokenizer_is_trained_on_what_is_read_and_on_what_is_to_be_written() -> None:
    """Else the words of targets alone are unknown, and a model learns to write nothing with high accuracy."""
    rows = tinytexts.rows(6)
    sources = [text for (text,) in rows.texts]
    assert list(rows.every_text) == [*sources, *rows.labels]
    assert list(replace(rows, labels=None).every_text) == sources


def test_taking_rows_takes_their_targets() -> None:
    rows = tinytexts.rows(6)
    part = rows.take(np.asarray([4, 1]), "part")
    assert part.labels is not None and part.labels.tolist() == [rows.labels[4], rows.labels[1]]
    assert torch.equal(torch.from_numpy(part.ids), torch.tensor([4, 1]))
