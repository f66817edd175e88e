"""ELECTRA in the loop: resume, micro-batches, what is logged, and what is said of a collapse."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import WORDS, documents, tokenizer
from training import StopAfter, digest

from distillkit.model import TrainableTeacherSource
from distillkit.objectives.base import Objective
from distillkit.objectives.electra import ElectraObjective
from distillkit.objectives.feed import ObjectiveFeed
from distillkit.progress import Progress, Quiet
from distillkit.rundir import MetricsLog
from distillkit.settings import OptimizerSettings, PretrainSettings, RuntimeSettings
from distillkit.signals import Signals
from distillkit.teachers.electra import Electra
from distillkit.train import Hooks, Pretraining, TrainSettings, train

STEPS = 8
SHAPE: dict[str, Any] = {"layers": 1, "width": 16, "heads": 2, "vocab_size": 120, "positions": 32}
TIED = {"generator_width": 1.0, "tie": "none"}


def how(**changes: Any) -> TrainSettings:
    made = TrainSettings(
        stage="pretrain",
        steps=STEPS,
        optimizer=OptimizerSettings(lr=3e-3, eps=1e-3),
        save_every=2,
        seed=11,
        runtime=RuntimeSettings(device="cpu", precision="fp32", log_every=1),
        settings_digest="config",
    )
    return replace(made, **changes)


def feed(objective: Objective, folder: Path, *, micro: int, texts: list[list[str]]) -> ObjectiveFeed:
    objective.prepare(iter(texts), tokenizer(), folder, max_length=32)
    settings = PretrainSettings(corpus="c", batch=8, max_length=32, micro=micro)
    return ObjectiveFeed(objective, folder, settings, seed=3)


def run(
    folder: Path,
    *,
    micro: int = 1,
    settings: TrainSettings | None = None,
    progress: Progress | None = None,
    texts: list[list[str]] | None = None,
    source: TrainableTeacherSource | None = None,
    **teacher: Any,
) -> Pretraining:
    """An ELECTRA with these settings, or another source's model, after its training."""
    torch.manual_seed(0)
    model, objective = (source or Electra(**{**SHAPE, "generator_width": 0.5, **teacher})).pretraining(
        tokenizer()
    )
    program = Pretraining(model, objective)
    folder.mkdir(parents=True, exist_ok=True)
    with Signals() as signals:
        hooks = Hooks(MetricsLog(folder / "metrics.jsonl"), progress or Quiet(), signals)
        data = feed(objective, folder.parent / "corpus", micro=micro, texts=texts or documents())
        train(program, data, settings or how(), hooks, checkpoints=folder / "checkpoints")
    return program


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def told(folder: Path) -> list[dict[str, Any]]:
    """What is logged of every step, but for times."""
    return [{name: row.get(name) for name in ("step", "terms", "figures")} for row in records(folder)]


@pytest.mark.parametrize(
    ("teacher", "stop"),
    [
        ({}, 3),
        ({}, 6),
        ({"tie": "all", "generator_width": 1.0}, 4),
        ({"generator": "two_stage", **TIED}, 3),
        ({"generator": "two_stage", **TIED}, 5),  # goes on after step 4, where the weights are copied
        ({"generator": "two_stage", **TIED}, 7),
        ({"generator": "unigram", "generator_width": None}, 4),
        ({"generator": "mask", "objective": "replace_mlm", "generator_width": None}, 4),
        ({"generator": "adversarial"}, 4),
        ({"objective": "all_tokens_mlm"}, 4),
    ],
)
def test_a_resumed_pretraining_ends_with_the_same_weights_bit_for_bit(
    tmp_path: Path, teacher: dict[str, Any], stop: int
) -> None:
    whole = run(tmp_path / "whole", **teacher)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", progress=StopAfter(stop), **teacher)
    again = run(tmp_path / "cut", **teacher)
    assert digest(again) == digest(whole)
    assert told(tmp_path / "cut") == told(tmp_path / "whole")


@pytest.mark.parametrize(
    "teacher",
    [{}, {"objective": "electra_15"}, {"generator": "two_stage", **TIED}, {"generator": "adversarial"}],
)
def test_micro_batches_add_up_to_the_whole_batch(tmp_path: Path, teacher: dict[str, Any]) -> None:
    """Each term is weighed by its own count, and samples are keyed by their row."""
    made = [run(tmp_path / str(micro), micro=micro, dropout=0.0, **teacher) for micro in (1, 4)]
    for mine, theirs in zip(made[0].parameters(), made[1].parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=3e-5)
    for one, other in zip(told(tmp_path / "1"), told(tmp_path / "4"), strict=True):
        assert one["terms"] == pytest.approx(other["terms"], rel=1e-3, abs=1e-4)
        assert one["figures"].keys() == other["figures"].keys()
        for name in ("replaced_rate", "sampled_accuracy", "auc"):
            assert one["figures"].get(name) == pytest.approx(other["figures"].get(name), abs=1e-3), name


def test_what_is_logged_says_how_generator_and_discriminator_do(tmp_path: Path) -> None:
    run(tmp_path / "run")
    rows = records(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row in rows:
        assert set(row["terms"]) == {"generator", "discriminator"}
        assert row["total"] == pytest.approx(row["terms"]["generator"] + 50 * row["terms"]["discriminator"])
        assert {"generator_accuracy", "sampled_accuracy", "replaced_rate", "majority_loss"} <= set(
            row["figures"]
        )
        assert {"discriminator_accuracy", "precision", "recall", "auc"} & set(row["figures"])
        assert all(0 <= value <= 1 for value in row["figures"].values())


class Listening(Quiet):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def say(self, message: str) -> None:
        self.heard.append(message)


def test_a_collapsed_discriminator_is_logged_at_once_and_said_once_when_half_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warnings(self: ElectraObjective, terms: Any, figures: Any) -> tuple[str, ...]:
        return (f"collapsed at {terms['discriminator']:.1f} and {figures['majority_loss']:.1f}",)

    monkeypatch.setattr(ElectraObjective, "warnings", warnings)
    listening = Listening()
    run(tmp_path / "run", progress=listening)
    assert all(len(row["warnings"]) == 1 for row in records(tmp_path / "run"))
    (said,) = [message for message in listening.heard if "collapsed" in message]
    assert said.startswith(f"pretrain: step {STEPS // 2}: collapsed at 0.7 and 0.4")


def test_the_generator_learns_to_fill_and_the_discriminator_to_find(tmp_path: Path) -> None:
    """Six words, and a generator so hot that it samples any: with labels turned round, or the two models
    mixed up, neither would learn.
    """
    generator = np.random.default_rng(0)
    texts = [[" ".join(generator.choice(WORDS[:6], size=10)) for _ in range(3)] for _ in range(40)]
    settings = how(steps=100, save_every=1000, optimizer=OptimizerSettings(lr=5e-3, warmup=0.1))
    run(tmp_path / "run", settings=settings, texts=texts, width=32, temperature=20.0, dropout=0.0)
    rows = records(tmp_path / "run")
    first, last = rows[0], rows[-1]
    assert first["terms"]["generator"] == pytest.approx(math.log(120), rel=0.05)
    assert last["terms"]["generator"] < 2.5, "the entropy of six words is 1.8"
    assert last["figures"]["auc"] > 0.9 and "warnings" not in last
