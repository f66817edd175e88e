"""A smaller transformer encoder: fresh in the shape of BERT (of ELECTRA where its table is narrower), or cut
from its teacher in the teacher's own shape.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

from transformers import BertConfig, ElectraConfig, PretrainedConfig, PreTrainedTokenizerBase

from distillkit.encoder import Encoder, fresh, names_of
from distillkit.errors import ConfigError
from distillkit.model import Material, Student, StudentSource, Teacher
from distillkit.settings import ENCODER_KINDS, Count, Fraction, Initialise, Labels
from distillkit.students.initialise import chosen_blocks, from_blocks
from distillkit.students.layers import teacher_encoder
from distillkit.students.narrowing import check_family, narrow
from distillkit.students.vocabulary import (
    Renumbered,
    check_size,
    choose,
    count,
    open_saved,
    renumbered,
    shared,
    special_ids,
)
from distillkit.types import Spec

_DROPOUTS = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"),
    *("resid_pdrop", "embd_pdrop", "attn_pdrop"),
)
"""What the families of `transformers` call the rates between and in their blocks."""


class Transformer(StudentSource):
    """A transformer encoder of any depth and width, optionally started from chosen blocks of its teacher.

    A table narrower than the blocks is ELECTRA's (Clark et al. 2020, section 3.1; ALBERT's factorised
    embeddings). Where it starts from a teacher with larger sizes, see `students/narrowing.py`.

    Settings:
        layers: Blocks.
        width: Hidden size; default the teacher's.
        heads: Attention heads; default one per 64 of width, with `initialise` as large as the teacher's.
        ffn: Inner size of the feed-forward part; default 4 times the width, with `initialise` the teacher's
            ratio.
        embedding: Width of the token table, widened by a linear map; default the width.
        vocabulary: Pieces with a row of their own, one of them for all the rest; default every piece.
        dropout: Probability of dropping a hidden value or an attention weight in training.
        initialise: Teacher blocks to start from; a smaller width, ffn or number of heads keeps the best part.
    """

    kinds = ENCODER_KINDS

    def __init__(
        self,
        *,
        layers: Count,
        width: Count | None = None,
        heads: Count | None = None,
        ffn: Count | None = None,
        embedding: Count | None = None,
        vocabulary: Count | None = None,
        dropout: Fraction = 0.1,
        initialise: Initialise | None = None,
    ) -> None:
        self.layers, self.width, self.heads, self.ffn = layers, width, heads, ffn
        self.embedding, self.vocabulary = embedding, vocabulary
        self.dropout, self.initialise = dropout, initialise
        if width is not None and heads is not None:
            _check_heads(width, heads)

    def build(
        self, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int, teacher: Teacher
    ) -> Student:
        if self.initialise is None:
            config = self._fresh_config(teacher.spec, max_length)
            config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
        else:
            config = self._cut_config(teacher_encoder(teacher, "student.initialise"))
        rows = check_size(tokenizer, self.vocabulary)
        if labels.kind == "mlm":
            self._check_answers()
            config.vocab_size = teacher.spec.num_labels  # unused entries of the teacher's included
        if self.vocabulary is not None:
            config.vocab_size = rows
            config.pad_token_id = special_ids(tokenizer).index(tokenizer.pad_token_id)
        return renumbered(fresh(config, labels), tokenizer, self.vocabulary)

    def _check_answers(self) -> None:
        """Raises ConfigError where the table would not hold every answer."""
        if self.vocabulary is not None:
            raise ConfigError(
                "an mlm task is answered with every piece of the vocabulary",
                where="student.vocabulary",
                hint="leave it out",
            )

    def start(self, student: Student, material: Material) -> None:
        rows = choose(student, material.tokenizer, material.rows)
        if self.initialise is None:
            return
        teacher = teacher_encoder(material.teacher, "student.initialise")
        table = teacher.model.get_input_embeddings().weight.detach().cpu()
        model = student
        if isinstance(student, Renumbered):
            model = student.inner
            table = shared(table[: len(rows)], rows, count(material.rows, len(rows)))
        assert isinstance(model, Encoder)
        blocks = self._blocks(teacher.spec)
        if _sizes(model.spec) == _sizes(teacher.spec):
            from_blocks(model, teacher, blocks, table)
        else:
            narrow(model, teacher, blocks, table, material)

    def load(self, folder: Path) -> Student:
        return open_saved(folder, Encoder.load)

    def _fresh_config(self, teacher: Spec, max_length: int) -> PretrainedConfig:
        width = self.width or teacher.hidden_dim
        if not width:
            raise ConfigError("the teacher has no width to take over", where="student.width", hint="give it")
        heads = self.heads or max(1, width // 64)
        _check_heads(width, heads)
        narrow_table = {} if self.embedding is None else {"embedding_size": self.embedding}
        return (ElectraConfig if narrow_table else BertConfig)(
            **narrow_table,
            hidden_size=width,
            num_hidden_layers=self.layers,
            num_attention_heads=heads,
            intermediate_size=self.ffn or 4 * width,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            max_position_embeddings=max(max_length, teacher.max_length),
        )

    def _blocks(self, teacher: Spec) -> list[int]:
        assert self.initialise is not None
        return chosen_blocks(
            self.initialise.layers,
            student_layers=self.layers,
            teacher_layers=teacher.num_layers,
            where="student.initialise.layers",
        )

    def _cut_config(self, model: Encoder) -> PretrainedConfig:
        """The teacher's config in the student's sizes."""
        if model.model.config.is_encoder_decoder:
            raise ConfigError(
                "the teacher reads with two stacks, and a student of one takes no blocks of them",
                where="student.initialise",
                hint="leave it out, or take `use: pretrained` with the folder of a smaller one",
            )
        cut = copy.deepcopy(model.model.config)
        self._blocks(model.spec)
        names = names_of(cut)
        setattr(cut, names.NUM_LAYERS, self.layers)
        sizes = self._cut_sizes(model.spec)
        self._check_embedding(cut, model.spec.hidden_dim, sizes.width)
        if sizes != _sizes(model.spec):
            check_family(model)
            setattr(cut, names.HIDDEN_SIZE, sizes.width)
            setattr(cut, names.NUM_ATTENTION_HEADS, sizes.heads)
            setattr(cut, "hidden_dim" if cut.model_type == "distilbert" else "intermediate_size", sizes.ffn)
        for name in _DROPOUTS:
            if name in cut.to_dict():
                setattr(cut, name, self.dropout)
        return cut

    def _cut_sizes(self, teacher: Spec) -> _Sizes:
        """Raises ConfigError where a size is more than the teacher's."""
        width = self.width or teacher.hidden_dim
        head_dim = teacher.hidden_dim // teacher.num_heads
        heads = self.heads or (teacher.num_heads if width % head_dim else max(1, width // head_dim))
        sizes = _Sizes(width, heads, self.ffn or max(1, width * teacher.ffn_dim // teacher.hidden_dim))
        _check_heads(width, heads)
        for name, what, mine, theirs in (
            ("width", "is", width, teacher.hidden_dim),
            ("heads", "is", heads, teacher.num_heads),
            ("heads", "values of a head are", width // heads, head_dim),
            ("ffn", "is", sizes.ffn, teacher.ffn_dim),
        ):
            if mine > theirs:
                raise ConfigError(
                    f"{mine} {what} more than the teacher's {theirs}, which cannot be grown",
                    where=f"student.{name}",
                    hint="leave `initialise` out, or stay within the teacher's sizes",
                )
        return sizes

    def _check_embedding(self, config: PretrainedConfig, teacher_width: int, width: int) -> None:
        """The table keeps the teacher's form: as wide as the blocks, or narrower and widened. Raises
        ConfigError for another."""
        theirs = config.to_dict().get("embedding_size", teacher_width)
        if theirs == teacher_width and "embedding_size" in config.to_dict():
            config.embedding_size = width
        mine = width if theirs == teacher_width else theirs
        if (self.embedding or mine) != mine or (theirs != teacher_width and theirs == width):
            raise ConfigError(
                f"a table {self.embedding or mine} wide does not start from the teacher's of {theirs}",
                where="student.embedding",
                hint="leave it or `initialise` out",
            )


@dataclass(frozen=True)
class _Sizes:
    """What weights taken from a teacher may have less of."""

    width: int
    heads: int
    ffn: int


def _sizes(spec: Spec) -> _Sizes:
    return _Sizes(spec.hidden_dim, spec.num_heads, spec.ffn_dim)


def _check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise ConfigError(
            f"{heads} heads do not divide the width {width}",
            where="student.heads",
            hint="width / heads is a whole number",
        )
