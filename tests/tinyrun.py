"""A whole run on tiny data: a few seconds from tokenizer to report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tiny import LABELS, WORDS

from distillkit.bench import child
from distillkit.bench.process import answered

CONFIG: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "output": "runs",
    "task": {
        "kind": "classification",
        "train": "train.jsonl",
        "validation": "validation.jsonl",
        "max_length": 24,
    },
    "teacher": {
        "use": "bert",
        "layers": 2,
        "width": 32,
        "heads": 2,
        "vocab_size": 200,
        "positions": 32,
        "dropout": 0.0,
        "pretrain": {"corpus": "corpus.txt", "steps": 4, "max_length": 24, "batch": 8, "save_every": 2},
        "finetune": {"epochs": 4, "batch": {"tokens": 400, "examples": 16}, "optimizer": {"lr": 3e-3}},
    },
    "student": {"use": "transformer", "layers": 1, "width": 16, "heads": 2, "dropout": 0.0},
    "distill": {
        "losses": {
            "gold": {"use": "gold", "weight": 0.3},
            "kd": {"use": "logits", "weight": 0.7, "temperature": 2.0},
            "states": {"use": "hidden_cosine"},
        },
        "epochs": 1,
        "batch": {"tokens": 400, "examples": 16},
        "optimizer": {"lr": 3e-3},
        "save_every": 4,
    },
    "bench": {
        "batch": [1, 2],
        "length": [8],
        "warmup": 1,
        "rounds": 1,
        "iterations": 2,
        "seconds": 0.0,
        "threads": 1,
        "provider": "cpu",
    },
    "runtime": {"device": "cpu", "precision": "fp32", "log_every": 2},
}


class Here:
    """In the place of `measure.Child`: measures in this process, for starting one takes most of a run."""

    def __init__(self, command: Sequence[str], *, threads: int) -> None:
        self._answer = child.Measuring().answer

    def ask(self, question: Mapping[str, Any], **_: Any) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(
            json.dumps(answered(self._answer, json.loads(json.dumps(question))))
        )
        assert "error" not in said, said
        return said

    def close(self) -> None:
        pass


def write_data(folder: Path, *, rows: int = 160) -> None:
    """Files of the task (a text that says "good" is good), and a corpus of the same words."""
    generator = np.random.default_rng(1)
    for split, count in (("train", rows), ("validation", 80)):
        lines = []
        for index in range(count):
            label = LABELS.names[int(generator.integers(2))]
            words = [*generator.choice(WORDS, size=int(generator.integers(2, 9))).tolist(), label]
            lines.append(json.dumps({"text": f"{' '.join(words)} {split}{index}", "label": label}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    documents = [
        "\n".join(" ".join(generator.choice(WORDS, size=6).tolist()).capitalize() + "." for _ in range(8))
        for _ in range(12)
    ]
    (folder / "corpus.txt").write_text("\n\n".join(documents) + "\n")


def write_config(folder: Path, **changes: Any) -> Path:
    """config.yaml beside its data; `changes` replace whole sections. JSON is YAML."""
    path = folder / "config.yaml"
    path.write_text(json.dumps({**CONFIG, **changes}, indent=1))
    return path
