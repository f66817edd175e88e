"""One folder that can be deployed: model.onnx, tokenizer files, config.json, labels.json, parity.json."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from distillkit.data.batching import Encoded
from distillkit.export.onnx import write_onnx
from distillkit.export.parity import Parity, compare
from distillkit.export.session import open_session
from distillkit.model import Student
from distillkit.settings import ExportSettings, Labels

MODEL = "model.onnx"


def export(
    student: Student,
    tokenizer: PreTrainedTokenizerBase,
    labels: Labels,
    samples: Encoded,
    folder: Path,
    settings: ExportSettings,
) -> Parity:
    """Write the artifact into `folder` and prove that it computes the same. Raises ExportError (10) where it
    does not.
    """
    max_length = student.spec.max_length
    inputs = write_onnx(student, folder / MODEL, opset=settings.opset, metadata=facts(student, labels))
    tokenizer.save_pretrained(folder)
    names: dict[str, Any] = {"kind": labels.kind, "id2label": dict(enumerate(labels.names))}
    if labels.tasks:  # an example is answered by the columns of its own task
        names["tasks"] = {task: [one.start, one.stop] for task, one in labels.columns.items()}
    tokens = {"pad_token_id": tokenizer.pad_token_id, "mask_token": tokenizer.mask_token}
    config = {**asdict(student.spec), **names, **tokens, "inputs": list(inputs), "opset": settings.opset}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "labels.json").write_text(json.dumps(names, ensure_ascii=False, indent=1), encoding="utf-8")
    session = open_session(folder / MODEL, provider="cpu", threads=1)
    parity = compare(
        student, session, samples, rows=settings.rows, tolerance=settings.tolerance, max_length=max_length
    )
    (folder / "parity.json").write_text(json.dumps(asdict(parity), indent=1))
    return parity


def facts(student: Student, labels: Labels) -> dict[str, str]:
    """What an .onnx file says of itself."""
    return {
        "kind": labels.kind,
        "labels": json.dumps(labels.names, ensure_ascii=False),
        "max_length": str(student.spec.max_length),
        "distillkit": metadata.version("distillkit") if _installed() else "source",
    }


def _installed() -> bool:
    return any(entry.metadata["Name"] == "distillkit" for entry in metadata.distributions(name="distillkit"))
