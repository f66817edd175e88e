"""The loop: equivalences, and what must not change what is trained."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import encoded, encoder, feed
from torch import Tensor
from training import StopAfter, digest, program, run, settings

from distillkit.data.batching import TaskFeed
from distillkit.errors import (
    ConfigError,
    DivergedError,
    IntegrityError,
    MissingError,
    ModelError,
    ResourceError,
    StoppedError,
)
from distillkit.losses.base import Loss, LossStack
from distillkit.losses.gold import Gold
from distillkit.model import FixedTeacher, Teacher
from distillkit.progress import Quiet
from distillkit.settings import BatchSettings, OptimizerSettings, RuntimeSettings, Schedule
from distillkit.train import Distillation, make_accelerator, take_step
from distillkit.types import IGNORED, Batch, Outputs, Step, Swap, Want


def weights(made: torch.nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in made.parameters()])


def test_micro_batches_add_up_to_the_whole_batch(tmp_path: Path) -> None:
    """Batch 8 = 4 x 2 = 8 x 1: tokens and examples are weighed by their counts, not by their micro-batch."""
    how = replace(
        settings(), optimizer=OptimizerSettings(lr=1e-2, eps=1e-3)
    )  # no noise blown up where a gradient is 0
    results = []
    for micro in (1, 4, 8):
        data = feed(tmp_path / "cache", micro=micro)
        made, _ = run(tmp_path / str(micro), made=program(dropout=0.0), data=data, how=how)
        results.append(weights(made))
    assert torch.allclose(results[0], results[1], atol=2e-5) and torch.allclose(
        results[0], results[2], atol=2e-5
    )
    assert not torch.allclose(results[0], weights(program(dropout=0.0)), atol=1e-3)


@pytest.mark.parametrize("stop", [1, 3, 5, 6, 9])
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(tmp_path: Path, stop: int) -> None:
    how = settings(save_every=2, log_every=1)
    whole, result = run(tmp_path / "whole", how=how)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", how=how, progress=StopAfter(stop))
    again, resumed = run(tmp_path / "cut", how=how)
    assert digest(again) == digest(whole)
    assert resumed.resumed_from == (stop - 1) // 2 * 2 and resumed.tokens == result.tokens
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(1, result.steps + 1))


def test_a_run_goes_on_where_no_row_with_a_label_is_left_in_the_epoch(tmp_path: Path) -> None:
    """A term on labels is checked on a batch that has some, and stands in the log of no step without."""
    rows = encoded(tmp_path / "cache", count=12)
    batch, seed = BatchSettings(tokens=400, examples=2), 5
    (first, *_) = TaskFeed(rows, batch, seed=seed).step(0, 1)
    labels = np.where(np.isin(rows.ids, first.ids[:1]), 1, IGNORED)
    data, how = TaskFeed(replace(rows, labels=labels), batch, seed=seed), settings(save_every=1, log_every=1)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", data=data, how=how, progress=StopAfter(4))
    run(tmp_path / "cut", data=data, how=how)
    records = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    told = ["gold" in record["terms"] for record in records]
    assert len(told) == 12 and told[:6] == [False, True, False, False, False, False] and sum(told) == 2


def test_the_time_left_follows_the_speed_of_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow hour before the run was stopped counts as time spent, and says nothing about what is left."""
    how = settings(save_every=1, log_every=1)
    monkeypatch.setattr("distillkit.train.time", SimpleNamespace(monotonic=count(step=1000).__next__))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, how=how, progress=StopAfter(3))
    monkeypatch.setattr("distillkit.train.time", SimpleNamespace(monotonic=count().__next__))
    run(tmp_path, how=how)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert records[2]["seconds"] > 1000 and max(record["eta_seconds"] for record in records[2:]) < 1000
    assert records[0]["eta_seconds"] > 1000 and records[-1]["eta_seconds"] == 0


def test_a_finished_stage_gives_its_weights_without_a_step(tmp_path: Path) -> None:
    first, result = run(tmp_path)
    again, second = run(tmp_path)
    assert second.resumed_from == result.steps and digest(again) == digest(first)


