"""What the encoder-decoders that this repo pretrains have in common: they have no task yet."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from distillkit.errors import ConfigError, ModelError
from distillkit.model import Student, TrainableTeacherSource
from distillkit.settings import FinetuneSettings, Labels, PretrainSettings


class DenoiserHere(TrainableTeacherSource):
    """An encoder-decoder of `transformers`, pretrained where `pretrain` is set."""

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

    def masked_model(self, pretrained: Path) -> Path | None:
        """None: it writes what is missing, however long that is."""
        return None

    def classifier(
        self, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int, pretrained: Path | None
    ) -> Student:
        raise self._no_task()

    def load(self, folder: Path) -> Student:
        raise self._no_task()

    def _no_task(self) -> ModelError:
        return ModelError(
            f"{type(self).__name__} is pretrained here, and does not answer tasks",
            where="teacher.use",
            hint="`distillkit pretrain` makes the folder pretrain/, which AutoModelForSeq2SeqLM opens",
        )
