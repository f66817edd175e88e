"""The arms of the study of pretraining objectives: shapes and budgets, how one is pretrained, what generator
and main model came to on documents that they never saw, and how any of them is fine-tuned.

Every arm reads the same tokenizer and the same sequences, in the order of its seed. A cell is pretrained in
one process in a minute or so, without checkpoints.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from common import DATA, RUNS, run, scores
from torch import Tensor, nn
from transformers import AutoTokenizer

from distillkit.data.batching import encode, measured
from distillkit.data.corpora import documents
from distillkit.data.tasks import load_task
from distillkit.data.tokenizers import in_text, train_wordpiece
from distillkit.flops import HONEST
from distillkit.objectives.base import Objective
from distillkit.objectives.feed import ObjectiveFeed
from distillkit.progress import Quiet
from distillkit.rundir import MetricsLog
from distillkit.settings import OptimizerSettings, PretrainSettings, RuntimeSettings, TaskSettings
from distillkit.signals import Signals
from distillkit.teachers.deberta import Deberta
from distillkit.teachers.electra import Electra
from distillkit.teachers.encoders import PretrainedByGenerator
from distillkit.train import Hooks, Pretraining, TrainSettings, train

FOLDER = RUNS / "electra-orderings"
ARMS: dict[str, dict[str, Any]] = {
    "ELECTRA": {},
    "ELECTRA 15 %": {"objective": "electra_15"},
    "MLM": {"objective": "replace_mlm", "generator": "mask"},
    "All-Tokens MLM": {"objective": "all_tokens_mlm"},
    "Replace-MLM": {"objective": "replace_mlm"},
}
RANDOM = "random weights"
MECHANISMS: dict[str, dict[str, Any]] = {
    "generator 1/4": {"generator_width": 0.25},
    "generator 1/2": {"generator_width": 0.5},
    "generator 1/1": {"generator_width": 1.0},
    "generator 1/1, all tied": {"generator_width": 1.0, "tie": "all"},
    "generator 1/2, untied": {"generator_width": 0.5, "tie": "none"},
}
SHARING: dict[str, dict[str, Any]] = {
    "DeBERTa, one table (ES)": {"sharing": "es"},
    "DeBERTa, two tables (NES)": {"sharing": "nes"},
    "DeBERTa, GDES": {"sharing": "gdes"},
}
HELD = 20
"""One document in so many is held out of pretraining, for `judged`."""
JUDGED = 1024
"""Held-out sequences that a pair of generator and main model is judged on."""
MASKS = 10_000
"""Epoch whose masks these have, which no training reaches."""
TASKS: dict[str, dict[str, Any]] = {
    "trec": {"kind": "classification", "max_length": 64},
    "rotten_tomatoes": {"kind": "classification", "max_length": 64},
    "conll2000_chunks": {
        "kind": "token_classification",
        "text": "tokens",
        "label": "tags",
        "on_bad_row": "skip",  # one test sentence has a tag that training never shows
        "max_length": 128,
    },
}
"""What a pretrained model is fine-tuned on."""
EPOCHS = {"trec": 4, "rotten_tomatoes": 3, "conll2000_chunks": 2}
Counts = dict[str, list[int]]
"""right: answers of each row that are right; words: of so many."""


@dataclass(frozen=True)
class Scale:
    """size: shape of the main model; budget, small, long: FLOPs of pretraining of the orderings, of the
    mechanisms, and of the teacher that is pretrained longer; batch and length of its sequences;
    characters: of the corpus, and files it is taken from; more: arms that this scale alone has.
    """

    size: dict[str, Any]
    budget: float
    small: float
    long: float
    batch: int
    length: int
    lr: float
    precision: str
    characters: int
    files: tuple[str, ...]
    more: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def arms(self) -> dict[str, dict[str, Any]]:
        return {**ARMS, **self.more, **MECHANISMS, **SHARING}


SCALES = {
    "cpu": Scale(
        size={"size": "tiny", "vocab_size": 2048, "positions": 128, "mask_rate": 0.2, "dropout": 0.0},
        budget=1e12,
        small=5e11,
        long=4e12,
        batch=8,
        length=128,
        lr=1e-3,  # at 3e-3 the states of all tokens become one vector, from which no fine-tuning starts
        precision="fp32",
        characters=24_000_000,
        files=("openstax", "standardebooks", "us_speeches"),
    ),
    "gpu": Scale(
        size={"size": "small", "vocab_size": 8192, "positions": 128},
        budget=1e16,
        small=5e15,
        long=4e16,
        batch=1024,
        length=128,
        lr=1e-3,
        precision="bf16",
        characters=10**9,
        files=("openstax", "standardebooks", "us_speeches", "imdb_unsup"),
        more={
            "two stages": {"generator": "two_stage", "generator_width": 1.0, "tie": "none"},
            "adversarial": {"generator": "adversarial"},
        },
    ),
}


def source_of(scale: Scale, arm: str) -> PretrainedByGenerator:
    if arm in SHARING:
        return Deberta(**scale.size, **SHARING[arm])
    return Electra(**{**scale.size, **scale.arms[arm]})


def corpus(scale: Scale) -> tuple[list[list[str]], list[list[str]]]:
    """(documents to learn from, documents held out): of each file as many of its characters as its share of
    the scale's, in an order drawn once for all."""
    texts = [list(documents(f"{name}.jsonl.gz", base=DATA / "corpus")) for name in scale.files]
    sizes = [[sum(map(len, text)) for text in file] for file in texts]
    share = min(1.0, scale.characters / sum(map(sum, sizes)))
    kept: list[list[str]] = []
    for file, size in zip(texts, sizes, strict=True):
        order = random.Random(0).sample(range(len(file)), len(file))
        room = share * sum(size)
        for place in order:
            if room > 0:
                kept.append(file[place])
                room -= size[place]
    held = [text for number, text in enumerate(kept) if number % HELD == 0]
    return [text for number, text in enumerate(kept) if number % HELD], held