def test_saving_logging_and_evaluating_change_nothing(tmp_path: Path) -> None:
    """An evaluation that draws from the generator of dropout would change every step after it."""
    plain, _ = run(tmp_path / "a", how=settings(save_every=1000, log_every=1000))
    busy, _ = run(
        tmp_path / "b",
        how=settings(save_every=1, log_every=1),
        evaluate=lambda: {"score": float(torch.rand(()))},
    )
    assert digest(busy) == digest(plain)


def test_another_seed_trains_other_weights(tmp_path: Path) -> None:
    one, _ = run(tmp_path / "a")
    two, _ = run(tmp_path / "b", how=replace(settings(), seed=12))
    assert digest(one) != digest(two)


def test_the_best_weights_are_kept_and_a_resume_remembers_them(tmp_path: Path) -> None:
    made = program()
    seen: list[str] = []
    scores = iter([0.9, 0.1, 0.2])

    def evaluate() -> dict[str, float]:
        seen.append(digest(made))
        return {"score": next(scores)}

    _, result = run(tmp_path, made=made, how=settings(keep="best", epochs=3), evaluate=evaluate)
    assert result.best is not None and result.best.value == 0.9
    assert digest(made) == seen[0] and seen[0] != seen[2]
    again, _ = run(tmp_path, how=settings(keep="best", epochs=3), evaluate=evaluate)
    assert digest(again) == seen[0]


def test_projections_learn_beside_the_student(tmp_path: Path) -> None:
    before = program()
    after, _ = run(tmp_path)
    (name,) = [name for name, _ in before.named_parameters() if "projections" in name]
    assert not torch.equal(dict(before.named_parameters())[name], dict(after.named_parameters())[name])


def test_the_teacher_is_neither_trained_nor_saved(tmp_path: Path) -> None:
    made = program()
    assert not any("teacher" in name for name in made.state_dict())
    (teacher,) = made._teachers.values()
    assert isinstance(teacher, FixedTeacher)
    before = weights(teacher.model)
    run(tmp_path, made=made)
    assert torch.equal(weights(teacher.model), before)


class Counting(Teacher):
    """Counts its forwards."""

    def __init__(self, inner: Teacher) -> None:
        self.inner, self.calls = inner, 0

    @property
    def access(self) -> Any:
        return self.inner.access

    @property
    def spec(self) -> Any:
        return self.inner.spec

    def outputs(self, batch: Batch, *, want: Want, swap: Swap | None = None) -> Outputs:
        self.calls += 1
        return self.inner.outputs(batch, want=want)


def test_each_forward_runs_once_and_a_teacher_that_no_loss_asks_for_never(tmp_path: Path) -> None:
    batch = feed(tmp_path).step(0, 0)[0]
    made = program()
    teacher = Counting(FixedTeacher(encoder(1)))
    take_step(made.student, made.stack, {"teacher": teacher}, batch)
    assert teacher.calls == 1
    take_step(made.student, LossStack({"gold": (1.0, Gold())}), {"teacher": teacher}, batch)
    assert teacher.calls == 1


class Exploding(Loss):
    """Becomes NaN after a number of calls."""

    needs_teacher = False

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.left = calls

    def forward(self, step: Step) -> Tensor:
        self.left -= 1
        value = step.student.logits.square().mean()
        return value * float("nan") if self.left < 0 else value


def test_a_step_that_is_not_finite_is_not_applied_and_names_the_term(tmp_path: Path) -> None:
    made = program()
    made.stack.losses["odd"] = Exploding(4)
    made.stack.schedules["odd"] = Schedule(start=0.1, end=0.1)
    seen: list[str] = []

    class Watch(Quiet):
        def step(self, stage: str, step: int, total: int, record: Mapping[str, Any]) -> None:
            seen.append(digest(made))

    with pytest.raises(DivergedError, match="'odd'") as caught:
        run(tmp_path, made=made, how=settings(log_every=1, epochs=1), progress=Watch())
    assert caught.value.exit_code == 6 and digest(made) == seen[-1]
    record = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["diverged"] == ["odd"] and record["ids"]


class Broken(Counting):
    def outputs(self, batch: Batch, *, want: Want, swap: Swap | None = None) -> Outputs:
        told = self.inner.outputs(batch, want=want)
        return replace(told, logits=told.logits * float("nan"))


