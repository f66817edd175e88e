"""Peers that learn from each other, and a student that learns from the average of its past."""

from __future__ import annotations

import copy
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import load_file
from tiny import encoder, feed
from tinyrun import CONFIG, write_config, write_data
from torch.nn import functional
from training import StopAfter, digest, run, settings

from distillkit import pipeline
from distillkit.errors import ConfigError, StoppedError
from distillkit.losses.base import LossStack
from distillkit.losses.gold import Gold
from distillkit.losses.hidden_cosine import HiddenCosine
from distillkit.losses.logits import Logits
from distillkit.model import FixedTeacher, Teacher
from distillkit.optim import lr_at
from distillkit.peers import InTurn, Peers
from distillkit.settings import OptimizerSettings
from distillkit.stages import together
from distillkit.teachers.itself import Average
from distillkit.train import Distillation, Program
from distillkit.types import Access, Batch, Want

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
CLIP, TEMPERATURE = 0.05, 1.0
"""A norm that every gradient here exceeds, so that clipping one peer with another would be seen."""


def peers(*, in_turn: bool = False, dropout: float = 0.0, count: int = 2, states: bool = False) -> Peers:
    """Students of different depths and widths; with `states` also a projection for every pair."""
    students = {
        name: encoder(seed, layers=layers, width=width, dropout=dropout)
        for name, seed, layers, width in (("a", 1, 1, 16), ("b", 2, 2, 8), ("c", 3, 1, 8))[:count]
    }
    stacks = {}
    for name, other in itertools.permutations(students, 2):
        torch.manual_seed(7)
        losses: dict[str, Any] = {"gold": (1.0, Gold()), "kd": (1.0, Logits(temperature=TEMPERATURE))}
        stack = LossStack(losses | ({"states": (0.5, HiddenCosine())} if states else {}))
        stack.bind(students[name].spec, {"teacher": students[other].spec})
        stacks[name, other] = stack
    return Peers(students, stacks, in_turn=in_turn)


def itself(*, dropout: float = 0.0) -> Distillation:
    student = encoder(2, layers=1, width=8, dropout=dropout)
    teacher = Average(student, decay=0.9)
    stack = LossStack({"gold": (1.0, Gold()), "kd": (1.0, Logits())})
    stack.bind(student.spec, {"teacher": teacher.spec})
    return Distillation(student, stack, {"teacher": teacher})


REGIMES: dict[str, Callable[..., Program]] = {
    "peers": lambda **given: peers(count=3, states=True, **given),
    "in turn": lambda **given: peers(in_turn=True, **given),
    "itself": itself,
}


def data(folder: Path, regime: str, **given: Any) -> Any:
    made = feed(folder, **given)
    return InTurn(made, 2) if regime == "in turn" else made


