"""What a reader is shown of a row in which two models differ: its texts, its words, or the surroundings of a
masked token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from distillkit.data.batching import Encoded
from distillkit.data.layouts import Words
from distillkit.types import IGNORED

Shown = Callable[[int], tuple[str, ...]]
"""Position of an answer (of a row where its words are answered together) -> the texts beside it."""
ASKED = "[?]"
_AROUND = 16


def shown(
    kind: str, samples: Encoded, gold: NDArray[Any], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Shown:
    """What stands beside the answers to one kind of task."""
    make: Mapping[str, Callable[[], Shown]] = {
        "token_classification": lambda: _words(samples.texts, tokenizer, max_length),
        "mlm": lambda: _surroundings(samples, gold, tokenizer),
        "text_to_text": lambda: _surroundings(samples, gold, tokenizer),
    }
    return make.get(kind, lambda: samples.texts.__getitem__)()


def _words(texts: Sequence[tuple[str, ...]], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Shown:
    return lambda row: Words.answered(texts[row], tokenizer, max_length)


def _surroundings(samples: Encoded, gold: NDArray[Any], tokenizer: PreTrainedTokenizerBase) -> Shown:
    """Sixteen tokens to both sides as they lie in a row: other masks are masked, a target stands behind its
    source.
    """
    places = np.flatnonzero(samples.labels != IGNORED)

    def around(answer: int) -> tuple[str, ...]:
        place, row = int(places[answer]), int(gold[answer, 1])
        start, end = int(samples.offsets[row]), int(samples.offsets[row + 1])
        low, high = max(start, place - _AROUND), min(end, place + 1 + _AROUND)
        left, right = (
            tokenizer.decode(samples.tokens[part].tolist())
            for part in (slice(low, place), slice(place + 1, high))
        )
        return (f"{'… ' if low > start else ''}{left} {ASKED} {right}{' …' if high < end else ''}",)

    return around
