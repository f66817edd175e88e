"""Which form of an artifact the report recommends."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report_sample import classification, measured

from distillkit.report import summary
from distillkit.report.facts import BenchRow, FormFacts, RunFacts
from distillkit.report.page import render


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
    best = summary.fastest(facts)
    assert best is not None and best.row.format == "int8" and best.speedup == pytest.approx(2.0)
    assert "int8, 2.00× the plain form" in summary.recommended(facts)
    assert any("int4 form loses 0.030 of accuracy, more than 0.005" in one for one in summary.warnings(facts))
    assert not any("int8 form loses" in one for one in summary.warnings(facts))
    plain = summary.find_row(facts, "student", "onnxruntime")
    assert plain is not None and plain.format == "fp32", "the report leads with the plain form"


def test_a_form_that_is_not_faster_is_not_recommended() -> None:
    assert summary.fastest(with_forms(fp16=(0.0, 1.0), int4=(0.03, 3.0))) is None
    assert "take the plain one" in summary.recommended(with_forms(fp16=(0.0, 1.0)))
    assert summary.recommended(classification()) == ""


def test_the_page_has_a_row_for_each_form_and_a_reason_where_there_is_none() -> None:
    facts = with_forms(int8=(0.004, 2.0))
    failed = FormFacts("failed: <b>no such operator", 0, {}, 0.0, 0.0, 0.0)
    page = render(replace(facts, formats={**facts.formats, "int4": failed}))
    assert "Fastest here with at most 0.005 of accuracy lost: int8" in page
    assert "not kept: failed: &lt;b&gt;no such operator" in page and "nodes 83" in page
    assert "ONNX Runtime int8" in page
    assert 'id="forms"' not in render(classification())
