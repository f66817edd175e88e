"""DeBERTa-v3, pretrained in this repo by replaced token detection with a shared table of tokens, in the
DeBERTa-v2 architecture of `transformers`."""

from __future__ import annotations

import copy
from typing import Literal

from torch import nn
from transformers import DebertaV2Config, PreTrainedTokenizerBase

from distillkit.errors import ConfigError
from distillkit.objectives.base import Objective
from distillkit.objectives.deberta import DebertaObjective
from distillkit.settings import Count, FinetuneSettings, Fraction, Positive, PretrainSettings, Share
from distillkit.teachers.encoders import PretrainedByGenerator, shape_of

SIZES = {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "xsmall": (12, 384, 6),
    "small": (6, 768, 12),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
}
"""Layers, width, heads: xsmall, small, base and large as published (He, Gao and Chen 2021); tiny and mini are
BERT's of these names, for tests and CPUs. ffn is 4 times the width.
"""
PUBLISHED_VOCABULARY, SMALL_VOCABULARY = 128_100, 30_522
BUCKETS = 256
"""Distances that are told apart, to either side; beyond half of it they share buckets on a log scale."""


class Deberta(PretrainedByGenerator):
    """DeBERTa-v3 with a WordPiece vocabulary of its own (the published one is a SentencePiece of 128,000): a
    generator replaces tokens, the discriminator finds them; pretrained where `pretrain` is set, fine-tuned on
    the task.

    Published rates: pretraining 6e-4 (base) or 3e-4 (large) with betas 0.9 and 0.98 and batches of 8192;
    fine-tuning 1e-5 to 3e-5.

    Settings:
        size: A size by name; leave it out to give layers, width and heads one by one.
        layers: Blocks; the generator has half as many.
        width: Hidden size.
        heads: Attention heads; default one per 64 of width.
        ffn: Inner size of the feed-forward part; default 4 times the width.
        vocab_size: Entries of the WordPiece vocabulary trained on the corpus; default 128,100 for the
            published sizes, else 30,522.
        positions: Longest input the model can take.
        dropout: Probability of dropping a hidden value or an attention weight in training.
        sharing: How the discriminator shares the generator's table of tokens; gdes adds a table of its own to
            it, and alone trains that; es trains the one table from both sides; nes shares nothing.
        mask_decoder: How the generator answers; enhanced lets absolute positions in after the blocks, plain
            has no absolute positions.
        keep_generator: Keep the generator, in the folder pretrain/generator; needs mask_decoder plain.
        discriminator_weight: Weight of the discriminator's term beside the generator's; 50 is the paper's,
            10 the released code's default.
        mask_rate: Share of the tokens that the generator predicts.
        whole_word: Mask whole words, not single pieces.
        short_sequences: Share of the sequences that aim at a random shorter length.
        temperature: Divides the generator's scores before it samples.
        disallow_correct: Never sample the original token.
        pretrain: Pretrain on a corpus first.
        finetune: Training on the task.
    """

    def __init__(
        self,
        *,
        size: Literal["tiny", "mini", "xsmall", "small", "base", "large"] | None = None,
        layers: Count | None = None,
        width: Count | None = None,
        heads: Count | None = None,
        ffn: Count | None = None,
        vocab_size: Count | None = None,
        positions: Count = 512,
        dropout: Fraction = 0.1,
        sharing: Literal["gdes", "es", "nes"] = "gdes",
        mask_decoder: Literal["enhanced", "plain"] = "enhanced",
        keep_generator: bool = False,
        discriminator_weight: Positive = 50.0,
        mask_rate: Share = 0.15,
        whole_word: bool = False,
        short_sequences: Fraction = 0.05,
        temperature: Positive = 1.0,
        disallow_correct: bool = False,
        pretrain: PretrainSettings | None = None,
        finetune: FinetuneSettings = FinetuneSettings(),  # noqa: B008 - frozen
    ) -> None:
        published = size not in (None, "tiny", "mini")
        super().__init__(
            vocab_size=vocab_size or (PUBLISHED_VOCABULARY if published else SMALL_VOCABULARY),
            positions=positions,
            keep_generator=keep_generator,
            pretrain=pretrain,
            finetune=finetune,
        )
        if keep_generator and mask_decoder == "enhanced":
            raise ConfigError(
                "a generator is kept as a masked language model of `transformers`, which has no enhanced "
                "mask decoder: opened, it would not be the model that was trained",
                where="teacher.keep_generator",
                hint="set teacher.mask_decoder: plain, or leave keep_generator out",
            )
        self.shape = shape_of(SIZES, size, layers, width, heads)
        self.ffn, self.dropout = ffn or 4 * self.shape[1], dropout
        self.objective = DebertaObjective(
            sharing=sharing,
            mask_decoder=mask_decoder,
            whole_word=whole_word,
            weight=discriminator_weight,
            mask_rate=mask_rate,
            short_sequences=short_sequences,
            temperature=temperature,
            disallow_correct=disallow_correct,
        )

    @property
    def detects(self) -> bool:
        return True

    def pretraining(self, tokenizer: PreTrainedTokenizerBase) -> tuple[nn.Module, Objective]:
        config = self.config(len(tokenizer))
        special = (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id)
        pair = self.objective.pair(
            self.generator_config(config),
            config,
            never=(*special, tokenizer.mask_token_id),
            keep_generator=self.keep_generator,
        )
        return pair, self.objective

    def config(self, vocab_size: int) -> DebertaV2Config:
        layers, width, heads = self.shape
        return DebertaV2Config(
            vocab_size=vocab_size,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=self.ffn,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            max_position_embeddings=self.positions,
            type_vocab_size=0,
            relative_attention=True,
            position_buckets=BUCKETS,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            pos_att_type=["p2c", "c2p"],
            position_biased_input=False,
        )

    def generator_config(self, main: DebertaV2Config) -> DebertaV2Config:
        """As wide as the main model and half as deep."""
        made = copy.deepcopy(main)
        made.num_hidden_layers = max(1, main.num_hidden_layers // 2)
        return made
