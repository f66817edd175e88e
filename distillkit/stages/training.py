"""How every stage trains, measures and saves a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from distillkit import evaluate
from distillkit.data.batching import Feed, drawn
from distillkit.interchange import Interchange, Intervened
from distillkit.losses.base import LossStack
from distillkit.model import FixedTeacher, Student, Teacher
from distillkit.report.gather import SCORES
from distillkit.settings import FinetuneSettings, Phase, PretrainSettings
from distillkit.stages.job import ANSWERS, Job
from distillkit.stages.texts import save_texts
from distillkit.tracking import trackers
from distillkit.train import Hooks, Program, TrainSettings, train
from distillkit.types import Access

INTERCHANGE_ROWS = 500
"""Rows that interchange accuracy is measured on: five forwards of two models for each."""


def validation(
    job: Job, stage: str, program: Program, students: Mapping[str, Student]
) -> Callable[[], Mapping[str, float]]:
    """Measures what is in training on the validation rows, and says what each scores; of several the mean."""

    def measure() -> dict[str, float]:
        program.eval()
        scores = {name: scores_now(job, model) for name, model in students.items()}
        for name, values in scores.items():
            who = stage if len(scores) == 1 else f"{stage} ({name})"
            said = ", ".join(f"{metric} {value:.4f}" for metric, value in values.items())
            job.progress.say(f"{who}: validation {said}")
        metrics = next(iter(scores.values()))
        return {metric: sum(one[metric] for one in scores.values()) / len(scores) for metric in metrics}

    return measure


def scores_now(job: Job, model: Student) -> dict[str, float]:
    """A model's metrics on the validation rows."""
    samples = job.samples(job.task.validation)
    gold = samples.gold
    assert gold is not None
    return evaluate.values(job.task.labels, gold, job.predict(model.eval(), samples))


def settings_of(
    job: Job, name: str, settings: PretrainSettings | FinetuneSettings | Phase, **more: Any
) -> TrainSettings:
    """What the loop is told of one training of this job; more: how long it is, and what differs."""
    training = job.trainings[name]
    return TrainSettings(
        stage=name,
        optimizer=settings.optimizer,
        save_every=settings.save_every,
        metric=job.metric,
        seed=more.pop("seed", job.config.seed),
        runtime=job.config.runtime,
        settings_digest=training.settings,
        data_digest=training.data,
        force=job.force,
        **more,
    )


def phase_settings(job: Job, name: str, phase: Phase, stack: LossStack) -> TrainSettings:
    """The same of a phase, which keeps its best weights where validation rows tell them apart."""
    judged = phase.corpus is None and stack.trains_logits
    keep = phase.keep or ("best" if judged else "last")
    return settings_of(job, name, phase, epochs=phase.epochs, keep=keep)


def fit(
    job: Job,
    program: Program,
    feed: Feed,
    settings: TrainSettings,
    measure: Callable[[], Mapping[str, float]] | None,
) -> None:
    with (
        trackers(job.config.track, job.run.path, job.config.name)
        if job.world.main
        else trackers([], job.run.path, "") as told
    ):
        hooks = Hooks(
            log=job.run.metrics, progress=job.progress, signals=job.signals, evaluate=measure, trackers=told
        )
        train(program, feed, settings, hooks, checkpoints=job.run.checkpoints(settings.stage))


def save_model(job: Job, model: Student, folder: Path) -> None:
    model.save(folder, job.task.labels)
    job.tokenizer.save_pretrained(folder)
    save_scores(job, FixedTeacher(model.to(job.device)), folder)


def save_scores(job: Job, model: Teacher, folder: Path) -> None:
    """answers.npy to the judged rows, texts.json of a model that writes, and scores.json."""
    samples = job.samples(job.judged)
    assert samples.gold is not None
    answers = job.predict(model, samples)
    np.save(folder / ANSWERS, answers, allow_pickle=False)
    scores = evaluate.score(job.task.labels, samples.gold, answers, seed=job.config.seed)
    if model.writer is not None:
        scores |= save_texts(job, model.writer, folder)
    facts = {
        "parameters": model.num_parameters,
        "scores": {name: asdict(value) for name, value in scores.items()},
    }
    (folder / SCORES).write_text(json.dumps(facts, indent=1))


def interchange_accuracy(job: Job, model: Teacher, fixed: Teacher) -> dict[str, float]:
    """How alike student and teacher answer judged rows (INTERCHANGE_ROWS at most) under the same
    interventions (those of the last phase), by the names of `evaluate.agreement`, how many `rows` these are,
    and `changed`, the share of the teacher's answers that an intervention changes; empty where one of them
    cannot be intervened on.
    """
    if fixed.access < Access.INTERVENTIONS or not (fixed.spec.num_layers and model.spec.num_layers):
        return {}
    settings, seed = job.config.phases[-1].interchange, job.config.seed
    labels = job.task.labels
    samples = drawn(job.samples(job.judged), INTERCHANGE_ROWS, seed=seed)
    made = Interchange(settings, seed=seed, student=model.spec, teacher=fixed.spec)
    told = job.predict(Intervened(fixed, made, made.teacher_swap), samples)
    mine = job.predict(Intervened(model, made, made.student_swap), samples)
    found = evaluate.agreement(labels, told, mine)
    same = evaluate.agreement(labels, job.predict(fixed, samples), told)
    return {**found, "rows": len(samples), **({"changed": 1 - same["same"]} if "same" in same else {})}
