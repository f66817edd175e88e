"""RoBERTa and GPT as teachers: published sizes, folders that `transformers` opens, the last real token, what
is refused, runs from corpus to report.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import LABELS, byte_tokenizer, encoded
from tinyrun import CONFIG, Here, write_config, write_data
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerBase,
    RobertaForMaskedLM,
    RobertaModel,
)

from distillkit import pipeline
from distillkit.bench import measure
from distillkit.cli import main
from distillkit.data.batching import collate
from distillkit.encoder import Encoder, fresh
from distillkit.errors import ConfigError, ModelError
from distillkit.export.onnx import write_onnx
from distillkit.export.parity import compare
from distillkit.losses.minilm import Minilm
from distillkit.losses.pkd import Pkd
from distillkit.model import FixedTeacher, Material
from distillkit.runtime.session import open_session
from distillkit.segments import STATES
from distillkit.settings import Initialise, Labels, PretrainSettings
from distillkit.students.exits import WithExits
from distillkit.students.transformer import Transformer
from distillkit.teachers.gpt import Gpt
from distillkit.teachers.roberta import Roberta
from distillkit.types import Access, Batch, Want

SHAPE: dict[str, Any] = {"layers": 2, "width": 16, "heads": 2, "vocab_size": 320, "positions": 32}
SOURCES = {"roberta": Roberta, "gpt": Gpt}
FROM_TEACHER = Initialise.model_validate({"from": "teacher"})
MASKED = Labels(kind="mlm")


@pytest.fixture(scope="module")
def byte() -> PreTrainedTokenizerBase:
    return byte_tokenizer()


def teacher(name: str, byte: PreTrainedTokenizerBase, labels: Labels = LABELS, **settings: Any) -> Encoder:
    """Every weight is random, so that nothing is right by being zero or one."""
    torch.manual_seed(3)
    model = SOURCES[name](**{**SHAPE, **settings}).classifier(byte, labels, 32, None)
    assert isinstance(model, Encoder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def padded(folder: Path, count: int = 6) -> Batch:
    batch = collate(encoded(folder, by=byte_tokenizer), np.arange(count))
    assert not batch.full
    return batch


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def block(width: int) -> int:
    """Four maps of attention, two of the feed-forward part 4 times as wide, two norms."""
    return 4 * (width * width + width) + 8 * width * width + 5 * width + 4 * width


@pytest.mark.parametrize(
    ("size", "layers", "width", "published"),
    [("base", 12, 768, 124_645_632), ("large", 24, 1024, 355_359_744), ("mini", 4, 256, None)],
)
def test_robertas_sizes_have_the_published_numbers_of_parameters(
    size: Any, layers: int, width: int, published: int | None
) -> None:
    """Of the body with its pooler; a masked language model has a head in the place of the pooler."""
    config = Roberta(size=size).config(50265)
    tables = (50265 + 514 + 1) * width + 2 * width
    body = tables + layers * block(width)
    head = (width * width + width) + 2 * width + 50265
    with torch.device("meta"):
        counts = parameters(RobertaModel(config)), parameters(RobertaForMaskedLM(config))
    assert counts == (body + width * width + width, body + head)
    assert published in (None, counts[0])


@pytest.mark.parametrize(
    ("size", "layers", "width", "published"),
    [
        ("small", 12, 768, 124_439_808),
        ("medium", 24, 1024, 354_823_168),
        ("large", 36, 1280, 774_030_080),
        ("mini", 4, 256, None),
    ],
)
def test_gpts_sizes_have_the_published_numbers_of_parameters(
    size: Any, layers: int, width: int, published: int | None
) -> None:
    with torch.device("meta"):
        count = parameters(GPT2LMHeadModel(Gpt(size=size).config(50257)))
    assert count == (50257 + 1024) * width + layers * block(width) + 2 * width
    assert published in (None, count)


@pytest.mark.parametrize("name", SOURCES)
def test_a_pretrained_body_goes_on_in_the_classifier_and_opens_in_transformers(
    name: str, byte: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    source = SOURCES[name](**SHAPE, pretrain=PretrainSettings(corpus="x", max_length=32))
    model, _ = source.pretraining(byte)
    assert isinstance(model, RobertaForMaskedLM | GPT2LMHeadModel)
    model.save_pretrained(tmp_path / "pretrain")
    classifier = source.classifier(byte, LABELS, 32, tmp_path / "pretrain")
    assert isinstance(classifier, Encoder)
    body = model.base_model.state_dict()
    mine = classifier.model.base_model.state_dict()
    assert body and all(torch.equal(tensor, mine[key]) for key, tensor in body.items())
    assert (classifier.spec.max_length, classifier.spec.ffn_dim) == (32, 64)
    classifier.save(tmp_path / "teacher", LABELS)
    byte.save_pretrained(tmp_path / "teacher")
    AutoModel.from_pretrained(str(tmp_path / "teacher"), local_files_only=True)
    opened = AutoModelForSequenceClassification.from_pretrained(str(tmp_path / "teacher"))
    batch = padded(tmp_path)
    inputs = AutoTokenizer.from_pretrained(str(tmp_path / "teacher"))(
        [text for (text,) in batch.texts or ()], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        theirs, ours = opened.eval()(**inputs).logits, classifier.eval().outputs(batch, want=Want()).logits
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", SOURCES)
def test_states_are_what_blocks_give_and_padding_changes_nothing(
    name: str, byte: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model, batch = teacher(name, byte), padded(tmp_path)
    told = model.outputs(batch, want=Want(access=Access.ALL_STATES))
    inputs = {key: batch.inputs[key] for key in ("input_ids", "attention_mask")}
    theirs = model.model(**inputs, output_hidden_states=True).hidden_states
    assert len(told.hidden) == len(theirs) == 3
    for mine, other in zip(told.hidden[:-1], theirs[:-1], strict=True):  # GPT-2's last is after a norm
        torch.testing.assert_close(mine[batch.mask], other[batch.mask])
    for row, real in enumerate(batch.mask):
        alone = {key: value[row, real][None] for key, value in inputs.items()}
        single = replace(batch, inputs=alone, mask=real[real][None], ids=batch.ids[row : row + 1], full=True)
        logits = model.outputs(single, want=Want()).logits
        torch.testing.assert_close(logits[0], told.logits[row], atol=1e-5, rtol=1e-4)
    assert model.spec.attention == (name == "roberta") and model.spec.causal == (name == "gpt")


def test_gpt_is_answered_from_the_last_real_token(byte: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """The end of the text, not padding, and not the token before the end, as it were if both were one."""
    model, batch = teacher("gpt", byte), padded(tmp_path)
    told = model.outputs(batch, want=Want(access=Access.FINAL_STATES))
    last = batch.mask.sum(1) - 1
    assert len(set(last.tolist())) > 1
    rows = torch.arange(len(last))
    assert (batch.inputs["input_ids"][rows, last] == byte.eos_token_id).all()
    body: Any = model.model
    torch.testing.assert_close(told.logits, body.score(body.transformer.ln_f(told.hidden[-1][rows, last])))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "use_cache"), [("roberta", False), ("gpt", False), ("gpt", True)])
def test_the_export_answers_padded_rows_as_pytorch_does(
    name: str, use_cache: bool, byte: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """On real rows with padding and on shapes that break exports; a folder from elsewhere may ask for a cache
    of keys and values.
    """
    model = teacher(name, byte)
    model.model.config.use_cache = use_cache
    inputs = write_onnx(model, tmp_path / "model.onnx", opset=18, metadata={})
    assert inputs == ("input_ids", "attention_mask")
    session = open_session(tmp_path / "model.onnx", provider="cpu", threads=1)
    samples = encoded(tmp_path, by=byte_tokenizer)
    found = compare(model, session, samples, rows=40, tolerance=1e-3, max_length=32)
    assert found.max_abs_difference < 1e-4 and found.same_predictions == 1


@pytest.mark.parametrize("name", SOURCES)
def test_a_student_of_all_blocks_says_what_its_teacher_says_and_of_one_is_smaller(
    name: str, byte: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model, batch = teacher(name, byte), padded(tmp_path)
    fixed = FixedTeacher(model)
    material = Material(fixed, byte, encoded(tmp_path, by=byte_tokenizer), torch.device("cpu"))
    for layers in (2, 1):
        source = Transformer(layers=layers, dropout=0.25, initialise=FROM_TEACHER)
        student = source.build(byte, LABELS, 32, fixed)
        source.start(student, material)
        rates = {part.p for part in student.modules() if isinstance(part, nn.Dropout)}
        assert student.spec.num_layers == layers and 0.25 in rates and not rates - {0.25, 0.1}
        said = student.eval().outputs(batch, want=Want()).logits
        assert torch.equal(said, fixed.outputs(batch, want=Want()).logits) == (layers == 2)
    source = Transformer(layers=2, vocabulary=100, initialise=FROM_TEACHER)
    student = source.build(byte, LABELS, 32, fixed)
    source.start(student, material)
    before = fixed.outputs(batch, want=Want()).logits
    assert torch.allclose(student.eval().outputs(batch, want=Want()).logits, before, atol=1e-5), (
        "no piece of these rows is left out, and padding is still known"
    )


@pytest.mark.parametrize("name", SOURCES)
def test_a_fresh_student_reads_the_teachers_pieces(
    name: str, byte: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    source, fixed = Transformer(layers=1, width=8, heads=2), FixedTeacher(teacher(name, byte))
    student = source.build(byte, LABELS, 32, fixed)
    assert student.spec.vocab_size == len(byte) and student.spec.max_length == 32 and not student.spec.causal
    assert student.eval().outputs(padded(tmp_path), want=Want()).logits.shape == (6, 2)


def test_the_parts_of_a_gpt_with_exits_compute_the_whole(
    byte: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Its last part reads no token ids and must still know where each text ends."""
    batch = padded(tmp_path)
    made = WithExits(teacher("gpt", byte), (1,), 4, joint=True).eval()
    first, last = made.segments()
    mask = batch.inputs["attention_mask"]
    with torch.no_grad():
        _, states = first(attention_mask=mask, input_ids=batch.inputs["input_ids"])
        (logits,) = last(attention_mask=mask, **{STATES: states})
        torch.testing.assert_close(logits, made.outputs(batch, want=Want()).logits, atol=1e-5, rtol=1e-4)


