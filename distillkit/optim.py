"""Optimizers, their schedules as closed forms, and the norm of the gradient.

AdamW: Devlin et al. 2018, appendix A.2, and Loshchilov and Hutter 2019. BERT's released optimizer leaves out
Adam's bias correction; here it is kept (Mosbach et al. 2021, section 4, found its absence a cause of unstable
fine-tuning), so the first steps are smaller-scaled than in the released code. Weight decay skips norms and
biases: every parameter of fewer than two dimensions.

Layer-wise decay of the learning rate: Howard and Ruder 2018, section 3.2, and Clark et al. 2020, appendix B.
The head learns at the whole rate, the top block at `decay` of it, the block below at decay^2, the embeddings
last. The released ELECTRA code counts one layer too many, so that its top block learns at decay^2 already.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from distillkit.errors import ConfigError
from distillkit.parallel import gather
from distillkit.settings import OptimizerSettings

SMALLEST = 1e-3
"""Size of a parameter below which its steps are not scaled down further (T5)."""
_FACTOR = "lr_factor"
"""Key of a group's share of the learning rate."""


def layer_factors(layers: Sequence[Sequence[nn.Parameter]], decay: float) -> dict[nn.Parameter, float]:
    """Factor of the learning rate of each parameter; `layers` from the embeddings up to the head."""
    return {parameter: decay**below for below, layer in enumerate(reversed(layers)) for parameter in layer}


