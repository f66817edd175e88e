"""AdamW, its schedule as a closed form, and the norm of the gradient.

Source: Devlin et al. 2018, appendix A.2, and Loshchilov and Hutter 2019. BERT's released optimizer leaves out
Adam's bias correction; here it is kept (Mosbach et al. 2021, section 4, found its absence a cause of unstable
fine-tuning), so the first steps are smaller-scaled than in the released code. Weight decay skips norms and
biases: every parameter of fewer than two dimensions.

Layer-wise decay of the learning rate: Howard and Ruder 2018, section 3.2, and Clark et al. 2020, appendix B.
The head learns at the whole rate, the top block at `decay` of it, the block below at decay^2, the embeddings
last. The released ELECTRA code counts one layer too many, so that its top block learns at decay^2 already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from distillkit.parallel import gather
from distillkit.settings import OptimizerSettings

_FACTOR = "lr_factor"
"""Key of a group's share of the learning rate."""


def layer_factors(layers: Sequence[Sequence[nn.Parameter]], decay: float) -> dict[nn.Parameter, float]:
    """Factor of the learning rate of each parameter; `layers` from the embeddings up to the head."""
    return {parameter: decay**below for below, layer in enumerate(reversed(layers)) for parameter in layer}


def build_optimizer(
    module: nn.Module, settings: OptimizerSettings, factors: Mapping[nn.Parameter, float] | None = None
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `module`, in one fused kernel per group where torch has it;
    `factors` of the learning rate where they are not 1.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            decay = settings.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault(((factors or {}).get(parameter, 1.0), decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": decay, _FACTOR: factor}
            for (factor, decay), parameters in groups.items()
        ],
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        fused=True,
    )


def lr_at(step: int, total: int, settings: OptimizerSettings) -> float:
    """Learning rate of optimizer step `step` (from 0) of `total`: linear rise over the warm-up, linear fall
    to 0.

    The first step already moves (rate lr / (warm-up steps + 1) where there is a warm-up), the last is above
    0.
    """
    warmup = round(settings.warmup * total)
    if step < warmup:
        return settings.lr * (step + 1) / (warmup + 1)
    return settings.lr * (total - step) / max(1, total - warmup)


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
