"""Several runs side by side: settings that differ, quality, size, latency, from the facts of their reports.

Reads facts only: no torch, no model, no data. A terminal, a spreadsheet and a page are three renderings
of one table.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from distillkit.errors import ConfigError
from distillkit.report import summary, tables, text
from distillkit.report.facts import FACTS_FILE, RunFacts, load_facts
from distillkit.report.page import environment

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?")
_FORMULA = ("=", "+", "-", "@")


@dataclass(frozen=True)
class Line:
    """One measure or setting, a value per run; `same` where every run has the same."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Runs (columns) against lines: results first, then the settings in which they differ.

    over_tasks: the mean of runs of different tasks as a sentence; '' where tasks are not different.
    """

    runs: tuple[str, ...]
    results: tuple[Line, ...]
    settings: tuple[Line, ...]
    over_tasks: str = ""

    def table(self) -> Table:
        """For a terminal: control characters are shown, markup in names is text."""
        shown = Table(highlight=False)
        shown.add_column("")
        for run in self.runs:
            shown.add_column(_plain(run), justify="right")
        for line in self.results:
            shown.add_row(_plain(line.name), *map(_plain, line.values))
        if self.settings:
            shown.add_section()
        for line in self.settings:
            shown.add_row(_plain(line.name), *map(_plain, line.values))
        return shown

    def csv(self) -> str:
        """For a spreadsheet: cells that it would take for a formula begin with an apostrophe."""
        sink = io.StringIO()
        writer = csv.writer(sink, lineterminator="\n")
        writer.writerow(["", *map(_inert, self.runs)])
        for line in (*self.results, *self.settings):
            writer.writerow([_inert(line.name), *map(_inert, line.values)])
        return sink.getvalue()

    def html(self) -> str:
        """One self-contained offline page."""
        return environment().get_template("compare.html").render(comparison=self)


def compare(runs: Sequence[Path]) -> Comparison:
    """Read the facts of each run (its folder, its `report/`, or the file) and lay them side by side.

    Raises ConfigError where a run has no report yet or there are fewer than two runs, IntegrityError
    where its facts are damaged.
    """
    if len(runs) < 2:
        raise ConfigError(f"{len(runs)} run given", hint="compare needs at least two run folders")
    facts = [load_facts(_facts_file(run)) for run in runs]
    return Comparison(
        runs=_distinct([one.name for one in facts], runs),
        results=_results(facts),
        settings=_differing_settings(facts),
        over_tasks=_over_tasks(facts),
    )


def _over_tasks(facts: Sequence[RunFacts]) -> str:
    """A score as GLUE's: the mean over tasks of each task's metric (both correlations of a regression)."""
    data = [{setting.path: setting.value for setting in one.settings}.get("task.train") for one in facts]
    if None in data or len(set(data)) < len(facts):
        return ""
    means = {role: sum(_score(one, role) for one in facts) / len(facts) for role in ("student", "teacher")}
    metrics = ", ".join(dict.fromkeys(text.metric(name) for one in facts for name in _leading(one)))
    said = ", ".join(f"{role} {100 * mean:.1f}" for role, mean in means.items())
    return f"Mean over {len(facts)} tasks, of {metrics}: {said}."


def _score(facts: RunFacts, role: str) -> float:
    metrics = facts.student.metrics if role == "student" else facts.teacher.metrics
    values = [metrics[name].value for name in _leading(facts)]
    return sum(values) / len(values)


def _leading(facts: RunFacts) -> tuple[str, ...]:
    return ("pearson", "spearman") if facts.task.kind == "regression" else (facts.task.metric,)


def _facts_file(run: Path) -> Path:
    tried = (run, run / FACTS_FILE, run / "report" / FACTS_FILE)
    for path in tried:
        if path.is_file():
            return path
    raise ConfigError(
        "this run has no report yet" if run.is_dir() else "there is no such run",
        where=str(run),
        hint=f"expected {Path('report') / FACTS_FILE} in it: `distillkit run` of this folder goes on to it",
    )


def _distinct(names: list[str], runs: Sequence[Path]) -> tuple[str, ...]:
    """The runs' names; folder names where two runs share a name."""
    if len(set(names)) == len(names):
        return tuple(names)
    return tuple(f"{name} ({run.name})" for name, run in zip(names, runs, strict=True))


def _results(facts: Sequence[RunFacts]) -> tuple[Line, ...]:
    names = dict.fromkeys(name for one in facts for name in one.student.metrics)
    kept = [(f"student {text.metric(name)}", _metric("student", name)) for name in names]
    taught = [(f"teacher {text.metric(name)}", _metric("teacher", name)) for name in names]
    pairs = [summary.reference_pair(one) for one in facts]
    lines = [
        _line(name, [read(one) for one in facts])
        for name, read in (
            *kept,
            *taught,
            ("rows measured", _rows),
            ("same answers", _same),
            ("student parameters", lambda one: text.count(one.student.parameters)),
            ("teacher parameters", lambda one: text.count(one.teacher.parameters)),
        )
    ]
    costs: tuple[tuple[str, Callable[[summary.Pair], str]], ...] = (
        ("student on disk", lambda pair: text.size(pair.student.size_bytes)),
        ("student p50 latency", lambda pair: text.milliseconds(pair.student_cell.p50_ms)),
        ("speed against teacher", lambda pair: f"{pair.speedup:.2f}×"),
        ("measured at", lambda pair: pair.place),
    )
    lines += [_line(name, [read(pair) if pair else "–" for pair in pairs]) for name, read in costs]
    return tuple(line for line in lines if set(line.values) != {"–"})


def _metric(role: str, name: str) -> Callable[[RunFacts], str]:
    def read(facts: RunFacts) -> str:
        metrics = facts.student.metrics if role == "student" else facts.teacher.metrics
        return tables.measured(metrics[name]) if name in metrics else "–"

    return read


def _rows(facts: RunFacts) -> str:
    units = "" if text.units(facts.task.kind) == "rows" else f" {text.units(facts.task.kind)}"
    return f"{facts.student.metrics[facts.task.metric].n:,} {facts.task.measured_on}{units}"


def _same(facts: RunFacts) -> str:
    return text.percent(facts.agreement["same"]) if "same" in facts.agreement else "–"


def _line(name: str, values: list[str]) -> Line:
    return Line(name, tuple(values))


def _differing_settings(facts: Sequence[RunFacts]) -> tuple[Line, ...]:
    tabled = [{setting.path: setting.value for setting in one.settings} for one in facts]
    paths = dict.fromkeys(path for table in tabled for path in table)
    lines = [Line(path, tuple(table.get(path, "–") for table in tabled)) for path in paths]
    return tuple(line for line in lines if len(set(line.values)) > 1)


def _plain(value: str) -> Text:
    return Text(text.redact(text.clean(value)))


def _inert(value: str) -> str:
    shown = text.redact(text.clean(value))
    return f"'{shown}" if shown.startswith(_FORMULA) and not _NUMBER.fullmatch(shown) else shown
