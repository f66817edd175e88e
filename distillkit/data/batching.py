"""From rows to batches: tokenised once, memory-mapped, batched by token budget without padding waste.

The order of an epoch is a pure function of (seed, epoch): nothing is drawn from a global generator, and a
position is an integer, so that a resumed run reads exactly what an uninterrupted one would have. Rows are
shuffled, cut into pools, sorted by length inside a pool and cut into steps by token budget; the steps are
shuffled again.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from distillkit import files
from distillkit.data.layouts import Segments
from distillkit.data.mixing import mixing_rates
from distillkit.data.scoring import (
    MEASURED_EPOCH,
    LabelledTokens,
    MaskedTokens,
    Padded,
    Scoring,
    WholeExamples,
)
from distillkit.data.tasks import Rows, TaskOfRows
from distillkit.data.tokenizers import tokenizer_digest
from distillkit.errors import DataError, ModelError
from distillkit.runtime.rows import sequential_batches as sequential_batches
from distillkit.settings import BatchSettings, Labels
from distillkit.types import IGNORED, Batch

POOL_STEPS = 50
"""Steps whose rows are sorted by length together: enough for little padding, few enough for a random
order."""
_CHUNK = 1000
_ARRAYS = ("tokens", "types", "labels", "offsets")


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

    tokens: flat int32; types: flat int8, the segment of each token; offsets: int64 `[n + 1]`; labels: `[n]`
    as in `Rows`, or flat, one of each token (a target stands behind its source); ids as in `Rows`, positions
    where rows were cut into sequences; truncated: rows cut at the maximal length; unknown: tokens that are
    [UNK]; scoring: what a model answers; tasks: as in `Rows`.
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
    scoring: Scoring = WholeExamples()  # noqa: RUF009 - holds nothing
    tasks: TaskOfRows | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def gold(self) -> NDArray[Any] | None:
        """What would be right: `[n]` the label of each row, or `[N, 2]` label and row of each token that may
        be asked; None: unlabelled.
        """
        labels = self.scoring.gold(self.tokens, self.labels)
        if labels is None or not self.scoring.by_token:
            return labels
        rows = np.repeat(np.arange(len(self)), self.lengths)
        asked = np.flatnonzero(labels != IGNORED)
        return np.stack([labels[asked], rows[asked]], axis=1).astype(np.int64)

    @property
    def num_answers(self) -> NDArray[np.int64]:
        """`[n]` how many answers each row gets, where they are always the same."""
        if not self.scoring.by_token:
            return np.ones(len(self), dtype=np.int64)
        assert self.labels is not None
        asked = np.concatenate([[0], np.cumsum(np.asarray(self.labels) != IGNORED)])
        counts: NDArray[np.int64] = np.diff(asked[self.offsets])
        return counts

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
    key = f"{rows.digest} {rows.layout} {tokenizer_digest(tokenizer)} {segments} {max_length}"
    digest = hashlib.sha256(key.encode()).hexdigest()
    folder = cache / digest[:32]
    if files.flaw(folder, hashes=True):
        _write(folder, *_tokenise(rows, tokenizer, max_length))
    tokens, types, labels, offsets = (
        np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS
    )
    facts = files.read_manifest(folder)
    scoring = rows.layout.scoring(tokenizer, labelled=rows.labels is not None)
    packed = isinstance(scoring, MaskedTokens)
    assert packed or len(offsets) == len(rows) + 1, "two different sets of rows have one digest"
    sequences = len(offsets) - 1
    return Encoded(
        tokens=tokens,
        types=types,
        offsets=np.asarray(offsets),
        labels=labels if scoring.by_token else rows.labels,
        ids=np.arange(sequences, dtype=np.int64) if packed else rows.ids,
        texts=((),) * sequences if packed else rows.texts,
        pad_id=int(tokenizer.pad_token_id),
        truncated=facts["truncated"],
        unknown=facts["unknown"],
        digest=digest,
        scoring=scoring,
        tasks=rows.tasks,
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
    padded = Padded(rows, encoded.ids[rows], ids_BL, types_BL, mask_BL, flat, epoch, encoded.pad_id)
    asked = encoded.scoring.asked(padded, encoded.labels)
    return Batch(
        inputs={name: torch.from_numpy(value) for name, value in asked.inputs.items()},
        labels=None if asked.labels is None else torch.from_numpy(asked.labels),
        mask=torch.from_numpy(asked.real_BL),
        ids=torch.from_numpy(encoded.ids[rows]),
        texts=tuple(encoded.texts[row] for row in rows),
        full=bool(asked.real_BL.all()),
        epoch=epoch,
        scored=None if asked.scored_BL is None else torch.from_numpy(asked.scored_BL),
        allowed=None if encoded.tasks is None else torch.from_numpy(encoded.tasks.allowed(rows)),
    )


def reread(batch: Batch, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> Batch:
    """The whole texts of a batch as another tokenizer reads them; everything else stays.

    Raises ModelError for a batch that answers tokens: those of two tokenizers are not the same.
    """
    if batch.scored is not None or batch.texts is None:
        raise ModelError("only whole texts can be read by another tokenizer", where="teacher")
    pieces = Segments().pieces(batch.texts, None, tokenizer, max_length)
    offsets = np.concatenate([[0], np.cumsum(pieces.lengths)]).astype(np.int64)
    assert tokenizer.pad_token_id is not None
    encoded = Encoded(
        tokens=pieces.tokens,
        types=pieces.types,
        offsets=offsets,
        labels=None,
        ids=batch.ids.cpu().numpy(),
        texts=batch.texts,
        pad_id=int(tokenizer.pad_token_id),
        truncated=pieces.cut,
        unknown=0,
        digest="",
    )
    made = collate(encoded, np.arange(len(encoded)), epoch=batch.epoch).to(batch.mask.device)
    return replace(made, labels=batch.labels, ids=batch.ids, allowed=batch.allowed)


def measured(encoded: Encoded) -> Encoded:
    """The same rows as models are measured on them: where masks are drawn, with masks that stay the same."""
    if not isinstance(encoded.scoring, MaskedTokens):
        return encoded
    scoring = replace(encoded.scoring, scored="masked")
    tokens = np.array(encoded.tokens)
    labels = np.full(len(tokens), IGNORED, dtype=np.int32)
    for start in range(0, len(encoded), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(encoded)))
        part = slice(encoded.offsets[rows[0]], encoded.offsets[rows[-1] + 1])
        batch = collate(replace(encoded, scoring=scoring), rows, epoch=MEASURED_EPOCH)
        assert batch.labels is not None
        tokens[part] = batch.inputs["input_ids"][batch.mask].numpy()
        labels[part] = batch.labels[batch.mask].numpy()
    digest = hashlib.sha256(f"{encoded.digest} measured".encode()).hexdigest()
    return replace(encoded, tokens=tokens, labels=labels, scoring=LabelledTokens(), digest=digest)


def drawn(encoded: Encoded, count: int, *, seed: int) -> Encoded:
    """`count` of the rows in their order, chosen by the seed; all of them where there are no more."""
    if len(encoded) <= count:
        return encoded
    chosen = np.sort(np.random.default_rng([seed, 0x64726177]).permutation(len(encoded))[:count])
    return _chosen(encoded, chosen, f"{count} drawn by {seed}")


def of_task(encoded: Encoded, labels: Labels, name: str) -> Encoded:
    """The rows of one of several tasks by itself; their classes begin at 0."""
    assert encoded.tasks is not None
    rows = np.flatnonzero(encoded.tasks.task == list(labels.tasks).index(name))
    own = _chosen(encoded, rows, f"of {name}")
    gold = None if own.labels is None else own.labels - labels.columns[name].start
    return replace(own, labels=gold, tasks=None)


def _chosen(encoded: Encoded, chosen: NDArray[np.int64], named: str) -> Encoded:
    """The chosen rows in ascending order."""
    kept = np.zeros(len(encoded), dtype=bool)
    kept[chosen] = True
    tokens = np.repeat(kept, encoded.lengths)
    labels = encoded.labels
    if labels is not None:
        labels = np.asarray(labels)[tokens if encoded.scoring.by_token else chosen]
    return replace(
        encoded,
        tokens=np.asarray(encoded.tokens)[tokens],
        types=np.asarray(encoded.types)[tokens],
        offsets=np.concatenate([[0], np.cumsum(encoded.lengths[chosen])]).astype(np.int64),
        labels=labels,
        ids=encoded.ids[chosen],
        texts=tuple(encoded.texts[row] for row in chosen),
        tasks=None if encoded.tasks is None else encoded.tasks.take(chosen),
        digest=hashlib.sha256(f"{encoded.digest} {named}".encode()).hexdigest(),
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


def drawn_rows(tasks: TaskOfRows, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """`[n]` the rows of an epoch of several tasks, as many as there are: a task with n_t rows has a share of
    n_t^exponent over the sum of these (BAM, Clark et al. 2019: exponent 0.75).

    Each task's rows are dealt from one shuffled pass over them after another, epoch after epoch, so that none
    comes twice more often than any other of its task.
    """
    sizes = np.bincount(tasks.task, minlength=len(tasks.classes))
    rates = mixing_rates(sizes, exponent=tasks.exponent)
    ends = np.round(np.cumsum(rates) * sizes.sum()).astype(np.int64)
    parts = [np.zeros(0, dtype=np.int64)]
    for task, count in enumerate(np.diff(ends, prepend=0).tolist()):
        rows = np.flatnonzero(tasks.task == task)
        if not count:
            continue
        first, size = epoch * count, len(rows)
        passes = range(first // size, -(-(first + count) // size))
        order = [np.random.default_rng([seed, task, one, 0x7461736B]).permutation(size) for one in passes]
        start = first - passes.start * size
        parts.append(rows[np.concatenate(order)[start : start + count]])
    return np.concatenate(parts)


class TaskFeed(Feed):
    """Encoded rows as training steps: each once an epoch, or of several tasks as `drawn_rows` has it."""

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
            self._plan = (epoch, self._planned(epoch))
        return self._plan[1]

    def _planned(self, epoch: int) -> list[list[NDArray[np.int64]]]:
        lengths, tasks = self.encoded.lengths, self.encoded.tasks
        if tasks is None:
            return epoch_plan(lengths, self.settings, seed=self.seed, epoch=epoch)
        rows = drawn_rows(tasks, seed=self.seed, epoch=epoch)
        plan = epoch_plan(lengths[rows], self.settings, seed=self.seed, epoch=epoch)
        return [[rows[part] for part in step] for step in plan]


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
    parts, used = [], 0
    for start in range(0, len(rows), _CHUNK):
        chunk = rows.texts[start : start + _CHUNK]
        end = used + sum(map(rows.layout.num_labels, chunk))
        labels = None if rows.labels is None else rows.labels[used:end]
        parts.append(rows.layout.pieces(chunk, labels, tokenizer, max_length))
        used = end
    lengths = [length for part in parts for length in part.lengths]
    if 0 in lengths:
        raise DataError(
            f"{lengths.count(0)} texts have no tokens, the first is {rows.texts[lengths.index(0)]!r:.60}",
            hint="this tokenizer adds no special tokens; leave empty texts out",
        )
    arrays: dict[str, NDArray[Any]] = {
        name: np.concatenate([vars(part)[name] for part in parts]) for name in ("tokens", "types", "labels")
    }
    unknown = tokenizer.unk_token_id
    return {**arrays, "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)}, {
        "truncated": sum(part.cut for part in parts),
        "unknown": 0 if unknown is None else int((arrays["tokens"] == unknown).sum()),
    }


def _write(folder: Path, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, int]) -> None:
    """A reader never sees half a cache. Raises ResourceError where room runs out."""
    with files.appearing(folder, lambda: facts) as work:
        for name in _ARRAYS:
            np.save(work / f"{name}.npy", arrays[name], allow_pickle=False)
