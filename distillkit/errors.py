"""Errors a user can cause or meet, each with the exit code that the command ends with.

The table of codes is part of the public contract (README, "Exit codes"). A message says what happened, where
(`file:line:column` or the path of a config field), the value, and what to do. Anything else that escapes is a
bug (1).
"""

from __future__ import annotations


class DistillkitError(Exception):
    """A failure with a stable exit code, told to the user in words and never as a traceback."""

    exit_code = 1

    def __init__(self, problem: str, *, where: str = "", hint: str = "") -> None:
        self.problem, self.where, self.hint = problem, where, hint
        super().__init__(problem, where, hint)

    def __str__(self) -> str:
        text = f"{self.where}: {self.problem}" if self.where else self.problem
        return f"{text}\n  -> {self.hint}" if self.hint else text


class ConfigError(DistillkitError):
    """The recipe or the command line is wrong (2)."""

    exit_code = 2


class DataError(DistillkitError):
    """A data file is wrong: names file, line, column and value (3)."""

    exit_code = 3


class ModelError(DistillkitError):
    """A teacher, student or tokenizer cannot be used as asked (4)."""

    exit_code = 4


class MissingError(DistillkitError):
    """The environment lacks something: a GPU, an execution provider, a package (5)."""

    exit_code = 5


class DivergedError(DistillkitError):
    """A loss, a gradient or a teacher output stopped being finite (6)."""

    exit_code = 6


class ResourceError(DistillkitError):
    """Disk or memory ran out (7)."""

    exit_code = 7


class IntegrityError(DistillkitError):
    """No valid checkpoint, or stored files are not what their manifest says (8)."""

    exit_code = 8


class LockedError(DistillkitError):
    """The run directory belongs to another process or is not a run directory (9)."""

    exit_code = 9


class ExportError(DistillkitError):
    """The export failed, or the artifact does not compute what the model computes (10)."""

    exit_code = 10


class SecurityError(DistillkitError):
    """Refused because loading it could run code or leave the allowed folders (11)."""

    exit_code = 11


class FloorError(DistillkitError):
    """What was measured is worse than the floors that were asked for (12)."""

    exit_code = 12


class StoppedError(DistillkitError):
    """Stopped by a signal after a checkpoint was saved: the same command goes on (75, or 130 after
    Ctrl-C)."""

    exit_code = 75

    def __init__(self, problem: str, *, interrupted: bool = False, where: str = "", hint: str = "") -> None:
        super().__init__(problem, where=where, hint=hint)
        self.exit_code = 130 if interrupted else 75


class ErrorGroup(DistillkitError):
    """Several errors of one kind found in one pass, shown together and ending with the code of the first."""

    def __init__(self, errors: list[DistillkitError]) -> None:
        self.errors = errors
        super().__init__("\n".join(str(error) for error in errors))
        self.exit_code = errors[0].exit_code
