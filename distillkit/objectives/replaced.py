"""Objectives of a generator, which fills masked positions, and of a main model, which learns from what was
replaced (Clark et al. 2020): what their families have in common.

Departure from the released ELECTRA code: the generator never samples [PAD], [CLS], [SEP] or [MASK], which
never are the answer.

Shapes: B sequences, L tokens, N chosen positions, V vocabulary entries, D width.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from distillkit.data.masking import Bool, Ints, choose, hide, keyed_uniform
from distillkit.flops import HONEST, Shape
from distillkit.objectives.base import Examples, LossTerm
from distillkit.objectives.corpus import Corpus, CorpusObjective, Sequences, Tokens, lay_out, read_corpus
from distillkit.objectives.corrupted import Corrupted, MainTask, share
from distillkit.objectives.packing import described, pack
from distillkit.objectives.pair import GeneratorPair, states
from distillkit.objectives.sampling import sample_tokens, without, without_own
from distillkit.types import IGNORED, Batch

Floats = NDArray[np.float64]

MASKED = 0.85
"""Share of the chosen positions at which the generator reads [MASK]; at the others it reads the original
token (released code)."""


@dataclass(frozen=True)
class Guess:
    """What the generator says of the chosen positions: states `[N, D]`, scores `[N, V]` in fp32, the tokens
    `[N]` that stood there and those that it gives."""

    states: Tensor
    scores: Tensor
    targets: Tensor
    sampled: Tensor


class GeneratorObjective(CorpusObjective, ABC):
    """Generator and main model trained jointly: masked language model plus `weight` times the main task.

    No gradient goes from the main model into the generator, but for the weights that are tied. hidden: share
    of the chosen positions at which the generator reads [MASK].
    """

    hidden = MASKED

    def __init__(
        self,
        task: MainTask,
        *,
        weight: float | None = None,
        mask_rate: float = 0.15,
        short_sequences: float = 0.05,
        temperature: float = 1.0,
        disallow_correct: bool = False,
    ) -> None:
        self.task, self.weight = task, task.weight if weight is None else weight
        self.mask_rate, self.short_sequences = mask_rate, short_sequences
        self.temperature, self.disallow_correct = temperature, disallow_correct

    def examples(self, folder: Path, *, epoch: int, seed: int) -> Sequences:
        return pack(read_corpus(folder), random.Random(f"packing {seed} {epoch}"), self.short_sequences)

    def collate(self, examples: Examples, rows: Sequence[int], *, epoch: int, seed: int) -> Batch:
        assert isinstance(examples, Sequences)
        index = np.asarray(rows, dtype=np.int64)
        tokens, facts = lay_out(examples, index), examples.corpus.facts
        order, kind, noise = (
            keyed_uniform(seed, epoch, index, tokens.ids.shape[1], draw=draw) for draw in range(3)
        )
        chosen_BL = self._choose(tokens, examples.corpus, order)
        hidden_BL = hide(tokens.ids, chosen_BL, kind, mask_id=facts["mask"], share=self.hidden)
        return replace(tokens.batch(index, hidden_BL, chosen_BL), uniform=torch.from_numpy(noise))

    def counts(self, batch: Batch) -> Mapping[str, int]:
        chosen_BL = chosen(batch)
        counted = self.task.counted(batch.mask, chosen_BL)
        return {"generator": int(chosen_BL.sum()), self.task.name: int(counted.sum())}

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, LossTerm]:
        """One forward of each model; the generator's output layer runs on the chosen positions only."""
        assert isinstance(model, GeneratorPair)
        guess = self._guess(model, batch)
        seen = filled(batch, guess.sampled)
        main, costs_N = self._main_term(model, batch, seen)
        return {**self._generator_terms(model, guess, seen, costs_N), self.task.name: main}

    def flops(self, model: nn.Module, length: int) -> float:
        generator, main = self._flops(model, length)
        return generator + main

    def _flops(self, model: nn.Module, length: int) -> tuple[float, float]:
        """Of one forward of the generator, and of the main model."""
        assert isinstance(model, GeneratorPair)
        answers = max(1, round(self.mask_rate * length))
        main = Shape.of(model.main.config)
        counted = length if self.task.everywhere else answers
        theirs = HONEST.encoder(main, length) + self.task.flops(main, counted)
        if model.generator is None:
            return 0.0, theirs
        made = Shape.of(model.generator.config)
        return HONEST.encoder(made, length) + HONEST.vocabulary_head(made, answers), theirs

    def figures(self, tallies: Mapping[str, Tensor]) -> Mapping[str, float]:
        return self.task.figures(tallies)

    def warnings(self, terms: Mapping[str, float], figures: Mapping[str, float]) -> Sequence[str]:
        return self.task.warnings(terms, figures)

    def metrics(self, examples: Examples) -> Mapping[str, float]:
        assert isinstance(examples, Sequences)
        return described(examples)

    def _choose(self, tokens: Tokens, corpus: Corpus, order: Floats) -> Bool:
        """The positions whose tokens the generator predicts."""
        return choose(*self._candidates(tokens, corpus), order)

    def _candidates(self, tokens: Tokens, corpus: Corpus) -> tuple[Bool, Ints]:
        """(`[B, L]`, never a special token; `[B]`, how many to choose: round(rate * length), not none)."""
        most = max(1, int((self.mask_rate + 0.005) * corpus.facts["max_length"]))
        counts_B = np.clip(np.rint(self.mask_rate * tokens.real.sum(axis=1)), 1, most).astype(np.int64)
        return tokens.text & ~np.isin(tokens.ids, corpus.special), counts_B

    def _guess(self, model: GeneratorPair, batch: Batch) -> Guess:
        assert model.generator is not None and batch.labels is not None and batch.uniform is not None
        chosen_BL = chosen(batch)
        targets_N = batch.labels[chosen_BL]
        states_ND = self._read(model, batch)[chosen_BL]
        scores_NV = self._scores(model, states_ND).float()
        law_NV = self._law(model, scores_NV.detach(), targets_N)
        return Guess(states_ND, scores_NV, targets_N, sample_tokens(law_NV, batch.uniform[chosen_BL]))

    def _read(self, model: GeneratorPair, batch: Batch) -> Tensor:
        """`[B, L, D]`: what the generator makes of the masked sequences."""
        assert model.generator is not None
        return states(model.generator.base_model, batch, batch.inputs["input_ids"])

    @abstractmethod
    def _scores(self, model: GeneratorPair, states_ND: Tensor) -> Tensor:
        """`[N, V]` of the generator."""

    def _law(self, model: GeneratorPair, scores_NV: Tensor, targets_N: Tensor) -> Tensor:
        """`[N, V]` scores whose softmax is what is sampled from."""
        law_NV = without(scores_NV / self.temperature, model.never)
        return without_own(law_NV, targets_N) if self.disallow_correct else law_NV

    def _main_term(self, model: GeneratorPair, batch: Batch, seen: Corrupted) -> tuple[LossTerm, Tensor]:
        """The main task's term, and the cost of each of its counted positions."""
        costs_N, tallies = self.task.costs(model, states(model.main.base_model, batch, seen.ids), seen)
        tallies |= {"replaced_rate": share(seen.replaced[seen.real])}
        return LossTerm(mean_cost(costs_N), len(costs_N), self.weight, tallies), costs_N

    def _generator_terms(
        self, model: GeneratorPair, guess: Guess, seen: Corrupted, costs_N: Tensor
    ) -> dict[str, LossTerm]:
        """What trains the generator; costs: of the counted positions of the main task."""
        return {"generator": likelihood(guess)}


def chosen(batch: Batch) -> Tensor:
    assert batch.labels is not None
    return batch.labels != IGNORED


def filled(batch: Batch, sampled_N: Tensor) -> Corrupted:
    """The original sequence with the samples in place of the chosen tokens."""
    assert batch.labels is not None
    chosen_BL = chosen(batch)
    original_BL = torch.where(chosen_BL, batch.labels, batch.inputs["input_ids"])
    return Corrupted(original_BL.masked_scatter(chosen_BL, sampled_N), original_BL, chosen_BL, batch.mask)


def mean_cost(costs_N: Tensor) -> Tensor:
    return costs_N.sum() / max(1, len(costs_N))


def likelihood(guess: Guess) -> LossTerm:
    """The generator's masked language model."""
    costs_N = functional.cross_entropy(guess.scores, guess.targets, reduction="none")
    return LossTerm(mean_cost(costs_N), len(costs_N), tallies=judged(guess))


def judged(guess: Guess) -> dict[str, Tensor]:
    """How often the best guess and the sample are right, as tallies."""
    best_N = guess.scores.detach().argmax(-1)
    return {
        "generator_accuracy": share(best_N == guess.targets),
        "sampled_accuracy": share(guess.sampled == guess.targets),
    }
