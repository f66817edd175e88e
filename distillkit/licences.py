"""Licences that travel: the notices of the models that a model was made from, and what these call their
licence.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

FILE = "licences.json"
CARD = "README.md"
_NOTICES = ("license", "licence", "notice", "copying")
_LARGEST = 1 << 20
"""Bytes of a notice; what is larger is none."""


def carry(origins: Iterable[Path], folder: Path) -> None:
    """Copy the notices of models' folders beside what was made from them. One that is there with other
    content stays, and the new one's name gets a number. What their cards call their licences, and what
    was carried to them, stands in licences.json; there is none where nothing is known.
    """
    known: list[str] = []
    for origin in origins:
        for notice in notices(origin):
            _place(notice, folder)
        known += names(origin)
    if known:
        content = {"licences": list(dict.fromkeys(known))}
        (folder / FILE).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def notices(folder: Path) -> list[Path]:
    """Files of a folder that are called LICENSE, NOTICE or COPYING, whatever follows."""
    if not folder.is_dir():
        return []
    named = (path for path in sorted(folder.iterdir()) if path.name.lower().startswith(_NOTICES))
    return [path for path in named if path.name != FILE and _is_own(path) and path.stat().st_size > 0]


def names(folder: Path) -> tuple[str, ...]:
    """What a model's card calls its licence, or what was carried to it; empty where neither is known."""
    carried = _json(folder / FILE)
    if isinstance(carried, dict):
        return tuple(_words(carried.get("licences")))
    return tuple(_words(_front_matter(folder / CARD).get("license")))


def _is_own(path: Path) -> bool:
    """Whether it is a small file of its model's folder, or of the cache that the folder is a view of
    (`blobs` of the Hugging Face Hub): a link elsewhere would carry any file of the machine along.
    """
    folder, real = path.parent.resolve(), path.resolve()
    homes = (folder, folder.parent.parent / "blobs")
    return real.is_file() and any(home in real.parents for home in homes) and real.stat().st_size <= _LARGEST


def _place(notice: Path, folder: Path) -> None:
    content, number, place = notice.read_bytes(), 1, folder / notice.name
    while place.exists() and place.read_bytes() != content:
        number += 1
        place = folder / f"{notice.stem}-{number}{notice.suffix}"
    place.write_bytes(content)


def _words(told: object) -> Iterator[str]:
    for one in told if isinstance(told, list) else [told]:
        if isinstance(one, str) and one.strip():
            yield one.strip()


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _front_matter(path: Path) -> dict[str, object]:
    from huggingface_hub import metadata_load

    try:
        told = metadata_load(path) if _is_own(path) else None
    except Exception:  # a card that cannot be read says nothing; PyYAML raises many types
        return {}
    return told if isinstance(told, dict) else {}
