"""The stack adds up what its losses say, and refuses a term that cannot act."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from tiny import random_step
from torch import Tensor, nn

from distillkit.errors import ConfigError, DivergedError
from distillkit.losses.base import Loss, LossStack, gradient_shares, masked_mean
from distillkit.losses.gold import Gold
from distillkit.losses.hidden_cosine import HiddenCosine
from distillkit.losses.logits import Logits
from distillkit.types import Access, Batch, Spec, Step

pytestmark = pytest.mark.filterwarnings(
    "ignore:Converting a tensor with requires_grad"
)  # float(loss), on purpose


class Deaf(Loss):
    """Has a value and no gradient."""

    needs_teacher = False

    def forward(self, step: Step) -> Tensor:
        return step.student.logits.sum() * 0.0 + 3.0


class Detached(Loss):
    needs_teacher = False

    def forward(self, step: Step) -> Tensor:
        return step.student.logits.detach().sum()


class Nothing(Loss):
    needs_teacher = False

    def count(self, batch: Batch) -> int:
        return 0

    def forward(self, step: Step) -> Tensor:
        return step.student.logits.sum() * 0.0


def parameters(step: Step) -> list[nn.Parameter]:
    return [step.student.logits, *step.student.hidden]  # type: ignore[list-item]


def test_the_total_is_the_weighted_sum_and_terms_come_out_unweighted_and_detached() -> None:
    step = random_step()
    gold, kd = Gold(), Logits(temperature=3.0)
    total, terms = LossStack({"gold": (0.3, gold), "kd": (0.7, kd)})(step)
    assert float(total) == pytest.approx(0.3 * float(gold(step)) + 0.7 * float(kd(step)), rel=1e-6)
    assert terms["kd"] == kd(step) and not terms["kd"].requires_grad and total.requires_grad


def test_needs_join_to_the_deepest() -> None:
    assert LossStack({"a": (1.0, Logits())}).needs.access is Access.SCORES
    assert LossStack({"a": (1.0, Logits()), "b": (1.0, HiddenCosine())}).needs.access is Access.ALL_STATES
    assert LossStack({"a": (1.0, Gold())}).trains_logits and not LossStack({"a": (1.0, Gold())}).needs_teacher


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_not_positive_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match=r"distill\.losses\.kd\.weight"):
        LossStack({"kd": (weight, Logits())})


def test_no_loss_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="no loss"):
        LossStack({})


def test_projections_belong_to_the_stack() -> None:
    def spec(width: int) -> Spec:
        return Spec(
            num_layers=2, hidden_dim=width, num_heads=1, ffn_dim=1, vocab_size=1, num_labels=2, max_length=8
        )

    stack = LossStack({"states": (1.0, HiddenCosine(layer_map="uniform"))})
    stack.bind(spec(6), {"teacher": spec(10)})
    assert [tuple(p.shape) for p in stack.parameters()] == [(10, 6), (10, 6)]


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (Deaf(), "no gradient"),
        (Detached(), "does not depend on the student"),
        (Nothing(), "counts no position"),
    ],
)
def test_a_term_that_cannot_act_is_an_error_that_names_it(loss: Loss, words: str) -> None:
    step = random_step()
    with pytest.raises(ConfigError, match=words) as caught:
        LossStack({"gold": (1.0, Gold()), "odd": (1.0, loss)}).check(step, parameters(step))
    assert "odd" in str(caught.value)


def test_labels_that_are_not_there_are_an_error() -> None:
    step = random_step()
    step = replace(step, batch=replace(step.batch, labels=None))
    with pytest.raises(ConfigError, match="needs labels"):
        LossStack({"gold": (1.0, Gold())}).check(step, parameters(step))


def test_a_term_that_is_nan_is_named_before_the_first_step() -> None:
    step = random_step()
    broken = {
        "teacher": replace(step.teachers["teacher"], logits=step.teachers["teacher"].logits * float("nan"))
    }
    with pytest.raises(DivergedError, match="'kd'"):
        LossStack({"kd": (1.0, Logits())}).check(replace(step, teachers=broken), parameters(step))


def test_a_term_at_its_optimum_is_not_mistaken_for_one_that_cannot_act() -> None:
    step = random_step()
    same = replace(
        step, teachers={"teacher": replace(step.student, logits=step.student.logits.detach(), hidden=())}
    )
    LossStack({"kd": (1.0, Logits())}).check(same, parameters(same))


def test_gradient_shares_are_norms_by_hand_and_leave_grad_alone() -> None:
    step = random_step()
    weights: Mapping[str, float] = {"gold": 0.3, "kd": 2.0}
    stack = LossStack({"gold": (0.3, Gold()), "kd": (2.0, Logits())})
    raw = stack.raw(step)
    shares = gradient_shares({name: weights[name] * value for name, value in raw.items()}, parameters(step))
    norms = {
        name: float(torch.autograd.grad(weights[name] * loss(step), step.student.logits)[0].norm())
        for name, loss in stack.terms.items()
    }
    assert shares == pytest.approx(
        {name: norm / sum(norms.values()) for name, norm in norms.items()}, rel=1e-5
    )
    assert step.student.logits.grad is None


def test_masked_mean_counts_only_what_the_mask_says() -> None:
    values = torch.tensor([[1.0, float("nan")], [3.0, 5.0]])
    assert float(masked_mean(values, torch.tensor([[True, False], [True, True]]))) == pytest.approx(3.0)
    assert float(masked_mean(values, torch.zeros(2, 2, dtype=torch.bool))) == 0.0
