"""What the encoder-decoders that this repo pretrains have in common: they write texts, and start from what
their pretraining left."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distillkit.encoder import fresh, load_body
from distillkit.encoder_decoder import EncoderDecoder
from distillkit.errors import ConfigError
from distillkit.model import Student, TrainableTeacherSource
from distillkit.opening import open_model
from distillkit.settings import FinetuneSettings, Labels, PretrainSettings, TaskKind


class DenoiserHere(TrainableTeacherSource):
    """An encoder-decoder of `transformers`, pretrained where `pretrain` is set, fine-tuned on the task."""

    kinds: tuple[TaskKind, ...] = ("text_to_text",)

    def __init__(
        self, *, positions: int, pretrain: PretrainSettings | None, finetune: FinetuneSettings
    ) -> None:
        """Raises ConfigError for sequences longer than the positions."""
        self.positions, self.pretrain, self.finetune = positions, pretrain, finetune
        if pretrain is not None and pretrain.max_length > positions:
            raise ConfigError(
                f"{pretrain.max_length} is more than the {positions} positions",
                where="teacher.pretrain.max_length",
                hint="raise teacher.positions",
            )

    @abstractmethod
    def fresh(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        """A model with fresh weights."""

    def masked_model(self, pretrained: Path) -> Path | None:
        """None: it writes what is missing, however long that is."""
        return None

    def classifier(
        self, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int, pretrained: Path | None
    ) -> Student:
        if max_length > self.positions:
            raise ConfigError(
                f"{max_length} is more than the teacher's {self.positions} positions",
                where="task.max_length",
                hint="raise teacher.positions",
            )
        if labels.kind == "text_to_text":
            return EncoderDecoder(self.fresh(tokenizer)) if pretrained is None else self.load(pretrained)
        if pretrained is not None:
            return load_body(pretrained, labels)
        with torch.device("meta"):
            config = self.fresh(tokenizer).config
        return fresh(config, labels)

    def load(self, folder: Path) -> Student:
        return open_model(folder)
