"""The stages that make a teacher: its tokenizer, its pretraining, its fine-tuning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from distillkit.errors import ModelError
from distillkit.losses.base import LossStack
from distillkit.losses.gold import Gold
from distillkit.objectives.feed import ObjectiveFeed
from distillkit.stages.job import Job, Save
from distillkit.stages.rows import task_feed
from distillkit.stages.training import fit, save_model, save_scores, settings_of, validation
from distillkit.train import Distillation, Pretraining


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
            yield from document
    else:
        for texts in job.task.train.texts:
            yield from texts


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
        objective.prepare(
            job.documents(settings.corpus), job.tokenizer, corpus, max_length=settings.max_length
        )
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
    """The teacher of the task, fine-tuned where its settings ask for that, and what it scores."""
    source = job.trainable
    if source is None:
        fixed = job.teacher()
        return lambda folder: save_scores(job.alone, fixed, folder)
    pretrained = job.folder("pretrain") if source.pretrain is not None else None
    torch.manual_seed(job.config.seed)  # a fresh head
    model = source.classifier(job.tokenizer, job.task.labels, job.config.task.max_length, pretrained)
    training = source.training(job.task.labels)
    if training is not None:
        stack = LossStack({"gold": (1.0, Gold())})
        stack.bind(model.spec, {})
        program = Distillation(model, stack, {})
        feed = task_feed(job, training.batch)
        how = settings_of(
            job,
            "teacher",
            training,
            epochs=training.epochs,
            keep=training.keep,
            layer_decay=training.layer_decay,
        )
        fit(job, program, feed, how, validation(job, "teacher", program, {"teacher": model}))
    elif source.finetune is not None:
        job.progress.say("teacher: pretrained on masked tokens, which are the task: it is not fine-tuned")
    return lambda folder: save_model(job.alone, model, folder)
