"""A teacher whose answers lie on disk: every row is answered once, before the first step, and read in every
epoch.

    cache/teacher-<key>/00000/  rows.bin  logits.bin  hidden.6.bin  ...  manifest.json

The key covers the teacher, the tokenizer, the rows and all that decides the bytes. Answers are joined by row
id and held to a hash of the row's tokens, so that a row that is masked anew in every epoch is refused instead
of being given the answer to another text. A killed recording goes on at its last whole shard, a shard that is
cut, damaged or another cache's is recorded again, and whenever a cache is opened a sample of its rows is
answered anew and compared.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillkit import files
from distillkit.data.batching import Encoded, collate, sequential_batches
from distillkit.data.ragged import Column, Part, Shards, shard_table, write_shard
from distillkit.errors import ConfigError, IntegrityError, ModelError, ResourceError
from distillkit.model import Teacher
from distillkit.settings import CacheSettings
from distillkit.teachers.answers import WHERE, Packing
from distillkit.types import Access, Batch, Outputs, Reads, Spec, Swap, Want

BATCH_TOKENS = 4096
"""Tokens that the teacher answers at once, padding included."""
SHARD_BATCHES = 32
"""Batches of a shard: what a kill loses at most."""
SAMPLE_SHARE, SAMPLE_ROWS = 0.01, 32
"""Rows answered anew when a cache is opened: this share of them, and at least so many."""
TOLERANCE = {"fp32": 1e-4, "fp16": 4e-3, "bf16": 3e-2}
"""Largest difference of new answers, relative to their size, by what is computed and kept in: the root mean
square over all of them. Rounding stays ten times below: the states of all-MiniLM-L6-v2 in bf16, on SST-2's
rows in batches of other sizes, differ by 0.003 (a single token of 5,000 by 0.011).
"""
STRAY = 4
"""So many times as much a single answer may differ, for the worst of many grows with their number: one
token's state was seen at 0.04 in bf16 on a CPU. The states of another row of the same length differ by
0.33 or more.
"""
_FORMAT = 1
_STIR = tuple(value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Keep:
    """What is kept of a teacher's answers, how, whose they are, and how they are computed.

    want: what the teacher is asked for; reads: what the losses look at in it; owner: a digest that names the
    teacher; precision: fp32, bf16 or fp16, the training's own, so that a cached teacher says what a live one
    would.
    """

    want: Want
    reads: Reads
    settings: CacheSettings
    owner: str
    device: torch.device
    precision: str


def record(
    live: Teacher, encoded: Encoded, keep: Keep, root: Path, watch: Callable[[int, int], None]
) -> tuple[CachedTeacher, list[str]]:
    """A teacher that reads its answers to these rows from disk, recorded where they are not there yet, and
    remarks on what was there.

    watch: told of each batch that is recorded, and of how many there are; it may raise to stop, and the same
    call goes on from there. Raises ConfigError for rows that change, ModelError for a teacher that changes or
    does not fit the dtype, ResourceError for lack of room, IntegrityError where the teacher now says other
    things than are kept.
    """
    if type(live).after_step is not Teacher.after_step:
        raise ModelError(
            "this teacher changes while the student learns", where=WHERE, hint="leave `cache` out"
        )
    check_unchanging(encoded)
    recorder = _Recorder(live, encoded, keep, root)
    remarks = recorder.complete(watch)
    teacher = CachedTeacher(Shards(recorder.folders), recorder.packing, live.spec)
    recorder.compare(teacher)
    return teacher, remarks


def check_unchanging(encoded: Encoded) -> None:
    """Raise ConfigError where rows differ from epoch to epoch, as far as a sample shows."""
    rows = np.arange(min(len(encoded), 8 * SAMPLE_ROWS))
    first, second = (fingerprints(collate(encoded, rows, epoch=epoch)) for epoch in (0, 1))
    if not torch.equal(first, second):
        raise ConfigError(
            "the rows of this phase change from epoch to epoch (as masked tokens do)",
            where=WHERE,
            hint="no answer to them can be kept: leave `cache` out",
        )


def fingerprints(batch: Batch) -> Tensor:
    """`[B]` int64, a hash of what the model takes at each row's real tokens, and of which it answers
    (SplitMix64, Steele, Lea and Flood 2014, once per input).
    """
    scored = [] if batch.scored is None else [batch.scored]
    state_BL = torch.arange(batch.mask.shape[1], device=batch.mask.device).expand(batch.mask.shape)
    for value_BL in (*(batch.inputs[name] for name in sorted(batch.inputs)), *scored):
        state_BL = _stirred(state_BL + value_BL.long())
    return torch.where(batch.mask, state_BL, 0).sum(dim=1)


class CachedTeacher(Teacher):
    """Answers from disk by row id, in fp32; its answers to padding are 0. Made by `record`.

    Raises IntegrityError for a row that was not recorded or not with these tokens, ModelError for what was
    not kept of it.
    """

    live = False

    def __init__(self, shards: Shards, packing: Packing, spec: Spec) -> None:
        self._shards, self._packing, self._spec = shards, packing, spec

    @property
    def access(self) -> Access:
        return self._packing.want.access

    @property
    def spec(self) -> Spec:
        return self._spec

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # reading from disk is nothing to compile
    def outputs(self, batch: Batch, *, want: Want, swap: Swap | None = None) -> Outputs:
        if swap:
            raise ModelError("kept answers cannot be intervened on", where=WHERE, hint="leave `cache` out")
        places, device = self._places(batch), batch.mask.device
        return self._packing.unpack(
            lambda name: self._shards.read(name, places).to(device, non_blocking=True), batch.mask, want
        )

    def kept(self, batch: Batch) -> dict[str, Tensor]:
        """The items of every column for the rows of a batch."""
        places = self._places(batch)
        return {name: self._shards.read(name, places) for name in self._shards.columns}

    def _places(self, batch: Batch) -> Ints:
        ids = batch.ids.cpu().numpy()
        places = self._shards.find(ids)
        other = ids[self._shards.table(places)[:, 1] != fingerprints(batch).cpu().numpy()]
        if len(other):
            raise IntegrityError(
                f"row {other[0]} does not hold the tokens that were answered",
                where=WHERE,
                hint="rows that change cannot be cached: leave `cache` out",
            )
        return places


class _Recorder:
    """The folder of one cache: what it must hold, what is missing, and how that is made."""

    def __init__(self, live: Teacher, encoded: Encoded, keep: Keep, root: Path) -> None:
        self.live, self.encoded, self.keep = live.to(keep.device), encoded, keep
        self.packing = Packing.of(live.spec, keep.want, keep.reads, keep.settings)
        parts = [_FORMAT, keep.owner, encoded.digest, keep.precision, self.packing.identity]
        self.key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        self.batches = sequential_batches(encoded.lengths, tokens=BATCH_TOKENS)
        self.folder = root / f"teacher-{self.key[:32]}"
        count = -(-len(self.batches) // SHARD_BATCHES)
        self.folders = [self.folder / f"{shard:05d}" for shard in range(count)]

    def complete(self, watch: Callable[[int, int], None]) -> list[str]:
        """Record the shards that are not there as they should be; remarks on those that were spoiled."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files.sweep(self.folder)
        flaws = {shard: self._flaw(shard) for shard in range(len(self.folders))}
        missing = [shard for shard, flaw in flaws.items() if flaw]
        for shard in missing:
            parts = self._parts(shard, watch)
            first = next(parts)
            columns = self.packing.columns(first.items)
            if shard == missing[0]:
                self._check_room(columns, first, len(missing) / len(self.folders))
            facts = {"key": self.key, "shard": shard}
            write_shard(self.folders[shard], columns, facts, chain([first], parts))
        return [
            f"teacher cache: {self.folders[shard].name} is recorded again: {flaws[shard]}"
            for shard in missing
            if flaws[shard] != _ABSENT
        ]

    def compare(self, teacher: CachedTeacher) -> None:
        """Answer a sample of the rows anew. Raises IntegrityError where other things are kept."""
        count = min(len(self.encoded), max(SAMPLE_ROWS, int(SAMPLE_SHARE * len(self.encoded))))
        seed = int(self.key[:16], 16)
        sample = np.random.default_rng(seed).choice(len(self.encoded), count, replace=False)
        kept: dict[str, list[Tensor]] = {}
        said: dict[str, list[Tensor]] = {}
        for chosen in sequential_batches(self.encoded.lengths[sample], tokens=BATCH_TOKENS):
            batch = collate(self.encoded, sample[chosen])
            items = teacher.kept(batch)
            again = self.packing.again(items, self._answer(batch), batch)
            for name, item in again.items():
                kept.setdefault(name, []).append(items[name].float())
                said.setdefault(name, []).append(item)
        for name in said:
            self._compare(name, torch.cat(kept[name]), torch.cat(said[name]))

    def _compare(self, name: str, kept: Tensor, said: Tensor) -> None:
        """Each item's difference against the larger of its own size and the column's."""
        dtype = "fp32" if name.startswith("logits") else self.packing.dtype
        limit = max(TOLERANCE[dtype], TOLERANCE[self.keep.precision])
        size = torch.maximum(_rms(said), said.square().mean().sqrt())
        errors = _rms(kept - said) / size.clamp(min=1e-30)
        typical, worst = float(errors.square().mean().sqrt()), float(errors.max())
        if not (typical <= limit and worst <= STRAY * limit):
            raise IntegrityError(
                f"the teacher's {name} differs by {typical:.2g} of its size from what is kept, at worst by "
                f"{worst:.2g}; rounding gives {limit:g} and {STRAY * limit:g} at most",
                where=str(self.folder),
                hint="it is another teacher, or answers differently each time: remove the folder, and leave "
                "`cache` out if this comes again",
            )

    def _flaw(self, shard: int) -> str:
        folder, rows = self.folders[shard], self._rows(shard)
        problem = files.flaw(folder, hashes=True) if folder.exists() else _ABSENT
        if problem:
            return problem
        manifest = files.read_manifest(folder)
        if (manifest.get("key"), manifest.get("shard")) != (self.key, shard):
            return "it belongs to another place or cache"
        table = shard_table(folder)
        expected = np.stack([self.encoded.ids[rows], self.encoded.lengths[rows]], axis=1)
        return "" if np.array_equal(table[:, [0, 2]], expected) else "it holds other rows"

    def _rows(self, shard: int) -> Ints:
        return np.concatenate(self.batches[shard * SHARD_BATCHES : (shard + 1) * SHARD_BATCHES])

    def _parts(self, shard: int, watch: Callable[[int, int], None]) -> Iterator[Part]:
        start = shard * SHARD_BATCHES
        for number, rows in enumerate(self.batches[start : start + SHARD_BATCHES], start=start):
            watch(number, len(self.batches))
            batch = collate(self.encoded, rows)
            scored = batch.scored if batch.scored is not None else torch.ones(len(rows), 1)
            table = [batch.ids, fingerprints(batch), batch.mask.sum(1), scored.sum(1).long()]
            outputs = self._answer(batch)
            yield Part(torch.stack(table, dim=1).numpy(), self.packing.pack(outputs, batch))

    def _answer(self, batch: Batch) -> Outputs:
        with torch.no_grad(), _computing(self.keep.device, self.keep.precision):
            return self.live.outputs(batch.to(self.keep.device), want=self.keep.want)

    def _check_room(self, columns: Mapping[str, Column], first: Part, share: float) -> None:
        """Raise ResourceError where the cache would be larger than it may, or than the disk has room for."""
        tokens, answers = first.table[:, 2].sum(), first.table[:, 3].sum()
        total = int(self.encoded.lengths.sum())
        whole = int(answers) == len(first.table)
        counts = {"tokens": total, "answers": len(self.encoded) if whole else total * answers / tokens}
        size = int(sum(column.item_bytes * counts[column.per] for column in columns.values()))
        if size > self.keep.settings.limit_gb * 1e9:
            raise ResourceError(
                f"the teacher's answers take {size / 1e9:.3g} GB, more than {self.keep.settings.limit_gb:g}",
                where=f"{WHERE}.limit_gb",
                hint="raise it, keep fewer logits, or compare fewer layers",
            )
        if size * share > shutil.disk_usage(self.folder.parent).free:
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise files.out_of_room(full, self.folder.parent, needed=int(size * share))


_ABSENT = "it is not there"


def _computing(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """What the training loop computes a forward in."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


def _rms(items: Tensor) -> Tensor:
    """Of each item."""
    return items.reshape(len(items), -1).square().mean(dim=1).sqrt()


def _stirred(state: Tensor) -> Tensor:
    """SplitMix64; its shifts are those of unsigned numbers."""
    state = state + _STIR[0]
    state = (state ^ ((state >> 30) & 0x3FFFFFFFF)) * _STIR[1]
    state = (state ^ ((state >> 27) & 0x1FFFFFFFFF)) * _STIR[2]
    return state ^ ((state >> 31) & 0x1FFFFFFFF)