def prepared(scale: Scale) -> Path:
    """A folder with `tokenizer` and, as the objectives read them, `corpus` and `held`; the same for all arms
    and seeds, whose objectives write the same of the same documents."""
    folder = FOLDER / f"corpus-{scale.size['vocab_size']}-{scale.length}-{scale.characters}"
    if not folder.exists():
        work = folder.with_suffix(".partial")
        shutil.rmtree(work, ignore_errors=True)
        learnt, held = corpus(scale)
        tokenizer = train_wordpiece(
            (line for text in learnt for line in in_text(text)), vocab_size=scale.size["vocab_size"]
        )
        tokenizer.save_pretrained(work / "tokenizer")
        _, objective = source_of(scale, "ELECTRA").pretraining(tokenizer)
        for name, texts in (("corpus", learnt), ("held", held)):
            objective.prepare(iter(texts), tokenizer, work / name, max_length=scale.length)
        work.rename(folder)
    return folder


def tokenizer_of(scale: Scale) -> Any:
    return AutoTokenizer.from_pretrained(prepared(scale) / "tokenizer")


def steps_of(scale: Scale, arm: str, budget: float) -> int:
    """Optimizer steps that cost the budget."""
    with torch.device("meta"):
        pair, objective = source_of(scale, arm).pretraining(tokenizer_of(scale))
    step = HONEST.training(objective.flops(pair, scale.length), scale.batch)
    return max(1, round(budget / step))


