"""The direction of hidden states, token by token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from distillkit.errors import ConfigError
from distillkit.losses.base import TEACHER, Loss, masked_mean
from distillkit.losses.layer_maps import Pairs, layer_pairs
from distillkit.settings import LayerMap
from distillkit.types import Access, Batch, Reads, Spec, Step, Want


def cosine_distance(student_BLD: Tensor, teacher_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """1 - cosine of student and teacher states, meaned over real tokens, in fp32 (DistilBERT, Sanh et al.
    2019, section 2: there as CosineEmbeddingLoss with target 1, over the last state). Padding never counts.
    """
    similarity_BL = functional.cosine_similarity(student_BLD.float(), teacher_BLD.float(), dim=-1)
    return masked_mean(1.0 - similarity_BL, mask_BL)


class HiddenCosine(Loss):
    """Turn the student's hidden states towards the teacher's: 1 - cosine over real tokens, meaned over mapped
    states.

    States are numbered as in `Outputs.hidden`: 0 is the embedding output, l the output of block l. Where
    widths differ, a linear map without bias per pair takes the student's state to the teacher's width; it is
    trained with the student, saved in checkpoints, and never exported.

    Settings:
        layer_map: last, uniform, skip, or explicit [student, teacher] pairs; 0 is the embeddings.
        projection: auto projects where widths differ, linear always, none never.
    """

    needs = Want(access=Access.ALL_STATES)
    trains_logits = False

    def __init__(
        self, *, layer_map: LayerMap = "last", projection: Literal["auto", "linear", "none"] = "auto"
    ) -> None:
        super().__init__()
        self.layer_map, self.projection = layer_map, projection
        self.pairs: Pairs = ()
        self.projections = nn.ModuleList()

    def bind(self, student: Spec, teachers: Mapping[str, Spec]) -> None:
        teacher = teachers[TEACHER]
        self.pairs = layer_pairs(
            self.layer_map, student_layers=student.num_layers, teacher_layers=teacher.num_layers
        )
        differ = student.hidden_dim != teacher.hidden_dim
        if differ and self.projection == "none":
            raise ConfigError(
                f"student width {student.hidden_dim} and teacher width {teacher.hidden_dim} differ",
                where="projection",
                hint="add projection: linear",
            )
        if differ or self.projection == "linear":
            self.projections = nn.ModuleList(
                _linear(student.hidden_dim, teacher.hidden_dim) for _ in self.pairs
            )

    def reads(self) -> Reads:
        return Reads(states=frozenset(high for _, high in self.pairs))

    def count(self, batch: Batch) -> int:
        return batch.num_tokens

    def forward(self, step: Step) -> Tensor:
        student, teacher = step.student.hidden, step.teachers[TEACHER].hidden
        terms = []
        for index, (low, high) in enumerate(self.pairs):
            state = self.projections[index](student[low]) if len(self.projections) else student[low]
            terms.append(cosine_distance(state, teacher[high], step.batch.mask))
        return torch.stack(terms).mean()


def _linear(width: int, out: int) -> nn.Linear:
    layer = nn.Linear(width, out, bias=False)
    nn.init.normal_(layer.weight, std=width**-0.5)
    return layer
