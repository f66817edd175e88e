"""ELECTRA's objective: a generator fills masked positions, and the main model finds what it replaced (Clark
et al. 2020); and the paper's other ways to replace tokens.

Departure: masked positions are drawn without replacement (`with_replacement` draws as the released code,
which of 19 positions in 128 hits 17.7; one that is hit twice is sampled and counted once, where the released
code writes the mean of its two token ids). `objectives.packing` says how sequences are
packed.

Shapes: B sequences, L tokens, N chosen positions, V vocabulary entries, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import ElectraConfig, ElectraForMaskedLM

from distillkit.data.masking import Bool, Ints, choose_repeatedly, corrupt, keyed_uniform
from distillkit.flops import HONEST
from distillkit.objectives.base import Examples, LossTerm
from distillkit.objectives.corpus import Corpus, Sequences, Tokens, lay_out
from distillkit.objectives.corrupted import Corrupted, MainTask, share
from distillkit.objectives.pair import GeneratorPair, Tie, tie, to_number, token_scores
from distillkit.objectives.replaced import (
    Floats,
    GeneratorObjective,
    Guess,
    chosen,
    filled,
    judged,
    likelihood,
    mean_cost,
)
from distillkit.types import Batch


class ElectraObjective(GeneratorObjective):
    """ELECTRA's generator and main model trained jointly."""

    def __init__(
        self,
        task: MainTask,
        *,
        weight: float | None = None,
        mask_rate: float = 0.15,
        with_replacement: bool = False,
        short_sequences: float = 0.05,
        temperature: float = 1.0,
        disallow_correct: bool = False,
    ) -> None:
        super().__init__(
            task,
            weight=weight,
            mask_rate=mask_rate,
            short_sequences=short_sequences,
            temperature=temperature,
            disallow_correct=disallow_correct,
        )
        self.with_replacement = with_replacement

    def pair(
        self,
        generator: ElectraConfig,
        main: ElectraConfig,
        *,
        tied: Tie,
        never: Sequence[int],
        keep_generator: bool = False,
    ) -> GeneratorPair:
        """Fresh models for this objective."""
        made = ElectraForMaskedLM(generator)
        answers = self.task.model(main)
        tie(made, answers, tied)
        return GeneratorPair(
            made, answers, self._heads(generator, main), never=never, keep_generator=keep_generator
        )

    def _heads(self, generator: ElectraConfig, main: ElectraConfig) -> dict[str, nn.Module]:
        return self.task.heads(main)

    def _choose(self, tokens: Tokens, corpus: Corpus, order: Floats) -> Bool:
        if not self.with_replacement:
            return super()._choose(tokens, corpus, order)
        return choose_repeatedly(*self._candidates(tokens, corpus), order)

    def _scores(self, model: GeneratorPair, states_ND: Tensor) -> Tensor:
        """`[N, V]` of the generator."""
        assert isinstance(model.generator, ElectraForMaskedLM)
        return token_scores(model.generator, states_ND)


class TwoStage(ElectraObjective):
    """The generator alone for half of the steps; then its body is copied into the main model's, which is
    trained for the other half while the generator stays as it is (section 3.2). Generator and main model are
    of one size and share nothing. A departure: one schedule of the learning rate spans both halves.
    """

    _second = False

    def go_to(self, model: nn.Module, step: int, total: int) -> None:
        assert isinstance(model, GeneratorPair) and model.generator is not None
        half = (total + 1) // 2
        self._second = step >= half
        if step == half:  # a run that is resumed just here copies the same weights
            model.main.electra.load_state_dict(model.generator.electra.state_dict())

    def flops(self, model: nn.Module, length: int) -> float:
        """The mean over both halves; in the second there is no backward through the generator."""
        generator, main = self._flops(model, length)
        return (generator + generator / HONEST.passes + main) / 2

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, LossTerm]:
        assert isinstance(model, GeneratorPair)
        if not self._second:
            return {"generator": likelihood(self._guess(model, batch))}
        with torch.no_grad():
            guess = self._guess(model, batch)
        main, _ = self._main_term(model, batch, filled(batch, guess.sampled))
        return {self.task.name: replace(main, tallies={**main.tallies, **judged(guess)})}


class NoGenerator(ElectraObjective):
    """No generator: what stands at the chosen positions is drawn when the data is made, and the batch's token
    ids are those that the main model reads."""

    def pair(
        self,
        generator: ElectraConfig,
        main: ElectraConfig,
        *,
        tied: Tie,
        never: Sequence[int],
        keep_generator: bool = False,
    ) -> GeneratorPair:
        return GeneratorPair(None, self.task.model(main), self._heads(generator, main), never=never)

    def collate(self, examples: Examples, rows: Sequence[int], *, epoch: int, seed: int) -> Batch:
        assert isinstance(examples, Sequences)
        index = np.asarray(rows, dtype=np.int64)
        tokens, corpus = lay_out(examples, index), examples.corpus
        order, kind, noise = (
            keyed_uniform(seed, epoch, index, tokens.ids.shape[1], draw=draw) for draw in range(3)
        )
        chosen_BL = self._choose(tokens, corpus, order)
        return tokens.batch(index, self._replaced(tokens.ids, chosen_BL, corpus, kind, noise), chosen_BL)

    def counts(self, batch: Batch) -> Mapping[str, int]:
        return {self.task.name: super().counts(batch)[self.task.name]}

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, LossTerm]:
        assert isinstance(model, GeneratorPair)
        main, _ = self._main_term(model, batch, filled(batch, batch.inputs["input_ids"][chosen(batch)]))
        return {self.task.name: main}

    @abstractmethod
    def _replaced(
        self, ids_BL: Ints, chosen_BL: Bool, corpus: Corpus, kind_BL: Floats, noise_BL: Floats
    ) -> Ints:
        """The tokens that the main model reads; kind and noise are uniform numbers."""


