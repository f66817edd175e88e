"""An encoder in parts that run one after the other: some of its blocks, and what is answered after them.

As in `distillkit.encoder`, the model is used unmodified. A part is the whole model with some of its blocks:
where it is not the first, what its first block takes is put in the place of what the embeddings gave; what it
hands on is what its last block gives. All that is computed for nothing by that never reaches an artifact,
because an exporter drops what no output needs.
"""

from __future__ import annotations

import copy
import inspect
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.encoder import Encoder, given, read

STATES, HANDED = "states", "handed"
"""What a part takes from the one before, and what it hands to the next: `[B, L, D]`."""


class Segment(nn.Module):
    """Blocks `start` to `stop` (from 0, `stop` not included) of an encoder that answers whole examples, and
    the exit behind them; without one, the model's own answer.

    Its forward takes the tensors of `input_names` by keyword (token tensors `[B, L]` where it is the first,
    else the mask and STATES) and returns logits `[B, V]`, followed by what it hands on where an exit answers.
    The exit is a module of (states_BLD, mask_BL) that returns Outputs.
    """

    def __init__(self, encoder: Encoder, start: int, stop: int, leave: nn.Module | None) -> None:
        super().__init__()
        self.model = copy.deepcopy(encoder.model)
        self.model.set_attn_implementation("eager")
        self.blocks = Encoder(self.model, encoder.head).blocks
        del self.blocks[stop:], self.blocks[:start]
        self.leave = copy.deepcopy(leave)
        self.padding = int(self.model.config.pad_token_id or 0)
        tokens: tuple[str, ...] = encoder.exportable().input_names  # type: ignore[assignment]
        known = inspect.signature(self.forward).parameters  # in its order, by which an exporter goes
        self.input_names = tuple(
            name for name in known if name in (("attention_mask", STATES) if start else tokens)
        )
        self.eval()

    def forward(
        self,
        attention_mask: Tensor,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        states: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        ids = input_ids
        if ids is None:  # read for nothing but where a text ends (GPT-2)
            ids = torch.where(attention_mask.bool(), int(self.padding == 0), self.padding)
        inputs = {"input_ids": ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        seen: dict[Any, Tensor] = {}
        with ExitStack() as hooks:
            if states is not None:
                hooks.enter_context(given(self.blocks[0], states))
            hooks.enter_context(read(self.blocks[-1], seen, STATES))
            logits: Tensor = self.model(**inputs, return_dict=True).logits
        if self.leave is None:
            return (logits,)
        return self.leave(seen[STATES], attention_mask.bool()).logits, seen[STATES]
