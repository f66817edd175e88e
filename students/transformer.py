"""A smaller transformer encoder: fresh in the shape of BERT, or cut from its teacher in the teacher's own
shape.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from optimum.utils import NormalizedConfigManager
from transformers import BertConfig, PretrainedConfig, PreTrainedTokenizerBase

from distillkit.encoder import Encoder, fresh
from distillkit.errors import ConfigError
from distillkit.model import FixedTeacher, Student, StudentSource, Teacher
from distillkit.settings import Count, Fraction, Initialise, Labels
from distillkit.students.initialise import chosen_blocks, from_blocks


class Transformer(StudentSource):
    """A transformer encoder of any depth and width, optionally started from chosen blocks of its teacher.

    Settings:
        layers: Blocks.
        width: Hidden size; default the teacher's.
        heads: Attention heads; default one per 64 of width, with `initialise` the teacher's.
        ffn: Inner size of the feed-forward part; default 4 times the width, with `initialise` the teacher's.
        dropout: Probability of dropping a hidden value or an attention weight in training.
        initialise: Teacher blocks to start from; needs the teacher's width.
    """

    def __init__(
        self,
        *,
        layers: Count,
        width: Count | None = None,
        heads: Count | None = None,
        ffn: Count | None = None,
        dropout: Fraction = 0.1,
        initialise: Initialise | None = None,
    ) -> None:
        self.layers, self.width, self.heads, self.ffn = layers, width, heads, ffn
        self.dropout, self.initialise = dropout, initialise
        if width is not None and heads is not None and width % heads:
            raise ConfigError(
                f"{heads} heads do not divide the width {width}",
                where="student.heads",
                hint="width / heads is a whole number",
            )

    def build(
        self, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int, teacher: Teacher
    ) -> Student:
        if self.initialise is None:
            return fresh(self._bert_config(tokenizer, max_length, teacher), labels)
        model = _encoder_of(teacher)
        blocks = chosen_blocks(
            self.initialise, student_layers=self.layers, teacher_layers=model.spec.num_layers
        )
        self._check_sizes(model)
        student = fresh(self._cut_config(model.model.config), labels)
        with torch.no_grad():
            from_blocks(student, model, blocks)
        return student

    def load(self, folder: Path) -> Student:
        return Encoder.load(folder)

    def _bert_config(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, teacher: Teacher
    ) -> BertConfig:
        width = self.width or teacher.spec.hidden_dim
        if not width:
            raise ConfigError("the teacher has no width to take over", where="student.width", hint="give it")
        heads = self.heads or max(1, width // 64)
        if width % heads:
            raise ConfigError(
                f"{heads} heads do not divide the width {width}",
                where="student.heads",
                hint="width / heads is a whole number",
            )
        return BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            num_hidden_layers=self.layers,
            num_attention_heads=heads,
            intermediate_size=self.ffn or 4 * width,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            max_position_embeddings=max(max_length, teacher.spec.max_length),
            pad_token_id=tokenizer.pad_token_id,
        )

    def _check_sizes(self, model: Encoder) -> None:
        """A student that starts from its teacher's blocks has the teacher's sizes."""
        spec = model.spec
        for name, mine, theirs in (
            ("width", self.width, spec.hidden_dim),
            ("heads", self.heads, spec.num_heads),
            ("ffn", self.ffn, spec.ffn_dim),
        ):
            if mine is not None and mine != theirs:
                raise ConfigError(
                    f"{mine} is not the teacher's {theirs}, so its blocks cannot be copied",
                    where=f"student.{name}",
                    hint="leave `initialise` out, or take the teacher's sizes",
                )

    def _cut_config(self, config: PretrainedConfig) -> PretrainedConfig:
        cut = copy.deepcopy(config)
        names = NormalizedConfigManager.get_normalized_config_class(config.model_type)
        setattr(cut, names.NUM_LAYERS, self.layers)
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"):
            if name in cut.to_dict():
                setattr(cut, name, self.dropout)
        return cut


def _encoder_of(teacher: Teacher) -> Encoder:
    if isinstance(teacher, FixedTeacher) and isinstance(teacher.model, Encoder):
        return teacher.model
    raise ConfigError(
        "this teacher has no blocks to copy",
        where="student.initialise",
        hint="only Hugging Face encoders and teachers trained here have them",
    )
