"""The training steps of a pretraining objective."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillkit import files
from distillkit.data.batching import Feed, epoch_plan
from distillkit.objectives.base import Examples, Objective
from distillkit.settings import BatchSettings, PretrainSettings
from distillkit.types import Batch


class ObjectiveFeed(Feed):
    """Epochs of sequences in length-sorted batches; `folder` is what `Objective.prepare` wrote."""

    def __init__(self, objective: Objective, folder: Path, settings: PretrainSettings, *, seed: int) -> None:
        self.objective, self.folder, self.seed = objective, folder, seed
        self.batch = BatchSettings(
            tokens=settings.batch * settings.max_length, examples=settings.batch, micro=settings.micro
        )
        content = [facts["sha256"] for facts in files.read_manifest(folder)["files"].values()]
        self.digest = hashlib.sha256(f"{content} {settings.identity()} {seed}".encode()).hexdigest()
        self.micro = settings.micro
        self._epoch = -1
        self._examples: Examples
        self._plan: list[list[NDArray[np.int64]]] = []

    def num_steps(self, epoch: int) -> int:
        self._go_to(epoch)
        return len(self._plan)

    def step(self, epoch: int, index: int) -> list[Batch]:
        self._go_to(epoch)
        return [
            self.objective.collate(self._examples, rows.tolist(), epoch=epoch, seed=self.seed)
            for rows in self._plan[index]
        ]

    def metrics(self, epoch: int) -> dict[str, float]:
        """Figures of an epoch's data."""
        self._go_to(epoch)
        return dict(self.objective.metrics(self._examples))

    def remarks(self, epoch: int) -> tuple[str, ...]:
        """What an epoch's data cannot teach, in sentences."""
        self._go_to(epoch)
        return tuple(self.objective.remarks(self._examples))

    def _go_to(self, epoch: int) -> None:
        if epoch != self._epoch:
            self._examples = self.objective.examples(self.folder, epoch=epoch, seed=self.seed)
            self._plan = epoch_plan(self._examples.lengths, self.batch, seed=self.seed, epoch=epoch)
            self._epoch = epoch
