"""Replacing words: what may be replaced, what is kept, what a draw depends on; the model is a table here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import tiny
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerBase, RobertaTokenizerFast

from distillkit.data.augment import (
    STOP_WORDS,
    Answers,
    Base,
    Marker,
    MaskedWords,
    Question,
    TinyBert,
    frame,
    in_case,
    joined,
    nearest,
    replaced,
    whole_words,
    with_copies,
)
from distillkit.data.tasks import Rows
from distillkit.data.tokenizers import train_wordpiece
from distillkit.errors import ModelError
from distillkit.settings import MaskedAugment, TinybertAugment
from distillkit.types import IGNORED

TEXT = "The \"Quick\" brown-fox, isn't it?  JUMPS over 12 dogs; don't."


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_wordpiece(
        [TEXT, "a cat and the dog", "jumps quick brown fox over dogs cat dog"] * 9, vocab_size=200
    )


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """A tokenizer of RoBERTa's kind: words begin with a space, continuations look like words."""
    trained = ByteLevelBPETokenizer()
    texts = [TEXT, "the dog running jumps", "quick brown fox over dogs cat dog runs jumping"] * 9
    trained.train_from_iterator(
        texts, vocab_size=400, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    )
    folder = tmp_path_factory.mktemp("bpe")
    trained.save_model(str(folder))
    return RobertaTokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))


def base(
    tokenizer: PreTrainedTokenizerBase,
    settings: TinybertAugment | MaskedAugment,
    *,
    seed: int = 0,
    positions: int = 64,
) -> Base:
    """Every place is answered by the settings' number of words of the vocabulary, with falling shares."""
    vocabulary = whole_words(tokenizer)

    def ask(questions: Sequence[Question]) -> Answers:
        banned = [token for question in questions for token in question.without]
        words = [
            [token for token in sorted(vocabulary) if token != own][: settings.candidates] for own in banned
        ]
        shares = np.arange(settings.candidates, 0, -1, dtype=np.float64)
        table = np.asarray(words, dtype=np.int64).reshape(-1, settings.candidates)
        return Answers(table, np.tile(shares / shares.sum(), (len(words), 1)))

    framed = frame(tokenizer, pair=isinstance(settings, TinybertAugment))
    return Base(settings, Marker(tokenizer, STOP_WORDS, 30), ask, framed, vocabulary, positions, seed)


def rows(*texts: tuple[str, ...]) -> Rows:
    return Rows(np.arange(len(texts)), texts, np.zeros(len(texts), dtype=np.int64), "some rows")


@pytest.mark.parametrize("kind", ["tokenizer", "byte_level"])
def test_words_are_runs_of_letters_that_are_neither_stop_words_nor_parts(
    kind: str, request: pytest.FixtureRequest
) -> None:
    marker = Marker(request.getfixturevalue(kind), STOP_WORDS, 40)
    (marked,) = marker.mark([TEXT])
    found = [marked.text[word.start : word.end] for word in marked.words]
    assert found == ["Quick", "brown", "fox", "JUMPS", "dogs"]
    (other,) = marker.mark(["covid19 dog_2 fox\u0301 cat"])
    assert [other.text[word.start : word.end] for word in other.words] == ["cat"]


def test_what_a_model_would_not_read_is_not_replaced(tokenizer: PreTrainedTokenizerBase) -> None:
    (marked,) = Marker(tokenizer, frozenset(), 3).mark(["dog dog dog dog dog"])
    assert [word.first for word in marked.words] == [0, 1, 2]


def test_whole_words_leave_out_continuations(
    tokenizer: PreTrainedTokenizerBase, byte_level: PreTrainedTokenizerBase
) -> None:
    """A continuation taken for a word would write `ing` where a word stood."""
    for one in (tokenizer, byte_level):
        for entry, word in whole_words(one).items():
            text = one.decode(one(f"the {word}", add_special_tokens=False)["input_ids"][-1:]).strip()
            assert text == word and one(f"the {word}", add_special_tokens=False)["input_ids"][-1] == entry
    assert "dog" in whole_words(byte_level).values()


