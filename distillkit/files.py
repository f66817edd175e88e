"""Files that appear whole: write aside, fsync, rename, and only then let go of what they replace."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from distillkit.errors import DistillkitError, ResourceError
from distillkit.manifest import MANIFEST as MANIFEST
from distillkit.manifest import flaw as flaw
from distillkit.manifest import read_manifest as read_manifest

WRITE_ERRORS = (OSError, SafetensorError)
"""What a write that fails raises; safetensors tells a full disk in its own way."""
_ASIDE = ".tmp-"


def atomic_write(path: Path, content: str | bytes) -> None:
    """Replace a file's content as one step, durable when this returns."""
    aside = path.with_name(f"{_ASIDE}{path.name}-{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        sync_folder(path.parent)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise out_of_room(error, path.parent) from error


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def seal(folder: Path, facts: Mapping[str, Any]) -> None:
    """fsync every file of a folder, then write its manifest (facts, and size and sha256 of every file)
    last."""
    files = {}
    for path in sorted(entry for entry in folder.rglob("*") if entry.is_file() and entry.name != MANIFEST):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": digest}
    atomic_write(folder / MANIFEST, json.dumps({**facts, "files": files}, indent=1))


def aside(target: Path) -> Path:
    """An empty folder beside `target` to write into before it is renamed."""
    folder = target.with_name(f"{_ASIDE}{target.name}-{os.getpid()}")
    remove(folder)
    folder.mkdir(parents=True)
    return folder


@contextmanager
def appearing(target: Path, facts: Callable[[], Mapping[str, Any]]) -> Iterator[Path]:
    """An empty folder to fill; at the end it is sealed with `facts()` and takes the name `target`.

    On an error nothing appears and nothing is replaced. Raises ResourceError (7) where it cannot be written.
    """
    folder = aside(target)
    try:
        yield folder
        seal(folder, facts())
        publish(folder, target)
    except WRITE_ERRORS as error:
        raise out_of_room(error, target.parent) from error
    finally:
        remove(folder)


def publish(folder: Path, target: Path) -> None:
    """Rename a sealed folder into place, replacing an older one, durable when this returns."""
    sync_folder(folder)
    if target.exists():
        old = target.with_name(f"{_ASIDE}old-{target.name}-{os.getpid()}")
        target.rename(old)
        folder.rename(target)
        sync_folder(target.parent)
        remove(old)
    else:
        folder.rename(target)
        sync_folder(target.parent)


def sweep(folder: Path) -> None:
    """Remove what killed processes left aside in a folder (whose owner must hold the run's lock)."""
    if folder.is_dir():
        for entry in folder.iterdir():
            if entry.name.startswith(_ASIDE) and not entry.name.endswith(f"-{os.getpid()}"):
                remove(entry)


def remove(path: Path) -> None:
    """Remove a file or folder; a link is unlinked, never followed."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)


def out_of_room(error: Exception, folder: Path, *, needed: int = 0) -> DistillkitError:
    """A failed write as a ResourceError (7) that says how much room there is, and how much it needs where
    known.
    """
    try:
        free = f"{shutil.disk_usage(folder).free:,} bytes free"
    except OSError:
        free = "free space unknown"
    if needed:
        free = f"{needed:,} bytes needed, {free}"
    return ResourceError(
        f"cannot write: {getattr(error, 'strerror', None) or error} ({free})",
        where=str(folder),
        hint="make room and run the same command again; nothing saved before was touched",
    )
