"""Does the contract notice? Each loss here has a defect that published code has (or had), and each must fail
the check that is named with it.

What is no property of one loss is shown elsewhere: the direction of KL and what the terms on attention
compare (tests/losses), the site of an intervention (tests/test_interchange.py), a teacher in train mode
(tests/test_encoder.py), gradients of several processes (tests/test_distributed.py).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conformance.test_losses import (
    Make,
    bound,
    check_empty,
    check_impossible_classes_change_nothing,
    check_is_a_mean,
    check_large_scores,
    check_nan_shows,
    check_padding,
    check_parts_are_the_whole,
    check_perfect_student,
    check_projections,
    check_temperature_does_not_shrink_it,
    check_value_and_gradient,
)
from torch import Tensor, nn
from torch.nn import functional

from distillkit.losses.base import Loss, masked_mean
from distillkit.losses.hidden_cosine import token_cosine_distance
from distillkit.losses.relations import scaled_scores
from distillkit.types import Batch, Step, Want

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")


def sides(step: Step) -> tuple[Tensor, Tensor]:
    return step.student.logits.float(), step.teachers["teacher"].logits.float()


class Scores(Loss):
    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        self.temperature = temperature

    def kl(self, step: Step, dim: int = -1) -> Tensor:
        mine, told = (side / self.temperature for side in sides(step))
        mine, told = mine.log_softmax(dim), told.log_softmax(dim)
        return told.exp() * (told - mine)


class WithoutSquaredTemperature(Scores):
    """torchdistill's KDLoss without targets, TextBrewer's kd_ce_loss."""

    def forward(self, step: Step) -> Tensor:
        return self.kl(step).sum(-1).mean()


class MultipliedByTemperature(Scores):
    """MobileBERT's code: the temperature multiplies."""

    def forward(self, step: Step) -> Tensor:
        mine, told = ((side * self.temperature).log_softmax(-1) for side in sides(step))
        return (told.exp() * (told - mine)).sum(-1).mean() * self.temperature**2


class OverTheWrongAxis(Scores):
    """torchdistill on token logits: softmax over what is not the classes."""

    def forward(self, step: Step) -> Tensor:
        return self.kl(step, dim=0).sum(-1).mean() * self.temperature**2


class MeanOverClasses(Scores):
    """PKD, TAKD, ModelOpt, TinyBERT, and torch's own default reduction."""

    def forward(self, step: Step) -> Tensor:
        return self.kl(step).mean() * self.temperature**2


class SumOverExamples(Scores):
    def forward(self, step: Step) -> Tensor:
        return self.kl(step).sum() * self.temperature**2


class WithoutTheLargestScore(Scores):
    """DeeBERT's entropy: exponentials of bare scores."""

    def forward(self, step: Step) -> Tensor:
        mine, told = ((side / self.temperature).exp() for side in sides(step))
        mine, told = mine / mine.sum(-1, keepdim=True), told / told.sum(-1, keepdim=True)
        terms = (told * (told.clamp(min=1e-30).log() - mine.clamp(min=1e-30).log())).sum(-1)
        return terms.mean() * self.temperature**2


class NanIsZero(Scores):
    """A filter of NaN that hides a broken student."""

    def forward(self, step: Step) -> Tensor:
        return torch.nan_to_num(self.kl(step).sum(-1).sum() / max(1, step.batch.num_examples)) * 4.0


class HalfPrecisionOut(Scores):
    def forward(self, step: Step) -> Tensor:
        return (self.kl(step).sum(-1).mean() * self.temperature**2).bfloat16()


class MeanOfNothing(Scores):
    """NaN where a batch has no counted position."""

    def forward(self, step: Step) -> Tensor:
        return self.kl(step).sum(-1).mean() * self.temperature**2


class States(Loss):
    def distances(self, step: Step) -> Tensor:
        return token_cosine_distance(step.student.hidden[-1], step.teachers["teacher"].hidden[-1])


class PaddingCounts(States):
    """TinyBERT's and CoFi's hidden losses: padding is meaned over too."""

    def forward(self, step: Step) -> Tensor:
        return self.distances(step).mean()


class MaskOffByOne(States):
    """arcee's shifted labels, the seq2seq script's mask: the position beside the one that counts."""

    def forward(self, step: Step) -> Tensor:
        return masked_mean(self.distances(step), step.batch.mask.roll(1, dims=1))


