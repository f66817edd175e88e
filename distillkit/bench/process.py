"""A process that measures, asked line by line: questions go into its stdin, answers come out of its stdout, a
JSON object each. Between two questions it waits on the pipe and computes nothing.

It dies without harm: what is left is the reason, in words.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distillkit.errors import DistillkitError

Answer = Callable[[Mapping[str, Any]], dict[str, Any]]
_LOOK_UP = 0.5
"""Seconds between two looks at whether a stop was asked for; rare enough not to disturb what is timed."""
_GIVE_UP = 10.0
"""Seconds until a process that closed its stdout is gone."""
_PART = 1 << 16


class FailedError(Exception):
    """Why a process has no answer, in words."""


class Child:
    """One such process, with so many threads. A signal to this process's group does not reach it."""

    def __init__(self, command: Sequence[str], *, threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
            start_new_session=True,
        )
        self._said = b""

    def ask(
        self, question: Mapping[str, Any], *, limit: float, between: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """The answer, within `limit` seconds; `between` is called while it is waited for, and may raise.
        Raises FailedError.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise FailedError(self._death()) from None
        answer: dict[str, Any] = json.loads(self._line(limit, between))
        if "error" in answer:
            raise FailedError(str(answer["error"]))
        return answer

    def close(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self._stderr.close()

    def _line(self, limit: float, between: Callable[[], None]) -> bytes:
        assert self._process.stdout is not None
        started = time.monotonic()
        while b"\n" not in self._said:
            ready, _, _ = select.select([self._process.stdout], [], [], min(_LOOK_UP, limit))
            if ready:
                part = os.read(self._process.stdout.fileno(), _PART)
                if not part:
                    raise FailedError(self._death())
                self._said += part
            else:
                between()
            if time.monotonic() - started > limit:
                raise FailedError(f"did not finish within {limit:.0f} s")
        line, self._said = self._said.split(b"\n", maxsplit=1)
        return line

    def _death(self) -> str:
        """What a process that closed its pipes died of."""
        try:
            code = self._process.wait(timeout=_GIVE_UP)
        except subprocess.TimeoutExpired:
            return "it closed its output and went on"
        if code < 0:
            return f"the process was killed by signal {-code}"
        self._stderr.seek(0)
        lines = [line for line in self._stderr.read().decode(errors="replace").splitlines() if line.strip()]
        return f"failed (exit code {code}): {lines[-1] if lines else 'no message'}"


def serve(answer: Answer) -> None:
    """Be such a process, until there are no more questions. What is printed meanwhile goes to stderr."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        for line in sys.stdin:
            print(json.dumps(answered(answer, json.loads(line))), file=out, flush=True)


def answered(answer: Answer, question: Mapping[str, Any]) -> dict[str, Any]:
    """An answer, or the error of one that cannot be given."""
    try:
        return answer(question)
    except DistillkitError as error:
        return {"error": f"{error.problem} ({error.hint})" if error.hint else error.problem}
