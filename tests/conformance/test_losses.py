"""The contract of every registered loss: whoever adds a loss file gets these tests free.

`check_all` runs the whole contract on one loss; tests/conformance/test_broken_losses.py shows that it
notices what published code gets wrong.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import mapped, random_step, tensors
from torch import Tensor

from distillkit import catalog
from distillkit.losses.base import Loss, LossStack
from distillkit.types import Outputs, Spec, Step

NAMES = catalog.names("loss")
FLOOR = {"gold", "hard_labels"}
"""Losses whose perfect student still costs the entropy that its own logits leave: cross-entropies with hard
targets.
"""
Make = Callable[[Step], Loss]

pytestmark = pytest.mark.filterwarnings(
    "ignore:Converting a tensor with requires_grad"
)  # float(loss), on purpose


def made(name: str, step: Step) -> Loss:
    """The loss with its defaults, bound to the sizes of the step."""
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
    return bound(loss, step)


def bound(loss: Loss, step: Step) -> Loss:
    torch.manual_seed(0)
    loss.bind(spec_of(step.student), {"teacher": spec_of(step.teachers["teacher"])})
    return loss


def spec_of(outputs: Outputs) -> Spec:
    return Spec(
        num_layers=len(outputs.hidden) - 1,
        hidden_dim=outputs.hidden[0].shape[-1],
        num_heads=2,
        ffn_dim=1,
        vocab_size=1,
        num_labels=outputs.logits.shape[-1],
        max_length=64,
        attention=True,
    )


def changed(step: Step, student: Callable[[Outputs], Outputs], teacher: Callable[[Outputs], Outputs]) -> Step:
    """The step and its counterfactual with other outputs."""
    return replace(
        step,
        student=student(step.student),
        teachers={name: teacher(told) for name, told in step.teachers.items()},
        counterfactual=None
        if step.counterfactual is None
        else changed(step.counterfactual, student, teacher),
    )


def same(outputs: Outputs) -> Outputs:
    return outputs


def student_tensors(step: Step) -> list[Tensor]:
    assert step.counterfactual is not None
    return [*tensors(step.student), *tensors(step.counterfactual.student)]


def student_gradients(value: Tensor, step: Step) -> list[Tensor]:
    gradients = torch.autograd.grad(value, student_tensors(step), allow_unused=True, retain_graph=True)
    return [gradient for gradient in gradients if gradient is not None]


def rows_of(step: Step, index: Tensor) -> Step:
    """Some examples of a step (of one that is answered example by example, or token by token)."""
    batch = step.batch
    assert batch.labels is not None
    answers = index
    if batch.scored is not None:
        number = torch.full(batch.mask.shape, -1)
        number[batch.scored] = torch.arange(batch.num_answers)
        answers = number[index][batch.scored[index]]
    part = replace(
        batch,
        labels=batch.labels[index],
        mask=batch.mask[index],
        ids=batch.ids[index],
        scored=None if batch.scored is None else batch.scored[index],
    )

    def cut(outputs: Outputs) -> Outputs:
        return replace(mapped(outputs, lambda t: t[index] if t is not outputs.logits else t[answers]))

    def all_of(step: Step) -> Step:
        return replace(
            step,
            batch=part,
            student=cut(step.student),
            teachers={name: cut(told) for name, told in step.teachers.items()},
            counterfactual=None if step.counterfactual is None else all_of(step.counterfactual),
        )

    return all_of(step)


def check_value_and_gradient(make: Make) -> None:
    step = random_step()
    value = make(step)(step)
    assert value.shape == () and value.dtype == torch.float32 and bool(torch.isfinite(value))
    assert max(float(gradient.abs().max()) for gradient in student_gradients(value, step)) > 0


def check_padding(make: Make) -> None:
    step = random_step()
    padding_BL = ~step.batch.mask

    def noisy(noise: float) -> Callable[[Outputs], Outputs]:
        def change(outputs: Outputs) -> Outputs:
            def spoil(tensor: Tensor) -> Tensor:
                if tensor is outputs.logits:
                    return tensor
                hidden = padding_BL[..., None] if tensor.ndim == 3 else padding_BL[:, None, :, None]
                return torch.where(hidden, noise, tensor)

            return mapped(outputs, spoil)

        return change

    loss = make(step)
    spoilt = changed(step, noisy(50.0), noisy(-9.0))
    assert float(loss(spoilt)) == pytest.approx(float(loss(step)), rel=1e-6)


def check_perfect_student(make: Make, floor: bool) -> None:
    """It costs nothing and stays as it is: a loss that drops or shifts some of the target is 0 there too, and
    pulls the student away.
    """
    step = random_step()

    def perfect(step: Step) -> Step:
        told = mapped(step.teachers["teacher"], lambda tensor: tensor.clone().requires_grad_())
        batch = step.batch
        if floor:
            sure = torch.nn.functional.one_hot(told.logits.argmax(-1), told.logits.shape[-1]) * 100.0
            told, batch = replace(told, logits=sure.requires_grad_()), replace(batch, labels=sure.argmax(-1))
        counterfactual = None if step.counterfactual is None else perfect(step.counterfactual)
        return replace(step, batch=batch, student=told, counterfactual=counterfactual)

    best = perfect(step)
    value = make(best)(best)
    assert float(value) == pytest.approx(0.0, abs=1e-6)
    assert max(float(gradient.abs().max()) for gradient in student_gradients(value, best)) < 1e-6


def check_parts_are_the_whole(make: Make, per_token: bool) -> None:
    """Averaging the means of unequal parts would weigh a short part's tokens more."""
    step = random_step(examples=7, per_token=per_token)
    stack = LossStack({"it": (0.7, make(step))})
    whole, raw = stack(step)
    totals = stack.counts(step.batch)
    parts = [rows_of(step, torch.tensor(index)) for index in ([0, 1], [2], [3, 4, 5, 6])]
    shares = [stack(part, totals) for part in parts]
    assert float(sum(total for total, _ in shares)) == pytest.approx(float(whole), rel=1e-5)
    assert float(sum(named["it"] for _, named in shares)) == pytest.approx(float(raw["it"]), rel=1e-5)


