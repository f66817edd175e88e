"""The page holds what the facts hold, loads nothing, runs nothing, and survives hostile text."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hostile import PAYLOADS, hostile
from report_sample import classification, measured, minimal, regression

from distillkit.metrics import ClassScore
from distillkit.report.facts import RunFacts, load_facts
from distillkit.report.page import render, write_report

VOID = {"meta", "br", "path", "use", "rect", "line", "circle"}
ALLOWED = VOID | set(
    [
        "html",
        "head",
        "title",
        "style",
        "body",
        "main",
        "header",
        "nav",
        "section",
        "h1",
        "h2",
        "h3",
        "p",
        "a",
        "b",
        "i",
        "code",
        "pre",
        "span",
        "small",
        "div",
        "ul",
        "li",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "figure",
        "figcaption",
        "details",
        "summary",
        "svg",
        "g",
        "defs",
        "clippath",
        "text",
        "tspan",
    ]
)


class Page(HTMLParser):
    """Tags, attributes and text of a page as a browser would see them."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_text_stays_text_wherever_it_stands(payload: str) -> None:
    """One place that prints without escaping would run a script of whoever wrote the data."""
    facts = hostile(payload)
    teacher = replace(facts.teacher, calibration=None)
    check_harmless(render(replace(facts, teacher=teacher, curves=(), bench=facts.bench[-1:])))


def test_hostile_text_stays_text_in_figures() -> None:
    check_harmless(render(hostile("".join(PAYLOADS))))


def check_harmless(html: str) -> None:
    page = Page(html)
    assert set(page.tags) <= ALLOWED
    assert page.open == []
    loads = {"src", "srcdoc", "action", "background", "poster"}
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in loads]
    assert all(value.startswith("#") for name, value in page.attributes if name.endswith("href"))
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html)
    html.encode("utf-8")


@pytest.mark.parametrize("expression", ["{{7*7}}", "${7*7}"])
def test_template_syntax_in_data_is_not_evaluated(expression: str) -> None:
    page = Page(render(replace(hostile(f"<b>{expression}</b>"), curves=(), bench=())))
    assert f"<b>{expression}</b>" in "".join(page.text)
    assert "49" not in " ".join(page.text).split()


@pytest.mark.parametrize("facts", [classification(), regression(), minimal()], ids=lambda facts: facts.name)
def test_the_page_is_small_offline_and_without_script(facts: RunFacts, tmp_path: Path) -> None:
    write_report(facts, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(html.encode()) < 3_000_000
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html.replace("url(#", "")
    assert "<script" not in html
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in html
    assert load_facts(tmp_path / "facts.json") == facts
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "facts.json"}


def test_every_part_of_a_full_run_is_there() -> None:
    text = re.sub(r"\s+", " ", "".join(Page(render(classification())).text))
    for part in (
        "The student keeps 97.1 % of the teacher’s accuracy",
        "What was asked",
        "0.842 (0.820 to 0.864)",
        "−0.025 (−0.041 to −0.009)",
        "4.39 M",
        "17.7 MB",
        "p99 latency",
        "1,465 examples/s5,698 examples/s3.9× more",
        "peak memory",
        "All 9 cells",
        "Confusion",
        "Each class",
        "Expected calibration error over 15 bins: teacher 0.030, student 0.030",
        "93.2 %",
        "only the teacher right",
        "unflinchingly bleak and desperate",
        "pretrain",
        "share of the gradient",
        "0.7 × logits, temperature 4",
        "onnxruntime 1.31.1",
        "config.yaml:12:11",
        "distillkit run config.yaml",
    ):
        assert part in text, part


def test_a_run_without_bench_curves_and_examples_shows_no_empty_parts() -> None:
    text = "".join(Page(render(minimal())).text)
    assert "Teacher and student" in text
    for part in (
        "How they answer",
        "Size, latency",
        "Training",
        "Confusion",
        "Calibration",
        "Where they differ",
        "Environment",
        "None",
    ):
        assert part not in text, part


def test_regression_has_no_class_tables() -> None:
    text = "".join(Page(render(replace(regression(), curves=()))).text)
    assert "Pearson correlation" in text
    assert "correlate with 0.930" in text
    assert "a man is playing" in text
    for part in ("Confusion", "Each class", "Calibration"):
        assert part not in text


