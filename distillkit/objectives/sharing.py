"""Ways for a generator and the model that reads its samples to share their table of tokens (He, Gao and Chen
2021, section 3.3).

Shapes: B sequences, L tokens, V vocabulary entries, E width of the table.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Sharing = Literal["gdes", "es", "nes"]


class SummedTable(nn.Module):
    """Another model's table plus a table `delta` of its own, which starts at zero; only `delta` learns from
    what is looked up here (gradient-disentangled embedding sharing: E_D = stop_gradient(E_G) + E_delta).
    """

    def __init__(self, base: nn.Embedding) -> None:
        super().__init__()
        self.base = base
        self.delta = nn.Embedding(base.num_embeddings, base.embedding_dim, padding_idx=base.padding_idx)
        nn.init.zeros_(self.delta.weight)

    def forward(self, ids_BL: Tensor) -> Tensor:
        """`[B, L, E]`."""
        with torch.no_grad():
            base_BLE = self.base(ids_BL)
        summed_BLE: Tensor = base_BLE + self.delta(ids_BL)
        return summed_BLE

    def plain(self) -> nn.Embedding:
        """The sum as one table, `[V, E]`."""
        table = copy.deepcopy(self.base)
        with torch.no_grad():
            table.weight.add_(self.delta.weight)
        return table


def share_table(generator: PreTrainedModel, main: PreTrainedModel, how: Sharing) -> None:
    """Give the main model the generator's table of tokens: with `es` the table itself, which both train; with
    `gdes` its sum with a table of the main model's own; with `nes` a copy, and nothing is shared from then
    on. At the start all three are the same function.
    """
    table = generator.get_input_embeddings()
    assert isinstance(table, nn.Embedding)
    if how == "es":
        main.set_input_embeddings(table)
    elif how == "gdes":
        main.set_input_embeddings(SummedTable(table))
    else:
        main.set_input_embeddings(copy.deepcopy(table))


def settled(model: PreTrainedModel) -> PreTrainedModel:
    """The model with a plain table of tokens, for saving: a copy where the table is a sum, else itself."""
    table = model.get_input_embeddings()
    if not isinstance(table, SummedTable):
        return model
    made = copy.deepcopy(model)
    made.set_input_embeddings(table.plain())
    return made
