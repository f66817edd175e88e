"""Gradients of large embedding tables on a CPU.

A batch looks up a few rows of a table, and torch makes its gradient as large as the table, in memory fresh
from the kernel in every step. Here the rows that were looked up are added to a buffer that is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_LARGE = 2**20
"""Weights of a table from which on its buffer is kept."""
_SPARSE = 6
"""Position of F.embedding's argument that asks for a gradient of rows."""


class KeptGradients(TorchFunctionMode):
    """Within, a table that is looked up has its gradient added up, row by row, in a buffer of its own; it is
    the same dense gradient.

    `clear` makes the buffers ready for the next step. A table that another layer of the module shares has a
    gradient everywhere and is left to torch. Not for code that is compiled, or for gradients that several
    processes exchange.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        names = Counter(id(one) for _, one in module.named_parameters(remove_duplicate=False))
        tables = [part.weight for part in module.modules() if isinstance(part, nn.Embedding)]
        self._tables = {id(one) for one in tables if names[id(one)] == 1 and one.numel() >= _LARGE}
        self._buffers: dict[Tensor, Tensor] = {}

    def clear(self) -> None:
        """Forget the gradients of the tables, as `zero_grad(set_to_none=True)` does."""
        for table, buffer in self._buffers.items():
            if table.grad is buffer:
                buffer.zero_()
            table.grad = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is F.embedding and torch.is_grad_enabled():
            table = args[1] if len(args) > 1 else given["weight"]
            if id(table) in self._tables and table.requires_grad:
                if table.grad is None:
                    table.grad = self._buffer(table)
                args = args[:_SPARSE]
                given["sparse"] = True
        return func(*args, **given)

    def _buffer(self, table: Tensor) -> Tensor:
        if table not in self._buffers:
            self._buffers[table] = torch.zeros_like(table)
        return self._buffers[table]
