"""Texts that try to leave their place in a page, and facts that carry them in every string."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from report_sample import classification

from distillkit.report.facts import RunFacts

PAYLOADS = (
    "<script>document.title='pwned'</script>",
    "</title><script>document.title='pwned'</script>",
    "</style><script>document.title='pwned'</script>",
    "</pre></table><img src=x onerror=\"document.title='pwned'\">",
    "<svg onload=\"document.title='pwned'\">",
    "</svg><script>document.title='pwned'</script>",
    "\"><script>document.title='pwned'</script>",
    "' onmouseover='document.title=1' x='",
    "<iframe srcdoc=\"<script>parent.document.title='pwned'</script>\">",
    "<iframe src=http://127.0.0.1:9/frame>",
    "<img src=http://127.0.0.1:9/pixel>",
    "<link rel=stylesheet href=http://127.0.0.1:9/style>",
    "<style>@import url(http://127.0.0.1:9/import);</style>",
    "<meta http-equiv=refresh content='0;url=http://127.0.0.1:9/refresh'>",
    "<base href=http://127.0.0.1:9/>",
    "<form action=http://127.0.0.1:9/><button>go</button></form>",
    "<object data=http://127.0.0.1:9/o></object><embed src=http://127.0.0.1:9/e>",
    "<a href=\"javascript:document.title='pwned'\">x</a>",
    "[x](javascript:document.title='pwned')",
    "![x](http://127.0.0.1:9/markdown.png)",
    "{{7*7}}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{{x}}{% endfor %}",
    "${7*7}",
    "<!-- comment -->",
    "]]><script>document.title='pwned'</script>",
    "&lt;script&gt;document.title='pwned'&lt;/script&gt;",
    "a\x00b\x1b[31mred\x07\x9b2J",
    "abc\u202e<script>\u202c\u2066x\u2069",
    "+ADw-script+AD4-document.title='pwned'+ADw-/script+AD4-",
    "$\\frac{1}{2}$ $x_",
    "| a | b |\n|---|\n# heading\n```\n---\n",
    "\ud800 lone surrogate",
)
"""At least the thirty that the page is promised to survive."""


def hostile(payload: str) -> RunFacts:
    """Sample facts with the payload in place of every free string; the vocabulary of the program stays."""
    facts = classification()
    labels = tuple(f"{index}{payload}" for index in range(2))
    task = replace(
        facts.task,
        baseline=replace(facts.task.baseline, answer=payload),
        labels=labels,
        label_counts={"train": {labels[0]: 3, labels[1]: 4}},
        rows={**facts.task.rows, payload: 1},
        notes=(payload,),
    )
    teacher, student = (
        replace(model, source=payload, per_class=tuple(replace(row, name=payload) for row in model.per_class))
        for model in (facts.teacher, facts.student)
    )
    metrics = {**student.metrics, payload: student.metrics["accuracy"]}
    return replace(
        facts,
        name=payload,
        task=task,
        teacher=replace(teacher, metrics={**teacher.metrics, payload: teacher.metrics["accuracy"]}),
        student=replace(student, metrics=metrics),
        examples=tuple(
            replace(row, texts=(payload,), gold=payload, teacher=payload, student=payload)
            for row in facts.examples
        ),
        losses={payload: payload},
        curves=tuple(_hostile_curve(curve, payload) for curve in facts.curves),
        bench=(*facts.bench, replace(facts.bench[0], name=payload, provider=payload, status=payload)),
        parity={payload: payload},
        environment={payload: payload, "packages": {payload: payload}},
        timings={payload: 1.0},
        settings=tuple(replace(one, path=payload, value=payload, origin=payload) for one in facts.settings),
        config=payload,
        command=payload,
        notes=(payload,),
    )


def _hostile_curve(curve: Any, payload: str) -> Any:
    points = tuple(
        replace(point, raw={payload: 1.0, "b": 2.0}, weighted={payload: 1.0, "b": 2.0}, shares={payload: 1.0})
        for point in curve.points[:3]
    )
    return replace(curve, stage=payload, points=points, evaluations=((1, {payload: 0.5}),))
