"""ELECTRA, pretrained in this repo by its generator and discriminator, in the architecture of
`transformers`."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import ElectraConfig, PreTrainedTokenizerBase

from distillkit.errors import ConfigError
from distillkit.objectives.base import Objective
from distillkit.objectives.corrupted import (
    AllTokensMLM,
    DetectionAtMasked,
    MainTask,
    ReplacedTokenDetection,
    ReplaceMLM,
)
from distillkit.objectives.electra import (
    Adversarial,
    ElectraObjective,
    Masked,
    NoGenerator,
    TwoStage,
    Unigram,
)
from distillkit.settings import Count, FinetuneSettings, Fraction, Positive, PretrainSettings, Share
from distillkit.teachers.encoders import PretrainedByGenerator, shape_of


@dataclass(frozen=True)
class Size:
    """layers, width, heads; width of the embeddings; width of the generator as a share; masked share."""

    shape: tuple[int, int, int]
    embedding: int
    generator: float = 1 / 4
    mask_rate: float = 0.15


SIZES = {
    "tiny": Size((2, 128, 2), 128, generator=1 / 2),
    "mini": Size((4, 256, 4), 128),
    "small": Size((12, 256, 4), 128),
    "base": Size((12, 768, 12), 768, generator=1 / 3),
    "large": Size((24, 1024, 16), 1024, mask_rate=0.25),
}
"""Small, base and large as published (Clark et al. 2020, table 6); tiny and mini are BERT's of these names,
for tests and CPUs. ffn is 4 times the width.
"""
TASKS: dict[str, type[MainTask]] = {
    "electra": ReplacedTokenDetection,
    "electra_15": DetectionAtMasked,
    "replace_mlm": ReplaceMLM,
    "all_tokens_mlm": AllTokensMLM,
}
GENERATORS: dict[str, type[ElectraObjective]] = {
    "joint": ElectraObjective,
    "two_stage": TwoStage,
    "unigram": Unigram,
    "mask": Masked,
    "adversarial": Adversarial,
}


class Electra(PretrainedByGenerator):
    """ELECTRA with a WordPiece vocabulary of its own: a generator replaces tokens, the discriminator finds
    them; pretrained where `pretrain` is set, fine-tuned on the task.

    Published rates: pretraining 5e-4 (small) or 2e-4, warm-up over 10,000 steps; fine-tuning 3e-4, 1e-4 or
    5e-5 (small, base, large) without weight decay, `finetune.layer_decay` 0.8, 0.8 or 0.9.

    Settings:
        size: A size by name; leave it out to give layers, width and heads one by one.
        layers: Blocks.
        width: Hidden size.
        heads: Attention heads; default one per 64 of width.
        ffn: Inner size of the feed-forward part; default 4 times the width.
        embedding: Width of the embeddings, projected where the hidden size differs; default the size's, or
            the width.
        vocab_size: Entries of the WordPiece vocabulary trained on the corpus.
        positions: Longest input the model can take.
        dropout: Probability of dropping a hidden value or an attention weight in training.
        objective: What the main model learns; electra detects replaced tokens everywhere, electra_15 at the
            masked positions only, replace_mlm predicts the originals there, all_tokens_mlm everywhere with a
            copy mechanism.
        generator: How tokens are replaced; by a generator that is trained jointly, in two_stage before the
            main model (whose first weights are a copy), by unigram frequencies, by one that is trained
            adversarially, or (mask) by [MASK] as BERT does it, which with replace_mlm is BERT's masked
            language model in this architecture.
        generator_width: Width of the generator as a share of the width; default the size's, or a quarter.
        tie: What generator and main model share; embeddings are those of tokens, positions and segments, and
            their norm.
        keep_generator: Keep the generator, in the folder pretrain/generator.
        discriminator_weight: Weight of the main model's term beside the generator's; default 50 where it
            detects, 1 where it predicts tokens.
        mask_rate: Share of the tokens that the generator predicts; default 0.25 for large, else 0.15.
        with_replacement: Draw masked positions with replacement, as the released code does; fewer are hit.
        short_sequences: Share of the sequences that aim at a random shorter length.
        temperature: Divides the generator's scores before it samples.
        disallow_correct: Never sample the original token.
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
        embedding: Count | None = None,
        vocab_size: Count = 30522,
        positions: Count = 512,
        dropout: Fraction = 0.1,
        objective: Literal["electra", "electra_15", "replace_mlm", "all_tokens_mlm"] = "electra",
        generator: Literal["joint", "two_stage", "unigram", "mask", "adversarial"] = "joint",
        generator_width: Share | None = None,
        tie: Literal["none", "embeddings", "all"] = "embeddings",
        keep_generator: bool = False,
        discriminator_weight: Positive | None = None,
        mask_rate: Share | None = None,
        with_replacement: bool = False,
        short_sequences: Fraction = 0.05,
        temperature: Positive = 1.0,
        disallow_correct: bool = False,
        pretrain: PretrainSettings | None = None,
        finetune: FinetuneSettings = FinetuneSettings(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(
            vocab_size=vocab_size,
            positions=positions,
            keep_generator=keep_generator,
            pretrain=pretrain,
            finetune=finetune,
        )
        shape = shape_of({name: one.shape for name, one in SIZES.items()}, size, layers, width, heads)
        known = Size(shape, shape[1]) if size is None else SIZES[size]
        self.shape, self.ffn, self.dropout = shape, ffn or 4 * shape[1], dropout
        self.embedding = embedding or known.embedding
        self.generator_width = known.generator if generator_width is None else generator_width
        self.tie = tie
        _check_generator(generator, objective, tie, keep_generator, generator_width, self.generator_width)
        self.objective = GENERATORS[generator](
            TASKS[objective](),
            weight=discriminator_weight,
            mask_rate=known.mask_rate if mask_rate is None else mask_rate,
            with_replacement=with_replacement,
            short_sequences=short_sequences,
            temperature=temperature,
            disallow_correct=disallow_correct,
        )

    def pretraining(self, tokenizer: PreTrainedTokenizerBase) -> tuple[nn.Module, Objective]:
        config = self.config(len(tokenizer))
        special = (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id)
        pair = self.objective.pair(
            self.generator_config(config),
            config,
            tied=self.tie,
            never=(*special, tokenizer.mask_token_id),
            keep_generator=self.keep_generator,
        )
        return pair, self.objective

    @property
    def detects(self) -> bool:
        return isinstance(self.objective.task, ReplacedTokenDetection)

    def config(self, vocab_size: int) -> ElectraConfig:
        layers, width, heads = self.shape
        return ElectraConfig(
            vocab_size=vocab_size,
            embedding_size=self.embedding,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=self.ffn,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            summary_last_dropout=self.dropout,
            max_position_embeddings=self.positions,
            layer_norm_eps=1e-12,
        )

    def generator_config(self, main: ElectraConfig) -> ElectraConfig:
        """As deep and with embeddings as wide as the main model's, of which it has a share of the width."""
        made = copy.deepcopy(main)
        width = max(1, round(self.generator_width * main.hidden_size))
        if width != main.hidden_size:
            most = max(1, width // 64)
            made.num_attention_heads = next(heads for heads in range(most, 0, -1) if width % heads == 0)
            made.hidden_size, made.intermediate_size = width, 4 * width
        return made


def _check_generator(
    generator: str, objective: str, tie: str, keep: bool, given: float | None, share: float
) -> None:
    """Raise ConfigError for settings of the generator that contradict each other."""
    if issubclass(GENERATORS[generator], NoGenerator):
        asked = {"generator_width": given is not None, "keep_generator": keep}
        for name in (name for name, set_ in asked.items() if set_):
            raise ConfigError(
                f"generator: {generator} has no network, and {name} is given",
                where=f"teacher.{name}",
                hint="leave it out",
            )
    if generator == "mask" and objective != "replace_mlm":
        raise ConfigError(
            f"generator: mask replaces no tokens, and objective: {objective} learns from replaced ones",
            where="teacher.objective",
            hint="set teacher.objective: replace_mlm, which predicts what was hidden",
        )
    if tie == "all" and share != 1:
        raise ConfigError(
            f"tie: all needs a generator as wide as the main model, and its width is {share:.3g} of that",
            where="teacher.tie",
            hint="set teacher.generator_width: 1, or tie: embeddings",
        )
    if generator == "two_stage" and (share != 1 or tie != "none"):
        raise ConfigError(
            "generator: two_stage copies the generator into the main model, which then changes: "
            f"they are of one size and share nothing, not generator_width {share:.3g} and tie: {tie}",
            where="teacher.generator",
            hint="set teacher.generator_width: 1 and teacher.tie: none",
        )
    if generator == "adversarial" and objective not in ("electra", "electra_15"):
        raise ConfigError(
            f"generator: adversarial is rewarded by a discriminator, and objective: {objective} has none",
            where="teacher.generator",
            hint="set teacher.objective: electra",
        )
