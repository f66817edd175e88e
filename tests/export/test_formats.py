"""Other forms of an artifact: what they compute, and what holds them to the plain one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from tiny import LABELS, config, encoded, tokenizer

from distillkit import files
from distillkit.data.batching import Encoded
from distillkit.encoder import Encoder, fresh
from distillkit.export import forms
from distillkit.export.bundle import MODEL, export
from distillkit.export.formats import FORMATS, Allowed, Format, Source, fused, halved, overflowing
from distillkit.export.parity import apart, batches
from distillkit.runtime import Artifact
from distillkit.runtime.session import open_session
from distillkit.settings import ExportSettings


def wide(scale: float = 1.0) -> Encoder:
    """A student of wide blocks whose inner states are `scale` times as large, and whose answers are not:
    the maps around them make up for it, as ReLU lets them.
    """
    shape = config(width=64)
    shape.hidden_act = "relu"
    torch.manual_seed(2)
    student = fresh(shape, LABELS)
    with torch.no_grad():
        for layer in student.model.bert.encoder.layer:
            layer.intermediate.dense.weight *= scale
            layer.intermediate.dense.bias *= scale
            layer.output.dense.weight /= scale
        student.model.classifier.weight.mul_(20)
    return student.eval()


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    return encoded(tmp_path_factory.mktemp("cache"), 40)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, samples: Encoded) -> Path:
    folder = tmp_path_factory.mktemp("artifact")
    export(wide(), tokenizer(), LABELS, samples, folder, ExportSettings())
    return folder


def weights(path: Path) -> dict[str, np.ndarray]:
    return {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}


@pytest.fixture(scope="module")
def made(plain: Path, samples: Encoded) -> Path:
    found = forms.export_forms(
        plain, FORMATS, Source(plain / MODEL, samples), samples, ExportSettings(formats=list(FORMATS))
    )
    assert {name: one.status for name, one in found.items()} == dict.fromkeys(FORMATS, "ok")
    files.seal(plain, {})
    return plain / "formats"


def test_every_form_is_a_whole_artifact_that_answers_texts(made: Path, plain: Path) -> None:
    texts = ["good film", "a bad bad film", "good"]
    wanted = Artifact.load(plain).predict(texts)
    assert files.flaw(made / "int8", hashes=True) == ""
    for name in FORMATS:
        for mine, theirs in zip(Artifact.load(made / name).predict(texts), wanted, strict=True):
            assert vars(mine).keys() == vars(theirs).keys()
        told = json.loads((made / name / "parity.json").read_text())
        assert told["status"] == "ok" and told["same_predictions"] > 0.9


def test_fusion_changes_the_operators_and_not_the_answers(made: Path, plain: Path, samples: Encoded) -> None:
    told = json.loads((plain / "formats.json").read_text())["fused"]
    assert told["made"]["Attention"] == 2 and told["made"]["SkipLayerNormalization"] == 4
    assert told["made"]["nodes"] < len(onnx.load(plain / MODEL).graph.node)
    assert told["relative_difference"] < 1e-5


def test_int8_weights_are_the_nearest_of_255_steps_of_each_column(made: Path, plain: Path) -> None:
    """By hand: q = round(w / s), s = max |w| of the column / 127."""
    before, after = weights(plain / MODEL), weights(made / "int8" / MODEL)
    products = [name for name in after if name.endswith("_quantized") and after[name].ndim == 2]
    assert len(products) >= 13, "12 maps of two blocks and the embeddings"
    columns = 0
    for name in products:
        stem = name.removesuffix("_quantized")
        scale, zero = after[f"{stem}_scale"], after[f"{stem}_zero_point"]
        restored = (after[name].astype(np.float32) - zero.astype(np.float32)) * scale
        step = np.broadcast_to(scale, restored.shape)
        turned = (
            before[stem].T if stem.endswith(("pooler.dense.weight", "classifier.weight")) else before[stem]
        )
        assert (np.abs(restored - turned) <= 0.5001 * step).all(), stem
        columns += scale.size > 1
    assert columns >= 12


def test_smaller_forms_are_smaller(made: Path, plain: Path) -> None:
    whole = sum(array.nbytes for array in weights(plain / MODEL).values())
    share = {
        name: sum(array.nbytes for array in weights(made / name / MODEL).values()) / whole for name in FORMATS
    }
    assert share["fused"] > 0.95 and 0.45 < share["fp16"] < 0.6
    assert share["int8"] < 0.4 and share["int4"] < share["int8"] < share["int8-static"] < 1


def test_values_that_half_precision_cannot_hold_stay_in_fp32(tmp_path: Path, samples: Encoded) -> None:
    """Without that, the answers would be infinite or no number at all."""
    student = wide(scale=1e6)
    export(student, tokenizer(), LABELS, samples, tmp_path, ExportSettings(tolerance=1e-3))
    source = Source(tmp_path / MODEL, samples)
    kept = overflowing(fused(source.plain), samples)
    assert 0 < len(kept) < len(fused(source.plain).graph.node) / 2
    found = forms.export_forms(
        tmp_path, {"fp16": FORMATS["fp16"]}, source, samples, ExportSettings(formats=["fp16"])
    )["fp16"]
    assert found.status == "ok" and found.made == {"kept in fp32": len(kept)}
    onnx.save(halved(fused(source.plain), ()), tmp_path / "all.onnx")
    both = [open_session(path, provider="cpu", threads=1) for path in (source.plain, tmp_path / "all.onnx")]
    assert not apart(both[0], both[1], batches(samples, 40, 32)).relative < 5e-3


def test_what_half_precision_holds_is_all_in_half_precision(made: Path, plain: Path) -> None:
    told = json.loads((plain / "formats.json").read_text())["fp16"]
    assert told["made"] == {"kept in fp32": 0}
    graph = onnx.load(made / "fp16" / MODEL).graph
    kinds = {one.data_type for one in graph.initializer}
    assert TensorProto.FLOAT16 in kinds and TensorProto.FLOAT not in kinds
    assert {one.type.tensor_type.elem_type for one in graph.output} == {TensorProto.FLOAT}


class Changed(Format):
    """The plain model with other weights in its head."""

    def __init__(self, allowed: Allowed, factor: float) -> None:
        self.allowed, self.factor = allowed, factor

    def write(self, source: Source, path: Path) -> Mapping[str, int]:
        model = onnx.load(source.plain)
        for one in model.graph.initializer:
            if one.name.endswith("classifier.weight"):
                array = numpy_helper.to_array(one) * np.float32(self.factor)
                one.CopyFrom(numpy_helper.from_array(array, one.name))
        onnx.save(model, path)
        return {"changed": 1}


class Broken(Format):
    allowed = Allowed()

    def write(self, source: Source, path: Path) -> Mapping[str, int]:
        raise RuntimeError("no such operator\nand a long trace")


def test_a_form_that_answers_otherwise_or_fails_is_not_kept_and_the_others_are(
    tmp_path: Path, samples: Encoded
) -> None:
    export(wide(), tokenizer(), LABELS, samples, tmp_path, ExportSettings())
    found = forms.export_forms(
        tmp_path,
        {
            "louder": Changed(Allowed(relative=1e-3), 1.5),
            "turned": Changed(Allowed(same=0.999), -1.0),
            "nothing": Changed(Allowed(), float("nan")),
            "broken": Broken(),
            "same": Changed(Allowed(relative=1e-6, same=1.0), 1.0),
        },
        Source(tmp_path / MODEL, samples),
        samples,
        ExportSettings(),
    )
    assert found["louder"].status.startswith("its logits differ by 5.0e-01 of the largest, more than 1e-03")
    assert found["turned"].status.endswith("of its answers are the same, fewer than 99.9%")
    assert found["nothing"].status == "it answers with what is no number"
    assert found["broken"].status == "failed: no such operator"
    assert found["same"].status == "ok" and found["same"].made == {"changed": 1}
    assert [path.name for path in (tmp_path / "formats").iterdir()] == ["same"]