def pretrained(scale: Scale, name: str, arm: str, budget: float, seed: int) -> tuple[Path, dict[str, Any]]:
    """The folder of one arm's pretrained main model, and what was seen on the way: steps, seconds, terms and
    figures on held-out documents."""
    folder = FOLDER / name
    if not (folder / "seen.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        place, tokenizer = prepared(scale), tokenizer_of(scale)
        torch.manual_seed(seed)
        model, objective = source_of(scale, arm).pretraining(tokenizer)
        steps, start = steps_of(scale, arm, budget), time.monotonic()
        how = PretrainSettings(corpus=str(place), batch=scale.batch, max_length=scale.length)
        feed = ObjectiveFeed(objective, place / "corpus", how, seed=seed)
        settings = TrainSettings(
            stage="pretrain",
            steps=steps,
            optimizer=OptimizerSettings(lr=scale.lr, warmup=0.06),
            save_every=10**9,
            seed=seed,
            runtime=RuntimeSettings(precision=scale.precision, log_every=50),
            settings_digest=name,
        )
        log = MetricsLog(folder / "metrics.jsonl")
        folder.mkdir(parents=True)
        with TemporaryDirectory() as checkpoints, Signals() as signals:
            hooks = Hooks(log=log, progress=Quiet(), signals=signals)
            train(Pretraining(model, objective), feed, settings, hooks, checkpoints=Path(checkpoints))
        seconds = time.monotonic() - start
        model.save_pretrained(folder)  # type: ignore[operator]
        tokenizer.save_pretrained(folder)
        seen = {"steps": steps, "pretrain_seconds": seconds, "held": judged(scale, model, objective)}
        (folder / "seen.json").write_text(json.dumps(seen))
    seen = json.loads((folder / "seen.json").read_text())
    return folder, seen


def untrained(scale: Scale, seed: int) -> Path:
    """The main model as it begins."""
    folder = FOLDER / f"random-{seed}"
    if not (folder / "config.json").exists():
        tokenizer = tokenizer_of(scale)
        torch.manual_seed(seed)
        pair, _ = source_of(scale, "ELECTRA").pretraining(tokenizer)
        tokenizer.save_pretrained(folder)
        pair.save_pretrained(folder)  # type: ignore[operator]
    return folder


def judged(scale: Scale, model: nn.Module, objective: Objective) -> dict[str, float]:
    """Unweighted terms and figures of a trained pair on the first JUDGED held-out sequences, which have the
    same masks for every arm and seed; tokens: how many positions count, by term."""
    device = next(model.parameters()).device
    folder = prepared(scale) / "held"
    examples = objective.examples(folder, epoch=0, seed=0)
    count = min(JUDGED, len(examples.lengths))
    sums: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    tallies: dict[str, Tensor] = {}
    model.eval()
    with torch.inference_mode():
        for rows in batches(count, 64):
            batch = objective.collate(examples, rows, epoch=MASKS, seed=0).to(device)
            for name, term in objective.loss(model, batch).items():
                sums[name] += float(term.value) * term.count
                tokens[name] += term.count
                for what, tally in term.tallies.items():
                    tallies[what] = tallies[what] + tally if what in tallies else tally
    means = {name: total / tokens[name] for name, total in sums.items()}
    counted = {f"{name} tokens": float(number) for name, number in tokens.items()}
    return {**means, **objective.figures(tallies), **counted}


def batches(count: int, size: int) -> Iterator[list[int]]:
    rows = iter(range(count))
    while part := list(islice(rows, size)):
        yield part


def recipe(rate: float, decay: float) -> dict[str, Any]:
    """Settings of `finetune` but for the epochs: a peak rate, and its layer-wise decay."""
    return {
        "batch": {"tokens": 2048, "examples": 32},
        "optimizer": {"lr": rate, "warmup": 0.1, "weight_decay": 0.0},
        "layer_decay": decay,
        "keep": "last",
        "save_every": 10_000,
    }


RECIPE = recipe(1e-3, 0.8)
"""By which the study fine-tunes every model."""


def task_settings(task: str, *, test: bool) -> TaskSettings:
    splits = ("train", "validation", "test") if test else ("train", "validation")
    files = {split: str(DATA / task / f"{split}.jsonl.gz") for split in splits}
    return TaskSettings(**files, **TASKS[task])


def tuned(
    scale: Scale, name: str, folder: Path, task: str, seed: int, how: Mapping[str, Any], *, test: bool
) -> Counts:
    """What a model gets right on the test rows of a task (or its validation rows) after fine-tuning by a
    recipe, with the last weights."""
    settings = task_settings(task, test=test)
    finetune = {**how, "epochs": EPOCHS[task]}
    teacher = {"use": "pretrained", "path": str(folder), "finetune": finetune, "allow_weak": True}
    config = {
        "name": f"{name}-{task}",
        "output": str(FOLDER),
        "seed": seed,
        "task": settings.model_dump(exclude_unset=True),
        "teacher": teacher,
        "student": {"use": "transformer", "layers": 1},
        "distill": {"losses": {"gold": {"use": "gold"}}},
        "runtime": {"precision": scale.precision, "log_every": 100},
    }
    made = run(config, until="teacher")
    found = counts(made / "teacher", settings)
    accuracy = scores(made, "teacher")["accuracy"]["value"]
    assert abs(sum(found["right"]) / sum(found["words"]) - accuracy) < 1e-6
    shutil.rmtree(made)
    return found


def counts(folder: Path, settings: TaskSettings) -> Counts:
    """Of the answers that a teacher's folder holds."""
    task = load_task(settings, base=Path(), seed=0)
    rows = task.validation if task.test is None else task.test
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with TemporaryDirectory() as cache:
        gold = measured(encode(rows, tokenizer, max_length=settings.max_length, cache=Path(cache))).gold
    assert gold is not None
    said = np.load(folder / "answers.npy", allow_pickle=False).argmax(-1)
    label_N, row_N = gold.T if gold.ndim == 2 else (gold, np.arange(len(gold)))
    right = np.bincount(row_N, weights=said == label_N, minlength=len(rows))
    words = np.bincount(row_N, minlength=len(rows))
    return {"right": right.astype(int).tolist(), "words": words.tolist()}
