"""Every kind of student goes from a config to a report; nothing on the way takes it for a transformer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tinyrun import CONFIG, write_config, write_data

from distillkit import pipeline

STUDENTS: dict[str, dict[str, Any]] = {
    "bilstm": {"use": "bilstm", "width": 16, "initialise": "teacher", "vocabulary": 80},
    "cnn": {"use": "cnn", "width": 16, "layers": 2},
    "static": {"use": "static", "width": 16},
    "narrowed": {"use": "transformer", "layers": 1, "width": 16, "initialise": {"from": "teacher"}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run folder: the teacher is trained once, a changed student makes its own stages again."""
    folder = tmp_path_factory.mktemp("runs")
    write_data(folder)
    return folder


@pytest.mark.parametrize(
    "name", [name if name == "static" else pytest.param(name, marks=pytest.mark.slow) for name in STUDENTS]
)
def test_a_student_of_any_kind_reaches_the_report(name: str, folder: Path) -> None:
    student = STUDENTS[name]
    losses = {"kd": {"use": "logits"}, "states": {"use": "hidden_cosine", "layer_map": [[0, 0]]}}
    config = write_config(
        folder, output=str(folder / "runs"), student=student, distill={**CONFIG["distill"], "losses": losses}
    )
    run = pipeline.run(config, progress="quiet").path
    rows = json.loads((run / "bench" / "measurements.json").read_text())["measurements"]
    told = [row for row in rows if row["role"] == "student"]
    assert [row["status"] for row in told] == ["ok", "ok"]
    assert all(row["cells"] and row["size_bytes"] and row["parameters"] and row["flops"] for row in told)
    assert json.loads((run / "export" / "parity.json").read_text())["same_predictions"] == 1.0
    assert student["use"] in (run / "report" / "report.html").read_text()
