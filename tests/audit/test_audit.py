"""The command on a corpus with planted defects: what is counted, what is shown, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from tinyrun import write_config, write_data

from distillkit.audit import blocks
from distillkit.audit.corpus import audit, audit_corpus
from distillkit.cli import main
from distillkit.data.corpora import documents
from distillkit.data.tokenizers import token_counts, train_wordpiece
from distillkit.errors import StoppedError
from distillkit.progress import Plain, Quiet

ROOT = Path(__file__).parents[2]
TALE = "The old man and the boy went down to the sea because it was time for all of them to go"
SECRET = "sk-" + "Ab3" * 12


def write_corpus(folder: Path) -> Path:
    """8 documents and an empty one: one copy, one near copy, one in German, one with odd characters."""
    rows = [
        *({"text": f"{TALE} {'again ' * number}. Number {number} it is."} for number in range(3)),
        {"text": f"{TALE} . Number 0 it is."},
        {"text": f"{TALE} {' '.join(f'w{n}' for n in range(60))}. All rights reserved."},
        {"text": f"{TALE} {' '.join(f'w{n}' for n in range(60))} end. All rights reserved."},
        {"text": ""},
        {"text": "Er hat das Haus und die Kinder mit dem Auto nicht gesehen. All rights reserved."},
        {"text": f"cafÃ© \x07 mail jane@example.org or {SECRET} \ufffd."},
    ]
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path)
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main(["corpus", *arguments, "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_planted_defects_are_counted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "corpus.jsonl")
    read = list(documents("corpus.jsonl", base=here))
    flat = [sentence for document in read for sentence in document]
    assert (found["documents"], found["empty_documents"], found["sentences"]) == (8, 1, len(flat))
    assert found["characters"] == sum(map(len, flat))
    assert found["bytes"] == sum(len(sentence.encode()) for sentence in flat)
    assert found["document_copies"]["copies"] == 1
    assert found["near_copies"]["documents"] == 1
    assert found["sentence_copies"]["copies"] == len(flat) - len(set(flat))
    assert found["common"][0] == ["All rights reserved.", 3]
    assert (found["languages"]["en"], found["languages"]["de"]) == (4, 1)
    assert {odd["kind"]: odd["sentences"] for odd in found["odd_characters"]} == {
        "control characters": 1,
        "replacement characters (U+FFFD)": 1,
        "zero-width or bidirectional characters": 0,
        "mojibake suspects": 1,
    }
    counts = {strings["kind"]: strings["count"] for strings in found["strings"]}
    assert (counts["e-mail address"], counts["API key or token"], counts["URL"]) == (1, 1, 0)
    assert found["lengths"]["words of a document"]["longest"] > 80


def test_no_secret_and_no_control_character_is_printed(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither as an example nor in a sentence that comes often."""
    rows = json.dumps({"text": f"\x1b[31m Write to jane@example.org, {SECRET} {'x' * 300}"}) + "\n"
    (here / "often.jsonl").write_text(rows * 3)
    for arguments in (["often.jsonl"], ["often.jsonl", "--json"]):
        assert main(["corpus", *arguments]) == 0
        said = capsys.readouterr().out
        assert "jane@" not in said and SECRET not in said and "\x1b" not in said
        assert "Write to" in said and "Ab3" not in said


def test_the_table_tells_it_all(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "test.csv").write_text(f'text,label\n"{TALE}",a\n"a text of its own that no corpus holds",b\n')
    assert main(["corpus", "corpus.jsonl", "--against", "test.csv"]) == 0
    said = capsys.readouterr()
    for words in (
        "documents",
        "1 more are empty",
        "near duplicates",
        "U+0007",
        "All rights reserved.",
        "test.csv",
    ):
        assert words in said.out
    assert "50.0 %" in said.out and "MB" not in said.err.replace("kB", "")


def test_an_audit_is_the_same_whenever_it_is_made(here: Path) -> None:
    """Python's own hashes differ from process to process."""
    command = [sys.executable, "-m", "distillkit", "corpus", "corpus.jsonl", "--json", "--quiet"]
    answers = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=here, env=environment, capture_output=True, check=True, text=True)
        answers.append({**json.loads(done.stdout), "seconds": 0})
    assert answers[0] == answers[1]


def test_no_torch_is_imported_for_a_corpus_alone(here: Path) -> None:
    """It takes seconds."""
    audited = "from distillkit.cli import main; main(['corpus', 'corpus.jsonl', '--quiet'])"
    code = f"{audited}; import sys; assert 'torch' not in sys.modules"
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )


