"""The schedule against a loop, the groups against the rule."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import pytest
import torch
from tiny import LABELS, encoder
from transformers import ElectraConfig
from transformers.optimization import Adafactor

from distillkit.encoder import fresh
from distillkit.optim import build_optimizer, clip_gradient, layer_factors, lr_at, set_lr, trained_bytes
from distillkit.settings import OptimizerSettings


@pytest.mark.parametrize(("total", "warmup"), [(10, 0.3), (100, 0.06), (7, 0.0), (1, 0.5), (20, 1.0)])
def test_the_rate_rises_over_the_warm_up_and_falls_to_zero(total: int, warmup: float) -> None:
    settings = OptimizerSettings(lr=0.5, warmup=warmup)
    rates = [lr_at(step, total, settings) for step in range(total)]
    rising = round(warmup * total)
    assert all(low < high for low, high in pairwise(rates[:rising]))
    assert all(low > high for low, high in zip(rates[rising:], rates[rising + 1 :], strict=False))
    assert all(0 < rate <= 0.5 for rate in rates)
    if rising < total:
        assert rates[rising] == 0.5
        assert lr_at(total, total, settings) == 0.0


def test_norms_and_biases_do_not_decay_and_everything_else_does() -> None:
    model = encoder()
    optimizer = build_optimizer(model, OptimizerSettings(weight_decay=0.25))
    decayed = {
        id(p) for group in optimizer.param_groups if group["weight_decay"] == 0.25 for p in group["params"]
    }
    plain = {
        id(p) for group in optimizer.param_groups if group["weight_decay"] == 0.0 for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        assert (id(parameter) in plain) == (name.endswith("bias") or "LayerNorm" in name), name
    assert decayed | plain == {id(p) for p in model.parameters()} and not decayed & plain


def test_one_step_is_adamw_by_hand() -> None:
    weight = torch.nn.Linear(2, 1, bias=False)
    before = weight.weight.detach().clone()
    optimizer = build_optimizer(weight, OptimizerSettings(lr=0.1, weight_decay=0.5, eps=1e-6))
    weight(torch.tensor([[2.0, -3.0]])).sum().backward()
    gradient = weight.weight.grad.clone()  # type: ignore[union-attr]
    optimizer.step()
    expected = before * (1 - 0.1 * 0.5) - 0.1 * gradient / (gradient.abs() + 1e-6)
    assert torch.allclose(weight.weight, expected, atol=1e-6)


def test_clipping_scales_the_whole_gradient_and_tells_the_norm_before() -> None:
    model = torch.nn.Linear(3, 2)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    norm = clip_gradient(model.parameters(), 1.0)
    assert float(norm) == pytest.approx((8 * 4) ** 0.5, rel=1e-5)
    left = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)
    assert left**0.5 == pytest.approx(1.0, rel=1e-4)


def test_the_rate_falls_from_the_head_to_the_embeddings_by_one_factor_a_block() -> None:
    """The head learns at the whole rate and the top block at decay; the released ELECTRA code gives it
    decay^2."""
    config = ElectraConfig(
        vocab_size=60,
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
    )
    model = fresh(config, LABELS)
    factors = layer_factors(model.layers(), 0.5)
    optimizer = build_optimizer(model, OptimizerSettings(weight_decay=0.25), factors)
    set_lr(optimizer, 0.8)
    rates = {
        parameter: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    depth = {"electra.embeddings": 0.05, "electra.encoder.layer.0.": 0.1, "electra.encoder.layer.1.": 0.2}
    depth |= {"electra.encoder.layer.2.": 0.4, "classifier.": 0.8}
    assert len(rates) == len(list(model.parameters()))
    for name, parameter in model.model.named_parameters():
        (rate,) = [rate for start, rate in depth.items() if name.startswith(start)]
        decay = 0.0 if name.endswith("bias") or "LayerNorm" in name else 0.25
        assert rates[parameter] == (pytest.approx(rate), decay), name


def test_the_pooler_of_a_bert_belongs_to_its_head() -> None:
    model = encoder(layers=2)
    names = {parameter: name for name, parameter in model.model.named_parameters()}
    first, *blocks, last = [[names[one] for one in layer] for layer in model.layers()]
    assert all(".embeddings." in name for name in first) and len(first) == 5
    assert {name.split(".")[0] for name in last} == {"bert", "classifier"}
    assert {name.split(".")[1] for name in last if name.startswith("bert")} == {"pooler"}
    for index, block in enumerate(blocks):
        assert block and all(f".layer.{index}." in name for name in block)


Falling = Literal["linear", "cosine", "constant"]


@pytest.mark.parametrize(("schedule", "middle"), [("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)])
def test_schedules_differ_in_how_they_fall(schedule: Falling, middle: float) -> None:
    settings = OptimizerSettings(lr=2.0, warmup=0.2, schedule=schedule)
    rates = [lr_at(step, 100, settings) for step in range(100)]
    assert rates[:20] == [2.0 * (step + 1) / 21 for step in range(20)]
    assert rates[20] == 2.0 and rates[60] == pytest.approx(2.0 * middle)
    if schedule == "cosine":
        assert rates[40] == pytest.approx(1 + math.cos(math.pi * 20 / 80))


def test_the_inverse_square_root_is_t5s() -> None:
    settings = OptimizerSettings(lr=0.01, warmup=0.1, schedule="inverse_sqrt")
    for step in (0, 5_000, 9_999, 10_000, 40_000, 99_999):
        assert lr_at(step, 100_000, settings) == pytest.approx(1 / max(step + 1, 10_000) ** 0.5)


def steps_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer, count: int) -> torch.nn.Module:
    """A few steps with gradients of very different sizes."""
    generator = torch.Generator().manual_seed(1)
    for number in range(count):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator) * 10.0 ** (number % 3 - 1)
        before = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        optimizer.step()
        after = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    return model


def two_models() -> list[torch.nn.Module]:
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        made.append(
            torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.LayerNorm(5), torch.nn.Embedding(4, 3))
        )
    return made


def test_adafactor_is_that_of_transformers() -> None:
    ours, theirs = two_models()
    made = build_optimizer(ours, OptimizerSettings(use="adafactor", lr=0.05, weight_decay=0.0))
    fixed = {"scale_parameter": True, "relative_step": False, "warmup_init": False}
    steps_of(ours, made, 7)
    steps_of(theirs, Adafactor(theirs.parameters(), lr=0.05, **fixed), 7)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, other, rtol=2e-5, atol=1e-7)


def test_adafactor_keeps_rows_and_columns_of_a_matrix_only() -> None:
    model = torch.nn.Linear(60, 50)
    made = build_optimizer(model, OptimizerSettings(use="adafactor"))
    steps_of(model, made, 1)
    assert sum(slot.numel() for slots in made.state.values() for slot in slots.values()) == 60 + 50 + 50 + 2


@pytest.mark.parametrize("use", ["adamw", "adafactor", "scaled_adamw"])
def test_what_a_training_holds_is_counted(use: Literal["adamw", "adafactor", "scaled_adamw"]) -> None:
    """Against the tensors that are there after a step; their step counters apart."""
    model = two_models()[0]
    model[0].bias.requires_grad_(False)  # type: ignore[index, union-attr]
    settings = OptimizerSettings(use=use)
    made = build_optimizer(model, settings)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    made.step()
    held = [*trained, *(parameter.grad for parameter in trained if parameter.grad is not None)]
    held += [slot for slots in made.state.values() for name, slot in slots.items() if name != "step"]
    assert trained_bytes(model, settings) == sum(tensor.numel() * 4 for tensor in held)


def test_scaled_adamw_is_adamw_with_a_rate_for_each_parameter() -> None:
    """By the formula: lr * max(0.001, RMS) in the place of lr; a bias of zeros still moves."""
    ours, theirs = two_models()
    settings = OptimizerSettings(use="scaled_adamw", lr=0.02, weight_decay=0.1)
    made = build_optimizer(ours, settings)
    for model in (ours, theirs):
        torch.nn.init.zeros_(model[0].bias)  # type: ignore[index]
    for number in range(1, 6):
        steps_of(ours, made, 1)
        generator = torch.Generator().manual_seed(1)
        for parameter in theirs.parameters():
            gradient = torch.randn(parameter.shape, generator=generator) * 0.1
            rate = 0.02 * max(1e-3, float(parameter.detach().square().mean().sqrt()))
            mean, square = gradient * (1 - 0.9**number), gradient**2 * (1 - 0.999**number)
            step = (mean / (1 - 0.9**number)) / ((square / (1 - 0.999**number)).sqrt() + settings.eps)
            decay = 0.1 if parameter.ndim == 2 else 0.0
            with torch.no_grad():
                parameter.copy_(parameter * (1 - rate * decay) - rate * step)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-7)
    assert bool(ours[0].bias.any())  # type: ignore[index, operator, union-attr]
    assert {group["lr"] for group in made.param_groups} == {0.02}
