"""Registry: name -> class, loaded when first asked for and checked against the base class of its kind."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from distillkit.errors import ConfigError


@dataclass(frozen=True)
class Entry:
    """A registered class: its name in recipes, a sentence on it, and how to get it."""

    name: str
    summary: str
    load: Callable[[], Any]


def at(module: str, name: str) -> Callable[[], Any]:
    """Loads a class by the place of its definition, importing the module only then."""

    def load() -> Any:
        return vars(import_module(module))[name]

    return load


class Registry:
    """The classes of one kind by name."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def add(self, entry: Entry) -> None:
        """Register a class. Raises ConfigError where the name is taken."""
        if entry.name in self._entries:
            raise ConfigError(
                f"{self.kind} {entry.name!r} is registered twice",
                hint="rename one of them, or uninstall a package that names it",
            )
        self._entries[entry.name] = entry

    def names(self) -> list[str]:
        return sorted(self._entries)

    def entries(self) -> list[Entry]:
        return [self._entries[name] for name in self.names()]

    def get(self, name: str, base: type) -> Any:
        """The class. Raises ConfigError for an unknown name, and for a class that does not derive from
        `base`.
        """
        if name not in self._entries:
            raise ConfigError(f"no {self.kind} is called {name!r}", hint=did_you_mean(name, self.names()))
        found = self._entries[name].load()
        if not (isinstance(found, type) and issubclass(found, base)):
            raise ConfigError(
                f"{self.kind} {name!r} is not a {base.__name__}",
                hint=f"derive it from {base.__module__}.{base.__name__}",
            )
        return found


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant, or None."""
    plain = {_plain(name): name for name in known}
    found = difflib.get_close_matches(_plain(word), plain, n=1, cutoff=0.6)
    if found:
        return plain[found[0]]
    inside = [
        name for key, name in plain.items() if len(word) > 2 and (_plain(word) in key or key in _plain(word))
    ]
    return inside[0] if inside else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint in words: what was probably meant, and all that is known."""
    names = sorted(known)
    listed = f"known: {', '.join(names)}" if names else "none is known"
    found = closest(word, names)
    return f"did you mean {found!r}? ({listed})" if found else listed


def _plain(word: str) -> str:
    return word.lower().replace("-", "_").replace(" ", "_")