def test_a_config_stands_for_its_validation_and_test_rows(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(here)
    rows = [json.loads(line)["text"] for line in (here / "validation.jsonl").read_text().splitlines()]
    (here / "leaky.txt").write_text("\n".join(f"{row}.\n" for row in rows[:20]))
    words, tags = ["so", "many", "other", "words"], ["O", "O", "O", "O"]
    (here / "test.jsonl").write_text(json.dumps({"tags": tags, "tokens": words, "label": 3}) + "\n")
    write_config(here)
    found = told(capsys, "leaky.txt", "--against", "config.yaml", "--against", "test.jsonl")["overlaps"]
    assert [(one["name"], one["texts"], one["contaminated"]) for one in found] == [
        ("config.yaml: validation", len(rows), 20),
        ("test.jsonl", 1, 0),
    ]


def test_held_out_rows_are_not_in_the_corpus_that_comes_with_them(capsys: pytest.CaptureFixture[str]) -> None:
    name = "builtin:rotten_tomatoes"
    (overlap,) = told(capsys, name, "--against", name)["overlaps"]
    assert overlap["texts"] == 853 and overlap["contaminated"] < 10


def test_tokens_are_those_of_the_tokenizer(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = train_wordpiece([TALE], vocab_size=80)
    tokenizer.save_pretrained("tokenizer")
    found = told(capsys, "corpus.jsonl", "--tokenizer", "tokenizer")
    read = [sentence for document in documents("corpus.jsonl", base=here) for sentence in document]
    ids = [token for sentence in read for token in tokenizer(sentence, add_special_tokens=False)["input_ids"]]
    assert found["tokens"] == len(ids)
    assert found["unknown_tokens"] == ids.count(tokenizer.unk_token_id) > 0
    assert "tokens of a document" in found["lengths"]
    assert token_counts(tokenizer)(["the sea"])[0][1] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["corpsu.jsonl"], 3, ("corpsu.jsonl", "corpus.jsonl")),
        (["builtin:nothing"], 2, ("builtin:rotten_tomatoes",)),
        (["bad.jsonl"], 3, ("bad.jsonl:2", '"text"')),
        (["empty.jsonl"], 3, ("empty.jsonl", "no sentences")),
        (["corpus.jsonl", "--against", "tset.csv"], 3, ("tset.csv",)),
        (["corpus.jsonl", "--against", "labels.csv"], 3, ("labels.csv", "'label'", "3 words")),
        (["corpus.jsonl", "--against", "half.jsonl"], 3, ("half.jsonl:2", "surrogate")),
        (["corpus.jsonl", "--against", "config.yaml"], 2, ("config.yaml",)),
        (["corpus.jsonl", "--tokenizer", "."], 4, ("tokenizer.json",)),
        ([], 2, ("PATH",)),
    ],
)
def test_bad_input_is_told_in_words(
    arguments: list[str], code: int, words: tuple[str, ...], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "bad.jsonl").write_text('{"text": "fine."}\n{"text": 3}\n')
    (here / "empty.jsonl").write_text('{"text": ""}\n{"text": " "}\n')
    (here / "labels.csv").write_text("label\na\nb\n")
    (here / "half.jsonl").write_text('{"text": "a plain text"}\n{"text": "half of one \\ud83d"}\n')
    assert main(["corpus", *arguments]) == code
    said = capsys.readouterr().err
    assert [word for word in words if word not in said] == [], said
    assert "Traceback" not in said


def test_memory_does_not_grow_with_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 MB more of text that never repeats take less than a third of it: what documents are known by."""
    monkeypatch.setattr(blocks, "BLOCK_CHARACTERS", 1 << 15)

    def texts(count: int) -> Iterator[list[str]]:
        for number in range(count):
            yield [" ".join(f"w{number * at:x}" for at in range(1, 300))]

    peaks = []
    for count in (200, 1200):
        tracemalloc.start()
        read = audit("made", texts(count), progress=Quiet())
        peaks.append((tracemalloc.get_traced_memory()[1], read.bytes))
        tracemalloc.stop()
    (small, few), (large, many) = peaks
    assert many - few > 1.5e6 and large - small < (many - few) / 3


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_stops_between_two_documents(here: Path, number: int, code: int) -> None:
    class Send(Quiet):
        def show(self, text: str, *, last: bool = False) -> None:
            os.kill(os.getpid(), number)

    (here / "long.txt").write_text("\n\n".join(["A sentence of some words. " * 4000] * 30))
    with pytest.raises(StoppedError) as stopped:
        audit_corpus("long.txt", base=here, progress=Send())
    assert stopped.value.exit_code == code


def test_progress_says_how_fast(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audit_corpus("corpus.jsonl", base=here, progress=Plain())
    assert "8 documents" in capsys.readouterr().err
