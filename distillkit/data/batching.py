"""From rows to batches: tokenised once, memory-mapped, batched by token budget without padding waste.

The order of an epoch is a pure function of (seed, epoch): nothing is drawn from a global generator, and a
position is an integer, so that a resumed run reads exactly what an uninterrupted one would have. Rows are
shuffled, cut into pools, sorted by length inside a pool and cut into steps by token budget; the steps are
shuffled again.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from distillkit import files
from distillkit.data.tasks import Rows
from distillkit.data.tokenizers import tokenizer_digest
from distillkit.errors import DataError, ModelError
from distillkit.settings import BatchSettings
from distillkit.types import Batch

POOL_STEPS = 50
"""Steps whose rows are sorted by length together: enough for little padding, few enough for a random
order."""
_CHUNK = 1000
_ARRAYS = ("tokens", "types", "offsets")


class Feed(ABC):
    """What training reads: the micro-batches of a step, a pure function of (seed, epoch, index)."""

    digest: str
    """Identifies the content and the order; a checkpoint of another digest is not resumed."""
    micro: int
    """Parts that a step is computed in, at most; says nothing about what is computed."""

    @abstractmethod
    def num_steps(self, epoch: int) -> int:
        """Optimizer steps of an epoch."""

    @abstractmethod
    def step(self, epoch: int, index: int) -> list[Batch]:
        """The micro-batches of one optimizer step, on the CPU."""


@dataclass(frozen=True)
class Encoded:
    """Rows as token ids, ragged and memory-mapped.

    tokens: flat int32; types: flat int8, the segment of each token; offsets: int64 `[n + 1]`; labels and
    ids as in `Rows`; truncated: rows cut at the maximal length; unknown: tokens that are [UNK].
    """

    tokens: NDArray[np.int32]
    types: NDArray[np.int8]
    offsets: NDArray[np.int64]
    labels: NDArray[Any] | None
    ids: NDArray[np.int64]
    texts: tuple[tuple[str, ...], ...]
    pad_id: int
    truncated: int
    unknown: int
    digest: str

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        lengths: NDArray[np.int64] = np.diff(self.offsets)
        return lengths


def encode(rows: Rows, tokenizer: PreTrainedTokenizerBase, *, max_length: int, cache: Path) -> Encoded:
    """Tokenise once; the arrays lie in `cache` under the hash of rows, tokenizer and length, and are
    memory-mapped."""
    if tokenizer.pad_token_id is None:
        raise ModelError("the tokenizer has no padding token", hint="set pad_token in tokenizer_config.json")
    segments = "token_type_ids" in tokenizer.model_input_names
    key = f"{rows.digest} {tokenizer_digest(tokenizer)} {segments} {max_length}"
    digest = hashlib.sha256(key.encode()).hexdigest()
    folder = cache / digest[:32]
    if files.flaw(folder, hashes=True):
        _write(folder, *_tokenise(rows, tokenizer, max_length))
    tokens, types, offsets = (
        np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS
    )
    facts = files.read_manifest(folder)
    assert len(offsets) == len(rows) + 1, "two different sets of rows have one digest"
    return Encoded(
        tokens=tokens,
        types=types,
        offsets=np.asarray(offsets),
        labels=rows.labels,
        ids=rows.ids,
        texts=rows.texts,
        pad_id=int(tokenizer.pad_token_id),
        truncated=facts["truncated"],
        unknown=facts["unknown"],
        digest=digest,
    )


def collate(encoded: Encoded, rows: NDArray[np.int64], *, epoch: int = 0) -> Batch:
    """The chosen rows, padded to the longest of them."""
    starts = encoded.offsets[rows]
    lengths = encoded.offsets[rows + 1] - starts
    width = int(lengths.max())
    mask_BL = np.arange(width) < lengths[:, None]
    flat = (starts[:, None] + np.arange(width))[mask_BL]
    ids_BL = np.full(mask_BL.shape, encoded.pad_id, dtype=np.int64)
    types_BL = np.zeros(mask_BL.shape, dtype=np.int64)
    ids_BL[mask_BL], types_BL[mask_BL] = encoded.tokens[flat], encoded.types[flat]
    mask = torch.from_numpy(mask_BL)
    return Batch(
        inputs={
            "input_ids": torch.from_numpy(ids_BL),
            "attention_mask": mask.long(),
            "token_type_ids": torch.from_numpy(types_BL),
        },
        labels=None if encoded.labels is None else torch.from_numpy(np.asarray(encoded.labels[rows])),
        mask=mask,
        ids=torch.from_numpy(encoded.ids[rows]),
        texts=tuple(encoded.texts[row] for row in rows),
        full=bool(lengths.min() == width),
        epoch=epoch,
    )


def epoch_plan(
    lengths: NDArray[np.int64], settings: BatchSettings, *, seed: int, epoch: int
) -> list[list[NDArray[np.int64]]]:
    """The optimizer steps of an epoch, each a list of micro-batches of row indices; every row stands in
    one of them.

    A step holds at most `settings.tokens` tokens, padding included, and `settings.examples` rows (one row
    always fits); it is dealt into `settings.micro` parts of nearly equal size, fewer only where its rows
    are fewer.
    """
    generator = np.random.default_rng([seed, epoch, 0x62617463])
    order = generator.permutation(len(lengths))
    mean = max(1.0, float(lengths.mean()))
    per_step = max(1, min(settings.examples, int(settings.tokens / mean)))
    steps: list[NDArray[np.int64]] = []
    for pool in np.array_split(order, max(1, round(len(order) / (per_step * POOL_STEPS)))):
        steps += _cut(pool[np.argsort(lengths[pool], kind="stable")], lengths, settings)
    return [_deal(steps[index], settings.micro) for index in generator.permutation(len(steps))]


def sequential_batches(lengths: NDArray[np.int64], *, tokens: int) -> list[NDArray[np.int64]]:
    """Every row once, the longest first, in batches of at most `tokens` tokens, padding included."""
    order = np.argsort(-lengths, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        size = max(1, tokens // int(lengths[order[start]]))
        batches.append(order[start : start + size])
        start += size
    return batches


class TaskFeed(Feed):
    """Encoded rows as training steps."""

    def __init__(self, encoded: Encoded, settings: BatchSettings, *, seed: int) -> None:
        self.encoded, self.settings, self.seed = encoded, settings, seed
        self.digest = hashlib.sha256(f"{encoded.digest} {settings.identity()} {seed}".encode()).hexdigest()
        self.micro = settings.micro
        self._plan: tuple[int, list[list[NDArray[np.int64]]]] = (-1, [])

    def num_steps(self, epoch: int) -> int:
        return len(self._epoch(epoch))

    def step(self, epoch: int, index: int) -> list[Batch]:
        return [collate(self.encoded, rows, epoch=epoch) for rows in self._epoch(epoch)[index]]

    def _epoch(self, epoch: int) -> list[list[NDArray[np.int64]]]:
        if self._plan[0] != epoch:
            self._plan = (epoch, epoch_plan(self.encoded.lengths, self.settings, seed=self.seed, epoch=epoch))
        return self._plan[1]


def _cut(
    rows: NDArray[np.int64], lengths: NDArray[np.int64], settings: BatchSettings
) -> list[NDArray[np.int64]]:
    """Cut rows in ascending order of length into steps within the budget."""
    steps, start = [], 0
    for position in range(1, len(rows) + 1):
        size = position - start + 1
        full = position == len(rows)
        if full or size > settings.examples or int(lengths[rows[position]]) * size > settings.tokens:
            steps.append(rows[start:position])
            start = position
    return steps[:-2] + _even(steps[-2:], lengths, settings)


def _even(
    last: list[NDArray[np.int64]], lengths: NDArray[np.int64], settings: BatchSettings
) -> list[NDArray[np.int64]]:
    """The last two steps with nearly as many rows each: a step of one left-over row would be mostly noise."""
    rows = np.concatenate(last)
    size = min(len(rows) // 2, settings.examples, settings.tokens // max(1, int(lengths[rows[-1]])))
    return last if len(last) < 2 or size <= len(last[1]) else [rows[:-size], rows[-size:]]


def _deal(rows: NDArray[np.int64], parts: int) -> list[NDArray[np.int64]]:
    """Contiguous parts of the length-sorted rows; fewer than `parts` where rows are fewer.

    Rows 2k and 2k + 1 of a step stay together, and an odd last one with the two before it: they are the
    sources of each other's interventions (`distillkit.interchange`).
    """
    pairs = len(rows) // 2
    if pairs < 2 or parts == 1:
        return [rows]
    cuts = [len(part) for part in np.array_split(np.arange(pairs), min(parts, pairs))]
    return np.split(rows, 2 * np.cumsum(cuts)[:-1])


def _tokenise(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
    tokens: list[NDArray[np.int32]] = []
    types: list[NDArray[np.int8]] = []
    lengths: list[int] = []
    truncated = 0
    for start in range(0, len(rows), _CHUNK):
        chunk = rows.texts[start : start + _CHUNK]
        encoded = _call(tokenizer, chunk, max_length)
        lengths += map(len, encoded["input_ids"])
        tokens.append(np.fromiter(chain.from_iterable(encoded["input_ids"]), dtype=np.int32))
        if "token_type_ids" in encoded:
            types.append(np.fromiter(chain.from_iterable(encoded["token_type_ids"]), dtype=np.int8))
        else:
            types.append(np.zeros(len(tokens[-1]), dtype=np.int8))
        truncated += sum(bool(encoding.overflowing) for encoding in encoded.encodings)
    if 0 in lengths:
        raise DataError(
            f"{lengths.count(0)} texts have no tokens, the first is {rows.texts[lengths.index(0)]!r:.60}",
            hint="this tokenizer adds no special tokens; leave empty texts out",
        )
    flat = np.concatenate(tokens)
    unknown = int((flat == tokenizer.unk_token_id).sum()) if tokenizer.unk_token_id is not None else 0
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return {"tokens": flat, "types": np.concatenate(types), "offsets": offsets}, {
        "truncated": truncated,
        "unknown": unknown,
    }


def _call(tokenizer: PreTrainedTokenizerBase, chunk: Sequence[tuple[str, ...]], max_length: int) -> Any:
    pairs = [text[1] for text in chunk] if len(chunk[0]) == 2 else None
    return tokenizer(
        [text[0] for text in chunk],
        pairs,
        truncation="longest_first",
        max_length=max_length,
        return_attention_mask=False,
        verbose=False,
    )


def _write(folder: Path, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, int]) -> None:
    """A reader never sees half a cache. Raises ResourceError where room runs out."""
    with files.appearing(folder, lambda: facts) as work:
        for name in _ARRAYS:
            np.save(work / f"{name}.npy", arrays[name], allow_pickle=False)
