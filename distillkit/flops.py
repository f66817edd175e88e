"""Floating point operations of one forward, counted by torch as it runs (2 per multiply-add; matrix products
and attention count, element-wise work does not)."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from distillkit.model import Student
from distillkit.types import Batch, Want


def flops_per_example(student: Student, batch: Batch) -> float:
    """FLOPs of the logits of one example of the batch's length."""
    plain = sdpa_kernel(SDPBackend.MATH)  # torch's counter does not know the fused attention of CPUs
    with torch.inference_mode(), plain, FlopCounterMode(display=False) as counter:
        student.outputs(batch, want=Want())
    return float(counter.get_total_flops()) / batch.num_examples
