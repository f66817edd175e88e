"""GPT's objective: every token is predicted from those before it (Radford et al. 2018, section 3.1).

Blocks are cut from one stream of all documents, as for GPT-2, and see across the ends of documents. A block
begins with `<s>`, so that its first token is predicted too: each token of the corpus, and the `</s>` after
each document, is a target once an epoch. A text of the task has the same two tokens around it.

Shapes: B blocks, L tokens, N targets, V vocabulary entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from distillkit.flops import HONEST, Shape
from distillkit.objectives import predicted
from distillkit.objectives.base import Examples, LossTerm, inputs_of
from distillkit.objectives.blocks import Blocks, full_blocks
from distillkit.objectives.corpus import CorpusObjective, read_corpus
from distillkit.types import IGNORED, Batch


class GptObjective(CorpusObjective):
    """Causal language model. A batch's labels are its own tokens, of which a model predicts the next ones."""

    def examples(self, folder: Path, *, epoch: int, seed: int) -> Blocks:
        """The same in every epoch; what changes is their order."""
        return full_blocks(read_corpus(folder))

    def collate(self, examples: Examples, rows: Sequence[int], *, epoch: int, seed: int) -> Batch:
        """Without segments, which GPT-2 would read as words."""
        assert isinstance(examples, Blocks)
        index = np.asarray(rows, dtype=np.int64)
        tokens = examples.lay_out(index)
        targets_BL = tokens.real & (np.arange(tokens.ids.shape[1]) > 0)
        batch = tokens.batch(index, tokens.ids, targets_BL)
        inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
        return replace(batch, inputs=inputs)

    def counts(self, batch: Batch) -> Mapping[str, int]:
        assert batch.labels is not None
        return {"lm": int((batch.labels[:, 1:] != IGNORED).sum())}

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, LossTerm]:
        """The mean negative log-likelihood of real next tokens."""
        assert isinstance(model, GPT2LMHeadModel) and batch.labels is not None
        states_BLD = model.transformer(**inputs_of(batch), return_dict=True).last_hidden_state
        next_BL = batch.labels[:, 1:]
        real_BL = next_BL != IGNORED
        return {"lm": predicted.term(model.lm_head(states_BLD[:, :-1][real_BL]), next_BL[real_BL])}

    def flops(self, model: nn.Module, length: int) -> float:
        """The whole square of attention, which is what is computed."""
        assert isinstance(model, GPT2LMHeadModel)
        config = model.config
        width = int(config.n_embd)
        inner = config.n_inner or 4 * width
        shape = Shape(config.n_layer, width, config.n_head, inner, config.vocab_size, width, width)
        return HONEST.encoder(shape, length) + (length - 1) * 2 * width * int(config.vocab_size)

    def figures(self, tallies: Mapping[str, Tensor]) -> Mapping[str, float]:
        return predicted.figures(tallies)

    def metrics(self, examples: Examples) -> Mapping[str, float]:
        assert isinstance(examples, Blocks)
        return examples.metrics()
