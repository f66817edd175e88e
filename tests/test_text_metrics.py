"""Metrics of written texts, against sacrebleu and slow definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from distillkit.text_metrics import (
    compare_texts,
    longest_common,
    score_texts,
    text_metrics,
    text_sums,
    words_of,
)

WANTED = [
    "The cat sat on the mat, didn't it?",
    "It costs $3,000.50 (or 2-3 &quot;euros&quot;).",
    "Ein Haus am See - schön & groß!",
    "short",
    "a b c d e f g",
]
WRITTEN = [
    "The cat sat on a mat, did it?",
    'It costs $3,000.50, or 2-3 "euros".',
    "Ein Haus am Meer - schoen & gross.",
    "",
    "a b c d e f g",
]
TEXTS = st.lists(st.text(alphabet="ab c.,-1&é", max_size=12), min_size=1, max_size=5)


def corpus(wanted: list[str], written: list[str]) -> dict[str, float]:
    sums = text_sums(wanted, written)
    return {name: float(value[0]) for name, value in text_metrics(sums.sum(axis=0, keepdims=True)).items()}


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.randoms())
def test_bleu_and_chrf_of_any_texts_are_sacrebleus(wanted: list[str], random: object) -> None:
    written = [text[::-1] if len(text) % 2 else text[:-1] for text in wanted]
    assert_as_sacrebleu(wanted, written)


def test_bleu_and_chrf_of_sentences_are_sacrebleus() -> None:
    assert_as_sacrebleu(WANTED, WRITTEN)
    assert_as_sacrebleu(WANTED, WANTED)
    assert_as_sacrebleu(WRITTEN, WANTED)
    assert corpus(WANTED, WRITTEN)["bleu"] > 0.3


def assert_as_sacrebleu(wanted: list[str], written: list[str]) -> None:
    found = corpus(wanted, written)
    assert 100 * found["bleu"] == pytest.approx(BLEU().corpus_score(written, [wanted]).score, abs=1e-9)
    assert 100 * found["chrf"] == pytest.approx(CHRF().corpus_score(written, [wanted]).score, abs=1e-9)


def test_words_are_those_of_mteval() -> None:
    tokenizer = BLEU().tokenizer
    for text in (*WANTED, *WRITTEN, "1.5 2,5 x.y 3-4 a-b <skipped>z", "tail  \n"):
        assert words_of(text) == tokenizer(text.rstrip()).split()


def test_rouge_counts_shared_runs_of_words() -> None:
    """The published example: police killed the gunman."""
    found = corpus(["police killed the gunman"], ["Police KILL the gunman!"])
    assert found["rouge1"] == pytest.approx(3 / 4) and found["rouge2"] == pytest.approx(1 / 3)
    assert found["rouge_l"] == pytest.approx(3 / 4)
    assert corpus(["a b c d"], ["d c b a"])["rouge_l"] == pytest.approx(1 / 4)
    assert corpus(["Ärger über Öl"], ["ärger ÜBER öl"])["rouge2"] == 1.0
    assert corpus(["..."], [""])["rouge1"] == 0.0


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet="abc", max_size=7), st.text(alphabet="abc", max_size=7))
def test_the_longest_common_subsequence_is_the_recursive_one(left: str, right: str) -> None:
    def slow(a: str, b: str) -> int:
        if not a or not b:
            return 0
        if a[0] == b[0]:
            return 1 + slow(a[1:], b[1:])
        return max(slow(a[1:], b), slow(a, b[1:]))

    assert longest_common(left, right) == slow(left, right)


def test_white_space_around_and_between_words_does_not_matter_for_an_exact_match() -> None:
    assert corpus(["a  b", "c"], [" a b ", "d"])["exact_match"] == 0.5


def test_intervals_hold_the_value_and_pairs_are_compared_on_the_same_rows() -> None:
    generator = np.random.default_rng(0)
    wanted = [" ".join(generator.choice(list("abcdefgh"), size=8)) for _ in range(60)]
    good = [text if generator.random() < 0.7 else text[:6] for text in wanted]
    found = score_texts(wanted, good, seed=1, resamples=300)
    for name, value in found.items():
        assert value.low <= value.value <= value.high and value.n == 60, name
        assert value.low < value.high
    same = compare_texts(wanted, good, good, seed=1, resamples=50)
    assert all(value.low == value.value == value.high == 0 for value in same.values())
    worse = compare_texts(wanted, [text[:4] for text in wanted], good, seed=1, resamples=300)
    assert all(value.high < 0 for value in worse.values())
