"""A student as one ONNX file with dynamic batch and length (torch's dynamo exporter), or as one for each of
its parts.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from distillkit.errors import ExportError
from distillkit.model import Student
from distillkit.runtime.check import check_model
from distillkit.runtime.description import OUTPUT as OUTPUT
from distillkit.segments import HANDED, STATES

_EXAMPLE = (2, 7)  # neither 0 nor 1, and unequal: the exporter takes 0 and 1 for constants


def write_onnx(student: Student, path: Path, *, opset: int, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Write `path`, weights inside; returns the names of the inputs, int64 `[batch, length]` each; output
    `logits`.

    Raises ExportError (10) where the exporter cannot follow the model.
    """
    module = copy.deepcopy(student).eval().cpu().exportable()
    names = tuple(module.input_names)  # type: ignore[arg-type]
    example = {name: _tokens() for name in names}
    _write(module, path, example, [OUTPUT], opset=opset, metadata=metadata)
    return names


def write_segments(student: Student, folder: Path, *, opset: int, metadata: Mapping[str, str]) -> list[Path]:
    """Write `0.onnx`, `1.onnx`, ... for the parts of a student that may answer early, each with output
    `logits` and, but for the last, `handed` `[batch, length, width]`, which the next one takes as `states`.
    Errors as in `write_onnx`.
    """
    parts = copy.deepcopy(student).eval().cpu().segments()
    paths = [folder / f"{number}.onnx" for number in range(len(parts))]
    states = torch.ones(*_EXAMPLE, student.spec.hidden_dim)
    for number, (part, path) in enumerate(zip(parts, paths, strict=True), start=1):
        names: tuple[str, ...] = tuple(part.input_names)  # type: ignore[arg-type]
        # a tensor of each input's own: what is one object here is taken for one input
        example = {name: states if name == STATES else _tokens() for name in names}
        outputs = [OUTPUT, HANDED] if number < len(parts) else [OUTPUT]
        longest = student.spec.max_length
        _write(part, path, example, outputs, opset=opset, metadata=metadata, longest=longest)
    return paths


def _tokens() -> torch.Tensor:
    return torch.ones(_EXAMPLE, dtype=torch.int64)


def _write(
    module: torch.nn.Module,
    path: Path,
    example: Mapping[str, torch.Tensor],
    outputs: Sequence[str],
    *,
    opset: int,
    metadata: Mapping[str, str],
    longest: int | None = None,
) -> None:
    """longest: most tokens that a module with hooks takes. It is then traced here by running it, for which
    the lengths that it takes must be known: torch's exporter falls back to reading the code, which drops
    hooks.
    """
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=longest)
    shapes = {name: {0: batch, 1: length} for name in example}
    exported(
        module,
        path,
        example,
        shapes,
        inputs=list(example),
        outputs=outputs,
        opset=opset,
        metadata=metadata,
        run=longest is not None,
    )


def exported(
    module: torch.nn.Module,
    path: Path,
    example: Mapping[str, Any],
    shapes: Mapping[str, Any],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    opset: int,
    metadata: Mapping[str, str],
    run: bool = False,
) -> None:
    """Write a module as `path`, weights inside; `shapes` name the dimensions of the example that may differ.
    run: trace it by running it, for which each dimension needs its largest size. Raises ExportError (10)
    where the exporter cannot follow.
    """
    try:
        with _quiet():
            model: Any = module
            how: dict[str, Any] = {"kwargs": dict(example), "dynamic_shapes": dict(shapes)}
            if run:
                model = torch.export.export(
                    module, (), dict(example), dynamic_shapes=dict(shapes), strict=False
                )
                how = {}
            program = torch.onnx.export(
                model,
                **how,
                dynamo=True,
                input_names=list(inputs),
                output_names=list(outputs),
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
