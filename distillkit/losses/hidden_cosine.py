"""The direction of hidden states, token by token."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional

from distillkit.losses.base import masked_mean
from distillkit.losses.states import StateLoss
from distillkit.settings import LayerMap, Projection, Stack


def cosine_distance(student_BLD: Tensor, teacher_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """1 - cosine of student and teacher states, meaned over real tokens, in fp32 (DistilBERT, Sanh et al.
    2019, section 2: there as CosineEmbeddingLoss with target 1, over the last state). Padding never counts.
    """
    return masked_mean(token_cosine_distance(student_BLD, teacher_BLD), mask_BL)


def token_cosine_distance(student_BLD: Tensor, teacher_BLD: Tensor) -> Tensor:
    """`[B, L]` 1 - cosine."""
    return 1.0 - functional.cosine_similarity(student_BLD.float(), teacher_BLD.float(), dim=-1)


class HiddenCosine(StateLoss):
    """Turn the student's hidden states towards the teacher's: 1 - cosine over real tokens, meaned over mapped
    states.

    Settings:
        layer_map: last, uniform, skip, embeddings, tinybert (embeddings and uniform), closest (the student
            block nearest to each teacher block of the uniform map), or [student, teacher] pairs; 0 is the
            embeddings.
        projection: auto projects where widths differ, shared by one map for all pairs, linear by one a pair,
            none never.
        stack: encoder, or for a model that writes text its decoder, whose states count at the target's
            tokens.
    """

    def __init__(
        self,
        *,
        layer_map: LayerMap | Literal["closest"] = "last",
        projection: Projection = "auto",
        stack: Stack = "encoder",
    ) -> None:
        super().__init__(layer_map=layer_map, projection=projection, stack=stack)

    def distance(self, student_BLD: Tensor, teacher_BLD: Tensor) -> Tensor:
        return token_cosine_distance(student_BLD, teacher_BLD)
