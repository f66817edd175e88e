"""specs/reliability.md, rows B57-B61, B66, B69-B88 and S-03, S-04, S-12: what is refused, with which
code and words.

Every case runs the real command and asserts the exit code, the words of the message, that there is no
traceback, no file left behind, and that it took less than five seconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from distillkit.cli import main

GOOD = """\
name: good
seed: 13
task: {kind: classification, train: train.csv}
teacher:
  use: bert
  size: tiny
  finetune: {epochs: 1}
student: {use: transformer, layers: 1}
distill:
  epochs: 2
  optimizer: {lr: 1e-4}
  losses:
    gold: {use: gold, weight: 0.3}
    kd: {use: logits, weight: 0.7, temperature: 4}
    states: {use: hidden_cosine}
"""


@dataclass(frozen=True)
class Case:
    """A config made from the good one (or given whole), arguments after it, and what must be said."""

    row: str
    words: tuple[str, ...]
    change: tuple[str, str] = ("", "")
    text: str | bytes | None = None
    arguments: tuple[str, ...] = ()
    code: tuple[int, ...] = (2,)
    environment: dict[str, str] = field(default_factory=dict)

    def content(self) -> bytes:
        if self.text is not None:
            return self.text if isinstance(self.text, bytes) else self.text.encode()
        assert self.change[0] in GOOD
        return GOOD.replace(*self.change).encode()


def bomb() -> str:
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"{b}: &{b} [{', '.join(['*' + a] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    return GOOD + "\n".join(lines) + "\n"


LOSS = "{use: hidden_cosine}"
KD = "{use: logits, weight: 0.7, temperature: 4}"
CASES = [
    Case("B57 negative layer", ("layer_map", "-1"), (LOSS, "{use: hidden_cosine, layer_map: [[-1, 2]]}")),
    Case("B57 not a pair", ("layer_map",), (LOSS, "{use: hidden_cosine, layer_map: [[1, 2, 3]]}")),
    Case("B57 no such strategy", ("layer_map", "uniform"), (LOSS, "{use: hidden_cosine, layer_map: unifrm}")),
    Case(
        "B57 blocks from 1",
        ("initialise.layers",),
        ("layers: 1}", "layers: 1, initialise: {from: teacher, layers: [0]}}"),
    ),
    Case(
        "B58 unknown projection", ("projection", "linear"), (LOSS, "{use: hidden_cosine, projection: linaer}")
    ),
    Case("B66 no positions", ("max_length",), ("train: train.csv}", "train: train.csv, max_length: 0}")),
    *(
        Case(
            f"B69 temperature {value}",
            ("distill.losses.kd.temperature", ":14:"),
            (KD, KD.replace("4", value)),
        )
        for value in ("0", "-1", ".inf", ".nan")
    ),
    *(
        Case(f"B70 weight {value}", ("distill.losses.kd.weight",), (KD, KD.replace("0.7", value)))
        for value in ("0", "-0.5", ".nan", ".inf")
    ),
    Case("B70 no losses", ("distill.losses",), (GOOD[GOOD.index("losses:") :], "losses: {}\n")),
    Case("B70 gold without labels", ("gold", "label"), ("  epochs: 2", "  epochs: 2\n  corpus: corpus.txt")),
    Case(
        "B70 loss of another kind",
        ("hard_labels", "task.kind"),
        text=GOOD.replace("classification", "regression").replace(KD, "{use: hard_labels}"),
    ),
    Case("B70 name of a loss", ("distill.losses",), ("kd:", '"a b":')),
    Case("B70 duplicate loss names", ("kd", ":15:5", "line 14"), (f"states: {LOSS}", f"kd: {LOSS}")),
    Case("B71 unknown key", ("sede", "seed", ":2:1"), ("seed: 13", "sede: 13")),
    Case("B71 unknown nested key", ("tempreature", "temperature", ":14:"), ("temperature", "tempreature")),
    Case(
        "B71 unknown key in a list",
        ("distill.1", "epoch", "epochs", ":11:"),
        (
            GOOD[GOOD.index("distill:") :],
            "distill:\n  - {losses: {gold: {use: gold}}}\n  - {epoch: 2, losses: {gold: {use: gold}}}\n",
        ),
    ),
    Case("B72 duplicate key", ("seed", ":3:1", "line 2"), ("seed: 13", "seed: 13\nseed: 14")),
    Case("B73 tab", (":6:", "tab"), ("  size: tiny", "\tsize: tiny")),
    Case("B75 bool as float", ("lr", "True"), ("1e-4", "true")),
    Case("B75 float as int", ("distill.epochs", "2.5"), ("epochs: 2", "epochs: 2.5")),
    Case("B75 text as int", ("distill.epochs", "'3'"), ("epochs: 2", 'epochs: "3"')),
    Case("B76 nan", ("lr",), ("1e-4", ".nan")),
    Case("B76 inf", ("lr",), ("1e-4", ".inf")),
    Case("B77 tag", ("tag", ":2:7"), ("seed: 13", "seed: !!python/object/apply:os.system [touch canary]")),
    Case("B77 unknown tag", ("tag", ":2:7"), ("seed: 13", "seed: !new 13")),
    Case("B78 bomb", ("20,000",), text=bomb()),
    Case("B78 recursive alias", ("alias", ":1:"), text="name: &x [*x]\n"),
    Case("B79 two documents", ("document", ":16:1"), text=GOOD + "---\n" + GOOD),
    Case("B81 empty", ("empty", "distillkit init"), text=""),
    Case("B81 comment", ("empty", "distillkit init"), text="# nothing\n"),
    Case("B82 list", ("list", ":1:1"), text="- name: x\n"),
    Case("B82 scalar", (":1:1",), text="hello\n"),
    Case("B83 unset variable", ("NOT_SET_HERE", ":1:7"), ("good\n", "${NOT_SET_HERE}\n")),
    Case(
        "B83 secret variable", ("HF_TOKEN",), ("good\n", "${HF_TOKEN}\n"), environment={"HF_TOKEN": "canary"}
    ),
    Case("B84 unknown path", ("student.layer", "layers", "command line"), arguments=("student.layer=2",)),
    Case("B84 unknown section", ("studnt", "student", "command line"), arguments=("studnt.layers=2",)),
    Case(
        "B84 index out of range",
        ("distill.3", "1"),
        (GOOD[GOOD.index("distill:") :], "distill:\n  - losses: {gold: {use: gold}}\n"),
        arguments=("distill.3.epochs=1",),
    ),
    Case("B84 wrong type", ("student.layers", "'two'", "command line"), arguments=("student.layers=two",)),
    Case("B84 inside a value", ("seed",), arguments=("seed.x=1",)),
    Case("B84 no value", ("student.layers",), arguments=("student.layers",)),
    Case("B84 not YAML", ("student.layers",), arguments=("student.layers=[1",)),
    Case(
        "B85 fp16 on CPU",
        ("runtime.precision", "runtime.device"),
        ("seed: 13", "runtime: {device: cpu, precision: fp16}"),
    ),
    Case(
        "B85 more parts than examples",
        ("micro", "examples"),
        ("epochs: 2", "epochs: 2\n  batch: {examples: 2, micro: 4}"),
    ),
    Case(
        "B85 metric of another kind",
        ("task.metric", "task.kind"),
        ("train.csv}", "train.csv, metric: pearson}"),
    ),
    Case("B39 label twice", ("task.labels", "a"), ("train.csv}", "train.csv, labels: [a, b, a]}")),
    Case("B87 too large", ("1 MiB",), text=GOOD + "#" * (2 << 20)),
    Case("B87 deep", ("32",), text="name: " + "[" * 200 + "]" * 200),
    Case("B87 very deep", ("32",), text="name: " + "[" * 5000 + "]" * 5000),
    Case("B87 long text", (":1:7", "10,000"), text=GOOD.replace("name: good", f"name: {'x' * 900_000}")),
    Case("B88 PNG", ("config",), text=b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"),
    Case("B88 control characters", ("config",), text=b"name: a\x01b\x00\n"),
    Case("S-04 os.system", ("os.system",), ("use: bert", "use: os.system"), code=(2, 11)),
    Case("S-04 module path", ("builtins:eval",), ("use: logits", "use: builtins:eval"), code=(2, 11)),
    Case("S-04 file", ("./evil.py",), ("use: transformer", "use: ./evil.py"), code=(2, 11)),
    Case("S-12 secret field", ("api_key",), ("seed: 13", "api_key: canary"), code=(2, 11)),
    Case(
        "S-12 password in an address",
        ("password",),
        ("train.csv", "http://me:canary@host/x.csv"),
        code=(2, 11),
    ),
    Case("S-12 secret override", ("hf_token",), arguments=("hf_token=canary",), code=(2, 11)),
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a data file and nothing else, to run in."""
    (tmp_path / "train.csv").write_text("text,label\n" + "good film,pos\nbad film,neg\n" * 20)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(arguments)
    output = capsys.readouterr()
    return code, output.out + output.err


