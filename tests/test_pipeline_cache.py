"""A run whose phases keep the teacher's answers."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import test_distributed
import torch
from safetensors.torch import load_file
from tinyrun import CONFIG, write_config, write_data

from distillkit import pipeline
from distillkit.errors import ConfigError, StoppedError
from distillkit.settings import CacheSettings
from distillkit.stages import learning
from distillkit.teachers import cached

DISTILL = {**CONFIG["distill"], "epochs": 2}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(here: Path, distill: Any, *overrides: str, until: str = "student") -> Path:
    config = write_config(here, distill=distill)
    return pipeline.run(config, overrides=overrides, progress="quiet", until=until).path


def made(run: Path, stage: str) -> int:
    return (run / stage / "manifest.json").stat().st_mtime_ns


def test_phases_learn_from_kept_answers_what_they_learn_from_a_teacher_that_answers(here: Path) -> None:
    """Phases on the task and on a corpus, a stop while answers are recorded, and what reruns the stage."""
    corpus = {**DISTILL, "losses": {"kd": {"use": "logits"}}, "corpus": "corpus.txt", "epochs": 1}
    live = load_file(run(here, [corpus, DISTILL], "name=live") / "student" / "model.safetensors")
    lossless = {"cache": {"dtype": "fp32"}}
    both = [{**corpus, **lossless}, {**DISTILL, **lossless}]
    real = cached.record

    def stopped(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StoppedError, match="recorded") as caught:
        patch.setattr(learning, "record", stopped)
        run(here, both, "name=kept")
    assert caught.value.exit_code == 75
    folder = run(here, both, "name=kept")
    kept = load_file(folder / "student" / "model.safetensors")
    for name, tensor in live.items():
        assert torch.allclose(tensor, kept[name], atol=2e-4), name
    assert len(list((folder / "cache").glob("teacher-*"))) == 2
    before = made(folder, "student")
    run(here, [corpus, DISTILL], "name=kept")
    assert made(folder, "student") == before, "what is kept as it is changes no result"
    run(here, [{**corpus, "cache": {"dtype": "bf16"}}, DISTILL], "name=kept")
    assert made(folder, "student") == before, "nor does the dtype of states that are not kept"
    run(here, [corpus, {**DISTILL, "cache": {}}], "name=kept")
    assert made(folder, "student") > before, "fp16 rounds the states"


@pytest.mark.parametrize(
    ("losses", "cache", "word"),
    [
        ({"gold": {"use": "gold"}}, {}, "asks the teacher"),
        ({"kd": {"use": "logits"}}, {"logits": 2}, "2 logits of 2"),
        ({"states": {"use": "hidden_cosine"}, "kd": {"use": "logits"}}, {"logits": 5}, "5 logits of 2"),
        (
            {"a": {"use": "logits"}, "b": {"use": "logits", "temperature": 5.0}},
            {"logits": 1},
            r"\[2.0, 5.0\]",
        ),
    ],
)
def test_a_cache_that_cannot_serve_its_losses_is_refused_before_anything_is_trained(
    here: Path, losses: Any, cache: Any, word: str
) -> None:
    with pytest.raises(ConfigError, match=word):
        run(here, {**DISTILL, "losses": losses, "cache": cache})
    assert not (here / "runs" / "tiny" / "pretrain").exists()


def test_the_defaults_of_a_cache_are_written_into_the_resolved_config(here: Path) -> None:
    folder = run(here, {**DISTILL, "cache": {}}, until="tokenizer")
    told = (folder / "config.yaml").read_text()
    for name, value in CacheSettings().model_dump().items():
        assert f"{name}: {json.dumps(value).strip(chr(34))}" in told


@pytest.mark.slow
def test_one_of_two_processes_records_and_both_read(tmp_path: Path) -> None:
    recipe = test_distributed.config(tmp_path, dropout=0.1)
    one, two = (
        test_distributed.run(recipe, name, processes, "distill.cache={}")
        for name, processes in (("one", 1), ("two", 2))
    )
    mine, theirs = (load_file(str(folder / "student" / "model.safetensors")) for folder in (one, two))
    assert all(torch.allclose(tensor, theirs[name], atol=2e-4) for name, tensor in mine.items())
    recorded = [[folder.name for folder in run.glob("cache/teacher-*")] for run in (one, two)]
    assert len(recorded[0]) == 1 and recorded[0] == recorded[1]
