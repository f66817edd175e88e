"""Models from folders, by what a task asks of them: an encoder with a head, a masked language model, an
encoder-decoder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from transformers import PretrainedConfig

from distillkit import encoder, encoder_decoder
from distillkit.encoder import Encoder, load_body, load_config, load_masked
from distillkit.encoder_decoder import EncoderDecoder
from distillkit.heads import HEADS
from distillkit.model import Student
from distillkit.settings import Labels, TaskKind
from distillkit.types import Spec


class Opening(ABC):
    """How a folder becomes a model that answers one kind of task."""

    own_head = False
    """Whether what any such folder holds answers the task, so that no head is ever fresh."""

    @abstractmethod
    def spec(self, config: PretrainedConfig) -> Spec:
        """Sizes. Raises ModelError for a model of another kind."""

    @abstractmethod
    def start(self, folder: Path, labels: Labels) -> Student:
        """The model from which a training on the task starts. Raises ModelError where weights are
        missing.
        """


class Heads(Opening):
    """A body with a head for the task, which is fresh."""

    def spec(self, config: PretrainedConfig) -> Spec:
        return encoder.spec_of(config)

    def start(self, folder: Path, labels: Labels) -> Student:
        return load_body(folder, labels)


class Masked(Heads):
    """A masked language model with its own head."""

    own_head = True

    def start(self, folder: Path, labels: Labels) -> Student:
        return load_masked(folder)


class Writing(Opening):
    """An encoder-decoder, whole."""

    own_head = True

    def spec(self, config: PretrainedConfig) -> Spec:
        return encoder_decoder.spec_of(config)

    def start(self, folder: Path, labels: Labels) -> Student:
        return EncoderDecoder.load(folder)


_HEADS = Heads()
OPENINGS: Mapping[TaskKind, Opening] = {
    "classification": _HEADS,
    "regression": _HEADS,
    "token_classification": _HEADS,
    "mlm": Masked(),
    "text_to_text": Writing(),
}


def open_model(folder: Path) -> Student:
    """A whole model that was saved, whatever it answers. Errors as of `Encoder.load` and
    `EncoderDecoder.load`.
    """
    config = load_config(folder)
    answers = (config.architectures or [""])[0].endswith(HEADS["classification"].suffix)
    return (EncoderDecoder if config.is_encoder_decoder and not answers else Encoder).load(folder)
