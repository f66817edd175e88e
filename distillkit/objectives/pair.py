"""A generator that makes replaced tokens and the main model that learns from them, as one module.

Both are classes of `transformers` (ELECTRA's: Clark et al. 2020, section 3.1), so that either opens alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import ElectraForMaskedLM, PretrainedConfig, PreTrainedModel

from distillkit.objectives.base import inputs_of
from distillkit.objectives.sharing import settled
from distillkit.types import Batch

Tie = Literal["none", "embeddings", "all"]
GENERATOR = "generator"
"""Folder in the main model's of a generator that is kept."""


class GeneratorPair(nn.Module):
    """generator: None where samples need no network; main: the discriminator, or a masked language model;
    heads: what is trained beside them and not saved; never: entries that are not sampled, because they stand
    for no text.
    """

    never: Tensor

    def __init__(
        self,
        generator: PreTrainedModel | None,
        main: PreTrainedModel,
        heads: Mapping[str, nn.Module],
        *,
        never: Sequence[int],
        keep_generator: bool = False,
    ) -> None:
        super().__init__()
        self.generator, self.main, self.keep_generator = generator, main, keep_generator
        self.heads = nn.ModuleDict(heads)
        self.register_buffer("never", torch.tensor(list(never)), persistent=False)

    def save_pretrained(self, folder: Path) -> None:
        """The main model as a Hugging Face folder; in it the generator's where that is kept."""
        settled(self.main).save_pretrained(folder)
        if self.keep_generator and self.generator is not None:
            self.generator.save_pretrained(folder / GENERATOR)


def tie(generator: ElectraForMaskedLM, main: PreTrainedModel, what: Tie) -> None:
    """Make the generator share the main model's embeddings (tokens, positions, segments and their norm, as in
    the released code), or all weights of its body, which is then of the same size; its output layer stays
    tied to its token embeddings.
    """
    if what == "embeddings":
        generator.electra.embeddings = main.electra.embeddings
    elif what == "all":
        generator.electra = main.electra
    generator.generator_lm_head.weight = generator.electra.embeddings.word_embeddings.weight


def to_number(config: PretrainedConfig) -> nn.Linear:
    """A head that gives one number a token."""
    head = nn.Linear(config.hidden_size, 1)
    nn.init.normal_(head.weight, std=config.initializer_range)
    nn.init.zeros_(head.bias)
    return head


def states(body: nn.Module, batch: Batch, ids_BL: Tensor) -> Tensor:
    """`[B, L, D]`: what a body makes of these tokens in the place of the batch's."""
    read: Tensor = body(**inputs_of(batch) | {"input_ids": ids_BL}, return_dict=True).last_hidden_state
    return read


def token_scores(model: ElectraForMaskedLM, states_ND: Tensor) -> Tensor:
    """`[N, V]` scores of a masked language model."""
    scores: Tensor = model.generator_lm_head(model.generator_predictions(states_ND))
    return scores
