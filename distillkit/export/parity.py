"""Does the artifact compute what the model computes? Compared on real rows and on the shapes that break
exports.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distillkit.data.batching import Encoded, collate, sequential_batches
from distillkit.errors import ExportError
from distillkit.export.onnx import OUTPUT
from distillkit.model import Student
from distillkit.types import Batch, Want

_SHAPES = ((1, 1), (1, 5), (7, 128))
_ROWS_PER_BATCH_TOKENS = 2048
TIE = 2e-4
"""Logits closer than this are decided by rounding, whatever difference `tolerance` lets pass."""


@dataclass(frozen=True)
class Parity:
    """What was compared and how far apart it was.

    same_predictions: share of compared rows with the same answer; a row whose two best logits lie closer
    together than 2e-4 counts as the same, because rounding decides it.
    """

    tolerance: float
    rows: int
    shapes: dict[str, float]
    max_abs_difference: float
    mean_abs_difference: float
    same_predictions: float


Pairs = Iterable[tuple[str, NDArray[np.float32], NDArray[np.float32]]]
"""(where, what PyTorch answers, what the artifact answers), logits `[N, V]`."""


def compare(
    student: Student, session: Any, samples: Encoded, *, rows: int, tolerance: float, max_length: int
) -> Parity:
    """Run both on the same inputs; answers are compared, of tokens those that are asked for. Raises
    ExportError (10) past the tolerance or where a prediction differs.
    """
    student = student.eval().cpu()
    return compared(
        (
            (f"shape {name}", _torch_logits(student, batch), run(session, batch))
            for name, batch in batches(samples, rows, max_length)
        ),
        tolerance,
    )


def compared(pairs: Pairs, tolerance: float) -> Parity:
    """What `compare` finds, of answers from anywhere."""
    shapes: dict[str, float] = {}
    total, numbers, same, count = 0.0, 0, 0, 0
    for where, expected, got in pairs:
        if got.shape != expected.shape:
            raise ExportError(
                f"{where}: the artifact gives {list(got.shape)}, PyTorch {list(expected.shape)}",
                where="export",
            )
        difference = np.abs(expected - got)
        if not np.isfinite(difference).all() or difference.max() > tolerance:
            raise ExportError(
                f"{where}: the artifact differs from PyTorch by {difference.max():.3g}, more than "
                f"{tolerance:.3g}",
                where="export",
                hint="export.tolerance is the gate; look at the exporter's warnings first",
            )
        agree = _same_answer(expected, got)
        if not agree.all():
            raise ExportError(
                f"{where}: {int((~agree).sum())} of {len(agree)} predictions differ from PyTorch",
                where="export",
            )
        name = where.removeprefix("shape ")
        shapes[name] = max(shapes.get(name, 0.0), float(difference.max()))
        total, numbers = total + float(difference.sum(dtype=np.float64)), numbers + difference.size
        same, count = same + int(agree.sum()), count + len(agree)
    return Parity(tolerance, count, shapes, max(shapes.values()), total / numbers, same / count)


@dataclass(frozen=True)
class Apart:
    """How far two artifacts are apart: the largest difference of their logits, the same as a share of the
    first's largest logit, and the share of the same answers (as in `Parity`).
    """

    largest: float
    relative: float
    same: float


def apart(first: Any, second: Any, named: Iterable[tuple[str, Batch]]) -> Apart:
    """Compare the answers of two sessions to the same inputs. Raises ExportError (10) for other shapes."""
    largest, size, same, count = 0.0, 0.0, 0, 0
    for where, batch in named:
        expected, got = run(first, batch), run(second, batch)
        if got.shape != expected.shape:
            raise ExportError(f"{where}: it gives {list(got.shape)}, the plain one {list(expected.shape)}")
        largest = float(np.maximum(largest, np.abs(expected - got).max()))  # NaN stays
        size = max(size, float(np.abs(expected).max()))
        same, count = same + int(_same_answer(expected, got).sum()), count + len(got)
    return Apart(largest, largest / max(size, float(np.finfo(np.float32).tiny)), same / count)


def run(session: Any, batch: Batch) -> NDArray[np.float32]:
    """The artifact's logits of what the batch asks for, `[N, V]`."""
    names = [entry.name for entry in session.get_inputs()]
    logits: NDArray[np.float32] = session.run([OUTPUT], {name: batch.inputs[name].numpy() for name in names})[
        0
    ]
    if batch.scored is None:
        return logits
    if bool(batch.scored.all()):
        return logits.reshape(-1, logits.shape[-1])
    asked: NDArray[np.float32] = logits[batch.scored.numpy()]
    return asked


def _torch_logits(student: Student, batch: Batch) -> NDArray[np.float32]:
    with torch.inference_mode():
        logits: NDArray[np.float32] = student.outputs(batch, want=Want()).logits.numpy()
    return logits


def batches(samples: Encoded, rows: int, max_length: int) -> Iterator[tuple[str, Batch]]:
    """Real rows, and the shapes that break exports, by name."""
    chosen = np.linspace(0, len(samples) - 1, num=min(rows, len(samples))).astype(np.int64)
    for part in sequential_batches(samples.lengths[chosen], tokens=_ROWS_PER_BATCH_TOKENS):
        yield "real rows", collate(samples, chosen[part])
    for size, length in (*_SHAPES, (1, max_length)):
        length = min(length, max_length)
        yield f"({size}, {length})", exact_batch(samples, size, length)


def exact_batch(samples: Encoded, size: int, length: int) -> Batch:
    """`size` rows of exactly `length` real tokens, cut from the samples laid end to end: nothing is padded
    or zero, and every token is asked for where tokens are answered.
    """
    needed = size * length
    flat = np.resize(samples.tokens[: min(len(samples.tokens), needed)], needed).astype(np.int64)
    ids_BL = flat.reshape(size, length)
    ones = torch.ones(size, length, dtype=torch.int64)
    return Batch(
        inputs={name: torch.from_numpy(value) for name, value in samples.scoring.exact(ids_BL).items()},
        labels=None,
        mask=ones.bool(),
        ids=torch.arange(size),
        full=True,
        scored=ones.bool() if samples.scoring.by_token else None,
        allowed=None
        if samples.tasks is None
        else torch.from_numpy(samples.tasks.allowed(np.arange(size) % len(samples))),
    )


def _same_answer(expected: NDArray[Any], got: NDArray[Any]) -> NDArray[np.bool_]:
    if expected.shape[1] == 1:
        return np.ones(len(expected), dtype=bool)
    best = np.partition(expected, -2, axis=1)
    undecided = best[:, -1] - best[:, -2] < TIE
    same: NDArray[np.bool_] = (expected.argmax(axis=1) == got.argmax(axis=1)) | undecided
    return same
