"""Looks at an artifact before any loader opens it: its manifest, its file names, its .onnx files.

ONNX Runtime lets some of this pass: a hard link, a length past the end, an empty file. An .onnx file is read
here as what it is on disk, a protocol buffer, without onnx or protobuf: fields that hold no tensor are
stepped over, so that a large model takes milliseconds. Raises ExportError (10) for a broken artifact,
SecurityError (11) for files or external data that lie outside the folder or lie about their size.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from distillkit.early_exit import FOLDER as SEGMENTS
from distillkit.errors import ExportError, SecurityError
from distillkit.manifest import MANIFEST, read_manifest
from distillkit.wording import shown

_KNOWN_KEYS = {"location", "offset", "length", "checksum", "basepath"}
_AGAIN = "export it again"
_EXTERNAL = 1
"""TensorProto.DataLocation.EXTERNAL."""
_MOST_NESTED = 64
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
"""Wire types of protocol buffers (encoding, "Message Structure")."""

HOLDS: Mapping[str, Mapping[int, str]] = MappingProxyType(
    {
        "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
        "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
        "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
        "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
        "NodeProto": {5: "AttributeProto"},
        "AttributeProto": {
            5: "TensorProto",
            6: "GraphProto",
            10: "TensorProto",
            11: "GraphProto",
            22: "SparseTensorProto",
            23: "SparseTensorProto",
        },
        "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    }
)
"""onnx.proto: in which fields of a message tensors may be, and in what."""
_GRAPH, _OPSETS, _NODES = 7, 8, 1
_NAME, _ENTRIES, _LOCATED = 8, 13, 14


@dataclass(frozen=True)
class External:
    """A tensor whose values lie in another file: `facts` say where, as they stand in the model."""

    name: str
    facts: Mapping[str, str]


def check_files(folder: Path) -> frozenset[str]:
    """The names of the files that a folder's manifest lists, each a regular file inside the folder with the
    size and sha256 that stand there. Of artifacts in the folder (other forms, peers) only sizes are compared:
    they have manifests of their own.
    """
    if not folder.is_dir():
        raise ExportError("there is no such folder", where=str(folder), hint="name an exported artifact")
    files = read_manifest(folder).get("files", {})
    if not files:
        raise ExportError(
            f"no readable {MANIFEST}: not a whole artifact", where=str(folder), hint="copy the whole folder"
        )
    for name, facts in files.items():
        path = folder / _inside(folder, name)
        same = isinstance(facts, dict) and _status(path).st_size == facts.get("size")
        if same and _opened(name):
            same = _sha(path) == facts.get("sha256")
        if not same:
            raise ExportError(
                f"not what was exported: its size or sha256 is not that of {MANIFEST}",
                where=str(path),
                hint="copy the whole folder again",
            )
    return frozenset(files)


def check_model(path: Path) -> None:
    """Refuse a missing, empty, damaged or treacherous model file."""
    if not path.is_file() or path.is_symlink():
        raise ExportError("there is no such model file", where=str(path), hint=_AGAIN)
    content = memoryview(path.read_bytes())
    if not content:
        raise ExportError("the model file is empty (0 bytes)", where=str(path), hint=_AGAIN)
    try:
        found = list(external_tensors(content))
        whole = _computes(content)
    except ValueError as error:
        raise ExportError(f"not an ONNX model: {error}", where=str(path), hint=_AGAIN) from None
    if not whole:
        raise ExportError("the model holds no computation", where=str(path), hint=_AGAIN)
    for tensor in found:
        _check_external(path, tensor)


def external_tensors(model: memoryview) -> Iterator[External]:
    """Every tensor of a model, wherever it stands, that says its values lie elsewhere. Raises ValueError for
    what is no protocol buffer.
    """
    return _external(model, "ModelProto", 0)


def _external(message: memoryview, kind: str, depth: int) -> Iterator[External]:
    if depth > _MOST_NESTED:
        raise ValueError("it is nested too deeply")
    if kind == "TensorProto":
        yield from _external_tensor(message)
        return
    inner = HOLDS[kind]
    for number, value in _fields(message):
        if number in inner and isinstance(value, memoryview):
            yield from _external(value, inner[number], depth + 1)


def _external_tensor(message: memoryview) -> Iterator[External]:
    """The tensor where any of its fields says external: of a field that stands twice, loaders take the last,
    or join both.
    """
    name, elsewhere, facts = "", False, {}
    for number, value in _fields(message):
        if number == _NAME and isinstance(value, memoryview):
            name = bytes(value).decode("utf-8", "replace")
        elif number == _LOCATED and value == _EXTERNAL:
            elsewhere = True
        elif number == _ENTRIES and isinstance(value, memoryview):
            entry = {key: bytes(text).decode("utf-8", "replace") for key, text in _texts(value)}
            key = entry.get(1, "")
            if key in facts:
                raise SecurityError(f"external data of {shown(name)} names its {key} twice")
            facts[key] = entry.get(2, "")
    if elsewhere:
        yield External(name, facts)


def _texts(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    return ((number, value) for number, value in _fields(message) if isinstance(value, memoryview))


def _computes(model: memoryview) -> bool:
    """Whether there is an operator set and a node."""
    fields = list(_texts(model))
    graphs = [value for number, value in fields if number == _GRAPH]
    return any(number == _OPSETS for number, _ in fields) and any(
        number == _NODES for graph in graphs for number, _ in _texts(graph)
    )


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of each field: whole numbers, or bytes; fixed numbers are stepped over."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, place = _varint(message, place)
            yield number, value
            continue
        size = {_EIGHT: 8, _FOUR: 4}.get(wire)
        if wire == _BYTES:
            size, place = _varint(message, place)
        if size is None or number == 0 or place + size > len(message):
            raise ValueError("it is cut off or no protocol buffer")
        if wire == _BYTES:
            yield number, message[place : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """A number of at most ten bytes of seven bits, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            break
        byte = message[place]
        value, place = value | (byte & 0x7F) << shift, place + 1
        if byte < 0x80:
            return value, place
    raise ValueError("it is cut off or no protocol buffer")


