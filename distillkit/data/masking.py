"""Choosing and corrupting positions, as pure functions of arrays and a key.

Random numbers are hashed from (seed, epoch, row, position), so a row's mask does not depend on the batch it
is in, on workers, on ranks, or on a resume. Shapes: B rows, L positions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bool = NDArray[np.bool_]
Ints = NDArray[np.int64]

_GOLDEN, _MIX1, _MIX2 = (
    np.uint64(0x9E3779B97F4A7C15),
    np.uint64(0xBF58476D1CE4E5B9),
    np.uint64(0x94D049BB133111EB),
)


def keyed_uniform(seed: int, epoch: int, rows: Ints, width: int, *, draw: int) -> NDArray[np.float64]:
    """`[B, width]` numbers in [0, 1), one for each (seed, epoch, row, position, draw).

    SplitMix64 (Steele, Lea and Flood 2014) applied once per part of the key.
    """
    with np.errstate(over="ignore"):
        state: NDArray[np.uint64] = _mix(np.asarray([seed], dtype=np.uint64))
        for part in (epoch, draw):
            state = _mix(state + np.asarray([part], dtype=np.uint64))
        row_state: NDArray[np.uint64] = _mix(state + rows.astype(np.uint64))[:, None]
        bits = _mix(row_state + np.arange(width).astype(np.uint64))
    uniform: NDArray[np.float64] = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return uniform


def choose(candidates_BL: Bool, counts_B: Ints, uniform_BL: NDArray[np.float64]) -> Bool:
    """Exactly `counts_B` of each row's candidates (all where there are fewer), without replacement."""
    keys = np.where(candidates_BL, uniform_BL, 2.0)
    rank = np.argsort(np.argsort(keys, axis=1, kind="stable"), axis=1, kind="stable")
    chosen: Bool = (rank < counts_B[:, None]) & candidates_BL
    return chosen


def choose_repeatedly(candidates_BL: Bool, counts_B: Ints, uniform_BL: NDArray[np.float64]) -> Bool:
    """What `counts_B` draws with replacement from each row's candidates hit: at most as many positions (the
    released ELECTRA code).
    """
    draws = np.arange(candidates_BL.shape[1])[None, :]
    sizes_B1 = candidates_BL.sum(axis=1, keepdims=True)
    places_BL = np.argsort(~candidates_BL, axis=1, kind="stable")  # candidates first
    hits_BL = np.take_along_axis(places_BL, (uniform_BL * sizes_B1).astype(np.int64), axis=1)
    rows, drawn = np.nonzero((draws < counts_B[:, None]) & (sizes_B1 > 0))
    chosen = np.zeros_like(candidates_BL)
    chosen[rows, hits_BL[rows, drawn]] = True
    return chosen


def choose_spans(
    candidates_BL: Bool,
    counts_B: Ints,
    start_BL: NDArray[np.float64],
    length_BL: NDArray[np.float64],
    *,
    longest: int,
) -> Bool:
    """Exactly `counts_B` of each row's candidates (all where there are fewer), in spans of up to `longest`
    tokens, a span of n being drawn with weight 1/n.

    Every candidate starts a span; spans are taken in the order of start_BL until there are enough tokens, the
    last is cut short. A span that goes beyond a row's last candidate goes on at its first, so that every
    candidate is equally likely to be chosen. length_BL are the uniform numbers that decide the lengths.
    """
    sizes_B1 = candidates_BL.sum(axis=1, keepdims=True)
    places_BL = np.argsort(~candidates_BL, axis=1, kind="stable")  # candidates first, then a ring of them
    ring = np.arange(candidates_BL.shape[1])[None, :]
    law = np.cumsum(1 / np.arange(1, longest + 1))
    start_BL, length_BL = (np.take_along_axis(one, places_BL, axis=1) for one in (start_BL, length_BL))
    length_BL = np.searchsorted(law, length_BL * law[-1], side="right") + 1
    keys_BL = np.full(candidates_BL.shape, 2.0)
    for inside in range(longest):
        first_BL = (ring - inside) % np.maximum(1, sizes_B1)
        reaches = np.take_along_axis(length_BL, first_BL, axis=1) > inside
        key_BL = np.take_along_axis(start_BL, first_BL, axis=1) + inside * 2.0**-40  # a cut takes its end
        keys_BL = np.where(reaches, np.minimum(keys_BL, key_BL), keys_BL)
    chosen = np.zeros_like(candidates_BL)
    np.put_along_axis(chosen, places_BL, choose(ring < sizes_B1, counts_B, keys_BL), axis=1)
    return chosen


def choose_words(
    candidates_BL: Bool, continues_BL: Bool, counts_B: Ints, uniform_BL: NDArray[np.float64]
) -> Bool:
    """Whole words up to `counts_B` positions a row; a word that would exceed it is skipped (released BERT
    code).

    continues_BL: True at pieces that go on a word (`##`).
    """
    chosen = np.zeros_like(candidates_BL)
    for row in range(len(chosen)):
        positions = np.flatnonzero(candidates_BL[row])
        starts = positions[~continues_BL[row, positions] | (np.diff(positions, prepend=-2) != 1)]
        words = np.split(positions, np.searchsorted(positions, starts)[1:])
        left = int(counts_B[row])
        for index in np.argsort(uniform_BL[row, starts], kind="stable"):
            if len(words[index]) <= left:
                chosen[row, words[index]] = True
                left -= len(words[index])
    return chosen


def corrupt(
    ids_BL: Ints,
    chosen_BL: Bool,
    kind_BL: NDArray[np.float64],
    token_BL: NDArray[np.float64],
    *,
    mask_id: int,
    vocab_size: int,
) -> Ints:
    """80 % [MASK], 10 % unchanged, 10 % any entry of the vocabulary at the chosen positions (Devlin et al.
    2018, 3.1).

    kind_BL and token_BL are uniform numbers that decide which of the three, and which entry.
    """
    drawn_BL = (token_BL * vocab_size).astype(np.int64)
    return replace_chosen(ids_BL, chosen_BL, kind_BL, drawn_BL, mask_id=mask_id)


def replace_chosen(
    ids_BL: Ints, chosen_BL: Bool, kind_BL: NDArray[np.float64], drawn_BL: Ints, *, mask_id: int
) -> Ints:
    """The same with the entries drawn_BL as the random ones."""
    replaced = np.where(kind_BL < 0.8, mask_id, np.where(kind_BL < 0.9, ids_BL, drawn_BL))
    corrupted: Ints = np.where(chosen_BL, replaced, ids_BL)
    return corrupted


def hide(ids_BL: Ints, chosen_BL: Bool, kind_BL: NDArray[np.float64], *, mask_id: int, share: float) -> Ints:
    """[MASK] at a share of the chosen positions, by the uniform numbers kind_BL; the others stay as they
    are.
    """
    hidden: Ints = np.where(chosen_BL & (kind_BL < share), mask_id, ids_BL)
    return hidden


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = state + _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * _MIX1
    state = (state ^ (state >> np.uint64(27))) * _MIX2
    mixed: NDArray[np.uint64] = state ^ (state >> np.uint64(31))
    return mixed
