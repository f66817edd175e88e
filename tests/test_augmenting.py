"""The masked language model behind augmentation, its copies on disk, and runs that read them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from tinyrun import CONFIG, write_config, write_data
from transformers import BertForMaskedLM

from distillkit import augmenting, catalog, pipeline, planning, recipe
from distillkit.augmenting import Augmentation, Known, Place, augment, open_replacer
from distillkit.data.tasks import Rows, load_unlabelled
from distillkit.errors import ConfigError, DataError, DistillkitError, ModelError, StoppedError
from distillkit.settings import Augment, MaskedAugment, TaskSettings, TinybertAugment
from distillkit.types import IGNORED

CPU = torch.device("cpu")
HOW = {"tinybert": TinybertAugment, "masked": MaskedAugment}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked language model with random weights and the tokenizer of the tiny texts."""
    folder = tmp_path_factory.mktemp("mlm")
    torch.manual_seed(0)
    made = BertForMaskedLM(tiny.config(width=32))
    with torch.no_grad():
        made.bert.embeddings.word_embeddings.weight.normal_(std=1.0)
    made.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def how(model: Path, settings: Augment, *, vectors: Path | None = None, seed: int = 0) -> Augmentation:
    return Augmentation(settings, model, vectors, max_length=32, seed=seed)


def place(cache: Path, check: Callable[[], None] = lambda: None) -> Place:
    return Place(CPU, cache, check, tell=lambda done, total: None)


def pairs(count: int) -> Rows:
    """Two texts a row; some words are of several pieces."""
    one, other = tiny.texts(count, seed=1), tiny.texts(count, seed=2)
    texts = tuple((f"{a}, {b[:5]}{a[:3]}", b) for (a,), (b,) in zip(one, other, strict=True))
    return Rows(np.arange(count) * 3, texts, np.arange(count) % 2, f"{count} pairs")


def test_copies_are_those_of_a_slow_loop_over_rows_and_words(model: Path, tmp_path: Path) -> None:
    """With probability 1 and one candidate nothing is left to chance: the oracle asks one word at a time,
    without a batch, and takes the likeliest word.
    """
    settings = TinybertAugment(use="tinybert", copies=3, candidates=1, probability=1.0, stop_words=["good"])
    tokenizer, generator = tiny.tokenizer(), np.random.default_rng(3)
    words = [word for word in (*tiny.WORDS, "good") if len(tokenizer.tokenize(word)) == 1]
    texts = tuple((" ".join(generator.choice(words, size=size)) + " good",) for size in range(1, 12))
    rows = Rows(np.arange(11), texts, None, "some")
    replacer = open_replacer(rows, how(model, settings), place(tmp_path))
    made = BertForMaskedLM.from_pretrained(model).eval()
    copies = replacer.copies(rows, range(11))
    assert [copy.texts for copy in copies] == [(_slow(made, text),) for (text,) in texts]


def _slow(made: BertForMaskedLM, text: str) -> str:
    tokenizer = tiny.tokenizer()
    vocabulary = {entry: word for word, entry in tokenizer.get_vocab().items() if word.isalpha()}
    words = text.split(" ")
    new = []
    for index, word in enumerate(words):
        masked = " ".join([*words[:index], "[MASK]", *words[index + 1 :]])
        encoded = tokenizer(masked, text, return_tensors="pt")
        with torch.no_grad():
            scores = made(**encoded).logits[0, index + 1]
        own = tokenizer.convert_tokens_to_ids(word)
        best = max((entry for entry in vocabulary if entry != own), key=lambda entry: float(scores[entry]))
        new.append(word if word == "good" else vocabulary[best])
    return " ".join(new)


