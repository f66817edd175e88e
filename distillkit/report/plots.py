"""Figures as inline SVG in the page's colours, drawn by matplotlib's object interface (no pyplot state).

Colours are drawn as placeholder values and become CSS variables, so that one figure serves a light and a
dark page; text stays text. The palette is Okabe and Ito's (2008), readable with colour blindness; dashes
tell lines apart without colour.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    PercentFormatter,
)

from distillkit.metrics import Calibration, Measured
from distillkit.report import text
from distillkit.report.best import same_row
from distillkit.report.curves import thin
from distillkit.report.facts import BenchRow, Curve, ExitFacts, Point

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
TEACHER, STUDENT = PALETTE[0], PALETTE[1]
_INK, _MUTED, _GRID, _PAPER = "#101112", "#707172", "#d0d1d2", "#fdfcfb"
_VARIABLES = {
    **{color: f"var(--c{index})" for index, color in enumerate(PALETTE)},
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _GRID: "var(--line)",
    _PAPER: "var(--paper)",
}
_DASHES = ("-", "--", ":", "-.")
_MARKS = {"onnxruntime": "o", "pytorch": "s"}
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9.0,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "axes.titlecolor": _INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "text.color": _INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "axes.unicode_minus": True,
}


def quality(measured: Mapping[str, tuple[Measured, Measured]], baseline: Mapping[str, float]) -> Markup:
    """Each metric of teacher and student as a dot with its interval; a tick marks the constant answer."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        names = list(measured)
        for row, name in enumerate(names):
            for offset, color, value in zip((-0.14, 0.14), (TEACHER, STUDENT), measured[name], strict=True):
                axes.plot([value.low, value.high], [row + offset] * 2, color=color, linewidth=2.4)
                axes.plot([value.value], [row + offset], "o", color=color, markersize=6)
            if name in baseline:
                axes.plot([baseline[name]], [row], "|", color=_MUTED, markersize=22, markeredgewidth=1.6)
        axes.set_yticks(range(len(names)), [text.metric(name) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        _key(axes, [("teacher", TEACHER, "-"), ("student", STUDENT, "-"), ("constant answer", _MUTED, "-")])

    return _svg("Metrics with 95 % intervals", (7.6, 0.62 * len(measured) + 1.0), draw)


def training(curve: Curve) -> Markup:
    """The losses of one stage: each term raw, weighted, its share of the gradient; the evaluations."""
    points = thin(curve.points)
    panels = _training_panels(points, curve)
    terms = list(dict.fromkeys(name for point in points for name in point.raw))

    def draw(figure: Figure) -> None:
        for index, (title, series) in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), index + 1)
            axes.set(title=title, xlabel="step")
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            order = terms if set(terms) & set(series) else list(series)
            for name, (steps, values) in series.items():
                axes.plot(steps, values, label=text.label(name), **_line_style(name, order))
            if title == _SHARES:
                axes.set_ylim(0, 1)
                axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.legend(fontsize=8, loc="best", labelcolor=_MUTED, handlelength=1.8)

    return _svg(f"Training of {curve.stage}", (2.55 * max(len(panels), 2), 2.4), draw)


_Series = dict[str, tuple[list[int], list[float]]]
_SHARES = "share of the gradient"


def _training_panels(points: Sequence[Point], curve: Curve) -> list[tuple[str, _Series]]:
    """Title and lines of each panel; a panel that would repeat another or show nothing is left out."""
    raw = _series([(point.step, point.raw) for point in points])
    weighted = _series([(point.step, {"total": point.total, **point.weighted}) for point in points])
    shares = _series([(point.step, point.shares) for point in points])
    several = len(raw) > 1
    panels = [
        ("each term, unweighted", raw),
        ("weighted, and their total", weighted if several or not raw else {}),
        (_SHARES, shares if several else {}),
        ("on validation rows", _series(curve.evaluations)),
    ]
    return [(title, series) for title, series in panels if series]


def _series(records: Sequence[tuple[int, Mapping[str, float]]]) -> _Series:
    lines: _Series = {}
    for step, values in records:
        for name, value in values.items():
            steps, heights = lines.setdefault(name, ([], []))
            steps.append(step)
            heights.append(value)
    return lines


def _line_style(name: str, order: Sequence[str]) -> dict[str, Any]:
    """A term keeps its colour and dash in every panel; the total, which is no term, is drawn in ink."""
    if name not in order:
        return {"color": _INK, "linewidth": 1.2, "linestyle": "-"}
    place = order.index(name)
    return {"color": PALETTE[place % len(PALETTE)], "linestyle": _DASHES[place % len(_DASHES)]}


