"""The worked example of the docs runs as it stands there."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest


def test_a_model_of_ones_own_teaches_through_its_named_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(__file__).parent.parent / "docs" / "custom_teacher.py"
    spec = importlib.util.spec_from_file_location("custom_teacher", place)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.chdir(tmp_path)
    run = example.main(tmp_path / "example", rows=600, epochs=1)
    facts = json.loads((run / "report" / "facts.json").read_text())
    assert set(facts["losses"]) == {"gold", "kd", "states"}
    rows = {row["name"]: row["status"] for row in facts["bench"]}
    assert rows["student-onnxruntime"] == rows["teacher-pytorch"] == "ok"
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("states" in record.get("terms", {}) for record in last)
