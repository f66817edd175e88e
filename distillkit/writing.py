"""Texts that a model writes for rows, in the order of the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from distillkit.data.batching import Encoded, collate, sequential_batches
from distillkit.data.scoring import SOURCE
from distillkit.model import Writer
from distillkit.settings import GenerationSettings
from distillkit.types import TARGET_IDS, Batch

BATCH_TOKENS = 8192
"""Tokens of sources and texts, padding included, of all beams of a batch."""


def write_tokens(
    writer: Writer,
    encoded: Encoded,
    how: GenerationSettings,
    *,
    device: torch.device,
    check: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """The tokens of the best text of each row, without an end token; see `write_beams`."""
    return [texts[0] for texts in write_beams(writer, encoded, how, device=device, check=check)]


def write_beams(
    writer: Writer,
    encoded: Encoded,
    how: GenerationSettings,
    *,
    device: torch.device,
    check: Callable[[], None] = lambda: None,
) -> list[list[list[int]]]:
    """The tokens of every finished text of each row, the best first. Rows run longest source first; `check`
    is called before each batch, and may raise to stop.
    """
    written: list[list[list[int]]] = [[] for _ in range(len(encoded))]
    for rows in source_batches(encoded, how):
        check()
        texts = writer.beams(sources_of(collate(encoded, rows)).to(device), how)
        for row, beam in zip(rows.tolist(), texts, strict=True):
            written[row] = beam
    return written


def source_batches(encoded: Encoded, how: GenerationSettings) -> Iterator[NDArray[np.int64]]:
    """Every row once, in batches of sources of nearly one length."""
    assert how.max_length is not None
    lengths = (source_lengths(encoded) + how.max_length) * how.beams
    yield from sequential_batches(lengths, tokens=BATCH_TOKENS)


def source_lengths(encoded: Encoded) -> NDArray[np.int64]:
    """`[n]` tokens of each source."""
    sums = np.concatenate([[0], np.cumsum(np.asarray(encoded.types) == SOURCE)])
    lengths: NDArray[np.int64] = np.diff(sums[encoded.offsets])
    return lengths


def sources_of(batch: Batch) -> Batch:
    """The batch without its targets: what is right, a model that writes must not know."""
    inputs = {name: value for name, value in batch.inputs.items() if name != TARGET_IDS}
    return replace(batch, inputs=inputs, labels=None, scored=None)


def spelled(tokens: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Tokens as texts, without special ones."""
    texts: list[str] = tokenizer.batch_decode(
        tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return texts
