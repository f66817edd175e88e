"""Whole runs whose answers are texts: from a pretrained folder to the report."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinytexts
from tinyrun import CONFIG, Here, write_config

from distillkit import catalog, pipeline, planning, recipe
from distillkit.bench import measure
from distillkit.errors import DistillkitError
from distillkit.report.facts import RunFacts, load_facts

TASK = {
    "kind": "text_to_text",
    "train": "train.jsonl",
    "validation": "validation.jsonl",
    "text": "source",
    "label": "target",
    "max_length": 12,
}
QUICK = {"batch": {"tokens": 600, "examples": 32}, "optimizer": {"lr": 1e-2}}
STUDENT = {"use": "seq2seq", "decoder_layers": 1, "dropout": 0.0, "initialise": {"from": "teacher"}}


def text_config(folder: Path, family: tinytexts.FamilyName = "t5", **changes: Any) -> Path:
    """A teacher that is fine-tuned here from random weights, and a student of half its decoder."""
    base = folder / "base"
    if not base.exists():
        tinytexts.save(base, tinytexts.model(family, width=32), family)
    distill = {
        **QUICK,
        "losses": {
            "gold": {"use": "gold", "weight": 0.5},
            "kd": {"use": "logits"},
            "read": {"use": "hidden_mse", "layer_map": "last", "weight": 0.1},
            "written": {"use": "hidden_cosine", "stack": "decoder", "weight": 0.1},
        },
        "epochs": 2,
    }
    sections = {
        "task": TASK,
        "teacher": {"use": "pretrained", "path": "base", "finetune": {**QUICK, "epochs": 8}},
        "student": STUDENT,
        "distill": distill,
        "output": str(folder / "runs"),
        "bench": {**CONFIG["bench"], "batch": [1], "new_tokens": 4, "backends": ["pytorch"]},
    }
    return write_config(folder, **{**sections, **changes})


def run(path: Path, **how: Any) -> tuple[Path, RunFacts]:
    folder = pipeline.run(path, progress="quiet", **how).path
    return folder, load_facts(folder / "report" / "facts.json")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "Child", Here)


def snippets(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)


def printed(snippet: str, folder: Path, text: str) -> list[str]:
    """What a snippet of the card prints of a text, run as a reader would."""
    told: list[list[str]] = []
    own = snippet.replace('folder = "."', f"folder = {str(folder)!r}").replace("a text to begin with", text)
    exec(own, {"print": told.append})
    return told[0]


def test_texts_are_learned_exported_and_reported(tmp_path: Path) -> None:
    tinytexts.write_rows(tmp_path)
    folder, facts = run(text_config(tmp_path))
    assert facts.task.metric == "accuracy" and facts.task.labels == ()
    assert facts.teacher.metrics["accuracy"].low > facts.task.baseline.metrics["accuracy"]
    metrics = facts.student.metrics
    assert {"exact_match", "bleu", "chrf", "rouge_l", "perplexity"} < metrics.keys()
    assert facts.difference.keys() == metrics.keys() == facts.teacher.metrics.keys()
    for name in metrics:
        apart = metrics[name].value - facts.teacher.metrics[name].value
        assert facts.difference[name].value == pytest.approx(apart, abs=1e-9)
    assert (facts.student.sizes["decoder_layers"], facts.teacher.sizes["decoder_layers"]) == (1, 2)
    assert {row.status for row in facts.bench} == {"ok"}
    for row in facts.bench:
        for name, value in {"teacher": facts.teacher, "student": facts.student}[row.role].metrics.items():
            assert row.metrics[name].value == pytest.approx(value.value, rel=1e-3), (row.name, name)
        assert all(cell.tokens_per_s and cell.first_ms and cell.first_ms < cell.p50_ms for cell in row.cells)
    texts = {role: json.loads((folder / role / "texts.json").read_text()) for role in ("teacher", "student")}
    rows = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    exact = sum(text == row["target"] for text, row in zip(texts["student"], rows, strict=True)) / len(rows)
    assert metrics["exact_match"].value == pytest.approx(exact) and exact > 0
    for example in facts.examples:
        place = next(at for at, row in enumerate(rows) if (row["source"],) == example.texts)
        assert example.gold == rows[place]["target"] and example.teacher != example.student
    card = (folder / "student" / "README.md").read_text()
    assert "text2text-generation" in card and "It writes a text for each text." in card
    for place, snippet in zip(("student", "export"), snippets(card), strict=True):
        for row, text in list(zip(rows, texts["student"], strict=True))[:3]:
            assert printed(snippet, folder / place, row["source"]) == [text]
    page = (folder / "report.html").read_text()
    assert "Write a text for each text" in page and "tokens a second" in page and "BLEU" in page


@pytest.mark.parametrize("choose", ["best", "nearest"])
def test_a_bart_learns_from_what_its_teacher_writes(choose: str, tmp_path: Path) -> None:
    tinytexts.write_rows(tmp_path, 60)
    written = {"beams": 2, "choose": choose}
    distill = {**QUICK, "losses": {"gold": {"use": "gold"}}, "epochs": 1, "written": written}
    config = text_config(
        tmp_path,
        "bart",
        task={**TASK, "prefix": "ba ", "max_target": 6, "edits": choose == "nearest"},
        distill=distill,
        teacher={"use": "pretrained", "path": "base", "allow_weak": True},
        student={"use": "seq2seq", "encoder_layers": 1, "decoder_layers": 1, "width": 8, "heads": 1},
    )
    folder = pipeline.run(config, until="student", progress="quiet").path
    (part,) = (folder / "cache").glob("written-*-00000")
    beams = [json.loads(line) for line in (part / "texts.jsonl").read_text().splitlines()]
    assert len(beams) == 60 and {len(beam) for beam in beams} == {2}
    assert all(len(text.split()) <= 6 for beam in beams for text in beam)
    assert (folder / "student" / "texts.json").is_file()
    scores = json.loads((folder / "student" / "scores.json").read_text())["scores"]
    assert ("edit_f05" in scores) == (choose == "nearest")
    again = pipeline.run(config, until="student", progress="quiet").path
    assert json.loads((again / "student" / "scores.json").read_text())["scores"] == scores
    pipeline.run(config, overrides=["seed=9"], until="student", progress="quiet")
    assert [one.name for one in (folder / "cache").glob("written-*")] == [
        part.name
    ]  # another seed, no other text


def test_a_student_of_one_run_teaches_the_next_and_can_be_answered_by_several(tmp_path: Path) -> None:
    """The student's folder is a teacher and a student's start; two of them are an ensemble, which answers
    targets and writes nothing.
    """
    tinytexts.write_rows(tmp_path, 40)
    base = tinytexts.save(tmp_path / "base", tinytexts.model())
    one = {"use": "pretrained", "path": str(base), "allow_weak": True}
    distill = {**QUICK, "losses": {"kd": {"use": "logits"}, "hard": {"use": "hard_labels"}}, "epochs": 1}
    given = {"distill": distill, "teacher": one, "student": {**STUDENT, "initialise": None}}
    first = pipeline.run(text_config(tmp_path, **given), until="student", progress="quiet").path
    distilled = {"use": "distilled", "path": str(first), "allow_weak": True}
    both = {"use": "ensemble", "members": {"a": one, "b": one}, "allow_weak": True}
    start = {"use": "pretrained", "path": str(first / "student")}
    for name, changes in (
        ("next", {"teacher": distilled, "student": start}),
        ("many", {"teacher": both, "student": start}),
    ):
        config = text_config(tmp_path, **{**given, **changes, "name": name})
        folder = pipeline.run(config, until="student", progress="quiet").path
        assert (folder / "teacher" / "texts.json").exists() == (name == "next")
    with pytest.raises(DistillkitError, match="answers, and writes no texts"):
        told = {**distill, "written": {}}
        pipeline.run(text_config(tmp_path, **{**given, "teacher": both, "distill": told, "name": "no"}))


KD = {"losses": {"kd": {"use": "logits"}}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distill": {**KD, "cache": {}}}, "answers to the tokens of a target are not kept"),
        ({"distill": {**KD, "augment": {"use": "masked", "model": "base"}}}, "augment and task.kind"),
        ({"distill": {**KD, "unlabelled": "train.jsonl"}}, "add `written: {}`"),
        ({"distill": {**KD, "corpus": "train.jsonl"}}, "it has no targets"),
        (
            {"distill": {**KD, "unlabelled": "train.jsonl", "written": {"choose": "nearest"}}},
            "those rows have no targets",
        ),
        ({"export": {"formats": ["fp32", "int8"]}}, "an artifact of two graphs has one form"),
        ({"distill": {"losses": {"x": {"use": "minilm"}}}}, "minilm is for classification"),
        ({"distill": {"losses": {"x": {"use": "pkd"}}}}, "pkd is for classification"),
        ({"student": {"use": "transformer", "layers": 1}}, "use: seq2seq for a student"),
        ({"student": {"use": "exits", "of": {"use": "transformer", "layers": 2}, "at": [1]}}, "text_to_text"),
        ({"teacher": {"use": "bert", "size": "tiny"}}, "teacher 'bert' answers"),
        ({"teacher": {"use": "electra", "size": "small"}}, "teacher 'electra' answers"),
        ({"task": {**TASK, "text": ["source", "target"]}}, "name the one column of the source"),
        ({"task": {**TASK, "labels": ["a"]}}, "task.labels and task.kind"),
        ({"task": {**TASK, "metric": "mcc"}}, "task.metric: mcc"),
        ({"task": {**TASK, "label": "missing"}}, "column 'missing' not found"),
        ({"task": {**TASK, "max_target": 4000}}, "max_target 4000 is more than the"),
        (
            {"task": {**TASK, "kind": "classification", "prefix": "x"}},
            "only text_to_text writes texts",
        ),
        (
            {"task": {**TASK, "kind": "classification"}, "distill": {**KD, "written": {}}},
            "nothing is written there",
        ),
        (
            {"task": {**TASK, "kind": "classification", "validation": "train.jsonl"}},
            "is an encoder-decoder; this needs an encoder",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_in_words(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    tinytexts.write_rows(tmp_path, 12)
    if changes.get("task", {}).get("kind") == "classification" and "prefix" not in changes["task"]:
        changes = {**changes, "student": {"use": "transformer", "layers": 1}}
    config = text_config(tmp_path, **{"distill": KD, **changes})
    with pytest.raises(DistillkitError) as caught:
        pipeline.run(config, until="student", progress="quiet")
    assert words in str(caught.value), str(caught.value)


def test_members_of_other_tokenizers_are_refused(tmp_path: Path) -> None:
    tinytexts.write_rows(tmp_path, 12)
    one, other = tmp_path / "one", tmp_path / "other"
    tinytexts.save(one, tinytexts.model())
    tinytexts.save(other, tinytexts.model())
    tinytexts.tokenizer(words=tinytexts.WORDS[::-1]).save_pretrained(other)
    members = {place.name: {"use": "pretrained", "path": str(place)} for place in (one, other)}
    config = text_config(tmp_path, teacher={"use": "ensemble", "members": members}, distill=KD)
    with pytest.raises(DistillkitError, match="text_to_text is answered token by token"):
        pipeline.run(config, until="student", progress="quiet")


@pytest.mark.parametrize(
    "student", [STUDENT, {"use": "rnn_seq2seq", "width": 32}], ids=lambda one: one["use"]
)
def test_a_plan_counts_both_stacks_and_shows_what_is_compared(
    student: dict[str, Any], tmp_path: Path
) -> None:
    tinytexts.write_rows(tmp_path, 40)
    loaded = recipe.load(text_config(tmp_path, student=student), [], components=catalog.components)
    plan = planning.plan(loaded)
    lines = {line.loss: line for line in plan.layer_map}
    assert lines["written"].student == "decoder state 1 of 1, 32 wide"
    assert lines["written"].teacher == "decoder state 2 of 2, 32 wide"
    assert lines["read"].teacher == "state 2 of 2, 32 wide"
    assert [stage.stage for stage in plan.stages] == ["teacher", "student"]
    assert plan.student.parameters < plan.teacher.parameters and plan.student.flops < plan.teacher.flops
    assert all(stage.flops > 0 for stage in plan.stages)


@pytest.mark.slow
def test_spelling_is_learned_and_half_a_decoder_keeps_most_of_it(tmp_path: Path) -> None:
    """A letter is left out of each word of a small lexicon; both models must put it back far better than
    chance, and what runs in ONNX Runtime as well as what runs in PyTorch.
    """
    letters = [*"abcdefghijklmnopqrstuvwxyz", "_"]
    generator = np.random.default_rng(0)
    for split, count in (("train", 1500), ("validation", 150)):
        lines = []
        for _ in range(count):
            word = str(generator.choice(tinytexts.LEXICON))
            gap = int(generator.integers(len(word)))
            spoiled = word[:gap] + "_" + word[gap + 1 :]
            lines.append(json.dumps({"source": " ".join(spoiled), "target": " ".join(word)}) + "\n")
        (tmp_path / f"{split}.jsonl").write_text("".join(lines))
    base = tmp_path / "base"
    made = tinytexts.model(width=64, vocab=len(letters) + 4)
    made.save(base, tinytexts.LABELS)
    tinytexts.tokenizer(words=letters).save_pretrained(base)
    how = {"batch": {"tokens": 1600, "examples": 64}, "optimizer": {"lr": 3e-3}}
    shared = {
        "bench": {**CONFIG["bench"], "batch": [1, 4], "new_tokens": 8},
        "task": {**TASK, "max_length": 16, "generation": {"beams": 3}},
        "teacher": {"use": "pretrained", "path": "base", "finetune": {**how, "epochs": 20}},
    }
    losses = {"gold": {"use": "gold"}, "kd": {"use": "logits", "weight": 2}}
    _, facts = run(text_config(tmp_path, **shared, distill={**how, "epochs": 6, "losses": losses}))
    rows = {row.name: row for row in facts.bench}
    assert {row.status for row in facts.bench} == {"ok"} and len(rows) == 4
    for metric in ("exact_match", "chrf", "cross_entropy"):
        for role in ("teacher", "student"):
            both = [rows[f"{role}-{one}"].metrics[metric].value for one in ("pytorch", "onnxruntime")]
            assert both[0] == pytest.approx(both[1], abs=0.01)
    taught, learned = (one.metrics["exact_match"].value for one in (facts.teacher, facts.student))
    assert taught > 0.8 and learned > 0.9 * taught


@pytest.mark.slow
def test_a_recurrent_student_is_taught_exported_timed_and_described(tmp_path: Path) -> None:
    """It is measured in the run's own process where PyTorch runs it, and its card shows no transformers."""
    tinytexts.write_rows(tmp_path)
    student = {"use": "rnn_seq2seq", "width": 24, "window": 2, "dropout": 0.0}
    bench = {**CONFIG["bench"], "batch": [1], "new_tokens": 4}
    folder, facts = run(text_config(tmp_path, student=student, bench=bench))
    assert {row.status for row in facts.bench} == {"ok"} and len(facts.bench) == 4
    for row in facts.bench:
        judged = {"teacher": facts.teacher, "student": facts.student}[row.role]
        assert row.metrics["chrf"].value == pytest.approx(judged.metrics["chrf"].value, rel=1e-3), row.name
        assert all(cell.tokens_per_s and cell.first_ms and cell.first_ms < cell.p50_ms for cell in row.cells)
    rows = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    texts = json.loads((folder / "student" / "texts.json").read_text())
    (snippet,) = snippets((folder / "student" / "README.md").read_text())
    for row, text in list(zip(rows, texts, strict=True))[:3]:
        assert printed(snippet, folder / "export", row["source"]) == [text]