@pytest.mark.parametrize("kind", ["tokenizer", "byte_level"])
@pytest.mark.parametrize("pair", [False, True])
def test_a_frame_puts_around_texts_what_the_tokenizer_does(
    kind: str, pair: bool, request: pytest.FixtureRequest
) -> None:
    one = request.getfixturevalue(kind)
    first, second = "quick dog", "brown fox over"
    ids = [tuple(one(text, add_special_tokens=False)["input_ids"]) for text in (first, second)]
    tokens, types = frame(one, pair=pair).around(*ids[: 1 + pair])
    expected = one(*(first, second)[: 1 + pair], return_token_type_ids=True)
    assert list(tokens) == expected["input_ids"] and list(types) == expected["token_type_ids"]


def test_a_tokenizer_without_a_mask_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    other = tiny.tokenizer()
    other.mask_token = None
    with pytest.raises(ModelError, match="no mask"):
        frame(other, pair=True)


@pytest.mark.parametrize(
    ("like", "expected"), [("dog", "cat"), ("Dog", "Cat"), ("DOG", "CAT"), ("dOg", "cat"), ("D", "Cat")]
)
def test_a_replacement_takes_over_the_case(like: str, expected: str) -> None:
    assert in_case("cat", like) == expected


@pytest.mark.parametrize("method", ["tinybert", "masked"])
def test_everything_but_the_words_stays_to_the_letter(
    tokenizer: PreTrainedTokenizerBase, method: str
) -> None:
    made = copies_of(tokenizer, method, rows((TEXT,)), copies=6, probability=1.0)
    (marked,) = Marker(tokenizer, STOP_WORDS, 30).mark([TEXT])
    kept = TEXT
    for word in reversed(marked.words):
        kept = kept[: word.start] + "_" + kept[word.end :]
    assert made
    for (text,) in made:
        parts, place = kept.split("_"), 0
        for part in parts:
            assert text.index(part, place) >= place
            place = text.index(part, place) + len(part)
        assert text.startswith(parts[0]) and text.endswith(parts[-1])


def copies_of(
    tokenizer: PreTrainedTokenizerBase, method: str, some: Rows, *, seed: int = 0, **settings: float
) -> list[tuple[str, ...]]:
    if method == "tinybert":
        one = TinyBert(base(tokenizer, TinybertAugment(use="tinybert", **settings), seed=seed), {})
    else:
        one = MaskedWords(base(tokenizer, MaskedAugment(use="masked", **settings), seed=seed))  # type: ignore[assignment]
    return [copy.texts for copy in one.copies(some, range(len(some)))]


@pytest.mark.parametrize("method", ["tinybert", "masked"])
def test_a_vanishing_probability_leaves_no_copies(tokenizer: PreTrainedTokenizerBase, method: str) -> None:
    assert copies_of(tokenizer, method, rows((TEXT,), ("dog fox",)), copies=9, probability=1e-15) == []


@pytest.mark.parametrize("method", ["tinybert", "masked"])
def test_copies_differ_from_their_row_and_from_each_other(
    tokenizer: PreTrainedTokenizerBase, method: str
) -> None:
    made = copies_of(tokenizer, method, rows(("a dog",)), copies=30, candidates=3, probability=0.5)
    assert 1 < len(made) <= 3 and len(set(made)) == len(made) and ("a dog",) not in made


@pytest.mark.parametrize("method", ["tinybert", "masked"])
def test_a_copy_depends_on_seed_row_and_number_alone(tokenizer: PreTrainedTokenizerBase, method: str) -> None:
    some = rows((TEXT,), ("dog fox cat jumps",), ("quick brown cat",))
    settings = {"candidates": 4, "probability": 0.5}
    every = copies_of(tokenizer, method, some, copies=5, **settings)
    last = Rows(some.ids[2:], some.texts[2:], None, "the last")
    assert (
        copies_of(tokenizer, method, last, copies=5, **settings)
        == every[-len(copies_of(tokenizer, method, last, copies=5, **settings)) :]
    )
    assert copies_of(tokenizer, method, last, copies=1, **settings) == every[-5:][:1]
    assert copies_of(tokenizer, method, some, seed=1, copies=5, **settings) != every