def loss_of(mine: torch.Tensor, others: list[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Zhang et al. 2018, equation 8: cross-entropy + the mean of KL(other || mine)."""
    logs = mine.log_softmax(-1)
    divergences = [
        functional.kl_div(logs, other.detach().softmax(-1), reduction="batchmean") for other in others
    ]
    return functional.cross_entropy(mine, labels) + sum(divergences) / len(divergences)


@pytest.mark.parametrize(("in_turn", "count"), [(False, 2), (False, 3), (True, 2)])
def test_mutual_learning_is_the_papers_by_hand(tmp_path: Path, in_turn: bool, count: int) -> None:
    """Against a plain loop with a model, an AdamW and a clipped gradient for each peer."""
    made = peers(in_turn=in_turn, count=count)
    by_hand = {name: copy.deepcopy(made.students[f"peer {name}"]).train() for name in made.names}
    plain = feed(tmp_path / "cache", count=24)
    steps = sum(plain.num_steps(epoch) for epoch in range(2))
    how = settings(epochs=2)
    how = how.__class__(**{**vars(how), "optimizer": OptimizerSettings(lr=1e-2, clip=CLIP)})
    optimizers = {
        name: torch.optim.AdamW(
            [
                {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.01},
                {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
            ],
            eps=1e-6,
        )
        for name, model in by_hand.items()
    }
    turns, number = (count if in_turn else 1), 0
    batches = [
        batch
        for epoch in range(2)
        for index in range(plain.num_steps(epoch))
        for batch in plain.step(epoch, index)
    ]

    def learn(names: list[str], batch: Batch, step: int) -> None:
        assert batch.labels is not None
        said = {name: model(batch, Want()).logits for name, model in by_hand.items()}
        for name in names:
            others = [logits for other, logits in said.items() if other != name]
            loss_of(said[name], others, batch.labels).backward()
        for name in names:
            torch.nn.utils.clip_grad_norm_(by_hand[name].parameters(), CLIP)
            for group in optimizers[name].param_groups:
                group["lr"] = lr_at(step, steps * turns, how.optimizer)
            optimizers[name].step()
            optimizers[name].zero_grad()

    for batch in batches:
        for turn in [[name] for name in by_hand] if in_turn else [list(by_hand)]:
            learn(turn, batch, number)
            number += 1
    trained = InTurn(plain, count) if in_turn else plain
    run(tmp_path, made=made, data=trained, how=how)  # type: ignore[arg-type]
    for name, model in by_hand.items():
        for mine, theirs in zip(made.students[f"peer {name}"].parameters(), model.parameters(), strict=True):
            assert torch.allclose(mine, theirs, atol=2e-5), name


def test_a_peers_loss_reaches_no_other_one(tmp_path: Path) -> None:
    made = peers(count=3, states=True)
    (batch,) = feed(tmp_path).step(0, 0)
    terms = made.terms(batch)
    for name in made.names:
        own = torch.stack([value for term, value in terms.items() if term.startswith(f"{name}.")]).sum()
        for other in made.names:
            model = made.students[f"peer {other}"]
            gradients = torch.autograd.grad(
                own, list(model.parameters()), retain_graph=True, allow_unused=True
            )
            reached = any(gradient is not None and bool(gradient.any()) for gradient in gradients)
            assert reached == (name == other), (name, other)


def test_a_step_in_turn_moves_one_peer_and_nothing_of_the_others(tmp_path: Path) -> None:
    made = peers(in_turn=True)
    before = copy.deepcopy(made.students)
    how = settings(epochs=1)
    with pytest.raises(KeyboardInterrupt):
        one = how.__class__(**{**vars(how), "runtime": how.runtime.model_copy(update={"log_every": 1})})
        run(tmp_path, made=made, data=InTurn(feed(tmp_path / "c"), 2), how=one, progress=StopAfter(1))  # type: ignore[arg-type]
    moved = {
        name: any(
            not torch.equal(mine, old)
            for mine, old in zip(
                made.students[f"peer {name}"].parameters(), before[f"peer {name}"].parameters(), strict=True
            )
        )
        for name in made.names
    }
    assert moved == {"a": True, "b": False}


def test_the_average_is_what_it_says_and_starts_quickly(tmp_path: Path) -> None:
    """After each step, against the sum written out."""
    made = itself()
    seen: list[torch.Tensor] = [made.student.spec and next(made.student.parameters()).detach().clone()]
    real = made.after_step

    def watched(step: int) -> None:
        seen.append(next(made.student.parameters()).detach().clone())
        real(step)

    made.after_step = watched  # type: ignore[method-assign]
    run(tmp_path, made=made, data=feed(tmp_path / "cache"))
    expected = seen[0]
    for step, weights in enumerate(seen[1:], start=1):
        kept = min(0.9, 1 - 1 / (step + 1))
        expected = kept * expected + (1 - kept) * weights
    mine = next(made.learning["teacher"].model.parameters())  # type: ignore[union-attr, operator]
    assert torch.allclose(mine, expected, atol=1e-6) and not torch.allclose(mine, seen[-1], atol=1e-4)
    assert all(not parameter.requires_grad for parameter in made.learning.parameters())


@pytest.mark.parametrize("regime", REGIMES)
def test_a_training_that_was_cut_goes_on_bit_for_bit(tmp_path: Path, regime: str) -> None:
    """In turn it is cut between two peers' turns on one batch, too."""
    make, how = REGIMES[regime], settings(save_every=1, log_every=1)
    rows = data(tmp_path / "cache", regime, count=24)
    whole, _ = run(tmp_path / "whole", made=make(dropout=0.1), data=rows, how=how)  # type: ignore[arg-type]
    for step in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", made=make(dropout=0.1), data=rows, how=how, progress=StopAfter(step))  # type: ignore[arg-type]
    again, result = run(tmp_path / "cut", made=make(dropout=0.1), data=rows, how=how)  # type: ignore[arg-type]
    assert result.resumed_from == 3 and digest(again) == digest(whole)


@pytest.mark.parametrize("regime", REGIMES)
def test_a_batch_in_parts_gives_the_same_gradient(tmp_path: Path, regime: str) -> None:
    gradients = []
    for micro in (1, 3):
        made = REGIMES[regime]()
        made.go_to(0, 10)
        parts = data(tmp_path, regime, micro=micro, examples=9, count=9).step(0, 0)
        counts = [made.counts(part) for part in parts]
        totals = {name: sum(one[name] for one in counts) for name in counts[0]}
        for part in parts:
            made(part, totals)[0].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in made.parameters() if p.grad is not None]))
    largest = float(gradients[0].abs().max())
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-6 * largest + 1e-9)


