"""A bounded load on `distillkit serve`, on loopback: clients with one request at a time each, and a server in
a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

THREADS = 1
"""Of one forward of the server."""
_HEAD = "POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
_GET = "GET {} HTTP/1.1\r\nhost: localhost\r\n\r\n"


@dataclass
class Load:
    """What clients met: answers by status, seconds of those that were 200, connections that broke, waits."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    resets: int = 0
    without_retry: int = 0
    wall: float = 0.0

    @property
    def per_second(self) -> float:
        return self.statuses[200] / self.wall

    def percentile(self, share: float) -> float:
        """Milliseconds."""
        return float(np.percentile(np.asarray(self.seconds) * 1000, share))

    def told(self) -> dict[str, Any]:
        return {
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "resets": self.resets,
            "refused_without_retry_after": self.without_retry,
            "per_s": self.per_second,
            **{f"p{share}_ms": self.percentile(share) for share in (50, 95, 99) if self.seconds},
            "wall_s": self.wall,
        }


class Client:
    """One keep-alive connection."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def ask(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        assert self.reader is not None
        self.writer.write(request)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])
        }
        body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        if headers.get("connection") == "close":
            self.close()
        return int(head[0].split()[1]), headers, body

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None


def post(texts: Any) -> bytes:
    body = json.dumps({"texts": texts}).encode()
    return f"{_HEAD}content-length: {len(body)}\r\n\r\n".encode() + body


async def drive(
    port: int,
    requests: Sequence[bytes],
    *,
    clients: int,
    seconds: float = float("inf"),
    count: int | None = None,
    until_refused: bool = False,
) -> Load:
    """So many clients, each with one request at a time, for so long or for so many requests in all. A client
    that is refused (429) waits as it is told.
    """
    load, begun, sent = Load(), time.perf_counter(), 0

    async def one() -> None:
        nonlocal sent
        client = Client(port)
        while time.perf_counter() - begun < seconds and (count is None or sent < count):
            request = requests[sent % len(requests)]
            sent += 1
            start = time.perf_counter()
            try:
                status, headers, _ = await client.ask(request)
            except ConnectionRefusedError:
                break
            except (OSError, asyncio.IncompleteReadError):
                load.resets += 1
                client.close()
                continue
            load.statuses[status] += 1
            if status == 200:
                load.seconds.append(time.perf_counter() - start)
            elif status == 429:
                load.without_retry += "retry-after" not in headers
                await asyncio.sleep(float(headers.get("retry-after", "1")))
            elif status == 503 and until_refused:
                break
        client.close()

    await asyncio.gather(*(one() for _ in range(clients)))
    load.wall = time.perf_counter() - begun
    return load


@dataclass(frozen=True)
class Served:
    """A server in a process of its own; seconds from its start until it was ready."""

    process: subprocess.Popen[str]
    port: int
    ready_after: float

    def metric(self, name: str) -> float:
        async def page() -> str:
            client = Client(self.port)
            text = (await client.ask(_GET.format("/metrics").encode()))[2].decode()
            client.close()
            return text

        lines = asyncio.run(page()).splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Served]:
    command = [sys.executable, "-m", "distillkit", "serve", str(folder), "--port", "0"]
    begun = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--threads", str(THREADS), *options], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    served = Served(process, int(line.split(":")[3].split()[0]), time.perf_counter() - begun)
    try:
        yield served
    finally:
        process.terminate()
        process.wait(20)
