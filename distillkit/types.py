"""The few values that travel between modules. All frozen; all readable at a glance.

Shape legend, used everywhere: B examples, L tokens, V vocabulary entries or classes, D width, H attention
heads, N answers (an example each, or a scored token each); where a text is written, L tokens of the source
and T of the target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, Literal

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
    attention: the queries, keys and values of every block; part of ALL_STATES.
    exits: what a student answers before its last block, where it has exits.
    """

    access: Access = Access.SCORES
    attention: bool = False
    exits: bool = False

    def __or__(self, other: Want) -> Want:
        return Want(
            max(self.access, other.access), self.attention or other.attention, self.exits or other.exits
        )


@dataclass(frozen=True)
class Reads:
    """What a loss looks at in a teacher's outputs, so that a cache keeps nothing else. Readings join with
    `|`; by default nothing is read.

    states: numbered as in `Outputs.hidden` of Access.ALL_STATES, -1 is the last; None: all of them.
    blocks: numbered as in `Outputs.attention`, -1 is the last; None: all of them.
    temperatures: where the logits are read as the probabilities of a softmax and in no other way, its
        temperatures (none for their order alone); None: each logit counts as it is.
    decoder_states: numbered as in `Outputs.decoder_hidden`; None: all of them.
    """

    states: frozenset[int] | None = frozenset()
    blocks: frozenset[int] | None = frozenset()
    temperatures: frozenset[float] | None = frozenset()
    decoder_states: frozenset[int] | None = frozenset()

    def __or__(self, other: Reads) -> Reads:
        def joined(mine: frozenset[Any] | None, theirs: frozenset[Any] | None) -> frozenset[Any] | None:
            return None if mine is None or theirs is None else mine | theirs

        return Reads(
            joined(self.states, other.states),
            joined(self.blocks, other.blocks),
            joined(self.temperatures, other.temperatures),
            joined(self.decoder_states, other.decoder_states),
        )


IGNORED = -100
"""Label of a token that has none."""
TARGET_IDS = "target_ids"
"""Name of the input that holds a target."""

Swap = Mapping[int, Callable[[Tensor], Tensor]]
"""Block index (0-based) -> function of that block's output `[B, L, D]`; keys are the blocks to intervene on.
"""


