"""Which student state learns from which teacher state. States are numbered as in `Outputs.hidden`: 0 =
embeddings.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from distillkit.errors import ConfigError
from distillkit.settings import LayerMap

Pairs = tuple[tuple[int, int], ...]


def layer_pairs(
    layer_map: LayerMap, *, student_layers: int, teacher_layers: int, first: Literal[0, 1] = 0
) -> Pairs:
    """(student state, teacher state) pairs; of blocks alone, where `first` is 1.

    last: the last of each. uniform: student block i of M learns from teacher block i * N / M (TinyBERT, Jiao
    et al. 2020, section 3.1), rounded down where N is not a multiple of M. skip: every (N // M)-th teacher
    block, counted from the first (PKD-Skip, Sun et al. 2019, section 3.2); the last state is left to other
    terms there, here it is included only where the stride reaches it. embeddings: the embedding output of
    each. tinybert: embeddings and uniform (TinyBERT, section 3.1). Explicit pairs must lie in 0..M and 0..N
    and rise on both sides.
    """
    depth, height = student_layers, teacher_layers
    if layer_map == "embeddings":
        return ((0, 0),)
    if layer_map == "tinybert":
        return ((0, 0), *layer_pairs("uniform", student_layers=depth, teacher_layers=height))
    if layer_map == "last":
        return ((depth, height),)
    if layer_map in ("uniform", "skip") and depth > height:
        raise ConfigError(
            f"layer_map {layer_map!r} needs a teacher at least as deep: student {depth}, teacher {height}",
            hint="give [student, teacher] pairs",
        )
    if layer_map == "uniform":
        return tuple((block, block * height // depth) for block in range(1, depth + 1))
    if layer_map == "skip":
        stride = height // depth
        return tuple((block, block * stride) for block in range(1, depth + 1))
    pairs = tuple((int(pair[0]), int(pair[1])) for pair in layer_map)
    for side, top, name in ((0, depth, "student"), (1, height, "teacher")):
        states = [pair[side] for pair in pairs]
        bad = [state for state in states if not first <= state <= top]
        if bad:
            what, low = ("block", "1") if first else ("state", "0 (embeddings)")
            raise ConfigError(
                f"{name} {what} {bad[0]} does not exist",
                where="layer_map",
                hint=f"{low} to {top} (last block)",
            )
        if any(low >= high for low, high in pairwise(states)):
            raise ConfigError(
                f"{name} states {states} are not strictly increasing",
                where="layer_map",
                hint="order the pairs by depth, each state once",
            )
    return pairs
