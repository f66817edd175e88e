"""What an artifact answers without torch: the same tokens, the same answers, in the same order."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifacts import Made, make
from tiny import LABELS, encoder, rows, tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from distillkit.data.builtin import builtin_table
from distillkit.data.layouts import Segments, Words
from distillkit.data.tokenizers import train_byte_bpe, train_wordpiece
from distillkit.data.unigram import train_unigram
from distillkit.errors import ConfigError, DataError, ErrorGroup, MissingError
from distillkit.export.bundle import Columns, Reading, describe
from distillkit.runtime import Artifact, ClassAnswer, TagsAnswer, ValueAnswer
from distillkit.runtime.description import TaskRows, Tokens
from distillkit.runtime.frame import kept
from distillkit.runtime.rows import Layout, Reader
from distillkit.runtime.rows import Texts as RuntimeTexts
from distillkit.runtime.rows import Words as RuntimeWords
from distillkit.settings import Labels, SeveralTasks
from distillkit.types import IGNORED

ROOT = Path(__file__).parents[2]
ODD = [
    "",
    " ",
    "\t\n",
    "\0",
    "a\0b",
    "[MASK] is [SEP] not [CLS] a [PAD] token",
    "<mask> </s> <s>",
    "İstanbul ẞ ǅ ﬁ Å é e\u0301",
    "\u202egnp.exe \u200b\ufeff",
    "日本語のテキスト と English mixed 漢字",
    "שלום עולם مرحبا",
    "👩‍👩‍👧‍👦 🏳️‍🌈 \U0001f600",
    "don't won't it's 1,000.50 a_b-c/d\\e #@!",
    "bad good " * 200,
    "x" * 5000,
    "ﷺ" * 40,
    "short",
    "\u00ad\u2028\u2029end",
]


def byte_pairs(side: str) -> PreTrainedTokenizerBase:
    """A byte-level tokenizer without segments, that cuts at `side`, as RoBERTa's does."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate(["<s>", "<pad>", "</s>", "<mask>", *letters])}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        mask_token="<mask>",
        truncation_side=side,
        model_input_names=["input_ids", "attention_mask"],
    )


def real_texts(count: int = 150) -> list[str]:
    return builtin_table("rotten_tomatoes", "validation", ("text", "label")).columns["text"][:count]


