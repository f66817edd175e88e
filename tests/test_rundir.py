"""The run's folder: whose it is, who holds it, what appears whole, and what survives a failed write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from distillkit import files
from distillkit.errors import ConfigError, DistillkitError, LockedError, ResourceError
from distillkit.rundir import MetricsLog, RunDir, environment

HOLDER = """
import sys
from pathlib import Path
from distillkit.rundir import RunDir
with RunDir.open(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the run's lock until its input ends."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    return child


def test_a_run_in_use_names_its_holder_and_a_killed_ones_lock_is_free(tmp_path: Path) -> None:
    with holder(tmp_path / "run") as child:
        with (
            pytest.raises(LockedError, match=f"pid {child.pid} on .* since ") as caught,
            RunDir.open(tmp_path / "run").lock(),
        ):
            pass
        assert caught.value.exit_code == 9
        child.kill()
    with RunDir.open(tmp_path / "run").lock():
        assert f"pid {os.getpid()}" in (tmp_path / "run" / "lock").read_text()


def test_only_one_of_several_that_start_together_gets_the_lock(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom distillkit.rundir import RunDir\n"
        "from distillkit.errors import LockedError\n"
        "run = RunDir.open(Path(sys.argv[1]))\n"
        "try:\n    with run.lock():\n        time.sleep(3)\nexcept LockedError as error:\n"
        "    sys.exit(error.exit_code)\n"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")]) for _ in range(4)]
    assert sorted(child.wait() for child in children) == [0, 9, 9, 9]


def test_a_folder_of_someone_else_is_never_taken(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(LockedError, match="not a run's folder") as caught:
        RunDir.open(tmp_path)
    assert caught.value.exit_code == 9
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(LockedError):
        RunDir.open(tmp_path / "thesis.txt")
    with pytest.raises(LockedError):
        RunDir.reopen(tmp_path)


@pytest.mark.parametrize("place", ["/", "~", ".", "data", "data/inside", "above"])
def test_dangerous_places_are_refused_and_untouched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """B86: the root, the home folder, the current folder, the data's folder, inside it, around it."""
    data = tmp_path / "above" / "data"
    data.mkdir(parents=True)
    (data / "train.csv").write_text("text,label\n")
    monkeypatch.chdir(tmp_path)
    where = {
        "/": Path("/"),
        "~": Path.home(),
        ".": Path(),
        "data": data,
        "data/inside": data / "inside",
        "above": data.parent,
    }[place]
    with pytest.raises(DistillkitError) as caught:
        RunDir.open(where, data_paths=[data])
    assert caught.value.exit_code in (2, 9)
    assert [path.name for path in data.iterdir()] == ["train.csv"]


def test_a_place_that_cannot_be_written_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        RunDir.open(tmp_path / "file" / "run")


def test_a_stage_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    run = RunDir.open(tmp_path / "run")
    stage = run.stage("student")
    with pytest.raises(RuntimeError), stage.write("digest") as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert not stage.folder.exists() and not list(run.path.glob(".tmp-*")) and not stage.done("digest")
    with stage.write("digest", seconds=lambda: 1.25) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "whole").write_text("x")
        assert not stage.folder.exists()
    assert stage.done("digest") and not stage.done("another")
    assert stage.manifest["files"]["sub/whole"]["size"] == 1 and stage.manifest["seconds"] == 1.2
    (stage.folder / "sub" / "whole").write_text("xy")
    assert not stage.done("digest")


def test_a_stage_that_is_made_again_replaces_the_old_one_only_when_it_is_whole(tmp_path: Path) -> None:
    stage = RunDir.open(tmp_path / "run").stage("student")
    for content in ("old", "new"):
        with stage.write(content) as folder:
            (folder / "file").write_text(content)
            if content == "new":
                assert (stage.folder / "file").read_text() == "old"
    assert (stage.folder / "file").read_text() == "new" and not list(stage.folder.parent.glob(".tmp-*"))


def test_a_full_disk_says_how_much_room_there_is(tmp_path: Path) -> None:
    stage = RunDir.open(tmp_path / "run").stage("student")
    with pytest.raises(ResourceError, match=r"No space left.*bytes free") as caught, stage.write("digest"):
        raise OSError(28, "No space left on device")
    assert caught.value.exit_code == 7 and not stage.folder.exists()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: (folder / "a").unlink(), "a is missing"),
        (lambda folder: (folder / "a").write_text("longer than before"), "bytes, not"),
        (lambda folder: (folder / "a").write_text("B"), "sha256"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest"),
    ],
)
def test_a_flaw_in_a_sealed_folder_is_told_in_words(tmp_path: Path, harm: object, words: str) -> None:
    (tmp_path / "a").write_text("A")
    files.seal(tmp_path, {})
    assert files.flaw(tmp_path, hashes=True) == ""
    harm(tmp_path)  # type: ignore[operator]
    assert words in files.flaw(tmp_path, hashes=True)


def test_locking_sweeps_what_killed_processes_left(tmp_path: Path) -> None:
    run = RunDir.open(tmp_path / "run")
    left = [run.path / ".tmp-student-1", run.checkpoints("student") / ".tmp-000004-1"]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "half").write_text("x")
    with run.lock():
        assert not any(folder.exists() for folder in left)


def test_metrics_are_rewound_to_the_step_that_is_gone_on_from(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for stage in ("teacher", "student"):
        for step in (2, 4, 6):
            log.append({"stage": stage, "step": step})
    with log.path.open("a") as file:
        file.write('{"stage": "student", "st')  # a torn line, as kill -9 leaves it
    log.rewind("student", 4)
    assert [(row["stage"], row["step"]) for row in log.records()] == [
        ("teacher", 2),
        ("teacher", 4),
        ("teacher", 6),
        ("student", 2),
        ("student", 4),
    ]
    log.append({"stage": "student", "step": 6})
    assert len(log.records()) == 6 and log.path.read_text().endswith("\n")


def test_metrics_that_cannot_be_written_wait_and_stop_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "away"
    log = MetricsLog(folder / "metrics.jsonl")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in range(3):
            log.append({"stage": "student", "step": step})
    assert len(told) == 1 and "metrics" in str(told[0].message)
    folder.mkdir()
    log.append({"stage": "student", "step": 3})
    assert [row["step"] for row in log.records()] == [0, 1, 2, 3]


def test_the_environment_tells_nothing_private(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    told = json.dumps(environment(7, 2))
    assert "secret" not in told and str(Path.home()) not in told and str(Path.cwd()) not in told
    assert json.loads(told)["seed"] == 7 and json.loads(told)["packages"]["torch"]
