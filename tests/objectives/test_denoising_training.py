"""T5 and BART in the loop: resume with every optimizer, micro-batches, the log, and that they learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from denoisers import LENGTH, prepare, source, tokenizer_of
from tiny import WORDS
from training import StopAfter, digest

from distillkit.objectives.feed import ObjectiveFeed
from distillkit.progress import Progress, Quiet
from distillkit.rundir import MetricsLog
from distillkit.settings import OptimizerSettings, PretrainSettings, RuntimeSettings
from distillkit.signals import Signals
from distillkit.train import Hooks, Pretraining, TrainSettings, train

STEPS = 6


def run(
    folder: Path,
    name: str,
    *,
    micro: int = 1,
    steps: int = STEPS,
    optimizer: OptimizerSettings | None = None,
    progress: Progress | None = None,
    texts: list[list[str]] | None = None,
    **teacher: Any,
) -> Pretraining:
    torch.manual_seed(0)
    model, objective = source(name, **teacher).pretraining(tokenizer_of(name))
    program = Pretraining(model, objective)
    folder.mkdir(parents=True, exist_ok=True)
    corpus = folder.parent / f"corpus-{name}"
    if texts is None:
        prepare(objective, name, corpus)
    else:
        objective.prepare(iter(texts), tokenizer_of(name), corpus, max_length=LENGTH)
    feed = ObjectiveFeed(
        objective, corpus, PretrainSettings(corpus="c", batch=8, max_length=LENGTH, micro=micro), seed=3
    )
    settings = TrainSettings(
        stage="pretrain",
        steps=steps,
        optimizer=optimizer or OptimizerSettings(lr=3e-3, eps=1e-3),
        save_every=2,
        seed=11,
        runtime=RuntimeSettings(device="cpu", precision="fp32", log_every=1),
        settings_digest="config",
    )
    with Signals() as signals:
        hooks = Hooks(MetricsLog(folder / "metrics.jsonl"), progress or Quiet(), signals)
        train(program, feed, settings, hooks, checkpoints=folder / "checkpoints")
    return program


def told(folder: Path) -> list[dict[str, Any]]:
    """What is logged of every step, but for times."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: row.get(name) for name in ("step", "terms", "figures", "lr")} for row in rows]


@pytest.mark.parametrize(
    ("name", "optimizer", "teacher"),
    [
        ("t5", {"use": "adafactor", "lr": 0.01, "schedule": "inverse_sqrt"}, {"dropout": 0.1}),
        ("t5", {"use": "scaled_adamw", "lr": 0.02, "schedule": "cosine"}, {"version": "v1.1"}),
        ("bart", {"use": "adamw", "lr": 1e-3}, {"dropout": 0.1, "calm": 0.5, "rotate": 0.5}),
    ],
)
def test_a_resumed_pretraining_ends_with_the_same_weights_bit_for_bit(
    tmp_path: Path, name: str, optimizer: dict[str, Any], teacher: dict[str, Any]
) -> None:
    how = OptimizerSettings.model_validate(optimizer)
    whole = run(tmp_path / "whole", name, optimizer=how, **teacher)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", name, optimizer=how, progress=StopAfter(3), **teacher)
    again = run(tmp_path / "cut", name, optimizer=how, **teacher)
    assert digest(again) == digest(whole)
    assert told(tmp_path / "cut") == told(tmp_path / "whole")


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_micro_batches_add_up_to_the_whole_batch(tmp_path: Path, name: str) -> None:
    """Targets differ in length, and are weighed by their tokens."""
    made = [run(tmp_path / str(micro), name, micro=micro, steps=3) for micro in (1, 4)]
    for mine, theirs in zip(made[0].parameters(), made[1].parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=3e-5)
    for one, other in zip(told(tmp_path / "1"), told(tmp_path / "4"), strict=True):
        assert one["terms"] == pytest.approx(other["terms"], rel=1e-3)
        assert one["figures"] == pytest.approx(other["figures"], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_text_that_repeats_itself_is_learnt(tmp_path: Path, name: str) -> None:
    """Every text is one word over and over: what is missing stands beside the gap. With the targets shifted
    wrongly, or the inputs of another text, nothing would be learnt."""
    generator = np.random.default_rng(0)
    texts = [[" ".join([word] * 12)] for word in generator.choice(WORDS[:8], size=120)]
    how = OptimizerSettings(lr=5e-3, warmup=0.1)
    settings: dict[str, Any] = {"width": 32, "permute": 0.0} if name == "bart" else {"width": 32}
    run(tmp_path / "run", name, steps=80, optimizer=how, texts=texts, **settings)
    rows = told(tmp_path / "run")
    first, last = rows[0], rows[-1]
    assert first["terms"]["denoising"] > 4
    assert last["terms"]["denoising"] < 0.5 * first["terms"]["denoising"]
    assert last["figures"]["token_accuracy"] > 0.5
