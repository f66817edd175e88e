"""The model repository of Triton: parsed as protocol buffers' text, and true of the file beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from artifacts import make
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from distillkit.errors import DistillkitError
from distillkit.export.triton import write_repository

FIELD = descriptor_pb2.FieldDescriptorProto
PLAIN = {"string": FIELD.TYPE_STRING, "int": FIELD.TYPE_INT64}
MESSAGES: dict[str, dict[str, tuple[str, bool]]] = {
    "Tensor": {
        "name": ("string", False),
        "data_type": ("DataType", False),
        "dims": ("int", True),
        "label_filename": ("string", False),
    },
    "Batching": {"max_queue_delay_microseconds": ("int", False)},
    "ModelConfig": {
        "name": ("string", False),
        "backend": ("string", False),
        "max_batch_size": ("int", False),
        "input": ("Tensor", True),
        "output": ("Tensor", True),
        "dynamic_batching": ("Batching", False),
    },
}
"""What of Triton's model_config.proto is used: name of a field -> its type, and whether it is repeated."""
TYPES = ("TYPE_INVALID", "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32")


def parsed(text: str) -> Any:
    """config.pbtxt by the parser of protocol buffers."""
    file = descriptor_pb2.FileDescriptorProto(name="config.proto", package="t")
    kinds = file.enum_type.add(name="DataType")
    for number, name in enumerate(TYPES):
        kinds.value.add(name=name, number=number)
    for message, fields in MESSAGES.items():
        made = file.message_type.add(name=message)
        for number, (name, (kind, repeated)) in enumerate(fields.items(), start=1):
            label = FIELD.LABEL_REPEATED if repeated else FIELD.LABEL_OPTIONAL
            field = made.field.add(name=name, number=number, label=label)
            if kind in PLAIN:
                field.type = PLAIN[kind]
            else:
                field.type = FIELD.TYPE_ENUM if kind == "DataType" else FIELD.TYPE_MESSAGE
                field.type_name = f".t.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    config = message_factory.GetMessageClass(pool.FindMessageTypeByName("t.ModelConfig"))()
    text_format.Parse(text, config)
    return config


@pytest.mark.parametrize(
    ("kind", "labels", "dims"),
    [
        ("classification", ("bad", "very\ngood"), [2]),
        ("token_classification", ("O", "B-x"), [-1, 2]),
        ("regression", (), [1]),
    ],
)
def test_the_configuration_is_true_of_the_model(
    kind: str, labels: tuple[str, ...], dims: list[int], tmp_path: Path
) -> None:
    artifact = make(tmp_path / "artifact", kind, labels=labels).folder
    write_repository(artifact, tmp_path / "triton", name="mine")
    folder = tmp_path / "triton" / "mine"
    config = parsed((folder / "config.pbtxt").read_text())
    session = onnxruntime.InferenceSession(
        str(folder / "1" / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    assert (config.name, config.backend, config.max_batch_size) == ("mine", "onnxruntime", 64)
    assert config.dynamic_batching.max_queue_delay_microseconds > 0
    assert [one.name for one in config.input] == [entry.name for entry in session.get_inputs()]
    assert [list(one.dims) for one in config.input] == [[-1]] * 3
    assert {TYPES[one.data_type] for one in config.input} == {"TYPE_INT64"}
    (output,) = config.output
    assert (output.name, list(output.dims), TYPES[output.data_type]) == ("logits", dims, "TYPE_FP32")
    if labels:
        assert len((folder / output.label_filename).read_text().splitlines()) == len(labels)
    assert {path.name for path in folder.iterdir()} >= {
        "1",
        "config.pbtxt",
        "tokenizer.json",
        "artifact.json",
    }
    assert [path.name for path in (tmp_path / "triton").iterdir() if path.is_dir()] == ["mine"]


def test_an_artifact_that_is_damaged_is_not_passed_on(tmp_path: Path) -> None:
    artifact = make(tmp_path / "artifact").folder
    (artifact / "model.onnx").write_bytes(b"")
    with pytest.raises(DistillkitError):
        write_repository(artifact, tmp_path / "triton", name="mine")
    assert not (tmp_path / "triton").exists()
