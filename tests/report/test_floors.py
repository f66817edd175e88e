"""Floors: what is asked, in words where it is not met."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report_sample import bench_row, measured

from distillkit.errors import ConfigError, FloorError
from distillkit.report.facts import BenchRow
from distillkit.report.floors import check, named, read_floor

METRICS, SHAPES = ("accuracy", "mse"), {(1, 64), (8, 128)}
PLAIN = bench_row("student", "onnxruntime", 10.0, 20_000_000, 4_000_000, 0.90)


def form(name: str, speed: float, accuracy: float, size: int) -> BenchRow:
    row = bench_row("student", "onnxruntime", 10.0 / speed, size, 4_000_000, accuracy)
    return replace(row, format=name, name=f"student-onnxruntime-{name}")


def asked(**bounds: float | str) -> list:  # type: ignore[type-arg]
    return named([read_floor(name, bound, METRICS, SHAPES) for name, bound in bounds.items()], "accuracy")


@pytest.mark.parametrize(
    ("name", "bound", "value"),
    [
        ("p95", "10ms", 10.0),
        ("p95", "0.5 s", 500.0),
        ("p95@8x128", 12, 12.0),
        ("size", "20MB", 20e6),
        ("size", "1 MiB", 2.0**20),
        ("size", 5, 5.0),
        ("memory", "2GB", 2e9),
        ("cold", "250ms", 0.25),
        ("throughput", "1000/s", 1000.0),
        ("metric", 0.9, 0.9),
        ("metric", "0.9", 0.9),
    ],
)
def test_a_bound_is_read_with_its_unit(name: str, bound: float | str, value: float) -> None:
    assert read_floor(name, bound, METRICS, SHAPES).bound == pytest.approx(value)


@pytest.mark.parametrize(
    ("name", "bound", "words", "hint"),
    [
        ("accurcy", 0.9, "'accurcy' is nothing that is measured", "did you mean 'accuracy'?"),
        ("through_put", 10, "'through_put' is nothing", "did you mean 'throughput'?"),
        ("p95", "10MB", "'10MB' is no bound of p95", "(ms, s, us, µs)"),
        ("p95", "fast", "'fast' is no bound", "a number with or without a unit"),
        ("accuracy", "90%", "'90%' is no bound of accuracy", "a number"),
        ("p95@2x2", "10ms", "names no batch x length that is timed", "1x64, 8x128"),
        ("p95@now", "10ms", "names no batch x length", "1x64"),
        ("size@1x64", 5, "names no batch x length", "only latencies"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(
    name: str, bound: float | str, words: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_floor(name, bound, METRICS, SHAPES)
    assert words in caught.value.problem and hint in caught.value.hint and caught.value.exit_code == 2


def test_the_fastest_form_that_meets_every_floor_is_named() -> None:
    rows = [PLAIN, form("int8", 2.0, 0.89, 6_000_000), form("int4", 3.0, 0.7, 3_000_000)]
    assert check(asked(metric=0.85, p95="12ms"), rows).format == "int8"
    assert check(asked(metric=0.895), rows).format == "fp32"
    assert check(asked(size="4MB"), rows).format == "int4"
    assert check(asked(**{"p50@8x128": "1s"}), rows).format == "int4", "the fastest of those that meet them"


def test_each_floor_that_is_not_met_is_a_line_with_value_and_bound() -> None:
    rows = [PLAIN, form("int8", 2.0, 0.89, 6_000_000)]
    with pytest.raises(FloorError) as caught:
        check(asked(metric=0.95, p95="0.1ms", size="25MB"), rows)
    assert caught.value.exit_code == 12
    cell = next(one for one in rows[1].cells if (one.batch, one.length) == (1, 64))
    assert str(caught.value).splitlines() == [
        "student-onnxruntime-int8: accuracy is 0.8900, at least 0.9500 asked",
        f"student-onnxruntime-int8: p95 is {cell.p95_ms:.2f} ms, at most 0.10 ms asked",
    ]


def test_bounds_hold_on_the_side_that_is_worse() -> None:
    row = replace(PLAIN, metrics={"mse": measured(0.2), "accuracy": measured(0.9)})
    assert check(asked(mse=0.2, accuracy=0.9), [row]) is row, "a bound that is reached is met"
    for floors in (asked(mse=0.19), asked(accuracy=0.91), asked(throughput=1e9), asked(cold="1ms")):
        with pytest.raises(FloorError):
            check(floors, [row])
    assert check(asked(throughput=1), [row]) is row


def test_what_was_not_measured_meets_nothing() -> None:
    with pytest.raises(FloorError, match="accuracy was not measured"):
        check(asked(accuracy=0.1), [replace(PLAIN, metrics={})])
    with pytest.raises(FloorError, match="no form of the exported student"):
        rows = [
            replace(PLAIN, status="failed"),
            replace(PLAIN, role="teacher"),
            replace(PLAIN, backend="pytorch"),
        ]
        check(asked(size="1GB"), rows)
