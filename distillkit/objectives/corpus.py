"""A tokenised corpus on disk, training sequences as ranges of it, and their layout as arrays.

Shapes: B sequences, L tokens.
"""

from __future__ import annotations

import json
from abc import ABC
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from distillkit import files
from distillkit.data.masking import Bool, Ints
from distillkit.data.tokenizers import continuing, in_text
from distillkit.errors import DataError
from distillkit.objectives.base import Objective
from distillkit.types import IGNORED, Batch

_CHUNK = 2000


@dataclass(frozen=True)
class Corpus:
    """A tokenised corpus: tokens flat int32; sentences `[S + 1]` offsets into tokens; documents `[D + 1]`
    offsets into sentences; facts of the tokenizer."""

    tokens: NDArray[np.int32]
    sentences: Ints
    documents: Ints
    continues: Bool
    facts: Mapping[str, int]

    @property
    def special(self) -> Ints:
        """Ids that stand for no text."""
        return np.asarray([self.facts[name] for name in ("pad", "cls", "sep", "mask")])

    @cached_property
    def frequencies(self) -> Ints:
        """How often each entry of the vocabulary occurs; what stands for no text counts as absent."""
        counts = np.bincount(self.tokens, minlength=self.facts["vocabulary"])
        counts[self.special] = 0
        return counts


@dataclass(frozen=True)
class Sequences:
    """Training sequences as token ranges `[n]`: A is tokens[a_start:a_end], B is tokens[b_start:b_end], which
    may be empty."""

    corpus: Corpus
    a_start: Ints
    a_end: Ints
    b_start: Ints
    b_end: Ints

    @property
    def lengths(self) -> Ints:
        """Tokens of each, special tokens included."""
        second = self.b_end - self.b_start
        return (self.a_end - self.a_start) + second + np.where(second > 0, 3, 2)


@dataclass(frozen=True)
class Tokens:
    """Sequences as arrays `[B, L]`: ids; segments (0 or 1); real (not padding); text (not special either);
    continues, at pieces that go on a word."""

    ids: Ints
    segments: Ints
    real: Bool
    text: Bool
    continues: Bool

    def batch(self, rows: Ints, corrupted_BL: Ints, chosen_BL: Bool) -> Batch:
        """What a model reads after corruption; labels are the tokens that stood at the chosen positions."""
        mask = torch.from_numpy(self.real)
        return Batch(
            inputs={
                "input_ids": torch.from_numpy(corrupted_BL),
                "attention_mask": mask.long(),
                "token_type_ids": torch.from_numpy(self.segments),
            },
            labels=torch.from_numpy(np.where(chosen_BL, self.ids, IGNORED)),
            mask=mask,
            ids=torch.from_numpy(rows),
            full=bool(self.real.all()),
        )


class CorpusObjective(Objective, ABC):
    """An objective whose sequences are ranges of a tokenised corpus."""

    def prepare(
        self,
        documents: Iterator[list[str]],
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        *,
        max_length: int,
    ) -> None:
        if files.flaw(folder, hashes=True):
            _write_corpus(documents, tokenizer, folder, max_length)


def lay_out(sequences: Sequences, rows: Ints) -> Tokens:
    """`[CLS] A [SEP] B [SEP]`, without the last two parts where B is empty."""
    corpus = sequences.corpus
    a_length = (sequences.a_end - sequences.a_start)[rows][:, None]
    b_length = (sequences.b_end - sequences.b_start)[rows][:, None]
    lengths = sequences.lengths[rows]
    position = np.arange(int(lengths.max()))[None, :]
    in_a = (position >= 1) & (position <= a_length)
    in_b = (position >= a_length + 2) & (position < a_length + 2 + b_length)
    real = position < lengths[:, None]
    source = np.where(in_a, sequences.a_start[rows][:, None] + position - 1, 0)
    source = np.where(in_b, sequences.b_start[rows][:, None] + position - a_length - 2, source)
    text = in_a | in_b
    ids = np.where(real, corpus.facts["sep"], corpus.facts["pad"])
    ids[:, 0] = corpus.facts["cls"]
    ids = np.where(text, corpus.tokens[source], ids).astype(np.int64)
    segments = (real & (position >= a_length + 2)).astype(np.int64)
    return Tokens(ids, segments, real, text, text & corpus.continues[ids])


def _write_corpus(
    documents: Iterable[list[str]], tokenizer: PreTrainedTokenizerBase, folder: Path, max_length: int
) -> None:
    """Tokenise documents of sentences into memory-mapped arrays; tokens go to the disk as they are made.

    Raises DataError where there is no token.
    """
    sentence_ends, document_ends = array("q", [0]), array("q", [0])
    facts = {
        "pad": tokenizer.pad_token_id,
        "cls": tokenizer.cls_token_id,
        "sep": tokenizer.sep_token_id,
        "mask": tokenizer.mask_token_id,
        "unknown": tokenizer.unk_token_id,
        "vocabulary": len(tokenizer),
        "max_length": max_length,
    }
    with files.appearing(folder, dict) as work:
        with (work / "tokens.npy").open("w+b") as file:
            _write_header(file, 0)
            for document in _tokenised(documents, tokenizer):
                for tokens in document:
                    file.write(tokens.tobytes())
                    sentence_ends.append(sentence_ends[-1] + len(tokens))
                document_ends.append(len(sentence_ends) - 1)
            _write_header(file, sentence_ends[-1])
        if not sentence_ends[-1]:
            raise DataError("the corpus holds no tokens", hint="look at the corpus files")
        arrays: dict[str, NDArray[Any]] = {
            "sentences": np.asarray(sentence_ends, dtype=np.int64),
            "documents": np.asarray(document_ends, dtype=np.int64),
            "continues": continuing(tokenizer),
        }
        for name, values in arrays.items():
            np.save(work / f"{name}.npy", values, allow_pickle=False)
        (work / "facts.json").write_text(json.dumps(facts))


def _tokenised(
    documents: Iterable[list[str]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[list[NDArray[np.int32]]]:
    """The tokens of each sentence, document by document, where there are any; by all cores."""
    for chunk in _chunks(documents):
        encodings = tokenizer.backend_tokenizer.encode_batch(
            [sentence for document in chunk for sentence in in_text(document)], add_special_tokens=False
        )
        arrays = iter([np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings])
        for document in chunk:
            kept = [tokens for tokens in islice(arrays, len(document)) if len(tokens)]
            if kept:
                yield kept


def _write_header(file: BinaryIO, length: int) -> None:
    """Of a flat .npy file of int32, at its start; numpy leaves room for the length to grow in."""
    file.seek(0)
    descr = np.lib.format.dtype_to_descr(np.dtype(np.int32))
    header = {"descr": descr, "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, header)


@lru_cache(maxsize=2)
def read_corpus(folder: Path) -> Corpus:
    """What `CorpusObjective.prepare` wrote, memory-mapped."""
    arrays = {
        name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        for name in ("tokens", "sentences", "documents", "continues")
    }
    return Corpus(**arrays, facts=json.loads((folder / "facts.json").read_text()))


def _chunks(documents: Iterable[list[str]]) -> Iterator[list[list[str]]]:
    chunk: list[list[str]] = []
    for document in documents:
        chunk.append(document)
        if sum(map(len, chunk[-1:])) and len(chunk) * max(1, len(document)) >= _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
