"""BART's noises: what each may change, their laws against loops and measured figures, keyed randomness."""

from __future__ import annotations

import math
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from distillkit.data.masking import Ints, keyed_uniform
from distillkit.data.noising import (
    Spans,
    Text,
    inserted,
    masked_spans,
    masked_tokens,
    number_of_lengths,
    permuted_sentences,
    poisson,
    poisson_spans,
    rotated,
    shuffled,
    single_units,
    units_of,
    without_spans,
)
from distillkit.data.spans import Floats

MASK = -1


def text_of(lengths: list[int], seed: int = 0) -> Text:
    """Token ids that all differ; about one in five ends a sentence."""
    width = max(lengths)
    ids = np.arange(len(lengths) * width).reshape(len(lengths), width)
    ends = keyed_uniform(seed, 9, np.arange(len(lengths)), width, draw=9) < 0.2
    return Text(ids, np.asarray(lengths), ends)


def uniform(text: Text, draw: int, *, seed: int = 0, width: int = 0) -> Floats:
    rows = np.arange(len(text.lengths))
    return keyed_uniform(seed, 0, rows, width or 2 * text.ids.shape[1] + 8, draw=draw)


def rows_of(text: Text) -> list[list[int]]:
    return [row[:length].tolist() for row, length in zip(text.ids, text.lengths, strict=True)]


def drawn(text: Text, share: float, mean_span: float = 3.0, seed: int = 0) -> tuple[Spans, Ints]:
    """Infilling's spans with tokens as units."""
    unit, units = units_of(text, np.ones(text.ids.shape, dtype=bool))
    count = number_of_lengths(math.ceil(text.ids.shape[1] * share), mean_span)
    lengths = uniform(text, 0, seed=seed, width=count)
    starts = uniform(text, 1, seed=seed)[:, : text.ids.shape[1]]
    return poisson_spans(units, share, mean_span, lengths, starts), unit


def is_subsequence(part: list[int], whole: list[int]) -> bool:
    left = iter(whole)
    return all(token in left for token in part)


def sentences_of(ids: list[int], ends: list[bool]) -> list[tuple[int, ...]]:
    made: list[list[int]] = [[]]
    for token, end in zip(ids, ends, strict=True):
        made[-1].append(token)
        if end:
            made.append([])
    return [tuple(one) for one in made if one]


texts = st.builds(text_of, st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(0, 10**6))
several = settings(max_examples=80, deadline=None)


@several
@given(text=texts, share=st.floats(0, 1), seed=st.integers(0, 10**6))
def test_permutation_keeps_every_sentence_whole_and_moves_no_more_than_its_share(
    text: Text, share: float, seed: int
) -> None:
    made = permuted_sentences(text, share, uniform(text, 0, seed=seed), uniform(text, 1, seed=seed))
    for row, (before, after) in enumerate(zip(rows_of(text), rows_of(made), strict=True)):
        old = sentences_of(before, text.ends[row, : len(before)].tolist())
        place = {token: index for index, one in enumerate(old) for token in one}
        order = list(dict.fromkeys(place[token] for token in after))
        assert sorted(order) == list(range(len(old)))
        assert [token for index in order for token in old[index]] == after
        moved = sum(index != at for at, index in enumerate(order))
        assert moved <= math.ceil(share * len(old))
        if share == 0:
            assert before == after


def test_all_orders_of_the_sentences_are_equally_likely() -> None:
    rows = 12_000
    text = Text(
        np.tile([1, 1, 2, 3, 3], (rows, 1)), np.full(rows, 5), np.tile([0, 1, 1, 0, 1], (rows, 1)) > 0
    )
    made = permuted_sentences(text, 1.0, uniform(text, 0), uniform(text, 1))
    counts = Counter(tuple(dict.fromkeys(row)) for row in rows_of(made))
    assert set(counts) == set(permutations([1, 2, 3]))
    assert stats.chisquare(list(counts.values())).pvalue > 1e-4


