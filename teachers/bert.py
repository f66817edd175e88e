"""BERT, pretrained in this repo with its full objective, in the architecture of `transformers`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from torch import nn
from transformers import BertConfig, BertForPreTraining, PreTrainedTokenizerBase

from distillkit.data.tokenizers import train_wordpiece
from distillkit.encoder import Encoder, fresh, load_body
from distillkit.errors import ConfigError
from distillkit.model import Student, TrainableTeacherSource
from distillkit.objectives.base import Objective
from distillkit.objectives.bert import BertObjective
from distillkit.settings import Count, FinetuneSettings, Fraction, Labels, PretrainSettings

SIZES = {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "medium": (8, 512, 8),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
}
"""Layers, width, heads of the published sizes (Devlin et al. 2018; Turc et al. 2019, table 1); ffn is 4
times the width.
"""


class Bert(TrainableTeacherSource):
    """BERT with a WordPiece vocabulary of its own, pretrained where `pretrain` is set, fine-tuned on the
    task.

    Settings:
        size: A published size; leave it out to give layers, width and heads one by one.
        layers: Blocks.
        width: Hidden size.
        heads: Attention heads; default one per 64 of width.
        ffn: Inner size of the feed-forward part; default 4 times the width.
        vocab_size: Entries of the WordPiece vocabulary trained on the corpus.
        positions: Longest input the model can take.
        dropout: Probability of dropping a hidden value or an attention weight in training.
        mask_rate: Share of the tokens that the masked language model predicts.
        short_sequences: Share of the documents that are cut into shorter sequences.
        masking: dynamic draws masks and pairs anew each epoch, static once.
        whole_word: Mask whole words, not single pieces.
        pretrain: Pretrain on a corpus first.
        finetune: Training on the task; not used for an mlm task, which a pretrained BERT answers as it is.
    """

    def __init__(
        self,
        *,
        size: Literal["tiny", "mini", "small", "medium", "base", "large"] | None = None,
        layers: Count | None = None,
        width: Count | None = None,
        heads: Count | None = None,
        ffn: Count | None = None,
        vocab_size: Count = 30522,
        positions: Count = 512,
        dropout: Fraction = 0.1,
        mask_rate: Fraction = 0.15,
        short_sequences: Fraction = 0.1,
        masking: Literal["dynamic", "static"] = "dynamic",
        whole_word: bool = False,
        pretrain: PretrainSettings | None = None,
        finetune: FinetuneSettings = FinetuneSettings(),  # noqa: B008 - frozen
    ) -> None:
        self.shape = _shape(size, layers, width, heads)
        self.ffn = ffn or 4 * self.shape[1]
        self.vocab_size, self.positions, self.dropout = vocab_size, positions, dropout
        self.objective = BertObjective(
            mask_rate=mask_rate, short_sequences=short_sequences, masking=masking, whole_word=whole_word
        )
        self.pretrain, self.finetune = pretrain, finetune
        if pretrain is not None and pretrain.max_length > positions:
            raise ConfigError(
                f"{pretrain.max_length} is more than the {positions} positions",
                where="teacher.pretrain.max_length",
                hint="raise teacher.positions",
            )

    def tokenizer(self, corpus: Iterable[str]) -> PreTrainedTokenizerBase:
        return train_wordpiece(corpus, vocab_size=self.vocab_size, max_length=self.positions)

    def pretraining(self, tokenizer: PreTrainedTokenizerBase) -> tuple[nn.Module, Objective]:
        return BertForPreTraining(self.config(len(tokenizer))), self.objective

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

    def config(self, vocab_size: int) -> BertConfig:
        layers, width, heads = self.shape
        return BertConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=self.ffn,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            max_position_embeddings=self.positions,
            layer_norm_eps=1e-12,
        )


def _shape(
    size: str | None, layers: int | None, width: int | None, heads: int | None
) -> tuple[int, int, int]:
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
        return SIZES[size]
    if layers is None or width is None:
        raise ConfigError(
            "neither size nor layers and width are given",
            where="teacher.size",
            hint=f"one of {', '.join(SIZES)}",
        )
    heads = heads or max(1, width // 64)
    if width % heads:
        raise ConfigError(
            f"{heads} heads do not divide the width {width}",
            where="teacher.heads",
            hint="width / heads is a whole number",
        )
    return layers, width, heads