def test_what_a_causal_model_cannot_do_is_refused_in_words(byte: PreTrainedTokenizerBase) -> None:
    gpt, roberta = teacher("gpt", byte), teacher("roberta", byte)
    source = Gpt(**SHAPE, pretrain=PretrainSettings(corpus="x", max_length=32))
    with pytest.raises(ConfigError, match="no masked ones") as caught:
        source.classifier(byte, MASKED, 32, None)
    assert caught.value.where == "teacher.use" and source.masked_model(Path("pretrain")) is None
    with pytest.raises(ConfigError, match="the teacher is causal"):
        Pkd().bind(roberta.spec, {"teacher": gpt.spec})
    Pkd().bind(roberta.spec, {"teacher": roberta.spec})
    with pytest.raises(ModelError, match="no padding token"):
        fresh(GPT2Config(vocab_size=320, n_embd=16, n_layer=1, n_head=2), LABELS)
    with pytest.raises(ConfigError, match="the teacher shows no queries"):
        Minilm().bind(roberta.spec, {"teacher": gpt.spec})
    with pytest.raises(ConfigError, match="'gpt2' cannot be made narrower"):
        Transformer(layers=1, width=8, initialise=FROM_TEACHER).build(byte, LABELS, 32, FixedTeacher(gpt))


