"""specs/reliability.md, rows B54-B70: a teacher, a student or a loss that does not fit is refused by the real
commands, `plan` and `distill` alike, with which code and words, before a student is touched. (B69 and the
rest of B57-B61, B66 and B70 are about the recipe alone: test_bad_config.py.)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import test_bad_config
import torch
from tiny import LABELS, batch, change_config, change_weights, encoder, tokenizer
from tinyrun import CONFIG, write_config, write_data
from transformers import T5Config, T5ForConditionalGeneration

from distillkit.cli import main
from distillkit.model import FixedTeacher
from distillkit.settings import Labels
from distillkit.types import Access, Want

CODE = """
import torch
from distillkit import Custom, Spec
SIZES = dict(hidden_dim=16, num_heads=2, ffn_dim=32, vocab_size=200, num_labels=2, max_length=24)
NOISE = torch.nn.Dropout(0.5)

def answer(batch):
    rows, length = batch.mask.shape
    good = {{"logits": torch.ones(rows, 2), "hidden.0": torch.ones(rows, length, 16)}}
    good["hidden.1"] = good["hidden.0"] * 2
    return {change}

class {name}(Custom):
    \"\"\"A teacher that breaks the contract.\"\"\"
    def __init__(self):
        super().__init__(answer, spec=Spec(num_layers=1, **SIZES), version="1")
"""


def few_rows(folder: Path) -> None:
    change_config(folder, vocab_size=50)
    change_weights(folder, **{"bert.embeddings.word_embeddings.weight": torch.zeros(50, 16)})


def three_labels(folder: Path) -> None:
    labels = Labels(kind="classification", names=("a", "b", "c"))
    encoder(labels=labels).save(folder, labels)


def other_labels(folder: Path) -> None:
    encoder().save(folder, Labels(kind="classification", names=("no", "yes")))


def seq2seq(folder: Path) -> None:
    config = T5Config(vocab_size=120, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(folder)


def no_number(folder: Path) -> None:
    change_weights(folder, **{"classifier.bias": torch.tensor([float("nan"), 0.0])})


def one_token_more(folder: Path) -> None:
    """A token that the student does not know, and room for it in the embeddings."""
    more = tokenizer()
    more.add_tokens(["extra"])
    more.save_pretrained(folder)
    change_config(folder, vocab_size=128)
    change_weights(folder, **{"bert.embeddings.word_embeddings.weight": torch.zeros(128, 16)})


def two_swapped(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    first, second = [token for token, index in vocabulary.items() if index in (40, 41)]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(content))


def other_padding(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "[MASK]"}))


def few_positions(folder: Path) -> None:
    change_config(folder, max_position_embeddings=16)
    change_weights(folder, **{"bert.embeddings.position_embeddings.weight": torch.zeros(16, 16)})


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def too_large(folder: Path) -> None:
    change_weights(folder, **{"bert.embeddings.LayerNorm.weight": torch.full((16,), 3e38)})


def of_student(spoil: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: spoil(folder.parent / "student")


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: change_weights(folder, **{name: None})


def losses(**terms: Any) -> dict[str, Any]:
    return {"distill": {**CONFIG["distill"], "losses": terms}}


def student(**settings: Any) -> dict[str, Any]:
    return {"student": {"use": "transformer", "dropout": 0.0, **settings}}


@dataclass(frozen=True)
class Case:
    """What is done to a good teacher's folder, what is changed in the recipe, and what must be said."""

    row: str
    code: int
    words: tuple[str, ...]
    spoil: Callable[[Path], object] | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    answer: str = ""

    def __str__(self) -> str:
        return self.row


