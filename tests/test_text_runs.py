"""Whole runs whose answers are texts: from a pretrained folder to the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tinytexts
from tinyrun import CONFIG, measured_here, write_config

from distillkit import pipeline
from distillkit.bench import measure
from distillkit.report.facts import RunFacts, load_facts

TASK = {
    "kind": "text_to_text",
    "train": "train.jsonl",
    "validation": "validation.jsonl",
    "text": "source",
    "label": "target",
    "max_length": 12,
}
QUICK = {"batch": {"tokens": 600, "examples": 32}, "optimizer": {"lr": 1e-2}}
STUDENT = {"use": "seq2seq", "decoder_layers": 1, "dropout": 0.0, "initialise": {"from": "teacher"}}


def text_config(folder: Path, family: tinytexts.FamilyName = "t5", **changes: Any) -> Path:
    """A teacher that is fine-tuned here from random weights, and a student of half its decoder."""
    base = folder / "base"
    if not base.exists():
        tinytexts.save(base, tinytexts.model(family, width=32), family)
    distill = {
        **QUICK,
        "losses": {
            "gold": {"use": "gold", "weight": 0.5},
            "kd": {"use": "logits"},
            "read": {"use": "hidden_mse", "layer_map": "last", "weight": 0.1},
            "written": {"use": "hidden_cosine", "stack": "decoder", "weight": 0.1},
        },
        "epochs": 2,
    }
    sections = {
        "task": TASK,
        "teacher": {"use": "pretrained", "path": "base", "finetune": {**QUICK, "epochs": 8}},
        "student": STUDENT,
        "distill": distill,
        "output": str(folder / "runs"),
        "bench": {**CONFIG["bench"], "batch": [1], "new_tokens": 4},
    }
    return write_config(folder, **{**sections, **changes})


def run(path: Path, **how: Any) -> tuple[Path, RunFacts]:
    folder = pipeline.run(path, progress="quiet", **how).path
    return folder, load_facts(folder / "report" / "facts.json")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "run_child", measured_here)


def test_texts_are_learned_exported_and_reported(tmp_path: Path) -> None:
    tinytexts.write_rows(tmp_path)
    folder, facts = run(text_config(tmp_path))
    print({k: v.value for k, v in facts.teacher.metrics.items()})
    print({k: v.value for k, v in facts.student.metrics.items()})
    assert facts.task.metric == "accuracy" and facts.task.labels == ()
    assert facts.teacher.metrics["accuracy"].low > facts.task.baseline.metrics["accuracy"]
    assert {"exact_match", "bleu", "chrf", "rouge_l", "perplexity"} < facts.student.metrics.keys()
    assert facts.difference.keys() == facts.student.metrics.keys()
    assert facts.student.sizes["decoder_layers"] == 1 and facts.teacher.sizes["decoder_layers"] == 2