def test_a_teacher_that_gives_nan_is_named_before_the_student_is_touched(tmp_path: Path) -> None:
    good = program()
    made = Distillation(good.student, good.stack, {"teacher": Broken(FixedTeacher(encoder(1)))})
    before = digest(made)
    with pytest.raises(DivergedError, match="teacher 'teacher' gives NaN"):
        run(tmp_path, made=made)
    assert digest(made) == before


class Attached(Counting):
    def outputs(self, batch: Batch, *, want: Want, swap: Swap | None = None) -> Outputs:
        told = self.inner.outputs(batch, want=want)
        return replace(told, logits=told.logits * torch.ones(1, requires_grad=True))


def test_a_teacher_whose_answers_carry_a_gradient_is_refused(tmp_path: Path) -> None:
    """The student's loss would train it, and fall because the teacher drifts towards the student."""
    good = program()
    made = Distillation(good.student, good.stack, {"teacher": Attached(FixedTeacher(encoder(1)))})
    with pytest.raises(ModelError, match="carry a gradient"):
        run(tmp_path, made=made)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_same_command_goes_on(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    class Send(Quiet):
        def step(self, stage: str, step: int, total: int, record: Mapping[str, Any]) -> None:
            if step == 3:
                os.kill(os.getpid(), number)

    how = settings(save_every=1000, log_every=1)
    with pytest.raises(StoppedError) as caught:
        run(tmp_path / "cut", how=how, progress=Send())
    assert caught.value.exit_code == code
    again, result = run(tmp_path / "cut", how=how)
    assert result.resumed_from == 3
    assert digest(again) == digest(run(tmp_path / "whole", how=how)[0])


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_stop_within_an_evaluation_is_resumed_by_evaluating_again(tmp_path: Path, epoch: int) -> None:
    """The evaluation chooses the best weights: one that was left out would keep others."""
    scores = iter([0.1, 0.9, 0.4, 0.2])
    left = iter(range(1, 9))

    def stopped() -> dict[str, float]:
        if next(left) == epoch:
            raise StoppedError("while a model was evaluated")
        return {"score": next(scores)}

    def scored() -> dict[str, float]:
        return {"score": next(scores)}

    how = settings(save_every=1000, epochs=2, keep="best")
    with pytest.raises(StoppedError):
        run(tmp_path / "cut", how=how, evaluate=stopped)
    again, result = run(tmp_path / "cut", how=how, evaluate=scored)
    assert result.resumed_from == result.steps * epoch // 2
    scores = iter([0.1, 0.9])
    whole, expected = run(tmp_path / "whole", how=how, evaluate=scored)
    assert result.best == expected.best and digest(again) == digest(whole)


@pytest.fixture
def in_fp16(monkeypatch: pytest.MonkeyPatch) -> list[torch.amp.GradScaler]:
    """A run with the loss scaler of fp16, as on a GPU, computed in fp32; returns the scalers made."""
    made: list[torch.amp.GradScaler] = []

    def make(runtime: RuntimeSettings) -> Any:
        accelerator = make_accelerator(runtime)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=4)
        made.append(accelerator.scaler)
        return accelerator

    monkeypatch.setattr("distillkit.train.make_accelerator", make)
    return made


def test_the_loss_scaler_goes_on_where_it_was(tmp_path: Path, in_fp16: list[torch.amp.GradScaler]) -> None:
    how = settings(save_every=2, log_every=1)
    whole, _ = run(tmp_path / "whole", how=how)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", how=how, progress=StopAfter(6))
    again, _ = run(tmp_path / "cut", how=how)
    first, _, resumed = in_fp16
    assert resumed.state_dict() == first.state_dict() and first.get_scale() > 1024
    assert digest(again) == digest(whole)


class Overflowing(Loss):
    """Its gradient is infinite in the chosen calls, its value never."""

    needs_teacher = False

    def __init__(self, when: Callable[[int], bool]) -> None:
        super().__init__()
        self.when, self.calls = when, -2  # the check and the count before the first step are calls too

    def forward(self, step: Step) -> Tensor:
        logits = step.student.logits
        now = self.when(self.calls)
        self.calls += 1
        if now and logits.requires_grad:
            logits = logits.clone()
            logits.register_hook(lambda gradient: gradient * float("inf"))
        return logits.square().mean()


