"""Facts survive their file, and damaged files are refused in words."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from report_sample import classification, minimal, regression

from distillkit.errors import IntegrityError
from distillkit.metrics import Measured
from distillkit.report.facts import RunFacts, Setting, flat_settings, load_bench, load_facts, save_facts


@pytest.mark.parametrize("facts", [classification(), regression(), minimal()], ids=lambda facts: facts.name)
def test_facts_come_back_from_their_file_unchanged(facts: RunFacts, tmp_path: Path) -> None:
    save_facts(facts, tmp_path / "facts.json")
    assert load_facts(tmp_path / "facts.json") == facts
    (tmp_path / "facts.json").read_bytes().decode("ascii")


def test_a_value_that_is_not_a_number_survives(tmp_path: Path) -> None:
    facts = replace(minimal(), difference={"accuracy": Measured(float("inf"), float("nan"), 0.0, 3)})
    save_facts(facts, tmp_path / "facts.json")
    back = load_facts(tmp_path / "facts.json").difference["accuracy"]
    assert back.value == float("inf")
    assert back.low != back.low


@pytest.mark.parametrize("text", ["\ud800", "\x00\u202e", "漢字"])
def test_text_of_any_kind_survives(text: str, tmp_path: Path) -> None:
    save_facts(replace(minimal(), name=text), tmp_path / "facts.json")
    assert load_facts(tmp_path / "facts.json").name == text


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"name": 3}', "\x00"])
def test_a_damaged_file_is_an_integrity_error_that_names_it(content: str, tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_text(content)
    with pytest.raises(IntegrityError, match=r"facts\.json: not the facts of a run"):
        load_facts(tmp_path / "facts.json")


def test_facts_of_another_version_are_refused(tmp_path: Path) -> None:
    save_facts(minimal(), tmp_path / "facts.json")
    content = json.loads((tmp_path / "facts.json").read_text())
    (tmp_path / "facts.json").write_text(json.dumps({**content, "later_field": 1}))
    with pytest.raises(IntegrityError, match="later_field"):
        load_facts(tmp_path / "facts.json")


def test_measurements_are_read_by_field_and_damage_is_told(tmp_path: Path) -> None:
    rows, path = classification().bench, tmp_path / "measurements.json"
    assert load_bench(path) == ()
    content = [{**asdict(row), "iterations": 50} for row in rows]
    path.write_text(json.dumps({"hardware": {}, "measurements": content}))
    assert load_bench(path) == rows
    for damaged in ("", "[]", "{}", '{"measurements": [{"name": "a"}]}'):
        path.write_text(damaged)
        with pytest.raises(IntegrityError, match="not the measurements of a run"):
            load_bench(path)


def test_settings_are_the_leaves_with_the_nearest_origin() -> None:
    config = {
        "seed": 3,
        "distill": [{"epochs": 2, "losses": {"kd": {"weight": 0.5}}}],
        "bench": {"batch": [1, 8]},
        "track": [],
        "task": {"test": None},
    }
    origins = {"seed": "config.yaml:2:7", "distill[0].losses.kd": "command line", "bench": "a.yaml:9:1"}
    assert flat_settings(config, origins) == (
        Setting("seed", "3", "config.yaml:2:7"),
        Setting("distill[0].epochs", "2", "default"),
        Setting("distill[0].losses.kd.weight", "0.5", "command line"),
        Setting("bench.batch", "[1, 8]", "a.yaml:9:1"),
        Setting("track", "[]", "default"),
        Setting("task.test", "null", "default"),
    )


def test_reading_facts_does_not_import_torch() -> None:
    """`distillkit compare` must answer at once."""
    script = "import sys, distillkit.report.compare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
