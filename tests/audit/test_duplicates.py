"""Copies are counted, and near copies are those that the sets of 5-grams by hand say are near."""

from __future__ import annotations

import numpy as np
import pytest

from distillkit.audit.blocks import Block, digest
from distillkit.audit.duplicates import NEAR, Copies, DistinctTexts, Documents, linked, similarity, sketches

VOCABULARY = [f"w{number}" for number in range(3000)]


def written(generator: np.random.Generator, size: int) -> list[str]:
    return [str(word) for word in generator.choice(VOCABULARY, size=size)]


def changed(words: list[str], generator: np.random.Generator, number: int) -> list[str]:
    words = list(words)
    for at in generator.choice(len(words), size=number, replace=False):
        words[at] = f"new{at}"
    return words


def jaccard(left: list[str], right: list[str]) -> float:
    one, two = ({tuple(words[at : at + 5]) for at in range(len(words) - 4)} for words in (left, right))
    return len(one & two) / len(one | two)


def sketched(*documents: list[str]) -> np.ndarray:
    return sketches(Block.of([[" ".join(words)] for words in documents]))[0]


def test_estimates_are_those_of_the_sets_within_their_error() -> None:
    """Unbiased, with the standard error of 128 draws."""
    generator = np.random.default_rng(1)
    scaled = []
    for _ in range(200):
        words = written(generator, int(generator.choice([40, 200, 900])))
        other = changed(words, generator, int(generator.integers(1, len(words) // 12)))
        true = jaccard(words, other)
        error = float(similarity(*sketched(words, other))) - true
        scaled.append(error / np.sqrt(true * (1 - true) / 128))
    assert abs(np.mean(scaled)) < 0.25 and 0.8 < np.std(scaled) < 1.2


def test_verdicts_are_those_of_brute_force_where_it_is_clear() -> None:
    """Far from the threshold (four standard errors) every pair of 60 documents is judged as by hand."""
    generator = np.random.default_rng(2)
    texts: list[list[str]] = []
    for _ in range(20):
        words = written(generator, 300)
        texts += [words, changed(words, generator, 3), changed(words, generator, 60)]
    clusters = linked(sketched(*texts))
    for left in range(len(texts)):
        for right in range(left):
            true = jaccard(texts[left], texts[right])
            if abs(true - NEAR) > 4 * 0.035:
                assert (clusters[left] == clusters[right]) == (true > NEAR), (left, right, true)


def test_planted_copies_are_counted() -> None:
    """40 documents of their own, 7 exact copies, 5 near ones, 3 too short to be compared."""
    generator = np.random.default_rng(3)
    own = [written(generator, 150) for _ in range(40)]
    near = [changed(words, generator, 1) for words in own[:5]]
    short = [["too", "short", str(number)] for number in range(3)]
    documents = Documents()
    for part in (own, own[10:17], near, short):
        documents.add(Block.of([[" ".join(words)] for words in part]))
    copies, found = documents.found()
    assert copies == Copies(distinct=48, copies=7)
    assert (found.documents, found.compared) == (5, 45)
    assert {cluster.documents for cluster in found.clusters} == {(at + 1, at + 48) for at in range(5)}
    assert all(cluster.similarity > NEAR for cluster in found.clusters)


def test_a_large_family_of_near_copies_is_one_cluster() -> None:
    """More than the neighbours that each is compared with: links join them."""
    generator = np.random.default_rng(4)
    words = written(generator, 400)
    documents = Documents()
    documents.add(Block.of([[" ".join(changed(words, generator, 1))] for _ in range(100)]))
    _, found = documents.found()
    assert found.compared > 70  # some are the same
    (cluster,) = found.clusters
    assert found.documents == found.compared - 1 and cluster.size == found.compared


def test_nothing_is_near_where_there_is_nothing() -> None:
    assert Documents().found()[0] == Copies(0, 0)
    short = Documents()
    short.add(Block.of([["one two"], ["one two"], [""]]))
    copies, found = short.found()
    assert (copies.copies, found.compared, found.clusters) == (1, 0, ())


@pytest.mark.parametrize("limit", [10_000, 600])
def test_copies_of_texts_are_exact_up_to_a_limit_and_then_estimated(limit: int) -> None:
    texts = np.array(
        [digest(f"text {number}") for number in range(5000)] * 2 + [digest("often")] * 500, np.uint64
    )
    np.random.default_rng(5).shuffle(texts)
    distinct = DistinctTexts(limit)
    for start in range(0, len(texts), 100):
        distinct.add(texts[start : start + 100])
        assert distinct._waiting <= limit and len(distinct._digests) <= limit
    found = distinct.copies()
    assert found.exact == (limit > 5001)
    if found.exact:
        assert found == Copies(5001, 5499)
    else:
        assert found.distinct == pytest.approx(5001, rel=0.2)
