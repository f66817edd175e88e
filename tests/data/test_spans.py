"""Span corruption: exact lengths, uniform segmentations, ends that are noise as often as any token, and an
inverse."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from distillkit.data.masking import Bool, Ints, keyed_uniform
from distillkit.data.spans import (
    Ends,
    compositions,
    corrupted_lengths,
    even_ends,
    first_of_runs,
    noise_counts,
    raw_length,
    released_ends,
    span_mask,
    with_sentinels,
)

PUBLISHED = [
    (64, 0.15, 3.0, (70, 14)),
    (128, 0.15, 3.0, (141, 29)),
    (256, 0.15, 3.0, (284, 58)),
    (512, 0.15, 3.0, (568, 114)),
    (1024, 0.15, 3.0, (1137, 229)),
    (512, 0.15, 2.0, (552, 126)),
    (512, 0.15, 5.0, (581, 105)),
    (512, 0.15, 10.0, (591, 99)),
]
ENDS = {"even": even_ends, "released": released_ends}


def masks(
    lengths: Ints, *, density: float = 0.15, mean_span: float = 3.0, ends: str = "even", seed: int = 0
) -> tuple[Bool, Ints, Ints]:
    index, width = np.arange(len(lengths)), int(lengths.max())
    noise, spans = noise_counts(lengths, density=density, mean_span=mean_span)
    uniform = [keyed_uniform(seed, 0, index, width, draw=draw) for draw in range(3)]
    law: Ends = ENDS[ends](lengths, noise, spans, uniform[0][:, 0])
    return span_mask(lengths, noise, spans, law, uniform[1], uniform[2]), noise, spans


def interleaved(inputs: list[int], targets: list[int], first: int) -> list[int]:
    """What was corrupted, by a plain loop: each sentinel of the inputs is what follows it in the targets."""
    spans: dict[int, list[int]] = {}
    for token in targets:
        if token > first - 100:
            assert token not in spans and (not spans or token == min(spans) - 1)
            spans[token] = []
        else:
            spans[min(spans)].append(token)
    assert all(spans.values()) and [token for token in inputs if token > first - 100] == list(spans)
    return [one for token in inputs for one in spans.get(token, [token])]


@pytest.mark.parametrize(("room", "density", "mean_span", "published"), PUBLISHED)
def test_raw_lengths_fill_the_inputs_as_in_the_released_code(
    room: int, density: float, mean_span: float, published: tuple[int, int]
) -> None:
    raw = raw_length(room - 1, density=density, mean_span=mean_span)
    inputs, targets = corrupted_lengths(raw, density=density, mean_span=mean_span)
    assert (raw, targets + 1) == published and inputs + 1 == room


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 90), min_size=1, max_size=5),
    density=st.floats(0.02, 0.95),
    mean_span=st.floats(1.0, 12.0),
    ends=st.sampled_from(["even", "released"]),
    seed=st.integers(0, 10**6),
)
def test_inputs_and_targets_put_together_by_sentinel_are_the_original(
    lengths: list[int], density: float, mean_span: float, ends: str, seed: int
) -> None:
    rows, first = np.asarray(lengths), 1000
    mask, noise, spans = masks(rows, density=density, mean_span=mean_span, ends=ends, seed=seed)
    ids = keyed_uniform(seed, 1, np.arange(len(rows)), mask.shape[1], draw=0)
    ids = (ids * 800).astype(np.int64)
    (inputs, input_lengths), (targets, target_lengths) = with_sentinels(ids, mask, rows, first)
    assert (mask.sum(axis=1) == noise).all() and (first_of_runs(mask).sum(axis=1) == spans).all()
    for row, length in enumerate(lengths):
        given_, wanted = inputs[row, : input_lengths[row]], targets[row, : target_lengths[row]]
        law = {"density": density, "mean_span": mean_span}
        assert (len(given_), len(wanted)) == corrupted_lengths(length, **law)
        assert interleaved(given_.tolist(), wanted.tolist(), first) == ids[row, :length].tolist()


def test_compositions_are_uniform() -> None:
    """All ways of cutting 7 into 3 parts, as a loop over the cuts has them."""
    rows = 20_000
    made = compositions(np.full(rows, 7), np.full(rows, 3), keyed_uniform(3, 0, np.arange(rows), 7, draw=0))
    wanted = [(a, b - a, 7 - b) for a, b in combinations(range(1, 7), 2)]
    counts = Counter(map(tuple, made.tolist()))
    assert set(counts) == set(wanted)
    assert stats.chisquare([counts[one] for one in wanted]).pvalue > 1e-4


def test_the_first_and_the_last_token_are_noise_as_often_as_any_other() -> None:
    """In the released code the first never is and the last always, so that a model learns to expect the end
    of every text after a sentinel."""
    rows = 20_000
    lengths = np.full(rows, 60)
    mask, noise, _ = masks(lengths)
    share = noise[0] / 60
    error = (share * (1 - share) / rows) ** 0.5
    profile = mask.mean(axis=0)
    assert profile[0] == pytest.approx(share, abs=4.5 * error)
    assert profile[-1] == pytest.approx(share, abs=4.5 * error)
    assert np.abs(profile - share).max() < 0.25 * share
    released, _, _ = masks(lengths, ends="released")
    assert not released[:, 0].any() and released[:, -1].all()


def test_the_released_mask_leans_to_the_end_as_measured_on_the_released_code() -> None:
    mask, _, _ = masks(np.full(4000, 568), ends="released")
    assert mask.mean(axis=0)[-5:] == pytest.approx([0.26, 0.34, 0.47, 0.68, 1.0], abs=0.03)


@pytest.mark.parametrize("ends", ["even", "released"])
def test_span_lengths_follow_the_published_law(ends: str) -> None:
    mask, _, _ = masks(np.full(3000, 568), ends=ends)
    flat = np.pad(mask, ((0, 0), (1, 1))).ravel().astype(int)
    edges = np.flatnonzero(np.diff(flat))
    sizes = edges[1::2] - edges[::2]
    law = np.bincount(sizes, minlength=7)[1:7] / len(sizes)
    assert law == pytest.approx([0.32, 0.22, 0.15, 0.10, 0.07, 0.05], abs=0.012)


def test_one_span_begins_anywhere_alike() -> None:
    rows = 20_000
    mask, noise, spans = masks(np.full(rows, 12))
    assert (int(noise[0]), int(spans[0])) == (2, 1)
    assert stats.chisquare(np.bincount(mask.argmax(axis=1), minlength=11)).pvalue > 1e-4


def test_a_rows_mask_does_not_depend_on_the_rows_beside_it() -> None:
    lengths = np.asarray([40, 90, 33])
    together, _, _ = masks(lengths)
    for row, length in enumerate(lengths):
        noise, spans = noise_counts(np.asarray([length]), density=0.15, mean_span=3.0)
        uniform = [keyed_uniform(0, 0, np.asarray([row]), int(length), draw=draw) for draw in range(3)]
        ends = even_ends(np.asarray([length]), noise, spans, uniform[0][:, 0])
        alone = span_mask(np.asarray([length]), noise, spans, ends, uniform[1], uniform[2])
        assert (together[row, :length] == alone[0]).all() and not together[row, length:].any()