@several
@given(text=texts, seed=st.integers(0, 10**6))
def test_a_rotation_is_a_rotation(text: Text, seed: int) -> None:
    offsets = (uniform(text, 0, seed=seed)[:, 0] * text.lengths).astype(np.int64)
    for before, after, offset in zip(rows_of(text), rows_of(rotated(text, offsets)), offsets, strict=True):
        assert after == before[offset:] + before[:offset]


@several
@given(text=texts, seed=st.integers(0, 10**6))
def test_shuffling_keeps_the_tokens(text: Text, seed: int) -> None:
    for before, after in zip(
        rows_of(text), rows_of(shuffled(text, uniform(text, 0, seed=seed))), strict=True
    ):
        assert sorted(after) == before


@several
@given(text=texts, share=st.floats(0, 1), seed=st.integers(0, 10**6))
def test_deletion_leaves_a_subsequence_and_masking_every_place(text: Text, share: float, seed: int) -> None:
    unit, units = units_of(text, np.ones(text.ids.shape, dtype=bool))
    spans = single_units(units, share, uniform(text, 0, seed=seed)[:, : text.ids.shape[1]])
    fill = np.full(text.ids.shape, MASK)
    kept, masked = without_spans(text, spans, unit), masked_tokens(text, spans, unit, fill)
    for before, less, same in zip(rows_of(text), rows_of(kept), rows_of(masked), strict=True):
        count = math.ceil(share * len(before))
        assert is_subsequence(less, before) and len(less) == len(before) - count
        assert same.count(MASK) == count
        assert all(token in (MASK, old) for token, old in zip(same, before, strict=True))
        assert [token for token in same if token != MASK] == less


@several
@given(text=texts, share=st.floats(0, 1), seed=st.integers(0, 10**6))
def test_insertion_adds_tokens_and_loses_none(text: Text, share: float, seed: int) -> None:
    counts = np.ceil(text.lengths * share).astype(np.int64)
    tokens = np.full((len(counts), 2 * text.ids.shape[1] + 8), MASK)
    made = inserted(text, counts, tokens, uniform(text, 0, seed=seed))
    for before, after, count in zip(rows_of(text), rows_of(made), counts, strict=True):
        assert [token for token in after if token != MASK] == before
        assert after.count(MASK) == count


def test_inserted_tokens_stand_anywhere_alike() -> None:
    text = text_of([6] * 20_000)
    counts, tokens = np.ones(20_000, dtype=np.int64), np.full((20_000, 7), MASK)
    made = inserted(text, counts, tokens, uniform(text, 0))
    assert stats.chisquare(np.bincount((made.ids == MASK).argmax(axis=1), minlength=7)).pvalue > 1e-4


@several
@given(text=texts, share=st.floats(0, 1), mean_span=st.floats(0.3, 6), seed=st.integers(0, 10**6))
def test_infilling_takes_out_whole_spans_and_leaves_a_mask_for_each(
    text: Text, share: float, mean_span: float, seed: int
) -> None:
    """By a plain loop over the spans, longest reach first."""
    spans, unit = drawn(text, share, mean_span, seed)
    made = masked_spans(text, spans, unit, np.full(text.ids.shape, MASK))
    for row, (before, after) in enumerate(zip(rows_of(text), rows_of(made), strict=True)):
        budget = math.ceil(share * len(before))
        sizes = spans.lengths[row]
        assert sizes.sum() == budget and not sizes[len(before) :].any()
        behind = {at + step for at, size in enumerate(sizes) for step in range(1, size)}
        wanted = [MASK if sizes[at] else token for at, token in enumerate(before) if at not in behind]
        assert after == wanted
        if share == 0:
            assert after == before and spans.inserted[row] == 0


