"""A student that knows fewer pieces than its tokenizer: teacher and student read the same token ids, and a
map sends each id to a row of the student's smaller table. In ONNX the map is one lookup.

Pieces that the training rows hold most often keep a row of their own; all the others share the last one.
Shape legend: T token ids of the tokenizer, N rows of the student's table.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from distillkit.data.batching import Encoded
from distillkit.errors import ConfigError, ModelError
from distillkit.model import Student
from distillkit.settings import Labels
from distillkit.types import Batch, Outputs, Swap, Want

KEPT = "vocabulary.json"


class Renumbered(Student):
    """A student of a smaller table behind the map from token ids to its rows.

    The folder it saves is the inner student's (`spec.vocab_size` is N), with the map beside it.
    """

    rows: Tensor

    def __init__(self, inner: Student, rows_T: Tensor) -> None:
        super().__init__()
        self.inner, self.spec = inner, replace(inner.spec, num_ids=len(rows_T))
        self.register_buffer("rows", rows_T)

    def outputs(self, batch: Batch, *, want: Want, swap: Swap | None = None) -> Outputs:
        inputs = {**batch.inputs, "input_ids": self.rows[batch.inputs["input_ids"]]}
        return self.inner.outputs(replace(batch, inputs=inputs), want=want, swap=swap)

    def exportable(self) -> nn.Module:
        return ExportableRenumbered(self.inner.exportable(), self.rows.clone())

    @property
    def config(self) -> Mapping[str, Any]:
        """Its artifact takes every id of the tokenizer: the map is inside."""
        told = self.inner.config
        return {**told, "vocab_size": len(self.rows)} if told else told

    def save(self, folder: Path, labels: Labels) -> None:
        self.inner.save(folder, labels)
        (folder / KEPT).write_text(json.dumps({"rows": self.rows.tolist()}))


class ExportableRenumbered(nn.Module):
    """Takes the tokenizer's ids `[B, L]`, and what else the inner module takes, by keyword."""

    rows: Tensor

    def __init__(self, inner: nn.Module, rows_T: Tensor) -> None:
        super().__init__()
        self.inner, self.input_names = inner, inner.input_names
        self.register_buffer("rows", rows_T)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        inputs = {"input_ids": self.rows[input_ids], "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        logits: Tensor = self.inner(**inputs)
        return logits


def special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokenizer's special ids, ascending: they have the first rows of a smaller table."""
    return sorted(set(tokenizer.all_special_ids))


def check_size(tokenizer: PreTrainedTokenizerBase, size: int | None) -> int:
    """Rows of the student's table. Raises ConfigError for a vocabulary too small or no smaller."""
    special, full = len(special_ids(tokenizer)), len(tokenizer)
    if size is not None and not special < size < full:
        raise ConfigError(
            f"{size} rows: the tokenizer has {full} pieces, {special} of them special",
            where="student.vocabulary",
            hint=f"from {special + 1} to {full - 1}, or leave it out to keep every piece",
        )
    return full if size is None else size


def renumbered(student: Student, tokenizer: PreTrainedTokenizerBase, size: int | None) -> Student:
    """The student behind a map that keeps the lowest ids, until `choose` knows better; itself where it keeps
    every piece."""
    if size is None:
        return student
    counts = np.zeros(len(tokenizer), dtype=np.int64)
    return Renumbered(student, _map(counts, special_ids(tokenizer), size))


def choose(student: Student, tokenizer: PreTrainedTokenizerBase, rows: Encoded) -> Tensor:
    """Keep the pieces that these rows hold most often; returns the map `[T]`, the identity where every piece
    is kept."""
    if not isinstance(student, Renumbered):
        return torch.arange(len(tokenizer))
    chosen = _map(count(rows, len(tokenizer)), special_ids(tokenizer), student.spec.vocab_size)
    student.rows.copy_(chosen)
    return chosen


def count(rows: Encoded, size: int) -> NDArray[np.int64]:
    """How often each token id stands in the rows."""
    return np.bincount(rows.tokens, minlength=size)[:size]


def shared(table_TD: Tensor, rows_T: Tensor, counts: NDArray[np.int64]) -> Tensor:
    """`[N, D]`: each row the mean of the rows of a larger table that share it, weighted by how often they
    occur plus one. A piece with a row of its own keeps its vector exactly.
    """
    weights = torch.as_tensor(counts + 1, dtype=torch.float64)
    size = int(rows_T.max()) + 1
    totals = torch.zeros(size, dtype=torch.float64).index_add_(0, rows_T, weights)
    parts_TD = table_TD.double() * (weights / totals[rows_T])[:, None]
    made = torch.zeros(size, table_TD.shape[1], dtype=torch.float64).index_add_(0, rows_T, parts_TD)
    return made.to(table_TD.dtype)


def open_saved(folder: Path, load: Callable[[Path], Student]) -> Student:
    """The student that `save` wrote, with its map where it has one. Raises ModelError for a map that does not
    fit.
    """
    inner, path = load(folder), folder / KEPT
    if not path.is_file():
        return inner
    try:
        rows = torch.tensor(json.loads(path.read_text())["rows"], dtype=torch.int64)
    except (ValueError, KeyError, TypeError, RuntimeError):
        raise ModelError("not a map from token ids to rows", where=str(path)) from None
    if rows.ndim != 1 or not len(rows) or not 0 <= int(rows.min()) <= int(rows.max()) < inner.spec.vocab_size:
        raise ModelError(
            f"it points outside the student's {inner.spec.vocab_size} rows",
            where=str(path),
            hint="the files belong to different students",
        )
    return Renumbered(inner, rows)


def _map(counts: NDArray[np.int64], special: Sequence[int], size: int) -> Tensor:
    """Special ids first, then the most frequent (the lower id where two are as frequent); the rest share row
    `size - 1`."""
    order = np.argsort(-counts, kind="stable")
    kept = [*special, *order[~np.isin(order, special)][: size - 1 - len(special)].tolist()]
    rows = np.full(len(counts), size - 1, dtype=np.int64)
    rows[kept] = np.arange(len(kept))
    return torch.from_numpy(rows)
