"""uvicorn, with an end that drops nobody and clients that may not dawdle."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from distillkit.serving.app import build
from distillkit.serving.service import Service

_LAST = 2
"""Seconds for connections to close at the very end."""


def serve(service: Service, listening: socket.socket, told: Callable[[], None]) -> None:
    """Answer until a signal. `told` is called once requests are answered."""
    Server(configured(service), service, told).run(sockets=[listening])


def configured(service: Service) -> uvicorn.Config:
    """How uvicorn runs: HTTP/1.1 alone, no log of requests, and no header that says what runs here."""
    return uvicorn.Config(
        build(service),
        http=_protocol(service.limits.seconds),
        loop="asyncio",
        ws="none",
        lifespan="on",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=service.limits.connections,
        timeout_graceful_shutdown=_LAST,
    )


class Server(uvicorn.Server):
    """Stops after what is inside is answered: the first signal makes it unready and refuses new requests, the
    second ends it at once.
    """

    def __init__(self, config: uvicorn.Config, service: Service, told: Callable[[], None]) -> None:
        super().__init__(config)
        self.service, self.told = service, told

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.told()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.service.draining:
            self.should_exit = self.force_exit = True
        self.service.drain()

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self.service.drained


def _protocol(seconds: float) -> type[H11Protocol]:
    """HTTP/1.1 in which the head of a request must be whole so many seconds after its first byte, or after
    the connection was made.
    """

    class Protocol(H11Protocol):
        timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop()
            elif self.timer is None:
                self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _wait(self) -> None:
            self.timer = self.loop.call_later(seconds, self.transport.close)

        def _stop(self) -> None:
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None

    return Protocol
