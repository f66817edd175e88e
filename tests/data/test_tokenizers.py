"""The trained tokenizer: the same for the same texts, a folder that opens again, nothing run from a
folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import WORDS, byte_tokenizer, texts, tokenizer
from transformers import AutoTokenizer, RobertaConfig

from distillkit.data.layouts import Documents, Words
from distillkit.data.tokenizers import (
    BYTE_SPECIAL,
    SPECIAL,
    continuing,
    in_text,
    load_tokenizer,
    tokenizer_digest,
    train_byte_bpe,
    train_wordpiece,
)
from distillkit.errors import ModelError, SecurityError


def test_the_same_texts_give_the_same_vocabulary_every_time() -> None:
    """The trainer's hash tables are seeded anew each time: without care the ids differ from run to run."""
    found = {tokenizer_digest(train_wordpiece([t for (t,) in texts(200)], vocab_size=90)) for _ in range(5)}
    assert len(found) == 1


def test_special_tokens_come_first_and_pairs_have_segments() -> None:
    made = tokenizer()
    assert made.convert_ids_to_tokens(list(range(5))) == list(SPECIAL)
    pair = made("ba be", "bi")
    assert made.convert_ids_to_tokens(pair["input_ids"]) == ["[CLS]", "ba", "be", "[SEP]", "bi", "[SEP]"]
    assert pair["token_type_ids"] == [0, 0, 0, 0, 1, 1]


def test_every_word_of_its_texts_is_known_and_comes_back() -> None:
    made = tokenizer()
    for word in WORDS:
        ids = made(word, add_special_tokens=False)["input_ids"]
        assert made.unk_token_id not in ids and made.decode(ids) == word


def test_case_accents_and_punctuation_are_berts() -> None:
    made = train_wordpiece(["Élan vital, again! élan vital, again!"] * 3, vocab_size=60)
    assert made.tokenize("ÉLAN,") == made.tokenize("elan ,")


def test_the_vocabulary_has_at_most_the_size_asked_for() -> None:
    assert len(train_wordpiece([t for (t,) in texts(200)], vocab_size=60)) <= 60


def test_a_saved_tokenizer_opens_again_here_and_in_transformers(tmp_path: Path) -> None:
    made = tokenizer()
    made.save_pretrained(tmp_path)
    for again in (
        load_tokenizer(tmp_path),
        AutoTokenizer.from_pretrained(str(tmp_path), local_files_only=True),
    ):
        assert tokenizer_digest(again) == tokenizer_digest(made)
        assert again("ba bad", "good")["input_ids"] == made("ba bad", "good")["input_ids"]


def test_texts_without_words_are_refused() -> None:
    with pytest.raises(ModelError, match="no words"):
        train_wordpiece(["", "  "], vocab_size=50)


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no tokenizer") as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_folder_that_asks_for_code_is_refused(tmp_path: Path) -> None:
    tokenizer().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}
    path.write_text(json.dumps(config))
    with pytest.raises(SecurityError, match="auto_map"):
        load_tokenizer(tmp_path)


ANY_TEXT = (
    *(
        "",
        " ",
        "\n",
        "a",
        " a",
        "a ",
        "  a  b\t\tc\r\n",
        "don't  'll .",
        "1,000.50 %",
        "ba bad good",
        "Ba BAD",
    ),
    *(
        "é e\u0301 ñ ß İı",
        "漢字 かな 한글",
        "\U0001f600\U0001f468\u200d\U0001f469",
        "\u0000\u0007\u007f\u0080",
    ),
    *(
        "\u0000\u0007\u007f\u0080",
        "\ufffd\uffff\ue000",
        "\u00a0\u2003\u200b",
        "Ġa ▁b ##c",
        "<s > [MASK] <|endoftext|>",
    ),
)


def test_any_text_comes_back_from_bytes_letter_by_letter() -> None:
    made = byte_tokenizer()
    for text in ANY_TEXT:
        ids = made(text, add_special_tokens=False).input_ids
        assert made.decode(ids) == text and made.unk_token_id not in ids


def test_the_same_texts_give_the_same_bytes_and_merges_every_time() -> None:
    found = {tokenizer_digest(train_byte_bpe([t for (t,) in texts(200)], vocab_size=300)) for _ in range(3)}
    assert len(found) == 1


def test_a_byte_level_vocabulary_has_robertas_frame_and_at_most_the_size_asked_for() -> None:
    made = byte_tokenizer()
    assert made.convert_ids_to_tokens(list(range(5))) == list(BYTE_SPECIAL) and len(made) <= 320
    pair = made("ba be", "bi")
    assert made.decode(pair.input_ids) == "<s>ba be</s></s>bi</s>"
    assert "token_type_ids" not in pair and made.is_fast
    assert made.decode(made("ba <mask> be").input_ids) == "<s>ba<mask> be</s>", "as one would fill it in"


def test_a_byte_level_tokenizer_opens_again_beside_its_model(tmp_path: Path) -> None:
    made = byte_tokenizer()
    made.save_pretrained(tmp_path)
    RobertaConfig(vocab_size=len(made)).save_pretrained(tmp_path)
    for again in (
        load_tokenizer(tmp_path),
        AutoTokenizer.from_pretrained(str(tmp_path), local_files_only=True),
    ):
        assert tokenizer_digest(again) == tokenizer_digest(made) and again.pad_token_id == 1
        for text in ("ba bad <mask>", *ANY_TEXT):
            assert again(text, "good").input_ids == made(text, "good").input_ids


@pytest.mark.parametrize(("size", "of", "words"), [(260, ["ba be"], "256 bytes"), (300, [""], "no words")])
def test_a_byte_level_vocabulary_that_cannot_be_is_refused(size: int, of: list[str], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        train_byte_bpe(of, vocab_size=size)


def test_pieces_that_go_on_a_word_are_known_of_either_kind() -> None:
    for made, text in ((tokenizer(), "lamest bad"), (byte_tokenizer(), " lamest bad")):
        ids = made(text, add_special_tokens=False).input_ids
        goes_on = continuing(made)
        first = [number for number, one in enumerate(ids) if not goes_on[one]]
        assert len(first) == 2 and first[0] == 0 and len(ids) > 2
        assert not goes_on[made.all_special_ids].any()


def test_sentences_that_follow_each_other_are_tokenised_as_the_text_that_they_make() -> None:
    parts = ["ba be.", "bi", "ban!"]
    for made in (tokenizer(), byte_tokenizer()):
        whole = made(" ".join(parts), add_special_tokens=False).input_ids
        pieces = made(in_text(parts), add_special_tokens=False).input_ids
        assert [one for ids in pieces for one in ids] == whole


def test_words_to_tag_and_sentences_to_mask_are_pieces_of_the_text_that_they_make() -> None:
    """To a byte-level vocabulary they would run together: the space is a part of a word."""
    made, words = byte_tokenizer(), ("ba", "lamest", "good")
    whole = made(" ".join(words)).input_ids
    tagged = Words().pieces([words], None, made, 32)
    assert tagged.tokens.tolist() == whole
    packed = Documents(seed=0).pieces([words], None, made, 32)
    assert packed.tokens.tolist() == whole
