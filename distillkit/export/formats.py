"""Other forms of an exported model, made from the plain fp32 one: fused for ONNX Runtime, in half precision,
in 8 and in 4 bits.

Each is an object that writes one file and says what it may change. A form whose answers change beyond that
is not kept; the others are.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto

from distillkit.data.batching import Encoded, collate, sequential_batches
from distillkit.runtime.session import open_session

_LARGEST = 65504.0
_HEADROOM = 2
"""Rows that were not looked at may go so much higher than those that were."""
_MINUS_INFINITY = 1e30
"""Larger values are a mask's; half precision has its own for them."""
_CALIBRATION_TOKENS = 2048
_DOMAIN = "com.microsoft"


@dataclass(frozen=True)
class Source:
    """What a form is made from: the plain fp32 model's file, and rows that show what values it computes
    with."""

    plain: Path
    rows: Encoded


@dataclass(frozen=True)
class Allowed:
    """What a form may change: the largest difference of the logits, as a share of their largest size, and
    the smallest share of the same answers; None: it is judged by its quality alone.
    """

    relative: float | None = None
    same: float | None = None


class Format(ABC):
    """One form of an artifact."""

    allowed: Allowed

    @abstractmethod
    def write(self, source: Source, path: Path) -> Mapping[str, int]:
        """Write the model to `path`; returns what was made of it, counted by name."""


class Fused(Format):
    """The same arithmetic in fewer and larger operators: attention, layer norm with its residual, GELU with
    its bias."""

    allowed = Allowed(relative=1e-4, same=1.0)

    def write(self, source: Source, path: Path) -> Mapping[str, int]:
        model = fused(source.plain)
        onnx.save(model, path)
        return fused_nodes(model)


class Fp16(Format):
    """Weights and arithmetic in half precision, of half the size; nodes whose values half precision cannot
    hold on the rows stay in fp32. Inputs and logits keep their types.
    """

    allowed = Allowed(relative=5e-3, same=0.999)

    def write(self, source: Source, path: Path) -> Mapping[str, int]:
        model = fused(source.plain)
        kept = overflowing(model, source.rows)
        onnx.save(halved(model, kept), path)
        return {"kept in fp32": len(kept)}


class Int8(Format):
    """Weights in 8 bits, a scale for each column, embeddings too; what they are multiplied with is quantised
    as it comes (dynamic), by tensor.
    """

    allowed = Allowed()

    def write(self, source: Source, path: Path) -> Mapping[str, int]:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with _told_nothing():
            quantize_dynamic(unshaped(source.plain), path, per_channel=True, weight_type=QuantType.QInt8)
        return _operators(onnx.load(path), "MatMulInteger", "Gather", "DynamicQuantizeLinear")


class Int8Static(Format):
    """Weights in 8 bits, and what they are multiplied with in 8 bits whose range is fixed by rows of the task
    (static, quantise-dequantise nodes).
    """

    allowed = Allowed()

    def write(self, source: Source, path: Path) -> Mapping[str, int]:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        with _told_nothing():
            quantize_static(
                unshaped(source.plain),
                path,
                Calibration(source),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["MatMul", "Gemm"],
                activation_type=QuantType.QUInt8,  # two signed sides are far slower on x86
                weight_type=QuantType.QInt8,
                per_channel=True,
            )
        return _operators(onnx.load(path), "QuantizeLinear", "DequantizeLinear")


class Int4(Format):
    """Weights of matrix products and embeddings in 4 bits, a scale for each block of 32: small, not fast."""

    allowed = Allowed()

    def write(self, source: Source, path: Path) -> Mapping[str, int]:
        from onnxruntime.quantization import QuantFormat
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        with _told_nothing():
            made = MatMulNBitsQuantizer(
                unshaped(source.plain),
                block_size=32,
                is_symmetric=True,
                accuracy_level=4,
                quant_format=QuantFormat.QOperator,
                op_types_to_quantize=("MatMul", "Gather"),
            )
            made.process()
        onnx.save(made.model.model, path)
        return _operators(made.model.model, "MatMulNBits", "GatherBlockQuantized")


FORMATS: Mapping[str, Format] = {
    "fused": Fused(),
    "fp16": Fp16(),
    "int8": Int8(),
    "int8-static": Int8Static(),
    "int4": Int4(),
}


