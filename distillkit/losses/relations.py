"""What the terms on attention share: scores of all pairs of tokens, and relations between their
distributions.

Queries, keys and values are taken from the projections (`Outputs.attention`), so that the models' own fast
attention stays on: stock models would give rows after the softmax only, by a slow path. Padding is masked as
a key and never counted as a query.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distillkit.errors import ConfigError
from distillkit.types import Spec


def scaled_scores(left_BHLd: Tensor, right_BHLd: Tensor) -> Tensor:
    """`[B, H, L, L]` left · rightᵀ / √d, in fp32 (Vaswani et al. 2017, equation 1, before the softmax)."""
    scale = math.sqrt(left_BHLd.shape[-1])
    return left_BHLd.float() @ right_BHLd.float().transpose(-1, -2) / scale


def relation_divergence(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], mask_BL: Tensor
) -> Tensor:
    """Mean over heads and real tokens of KL(teacher || student) between softmax(left · rightᵀ / √d) rows, in
    nats (MiniLM, Wang et al. 2020, equations 5 and 7).

    student, teacher: (left, right), each `[B, H, L, d]`; d may differ, H must not.
    """
    keys_B11L = mask_BL[:, None, None, :]

    def rows(side: tuple[Tensor, Tensor]) -> Tensor:
        return scaled_scores(*side).masked_fill(~keys_B11L, -torch.inf).log_softmax(dim=-1)

    told_BHLL, mine_BHLL = rows(teacher), rows(student)
    terms_BHLL = told_BHLL.exp() * (told_BHLL - mine_BHLL).masked_fill(~keys_B11L, 0.0)
    return _over_tokens(terms_BHLL.sum(dim=-1), mask_BL)


def score_distance(student_BHLL: Tensor, teacher_BHLL: Tensor, mask_BL: Tensor) -> Tensor:
    """Mean squared difference of scores over heads and pairs of real tokens."""
    pairs_B1LL = (mask_BL[:, None, :, None] & mask_BL[:, None, None, :]).expand_as(student_BHLL)
    squared = (student_BHLL - teacher_BHLL).square()
    return torch.where(pairs_B1LL, squared, 0.0).sum() / pairs_B1LL.sum().clamp(min=1)


def split_heads(states_BHLd: Tensor, num_heads: int) -> Tensor:
    """The same vectors, heads joined and cut into another number of them (MiniLM v2, section 3.1)."""
    B, H, L, d = states_BHLd.shape
    joined_BLD = states_BHLd.transpose(1, 2).reshape(B, L, H * d)
    return joined_BLD.view(B, L, num_heads, H * d // num_heads).transpose(1, 2)


def chosen_block(given: int | None, model: Spec, side: str) -> int:
    """Index into `Outputs.attention` of a block numbered from 1; the last where none is given.

    Raises ConfigError for a model that shows no attention, or a block that it does not have.
    """
    check_attention(model, side)
    if given is not None and given > model.num_layers:
        raise ConfigError(
            f"{side} block {given} does not exist",
            where=f"{side}_block",
            hint=f"1 to {model.num_layers} (the last)",
        )
    return (given or model.num_layers) - 1


def check_attention(model: Spec, side: str) -> None:
    """Raises ConfigError for a model that shows no queries, keys and values."""
    if not model.attention:
        raise ConfigError(
            f"the {side} shows no queries, keys and values: it has none, or computes them in one product",
            hint="use a loss on scores, or on hidden states where it has some",
        )


def check_heads(student: Spec, teacher: Spec, hint: str) -> None:
    """Raises ConfigError where head counts differ."""
    if student.num_heads != teacher.num_heads:
        raise ConfigError(
            f"the student has {student.num_heads} heads and the teacher {teacher.num_heads}", hint=hint
        )


def _over_tokens(terms_BHL: Tensor, mask_BL: Tensor) -> Tensor:
    real_B1L = mask_BL[:, None, :].expand_as(terms_BHL)
    return torch.where(real_B1L, terms_BHL, 0.0).sum() / real_B1L.sum().clamp(min=1)
