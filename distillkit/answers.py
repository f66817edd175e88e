"""From a model's forward to one array of its answers, in the order of the rows, and what of them is kept.

Of an answer over a vocabulary three numbers are kept, never its logits: rows times vocabulary would fill any
memory or disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from distillkit.data.batching import Encoded, collate, sequential_batches
from distillkit.errors import DataError, DivergedError, ModelError
from distillkit.types import Batch, Outputs, restricted

Keep = Callable[[Tensor, Tensor | None], Tensor]
"""Logits `[N, V]` and the right answers `[N]` (None: unknown) -> what is kept of them `[N, K]`, fp32."""
BEST, BEST_LOG, GOLD_LOG = range(3)
"""Columns kept of an answer over a vocabulary: the most likely entry, its log-probability, and that of the
right one (nats)."""


def logits(logits_NV: Tensor, gold_N: Tensor | None) -> Tensor:
    """Everything."""
    return logits_NV.float()


def pieces(logits_NV: Tensor, gold_N: Tensor | None) -> Tensor:
    """Three numbers of each answer. Ids below 2^24 are whole in fp32. Raises ModelError without right
    answers, or where one is outside of the logits.
    """
    if gold_N is None or bool((gold_N >= logits_NV.shape[-1]).any()):
        raise ModelError(
            f"logits over {logits_NV.shape[-1]} entries do not fit the vocabulary of the rows", where="model"
        )
    log_NV = functional.log_softmax(logits_NV.float(), dim=-1)
    best_log, best = log_NV.max(dim=-1)
    return torch.stack([best.float(), best_log, log_NV.gather(1, gold_N[:, None]).squeeze(1)], dim=1)


KEPT: Mapping[str, Keep] = {
    "classification": logits,
    "regression": logits,
    "token_classification": logits,
    "mlm": pieces,
    "text_to_text": pieces,
}
"""What is kept of the answers to each kind of task."""


def collect(
    forward: Callable[[Batch], Tensor], encoded: Encoded, keep: Keep, *, tokens: int
) -> NDArray[np.float32]:
    """What is kept of every answer, `[N, K]`: row after row, in a row from the left.

    Rows run longest first in batches of at most `tokens` tokens, padding included, without gradients; of
    several tasks, each answer is restricted to the classes of its own. Raises
    ModelError where a forward gives another number of answers than was asked for, DivergedError where one is
    not finite, DataError where none is asked for.
    """
    counts = encoded.num_answers
    ends = np.cumsum(counts)
    kept: NDArray[np.float32] | None = None
    with torch.inference_mode():
        for rows in sequential_batches(encoded.lengths, tokens=tokens):
            batch = collate(encoded, rows)
            said = forward(batch)
            if said.ndim != 2 or said.shape[0] != batch.num_answers:
                raise ModelError(
                    f"the model gave logits of shape {list(said.shape)} for {batch.num_answers} answers"
                )
            said = restricted(Outputs(said), batch.to(said.device)).logits
            targets = None if batch.targets is None else batch.targets.to(said.device)
            part = keep(said, targets).cpu().numpy()
            if not np.isfinite(part).all():
                bad = np.repeat(encoded.ids[rows], counts[rows])[~np.isfinite(part).all(axis=1)]
                raise DivergedError(f"the model gives NaN or infinity (example ids {bad.tolist()[:8]})")
            if kept is None:
                kept = np.empty((int(ends[-1]), part.shape[1]), dtype=np.float32)
            kept[_places(ends[rows], counts[rows])] = part
    if kept is None or not len(kept):
        raise DataError("there are no rows to predict")
    return kept


def _places(ends: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the answers of some rows stand among all answers, row after row."""
    starts = np.repeat(ends - np.cumsum(counts), counts)
    places: NDArray[np.int64] = starts + np.arange(int(counts.sum()))
    return places
