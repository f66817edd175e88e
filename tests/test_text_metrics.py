"""Metrics of written texts, against sacrebleu and slow definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sklearn.metrics import precision_recall_fscore_support

from distillkit.text_metrics import (
    compare_texts,
    edits_of,
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


SOURCE = ["he go to school yesterday", "all is well", "a b c d", "x y"]
CORRECT = ["he went to school yesterday .", "all is well", "a x y d", "x y z"]
MADE = ["he went to the school yesterday", "all is good", "a x d", "x y z"]


def test_edits_are_runs_between_the_words_that_stayed() -> None:
    assert edits_of(SOURCE[0], CORRECT[0]) == {(1, 2, ("went",)), (5, 5, (".",))}
    assert edits_of(SOURCE[0], MADE[0]) == {(1, 2, ("went",)), (3, 3, ("the",))}
    assert edits_of(SOURCE[2], CORRECT[2]) == {(1, 3, ("x", "y"))}
    assert edits_of("same", "same") == set()


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=8))
def test_the_edits_of_a_source_make_the_text(source: list[str], text: list[str]) -> None:
    words = list(source)
    for start, end, instead in sorted(edits_of(" ".join(source), " ".join(text)), reverse=True):
        assert list(instead) != source[start:end]
        words[start:end] = instead
    assert words == text


def test_f05_of_edits_is_that_of_a_classifier_of_edits() -> None:
    """Every edit of either side is an item that is wanted or not, and made or not."""
    wanted, made = [], []
    for row, (source, right, given_) in enumerate(zip(SOURCE, CORRECT, MADE, strict=True)):
        asked, done = ({(row, *edit) for edit in edits_of(source, text)} for text in (right, given_))
        for edit in asked | done:
            wanted.append(edit in asked)
            made.append(edit in done)
    sums = text_sums(CORRECT, MADE, SOURCE).sum(axis=0, keepdims=True)
    found = {name: float(value[0]) for name, value in text_metrics(sums).items()}
    precision, recall, f05, _ = precision_recall_fscore_support(wanted, made, beta=0.5, average="binary")
    assert (found["edit_precision"], found["edit_recall"]) == pytest.approx((precision, recall))
    assert found["edit_f05"] == pytest.approx(f05) and 0 < f05 < 1 and precision != recall
    plain = text_metrics(text_sums(CORRECT, MADE).sum(axis=0, keepdims=True))
    assert plain.keys() == found.keys() - {"edit_precision", "edit_recall", "edit_f05"}
    assert all(found[name] == value[0] for name, value in plain.items())


def test_where_nothing_is_edited_nothing_is_wrong() -> None:
    def three(written: list[str], wanted: list[str]) -> list[float]:
        scores = score_texts(wanted, written, sources=["a b"], seed=1, resamples=10)
        return [scores[name].value for name in ("edit_precision", "edit_recall", "edit_f05")]

    assert three(["a b"], ["a b"]) == [1.0, 1.0, 1.0]
    assert three(["a b"], ["a c"]) == [1.0, 0.0, 0.0]
    assert three(["a c"], ["a b"]) == [0.0, 1.0, 0.0]
    worse = compare_texts(["a c"], ["a b"], ["a c"], sources=["a b"], seed=1, resamples=10)
    assert worse["edit_f05"].value == -1.0