TOKENIZERS = {
    "wordpiece": lambda: train_wordpiece(real_texts(), vocab_size=400),
    "cased": lambda: train_wordpiece(real_texts(), vocab_size=300, lowercase=False),
    "unigram": lambda: train_unigram(real_texts(), vocab_size=300),
    "byte pairs": lambda: train_byte_bpe(real_texts(), vocab_size=400),
    "bytes": lambda: byte_pairs("right"),
    "bytes cut at the left": lambda: byte_pairs("left"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("layout", ["texts", "pairs", "words"])
@pytest.mark.parametrize("max_length", [8, 64])
def test_rows_become_the_tokens_that_they_were_in_training(
    name: str, layout: str, max_length: int, tmp_path: Path
) -> None:
    """A difference would cost accuracy that no parity check of the model sees."""
    trained = TOKENIZERS[name]()
    texts = [*real_texts(), *ODD]
    inner: Layout = RuntimeWords() if layout == "words" else RuntimeTexts()
    given: list[tuple[str, ...]] = [(text,) for text in texts]
    if layout == "pairs":
        short = [text[:40] for text in texts]  # tokenizers keeps what it cuts off, in all combinations
        given = list(zip(short, reversed(short), strict=True))
    if layout == "words":
        given = [words for text in texts if (words := tuple(text.split(" ")))]
    theirs = (Words() if layout == "words" else Segments()).pieces(
        given, None, trained, max_length=max_length
    )
    trained.save_pretrained(tmp_path)
    columns = Columns(("a", "b")) if layout == "pairs" else Columns()
    student = encoder(layers=1)
    told = describe(student, trained, LABELS, (), Reading(max_length, "", {"": columns}))
    tokens = told.tokens
    assert tokens.max_length == min(max_length, student.spec.max_length)
    longer = type(tokens)(max_length, tokens.pad, tokens.segments, tokens.cut, tokens.split_special)
    reader = Reader.open(tmp_path, longer, inner)
    rows_ = reader.check([text for (text,) in given] if layout == "texts" else given, told.tasks[0])
    assert rows_ == given
    read = reader.read(rows_, told.tasks[0])
    assert [len(row) for row in read] == theirs.lengths
    assert np.concatenate([row.ids for row in read]).tolist() == theirs.tokens.tolist()
    assert np.concatenate([row.types for row in read]).tolist() == theirs.types.tolist()
    assert sum(row.cut for row in read) == theirs.cut
    if layout == "words":
        starts = np.cumsum([0, *theirs.lengths])
        firsts = [start + place for row, start in zip(read, starts, strict=False) for _, place in row.words]
        assert firsts == np.flatnonzero(theirs.labels != IGNORED).tolist()


def test_texts_that_are_too_long_are_cut_as_tokenizers_cuts_them() -> None:
    inner = Tokenizer(models.WordLevel({"[UNK]": 0, "x": 1, "y": 2}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    for room in range(1, 12):
        inner.enable_truncation(room, strategy="longest_first")
        for left in range(14):
            assert kept([left], room) == (len(inner.encode("x " * left).ids),)
            for right in range(14):
                ids = inner.encode("x " * left, "y " * right).ids
                assert kept([left, right], room) == (ids.count(1), ids.count(2)), (left, right, room)


def test_a_long_pair_costs_no_more_than_two_long_texts(tmp_path: Path) -> None:
    """tokenizers would keep 2,000,000 pieces of what it cuts off here."""
    byte_pairs("right").save_pretrained(tmp_path)
    reader = Reader.open(tmp_path, Tokens(16, 1, False, "right", False), RuntimeTexts())
    task = TaskRows("", ("a", "b"), 20_000, (), 0)
    (row,) = reader.read([("ab " * 6000, "cd " * 6000)], task)
    assert len(row) == 16 and row.cut


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("made") / "whole")


def softmax(logits: Any) -> Any:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("tokens", [1, 40, 100_000])
def test_answers_come_in_the_order_of_the_rows_whatever_the_batches(made: Made, tokens: int) -> None:
    texts = [text for (text,) in rows(60, longest=20).texts]
    answers = Artifact.load(made.folder, threads=1).predict(texts, tokens=tokens)
    expected = [softmax(logits) for logits in made.logits([(text,) for text in texts])]
    assert all(isinstance(answer, ClassAnswer) for answer in answers) and len(answers) == len(texts)
    for answer, odds in zip(answers, expected, strict=True):
        assert isinstance(answer, ClassAnswer)
        assert list(answer.probabilities) == ["bad", "good"]
        assert np.allclose(list(answer.probabilities.values()), odds, atol=1e-6)
        assert answer.label == ("bad", "good")[int(odds.argmax())]
        assert answer.probability == max(answer.probabilities.values())


def test_no_batch_has_more_tokens_than_it_may(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    run = Artifact.run

    def watched(self: Artifact, batch: Any) -> Any:
        sizes.append(max(map(len, batch)) * len(batch))
        return run(self, batch)

    monkeypatch.setattr(Artifact, "run", watched)
    texts = [text for (text,) in rows(60, longest=20).texts]
    Artifact.load(made.folder, threads=1).predict(texts, tokens=64)
    assert max(sizes) <= 64 and len(sizes) < len(texts) / 2


def test_nothing_is_answered_with_nothing(made: Made) -> None:
    assert Artifact.load(made.folder).predict([]) == []


def test_numbers_are_told_as_they_are(tmp_path: Path) -> None:
    made = make(tmp_path / "r", "regression", labels=(), columns=("one", "two"))
    pairs = [("bafa good", "dafa"), ("x", ""), ("fan " * 30, "gan " * 30)]
    answers = Artifact.load(made.folder).predict(pairs)
    for answer, expected in zip(answers, made.logits(pairs), strict=True):
        assert isinstance(answer, ValueAnswer) and answer.value == pytest.approx(float(expected[0]), abs=1e-6)
    assert [answer.truncated for answer in answers] == [False, False, True]
    assert list(answers[0].as_json()) == ["value", "truncated"]


def test_every_word_has_a_tag_or_none(tmp_path: Path) -> None:
    """A word past the maximal length, or of which the tokenizer makes nothing, is not answered."""
    names = ("O", "B-x", "I-x")
    made = make(tmp_path / "w", "token_classification", labels=names, max_length=10)
    given = [("bafa", "good"), ("fan",) * 12, ("\u200b", "bad")]
    answers = Artifact.load(made.folder).predict(given)
    layout = Words()
    for words, answer, logits in zip(given, answers, made.logits(given), strict=True):
        assert isinstance(answer, TagsAnswer)
        labels = layout.pieces([words], np.arange(len(words)), made.tokenizer, 10).labels
        expected: list[str | None] = [None] * len(words)
        for place in np.flatnonzero(labels != IGNORED).tolist():
            expected[int(labels[place])] = names[int(logits[place].argmax())]
        assert list(answer.tags) == expected and len(answer.probabilities) == len(words)
        assert all(
            (tag is None) == (sure is None)
            for tag, sure in zip(answer.tags, answer.probabilities, strict=True)
        )
    assert answers[1].truncated and not answers[0].truncated
    last = answers[1]
    assert isinstance(last, TagsAnswer) and None in last.tags and last.tags[0] is not None


def test_each_of_several_tasks_is_answered_by_its_own_classes(tmp_path: Path) -> None:
    made = make(tmp_path / "s", tasks={"trec": ("A", "B", "C"), "sst": ("neg", "pos")})
    model, texts = Artifact.load(made.folder), [("bafa good",), ("dan fan",)]
    for task, columns in (("trec", slice(0, 3)), ("sst", slice(3, 5))):
        for answer, logits in zip(
            model.predict([text for (text,) in texts], task=task), made.logits(texts), strict=True
        ):
            assert isinstance(answer, ClassAnswer)
            assert np.allclose(list(answer.probabilities.values()), softmax(logits[columns]), atol=1e-6)
    with pytest.raises(ConfigError, match="name one of trec, sst"):
        model.predict(["a"])
    with pytest.raises(ConfigError, match="'imdb'"):
        model.predict(["a"], task="imdb")


def test_a_text_is_cut_at_its_characters_as_in_training(tmp_path: Path) -> None:
    short, longer = (make(tmp_path / str(chars), max_chars=chars).folder for chars in (7, 20_000))
    cut = Artifact.load(short).predict(["bafa good bad"])[0]
    assert isinstance(cut, ClassAnswer) and cut.truncated
    same = Artifact.load(longer).predict(["bafa good bad"[:7]])[0]
    assert isinstance(same, ClassAnswer) and cut.probabilities == same.probabilities and not same.truncated


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("one text", "not a list"),
        (b"bytes", "not a list"),
        ({"a": 1}, "not a list"),
        (7, "not a list"),
        ([None], "row 0: None"),
        (["good", 3], "row 1: 3 is not a text"),
        ([("a", "b")], "row 0: ('a', 'b') is not a text"),
        ([["a", 1]], "row 0"),
        ([b"good"], "row 0"),
        (["half \ud800"], "\\ud800"),
        ([float("nan")], "row 0"),
    ],
)
def test_what_is_no_text_is_told_with_its_place(made: Made, given: Any, words: str) -> None:
    with pytest.raises(DataError) as caught:
        Artifact.load(made.folder).predict(given)
    assert words in str(caught.value) and caught.value.exit_code == 3


def test_every_bad_row_is_told_at_once(made: Made) -> None:
    with pytest.raises(ErrorGroup) as caught:
        Artifact.load(made.folder).predict(["a", 1, "b", None])
    assert "row 1" in str(caught.value) and "row 3" in str(caught.value)


@pytest.mark.parametrize("given", ["a text", ("one",), ("one", "two", "three"), ("one", 2)])
def test_a_model_of_pairs_takes_pairs_only(tmp_path: Path, given: Any) -> None:
    model = Artifact.load(make(tmp_path / "p", columns=("premise", "hypothesis")).folder)
    with pytest.raises(DataError, match="row 0"):
        model.predict([given])


@pytest.mark.parametrize("given", ["a text", [], ["a", 1], 3])
def test_a_model_of_words_takes_words_only(tmp_path: Path, given: Any) -> None:
    model = Artifact.load(make(tmp_path / "w", "token_classification").folder)
    with pytest.raises(DataError, match="row 0"):
        model.predict([given])


def test_a_provider_that_is_not_there_is_an_error(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingError, match="CUDAExecutionProvider"):
        Artifact.load(made.folder, provider="cuda")
    with pytest.raises(ConfigError, match="'tpu'"):
        Artifact.load(made.folder, provider="tpu")  # type: ignore[arg-type]


def test_a_masked_language_model_has_no_answers_for_texts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'mlm'"):
        Artifact.load(make(tmp_path / "m", "mlm").folder)


ALLOWED = {"distillkit", "numpy", "onnxruntime", "tokenizers"}
_ALONE = """
import importlib.abc, sys
allowed = {allowed} | set(sys.stdlib_module_names)
class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in allowed:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Nothing())
from distillkit.runtime import Artifact
for answer in Artifact.load({folder!r}, threads=1).predict(["bafa good", "bad dan fan"]):
    print(answer.label, *answer.probabilities.values())
"""


def test_nothing_but_three_packages_is_needed(made: Made) -> None:
    """Every other package is made to be missing, also those that the three would use if they were there."""
    code = _ALONE.format(allowed=ALLOWED, folder=str(made.folder))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    here = Artifact.load(made.folder, threads=1).predict(["bafa good", "bad dan fan"])
    for line, answer in zip(done.stdout.splitlines(), here, strict=True):
        assert isinstance(answer, ClassAnswer)
        label, *odds = line.split()
        assert label == answer.label and [float(one) for one in odds] == list(answer.probabilities.values())


def test_an_artifact_says_what_its_recipe_said() -> None:
    several = SeveralTasks.model_validate(
        {
            "tasks": {
                "mood": {"kind": "classification", "train": "a", "text": "review", "max_length": 16},
                "same": {"kind": "classification", "train": "b", "text": ["one", "two"], "max_chars": 9},
            }
        }
    )
    labels = Labels(
        kind="classification", names=("mood/bad", "mood/good", "same/no"), tasks={"mood": 2, "same": 1}
    )
    student = encoder(layers=1, labels=labels)
    told = describe(student, tokenizer(), labels, ("input_ids",), Reading.of(several, "macro_f1"))
    assert told.tasks == (
        TaskRows("mood", ("review",), 20_000, ("bad", "good"), 0),
        TaskRows("same", ("one", "two"), 9, ("no",), 2),
    )
    assert told.tokens == Tokens(32, 0, True, "right", False)  # as many as the model takes
    assert (told.kind, told.metric, told.inputs) == ("classification", "macro_f1", ("input_ids",))
