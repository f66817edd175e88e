"""The XLNet teacher: published sizes, states that a loss can read, padding, a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_electra_teacher import TINY, parameters
from tiny import LABELS, batch, tokenizer
from tinyrun import CONFIG, write_config, write_data
from torch.nn import functional
from transformers import AutoModel, AutoModelForSequenceClassification, XLNetLMHeadModel, XLNetModel
from transformers.models.xlnet.modeling_xlnet import XLNetRelativeAttention

from distillkit import pipeline
from distillkit.encoder import Encoder, shifted
from distillkit.errors import ConfigError
from distillkit.model import FixedTeacher
from distillkit.settings import Initialise, Labels, PretrainSettings
from distillkit.students.exits import Exits
from distillkit.students.transformer import Transformer
from distillkit.teachers.xlnet import Xlnet
from distillkit.types import Access, Want


def classifier(**settings: Any) -> Encoder:
    torch.manual_seed(0)
    made = Xlnet(**{**TINY, **settings}).classifier(tokenizer(), LABELS, 32, None).eval()
    assert isinstance(made, Encoder)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def test_base_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        assert parameters(XLNetModel(Xlnet(size="base").config(32_000))) == 116_718_336
        large = XLNetModel(Xlnet(size="large").config(32_000))
    width, layers = 1024, 24
    attention = 5 * width**2 + 5 * width + 2 * width
    forward = 8 * width**2 + 5 * width + 2 * width
    assert parameters(large) == layers * (attention + forward) + 32_001 * width


def test_a_pretrained_body_goes_on_in_the_classifier_and_opens_in_transformers(tmp_path: Path) -> None:
    source, made = Xlnet(**TINY, memory=8), tokenizer()  # type: ignore[arg-type]
    model, _ = source.pretraining(made)
    assert isinstance(model, XLNetLMHeadModel)
    model.save_pretrained(tmp_path / "pretrain")
    opened = source.classifier(made, LABELS, 32, tmp_path / "pretrain")
    assert isinstance(opened, Encoder) and opened.spec.num_segments == 2
    body = opened.model.base_model.state_dict()
    assert all(torch.equal(one, body[name]) for name, one in model.transformer.state_dict().items())
    opened.save(tmp_path / "teacher", LABELS)
    again = AutoModel.from_pretrained(str(tmp_path / "teacher"), local_files_only=True)
    assert all(torch.equal(one, again.state_dict()[name]) for name, one in body.items())
    assert Encoder.load(tmp_path / "teacher").spec == opened.spec


def test_padding_changes_no_answer_on_either_side(tmp_path: Path) -> None:
    model, rows = classifier(), batch(tmp_path)
    with torch.no_grad():
        wanted = model.outputs(rows, want=Want()).logits
        for index, length in enumerate(rows.mask.sum(dim=1).tolist()):
            alone = {name: value[index : index + 1, :length] for name, value in rows.inputs.items()}
            torch.testing.assert_close(model.model(**alone).logits[0], wanted[index], atol=1e-5, rtol=1e-5)
        wide = {name: functional.pad(value, (0, 5)) for name, value in rows.inputs.items()}
        torch.testing.assert_close(model.model(**wide).logits, wanted, atol=1e-5, rtol=1e-5)
    assert float((wanted[0] - wanted[1]).abs().max()) > 1e-3


def test_its_states_are_those_of_transformers_by_example_and_can_be_changed(tmp_path: Path) -> None:
    """Its blocks hand them on by position first, which a loss must not see."""
    model, rows = classifier(), batch(tmp_path)
    B, L = rows.mask.shape
    assert L != B
    with torch.no_grad():
        wanted = model.model.transformer(**rows.inputs, output_hidden_states=True).hidden_states
        found = model.outputs(rows, want=Want(Access.ALL_STATES))
        assert [tuple(state.shape) for state in found.hidden] == [(B, L, 16)] * 3
        for one, other in zip(found.hidden, wanted, strict=True):
            assert torch.equal(one, other)
        (last,) = model.outputs(rows, want=Want(Access.FINAL_STATES)).hidden
        assert torch.equal(last, wanted[-1])
        seen: list[tuple[int, ...]] = []

        def change(states_BLD: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(states_BLD.shape))
            return torch.cat([states_BLD[1:2], states_BLD[1:]])

        swapped = model.outputs(rows, want=Want(), swap={1: change}).logits
    assert seen == [(B, L, 16)]
    plain = found.logits
    assert not torch.equal(swapped[0], plain[0])
    torch.testing.assert_close(swapped[1:], plain[1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("length", "memory"), [(1, 0), (5, 0), (4, 3)])
def test_the_shift_that_is_exported_is_that_of_transformers(length: int, memory: int) -> None:
    keys = length + memory
    scores = torch.randn(2, 3, length, keys + length)
    assert torch.equal(shifted(scores, keys), XLNetRelativeAttention.rel_shift_bnij(scores, keys))


def test_a_student_is_cut_from_it_and_exits_are_refused_in_words() -> None:
    teacher = classifier(layers=3)
    cut = Transformer(layers=2, initialise=Initialise.model_validate({"from": "teacher", "layers": [1, 3]}))
    student = cut.build(tokenizer(), LABELS, 32, FixedTeacher(teacher))
    assert isinstance(student, Encoder) and student.spec.num_layers == 2
    assert student.model.config.model_type == "xlnet"
    with pytest.raises(ConfigError, match="by position") as caught:
        Exits(of=cut, at=[1]).build(tokenizer(), LABELS, 32, FixedTeacher(teacher))  # type: ignore[arg-type]
    assert caught.value.where == "student.of" and caught.value.hint


@pytest.mark.parametrize(
    ("settings", "where", "words"),
    [
        ({"size": "base", "layers": 2}, "teacher.size", "both given"),
        ({"layers": 2, "width": 33, "heads": 3}, "teacher.width", "33 is odd"),
        (
            {"size": "tiny", "positions": 64, "pretrain": PretrainSettings(corpus="x", max_length=128)},
            "teacher.pretrain.max_length",
            "64 positions",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused_in_words(
    settings: dict[str, Any], where: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Xlnet(**settings)
    assert caught.value.where == where and caught.value.hint


def test_it_predicts_no_masked_tokens() -> None:
    source = Xlnet(**TINY, pretrain=PretrainSettings(corpus="x", max_length=32))  # type: ignore[arg-type]
    assert source.masked_model(Path("pretrain")) is None
    with pytest.raises(ConfigError, match="no masked ones"):
        source.classifier(tokenizer(), Labels(kind="mlm"), 32, None)


def test_an_xlnet_goes_from_corpus_to_an_exported_student(tmp_path: Path) -> None:
    write_data(tmp_path)
    made = {**CONFIG["teacher"], "use": "xlnet", "memory": 16}
    made["finetune"] = {**made["finetune"], "epochs": 6, "layer_decay": 0.9}
    student = {"use": "transformer", "layers": 1, "initialise": {"from": "teacher", "layers": [2]}}
    path = write_config(tmp_path, teacher=made, student=student, output=str(tmp_path / "runs"))
    run = pipeline.run(path, progress="quiet", until="export").path
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first = next(row for row in rows if row["stage"] == "pretrain")
    assert set(first["terms"]) == {"permutation"} and "accuracy" in first["figures"]
    opened = AutoModelForSequenceClassification.from_pretrained(str(run / "teacher"), local_files_only=True)
    assert type(opened).__name__ == "XLNetForSequenceClassification"
    assert (opened.config.summary_type, opened.config.mem_len) == ("first", 16)
    assert json.loads((run / "student" / "config.json").read_text())["model_type"] == "xlnet"
    assert list((run / "export").glob("*.onnx")), "and its answers were compared"