def test_a_single_loss_shows_neither_weighting_nor_shares() -> None:
    facts = classification()
    text = "".join(Page(render(replace(facts, curves=facts.curves[1:2]))).text)
    assert "each term, unweighted" in text
    assert "share of the gradient" not in text.replace("A term's share of the gradient", "")
    assert "weighted, and their total" not in text


def test_many_classes_become_a_list_of_confusions() -> None:
    facts, names = (
        replace(classification(), curves=(), bench=()),
        tuple(f"class {index}" for index in range(150)),
    )
    confusion = tuple(
        tuple(9 if row == column else int(column == (row + 1) % 150) for column in range(150))
        for row in range(150)
    )
    many = replace(
        facts.student, confusion=confusion, per_class=tuple(ClassScore(name, 1, 1, 1, 10) for name in names)
    )
    task = replace(facts.task, labels=names, label_counts={"train": dict.fromkeys(names, 5)})
    html = render(replace(facts, task=task, teacher=many, student=many))
    assert len(html) < 400_000
    text = re.sub(r"\s+", " ", "".join(Page(html).text))
    assert "Each of the 150 classes" in text
    assert "class 0 class 1 1 10.0 %" in re.sub(r"\s+", " ", " ".join(Page(html).text))


def test_a_page_stays_small_whatever_the_run_holds() -> None:
    """Limits: 3 MB at a thousand long examples, half a million logged steps and a config of a megabyte."""
    facts = classification()
    long = replace(facts.examples[0], texts=("word " * 4000, "word " * 4000))
    points = tuple(replace(facts.curves[2].points[0], step=step) for step in range(50_000))
    curves = (replace(facts.curves[2], points=points),)
    config = "key: value\n" * 100_000
    html = render(replace(facts, examples=(long,) * 1000, curves=curves, config=config))
    assert len(html.encode()) < 1_500_000


def test_home_folders_do_not_reach_the_page() -> None:
    facts = replace(
        classification(),
        curves=(),
        bench=(),
        environment={"executable": "/home/alice/venv/bin/python"},
        config="task: {train: /Users/bob/train.csv}\n",
        command=r"distillkit run C:\Users\Carol\c.yaml",
        notes=("read /home/alice/x.csv",),
    )
    html = render(facts)
    for name in ("alice", "bob", "Carol"):
        assert name not in html


def test_no_example_means_no_text_of_the_data() -> None:
    facts = replace(classification(), curves=(), bench=())
    html = render(replace(facts, examples=()))
    assert "unflinchingly" in render(facts)
    assert "unflinchingly" not in html


def test_the_same_facts_give_the_same_page() -> None:
    assert render(classification()) == render(classification())


def test_labels_that_no_font_has_do_not_warn() -> None:
    facts = classification()
    curve = replace(facts.curves[1], evaluations=((1, {"精度 🎉": 0.5}), (2, {"精度 🎉": 0.6})))
    odd = {**facts.student.metrics, "精度": measured(0.5)}
    html = render(
        replace(
            facts,
            curves=(curve,),
            student=replace(facts.student, metrics=odd),
            teacher=replace(facts.teacher, metrics=odd),
        )
    )
    assert "精度 🎉" in html


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_runs_nothing_and_asks_for_nothing(tmp_path: Path) -> None:
    """All payloads at once in a real browser: the title would change, or the port would be asked."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        joined = " ".join(PAYLOADS).replace("127.0.0.1:9", f"127.0.0.1:{port}")
        page = tmp_path / "report.html"
        write_report(replace(hostile(joined), name="calm"), page)
        browser = [
            "chromium",
            *[
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-sync",
            ],
            *["--disable-component-update", "--no-first-run", "--virtual-time-budget=3000", "--dump-dom"],
            f"--user-data-dir={tmp_path / 'profile'}",
            page.as_uri(),
        ]
        seen = subprocess.run(browser, capture_output=True, text=True, timeout=120, check=True).stdout
        with pytest.raises(BlockingIOError):
            server.accept()
    assert "<title>calm: distillkit report</title>" in seen
