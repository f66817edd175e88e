"""Whole runs whose answers are tokens: tags of words, and masked tokens of a corpus."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import WORDS
from tinyrun import CONFIG, Here, write_config, write_data
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from distillkit import catalog, pipeline, planning, recipe
from distillkit.bench import measure
from distillkit.errors import ConfigError, DistillkitError, ModelError
from distillkit.init import write_config as write_init
from distillkit.report.facts import RunFacts, load_facts
from distillkit.settings import RunConfig

TAGS = {"O": WORDS[:40], "B-x": WORDS[40:60], "I-x": WORDS[60:]}
QUICK = {**CONFIG["distill"], "epochs": 2}


def write_rows(folder: Path, rows: int = 100) -> None:
    """A word's tag hangs on the word alone."""
    generator = np.random.default_rng(2)
    for split, count in (("train", rows), ("validation", 40)):
        lines = []
        for _ in range(count):
            tags = generator.choice(list(TAGS), size=generator.integers(2, 8)).tolist()
            words = [str(generator.choice(TAGS[tag])) for tag in tags]
            lines.append(json.dumps({"tokens": words, "tags": tags}) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))


def words_config(folder: Path, **changes: Any) -> Path:
    task = {
        "kind": "token_classification",
        "train": "train.jsonl",
        "validation": "validation.jsonl",
        "text": "tokens",
        "label": "tags",
        "max_length": 24,
    }
    teacher = {**CONFIG["teacher"], "pretrain": None}
    teacher["finetune"] = {**teacher["finetune"], "epochs": 8}
    sections = {"task": task, "teacher": teacher, "distill": QUICK, "output": str(folder / "runs")}
    return write_config(folder, **{**sections, **changes})


def masked_config(folder: Path, **changes: Any) -> Path:
    task = {"kind": "mlm", "train": "corpus.txt", "holdout": 0.3, "max_length": 24, "scored": "all"}
    teacher = {**CONFIG["teacher"], "allow_weak": True}
    sections = {"task": task, "teacher": teacher, "distill": QUICK, "output": str(folder / "runs")}
    bench = {**CONFIG["bench"], "backends": ["pytorch"]}  # the export's own gate compares ONNX
    return write_config(folder, **{**sections, "bench": bench, **changes})


def run(path: Path) -> tuple[Path, RunFacts]:
    folder = pipeline.run(path, progress="quiet").path
    return folder, load_facts(folder / "report" / "facts.json")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "Child", Here)


def measured_alike(facts: RunFacts) -> None:
    """The quality of what really runs is that of the model in the run."""
    models: Mapping[str, Any] = {"teacher": facts.teacher, "student": facts.student}
    assert {row.role for row in facts.bench} == models.keys() and {row.status for row in facts.bench} == {
        "ok"
    }
    for row in facts.bench:
        for name, value in models[row.role].metrics.items():
            assert row.metrics[name].value == pytest.approx(value.value, rel=1e-3), (row.name, name)


def test_tags_are_learned_exported_and_reported(tmp_path: Path) -> None:
    write_rows(tmp_path)
    folder, facts = run(words_config(tmp_path))
    assert facts.task.metric == "entity_f1" and facts.task.labels == ("B-x", "I-x", "O")
    assert facts.teacher.metrics["entity_f1"].low > facts.task.baseline.metrics["entity_f1"] == 0.0
    measured_alike(facts)
    words = sum(facts.task.label_counts["validation"].values())
    assert sum(map(sum, facts.student.confusion)) == sum(facts.outcomes.values()) == words
    for example in facts.examples:
        told = [entry.split() for entry in example.gold.split(", ")]
        assert all(word in example.texts[0].split() and tag in TAGS for word, tag in told)
    page = (folder / "report.html").read_text()
    assert "Give each word one of 3 tags" in page and "of the words, Cohen" in page
    card = (folder / "student" / "README.md").read_text()
    assert "pipeline_tag: token-classification" in card
    for place, snippet in zip(("student", "export", "export"), snippets(card), strict=True):
        assert answers_of(snippet, folder / place) <= set(TAGS)


def test_masked_tokens_are_learned_exported_and_reported(tmp_path: Path) -> None:
    write_data(tmp_path)
    folder, facts = run(masked_config(tmp_path))
    assert (facts.task.metric, facts.task.labels, facts.student.confusion) == ("accuracy", (), ())
    assert facts.student.metrics["perplexity"].value < facts.student.sizes["vocab_size"]
    assert facts.task.baseline.metrics.keys() == facts.student.metrics.keys()
    measured_alike(facts)
    entries = AutoTokenizer.from_pretrained(folder / "student").get_vocab()
    assert facts.examples and all("[?]" in example.texts[0] for example in facts.examples)
    assert all(
        {example.gold, example.teacher, example.student} <= entries.keys() for example in facts.examples
    )
    kept = np.load(folder / "student" / "answers.npy")
    assert kept.shape[1] == 3, "no logits over the vocabulary are kept"
    assert not (folder / "checkpoints" / "teacher").exists(), "pretrained on masked tokens: that is the task"
    card = (folder / "student" / "README.md").read_text()
    assert "pipeline_tag: fill-mask" in card and "documents" in card
    for place, snippet in zip(("student", "export"), snippets(card), strict=True):
        assert answers_of(snippet, folder / place) <= entries.keys()
    whole = AutoModelForMaskedLM.from_pretrained(folder / "student")
    body = AutoModel.from_pretrained(folder / "student", add_pooling_layer=False)
    assert torch.equal(body.get_input_embeddings().weight, whole.get_output_embeddings().weight)


