"""The DeBERTa-v3 teacher: published sizes, settings that contradict each other, a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_electra_teacher import TINY, parameters
from tiny import LABELS, tokenizer
from tinyrun import CONFIG, write_config, write_data
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DebertaV2Model,
)

from distillkit import pipeline
from distillkit.cli import main
from distillkit.encoder import Encoder, load_masked
from distillkit.errors import ConfigError
from distillkit.objectives.pair import GeneratorPair
from distillkit.settings import Labels, PretrainSettings
from distillkit.teachers.deberta import PUBLISHED_VOCABULARY, Deberta

PUBLISHED = {"xsmall": 70_682_112, "base": 183_831_552}
BACKBONES = {"xsmall": 22, "small": 44, "base": 86, "large": 304}
"""Millions of parameters without the table of tokens, as the released models' cards round them."""


@pytest.mark.parametrize("size", list(BACKBONES))
def test_sizes_have_the_published_numbers_of_parameters(size: str) -> None:
    source = Deberta(size=size)  # type: ignore[arg-type]
    assert source.vocab_size == PUBLISHED_VOCABULARY
    with torch.device("meta"):
        model = DebertaV2Model(source.config(source.vocab_size))
    table = model.get_input_embeddings().weight.numel()
    assert parameters(model) == PUBLISHED.get(size, parameters(model))
    assert (parameters(model) - table) / 1e6 == pytest.approx(BACKBONES[size], rel=0.03)


def test_the_architecture_is_v3s_and_the_generator_is_as_wide_and_half_as_deep() -> None:
    source = Deberta(size="base")
    config = source.config(500)
    assert config.share_att_key and not config.position_biased_input
    assert config.relative_attention and set(config.pos_att_type) == {"c2p", "p2c"}
    assert (config.norm_rel_ebd, config.position_buckets, config.type_vocab_size) == ("layer_norm", 256, 0)
    made = source.generator_config(config)
    assert (made.num_hidden_layers, made.hidden_size, made.num_attention_heads) == (6, 768, 12)
    assert config.num_hidden_layers == 12
    one = Deberta(layers=1, width=16)
    assert one.generator_config(one.config(9)).num_hidden_layers == 1
    assert Deberta(size="tiny").vocab_size == 30_522


def test_the_table_of_distances_learns_as_slowly_as_that_of_tokens() -> None:
    """It stands behind the blocks in the model's definition, where the head does."""
    model = Deberta(**TINY).classifier(tokenizer(), LABELS, 32, None)  # type: ignore[arg-type]
    assert isinstance(model, Encoder)
    lowest = model.layers()[0]
    for table in (model.model.get_input_embeddings(), model.model.deberta.encoder.rel_embeddings):
        assert any(one is table.weight for one in lowest)
    assert sum(map(len, model.layers())) == len(list(model.parameters()))


@pytest.mark.parametrize("keep", [False, True])
def test_a_pretrained_body_goes_on_in_the_classifier(tmp_path: Path, keep: bool) -> None:
    source = Deberta(**TINY, keep_generator=keep, mask_decoder="plain")  # type: ignore[arg-type]
    made = tokenizer()
    pair, _ = source.pretraining(made)
    assert isinstance(pair, GeneratorPair) and pair.generator is not None
    with torch.no_grad():
        pair.main.get_input_embeddings().delta.weight.normal_()
    pair.save_pretrained(tmp_path)
    classifier = source.classifier(made, LABELS, 32, tmp_path)
    assert isinstance(classifier, Encoder) and classifier.spec.attention
    table = classifier.model.get_input_embeddings().weight
    wanted = pair.generator.get_input_embeddings().weight + pair.main.get_input_embeddings().delta.weight
    assert torch.equal(table, wanted)
    body = classifier.model.base_model.state_dict()
    rest = {name: one for name, one in pair.main.state_dict().items() if "word_embeddings" not in name}
    assert rest and all(torch.equal(one, body[name]) for name, one in rest.items())
    assert (tmp_path / "generator").exists() == keep
    if keep:
        kept = load_masked(tmp_path / "generator").model.state_dict()
        assert all(torch.equal(one, kept[name]) for name, one in pair.generator.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "where", "words"),
    [
        ({"size": "small", "layers": 2}, "teacher.size", "both given"),
        ({"layers": 2, "width": 130, "heads": 4}, "teacher.heads", "do not divide"),
        ({"size": "tiny", "keep_generator": True}, "teacher.keep_generator", "no enhanced mask decoder"),
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
        Deberta(**settings)
    assert caught.value.where == where and caught.value.hint


def test_masked_tokens_are_answered_by_a_generator_that_is_kept_alone() -> None:
    pretrain, place = PretrainSettings(corpus="x", max_length=32), Path("pretrain")
    source = Deberta(**TINY, pretrain=pretrain)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="predicts no masked ones"):
        source.classifier(tokenizer(), Labels(kind="mlm"), 32, None)
    assert source.masked_model(place) is None
    settings: dict[str, Any] = {**TINY, "keep_generator": True, "mask_decoder": "plain"}
    assert Deberta(**settings, pretrain=pretrain).masked_model(place) == place / "generator"


def config(folder: Path, **teacher: Any) -> Path:
    write_data(folder)
    shared = {name: value for name, value in CONFIG["teacher"].items() if name != "use"}
    finetune = {**shared["finetune"], "epochs": 6, "optimizer": {"lr": 1e-2}, "layer_decay": 0.9}
    made = {**shared, "use": "deberta", "finetune": finetune}
    student = {"use": "transformer", "layers": 1, "initialise": {"from": "teacher", "layers": [2]}}
    sections = {"teacher": {**made, **teacher}, "student": student, "output": str(folder / "runs")}
    return write_config(folder, **sections)


def test_a_deberta_goes_from_corpus_to_an_exported_student(tmp_path: Path) -> None:
    made = config(tmp_path, keep_generator=True, mask_decoder="plain")
    run = pipeline.run(made, progress="quiet", until="export").path
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first = next(row for row in rows if row["stage"] == "pretrain")
    assert set(first["terms"]) == {"generator", "discriminator"} and "auc" in first["figures"]
    opened = AutoModelForSequenceClassification.from_pretrained(str(run / "teacher"), local_files_only=True)
    assert type(opened).__name__ == "DebertaV2ForSequenceClassification"
    generator = str(run / "pretrain" / "generator")
    AutoModelForMaskedLM.from_pretrained(generator, local_files_only=True)
    tokens = AutoTokenizer.from_pretrained(generator, local_files_only=True)
    assert tokens.mask_token == "[MASK]"
    assert tokens.tokenize("bado")[0] != "[UNK]" and tokens("bado")["input_ids"][0] == tokens.cls_token_id
    assert json.loads((run / "student" / "config.json").read_text())["model_type"] == "deberta-v2"
    assert list((run / "export").glob("*.onnx")), "and its answers were compared"


def test_plan_schema_and_list_know_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = str(config(tmp_path))
    assert main(["plan", made]) == 0
    assert main(["schema"]) == 0
    told = capsys.readouterr().out
    assert "mask_decoder" in told and "gdes" in told
    assert main(["list", "teachers"]) == 0
    assert "deberta" in capsys.readouterr().out
    assert main(["plan", made, "teacher.sharing=both"]) == 2
    assert "sharing" in capsys.readouterr().err
