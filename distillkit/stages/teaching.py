"""The stages that make a teacher: its tokenizer, its pretraining, its fine-tuning."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from distillkit.data.tokenizers import in_text
from distillkit.errors import ModelError
from distillkit.licences import carry
from distillkit.losses.base import LossStack
from distillkit.losses.gold import Gold
from distillkit.model import Student, TrainableTeacherSource
from distillkit.objectives.feed import ObjectiveFeed
from distillkit.settings import FinetuneSettings
from distillkit.stages.job import Job, Save
from distillkit.stages.rows import task_feed
from distillkit.stages.training import fit, save_model, save_scores, scores_now, settings_of, validation
from distillkit.train import Distillation, Pretraining, keyed_seed

_TOLD = 1_000_000
"""Bytes of a corpus between two looks at how fast it is read."""


def tokenizer(job: Job) -> Save:
    """The teacher's tokenizer, or one trained on its corpus (on the task's training texts where it has
    none).
    """

    def save(folder: Path) -> None:
        job.teacher_source.tokenizer(_texts(job)).save_pretrained(folder)

    return save


def _texts(job: Job) -> Iterator[str]:
    source = job.trainable
    if source is not None and source.pretrain is not None:
        for document in job.documents(source.pretrain.corpus):
            yield from in_text(document)
    else:
        yield from job.task.train.every_text


def _watched(job: Job, documents: Iterator[list[str]]) -> Iterator[list[str]]:
    """The same documents; says how fast they are read."""
    start, size, last = time.monotonic(), 0, 0

    def said(what: str) -> str:
        rate = size / max(1e-9, time.monotonic() - start)
        return f"pretrain: {what} {size / 1e6:,.1f} MB of text, {rate / 1e6:,.1f} MB/s"

    for document in documents:
        yield document
        size += sum(len(sentence.encode()) for sentence in document)
        if size - last >= _TOLD:
            last = size
            job.progress.show(said("tokenising,"))
    job.progress.show(said("tokenised"), last=True)


def pretrain(job: Job) -> Save:
    """The teacher's body, trained on a corpus with its full objective."""
    source = job.trainable
    if source is None or source.pretrain is None:
        raise ModelError("this teacher has no `pretrain` section", where="teacher.pretrain")
    settings = source.pretrain
    torch.manual_seed(job.config.seed)  # the first weights of every rank
    model, objective = source.pretraining(job.tokenizer)
    corpus = job.cache / f"corpus-{job.digests['pretrain'][:16]}"
    with job.world.main_first():
        documents = _watched(job, job.documents(settings.corpus))
        objective.prepare(documents, job.tokenizer, corpus, max_length=settings.max_length)
    feed = ObjectiveFeed(objective, corpus, settings, seed=job.config.seed)
    said = feed.metrics(0)
    job.progress.say("pretrain: " + ", ".join(f"{name} {value:,.4g}" for name, value in said.items()))
    for remark in feed.remarks(0):
        job.progress.say(f"pretrain: {remark}")
    fit(
        job,
        Pretraining(model, objective),
        feed,
        settings_of(job, "pretrain", settings, steps=settings.steps),
        None,
    )

    def save(folder: Path) -> None:
        model.save_pretrained(folder)  # type: ignore[operator]
        for config in folder.rglob("config.json"):  # of the model, and of one that is kept beside it
            job.tokenizer.save_pretrained(config.parent)
        (folder / "data.json").write_text(json.dumps(said))

    return save


def teacher(job: Job) -> Save:
    """The teacher of the task, fine-tuned where its settings ask for that, what it scores, and the
    licences of what it was made from.
    """
    save = _taught(job)

    def licensed(folder: Path) -> None:
        save(folder)
        carry(job.teacher_source.origins, folder)

    return licensed


def _taught(job: Job) -> Save:
    source = job.trainable
    if source is None:
        fixed = job.teacher()
        return lambda folder: save_scores(job.alone, fixed, folder)
    training = source.training(job.task.labels)
    if training is None:
        model = _classifier(job, source, job.config.seed)
        if source.finetune is not None:
            job.progress.say("teacher: pretrained on masked tokens, which are the task: it is not fine-tuned")
        return lambda folder: save_model(job.alone, model, folder)
    names = [name for name, one in job.trainings.items() if one.stage == "teacher"]
    tuned = {name: _finetuned(job, source, training, name) for name in names}
    told = {name: _validated(job, model) for name, model in tuned.items()} if names[1:] else {}
    kept = _median(told) if told else names[0]
    if told:
        each = ", ".join(f"{name} {score:.4f}" for name, score in told.items())
        job.progress.say(f"teacher: {kept} is kept, the median by validation {job.metric} ({each})")

    def save(folder: Path) -> None:
        save_model(job.alone, tuned[kept], folder)
        if told:
            content = {"metric": job.metric, "validation": told, "kept": kept}
            (folder / "seeds.json").write_text(json.dumps(content, indent=1))

    return save


def _classifier(job: Job, source: TrainableTeacherSource, seed: int) -> Student:
    pretrained = job.folder("pretrain") if source.pretrain is not None else None
    torch.manual_seed(seed)  # a fresh head
    return source.classifier(job.tokenizer, job.task.labels, job.config.task.max_length, pretrained)


def _finetuned(job: Job, source: TrainableTeacherSource, training: FinetuneSettings, name: str) -> Student:
    """The teacher after one fine-tuning; the first has the run's own seed, every other one of its own."""
    number = name.removeprefix("teacher").removeprefix("-")
    seed = job.config.seed if number in ("", "1") else keyed_seed(job.config.seed, name)
    model = _classifier(job, source, seed)
    stack = LossStack({"gold": (1.0, Gold())})
    stack.bind(model.spec, {})
    program = Distillation(model, stack, {})
    how = settings_of(
        job,
        name,
        training,
        epochs=training.epochs,
        keep=training.keep,
        layer_decay=training.layer_decay,
        seed=seed,
    )
    measure = validation(job, name, program, {"teacher": model})
    fit(job, program, task_feed(job, training.batch, seed), how, measure)
    return model


def _validated(job: Job, model: Student) -> float:
    return scores_now(job, model.to(job.device))[job.metric]


def _median(scores: Mapping[str, float]) -> str:
    """Whose score is the median; of an even number the lower one of the middle two."""
    return sorted(scores, key=lambda name: scores[name])[(len(scores) - 1) // 2]