class CountsExamplesMeansTokens(States):
    """A mean over tokens that micro-batches join by examples (TRL's num_items_in_batch)."""

    def count(self, batch: Batch) -> int:
        return batch.num_examples

    def forward(self, step: Step) -> Tensor:
        return masked_mean(self.distances(step), step.batch.mask)


class NormalisedOverTheBatch(States):
    """The seq2seq script's normalize_hidden: batch, tokens and width normalised together."""

    def count(self, batch: Batch) -> int:
        return batch.num_tokens

    def forward(self, step: Step) -> Tensor:
        mine, told = (
            functional.layer_norm(side, side.shape)
            for side in (step.student.hidden[-1], step.teachers["teacher"].hidden[-1])
        )
        return masked_mean((mine - told).square().mean(-1), step.batch.mask)


class ProjectionBeside(Loss):
    """TextBrewer's projections: trained beside, not clipped, not saved."""

    def bind(self, student: object, teachers: object) -> None:
        self.maps = [nn.Linear(6, 10, bias=False)]

    def count(self, batch: Batch) -> int:
        return batch.num_tokens

    def forward(self, step: Step) -> Tensor:
        mine = self.maps[0](step.student.hidden[-1])
        return masked_mean(token_cosine_distance(mine, step.teachers["teacher"].hidden[-1]), step.batch.mask)


class DropsTargetMass(Loss):
    """TextBrewer's attention_ce without a mask: the teacher's mass is dropped wherever its score is
    negative.
    """

    needs = Want(attention=True)

    def count(self, batch: Batch) -> int:
        return batch.num_tokens

    def forward(self, step: Step) -> Tensor:
        keys = step.batch.mask[:, None, None, :]
        rows, scores = [], []
        for side in (step.student.attention[-1], step.teachers["teacher"].attention[-1]):
            scores.append(scaled_scores(side.query, side.key).masked_fill(~keys, -1e4))
            rows.append(scores[-1].log_softmax(-1))
        target = torch.where(scores[1] <= -0.001, 0.0, rows[1].exp())
        return masked_mean((target * (rows[1] - rows[0])).sum(-1).mean(1), step.batch.mask)


class Disconnected(Scores):
    """labml's refactor: the teacher compared with itself."""

    def forward(self, step: Step) -> Tensor:
        told = sides(step)[1].log_softmax(-1)
        return (told.exp() * (told - told)).sum(-1).mean() + step.student.logits.float().sum() * 0.0


def always(make: type[Loss]) -> Make:
    return lambda step: bound(make(), step)


@pytest.mark.parametrize("broken", [WithoutSquaredTemperature, MultipliedByTemperature])
def test_a_wrong_temperature_is_noticed(broken: type[Scores]) -> None:
    with pytest.raises(AssertionError):
        check_temperature_does_not_shrink_it(lambda step, temperature: broken(temperature))


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (OverTheWrongAxis, lambda make: check_parts_are_the_whole(make, False)),
        (MeanOverClasses, check_impossible_classes_change_nothing),
        (SumOverExamples, check_is_a_mean),
        (WithoutTheLargestScore, check_large_scores),
        (NanIsZero, check_nan_shows),
        (HalfPrecisionOut, check_value_and_gradient),
        (MeanOfNothing, check_empty),
        (PaddingCounts, check_padding),
        (MaskOffByOne, check_padding),
        (CountsExamplesMeansTokens, lambda make: check_parts_are_the_whole(make, False)),
        (NormalisedOverTheBatch, lambda make: check_parts_are_the_whole(make, False)),
        (ProjectionBeside, check_projections),
        (DropsTargetMass, lambda make: check_perfect_student(make, False)),
        (Disconnected, check_value_and_gradient),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_the_contract_notices(broken: type[Loss], check: Callable[[Make], None]) -> None:
    with pytest.raises(AssertionError):
        check(always(broken))


@pytest.mark.parametrize(
    "check",
    [check_value_and_gradient, check_large_scores, check_is_a_mean, check_impossible_classes_change_nothing],
)
def test_the_same_loss_without_a_defect_passes(check: Callable[[Make], None]) -> None:
    """So that what is noticed above is the defect, and not the way the losses here are written."""

    class Sound(Scores):
        def forward(self, step: Step) -> Tensor:
            return self.kl(step).sum(-1).mean() * self.temperature**2

    check(always(Sound))
    check_temperature_does_not_shrink_it(lambda step, temperature: Sound(temperature))
