"""Greedy and beam search over whatever scores the next token, in NumPy: what drives an artifact that writes.

Both write token for token what `generate` of `transformers` writes (early_stopping False). A text ends with
the end token or at `max_length` tokens. Beam search keeps the best `beams` unfinished texts and as many
finished ones; a finished text is scored by its log-probability over the power `length_penalty` of its length,
its end token included, and can only be entered by one of the best `beams` continuations. A row is done where
the best unfinished text, at its present length, could not enter the finished ones any more.

Shapes: B sources, R texts that are pursued, K beams, V entries.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class How(Protocol):
    """How a text is written, as `GenerationSettings` says it; max_length must be given."""

    @property
    def beams(self) -> int: ...

    @property
    def length_penalty(self) -> float: ...

    @property
    def min_length(self) -> int: ...

    @property
    def max_length(self) -> int | None: ...


class Steps(Protocol):
    """A decoder with a memory of what was written."""

    def step(self, tokens_R: Ints, rows_R: Ints) -> Floats:
        """`[R, V]` scores (before the softmax) of what comes after these tokens, each of which continues the
        text of that number of the step before; of the source, at the first step.
        """


@dataclass(frozen=True)
class Ends:
    """The token before a text and the one behind it."""

    start: int
    end: int


def search(steps: Steps, sources: int, ends: Ends, how: How) -> list[list[list[int]]]:
    """The finished texts of each source, the best first, without their end tokens."""
    if how.beams == 1:
        return [[text] for text in greedy(steps, sources, ends, how)]
    return beam_search(steps, sources, ends, how)


def greedy(steps: Steps, sources: int, ends: Ends, how: How) -> list[list[int]]:
    """The text of the likeliest token at each step."""
    assert how.max_length is not None
    written: list[list[int]] = [[] for _ in range(sources)]
    running = np.ones(sources, dtype=bool)
    tokens, rows = np.full(sources, ends.start), np.arange(sources)
    for written_so_far in range(how.max_length):
        scores_RV = _not_yet(steps.step(tokens, rows), ends.end, written_so_far, how)
        tokens = scores_RV.argmax(axis=1).astype(np.int64)
        running &= tokens != ends.end
        for row in np.flatnonzero(running).tolist():
            written[row].append(int(tokens[row]))
        if not running.any():
            break
    return written


@dataclass
class _Source:
    """The search for one source: unfinished texts with their log-probabilities, finished ones with their
    scores, the best first; `parents` are the numbers of the texts that the unfinished ones continue.
    """

    running: list[tuple[np.float32, list[int]]]
    parents: list[int] = field(default_factory=lambda: [0])
    finished: list[tuple[np.float32, list[int]]] = field(default_factory=list)
    open: bool = True


def beam_search(steps: Steps, sources: int, ends: Ends, how: How) -> list[list[list[int]]]:
    """The finished texts, the one of the best score first."""
    assert how.max_length is not None
    searches = [_Source([(np.float32(0), [])]) for _ in range(sources)]
    tokens, rows = np.full(sources, ends.start), np.arange(sources)
    for length in range(1, how.max_length + 1):
        scores_RV = steps.step(tokens, rows)
        width = len(tokens) // sources
        for number, one in enumerate(searches):
            own = scores_RV[number * width : (number + 1) * width]
            _continue(one, own, length, ends.end, how, number * width)
        if not any(one.open for one in searches) or length == how.max_length:
            break
        tokens = np.asarray([text[-1] for one in searches for _, text in one.running])
        rows = np.asarray([parent for one in searches for parent in one.parents])
    return [[text for _, text in one.finished] for one in searches]


def _continue(one: _Source, scores_KV: Floats, length: int, end: int, how: How, first: int) -> None:
    """One more token for the texts of a source, of which the first has the number `first`."""
    logs_KV = _not_yet(log_softmax(scores_KV), end, length - 1, how)
    candidates = _best(one.running, logs_KV, 2 * how.beams)
    over = length == how.max_length
    power = np.float32(float(length) ** how.length_penalty)
    done = [
        (total / power, [*one.running[beam][1], *([] if token == end else [token])])
        for total, beam, token in candidates[: how.beams]
        if token == end or over
    ]
    if one.open:
        one.finished = sorted([*one.finished, *done], key=lambda pair: -pair[0])[: how.beams]
    kept = [candidate for candidate in candidates if candidate[2] != end][: how.beams]
    one.running = [(total, [*one.running[beam][1], token]) for total, beam, token in kept]
    one.parents = [first + beam for _, beam, _ in kept]
    full = len(one.finished) == how.beams
    one.open &= not full or bool(one.running[0][0] / power > one.finished[-1][0])


def _best(
    running: list[tuple[np.float32, list[int]]], logs_KV: Floats, count: int
) -> list[tuple[np.float32, int, int]]:
    """The likeliest continuations of all texts: log-probability, which text, token."""
    before_K1 = np.asarray([total for total, _ in running], dtype=np.float32)[:, None]
    flat = (logs_KV + before_K1).ravel()
    few = np.argpartition(-flat, min(count, len(flat)) - 1)[:count]
    order = few[np.lexsort((few, -flat[few]))]
    entries = logs_KV.shape[1]
    return [(flat[at], int(at) // entries, int(at) % entries) for at in order.tolist()]


def _not_yet(scores_RV: Floats, end: int, written: int, how: How) -> Floats:
    """Scores by which no text ends before it has `min_length` tokens."""
    if written < how.min_length:
        scores_RV = scores_RV.copy()
        scores_RV[:, end] = -np.inf
    return scores_RV


def log_softmax(scores_RV: NDArray[Any]) -> Floats:
    """Over the last axis in fp32, as the search of `transformers` computes it."""
    shifted = scores_RV - scores_RV.max(axis=-1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
