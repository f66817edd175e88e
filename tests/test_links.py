"""Chains: assistants between teacher and student, each a run of its own."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tinyrun import CONFIG, write_config, write_data

from distillkit import links, pipeline, recipe, stages
from distillkit.catalog import components
from distillkit.errors import ConfigError, DistillkitError, MissingError, ModelError, StoppedError

LOSSES = {"gold": {"use": "gold", "weight": 0.5}, "kd": {"use": "logits", "temperature": 2.0}}
DISTILL = {**CONFIG["distill"], "losses": LOSSES, "epochs": 1}
MIDDLE = {"use": "bilstm", "layers": 1, "width": 16, "dropout": 0.0}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(here: Path, name: str, *, until: str = "student", **changes: Any) -> Path:
    teacher = {**CONFIG["teacher"], "allow_weak": True}  # what it learns in four steps is not the matter
    config = write_config(here, **{"name": name, "distill": DISTILL, "teacher": teacher, **changes})
    return pipeline.run(config, progress="quiet", until=until).path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def times(folder: Path) -> dict[str, int]:
    found = [path for path in folder.rglob("manifest.json") if "cache" not in path.parts]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in found}


def test_a_chain_is_the_runs_that_one_would_start_by_hand(here: Path) -> None:
    """Teacher -> bilstm -> student in one recipe, and in two: the same weights; then to the report."""
    chain = run(here, "chain", assistants=[{"student": MIDDLE}], until="report")
    first = run(here, "first", student=MIDDLE, seed=CONFIG["seed"] + 1)
    middle = chain / "assistants" / "1"
    assert equal(weights(middle / "student"), weights(first / "student"))
    teacher = {"use": "distilled", "path": str(first), "student": MIDDLE, "allow_weak": True}
    second = run(here, "second", teacher=teacher)
    assert equal(weights(chain / "student"), weights(second / "student"))
    assert (chain / "teacher" / "model.safetensors").read_bytes() == (
        middle / "student" / "model.safetensors"
    ).read_bytes()
    facts = json.loads((chain / "report" / "facts.json").read_text())
    told = [(one["role"], one["source"]) for one in facts["links"]]
    assert told == [("first teacher", "bert"), ("assistant", "bilstm")]
    page = (chain / "report.html").read_text()
    assert "From the first teacher to the student" in page and "assistant 1" in page
    before = times(chain)
    run(here, "chain", assistants=[{"student": MIDDLE}], until="report")
    assert times(chain) == before, "a finished chain trains nothing"


def test_generations_differ_by_their_seeds_and_keep_the_rows_that_are_held_out(here: Path) -> None:
    task = {key: value for key, value in CONFIG["task"].items() if key != "validation"}
    folder = run(here, "born-again", assistants=[{}, {}], task=task)
    made = [folder / "assistants" / "1", folder / "assistants" / "2", folder]
    assert len({json.dumps(weights(one / "student")["classifier.bias"].tolist()) for one in made}) == 3
    loaded = recipe.load(folder / "config.yaml", components=components)
    derived = [*links.assistants(loaded, folder), loaded]
    assert [one.config.seed for one in derived] == [4, 5, 3]
    splits = [
        pipeline.load_tasks(one.config.task, base=one.base, seed=one.config.seed).validation.ids.tolist()
        for one in derived
    ]
    assert splits[0] == splits[1] == splits[2], "no generation is judged on rows that another was trained on"


def test_a_change_reruns_the_links_from_there_on(here: Path) -> None:
    two = [{"student": MIDDLE}, {"distill": {**DISTILL, "epochs": 2}}]
    folder = run(here, "chain", assistants=two)
    before = times(folder)
    two[1] = {"distill": {**DISTILL, "epochs": 1}}
    run(here, "chain", assistants=two)
    after = times(folder)
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {
        "assistants/2/student/manifest.json",
        "teacher/manifest.json",
        "student/manifest.json",
        "tokenizer/manifest.json",
    }


def test_a_stopped_chain_goes_on_where_it_stopped(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal in the second assistant: the first is kept, and the end is the same bit for bit."""
    two = [{"student": MIDDLE}, {}]
    expected = weights(run(here, "whole", assistants=two) / "student")
    real, calls = stages.MAKE["student"], []

    def stopping(job: Any) -> Any:
        calls.append(job.run.path)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(job)

    with monkeypatch.context() as patch:
        patch.setitem(stages.MAKE, "student", stopping)  # type: ignore[attr-defined]
        with pytest.raises(StoppedError):
            run(here, "stopped", assistants=two)
    folder = here / "runs" / "stopped"
    assert json.loads((folder / "status.json").read_text())["state"] == "stopped"
    before = times(folder / "assistants" / "1")
    again = pipeline.run(folder / "config.yaml", progress="quiet", until="student").path
    assert again == folder and times(folder / "assistants" / "1") == before
    assert equal(weights(folder / "student"), expected)


