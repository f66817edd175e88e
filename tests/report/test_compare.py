"""Runs side by side: what differs, in a terminal, a spreadsheet and a page."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from hostile import hostile
from report_sample import classification, measured, minimal, regression
from rich.console import Console

from distillkit.errors import ConfigError, IntegrityError
from distillkit.report.compare import Comparison, compare
from distillkit.report.facts import RunFacts, Setting, save_facts


def _run(folder: Path, facts: RunFacts) -> Path:
    (folder / "report").mkdir(parents=True)
    save_facts(facts, folder / "report" / "facts.json")
    return folder


def _two(tmp_path: Path) -> Comparison:
    facts = classification()
    settings = (*facts.settings[1:], Setting("student.width", "64", "command line"))
    other = replace(
        facts,
        name="sst2-wide",
        settings=tuple(replace(one, value="4") if one.path == "student.layers" else one for one in settings),
        student=replace(facts.student, metrics={**facts.student.metrics, "accuracy": measured(0.859)}),
    )
    return compare([_run(tmp_path / "a", facts), _run(tmp_path / "b", other)])


def _values(comparison: Comparison, name: str) -> tuple[str, ...]:
    return next(line.values for line in (*comparison.results, *comparison.settings) if line.name == name)


def test_metrics_sizes_and_latencies_stand_side_by_side(tmp_path: Path) -> None:
    both = _two(tmp_path)
    assert both.runs == ("sst2-small", "sst2-wide")
    assert _values(both, "student accuracy") == ("0.842 (0.820 to 0.864)", "0.859 (0.837 to 0.881)")
    assert _values(both, "student on disk") == ("17.7 MB", "17.7 MB")
    assert _values(both, "student p50 latency") == ("1.08 ms", "1.08 ms")
    assert _values(both, "speed against teacher") == ("3.89×", "3.89×")
    assert _values(both, "measured at")[0] == "batch 1, length 64 in ONNX Runtime on CPU"


def test_only_settings_that_differ_are_shown(tmp_path: Path) -> None:
    both = _two(tmp_path)
    assert {line.name: line.values for line in both.settings} == {
        "name": ('"sst2-small"', "–"),
        "student.layers": ("2", "4"),
        "student.width": ("–", "64"),
    }


def test_runs_of_different_kinds_and_without_bench_can_be_compared(tmp_path: Path) -> None:
    runs = [_run(tmp_path / facts.name, facts) for facts in (classification(), regression(), minimal())]
    three = compare(runs)
    assert _values(three, "student Pearson correlation") == ("–", "0.790 (0.768 to 0.812)", "–")
    assert _values(three, "student p50 latency")[2] == "–"


def test_runs_of_different_tasks_have_a_mean_and_of_one_task_none(tmp_path: Path) -> None:
    """Each task's metric; of a regression the mean of both correlations, as GLUE has it."""

    def on(facts: RunFacts, data: str) -> RunFacts:
        return replace(facts, settings=(*facts.settings, Setting("task.train", data, "config.yaml:2:3")))

    first, second = on(classification(), "sst2"), on(regression(), "stsb")
    both = compare([_run(tmp_path / "a", first), _run(tmp_path / "b", second)])
    metrics = second.student.metrics
    correlations = (metrics["pearson"].value + metrics["spearman"].value) / 2
    wanted = 50 * (first.student.metrics["accuracy"].value + correlations)
    assert "Mean over 2 tasks, of accuracy, Pearson correlation, Spearman" in both.over_tasks
    assert f"student {wanted:.1f}, teacher" in both.over_tasks and both.over_tasks in both.html()
    same = compare([_run(tmp_path / "c", first), _run(tmp_path / "d", on(regression(), "sst2"))])
    assert same.over_tasks == "" and _two(tmp_path / "e").over_tasks == ""


def test_runs_of_one_name_are_told_apart_by_their_folder(tmp_path: Path) -> None:
    both = compare([_run(tmp_path / name, minimal()) for name in ("first", "second")])
    assert both.runs == ("least (first)", "least (second)")


def test_the_facts_file_and_its_folder_are_accepted_too(tmp_path: Path) -> None:
    run = _run(tmp_path / "a", minimal())
    assert compare([run / "report", run / "report" / "facts.json"]).results == compare([run, run]).results


def test_what_cannot_be_compared_is_refused_in_words(tmp_path: Path) -> None:
    run = _run(tmp_path / "a", minimal())
    with pytest.raises(ConfigError, match="at least two"):
        compare([run])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no report yet"):
        compare([run, tmp_path / "empty"])
    with pytest.raises(ConfigError, match="no such run"):
        compare([run, tmp_path / "absent"])
    (run / "report" / "facts.json").write_text("{}")
    with pytest.raises(IntegrityError):
        compare([run, run])


def test_the_terminal_table_shows_escapes_and_markup_as_text(tmp_path: Path) -> None:
    odd = replace(minimal(), name="a\x1b[31m[red]b[/red]\u202e")
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    console.print(compare([_run(tmp_path / "a", odd), _run(tmp_path / "b", minimal())]).table())
    shown = console.file.getvalue()
    assert "a␛[31m[red]b[/red]⟨U+202E⟩" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("start", ["=cmd()", "+1+1", "-2+3", "@SUM(A1)"])
def test_no_cell_of_the_spreadsheet_is_a_formula(start: str, tmp_path: Path) -> None:
    odd = replace(minimal(), name=start, settings=(Setting(start, start, "x"), Setting("lr", "-2.5", "x")))
    text = compare([_run(tmp_path / "a", odd), _run(tmp_path / "b", minimal())]).csv()
    cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
    assert "'" + start in cells
    assert "-2.5" in cells
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@"))]


def test_the_page_is_self_contained_and_escaped(tmp_path: Path) -> None:
    payload = "<script>document.title='pwned'</script>"
    page = compare([_run(tmp_path / "a", hostile(payload)), _run(tmp_path / "b", classification())]).html()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "Settings that differ" in page
