"""Every loss in the real loop: a run that was cut goes on bit for bit, and parts of a batch compute the whole
(specs D1 to D4).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import LABELS, config, feed
from training import StopAfter, digest, run, settings

from distillkit import catalog
from distillkit.encoder import fresh
from distillkit.interchange import Interchange
from distillkit.losses.base import Loss, LossStack
from distillkit.model import FixedTeacher
from distillkit.settings import InterchangeSettings, Schedule
from distillkit.train import Distillation

NAMES = catalog.names("loss")
STACKS = [*([name] for name in NAMES), NAMES]


def program(names: list[str], *, dropout: float) -> Distillation:
    torch.manual_seed(1)
    teacher = FixedTeacher(fresh(config(layers=4, width=16), LABELS))
    student = fresh(config(layers=2, width=8, dropout=dropout), LABELS)
    losses: dict[str, tuple[float | Schedule, Loss]] = {
        name: (Schedule(start=1.0, end=0.3), catalog.REGISTRIES["loss"].get(name, Loss)()) for name in names
    }
    stack = LossStack(losses)
    stack.bind(student.spec, {"teacher": teacher.spec})
    swaps = InterchangeSettings(sites="multilayer", rate=0.5)
    interchange = Interchange(swaps, seed=3, student=student.spec, teacher=teacher.spec)
    return Distillation(student, stack, {"teacher": teacher}, interchange)


@pytest.mark.parametrize("names", STACKS, ids=[*NAMES, "all"])
def test_a_training_that_was_cut_twice_goes_on_bit_for_bit(tmp_path: Path, names: list[str]) -> None:
    """Once within an epoch, once at the end of one."""
    data: Any = feed(tmp_path / "cache", count=24)
    assert data.num_steps(0) == 3
    how = settings(save_every=1, log_every=1)
    whole, _ = run(tmp_path / "whole", made=program(names, dropout=0.1), data=data, how=how)
    for step in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            cut = program(names, dropout=0.1)
            run(tmp_path / "cut", made=cut, data=data, how=how, progress=StopAfter(step))
    again, result = run(tmp_path / "cut", made=program(names, dropout=0.1), data=data, how=how)
    assert result.resumed_from == 3 and digest(again) == digest(whole)


@pytest.mark.parametrize("names", STACKS, ids=[*NAMES, "all"])
def test_a_batch_in_parts_gives_the_same_gradient(tmp_path: Path, names: list[str]) -> None:
    """Also of an intervention, whose sources must then be in the same part, and of an odd last part."""
    gradients = []
    for micro in (1, 2, 3):
        made = program(names, dropout=0.0)
        parts = feed(tmp_path, micro=micro, examples=9, count=9).step(0, 0)
        assert len(parts) == micro
        totals = {name: sum(made.counts(part)[name] for part in parts) for name in names}
        for part in parts:
            total, _ = made(part, totals)
            total.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in made.parameters() if p.grad is not None]))
    for other in gradients[1:]:
        assert torch.allclose(
            gradients[0], other, rtol=1e-3, atol=1e-6 * float(gradients[0].abs().max()) + 1e-9
        )
