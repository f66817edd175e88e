"""Teachers that answer and show nothing else: callables on text, and files of predictions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from tiny import LABELS, batch, rows
from tinyrun import CONFIG, write_config, write_data

from distillkit import pipeline
from distillkit.data.tasks import row_id
from distillkit.data.tokenizers import load_tokenizer, train_wordpiece
from distillkit.encoder import Encoder
from distillkit.errors import ConfigError, DataError, DistillkitError, ModelError
from distillkit.model import Teacher
from distillkit.settings import Labels
from distillkit.teachers.blackbox import BlackBox
from distillkit.teachers.custom import Custom
from distillkit.teachers.itself import Itself
from distillkit.teachers.peers import Peers
from distillkit.teachers.predictions import Predictions
from distillkit.types import Access, Spec, Want

ANSWERS = {"gold": {"use": "gold", "weight": 0.5}, "kd": {"use": "logits", "temperature": 2.0}}
STUDENT = {"use": "transformer", "layers": 1, "width": 16, "heads": 2, "dropout": 0.0}


def lines(folder: Path, made: list[dict[str, Any]], name: str = "told.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(one) + "\n" for one in made))
    return str(path)


def opened(path: str, labels: Labels = LABELS, **settings: Any) -> Teacher:
    return Predictions(path=path, **settings).teacher(Path(), labels)


def test_scores_are_found_by_text_whatever_their_order_and_that_of_their_columns(tmp_path: Path) -> None:
    given = rows(6)
    shares = np.linspace(0.1, 0.9, 6)
    made = [
        {"good": float(share), "note": "x", "text": text, "bad": 1 - float(share)}
        for (text,), share in zip(given.texts, shares, strict=True)
    ]
    teacher = opened(lines(tmp_path, made[::-1]))
    told = teacher.outputs(batch(tmp_path), want=Want()).logits.softmax(-1)
    assert torch.allclose(told[:, 1], torch.tensor(shares, dtype=torch.float32), atol=1e-6)
    assert teacher.access is Access.SCORES and not teacher.live
    logits = [{"text": one["text"], "bad": -2.0, "good": 3.5} for one in made]
    told = opened(lines(tmp_path, logits), scale="logits").outputs(batch(tmp_path), want=Want()).logits
    assert torch.equal(told, torch.tensor([[-2.0, 3.5]]).expand(6, 2))


def test_labels_are_found_by_id_and_nothing_deeper_is_given(tmp_path: Path) -> None:
    made = [{"id": row, "says": LABELS.names[row % 2]} for row in range(6)]
    teacher = opened(lines(tmp_path, made), id="id", label="says")
    told = teacher.outputs(batch(tmp_path), want=Want(access=Access.LABELS)).logits
    assert told.argmax(-1).tolist() == [0, 1, 0, 1, 0, 1] and teacher.access is Access.LABELS
    with pytest.raises(ModelError, match="gives LABELS was asked for more"):
        teacher.outputs(batch(tmp_path), want=Want(access=Access.FINAL_STATES))


def test_a_regression_takes_one_number(tmp_path: Path) -> None:
    made = [{"text": text, "value": 0.5 * row} for row, (text,) in enumerate(rows(6).texts)]
    path, labels = lines(tmp_path, made), Labels(kind="regression")
    told = opened(path, labels, score="value").outputs(batch(tmp_path), want=Want()).logits
    assert told[:, 0].tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    with pytest.raises(ConfigError, match="no column holds its answer"):
        opened(path, labels)
    with pytest.raises(ConfigError, match="answers are classes"):
        opened(path, score="value")
    with pytest.raises(ConfigError, match="not token_classification"):
        opened(path, Labels(kind="token_classification", names=("O",)), label="value")


@pytest.mark.parametrize(
    ("second", "settings", "words"),
    [
        ({"text": "a", "bad": 0.9, "good": 0.3}, {}, (":2", "0.9, 0.3 are not probabilities")),
        ({"text": "a", "bad": 1.2, "good": -0.2}, {}, (":2", "not probabilities")),
        ({"text": "a", "bad": "much", "good": 0.3}, {}, (":2", "column 'bad'", "'much' is not a number")),
        ({"text": "a", "bad": None, "good": 0.3}, {}, (":2", "column 'bad'", "None is not a number")),
        ({"text": "a", "bad": True, "good": 0.3}, {"scale": "logits"}, ("True is not a number",)),
        ({"text": 3, "bad": 0.5, "good": 0.5}, {}, (":2", "column 'text' is int 3")),
        ({"text": "b", "bad": 0.4, "good": 0.6}, {}, (":2", "its text stands at line 1 too")),
        ({"text": "a", "label": "fine"}, {"label": "label"}, (":2", "'fine' is not one of the task's 2")),
        ({"id": None, "label": "bad"}, {"label": "label", "id": "id"}, (":2", "the id is None")),
        ({"id": 0, "label": "good"}, {"label": "label", "id": "id"}, ("its id stands at line 1 too",)),
    ],
)
def test_a_bad_line_is_told_with_its_place(
    tmp_path: Path, second: dict[str, Any], settings: dict[str, Any], words: tuple[str, ...]
) -> None:
    first = {"id": 0, "text": "b", "bad": 0.5, "good": 0.5, "label": "bad"}
    with pytest.raises(DataError) as caught:
        opened(lines(tmp_path, [first, second]), **settings)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_column_that_is_not_there_is_told(tmp_path: Path) -> None:
    path = lines(tmp_path, [{"text": "a", "god": 0.5, "bad": 0.5}])
    with pytest.raises(ConfigError, match="'good'"):
        opened(path)


def test_rows_without_an_answer_are_told_before_anything_is_trained(tmp_path: Path) -> None:
    made = [{"text": text, "label": "bad"} for (text,) in rows(4).texts]
    teacher = opened(lines(tmp_path, made), label="label")
    teacher.check_rows(rows(4), "train")
    with pytest.raises(DataError, match=r"no answer for 2 of 6 train rows \(matched by their texts\)"):
        teacher.check_rows(rows(6), "train")
    with pytest.raises(DataError, match="no answer for 1 of the rows of a batch"):
        teacher.outputs(batch(tmp_path), want=Want(access=Access.LABELS))


def test_an_id_is_a_number_or_a_name() -> None:
    assert row_id(7) == row_id("7") == row_id(" 7 ") == 7
    assert row_id("07") != 7 and row_id("a-7") == row_id("a-7") != row_id("a-8")
    for name in ("07", "a-7", "9" * 30, "-1"):
        assert 2**60 <= row_id(name) < 2**61
    for nothing in ("", " ", None, 1.5, True, [1]):
        with pytest.raises(ValueError, match="the id is"):
            row_id(nothing)


def says(value: Any) -> Callable[[list[str]], Any]:
    return lambda texts: [value] * len(texts)


@pytest.mark.parametrize(
    ("function", "gives", "words"),
    [
        (says([0.2, 0.8, 0.0]), "probabilities", ("shape [6, 2]", "[6, 3]")),
        (says([0.2, 0.9]), "probabilities", ("0.2, 0.9 are not probabilities",)),
        (says([0.2, float("nan")]), "logits", ("NaN", "example ids")),
        (says("great"), "labels", ("'great'", "['bad', 'good']")),
        (says("great"), "logits", ("an array of numbers",)),
        (lambda texts: ["bad"], "labels", ("6 class names", "got 1")),
        (lambda texts: np.random.default_rng().normal(size=(len(texts), 2)), "logits", ("the same answer",)),
    ],
)
def test_a_broken_answer_is_told_as_expected_and_got(
    tmp_path: Path, function: Any, gives: Any, words: tuple[str, ...]
) -> None:
    teacher = BlackBox(function, version="1", gives=gives).teacher(Path(), LABELS)
    with pytest.raises(DistillkitError) as caught:
        teacher.outputs(batch(tmp_path), want=Want(access=Access.LABELS))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_classes_of_a_pipeline_are_matched_by_name(tmp_path: Path) -> None:
    given = rows(40)
    names = [("zzz" if label == 0 else "aaa") for label in given.labels]
    texts = [text for (text,) in given.texts]
    labels = Labels(kind="classification", names=("zzz", "aaa"))  # not in the pipeline's order
    fitted = make_pipeline(TfidfVectorizer(), LogisticRegression(C=100)).fit(texts, names)
    told = BlackBox.of(fitted, version="1").teacher(Path(), labels).outputs(batch(tmp_path), want=Want())
    shares = fitted.predict_proba(texts[:6])[:, ::-1]
    assert np.allclose(told.logits.softmax(-1).numpy(), shares, atol=1e-6)
    hard = make_pipeline(TfidfVectorizer(), RidgeClassifier()).fit(texts, names)
    teacher = BlackBox.of(hard, version="1").teacher(Path(), labels)
    assert teacher.access is Access.LABELS
    said = teacher.outputs(batch(tmp_path), want=Want(access=Access.LABELS)).logits.argmax(-1)
    assert [labels.names[index] for index in said] == hard.predict(texts[:6]).tolist()
    with pytest.raises(ModelError, match="matched by name"):
        BlackBox.of(fitted, version="1").teacher(Path(), LABELS)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(here: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (here / f"{split}.jsonl").read_text().splitlines()]


def run(here: Path, name: str, *, until: str = "student", parts: Any = None, **changes: Any) -> Path:
    distill = {**CONFIG["distill"], "losses": changes.pop("losses", ANSWERS)}
    config = write_config(here, name=name, student=STUDENT, distill=distill, **changes)
    return pipeline.run(config, parts=parts, progress="quiet", until=until).path


def test_a_file_of_a_models_answers_teaches_what_the_model_teaches(here: Path) -> None:
    """White box, black box and file give the same student; the file is joined by text and by id."""
    made = run(here, "made", until="teacher")
    tokenizer, model = str(made / "tokenizer"), Encoder.load(made / "teacher").eval()
    reader = load_tokenizer(made / "tokenizer")

    def logits(texts: list[str]) -> np.ndarray:
        told = reader(texts, padding=True, truncation=True, max_length=24, return_tensors="pt")
        with torch.no_grad():
            return np.asarray(model.model(**told).logits.numpy())

    spec = Spec(0, 0, 0, 0, vocab_size=len(reader), num_labels=2, max_length=512)
    white = run(
        here,
        "white",
        parts=pipeline.Parts(
            teacher=Custom(
                lambda given: {"logits": model.outputs(given, want=Want()).logits},
                spec=spec,
                version="1",
                tokenizer=made / "tokenizer",
            )
        ),
    )
    box = BlackBox(logits, version="1", gives="logits", tokenizer=Path(tokenizer))
    black = run(here, "black", parts=pipeline.Parts(teacher=box))
    every = [one for split in ("train", "validation") for one in read(here, split)]
    scores = [
        dict(zip(LABELS.names, row, strict=True)) for row in logits([one["text"] for one in every]).tolist()
    ]
    by_text = lines(here, [{"text": one["text"], **score} for one, score in zip(every, scores, strict=True)])
    teacher = {"use": "predictions", "path": by_text, "scale": "logits", "tokenizer": tokenizer}
    text = run(here, "text", teacher=teacher)
    number = 0
    for split in ("train", "validation"):
        for one in (given := read(here, split)):
            one["key"] = f"row {number}"
            number += 1
        lines(here, given, f"{split}.jsonl")
    by_id = lines(
        here, [{"key": f"row {index}", **score} for index, score in enumerate(scores)][::-1], "ids.jsonl"
    )
    task = {**CONFIG["task"], "id": "key"}
    ids = run(here, "ids", task=task, teacher={**teacher, "path": by_id, "id": "key"})
    expected = load_file(white / "student" / "model.safetensors")
    for other in (black, text, ids):
        for name, tensor in load_file(other / "student" / "model.safetensors").items():
            assert torch.allclose(tensor, expected[name], atol=2e-4), (other, name)


def test_a_scikit_learn_pipeline_teaches_to_the_report(here: Path) -> None:
    """Labels alone: the student learns them, and the report claims no confidence of the teacher's."""
    train = read(here, "train")
    hard = make_pipeline(TfidfVectorizer(), RidgeClassifier())
    hard.fit([one["text"] for one in train], [one["label"] for one in train])
    parts = pipeline.Parts(teacher=BlackBox.of(hard, version="1"))
    losses = {"hard": {"use": "hard_labels"}}
    folder = run(here, "labels", until="report", parts=parts, losses=losses)
    facts = (
        json.loads((folder / "report" / "facts.json").read_text())
        if (folder / "report" / "facts.json").exists()
        else {}
    )
    page = (folder / "report.html").read_text()
    assert "KL divergence" not in page, facts
    with pytest.raises(ConfigError, match="needs SCORES of the teacher, which gives no more than LABELS"):
        run(here, "scores", parts=parts)


