"""Folders that others open: the artifact in optimum, the student in transformers, with the same answers.

optimum's ONNX half stayed with transformers 4, so it gets an environment of its own; that also shows what an
older transformers reads.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from installations import MAX_LENGTH, answered, install, made, new_environment, pinned, real_texts

from distillkit.runtime import Artifact, ClassAnswer, TagsAnswer
from distillkit.settings import Labels

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NAMES = ("positive", "mixed", "negative")
SUFFIX = {"classification": "SequenceClassification", "token_classification": "TokenClassification"}
OPEN = """
import importlib, json, sys
from transformers import AutoTokenizer

told = json.load(sys.stdin)

def units(encoded, place, split):
    if not split:
        return [None]
    first = {}
    for token, word in enumerate(encoded.word_ids(place)):
        if word is not None:
            first.setdefault(word, token)
    return list(first.values())

def answers(model, tokenizer, rows, split):
    for start in range(0, len(rows), 16):
        encoded = tokenizer(
            rows[start : start + 16],
            is_split_into_words=split,
            truncation=True,
            max_length=told["max_length"],
            padding=True,
            return_tensors="pt",
        )
        odds = model(**encoded).logits.softmax(-1)
        for place, row in enumerate(odds):
            of_units = [row if unit is None else row[unit] for unit in units(encoded, place, split)]
            yield [[model.config.id2label[int(one.argmax())], *one.tolist()] for one in of_units]

found = []
for library, name, folder in told["opened"]:
    model = getattr(importlib.import_module(library), name).from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found.append(list(answers(model, tokenizer, told["rows"], told["split"])))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def with_optimum(tmp_path_factory: pytest.TempPathFactory) -> str:
    """torch goes first and by itself, as in the Makefile."""
    python = new_environment(tmp_path_factory.mktemp("optimum") / "venv")
    install(python, pinned("torch"))
    install(python, "optimum-onnx==0.1.0", "transformers==4.57.6", "onnxruntime")
    return python


@pytest.fixture(scope="module", params=["bert classification", "roberta classification", "bert tags"])
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    family, what = request.param.split()
    kind = "classification" if what == "classification" else "token_classification"
    folder = tmp_path_factory.mktemp("made")
    made(folder, family, Labels(kind=kind, names=NAMES))
    other = folder / "export" / "formats" / "int8"
    other.mkdir(parents=True)
    (other / "model.onnx").write_bytes(b"not the form to open")
    return folder, kind


def rows(kind: str) -> list[Any]:
    texts = real_texts(300)
    return texts if kind == "classification" else [text.split() for text in texts]


def compared(folder: Path, kind: str, python: str, opened: list[tuple[str, str, str]]) -> None:
    """What others answer to real rows is what the runtime answers, class by class or word by word."""
    given = rows(kind)
    split = kind == "token_classification"  # to some tokenizers the space is a part of the word
    told = [[words[0], *(f" {word}" for word in words[1:])] for words in given] if split else given
    asked = {"opened": opened, "rows": told, "split": split, "max_length": MAX_LENGTH}
    expected = Artifact.load(folder / "export", threads=1).predict(given)
    assert any(answer.truncated for answer in expected)
    labels = set()
    for found in answered(python, OPEN, asked, folder):
        for answer, units in zip(expected, found, strict=True):
            if isinstance(answer, ClassAnswer):
                [(label, *odds)] = units
                assert label == answer.label
                assert odds == pytest.approx(list(answer.probabilities.values()), abs=1e-5)
                labels.add(label)
            else:
                assert isinstance(answer, TagsAnswer)
                tags = [tag for tag in answer.tags if tag is not None]
                assert [unit[0] for unit in units] == tags
                sure = [one for one in answer.probabilities if one is not None]
                assert [max(unit[1:]) for unit in units] == pytest.approx(sure, abs=1e-5)
                labels |= set(tags)
    assert labels == set(NAMES)


def test_the_student_opens_in_transformers_with_the_artifacts_answers(folders: tuple[Path, str]) -> None:
    folder, kind = folders
    student = ("transformers", f"AutoModelFor{SUFFIX[kind]}", str(folder / "student"))
    compared(folder, kind, sys.executable, [student])


def test_the_artifact_opens_in_optimum_with_its_own_answers(
    folders: tuple[Path, str], with_optimum: str
) -> None:
    """And the student in the transformers that optimum has."""
    folder, kind = folders
    artifact = ("optimum.onnxruntime", f"ORTModelFor{SUFFIX[kind]}", str(folder / "export"))
    student = ("transformers", f"AutoModelFor{SUFFIX[kind]}", str(folder / "student"))
    compared(folder, kind, with_optimum, [artifact, student])
