"""What models and training steps cost: counted where that is exact, else timed on a few real steps."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import psutil
import torch
from torch import Tensor

from distillkit.data.batching import Feed
from distillkit.flops import flops_per_example
from distillkit.model import Student
from distillkit.optim import trained_bytes
from distillkit.settings import OptimizerSettings
from distillkit.train import Program
from distillkit.types import TARGET_IDS, Batch

TIMED_STEPS = 3
BYTES_FIXED = 4
"""Of one fp32 parameter that is not trained."""


@dataclass(frozen=True)
class ModelCost:
    """A model's sizes; flops: of one forward of one row of the longest length (a multiply-add is 2)."""

    layers: int
    width: int
    parameters: int
    flops: int


@dataclass(frozen=True)
class StepCost:
    """One optimizer step. trained: bytes of weights, gradients and what the optimizer keeps; activations:
    bytes that backward keeps; flops_per_token: of forward and backward for each real token, a multiply-add
    is 2.
    """

    seconds: float
    trained: int
    activations: int
    flops_per_token: float

    @property
    def memory(self) -> int:
        return self.trained + self.activations


def model_cost(model: Student, max_length: int) -> ModelCost:
    """Count parameters, and FLOPs by torch's counter on one real forward."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    ids = torch.zeros(1, min(max_length, model.spec.max_length), dtype=torch.int64)
    every = torch.ones_like(ids)
    inputs = {"input_ids": ids, "attention_mask": every, TARGET_IDS: ids}  # each takes what it knows
    row = Batch(inputs=inputs, labels=None, mask=every.bool(), ids=torch.zeros(1, dtype=torch.int64))
    flops = round(flops_per_example(model, row))
    return ModelCost(model.spec.num_layers, model.spec.hidden_dim, parameters, flops)


def step_cost(program: Program, feed: Feed, device: torch.device, optimizer: OptimizerSettings) -> StepCost:
    """Run the first steps of an epoch forward and backward; the median time counts, nothing is updated. FLOPs
    are counted on the first of them.
    """
    program.to(device)
    program.place(device)
    program.train()
    seconds, kept, real, padded = [], 0, 0, 0
    for index in range(min(TIMED_STEPS, feed.num_steps(0))):
        start = time.perf_counter()
        for batch in feed.step(0, index):
            kept = max(kept, _forward_backward(program, batch.to(device)))
            real, padded = real + batch.num_read, padded + batch.num_places
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    program.zero_grad(set_to_none=True)
    flops = program.flops_per_token(feed.step(0, 0)[0].to(device)) * padded / max(1, real)
    return StepCost(median(seconds), trained_bytes(program, optimizer), kept, flops)


def free_memory(device: torch.device) -> int:
    """Bytes that a training on this device could still take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def _forward_backward(program: Program, batch: Batch) -> int:
    """Bytes of the distinct tensors that backward keeps, weights apart."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in program.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        total, _ = program(batch, program.counts(batch))
    total.backward()
    return sum(kept.values())
