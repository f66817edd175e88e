"""The run's metrics.jsonl as curves: logged steps and evaluations by stage, thinned for a figure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from distillkit.report.facts import Curve, Point

MOST_POINTS = 200


def read_curves(path: Path) -> tuple[Curve, ...]:
    """The curves of every stage in the order they ran; no file, no curves; torn lines are left out."""
    if not path.exists():
        return ()
    stages: dict[str, list[dict[str, Any]]] = {}
    for record in _records(path.read_text(encoding="utf-8").splitlines()):
        stages.setdefault(record["stage"], []).append(record)
    return tuple(_curve(stage, records) for stage, records in stages.items())


def thin(points: Sequence[Point], limit: int = MOST_POINTS) -> tuple[Point, ...]:
    """At most `limit` points, each the mean of a run of logged steps, at the step that ends the run."""
    if len(points) <= limit:
        return tuple(points)
    edges = [round(index * len(points) / limit) for index in range(limit + 1)]
    return tuple(_mean_point(points[start:end]) for start, end in pairwise(edges))


def _records(lines: Iterable[str]) -> Iterable[dict[str, Any]]:
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "stage" in record and "step" in record:
            yield record


def _curve(stage: str, records: Sequence[Mapping[str, Any]]) -> Curve:
    points = [
        Point(
            step=record["step"],
            total=record["total"],
            raw=record.get("terms", {}),
            weighted=record.get("weighted", {}),
            shares=record.get("gradient_share", {}),
            lr=record.get("lr"),
        )
        for record in records
        if "total" in record
    ]
    evaluations = tuple(
        (record["step"], record["validation"]) for record in records if "validation" in record
    )
    return Curve(stage=stage, points=thin(points), evaluations=evaluations)


def _mean_point(points: Sequence[Point]) -> Point:
    def mean(pick: Callable[[Point], Mapping[str, float]]) -> dict[str, float]:
        names = dict.fromkeys(name for point in points for name in pick(point))
        return {name: _mean([pick(point)[name] for point in points if name in pick(point)]) for name in names}

    return Point(
        step=points[-1].step,
        total=_mean([point.total for point in points]),
        raw=mean(lambda point: point.raw),
        weighted=mean(lambda point: point.weighted),
        shares=mean(lambda point: point.shares),
        lr=points[-1].lr,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
