"""Word-level distillation of texts: what the terms count, and that parts of a batch are the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tinytexts
import torch
from tinytexts import FamilyName

from distillkit.data.batching import TaskFeed, collate
from distillkit.interchange import Interchange
from distillkit.losses.base import TEACHER, LossStack
from distillkit.losses.causal_kl import CausalKl
from distillkit.losses.gold import Gold
from distillkit.losses.hard_labels import HardLabels
from distillkit.losses.hidden_cosine import HiddenCosine
from distillkit.losses.hidden_mse import HiddenMse
from distillkit.losses.logits import Logits
from distillkit.model import FixedTeacher
from distillkit.settings import BatchSettings, InterchangeSettings
from distillkit.train import Distillation, take_step


def program(family: FamilyName) -> Distillation:
    """Every kind of term that a text can be learned by."""
    teacher = FixedTeacher(tinytexts.model(family, seed=1))
    student = tinytexts.model(family, seed=2, decoder=1)
    torch.manual_seed(3)
    stack = LossStack(
        {
            "gold": (1.0, Gold(label_smoothing=0.1)),
            "kd": (1.0, Logits(temperature=2.0)),
            "hard": (1.0, HardLabels()),
            "read": (1.0, HiddenMse(layer_map="uniform")),
            "written": (1.0, HiddenCosine(stack="decoder")),
            "swapped": (1.0, CausalKl()),
        }
    )
    stack.bind(student.spec, {TEACHER: teacher.spec})
    swaps = Interchange(InterchangeSettings(), seed=1, student=student.spec, teacher=teacher.spec)
    return Distillation(student, stack, {TEACHER: teacher}, swaps)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_terms_on_scores_are_means_over_every_target_token(family: FamilyName, tmp_path: Path) -> None:
    """Against transformers' logits, token by token; published code loses the first token of each T5 target
    and counts one of its padding."""
    made = program(family)
    batch = collate(tinytexts.encoded(tmp_path, 7, family=family), np.arange(7))
    student, teacher = made.student, tinytexts.model(family, seed=1)
    terms = made.stack.raw(take_step(student, made.stack, made._teachers, batch, made._interchange))
    inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        mine, theirs = (one.model(**inputs, labels=batch.labels).logits for one in (student, teacher))
    kd, gold, hard, count = 0.0, 0.0, 0.0, 0
    for row in range(7):
        for place, token in enumerate(batch.inputs["target_ids"][row].tolist()):
            if not batch.scored[row, place]:
                continue
            left, right = mine[row, place], theirs[row, place]
            p = torch.softmax(right / 2, dim=-1)
            kd += 4 * float((p * (p.log() - torch.log_softmax(left / 2, dim=-1))).sum())
            logs = torch.log_softmax(left, dim=-1)
            gold -= float(0.9 * logs[token] + 0.1 * logs.mean())
            hard -= float(logs[right.argmax()])
            count += 1
    assert count == sum(len(tinytexts.tokenizer(family)(text).input_ids) for _, text in tinytexts.pairs(7))
    for name, total in (("kd", kd), ("gold", gold), ("hard", hard)):
        assert float(terms[name].detach()) == pytest.approx(total / count, rel=1e-4)
        assert made.counts(batch)[name] == count


def test_a_batch_in_parts_gives_the_same_gradient(tmp_path: Path) -> None:
    encoded = tinytexts.encoded(tmp_path, 9)
    gradients = []
    for micro in (1, 2, 3):
        made = program("t5")
        settings = BatchSettings(tokens=400, examples=9, micro=micro)
        parts = TaskFeed(encoded, settings, seed=5).step(0, 0)
        assert len(parts) == micro
        totals = {name: sum(made.counts(part)[name] for part in parts) for name in made.weights}
        for part in parts:
            total, _ = made(part, totals)
            total.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in made.parameters() if p.grad is not None]))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_every_term_acts_and_reaches_every_weight_of_the_student(family: FamilyName, tmp_path: Path) -> None:
    made = program(family)
    batch = collate(tinytexts.encoded(tmp_path, 6, family=family), np.arange(6))
    made.check(batch)
    total, _ = made(batch, made.counts(batch))
    total.backward()
    without = [name for name, weight in made.student.named_parameters() if weight.grad is None]
    assert not without
    assert all(weight.grad is None for weight in made._teachers[TEACHER].model.parameters())
    assert made.flops_per_token(batch) > 0
