"""Tokenizers: WordPiece and byte-level BPE trained in this repo, and loading of saved ones without running
anything they say."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase, RobertaTokenizer

from distillkit.errors import ModelError, SecurityError
from distillkit.runtime.rows import in_text as in_text

_ALPHABET = 1000
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BYTE_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
"""Ids 0 to 4 of a byte-level vocabulary, the first four as in RoBERTa's; its <mask> is the last entry."""
_CONTINUES = "##"
_STARTS = ("\u0120", "\u2581")
"""What stands for the space before a word in byte-level pieces, and in those of SentencePiece."""


def train_wordpiece(
    texts: Iterable[str], *, vocab_size: int, lowercase: bool = True, max_length: int = 512
) -> PreTrainedTokenizerBase:
    """A WordPiece vocabulary (Wu et al. 2016; BERT's normalisation and word splitting), the same for the same
    texts.

    Left to itself the trainer numbers the pieces of single letters in the order of a hash table, which
    decides ties and so the vocabulary; here they are numbered beforehand, sorted. Raises ModelError where the
    texts hold no words.
    """
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    normal = [normalizer.normalize_str(text) for text in texts]
    letters = _letters(normal)
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        limit_alphabet=_ALPHABET,
        special_tokens=[*SPECIAL, *(f"##{letter}" for letter in letters if _continues(letter))],
        continuing_subword_prefix="##",
        show_progress=False,
    )
    trained.train_from_iterator(normal, trainer)
    vocabulary = trained.get_vocab()
    if not letters:
        raise ModelError(
            "the texts hold no words to train a tokenizer on", hint="look at the text column or the corpus"
        )
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    return BertTokenizer(
        tokenizer_object=tokenizer, vocab=vocabulary, do_lower_case=lowercase, model_max_length=max_length
    )


def train_byte_bpe(
    texts: Iterable[str], *, vocab_size: int, max_length: int = 512
) -> PreTrainedTokenizerBase:
    """A byte-level BPE vocabulary (Radford et al. 2019, section 2.2; GPT-2's splitting into words) in
    RoBERTa's layout, the same for the same texts.

    Every byte is an entry, so that nothing is unknown and any text comes back letter by letter, but for the
    names of the special tokens, which stand for these. A space belongs to the word that follows. Raises
    ModelError for a vocabulary without room for all bytes, and where the texts hold nothing to merge.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    least = len(BYTE_SPECIAL) + len(alphabet)
    if vocab_size < least:
        raise ModelError(
            f"{vocab_size} entries: {len(alphabet)} bytes and {len(BYTE_SPECIAL)} special tokens need more",
            where="teacher.vocab_size",
            hint=f"at least {least}",
        )
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(BYTE_SPECIAL),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    model = json.loads(trained.to_str())["model"]
    if not model["merges"]:
        raise ModelError(
            "the texts hold no words to train a tokenizer on", hint="look at the text column or the corpus"
        )
    return RobertaTokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        mask_token=AddedToken("<mask>", lstrip=True, special=True),
        model_max_length=max_length,
    )


def continuing(tokenizer: PreTrainedTokenizerBase) -> NDArray[np.bool_]:
    """`[V]`, True at entries that go on a word: `##` of WordPiece; where the space before a word is marked,
    all that have no mark but the special tokens.
    """
    pieces: list[str] = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    if isinstance(tokenizer.backend_tokenizer.model, models.WordPiece):
        return np.asarray([piece.startswith(_CONTINUES) for piece in pieces])
    special = set(tokenizer.all_special_tokens)
    return np.asarray([not piece.startswith(_STARTS) and piece not in special for piece in pieces])


def _letters(texts: Iterable[str]) -> list[str]:
    """The most frequent characters, sorted; white space is none."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    for space in [letter for letter in counts if letter.isspace()]:
        del counts[space]
    return sorted(sorted(counts, key=lambda letter: (-counts[letter], letter))[:_ALPHABET])


def _continues(letter: str) -> bool:
    """Whether a character can stand inside a word: BERT splits at punctuation and at ASCII symbols."""
    return letter.isalnum() if letter.isascii() else not unicodedata.category(letter).startswith("P")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A fast tokenizer from a local folder. Raises ModelError (4) where there is none, SecurityError (11)
    where the folder asks for code."""
    _refuse_code(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, use_fast=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"no tokenizer can be read: {str(error).splitlines()[0]}",
            where=str(folder),
            hint="tokenizer.json or vocab.txt is needed",
        ) from None
    if not tokenizer.is_fast:
        raise ModelError(
            "the tokenizer has no fast form", where=str(folder), hint="save it with tokenizer.json"
        )
    if tokenizer.pad_token_id is None:
        raise ModelError(
            "the tokenizer has no padding token",
            where=str(folder),
            hint="set pad_token in tokenizer_config.json",
        )
    return tokenizer


def token_counts(tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[str]], list[tuple[int, int]]]:
    """A function from texts to (tokens, unknown ones among them) of each, special tokens left out."""
    backend, unknown = tokenizer.backend_tokenizer, tokenizer.unk_token_id

    def counts(texts: Sequence[str]) -> list[tuple[int, int]]:
        ids = [encoding.ids for encoding in backend.encode_batch(list(texts), add_special_tokens=False)]
        return [(len(one), one.count(unknown)) for one in ids]

    return counts


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of everything that decides token ids."""
    backend: Any = tokenizer.backend_tokenizer
    state = json.loads(backend.to_str())
    state["truncation"] = state["padding"] = None
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def brought_or_trained(
    folder: str | Path | None, corpus: Iterable[str], vocab_size: int
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, or without one a WordPiece trained on the corpus."""
    return train_wordpiece(corpus, vocab_size=vocab_size) if folder is None else load_tokenizer(Path(folder))


def tokenizer_key(folder: str | Path | None) -> str:
    """What a folder's tokenizer is, for the fingerprint of a source that reads it; '' without one."""
    return "" if folder is None else tokenizer_digest(load_tokenizer(Path(folder)))


def _refuse_code(folder: Path) -> None:
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, UnicodeDecodeError):
            raise ModelError("not a JSON file", where=str(path)) from None
        if isinstance(config, dict) and "auto_map" in config:
            raise SecurityError(
                "the folder asks for its own code to be run (auto_map)",
                where=str(path),
                hint="remove auto_map to use the built-in classes",
            )
