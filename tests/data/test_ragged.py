"""Rows of different lengths on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from distillkit.data.ragged import Column, Part, Shards, write_shard
from distillkit.errors import DataError

COLUMNS = {
    "states": Column("bfloat16", (3,), "tokens"),
    "scores": Column("float32", (), "answers"),
    "best": Column("int32", (2,), "answers"),
}


def part(ids: list[int], tokens: list[int], answers: list[int]) -> Part:
    counts = {"tokens": sum(tokens), "answers": sum(answers)}
    generator = torch.Generator().manual_seed(ids[0])
    items: dict[str, Tensor] = {
        "states": torch.randn(counts["tokens"], 3, generator=generator).bfloat16(),
        "scores": torch.randn(counts["answers"], generator=generator),
        "best": torch.randint(9, (counts["answers"], 2), generator=generator).int(),
    }
    return Part(np.asarray([ids, [0] * len(ids), tokens, answers]).T, items)


def test_rows_come_back_in_any_order_from_any_shard(tmp_path: Path) -> None:
    """Against a list of each row's items; one row has no answer, and one shard none at all."""
    parts = [part([7, 3], [2, 4], [1, 0]), part([5], [1], [2]), part([40, 2], [3, 1], [0, 0])]
    write_shard(tmp_path / "0", COLUMNS, {}, parts[:2])
    write_shard(tmp_path / "1", COLUMNS, {}, parts[2:])
    expected: dict[tuple[str, int], Tensor] = {}
    for one in parts:
        for name, column in COLUMNS.items():
            cuts = one.table[:, 2 if column.per == "tokens" else 3].tolist()
            pieces = one.items[name].split(cuts)
            expected |= {(name, int(row[0])): piece for row, piece in zip(one.table, pieces, strict=True)}
    shards = Shards([tmp_path / "0", tmp_path / "1"])
    for ids in ([2, 7, 40, 5, 3], [5], [3, 3, 2]):
        places = shards.find(np.asarray(ids))
        assert shards.table(places)[:, 0].tolist() == ids
        for name in COLUMNS:
            told = shards.read(name, places)
            assert torch.equal(told, torch.cat([expected[name, row] for row in ids]))
            assert told.dtype == expected[name, 7].dtype


def test_two_rows_with_one_id_are_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "0", COLUMNS, {}, [part([4, 1], [1, 1], [1, 1])])
    write_shard(tmp_path / "1", COLUMNS, {}, [part([4], [1], [1])])
    with pytest.raises(DataError, match="two rows have the id 4"):
        Shards([tmp_path / "0", tmp_path / "1"])
