"""The report: one self-contained HTML file that opens offline, without scripts, and asks for nothing.

Everything printed passes `_shown` (control and bidirectional characters visible, home folders as `~`) and
then Jinja's autoescape; the page's policy forbids any load but its own inline styles and images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from distillkit.metrics import LOWER_IS_BETTER
from distillkit.report import best, plots, summary, tables, text
from distillkit.report.facts import FACTS_FILE, RunFacts, save_facts

_TEMPLATES = Path(__file__).parent / "templates"
_MOST_TEXT = 600
_MOST_EXAMPLES = 200
_MOST_CONFIG = 60_000


def write_report(facts: RunFacts, path: Path) -> None:
    """Write the page to `path` and the facts beside it, where `compare` finds them."""
    save_facts(facts, path.with_name(FACTS_FILE))
    path.write_text(render(facts), encoding="utf-8")


def render(facts: RunFacts) -> str:
    """The page as text."""
    return (
        environment()
        .get_template("report.html")
        .render(
            facts=facts,
            headline=summary.headline(facts),
            certainty=summary.certainty(facts),
            warnings=summary.warnings(facts),
            parity=summary.parity(facts),
            forms={form.row.format: form for form in best.forms(facts) if form.row.backend == "onnxruntime"},
            recommended=best.recommended(facts),
            led_by=tables.leading_cell(facts.bench),
            tiles=_tiles(facts),
            comparison=tables.comparison(facts),
            latencies=tables.latencies(_measured_rows(facts)),
            artifacts=_measured_rows(facts),
            confusions=_confusions(facts),
            examples=facts.examples[:_MOST_EXAMPLES],
            figures=_figures(facts),
        )
    )


def environment() -> Environment:
    """The templates with their filters; every printed value is cleaned and escaped."""
    jinja = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters.update(
        answers=text.answers,
        asked=text.asked,
        backend=text.backend,
        block=_block,
        cell_at=tables.cell_at,
        count=text.count,
        duration=text.duration,
        kind=text.kind,
        measured=tables.measured,
        metric=text.metric,
        ms=text.milliseconds,
        percent=text.percent,
        provider=text.provider,
        runtime=text.runtime,
        scaled=text.scaled,
        score=text.score,
        excerpt=_excerpt,
        size=text.size,
        sources=text.sources,
        units=text.units,
    )
    return jinja


def _shown(value: Any) -> Any:
    """What a template prints: markup as it is, text cleaned and without home folders."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return text.redact(text.clean(value))


def _block(value: str) -> Markup:
    """Text of several lines for <pre>, each line cleaned and escaped."""
    lines = text.shorten(value, _MOST_CONFIG).splitlines()
    return Markup("\n").join(_shown(line) for line in lines)


def _excerpt(value: str) -> str:
    return text.shorten(text.clean(value), _MOST_TEXT)


def _tiles(facts: RunFacts) -> list[tuple[str, str]]:
    """The figures under the headline: value and what it is."""
    tiles = []
    share = summary.kept(facts)
    if share is not None:
        tiles.append((text.percent(share), f"of the teacher’s {text.metric(facts.task.metric)}"))
    pair = summary.reference_pair(facts)
    taught = facts.teacher.parameters
    compared = f", the teacher has {text.count(taught)}" if taught is not None else ""
    tiles.append((text.count(facts.student.parameters), f"parameters{compared}"))
    if pair is not None:
        tiles.append((f"{pair.speedup:.1f}×", f"the speed at {pair.place}"))
    if "same" in facts.agreement:
        tiles.append((text.percent(facts.agreement["same"]), "same answers as the teacher"))
    return tiles


def _measured_rows(facts: RunFacts) -> tuple[Any, ...]:
    return tuple(row for row in facts.bench if row.status == "ok" and row.cells)


def _confusions(facts: RunFacts) -> list[tuple[str, Any, Any]]:
    """Title, table and list of confused pairs of each model (one of the two is empty)."""
    labels = facts.task.labels
    return [
        (title, tables.confusion(model, labels), tables.most_confused(model, labels))
        for title, model in (("Teacher", facts.teacher), ("Student", facts.student))
        if model.confusion
    ]


def _figures(facts: RunFacts) -> dict[str, Any]:
    """Every figure that the run has the numbers for."""
    figures: dict[str, Any] = {
        "training": [(curve, plots.training(curve)) for curve in facts.curves if curve.points]
    }
    shared = {
        name: (facts.teacher.metrics[name], student)
        for name, student in facts.student.metrics.items()
        if name in facts.teacher.metrics and name not in LOWER_IS_BETTER
    }
    figures["quality"] = plots.quality(shared, facts.task.baseline.metrics) if shared else ""
    teacher, student = facts.teacher.calibration, facts.student.calibration
    figures["calibration"] = plots.reliability(teacher, student) if teacher and student else ""
    rows, pair = _measured_rows(facts), summary.reference_pair(facts)
    figures["latency"] = plots.latency(rows) if rows else ""
    shown = facts.exits is not None and facts.exits.rules
    figures["leaving"] = plots.leaving(facts.exits, facts.task.metric) if shown and facts.exits else ""
    scored = [row for row in rows if facts.task.metric in row.metrics]
    figures["trade_off"] = ""
    if pair is not None and scored:
        cell = pair.student_cell
        figures["trade_off"] = plots.trade_off(scored, facts.task.metric, cell.batch, cell.length)
    return figures