def _check_external(path: Path, tensor: External) -> None:
    where, facts = f"{path}, tensor {shown(tensor.name)}", tensor.facts
    unknown = set(facts) - _KNOWN_KEYS
    if unknown:
        raise SecurityError(f"external data has an unknown key {shown(min(unknown))}", where=where)
    location = facts.get("location", "")
    if not _plain(location) or location.startswith("*"):
        raise SecurityError(
            f"external data at {shown(location)} is not a plain file name beside the model", where=where
        )
    try:
        status = os.lstat(path.parent / location)
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


def _inside(folder: Path, name: str) -> str:
    """The name, where it is a plain path inside the folder through no link."""
    parts = PurePosixPath(name).parts
    if not parts or not all(map(_plain, parts)) or "/".join(parts) != name:
        raise SecurityError(f"{shown(name)} is not a plain path in the folder", where=str(folder / MANIFEST))
    for depth in range(1, len(parts)):
        if (folder.joinpath(*parts[:depth])).is_symlink():
            raise SecurityError(f"{shown(name)} leads through a link", where=str(folder))
    return name


def _opened(name: str) -> bool:
    """Whether an artifact is opened from this file: one beside its manifest, or a part of its model."""
    return "/" not in name or name.startswith(f"{SEGMENTS}/")


def _plain(name: str) -> bool:
    """Whether a name is that of a file in the same folder, on every system."""
    return name == os.path.basename(name) and name not in ("", ".", "..") and not set(name) & set("\\\0:")


def _status(path: Path) -> os.stat_result:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        raise ExportError(
            "a file of the artifact is missing", where=str(path), hint="copy the whole folder"
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise SecurityError("a link or not a regular file", where=str(path))
    return status


def _sha(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
