"""What a model can learn from a sequence in which a generator replaced tokens (Clark et al. 2020, sections 2
and 3.4).

Shapes: B sequences, L tokens, N counted tokens, V vocabulary entries, K bins.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import ElectraForMaskedLM, ElectraForPreTraining, PretrainedConfig, PreTrainedModel

from distillkit.flops import HONEST, Shape
from distillkit.objectives.pair import GeneratorPair, to_number, token_scores

BINS, REACH = 4096, 12.0
"""Equal bins of the discriminator's logits, from -REACH to REACH; what lies beyond counts in the last."""
_LOGITS = "logits"
_SAME = 0.01
"""Share of other answers below which a discriminator gives one answer to everything."""
_LIKE = 0.99
"""Share of the constant answer's loss from which on a discriminator is no better than it."""


@dataclass(frozen=True)
class Corrupted:
    """What the main model reads, `[B, L]` each: ids, with sampled tokens at the chosen positions; original;
    chosen; real (not padding)."""

    ids: Tensor
    original: Tensor
    chosen: Tensor
    real: Tensor

    @property
    def replaced(self) -> Tensor:
        """A sampled token that equals the original counts as original."""
        return self.ids != self.original


class MainTask(ABC):
    """What the main model is asked of a corrupted sequence, at the positions that count.

    everywhere: all real tokens count, not only the chosen ones. name: of its term; weight: of that term
    beside the generator's, where the settings give none.
    """

    name: str
    weight: float = 1.0
    everywhere: bool = True
    model: type[PreTrainedModel] = ElectraForMaskedLM

    def heads(self, config: PretrainedConfig) -> dict[str, nn.Module]:
        """What is trained beside the main model."""
        return {}

    def counted(self, real: Tensor, chosen: Tensor) -> Tensor:
        """`[B, L]`, the positions that count."""
        return real if self.everywhere else chosen

    @abstractmethod
    def costs(
        self, pair: GeneratorPair, states_BLD: Tensor, seen: Corrupted
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(`[N]` cost of each counted position in nats, tallies)."""

    @abstractmethod
    def flops(self, shape: Shape, counted: int) -> float:
        """FLOPs of its output layers at so many counted positions (`flops.HONEST`)."""

    def figures(self, tallies: Mapping[str, Tensor]) -> dict[str, float]:
        """Figures worth logging; a tally of two numbers is a share, part and whole."""
        pairs = {name: tuple(sums.tolist()) for name, sums in tallies.items()}
        return _defined(pairs)

    def warnings(self, terms: Mapping[str, float], figures: Mapping[str, float]) -> Sequence[str]:
        """What is going wrong, in sentences."""
        return ()


class ReplacedTokenDetection(MainTask):
    """Whether each real token is the original one: ELECTRA. Binary cross-entropy; the released code's sum
    over all tokens by their number."""

    name, weight, model = "discriminator", 50.0, ElectraForPreTraining

    def costs(
        self, pair: GeneratorPair, states_BLD: Tensor, seen: Corrupted
    ) -> tuple[Tensor, dict[str, Tensor]]:
        counted_BL = self.counted(seen.real, seen.chosen)
        logits_N = self.logits(pair, states_BLD, counted_BL).float()
        replaced_N = seen.replaced[counted_BL]
        costs_N = functional.binary_cross_entropy_with_logits(logits_N, replaced_N.float(), reduction="none")
        return costs_N, {_LOGITS: histogram(logits_N.detach(), replaced_N)}

    def logits(self, pair: GeneratorPair, states_BLD: Tensor, counted_BL: Tensor) -> Tensor:
        """`[N]`, of being replaced, at the counted positions."""
        logits_N: Tensor = pair.main.discriminator_predictions(states_BLD[counted_BL])
        return logits_N

    def flops(self, shape: Shape, counted: int) -> float:
        return HONEST.token_head(shape, counted)

    def figures(self, tallies: Mapping[str, Tensor]) -> dict[str, float]:
        rest = {name: sums for name, sums in tallies.items() if name != _LOGITS}
        return super().figures(rest) | (detection_figures(tallies[_LOGITS]) if _LOGITS in tallies else {})

    def warnings(self, terms: Mapping[str, float], figures: Mapping[str, float]) -> Sequence[str]:
        """Where the discriminator has collapsed to the majority: it gives all tokens one answer, at a loss
        that is the constant answer's, the entropy H(r) of the share r of replaced tokens."""
        constant, called = figures.get("majority_loss", 0.0), figures.get("called_replaced", 0.5)
        loss = terms.get(self.name, 0.0)
        if min(called, 1 - called) > _SAME or not constant or loss < _LIKE * constant:
            return ()
        return (
            f"the discriminator has collapsed to the majority: it calls {called:.1%} of the tokens replaced, "
            f"and its loss {loss:.4f} is no better than the constant answer's {constant:.4f}; train longer "
            "or with a higher learning rate, or give it a generator of another width",
        )


class DetectionAtMasked(ReplacedTokenDetection):
    """The same loss at the chosen positions only: ELECTRA 15 %."""

    everywhere = False


class ReplaceMLM(MainTask):
    """The original tokens at the chosen positions, where the generator's samples stand in place of [MASK]."""

    name, everywhere = "replace_mlm", False

    def costs(
        self, pair: GeneratorPair, states_BLD: Tensor, seen: Corrupted
    ) -> tuple[Tensor, dict[str, Tensor]]:
        scores_NV = token_scores(pair.main, states_BLD[seen.chosen]).float()
        targets_N = seen.original[seen.chosen]
        costs_N = functional.cross_entropy(scores_NV, targets_N, reduction="none")
        return costs_N, {"main_accuracy": share(scores_NV.detach().argmax(-1) == targets_N)}

    def flops(self, shape: Shape, counted: int) -> float:
        return HONEST.vocabulary_head(shape, counted)


class AllTokensMLM(MainTask):
    """The original token at every real position, with a copy mechanism: p(x) = D [x = input] + (1 - D)
    softmax(x), D a sigmoid of the position's state. In log space, so that a sure D costs nothing else."""

    name = "all_tokens_mlm"

    def heads(self, config: PretrainedConfig) -> dict[str, nn.Module]:
        return {"copy": to_number(config)}

    def costs(
        self, pair: GeneratorPair, states_BLD: Tensor, seen: Corrupted
    ) -> tuple[Tensor, dict[str, Tensor]]:
        states_ND, targets_N = states_BLD[seen.real], seen.original[seen.real]
        scores_NV = token_scores(pair.main, states_ND).float()
        copy_N = pair.heads["copy"](states_ND).squeeze(-1).float()
        same_N = ~seen.replaced[seen.real]
        costs_N = copied_or_predicted(scores_NV, copy_N, targets_N, same_N)
        return costs_N, {"copied": share(copy_N.detach().sigmoid())}

    def flops(self, shape: Shape, counted: int) -> float:
        return HONEST.vocabulary_head(shape, counted) + 2 * shape.width * counted


def copied_or_predicted(scores_NV: Tensor, copy_N: Tensor, targets_N: Tensor, same_N: Tensor) -> Tensor:
    """`[N]` negative log-likelihood of the targets; copy: logits of copying the input, which at `same` is the
    target."""
    predicted_N = functional.logsigmoid(-copy_N) - functional.cross_entropy(
        scores_NV, targets_N, reduction="none"
    )
    either_N = torch.logaddexp(functional.logsigmoid(copy_N), predicted_N)
    return -torch.where(same_N, either_N, predicted_N)


def histogram(logits_N: Tensor, replaced_N: Tensor) -> Tensor:
    """`[2, K]` numbers of original (0) and replaced (1) tokens by the discriminator's logit; 0 is an edge."""
    bins_N = ((logits_N + REACH) * (BINS / (2 * REACH))).long().clamp(0, BINS - 1)
    counts = torch.bincount(bins_N + BINS * replaced_N.long(), minlength=2 * BINS)
    return counts.view(2, BINS).float()


def detection_figures(counts_2K: Tensor) -> dict[str, float]:
    """Accuracy, precision, recall and AUC of `replaced`, the share that is called so, and the loss of the
    constant answer, over the counted (never padded) tokens; one that is not defined is left out.

    The AUC counts a pair in one bin as a tie, one half.
    """
    original, replaced = counts_2K.double()
    num_original, num_replaced = float(original.sum()), float(replaced.sum())
    total, middle = num_original + num_replaced, BINS // 2
    hits, false_alarms = float(replaced[middle:].sum()), float(original[middle:].sum())
    below = original.cumsum(0) - original / 2
    found = {
        "discriminator_accuracy": (hits + num_original - false_alarms, total),
        "precision": (hits, hits + false_alarms),
        "recall": (hits, num_replaced),
        "auc": (float((replaced * below).sum()), num_original * num_replaced),
        "called_replaced": (hits + false_alarms, total),
    }
    return {**_defined(found), "majority_loss": entropy(num_replaced / max(1.0, total))}


def entropy(probability: float) -> float:
    """Of a yes or no that is yes with this probability, in nats."""
    return sum(-part * math.log(part) for part in (probability, 1 - probability) if part > 0)


def share(part_N: Tensor) -> Tensor:
    """`[2]` tally of a share: the sum, of how many."""
    total = part_N.float().sum()
    return torch.stack([total, total.new_tensor(part_N.numel())])


def _defined(ratios: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    return {name: part / whole for name, (part, whole) in ratios.items() if whole}
