"""The contracts: Teacher (read only, no gradient) and Student (trained, exported).

A regime is a Teacher object: one model, an ensemble, cached outputs, peers, the student's own deeper layers. The loop
has no modes. What a *recipe* names with `use:` is a source: it knows where weights come from and builds the object.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from distillkit.objectives.base import Objective
from distillkit.settings import FinetuneSettings, Labels, PretrainSettings
from distillkit.types import Access, Batch, Outputs, Spec, Swap


class Teacher(ABC):
    """Gives targets. Never trained by the loop; `outputs` runs in eval mode without gradients."""

    @property
    @abstractmethod
    def access(self) -> Access:
        """The deepest access this teacher grants."""

    @property
    @abstractmethod
    def spec(self) -> Spec:
        """Sizes; a teacher below FINAL_STATES has num_layers 0 and hidden_dim 0."""

    @abstractmethod
    def outputs(self, batch: Batch, *, want: Access, swap: Swap | None = None) -> Outputs:
        """Outputs for the batch, detached; `hidden` filled as far as `want` asks."""

    def after_step(self, step: int) -> None:  # noqa: B027 - an optional hook, nothing to do for a fixed teacher
        """Called after every optimizer step (an EMA teacher follows the student here)."""

    def fingerprint(self) -> str:
        """Identifies the teacher's weights (cache keys, manifests); empty when it cannot be known."""
        return ""


class Student(nn.Module, ABC):
    """Is trained. The same call as a teacher's, with gradients."""

    spec: Spec

    @abstractmethod
    def outputs(self, batch: Batch, *, want: Access, swap: Swap | None = None) -> Outputs:
        """Outputs with gradient; `hidden` filled as far as `want` asks."""

    @abstractmethod
    def exportable(self) -> nn.Module:
        """A module whose forward takes the tensors of `Batch.inputs` by keyword and returns the logits."""

    @abstractmethod
    def save(self, folder: str) -> None:
        """Write config.json and model.safetensors (never pickle) so that the matching loader reads them back."""

    def forward(self, batch: Batch, want: Access) -> Outputs:
        """nn.Module entry point, the same as `outputs` without a swap."""
        return self.outputs(batch, want=want)


class TeacherSource(ABC):
    """What `teacher: {use: name}` names: settings in `__init__` (keyword-only, typed), weights on request.

    The pipeline asks in this order: `tokenizer`, then, where `pretrain` is set, `pretraining` (its model is trained and
    saved to a folder), then `classifier` (from that folder, from the source's own weights, or fresh), which is trained
    where `finetune` is set. A source that cannot be pretrained leaves `pretrain` at None.
    """

    pretrain: PretrainSettings | None = None
    finetune: FinetuneSettings | None = None

    @abstractmethod
    def tokenizer(self, corpus: Iterable[str]) -> PreTrainedTokenizerBase:
        """The tokenizer the teacher brings, or one trained on `corpus` (an iterable of texts, read once)."""

    def pretraining(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[nn.Module, Objective]:
        """A fresh pretraining model and its objective; only called where `pretrain` is set."""
        raise NotImplementedError(f"{type(self).__name__} cannot be pretrained")

    @abstractmethod
    def classifier(
        self, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int, pretrained: Path | None
    ) -> Student:
        """The model that answers the task: from `pretrained` (a folder written by the pretrain stage), from the
        source's own weights, or fresh. It is a Student while it is fine-tuned; `as_teacher` makes it a Teacher."""

    @abstractmethod
    def as_teacher(self, model: Student) -> Teacher:
        """The fine-tuned model as a fixed Teacher: eval mode, no gradient."""


class StudentSource(ABC):
    """What `student: {use: name}` names: settings in `__init__`, an untrained (or initialised) Student on request."""

    @abstractmethod
    def build(self, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int, teacher: Student | None) -> Student:
        """A new student; `teacher` is the task model to initialise from, where the settings ask for that."""
