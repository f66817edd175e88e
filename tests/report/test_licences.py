"""Licences go where models go: from the teacher's folder into the artifact and its card."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from report_sample import classification
from tinyrun import Here, write_config, write_data

from distillkit import pipeline
from distillkit.bench import measure
from distillkit.licences import carry, names
from distillkit.report.card import render_card


def origin(folder: Path, licence: str, **notices: str) -> Path:
    folder.mkdir()
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n# A model\n")
    for name, content in notices.items():
        (folder / name).write_text(content)
    return folder


def test_notices_of_two_origins_are_both_kept(tmp_path: Path) -> None:
    first = origin(tmp_path / "a", "mit", LICENSE="one", NOTICE="both")
    second = origin(tmp_path / "b", "apache-2.0", LICENSE="two", NOTICE="both")
    made, after = tmp_path / "made", tmp_path / "after"
    made.mkdir()
    after.mkdir()
    carry([first, second], made)
    carry([made], after)
    for folder in (made, after):
        found = {path.name: path.read_text() for path in folder.iterdir() if path.name != "licences.json"}
        assert found == {"LICENSE": "one", "LICENSE-2": "two", "NOTICE": "both"}
        assert names(folder) == ("mit", "apache-2.0")


@pytest.mark.parametrize(
    "card", ["", "# none", "---\nlicense: [\n---\n", "---\n- a\n---\n", "---\nlicense: 3\n---\n"]
)
def test_a_card_that_says_nothing_of_a_licence_carries_none(card: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card)
    (tmp_path / "made").mkdir()
    carry([tmp_path, tmp_path / "missing"], tmp_path / "made")
    assert list((tmp_path / "made").iterdir()) == []


def test_links_out_of_a_models_folder_carry_nothing_along(tmp_path: Path) -> None:
    """But those of the Hub's cache, whose snapshots are links to its blobs, do."""
    secret = tmp_path / "secret"
    secret.write_text("---\nlicense: mine\n---\n")
    bad, made = tmp_path / "bad", tmp_path / "made"
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "1a2b", tmp_path / "hub" / "blobs"
    for folder in (bad, made, snapshot, blobs):
        folder.mkdir(parents=True)
    for name in ("LICENSE", "README.md"):
        (bad / name).symlink_to(secret)
        (blobs / name).write_text("---\nlicense: mit\n---\n")
        (snapshot / name).symlink_to(Path("..", "..", "blobs", name))
    carry([bad], made)
    assert list(made.iterdir()) == []
    carry([snapshot], made)
    assert names(made) == ("mit",) and (made / "LICENSE").is_file()


def test_the_card_names_one_licence_for_the_hub_and_all_for_readers() -> None:
    one = ModelCard(render_card(replace(classification(), licences=("mit",))))
    both = ModelCard(render_card(replace(classification(), licences=("mit", "cc-by-4.0"))))
    assert one.data.license == "mit" and both.data.license is None
    assert "made from models under: mit, cc-by-4.0" in both.text
    assert "## Licence" not in render_card(classification())


@pytest.mark.slow
def test_a_run_carries_the_licence_of_its_teacher_into_the_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fine-tuned teacher of a folder, its student, and the artifact: each folder has the notice."""
    monkeypatch.setattr(measure, "Child", Here)
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    first = pipeline.run(write_config(tmp_path), until="teacher", progress="quiet").path / "teacher"
    (first / "LICENSE").write_text("keep this")
    (first / "README.md").write_text("---\nlicense: mit\n---\n")
    teacher = {"use": "pretrained", "path": str(first), "allow_weak": True}
    config = write_config(tmp_path, name="second", teacher=teacher, export={"formats": ["fp32", "int8"]})
    run = pipeline.run(config, progress="quiet").path
    for folder in ("teacher", "student", "export", "export/formats/int8"):
        assert (run / folder / "LICENSE").read_text() == "keep this"
        assert json.loads((run / folder / "licences.json").read_text()) == {"licences": ["mit"]}
    for folder in ("student", "export"):
        assert ModelCard.load(run / folder / "README.md").data.license == "mit"
