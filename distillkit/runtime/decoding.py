"""A model that writes, step by step in ONNX Runtime: what was read of sources, what is written after them.

`encoder.onnx` gives what the decoder reads of a source (`cross.0.key`, ...), `decoder.onnx` takes new tokens,
these, and the past (`past.0.key`, ...), and gives `logits` and the longer past (`present.0.key`, ...). A past
that the encoder gives too is a state, after which one token is new; any other begins empty. Between two steps
nothing is copied: what one gives is bound to the next.

Shapes: R texts, T new tokens, V entries.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillkit.runtime.description import OUTPUT
from distillkit.search import Floats, Ints

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"


class Decoding:
    """Sources that were read, and what is written after them (`Steps` of `distillkit.search`)."""

    def __init__(
        self, encoder: Any, decoder: Any, device: str, input_ids: Ints, attention_mask: Ints
    ) -> None:
        import onnxruntime

        self._value, self._decoder, self._device = onnxruntime.OrtValue, decoder, device
        names = [entry.name for entry in decoder.get_inputs()]
        self._cross = [name for name in names if name.startswith("cross.")]
        self._past = [name for name in names if name.startswith("past.")]
        self._mask = attention_mask.astype(np.int64)
        binding = encoder.io_binding()
        binding.bind_cpu_input("input_ids", np.ascontiguousarray(input_ids, dtype=np.int64))
        binding.bind_cpu_input("attention_mask", self._mask)
        given = [entry.name for entry in encoder.get_outputs()]
        for name in given:
            binding.bind_output(name, device)
        encoder.run_with_iobinding(binding)
        self._memory = dict(zip(given, binding.get_outputs(), strict=True))
        self._one_by_one = bool(set(given) & set(self._past))
        if not self._one_by_one:
            rows, heads, _, width = self._memory[self._cross[0]].shape()
            for name in self._past:
                self._memory[name] = self._held(np.zeros((rows, heads, 0, width), dtype=np.float32))

    def step(self, tokens_R: Ints, rows_R: Ints) -> Floats:
        if not np.array_equal(rows_R, np.arange(len(self._mask))):
            self._reorder(rows_R)
        last: Floats = self.logits(tokens_R[:, None])[:, -1]
        return last

    def logits(self, tokens_RT: Ints) -> Floats:
        """`[R, T, V]` after each of some new tokens, which belong to the past from then on."""
        if self._one_by_one and tokens_RT.shape[1] > 1:
            parts = [self.logits(tokens_R1) for tokens_R1 in np.split(tokens_RT, tokens_RT.shape[1], axis=1)]
            return np.concatenate(parts, axis=1)
        binding = self._decoder.io_binding()
        binding.bind_cpu_input("input_ids", np.ascontiguousarray(tokens_RT, dtype=np.int64))
        binding.bind_cpu_input("attention_mask", self._mask)
        for name, value in self._memory.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_output(OUTPUT, "cpu")
        for entry in self._decoder.get_outputs()[1:]:
            binding.bind_output(entry.name, self._device)
        self._decoder.run_with_iobinding(binding)
        logits, *present = binding.get_outputs()
        self._memory |= dict(zip(self._past, present, strict=True))
        answers: Floats = logits.numpy()
        return answers

    def _reorder(self, rows_R: Ints) -> None:
        """Text r goes on from what was text rows[r]. Texts of one source read the same of it, so that this
        changes only where their number does.
        """
        grown = len(rows_R) != len(self._mask)
        for name in (*self._past, *(self._cross if grown else [])):
            self._memory[name] = self._held(self._memory[name].numpy()[rows_R])
        self._mask = self._mask[rows_R]

    def _held(self, array: NDArray[np.float32]) -> Any:
        return self._value.ortvalue_from_numpy(np.ascontiguousarray(array), self._device, 0)
