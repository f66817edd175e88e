"""The trained tokenizer: the same for the same texts, a folder that opens again, nothing run from a
folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import WORDS, texts, tokenizer
from transformers import AutoTokenizer

from distillkit.data.tokenizers import SPECIAL, load_tokenizer, tokenizer_digest, train_wordpiece
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