def test_what_a_file_lacks_stops_the_run_before_training(here: Path) -> None:
    every = [one for split in ("train", "validation") for one in read(here, split)][5:]
    path = lines(here, [{"text": one["text"], "says": one["label"]} for one in every])
    teacher = {"use": "predictions", "path": path, "label": "says"}
    with pytest.raises(DataError, match="no answer for 5 of 160 train rows"):
        run(here, "lacking", teacher=teacher, losses={"hard": {"use": "hard_labels"}})
    assert not (here / "runs" / "lacking" / "student").exists()
    folder = run(here, "alone", teacher=teacher, losses={"gold": {"use": "gold"}})
    assert (folder / "student" / "model.safetensors").exists(), "a teacher that no loss asks needs no answer"


def test_an_id_in_two_files_or_lines_is_refused(here: Path) -> None:
    for split in ("train", "validation"):
        lines(here, [{**one, "key": row} for row, one in enumerate(read(here, split))], f"{split}.jsonl")
    with pytest.raises(DataError, match=r"validation row .* has an id that stands in train too"):
        run(here, "twice", task={**CONFIG["task"], "id": "key"})
    lines(here, [{**one, "key": 1} for one in read(here, "train")][:3], "train.jsonl")
    with pytest.raises(DistillkitError, match="the id stands at line 1 too"):
        run(here, "lines", task={**CONFIG["task"], "id": "key"})


