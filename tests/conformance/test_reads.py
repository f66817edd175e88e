"""A loss says all that it reads of its teacher, because a cache keeps nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_losses import NAMES, made
from tiny import random_step

from distillkit.teachers.answers import Kept
from distillkit.types import Access, Outputs, Step


def only(items: Sequence[Any], read: frozenset[int] | None, what: str) -> Sequence[Any]:
    """Items of which all others raise an error that names them."""
    numbers = range(len(items)) if read is None else {number % len(items) for number in read if items}
    return Kept({number: items[number] for number in numbers}, len(items), what)


def with_teacher(step: Step, change: Callable[[Outputs], Outputs]) -> Step:
    return replace(step, teachers={name: change(told) for name, told in step.teachers.items()})


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_reads_no_more_than_it_says(name: str) -> None:
    step = random_step()
    loss = made(name, step)
    if loss.needs.access >= Access.INTERVENTIONS:
        pytest.skip("is never cached")
    reads = loss.reads()

    def limited(told: Outputs) -> Outputs:
        hidden, attention = told.hidden, told.attention
        return replace(
            told, hidden=only(hidden, reads.states, "state"), attention=only(attention, reads.blocks, "block")
        )

    value = loss(step)
    assert torch.equal(loss(with_teacher(step, limited)), value)
    if reads.temperatures is not None:
        shifted = loss(with_teacher(step, lambda told: replace(told, logits=told.logits + 3.0)))
        assert torch.allclose(shifted, value, atol=1e-5), "a softmax does not see what all logits share"
