"""Language models of one stack, which read inputs and targets one after the other.

The other two architectures of T5's study (Raffel et al. 2020, section 3.2.1): a causal language model sees
what is before each token, a prefix language model also sees all of the inputs from everywhere. Both are a
stack of T5's blocks, so that they do nothing else differently. A departure: distances are told apart in both
directions in both, so that a prefix can see itself.

Shapes: B texts, S tokens of inputs and targets together, N target tokens, D width, V vocabulary entries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import T5Config, T5EncoderModel

from distillkit.flops import HONEST, Stacks
from distillkit.objectives.base import Examples, LossTerm
from distillkit.objectives.corrupted import share
from distillkit.objectives.denoising import TERM, T5Objective
from distillkit.types import IGNORED, Batch

Pattern = Callable[[Tensor, Tensor], Tensor]
"""From `[B, S]` bool, real tokens and those of the inputs, to `[B, S, S]`: whether a token (row) sees another
one (column)."""
_HIDDEN = -1e9


def causal(real_BS: Tensor, prefix_BS: Tensor) -> Tensor:
    """Each token sees itself and what is before it."""
    size = real_BS.shape[1]
    before = torch.ones(size, size, dtype=torch.bool, device=real_BS.device).tril()
    return before & real_BS[:, None, :]


def causal_with_prefix(real_BS: Tensor, prefix_BS: Tensor) -> Tensor:
    """The same, and all of the inputs."""
    return causal(real_BS, prefix_BS) | (prefix_BS & real_BS)[:, None, :]


class OneStack(nn.Module):
    """A stack of T5's blocks, whose output layer is its token embeddings, scaled as T5's are."""

    def __init__(self, config: T5Config, pattern: Pattern) -> None:
        super().__init__()
        self.body, self.pattern = T5EncoderModel(config), pattern

    @property
    def config(self) -> T5Config:
        config: T5Config = self.body.config
        return config

    def states(self, ids_BS: Tensor, real_BS: Tensor, prefix_BS: Tensor) -> Tensor:
        """`[B, S, D]` of the last block."""
        seen = self.pattern(real_BS, prefix_BS)
        mask = torch.zeros(seen.shape, dtype=self.body.shared.weight.dtype, device=seen.device)
        mask = mask.masked_fill(~seen, _HIDDEN)[:, None]
        made: Tensor = self.body(input_ids=ids_BS, attention_mask=mask).last_hidden_state
        return made

    def scores(self, states_ND: Tensor) -> Tensor:
        """`[N, V]`."""
        scaled = states_ND * self.config.d_model**-0.5
        return functional.linear(scaled, self.body.shared.weight)

    def save_pretrained(self, folder: Path) -> None:
        """A Hugging Face folder, which T5EncoderModel opens; it sees as an encoder does there."""
        self.body.save_pretrained(folder)


class OneStackObjective(T5Objective):
    """The inputs and targets of an encoder-decoder, one after the other; each target token is predicted from
    what is before it."""

    def collate(self, examples: Examples, rows: Sequence[int], *, epoch: int, seed: int) -> Batch:
        return joined(super().collate(examples, rows, epoch=epoch, seed=seed))

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, LossTerm]:
        """The output layer runs where a target is predicted only."""
        assert isinstance(model, OneStack) and batch.labels is not None
        states_BSD = model.states(batch.inputs["input_ids"], batch.mask, batch.inputs["prefix"])
        said_BS = batch.labels != IGNORED
        scores_NV, labels_N = model.scores(states_BSD[said_BS]).float(), batch.labels[said_BS]
        summed = functional.cross_entropy(scores_NV, labels_N, reduction="sum")
        told = {"token_accuracy": share(scores_NV.detach().argmax(-1) == labels_N)}
        read = torch.where(batch.inputs["prefix"], batch.inputs["input_ids"], self.vocabulary.pad)
        told |= self._told(read, batch.inputs["prefix"], batch.labels)
        return {TERM: LossTerm(summed / max(1, len(labels_N)), len(labels_N), tallies=told)}

    def flops(self, model: nn.Module, length: int) -> float:
        assert isinstance(model, OneStack)
        shape = Stacks.of(model.config).encoder
        read, said = self._foreseen(length)
        return HONEST.encoder(shape, read + said - 1) + said * 2 * shape.width * shape.vocabulary


def joined(batch: Batch) -> Batch:
    """A batch of an encoder-decoder as one of a language model: the inputs, then the targets but for their
    last token; labels stand where the token before them is read. `prefix` is True at the inputs."""
    assert batch.labels is not None
    kept = torch.cat([batch.mask, batch.labels != IGNORED], dim=1)
    lengths_B1 = kept.sum(dim=1, keepdim=True)
    order = torch.argsort((~kept).long(), dim=1, stable=True)[:, : int(lengths_B1.max())]
    ids = torch.cat([batch.inputs["input_ids"], batch.labels], dim=1).gather(1, order)
    position = torch.arange(ids.shape[1])
    target = (position >= batch.mask.sum(dim=1, keepdim=True)) & (position < lengths_B1)
    real = (position < lengths_B1 - 1)[:, :-1]
    prefix = real & ~target[:, :-1]
    read = torch.where(position < lengths_B1, ids, 0)[:, :-1]
    return replace(
        batch,
        inputs={"input_ids": read, "attention_mask": real.long(), "prefix": prefix},
        labels=torch.where(target, ids, IGNORED)[:, 1:],
        mask=real,
        full=bool(real.all()),
    )
