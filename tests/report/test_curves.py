"""metrics.jsonl becomes curves; thinning keeps means, ends and rare values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distillkit.report.curves import read_curves, thin
from distillkit.report.facts import Point


def _log(path: Path, records: list[object], torn: str = "") -> Path:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records) + torn)
    return path


def test_stages_stay_in_order_with_their_terms_and_evaluations(tmp_path: Path) -> None:
    step = {
        "stage": "teacher",
        "step": 20,
        "total": 0.5,
        "terms": {"gold": 0.5},
        "weighted": {"gold": 0.5},
        "lr": 1e-4,
    }
    curves = read_curves(
        _log(
            tmp_path / "metrics.jsonl",
            [
                step,
                {"stage": "teacher", "step": 30, "validation": {"accuracy": 0.8}},
                {**step, "stage": "student", "gradient_share": {"gold": 1.0}},
                {**step, "step": 40},
                {"stage": "student", "step": 21, "diverged": ["kd"], "ids": [1]},
                {"message": "not a step"},
                [1, 2],
            ],
            torn='{"stage": "stu',
        )
    )
    assert [curve.stage for curve in curves] == ["teacher", "student"]
    assert [point.step for point in curves[0].points] == [20, 40]
    assert curves[0].evaluations == ((30, {"accuracy": 0.8}),)
    assert curves[0].points[0].raw == curves[0].points[0].weighted == {"gold": 0.5}
    assert curves[0].points[0].shares == {}
    assert curves[1].points[0].shares == {"gold": 1.0}
    assert curves[1].points[0].lr == 1e-4
    assert len(curves[1].points) == 1


def test_a_run_that_logged_nothing_has_no_curves(tmp_path: Path) -> None:
    assert read_curves(tmp_path / "metrics.jsonl") == ()
    assert read_curves(_log(tmp_path / "metrics.jsonl", [])) == ()


@pytest.mark.parametrize("count", [1, 7, 200, 201, 999, 10_000])
def test_thinning_keeps_the_last_step_and_the_overall_mean(count: int) -> None:
    points = [Point(step=step, total=float(step), raw={"a": float(step)}) for step in range(1, count + 1)]
    thinned = thin(points)
    assert len(thinned) == min(count, 200)
    assert thinned[-1].step == count
    assert sum(point.total for point in thinned) / len(thinned) == pytest.approx((count + 1) / 2, rel=0.01)
    assert [point.step for point in thinned] == sorted({point.step for point in thinned})


def test_a_value_logged_now_and_then_is_not_diluted_by_steps_without_it() -> None:
    points = [
        Point(step=step, total=0.0, shares={"kd": 0.8} if step % 5 == 0 else {}) for step in range(1000)
    ]
    shares = [point.shares["kd"] for point in thin(points, 100)]
    assert shares == pytest.approx([0.8] * 100)
