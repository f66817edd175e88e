"""Span corruption (Raffel et al. 2020, section 3.1.4), as pure functions of arrays and uniform numbers.

A row of L tokens has n noise tokens in s runs, between which other tokens stand. Shapes: B rows, L tokens, S
noise runs, K uniform numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distillkit.data.masking import Bool, Ints, choose

Floats = NDArray[np.float64]
Ends = tuple[Bool, Bool]
"""Of each row: whether its first token is noise, and whether its last one is."""
Row = tuple[Ints, Ints]
"""Padded numbers `[B, L]` and how many of them count `[B]`."""


def noise_counts(lengths_B: Ints, *, density: float, mean_span: float) -> tuple[Ints, Ints]:
    """(`[B]` noise tokens n = round(density * L), `[B]` noise runs s = round(n / mean_span)), each at least
    one; L >= 2.

    At least one token is no noise. The released code lets s grow beyond the tokens between the runs, where
    it then fails; here there are never more runs than such tokens.
    """
    noise_B = np.clip(np.rint(lengths_B * density), 1, lengths_B - 1).astype(np.int64)
    spans_B = np.maximum(1, np.rint(noise_B / mean_span)).astype(np.int64)
    return noise_B, np.minimum(spans_B, np.minimum(noise_B, lengths_B - noise_B))


def corrupted_lengths(raw: int, *, density: float, mean_span: float) -> tuple[int, int]:
    """(tokens of the inputs, of the targets) that `raw` tokens become, a sentinel for each run in both,
    without what ends a sequence."""
    noise, spans = (
        int(count[0]) for count in noise_counts(np.asarray([raw]), density=density, mean_span=mean_span)
    )
    return raw - noise + spans, noise + spans


def raw_length(room: int, *, density: float, mean_span: float) -> int:
    """The largest number of tokens whose inputs have at most `room` (at least 2).

    The released helper takes one token less where half of the tokens are noise and the targets would be
    longer than the inputs.
    """
    raw = max(2, room)
    while corrupted_lengths(raw + 1, density=density, mean_span=mean_span)[0] <= room:
        raw += 1
    return raw


def released_ends(lengths_B: Ints, noise_B: Ints, spans_B: Ints, uniform_B: Floats) -> Ends:
    """As the released code: the first token is never noise, the last one always is
    (text-to-text-transfer-transformer issue 905)."""
    never = np.zeros(len(lengths_B), dtype=bool)
    return never, ~never


def even_ends(lengths_B: Ints, noise_B: Ints, spans_B: Ints, uniform_B: Floats) -> Ends:
    """The ends that a mask has which was rolled by a random number of places, so that the first and the last
    token are noise as often as any other, with probability n / L.

    A roll may cut a run in two, one at each end; here such a row has s runs all the same, so that all lengths
    stay exact. One run by itself cannot be at both ends: it begins anywhere with the same probability.
    """
    both_B = np.where(spans_B > 1, noise_B - spans_B, 0)
    neither_B = lengths_B - noise_B - spans_B
    place_B = uniform_B * (both_B + neither_B + 2 * spans_B)
    first_B = place_B < both_B + spans_B
    last_B = (place_B < both_B) | ((place_B >= both_B + spans_B) & (place_B < both_B + 2 * spans_B))
    return first_B, last_B


def compositions(totals_B: Ints, parts_B: Ints, uniform_BK: Floats) -> Ints:
    """`[B, P]` sizes, 0 behind a row's own parts: each total cut into that many parts of at least one, all
    ways of doing so equally likely; K >= the largest total - 1."""
    width, most = int(totals_B.max()), int(parts_B.max())
    gaps = np.arange(width - 1) < totals_B[:, None] - 1
    cuts_BK = choose(gaps, parts_B - 1, uniform_BK[:, : width - 1])
    part_BW = np.cumsum(np.pad(cuts_BK, ((0, 0), (1, 0))), axis=1)
    inside_BW = np.arange(width) < totals_B[:, None]
    flat = (np.arange(len(totals_B))[:, None] * most + part_BW)[inside_BW]
    return np.bincount(flat, minlength=len(totals_B) * most).reshape(len(totals_B), most)


def span_mask(
    lengths_B: Ints, noise_B: Ints, spans_B: Ints, ends: Ends, noise_BK: Floats, other_BK: Floats
) -> Bool:
    """`[B, L]`, True at noise: n tokens in s runs, with these ends; every such mask of a row with its ends is
    equally likely. noise and other are uniform numbers that cut the noise and what stands between it.
    """
    first_B, last_B = ends
    runs_BS = compositions(noise_B, spans_B, noise_BK)
    others_BS = compositions(lengths_B - noise_B, spans_B + 1 - first_B - last_B, other_BK)
    number = np.arange(2 * max(runs_BS.shape[1], others_BS.shape[1]))
    noisy_BR = (number % 2 == 1) ^ first_B[:, None]
    sizes_BR = np.where(noisy_BR, _column(runs_BS, number // 2), _column(others_BS, number // 2))
    width = int(lengths_B.max())
    starts_BL = np.zeros((len(lengths_B), width + 1), dtype=np.int64)
    rows, runs = np.nonzero(sizes_BR)
    starts_BL[rows, (np.cumsum(sizes_BR, axis=1) - sizes_BR)[rows, runs]] = 1
    run_BL = np.cumsum(starts_BL[:, :width], axis=1) - 1
    inside_BL = np.arange(width) < lengths_B[:, None]
    mask: Bool = np.take_along_axis(noisy_BR, run_BL, axis=1) & inside_BL
    return mask


def first_of_runs(mask_BL: Bool) -> Bool:
    """True where a run of True begins."""
    starts: Bool = mask_BL & ~np.pad(mask_BL, ((0, 0), (1, 0)))[:, :-1]
    return starts


def _column(sizes_BS: Ints, columns: Ints) -> Ints:
    """These columns; 0 for one that is not there."""
    padded = np.pad(sizes_BS, ((0, 0), (0, max(0, int(columns.max()) + 1 - sizes_BS.shape[1]))))
    taken: Ints = padded[:, columns]
    return taken


def with_sentinels(ids_BL: Ints, mask_BL: Bool, lengths_B: Ints, first: int) -> tuple[Row, Row]:
    """(inputs, targets) without what ends a sequence: in the inputs the k-th noise run is sentinel
    `first - k`, the targets are each run's sentinel and its tokens.

    Nothing follows the last run, as in the released code; the paper's figure has one more sentinel there.
    Where sentinels run out, `first - k` is a token of the text: the caller sees to it that they do not.
    """
    starts_BL = first_of_runs(mask_BL)
    sentinel_BL = first - (np.cumsum(starts_BL, axis=1) - 1)
    inside_BL = np.arange(ids_BL.shape[1]) < lengths_B[:, None]
    slots = np.stack([sentinel_BL, ids_BL], axis=2).reshape(len(ids_BL), -1)

    def row(tokens_BL: Bool) -> Row:
        places, lengths = packed(np.stack([starts_BL, tokens_BL], axis=2).reshape(slots.shape))
        return np.take_along_axis(slots, places, axis=1), lengths

    return row(inside_BL & ~mask_BL), row(mask_BL)


def packed(kept_BK: Bool) -> Row:
    """(`[B, W]` places of the chosen items of each row in their order, `[B]` how many)."""
    lengths_B = kept_BK.sum(axis=1)
    return np.argsort(~kept_BK, axis=1, kind="stable")[:, : max(1, int(lengths_B.max()))], lengths_B
