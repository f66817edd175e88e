"""A smaller encoder-decoder: fresh, or cut from its teacher block by block."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Literal

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from distillkit.encoder_decoder import EncoderDecoder, fresh, from_blocks
from distillkit.errors import ConfigError
from distillkit.families import FAMILIES, Sizes
from distillkit.model import Material, Student, StudentSource, Teacher
from distillkit.settings import Count, Fraction, InitialiseStacks, Labels
from distillkit.students.initialise import chosen_blocks


class Seq2seq(StudentSource):
    """An encoder-decoder of any depth, of the teacher's family. Generation runs the encoder once and the
    decoder once a token, so that its blocks are cut first (Shleifer and Rush 2020, section 3.1: shrink and
    fine-tune).

    Settings:
        encoder_layers: Blocks of the encoder; default the teacher's.
        decoder_layers: Blocks of the decoder; default half of the teacher's, rounded up.
        width: Hidden size; default the teacher's.
        heads: Attention heads of every block; default the teacher's, of another width one per 64 of it.
        ffn: Inner size of the feed-forward parts; default the teacher's, of another width 4 times it.
        dropout: Probability of dropping a hidden value or an attention weight in training.
        family: Architecture of a fresh student whose teacher shows none.
        initialise: Teacher blocks to start from, in the teacher's own sizes.
    """

    kinds = ("text_to_text",)

    def __init__(
        self,
        *,
        encoder_layers: Count | None = None,
        decoder_layers: Count | None = None,
        width: Count | None = None,
        heads: Count | None = None,
        ffn: Count | None = None,
        dropout: Fraction = 0.1,
        family: Literal["t5", "bart"] | None = None,
        initialise: InitialiseStacks | None = None,
    ) -> None:
        self.encoder_layers, self.decoder_layers = encoder_layers, decoder_layers
        self.width, self.heads, self.ffn = width, heads, ffn
        self.dropout, self.family, self.initialise = dropout, family, initialise

    def build(
        self, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int, teacher: Teacher
    ) -> Student:
        config = self._config(tokenizer, max_length, teacher)
        sizes, own_output = self._sizes(config, teacher), False
        if self.initialise is not None:
            own_output = _taught_by(teacher).own_output
            theirs = FAMILIES[config.model_type].sizes(config)
            self._check_start(sizes, theirs)
            self._blocks(sizes, theirs)
        FAMILIES[config.model_type].set_sizes(config, sizes, self.dropout)
        return fresh(config, own_output=own_output)

    def start(self, student: Student, material: Material) -> None:
        if self.initialise is None:
            return
        assert isinstance(student, EncoderDecoder)
        teacher = _taught_by(material.teacher)
        own, theirs = (one.family.sizes(one.model.config) for one in (student, teacher))
        from_blocks(student, teacher, *self._blocks(own, theirs))

    def load(self, folder: Path) -> Student:
        return EncoderDecoder.load(folder)

    def _config(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, teacher: Teacher
    ) -> PretrainedConfig:
        """The teacher's, or of a family that is named, before its sizes are set."""
        body = teacher.body
        if self.initialise is not None or (isinstance(body, EncoderDecoder) and self.family is None):
            return copy.deepcopy(_taught_by(teacher).model.config)
        if self.family is None:
            raise ConfigError(
                "the teacher shows no architecture to take over", where="student.family", hint="name one"
            )
        assert tokenizer.pad_token_id is not None
        return FAMILIES[self.family].new(
            vocab_size=teacher.spec.num_labels or len(tokenizer),
            max_length=max(max_length, teacher.spec.max_length),
            pad_id=int(tokenizer.pad_token_id),
            end_id=int(tokenizer.eos_token_id),
        )

    def _sizes(self, config: PretrainedConfig, teacher: Teacher) -> Sizes:
        """What is given, and of the rest the teacher's. Raises ConfigError where neither says it."""
        told = teacher.body.spec if isinstance(teacher.body, EncoderDecoder) else teacher.spec
        width = self.width or told.hidden_dim
        layers = self.encoder_layers or told.num_layers
        decoder = self.decoder_layers or -(-told.decoder_layers // 2)
        for name, value in (("encoder_layers", layers), ("decoder_layers", decoder), ("width", width)):
            if not value:
                raise ConfigError(
                    "the teacher has none to take over", where=f"student.{name}", hint="give it"
                )
        same = width == told.hidden_dim
        heads = self.heads or (told.num_heads if same else max(1, width // 64))
        if width % heads:
            raise ConfigError(
                f"{heads} heads do not divide the width {width}",
                where="student.heads",
                hint="width / heads is a whole number",
            )
        return Sizes(layers, decoder, width, heads, self.ffn or (told.ffn_dim if same else 4 * width))

    def _check_start(self, own: Sizes, theirs: Sizes) -> None:
        """Raise ConfigError where blocks would have to become narrower."""
        for name in ("width", "heads", "ffn"):
            mine, its = getattr(own, name), getattr(theirs, name)
            if mine != its:
                raise ConfigError(
                    f"{mine} is not the teacher's {its}: an encoder-decoder cannot be made narrower with its "
                    "weights",
                    where=f"student.{name}",
                    hint="leave it or `initialise` out",
                )

    def _blocks(self, own: Sizes, theirs: Sizes) -> tuple[list[int], list[int]]:
        """The teacher's blocks of the encoder and of the decoder, numbered from 1."""
        assert self.initialise is not None
        encoder = chosen_blocks(
            self.initialise.encoder,
            student_layers=own.encoder_layers,
            teacher_layers=theirs.encoder_layers,
            where="student.initialise.encoder",
        )
        decoder = chosen_blocks(
            self.initialise.decoder,
            student_layers=own.decoder_layers,
            teacher_layers=theirs.decoder_layers,
            where="student.initialise.decoder",
        )
        return encoder, decoder


def _taught_by(teacher: Teacher) -> EncoderDecoder:
    """The teacher's model. Raises ConfigError where it has no weights to start from."""
    if isinstance(teacher.body, EncoderDecoder):
        return teacher.body
    raise ConfigError(
        "this teacher has no encoder-decoder to start from",
        where="student.initialise",
        hint="leave it out, and name a `family`",
    )
