"""What a server takes, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """body: bytes of a request; rows: texts, pairs or lists of words in it; characters: of one of them;
    seconds: until a request is whole, and again until it is answered, and how long a server that was told to
    stop goes on; queue: rows of all requests that wait or are answered; tokens: of one batch, padding
    included; window: seconds that a row waits for others; connections: at one time.
    """

    body: int = 1 << 20
    rows: int = 64
    characters: int = 32_768
    seconds: float = 10.0
    queue: int = 256
    tokens: int = 4096
    window: float = 0.002
    connections: int = 1024
