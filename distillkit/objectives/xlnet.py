"""XLNet's objective: a language model over random orders of a sequence, by two-stream attention (Yang et al.
2019), with the memory of Transformer-XL (Dai et al. 2019, section 3.2).

About one token in `predict_one_in` is predicted, in spans; each has a random rank, and all other tokens the
lowest, by which everyone sees them and they see nothing that is predicted. A predicted token's query stream
reads the tokens of lower rank and never its own; its content stream reads itself too. The inputs are never
corrupted.

Departures from the released code. [CLS] and [SEP] have the lowest rank, where it gives them a random one: in
a short sequence a target might else see nothing, and a softmax over nothing is an even look at everything,
its own token included. Ranks are drawn over the whole of a segment, not in blocks of 256. Spans of n tokens
are drawn with weight 1/n over the whole sequence, not one in each context of 6 n; one that goes beyond the
last token goes on at the first, so that all positions are equally likely. No sequence is reversed. [CLS]
stands first, as in BERT, and is of the first segment, not last and of its own. With a memory, a sequence is
cut into segments within a step, where there the memory is of the step before: so a step stays a function of
(seed, epoch, index), a resume is exact, and the weights that made a memory are those that read it.

Shapes: B sequences, L tokens, P predicted tokens of the sequence that has most, N of all, V vocabulary
entries, D width.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import XLNetConfig, XLNetLMHeadModel

from distillkit.data.masking import choose_spans, keyed_uniform
from distillkit.objectives.base import Examples, LossTerm, inputs_of
from distillkit.objectives.corpus import CorpusObjective, Sequences, lay_out, read_corpus
from distillkit.objectives.packing import described, pack
from distillkit.types import IGNORED, Batch

TERM = "permutation"
LONGEST_SPAN = 5
_RIGHT = "accuracy"


class XLNetObjective(CorpusObjective):
    """Permutation language model. memory: tokens of a segment, and states that it is handed from the one
    before; None reads a sequence as one."""

    def __init__(
        self, *, predict_one_in: int = 6, memory: int | None = None, short_sequences: float = 0.05
    ) -> None:
        self.predict_one_in, self.memory, self.short_sequences = predict_one_in, memory, short_sequences

    def examples(self, folder: Path, *, epoch: int, seed: int) -> Sequences:
        return pack(read_corpus(folder), random.Random(f"packing {seed} {epoch}"), self.short_sequences)

    def collate(self, examples: Examples, rows: Sequence[int], *, epoch: int, seed: int) -> Batch:
        """The labels are the tokens to predict, `uniform` the ranks of all."""
        assert isinstance(examples, Sequences)
        index = np.asarray(rows, dtype=np.int64)
        tokens = lay_out(examples, index)
        starts, lengths, ranks = (
            keyed_uniform(seed, epoch, index, tokens.ids.shape[1], draw=draw) for draw in range(3)
        )
        candidates_BL = tokens.text & ~np.isin(tokens.ids, examples.corpus.special)
        counts_B = np.maximum(1, np.rint(tokens.real.sum(axis=1) / self.predict_one_in)).astype(np.int64)
        chosen_BL = choose_spans(candidates_BL, counts_B, starts, lengths, longest=LONGEST_SPAN)
        return replace(tokens.batch(index, tokens.ids, chosen_BL), uniform=torch.from_numpy(ranks))

    def counts(self, batch: Batch) -> Mapping[str, int]:
        assert batch.labels is not None
        return {TERM: int((batch.labels != IGNORED).sum())}

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, LossTerm]:
        """The output layer runs on the predicted tokens only."""
        assert isinstance(model, XLNetLMHeadModel) and batch.labels is not None
        states_ND, targets_N = (torch.cat(parts) for parts in zip(*self._read(model, batch), strict=True))
        scores_NV = model.lm_loss(states_ND).float()
        costs = functional.cross_entropy(scores_NV, targets_N, reduction="sum")
        right = (scores_NV.detach().argmax(-1) == targets_N).sum()
        tally = torch.stack([right.float(), costs.new_tensor(len(targets_N))])
        return {TERM: LossTerm(costs / max(1, len(targets_N)), len(targets_N), tallies={_RIGHT: tally})}

    def _read(self, model: XLNetLMHeadModel, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """(`[N, D]` query stream, `[N]` tokens) of what is predicted in each segment."""
        assert batch.labels is not None and batch.uniform is not None
        length, memories = batch.mask.shape[1], None
        step = self.memory or length
        for start in range(0, length, step):
            here = slice(start, start + step)
            labels_BL = batch.labels[:, here]
            targets_BL = labels_BL != IGNORED
            mapping_BPL, counted_BP = target_mapping(targets_BL)
            read = model.transformer(
                **{name: value[:, here] for name, value in inputs_of(batch).items()},
                perm_mask=hidden_from(targets_BL, batch.uniform[:, here]),
                target_mapping=mapping_BPL,
                mems=memories,
                use_mems=self.memory is not None,
                return_dict=True,
            )
            memories = read.mems
            yield read.last_hidden_state[counted_BP], labels_BL[targets_BL]

    def flops(self, model: nn.Module, length: int) -> float:
        assert isinstance(model, XLNetLMHeadModel)
        config = model.config
        answers = max(1, round(length / self.predict_one_in))
        step = self.memory or length
        starts = range(0, length, step)
        segments = sum(
            two_streams(config, min(step, length - start), answers / len(starts), step if start else 0)
            for start in starts
        )
        return float(segments + 2 * answers * config.d_model * config.vocab_size)

    def figures(self, tallies: Mapping[str, Tensor]) -> Mapping[str, float]:
        right, of = tallies[_RIGHT].tolist()
        return {_RIGHT: right / of} if of else {}

    def metrics(self, examples: Examples) -> Mapping[str, float]:
        assert isinstance(examples, Sequences)
        return described(examples)


def hidden_from(targets_BL: Tensor, ranks_BL: Tensor) -> Tensor:
    """`[B, L, L]`, 1 where i may not read j: j is predicted, and its rank is not below that of i; what is not
    predicted has the lowest rank. (That the content stream reads its own token is the model's doing.)"""
    lowest_BL = torch.where(targets_BL, ranks_BL, -1.0)
    hidden: Tensor = targets_BL[:, None, :] & (lowest_BL[:, None, :] >= lowest_BL[:, :, None])
    return hidden.float()


def target_mapping(targets_BL: Tensor) -> tuple[Tensor, Tensor]:
    """(`[B, P, L]`, 1 where the p-th predicted token of a sequence stands; `[B, P]`, False where a sequence
    has fewer). P is 1 where nothing is predicted."""
    counts_B1 = targets_BL.sum(dim=1, keepdim=True)
    most = max(1, int(counts_B1.max()))
    places_BP = torch.argsort((~targets_BL).int(), dim=1, stable=True)[:, :most]
    counted_BP = torch.arange(most, device=targets_BL.device) < counts_B1
    mapping_BPL = functional.one_hot(places_BP, targets_BL.shape[1]) * counted_BP[:, :, None]
    return mapping_BPL.float(), counted_BP


def two_streams(config: XLNetConfig, length: int, answers: float, memory: int) -> float:
    """FLOPs of one forward through the blocks of both streams on one sequence, whose queries read `memory`
    states beside its own `length`. Distances are projected for every sequence, as `transformers` does it."""
    width, keys = config.d_model, length + memory
    distances = keys + length
    projected = 2 * width * width * (2 * length + 2 * keys + distances + 2 * answers)
    mapped = 2 * 2 * answers * length * width
    scores = 2 * length * width * (2 * keys + distances + 2) + 2 * 2 * length * keys * config.n_head
    forward = 2 * 2 * width * config.d_inner * (length + answers)
    return float(config.n_layer * (projected + mapped + 2 * scores + forward))
