"""How problems in data are told: values made safe to print, rows that cannot be used, things worth a note."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

from distillkit.errors import DataError, DistillkitError, ErrorGroup

MOST_ERRORS = 20
"""Bad rows reported at once; reading stops at the last of them."""


def shown(value: object) -> str:
    """A value as it may stand in a message: control characters and direction marks escaped, long ones cut."""
    text = repr(value[:80] if isinstance(value, str) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def shown_name(name: str) -> str:
    """A file name as it may stand in a message."""
    return name if name.isprintable() else repr(name)


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """"did you mean 'text'? known: ..." for a name that is not among the known ones."""
    names = sorted(known)
    close = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
    listed = ", ".join(shown(name) for name in names[:12]) + (", ..." if len(names) > 12 else "")
    return (f"did you mean {shown(close[0])}? " if close else "") + f"found: {listed or 'nothing'}"


class BadRows(ABC):
    """What happens to rows that cannot be used."""

    @abstractmethod
    def add(self, error: DistillkitError) -> None:
        """One row that cannot be used; the reader goes on with the next."""

    @abstractmethod
    def settle(self) -> tuple[str, ...]:
        """Notes on the rows added, at the end of a file."""


class StopAtBadRows(BadRows):
    """Collects up to MOST_ERRORS bad rows and raises them together."""

    def __init__(self) -> None:
        self._errors: list[DistillkitError] = []

    def add(self, error: DistillkitError) -> None:
        self._errors.append(error)
        if len(self._errors) == MOST_ERRORS:
            self._errors.append(DataError("there may be more; only the first were looked at"))
            raise ErrorGroup(self._errors)

    def settle(self) -> tuple[str, ...]:
        if self._errors:
            raise self._errors[0] if len(self._errors) == 1 else ErrorGroup(self._errors)
        return ()


class SkipBadRows(BadRows):
    """Leaves bad rows out, counts them and remembers the first."""

    def __init__(self) -> None:
        self._count = 0
        self._first = ""

    def add(self, error: DistillkitError) -> None:
        self._first = self._first or f"{error.where}: {error.problem}"
        self._count += 1

    def settle(self) -> tuple[str, ...]:
        if not self._count:
            return ()
        note = f"{self._count} row(s) skipped; first: {self._first}"
        self._count, self._first = 0, ""
        return (note,)


BAD_ROWS: dict[str, type[BadRows]] = {"error": StopAtBadRows, "skip": SkipBadRows}


@dataclass
class Tally:
    """How often something worth a note was seen, and where first."""

    what: str
    count: int = 0
    first: str = ""

    def add(self, where: str) -> None:
        self.first = self.first or where
        self.count += 1

    def notes(self) -> tuple[str, ...]:
        return (f"{self.count} {self.what} (first: {self.first})",) if self.count else ()
