"""A causal language model in the style of GPT, pretrained in this repo, in GPT-2's architecture of
`transformers`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from distillkit.data.tokenizers import BYTE_SPECIAL, train_byte_bpe
from distillkit.errors import ConfigError
from distillkit.model import Student
from distillkit.objectives.base import Objective
from distillkit.objectives.gpt import GptObjective
from distillkit.settings import Count, FinetuneSettings, Fraction, Labels, PretrainSettings
from distillkit.teachers.encoders import PretrainedHere, shape_of

SIZES = {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (12, 768, 12),
    "medium": (24, 1024, 16),
    "large": (36, 1280, 20),
}
"""Layers, width, heads; small, medium and large are GPT-2's (Radford et al. 2019, table 2), with a head for
each 64 of width; ffn is 4 times the width.
"""


class Gpt(PretrainedHere):
    """A causal language model with a byte-level BPE vocabulary of its own, pretrained where `pretrain` is
    set, fine-tuned on the task.

    Fine-tuned as in GPT (Radford et al. 2018, section 3.3): a text stands between `<s>` and `</s>`, two with
    a delimiter between them, and the state of the last real token is what a linear head reads; without the
    paper's language model beside the task. It answers no mlm task.

    Settings:
        size: A size by name; leave it out to give layers, width and heads one by one.
        layers: Blocks.
        width: Hidden size.
        heads: Attention heads; default one per 64 of width.
        ffn: Inner size of the feed-forward part; default 4 times the width.
        vocab_size: Entries of the byte-level BPE vocabulary trained on the corpus.
        positions: Longest input the model can take.
        dropout: Probability of dropping a hidden value or an attention weight in training.
        pretrain: Pretrain on a corpus first.
        finetune: Training on the task.
    """

    def __init__(
        self,
        *,
        size: Literal["tiny", "mini", "small", "medium", "large"] | None = None,
        layers: Count | None = None,
        width: Count | None = None,
        heads: Count | None = None,
        ffn: Count | None = None,
        vocab_size: Count = 50257,
        positions: Count = 1024,
        dropout: Fraction = 0.1,
        pretrain: PretrainSettings | None = None,
        finetune: FinetuneSettings = FinetuneSettings(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(vocab_size=vocab_size, positions=positions, pretrain=pretrain, finetune=finetune)
        self.shape = shape_of(SIZES, size, layers, width, heads)
        self.ffn, self.dropout = ffn or 4 * self.shape[1], dropout

    def tokenizer(self, corpus: Iterable[str]) -> PreTrainedTokenizerBase:
        return train_byte_bpe(corpus, vocab_size=self.vocab_size, max_length=self.positions)

    def pretraining(self, tokenizer: PreTrainedTokenizerBase) -> tuple[nn.Module, Objective]:
        return GPT2LMHeadModel(self.config(len(tokenizer))), GptObjective()

    def masked_model(self, pretrained: Path) -> Path | None:
        """None: it predicts next tokens."""
        return None

    def classifier(
        self, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int, pretrained: Path | None
    ) -> Student:
        if labels.kind == "mlm":
            raise ConfigError(
                "a causal language model predicts next tokens, no masked ones",
                where="teacher.use",
                hint="use: roberta or bert, which see both sides of a mask",
            )
        return super().classifier(tokenizer, labels, max_length, pretrained)

    def config(self, vocab_size: int) -> GPT2Config:
        """Padding is a token of its own: a classifier of `transformers` reads the last token that is not
        padding, which would not be `</s>` were that one both.
        """
        layers, width, heads = self.shape
        return GPT2Config(
            vocab_size=vocab_size,
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            n_inner=self.ffn,
            n_positions=self.positions,
            resid_pdrop=self.dropout,
            embd_pdrop=self.dropout,
            attn_pdrop=self.dropout,
            use_cache=False,
            bos_token_id=BYTE_SPECIAL.index("<s>"),
            eos_token_id=BYTE_SPECIAL.index("</s>"),
            pad_token_id=BYTE_SPECIAL.index("<pad>"),
        )
