"""What a model answers in a batch of rows: the examples, their labelled tokens, or tokens masked for the
occasion.

A scoring turns padded token ids into what a model sees, what it answers and what would be right. Shapes: B
rows, L positions, T tokens of all rows laid end to end, n rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distillkit.data.masking import choose, corrupt, keyed_uniform
from distillkit.types import IGNORED

MEASURED_EPOCH = 1 << 32
"""Keys the masks that models are measured on: no training gets there."""


@dataclass(frozen=True)
class Padded:
    """Rows laid side by side: `rows_B` their positions, `example_B` their ids, `flat` the places of their
    real tokens among all tokens, row by row.
    """

    rows_B: NDArray[np.int64]
    example_B: NDArray[np.int64]
    ids_BL: NDArray[np.int64]
    real_BL: NDArray[np.bool_]
    flat: NDArray[np.int64]
    epoch: int


@dataclass(frozen=True)
class Asked:
    """Tokens as the model sees them, labels `[B]` or `[B, L]` (None: unlabelled), and the tokens it answers
    (None: it answers whole examples).
    """

    ids_BL: NDArray[np.int64]
    labels: NDArray[Any] | None
    scored_BL: NDArray[np.bool_] | None


class Scoring(ABC):
    """How rows are answered. `labels` is what `Encoded.labels` holds."""

    by_token = True

    @abstractmethod
    def asked(self, padded: Padded, labels: NDArray[Any] | None) -> Asked:
        """What is asked of these rows."""

    @abstractmethod
    def gold(self, tokens: NDArray[np.int32], labels: NDArray[Any] | None) -> NDArray[Any] | None:
        """`[n]` the label of each row, or `[T]` of each token (IGNORED where it is never asked); None:
        unlabelled."""


class WholeExamples(Scoring):
    """One answer for each row; labels `[n]`."""

    by_token = False

    def asked(self, padded: Padded, labels: NDArray[Any] | None) -> Asked:
        return Asked(padded.ids_BL, None if labels is None else np.asarray(labels[padded.rows_B]), None)

    def gold(self, tokens: NDArray[np.int32], labels: NDArray[Any] | None) -> NDArray[Any] | None:
        return labels


class LabelledTokens(Scoring):
    """One answer for each token whose label is not IGNORED; labels `[T]`."""

    def asked(self, padded: Padded, labels: NDArray[Any] | None) -> Asked:
        assert labels is not None
        labels_BL = np.full(padded.ids_BL.shape, IGNORED, dtype=np.int64)
        labels_BL[padded.real_BL] = labels[padded.flat]
        return Asked(padded.ids_BL, labels_BL, labels_BL != IGNORED)

    def gold(self, tokens: NDArray[np.int32], labels: NDArray[Any] | None) -> NDArray[Any] | None:
        return labels


class UnlabelledTokens(LabelledTokens):
    """The same tokens are answered, but what would be right is not known: labels tell only which they are."""

    def asked(self, padded: Padded, labels: NDArray[Any] | None) -> Asked:
        return replace(super().asked(padded, labels), labels=None)

    def gold(self, tokens: NDArray[np.int32], labels: NDArray[Any] | None) -> NDArray[Any] | None:
        return None


@dataclass(frozen=True)
class MaskedTokens(Scoring):
    """A share of each row's tokens is masked, drawn anew in each epoch by (seed, epoch, example id), and
    asked for (Devlin et al. 2018, 3.1).

    scored: the masked tokens are answered, or all real ones (those that are not masked have no label);
    special: ids that are never masked.
    """

    seed: int
    rate: float
    scored: Literal["masked", "all"]
    mask_id: int
    vocab_size: int
    special: tuple[int, ...]

    def asked(self, padded: Padded, labels: NDArray[Any] | None) -> Asked:
        chosen_BL = self._chosen(padded)
        return Asked(
            self._corrupted(padded, chosen_BL),
            np.where(chosen_BL, padded.ids_BL, IGNORED),
            chosen_BL if self.scored == "masked" else padded.real_BL,
        )

    def gold(self, tokens: NDArray[np.int32], labels: NDArray[Any] | None) -> NDArray[Any] | None:
        """Every token that may be masked."""
        return np.where(np.isin(tokens, self.special), IGNORED, tokens)

    def _chosen(self, padded: Padded) -> NDArray[np.bool_]:
        candidates_BL = padded.real_BL & ~np.isin(padded.ids_BL, self.special)
        counts_B = np.maximum(1, np.rint(self.rate * padded.real_BL.sum(axis=1))).astype(np.int64)
        return choose(candidates_BL, counts_B, self._uniform(padded, 0))

    def _corrupted(self, padded: Padded, chosen_BL: NDArray[np.bool_]) -> NDArray[np.int64]:
        kind_BL, token_BL = self._uniform(padded, 1), self._uniform(padded, 2)
        return corrupt(
            padded.ids_BL, chosen_BL, kind_BL, token_BL, mask_id=self.mask_id, vocab_size=self.vocab_size
        )

    def _uniform(self, padded: Padded, draw: int) -> NDArray[np.float64]:
        width = padded.ids_BL.shape[1]
        return keyed_uniform(self.seed, padded.epoch, padded.example_B, width, draw=draw)