def test_a_step_that_overflows_in_fp16_is_skipped_counted_and_logged(
    tmp_path: Path, in_fp16: list[torch.amp.GradScaler]
) -> None:
    made = program()
    made.stack.losses["odd"] = Overflowing(lambda call: call in (2, 3))
    made.stack.schedules["odd"] = Schedule(start=0.1, end=0.1)
    states: list[str] = []

    class Watch(Quiet):
        def step(self, stage: str, step: int, total: int, record: Mapping[str, Any]) -> None:
            states.append(digest(made))

    run(tmp_path, made=made, how=settings(log_every=1, epochs=1), progress=Watch())
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    skipped = [record.get("skipped") for record in records]
    norms = [record["grad_norm"] for record in records]
    assert [value for value in skipped if value] == [1, 2]
    at = skipped.index(1)
    assert norms[at] is None and norms[at + 1] is None and all(norms[:at]) and all(norms[at + 2 :])
    assert states[at] == states[at - 1] == states[at + 1] != states[at + 2]


def test_fp16_that_overflows_without_end_has_diverged(
    tmp_path: Path, in_fp16: list[torch.amp.GradScaler]
) -> None:
    made = program()
    made.stack.losses["odd"] = Overflowing(lambda call: call >= 0)
    made.stack.schedules["odd"] = Schedule(start=0.1, end=0.1)
    with pytest.raises(DivergedError, match="51 steps in a row") as caught:
        run(tmp_path, made=made, how=settings(epochs=12, save_every=1000))
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("place", ["check", "step", "optimizer"])
def test_memory_that_runs_out_anywhere_ends_with_7_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, error: Exception
) -> None:
    made = program()
    calls = iter(range(100))

    def out(*given: Any, **named: Any) -> Any:
        raise error

    if place == "optimizer":
        monkeypatch.setattr(torch.optim.AdamW, "step", out)
    else:
        real, wanted = Gold.forward, {"check": 0, "step": 2}[place]

        def forward(self: Gold, step: Step) -> Tensor:
            return out() if next(calls) == wanted else real(self, step)

        monkeypatch.setattr(Gold, "forward", forward)
    with pytest.raises(ResourceError, match=r"out of memory.*") as caught:
        run(tmp_path, made=made)
    assert caught.value.exit_code == 7 and "batch.micro" in str(caught.value)


def test_an_error_that_is_not_about_memory_is_not_told_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any, **named: Any) -> Any:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(Gold, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        run(tmp_path)


def test_other_parts_of_a_batch_go_on_with_a_remark_and_other_data_with_force_alone(tmp_path: Path) -> None:
    how = settings(save_every=2, log_every=1)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, how=how, progress=StopAfter(3))
    _, result = run(tmp_path, data=feed(tmp_path / "cache", micro=2), how=how)
    assert result.resumed_from == 2 and "micro 1 -> 2" in result.remarks[0]
    for path in sorted((tmp_path / "checkpoints").iterdir())[1:]:
        shutil.rmtree(path)
    fewer = feed(tmp_path / "cache", count=12)
    with pytest.raises(ConfigError, match="--force"):
        run(tmp_path, data=fewer, how=how)
    _, forced = run(tmp_path, data=fewer, how=replace(how, force=True, epochs=9))
    assert forced.resumed_from > 0 and "forced to go on" in forced.remarks[0]


def test_all_checkpoints_damaged_is_an_error_and_not_a_fresh_start(tmp_path: Path) -> None:
    run(tmp_path)
    for path in (tmp_path / "checkpoints").glob("*/state.json"):
        path.unlink()
    with pytest.raises(IntegrityError):
        run(tmp_path)


def test_terms_are_logged_raw_weighted_and_as_gradient_shares(tmp_path: Path) -> None:
    run(tmp_path, how=settings(log_every=1))
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        assert record["weighted"]["kd"] == pytest.approx(0.7 * record["terms"]["kd"])
        assert record["total"] == pytest.approx(sum(record["weighted"].values()))
    shares = [record["gradient_share"] for record in records if "gradient_share" in record]
    assert shares and all(
        sum(share.values()) == pytest.approx(1.0) and min(share.values()) > 0 for share in shares
    )


def test_a_gpu_that_is_not_there_and_fp16_on_a_cpu_are_refused() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(MissingError, match="CUDA"):
            make_accelerator(RuntimeSettings(device="cuda"))
    with pytest.raises(ConfigError, match="fp16"):
        make_accelerator(RuntimeSettings(device="cpu", precision="fp16"))
