"""What occurs is what sets of strings say."""

from __future__ import annotations

import re

import numpy as np

from distillkit.audit.blocks import Block
from distillkit.audit.contamination import LONG, SHORT, Contamination, Evaluation


def written(generator: np.random.Generator, size: int) -> str:
    return " ".join(f"w{number}" for number in generator.integers(0, 4000, size=size))


def runs(text: str, length: int) -> set[tuple[str, ...]]:
    words = re.sub(r"[.!]", "", text.lower()).split()
    return {tuple(words[at : at + length]) for at in range(len(words) - length + 1)}


def test_planted_texts_are_found_as_by_brute_force() -> None:
    generator = np.random.default_rng(1)
    corpus = [[f"{written(generator, 20)}." for _ in range(4)] for _ in range(30)]
    texts = [written(generator, size) for size in (3, 7, 8, 12, 13, 30) for _ in range(5)]
    texts[0], texts[5] = "Good film", "Very Good"
    corpus[2][1] = "good film."  # whole
    corpus[3][0] = f"a {texts[5]} thing of seven words or more here"  # part of a sentence: too short to count
    corpus[4][0] = f"x {texts[10]} y"  # 8 words
    corpus[5][0] = texts[15][: len(texts[15]) // 3]  # too few of its words
    corpus[6][3] = f"{texts[20].upper()}!"  # 13 words, whole
    corpus[7][2] = " ".join(texts[25].split()[4:20])  # a run of 30 words
    corpus[8] = [
        " ".join(texts[26].split()[:10]) + ".",
        " ".join(texts[26].split()[10:]) + ".",
    ]  # two sentences
    corpus[9][3], corpus[10][0] = (
        " ".join(texts[27].split()[:12]),
        " ".join(texts[27].split()[12:]),
    )  # two documents
    contamination = Contamination([Evaluation("a", tuple(texts[:12])), Evaluation("b", tuple(texts[12:]))])
    for start in range(0, 30, 7):
        contamination.add(Block.of(corpus[start : start + 7]))
    told = contamination.found()

    spread = {
        length: {run for document in corpus for run in runs(" ".join(document), length)}
        for length in (LONG, SHORT)
    }
    plain = {
        " ".join(run)
        for document in corpus
        for part in (*document, " ".join(document))
        for run in runs(part, len(part.split()))
    }
    for overlap, part in zip(told, (texts[:12], texts[12:]), strict=True):
        whole = [text.lower() in plain for text in part]
        shared = [
            len(found & spread[length]) / len(found) if found else 0.0
            for text in part
            for length in (LONG if len(text.split()) >= LONG else SHORT,)
            for found in (runs(text, length),)
        ]
        assert overlap.texts == len(part)
        assert overlap.whole == sum(whole)
        assert overlap.overlapping == sum(share > 0 for share in shared)
        assert overlap.verbatim == sum(share == 1 for share in shared)
        either = [
            number for number, (one, share) in enumerate(zip(whole, shared, strict=True), 1) if one or share
        ]
        assert overlap.contaminated == len(either) and overlap.examples == tuple(either[:3])
    assert (told[0].contaminated, told[0].short, told[1].contaminated) == (2, 10, 4)


def test_texts_without_words_count_nowhere() -> None:
    contamination = Contamination([Evaluation("odd", ("", "...", "a b"))])
    contamination.add(Block.of([["..."], ["a b"], [" "]]))
    (overlap,) = contamination.found()
    assert (overlap.texts, overlap.whole, overlap.share) == (1, 1, 1.0)


def test_nothing_to_look_for_is_fine() -> None:
    contamination = Contamination([])
    contamination.add(Block.of([["a b"]]))
    assert contamination.found() == ()