STATES: dict[str, Any] = {"use": "hidden_cosine"}
FOLDER: dict[str, Any] = {"student": {"use": "pretrained", "path": "student"}}
LOWEST = "bert.encoder.layer.0.output.dense.weight"
BODY = "bert.encoder.layer.1.output.dense.weight"
CASES = [
    Case(
        "B54 sizes of vocabularies differ",
        4,
        ("1 of the teacher's tokens", "121 tokens", "120 here", "ids that both have agree", "'extra'"),
        one_token_more,
        FOLDER,
    ),
    Case(
        "B55 permuted vocabulary",
        4,
        ("2 of 120 shared token ids are other tokens", "40: ", "teacher's tokenizer", "here"),
        of_student(two_swapped),
        FOLDER,
    ),
    Case("B55 other padding", 4, ("padding is '[MASK]' here", "'[PAD]'"), of_student(other_padding), FOLDER),
    Case(
        "B56 more tokens than rows of a student", 4, ("120 entries", "50 rows"), of_student(few_rows), FOLDER
    ),
    Case("B56 more tokens than rows", 4, ("50 rows",), few_rows),
    Case(
        "B57 out of range",
        2,
        ("losses.states.layer_map", "9", "0 (embeddings) to 2"),
        changes=losses(states={**STATES, "layer_map": [[1, 9]]}),
    ),
    Case(
        "B57 not increasing",
        2,
        ("losses.states.layer_map", "strictly increasing"),
        changes=losses(states={**STATES, "layer_map": [[1, 2], [1, 1]]}),
    ),
    Case(
        "B57 block of the student's start out of range",
        2,
        ("student.initialise", "7", "1 to 2"),
        changes=student(layers=1, initialise={"from": "teacher", "layers": [7]}),
    ),
    Case(
        "B57 block of attention out of range",
        2,
        ("losses.relations.teacher_block", "9", "1 to 2"),
        changes=losses(relations={"use": "minilm_v2", "teacher_block": 9}),
    ),
    Case(
        "B57 block of an intervention out of range",
        2,
        ("distill.interchange.sites", "[1, 9]", "1 to 2"),
        changes={
            "distill": {
                **CONFIG["distill"],
                "losses": {"cf": {"use": "causal_kl"}},
                "interchange": {"sites": [[1, 9]]},
            }
        },
    ),
    Case(
        "B57 several at once",
        2,
        ("losses.one.layer_map", "losses.two: ", "losses.three: ", "9", "3 heads"),
        changes=student(layers=1, width=18, heads=3)
        | losses(
            one={**STATES, "layer_map": [[1, 9]]},
            two={"use": "attention_scores"},
            three={"use": "minilm"},
        ),
    ),
    Case(
        "B58 widths differ",
        2,
        ("losses.states.projection", "linear", "16", "8"),
        changes=student(layers=1, width=8, heads=2) | losses(states={**STATES, "projection": "none"}),
    ),
    Case("B59 heads", 2, ("student", "heads", "10"), changes=student(layers=1, width=10, heads=4)),
    Case(
        "B59 relation heads",
        2,
        ("losses.relations.relation_heads", "3", "16"),
        changes=losses(relations={"use": "minilm_v2", "relation_heads": 3}),
    ),
    Case(
        "B59 numbers of heads differ",
        2,
        ("losses.scores", "1 heads", "2"),
        changes=student(layers=1, width=16, heads=1) | losses(scores={"use": "attention_scores"}),
    ),
    Case("B61 number of labels", 4, ("3 labels", "the task 2"), three_labels),
    Case("B61 names of labels", 4, ("'no', 'yes'", "'bad', 'good'"), other_labels),
    Case("B62 NaN in a folder", 6, ("classifier.bias",), no_number),
    Case("B62 NaN in a student's folder", 6, ("classifier.bias",), of_student(no_number), FOLDER),
    Case("B62 infinity from finite weights", 6, ("infinity", "example ids"), too_large),
    Case(
        "B62 NaN from a callable",
        6,
        ("hidden.1", "example ids"),
        answer='good | {"hidden.1": good["hidden.1"] * float("nan")}',
    ),
    Case(
        "B63 dropout left on",
        4,
        ("the same answer", "eval mode"),
        answer='good | {"logits": NOISE(good["logits"])}',
    ),
    Case("B64 encoder-decoder", 4, ("encoder-decoder",), seq2seq),
    Case("B64 encoder-decoder as a student", 4, ("encoder-decoder",), of_student(seq2seq), FOLDER),
    Case("B65 no mapping", 4, ("a mapping", "Tensor"), answer='good["logits"]'),
    Case(
        "B65 key",
        4,
        ("the key 'hidden.1'", "hidden.0"),
        answer='{k: good[k] for k in ("logits", "hidden.0")}',
    ),
    Case("B65 shape", 4, ("hidden.1", "16]", "8]"), answer='good | {"hidden.1": good["hidden.1"][:, :, :8]}'),
    Case("B65 dtype", 4, ("floating point", "int64"), answer='good | {"logits": good["logits"].long()}'),
    Case("B65 numpy", 4, ("a torch tensor", "ndarray"), answer='good | {"logits": good["logits"].numpy()}'),
    Case("B65 no batch", 4, ("logits", "[]"), answer='good | {"logits": torch.tensor(1.0)}'),
    Case(
        "B65 gradient", 4, ("without gradient",), answer='good | {"logits": good["logits"].requires_grad_()}'
    ),
    Case(
        "B66 positions", 2, ("max_length", "40", "32"), changes={"task": {**CONFIG["task"], "max_length": 40}}
    ),
    Case("B66 positions of a student", 2, ("task.max_length", "24", "16"), of_student(few_positions), FOLDER),
    Case("B67 missing in a student", 4, ("layer.0", "1 weights"), of_student(without(LOWEST)), FOLDER),
    Case("B67 missing", 4, (BODY, "1 weights missing", "save the model again"), without(BODY)),
    Case(
        "B67 unexpected",
        4,
        ("bert.extra",),
        lambda folder: change_weights(folder, **{"bert.extra": torch.zeros(2)}),
    ),
    Case(
        "B67 no head", 4, ("never trained", "finetune"), lambda folder: without("classifier.weight")(folder)
    ),
    Case(
        "B68 pickle",
        11,
        ("pytorch_model.bin", "safetensors"),
        pickled,
    ),
    Case("B68 pickle of a student", 11, ("pytorch_model.bin", "safetensors"), of_student(pickled), FOLDER),
    Case(
        "B70 gold without labels",
        2,
        ("gold", "corpus"),
        changes={
            "distill": [
                {**CONFIG["distill"], "corpus": "corpus.txt", "losses": {"gold": {"use": "gold"}}},
                CONFIG["distill"],
            ]
        },
    ),
]
NUMBER = {case.row: index for index, case in enumerate(CASES)}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data, and the folders of a good teacher and a good student, to run in."""
    write_data(tmp_path)
    encoder().save(tmp_path / "teacher", LABELS)
    tokenizer().save_pretrained(tmp_path / "teacher")
    encoder(1, layers=1).save(tmp_path / "student", LABELS)
    tokenizer().save_pretrained(tmp_path / "student")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(folder: Path, case: Case, command: str) -> list[str]:
    teacher: dict[str, Any] = {"use": "pretrained", "path": "teacher", "allow_weak": True}
    extra = []
    if case.answer:
        name = f"{command.title()}{NUMBER[case.row]}"  # registered for the length of this process
        (folder / "mine.py").write_text(CODE.format(change=case.answer, name=name))
        teacher, extra = {"use": name.lower(), "allow_weak": True}, ["--code", "mine.py"]
    changes = {**student(layers=1), "teacher": teacher, **case.changes}
    return [str(write_config(folder, **changes)), *extra]


def told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(arguments)
    output = capsys.readouterr()
    return code, " ".join((output.out + output.err).split())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_does_not_fit_is_refused_before_the_student_is_touched(
    case: Case, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if case.spoil:
        case.spoil(here / "teacher")
    for command in "plan", "distill":
        code, text = told([command, *recipe(here, case, command)], capsys)
        assert code == case.code, text
        assert [word for word in case.words if word not in text] == [], text
        assert "Traceback" not in text
    runs = here / "runs" / "tiny"
    assert not (runs / "student").exists() and not (runs / "checkpoints" / "student").exists()


def test_b60_a_student_larger_than_its_teacher_is_a_remark_and_the_good_recipe_runs(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = Case("B60", 0, (), changes=student(layers=3, width=32, heads=2))
    code, text = told(["plan", *recipe(here, large, "plan")], capsys)
    assert code == 0 and "larger than its teacher" in text, text
    code, text = told(["distill", *recipe(here, Case("good", 0, ()), "distill")], capsys)
    assert code == 0 and (here / "runs" / "tiny" / "student").is_dir(), text


def test_every_row_is_answered() -> None:
    tables = [case.row for case in (*CASES, *test_bad_config.CASES)]
    answered = {row.split()[0] for row in (*tables, "B60 above")}
    assert {f"B{number}" for number in range(54, 71)} <= answered


def test_b63_a_teacher_left_in_train_mode_gives_the_same_answer_twice_and_no_gradient(tmp_path: Path) -> None:
    """Dropout in the teacher would teach noise, in silence."""
    model = encoder(dropout=0.5)
    fixed = FixedTeacher(model)
    model.train()
    first, second = (fixed.outputs(batch(tmp_path), want=Want(Access.ALL_STATES)) for _ in range(2))
    assert torch.equal(first.logits, second.logits) and torch.equal(first.hidden[1], second.hidden[1])
    assert not first.logits.requires_grad and not any(p.requires_grad for p in model.parameters())
