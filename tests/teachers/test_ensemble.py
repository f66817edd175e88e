"""Several teachers as one: what is averaged, who reads what, and who is named when something is wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import LABELS, batch, change_weights, encoder, feed, rows, tokenizer
from tinyrun import CONFIG, write_config, write_data
from training import run as train
from training import settings

from distillkit import pipeline
from distillkit.data.batching import collate, encode, reread
from distillkit.data.tokenizers import train_wordpiece
from distillkit.errors import ConfigError, DivergedError, ModelError
from distillkit.evaluate import predict
from distillkit.losses.base import LossStack
from distillkit.losses.logits import Logits
from distillkit.model import FixedTeacher, Teacher
from distillkit.settings import ENCODER_KINDS, Labels
from distillkit.teachers.ensemble import Ensemble, EnsembleTeacher, confidence, mean_probabilities
from distillkit.train import Distillation
from distillkit.types import Access, Batch, Outputs, Spec, Want

LEARN = {"gold": {"use": "gold", "weight": 0.5}, "kd": {"use": "logits", "temperature": 2.0}}
STUDENT = {"use": "transformer", "layers": 1, "width": 16, "heads": 2, "dropout": 0.0}


class Says(Teacher):
    """Fixed logits for every example."""

    def __init__(self, logits: Sequence[float], access: Access = Access.SCORES) -> None:
        self.logits, self._access = torch.tensor(logits), access

    @property
    def access(self) -> Access:
        return self._access

    @property
    def spec(self) -> Spec:
        return Spec(0, 0, 0, 0, vocab_size=0, num_labels=len(self.logits), max_length=99)

    def outputs(self, given: Batch, *, want: Want, swap: Any = None) -> Outputs:
        return Outputs(self.logits.expand(given.num_examples, -1))


class Source:
    """As far as an ensemble looks at its members' sources."""

    access = Access.SCORES
    kinds = ENCODER_KINDS
    reads_tokens = True
    rows_only = ""


def joined(members: dict[str, Teacher], labels: Labels = LABELS, **settings: Any) -> EnsembleTeacher:
    source = Ensemble(members={name: Source() for name in members}, **settings)  # type: ignore[dict-item]
    return EnsembleTeacher(members, source, labels)


def test_an_ensemble_of_one_is_that_teacher(tmp_path: Path) -> None:
    """Bit for bit, logits that are no log-probabilities included."""
    alone, given = FixedTeacher(encoder(3)), batch(tmp_path)
    for how in ({}, {"combine": "confidence"}, {"average": "logits", "weights": {"only": 7.0}}):
        told = joined({"only": alone}, **how).outputs(given, want=Want()).logits
        assert torch.equal(told, alone.outputs(given, want=Want()).logits)


def test_probabilities_and_logits_are_averaged_with_their_weights(tmp_path: Path) -> None:
    given = batch(tmp_path)
    first, second = torch.tensor([1.0, -1.0]), torch.tensor([-2.0, 0.5])
    members = {"a": Says(first.tolist()), "b": Says(second.tolist())}
    shares = 0.75 * first.softmax(0) + 0.25 * second.softmax(0)
    told = joined(members, weights={"a": 3.0}).outputs(given, want=Want()).logits
    assert torch.allclose(told.exp(), shares.expand(6, 2), atol=1e-6), "log-probabilities"
    told = joined(members, weights={"a": 3.0}, average="logits").outputs(given, want=Want()).logits
    assert torch.allclose(told, (0.75 * first + 0.25 * second).expand(6, 2), atol=1e-6)
    numbers = {"a": Says([1.0]), "b": Says([4.0])}
    told = joined(numbers, Labels(kind="regression")).outputs(replace(given, labels=None), want=Want()).logits
    assert torch.allclose(told, torch.full((6, 1), 2.5))


