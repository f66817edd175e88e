"""Each loss against an independent oracle: torch's own op, a short loop, a closed form."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import random_step
from torch.nn import functional

from distillkit.errors import ConfigError
from distillkit.losses.gold import Gold, cross_entropy
from distillkit.losses.hard_labels import hard_label_terms
from distillkit.losses.hidden_cosine import HiddenCosine, cosine_distance
from distillkit.losses.layer_maps import layer_pairs
from distillkit.losses.logits import Logits, soft_target_kl
from distillkit.types import Spec

pytestmark = pytest.mark.filterwarnings(
    "ignore:Converting a tensor with requires_grad"
)  # float(loss), on purpose


def spec(layers: int, width: int) -> Spec:
    return Spec(
        num_layers=layers, hidden_dim=width, num_heads=1, ffn_dim=1, vocab_size=1, num_labels=2, max_length=8
    )


@given(st.floats(0.5, 20.0), st.integers(2, 40), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_soft_target_kl_is_the_textbook_sum(temperature: float, classes: int, examples: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    student, teacher = (
        torch.randn(examples, classes, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    expected = 0.0
    for row in range(examples):
        p = [math.exp(float(value) / temperature) for value in teacher[row]]
        q = [math.exp(float(value) / temperature) for value in student[row]]
        p, q = [value / sum(p) for value in p], [value / sum(q) for value in q]
        expected += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    value = soft_target_kl(student, teacher, temperature=temperature)
    rounding = (
        1e-6 * temperature**2
    )  # of log-probabilities in fp32, which nearly cancel at a high temperature
    assert float(value) == pytest.approx(temperature**2 * expected / examples, rel=2e-3, abs=rounding)


def test_soft_target_kl_has_the_direction_teacher_to_student() -> None:
    teacher, student = torch.tensor([[5.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    p = torch.softmax(teacher, -1)
    forward = (p * (p.log() - math.log(0.5))).sum()
    assert float(soft_target_kl(student, teacher, temperature=1.0)) == pytest.approx(float(forward), rel=1e-5)


@pytest.mark.parametrize("classes", [2, 20, 200])
def test_the_gradient_has_the_same_size_at_any_temperature(classes: int) -> None:
    """Without T^2 a run at T=8 would learn 64 times less from its teacher."""
    generator = torch.Generator().manual_seed(1)
    teacher = 0.1 * torch.randn(8, classes, generator=generator)
    sizes = []
    for temperature in (1.0, 4.0, 16.0):
        student = torch.zeros(8, classes, requires_grad=True)
        soft_target_kl(student, teacher, temperature=temperature).backward()
        assert student.grad is not None
        sizes.append(float(student.grad.norm()))
    assert max(sizes) / min(sizes) < 1.1


def test_the_mean_is_over_examples_and_not_over_classes() -> None:
    """kl_div's default divides by the number of classes too, which shrinks the term a hundredfold on 100
    classes.
    """
    teacher, student = torch.randn(4, 50), torch.randn(4, 50)
    p, q = torch.softmax(teacher, -1), torch.log_softmax(student, -1)
    expected = (p * (p.log() - q)).sum() / 4
    assert float(soft_target_kl(student, teacher, temperature=1.0)) == pytest.approx(
        float(expected), rel=1e-4
    )


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_an_impossible_temperature_is_refused_with_its_value(temperature: float) -> None:
    with pytest.raises(ConfigError, match=str(temperature)):
        Logits(temperature=temperature)


def test_logits_on_regression_is_the_squared_difference() -> None:
    step = random_step(classes=1)
    expected = (step.student.logits - step.teachers["teacher"].logits).square().mean()
    assert float(Logits(temperature=7.0)(step)) == pytest.approx(float(expected), rel=1e-5)


def test_gold_is_cross_entropy_and_smoothing_spreads_the_target() -> None:
    logits, labels = torch.randn(6, 5), torch.randint(5, (6,))
    log_q = torch.log_softmax(logits, -1)
    plain = -log_q[torch.arange(6), labels].mean()
    smooth = 0.8 * plain + 0.2 * (-log_q.mean(dim=-1)).mean()
    assert float(cross_entropy(logits, labels)) == pytest.approx(float(plain), rel=1e-5)
    assert float(cross_entropy(logits, labels, smoothing=0.2)) == pytest.approx(float(smooth), rel=1e-5)


def test_gold_on_targets_is_the_mean_squared_error() -> None:
    step = random_step(classes=1)
    assert step.batch.labels is not None
    expected = functional.mse_loss(step.student.logits[:, 0], step.batch.labels)
    assert float(Gold()(step)) == pytest.approx(float(expected), rel=1e-6)


def test_hard_labels_learn_the_teachers_answer() -> None:
    student, teacher = torch.randn(6, 4), torch.randn(6, 4)
    expected = functional.cross_entropy(student, teacher.argmax(-1))
    assert float(hard_label_terms(student, teacher).mean()) == pytest.approx(float(expected), rel=1e-6)


def test_cosine_distance_is_a_loop_over_real_tokens() -> None:
    step = random_step()
    student, teacher, mask = step.student.hidden[1], step.teachers["teacher"].hidden[1], step.batch.mask
    terms = []
    for example in range(mask.shape[0]):
        for token in range(mask.shape[1]):
            if mask[example, token]:
                a, b = student[example, token], teacher[example, token]
                terms.append(1 - float(a @ b / (a.norm() * b.norm())))
    assert float(cosine_distance(student, teacher, mask)) == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_cosine_ignores_length_and_turns_direction() -> None:
    states = torch.randn(2, 3, 4)
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert float(cosine_distance(5 * states, states, mask)) == pytest.approx(0.0, abs=1e-6)
    assert float(cosine_distance(-states, states, mask)) == pytest.approx(2.0, abs=1e-6)


def test_hidden_cosine_means_over_its_mapped_states() -> None:
    step = random_step()
    loss = HiddenCosine(layer_map=[(0, 0), (2, 1)])
    loss.bind(spec(2, 8), {"teacher": spec(2, 8)})
    told, mine, mask = step.teachers["teacher"].hidden, step.student.hidden, step.batch.mask
    expected = (cosine_distance(mine[0], told[0], mask) + cosine_distance(mine[2], told[1], mask)) / 2
    assert float(loss(step)) == pytest.approx(float(expected), rel=1e-6)


def test_widths_that_differ_without_a_projection_are_refused_with_a_way_out() -> None:
    with pytest.raises(ConfigError, match="projection: linear"):
        HiddenCosine(projection="none").bind(spec(2, 8), {"teacher": spec(2, 16)})


@pytest.mark.parametrize(
    ("layer_map", "student", "teacher", "pairs"),
    [
        ("last", 2, 4, ((2, 4),)),
        ("uniform", 4, 12, ((1, 3), (2, 6), (3, 9), (4, 12))),
        ("uniform", 3, 4, ((1, 1), (2, 2), (3, 4))),
        ("skip", 3, 6, ((1, 2), (2, 4), (3, 6))),
        ([(0, 0), (1, 3)], 2, 4, ((0, 0), (1, 3))),
    ],
)
def test_layer_maps(layer_map: object, student: int, teacher: int, pairs: object) -> None:
    assert layer_pairs(layer_map, student_layers=student, teacher_layers=teacher) == pairs  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layer_map", "words"),
    [
        ([(3, 1)], "student state 3"),
        ([(1, 5)], "teacher state 5"),
        ([(2, 1), (1, 2)], "strictly increasing"),
        ([(1, 1), (1, 2)], "strictly increasing"),
        ([(1, 2), (2, 1)], "strictly increasing"),
    ],
)
def test_impossible_layer_maps_are_refused_with_the_range(layer_map: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        layer_pairs(layer_map, student_layers=2, teacher_layers=4)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["uniform", "skip"])
def test_a_student_deeper_than_its_teacher_needs_explicit_pairs(name: str) -> None:
    with pytest.raises(ConfigError, match="student 6, teacher 4"):
        layer_pairs(name, student_layers=6, teacher_layers=4)  # type: ignore[arg-type]
