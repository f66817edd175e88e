"""RoBERTa's objective: a masked language model alone, on blocks of whole sentences, with masks drawn anew
each epoch (Liu et al. 2019, sections 3 and 4).

How many tokens of a sequence are masked is floor(rate * length + u), u uniform in [0, 1), as in the released
code: on average exactly the rate of its length, special tokens counted. Departures from that code: `<s>` and
`</s>` are never masked, where it counts both among the candidates; a random token is never a special one,
where it may be `<mask>`; between documents stands one `</s>`, and no other between sentences.

Shapes: B sequences, L tokens, N chosen positions, V vocabulary entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import RobertaForMaskedLM

from distillkit.data.masking import Bool, Ints, choose, choose_words, keyed_uniform, replace_chosen
from distillkit.flops import HONEST, Shape
from distillkit.objectives import predicted
from distillkit.objectives.base import Examples, LossTerm, inputs_of
from distillkit.objectives.blocks import Blocks, Packing, sentence_blocks
from distillkit.objectives.corpus import Corpus, CorpusObjective, Tokens, read_corpus
from distillkit.types import IGNORED, Batch


class RobertaObjective(CorpusObjective):
    """Masked language model on `mask_rate` of the tokens."""

    def __init__(
        self, *, mask_rate: float = 0.15, packing: Packing = "full_sentences", whole_word: bool = False
    ) -> None:
        self.mask_rate, self.packing, self.whole_word = mask_rate, packing, whole_word

    def examples(self, folder: Path, *, epoch: int, seed: int) -> Blocks:
        """The same in every epoch; what changes is their order and their masks."""
        return sentence_blocks(read_corpus(folder), self.packing)

    def collate(self, examples: Examples, rows: Sequence[int], *, epoch: int, seed: int) -> Batch:
        assert isinstance(examples, Blocks)
        index = np.asarray(rows, dtype=np.int64)
        tokens, corpus = examples.lay_out(index), examples.corpus
        width = tokens.ids.shape[1]
        order, kind, token = (keyed_uniform(seed, epoch, index, width, draw=draw) for draw in range(3))
        part_B = keyed_uniform(seed, epoch, index, 1, draw=3)[:, 0]
        counts_B = masked_counts(self.mask_rate, tokens.real.sum(axis=1), part_B)
        chosen_BL = self._choose(tokens, counts_B, order)
        plain_V = plain_entries(corpus)
        drawn_BL = plain_V[(token * len(plain_V)).astype(np.int64)]
        corrupted_BL = replace_chosen(tokens.ids, chosen_BL, kind, drawn_BL, mask_id=corpus.facts["mask"])
        return tokens.batch(index, corrupted_BL, chosen_BL)

    def counts(self, batch: Batch) -> Mapping[str, int]:
        assert batch.labels is not None
        return {"mlm": int((batch.labels != IGNORED).sum())}

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, LossTerm]:
        """The head runs on the chosen positions only."""
        assert isinstance(model, RobertaForMaskedLM) and batch.labels is not None
        states_BLD = model.roberta(**inputs_of(batch), return_dict=True).last_hidden_state
        chosen_BL = batch.labels != IGNORED
        return {"mlm": predicted.term(model.lm_head(states_BLD[chosen_BL]), batch.labels[chosen_BL])}

    def flops(self, model: nn.Module, length: int) -> float:
        assert isinstance(model, RobertaForMaskedLM)
        shape, answers = Shape.of(model.config), max(1, round(self.mask_rate * length))
        return HONEST.encoder(shape, length) + HONEST.vocabulary_head(shape, answers)

    def figures(self, tallies: Mapping[str, Tensor]) -> Mapping[str, float]:
        return predicted.figures(tallies)

    def metrics(self, examples: Examples) -> Mapping[str, float]:
        assert isinstance(examples, Blocks)
        return examples.metrics()

    def _choose(self, tokens: Tokens, counts_B: Ints, order: NDArray[np.float64]) -> Bool:
        if self.whole_word:
            return choose_words(tokens.text, tokens.continues, counts_B, order)
        return choose(tokens.text, counts_B, order)


def masked_counts(rate: float, lengths_B: Ints, uniform_B: NDArray[np.float64]) -> Ints:
    """floor(rate * length + u): a whole number whose mean over u is rate * length."""
    return np.floor(rate * lengths_B + uniform_B).astype(np.int64)


def plain_entries(corpus: Corpus) -> Ints:
    """Entries of the vocabulary that stand for text."""
    everything = np.arange(corpus.facts["vocabulary"])
    return np.setdiff1d(everything, [*corpus.special, corpus.facts["unknown"]])
