"""The contract of every registered loss: whoever adds a loss file gets these tests free."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import random_step
from torch import Tensor

from distillkit import catalog
from distillkit.losses.base import Loss, LossStack
from distillkit.types import Outputs, Spec, Step

NAMES = catalog.names("loss")
FLOOR = {"gold", "hard_labels"}
"""Losses whose perfect student still costs the entropy that its own logits leave: cross-entropies with hard
targets.
"""

pytestmark = pytest.mark.filterwarnings(
    "ignore:Converting a tensor with requires_grad"
)  # float(loss), on purpose


def made(name: str, step: Step) -> Loss:
    model = catalog.components()
    config = model.model_validate(
        {
            "name": "x",
            "task": {"kind": "classification", "train": "x"},
            "teacher": {"use": "bert", "size": "tiny"},
            "student": {"use": "transformer", "layers": 1},
            "distill": {"losses": {"it": {"use": name}}},
        }
    )
    loss: Loss = catalog.build("loss", config.phases[0].losses["it"], base=Path())
    loss.bind(spec_of(step.student), {"teacher": spec_of(step.teachers["teacher"])})
    return loss


def spec_of(outputs: Outputs) -> Spec:
    return Spec(
        num_layers=len(outputs.hidden) - 1,
        hidden_dim=outputs.hidden[0].shape[-1],
        num_heads=1,
        ffn_dim=1,
        vocab_size=1,
        num_labels=outputs.logits.shape[-1],
        max_length=64,
    )


def student_gradients(value: Tensor, step: Step) -> list[Tensor]:
    tensors = [step.student.logits, *step.student.hidden]
    return [
        gradient
        for gradient in torch.autograd.grad(value, tensors, allow_unused=True)
        if gradient is not None
    ]


def rows_of(step: Step, index: Tensor) -> Step:
    def cut(outputs: Outputs) -> Outputs:
        return Outputs(outputs.logits[index], tuple(state[index] for state in outputs.hidden))

    batch = replace(
        step.batch, labels=step.batch.labels[index], mask=step.batch.mask[index], ids=step.batch.ids[index]
    )
    return Step(
        batch=batch,
        student=cut(step.student),
        teachers={name: cut(told) for name, told in step.teachers.items()},
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_value_is_a_finite_fp32_scalar_and_its_gradient_reaches_the_student(name: str) -> None:
    step = random_step()
    value = made(name, step)(step)
    assert value.shape == () and value.dtype == torch.float32 and bool(torch.isfinite(value))
    assert max(float(gradient.abs().max()) for gradient in student_gradients(value, step)) > 0


@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_reaches_the_teacher(name: str) -> None:
    """A teacher that is trained by the student's loss drifts towards the student, and the loss falls for
    nothing.
    """
    step = random_step()
    told = step.teachers["teacher"]
    asked = Outputs(told.logits.clone().requires_grad_(), tuple(state.clone() for state in told.hidden))
    detached = Outputs(asked.logits.detach(), asked.hidden)
    value = made(name, step)(replace(step, teachers={"teacher": detached}))
    value.backward()
    assert asked.logits.grad is None


@pytest.mark.parametrize("name", NAMES)
def test_what_stands_in_padding_changes_nothing(name: str) -> None:
    step = random_step()
    padding = ~step.batch.mask[..., None]
    noisy = replace(
        step,
        student=Outputs(
            step.student.logits, tuple(torch.where(padding, 50.0, state) for state in step.student.hidden)
        ),
        teachers={
            "teacher": Outputs(
                step.teachers["teacher"].logits,
                tuple(torch.where(padding, -9.0, state) for state in step.teachers["teacher"].hidden),
            )
        },
    )
    loss = made(name, step)
    assert float(loss(noisy)) == pytest.approx(float(loss(step)), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_perfect_student_costs_nothing_or_its_entropy(name: str) -> None:
    step = random_step()
    told = step.teachers["teacher"]
    best = int(told.logits.shape[-1])
    same = replace(
        step,
        student=Outputs(
            told.logits.clone().requires_grad_(), tuple(s.clone().requires_grad_() for s in told.hidden)
        ),
    )
    if name in FLOOR:
        sure = torch.nn.functional.one_hot(told.logits.argmax(-1), best) * 100.0
        batch = replace(step.batch, labels=told.logits.argmax(-1))
        same = replace(same, student=replace(same.student, logits=sure.requires_grad_()), batch=batch)
    assert float(made(name, step)(same)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_micro_batches_joined_by_their_counts_are_the_whole_batch(name: str) -> None:
    """Averaging the means of unequal parts would weigh a short part's tokens more."""
    step = random_step(examples=7)
    stack = LossStack({"it": (0.7, made(name, step))})
    whole, raw = stack(step)
    totals = stack.counts(step.batch)
    parts = [rows_of(step, torch.tensor(index)) for index in ([0, 1], [2], [3, 4, 5, 6])]
    shares = [stack(part, totals) for part in parts]
    assert float(sum(total for total, _ in shares)) == pytest.approx(float(whole), rel=1e-5)
    assert float(sum(named["it"] for _, named in shares)) == pytest.approx(float(raw["it"]), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_counted_positions_is_zero_and_can_go_backward(name: str) -> None:
    full = random_step()
    step = rows_of(full, torch.tensor([], dtype=torch.long))
    value = made(name, full)(step)
    assert float(value) == 0.0
    value.backward()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_goes_in_and_fp32_comes_out(name: str, dtype: torch.dtype) -> None:
    step = random_step()

    def cast(outputs: Outputs) -> Outputs:
        return Outputs(outputs.logits.to(dtype), tuple(state.to(dtype) for state in outputs.hidden))

    half = replace(step, student=cast(step.student), teachers={"teacher": cast(step.teachers["teacher"])})
    loss = made(name, step)
    assert loss(half).dtype == torch.float32
    assert float(loss(half)) == pytest.approx(float(loss(step)), rel=0.05, abs=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_nan_in_the_student_is_not_hidden(name: str) -> None:
    step = random_step()
    broken = replace(
        step,
        student=Outputs(
            step.student.logits * float("nan"), tuple(s * float("nan") for s in step.student.hidden)
        ),
    )
    assert bool(torch.isnan(made(name, step)(broken)))


@pytest.mark.parametrize("name", NAMES)
def test_projections_are_trained_saved_and_restored(name: str) -> None:
    step = random_step(width=6, teacher_width=10)
    loss = made(name, step)
    parameters = list(loss.parameters())
    if not parameters:
        pytest.skip("this loss makes no projection")
    loss(step).backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in parameters)
    other = made(name, step)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1.0)
    assert float(other(step)) != pytest.approx(float(loss(step)))
    other.load_state_dict(loss.state_dict())
    assert float(other(step)) == float(loss(step))


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_does_not_grow_with_the_batch(name: str) -> None:
    """Repeating every example leaves a mean alone; a sum would double it."""
    step = random_step()
    twice = rows_of(step, torch.arange(5).repeat(2))
    loss = made(name, step)
    assert float(loss(twice)) == pytest.approx(float(loss(step)), rel=1e-5)
