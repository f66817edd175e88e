"""ONNX Runtime sessions whose provider is the one that was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from distillkit.errors import ConfigError, ExportError, MissingError
from distillkit.runtime.check import check_model
from distillkit.wording import shown

Provider = Literal["cpu", "cuda"]
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def open_session(path: Path, *, provider: Provider, threads: int, spinning: bool = False) -> Any:
    """A session on exactly this provider, with `threads` threads (0: as many as ONNX Runtime likes, one for
    each core). spinning: they wait for work within a run by spinning, which takes a core that is idle anyway;
    between runs they never do.

    ONNX Runtime quietly falls back to the CPU; here that is a MissingError (5). ExportError (10) or
    SecurityError (11) for a file that must not be opened.
    """
    import onnxruntime

    check_model(path)
    wanted = require_provider(provider)
    if provider == "cuda":
        onnxruntime.preload_dlls()
    return session_of(path, session_options(threads=threads, spinning=spinning), wanted, [wanted])


def session_options(*, threads: int, spinning: bool) -> Any:
    """What every session has in common."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def session_of(path: Path, options: Any, wanted: str, providers: Sequence[str] = ()) -> Any:
    """The session, on `wanted`: one of `providers`, or one that the options hold. Raises ExportError (10)
    where it cannot be opened, MissingError (5) where another provider took it.
    """
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), sess_options=options, providers=list(providers))
    except Exception as error:  # onnxruntime raises many types of its own
        raise ExportError(
            f"ONNX Runtime cannot open it: {str(error).splitlines()[0]}", where=str(path)
        ) from None
    used = session.get_providers()[0]
    if used != wanted:
        raise MissingError(
            f"asked for {wanted}, got {used}",
            where="provider",
            hint="check the GPU driver and onnxruntime-gpu's CUDA version, or ask for cpu",
        )
    return session


def provider_named(name: str) -> Provider:
    """A provider by its name. Raises ConfigError (2) for another."""
    if name == "cpu":
        return "cpu"
    if name == "cuda":
        return "cuda"
    raise ConfigError(f"{shown(name)} is no provider", where="provider", hint="cpu or cuda")


def require_provider(provider: Provider) -> str:
    """ONNX Runtime's name of it. Raises MissingError (5) where this installation does not have it."""
    import onnxruntime

    wanted, available = PROVIDERS[provider], onnxruntime.get_available_providers()
    if wanted not in available:
        raise MissingError(
            f"ONNX Runtime has no {wanted} here",
            where="provider",
            hint=f"available: {', '.join(available)}",
        )
    return wanted
