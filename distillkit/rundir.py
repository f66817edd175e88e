"""RunDir: where everything of one run lies, who may write there, and what is already done.

.distillkit-run   marks the folder as ours      lock          held while a process works in it
config.yaml       resolved, with origins        status.json   state, exit code, next command
environment.json  versions and hardware         metrics.jsonl one line a record
checkpoints/<stage>/000500/                     <stage>/      result of a stage, manifest.json written last
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from distillkit import files
from distillkit.errors import ConfigError, LockedError

MARKER = ".distillkit-run"
_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "onnx",
    "onnxruntime-gpu",
    "onnxruntime",
    "numpy",
    "scikit-learn",
)


@dataclass(frozen=True)
class Stage:
    """One stage's folder. It is there, whole, or not at all."""

    folder: Path

    @property
    def manifest(self) -> dict[str, Any]:
        return files.read_manifest(self.folder)

    def done(self, digest: str) -> bool:
        """Whether the folder is whole and was made for this digest."""
        return self.manifest.get("config") == digest and not files.flaw(self.folder, hashes=False)

    def write(
        self, digest: str, *, seconds: Callable[[], float] = lambda: 0.0
    ) -> AbstractContextManager[Path]:
        """An empty folder to fill, which then appears whole (see files.appearing).

        seconds: asked at the end, how long the stage took.
        """
        return files.appearing(
            self.folder,
            lambda: {
                "config": digest,
                "seconds": round(seconds(), 1),
                "made": datetime.now(UTC).isoformat(timespec="seconds"),
            },
        )


class MetricsLog:
    """metrics.jsonl: one JSON object a line. A line that cannot be written is kept and tried again; nothing
    stops.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[str] = []

    def append(self, record: Mapping[str, Any]) -> None:
        self._waiting.append(json.dumps(record, allow_nan=False))
        self.flush()

    def flush(self) -> None:
        """Write what waits; on failure warn once and keep it."""
        if not self._waiting:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in self._waiting))
            self._waiting.clear()
        except OSError as error:
            if len(self._waiting) == 1:
                warnings.warn(f"metrics are kept in memory: {error}", RuntimeWarning, stacklevel=2)

    def rewind(self, stage: str, step: int) -> None:
        """Drop this stage's lines after `step` (a resumed run writes them again), and a torn last line."""
        if not self.path.exists():
            return
        kept = [row for row in self.records() if row.get("stage") != stage or row.get("step", 0) <= step]
        files.atomic_write(self.path, "".join(f"{json.dumps(row)}\n" for row in kept))

    def records(self) -> list[dict[str, Any]]:
        """Every whole line."""
        if not self.path.exists():
            return []
        rows = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return rows


class RunDir:
    """A run's folder, marked as ours."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = MetricsLog(path / "metrics.jsonl")

    @classmethod
    def open(cls, path: Path, *, data_paths: Sequence[Path] = ()) -> RunDir:
        """Make or reopen a run's folder. Raises ConfigError (2) for a place that must not be written to,
        LockedError (9) for a folder that holds something else; nothing is ever deleted."""
        path = Path(os.path.abspath(path))
        _refuse_dangerous(path, data_paths)
        filled = path.exists() and (not path.is_dir() or any(path.iterdir()))
        if filled and not (path / MARKER).is_file():  # in this order: another rank may be making it just now
            raise LockedError(
                "this is not a run's folder and it is not empty",
                where=str(path),
                hint="choose another name or output",
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / MARKER).touch()
        except OSError as error:
            raise ConfigError(
                f"cannot be written: {error.strerror}", where=str(path), hint="choose another output"
            ) from None
        return cls(path)

    @classmethod
    def reopen(cls, path: Path) -> RunDir:
        """An existing run's folder. Raises LockedError (9) where it is not one."""
        if not (path / MARKER).is_file():
            raise LockedError(
                "this is not a run's folder",
                where=str(path),
                hint="give the folder that `distillkit run` made",
            )
        return cls(path)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process. Raises LockedError (9) that names the holder; a dead one's lock is
        free.
        """
        with (self.path / "lock").open("a+", encoding="utf-8") as file:
            _take(file, self.path)
            for folder in (self.path, self.path / "cache", *(self.path / "checkpoints").glob("*")):
                files.sweep(folder)
            yield

    def stage(self, name: str) -> Stage:
        return Stage(self.path / name)

    def checkpoints(self, stage: str) -> Path:
        return self.path / "checkpoints" / stage

    def status(self, state: str, exit_code: int, reason: str, next_command: str) -> None:
        """Replace status.json."""
        facts = {
            "state": state,
            "exit_code": exit_code,
            "reason": reason,
            "next": next_command,
            "pid": os.getpid(),
        }
        self.write_json("status.json", {**facts, "time": datetime.now(UTC).isoformat(timespec="seconds")})

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        files.atomic_write(self.path / name, json.dumps(content, indent=1))

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the run, or {} where it is not there."""
        try:
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}


def environment(seed: int, threads: int) -> dict[str, Any]:
    """Versions and hardware by an allow-list: no environment variables, names or paths."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "distillkit": _version(),
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": versions,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "seed": seed,
    }


def _refuse_dangerous(path: Path, data_paths: Sequence[Path]) -> None:
    here = {
        Path("/"): "the root of the file system",
        Path.home(): "your home folder",
        Path.cwd(): "the current folder",
    }
    where, hint = "output", "a run gets a folder of its own: output/name"
    if path in here:
        raise ConfigError(f"{path} is {here[path]}", where=where, hint=hint)
    for data in data_paths:
        data = Path(os.path.abspath(data))
        if path == data or path in data.parents or data in path.parents:
            raise ConfigError(f"{path} holds or lies in the data {data}", where=where, hint=hint)


def _take(file: TextIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise LockedError(f"in use by {holder}", where=str(path), hint="wait for it, or stop it") from None
    file.seek(0)
    file.truncate()
    file.write(
        f"pid {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC).isoformat(timespec='seconds')}"
    )
    file.flush()


def _version() -> str:
    try:
        return metadata.version("distillkit")
    except metadata.PackageNotFoundError:
        return "source"


def _commit() -> str:
    folder = Path(__file__).parent
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip()


def _cpu_model() -> str:
    if sys.platform.startswith("linux"):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
