"""Which form of an artifact the report recommends."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
from report_sample import classification, measured
from rich.console import Console

from distillkit.report import best, summary
from distillkit.report.facts import BenchRow, FormFacts, RunFacts
from distillkit.report.page import render
from distillkit.report.tables import bench_for_terminal


def with_forms(**lost: tuple[float, float]) -> RunFacts:
    """Facts of a run with forms: name -> (accuracy lost, speed over the plain form)."""
    facts = classification()
    row = next(one for one in facts.bench if (one.role, one.backend) == ("student", "onnxruntime"))

    def form(name: str, less: float, speed: float) -> BenchRow:
        cells = tuple(replace(cell, p50_ms=cell.p50_ms / speed) for cell in row.cells)
        return replace(row, format=name, cells=cells, difference={"accuracy": measured(-less)})

    more = tuple(form(name, *figures) for name, figures in lost.items())
    told = {name: FormFacts("ok", 1000, {"nodes": 83}, 1e-3, 1e-2, 0.99) for name in lost}
    return replace(facts, bench=(*more, *facts.bench), tolerance=0.005, formats=told)


def test_the_fastest_form_that_keeps_the_quality_is_recommended() -> None:
    facts = with_forms(fused=(0.0, 1.1), int8=(0.004, 2.0), int4=(0.03, 3.0))
    chosen = best.fastest(facts)
    assert chosen is not None and chosen.row.format == "int8" and chosen.speedup == pytest.approx(2.0)
    assert "int8, 2.00× the plain form" in best.recommended(facts)
    assert any("int4 form loses 0.030 of accuracy, more than 0.005" in one for one in summary.warnings(facts))
    assert not any("int8 form loses" in one for one in summary.warnings(facts))
    plain = summary.find_row(facts, "student", "onnxruntime")
    assert plain is not None and plain.format == "fp32", "the report leads with the plain form"


def test_a_form_that_is_not_faster_is_not_recommended() -> None:
    assert best.fastest(with_forms(fp16=(0.0, 1.0), int4=(0.03, 3.0))) is None
    assert "take the plain one" in best.recommended(with_forms(fp16=(0.0, 1.0)))
    assert best.recommended(classification()) == ""


def test_the_page_has_a_row_for_each_form_and_a_reason_where_there_is_none() -> None:
    facts = with_forms(int8=(0.004, 2.0))
    failed = FormFacts("failed: <b>no such operator", 0, {}, 0.0, 0.0, 0.0)
    page = render(replace(facts, formats={**facts.formats, "int4": failed}))
    assert "Fastest here with at most 0.005 of accuracy lost: int8" in page
    assert "not kept: failed: &lt;b&gt;no such operator" in page and "nodes 83" in page
    assert "ONNX Runtime int8" in page
    assert 'id="forms"' not in render(classification())


def _rounds(row: BenchRow, *factors: float) -> BenchRow:
    cells = tuple(
        replace(one, rounds_ms=tuple(one.p50_ms * factor for factor in factors)) for one in row.cells
    )
    return replace(row, cells=cells)


def test_a_ranking_inside_the_noise_is_called_so() -> None:
    facts = with_forms(fused=(0.0, 1.95), int8=(0.004, 2.0), int4=(0.03, 2.01))
    noisy = replace(facts, bench=tuple(_rounds(row, 0.95, 1.0, 1.05) for row in facts.bench))
    assert "The rounds do not tell it from fused: the ranking is noise." in best.recommended(noisy)
    quiet = replace(facts, bench=tuple(_rounds(row, 0.99, 1.0, 1.01) for row in facts.bench))
    assert "noise" not in best.recommended(quiet) and "noise" not in best.recommended(facts)


def test_the_same_file_in_another_runtime_may_be_the_best() -> None:
    facts = with_forms(int8=(0.004, 2.0))
    plugin = replace(facts.bench[0], backend="openvino-bf16", format="fp32", name="student-openvino-bf16")
    faster = tuple(replace(cell, p50_ms=cell.p50_ms / 1.5) for cell in plugin.cells)
    facts = replace(facts, bench=(*facts.bench, replace(plugin, cells=faster)))
    assert "lost: OpenVINO bf16, 3.00× the plain form" in best.recommended(facts)


def test_it_is_said_where_pytorch_is_faster_than_the_best_artifact() -> None:
    facts = with_forms(int8=(0.004, 2.0))
    half = replace(facts.bench[0], backend="pytorch-bf16", format="fp32", name="student-pytorch-bf16")

    def at(speed: float, lost: float) -> str:
        cells = tuple(replace(cell, p50_ms=cell.p50_ms / speed) for cell in half.cells)
        row = replace(half, cells=cells, difference={"accuracy": measured(-lost)})
        return best.recommended(replace(facts, bench=(*facts.bench, row)))

    assert "PyTorch is faster here: PyTorch bf16, 1.50× ONNX Runtime int8 (median" in at(1.5, 0.0)
    assert "PyTorch is faster" not in at(1.5, 0.2) and "PyTorch is faster" not in at(0.8, 0.0)
    assert "lost: int8" in at(1.5, 0.0), "what is recommended is an artifact"


def test_the_page_shows_scenarios_cold_start_and_noise() -> None:
    facts = classification()
    server = {"rate_per_s": 1234.0, "capacity_per_s": 2000.0, "bound_ms": 50.0}
    single = {"p50_ms": 1.5, "p90_ms": 2.5, "p99_ms": 3.5}
    cells = tuple(replace(cell, noisy=True) for cell in facts.bench[3].cells)
    row = replace(
        facts.bench[3],
        first_seconds=0.79,
        cells=cells,
        precision="bf16",
        scenarios={"server": server, "single-stream": single},
    )
    assert row.cold_seconds == pytest.approx(1.0)
    page = render(replace(facts, bench=(*facts.bench[:3], row)))
    assert "As requests come" in page and "1,234" in page and "1.50 ms / 2.50 ms / 3.50 ms" in page
    assert "1.0 s" in page and " ≈" in page and "CPU, bf16" in page
    assert "As requests come" not in render(facts)


def test_every_row_stands_in_the_table_of_the_terminal_one_that_failed_with_its_reason() -> None:
    facts = with_forms(int8=(0.004, 2.0))
    failed = replace(
        facts.bench[0], backend="openvino", format="fp32", status="OpenVINO is not installed here"
    )
    console = Console(width=400, record=True, file=StringIO())
    console.print(bench_for_terminal((*facts.bench, failed), "accuracy"))
    lines = console.export_text().splitlines()
    (small,) = [line for line in lines if "ONNX Runtime int8, CPU" in line]
    assert "−0.004 (−0.026 to +0.018)" in small and small.rstrip().endswith("ok")
    (absent,) = [line for line in lines if "OpenVINO, CPU" in line]
    assert absent.rstrip().endswith("OpenVINO is not installed here")
    assert "batch 1, length 64; accuracy" in lines[0]
