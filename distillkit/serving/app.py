"""The HTTP side: routes, bodies with limits, and answers in JSON. Needs fastapi."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from distillkit.serving.metrics import CONTENT_TYPE
from distillkit.serving.requests import Refused
from distillkit.serving.service import Gone, Service

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_CLOSED = 499
"""Counted for a client that went away; nothing is sent."""
_SWALLOWED = 8
"""A body that is too large is read up to so many times the limit, so that its client can hear why."""


def build(service: Service) -> FastAPI:
    """The application. It has no page of its own, and reads nothing but the bodies of /predict."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        await service.open()
        yield
        await service.close()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=life, redirect_slashes=False)

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        body = await _body(request, service)
        return _json(200, await service.answer(body, lambda: _left(request.receive)))

    @app.get("/health")
    async def health() -> Response:
        return _json(200, {"status": "ok"})

    @app.get("/ready")
    async def ready() -> Response:
        return _json(200 if service.ready else 503, {"ready": service.ready})

    @app.get("/metrics")
    async def metrics() -> Response:
        batcher = service.batcher
        page = service.metrics.page(inside=batcher.inside, waiting=batcher.waiting, ready=service.ready)
        return Response(page, media_type=CONTENT_TYPE)

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        headers = {"retry-after": str(error.after)} if error.after else {}
        if error.status in (408, 413):
            headers["connection"] = "close"  # the rest of the body is not read
        return _json(error.status, {"error": error.problem}, headers)

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> Response:
        return _json(error.status_code, {"error": str(error.detail)}, dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> Response:
        return _json(500, {"error": "this is a bug in distillkit"})

    @app.exception_handler(Gone)
    async def left(_: Request, __: Gone) -> Response:
        return Response(status_code=_CLOSED)

    app.add_middleware(_Counted, service=service)
    return app


class _Counted:
    """Counts what goes through, and asks clients to close their connection while the server stops."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, begun = 500, time.perf_counter()

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self.service.draining:
                    message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            await send(message)

        self.service.in_flight += 1
        try:
            await self.app(scope, receive, sending)
        finally:
            self.service.in_flight -= 1
            self.service.metrics.request(scope["path"], status, time.perf_counter() - begun)


async def _body(request: Request, service: Service) -> bytes:
    """The whole body. Raises Refused for another type (415), too many bytes (413), too slow a client (408),
    and for anything in the URL (400).
    """
    limits = service.limits
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "send content-type: application/json")
    if request.url.query:
        raise Refused(400, "the URL takes no parameters: send them in the body")
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.seconds):
            async for part in request.stream():
                size += len(part)
                if size > limits.body * _SWALLOWED:
                    break
                if size <= limits.body:
                    parts.append(part)
    except ClientDisconnect:
        raise Gone from None
    except TimeoutError:
        raise Refused(408, f"the body did not arrive within {limits.seconds:g} s") from None
    if size > limits.body:
        raise Refused(413, f"the body has more than {limits.body} bytes")
    return b"".join(parts)


async def _left(receive: Receive) -> None:
    """Done once the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _json(status: int, told: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    content = json.dumps(told, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")
    return Response(content, status, {**(headers or {}), "cache-control": "no-store"}, "application/json")
