"""Unigram pieces: sums over all segmentations against a loop, the same result always, folders that open."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tiny import documents
from transformers import AutoTokenizer, T5Tokenizer

from distillkit.data.tokenizers import load_tokenizer, tokenizer_digest
from distillkit.data.unigram import _lattices, train_unigram, unigram_pieces
from distillkit.errors import ModelError

TEXTS = [sentence for document in documents() for sentence in document]


def cuts(word: str) -> list[list[str]]:
    """All ways of cutting a word."""
    made = []
    for bits in range(2 ** (len(word) - 1)):
        edges = [0, *(place for place in range(1, len(word)) if bits >> (place - 1) & 1), len(word)]
        made.append([word[start:end] for start, end in pairwise(edges)])
    return made


def test_expected_counts_are_sums_over_all_ways_of_cutting() -> None:
    words = {"abab": 3, "ba": 2, "aabb": 1}
    pieces = ["a", "b", "ab", "ba", "bab", "aa"]
    generator = np.random.default_rng(0)
    scores = np.log(generator.dirichlet(np.ones(len(pieces))))
    number = {piece: index for index, piece in enumerate(pieces)}
    found = np.sum([one.expected(scores) for one in _lattices(words, number)], axis=0)
    wanted: Counter[str] = Counter()
    for word, count in words.items():
        ways = [way for way in cuts(word) if all(piece in number for piece in way)]
        chances = [math.exp(sum(scores[number[piece]] for piece in way)) for way in ways]
        for way, chance in zip(ways, chances, strict=True):
            for piece in way:
                wanted[piece] += count * chance / sum(chances)
    assert found == pytest.approx([wanted[piece] for piece in pieces])
    best = {one.pieces.shape[1]: one.totals(scores, best=True)[0][:, -1] for one in _lattices(words, number)}
    ways = [way for way in cuts("ba") if all(piece in number for piece in way)]
    assert best[2][0] == pytest.approx(max(sum(scores[number[piece]] for piece in way) for way in ways))


def test_frequent_words_become_pieces_and_every_character_is_one() -> None:
    words = {"_the": 500, "_then": 40, "_these": 30, "_q": 1, "_other": 60, "_bother": 20}
    pieces = dict(unigram_pieces(words, 18))
    assert set("_thenqosbr") <= set(pieces) and 12 < len(pieces) <= 18
    assert "_the" in pieces and max(pieces, key=lambda one: pieces[one]) == "_the"
    assert sum(map(math.exp, pieces.values())) == pytest.approx(1, abs=0.05)
    longest = [len(dict(unigram_pieces(words, size))) for size in (5, 10, 14)]
    assert longest[:2] == [10, 10] and 10 < longest[2] <= 14


def test_the_same_texts_give_the_same_tokenizer_in_any_order() -> None:
    shuffled = random.Random(1).sample(TEXTS, len(TEXTS))
    made = [train_unigram(texts, vocab_size=90, sentinels=10) for texts in (TEXTS, shuffled)]
    assert tokenizer_digest(made[0]) == tokenizer_digest(made[1])


def test_a_saved_tokenizer_opens_as_t5s_with_its_sentinels_last(tmp_path: Path) -> None:
    made = train_unigram(TEXTS, vocab_size=90, sentinels=10, max_length=64)
    made.save_pretrained(tmp_path)
    opened = load_tokenizer(tmp_path)
    assert isinstance(opened, T5Tokenizer) and len(opened) == len(made) <= 100
    assert tokenizer_digest(opened) == tokenizer_digest(made) and opened.model_max_length == 64
    sentinels = opened.convert_tokens_to_ids([f"<extra_id_{number}>" for number in range(10)])
    assert sentinels == list(range(len(opened) - 1, len(opened) - 11, -1))
    assert (opened.pad_token_id, opened.eos_token_id, opened.unk_token_id) == (0, 1, 2)
    text = f"{TEXTS[0]} <extra_id_3> {TEXTS[1]}"
    ids = opened(text).input_ids
    assert ids[-1] == 1 and ids.count(sentinels[3]) == 1
    assert opened.decode(ids, skip_special_tokens=True).split() == f"{TEXTS[0]} {TEXTS[1]}".split()
    again = AutoTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
    assert again(text).input_ids == ids


def test_pieces_are_longer_the_more_entries_there_are() -> None:
    sizes = [len(train_unigram(TEXTS, vocab_size=size)(" ".join(TEXTS[:20])).input_ids) for size in (40, 90)]
    assert sizes[0] > 1.3 * sizes[1]


def test_texts_without_words_are_refused() -> None:
    with pytest.raises(ModelError, match="no words"):
        train_unigram(["", "  "], vocab_size=50)
