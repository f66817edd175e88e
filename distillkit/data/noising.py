"""Ways of corrupting a text (Lewis et al. 2020, section 2.2; Raffel et al. 2020, section 3.3), as pure
functions of arrays and uniform numbers. Special tokens are no part of a text here.

Shapes: B texts, L tokens, U units (tokens or words), S sentences, K uniform numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from distillkit.data.masking import Bool, Ints, choose
from distillkit.data.spans import Floats, packed


@dataclass(frozen=True)
class Text:
    """Texts as padded rows: ids `[B, L]`, of which the first `lengths` `[B]` count; ends `[B, L]`, True at
    the last token of each sentence."""

    ids: Ints
    lengths: Ints
    ends: Bool

    @property
    def real(self) -> Bool:
        """`[B, L]`, True at tokens."""
        inside: Bool = np.arange(self.ids.shape[1]) < self.lengths[:, None]
        return inside

    def taken(self, places_BK: Ints, lengths_B: Ints) -> Text:
        """The tokens at these places of each row, as rows of these lengths."""
        places = places_BK[:, : max(1, int(lengths_B.max()))]
        ids: Ints = np.take_along_axis(self.ids, places, axis=1)
        ends: Bool = np.take_along_axis(self.ends, places, axis=1)
        return Text(ids, lengths_B, ends)

    def kept(self, keep_BL: Bool) -> Text:
        """The chosen tokens of each row."""
        return self.taken(*packed(keep_BL & self.real))


@dataclass(frozen=True)
class Spans:
    """What infilling draws for rows of U units: lengths `[B, U]` of the span that begins at a unit, 0 where
    none does; inserted `[B]`, spans of length 0, which begin nowhere."""

    lengths: Ints
    inserted: Ints

    @property
    def covered(self) -> Bool:
        """`[B, U]`, True at units that a span covers behind its first one."""
        units = np.arange(self.lengths.shape[1])
        reach_BU = np.maximum.accumulate(np.where(self.lengths > 0, units + self.lengths, 0), axis=1)
        covered: Bool = np.pad(reach_BU, ((0, 0), (1, 0)))[:, :-1] > units
        return covered


def share_of(counts_B: Ints, share: float) -> Ints:
    """ceil(share * count), as fairseq counts what it corrupts."""
    counted: Ints = np.ceil(counts_B * share).astype(np.int64)
    return counted


def permuted_sentences(text: Text, share: float, chosen_BK: Floats, order_BK: Floats) -> Text:
    """ceil(share * sentences) of each text's sentences take each other's places; all ways equally likely.

    What follows the last sentence end counts as a sentence.
    """
    real_BL = text.real
    sentence_BL = np.cumsum(np.pad(text.ends, ((0, 0), (1, 0)))[:, :-1], axis=1)
    counts_B = np.max(np.where(real_BL, sentence_BL, -1), axis=1) + 1
    width = max(1, int(counts_B.max()))
    moved_BS = choose(np.arange(width) < counts_B[:, None], share_of(counts_B, share), chosen_BK[:, :width])
    free_BS = np.argsort(~moved_BS, axis=1, kind="stable")
    rank_BS = _ranks(np.where(moved_BS, order_BK[:, :width], 2.0))
    place_BS = np.where(moved_BS, np.take_along_axis(free_BS, rank_BS, axis=1), np.arange(width))
    place_BL = np.take_along_axis(place_BS, np.minimum(sentence_BL, width - 1), axis=1)
    order_BL = np.argsort(np.where(real_BL, place_BL, width), axis=1, kind="stable")
    return text.taken(order_BL, text.lengths)


def rotated(text: Text, offsets_B: Ints) -> Text:
    """Each text from its token number `offset` on, and then what was before it."""
    places_BL = np.arange(text.ids.shape[1]) + offsets_B[:, None]
    around = np.where(text.real, places_BL % np.maximum(1, text.lengths)[:, None], 0)
    return text.taken(around, text.lengths)


def shuffled(text: Text, order_BL: Floats) -> Text:
    """The tokens of each text in any order (deshuffling)."""
    keys = np.where(text.real, order_BL[:, : text.ids.shape[1]], 2.0)
    return text.taken(np.argsort(keys, axis=1, kind="stable"), text.lengths)


def inserted(text: Text, counts_B: Ints, tokens_BK: Ints, slots_BK: Floats) -> Text:
    """So many tokens put anywhere into each text, all places of the result equally likely: of `tokens` those
    at the same places of the result. K >= the longest result."""
    lengths_B = text.lengths + counts_B
    width = max(1, int(lengths_B.max()))
    inside_BK = np.arange(width) < lengths_B[:, None]
    new_BK = choose(inside_BK, counts_B, slots_BK[:, :width])
    source_BK = np.clip(np.arange(width) - np.cumsum(new_BK, axis=1), 0, text.ids.shape[1] - 1)
    made = text.taken(source_BK, lengths_B)
    return Text(np.where(new_BK, tokens_BK[:, :width], made.ids), lengths_B, made.ends & ~new_BK)


def number_of_lengths(budget: int, mean_span: float) -> int:
    """How many Poisson lengths reach the budget all but surely (8 standard deviations and 40)."""
    return int(np.ceil((budget + 8 * budget**0.5 + 40) / mean_span))


def poisson(uniform: Floats, mean: float) -> Ints:
    """Numbers of a Poisson distribution, each by one uniform number."""
    most = math.ceil(mean + 12 * mean**0.5 + 40)
    drawn: Ints = np.searchsorted(stats.poisson.cdf(np.arange(most), mean), uniform)
    return drawn


def poisson_spans(
    units_B: Ints, share: float, mean_span: float, length_BK: Floats, start_BU: Floats
) -> Spans:
    """Text infilling's spans: lengths are drawn from Poisson(mean_span) until they add up to
    ceil(share * units), the last one trimmed to that; each of length > 0 begins at a unit of its own, all
    equally likely, and ends with the text at the latest.

    They may overlap, and end at the text's end, so that a smaller share is covered: 26.7 % for 30 % and 3.
    length and start are uniform numbers, K = `number_of_lengths` of the largest budget.
    """
    budget_B1 = share_of(units_B, share)[:, None]
    drawn_BK = poisson(length_BK, mean_span)
    before_BK = np.cumsum(drawn_BK, axis=1) - drawn_BK
    acting_BK = before_BK < budget_B1
    trimmed_BK = np.minimum(drawn_BK, budget_B1 - before_BK)
    long_BK = acting_BK & (trimmed_BK > 0)
    width = start_BU.shape[1]
    candidates_BU = np.arange(width) < units_B[:, None]
    starts_BU = choose(candidates_BU, long_BK.sum(axis=1), start_BU)
    order_BK = np.argsort(~long_BK, axis=1, kind="stable")
    sizes_BK = np.take_along_axis(np.where(long_BK, trimmed_BK, 0), order_BK, axis=1)
    rank_BU = np.minimum(_ranks(np.where(candidates_BU, start_BU, 2.0)), sizes_BK.shape[1] - 1)
    lengths_BU = np.where(starts_BU, np.take_along_axis(sizes_BK, rank_BU, axis=1), 0)
    return Spans(lengths_BU, (acting_BK & ~long_BK).sum(axis=1))


def single_units(units_B: Ints, share: float, start_BU: Floats) -> Spans:
    """ceil(share * units) spans of one unit each (token masking and deletion)."""
    candidates_BU = np.arange(start_BU.shape[1]) < units_B[:, None]
    chosen_BU = choose(candidates_BU, share_of(units_B, share), start_BU)
    return Spans(chosen_BU.astype(np.int64), np.zeros(len(units_B), dtype=np.int64))


def units_of(text: Text, begins_BL: Bool) -> tuple[Ints, Ints]:
    """(`[B, L]` the unit that each token is of, `[B]` how many a text has); the first token always begins
    one."""
    begins_BL = begins_BL.copy()
    begins_BL[:, 0] = True
    unit_BL = np.cumsum(begins_BL & text.real, axis=1) - 1
    return np.maximum(0, unit_BL), np.where(text.lengths > 0, unit_BL.max(axis=1) + 1, 0)


def masked_spans(text: Text, spans: Spans, unit_BL: Ints, fill_BL: Ints) -> Text:
    """One token of `fill`, at its place, for each span that no other one covers; what spans cover is gone."""
    first_BL, covered_BL = _touched(spans, unit_BL)
    filled = Text(np.where(first_BL, fill_BL, text.ids), text.lengths, text.ends)
    return filled.kept(~covered_BL)


def masked_tokens(text: Text, spans: Spans, unit_BL: Ints, fill_BL: Ints) -> Text:
    """Every token that a span covers is the one of `fill` at its place."""
    first_BL, covered_BL = _touched(spans, unit_BL)
    return Text(np.where(first_BL | covered_BL, fill_BL, text.ids), text.lengths, text.ends)


def without_spans(text: Text, spans: Spans, unit_BL: Ints) -> Text:
    """What no span covers."""
    first_BL, covered_BL = _touched(spans, unit_BL)
    return text.kept(~(first_BL | covered_BL))


def _touched(spans: Spans, unit_BL: Ints) -> tuple[Bool, Bool]:
    """(`[B, L]` the first token of each span that no other one covers, the other tokens of spans)."""
    width = spans.lengths.shape[1]
    unit_BL = np.minimum(unit_BL, width - 1)
    begins_BL = np.diff(unit_BL, axis=1, prepend=-1) > 0
    starts_BL = np.take_along_axis(spans.lengths > 0, unit_BL, axis=1)
    covered_BL = np.take_along_axis(spans.covered, unit_BL, axis=1)
    return starts_BL & begins_BL & ~covered_BL, covered_BL | (starts_BL & ~begins_BL)


def _ranks(keys_BK: Floats) -> Ints:
    """`[B, K]` the place of each key among those of its row."""
    ranks = np.empty(keys_BK.shape, dtype=np.int64)
    places = np.broadcast_to(np.arange(keys_BK.shape[1]), keys_BK.shape)
    np.put_along_axis(ranks, np.argsort(keys_BK, axis=1, kind="stable"), places, axis=1)
    return ranks
