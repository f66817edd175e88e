"""ELECTRA's objective: a generator fills masked positions, and the main model finds what it replaced (Clark
et al. 2020).

Sequences are packed as in the released code: sentences of a document gather up to a target length and are
cut into two segments, one in ten into a single one. Departures: a sentence never goes back to the first
segment after one went to the second; masked positions are drawn without replacement (`with_replacement`
draws as the released code, which of 19 positions in 128 hits 17.7; one that is hit twice is sampled and
counted once, where the released code writes the mean of its two token ids); the generator never samples
[PAD], [CLS], [SEP] or [MASK], which never are the answer.

Shapes: B sequences, L tokens, N chosen positions, V vocabulary entries, D width.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import ElectraConfig, ElectraForMaskedLM

from distillkit.data.masking import Bool, Ints, choose, choose_repeatedly, corrupt, hide, keyed_uniform
from distillkit.flops import HONEST, Shape
from distillkit.objectives.base import Examples, LossTerm
from distillkit.objectives.corpus import Corpus, CorpusObjective, Sequences, Tokens, lay_out, read_corpus
from distillkit.objectives.corrupted import Corrupted, MainTask, share
from distillkit.objectives.pair import GeneratorPair, Tie, states, tie, to_number, token_scores
from distillkit.objectives.sampling import sample_tokens, without, without_own
from distillkit.types import IGNORED, Batch

Floats = NDArray[np.float64]

MASKED = 0.85
"""Share of the chosen positions at which the generator reads [MASK]; at the others it reads the original
token (released code)."""
_SHORTEST = 5
_SINGLE = 0.1
"""Share of the sequences that have one segment."""


@dataclass(frozen=True)
class Guess:
    """What the generator says of the chosen positions: states `[N, D]`, scores `[N, V]` in fp32, the tokens
    `[N]` that stood there and those that it gives."""

    states: Tensor
    scores: Tensor
    targets: Tensor
    sampled: Tensor


class ElectraObjective(CorpusObjective):
    """Generator and main model trained jointly: masked language model plus `weight` times the main task.

    No gradient goes from the main model into the generator, but for the weights that are tied.
    """

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
        self.task, self.weight = task, task.weight if weight is None else weight
        self.mask_rate, self.with_replacement = mask_rate, with_replacement
        self.short_sequences, self.temperature = short_sequences, temperature
        self.disallow_correct = disallow_correct

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
        hidden_BL = hide(tokens.ids, chosen_BL, kind, mask_id=facts["mask"], share=MASKED)
        return replace(tokens.batch(index, hidden_BL, chosen_BL), uniform=torch.from_numpy(noise))

    def counts(self, batch: Batch) -> Mapping[str, int]:
        chosen_BL = _chosen(batch)
        counted = self.task.counted(batch.mask, chosen_BL)
        return {"generator": int(chosen_BL.sum()), self.task.name: int(counted.sum())}

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, LossTerm]:
        """One forward of each model; the generator's output layer runs on the chosen positions only."""
        assert isinstance(model, GeneratorPair)
        guess = self._guess(model, batch)
        seen = _filled(batch, guess.sampled)
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
        return {
            "sequences": float(len(examples.lengths)),
            "tokens": float(examples.lengths.sum()),
            "single_segment": float((examples.b_start == examples.b_end).mean()),
            "mean_length": float(examples.lengths.mean()),
        }

    def _heads(self, generator: ElectraConfig, main: ElectraConfig) -> dict[str, nn.Module]:
        return self.task.heads(main)

    def _choose(self, tokens: Tokens, corpus: Corpus, order: Floats) -> Bool:
        """round(rate * length) positions of each sequence, at least one, never a special token."""
        most = max(1, int((self.mask_rate + 0.005) * corpus.facts["max_length"]))
        counts_B = np.clip(np.rint(self.mask_rate * tokens.real.sum(axis=1)), 1, most).astype(np.int64)
        candidates_BL = tokens.text & ~np.isin(tokens.ids, corpus.special)
        how = choose_repeatedly if self.with_replacement else choose
        return how(candidates_BL, counts_B, order)

    def _guess(self, model: GeneratorPair, batch: Batch) -> Guess:
        assert model.generator is not None and batch.labels is not None and batch.uniform is not None
        chosen_BL = _chosen(batch)
        targets_N = batch.labels[chosen_BL]
        states_ND = states(model.generator.electra, batch, batch.inputs["input_ids"])[chosen_BL]
        scores_NV = token_scores(model.generator, states_ND).float()
        law_NV = self._law(model, scores_NV.detach(), targets_N)
        return Guess(states_ND, scores_NV, targets_N, sample_tokens(law_NV, batch.uniform[chosen_BL]))

    def _law(self, model: GeneratorPair, scores_NV: Tensor, targets_N: Tensor) -> Tensor:
        """`[N, V]` scores whose softmax is what is sampled from."""
        law_NV = without(scores_NV / self.temperature, model.never)
        return without_own(law_NV, targets_N) if self.disallow_correct else law_NV

    def _main_term(self, model: GeneratorPair, batch: Batch, seen: Corrupted) -> tuple[LossTerm, Tensor]:
        """The main task's term, and the cost of each of its counted positions."""
        costs_N, tallies = self.task.costs(model, states(model.main.electra, batch, seen.ids), seen)
        tallies |= {"replaced_rate": share(seen.replaced[seen.real])}
        return LossTerm(_mean(costs_N), len(costs_N), self.weight, tallies), costs_N

    def _generator_terms(
        self, model: GeneratorPair, guess: Guess, seen: Corrupted, costs_N: Tensor
    ) -> dict[str, LossTerm]:
        """What trains the generator; costs: of the counted positions of the main task."""
        return {"generator": _likelihood(guess)}


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
            return {"generator": _likelihood(self._guess(model, batch))}
        with torch.no_grad():
            guess = self._guess(model, batch)
        main, _ = self._main_term(model, batch, _filled(batch, guess.sampled))
        return {self.task.name: replace(main, tallies={**main.tallies, **_judged(guess)})}


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
        main, _ = self._main_term(model, batch, _filled(batch, batch.inputs["input_ids"][_chosen(batch)]))
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
        told = {**_judged(guess), "generator_mlm": share(likelihood_N), "reward": share(rewards_N)}
        return {
            "generator": LossTerm(_mean(policy_N), len(policy_N), tallies=told),
            "baseline": LossTerm(_mean(baseline_N), len(baseline_N)),
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


def pack(corpus: Corpus, generator: random.Random, short_sequences: float) -> Sequences:
    """One pass over all documents; `short_sequences` of the sequences aim at a random shorter length."""
    room = corpus.facts["max_length"]
    starts, documents = corpus.sentences.tolist(), corpus.documents.tolist()
    rows: list[tuple[int, int, int]] = []
    target = room
    for first, end in pairwise(documents):
        while first < end:
            last = first + 1
            while last < end and starts[last] - starts[first] < target:
                last += 1
            cut = _cut(starts[first : last + 1], target, generator)
            rows.append((starts[first], starts[first + cut], starts[last]))
            first = last
            short = generator.random() < short_sequences
            target = generator.randint(min(_SHORTEST, room), room) if short else room
    start, middle, stop = np.asarray(rows, dtype=np.int64).reshape(-1, 3).T
    a_end = np.minimum(middle, start + room - 2)
    b_end = np.minimum(stop, middle + np.maximum(0, room - 3 - (a_end - start)))
    return Sequences(corpus, start, a_end, middle, b_end)


def _cut(edges: Sequence[int], target: int, generator: random.Random) -> int:
    """How many of the sentences between these edges the first segment holds: at least one; those that fit
    into half of the target, and one that goes beyond in half of the cases.
    """
    sentences = len(edges) - 1
    if generator.random() < _SINGLE:
        return sentences
    half = (target - 3) // 2
    cut = 1
    while cut < sentences and edges[cut + 1] - edges[0] < half:
        cut += 1
    beyond = cut < sentences and edges[cut] - edges[0] < half and generator.random() < 0.5
    return cut + beyond


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


def _chosen(batch: Batch) -> Tensor:
    assert batch.labels is not None
    return batch.labels != IGNORED


def _filled(batch: Batch, sampled_N: Tensor) -> Corrupted:
    """The original sequence with the samples in place of the chosen tokens."""
    assert batch.labels is not None
    chosen_BL = _chosen(batch)
    original_BL = torch.where(chosen_BL, batch.labels, batch.inputs["input_ids"])
    return Corrupted(original_BL.masked_scatter(chosen_BL, sampled_N), original_BL, chosen_BL, batch.mask)


def _mean(costs_N: Tensor) -> Tensor:
    return costs_N.sum() / max(1, len(costs_N))


def _likelihood(guess: Guess) -> LossTerm:
    """The generator's masked language model."""
    costs_N = functional.cross_entropy(guess.scores, guess.targets, reduction="none")
    return LossTerm(_mean(costs_N), len(costs_N), tallies=_judged(guess))


def _judged(guess: Guess) -> dict[str, Tensor]:
    """How often the best guess and the sample are right, as tallies."""
    best_N = guess.scores.detach().argmax(-1)
    return {
        "generator_accuracy": share(best_N == guess.targets),
        "sampled_accuracy": share(guess.sampled == guess.targets),
    }
