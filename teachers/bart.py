"""BART, pretrained in this repo to rebuild corrupted texts, in the architecture of `transformers`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torch import nn
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedModel, PreTrainedTokenizerBase

from distillkit.data.tokenizers import train_byte_bpe
from distillkit.objectives.base import Objective
from distillkit.objectives.denoising import BartObjective
from distillkit.objectives.noise import (
    DocumentRotation,
    Noise,
    SentencePermutation,
    Stack,
    TextInfilling,
    TokenDeletion,
    TokenInsertion,
    TokenMasking,
    Vocabulary,
)
from distillkit.objectives.pairs import Rebuilding
from distillkit.settings import Count, FinetuneSettings, Fraction, Positive, PretrainSettings, TaskKind
from distillkit.teachers.denoisers import DenoiserHere
from distillkit.teachers.encoders import shape_of

SIZES = {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "base": (6, 768, 12),
    "large": (12, 1024, 16),
}
"""Layers of each stack, width, heads; base and large as published (Lewis et al. 2020, section 2.1), the
others are BERT's of these names, for tests and CPUs. ffn is 4 times the width.
"""


class Bart(DenoiserHere):
    """BART with a byte-level BPE vocabulary of its own: an encoder reads a corrupted text, a decoder says the
    whole text; pretrained where `pretrain` is set.

    A task on whole texts is answered from the last state of the decoder, which reads the same text as the
    encoder (section 3.1); its states are those of the encoder.

    Published: infilling of 30 % and all sentences permuted, 512 tokens, no dropout in the last tenth of the
    steps; the recipe of its authors has a mean span of 3.5, a rate of 4e-4, and a gradient clipped at 0.1.

    Settings:
        size: A size by name; leave it out to give layers, width and heads one by one.
        layers: Blocks of the encoder.
        decoder_layers: Blocks of the decoder; default as many.
        width: Hidden size.
        heads: Attention heads; default one per 64 of width.
        ffn: Inner size of the feed-forward part; default 4 times the width.
        vocab_size: Entries of the byte-level BPE vocabulary trained on the corpus.
        positions: Longest input the model can take.
        dropout: Probability of dropping a hidden value in training.
        masking: What becomes of the chosen tokens; infilling puts one mask for each span, tokens one for each
            token, deletion none.
        share: Share of the tokens that are chosen.
        mean_span: Mean of the Poisson lengths of infilled spans, zero included.
        random: How often any token stands in the place of a mask.
        whole_word: Choose whole words; shares and lengths are in words then.
        permute: Share of the sentences of a text that change places.
        rotate: How often a text begins anywhere in it.
        insert: Tokens that are added, as a share of the text's.
        calm: Share of the steps, at the end, without dropout.
        pretrain: Pretrain on a corpus first.
        finetune: Training on the task.
    """

    kinds: tuple[TaskKind, ...] = ("classification", "regression", "text_to_text")

    def __init__(
        self,
        *,
        size: Literal["tiny", "mini", "small", "base", "large"] | None = None,
        layers: Count | None = None,
        decoder_layers: Count | None = None,
        width: Count | None = None,
        heads: Count | None = None,
        ffn: Count | None = None,
        vocab_size: Count = 50265,
        positions: Count = 1024,
        dropout: Fraction = 0.1,
        masking: Literal["infilling", "tokens", "deletion"] = "infilling",
        share: Fraction = 0.3,
        mean_span: Positive = 3.0,
        random: Fraction = 0.1,
        whole_word: bool = False,
        permute: Fraction = 1.0,
        rotate: Fraction = 0.0,
        insert: Fraction = 0.0,
        calm: Fraction = 0.1,
        pretrain: PretrainSettings | None = None,
        finetune: FinetuneSettings = FinetuneSettings(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(positions=positions, pretrain=pretrain, finetune=finetune)
        self.shape = shape_of(SIZES, size, layers, width, heads)
        self.decoder_layers = decoder_layers or self.shape[0]
        self.ffn = ffn or 4 * self.shape[1]
        self.vocab_size, self.dropout, self.calm = vocab_size, dropout, calm
        masked: dict[str, Noise] = {
            "infilling": TextInfilling(share, mean_span, random, whole_word),
            "tokens": TokenMasking(share, random, whole_word),
            "deletion": TokenDeletion(share, whole_word),
        }
        noises = (
            (permute, SentencePermutation(permute)),
            (share, masked[masking]),
            (insert, TokenInsertion(insert, random)),
            (rotate, DocumentRotation(rotate)),
        )
        self.noise = Stack([noise for acting, noise in noises if acting])

    def tokenizer(self, corpus: Iterable[str]) -> PreTrainedTokenizerBase:
        return train_byte_bpe(corpus, vocab_size=self.vocab_size, max_length=self.positions)

    def pretraining(self, tokenizer: PreTrainedTokenizerBase) -> tuple[nn.Module, Objective]:
        vocabulary = Vocabulary.of_bart(tokenizer)
        return self.fresh(tokenizer), BartObjective(Rebuilding(self.noise), vocabulary, calm=self.calm)

    def fresh(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        return BartForConditionalGeneration(self.config(len(tokenizer), Vocabulary.of_bart(tokenizer)))

    def config(self, entries: int, vocabulary: Vocabulary) -> BartConfig:
        """Sizes and special tokens for a vocabulary."""
        layers, width, heads = self.shape
        return BartConfig(
            vocab_size=entries,
            d_model=width,
            encoder_layers=layers,
            decoder_layers=self.decoder_layers,
            encoder_attention_heads=heads,
            decoder_attention_heads=heads,
            encoder_ffn_dim=self.ffn,
            decoder_ffn_dim=self.ffn,
            max_position_embeddings=self.positions,
            dropout=self.dropout,
            pad_token_id=vocabulary.pad,
            bos_token_id=vocabulary.before[0],
            eos_token_id=vocabulary.eos,
            decoder_start_token_id=vocabulary.start,
            forced_eos_token_id=vocabulary.eos,
        )