def test_a_member_that_errs_counts_less_in_that_example_and_a_measured_one_never_sees_what_is_right(
    tmp_path: Path,
) -> None:
    """Against the definition of MT-BERT, example by example."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 8, 4, generator=generator)
    targets = torch.tensor([0, 1, 2, 3, 0, -100, 2, 1])
    weights = confidence(logits, targets)
    told = mean_probabilities(logits, weights)
    for row in range(8):
        shares = logits[:, row].softmax(-1)
        known = targets[row] != -100
        trust = 1 / (1 - shares[:, targets[row]].log()) if known else torch.ones(3)
        expected = (trust[:, None] * shares).sum(0) / trust.sum()
        assert torch.allclose(told[row].exp(), expected, atol=1e-6)
    numbers, gold = torch.tensor([[[1.0]], [[3.0]]]), torch.tensor([1.0])
    assert torch.allclose(confidence(numbers, gold), torch.tensor([[1.0], [0.2]]))
    given = batch(tmp_path)
    members = {"a": Says([3.0, 0.0]), "b": Says([0.0, 3.0])}
    blind = joined(members, combine="confidence").outputs(replace(given, labels=None), want=Want()).logits
    assert torch.allclose(blind.exp(), torch.full((6, 2), 0.5), atol=1e-6)
    seen = joined(members, combine="confidence").outputs(given, want=Want()).logits
    assert given.labels is not None and (seen.argmax(-1) == given.labels).all()


def test_a_member_that_breaks_is_named_and_nothing_deeper_is_given(tmp_path: Path) -> None:
    given = batch(tmp_path)
    both = joined({"good": Says([1.0, 0.0]), "broken": Says([float("nan"), 0.0])})
    with pytest.raises(DivergedError, match="member 'broken'"):
        both.outputs(given, want=Want())
    with pytest.raises(ModelError, match="gives SCORES and nothing deeper"):
        joined({"a": Says([1.0, 0.0])}).outputs(given, want=Want(access=Access.ALL_STATES))
    with pytest.raises(ConfigError, match=r"teacher.weights.*no member is called 'c'"):
        joined({"a": Says([1.0, 0.0])}, weights={"c": 1.0})
    with pytest.raises(ConfigError, match=r"teacher.tokenizer.*no member is called 'c'"):
        joined({"a": Says([1.0, 0.0])}, tokenizer="c")


def test_a_batch_read_anew_is_what_the_other_tokenizer_makes_of_its_texts(tmp_path: Path) -> None:
    other = train_wordpiece((text for (text,) in rows(40, seed=5).texts), vocab_size=60)
    given, rows_of = batch(tmp_path), rows()
    again = reread(given, other, max_length=8)
    expected = collate(encode(rows_of, other, max_length=8, cache=tmp_path / "other"), np.arange(6))
    assert torch.equal(again.inputs["input_ids"], expected.inputs["input_ids"])
    assert torch.equal(again.mask, expected.mask)
    assert torch.equal(again.ids, given.ids) and again.labels is given.labels
    with pytest.raises(ModelError, match="only whole texts"):
        reread(replace(given, scored=given.mask), other, max_length=8)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def small(**changes: Any) -> dict[str, Any]:
    teacher = {key: value for key, value in CONFIG["teacher"].items() if key != "pretrain"}
    pretrain = {**CONFIG["teacher"]["pretrain"], "steps": 2}
    return {**teacher, "pretrain": pretrain, "allow_weak": True, **changes}


def run(here: Path, teacher: Any, name: str, *, until: str = "student", **changes: Any) -> Path:
    distill = {**CONFIG["distill"], "losses": changes.pop("losses", LEARN)}
    settings = {"student": STUDENT, "distill": distill, **changes}
    config = write_config(here, name=name, teacher=teacher, **settings)
    return pipeline.run(config, progress="quiet", until=until).path


def test_members_of_other_families_and_vocabularies_teach_to_the_report(here: Path) -> None:
    """Two BERTs of different vocabularies and a file of labels; a second run trains nothing again."""
    every = [
        json.loads(line)
        for split in ("train", "validation")
        for line in (here / f"{split}.jsonl").read_text().splitlines()
    ]
    (here / "told.jsonl").write_text(
        "".join(json.dumps({"text": one["text"], "says": one["label"]}) + "\n" for one in every)
    )
    members = {
        "file": {"use": "predictions", "path": "told.jsonl", "label": "says"},
        "wide": small(),
        "narrow": small(vocab_size=90, width=16),
    }
    teacher = {"use": "ensemble", "members": members, "combine": "confidence", "allow_weak": True}
    folder = run(here, teacher, "three", until="report")
    for name in members:
        assert (folder / "members" / name / "teacher" / "scores.json").exists()
    sizes = [
        len(json.loads((folder / place / "tokenizer.json").read_text())["model"]["vocab"])
        for place in ("tokenizer", "members/wide/tokenizer", "members/narrow/tokenizer")
    ]
    assert sizes[0] == sizes[1] > sizes[2], "the student reads with the first member that reads tokens"
    facts = json.loads((folder / "report" / "facts.json").read_text())
    assert [one["name"] for one in facts["links"]] == list(members)
    assert "narrow" in (folder / "report.html").read_text()
    made = {path: path.stat().st_mtime_ns for path in folder.rglob("manifest.json")}
    run(here, teacher, "three", until="report")
    assert made == {path: path.stat().st_mtime_ns for path in folder.rglob("manifest.json")}
    run(here, {**teacher, "weights": {"file": 2.0}}, "three")
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("manifest.json")}
    assert all(after[path] == made[path] for path in made if "members" in path.parts), "members stay"
    assert after[folder / "student" / "manifest.json"] > made[folder / "student" / "manifest.json"]


def test_an_ensemble_of_one_makes_the_same_student_and_members_differ_by_their_seeds(here: Path) -> None:
    """An ensemble of one equals its teacher, through the whole run; two of one recipe are two models."""
    made = run(here, small(), "alone", until="teacher")
    fixed = {"use": "pretrained", "path": str(made / "teacher"), "allow_weak": True}
    alone = run(here, fixed, "white")
    one = run(here, {"use": "ensemble", "members": {"it": fixed}, "allow_weak": True}, "one")
    expected = load_file(alone / "student" / "model.safetensors")
    told = load_file(one / "student" / "model.safetensors")
    assert all(torch.equal(told[name], expected[name]) for name in expected)
    two = run(here, {"use": "ensemble", "members": {"a": small(), "b": small()}}, "two", until="teacher")
    first, second = (load_file(two / "members" / name / "teacher" / "model.safetensors") for name in "ab")
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_a_dead_member_is_named_before_the_student_is_trained(here: Path) -> None:
    longer = {**CONFIG["teacher"]["finetune"], "epochs": 12}
    made = run(here, small(finetune=longer), "made", until="teacher")
    dead = here / "dead"
    dead.mkdir()
    for path in (made / "teacher").iterdir():
        (dead / path.name).write_bytes(path.read_bytes())
    change_weights(dead, **{"classifier.weight": torch.zeros(2, 32)})
    members = {"good": {"use": "pretrained", "path": str(made / "teacher")}}
    members["dead"] = {"use": "pretrained", "path": str(dead)}
    with pytest.raises(ModelError, match=r"teacher.members.dead: the teacher is no better"):
        run(here, {"use": "ensemble", "members": members}, "with")
    members["dead"]["allow_weak"] = True  # type: ignore[assignment]
    ensemble = {"use": "ensemble", "members": members, "allow_weak": True}
    assert (run(here, ensemble, "with") / "student").exists()


def test_what_an_ensemble_cannot_give_is_refused_before_any_member_is_trained(here: Path) -> None:
    states = {"states": {"use": "hidden_cosine"}}
    with pytest.raises(ConfigError, match="needs ALL_STATES of the teacher, which gives no more than SCORES"):
        run(here, {"use": "ensemble", "members": {"a": small(), "b": small()}}, "deep", losses=states)
    assert not list(here.glob("runs/deep/members/*/teacher"))
    nested = {"use": "ensemble", "members": {"a": {"use": "ensemble", "members": {"b": small()}}}}
    with pytest.raises(ConfigError, match="nothing is registered as 'ensemble'"):
        run(here, nested, "nested")


def test_answers_of_members_are_kept_and_teach_the_same(here: Path) -> None:
    """A cache with an ensemble: the same student as without, within rounding."""
    made = run(here, small(), "made", until="teacher")
    fixed = {"use": "pretrained", "path": str(made / "teacher"), "allow_weak": True}
    teacher = {"use": "ensemble", "members": {"a": fixed, "b": small(width=16)}, "allow_weak": True}
    live = load_file(run(here, teacher, "live") / "student" / "model.safetensors")
    distill = {**CONFIG["distill"], "losses": LEARN, "cache": {}}
    kept = load_file(run(here, teacher, "kept", distill=distill) / "student" / "model.safetensors")
    assert all(torch.allclose(kept[name], live[name], atol=2e-4) for name in live)


def test_members_that_were_made_for_other_data_or_settings_are_made_again(here: Path) -> None:
    first = {"use": "ensemble", "members": {"a": small()}, "allow_weak": True}
    folder = run(here, first, "again")
    lines = (here / "train.jsonl").read_text().splitlines()
    third = [json.dumps({"text": f"so la third {index}", "label": "third"}) for index in range(20)]
    (here / "train.jsonl").write_text("\n".join(lines + third) + "\n")
    run(here, first, "again")
    shape = load_file(folder / "members" / "a" / "teacher" / "model.safetensors")["classifier.weight"].shape
    assert shape[0] == 3
    (here / "told.jsonl").write_text(
        "".join(
            json.dumps({"text": json.loads(line)["text"], "says": json.loads(line)["label"]}) + "\n"
            for path in ("train", "validation")
            for line in (here / f"{path}.jsonl").read_text().splitlines()
        )
    )
    file = {"use": "predictions", "path": "told.jsonl", "label": "says", "allow_weak": True}
    losses = {"hard": {"use": "hard_labels"}}
    other = {**first, "members": {"a": file}}
    run(here, other, "again", losses=losses)
    run(here, first, "again", losses=losses)


def test_members_that_read_tokens_otherwise_are_refused_for_tags_before_training(here: Path) -> None:
    for split in ("train", "validation"):
        tagged = [
            {"words": json.loads(line)["text"].split(), "tags": ["X"] * len(json.loads(line)["text"].split())}
            for line in (here / f"{split}.jsonl").read_text().splitlines()
        ]
        for one in tagged:
            one["tags"][-1] = "Y"
        (here / f"{split}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in tagged))
    task = {**CONFIG["task"], "kind": "token_classification", "text": "words", "label": "tags"}
    members = {"a": small(), "b": small(vocab_size=90)}
    with pytest.raises(ConfigError, match=r"teacher.members.b.*another tokenizer"):
        run(here, {"use": "ensemble", "members": members}, "tags", task=task)
    assert not list(here.glob("runs/tags/members/*/pretrain"))


def test_measured_ensembles_never_see_what_is_right(tmp_path: Path) -> None:
    """Through the function that all measuring goes through."""
    made = encode(rows(), tokenizer(), max_length=32, cache=tmp_path)
    both = joined({"a": Says([3.0, 0.0]), "b": Says([0.0, 3.0])}, combine="confidence")
    told = predict(lambda one: both.outputs(one, want=Want()), made, device=torch.device("cpu"))
    assert np.allclose(np.exp(told), 0.5, atol=1e-6)


def test_members_of_different_numbers_of_scores_are_refused() -> None:
    with pytest.raises(ModelError, match=r"different numbers of scores: \{'a': 2, 'b': 3\}"):
        joined({"a": Says([1.0, 0.0]), "b": Says([1.0, 0.0, 2.0])})


def test_a_student_of_a_constant_teacher_becomes_constant(tmp_path: Path) -> None:
    """Whatever it thought of the rows before."""
    student = encoder(2, layers=1)
    rows_of = feed(tmp_path / "cache", count=40)
    (given,) = rows_of.step(0, 0)
    before = student(given, Want()).logits.softmax(-1)
    stack = LossStack({"kd": (1.0, Logits(temperature=1.0))})
    constant = torch.tensor([0.85, 0.15])
    program = Distillation(student, stack, {"teacher": Says(constant.log().tolist())})
    train(tmp_path, made=program, data=rows_of, how=replace(settings(epochs=12), keep="last"))
    after = student.eval()(given, Want()).logits.softmax(-1)
    assert torch.allclose(after, constant.expand_as(after), atol=0.02)
    assert not torch.allclose(before, constant.expand_as(before), atol=0.1)
