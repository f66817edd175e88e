"""BERT, pretrained in this repo with its full objective, in the architecture of `transformers`."""

from __future__ import annotations

from typing import Literal

from torch import nn
from transformers import BertConfig, BertForPreTraining, PreTrainedTokenizerBase

from distillkit.objectives.base import Objective
from distillkit.objectives.bert import BertObjective
from distillkit.settings import Count, FinetuneSettings, Fraction, PretrainSettings
from distillkit.teachers.encoders import PretrainedHere, shape_of

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


class Bert(PretrainedHere):
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
        super().__init__(vocab_size=vocab_size, positions=positions, pretrain=pretrain, finetune=finetune)
        self.shape = shape_of(SIZES, size, layers, width, heads)
        self.ffn, self.dropout = ffn or 4 * self.shape[1], dropout
        self.objective = BertObjective(
            mask_rate=mask_rate, short_sequences=short_sequences, masking=masking, whole_word=whole_word
        )

    def pretraining(self, tokenizer: PreTrainedTokenizerBase) -> tuple[nn.Module, Objective]:
        return BertForPreTraining(self.config(len(tokenizer))), self.objective

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
