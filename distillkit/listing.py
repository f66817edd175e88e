"""What is there: runs in a folder with their state, and what a config can name. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from distillkit import catalog
from distillkit.errors import ConfigError
from distillkit.registry import did_you_mean
from distillkit.report.text import clean
from distillkit.rundir import MARKER, RunDir

KINDS = {"losses": "loss", "teachers": "teacher", "students": "student"}


def runs(output: Path) -> list[dict[str, str]]:
    """name, state, when it last changed and what to type next, of every run in a folder."""
    folders = sorted(entry.parent for entry in output.glob(f"*/{MARKER}"))
    return [{"name": folder.name, **_state(RunDir.reopen(folder))} for folder in folders]


def components(what: str, code: Sequence[Path]) -> list[dict[str, str]]:
    """name and sentence of every registered class of a kind. Raises ConfigError for an unknown kind."""
    if what not in KINDS:
        raise ConfigError(
            f"{what!r} cannot be listed", where="command line", hint=did_you_mean(what, ["runs", *KINDS])
        )
    for path in code:
        catalog.load_code(path)
    return [{"name": name, "what": sentence} for name, sentence in catalog.entries(KINDS[what])]


def table(rows: Sequence[Mapping[str, str]]) -> Table | str:
    """Rows for a terminal."""
    if not rows:
        return "nothing here"
    shown = Table(highlight=False)
    for column in rows[0]:
        shown.add_column(column)
    for row in rows:
        shown.add_row(*(Text(clean(cell)) for cell in row.values()))
    return shown


def exit_code(run: Path) -> int:
    """The exit code that a run's status names; 0 where there is none."""
    return int(RunDir(run).read_json("status.json").get("exit_code", 0))


def _state(run: RunDir) -> dict[str, str]:
    status = run.read_json("status.json")
    return {name: str(status.get(name, "")) for name in ("state", "time", "reason", "next")}
