"""An artifact as a model repository of NVIDIA Triton: config.pbtxt beside a folder `1` with the .onnx file.

Names, types and shapes are those of the file itself. Triton gets tokens: what makes them (tokenizer.json,
artifact.json) lies beside the configuration, for its clients.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distillkit import files
from distillkit.errors import ExportError
from distillkit.runtime.artifact import artifact_folder
from distillkit.runtime.check import check_files
from distillkit.runtime.description import FILE, MODEL, TOKENIZER, read_description
from distillkit.runtime.session import open_session
from distillkit.wording import shown

CONFIG, LABELS = "config.pbtxt", "labels.txt"
MOST_ROWS = 64
DELAY_MICROSECONDS = 2000
"""How long Triton waits for rows of other requests."""
_TYPES = {
    "tensor(int64)": "TYPE_INT64",
    "tensor(int32)": "TYPE_INT32",
    "tensor(float)": "TYPE_FP32",
    "tensor(float16)": "TYPE_FP16",
}


def write_repository(artifact: Path, target: Path, *, name: str) -> None:
    """Write the repository with one model called `name`; it appears whole and replaces an older one.

    Errors as of `Artifact.load`; ExportError (10) also for a tensor type that Triton is not told.
    """
    folder = artifact_folder(artifact)
    check_files(folder)
    labels = read_description(folder).tasks
    named = labels[0].labels if len(labels) == 1 else ()
    config = configuration(
        open_session(folder / MODEL, provider="cpu", threads=1), name, labelled=bool(named)
    )
    with files.appearing(target, lambda: {"serves": name}) as made:
        model = made / name
        (model / "1").mkdir(parents=True)
        shutil.copyfile(folder / MODEL, model / "1" / MODEL)
        for one in (TOKENIZER, FILE):
            shutil.copyfile(folder / one, model / one)
        (model / CONFIG).write_text(config, encoding="utf-8")
        if named:  # one a line, as Triton reads them
            lines = (" ".join(label.split()) for label in named)
            (model / LABELS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def configuration(session: Any, name: str, *, labelled: bool) -> str:
    """config.pbtxt of a model whose tensors have the batch first."""
    inputs = [_tensor(entry) for entry in session.get_inputs()]
    outputs = [_tensor(entry) for entry in session.get_outputs()]
    if labelled:
        outputs[0] += f'\n    label_filename: "{LABELS}"'
    return f"""\
name: {json.dumps(name)}
backend: "onnxruntime"
max_batch_size: {MOST_ROWS}
{_list("input", inputs)}
{_list("output", outputs)}
dynamic_batching {{
  max_queue_delay_microseconds: {DELAY_MICROSECONDS}
}}
"""


def _list(name: str, tensors: Sequence[str]) -> str:
    inside = ",\n".join(f"  {{\n    {tensor}\n  }}" for tensor in tensors)
    return f"{name} [\n{inside}\n]"


def _tensor(entry: Any) -> str:
    """A tensor without its first size, which is Triton's batch; what is not fixed is -1."""
    if entry.type not in _TYPES or not entry.shape:
        raise ExportError(f"{shown(entry.name)} is {entry.type} {entry.shape}", where="triton")
    sizes = [str(size) if isinstance(size, int) else "-1" for size in entry.shape[1:]]
    lines = [
        f"name: {json.dumps(entry.name)}",
        f"data_type: {_TYPES[entry.type]}",
        f"dims: [ {', '.join(sizes)} ]",
    ]
    return "\n    ".join(lines)
