"""The contract of a pretraining objective: corruption by a generator, then named loss terms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from distillkit.types import Batch


@dataclass(frozen=True)
class LossTerm:
    """One named term of a loss: a mean over `count` counted positions, and its weight in the total.

    Keeping the count lets micro-batches and ranks be joined exactly: total = sum(value * count) / sum(count).
    tallies: by a name of their own, detached sums over positions, of which `Objective.figures` is made.
    """

    value: Tensor
    count: int
    weight: float = 1.0
    tallies: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(ABC):
    """A pretraining task. Settings are keyword-only `__init__` arguments; nothing here knows of steps or
    optimizers.
    """

    @abstractmethod
    def prepare(
        self,
        documents: Iterator[list[str]],
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        *,
        max_length: int,
    ) -> None:
        """Tokenise documents (lists of sentences) once into memory-mapped arrays under `folder`; remembers
        what it needs of the tokenizer and of `max_length` there, so that `examples` and `collate` need only
        the folder."""

    @abstractmethod
    def examples(self, folder: Path, *, epoch: int, seed: int) -> Examples:
        """The training sequences of one epoch, a pure function of (folder, epoch, seed)."""

    @abstractmethod
    def collate(self, examples: Examples, rows: Sequence[int], *, epoch: int, seed: int) -> Batch:
        """Corrupt and pad the chosen rows; every random choice is keyed by (seed, epoch, row)."""

    @abstractmethod
    def counts(self, batch: Batch) -> Mapping[str, int]:
        """Counted positions of each term, known before any forward."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, LossTerm]:
        """One forward of the model and its named terms (each a mean over its counted positions)."""

    def flops(self, model: nn.Module, length: int) -> float:
        """FLOPs of one forward on one sequence of `length` tokens (`flops.HONEST`); 0 where it is not known.
        The model may be on the meta device.
        """
        return 0.0

    def go_to(self, model: nn.Module, step: int, total: int) -> None:  # noqa: B027 - an optional hook
        """Called before every optimizer step, which is number `step` (from 0) of `total`."""

    def groups(self, model: nn.Module) -> Sequence[Sequence[nn.Parameter]]:
        """Parameters whose gradients are clipped together."""
        return [list(model.parameters())]

    def figures(self, tallies: Mapping[str, Tensor]) -> Mapping[str, float]:
        """Figures worth logging beside the terms, from a step's tallies; one that is not defined is left
        out."""
        return {}

    def warnings(self, terms: Mapping[str, float], figures: Mapping[str, float]) -> Sequence[str]:
        """What is going wrong, in sentences, by the unweighted terms and the figures of a step."""
        return ()

    def metrics(self, examples: Examples) -> Mapping[str, float]:
        """Figures worth logging of an epoch's data (how many, how long, balance of labels)."""
        return {}

    def remarks(self, examples: Examples) -> Sequence[str]:
        """What this data cannot teach, in sentences."""
        return ()


class Examples(Protocol):
    """The training sequences of one epoch; what else it holds is its objective's own."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence, special tokens included."""


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """What a body is called with; where nothing is padded without a mask, which is the same and faster."""
    return {
        name: value for name, value in batch.inputs.items() if not (batch.full and name == "attention_mask")
    }
