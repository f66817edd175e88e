"""Floating point operations of one forward, counted by torch as it runs (2 per multiply-add; matrix products,
convolutions, recurrent layers and attention count, element-wise work does not)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from distillkit.model import Student
from distillkit.types import Batch, Want


def flops_per_example(student: Student, batch: Batch) -> float:
    """FLOPs of the logits of one example of the batch's length."""
    plain = sdpa_kernel(SDPBackend.MATH)  # torch's counter does not know the fused attention of CPUs
    lstm = dict.fromkeys((torch.ops.aten.lstm, torch.ops.aten.lstm.input), _lstm_flops)  # unknown to it too
    with torch.inference_mode(), plain, FlopCounterMode(display=False, custom_mapping=lstm) as counter:
        student.outputs(batch, want=Want())
    return float(counter.get_total_flops()) / batch.num_examples


def _lstm_flops(
    inputs: Sequence[int], _start: Any, weights: Sequence[Sequence[int]], *_: Any, **_out: Any
) -> int:
    """Every weight matrix once for each token; takes shapes in place of tensors."""
    matrices = [shape[0] * shape[1] for shape in weights if len(shape) == 2]
    return 2 * inputs[0] * inputs[1] * sum(matrices)
