"""One folder that can be deployed: model.onnx, tokenizer files, what they are (artifact.json, config.json,
labels.json), and parity.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from distillkit.data.batching import Encoded
from distillkit.data.tasks import text_columns
from distillkit.export.onnx import write_onnx
from distillkit.export.parity import Parity, compare
from distillkit.model import Student
from distillkit.runtime.description import MODEL as MODEL
from distillkit.runtime.description import Description, TaskRows, Tokens, write_description
from distillkit.runtime.session import open_session
from distillkit.settings import ExportSettings, Labels, SeveralTasks, TaskSettings


@dataclass(frozen=True)
class Columns:
    """Of one task, as `TaskSettings` says them: its text column or columns, and the characters after which
    texts are cut.
    """

    text: tuple[str, ...] = ("text",)
    max_chars: int = 20_000


@dataclass(frozen=True)
class Reading:
    """How rows were read and judged in training, which the artifact must say: most tokens of a row, the
    metric, and the columns of each task by its name ('' where there is one).
    """

    max_length: int = sys.maxsize
    metric: str = ""
    tasks: Mapping[str, Columns] = field(default_factory=lambda: {"": Columns()})

    @classmethod
    def of(cls, task: TaskSettings | SeveralTasks, metric: str) -> Reading:
        """As a recipe says it."""
        tasks = {"": task} if isinstance(task, TaskSettings) else task.tasks
        columns = {name: Columns(text_columns(one), one.max_chars) for name, one in tasks.items()}
        return cls(task.max_length, metric, columns)


AS_LONG_AS_IT_TAKES = Reading()
"""One text column `text`, rows of as many tokens as the model takes."""


def export(
    student: Student,
    tokenizer: PreTrainedTokenizerBase,
    labels: Labels,
    samples: Encoded,
    folder: Path,
    settings: ExportSettings,
    *,
    reading: Reading = AS_LONG_AS_IT_TAKES,
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
    own = {**asdict(student.spec), **names, **tokens, "inputs": list(inputs), "opset": settings.opset}
    config = {**own, **student.config, **tokens}  # so that optimum opens the folder too
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "labels.json").write_text(json.dumps(names, ensure_ascii=False, indent=1), encoding="utf-8")
    write_description(describe(student, tokenizer, labels, inputs, reading), folder)
    session = open_session(folder / MODEL, provider="cpu", threads=1)
    parity = compare(
        student, session, samples, rows=settings.rows, tolerance=settings.tolerance, max_length=max_length
    )
    (folder / "parity.json").write_text(json.dumps(asdict(parity), indent=1))
    return parity


def describe(
    student: Student,
    tokenizer: PreTrainedTokenizerBase,
    labels: Labels,
    inputs: Sequence[str],
    reading: Reading,
) -> Description:
    """What the runtime must know to read rows and answers as they were read in training."""
    assert tokenizer.pad_token_id is not None
    tokens = Tokens(
        max_length=min(reading.max_length, student.spec.max_length),
        pad=int(tokenizer.pad_token_id),
        segments="token_type_ids" in tokenizer.model_input_names,
        cut=tokenizer.truncation_side,
        split_special=tokenizer.split_special_tokens,
    )
    tasks = tuple(
        TaskRows(
            name,
            columns.text,
            columns.max_chars,
            labels.of(name).names if labels.tasks else labels.names,
            labels.columns[name].start if labels.tasks else 0,
        )
        for name, columns in reading.tasks.items()
    )
    return Description(labels.kind, reading.metric, tuple(inputs), tokens, tasks)


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
