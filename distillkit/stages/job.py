"""What the stages of one run share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from distillkit import evaluate
from distillkit.answers import KEPT
from distillkit.data.batching import Encoded, encode, measured
from distillkit.data.corpora import documents
from distillkit.data.tasks import Rows, Task
from distillkit.data.tokenizers import load_tokenizer
from distillkit.digests import Training, digest
from distillkit.losses.base import LossStack
from distillkit.model import (
    LEFT,
    LearningTeacherSource,
    Student,
    StudentSource,
    Teacher,
    TeacherSource,
    TrainableTeacherSource,
)
from distillkit.progress import Progress
from distillkit.recipe import Loaded
from distillkit.rundir import RunDir
from distillkit.settings import RunConfig
from distillkit.signals import Signals
from distillkit.train import make_accelerator
from distillkit.types import Batch, Outputs, Want
from distillkit.world import World

STAGES = ("tokenizer", "pretrain", "teacher", "student", "export", "bench", "report")
"""In the order in which they are made."""
Save = Callable[[Path], None]
"""Writes what a stage made into an empty folder, which then appears whole under the stage's name."""
Array = NDArray[Any]

ANSWERS, INTERCHANGE = "answers.npy", "interchange.json"


PEERS = "peers"
"""Folder in the student's of the peers that are neither what the run ends with nor the best beside it."""


PREFLIGHT = "preflight.json"


@dataclass(frozen=True)
class Job:
    """What the stages of one run share: the recipe, the data, the objects it names, and where it runs."""

    loaded: Loaded
    run: RunDir
    task: Task
    teacher_source: TeacherSource
    student_source: StudentSource
    stacks: tuple[LossStack, ...]
    digests: Mapping[str, str]
    trainings: Mapping[str, Training]
    world: World
    signals: Signals
    progress: Progress
    force: bool = False

    @property
    def config(self) -> RunConfig:
        return self.loaded.config

    @property
    def alone(self) -> Job:
        """The same job for rank 0 by itself: it waits for nobody; the others must not need what it does."""
        return replace(self, world=World(rank=0, size=1))

    @property
    def trainable(self) -> TrainableTeacherSource | None:
        """The teacher's source where this run trains or adapts it."""
        return self.teacher_source if isinstance(self.teacher_source, TrainableTeacherSource) else None

    @property
    def metric(self) -> str:
        return self.config.task.metric or evaluate.default_metric(self.task.labels)

    @property
    def cache(self) -> Path:
        return self.run.path / "cache"

    @property
    def judged(self) -> Rows:
        """The rows that the report's figures are measured on: test, or validation where there is no test."""
        return self.task.validation if self.task.test is None else self.task.test

    @property
    def teacher_key(self) -> str:
        """Names the teacher that the teacher stage left, for what is kept of its work: by its code, settings
        and weights where it has some, whatever the seed of the run that uses it.
        """
        files: Mapping[str, Any] = self.run.stage("teacher").manifest["files"]
        if self.trainable is None:
            return digest(self.digests["teacher"], files)
        weights = {name: one for name, one in files.items() if name.endswith((".safetensors", "config.json"))}
        return digest(self.digests["tokenizer"], weights)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.folder("tokenizer"))

    @cached_property
    def device(self) -> torch.device:
        device: torch.device = make_accelerator(self.config.runtime).device
        return device

    def folder(self, stage: str) -> Path:
        if stage == "teacher" and isinstance(self.teacher_source, LearningTeacherSource):
            return self.run.stage("student").folder / LEFT
        return self.run.stage(stage).folder

    def encoded(self, rows: Rows) -> Encoded:
        with self.world.main_first():
            return encode(rows, self.tokenizer, max_length=self.config.task.max_length, cache=self.cache)

    def samples(self, rows: Rows) -> Encoded:
        """Rows as models are measured on them: what is asked of them is fixed."""
        return measured(self.encoded(rows))

    def teacher(self) -> Teacher:
        return self.teacher_source.teacher(self.folder("teacher"), self.task.labels).to(self.device)

    def predict(self, model: Teacher | Student, samples: Encoded) -> Array:
        """What is kept of the answers of a model in eval mode. Raises StoppedError after a signal where
        this process is alone; several stop together, at a step of training.
        """
        want = Want()

        def outputs(batch: Batch) -> Outputs:
            if self.world.size == 1:
                self.signals.check("while a model was evaluated")
            return model.outputs(batch, want=want)

        keep = KEPT[self.task.labels.kind]
        return evaluate.predict(outputs, samples, keep=keep, device=self.device)

    def documents(self, source: str) -> Iterator[list[str]]:
        """A corpus; a signal stops between two documents."""
        for sentences in documents(source, base=self.loaded.base):
            self.signals.check("while a corpus was read")
            yield sentences