def test_what_cannot_work_is_said_before_the_first_link_is_trained(here: Path) -> None:
    states = {**DISTILL, "losses": {"states": {"use": "hidden_mse", "layer_map": [[1, 2]]}}}
    with pytest.raises(DistillkitError, match=r"layer_map"):
        run(here, "deep", assistants=[{"student": MIDDLE, "distill": DISTILL}], distill=states)
    with pytest.raises(ConfigError, match=r"assistant 2: .*"):
        run(here, "deep", assistants=[{"student": MIDDLE}, {"distill": states}])
    assert not list(here.glob("runs/deep/assistants/1/pretrain"))
    with pytest.raises(ConfigError, match=r"assistants.0.distill.losses.kd.temprature: unknown key"):
        wrong = {**DISTILL, "losses": {"kd": {"use": "logits", "temprature": 2.0}}}
        run(here, "deep", assistants=[{"distill": wrong}])
    with pytest.raises(ConfigError, match="assistants and a student from Python"):
        config = write_config(here, name="python", assistants=[{}])
        made = pipeline.catalog.build(
            "student", recipe.load(config, components=components).config.student, base=here
        )
        pipeline.run(config, parts=pipeline.Parts(student=made), progress="quiet")


def test_a_run_that_has_no_student_or_other_labels_is_no_teacher(here: Path) -> None:
    with pytest.raises(MissingError, match="no trained student"):
        run(here, "none", teacher={"use": "distilled", "path": "nowhere"})
    made = run(here, "made", student=MIDDLE)
    config = json.loads((made / "student" / "config.json").read_text())
    config["labels"] = ["good", "bad"]
    (made / "student" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"labels \['good', 'bad'\] are not the task's"):
        run(here, "other", teacher={"use": "distilled", "path": str(made), "student": MIDDLE})


def test_single_stages_of_a_chain_stop_in_its_first_link(here: Path) -> None:
    folder = run(here, "early", assistants=[{"student": MIDDLE}], until="pretrain")
    assert (folder / "assistants" / "1" / "pretrain").exists()
    assert not (folder / "assistants" / "1" / "teacher").exists() and not (folder / "tokenizer").exists()


def test_a_chain_may_begin_with_a_student_that_taught_itself(here: Path) -> None:
    own = {"use": "itself", "vocab_size": 200, "allow_weak": True}
    folder = run(here, "own", assistants=[{}], teacher=own, until="report")
    facts = json.loads((folder / "report" / "facts.json").read_text())
    assert [(one["role"], one["source"]) for one in facts["links"]] == [
        ("first teacher", "itself"),
        ("assistant", "transformer"),
    ]
    assert (folder / "report.html").exists()
    best = {"use": "peers", "peers": {"a": MIDDLE}, "keep": "best"}
    with pytest.raises(ConfigError, match=r"teacher.keep.*too late to teach an assistant"):
        run(here, "best", assistants=[{}], teacher=best)


def test_a_signal_between_two_links_is_heard_before_the_next_one(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pipeline._Call._foresee

    def signalled(call: Any, *given: Any) -> None:
        real(call, *given)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(pipeline._Call, "_foresee", signalled)
    with pytest.raises(StoppedError, match="before"):
        run(here, "heard", assistants=[{"student": MIDDLE}])
    assert not list(here.glob("runs/heard/assistants/1/pretrain"))


def test_a_distilled_teacher_of_fewer_positions_is_refused(here: Path) -> None:
    short = {"use": "transformer", "layers": 1, "width": 16, "heads": 2}
    made = run(here, "short", student=short, task={**CONFIG["task"], "max_length": 12}, teacher=SHORT)
    with pytest.raises(ConfigError, match="more than the teacher's 12 positions"):
        run(here, "long", teacher={"use": "distilled", "path": str(made), "allow_weak": True})


SHORT = {**CONFIG["teacher"], "positions": 12, "allow_weak": True}
SHORT["pretrain"] = {**CONFIG["teacher"]["pretrain"], "max_length": 12}
