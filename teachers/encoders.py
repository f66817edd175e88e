"""What the encoders that this repo pretrains have in common: a vocabulary of their own, and sizes by name."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from distillkit.data.tokenizers import train_wordpiece
from distillkit.encoder import Encoder, fresh, load_body
from distillkit.errors import ConfigError
from distillkit.model import Student, TrainableTeacherSource
from distillkit.objectives.pair import GENERATOR
from distillkit.settings import FinetuneSettings, Labels, PretrainSettings

Shape = tuple[int, int, int]
"""Layers, width, heads."""


class PretrainedHere(TrainableTeacherSource):
    """An encoder of `transformers`, pretrained where `pretrain` is set, fine-tuned on the task."""

    def __init__(
        self,
        *,
        vocab_size: int,
        positions: int,
        pretrain: PretrainSettings | None,
        finetune: FinetuneSettings,
    ) -> None:
        """Raises ConfigError for sequences longer than the positions."""
        self.vocab_size, self.positions = vocab_size, positions
        self.pretrain, self.finetune = pretrain, finetune
        if pretrain is not None and pretrain.max_length > positions:
            raise ConfigError(
                f"{pretrain.max_length} is more than the {positions} positions",
                where="teacher.pretrain.max_length",
                hint="raise teacher.positions",
            )

    @abstractmethod
    def config(self, vocab_size: int) -> PretrainedConfig:
        """Sizes of the encoder for a vocabulary."""

    def tokenizer(self, corpus: Iterable[str]) -> PreTrainedTokenizerBase:
        return train_wordpiece(corpus, vocab_size=self.vocab_size, max_length=self.positions)

    def classifier(
        self, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int, pretrained: Path | None
    ) -> Student:
        if max_length > self.positions:
            raise ConfigError(
                f"{max_length} is more than the teacher's {self.positions} positions",
                where="task.max_length",
                hint="raise teacher.positions",
            )
        return (
            fresh(self.config(len(tokenizer)), labels)
            if pretrained is None
            else load_body(pretrained, labels)
        )

    def load(self, folder: Path) -> Student:
        return Encoder.load(folder)


class PretrainedByGenerator(PretrainedHere):
    """An encoder that is pretrained on what a generator replaced."""

    def __init__(
        self,
        *,
        vocab_size: int,
        positions: int,
        keep_generator: bool,
        pretrain: PretrainSettings | None,
        finetune: FinetuneSettings,
    ) -> None:
        super().__init__(vocab_size=vocab_size, positions=positions, pretrain=pretrain, finetune=finetune)
        self.keep_generator = keep_generator

    @property
    @abstractmethod
    def detects(self) -> bool:
        """Whether the main model tells replaced tokens, and does not predict the originals."""

    def masked_model(self, pretrained: Path) -> Path | None:
        """The main model where it predicts tokens, or the generator where it is kept."""
        if self.pretrain is None or not self.detects:
            return super().masked_model(pretrained)
        return pretrained / GENERATOR if self.keep_generator else None

    def classifier(
        self, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int, pretrained: Path | None
    ) -> Student:
        if labels.kind == "mlm" and self.pretrain is not None and self.detects:
            raise ConfigError(
                "a discriminator that was pretrained to detect replaced tokens predicts no masked ones",
                where="teacher",
                hint="use: bert, or use: electra with objective: replace_mlm or all_tokens_mlm",
            )
        return super().classifier(tokenizer, labels, max_length, pretrained)


def shape_of(
    sizes: Mapping[str, Shape], size: str | None, layers: int | None, width: int | None, heads: int | None
) -> Shape:
    """The shape of a published size, or the one given by layers, width and perhaps heads.

    Raises ConfigError where both are given or neither, and for heads that do not divide the width.
    """
    given = [
        name for name, value in (("layers", layers), ("width", width), ("heads", heads)) if value is not None
    ]
    if size is not None:
        if given:
            raise ConfigError(
                f"size {size!r} and {', '.join(given)} are both given",
                where="teacher.size",
                hint="give one way",
            )
        return sizes[size]
    if layers is None or width is None:
        raise ConfigError(
            "neither size nor layers and width are given",
            where="teacher.size",
            hint=f"one of {', '.join(sizes)}",
        )
    heads = heads or max(1, width // 64)
    if width % heads:
        raise ConfigError(
            f"{heads} heads do not divide the width {width}",
            where="teacher.heads",
            hint="width / heads is a whole number",
        )
    return layers, width, heads
