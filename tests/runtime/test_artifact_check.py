"""What an artifact may not be: files that are not those of the manifest, and tensors that lie elsewhere."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import pytest
from artifacts import make
from onnx import TensorProto, helper

from distillkit.errors import DistillkitError
from distillkit.files import seal
from distillkit.manifest import MANIFEST
from distillkit.runtime import Artifact
from distillkit.runtime.check import HOLDS, check_files, check_model, external_tensors
from distillkit.runtime.description import FILE, FORMAT, Tokens, Writing, read_description


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made") / "whole").folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


TOKENS = asdict(Tokens(8, 0, True, "left", False))
WRITING = asdict(Writing(1, 2, 3, 1.0, 0, 9))


def messages() -> Iterator[Any]:
    """Every message type of onnx.proto that a model may hold, once."""
    seen, new = set(), [onnx.ModelProto.DESCRIPTOR]
    while new:
        one = new.pop()
        if one.name not in seen:
            seen.add(one.name)
            yield one
            new += [field.message_type for field in one.fields if field.message_type is not None]


def test_the_table_of_messages_is_that_of_onnx() -> None:
    """A field that is left out could hide a tensor whose values lie elsewhere."""
    holding = {"TensorProto"}
    found = {one.name: one for one in messages()}
    while True:
        more = {
            name
            for name, one in found.items()
            if any(
                field.message_type is not None and field.message_type.name in holding for field in one.fields
            )
        }
        if more <= holding:
            break
        holding |= more
    expected = {
        name: {
            field.number: field.message_type.name
            for field in found[name].fields
            if field.message_type is not None and field.message_type.name in holding
        }
        for name in holding - {"TensorProto"}
    }
    assert {name: dict(fields) for name, fields in HOLDS.items()} == expected


def tensor(name: str, **facts: str) -> TensorProto:
    """A weight that lies in another file."""
    made = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in facts.items():
        made.external_data.add(key=key, value=value)
    return made


def graph(*initializers: TensorProto, nodes: Any = ()) -> Any:
    identity = helper.make_node("Identity", ["x"], ["y"])
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    return helper.make_graph([identity, *nodes], "g", [value], [result], list(initializers))


def hidden() -> dict[str, Any]:
    """Models that hold an external tensor called `w`, by where."""
    w = tensor("w", location="../w.bin")
    sparse = onnx.SparseTensorProto(values=w, dims=[2])
    branch = graph(w)
    attribute = onnx.AttributeProto(name="a", type=onnx.AttributeProto.TENSORS, tensors=[w])
    function = helper.make_function(
        "d",
        "f",
        ["x"],
        ["y"],
        [helper.make_node("Constant", [], ["y"], value=w)],
        [helper.make_opsetid("", 18)],
    )
    inside = helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=graph())
    listed = helper.make_node("Any", ["c"], ["z"])
    listed.attribute.append(attribute)
    model = helper.make_model
    sparse_graph = graph()
    sparse_graph.sparse_initializer.append(sparse)
    trained = model(graph())
    trained.training_info.add().algorithm.CopyFrom(branch)
    return {
        "initializer": model(graph(w)),
        "sparse": model(sparse_graph),
        "branch": model(graph(nodes=[inside])),
        "list": model(graph(nodes=[listed])),
        "function": model(graph(), functions=[function]),
        "training": trained,
    }


@pytest.mark.parametrize("place", hidden())
def test_a_tensor_that_lies_elsewhere_is_found_wherever_it_stands(place: str, tmp_path: Path) -> None:
    content = hidden()[place].SerializeToString()
    assert [(one.name, dict(one.facts)) for one in external_tensors(memoryview(content))] == [
        ("w", {"location": "../w.bin"})
    ]
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(DistillkitError) as caught:
        check_model(tmp_path / "model.onnx")
    assert caught.value.exit_code == 11 and "'w'" in str(caught.value)


def test_a_place_that_is_told_twice_is_refused(tmp_path: Path) -> None:
    """Loaders take the one or the other."""
    twice = tensor("w", location="w.bin")
    twice.external_data.add(key="location", value="../secret")
    (tmp_path / "w.bin").write_bytes(bytes(8))
    (tmp_path / "model.onnx").write_bytes(helper.make_model(graph(twice)).SerializeToString())
    with pytest.raises(DistillkitError, match="twice") as caught:
        check_model(tmp_path / "model.onnx")
    assert caught.value.exit_code == 11


def changed(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest["files"])
    (folder / MANIFEST).write_text(json.dumps(manifest))


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def linked(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder.parent / "tokenizer.json")
    (folder / "tokenizer.json").symlink_to(folder.parent / "tokenizer.json")


def outside(folder: Path, name: str) -> None:
    facts = {"size": 1, "sha256": "0"}
    changed(folder, lambda files: files.update({name: facts}))


@pytest.mark.parametrize(
    ("harm", "code", "words"),
    [
        (lambda folder: flipped(folder / "model.onnx"), 10, "model.onnx"),
        (lambda folder: flipped(folder / "tokenizer.json"), 10, "tokenizer.json"),
        (lambda folder: (folder / "model.onnx").write_bytes(b""), 10, "model.onnx"),
        (lambda folder: (folder / "tokenizer.json").unlink(), 10, "missing"),
        (lambda folder: (folder / MANIFEST).unlink(), 10, MANIFEST),
        (lambda folder: (folder / MANIFEST).write_text("{"), 10, MANIFEST),
        (lambda folder: changed(folder, lambda files: files.pop("model.onnx")), 10, "model.onnx"),
        (lambda folder: changed(folder, lambda files: files.pop(FILE)), 10, FILE),
        (lambda folder: changed(folder, lambda files: files.update({FILE: 3})), 10, FILE),
        (linked, 11, "link"),
        (lambda folder: outside(folder, "../other"), 11, "../other"),
        (lambda folder: outside(folder, "/etc/passwd"), 11, "/etc/passwd"),
        (lambda folder: outside(folder, "a//b"), 11, "a//b"),
        (lambda folder: outside(folder, "a/./b"), 11, "a/./b"),
        (lambda folder: outside(folder, "a\\b"), 11, "plain path"),
        (lambda folder: outside(folder, ""), 11, "plain path"),
    ],
)
def test_a_folder_that_is_not_what_was_exported_is_refused(
    folder: Path, harm: Callable[[Path], Any], code: int, words: str
) -> None:
    Artifact.load(folder)
    harm(folder)
    with pytest.raises(DistillkitError) as caught:
        Artifact.load(folder)
    assert caught.value.exit_code == code and words in str(caught.value), str(caught.value)


def test_a_name_that_leads_through_a_link_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret").write_bytes(b"x")
    os.symlink(tmp_path / "elsewhere", folder / "inner")
    outside(folder, "inner/secret")
    with pytest.raises(DistillkitError, match="link") as caught:
        Artifact.load(folder)
    assert caught.value.exit_code == 11


def test_an_artifact_inside_an_artifact_is_checked_when_it_is_opened(folder: Path) -> None:
    """Other forms and peers lie in folders with manifests of their own; a part of the model does not."""
    for name in ("formats/int8", "segments"):
        (folder / name).mkdir(parents=True)
        (folder / name / "0.onnx").write_bytes(b"whole")
    seal(folder, {})
    (folder / "formats" / "int8" / "0.onnx").write_bytes(b"other")
    check_files(folder)
    (folder / "segments" / "0.onnx").write_bytes(b"other")
    with pytest.raises(DistillkitError, match="sha256"):
        check_files(folder)


def test_files_that_were_added_do_no_harm(folder: Path) -> None:
    """A licence or a note beside a model is no damage."""
    (folder / "NOTES.md").write_text("ours")
    Artifact.load(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": FORMAT + 1}, f"format {FORMAT + 1}"),
        ({"tokens": None}, "tokens is None"),
        ({"tokens": {**TOKENS, "max_length": True}}, "max_length is True"),
        ({"tokens": {**TOKENS, "cut": "up"}}, "'up'"),
        ({"writing": {**WRITING, "length_penalty": "1"}}, "writing is"),
        ({"writing": {**WRITING, "beams": 0}}, "writing is"),
        ({"writing": {**WRITING, "end": -1}}, "end is -1"),
        ({"tasks": []}, "no task"),
        ({"tasks": [3]}, "a task is 3"),
        ({"inputs": "input_ids"}, "inputs"),
    ],
)
def test_a_description_of_another_form_is_told(folder: Path, change: dict[str, Any], words: str) -> None:
    content = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps({**content, **change}))
    with pytest.raises(DistillkitError) as caught:
        read_description(folder)
    assert caught.value.exit_code == 10 and words in str(caught.value), str(caught.value)


def test_a_run_without_an_artifact_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: x")
    with pytest.raises(DistillkitError, match="no artifact yet") as caught:
        Artifact.load(tmp_path)
    assert caught.value.exit_code == 2