def test_the_good_config_is_good(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "config.yaml").write_text(GOOD)
    assert told(["validate", "config.yaml"], capsys)[0] == 0


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.row)
def test_a_bad_config_is_refused_in_words(
    case: Case, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value)
    (here / "config.yaml").write_bytes(case.content())
    before = sorted(os.listdir(here))
    start = time.monotonic()
    code, text = told(["validate", "config.yaml", *case.arguments], capsys)
    assert time.monotonic() - start < 5
    assert code in case.code, text
    assert [word for word in case.words if word not in text] == [], text
    assert "Traceback" not in text and "canary" not in text.replace("touch canary", "")
    assert sorted(os.listdir(here)) == before


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.mkdir(), ("folder",)),
        (lambda path: os.mkfifo(path), ("config.yaml",)),
        (lambda path: path.symlink_to(path), ("config.yaml",)),
        (lambda path: None, ("config.yaml", "distillkit init")),
    ],
    ids=["B88 directory", "B88 pipe", "B88 loop", "B88 missing"],
)
def test_what_is_not_a_file_is_refused(
    make: Callable[[Path], None], words: tuple[str, ...], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pipe would block for ever if it were opened."""
    make(here / "config.yaml")
    code, text = told(["validate", "config.yaml"], capsys)
    assert code == 2 and all(word in text for word in words), text


def test_every_error_is_told_at_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = GOOD.replace("seed: 13", "sede: 13").replace("epochs: 2", "epochs: two").replace("0.7", "-1")
    (here / "config.yaml").write_text(text)
    code, said = told(["validate", "config.yaml"], capsys)
    assert code == 2
    assert "config.yaml:2:1" in said and "config.yaml:10:11" in said and "distill.losses.kd.weight" in said
