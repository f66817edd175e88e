"""The stage that tells what came out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from distillkit import document, evaluate, licences
from distillkit.bench.leaving import RESULT
from distillkit.bench.rows import MEASUREMENTS, Role
from distillkit.export import forms
from distillkit.links import ASSISTANTS, MEMBERS
from distillkit.model import LEFT, LearningTeacherSource
from distillkit.report.card import write_model_card
from distillkit.report.contexts import shown
from distillkit.report.curves import read_curves
from distillkit.report.facts import Link, RunFacts, flat_settings, load_bench, load_exits, load_formats
from distillkit.report.gather import SCORES, Judged, JudgedTexts, link, task_facts, with_scores
from distillkit.report.page import write_report
from distillkit.rundir import RunDir
from distillkit.settings import Labels, RunConfig
from distillkit.stages.job import ANSWERS, INTERCHANGE, PREFLIGHT, STAGES, Job, Save
from distillkit.stages.texts import corrected, read_texts, wanted
from distillkit.stages.together import beside, who
from distillkit.types import Access


def report(job: Job) -> Save:
    """report.html, facts.json and the model card."""
    facts = gather(job)

    def save(folder: Path) -> None:
        write_report(facts, folder / "report.html")
        write_model_card(facts, folder / "README.md")

    return save


def gather(job: Job) -> RunFacts:
    """Everything the report shows, read from the stages' folders."""
    config, task = job.config, job.task
    answers = {
        role: np.load(job.folder(role) / ANSWERS, allow_pickle=False) for role in ("teacher", "student")
    }
    student_spec = job.student_source.load(job.folder("student")).spec
    samples, labels = job.samples(job.judged), _named(job, student_spec.num_labels)
    gold, train_gold = samples.gold, job.encoded(task.train).gold
    assert gold is not None and train_gold is not None
    texts = shown(labels.kind, samples, gold, job.tokenizer, config.task.max_length)
    told = job.teacher()
    judged = _judged(
        job,
        Judged(
            labels,
            texts,
            gold,
            answers["teacher"],
            answers["student"],
            config.seed,
            scored=told.access >= Access.SCORES,
        ),
    )
    sizes = {role: json.loads((job.folder(role) / SCORES).read_text()) for role in ("teacher", "student")}
    manifest = {stage: job.run.stage(stage).manifest for stage in STAGES if stage != "report"}
    return RunFacts(
        name=config.name,
        task=task_facts(task, job.metric, evaluate.majority(labels, train_gold, gold)),
        teacher=with_scores(
            judged.teacher_facts(_source(job, "teacher"), told.spec, sizes["teacher"]["parameters"]),
            sizes["teacher"]["scores"],
        ),
        student=with_scores(
            judged.student_facts(_source(job, "student"), student_spec, sizes["student"]["parameters"]),
            sizes["student"]["scores"],
        ),
        difference=judged.difference(),
        agreement=judged.agreement(),
        interchange=json.loads((job.folder("student") / INTERCHANGE).read_text()),
        outcomes=judged.outcomes(),
        learning=config.teacher.use if isinstance(job.teacher_source, LearningTeacherSource) else "",
        links=tuple(_links(job)),
        examples=judged.examples(config.report.samples),
        losses=_losses_in_words(config),
        curves=read_curves(job.run.metrics.path),
        bench=load_bench(job.folder("bench") / MEASUREMENTS),
        exits=load_exits(job.folder("bench") / RESULT),
        licences=licences.names(job.folder("export")),
        formats=load_formats(job.folder("export") / forms.FILE),
        tolerance=config.report.tolerance,
        parity=json.loads((job.folder("export") / "parity.json").read_text()),
        environment=job.run.read_json("environment.json"),
        timings={stage: facts["seconds"] for stage, facts in manifest.items() if "seconds" in facts},
        settings=flat_settings(config.model_dump(mode="json"), job.loaded.origins),
        config=(job.run.path / "config.yaml").read_text(encoding="utf-8"),
        command=f"distillkit run {config.output}/{config.name}",
        notes=warnings_of(job),
    )


def _judged(job: Job, answered: Judged) -> Judged:
    """The answers, and beside them the texts, where both models wrote some."""
    taught, learned = (read_texts(job.folder(role)) for role in ("teacher", "student"))
    if taught is None or learned is None:
        return answered
    parts = {field.name: getattr(answered, field.name) for field in fields(answered)}
    return JudgedTexts(
        **parts,
        sources=[texts[0] for texts in job.judged.texts],
        wanted=wanted(job),
        taught=taught,
        learned=learned,
        corrected=corrected(job),
    )


def _source(job: Job, role: Role) -> str:
    """The registered name that a model came from."""
    if isinstance(job.teacher_source, LearningTeacherSource):
        return _peer(job, who(job.folder(role)))
    return job.config.teacher.use if role == "teacher" else job.config.student.use


def _peer(job: Job, name: str) -> str:
    """The registered name of a peer."""
    config = job.config
    return str(getattr(config.teacher, "peers", {}).get(name, config.student).use)


def _links(job: Job) -> Iterator[Link]:
    """The members of the teacher, or the teacher and the assistants before this student."""
    config, folder = job.config, job.run.path
    for name, component in getattr(config.teacher, "members", {}).items():
        yield link("member", name, component.use, folder / MEMBERS / name / "teacher")
    if getattr(config.teacher, "peers", None):
        student = job.folder("student")
        for name, path in ((who(student), student), *beside(job)):
            yield link("peer", name, _peer(job, name), path)
    chain = folder / ASSISTANTS
    taught_by = Path(getattr(config.teacher, "path", ""))
    if config.teacher.use != "distilled" or taught_by.parent != chain.absolute():
        return
    for number in range(1, int(taught_by.name) + 1):
        made = RunDir(chain / str(number))
        recipe: Any = document.read(made.path / "config.yaml").value
        if number == 1:
            first = made.stage("teacher").folder
            left = made.stage("student").folder / LEFT  # of one that learned while the student did
            yield link(
                "first teacher", "teacher", recipe["teacher"]["use"], first if first.exists() else left
            )
        yield link("assistant", str(number), recipe["student"]["use"], made.stage("student").folder)


def _named(job: Job, width: int) -> Labels:
    """The task's labels by name: those of a model that answers with tokens are the tokenizer's entries."""
    if job.task.labels.num_labels:
        return job.task.labels
    entries = job.tokenizer.convert_ids_to_tokens(list(range(len(job.tokenizer))))
    unused = [f"unused entry {index}" for index in range(len(entries), width)]
    return job.task.labels.model_copy(update={"names": (*entries, *unused)})


def warnings_of(job: Job) -> tuple[str, ...]:
    found = job.run.read_json(PREFLIGHT).get("findings", [])
    return tuple(f"{one['place']}: {one['sentence']}" for one in found if one["severity"] == "warning")


def _losses_in_words(config: RunConfig) -> dict[str, str]:
    words = {}
    for number, phase in enumerate(config.phases, start=1):
        for name, loss in phase.terms.items():
            rest = loss.model_dump(mode="json", exclude={"use", "weight"})
            settings = "".join(f", {key} {value}" for key, value in rest.items())
            key = name if len(config.phases) == 1 else f"{name} (phase {number})"
            words[key] = f"{loss.shown_weight} x {loss.use}{settings}"
    return words