def test_rows_that_a_phase_adds_are_refused_or_asked_for_beforehand(here: Path) -> None:
    """Ids of added rows are the run's own: they must not be taken for those of the file."""
    number = 0
    every = []
    for split in ("train", "validation"):
        given = read(here, split)
        for one in given:
            one["key"], number = number, number + 1
        every += given
        lines(here, given, f"{split}.jsonl")
    path = lines(here, [{**one, "says": one["label"]} for one in every])
    lines(here, [{"text": f"so la {index}"} for index in range(5)], "more.jsonl")
    task = {**CONFIG["task"], "id": "key"}
    losses = {"hard": {"use": "hard_labels"}}
    teacher = {"use": "predictions", "path": path, "label": "says"}

    def start(name: str, told: Any, **phase: Any) -> Path:
        distill = {**CONFIG["distill"], "losses": losses, **phase}
        config = write_config(here, name=name, student=STUDENT, distill=distill, task=task, teacher=told)
        return pipeline.run(config, progress="quiet", until="student").path

    for added in ({"unlabelled": "more.jsonl"}, {"corpus": "corpus.txt"}):
        with pytest.raises(ConfigError, match=f"distill.{next(iter(added))}.*found by id"):
            start("ids", {**teacher, "id": "key"}, **added)
    with pytest.raises(ConfigError, match=r"distill.corpus.*found by text"):
        start("texts", teacher, corpus="corpus.txt")
    with pytest.raises(DataError, match="no answer for 5 of 5 unlabelled rows"):
        start("texts", teacher, unlabelled="more.jsonl")
    lines(here, [{"text": f"so la {index}", "says": "bad"} for index in range(5)], "known.jsonl")
    whole = Path(path).read_text() + (here / "known.jsonl").read_text()
    (here / "told.jsonl").write_text(whole)
    assert (start("texts", teacher, unlabelled="more.jsonl") / "student").exists()