@pytest.mark.parametrize("method", ["tinybert", "masked"])
def test_both_texts_of_a_pair_are_changed_from_the_original_ones(
    tokenizer: PreTrainedTokenizerBase, method: str
) -> None:
    """TinyBERT's released code keeps the last changed first text while it changes the second."""
    first, second = "quick brown fox jumps", "cat dog over dogs"
    settings = {"candidates": 2, "probability": 0.3}
    made = copies_of(tokenizer, method, rows((first, second)), copies=40, **settings)
    assert (first in {a for a, _ in made}) and (second in {b for _, b in made})
    assert len({a for a, b in made if b == second}) > 1, "the first text alone was changed, in several ways"
    alone = copies_of(tokenizer, method, rows((first,)), copies=40, **settings)
    assert {a for a, _ in made} == {first, *(text for (text,) in alone)}


def test_a_word_is_replaced_as_often_as_the_probability_says(tokenizer: PreTrainedTokenizerBase) -> None:
    settings = TinybertAugment(use="tinybert", copies=4000, candidates=2, probability=0.4)
    (made,) = TinyBert(base(tokenizer, settings), {}).segments(["dog"], [(0, 0)])
    counts = {text: made.count(text) / len(made) for text in set(made)}
    assert sorted(counts.values()) == pytest.approx([0.2, 0.2, 0.6], abs=0.03)


def test_masked_words_are_drawn_by_their_probabilities(tokenizer: PreTrainedTokenizerBase) -> None:
    settings = MaskedAugment(use="masked", copies=4000, candidates=3, probability=1.0)
    one = MaskedWords(base(tokenizer, settings))
    (made,) = one.segments(["dog"], [(0, 0)])
    counts = [made.count(text) / len(made) for text in set(made)]
    assert sorted(counts) == pytest.approx([1 / 6, 2 / 6, 3 / 6], abs=0.03)


def test_a_question_is_the_masked_text_beside_the_original(tokenizer: PreTrainedTokenizerBase) -> None:
    """With a window that moves with the word where the text is longer than half the model's positions."""
    asked: list[Question] = []
    for positions, room in ((64, 9), (15, 6)):
        made = base(tokenizer, TinybertAugment(use="tinybert", copies=1), positions=positions)

        def ask(questions: Sequence[Question], made: Base = made) -> Answers:
            asked.extend(questions)
            return made.ask(questions)

        text = "dog fox cat dog fox cat dog fox cat"
        TinyBert(Base(**{**vars(made), "ask": ask}), {}).segments([text], [(0, 0)])
        for question in asked:
            tokens = tokenizer.convert_ids_to_tokens(list(question.tokens))
            end = tokens.index("[SEP]")
            masked, original = tokens[1:end], tokens[end + 1 : -1]
            (place,) = question.places
            assert len(masked) == len(original) == room and tokens[place] == "[MASK]"
            own = original[place - 1]
            assert tokenizer.convert_tokens_to_ids(own) == question.without[0]
            assert [own if token == "[MASK]" else token for token in masked] == original
            assert question.types == (0,) * (end + 1) + (1,) * (room + 1)
        assert len(asked) == 9 and len({question.tokens for question in asked}) >= 3
        asked.clear()


def test_a_word_of_several_pieces_takes_its_neighbours(tokenizer: PreTrainedTokenizerBase) -> None:
    settings = TinybertAugment(use="tinybert", copies=50, candidates=2, probability=1.0)
    (marked,) = Marker(tokenizer, STOP_WORDS, 30).mark(["Foxdog"])
    pieces = marked.pieces(marked.words[0])
    assert len(pieces) > 1
    (made,) = TinyBert(base(tokenizer, settings), {pieces: ("wolf", "hare")}).segments(["Foxdog"], [(0, 0)])
    assert set(made) == {"Wolf", "Hare"}
    (left,) = TinyBert(base(tokenizer, settings), {}).segments(["Foxdog"], [(0, 0)])
    assert set(left) == {"Foxdog"}, "a word without neighbours stays"