def check_empty(make: Make) -> None:
    full = random_step()
    step = rows_of(full, torch.tensor([], dtype=torch.long))
    value = make(full)(step)
    assert float(value) == 0.0
    value.backward()


def check_half_precision(make: Make, dtype: torch.dtype) -> None:
    step = random_step()

    def cast(outputs: Outputs) -> Outputs:
        return mapped(outputs, lambda tensor: tensor.to(dtype))

    half = changed(step, cast, cast)
    loss = make(step)
    assert loss(half).dtype == torch.float32
    assert float(loss(half)) == pytest.approx(float(loss(step)), rel=0.05, abs=0.02)


def check_nan_shows(make: Make) -> None:
    step = random_step()
    broken = changed(step, lambda outputs: mapped(outputs, lambda tensor: tensor * float("nan")), same)
    assert bool(torch.isnan(make(step)(broken)))


def check_large_scores(make: Make) -> None:
    """Exponentials without the largest score taken off overflow."""
    step = random_step()

    def large(outputs: Outputs) -> Outputs:
        return replace(outputs, logits=outputs.logits * 1000)

    huge = changed(step, large, large)
    assert bool(torch.isfinite(make(step)(huge)))


def check_projections(make: Make) -> None:
    """Whatever is trained beside the student is a parameter of the loss, so that it is optimised, clipped,
    moved and saved.
    """
    step = random_step(width=6, teacher_width=10)
    loss = make(step)
    parameters = list(loss.parameters())
    trained = {id(tensor) for tensor in leaves(loss(step))} - {id(tensor) for tensor in student_tensors(step)}
    assert trained == {id(parameter) for parameter in parameters}
    if not parameters:
        return
    loss(step).backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in parameters)
    other = make(step)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1.0)
    assert float(other(step)) != pytest.approx(float(loss(step)))
    other.load_state_dict(loss.state_dict())
    assert float(other(step)) == float(loss(step))


