"""Dropout from the fast generator is torch's dropout: which elements, how often, what gradient."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from distillkit.dropout import seeded_dropout

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_and_scale(dtype: torch.dtype, p: float) -> None:
    """Dropped with probability p, kept ones scaled as torch scales them; odd sizes too."""
    ones = torch.ones(641, 977, dtype=dtype)
    with seeded_dropout(5, fast=True):
        got = F.dropout(ones, p, training=True)
    kept = got != 0
    error = 5 * math.sqrt(p * (1 - p) / ones.numel())  # five deviations
    assert abs(float(kept.float().mean()) - (1 - p)) < error
    torch_kept = F.dropout(torch.ones(1000, dtype=dtype), p, training=True).max()
    assert torch.equal(got[kept].unique(), torch_kept.reshape(1))


def test_draws_are_independent() -> None:
    """Neighbours in a row, in a column, and the same place in the next call are kept independently."""
    ones = torch.ones(512, 512)
    with seeded_dropout(9, fast=True):
        first, second = (F.dropout(ones, 0.5, training=True).sign() for _ in range(2))
    for a, b in ((first[:, 1:], first[:, :-1]), (first[1:], first[:-1]), (first, second)):
        assert abs(float((a * b).mean()) - 0.25) < 0.005


def test_keyed_alone() -> None:
    """The key decides, and not what was drawn before; torch's own generator is seeded as well."""

    def draw(key: int) -> tuple[torch.Tensor, torch.Tensor]:
        with seeded_dropout(key, fast=True):
            return F.dropout(torch.ones(99), 0.3), torch.rand(3)

    first, _, again, other = draw(1), torch.rand(7), draw(1), draw(2)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0]) and not torch.equal(first[1], other[1])


def test_gradient_flows_where_kept() -> None:
    x = torch.randn(50, 40, requires_grad=True)
    with seeded_dropout(3, fast=True):
        out = F.dropout(x, 0.25, training=True)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.allclose(grad, (out != 0) / 0.75)


def test_in_place_and_evaluation() -> None:
    x = torch.ones(64)
    with seeded_dropout(3, fast=True):
        assert torch.equal(torch.nn.Dropout(0.5).eval()(x), x)
        assert torch.equal(F.dropout(x, 0.0, training=True), x)
        assert not F.dropout(x, 1.0, training=True).any()
        F.dropout(x, 0.5, training=True, inplace=True)
    assert set(x.tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("kind", ["none", "blocked", "added"])
def test_attention(kind: str) -> None:
    """Read off identity values: its probabilities are torch's where they are kept, and 0 elsewhere; the
    gradient is that of the same product written out.
    """
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 3, 6, 4, generator=generator).requires_grad_() for _ in range(2))
    value = torch.eye(6).expand(2, 3, 6, 6)
    allowed = torch.rand(2, 1, 6, 6, generator=generator) < 0.7
    allowed[..., 0] = True
    added = torch.zeros(allowed.shape).masked_fill(~allowed, -math.inf)
    mask = {"none": None, "blocked": allowed, "added": added}[kind]
    plain = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3)
    with seeded_dropout(11, fast=True):
        dropped = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=0.25, scale=0.3)
    kept = dropped != 0
    possible = plain != 0
    assert 0.6 < float(kept[possible].float().mean()) < 0.9
    assert torch.allclose(dropped[kept], plain[kept] / 0.75, atol=1e-6)
    ours = torch.autograd.grad((dropped**2).sum(), (query, key))
    theirs = torch.autograd.grad(((plain * kept / 0.75) ** 2).sum(), (query, key))
    for got, expected in zip(ours, theirs, strict=True):
        assert torch.allclose(got, expected, atol=1e-5)


def test_attention_in_bf16_takes_a_bias_in_fp32() -> None:
    """T5's relative positions are a bias that autocast leaves in fp32; torch's own kernel takes both."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 6, 4, generator=generator) for _ in range(3))
    bias = torch.randn(1, 3, 6, 6, generator=generator)
    plain = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
    halves = [tensor.bfloat16() for tensor in (query, key, value)]
    with torch.autocast("cpu", dtype=torch.bfloat16), seeded_dropout(11, fast=True):
        made = F.scaled_dot_product_attention(*halves, attn_mask=bias, dropout_p=1e-9, scale=1.0)
    assert made.dtype == torch.bfloat16
    assert float((made - plain).abs().median()) < 0.02