def test_several_masks_stand_where_their_words_stood(tokenizer: PreTrainedTokenizerBase) -> None:
    """One mask for a word of several pieces, and the places count after it."""
    asked: list[Question] = []
    made = base(tokenizer, MaskedAugment(use="masked", copies=1, probability=1.0))

    def ask(questions: Sequence[Question]) -> Answers:
        asked.extend(questions)
        return made.ask(questions)

    MaskedWords(Base(**{**vars(made), "ask": ask})).segments(["the foxdog jumps, dog"], [(0, 0)])
    (question,) = asked
    assert tokenizer.decode(list(question.tokens)) == "[CLS] the [MASK] [MASK], [MASK] [SEP]"
    assert [question.tokens[place] for place in question.places] == [tokenizer.mask_token_id] * 3


def test_replacing_nothing_is_the_identity() -> None:
    assert replaced(TEXT, []) == TEXT


def test_nearest_is_the_largest_cosine_of_a_slow_loop_and_never_itself() -> None:
    generator = np.random.default_rng(0)
    pool = generator.standard_normal((30, 5)).astype(np.float32)
    own = np.asarray([3, 7, -1])
    queries = np.concatenate([pool[[3, 7]], generator.standard_normal((1, 5)).astype(np.float32)])
    found = nearest(queries, pool, own, 4)
    for query, of_query, itself in zip(queries, found, own, strict=True):
        cosine = [float(query @ one / np.linalg.norm(query) / np.linalg.norm(one)) for one in pool]
        order = [place for place in sorted(range(30), key=lambda place: -cosine[place]) if place != itself]
        assert of_query.tolist() == sorted(order[:4])


CLASSES = Rows(np.asarray([4, 9]), (("a",), ("b",)), np.asarray([1, 0]), "classes")
TARGETS = Rows(np.asarray([4, 9]), (("a",), ("b",)), np.asarray([0.5, 2.0], dtype=np.float32), "targets")


@pytest.mark.parametrize(
    ("some", "labels", "expected"),
    [
        (CLASSES, "keep", [1, 0, 0, 1]),
        (CLASSES, "none", [1, 0, IGNORED, IGNORED]),
        (TARGETS, "keep", [0.5, 2.0, 2.0, 0.5]),
        (TARGETS, "none", None),
        (Rows(CLASSES.ids, CLASSES.texts, None, "none"), "keep", None),
    ],
)
def test_copies_have_the_labels_that_were_asked_for_and_ids_of_their_own(
    some: Rows, labels: str, expected: list[float] | None
) -> None:
    from distillkit.data.augment import Copy

    copies = [Copy(1, 0, ("b2",)), Copy(0, 2, ("a2",))]
    made = with_copies(some, copies, labels=labels, most=3)  # type: ignore[arg-type]
    assert (None if made.labels is None else made.labels.tolist()) == expected
    assert made.ids.tolist() == [4, 9, 13, 12] and made.texts[2:] == (("b2",), ("a2",))
    fewer = with_copies(some, copies[1:], labels=labels, most=3)  # type: ignore[arg-type]
    assert fewer.ids.tolist() == [4, 9, 12], "an id does not depend on the other copies"


def test_rows_without_labels_follow_those_with_some() -> None:
    more = Rows(np.arange(2), (("c",), ("d",)), None, "more")
    made = joined(CLASSES, more)
    assert made.labels is not None and made.labels.tolist() == [1, 0, IGNORED, IGNORED]
    assert made.ids.tolist() == [4, 9, 10, 11] and joined(TARGETS, more).labels is None
    assert made.digest != joined(CLASSES, Rows(more.ids, more.texts, None, "other")).digest