PEERS = {
    "use": "peers",
    "vocab_size": 200,
    "peers": {"lstm": {"use": "bilstm", "layers": 1, "width": 16}, "net": {"use": "cnn", "width": 16}},
}
STUDENT = {"use": "transformer", "layers": 1, "width": 16, "heads": 2, "dropout": 0.1}
LOSSES = {"gold": {"use": "gold"}, "kd": {"use": "logits", "temperature": 1.0}}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(here: Path, name: str, teacher: Any, **changes: Any) -> Path:
    batch = {"tokens": 400, "examples": 16, "micro": 2}
    distill = {
        **CONFIG["distill"],
        "losses": LOSSES,
        "epochs": 2,
        "batch": batch,
        **changes.pop("distill", {}),
    }
    return write_config(here, name=name, teacher=teacher, student=STUDENT, distill=distill, **changes)


def test_peers_learn_to_the_report_and_a_stopped_run_goes_on(here: Path) -> None:
    """The best of three stands for the run, the best of the others beside it, and the third is kept; all are
    exported.
    """
    best = {**PEERS, "keep": "all", "update": "sequential"}
    whole = pipeline.run(recipe(here, "whole", best), progress="quiet").path
    who = {
        place: json.loads((whole / "student" / place / "peer.json").read_text())["name"]
        for place in (".", "teacher")
    }
    (third,) = (path.name for path in (whole / "student" / "peers").iterdir())
    assert {*who.values(), third} == {"student", "lstm", "net"}
    facts = json.loads((whole / "report" / "facts.json").read_text())
    assert [one["name"] for one in facts["links"]] == [who["."], who["teacher"], third]
    told = {one["name"]: one["metrics"]["accuracy"]["value"] for one in facts["links"]}
    assert told[who["."]] == facts["student"]["metrics"]["accuracy"]["value"] == max(told.values())
    assert not (whole / "teacher").exists()
    artifacts = {who["."]: whole / "export", **{path.name: path for path in whole.glob("export/peers/*")}}
    marks = {"lstm": "LSTM", "net": "Conv", "student": "Softmax"}
    assert artifacts.keys() == marks.keys()
    for name, folder in artifacts.items():
        graph = onnx.load(folder / "model.onnx").graph
        kinds = {node.op_type for node in graph.node} & {"LSTM", "Conv", "Softmax"}
        assert kinds == {marks[name]}, name
    real = together.fit

    def stopping(job: Any, program: Any, feed: Any, how: Any, measure: Any) -> None:
        def stop() -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            return measure()

        real(job, program, feed, how, stop)

    config = recipe(here, "cut", best)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(together, "fit", stopping)
        pipeline.run(config, progress="quiet", until="student")
    cut = pipeline.run(config, progress="quiet", until="student").path
    for place in (".", "teacher", f"peers/{third}"):
        mine, theirs = (load_file(run / "student" / place / "model.safetensors") for run in (whole, cut))
        assert all(torch.equal(mine[name], theirs[name]) for name in mine), place


