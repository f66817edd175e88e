"""`distillkit doctor`: what it checks, what it says, and when it ends with 5."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from distillkit import doctor
from distillkit.cli import main
from distillkit.doctor import Finding

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def findings() -> list[Finding]:
    return doctor.examine()


def finding(name: str, found: list[Finding]) -> Finding:
    return next(one for one in found if one.check == name)


def test_there_are_enough_checks(findings: list[Finding]) -> None:
    assert len({one.check for one in findings}) == len(findings) >= 20


def test_whatever_is_not_ok_has_a_fix(findings: list[Finding]) -> None:
    assert [one.check for one in findings if one.state != "ok" and not one.fix] == []


def test_a_session_really_runs(findings: list[Finding]) -> None:
    assert finding("ONNX Runtime, CPU", findings).found == "a session runs"


def test_the_tested_ranges_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {
        re.split(r"[><=;\[ ]", entry)[0]: entry.split(";")[0].strip() for entry in project["dependencies"]
    }
    for name, (low, high) in doctor.RANGES.items():
        assert declared[name] == f"{name}>={low}" + (f",<{high}" if high else "")


@pytest.mark.parametrize(
    ("version", "state"), [("2.9.1", "broken"), ("2.10.0+cpu", "ok"), ("2.16.0", "warning"), ("", "broken")]
)
def test_versions_are_compared_by_number(version: str, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As texts 2.9.1 would be newer than 2.10."""
    monkeypatch.setattr(doctor, "_version", lambda name: version)
    torch = finding("torch", list(doctor._packages()))
    assert torch.state == state and (not torch.fix) == (state == "ok")


def test_two_onnx_runtimes_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """They share one folder: whichever came last has overwritten the other's files."""
    monkeypatch.setattr(doctor, "_version", lambda name: "1.31.0")
    assert doctor._one_onnx_runtime().state == "broken"


def test_a_provider_that_is_not_there_is_broken() -> None:
    assert doctor._session("NoSuchExecutionProvider").state == "broken"


def test_a_check_that_raises_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def _broken_thing() -> Finding:
        raise OSError("no such device")

    monkeypatch.setattr(doctor, "_CHECKS", (_broken_thing,))
    last = doctor.examine()[-1]
    assert (last.check, last.state) == ("broken thing", "broken") and "no such device" in last.found


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("warning", 0), ("broken", 5)])
def test_only_what_is_broken_ends_with_5(
    state: doctor.State, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("thing", state, "as it is", "mend it")])
    assert main(["doctor", "--json"]) == code
    assert json.loads(capsys.readouterr().out)[0]["state"] == state
    assert main(["doctor"]) == code
    assert "mend it" in capsys.readouterr().out
