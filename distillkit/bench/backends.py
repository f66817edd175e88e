"""The runtimes that models are measured in: an object each, which opens a folder.

PyTorch opens what `Student.save` wrote, the others an artifact. What is not installed, or cannot do what it
is asked for, is a MissingError, which becomes the reason in a row.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from distillkit.bench.binding import Bound
from distillkit.bench.timing import FORWARD, Calls, Forward, Opened
from distillkit.encoder import Encoder
from distillkit.errors import MissingError, ModelError
from distillkit.export.bundle import MODEL
from distillkit.export.decoding import DECODER, ENCODER, OnnxWriter
from distillkit.export.parity import run as run_session
from distillkit.flops import flops_per_example
from distillkit.model import Student
from distillkit.opening import open_model
from distillkit.runtime.openvino import open_openvino
from distillkit.runtime.session import open_session
from distillkit.settings import BackendName
from distillkit.types import Batch, Want

_COMPILING = 120.0
_SHAPES_COMPILED = 256


@dataclass(frozen=True)
class Machine:
    """What a process may use of the machine: the device, threads, and whether ONNX Runtime's spin."""

    provider: str
    threads: int
    spinning: bool = False


class Backend(ABC):
    """A runtime. exported: it opens artifacts; precision: of its arithmetic, where that is not the form's;
    patience: seconds more than usual that a shape may take the first time.
    """

    exported: bool
    precision: str = ""
    patience: float = 0.0

    @abstractmethod
    def open(self, folder: Path, machine: Machine) -> Opened:
        """The loaded model."""


class PyTorch(Backend):
    """As it was trained, in eager mode; bf16: weights and arithmetic in bfloat16, not autocast, which costs
    at every call.
    """

    exported = False

    def __init__(self, *, bf16: bool = False) -> None:
        self.precision = "bf16" if bf16 else "fp32"
        self._dtype = torch.bfloat16 if bf16 else torch.float32

    def open(self, folder: Path, machine: Machine) -> Opened:
        return self._opened(self._load(folder, machine), folder, torch.device(machine.provider))

    def _load(self, folder: Path, machine: Machine) -> Student:
        if machine.provider == "cuda" and not torch.cuda.is_available():
            raise MissingError("PyTorch has no CUDA device here", where="bench.provider")
        return open_model(folder).eval().to(torch.device(machine.provider), self._dtype)

    def _opened(self, model: Student, folder: Path, device: torch.device) -> Opened:
        want = Want()

        def forward(batch: Batch) -> NDArray[Any]:
            with torch.inference_mode():
                logits: NDArray[Any] = model.outputs(batch.to(device), want=want).logits.float().cpu().numpy()
            return logits

        size = (folder / "model.safetensors").stat().st_size
        opened = Opened(forward, f"PyTorch {device.type}", size, model.spec.max_length)
        opened.parameters = sum(parameter.numel() for parameter in model.parameters())
        opened.flops = lambda batch: flops_per_example(model, batch.to(device))
        opened.writer, opened.device = model.writer, device
        return opened


class Compiled(PyTorch):
    """The same with its body through torch.compile: a kernel for each timed shape, and one of any shape for
    all other batches.
    """

    patience = _COMPILING

    def open(self, folder: Path, machine: Machine) -> Opened:
        model = self._load(folder, machine)
        if not isinstance(model, Encoder):
            raise ModelError("torch.compile is measured for encoders only: what writes texts is not compiled")
        opened = self._opened(model, folder, torch.device(machine.provider))
        torch._dynamo.config.recompile_limit = _SHAPES_COMPILED
        torch._dynamo.config.fail_on_recompile_limit_hit = True  # never eager without a word
        body = model.model.base_model
        plain, eager = body.forward, opened.forward
        # two functions: what is compiled is kept by the code, and one shape's kernel must not serve another
        of_one_shape = torch.compile(lambda *states, **named: plain(*states, **named), dynamic=False)
        of_any = torch.compile(lambda *states, **named: plain(*states, **named), dynamic=True)

        def through(forward: Callable[..., Any]) -> Forward:
            def run(batch: Batch) -> NDArray[Any]:
                body.forward = forward
                try:
                    return eager(batch)
                finally:
                    body.forward = plain

            return run

        opened.forward = through(of_any)
        timed = through(of_one_shape)
        opened.calls = lambda batch: {FORWARD: lambda: timed(batch)}
        return opened


class OnnxRuntime(Backend):
    """An artifact on exactly the device asked for."""

    exported = True

    def open(self, folder: Path, machine: Machine) -> Opened:
        if (folder / DECODER).is_file():
            return self._open_graphs(folder, machine)
        session = self._session(folder / MODEL, machine)
        size = (folder / MODEL).stat().st_size
        opened = Opened(
            lambda batch: run_session(session, batch), session.get_providers()[0], size, _longest(folder)
        )
        if machine.provider != "cpu":
            opened.calls = lambda batch: bound_calls(session, batch, machine.provider)
        return opened

    def _session(self, path: Path, machine: Machine) -> Any:
        return open_session(
            path,
            provider=machine.provider,  # type: ignore[arg-type]
            threads=machine.threads,
            spinning=machine.spinning,
        )

    def _open_graphs(self, folder: Path, machine: Machine) -> Opened:
        """An encoder and a decoder."""
        made = OnnxWriter.open(folder, threads=machine.threads, provider=machine.provider)  # type: ignore[arg-type]
        size = sum((folder / name).stat().st_size for name in (ENCODER, DECODER))
        opened = Opened(made.logits, made.provider_name, size, _longest(folder))
        opened.writer = made
        return opened


class OpenVino(OnnxRuntime):
    """The same file in OpenVINO, which ONNX Runtime loads as a plugin (extra `openvino`), on the CPU."""

    def __init__(self, *, precision: str) -> None:
        self.precision = precision

    def open(self, folder: Path, machine: Machine) -> Opened:
        if machine.provider != "cpu":
            raise MissingError("OpenVINO is measured on the CPU only", hint="bench.provider: cpu")
        if (folder / DECODER).is_file():
            raise ModelError("OpenVINO is measured for models of one graph, not for those that write texts")
        return super().open(folder, machine)

    def _session(self, path: Path, machine: Machine) -> Any:
        return open_openvino(path, precision=self.precision, threads=machine.threads)


BACKENDS: Mapping[BackendName, Backend] = {
    "pytorch": PyTorch(),
    "pytorch-bf16": PyTorch(bf16=True),
    "pytorch-compile": Compiled(),
    "pytorch-compile-bf16": Compiled(bf16=True),
    "onnxruntime": OnnxRuntime(),
    "openvino": OpenVino(precision="fp32"),
    "openvino-bf16": OpenVino(precision="bf16"),
}


def bound_calls(session: Any, batch: Batch, device: str) -> Calls:
    """What is timed of a batch where its inputs and logits keep their places on the device."""
    bound = Bound(session, batch, device)
    return {FORWARD: lambda: bound.run(batch)}


def _longest(folder: Path) -> int:
    longest: int = json.loads((folder / "config.json").read_text())["max_length"]
    return longest
