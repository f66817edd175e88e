"""XLNet, pretrained in this repo as a language model over random orders, in the architecture of
`transformers`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import nn
from transformers import PreTrainedTokenizerBase, XLNetConfig, XLNetLMHeadModel

from distillkit.errors import ConfigError
from distillkit.model import Student
from distillkit.objectives.base import Objective
from distillkit.objectives.xlnet import XLNetObjective
from distillkit.settings import Count, FinetuneSettings, Fraction, Labels, PretrainSettings
from distillkit.teachers.encoders import PretrainedHere, shape_of

SIZES = {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
}
"""Layers, width, heads: base and large as published (Yang et al. 2019); tiny, mini and small are BERT's of
these names. ffn is 4 times the width.
"""
SEGMENTS = 2
"""Told apart by a bias in the attention, for XLNet has no table of them."""


class Xlnet(PretrainedHere):
    """XLNet with a WordPiece vocabulary of its own (the published one is a SentencePiece of 32,000),
    pretrained where `pretrain` is set, fine-tuned on the task by its content stream.

    Published rates: pretraining 4e-4 with batches of 8192 (base: 1e-4 and 2048), fine-tuning 2e-5 to 5e-5.

    Settings:
        size: A size by name; leave it out to give layers, width and heads one by one.
        layers: Blocks.
        width: Hidden size.
        heads: Attention heads; default one per 64 of width.
        ffn: Inner size of the feed-forward part; default 4 times the width.
        vocab_size: Entries of the WordPiece vocabulary trained on the corpus.
        positions: Longest input; distances are not learnt, so that it costs no weights.
        dropout: Probability of dropping a hidden value or an attention weight in training.
        predict_one_in: One token in so many is predicted.
        memory: Read sequences in segments of so many tokens, each with the states of the one before as its
            memory; default reads a sequence as one.
        short_sequences: Share of the sequences that aim at a random shorter length.
        pretrain: Pretrain on a corpus first.
        finetune: Training on the task.
    """

    def __init__(
        self,
        *,
        size: Literal["tiny", "mini", "small", "base", "large"] | None = None,
        layers: Count | None = None,
        width: Count | None = None,
        heads: Count | None = None,
        ffn: Count | None = None,
        vocab_size: Count = 32000,
        positions: Count = 512,
        dropout: Fraction = 0.1,
        predict_one_in: Count = 6,
        memory: Count | None = None,
        short_sequences: Fraction = 0.05,
        pretrain: PretrainSettings | None = None,
        finetune: FinetuneSettings = FinetuneSettings(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(vocab_size=vocab_size, positions=positions, pretrain=pretrain, finetune=finetune)
        self.shape = shape_of(SIZES, size, layers, width, heads)
        if self.shape[1] % 2:
            raise ConfigError(
                f"distances are sines and cosines, half of the width each, and {self.shape[1]} is odd",
                where="teacher.width",
                hint="give an even width",
            )
        self.ffn, self.dropout, self.memory = ffn or 4 * self.shape[1], dropout, memory
        self.objective = XLNetObjective(
            predict_one_in=predict_one_in, memory=memory, short_sequences=short_sequences
        )

    def pretraining(self, tokenizer: PreTrainedTokenizerBase) -> tuple[nn.Module, Objective]:
        return XLNetLMHeadModel(self.config(len(tokenizer))), self.objective

    def masked_model(self, pretrained: Path) -> Path | None:
        """Nowhere: it predicts tokens of an order, not masked ones."""
        return None

    def classifier(
        self, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int, pretrained: Path | None
    ) -> Student:
        if labels.kind == "mlm":
            raise ConfigError(
                "an XLNet predicts tokens in an order, and no masked ones",
                where="teacher",
                hint="use: bert, or use: electra with objective: replace_mlm",
            )
        return super().classifier(tokenizer, labels, max_length, pretrained)

    def config(self, vocab_size: int) -> XLNetConfig:
        layers, width, heads = self.shape
        return XLNetConfig(
            vocab_size=vocab_size,
            d_model=width,
            n_layer=layers,
            n_head=heads,
            d_inner=self.ffn,
            dropout=self.dropout,
            summary_type="first",
            summary_last_dropout=self.dropout,
            mem_len=self.memory,
            use_mems_eval=False,
            type_vocab_size=SEGMENTS,
            pad_token_id=0,
        )
