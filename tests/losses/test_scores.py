"""Terms on scores against closed forms, scipy and loops."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from tiny import random_step
from torch import Tensor
from torch.nn import functional

from distillkit.errors import ConfigError
from distillkit.losses.base import LossStack
from distillkit.losses.decoupled_kd import DecoupledKd, decoupled
from distillkit.losses.gold import Gold
from distillkit.losses.hard_labels import HardLabels
from distillkit.losses.jensen_shannon import JensenShannon
from distillkit.losses.logit_mse import LogitMse
from distillkit.losses.logits import Logits, soft_target_kl
from distillkit.losses.reverse_kl import ReverseKl
from distillkit.losses.scores import kl_divergence, softened, top_k_with_tail
from distillkit.settings import Schedule
from distillkit.types import IGNORED, Spec, Step

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
SEEDS = st.integers(0, 10_000)


def pair(seed: int, rows: int = 4, classes: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(rows, classes, generator=generator) for _ in range(2))
    return student, teacher


def step_of(student: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Step:
    step = random_step(examples=len(student), classes=student.shape[-1])
    step = replace(step, student=replace(step.student, logits=student))
    step = replace(step, teachers={"teacher": replace(step.teachers["teacher"], logits=teacher)})
    return step if labels is None else replace(step, batch=replace(step.batch, labels=labels))


@given(SEEDS, st.floats(0.5, 4.0))
@settings(max_examples=20, deadline=None)
def test_reverse_kl_and_jensen_shannon_are_scipys(seed: int, temperature: float) -> None:
    student, teacher = pair(seed)
    step = step_of(student, teacher)
    q, p = (torch.softmax(side.double() / temperature, -1).numpy() for side in (student, teacher))
    reverse = temperature**2 * entropy(q, p, axis=1).mean()
    middle = temperature**2 * (jensenshannon(p, q, axis=1) ** 2).mean()
    assert float(ReverseKl(temperature=temperature)(step)) == pytest.approx(reverse, rel=1e-3, abs=1e-5)
    assert float(JensenShannon(temperature=temperature)(step)) == pytest.approx(middle, rel=1e-3, abs=1e-5)


def test_the_logits_distance_is_a_sum_over_classes() -> None:
    student, teacher = pair(1)
    expected = (
        sum((float(s) - float(t)) ** 2 for s, t in zip(student.view(-1), teacher.view(-1), strict=True)) / 4
    )
    assert float(LogitMse()(step_of(student, teacher))) == pytest.approx(expected, rel=1e-5)


@given(SEEDS, st.floats(0.5, 8.0))
@settings(max_examples=20, deadline=None)
def test_the_parts_of_decoupled_distillation_add_up_to_plain(seed: int, temperature: float) -> None:
    """Zhao et al. 2022, equation 7: KL = target-class part + (1 - p_gold of the teacher) * the other part."""
    student, teacher = (side.double() for side in pair(seed))
    labels = torch.arange(4)
    target_N, rest_N = decoupled(student, teacher, labels, temperature)
    p_gold = torch.softmax(teacher / temperature, -1)[torch.arange(4), labels].float()
    whole = kl_divergence(softened(teacher, temperature), softened(student, temperature))
    assert torch.allclose(target_N + (1 - p_gold) * rest_N, whole, atol=1e-5)


def test_decoupled_distillation_counts_answers_with_a_label_alone() -> None:
    student, teacher = pair(2)
    some = torch.tensor([1, IGNORED, 2, IGNORED])
    loss = DecoupledKd(temperature=2.0, alpha=0.5, beta=3.0)
    target_N, rest_N = decoupled(student[[0, 2]], teacher[[0, 2]], some[[0, 2]], 2.0)
    step = step_of(student, teacher, some)
    assert float(loss(step)) == pytest.approx(4 * float((0.5 * target_N + 3.0 * rest_N).mean()), rel=1e-5)
    assert loss.count(step.batch) == 2
    with pytest.raises(ConfigError, match="could never act"):
        DecoupledKd(alpha=0.0, beta=0.0)


@given(SEEDS, st.integers(1, 8))
@settings(max_examples=20, deadline=None)
def test_top_k_compares_the_teachers_k_and_the_mass_of_the_rest(seed: int, k: int) -> None:
    student, teacher = pair(seed)
    expected = 0.0
    for s, t in zip(torch.softmax(student, -1), torch.softmax(teacher, -1), strict=True):
        top = sorted(range(6), key=lambda c: -float(t[c]))[:k]
        groups = [([c], 0) for c in top] + ([([c for c in range(6) if c not in top], 1)] if k < 6 else [])
        for group, _ in groups:
            p, q = float(t[group].sum()), float(s[group].sum())
            expected += p * math.log(p / q) / 4
    value = float(Logits(temperature=1.0, top_k=k)(step_of(student, teacher)))
    whole = float(soft_target_kl(student, teacher, temperature=1.0))
    assert value == pytest.approx(expected, rel=1e-3, abs=1e-5) and value <= whole + 1e-5
    mine, told = top_k_with_tail(softened(student, 1.0), softened(teacher, 1.0), k)
    assert mine.shape[-1] == told.shape[-1] == min(6, k + 1)


@pytest.mark.parametrize("make", [Logits, ReverseKl, JensenShannon, LogitMse, HardLabels])
def test_trust_weighs_each_answer_of_the_teacher(make: type) -> None:
    student, teacher = pair(3)
    labels = teacher.argmax(-1)
    labels[1] = (labels[1] + 1) % 6
    terms = [float(make()(step_of(student[[n]], teacher[[n]], labels[[n]]))) for n in range(4)]
    sure = torch.softmax(teacher, -1).amax(-1).tolist()
    step = step_of(student, teacher, labels)
    right, confidence = make(trust="right"), make(trust="confidence")
    assert float(right(step)) == pytest.approx((terms[0] + terms[2] + terms[3]) / 4, rel=1e-5)
    assert float(confidence(step)) == pytest.approx(
        sum(w * t for w, t in zip(sure, terms, strict=True)) / 4, rel=1e-5
    )
    assert right.needs_labels and not confidence.needs_labels
    some = replace(step, batch=replace(step.batch, labels=torch.where(torch.arange(4) < 2, labels, IGNORED)))
    assert float(right(some)) == pytest.approx(terms[0] / 2, rel=1e-5) and right.count(some.batch) == 2
    unlabelled = replace(step, batch=replace(step.batch, labels=None))
    with pytest.raises(ConfigError, match="needs labels"):
        right(unlabelled)


def test_a_regression_has_no_answer_to_be_sure_of() -> None:
    one = Spec(num_layers=1, hidden_dim=8, num_heads=1, ffn_dim=8, vocab_size=9, num_labels=1, max_length=9)
    with pytest.raises(ConfigError, match="trust: confidence needs classes"):
        Logits(trust="confidence").bind(one, {"teacher": one})


@pytest.mark.parametrize("make", [Logits, ReverseKl, JensenShannon, LogitMse])
def test_on_regression_terms_on_scores_are_the_squared_difference(make: type) -> None:
    step = random_step(classes=1)
    expected = functional.mse_loss(step.student.logits, step.teachers["teacher"].logits)
    assert float(make()(step)) == pytest.approx(float(expected), rel=1e-5)


def test_gold_leaves_out_answers_without_a_label() -> None:
    step = random_step(per_token=True)
    targets = step.batch.targets
    assert targets is not None and int((targets == IGNORED).sum()) == 1
    known = targets != IGNORED
    expected = functional.cross_entropy(step.student.logits[known], targets[known])
    assert float(Gold()(step)) == pytest.approx(float(expected), rel=1e-6)
    assert Gold().count(step.batch) == int(known.sum())


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_two_annealed_weights_are_teacher_annealing(progress: float) -> None:
    """BAM (Clark et al. 2019, section 3.3): cross-entropy with progress * gold + (1 - progress) * teacher.
    As two terms it differs by the teacher's entropy, which has no gradient.
    """
    step = random_step()
    stack = LossStack(
        {
            "gold": (Schedule(start=0.0, end=1.0), Gold()),
            "kd": (Schedule(start=1.0, end=0.0), Logits(temperature=1.0)),
        }
    )
    stack.go_to(progress)
    (mine,) = torch.autograd.grad(stack(step)[0], [step.student.logits])
    assert step.batch.labels is not None
    gold = functional.one_hot(step.batch.labels, 3).float()
    target = progress * gold + (1 - progress) * torch.softmax(step.teachers["teacher"].logits, -1)
    (theirs,) = torch.autograd.grad(
        functional.cross_entropy(step.student.logits, target), [step.student.logits]
    )
    assert torch.allclose(mine, theirs, atol=1e-6)


def test_a_schedule_is_a_line_that_may_end_early() -> None:
    schedule = Schedule(start=1.0, end=0.2, over=0.5)
    assert [round(schedule.at(p), 6) for p in (0.0, 0.25, 0.5, 1.0)] == [1.0, 0.6, 0.2, 0.2]
    with pytest.raises(ConfigError, match="not a positive number"):
        LossStack({"off": (Schedule(start=0.0, end=0.0), Gold())})
