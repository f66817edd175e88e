"""What a model answers in a batch of rows: the examples, their labelled tokens, or tokens masked for the
occasion.

A scoring turns padded token ids into what a model sees, what it answers and what would be right. Shapes: B
rows, L positions, T tokens of all rows laid end to end, n rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distillkit.data.masking import choose, corrupt, keyed_uniform
from distillkit.types import IGNORED, TARGET_IDS

SOURCE, TARGET = 0, 1
"""Segments of a row whose answer is a text."""
MEASURED_EPOCH = 1 << 32
"""Keys the masks that models are measured on: no training gets there."""


@dataclass(frozen=True)
class Padded:
    """Rows laid side by side: `rows_B` their positions, `example_B` their ids, `types_BL` the segment of each
    token, `flat` the places of their real tokens among all tokens, row by row.
    """

    rows_B: NDArray[np.int64]
    example_B: NDArray[np.int64]
    ids_BL: NDArray[np.int64]
    types_BL: NDArray[np.int64]
    real_BL: NDArray[np.bool_]
    flat: NDArray[np.int64]
    epoch: int
    pad_id: int


@dataclass(frozen=True)
class Asked:
    """What the model takes by name, its real tokens, labels `[B]` or of each answered token (None:
    unlabelled), and the tokens it answers (None: it answers whole examples).
    """

    inputs: Mapping[str, NDArray[np.int64]]
    real_BL: NDArray[np.bool_]
    labels: NDArray[Any] | None
    scored_BL: NDArray[np.bool_] | None

    @classmethod
    def of(
        cls,
        padded: Padded,
        ids_BL: NDArray[np.int64],
        labels: NDArray[Any] | None,
        scored_BL: NDArray[np.bool_] | None,
    ) -> Asked:
        """Of the rows as they lie, perhaps with other ids."""
        return cls(encoder_inputs(ids_BL, padded.types_BL, padded.real_BL), padded.real_BL, labels, scored_BL)


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

    def exact(self, ids_BL: NDArray[np.int64]) -> Mapping[str, NDArray[np.int64]]:
        """What a model takes of rows of real tokens of one length."""
        return encoder_inputs(ids_BL, np.zeros_like(ids_BL), np.ones(ids_BL.shape, dtype=bool))


class WholeExamples(Scoring):
    """One answer for each row; labels `[n]`."""

    by_token = False

    def asked(self, padded: Padded, labels: NDArray[Any] | None) -> Asked:
        gold = None if labels is None else np.asarray(labels[padded.rows_B])
        return Asked.of(padded, padded.ids_BL, gold, None)

    def gold(self, tokens: NDArray[np.int32], labels: NDArray[Any] | None) -> NDArray[Any] | None:
        return labels


class LabelledTokens(Scoring):
    """One answer for each token whose label is not IGNORED; labels `[T]`."""

    def asked(self, padded: Padded, labels: NDArray[Any] | None) -> Asked:
        assert labels is not None
        labels_BL = np.full(padded.ids_BL.shape, IGNORED, dtype=np.int64)
        labels_BL[padded.real_BL] = labels[padded.flat]
        return Asked.of(padded, padded.ids_BL, labels_BL, labels_BL != IGNORED)

    def gold(self, tokens: NDArray[np.int32], labels: NDArray[Any] | None) -> NDArray[Any] | None:
        return labels


class UnlabelledTokens(LabelledTokens):
    """The same tokens are answered, but what would be right is not known: labels tell only which they are."""

    def asked(self, padded: Padded, labels: NDArray[Any] | None) -> Asked:
        return replace(super().asked(padded, labels), labels=None)

    def gold(self, tokens: NDArray[np.int32], labels: NDArray[Any] | None) -> NDArray[Any] | None:
        return None


class TargetTokens(Scoring):
    """One answer for each token of a target, which stands behind its source as a segment of its own; what is
    right at a token is that token, of which a model has read those before it; labels `[T]`.
    """

    def asked(self, padded: Padded, labels: NDArray[Any] | None) -> Asked:
        target_BL = padded.real_BL & (padded.types_BL == TARGET)
        source_BL, source_real_BL = _closed_up(padded, padded.real_BL & ~target_BL)
        target_BT, target_real_BT = _closed_up(padded, target_BL)
        inputs = {
            "input_ids": source_BL,
            "attention_mask": source_real_BL.astype(np.int64),
            TARGET_IDS: target_BT,
        }
        gold_BT = np.where(target_real_BT, target_BT, IGNORED)
        return Asked(inputs, source_real_BL, gold_BT, target_real_BT)

    def gold(self, tokens: NDArray[np.int32], labels: NDArray[Any] | None) -> NDArray[Any] | None:
        return labels

    def exact(self, ids_BL: NDArray[np.int64]) -> Mapping[str, NDArray[np.int64]]:
        """Sources and targets of one length."""
        return {"input_ids": ids_BL, "attention_mask": np.ones_like(ids_BL), TARGET_IDS: ids_BL.copy()}


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
        return Asked.of(
            padded,
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


def encoder_inputs(
    ids_BL: NDArray[np.int64], types_BL: NDArray[np.int64], real_BL: NDArray[np.bool_]
) -> dict[str, NDArray[np.int64]]:
    """What an encoder takes, by name."""
    return {"input_ids": ids_BL, "attention_mask": real_BL.astype(np.int64), "token_type_ids": types_BL}


def _closed_up(padded: Padded, chosen_BL: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The chosen tokens of each row side by side from the left, and where they are real."""
    counts_B = chosen_BL.sum(axis=1)
    real_BW = np.arange(max(1, int(counts_B.max()))) < counts_B[:, None]
    ids_BW = np.full(real_BW.shape, padded.pad_id, dtype=np.int64)
    ids_BW[real_BW] = padded.ids_BL[chosen_BL]
    return ids_BW, real_BW
