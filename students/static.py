"""A student without any layer: one vector per piece, taken from the teacher, and their mean.

Shape legend: T token ids of the tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from distillkit.errors import ConfigError
from distillkit.model import Material, Student, StudentSource, Teacher
from distillkit.settings import Count, Fraction, Labels, Positive
from distillkit.students.layers import Layered, Sizes, components, load_layered, mean_pool
from distillkit.students.vocabulary import (
    Renumbered,
    check_size,
    choose,
    count,
    open_saved,
    renumbered,
    shared,
)
from distillkit.types import Access, Batch, Want

_PIECES = 512
"""Pieces the teacher reads at once."""


class Static(StudentSource):
    """Token vectors distilled from the teacher, their mean over the text, and a head (model2vec).

    Tulkens and van Dongen 2024, "Model2Vec: Fast State-of-the-Art Static Embeddings": every piece of the
    vocabulary goes through the teacher by itself, the mean of the last states is its vector, principal
    components shorten it, and frequent pieces weigh less: a / (a + p), smooth inverse frequency (Arora et al.
    2017, section 3). Departures: p is counted in the training rows (plus one for each piece), where model2vec
    has no text and takes Zipf's law; the table, scaled to a mean square of 1, is trained with the head.

    Settings:
        width: Length of a vector, at most the teacher's width.
        hidden: Inner width of the head; default a linear head.
        vocabulary: Pieces with a row of their own, one of them for all the rest; default every piece.
        sif: The a of smooth inverse frequency; smaller lets frequent pieces weigh less.
        dropout: Probability of dropping a token's or a pooled value in training.
    """

    def __init__(
        self,
        *,
        width: Count = 256,
        hidden: Count | None = None,
        vocabulary: Count | None = None,
        sif: Positive = 1e-3,
        dropout: Fraction = 0.0,
    ) -> None:
        self.width, self.hidden, self.vocabulary = width, hidden, vocabulary
        self.sif, self.dropout = sif, dropout

    def build(
        self, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int, teacher: Teacher
    ) -> Student:
        if teacher.access < Access.FINAL_STATES:
            raise ConfigError(
                "this teacher gives no states to take token vectors from",
                where="student.use",
                hint="take a teacher with states, or another student",
            )
        if self.width > teacher.spec.hidden_dim:
            raise ConfigError(
                f"{self.width} is more than the teacher's {teacher.spec.hidden_dim}",
                where="student.width",
                hint=f"at most {teacher.spec.hidden_dim}",
            )
        sizes = Sizes(
            rows=check_size(tokenizer, self.vocabulary),
            embedding=self.width,
            width=self.width,
            layers=0,
            num_labels=labels.num_labels,
            max_length=max(max_length, teacher.spec.max_length),
            dropout=self.dropout,
            inner=self.hidden or 0,
        )
        return renumbered(_model(sizes), tokenizer, self.vocabulary)

    def start(self, student: Student, material: Material) -> None:
        rows = choose(student, material.tokenizer, material.rows)
        counts = count(material.rows, len(rows))
        model = student.inner if isinstance(student, Renumbered) else student
        assert isinstance(model, Layered)
        vectors_TD = components(piece_vectors(material), self.width)
        vectors_TD /= vectors_TD.square().mean().sqrt()
        weighted_TD = vectors_TD * inverse_frequency(counts, self.sif)[:, None]
        with torch.no_grad():
            model.table.weight.copy_(shared(weighted_TD, rows, counts))

    def load(self, folder: Path) -> Student:
        return open_saved(folder, lambda folder: load_layered(folder, _model))


def piece_vectors(material: Material) -> Tensor:
    """`[T, D]`: for each piece alone between the tokenizer's special tokens, the mean of the teacher's last
    states."""
    want, vectors = Want(Access.FINAL_STATES), []
    for batch in _pieces(material.tokenizer):
        states_BLD = material.teacher.outputs(batch.to(material.device), want=want).hidden[-1]
        vectors.append(states_BLD.float().mean(1).cpu())
    return torch.cat(vectors)


def inverse_frequency(counts: NDArray[np.int64], sif: float) -> Tensor:
    """`[T]`: a / (a + p) of each piece, p its share of all tokens with one added to every count."""
    share = (counts + 1) / (counts + 1).sum()
    return torch.from_numpy(sif / (sif + share)).float()


def _pieces(tokenizer: PreTrainedTokenizerBase) -> Iterator[Batch]:
    """Every token id once, with what the tokenizer puts around a text."""
    around = tokenizer("a", return_special_tokens_mask=True)
    ids, special = np.asarray(around["input_ids"]), np.asarray(around["special_tokens_mask"])
    first, last = np.flatnonzero(special == 0)[[0, -1]]
    for pieces in torch.arange(len(tokenizer)).split(_PIECES):
        before, after = (
            torch.from_numpy(part).expand(len(pieces), -1) for part in (ids[:first], ids[last + 1 :])
        )
        tokens_BL = torch.cat([before, pieces[:, None], after], dim=1)
        ones_BL = torch.ones_like(tokens_BL)
        inputs = {
            "input_ids": tokens_BL,
            "attention_mask": ones_BL,
            "token_type_ids": torch.zeros_like(tokens_BL),
        }
        texts = tuple((tokenizer.decode([piece]),) for piece in pieces.tolist())
        yield Batch(inputs=inputs, labels=None, mask=ones_BL.bool(), ids=pieces, texts=texts, full=True)


def _model(sizes: Sizes) -> Layered:
    return Layered(sizes, [], mean_pool)