@dataclass(frozen=True)
class Batch:
    """What a forward and a loss may know of a set of examples.

    inputs: what the model takes, by name (`input_ids` `[B, L]`, `attention_mask` `[B, L]`, `token_type_ids`
        `[B, L]`, or where a text is written instead of these types `target_ids` `[B, T]`, the target itself:
        a model puts its own first token before it).
    labels: `[B]` class ids (int64) or targets (float32); `[B, L]` class or vocabulary ids for token tasks,
        `[B, T]` of a target (IGNORED where a position has none); None: unlabelled.
    mask: `[B, L]` bool, True at real tokens, the positions that hidden-state losses count.
    ids: `[B]` int64 stable example ids, so that teacher outputs can be cached and joined.
    scored: `[B, L]` bool, the tokens that a model answers, for token tasks, `[B, T]` the real tokens of a
        target; None: it answers whole examples.
    epoch: which pass over the data this is; keys random choices together with seed and ids.
    sequence_labels: `[B]` int64, a label of each sequence beside the labels of its tokens (NSP); None where
        there is none.
    full: nothing is padded, known without looking at the mask; attention then needs none.
    allowed: `[B, V]` bool, the classes that each example may have: those of its own task where there are
        several; None: all.
    texts: the raw texts, for teachers that take no token ids; a tuple per example, one entry per segment.
    uniform: `[B, L]` float64 in [0, 1), keyed by (seed, epoch, id, position): what a step draws its samples
        with (the tokens of a generator); None: nothing is sampled.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor | None
    mask: Tensor
    ids: Tensor
    texts: tuple[tuple[str, ...], ...] | None = None
    sequence_labels: Tensor | None = None
    full: bool = False
    scored: Tensor | None = None
    epoch: int = 0
    allowed: Tensor | None = None
    uniform: Tensor | None = None

    @property
    def num_examples(self) -> int:
        return int(self.ids.shape[0])

    @property
    def num_answers(self) -> int:
        """Rows of `Outputs.logits`: examples, or scored tokens."""
        return self.num_examples if self.scored is None else int(self.scored.sum())

    @property
    def targets(self) -> Tensor | None:
        """`[N]` the label of each answer (IGNORED where a scored token has none); None: unlabelled."""
        if self.labels is None or self.scored is None:
            return self.labels
        return self.labels[self.scored]

    @property
    def num_tokens(self) -> int:
        """Real (unpadded) tokens; of sources, where texts are written."""
        return int(self.mask.sum())

    @property
    def num_read(self) -> int:
        """Real tokens of sources and targets together."""
        return self.num_tokens + (self.num_answers if TARGET_IDS in self.inputs else 0)

    @property
    def num_places(self) -> int:
        """The same with padding."""
        targets = self.inputs[TARGET_IDS].numel() if TARGET_IDS in self.inputs else 0
        return self.mask.numel() + targets

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
            scored=None if self.scored is None else self.scored.to(device, non_blocking=True),
            allowed=None if self.allowed is None else self.allowed.to(device, non_blocking=True),
            uniform=None if self.uniform is None else self.uniform.to(device, non_blocking=True),
        )

    def take(self, rows: Tensor) -> Batch:
        """The chosen examples (int64 positions)."""

        def taken(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[rows]

        return replace(
            self,
            inputs={name: value[rows] for name, value in self.inputs.items()},
            labels=taken(self.labels),
            mask=self.mask[rows],
            ids=self.ids[rows],
            texts=None if self.texts is None else tuple(self.texts[row] for row in rows.tolist()),
            sequence_labels=taken(self.sequence_labels),
            scored=taken(self.scored),
            allowed=taken(self.allowed),
            uniform=taken(self.uniform),
        )


@dataclass(frozen=True)
class Projections:
    """What the attention of one block computes with, `[B, H, L, D / H]` each, before any scaling."""

    query: Tensor
    key: Tensor
    value: Tensor


@dataclass(frozen=True)
class Outputs:
    """What a model says. Teacher and student return the same type.

    logits: `[N, V]`, a row for each answer: N = B for tasks on whole examples (`[B, 1]` for regression), the
        scored positions in row-major order for token tasks.
    hidden: num_layers + 1 tensors `[B, L, D]`; `hidden[0]` is the embedding output, `hidden[l]` the output of
        block l. With Access.FINAL_STATES it holds one tensor, the last. Empty where not asked for.
    attention: num_layers Projections, `attention[b]` those of block b + 1. Empty where not asked for.
    decoder_hidden: of a model that writes text, decoder_layers + 1 tensors `[B, T, D]`, numbered and asked
        for as `hidden`, which then holds the encoder's; position t has read the target up to t - 1.
    exits: what each exit says, the shallowest first and the model's own answer last: logits, and as `hidden`
        the two states `[B, L, D]` that it reads and that its classifier reads. Empty where not asked for.
    """

    logits: Tensor
    hidden: Sequence[Tensor] = ()
    attention: Sequence[Projections] = ()
    exits: Sequence[Outputs] = ()
    decoder_hidden: Sequence[Tensor] = ()


IMPOSSIBLE = -8192.0
"""Logit of a class that an example cannot have: its probability is 0 at any temperature that anybody distils
with, and it is the same number in every precision.
"""


def restricted(outputs: Outputs, batch: Batch) -> Outputs:
    """What a model says of the classes that each example may have; the same where it may have all."""
    if batch.allowed is None:
        return outputs
    logits_NV = outputs.logits.masked_fill(~batch.allowed, IMPOSSIBLE)
    return replace(outputs, logits=logits_NV, exits=[restricted(one, batch) for one in outputs.exits])


@dataclass(frozen=True)
class Step:
    """All that a loss may look at. A new signal is a new field here, never a new argument in every loss.

    counterfactual: the same batch once more, answered by student and teachers after the same intervention on
        both (`distillkit.interchange`); None where no loss asks for Access.INTERVENTIONS.
    """

    batch: Batch
    student: Outputs
    teachers: Mapping[str, Outputs] = field(default_factory=dict)
    counterfactual: Step | None = None


@dataclass(frozen=True)
class Spec:
    """Sizes of a model, known before any forward. `num_labels` is 1 for regression.

    num_segments: kinds of `token_type_ids` that it tells apart; 1: it does not read them. attention: whether
    it shows the queries, keys and values of its blocks (`Outputs.attention`). num_ids: token ids that it
    reads, where several share one of its `vocab_size` rows; 0: each has its own. exits: the blocks, from 1,
    after which it may answer beside the last. causal: a token's states know nothing of what comes after it.
    decoder_layers: blocks of the decoder of a model that writes text; `num_layers` are then the encoder's,
    and both have the same width and heads.
    """

    num_layers: int
    hidden_dim: int
    num_heads: int
    ffn_dim: int
    vocab_size: int
    num_labels: int
    max_length: int
    num_segments: int = 1
    attention: bool = False
    num_ids: int = 0
    exits: tuple[int, ...] = ()
    causal: bool = False
    decoder_layers: int = 0


@dataclass(frozen=True)
class Finding:
    """What a person should know of a run before anything is trained.

    severity: a warning is about what will probably cost quality, time or memory; place: the part of the
    recipe.
    """

    severity: Literal["warning", "fact"]
    place: str
    sentence: str