def snippets(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)


def answers_of(snippet: str, folder: Path) -> set[str]:
    """What a snippet of the card prints, run as a reader would."""
    told: list[list[str]] = []
    exec(snippet.replace('folder = "."', f"folder = {str(folder)!r}"), {"print": told.append})
    assert told[0]
    return set(told[0])


def test_a_masked_student_is_the_start_of_another_task(tmp_path: Path) -> None:
    write_data(tmp_path)
    pipeline.run(masked_config(tmp_path), until="student", progress="quiet")
    teacher = {"use": "pretrained", "path": str(tmp_path / "runs" / "tiny" / "student")}
    still = {**teacher, "finetune": {"epochs": 1, "optimizer": {"lr": 1e-12}}}
    path = write_config(tmp_path, name="next", teacher=still, output=str(tmp_path / "runs"))
    folder = pipeline.run(path, until="teacher", progress="quiet").path
    tables = [
        AutoModel.from_pretrained(place, add_pooling_layer=False).get_input_embeddings().weight
        for place in (folder / "teacher", tmp_path / "runs" / "tiny" / "student")
    ]
    torch.testing.assert_close(*tables)


def test_a_narrower_student_of_tags_starts_from_its_teacher(tmp_path: Path) -> None:
    write_rows(tmp_path)
    student = {
        "use": "transformer",
        "layers": 1,
        "width": 16,
        "initialise": {"from": "teacher", "layers": [2]},
    }
    folder = pipeline.run(words_config(tmp_path, student=student), until="student", progress="quiet").path
    assert (folder / "student" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("student", "words"),
    [
        (
            {"use": "bilstm", "layers": 1, "width": 8},
            "'bilstm' answers classification and regression, not mlm",
        ),
        ({"use": "transformer", "layers": 1, "vocabulary": 40}, "every piece of the vocabulary"),
        (
            {"use": "transformer", "layers": 1, "width": 16, "initialise": {"from": "teacher"}},
            "cannot be made narrower",
        ),
    ],
)
def test_students_that_cannot_answer_with_a_vocabulary_are_refused(
    student: dict[str, Any], words: str, tmp_path: Path
) -> None:
    write_data(tmp_path)
    with pytest.raises(ConfigError, match=words):
        pipeline.run(masked_config(tmp_path, student=student), until="student", progress="quiet")


def test_a_teacher_without_the_head_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    write_data(tmp_path)
    done = pipeline.run(
        write_config(tmp_path, output=str(tmp_path / "runs")), until="teacher", progress="quiet"
    )
    teacher = {"use": "pretrained", "path": str(done.path / "teacher")}
    with pytest.raises(ModelError, match="no whole masked language model"):
        pipeline.run(masked_config(tmp_path, teacher=teacher, name="mlm"), progress="quiet")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("task.metric=mcc", "contradict"),
        ("task.labels=[a]", "contradict"),
        ("task.kind=classification", "task.scored: all"),
        ("task.train=missing.txt", "no such file"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(override: str, words: str, tmp_path: Path) -> None:
    write_data(tmp_path)
    with pytest.raises(DistillkitError, match=words):
        pipeline.run(masked_config(tmp_path), overrides=[override], progress="quiet")


@pytest.mark.parametrize(("data", "kind"), [("train.jsonl", "token_classification"), ("corpus.txt", "mlm")])
def test_init_sees_tags_and_corpora_and_what_it_writes_can_be_planned(
    data: str, kind: str, tmp_path: Path
) -> None:
    write_data(tmp_path)
    write_rows(tmp_path)
    write_init(tmp_path / data, tmp_path / "new.yaml")
    small = ["teacher.size=tiny", "student.layers=1", "student.initialise={from: teacher, layers: [2]}"]
    loaded = recipe.load(tmp_path / "new.yaml", small, components=catalog.components)
    assert loaded.config.task.kind == kind
    plan = planning.plan(loaded)
    trained = [stage.stage for stage in plan.stages]
    assert trained == (["pretrain", "student"] if kind == "mlm" else ["teacher", "student"])
    assert (plan.majority > 0) == (kind == "token_classification")


def test_every_kind_has_a_place_in_the_schema() -> None:
    assert RunConfig.model_json_schema()["$defs"]["TaskSettings"]["properties"]["kind"]["enum"] == [
        "classification",
        "regression",
        "token_classification",
        "mlm",
        "text_to_text",
    ]
