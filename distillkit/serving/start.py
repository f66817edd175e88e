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

_BACKLOG = 1024
"""Connections that wait to be taken up."""


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
    """A socket that listens there.

    Its protocol is named, unlike that of `socket.create_server`: asyncio sends small packets at once
    (TCP_NODELAY) only then, and each answer would wait 40 ms for the client's word that it has the head.
    """
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, socket.IPPROTO_TCP)
    except (OSError, UnicodeError) as error:
        raise _cannot(host, port, error) from None
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(_BACKLOG)
        return made
    except OSError as error:
        made.close()
        raise _cannot(host, port, error) from None


def _cannot(host: str, port: int, error: Exception) -> ConfigError:
    return ConfigError(
        f"cannot listen at {host}:{port}: {getattr(error, 'strerror', None) or error}",
        where="--host, --port",
        hint="choose another; --port 0 takes any that is free",
    )


def _tell(service: Service, listening: socket.socket) -> None:
    """One line that says where, and one more where others than this machine can reach it."""
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    kind, labels = service.model.description.kind, service.model.description.tasks
    count = sum(len(task.labels) for task in labels)
    print(f"ready: http://{shown}:{port} ({kind}{f', {count} classes' if count else ''})", flush=True)
    if not ipaddress.ip_address(host).is_loopback:
        print("warning: anybody who can reach this address can ask: there is no log-in", file=sys.stderr)
