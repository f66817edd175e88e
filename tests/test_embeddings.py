"""The gradient of a large table that is kept over steps is torch's own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from distillkit import embeddings
from distillkit.embeddings import KeptGradients

ROWS, WIDTH = 2**13, 2**7  # as many weights as a large table has at least


def model(*, tied: bool = False) -> nn.Module:
    """A table that is looked up twice, a small one, and perhaps an output layer that shares the large one."""
    torch.manual_seed(3)
    made = nn.Module()
    made.table, made.small = nn.Embedding(ROWS, WIDTH, padding_idx=0), nn.Embedding(7, WIDTH)
    made.out = nn.Linear(WIDTH, ROWS)
    if tied:
        made.out.weight = made.table.weight
    return made


def loss(made: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    states = made.table(ids).tanh() + made.small(ids % 7) + F.embedding(ids.flip(0), made.table.weight)
    return made.out(states).logsumexp(-1).mean()


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, ROWS, (4, 9), generator=generator) for _ in range(4)]


def test_the_same_weights_as_without() -> None:
    """Over steps of two parts, tied or not; a row of one step leaves nothing behind for the next."""
    for tied in (False, True):
        plain, kept = model(tied=tied), model(tied=tied)
        gradients = KeptGradients(kept)
        for made in (plain, kept):
            optimizer = torch.optim.AdamW(made.parameters(), lr=0.1, fused=True)
            for ids in batches():
                for part in ids.chunk(2):
                    if made is kept:
                        with gradients:
                            value = loss(made, part)
                    else:
                        value = loss(made, part)
                    value.backward()
                optimizer.step()
                gradients.clear()
                optimizer.zero_grad()
        for (name, one), two in zip(plain.named_parameters(), kept.parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6, msg=name)


def test_one_dense_buffer_is_used_again_and_padding_has_no_gradient() -> None:
    made = model()
    gradients = KeptGradients(made)
    first, second, *_ = batches()
    places = set()
    for ids in (first, second):
        ids[0, 0] = 0
        with gradients:
            made.table(ids).sum().backward()
        gradient = made.table.weight.grad
        assert gradient is not None and gradient.layout == torch.strided
        expected = torch.bincount(ids.flatten(), minlength=ROWS).float()
        expected[0] = 0
        assert torch.equal(gradient, expected[:, None].expand(-1, WIDTH))
        places.add(gradient.data_ptr())
        gradients.clear()
        assert made.table.weight.grad is None  # a table that is not looked up is left alone by the optimizer
    assert len(places) == 1


def test_what_is_small_frozen_or_only_read_is_left_alone() -> None:
    made = model()
    gradients = KeptGradients(made)
    assert made.table.weight.numel() >= embeddings._LARGE > made.small.weight.numel()
    ids = batches()[0]
    with gradients:
        made.small(ids % 7)
        with torch.no_grad():
            made.table(ids)
        made.table.requires_grad_(False)
        made.table(ids)
    assert all(parameter.grad is None for parameter in made.parameters())


def test_a_table_that_the_output_layer_shares_is_left_to_torch() -> None:
    made = model(tied=True)
    with KeptGradients(made):
        made.table(batches()[0])
    assert made.table.weight.grad is None


def test_gradients_taken_outside_are_dense() -> None:
    """The probes of a training ask autograd for gradients of their own."""
    made = model()
    (gradient,) = torch.autograd.grad(made.table(batches()[0]).sum(), made.table.weight)
    assert gradient.layout == torch.strided
