"""RoBERTa, pretrained in this repo with its masked language model, in the architecture of `transformers`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torch import nn
from transformers import PreTrainedTokenizerBase, RobertaConfig, RobertaForMaskedLM

from distillkit.data.tokenizers import BYTE_SPECIAL, train_byte_bpe
from distillkit.objectives.base import Objective
from distillkit.objectives.roberta import RobertaObjective
from distillkit.settings import Count, FinetuneSettings, Fraction, PretrainSettings
from distillkit.teachers.encoders import PretrainedHere, shape_of

SIZES = {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
}
"""Layers, width, heads; base and large as published (Liu et al. 2019, table 9), the others BERT's of these
names; ffn is 4 times the width.
"""
_PADDING = BYTE_SPECIAL.index("<pad>")


class Roberta(PretrainedHere):
    """RoBERTa with a byte-level BPE vocabulary of its own, pretrained where `pretrain` is set, fine-tuned on
    the task.

    Published: 8,000 sequences of 512 tokens, rates 6e-4 (base) and 4e-4 (large), warm-up over 24,000 and
    30,000 of 500,000 steps, Adam's second beta 0.98 (Liu et al. 2019, table 9).

    Settings:
        size: A size by name; leave it out to give layers, width and heads one by one.
        layers: Blocks.
        width: Hidden size.
        heads: Attention heads; default one per 64 of width.
        ffn: Inner size of the feed-forward part; default 4 times the width.
        vocab_size: Entries of the byte-level BPE vocabulary trained on the corpus.
        positions: Longest input the model can take.
        dropout: Probability of dropping a hidden value or an attention weight in training.
        mask_rate: Share of the tokens that the masked language model predicts.
        packing: What a sequence holds; full_sentences runs on across documents, doc_sentences ends with each.
        whole_word: Mask whole words (what stands between spaces), not single pieces.
        pretrain: Pretrain on a corpus first.
        finetune: Training on the task; not used for an mlm task, which a pretrained RoBERTa answers as it is.
    """

    def __init__(
        self,
        *,
        size: Literal["tiny", "mini", "small", "base", "large"] | None = None,
        layers: Count | None = None,
        width: Count | None = None,
        heads: Count | None = None,
        ffn: Count | None = None,
        vocab_size: Count = 50265,
        positions: Count = 512,
        dropout: Fraction = 0.1,
        mask_rate: Fraction = 0.15,
        packing: Literal["full_sentences", "doc_sentences"] = "full_sentences",
        whole_word: bool = False,
        pretrain: PretrainSettings | None = None,
        finetune: FinetuneSettings = FinetuneSettings(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(vocab_size=vocab_size, positions=positions, pretrain=pretrain, finetune=finetune)
        self.shape = shape_of(SIZES, size, layers, width, heads)
        self.ffn, self.dropout = ffn or 4 * self.shape[1], dropout
        self.objective = RobertaObjective(mask_rate=mask_rate, packing=packing, whole_word=whole_word)

    def tokenizer(self, corpus: Iterable[str]) -> PreTrainedTokenizerBase:
        return train_byte_bpe(corpus, vocab_size=self.vocab_size, max_length=self.positions)

    def pretraining(self, tokenizer: PreTrainedTokenizerBase) -> tuple[nn.Module, Objective]:
        return RobertaForMaskedLM(self.config(len(tokenizer))), self.objective

    def config(self, vocab_size: int) -> RobertaConfig:
        """Positions are numbered from the id of padding + 1, so that the table has two rows more."""
        layers, width, heads = self.shape
        return RobertaConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=self.ffn,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            max_position_embeddings=self.positions + _PADDING + 1,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
            pad_token_id=_PADDING,
            bos_token_id=BYTE_SPECIAL.index("<s>"),
            eos_token_id=BYTE_SPECIAL.index("</s>"),
        )