def test_texts_that_the_task_cuts_are_found_all_the_same(here: Path) -> None:
    every = [one for split in ("train", "validation") for one in read(here, split)]
    longer = [{**one, "text": f"{one['text']} {'x' * 40} {index}"} for index, one in enumerate(every)]
    lines(here, longer[:160], "train.jsonl")
    lines(here, longer[160:], "validation.jsonl")
    path = lines(here, [{"text": one["text"], "says": one["label"]} for one in longer])
    teacher = {"use": "predictions", "path": path, "label": "says"}
    run(
        here,
        "cut",
        until="teacher",
        teacher=teacher,
        losses={"hard": {"use": "hard_labels"}},
        task={**CONFIG["task"], "max_chars": 45},
    )


def test_a_missing_file_and_another_tokenizer_are_told_and_noticed(here: Path, tmp_path: Path) -> None:
    with pytest.raises(DistillkitError, match=r"nowhere\.jsonl"):
        run(here, "none", teacher={"use": "predictions", "path": "nowhere.jsonl"})
    with pytest.raises(ModelError, match="expected 6 class names, got NoneType"):
        BlackBox(says_nothing, version="1", gives="labels").teacher(Path(), LABELS).outputs(
            batch(tmp_path / "rows"), want=Want()
        )
    folder = tmp_path / "read-by"
    prints = []
    for size in (60, 90):
        train_wordpiece((text for (text,) in rows(40).texts), vocab_size=size).save_pretrained(folder)
        sources = [
            BlackBox(says_nothing, version="1", tokenizer=folder),
            Itself(tokenizer=str(folder)),
            Peers(peers={}, tokenizer=str(folder)),
            Predictions(path=str(here / "train.jsonl"), tokenizer=str(folder)),
        ]
        prints.append([source.fingerprint() for source in sources])
    assert all(first != second for first, second in zip(*prints, strict=True))


def says_nothing(texts: list[str]) -> None:
    return None