@pytest.mark.parametrize(
    ("share", "mean_span", "removed", "masks", "length"),
    [(0.3, 3.0, 0.267, 43, 418), (0.3, 3.5, 0.266, None, None), (0.15, 3.0, 0.142, None, None)],
)
def test_infilling_removes_what_the_released_code_removes(
    share: float, mean_span: float, removed: float, masks: int | None, length: int | None
) -> None:
    """Figures measured on the released code, 512 tokens: spans overlap, so that it is less than the share."""
    text = text_of([512] * 1500)
    spans, unit = drawn(text, share, mean_span)
    made = masked_spans(text, spans, unit, np.full(text.ids.shape, MASK))
    kept = np.asarray([sum(token != MASK for token in row) for row in rows_of(made)])
    assert 1 - kept.mean() / 512 == pytest.approx(removed, abs=0.002)
    found = (made.lengths - kept + spans.inserted).mean()
    if masks is not None and length is not None:
        assert found == pytest.approx(masks, abs=0.6)
        assert (made.lengths + spans.inserted).mean() == pytest.approx(length, abs=1)


def test_span_lengths_are_poisson_and_the_empty_ones_are_kept() -> None:
    """The last length of a row is trimmed to the budget; with a budget this large it hardly counts."""
    text = text_of([400] * 400)
    spans, _ = drawn(text, 1.0)
    sizes = spans.lengths[spans.lengths > 0]
    empty = spans.inserted.sum() / (spans.inserted.sum() + len(sizes))
    assert empty == pytest.approx(stats.poisson.pmf(0, 3), abs=0.003)
    law = np.bincount(sizes, minlength=12)[1:12] / len(sizes)
    assert law == pytest.approx(stats.poisson.pmf(range(1, 12), 3) / (1 - stats.poisson.pmf(0, 3)), abs=0.008)


@pytest.mark.parametrize("mean", [0.2, 3.0, 3.5, 40.0])
def test_poisson_numbers_are_scipys(mean: float) -> None:
    numbers = keyed_uniform(0, 0, np.arange(50), 40, draw=0)
    assert (poisson(numbers, mean) == stats.poisson.ppf(numbers, mean)).all()
    edges = poisson(np.asarray([0.0, 1 - 2.0**-53]), mean)
    assert edges[0] == 0 and edges[1] > mean


def test_whole_words_are_taken_out_whole() -> None:
    begins = np.asarray([[True, False, True, True, False, False, True, False]])
    text = Text(np.arange(8)[None] + 10, np.asarray([7]), np.zeros((1, 8), dtype=bool))
    unit, units = units_of(text, begins)
    assert units.tolist() == [4] and unit[0, :7].tolist() == [0, 0, 1, 2, 2, 2, 3]
    spans = Spans(np.asarray([[0, 2, 0, 0]]), np.asarray([0]))
    fill = np.full((1, 8), MASK)
    assert rows_of(masked_spans(text, spans, unit, fill)) == [[10, 11, MASK, 16]]
    assert rows_of(masked_tokens(text, spans, unit, fill)) == [[10, 11, MASK, MASK, MASK, MASK, 16]]
    assert rows_of(without_spans(text, spans, unit)) == [[10, 11, 16]]


def test_a_text_is_corrupted_the_same_whatever_stands_beside_it() -> None:
    text = text_of([30, 11, 25])
    spans, unit = drawn(text, 0.3)
    together = masked_spans(text, spans, unit, np.full(text.ids.shape, MASK))
    row = np.asarray([1])
    alone = Text(text.ids[1:2, :11], np.asarray([11]), text.ends[1:2, :11])
    own, units = units_of(alone, np.ones((1, 11), dtype=bool))
    count = number_of_lengths(math.ceil(11 * 0.3), 3.0)
    lengths, starts = (keyed_uniform(0, 0, row, size, draw=draw) for draw, size in ((0, count), (1, 11)))
    by_itself = poisson_spans(units, 0.3, 3.0, lengths, starts)
    made = masked_spans(alone, by_itself, own, np.full((1, 11), MASK))
    assert rows_of(made)[0] == rows_of(together)[1]
    assert by_itself.inserted[0] == spans.inserted[1]
