"""A student as one ONNX file with dynamic batch and length (torch's dynamo exporter)."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from distillkit.errors import ExportError
from distillkit.export.check import check_model
from distillkit.model import Student

OUTPUT = "logits"
_EXAMPLE = (2, 7)  # neither 0 nor 1, and unequal: the exporter takes 0 and 1 for constants


def write_onnx(student: Student, path: Path, *, opset: int, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Write `path`, weights inside; returns the names of the inputs, int64 `[batch, length]` each; output
    `logits`.

    Raises ExportError (10) where the exporter cannot follow the model.
    """
    module = copy.deepcopy(student).eval().cpu().exportable()
    names = tuple(module.input_names)  # type: ignore[arg-type]
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    example = {name: torch.ones(_EXAMPLE, dtype=torch.int64) for name in names}
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                kwargs=example,
                dynamo=True,
                input_names=list(names),
                output_names=[OUTPUT],
                dynamic_shapes={name: {0: batch, 1: length} for name in names},
                opset_version=opset,
                external_data=False,
                verbose=False,
            )
            assert program is not None
            program.model.metadata_props.update(metadata)
            program.save(str(path), external_data=False)
    except Exception as error:  # the exporter raises many types
        raise ExportError(
            f"the exporter cannot follow this model: {str(error).splitlines()[0]}",
            where=type(module).__name__,
            hint="export: PyTorch's message above names the operator",
        ) from error
    check_model(path)
    return names


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Fold the exporter's chatter: it prints progress and warns about its own internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
