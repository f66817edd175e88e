"""A student's first weights from chosen blocks of its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from distillkit.encoder import Encoder, copy_weights
from distillkit.errors import ConfigError
from distillkit.settings import Blocks


def chosen_blocks(layers: Blocks, *, student_layers: int, teacher_layers: int, where: str) -> list[int]:
    """Teacher blocks, numbered from 1, one for each student block. Raises ConfigError where they do
    not fit."""
    if layers == "uniform":
        if student_layers > teacher_layers:
            raise ConfigError(
                f"the student has {student_layers} layers, the teacher {teacher_layers}",
                where=where,
                hint="leave `initialise` out",
            )
        return [block * teacher_layers // student_layers for block in range(1, student_layers + 1)]
    blocks = list(layers)
    for block in blocks:
        if not 1 <= block <= teacher_layers:
            raise ConfigError(
                f"teacher block {block} does not exist",
                where=where,
                hint=f"blocks are numbered 1 to {teacher_layers}",
            )
    if any(low >= high for low, high in pairwise(blocks)):
        raise ConfigError(
            f"{blocks} is not strictly increasing",
            where=where,
            hint="list each block once, from shallow to deep",
        )
    if len(blocks) != student_layers:
        raise ConfigError(
            f"{len(blocks)} blocks for a student of {student_layers} layers",
            where=where,
            hint="one block for each layer",
        )
    return blocks


def from_blocks(student: Encoder, teacher: Encoder, blocks: Sequence[int], table: Tensor) -> None:
    """Copy the chosen blocks, and all that is left (embeddings, pooler, head), bit for bit.

    table: the teacher's token table, of the student's pieces. A student with every block of its teacher
    computes what the teacher computes.
    """
    student_weights, teacher_weights = student.model.state_dict(), teacher.model.state_dict()
    in_blocks = {f"{name}." for name, part in student.model.named_modules() if part is student.blocks}
    own_table = student.model.get_input_embeddings().weight.data_ptr()
    with torch.no_grad():
        for name, weight in student_weights.items():
            if not name.startswith(tuple(in_blocks)):
                weight.copy_(table if weight.data_ptr() == own_table else teacher_weights[name])
    for own, block in zip(student.blocks, blocks, strict=True):
        copy_weights(teacher.blocks[block - 1], own)
