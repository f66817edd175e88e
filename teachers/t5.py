"""T5, pretrained in this repo by span corruption or what it was compared with, in the architecture of
`transformers`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, T5Config, T5ForConditionalGeneration

from distillkit.data.spans import even_ends, released_ends
from distillkit.data.unigram import train_unigram
from distillkit.errors import ConfigError
from distillkit.model import Student
from distillkit.objectives.base import Objective
from distillkit.objectives.denoising import T5Objective
from distillkit.objectives.noise import RandomMasking, Shuffling, Vocabulary
from distillkit.objectives.one_stack import OneStack, OneStackObjective, Pattern, causal, causal_with_prefix
from distillkit.objectives.pairs import (
    DroppedTokens,
    Pairing,
    PlainLM,
    PrefixLM,
    Rebuilding,
    SpanCorruption,
    TokenCorruption,
)
from distillkit.settings import Count, FinetuneSettings, Fraction, Labels, Positive, PretrainSettings, Share
from distillkit.teachers.denoisers import DenoiserHere
from distillkit.teachers.encoders import Shape, shape_of

_HEAD = 64
_ROWS = 128
"""The embeddings have a multiple of so many rows."""


@dataclass(frozen=True)
class Version:
    """sizes: layers of each stack, width, heads; ffn: inner sizes that are not 4 times the width; gated: a
    gated GELU in the place of ReLU; tied: the output layer is the token embeddings.
    """

    sizes: Mapping[str, Shape]
    ffn: Mapping[str, int]
    gated: bool
    tied: bool
    dropout: float


VERSIONS = {
    "v1.0": Version(
        {"tiny": (2, 128, 2), "mini": (4, 256, 4), "small": (6, 512, 8), "base": (12, 768, 12)},
        {},
        gated=False,
        tied=True,
        dropout=0.1,
    ),
    "v1.1": Version(
        {"tiny": (2, 128, 2), "mini": (4, 256, 4), "small": (8, 512, 6), "base": (12, 768, 12)},
        {"tiny": 344, "mini": 688, "small": 1024, "base": 2048},
        gated=True,
        tied=False,
        dropout=0.0,
    ),
}
"""Small and base as published (Raffel et al. 2020, section 3.1.1; the released v1.1), with heads of 64; tiny
and mini are BERT's of these names, for tests and CPUs. v1.1 has no dropout in pretraining.
"""
OBJECTIVES: Mapping[str, Callable[[SpanCorruption], Pairing]] = {
    "spans": lambda spans: spans,
    "tokens": lambda spans: TokenCorruption(spans.density),
    "drop": lambda spans: DroppedTokens(spans.density),
    "bert": lambda spans: Rebuilding(RandomMasking(spans.density)),
    "mass": lambda spans: Rebuilding(RandomMasking(spans.density, random=0.0)),
    "deshuffle": lambda spans: Rebuilding(Shuffling()),
    "prefix_lm": lambda spans: PrefixLM(),
    "lm": lambda spans: PlainLM(),
}


ONE_STACK: Mapping[str, Pattern] = {"causal_lm": causal, "prefix_lm": causal_with_prefix}
"""Architectures of one stack, by what a token sees."""


class T5(DenoiserHere):
    """T5 with a unigram vocabulary of its own: an encoder reads a corrupted text, a decoder says what is
    missing; pretrained where `pretrain` is set.

    Published: Adafactor at 0.01 with schedule inverse_sqrt, 10,000 steps of warm-up, 128 sequences of 512.

    Settings:
        size: A size by name; leave it out to give layers, width and heads one by one.
        version: v1.1 has a gated GELU, an output layer of its own, no dropout, and other sizes.
        layers: Blocks of the encoder.
        decoder_layers: Blocks of the decoder; default as many.
        width: Hidden size.
        heads: Attention heads; default one per 64 of width.
        head: Size of a head; default the size's (64), or the heads' share of the width.
        ffn: Inner size of the feed-forward part; default the size's, or 4 times the width.
        vocab_size: Entries of the unigram vocabulary trained on the corpus, without the sentinels.
        sentinels: Tokens that stand for spans.
        positions: Longest input that the tokenizer announces; the model itself has no limit.
        dropout: Probability of dropping a hidden value or an attention weight; default the version's.
        objective: What the decoder says; spans the missing spans behind their sentinels, tokens the same with
            each token missing or not by itself, drop the missing tokens, prefix_lm how the text goes on, lm
            the whole text from nothing; the whole text after masking (bert, mass) or shuffling (deshuffle).
        architecture: An encoder and a decoder, or, for comparisons, one stack as deep as the encoder that
            reads inputs and targets one after the other, and sees what is before (causal_lm) or also all of
            the inputs (prefix_lm); its folder opens with T5EncoderModel.
        density: Share of the tokens that are corrupted.
        mean_span: Mean length of a span.
        ends: How often a text begins or ends with noise; even is as often as anywhere, released (as the
            released code) never at the first token and always at the last.
        pretrain: Pretrain on a corpus first.
        finetune: Training on the task.
    """

    def __init__(
        self,
        *,
        size: Literal["tiny", "mini", "small", "base"] | None = None,
        version: Literal["v1.0", "v1.1"] = "v1.0",
        layers: Count | None = None,
        decoder_layers: Count | None = None,
        width: Count | None = None,
        heads: Count | None = None,
        head: Count | None = None,
        ffn: Count | None = None,
        vocab_size: Count = 32000,
        sentinels: Count = 100,
        positions: Count = 512,
        dropout: Fraction | None = None,
        objective: Literal[
            "spans", "tokens", "drop", "bert", "mass", "deshuffle", "prefix_lm", "lm"
        ] = "spans",
        architecture: Literal["encoder_decoder", "causal_lm", "prefix_lm"] = "encoder_decoder",
        density: Share = 0.15,
        mean_span: Positive = 3.0,
        ends: Literal["even", "released"] = "even",
        pretrain: PretrainSettings | None = None,
        finetune: FinetuneSettings = FinetuneSettings(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(positions=positions, pretrain=pretrain, finetune=finetune)
        self.version = VERSIONS[version]
        self.shape = shape_of(self.version.sizes, size, layers, width, heads)
        self.decoder_layers = decoder_layers or self.shape[0]
        self.head = head or (_HEAD if size is not None else self.shape[1] // self.shape[2])
        self.ffn = ffn or self.version.ffn.get(size or "", 4 * self.shape[1])
        self.vocab_size, self.sentinels = vocab_size, sentinels
        self.dropout = self.version.dropout if dropout is None else dropout
        spans = SpanCorruption(density, mean_span, even_ends if ends == "even" else released_ends)
        self.pairing, self.pattern = OBJECTIVES[objective](spans), ONE_STACK.get(architecture)
        if self.pattern is not None and not self.version.tied:
            raise ConfigError(
                f"{architecture} answers by its token embeddings, {version} has an output layer of its own",
                where="teacher.architecture",
                hint="set teacher.version: v1.0",
            )

    def tokenizer(self, corpus: Iterable[str]) -> PreTrainedTokenizerBase:
        return train_unigram(
            corpus, vocab_size=self.vocab_size, sentinels=self.sentinels, max_length=self.positions
        )

    def pretraining(self, tokenizer: PreTrainedTokenizerBase) -> tuple[nn.Module, Objective]:
        """Raises ConfigError where the longest sequences need more sentinels than there are."""
        kind = T5Objective if self.pattern is None else OneStackObjective
        objective = kind(self.pairing, Vocabulary.of_t5(tokenizer))
        if self.pretrain is not None:
            objective.raw_length(self.pretrain.max_length)
        if self.pattern is not None:
            return OneStack(self.config(len(tokenizer)), self.pattern), objective
        return self.model(len(tokenizer)), objective

    def fresh(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        return self.model(len(tokenizer))

    def classifier(
        self, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int, pretrained: Path | None
    ) -> Student:
        if self.pattern is not None:
            raise ConfigError(
                "one stack, which is there for comparisons of pretraining, is not fine-tuned",
                where="teacher.architecture",
                hint="set teacher.architecture: encoder_decoder, or run `distillkit pretrain`",
            )
        return super().classifier(tokenizer, labels, max_length, pretrained)

    def model(self, entries: int) -> T5ForConditionalGeneration:
        """A fresh model for a vocabulary.

        `transformers` ties T5's output layer whatever its version, but opens one that is saved as it is.
        """
        config = self.config(entries)
        config.tie_word_embeddings = self.version.tied
        model = T5ForConditionalGeneration(config)
        if not self.version.tied:
            model.set_input_embeddings(model.shared)
            with torch.no_grad():
                model.lm_head.weight.normal_(std=config.d_model**-0.5)
        return model

    def config(self, entries: int) -> T5Config:
        """Sizes for a vocabulary, whose rows are made a multiple of 128."""
        layers, width, heads = self.shape
        return T5Config(
            vocab_size=-(-entries // _ROWS) * _ROWS,
            d_model=width,
            d_kv=self.head,
            d_ff=self.ffn,
            num_layers=layers,
            num_decoder_layers=self.decoder_layers,
            num_heads=heads,
            dropout_rate=self.dropout,
            feed_forward_proj="gated-gelu" if self.version.gated else "relu",
            tie_word_embeddings=self.version.tied,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
