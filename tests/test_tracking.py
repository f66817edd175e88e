"""Trackers copy the records, and can never stop a run."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from distillkit import tracking

RECORD = {"stage": "student", "step": 4, "total": 1.5, "terms": {"kd": 0.5}, "ids": [1], "flag": True}


@pytest.fixture
def told() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def use(monkeypatch: pytest.MonkeyPatch, opener: Callable[[Path, str], tracking.Write]) -> None:
    monkeypatch.setattr(tracking, "OPEN", {**tracking.OPEN, "mine": opener})


def test_nested_numbers_become_names_with_slashes() -> None:
    assert tracking.flat(RECORD) == {"student/total": 1.5, "student/terms/kd": 0.5}


def test_every_record_arrives_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[tuple[int, Mapping[str, float]]] = []
    use(monkeypatch, lambda folder, run: lambda numbers, step: got.append((step, dict(numbers))))
    with tracking.trackers(["mine"], tmp_path, "run") as (tell,):
        for step in range(50):
            tell({**RECORD, "step": step})
    assert [step for step, _ in got] == list(range(50)) and got[0][1]["student/terms/kd"] == 0.5


@pytest.mark.parametrize("when", ["opening", "writing"])
def test_one_that_fails_is_left_out_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[warnings.WarningMessage], when: str
) -> None:
    def opener(folder: Path, run: str) -> tracking.Write:
        if when == "opening":
            raise RuntimeError("no login")

        def write(numbers: Mapping[str, float], step: int) -> None:
            raise RuntimeError("no login")

        return write

    use(monkeypatch, opener)
    with tracking.trackers(["mine"], tmp_path, "run") as (tell,):
        for step in range(5):
            tell({**RECORD, "step": step})
            time.sleep(0.02)
    assert [str(warning.message) for warning in told] == ["tracker mine is left out from here on: no login"]


def test_one_that_hangs_neither_blocks_nor_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[warnings.WarningMessage]
) -> None:
    release = threading.Event()

    def opener(folder: Path, run: str) -> tracking.Write:
        def write(numbers: Mapping[str, float], step: int) -> None:
            release.wait(30)

        return write

    use(monkeypatch, opener)
    monkeypatch.setattr(tracking, "_PATIENCE", 0.1)
    start = time.monotonic()
    with tracking.trackers(["mine"], tmp_path, "run") as (tell,):
        for step in range(3000):
            tell({**RECORD, "step": step})
    assert time.monotonic() - start < 10
    assert "does not keep up" in str(told[0].message) and len(told) == 1
    release.set()


def test_a_package_that_is_missing_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[warnings.WarningMessage]
) -> None:
    import builtins

    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name == "wandb":
            raise ModuleNotFoundError("No module named 'wandb'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with tracking.trackers(["wandb"], tmp_path, "run") as (tell,):
        tell(RECORD)
        time.sleep(0.2)
    assert "wandb" in str(told[0].message)
