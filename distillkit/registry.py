"""Registry: name -> class, loaded when first needed and checked against the base class of its kind."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Generic, TypeVar

from distillkit.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Location:
    """A class that is not imported yet; `origin` tells a person where it comes from."""

    module: str
    name: str
    origin: str = "distillkit"

    def load(self) -> object:
        """Import the module and return the class. Raises ConfigError where that fails."""
        try:
            value: object = vars(import_module(self.module))[self.name]
        except KeyError:
            raise ConfigError(f"{self.origin}: module {self.module} has no {self.name}") from None
        except ImportError as error:
            raise ConfigError(f"{self.origin}: {self.module} cannot be imported: {error}") from error
        return value


class Registry(Generic[T]):
    """The classes of one kind by name. `base` is the class that every one of them must derive from."""

    def __init__(self, kind: str, base: Location) -> None:
        self.kind = kind
        self._base = base
        self._entries: dict[str, Location | type[T]] = {}

    def add(self, name: str, entry: Location | type[T]) -> None:
        """Register a class, or where to find one. Raises ConfigError where the name is taken."""
        if name in self._entries:
            raise ConfigError(
                f"{self.kind} {name!r} is registered twice: by {self.origin(name)} and by {_origin(entry)}",
                hint="rename or uninstall one of them",
            )
        self._entries[name] = entry

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._entries))

    def origin(self, name: str) -> str:
        """Where a registered class comes from: distillkit, a package, or a file."""
        return _origin(self._entries[name])

    def load(self, name: str) -> type[T]:
        """The class. Raises ConfigError for an unknown name, and for a class that is not of this kind."""
        if name not in self._entries:
            raise ConfigError(f"no {self.kind} is called {name!r}", hint=did_you_mean(name, self.names))
        entry = self._entries[name]
        found = entry.load() if isinstance(entry, Location) else entry
        base = self._base.load()
        if not (isinstance(found, type) and isinstance(base, type) and issubclass(found, base)):
            raise ConfigError(
                f"{self.kind} {name!r} ({self.origin(name)}) does not derive from {self._base.name}",
                hint=f"derive it from {self._base.module}.{self._base.name}",
            )
        self._entries[name] = found
        return found


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant, or None."""
    plain = {_plain(name): name for name in known}
    found = difflib.get_close_matches(_plain(word), plain, n=1, cutoff=0.6)
    if found:
        return plain[found[0]]
    partial = [name for key, name in plain.items() if len(word) > 2 and (_plain(word) in key or key in _plain(word))]
    return partial[0] if partial else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint in words: what was probably meant, and all that is known."""
    names = sorted(known)
    listed = f"known: {', '.join(names)}" if names else "none is known"
    found = closest(word, names)
    return f"did you mean {found!r}? ({listed})" if found else listed


def _plain(word: str) -> str:
    return word.lower().replace("-", "_").replace(" ", "_")


def _origin(entry: object) -> str:
    if isinstance(entry, Location):
        return entry.origin
    return getattr(entry, "__module__", "code") if not isinstance(entry, type) else entry.__module__