def reliability(teacher: Calibration, student: Calibration) -> Markup:
    """Accuracy against confidence by bin; a dot's area is its share of the rows, the diagonal is perfect."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=1.0, linestyle=":")
        for color, measured in ((TEACHER, teacher), (STUDENT, student)):
            total = sum(entry.count for entry in measured.bins)
            confidence = [entry.confidence for entry in measured.bins]
            accuracy = [entry.accuracy for entry in measured.bins]
            areas = [8 + 260 * entry.count / total for entry in measured.bins]
            axes.plot(confidence, accuracy, color=color, linewidth=1.2)
            axes.scatter(confidence, accuracy, s=areas, color=color, alpha=0.75, linewidths=0)
        axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.04))
        _key(axes, [("teacher", TEACHER, "-"), ("student", STUDENT, "-"), ("perfect", _MUTED, ":")])

    return _svg("Calibration of teacher and student", (4.4, 3.6), draw)


def trade_off(rows: Sequence[BenchRow], metric: str, batch: int, length: int) -> Markup:
    """Quality against latency; the area of a mark is the size on disk, its shape the runtime."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        largest = max(row.size_bytes or 1 for row in rows)
        for row in rows:
            cell, measured = same_row(row, batch, length), row.metrics.get(metric)
            if cell is None or measured is None:
                continue
            color, area = _role_color(row.role), 40 + 560 * (row.size_bytes or 0) / largest
            axes.plot([cell.p50_ms] * 2, [measured.low, measured.high], color=color, linewidth=1.4)
            axes.scatter([cell.p50_ms], [measured.value], s=area, marker=_mark(row), color=color, alpha=0.8)
        _log_axis(axes.set_xscale, axes.xaxis)
        axes.margins(x=0.2, y=0.15)
        axes.legend(handles=_handles(rows), ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
        axes.set(xlabel=f"p50 latency in ms, batch {batch}, length {length}", ylabel=text.metric(metric))

    return _svg("Size, latency and quality", (6.2, 3.8), draw)


def leaving(exits: ExitFacts, metric: str) -> Markup:
    """Quality against the blocks that an example goes through on the average, one dot a rule with its
    interval; the rule that the artifact comes with is ringed.
    """

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for rule in exits.rules:
            measured = rule.metrics[metric]
            axes.plot(
                [rule.depth] * 2, [measured.low, measured.high], color=STUDENT, linewidth=1.0, alpha=0.4
            )
            axes.plot([rule.depth], [measured.value], "o", color=STUDENT, markersize=5)
            if rule.chosen:
                axes.plot([rule.depth], [measured.value], "o", color=_INK, markersize=11, fillstyle="none")
        axes.set(
            xlabel="blocks on the average", ylabel=text.metric(metric), xlim=(0, exits.depths[-1] * 1.05)
        )
        axes.margins(y=0.15)

    return _svg("Quality and depth when leaving early", (6.2, 3.2), draw)


def latency(rows: Sequence[BenchRow]) -> Markup:
    """p50 latency by length, one panel a batch size, with the p50 to p95 band."""
    batches = sorted({cell.batch for row in rows for cell in row.cells})

    def draw(figure: Figure) -> None:
        for index, batch in enumerate(batches):
            axes = figure.add_subplot(1, len(batches), index + 1)
            for row in rows:
                cells = sorted(
                    (cell for cell in row.cells if cell.batch == batch), key=lambda cell: cell.length
                )
                lengths, color = [cell.length for cell in cells], _role_color(row.role)
                p50, p95 = [cell.p50_ms for cell in cells], [cell.p95_ms for cell in cells]
                axes.fill_between(lengths, p50, p95, color=color, alpha=0.15, linewidth=0)
                axes.plot(lengths, p50, color=color, linestyle=_dash(row), marker=_mark(row), markersize=4)
            axes.set(title=f"batch {batch}", xlabel="length in tokens")
            axes.set_ylabel("p50 latency in ms" if index == 0 else "")
            axes.set_xticks(sorted({cell.length for row in rows for cell in row.cells}))
            _log_axis(axes.set_yscale, axes.yaxis)
        figure.legend(handles=_handles(rows), ncols=min(len(rows), 4), loc="outside upper left")

    return _svg("Latency by length", (3.0 * max(len(batches), 2), 3.2), draw)


def _role_color(role: str) -> str:
    return TEACHER if role == "teacher" else STUDENT


def _mark(row: BenchRow) -> str:
    return _MARKS.get(row.backend, "D")


def _dash(row: BenchRow) -> str:
    return "-" if row.backend == "onnxruntime" else "--"


def _log_axis(set_scale: Callable[[str], object], axis: Axis) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5 of each decade."""
    set_scale("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())


def _key(axes: Axes, entries: Sequence[tuple[str, str, str]]) -> None:
    """A legend above the axes: what each colour and dash stands for."""
    handles = [Line2D([], [], color=color, linestyle=dash, label=label) for label, color, dash in entries]
    axes.legend(
        handles=handles, ncols=len(entries), loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2
    )


def _handles(rows: Sequence[BenchRow]) -> list[Line2D]:
    """Legend entries of measured artifacts: colour is the model, shape and dash the runtime."""
    return [
        Line2D(
            [],
            [],
            color=_role_color(row.role),
            linestyle=_dash(row),
            marker=_mark(row),
            markersize=5,
            label=f"{text.label(row.role)}, {text.runtime(row.backend, row.format)}",
        )
        for row in rows
    ]


def _svg(title: str, inches: tuple[float, float], draw: Callable[[Figure], None]) -> Markup:
    """Draw into a figure and return it as SVG for an HTML page, safe to print as it is."""
    sink, title = io.StringIO(), text.clean(title)
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=inches, layout="constrained")
        figure.patch.set_visible(False)
        draw(figure)
        for axes in figure.axes:
            axes.patch.set_visible(False)
        FigureCanvasSVG(figure).print_svg(sink, metadata={"Date": None})
    return Markup(_for_page(sink.getvalue(), title))


def _for_page(svg: str, title: str) -> str:
    """The bare <svg> element: no prologue, metadata, style or fixed size; page colours."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r' id="[\w.]+_\d+"|^ +', "", body, flags=re.MULTILINE)
    body = re.sub(r' xmlns(:\w+)?="[^"]*"| version="1.1"', "", body, count=3)
    body = re.sub(r' width="([\d.]+)pt" height="[\d.]+pt"', r' style="max-width: \1pt"', body, count=1)
    body = re.sub(r"(\d+\.\d{2})\d+", r"\1", body)
    body = re.sub(r' transform="rotate\(-0 [^"]*"|; font-family: [^;"]*', "", body)
    for color, variable in _VARIABLES.items():
        body = body.replace(color, variable)
    return body.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
