"""Starts the server: loads the artifact, listens, and stops gracefully."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from pathlib import Path

from distillkit.errors import ConfigError, MissingError
from distillkit.runtime.artifact import Artifact
from distillkit.runtime.session import Provider
from distillkit.serving.limits import Limits
from distillkit.serving.service import Service


def start(
    folder: Path, *, host: str, port: int, provider: Provider, threads: int, limits: Limits, quiet: bool
) -> None:
    """Serve an artifact until SIGTERM or Ctrl-C. Raises MissingError (5) without the extra `serve`,
    ConfigError (2) for an address that cannot be listened at; else as `Artifact.load`.
    """
    try:
        from distillkit.serving.server import serve
    except ImportError as error:
        raise MissingError(
            f"distillkit serve needs a package that is not installed: {error.name}",
            where="serve",
            hint="pip install 'distillkit[serve]'",
        ) from None
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # requests are small; the model wants the cores
    listening = listen(host, port)
    service = Service(Artifact.load(folder, provider=provider, threads=threads), limits)
    service.warm()
    serve(service, listening, lambda: None if quiet else _tell(service, listening))


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"cannot listen at {host}:{port}: {getattr(error, 'strerror', None) or error}",
            where="--host, --port",
            hint="choose another; --port 0 takes any that is free",
        ) from None


def _tell(service: Service, listening: socket.socket) -> None:
    """One line that says where, and one more where others than this machine can reach it."""
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    kind, labels = service.model.description.kind, service.model.description.tasks
    count = sum(len(task.labels) for task in labels)
    print(f"ready: http://{shown}:{port} ({kind}{f', {count} classes' if count else ''})", flush=True)
    if not ipaddress.ip_address(host).is_loopback:
        print("warning: anybody who can reach this address can ask: there is no log-in", file=sys.stderr)
