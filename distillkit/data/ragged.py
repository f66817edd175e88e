"""Ragged arrays of rows on disk: appended in shards that appear whole, memory-mapped, read by row id.

    <folder>/00000/  rows.bin  <column>.bin ...  manifest.json

rows.bin holds four int64 a row (`TABLE`). A row of a column has one item for each of its tokens, or for each
of its answers. Files are mapped without a file handle each, so that their number is not limited by `ulimit`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillkit import files
from distillkit.errors import DataError, IntegrityError

TABLE = ("id", "content", "tokens", "answers")
"""Of a row: its id, a hash of its content, and how many items it has in the columns."""
_ROWS = "rows"
Name = Literal["float32", "float16", "bfloat16", "int32"]
_DTYPES: Mapping[Name, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int32": torch.int32,
}
NAMES = {dtype: name for name, dtype in _DTYPES.items()}
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Column:
    """What an item is, and what a row has one for each of."""

    dtype: Name
    shape: tuple[int, ...]
    per: Literal["tokens", "answers"]

    @property
    def item_bytes(self) -> int:
        return _DTYPES[self.dtype].itemsize * prod(self.shape)


@dataclass(frozen=True)
class Part:
    """Some rows: their table `[n, 4]`, and the items of each column, row after row."""

    table: Ints
    items: Mapping[str, Tensor]


def write_shard(
    folder: Path, columns: Mapping[str, Column], facts: Mapping[str, Any], parts: Iterable[Part]
) -> None:
    """Append the parts to a new shard, which then appears whole, replacing one of that name.

    Raises ResourceError (7) where room runs out; nothing appears then.
    """
    described = {name: asdict(column) for name, column in columns.items()}
    with files.appearing(folder, lambda: {**facts, "columns": described}) as work, ExitStack() as stack:
        open_files = {
            name: stack.enter_context((work / f"{name}.bin").open("wb")) for name in (_ROWS, *columns)
        }
        for part in parts:
            open_files[_ROWS].write(np.ascontiguousarray(part.table).data)
            for name in columns:
                open_files[name].write(_bits(part.items[name]).data)
        for file in open_files.values():
            file.flush()


def shard_table(folder: Path) -> Ints:
    """The table of one shard."""
    return np.fromfile(folder / f"{_ROWS}.bin", dtype=np.int64).reshape(-1, len(TABLE))


class Shards:
    """Shards as one set of rows. Raises DataError where two rows have one id."""

    def __init__(self, folders: Sequence[Path]) -> None:
        described = files.read_manifest(folders[0])["columns"]
        self.columns = {
            name: Column(**{**facts, "shape": tuple(facts["shape"])}) for name, facts in described.items()
        }
        tables = [shard_table(folder) for folder in folders]
        self._mapped = [
            {name: _mapped(folder / f"{name}.bin", column) for name, column in self.columns.items()}
            for folder in folders
        ]
        self._table = np.concatenate(tables)
        self._shard = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
        self._starts = {
            per: np.concatenate([np.cumsum(table[:, at]) - table[:, at] for table in tables])
            for at, per in enumerate(TABLE)
            if per in ("tokens", "answers")
        }
        self._order = np.argsort(self._table[:, 0], kind="stable")
        self._ids = self._table[self._order, 0]
        twice = self._ids[:-1][self._ids[1:] == self._ids[:-1]]
        if len(twice):
            raise DataError(f"two rows have the id {twice[0]}", hint="ids must tell the rows apart")

    def __len__(self) -> int:
        return len(self._table)

    def find(self, ids: Ints) -> Ints:
        """Where these rows lie. Raises IntegrityError for an id that is not here."""
        places = np.minimum(np.searchsorted(self._ids, ids), len(self) - 1)
        unknown = ids[self._ids[places] != ids]
        if len(unknown):
            raise IntegrityError(f"no answers are kept for row {unknown[0]}", where="distill.cache")
        found: Ints = self._order[places]
        return found

    def table(self, places: Ints) -> Ints:
        """`[n, 4]` of the rows at these places."""
        return self._table[places]

    def read(self, name: str, places: Ints) -> Tensor:
        """The items of the rows at these places, row after row, as they are kept."""
        column = self.columns[name]
        starts = self._starts[column.per][places]
        ends = starts + self._table[places, TABLE.index(column.per)]
        pieces = [
            self._mapped[shard][name][start:end]
            for shard, start, end in zip(self._shard[places], starts, ends, strict=True)
        ]
        return torch.from_numpy(np.concatenate(pieces)).view(_DTYPES[column.dtype])


def _bits(items: Tensor) -> NDArray[Any]:
    """A tensor as numpy holds it, which knows no bfloat16."""
    items = items.contiguous()
    return (items.view(torch.int16) if items.dtype == torch.bfloat16 else items).numpy()


def _mapped(path: Path, column: Column) -> NDArray[Any]:
    """A column of a shard, `[items, *shape]`, read from disk as it is looked at."""
    size = path.stat().st_size // _DTYPES[column.dtype].itemsize
    if not size:
        return _bits(torch.empty((0, *column.shape), dtype=_DTYPES[column.dtype]))
    flat = torch.from_file(str(path), shared=False, size=size, dtype=_DTYPES[column.dtype])
    return _bits(flat.view(-1, *column.shape))