def test_a_student_and_its_average_to_the_report(here: Path) -> None:
    run = pipeline.run(recipe(here, "own", {"use": "itself", "vocab_size": 200}), progress="quiet").path
    student, average = (
        load_file(run / "student" / place / "model.safetensors") for place in (".", "teacher")
    )
    assert student.keys() == average.keys()
    assert any(not torch.equal(student[name], average[name]) for name in student)
    assert (run / "report.html").exists()


def test_what_learning_teachers_cannot_give_is_refused(here: Path) -> None:
    swapped = {"losses": {"swapped": {"use": "causal_kl"}}}
    for teacher in (PEERS, {"use": "itself"}):
        with pytest.raises(ConfigError, match="needs INTERVENTIONS of the teacher, which gives no more"):
            pipeline.run(recipe(here, "deep", teacher, distill=swapped), progress="quiet")
        with pytest.raises(ConfigError, match="cache"):
            pipeline.run(recipe(here, "kept", teacher, distill={"cache": {}}), progress="quiet")


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
@pytest.mark.parametrize("regime", ["simultaneous", "sequential", "itself"])
def test_two_processes_equal_one(here: Path, regime: str, parallel: str) -> None:
    teacher = {"use": "itself", "vocab_size": 200} if regime == "itself" else {**PEERS, "update": regime}
    config = recipe(here, "one", teacher)
    pipeline.run(config, progress="quiet", until="student")
    done = subprocess.run(
        [
            *LAUNCH,
            "-m",
            "distillkit",
            "distill",
            "--quiet",
            str(config),
            "name=two",
            f"runtime.parallel={parallel}",
        ],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for place in (".", "teacher"):
        mine, theirs = (
            load_file(here / "runs" / name / "student" / place / "model.safetensors")
            for name in ("one", "two")
        )
        for name, tensor in mine.items():
            assert torch.allclose(tensor, theirs[name], atol=2e-4), (place, name)


def test_a_fixed_teacher_beside_a_learning_one_is_still_fixed() -> None:
    made = itself()
    assert isinstance(made.learning["teacher"], Average) and len(made.learning) == 1
    fixed = Distillation(made.student, made.stack, {"teacher": FixedTeacher(encoder(4))})
    assert len(fixed.learning) == 0


@pytest.mark.parametrize("name", ["student", "teacher"])
def test_names_that_the_run_has_itself_are_refused(here: Path, name: str) -> None:
    wrong = {**PEERS, "peers": {name: {"use": "cnn"}}}
    with pytest.raises(ConfigError, match=f"teacher.peers.{name}.*cannot be called"):
        pipeline.run(recipe(here, "wrong", wrong), progress="quiet")


def test_any_other_name_works_and_the_log_shows_every_peer(here: Path) -> None:
    """Names of a module's own methods, and turns of which a plain log would show one."""
    named = {
        "use": "peers",
        "vocab_size": 200,
        "update": "sequential",
        "peers": {"half": {"use": "cnn", "width": 16}},
    }
    run = pipeline.run(recipe(here, "half", named), progress="quiet", until="student").path
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    shown = {term for record in records for term in record.get("terms", {})}
    assert shown == {"student.gold", "student.kd", "half.gold", "half.kd"}


@pytest.mark.parametrize("use", ["itself", "peers"])
def test_a_corpus_can_be_learned_together(here: Path, use: str) -> None:
    student = {"use": "transformer", "layers": 1, "width": 16, "heads": 2}
    teacher = {"use": use, "vocab_size": 200, **({"peers": {"b": student}} if use == "peers" else {})}
    task = {"kind": "mlm", "train": "corpus.txt", "max_length": 24}
    run = pipeline.run(recipe(here, "mlm", teacher, task=task), progress="quiet", until="student").path
    assert (run / "student" / "teacher" / "model.safetensors").exists()


def test_a_teacher_that_is_a_module_stays_as_it_was_left() -> None:
    """Only what follows the student is a part of what is trained."""

    class Mine(torch.nn.Module, Teacher):
        access = Access.SCORES  # type: ignore[assignment]
        spec = encoder(4).spec  # type: ignore[assignment]

        def outputs(self, batch: Batch, *, want: Want, swap: Any = None) -> Any:
            raise NotImplementedError

    mine = Mine().eval()
    made = itself()
    program = Distillation(made.student, made.stack, {"teacher": mine})
    program.train()
    assert not mine.training and len(program.learning) == 0
