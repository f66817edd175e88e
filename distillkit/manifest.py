"""manifest.json of a folder: the size and sha256 of every file in it, written last."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder, or {} where there is none that can be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) and isinstance(manifest.get("files"), dict) else {}


def flaw(folder: Path, *, hashes: bool) -> str:
    """What is wrong with a sealed folder, in words, or ''. Sizes are always compared, contents where
    `hashes`.
    """
    manifest = read_manifest(folder)
    if not manifest:
        return "no readable manifest"
    for name, facts in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != facts["size"]:
            return f"{name} has {path.stat().st_size} bytes, not {facts['size']}"
        if hashes:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
                    return f"{name} is not what was written (sha256 differs)"
    return ""
