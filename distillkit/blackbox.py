"""Teachers that answer and show nothing else: no gradient, no states, and perhaps no scores.

An answer is a class, or a score for each class, of a whole text. Classes are matched by name.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from distillkit.errors import ConfigError, ModelError
from distillkit.model import Teacher
from distillkit.settings import Labels
from distillkit.types import Access, Batch, Outputs, Spec, Swap, Want

CERTAIN = 20.0
"""Logit of the one class that a teacher of labels names, where all others have 0: so that argmax is right
and everything stays finite. No loss that reads scores is allowed there.
"""
_LEAST = 1e-12
"""Probability that one of 0 is taken for: log(0) has no gradient."""
_SUM = 1e-3
_LENGTH = 512
"""Tokens that it is timed with at most, and positions that a student has at least: texts have no limit."""


class BlackBoxTeacher(Teacher):
    """Answers whole texts with LABELS or SCORES and nothing deeper. Raises ConfigError for other tasks."""

    def __init__(self, labels: Labels, access: Access) -> None:
        if labels.kind not in ("classification", "regression"):
            raise ConfigError(
                f"a black box answers whole texts, not {labels.kind}",
                where="teacher.use",
                hint="it is for classification and regression",
            )
        self.labels, self._access = labels, access

    @property
    def access(self) -> Access:
        return self._access

    @property
    def spec(self) -> Spec:
        return Spec(0, 0, 0, 0, vocab_size=0, num_labels=self.labels.num_labels, max_length=_LENGTH)

    @abstractmethod
    def answers(self, batch: Batch) -> NDArray[np.float32]:
        """`[B, V]` logits in the order of the task's labels, `[B, 1]` for regression."""

    def outputs(self, batch: Batch, *, want: Want, swap: Swap | None = None) -> Outputs:
        if swap or want.access > Access.SCORES:
            raise ModelError(f"a teacher that gives {self._access.name} was asked for more", where="teacher")
        return Outputs(logits=torch.from_numpy(self.answers(batch)).to(batch.mask.device))


def named_once(class_ids: Sequence[int], num_labels: int) -> NDArray[np.float32]:
    """`[n, V]` logits of classes that are named without a score."""
    return CERTAIN * np.eye(num_labels, dtype=np.float32)[np.asarray(class_ids, dtype=np.int64)]


def log_probabilities(given: NDArray[np.float64]) -> NDArray[np.float32]:
    """`[n, V]` logits of probabilities. Raises ValueError with the reason where a row is no distribution."""
    for row, values in enumerate(given):
        if (values < 0).any() or abs(values.sum() - 1) > _SUM:
            listed = ", ".join(f"{value:.4g}" for value in values[:10])
            raise ValueError(f"row {row}: {listed} are not probabilities (at least 0, together 1)")
    made: NDArray[np.float32] = np.log(np.maximum(given, _LEAST)).astype(np.float32)
    return made


def in_task_order(names: Sequence[str], labels: Labels) -> list[int]:
    """The column of each of the task's labels. Raises ModelError where the names are others."""
    if set(names) != set(labels.names) or len(set(names)) != len(names):
        raise ModelError(
            f"the teacher's classes {list(names)[:10]} are not the task's {list(labels.names)[:10]}",
            where="teacher",
            hint="labels are matched by name: rename them in the data, or in the teacher",
        )
    return [list(names).index(name) for name in labels.names]
