"""BERT's objective: masked language model and next sentence prediction (Devlin et al. 2018, section 3.1,
appendix A).

Sentence pairs are built as in the released code: sentences gather up to a target length, a random cut makes
A, B is the rest or comes from another document, and what B did not use is put back. Departures: the other
document is always another one where there are two (the released code gives up after ten tries); pairs are
drawn anew each epoch, or once where `masking: static`. Pairs are kept as ranges of the tokenised corpus, so
an epoch costs no copy of it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from transformers import BertForPreTraining

from distillkit.data.masking import choose, choose_words, corrupt, keyed_uniform
from distillkit.flops import HONEST, Shape
from distillkit.objectives.base import Examples, LossTerm, inputs_of
from distillkit.objectives.corpus import Corpus, CorpusObjective, Sequences, lay_out, read_corpus
from distillkit.types import IGNORED, Batch

IS_NEXT, IS_RANDOM = 0, 1
_SPECIAL = 3  # [CLS], [SEP], [SEP]
_LOPSIDED = 0.95
"""Share of random second segments from which next sentence prediction is called idle."""


@dataclass(frozen=True)
class Pairs(Sequences):
    """Sentence pairs; is_random `[n]` is the NSP label."""

    is_random: NDArray[np.int64]


class BertObjective(CorpusObjective):
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

    def examples(self, folder: Path, *, epoch: int, seed: int) -> Pairs:
        corpus = read_corpus(folder)
        drawn = 0 if self.masking == "static" else epoch
        return build_pairs(corpus, random.Random(f"pairs {seed} {drawn}"), self.short_sequences)

    def collate(self, examples: Examples, rows: Sequence[int], *, epoch: int, seed: int) -> Batch:
        assert isinstance(examples, Pairs)
        index = np.asarray(rows, dtype=np.int64)
        tokens = lay_out(examples, index)
        counts_B = np.maximum(1, np.rint(self.mask_rate * tokens.real.sum(axis=1))).astype(np.int64)
        drawn = 0 if self.masking == "static" else epoch
        order, kind, token = (
            keyed_uniform(seed, drawn, index, tokens.ids.shape[1], draw=draw) for draw in range(3)
        )
        if self.whole_word:
            chosen_BL = choose_words(tokens.text, tokens.continues, counts_B, order)
        else:
            chosen_BL = choose(tokens.text, counts_B, order)
        facts = examples.corpus.facts
        corrupted_BL = corrupt(
            tokens.ids, chosen_BL, kind, token, mask_id=facts["mask"], vocab_size=facts["vocabulary"]
        )
        batch = tokens.batch(index, corrupted_BL, chosen_BL)
        return replace(batch, sequence_labels=torch.from_numpy(examples.is_random[index]))

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
        body = model.bert(**inputs_of(batch), return_dict=True)
        chosen_BL = batch.labels != IGNORED
        scores_NV = model.cls.predictions(body.last_hidden_state[chosen_BL])
        next_B2 = model.cls.seq_relationship(body.pooler_output)
        targets_N = batch.labels[chosen_BL]
        mlm = functional.cross_entropy(scores_NV.float(), targets_N, reduction="sum") / max(1, len(targets_N))
        nsp = functional.cross_entropy(next_B2.float(), batch.sequence_labels)
        return {"mlm": LossTerm(mlm, len(targets_N)), "nsp": LossTerm(nsp, batch.num_examples)}

    def flops(self, model: nn.Module, length: int) -> float:
        assert isinstance(model, BertForPreTraining)
        shape = Shape.of(model.config)
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
