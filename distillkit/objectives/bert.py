"""BERT's objective: masked language model and next sentence prediction (Devlin et al. 2018, section 3.1,
appendix A).

Sentence pairs are built as in the released code: sentences gather up to a target length, a random cut makes
A, B is the rest or comes from another document, and what B did not use is put back. Departures: the other
document is always another one where there are two (the released code gives up after ten tries); pairs are
drawn anew each epoch, or once where `masking: static`. Pairs are kept as ranges of the tokenised corpus, so
an epoch costs no copy of it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from transformers import BertForPreTraining, PreTrainedTokenizerBase

from distillkit import files
from distillkit.data.masking import choose, choose_words, corrupt, keyed_uniform
from distillkit.errors import DataError
from distillkit.flops import HONEST, Shape
from distillkit.objectives.base import Examples, LossTerm, Objective
from distillkit.types import IGNORED, Batch

IS_NEXT, IS_RANDOM = 0, 1
_CHUNK = 2000
_SPECIAL = 3  # [CLS], [SEP], [SEP]
_LOPSIDED = 0.95
"""Share of random second segments from which next sentence prediction is called idle."""


@dataclass(frozen=True)
class Corpus:
    """A tokenised corpus: tokens flat int32; sentences `[S + 1]` offsets into tokens; documents `[D + 1]`
    offsets into sentences; facts of the tokenizer."""

    tokens: NDArray[np.int32]
    sentences: NDArray[np.int64]
    documents: NDArray[np.int64]
    continues: NDArray[np.bool_]
    facts: Mapping[str, int]


@dataclass(frozen=True)
class Pairs:
    """Sentence pairs as token ranges `[n]`: A is tokens[a_start:a_end], B is tokens[b_start:b_end]; is_random
    is the NSP label."""

    corpus: Corpus
    a_start: NDArray[np.int64]
    a_end: NDArray[np.int64]
    b_start: NDArray[np.int64]
    b_end: NDArray[np.int64]
    is_random: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return (self.a_end - self.a_start) + (self.b_end - self.b_start) + _SPECIAL


class BertObjective(Objective):
    """Masked language model on `mask_rate` of the tokens, and next sentence prediction, each with
    weight 1."""

    def __init__(
        self,
        *,
        mask_rate: float = 0.15,
        short_sequences: float = 0.1,
        masking: Literal["dynamic", "static"] = "dynamic",
        whole_word: bool = False,
    ) -> None:
        self.mask_rate, self.short_sequences, self.masking, self.whole_word = (
            mask_rate,
            short_sequences,
            masking,
            whole_word,
        )

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

    def examples(self, folder: Path, *, epoch: int, seed: int) -> Pairs:
        corpus = _read_corpus(folder)
        drawn = 0 if self.masking == "static" else epoch
        return build_pairs(corpus, random.Random(f"pairs {seed} {drawn}"), self.short_sequences)

    def collate(self, examples: Examples, rows: Sequence[int], *, epoch: int, seed: int) -> Batch:
        assert isinstance(examples, Pairs)
        index = np.asarray(rows, dtype=np.int64)
        ids_BL, types_BL, real_BL, candidates_BL, continues_BL = _layout(examples, index)
        counts_B = np.maximum(1, np.rint(self.mask_rate * real_BL.sum(axis=1))).astype(np.int64)
        drawn = 0 if self.masking == "static" else epoch
        order, kind, token = (
            keyed_uniform(seed, drawn, index, ids_BL.shape[1], draw=draw) for draw in range(3)
        )
        if self.whole_word:
            chosen_BL = choose_words(candidates_BL, continues_BL, counts_B, order)
        else:
            chosen_BL = choose(candidates_BL, counts_B, order)
        facts = examples.corpus.facts
        corrupted_BL = corrupt(
            ids_BL, chosen_BL, kind, token, mask_id=facts["mask"], vocab_size=facts["vocabulary"]
        )
        mask = torch.from_numpy(real_BL)
        return Batch(
            inputs={
                "input_ids": torch.from_numpy(corrupted_BL),
                "attention_mask": mask.long(),
                "token_type_ids": torch.from_numpy(types_BL),
            },
            labels=torch.from_numpy(np.where(chosen_BL, ids_BL, IGNORED)),
            mask=mask,
            ids=torch.from_numpy(index),
            sequence_labels=torch.from_numpy(examples.is_random[index]),
            full=bool(real_BL.all()),
        )

    def counts(self, batch: Batch) -> Mapping[str, int]:
        assert batch.labels is not None
        return {"mlm": int((batch.labels != IGNORED).sum()), "nsp": batch.num_examples}

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, LossTerm]:
        """The head of the masked language model runs on the chosen positions only; where none was chosen
        (whole words that are all too long), its term is an attached zero."""
        assert (
            isinstance(model, BertForPreTraining)
            and batch.labels is not None
            and batch.sequence_labels is not None
        )
        inputs = dict(batch.inputs)
        if batch.full:
            inputs.pop("attention_mask")
        body = model.bert(**inputs, return_dict=True)
        chosen_BL = batch.labels != IGNORED
        scores_NV = model.cls.predictions(body.last_hidden_state[chosen_BL])
        next_B2 = model.cls.seq_relationship(body.pooler_output)
        targets_N = batch.labels[chosen_BL]
        mlm = functional.cross_entropy(scores_NV.float(), targets_N, reduction="sum") / max(1, len(targets_N))
        nsp = functional.cross_entropy(next_B2.float(), batch.sequence_labels)
        return {"mlm": LossTerm(mlm, len(targets_N)), "nsp": LossTerm(nsp, batch.num_examples)}

    def flops(self, model: nn.Module, length: int) -> float:
        assert isinstance(model, BertForPreTraining)
        config = model.config
        shape = Shape(
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            heads=config.num_attention_heads,
            inner=config.intermediate_size,
            vocabulary=config.vocab_size,
            embedding=config.hidden_size,
            attended=config.hidden_size,
        )
        answers = max(1, round(self.mask_rate * length))
        heads = HONEST.vocabulary_head(shape, answers) + HONEST.example_head(shape, 2)
        return HONEST.encoder(shape, length) + heads

    def metrics(self, examples: Examples) -> Mapping[str, float]:
        assert isinstance(examples, Pairs)
        return {
            "pairs": float(len(examples.is_random)),
            "tokens": float(examples.lengths.sum()),
            "random_next": float(examples.is_random.mean()),
            "mean_length": float(examples.lengths.mean()),
        }

    def remarks(self, examples: Examples) -> Sequence[str]:
        assert isinstance(examples, Pairs)
        share = float(examples.is_random.mean())
        if share < _LOPSIDED:
            return ()
        return (
            f"{share:.0%} of the second segments are random: the documents of this corpus are single "
            "sentences or longer than max_length, so that next sentence prediction has little to tell apart "
            "(put the sentences of a document on lines of their own, documents apart by a blank line)",
        )


def build_pairs(corpus: Corpus, generator: random.Random, short_sequences: float) -> Pairs:
    """One pass over all documents."""
    room = corpus.facts["max_length"] - _SPECIAL
    starts, documents = corpus.sentences.tolist(), corpus.documents.tolist()
    rows: list[tuple[int, int, int, int, int]] = []
    for number in range(len(documents) - 1):
        target = room
        if generator.random() < short_sequences:
            target = generator.randint(2, room)
        rows += _document_pairs(number, documents, starts, target, generator)
    columns = np.asarray(rows, dtype=np.int64).reshape(-1, 5).T
    a_start, a_end, b_start, b_end = _truncate(
        (columns[0], columns[1], columns[2], columns[3]), room, generator
    )
    return Pairs(corpus, a_start, a_end, b_start, b_end, columns[4])


def _document_pairs(
    number: int, documents: Sequence[int], starts: Sequence[int], target: int, generator: random.Random
) -> Iterator[tuple[int, int, int, int, int]]:
    """(a_start, a_end, b_start, b_end, label) token ranges, before truncation."""
    first, end = documents[number], documents[number + 1]
    while first < end:
        last = first + 1
        while last < end and starts[last] - starts[first] < target:
            last += 1
        cut = generator.randint(first + 1, last - 1) if last - first > 1 else last
        if cut == last or generator.random() < 0.5:
            b_start, b_end = _random_range(
                number, documents, starts, target - (starts[cut] - starts[first]), generator
            )
            yield starts[first], starts[cut], b_start, b_end, IS_RANDOM
            first = cut  # what B would have used is put back
        else:
            yield starts[first], starts[cut], starts[cut], starts[last], IS_NEXT
            first = last


def _random_range(
    number: int, documents: Sequence[int], starts: Sequence[int], wanted: int, generator: random.Random
) -> tuple[int, int]:
    """Sentences from a random place of another document, until they hold `wanted` tokens."""
    others = len(documents) - 2
    other = generator.randrange(others) if others > 0 else number
    other += others > 0 and other >= number
    low, high = documents[other], documents[other + 1]
    first = generator.randrange(low, high)
    last = first + 1
    while last < high and starts[last] - starts[first] < wanted:
        last += 1
    return starts[first], starts[last]


def _truncate(
    ranges: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    room: int,
    generator: random.Random,
) -> tuple[NDArray[np.int64], ...]:
    """Drop tokens one by one from the longer segment (B on a tie), front or back with probability one half
    each.

    How many each segment loses follows from the lengths alone; how many of these at the front is binomial.
    """
    a_start, a_end, b_start, b_end = ranges
    a_length, b_length = a_end - a_start, b_end - b_start
    excess = np.maximum(0, a_length + b_length - room)
    a_first = np.minimum(excess, np.maximum(0, a_length - b_length))
    b_first = np.minimum(excess - a_first, np.maximum(0, b_length - a_length))
    rest = excess - a_first - b_first
    a_drop, b_drop = a_first + rest // 2, b_first + rest - rest // 2
    binomial = np.random.default_rng(generator.getrandbits(64)).binomial
    a_front, b_front = binomial(a_drop, 0.5), binomial(b_drop, 0.5)
    return a_start + a_front, a_end - (a_drop - a_front), b_start + b_front, b_end - (b_drop - b_front)


def _layout(
    pairs: Pairs, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """`[CLS] A [SEP] B [SEP]`: (ids, segment ids, real, maskable, pieces that go on a word), all `[B, L]`."""
    corpus = pairs.corpus
    a_length = (pairs.a_end - pairs.a_start)[rows][:, None]
    b_length = (pairs.b_end - pairs.b_start)[rows][:, None]
    position = np.arange(int(pairs.lengths[rows].max()))[None, :]
    in_a = (position >= 1) & (position <= a_length)
    in_b = (position >= a_length + 2) & (position < a_length + 2 + b_length)
    real = position < a_length + b_length + _SPECIAL
    source = np.where(in_a, pairs.a_start[rows][:, None] + position - 1, 0)
    source = np.where(in_b, pairs.b_start[rows][:, None] + position - a_length - 2, source)
    text = in_a | in_b
    ids = np.where(real, corpus.facts["sep"], corpus.facts["pad"])
    ids[:, 0] = corpus.facts["cls"]
    ids = np.where(text, corpus.tokens[source], ids).astype(np.int64)
    types = (real & (position >= a_length + 2)).astype(np.int64)
    return ids, types, real, text, text & corpus.continues[ids]


def _write_corpus(
    documents: Iterable[list[str]], tokenizer: PreTrainedTokenizerBase, folder: Path, max_length: int
) -> None:
    tokens: list[NDArray[np.int32]] = []
    sentence_lengths: list[int] = []
    document_ends: list[int] = []
    for chunk in _chunks(documents):
        encodings = tokenizer.backend_tokenizer.encode_batch(
            [sentence for document in chunk for sentence in document], add_special_tokens=False
        )
        arrays = iter([np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings])
        for document in chunk:
            kept = [array for array in islice(arrays, len(document)) if len(array)]
            if kept:
                tokens += kept
                sentence_lengths += [len(array) for array in kept]
                document_ends.append(len(sentence_lengths))
    if not tokens:
        raise DataError("the corpus holds no tokens", hint="look at the corpus files")
    arrays_by_name: dict[str, NDArray[Any]] = {
        "tokens": np.concatenate(tokens),
        "sentences": np.concatenate([[0], np.cumsum(sentence_lengths)]).astype(np.int64),
        "documents": np.asarray([0, *document_ends], dtype=np.int64),
        "continues": np.asarray([piece.startswith("##") for piece in _pieces(tokenizer)]),
    }
    facts = {
        "pad": tokenizer.pad_token_id,
        "cls": tokenizer.cls_token_id,
        "sep": tokenizer.sep_token_id,
        "mask": tokenizer.mask_token_id,
        "vocabulary": len(tokenizer),
        "max_length": max_length,
    }
    with files.appearing(folder, dict) as work:
        for name, array in arrays_by_name.items():
            np.save(work / f"{name}.npy", array, allow_pickle=False)
        (work / "facts.json").write_text(json.dumps(facts))


def _chunks(documents: Iterable[list[str]]) -> Iterator[list[list[str]]]:
    chunk: list[list[str]] = []
    for document in documents:
        chunk.append(document)
        if sum(map(len, chunk[-1:])) and len(chunk) * max(1, len(document)) >= _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _pieces(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    pieces: list[str] = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return pieces


@lru_cache(maxsize=2)
def _read_corpus(folder: Path) -> Corpus:
    arrays = {
        name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        for name in ("tokens", "sentences", "documents", "continues")
    }
    return Corpus(**arrays, facts=json.loads((folder / "facts.json").read_text()))
