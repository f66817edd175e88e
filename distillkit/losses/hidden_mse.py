"""The hidden states themselves, token by token."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from distillkit.losses.states import StateLoss
from distillkit.settings import LayerMap, Projection, Stack


def token_squared_distance(student_BLD: Tensor, teacher_BLD: Tensor) -> Tensor:
    """`[B, L]` squared difference, meaned over the width, in fp32."""
    return (student_BLD.float() - teacher_BLD.float()).square().mean(dim=-1)


class HiddenMse(StateLoss):
    """Make the student's hidden states the teacher's: mean squared difference over real tokens, the width and
    mapped states (TinyBERT, Jiao et al. 2020, equations 8 and 9: one learned matrix for all layers, always,
    which is `projection: shared`, with `layer_map: tinybert`).

    Departures: padding never counts (the published code counts it); layers are meaned, not summed; the matrix
    has no bias, as in the paper.

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
        layer_map: LayerMap | Literal["closest"] = "uniform",
        projection: Projection = "auto",
        stack: Stack = "encoder",
    ) -> None:
        super().__init__(layer_map=layer_map, projection=projection, stack=stack)

    def distance(self, student_BLD: Tensor, teacher_BLD: Tensor) -> Tensor:
        return token_squared_distance(student_BLD, teacher_BLD)
