"""Looks at an .onnx file before any loader opens it.

onnx and ONNX Runtime let some of this pass: a hard link, a length past the end, an empty file. Raises
ExportError (10) for a broken artifact, SecurityError (11) for external data that points outside the folder or
lies about its size.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distillkit.errors import ExportError, SecurityError

_KNOWN_KEYS = {"location", "offset", "length", "checksum", "basepath"}


def check_model(path: Path) -> None:
    """Refuse a missing, empty, damaged or treacherous model file."""
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file() or path.is_symlink():
        raise ExportError("there is no such model file", where=str(path), hint="export it again")
    if path.stat().st_size == 0:
        raise ExportError("the model file is empty (0 bytes)", where=str(path), hint="export it again")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError, RuntimeError) as error:
        raise ExportError(
            f"not an ONNX model: {str(error).splitlines()[0]}", where=str(path), hint="export it again"
        ) from None
    if not model.graph.node or not model.opset_import:
        raise ExportError("the model holds no computation", where=str(path), hint="export it again")
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check_external(path, tensor)


def _tensors(model: Any) -> Iterator[Any]:
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _check_external(path: Path, tensor: Any) -> None:
    where = f"{path}, tensor {tensor.name!r}"
    facts = {entry.key: entry.value for entry in tensor.external_data}
    unknown = set(facts) - _KNOWN_KEYS
    if unknown:
        raise SecurityError(f"external data has an unknown key {sorted(unknown)[0]!r}", where=where)
    location = facts.get("location", "")
    if (
        not location
        or location != os.path.basename(location)
        or location in (".", "..")
        or location.startswith("*")
    ):
        raise SecurityError(
            f"external data at {location!r} is not a plain file name beside the model", where=where
        )
    data = path.parent / location
    try:
        status = os.lstat(data)
    except FileNotFoundError:
        raise ExportError(
            f"its data file {location} is missing", where=where, hint="copy the whole folder"
        ) from None
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise SecurityError(f"{location} is a link or not a regular file", where=where)
    try:
        offset, length = int(facts.get("offset", "0")), int(facts.get("length", "0"))
    except ValueError:
        raise SecurityError(f"offset or length of {location} is not a number", where=where) from None
    if offset < 0 or length < 0 or offset + length > status.st_size:
        raise SecurityError(
            f"{location} has {status.st_size} bytes, the model asks for {offset} + {length}", where=where
        )
