"""`plan`: what it says is what the run does, and what cannot work is refused with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tinyrun import CONFIG, write_config, write_data

from distillkit import catalog, pipeline, planning, recipe
from distillkit.cli import main
from distillkit.errors import DistillkitError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(config: Path) -> planning.Plan:
    return planning.plan(recipe.load(config, [], components=catalog.components))


def test_what_is_planned_is_what_is_run(here: Path) -> None:
    config = write_config(here)
    told = planned(config)
    run = pipeline.run(config, until="student", progress="quiet")
    assert told.rows == {"train": 160, "validation": 80}
    counts = told.labels["train"]
    assert sum(counts.values()) == 160 and told.majority == max(counts.values()) / 160
    for role, cost in (("teacher", told.teacher), ("student", told.student)):
        assert cost is not None
        stored = load_file(str(run.path / role / "model.safetensors"))
        assert cost.parameters == sum(tensor.numel() for tensor in stored.values())
    last = {row["stage"]: row["step"] for row in run.metrics.records()}
    assert {stage.stage: stage.steps for stage in told.stages} == last
    assert all(stage.seconds > 0 and stage.memory > 0 for stage in told.stages)
    done = {row["stage"]: row["flops"] for row in run.metrics.records() if "flops" in row}
    for stage in told.stages:
        assert stage.flops == pytest.approx(done[stage.stage], rel=0.25), stage.stage
    by_name = {loss.name: loss for loss in told.losses}
    assert by_name["gold"].needs == "no teacher" and by_name["kd"].needs == "SCORES"
    assert by_name["states"].needs.endswith("STATES")


def test_the_table_and_the_json_say_the_same(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(here)
    assert main(["plan", str(config), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert main(["plan", str(config)]) == 0
    shown = capsys.readouterr().out
    assert told["rows"] == {"train": 160, "validation": 80} and "train 160, validation 80" in shown
    for word in (
        "majority class",
        "truncated",
        "FLOPs",
        "loss kd",
        "0.7 x logits",
        "train student",
        "of memory",
    ):
        assert word in shown
    assert not (here / "runs").exists(), "a plan leaves nothing"


def test_truncation_and_unknown_tokens_are_counted(here: Path) -> None:
    lines = [json.loads(line) for line in (here / "train.jsonl").read_text().splitlines()]
    for row in lines[:40]:
        row["text"] = "ba " * 60 + row["text"]
    (here / "train.jsonl").write_text("\n".join(json.dumps(row) for row in lines))
    assert planned(write_config(here)).truncated == pytest.approx(0.25)


def test_a_student_larger_than_its_teacher_is_noted(here: Path) -> None:
    student = {"use": "transformer", "layers": 4, "width": 64, "heads": 2}
    found = planned(write_config(here, student=student)).findings
    assert any("larger than its teacher" in one.sentence for one in found if one.severity == "warning")


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("states.layer_map", {"use": "hidden_cosine", "layer_map": [[1, 9]]}, "9"),
    ("states.layer_map", {"use": "hidden_cosine", "layer_map": [[1, 1], [1, 2]]}, "strictly increasing"),
]


@pytest.mark.parametrize(("where", "loss", "words"), REFUSED)
def test_layers_that_do_not_fit_are_refused_with_their_place_by_plan_and_before_training_by_run(
    here: Path, where: str, loss: dict[str, Any], words: str
) -> None:
    config = write_config(here, distill={**CONFIG["distill"], "losses": {"states": loss}})
    for action in (lambda: planned(config), lambda: pipeline.run(config, progress="quiet")):
        with pytest.raises(DistillkitError) as caught:
            action()
        assert caught.value.exit_code == 2
        assert where in str(caught.value) and words in str(caught.value)
    assert not (here / "runs" / "tiny" / "pretrain").exists()


def test_a_student_that_cannot_be_built_is_refused_before_the_teacher_is_trained(here: Path) -> None:
    student = {"use": "transformer", "layers": 2, "initialise": {"from": "teacher", "layers": [1, 7]}}
    config = write_config(here, student=student)
    with pytest.raises(DistillkitError, match=r"student\.initialise"):
        pipeline.run(config, progress="quiet")
    assert not (here / "runs" / "tiny" / "pretrain").exists()


def test_a_chain_of_an_ensemble_is_planned_link_by_link(here: Path) -> None:
    """Stages of every member and assistant, in the order in which the run makes them, and how each reads."""
    small = {**CONFIG["teacher"], "allow_weak": True}
    members = {"a": small, "b": {**small, "vocab_size": 90}}
    losses = {"gold": {"use": "gold"}, "kd": {"use": "logits"}}
    config = write_config(
        here,
        teacher={"use": "ensemble", "members": members, "allow_weak": True},
        assistants=[{"student": {"use": "bilstm", "layers": 1, "width": 16}}],
        distill={**CONFIG["distill"], "losses": losses},
    )
    told = planned(config)
    assert [stage.stage for stage in told.stages] == [
        "assistant 1: member a: pretrain",
        "assistant 1: member a: teacher",
        "assistant 1: member b: pretrain",
        "assistant 1: member b: teacher",
        "assistant 1: student",
        "student",
    ]
    run = pipeline.run(config, until="student", progress="quiet")
    for stage, folder, trained in (
        ("assistant 1: member a: teacher", "assistants/1/members/a", "teacher"),
        ("assistant 1: student", "assistants/1", "student"),
        ("student", ".", "student"),
    ):
        (steps,) = (one.steps for one in told.stages if one.stage == stage)
        log = (run.path / folder / "metrics.jsonl").read_text().splitlines()
        assert steps == {row["stage"]: row["step"] for row in map(json.loads, log)}[trained]
    places = {finding.place: finding.sentence for finding in told.findings}
    assert "student's token ids" in places["assistant 1: teacher.members.a"]
    assert "comes out another" in places["assistant 1: teacher.members.b"]


def test_peers_cost_what_all_of_them_cost(here: Path) -> None:
    losses = {"gold": {"use": "gold"}, "kd": {"use": "logits"}}
    distill = {**CONFIG["distill"], "losses": losses}
    student = CONFIG["student"]
    one = planned(write_config(here, teacher={"use": "itself", "vocab_size": 200}, distill=distill))
    peers = {"use": "peers", "vocab_size": 200, "peers": {"b": student, "c": student}}
    three = planned(write_config(here, teacher=peers, distill=distill))
    assert three.stages[-1].memory > 2 * one.stages[-1].memory
    assert any("there is nothing to judge yet" in finding.sentence for finding in three.findings)


def test_rows_that_a_phase_adds_are_read_and_their_oddities_told(here: Path) -> None:
    (here / "more.jsonl").write_text('{"text": "so la"}\n{"text": " "}\n')
    losses = {"kd": {"use": "logits"}}
    told = planned(
        write_config(here, distill={**CONFIG["distill"], "losses": losses, "unlabelled": "more.jsonl"})
    )
    said = [finding.sentence for finding in told.findings]
    assert any("162 rows" in sentence for sentence in said)
    assert any("have an empty text" in sentence for sentence in said)
