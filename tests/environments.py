"""Python environments of a test's own, with what somebody else would install."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

LIMIT = 1500
"""Seconds for all that is installed."""


def fresh(folder: Path, *packages: str) -> Path:
    """The interpreter of a new environment with these packages; skips where the index does not give them."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=120)
    python = folder / "bin" / "python"
    if not packages:
        return python
    done = run(python, "-m", "pip", "install", "--quiet", "--retries", "1", *packages)
    if done.returncode:
        pytest.skip(f"these packages cannot be installed here: {' '.join(packages)}: {done.stderr[-300:]}")
    return python


def run(python: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The interpreter, without anything of this process's Python."""
    return subprocess.run(
        [str(python), *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "HOME": str(python.parent), **index_settings()},
        check=False,
    )


def index_settings() -> dict[str, str]:
    """What the environment says of package indexes and proxies."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith("PIP_") or name.lower().endswith("_proxy") or "CERT" in name or "CA_BUNDLE" in name
    }


def succeeded(done: subprocess.CompletedProcess[str], what: Sequence[str] = ()) -> str:
    """stdout of what must have gone well."""
    assert done.returncode == 0, f"{' '.join(what)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout
