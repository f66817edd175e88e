"""How several processes share the training of one program: copied (DDP) or sharded (FSDP).

Both give the loop the same four things: a forward, the moment at which gradients are exchanged, the optimizer
over what this rank holds, and the program with all its parameters whole, for whatever is not a training step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from distillkit.errors import ConfigError
from distillkit.settings import RuntimeSettings


def parallel(runtime: RuntimeSettings, accelerator: Accelerator) -> Copied | Sharded:
    """What `runtime.parallel` asks for; one process has nothing to share.

    Raises ConfigError for what does not go together with sharding.
    """
    if runtime.parallel == "ddp" or accelerator.num_processes == 1:
        return Copied(accelerator)
    if accelerator.mixed_precision == "fp16":
        raise ConfigError(
            "fp16 and sharded parameters do not go together",
            where="runtime.precision, runtime.parallel",
            hint="use bf16, or runtime.parallel: ddp",
        )
    return Sharded(accelerator)


class Copied:
    """Every rank holds everything; gradients are averaged by DistributedDataParallel. Also the single
    process.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    def wrap(self, program: nn.Module) -> nn.Module:
        wrapped: nn.Module = self.accelerator.prepare_model(program)
        self._wrapped = wrapped
        return wrapped

    def exchanging(self, now: bool) -> AbstractContextManager[None]:
        """Around one forward and backward: gradients are exchanged at its end, or go on adding up."""
        return contextlib.nullcontext() if now else self.accelerator.no_sync(self._wrapped)

    def whole(self) -> AbstractContextManager[None]:
        """Within, the program's parameters are plain and whole on every rank."""
        return contextlib.nullcontext()

    def unwrap(self) -> None:
        """Training is over: the parameters stay whole."""


class Sharded:
    """Each rank keeps its part of parameters, gradients and optimizer state (fully_shard of torch, called
    FSDP2); the parameters are gathered for the length of a step.

    The program is one unit, not one per layer: it saves the memory of optimizer state, which is most of it,
    and any student, teacher or intervention works as it does on one rank.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    def wrap(self, program: nn.Module) -> nn.Module:
        self._program = program
        mesh = init_device_mesh(self.accelerator.device.type, (self.accelerator.num_processes,))
        self._unit = fully_shard(program, mesh=mesh)
        return _Cast(program, self.accelerator)

    def exchanging(self, now: bool) -> AbstractContextManager[None]:
        self._unit.set_requires_gradient_sync(now)
        return contextlib.nullcontext()

    @contextmanager
    def whole(self) -> Iterator[None]:
        held = self._gather()
        try:
            yield
        finally:
            for module, name, parameter in held:
                setattr(module, name, parameter)

    def unwrap(self) -> None:
        self._gather()

    def _gather(self) -> list[tuple[nn.Module, str, nn.Parameter]]:
        """Put whole parameters in place of the sharded ones, which are returned with their places; a tied
        parameter stays tied.
        """
        places = [
            (module, name, parameter)
            for module in self._program.modules()
            for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
        ]
        gathered: dict[nn.Parameter, nn.Parameter] = {}
        for module, name, parameter in places:
            if parameter not in gathered:
                gathered[parameter] = nn.Parameter(gather(parameter), requires_grad=parameter.requires_grad)
            setattr(module, name, gathered[parameter])
        return places


class _Cast(nn.Module):
    """A forward under the accelerator's autocast, with its losses in fp32; DDP gets this from accelerate."""

    def __init__(self, program: nn.Module, accelerator: Accelerator) -> None:
        super().__init__()
        self._inner, self._accelerator = program, accelerator

    def forward(self, *inputs: Any) -> Any:
        with self._accelerator.autocast():
            total, shares = self._inner(*inputs)
        return total.float(), {name: share.float() for name, share in shares.items()}


def gather(tensor: Tensor) -> Tensor:
    """The whole tensor, detached: from all ranks where it is sharded (every rank must ask), else itself."""
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor().clone()  # of its own storage, without the padding of the exchange
    return tensor.detach()


def like(whole: Tensor, other: Tensor) -> Tensor:
    """`whole` laid out over devices and ranks as `other` is."""
    placed = whole.to(other.device)
    if isinstance(other, DTensor):
        return distribute_tensor(placed, other.device_mesh, other.placements)
    return placed
