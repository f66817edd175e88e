"""The few values that travel between modules. All frozen; all readable at a glance.

Shape legend, used everywhere: B examples, L tokens, V vocabulary entries or classes, D width, N counted
positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum

import torch
from torch import Tensor


class Access(IntEnum):
    """How deep one may look into a model. A teacher states what it gives, a loss what it needs."""

    LABELS = 0
    SCORES = 1
    FINAL_STATES = 2
    ALL_STATES = 3
    INTERVENTIONS = 4


@dataclass(frozen=True)
class Want:
    """What a forward returns beside the logits. Wants join with `|`; a new request is a new field here.

    access: FINAL_STATES asks for the last block's output, ALL_STATES for the embeddings' and every block's.
    """

    access: Access = Access.SCORES

    def __or__(self, other: Want) -> Want:
        return Want(access=max(self.access, other.access))


Swap = Mapping[int, Callable[[Tensor], Tensor]]
"""Block index (0-based) -> function of that block's output `[B, L, D]`; keys are the blocks to intervene on.
"""


@dataclass(frozen=True)
class Batch:
    """What a forward and a loss may know of a set of examples.

    inputs: what the model takes, by name (`input_ids` `[B, L]`, `attention_mask` `[B, L]`, `token_type_ids`
        `[B, L]`).
    labels: `[B]` class ids (int64) or targets (float32); `[B, L]` for token tasks (-100 = not counted); None:
        unlabelled.
    mask: `[B, L]` bool, True at real tokens, the positions that hidden-state losses count.
    ids: `[B]` int64 stable example ids, so that teacher outputs can be cached and joined.
    sequence_labels: `[B]` int64, a label of each sequence beside the labels of its tokens (NSP); None where
        there is none.
    full: nothing is padded, known without looking at the mask; attention then needs none.
    texts: the raw texts, for teachers that take no token ids; a tuple per example, one entry per segment.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor | None
    mask: Tensor
    ids: Tensor
    texts: tuple[tuple[str, ...], ...] | None = None
    sequence_labels: Tensor | None = None
    full: bool = False

    @property
    def num_examples(self) -> int:
        return int(self.ids.shape[0])

    @property
    def num_tokens(self) -> int:
        """Real (unpadded) tokens."""
        return int(self.mask.sum())

    def to(self, device: torch.device) -> Batch:
        return replace(
            self,
            inputs={name: value.to(device, non_blocking=True) for name, value in self.inputs.items()},
            labels=None if self.labels is None else self.labels.to(device, non_blocking=True),
            mask=self.mask.to(device, non_blocking=True),
            ids=self.ids.to(device, non_blocking=True),
            sequence_labels=None
            if self.sequence_labels is None
            else self.sequence_labels.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class Outputs:
    """What a model says. Teacher and student return the same type.

    logits: `[B, V]` (`[B, L, V]` for token tasks; `[B, 1]` for regression).
    hidden: num_layers + 1 tensors `[B, L, D]`; `hidden[0]` is the embedding output, `hidden[l]` the output of
        block l. With Access.FINAL_STATES it holds one tensor, the last. Empty where not asked for.
    """

    logits: Tensor
    hidden: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Step:
    """All that a loss may look at. A new signal is a new field here, never a new argument in every loss."""

    batch: Batch
    student: Outputs
    teachers: Mapping[str, Outputs] = field(default_factory=dict)
    counterfactual: Step | None = None


@dataclass(frozen=True)
class Spec:
    """Sizes of a model, known before any forward. `num_labels` is 1 for regression."""

    num_layers: int
    hidden_dim: int
    num_heads: int
    ffn_dim: int
    vocab_size: int
    num_labels: int
    max_length: int