class Calibration:
    """Rows of a task as ONNX Runtime's quantisation reads them, batch after batch."""

    def __init__(self, source: Source) -> None:
        names = [entry.name for entry in onnx.load(source.plain).graph.input]
        self._batches = feeds(source.rows, names)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._batches, None)


def feeds(rows: Encoded, names: list[str]) -> Iterator[dict[str, NDArray[Any]]]:
    """A session's inputs, longest rows first."""
    for part in sequential_batches(rows.lengths, tokens=_CALIBRATION_TOKENS):
        batch = collate(rows, part)
        yield {name: batch.inputs[name].numpy() for name in names}


def fused(path: Path) -> ModelProto:
    """The model in ONNX Runtime's own larger operators, where its graph has their pattern."""
    import onnx_ir
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    with _told_nothing():
        found = optimize_for_ort(onnx_ir.load(path), clear_metadata=True)
        model = found[0] if isinstance(found, tuple) else found
    made: ModelProto = onnx_ir.to_proto(model)
    return made


def fused_nodes(model: ModelProto) -> dict[str, int]:
    """How many of each of ONNX Runtime's own operators there are, and how many nodes of all kinds."""
    own = Counter(node.op_type for node in model.graph.node if node.domain == _DOMAIN)
    return {**dict(sorted(own.items())), "nodes": len(model.graph.node)}


def unshaped(path: Path) -> ModelProto:
    """The plain model without the shapes that its exporter noted of values in between, which the quantiser
    does not expect.
    """
    model = onnx.load(path)
    del model.graph.value_info[:]
    return model


def halved(model: ModelProto, kept: Collection[str]) -> ModelProto:
    """The model in half precision, but for inputs, outputs and the named nodes, which stay in fp32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with _told_nothing():
        made: ModelProto = convert_float_to_float16(
            model, keep_io_types=True, node_block_list=sorted(kept), max_finite_val=_LARGEST
        )
    nodes = {(node.op_type, *node.output): node for node in made.graph.node}  # some casts stand there twice
    kept_nodes = _without_round_trips(list(nodes.values()))
    del made.graph.node[:]
    made.graph.node.extend(kept_nodes)
    return made


def _without_round_trips(nodes: list[NodeProto]) -> list[NodeProto]:
    """What goes from one fp32 node to another goes there as it is, and not through fp16."""
    made_by = {name: node for node in nodes for name in node.output}
    straight = {}
    for node in nodes:
        before = made_by.get(node.input[0]) if _casts_to(node, TensorProto.FLOAT) else None
        if before is not None and _casts_to(before, TensorProto.FLOAT16):
            straight[node.output[0]] = before.input[0]
    for node in nodes:
        for place, name in enumerate(node.input):
            node.input[place] = straight.get(name, name)
    return [node for node in nodes if node.output[0] not in straight]


def _casts_to(node: NodeProto, kind: int) -> bool:
    return node.op_type == "Cast" and bool(node.attribute[0].i == kind)


def overflowing(model: ModelProto, rows: Encoded) -> set[str]:
    """Names of the nodes that read or give a value beyond what fp16 can hold, on these rows."""
    watched = ModelProto()
    watched.CopyFrom(model)
    shaped = onnx.shape_inference.infer_shapes(watched)
    floats = {
        info.name: info
        for info in shaped.graph.value_info
        if info.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    known = {entry.name for entry in watched.graph.output}
    watched.graph.output.extend(info for name, info in floats.items() if name not in known)
    too_large: set[str] = set()
    with tempfile.TemporaryDirectory() as scratch:
        onnx.save(watched, Path(scratch) / "watched.onnx")
        session = open_session(Path(scratch) / "watched.onnx", provider="cpu", threads=1)
        names = [entry.name for entry in session.get_outputs()]
        for feed in feeds(rows, [entry.name for entry in session.get_inputs()]):
            for name, value in zip(names, session.run(names, feed), strict=True):
                sizes = np.abs(value)
                if sizes.size and bool(((sizes > _LARGEST / _HEADROOM) & (sizes < _MINUS_INFINITY)).any()):
                    too_large.add(name)
    return {node.name for node in model.graph.node if too_large & {*node.input, *node.output}}


def _operators(model: ModelProto, *names: str) -> dict[str, int]:
    counted = Counter(node.op_type for node in model.graph.node)
    return {name: counted[name] for name in names}


@contextmanager
def _told_nothing() -> Iterator[None]:
    """Converters and quantisers speak to the root logger, and warn of what their own arithmetic does."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