class ScaledAdamW(torch.optim.AdamW):
    """AdamW whose step at each parameter is scaled by max(SMALLEST, its root mean square), as Adafactor's is:
    plain AdamW diverges on T5 (nanoT5, Nawrot 2023, section 3.1). Weight decay is scaled with it. Every group
    has one parameter."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        sizes = torch.stack([gather(_size(group["params"][0])).float() for group in self.param_groups])
        rates = [group["lr"] for group in self.param_groups]
        for group, rate, size in zip(self.param_groups, rates, sizes.tolist(), strict=True):
            group["lr"] = rate * max(SMALLEST, size)
        done = super().step(closure)
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate
        return done


class Adafactor(torch.optim.Optimizer):
    """Adafactor (Shazeer and Stern 2018, algorithms 4 and 5) as T5 uses it.

    Steps are scaled by the size of the parameter and clipped at a root mean square of 1, there is no
    momentum, squared gradients are averaged with 1 - t^-0.8, and of those of a matrix only the means of rows
    and columns are kept. The learning rate is given from outside.
    """

    _DECAY, _TINY = -0.8, 1e-30

    def __init__(self, groups: Iterable[Mapping[str, Any]], *, lr: float) -> None:
        super().__init__([dict(group) for group in groups], {"lr": lr, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group["lr"], group["weight_decay"])

    def _step(self, parameter: Tensor, gradient: Tensor, lr: float, decay: float) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
        state["step"] += 1
        kept = 1 - float(state["step"]) ** self._DECAY
        gradient = gradient.float()
        squares = gradient.square() + self._TINY
        if parameter.ndim >= 2:
            rows = _averaged(state, "rows", squares.mean(-1), kept)
            columns = _averaged(state, "columns", squares.mean(-2), kept)
            share = rows / rows.mean(-1, keepdim=True)
            update = gradient * share.rsqrt().unsqueeze(-1) * columns.rsqrt().unsqueeze(-2)
        else:
            update = gradient * _averaged(state, "squares", squares, kept).rsqrt()
        update /= _size(update).clamp(min=1.0)
        rate = lr * _size(parameter).clamp(min=SMALLEST)
        parameter.sub_(rate * (update + decay * parameter))


def build_optimizer(
    module: nn.Module, settings: OptimizerSettings, factors: Mapping[nn.Parameter, float] | None = None
) -> torch.optim.Optimizer:
    """The optimizer that is asked for, over the trainable parameters of `module`; AdamW in one fused kernel a
    group where torch has it. factors: of the learning rate, where they are not 1.

    Raises ConfigError for Adafactor over sharded parameters, of whose rows and columns a rank knows a part.
    """
    groups: dict[tuple[float, float, int], list[nn.Parameter]] = {}
    for number, parameter in enumerate(module.parameters()):
        if parameter.requires_grad:
            decay = settings.weight_decay if parameter.ndim >= 2 else 0.0
            apart = number if settings.use == "scaled_adamw" else 0
            groups.setdefault(((factors or {}).get(parameter, 1.0), decay, apart), []).append(parameter)
    made = [
        {"params": parameters, "weight_decay": decay, _FACTOR: factor}
        for (factor, decay, _), parameters in groups.items()
    ]
    if settings.use == "adafactor":
        if any(isinstance(parameter, DTensor) for parameter in module.parameters()):
            raise ConfigError(
                "adafactor and sharded parameters do not go together",
                where="optimizer.use, runtime.parallel",
                hint="use scaled_adamw, or runtime.parallel: ddp",
            )
        return Adafactor(made, lr=settings.lr)
    kind = ScaledAdamW if settings.use == "scaled_adamw" else torch.optim.AdamW
    return kind(made, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)


def trained_bytes(module: nn.Module, settings: OptimizerSettings) -> int:
    """Bytes that the trainable fp32 parameters of `module` take: themselves, their gradients, and what the
    optimizer keeps (AdamW two moments; Adafactor the means of rows and columns of a matrix, else of squares).
    """
    total = 0
    for parameter in module.parameters():
        if parameter.requires_grad:
            size, shape = parameter.numel(), parameter.shape
            kept = 2 * size
            if settings.use == "adafactor":
                kept = size if len(shape) < 2 else size // shape[-1] + size // shape[-2]
            total += 4 * (2 * size + kept)
    return total


def lr_at(step: int, total: int, settings: OptimizerSettings) -> float:
    """Learning rate of optimizer step `step` (from 0) of `total`: linear rise over the warm-up, then a fall
    to 0 along a line or a half cosine, or none.

    The first step already moves (rate lr / (warm-up steps + 1) where there is a warm-up), the last is above
    0. T5's inverse square root is lr over the warm-up of w steps, then lr * sqrt(w / n) at the n-th step:
    with lr 0.01 and w 10,000 it is 1 / sqrt(max(n, 10,000)) (Raffel et al. 2020, section 3.1.2).
    """
    warmup = round(settings.warmup * total)
    if settings.schedule == "inverse_sqrt":
        return settings.lr * math.sqrt(max(1, warmup) / max(1, warmup, step + 1))
    if step < warmup:
        return settings.lr * (step + 1) / (warmup + 1)
    return settings.lr * _FALLS[settings.schedule]((total - step) / max(1, total - warmup))


_FALLS: Mapping[str, Callable[[float], float]] = {
    "linear": lambda left: left,
    "cosine": lambda left: math.sin(left * math.pi / 2) ** 2,
    "constant": lambda left: 1.0,
}
"""Share of the peak by the share of the steps after the warm-up that is left."""


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its share of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group[_FACTOR]


def clip_gradient(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scale the gradients of these parameters so that their norm together is at most `largest`; returns the
    norm before, on the device.
    """
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    whole = gather(norm)
    if not whole <= largest:  # what is short enough is not passed over
        torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return whole


def _size(tensor: Tensor) -> Tensor:
    """Root mean square of the elements."""
    size: Tensor = torch.linalg.vector_norm(tensor.detach()) / math.sqrt(max(1, tensor.numel()))
    return size


def _averaged(state: dict[str, Tensor], name: str, new: Tensor, kept: float) -> Tensor:
    """A running mean in the state, with the new value in it; the first one is that value."""
    state[name] = new if name not in state else state[name].lerp_(new, 1 - kept)
    return state[name]
