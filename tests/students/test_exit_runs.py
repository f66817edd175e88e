"""A whole run of a student with exits: from the config to the report, and as a student of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinyrun import CONFIG, write_config, write_data

from distillkit import pipeline
from distillkit.early_exit import simulate
from distillkit.errors import ConfigError, ErrorGroup
from distillkit.runtime.early_exit import EarlyExit

STUDENT: dict[str, Any] = {
    "use": "exits",
    "at": [1, 2],
    "of": {"use": "transformer", "layers": 3, "width": 16, "heads": 2, "dropout": 0.0},
}
AT_EXITS = {"losses": {"gold": {"use": "gold"}, "kd": {"use": "logits", "weight": 0.5}}}
LOSSES = {"gold": {"use": "gold"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exits")
    write_data(folder)
    return folder


def config(folder: Path, name: str, **changes: Any) -> Path:
    distill = {**CONFIG["distill"], "losses": LOSSES, "exits": AT_EXITS, **changes.pop("distill", {})}
    return write_config(
        folder, name=name, output=str(folder / "runs"), student=STUDENT, distill=distill, **changes
    )


def test_a_run_from_config_to_report(folder: Path) -> None:
    """What the report says of each rule is what the artifact does."""
    run = pipeline.run(
        config(folder, "whole", distill={"epochs": 10, "optimizer": {"lr": 1e-2}}), progress="quiet"
    ).path
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    terms = [line["terms"] for line in lines if line["stage"].startswith("student") and "terms" in line]
    assert terms and all(set(one) == {"gold", "gold at exits", "kd at exits"} for one in terms)
    facts = json.loads((run / "report" / "facts.json").read_text())["exits"]
    assert facts["depths"] == [1, 2, 3] and facts["status"] == "ok"
    never = facts["rules"][0]
    assert never["rule"] == "never" and never["depth"] == 3 and never["shares"] == [0, 0, 1]
    assert [rule["chosen"] for rule in facts["rules"]].count(True) == 1
    student = json.loads((run / "report" / "facts.json").read_text())["student"]
    assert never["metrics"]["accuracy"]["value"] == student["metrics"]["accuracy"]["value"]
    for rule in facts["rules"]:
        assert abs(sum(rule["shares"]) - 1) < 1e-9 and set(rule["ms"]) == set(rule["speedup"]) == {"1", "2"}
        assert rule["depth"] == pytest.approx(np.dot(rule["shares"], [1, 2, 3]))
        assert all(value > 0 for value in (*rule["ms"].values(), *rule["speedup"].values()))
    opened = EarlyExit.open(run / "export")
    assert opened.rule.words == next(rule["rule"] for rule in facts["rules"] if rule["chosen"])
    assert simulate(np.zeros((3, 1, 2)), opened.rule).shape == (1,)
    page = (run / "report" / "report.html").read_text()
    assert "Leaving early" in page and "(chosen)" in page and "gold at exits" in page
    rows = json.loads((run / "bench" / "measurements.json").read_text())["measurements"]
    assert {row["status"] for row in rows} == {"ok"}


def test_a_model_without_any_other_teacher(folder: Path) -> None:
    run = pipeline.run(
        config(folder, "alone", teacher={"use": "itself", "vocab_size": 200}),
        progress="quiet",
        until="student",
    ).path
    assert (run / "student" / "exits" / "model.safetensors").is_file()


def test_a_place_of_an_exits_loss_is_named(folder: Path) -> None:
    """In the recipe, whatever is wrong there."""
    bad = {"losses": {"gold": {"use": "gold"}, "far": {"use": "causal_kl"}}}
    with pytest.raises((ConfigError, ErrorGroup), match=r"distill\.exits\.losses\.far"):
        pipeline.run(config(folder, "far", distill={"exits": bad}), progress="quiet")
    with pytest.raises((ConfigError, ErrorGroup), match=r"student has no exits"):
        plain = write_config(
            folder,
            name="plain",
            output=str(folder / "runs"),
            distill={**CONFIG["distill"], "exits": AT_EXITS},
        )
        pipeline.run(plain, progress="quiet")
    with pytest.raises((ConfigError, ErrorGroup), match="no exit after block 3 of 3"):
        deep = {**STUDENT, "at": [1, 3]}
        pipeline.run(
            write_config(folder, name="deep", output=str(folder / "runs"), student=deep), progress="quiet"
        )