def test_a_pretrained_roberta_answers_masked_tokens(byte: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    source = Roberta(**SHAPE, pretrain=PretrainSettings(corpus="x", max_length=32))
    model, _ = source.pretraining(byte)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    opened = source.classifier(byte, MASKED, 32, tmp_path)
    assert isinstance(opened, Encoder) and source.training(MASKED) is None
    assert source.masked_model(tmp_path) == tmp_path
    wanted = model.state_dict()
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in opened.model.state_dict().items())


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"size": "small", "layers": 2}, "teacher.size"),
        ({"layers": 2, "width": 130, "heads": 4}, "teacher.heads"),
        ({"size": "tiny", "positions": 64, "pretrain": PretrainSettings(corpus="x")}, "pretrain.max_length"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    name: str, settings: dict[str, Any], where: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        SOURCES[name](**settings)
    assert str(caught.value.where).endswith(where) and caught.value.hint


def test_a_vocabulary_too_small_for_all_bytes_is_refused_with_its_place() -> None:
    with pytest.raises(ModelError, match="100 entries") as caught:
        Roberta(**{**SHAPE, "vocab_size": 100}).tokenizer(["ba be"] * 3)
    assert caught.value.where == "teacher.vocab_size"


def config(folder: Path, name: str, **student: Any) -> Path:
    write_data(folder)
    shared = {key: value for key, value in CONFIG["teacher"].items() if key != "use"}
    finetune = {**shared["finetune"], "epochs": 8, "optimizer": {"lr": 1e-2}}
    made = {**shared, "use": name, "vocab_size": 500, "finetune": finetune, "allow_weak": True}
    return write_config(
        folder, teacher=made, student={**CONFIG["student"], **student}, output=str(folder / "runs")
    )


@pytest.mark.parametrize(
    ("name", "student", "opens", "figure"),
    [
        pytest.param("roberta", {}, AutoModelForMaskedLM, "mlm", marks=pytest.mark.slow),
        ("gpt", {"width": 32, "initialise": {"from": "teacher"}}, AutoModelForCausalLM, "lm"),
    ],
)
def test_it_goes_from_corpus_to_report(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    student: dict[str, Any],
    opens: Any,
    figure: str,
) -> None:
    monkeypatch.setattr(measure, "Child", Here)
    made = config(tmp_path, name, **student)
    assert main(["plan", str(made)]) == 0
    run = pipeline.run(made, progress="quiet").path
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first = next(row for row in rows if row["stage"] == "pretrain")
    assert set(first["terms"]) == {figure} and set(first["figures"]) == {"accuracy", "perplexity"}
    opens.from_pretrained(str(run / "pretrain"), local_files_only=True)
    opened = AutoTokenizer.from_pretrained(str(run / "teacher"), local_files_only=True)
    assert opened.decode(opened("ba be").input_ids) == "<s>ba be</s>"
    assert json.loads((run / "export" / "parity.json").read_text())["same_predictions"] == 1.0
    measured = json.loads((run / "bench" / "measurements.json").read_text())["measurements"]
    assert {row["status"] for row in measured} == {"ok"}
    assert pipeline.run(made, progress="quiet").path == run
