"""The schedule against a loop, the groups against the rule."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from tiny import LABELS, encoder
from transformers import ElectraConfig

from distillkit.encoder import fresh
from distillkit.optim import build_optimizer, clip_gradient, layer_factors, lr_at, set_lr
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