def leaves(value: Tensor) -> list[Tensor]:
    """The tensors that a value's gradient ends in."""
    found, seen, todo = [], set(), [value.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        todo += [parent for parent, _ in node.next_functions]
    return found


def check_is_a_mean(make: Make) -> None:
    """Repeating every example leaves a mean alone; a sum would double it."""
    step = random_step()
    twice = rows_of(step, torch.arange(5).repeat(2))
    loss = make(step)
    assert float(loss(twice)) == pytest.approx(float(loss(step)), rel=1e-5)


def check_impossible_classes_change_nothing(make: Make) -> None:
    """Classes that neither side finds possible cost nothing. A mean over classes where a sum is meant makes
    the term a hundredth on 100 classes.
    """
    step = random_step()

    def wider(outputs: Outputs) -> Outputs:
        never = torch.full((len(outputs.logits), 57), -1000.0)
        return replace(outputs, logits=torch.cat([outputs.logits, never], dim=-1))

    more = changed(step, wider, wider)
    assert float(make(more)(more)) == pytest.approx(float(make(step)(step)), rel=1e-5)


def check_temperature_does_not_shrink_it(make_at: Callable[[Step, float], Loss]) -> None:
    """Without T^2 a run at T = 16 would learn 256 times less from its teacher."""
    sizes = []
    for temperature in (1.0, 4.0, 16.0):
        step = random_step()
        small = changed(step, same, lambda outputs: mapped(outputs, lambda tensor: tensor * 0.1))
        flat = changed(
            small, lambda outputs: mapped(outputs, lambda t: (t.detach() * 0).requires_grad_()), same
        )
        gradients = student_gradients(make_at(flat, temperature)(flat), flat)
        sizes.append(max(float(gradient.norm()) for gradient in gradients))
    assert max(sizes) / min(sizes) < 1.2


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(name: str) -> Make:
    return lambda step: made(name, step)


def test_the_value_is_a_finite_fp32_scalar_and_its_gradient_reaches_the_student(make: Make) -> None:
    check_value_and_gradient(make)


def test_what_stands_in_padding_changes_nothing(make: Make) -> None:
    check_padding(make)


def test_a_perfect_student_costs_nothing_and_is_left_as_it_is(make: Make, name: str) -> None:
    check_perfect_student(make, floor=name in FLOOR)


def test_large_scores_do_not_overflow(make: Make) -> None:
    check_large_scores(make)


@pytest.mark.parametrize("per_token", [False, True])
def test_micro_batches_joined_by_their_counts_are_the_whole_batch(make: Make, per_token: bool) -> None:
    check_parts_are_the_whole(make, per_token)


def test_a_batch_without_counted_positions_is_zero_and_can_go_backward(make: Make) -> None:
    check_empty(make)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_goes_in_and_fp32_comes_out(make: Make, dtype: torch.dtype) -> None:
    check_half_precision(make, dtype)


def test_nan_in_the_student_is_not_hidden(make: Make) -> None:
    check_nan_shows(make)


def test_projections_are_trained_saved_and_restored(make: Make) -> None:
    check_projections(make)


def test_the_mean_does_not_grow_with_the_batch(make: Make) -> None:
    check_is_a_mean(make)


def test_classes_that_nobody_finds_possible_change_nothing(make: Make) -> None:
    check_impossible_classes_change_nothing(make)


def test_the_gradient_has_the_same_size_at_any_temperature(name: str) -> None:
    cls = catalog.REGISTRIES["loss"].get(name, Loss)
    if "temperature" not in inspect.signature(cls).parameters:
        pytest.skip("this loss has no temperature")
    check_temperature_does_not_shrink_it(lambda step, temperature: bound(cls(temperature=temperature), step))
