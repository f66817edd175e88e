"""Words as numbers: held to a plain regular expression, and to what equality of strings says."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillkit.audit.blocks import BLOCK_CHARACTERS, Block, blocks

WORD = re.compile(r"[^\W_]+")


def test_words_are_those_of_a_plain_regular_expression() -> None:
    text = "Don't STOP: 3.14 naïve_café, x2 (end)"
    block = Block.of([[text], WORD.findall(text.lower())])
    mine, spelled = block.words[: block.documents[1]], block.words[block.documents[1] :]
    assert len(mine) == len(WORD.findall(text)) == 9
    assert np.array_equal(mine, spelled)
    assert len(np.unique(mine)) == 9


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("Ein Café", "ein cafe\u0301", True),  # composed and decomposed
        ("straße", "STRASSE", False),  # lower case, not case folding
        ("你好", "你 好", True),  # each is a word
        ("ab", "ba", False),
        ("a b", "ab", False),
        ("हिन्दी", "हिन दी", False),  # marks are part of words
    ],
)
def test_which_texts_have_the_same_words(left: str, right: str, same: bool) -> None:
    block = Block.of([[left], [right]])
    one, two = block.runs.numbers(block.documents[:-1], block.documents[1:])
    assert (one == two) == same


@given(
    st.lists(st.lists(st.text(alphabet="ab _.\n", max_size=12), max_size=3), max_size=4), st.integers(1, 4)
)
def test_runs_are_equal_where_their_words_are_and_never_cross_a_document(
    texts: list[list[str]], length: int
) -> None:
    numbers, offsets = Block.of(texts).ngrams(length)
    spelled = []
    for document in texts:
        found = [word for sentence in document for word in WORD.findall(sentence)]
        spelled.append([tuple(found[at : at + length]) for at in range(len(found) - length + 1)])
    assert np.diff(offsets).tolist() == [len(runs) for runs in spelled]
    flat = [run for runs in spelled for run in runs]
    assert len(set(flat)) == len(np.unique(numbers)) == len(set(zip(flat, numbers.tolist(), strict=True)))


def test_a_block_ends_before_more_is_read() -> None:
    """Otherwise a corpus would have to fit into memory."""
    read = 0

    def documents() -> Iterator[list[str]]:
        nonlocal read
        while True:
            read += 1
            yield ["a word. " * 1000]

    found = blocks(documents())
    first, second = next(found), next(found)
    assert read == len(first) + len(second) == second.first + len(second)
    assert len(first) == -(-BLOCK_CHARACTERS // 8000)
