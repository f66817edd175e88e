"""A checkpoint is whole or it is not there; what is damaged is seen; nothing starts afresh silently."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training import digest, program

from distillkit import checkpoint, files
from distillkit.checkpoint import Best, Key, State
from distillkit.errors import ConfigError, DataError, IntegrityError, ResourceError
from distillkit.optim import build_optimizer
from distillkit.settings import OptimizerSettings
from distillkit.train import Distillation

KEY = Key(settings="s", data="d", order="o", computed={"torch": torch.__version__, "threads": 1})


def trained(seed: int) -> tuple[Distillation, torch.optim.Optimizer]:
    """A program after one optimizer step on random gradients."""
    made = program()
    optimizer = build_optimizer(made, OptimizerSettings())
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    return made, optimizer


def save(
    root: Path, step: int, *, keep: int = 5, best: Best | None = None
) -> tuple[Distillation, torch.optim.Optimizer]:
    made, optimizer = trained(step)
    checkpoint.save(
        root,
        State(step=step, epoch=1, index=2, best=best, tokens=7),
        KEY,
        made,
        checkpoint.optimizer_slots(made, optimizer),
        keep=keep,
    )
    return made, optimizer


def resume(root: Path, key: Key = KEY) -> tuple[State, list[str], Distillation, torch.optim.Optimizer]:
    made = program()
    optimizer = build_optimizer(made, OptimizerSettings())
    state, slots, remarks = checkpoint.resume(root, key, made)
    checkpoint.load_slots(made, optimizer, slots)
    return state, remarks, made, optimizer


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    made, optimizer = save(tmp_path, 3, best=Best(2, 0.5, {"accuracy": 0.5}))
    state, remarks, again, other = resume(tmp_path)
    assert (
        state == State(step=3, epoch=1, index=2, best=Best(2, 0.5, {"accuracy": 0.5}), tokens=7)
        and not remarks
    )
    assert digest(again) == digest(made)
    for one, two in zip(made.parameters(), again.parameters(), strict=True):
        assert set(optimizer.state[one]) == set(other.state[two])
        assert all(
            torch.equal(optimizer.state[one][slot], other.state[two][slot]) for slot in optimizer.state[one]
        )


def test_no_checkpoint_at_all_is_a_fresh_start(tmp_path: Path) -> None:
    assert resume(tmp_path / "none")[0] == State()


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
)
def test_a_damaged_checkpoint_is_skipped_and_the_one_before_it_used(
    tmp_path: Path, name: str, damage: str
) -> None:
    """Resuming with a lost optimizer trains on and reports success with other weights."""
    save(tmp_path, 1)
    save(tmp_path, 2)
    path = tmp_path / "000002" / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes({"flip": bytes(data), "cut": bytes(data[:-1]), "empty": b"", "gone": b""}[damage])
    if damage == "gone":
        path.unlink()
    if name == "manifest.json" and damage == "flip":
        path.write_bytes(path.read_bytes().replace(b"sha256", b"sha255"))
    state, remarks, *_ = resume(tmp_path)
    assert state.step == 1 and "000002" in remarks[0]


def test_where_no_checkpoint_is_valid_nothing_starts_afresh(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "000001" / "state.json").unlink()
    with pytest.raises(IntegrityError, match=r"state\.json is missing") as caught:
        resume(tmp_path)
    assert caught.value.exit_code == 8


def test_the_newest_is_the_highest_step_whatever_the_clock_says(tmp_path: Path) -> None:
    save(tmp_path, 2)
    save(tmp_path, 10)
    os.utime(tmp_path / "000010", (0, 0))
    assert resume(tmp_path)[0].step == 10


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    best = Best(1, 0.9, {})
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=2, best=best)
    assert checkpoint.steps(tmp_path) == [1, 3, 4]


def test_a_link_in_the_folder_is_not_followed_when_pruning(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_text("x")
    root = tmp_path / "checkpoints"
    save(root, 2)
    (root / "000001").symlink_to(victim)
    save(root, 3, keep=1)
    assert (victim / "precious").read_text() == "x" and not (root / "000001").exists()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"settings": "x"}, ConfigError),
        ({"order": "x"}, ConfigError),
        ({"data": "x"}, DataError),
        ({"settings": "x", "data": "x", "order": "x"}, DataError),
    ],
)
def test_other_settings_or_data_are_refused_unless_forced(
    tmp_path: Path, change: dict[str, Any], error: type[Exception]
) -> None:
    save(tmp_path, 1)
    other = replace(KEY, **change)
    with pytest.raises(error, match="--force"):
        resume(tmp_path, other)
    state, _, remarks = checkpoint.resume(tmp_path, other, program(), force=True)
    assert state.step == 1 and all(name in remarks[0] for name in change)


def test_what_a_stopped_training_left_can_be_judged_before_it_is_loaded(tmp_path: Path) -> None:
    checkpoint.check(tmp_path, settings="s", data="d")
    save(tmp_path, 1)
    checkpoint.check(tmp_path, settings="s", data="d")
    with pytest.raises(ConfigError, match="other settings"):
        checkpoint.check(tmp_path, settings="x", data="d")
    with pytest.raises(DataError, match="the data changed"):
        checkpoint.check(tmp_path, settings="x", data="x")


def test_forced_onto_another_architecture_the_shapes_are_named(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(IntegrityError, match="other shapes"):
        checkpoint.resume(tmp_path, KEY, program(width=24), force=True)


def test_other_threads_are_told_to_end_bitwise_equality(tmp_path: Path) -> None:
    save(tmp_path, 1)
    remark = resume(tmp_path, replace(KEY, computed={**KEY.computed, "threads": 9}))[1][0]
    assert "no longer bitwise" in remark and "threads 1 -> 9" in remark


CALLS = ("replace", "rename", "fsync")


def crash_at(monkeypatch: pytest.MonkeyPatch, index: int, error: Callable[[], BaseException]) -> list[int]:
    """Raise at the index-th call of os.replace, Path.rename or os.fsync; returns the counter."""
    counter = [0]

    def wrap(call: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **named: object) -> object:
            counter[0] += 1
            if counter[0] == index:
                raise error()
            return call(*arguments, **named)

        return counted

    monkeypatch.setattr(os, "replace", wrap(os.replace))
    monkeypatch.setattr(os, "fsync", wrap(os.fsync))
    monkeypatch.setattr(Path, "rename", wrap(Path.rename))
    return counter


class Killed(BaseException):
    """Ends a save as kill -9 does: nothing after it runs that could tidy up."""


def test_a_crash_at_any_file_system_call_leaves_the_old_or_the_new_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = 1
    while True:
        root = tmp_path / str(index)
        old = digest(save(root, 1)[0])
        new = digest(trained(2)[0])
        with monkeypatch.context() as patch:
            patch.setattr(files, "remove", lambda path: None)
            counter = crash_at(patch, index, Killed)
            with contextlib.suppress(Killed):
                save(root, 2)
        state, _, again, _ = resume(root)
        assert digest(again) == {1: old, 2: new}[state.step]
        if counter[0] < index:
            break
        index += 1
    assert index > 6, "the save must have been interrupted at several places"


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Within, the kernel refuses to let a file grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.5])
def test_a_write_that_the_system_refuses_ends_with_7_whoever_writes(tmp_path: Path, share: float) -> None:
    """safetensors raises an error of its own, which is not an OSError; the optimizer's file is the larger."""
    save(tmp_path, 1)
    size = (tmp_path / "000001" / "model.safetensors").stat().st_size
    with largest_file(int(share * size)), pytest.raises(ResourceError, match="cannot write") as caught:
        save(tmp_path, 2)
    assert caught.value.exit_code == 7
    assert [entry.name for entry in tmp_path.iterdir()] == ["000001"] and resume(tmp_path)[0].step == 1


def test_a_full_disk_ends_with_7_and_leaves_the_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    for index in (1, 3, 5):
        with monkeypatch.context() as patch:
            crash_at(patch, index, lambda: OSError(28, "No space left on device"))
            with pytest.raises(ResourceError, match=r"No space left on device.*bytes free") as caught:
                save(tmp_path, 2)
        assert caught.value.exit_code == 7
        assert [entry.name for entry in tmp_path.iterdir()] == ["000001"]
        assert resume(tmp_path)[0].step == 1