@pytest.mark.parametrize("use", list(HOW))
def test_a_copy_does_not_depend_on_how_much_is_asked_at_once(
    use: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pairs(9)
    replacer = open_replacer(rows, how(model, HOW[use](use=use, copies=4)), place(tmp_path))
    together = list(replacer.copies(rows, range(9)))
    monkeypatch.setattr(augmenting, "BATCH_TOKENS", 1)
    assert list(replacer.copies(rows, range(9))) == together
    assert [copy for row in range(9) for copy in replacer.copies(rows, [row])] == together


def test_a_stopped_augmentation_goes_on_at_the_next_part(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augmenting, "PART_ROWS", 3)
    rows, asked = pairs(8), how(model, MaskedAugment(use="masked", copies=3, probability=0.5))
    whole = augment(rows, asked, place(tmp_path / "whole"))
    calls = []

    def stop() -> None:
        calls.append(1)
        if len(calls) > 1:
            raise StoppedError("stopped")

    monkeypatch.setattr(augmenting, "BATCH_TOKENS", 10_000)
    cache = tmp_path / "stopped"
    with pytest.raises(StoppedError):
        augment(rows, asked, place(cache, stop))
    (kept,) = cache.iterdir()
    written = (kept / "copies.jsonl").stat().st_mtime_ns
    made = augment(rows, asked, place(cache))
    assert made.texts == whole.texts and made.digest == whole.digest and len(list(cache.iterdir())) == 3
    assert (kept / "copies.jsonl").stat().st_mtime_ns == written, "a whole part is not made again"

    def never() -> None:
        raise AssertionError("everything is there")

    assert augment(rows, asked, place(cache, never)).texts == whole.texts
    (kept / "copies.jsonl").write_text("")
    assert augment(rows, asked, place(cache)).texts == whole.texts, "a spoiled part is made again"


def test_the_digest_covers_rows_model_settings_length_and_seed(model: Path, tmp_path: Path) -> None:
    rows, settings = pairs(3), MaskedAugment(use="masked", copies=2)
    one = how(model, settings)
    other = tmp_path / "other"
    torch.manual_seed(1)
    BertForMaskedLM(tiny.config(width=16)).save_pretrained(other)
    tiny.tokenizer().save_pretrained(other)
    changed = [
        (replace(rows, digest="others"), one),
        (rows, replace(one, model=other)),
        (rows, replace(one, settings=MaskedAugment(use="masked", copies=3))),
        (rows, replace(one, max_length=16)),
        (rows, replace(one, seed=1)),
    ]
    made = [augment(some, asked, place(tmp_path / "cache")).digest for some, asked in [(rows, one), *changed]]
    assert len(set(made)) == len(made)


def test_neighbours_are_the_nearest_means_of_pieces() -> None:
    known = [Known((0,), "a"), Known((1, 2), "bc"), Known((1, 3), "bd"), Known((4,), "e")]
    table = np.eye(5, dtype=np.float32)
    table[4], table[3] = [0, 0, 1, 0, 0], [0.5, 0, 0, 1, 0]
    found = augmenting.neighbours_by_pieces(known, table, 2)
    assert found == {(1, 2): ("bd", "e"), (1, 3): ("a", "bc")}
    assert augmenting.neighbours_by_pieces(known[:1], table, 2) == {}


def test_vectors_of_a_file_are_neighbours_in_lower_case_too(tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt.gz"
    lines = ["4 2", "cat 1 0", "dog 0.9 0.1", "house 0 1", "flat 0.1 1", "cat 5 5"]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    known = [Known((1, 2), "Cat"), Known((3, 4), "house"), Known((5, 6), "unknown"), Known((7,), "dog")]
    found = augmenting.neighbours_by_vectors(known, path, 1)
    assert found == {(1, 2): ("dog",), (3, 4): ("flat",)}


@pytest.mark.parametrize(
    ("text", "where"),
    [("cat 1 0\ndog 1\n", ":2"), ("cat 1 x\n", ":1"), ("cat 1 nan\n", ":1"), ("1 2\n3 4\n", ""), ("", "")],
)
def test_a_bad_file_of_vectors_is_refused_with_its_line(text: str, where: str, tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        augmenting.read_vectors(path, ())
    assert where in caught.value.where


def test_a_folder_without_a_masked_language_model_is_refused(tmp_path: Path) -> None:
    tiny.encoder().save(tmp_path, tiny.LABELS)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no whole masked language model"):
        augmenting.check_model(how(tmp_path, MaskedAugment(use="masked")), place(tmp_path))


def test_rows_without_labels_are_read_in_the_form_of_the_tasks(tmp_path: Path) -> None:
    path = tmp_path / "more.jsonl"
    path.write_text('{"a": "one", "b": "two"}\n{"a": "three", "b": "four", "label": "unheard of"}\n')
    settings = TaskSettings(kind="classification", train="x", text=("a", "b"))
    rows, notes = load_unlabelled(settings, "more.jsonl", base=tmp_path)
    assert rows.texts == (("one", "two"), ("three", "four")) and rows.labels is None
    assert [note for note in notes if "columns not used" not in note] == []
    path.write_text('{"a": "one", "b": "two"}\n{"a": "three", "b": 4}\n')
    with pytest.raises(DataError, match="not text"):
        load_unlabelled(settings, "more.jsonl", base=tmp_path)
    path.write_text('{"a": "one"}\n')
    with pytest.raises(DistillkitError, match="b"):
        load_unlabelled(settings, "more.jsonl", base=tmp_path)


AUGMENT = {"use": "masked", "copies": 2, "probability": 0.5}
DISTILL = {
    **CONFIG["distill"],
    "losses": {"gold": {"use": "gold"}, "kd": {"use": "logits"}},
    "unlabelled": "more.jsonl",
    "augment": AUGMENT,
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_data(tmp_path, rows=60)
    more = [{"text": text} for (text,) in tiny.texts(20, seed=8)]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in more))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(here: Path, distill: Any, *overrides: str) -> Path:
    config = write_config(here, distill=distill)
    overrides = (*overrides, "teacher.allow_weak=true")
    return pipeline.run(config, overrides=overrides, progress="quiet", until="student").path


def test_a_run_learns_from_copies_and_rows_without_labels_live_and_from_a_cache(here: Path) -> None:
    """Also with batches that hold no labelled row, and what is made again after a change."""
    small = {**DISTILL, "batch": {"tokens": 400, "examples": 2}}
    live = run(here, small, "name=live")
    kept = run(here, {**small, "cache": {"dtype": "fp32"}}, "name=kept")
    weights = [_weights(folder) for folder in (live, kept)]
    assert all(torch.allclose(tensor, weights[1][name], atol=2e-4) for name, tensor in weights[0].items())
    (made,) = (kept / "cache").glob("augment-*")
    copies = [json.loads(line) for line in (made / "copies.jsonl").read_text().splitlines()]
    assert {row for row, *_ in copies} == set(range(80)), "labelled rows and the others"
    assert len(list((kept / "cache").glob("teacher-*"))) == 1
    records = [json.loads(line) for line in (live / "metrics.jsonl").read_text().splitlines()]
    terms = [record["terms"] for record in records if record["stage"] == "student" and "terms" in record]
    assert all("kd" in term for term in terms) and 0 < sum("gold" in term for term in terms) < len(terms)
    before = {stage: (live / stage / "manifest.json").stat().st_mtime_ns for stage in ("teacher", "student")}
    (here / "more.jsonl").write_text('{"text": "bada good"}\n')
    run(here, small, "name=live")
    assert (live / "teacher" / "manifest.json").stat().st_mtime_ns == before["teacher"]
    assert (live / "student" / "manifest.json").stat().st_mtime_ns > before["student"]


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "student" / "model.safetensors")


def test_a_plan_counts_the_copies_and_shows_some(here: Path, model: Path) -> None:
    distill = {**DISTILL, "augment": {**AUGMENT, "model": str(model)}}
    made = planning.plan(recipe.load(write_config(here, distill=distill), components=catalog.components))
    told = [found.sentence for found in made.findings if found.place == "distill"]
    assert told[0] == "it reads up to 240 rows"
    assert len(told) == 4 and all(line.startswith("augment: '") and "' -> '" in line for line in told[1:])
    (student,) = (stage for stage in made.stages if stage.stage == "student")
    assert student.steps == pytest.approx(240 / 16, abs=2), "steps of 16 rows"


KD, GOLD = {"kd": {"use": "logits"}}, {"gold": {"use": "gold"}}


@pytest.mark.parametrize(
    ("task", "distill", "word"),
    [
        ({"kind": "token_classification"}, {"losses": KD, "augment": AUGMENT}, "token_classification"),
        ({"kind": "mlm"}, {"losses": KD, "unlabelled": "more.jsonl"}, "mlm"),
        ({}, {"losses": GOLD, "augment": AUGMENT}, "augment.labels: keep"),
        ({}, {"losses": GOLD, "unlabelled": "more.jsonl"}, "every loss needs labels"),
        ({}, {"losses": KD, "unlabelled": "more.jsonl", "corpus": "corpus.txt"}, "contradict"),
        ({"kind": "regression"}, {"losses": {**KD, **GOLD}, "augment": AUGMENT}, "without targets"),
        ({}, {"losses": KD, "augment": {**AUGMENT, "vectors": "v.txt"}}, "vectors"),
        ({}, {"losses": KD, "augment": {**AUGMENT, "probability": 0}}, "probability"),
    ],
)
def test_rows_that_nothing_could_teach_are_refused_in_words(
    here: Path, task: Any, distill: Any, word: str
) -> None:
    config = write_config(here, task={**CONFIG["task"], **task}, distill={**CONFIG["distill"], **distill})
    with pytest.raises(DistillkitError) as caught:
        pipeline.run(config, progress="quiet", until="tokenizer")
    assert word in str(caught.value)


def test_a_teacher_that_is_not_pretrained_here_needs_a_model_to_be_named(here: Path) -> None:
    teacher = {key: value for key, value in CONFIG["teacher"].items() if key != "pretrain"}
    config = write_config(here, teacher=teacher, distill=DISTILL)
    with pytest.raises(ConfigError, match="no masked language model to ask"):
        pipeline.run(config, progress="quiet", until="tokenizer")


def test_the_generator_of_an_electra_replaces_words_where_it_is_kept(here: Path) -> None:
    teacher = {**CONFIG["teacher"], "use": "electra", "allow_weak": True}
    with pytest.raises(ConfigError, match="no masked language model to ask"):
        pipeline.run(
            write_config(here, teacher=teacher, distill=DISTILL), progress="quiet", until="tokenizer"
        )
    config = write_config(here, teacher={**teacher, "keep_generator": True}, distill=DISTILL)
    run = pipeline.run(config, progress="quiet", until="student").path
    assert list((run / "cache").glob("augment-*"))


def test_copies_without_labels_do_not_count_in_gold(tmp_path: Path, model: Path) -> None:
    rows = pairs(4)
    made = augment(rows, how(model, MaskedAugment(use="masked", copies=2)), place(tmp_path))
    assert made.labels is not None and made.labels[:4].tolist() == [0, 1, 0, 1]
    assert len(made) > 4 and set(made.labels[4:].tolist()) == {IGNORED}
    assert len(set(made.ids.tolist())) == len(made)