class Unigram(NoGenerator):
    """Replacements are drawn by how often each token occurs in the corpus (section 3.2)."""

    def _replaced(
        self, ids_BL: Ints, chosen_BL: Bool, corpus: Corpus, kind_BL: Floats, noise_BL: Floats
    ) -> Ints:
        wrong_BL = ids_BL if self.disallow_correct else None
        return np.where(chosen_BL, by_frequency(corpus.frequencies, noise_BL, wrong_BL), ids_BL)


class Masked(NoGenerator):
    """[MASK] itself, as BERT has it (80 % [MASK], 10 % any token, 10 % unchanged): with a main task that
    predicts tokens, the masked language model that the paper compares with (section 3.4, "BERT").
    """

    def _replaced(
        self, ids_BL: Ints, chosen_BL: Bool, corpus: Corpus, kind_BL: Floats, noise_BL: Floats
    ) -> Ints:
        mask_id, entries = corpus.facts["mask"], corpus.facts["vocabulary"]
        return corrupt(ids_BL, chosen_BL, kind_BL, noise_BL, mask_id=mask_id, vocab_size=entries)


class Adversarial(ElectraObjective):
    """The generator is trained to fool the discriminator, by policy gradient with a learned baseline
    (appendix F).

    The reward of a sample is the discriminator's cost there, as if the other replacements were not; the
    baseline reads the generator's states, and is trained to give the same probability by cross-entropy. Left
    open by the paper: the baseline trains its own weights only, and the three terms weigh 1, 1 and `weight`.
    """

    def _heads(self, generator: ElectraConfig, main: ElectraConfig) -> dict[str, nn.Module]:
        return {**super()._heads(generator, main), "baseline": to_number(generator)}

    def counts(self, batch: Batch) -> Mapping[str, int]:
        counts = super().counts(batch)
        return {**counts, "baseline": counts["generator"]}

    def _generator_terms(
        self, model: GeneratorPair, guess: Guess, seen: Corrupted, costs_N: Tensor
    ) -> dict[str, LossTerm]:
        rewards_N = costs_N.detach()[seen.chosen[self.task.counted(seen.real, seen.chosen)]]
        law_NV = self._law(model, guess.scores, guess.targets)
        guessed_N = model.heads["baseline"](guess.states.detach()).squeeze(-1).float()
        policy_N, baseline_N = policy_costs(law_NV, guess.sampled, rewards_N, guessed_N)
        likelihood_N = functional.cross_entropy(guess.scores.detach(), guess.targets, reduction="none")
        told = {**judged(guess), "generator_mlm": share(likelihood_N), "reward": share(rewards_N)}
        return {
            "generator": LossTerm(mean_cost(policy_N), len(policy_N), tallies=told),
            "baseline": LossTerm(mean_cost(baseline_N), len(baseline_N)),
        }


def policy_costs(
    law_NV: Tensor, sampled_N: Tensor, rewards_N: Tensor, baseline_N: Tensor
) -> tuple[Tensor, Tensor]:
    """(`[N]` terms whose gradient is, on average over the samples, that of minus the expected reward; `[N]`
    costs of the baseline).

    law: scores whose softmax was sampled from; rewards: -log q, q the probability that the discriminator gave
    the truth; baseline: logit of its guess of q.
    """
    improbable_N = functional.cross_entropy(law_NV, sampled_N, reduction="none")
    expected_N = -functional.logsigmoid(baseline_N.detach())
    costs_N = functional.binary_cross_entropy_with_logits(baseline_N, (-rewards_N).exp(), reduction="none")
    return improbable_N * (rewards_N - expected_N), costs_N


def by_frequency(counts_V: Ints, uniform: Floats, wrong: Ints | None = None) -> Ints:
    """A token for each uniform number, by how often it occurs; never the one of the same place in `wrong`."""
    cumulated_V = np.cumsum(counts_V)
    place = uniform * cumulated_V[-1]
    if wrong is not None:  # what lies behind the wrong token moves up to take its room
        place = uniform * (cumulated_V[-1] - counts_V[wrong])
        place = np.where(place >= cumulated_V[wrong] - counts_V[wrong], place + counts_V[wrong], place)
    last = len(counts_V) - 1  # for a corpus in which nothing but the wrong token occurs
    drawn: Ints = np.minimum(np.searchsorted(cumulated_V, place, side="right"), last)
    return drawn
