"""The ELECTRA teacher: published sizes, settings that contradict each other, a run from corpus to report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import LABELS, tokenizer
from tinyrun import CONFIG, Here, write_config, write_data
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ElectraForPreTraining,
    ElectraModel,
)

from distillkit import pipeline
from distillkit.bench import measure
from distillkit.cli import main
from distillkit.encoder import Encoder
from distillkit.errors import ConfigError
from distillkit.objectives.pair import GeneratorPair
from distillkit.settings import Labels, PretrainSettings
from distillkit.teachers.electra import Electra

PUBLISHED = {
    "small": (13_483_008, 13_549_057, 647_162),
    "base": (108_891_648, 109_483_009, 9_903_418),
    "large": (334_092_288, 335_142_913, 19_512_378),
}
TINY = {"layers": 2, "width": 16, "heads": 2, "vocab_size": 120, "positions": 32}


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("size", list(PUBLISHED))
def test_sizes_have_the_published_numbers_of_parameters(size: str) -> None:
    """The body, with its head, and what the generator has beside the shared embeddings."""
    source = Electra(size=size)  # type: ignore[arg-type]
    config = source.config(30_522)
    with torch.device("meta"):
        pair = source.objective.pair(source.generator_config(config), config, tied=source.tie, never=[0])
        body, whole = parameters(ElectraModel(config)), parameters(ElectraForPreTraining(config))
    assert (body, whole, parameters(pair) - whole) == PUBLISHED[size]
    assert source.objective.mask_rate == (0.25 if size == "large" else 0.15)


@pytest.mark.parametrize("size", ["tiny", "mini"])
def test_the_smaller_sizes_have_the_blocks_of_the_smaller_berts(size: str) -> None:
    from distillkit.teachers.bert import SIZES

    config = Electra(size=size).config(1000)  # type: ignore[arg-type]
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == SIZES[size]


def test_the_generator_is_as_deep_a_share_as_wide_and_has_whole_heads() -> None:
    source = Electra(layers=3, width=320, embedding=64, generator_width=0.625)
    config = source.config(500)
    made = source.generator_config(config)
    assert (made.hidden_size, made.num_attention_heads, made.intermediate_size) == (200, 2, 800)
    assert (made.num_hidden_layers, made.embedding_size) == (3, 64)
    same = Electra(layers=1, width=48, heads=3, ffn=100, generator_width=1.0)
    whole = same.config(500)
    assert same.generator_config(whole).to_dict() == whole.to_dict()


@pytest.mark.parametrize("keep", [False, True])
def test_a_pretrained_body_goes_on_in_the_classifier_and_opens_in_transformers(
    tmp_path: Path, keep: bool
) -> None:
    source, made = Electra(**TINY, keep_generator=keep), tokenizer()  # type: ignore[arg-type]
    pair, _ = source.pretraining(made)
    assert isinstance(pair, GeneratorPair) and pair.generator is not None
    (tmp_path / "pretrain").mkdir()
    pair.save_pretrained(tmp_path / "pretrain")
    classifier = source.classifier(made, LABELS, 32, tmp_path / "pretrain")
    assert isinstance(classifier, Encoder)
    body = classifier.model.base_model.state_dict()
    assert all(torch.equal(tensor, body[name]) for name, tensor in pair.main.electra.state_dict().items())
    classifier.save(tmp_path / "teacher", LABELS)
    opened = AutoModel.from_pretrained(str(tmp_path / "teacher"), local_files_only=True)
    assert all(torch.equal(tensor, opened.state_dict()[name]) for name, tensor in body.items())
    assert (tmp_path / "pretrain" / "generator").exists() == keep
    if keep:
        kept = AutoModelForMaskedLM.from_pretrained(
            str(tmp_path / "pretrain/generator"), local_files_only=True
        )
        wanted = pair.generator.state_dict()
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in kept.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "where", "words"),
    [
        ({"size": "small", "layers": 2}, "teacher.size", "both given"),
        ({"layers": 2}, "teacher.size", "neither size nor layers and width"),
        ({"layers": 2, "width": 130, "heads": 4}, "teacher.heads", "do not divide"),
        (
            {"size": "tiny", "positions": 64, "pretrain": PretrainSettings(corpus="x", max_length=128)},
            "teacher.pretrain.max_length",
            "64 positions",
        ),
        ({"size": "tiny", "tie": "all"}, "teacher.tie", "is 0.5 of that"),
        (
            {"size": "tiny", "generator": "two_stage"},
            "teacher.generator",
            "generator_width 0.5 and tie: embed",
        ),
        (
            {"size": "tiny", "generator": "two_stage", "generator_width": 1.0},
            "teacher.generator",
            "share nothing",
        ),
        ({"size": "tiny", "generator": "two_stage", "tie": "none"}, "teacher.generator", "one size"),
        (
            {"size": "tiny", "generator": "unigram", "keep_generator": True},
            "teacher.keep_generator",
            "no network",
        ),
        (
            {"size": "tiny", "generator": "unigram", "generator_width": 0.5},
            "teacher.generator_width",
            "is given",
        ),
        (
            {"size": "tiny", "generator": "mask", "objective": "replace_mlm", "keep_generator": True},
            "teacher.keep_generator",
            "mask has no network",
        ),
        (
            {"size": "tiny", "generator": "mask", "objective": "electra"},
            "teacher.objective",
            "learns from replaced ones",
        ),
        (
            {"size": "tiny", "generator": "adversarial", "objective": "replace_mlm"},
            "teacher.generator",
            "objective: replace_mlm has none",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused_in_words(
    settings: dict[str, Any], where: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Electra(**settings)
    assert caught.value.where == where and caught.value.hint


def test_a_discriminator_answers_no_masked_tokens_and_a_masked_language_model_does(tmp_path: Path) -> None:
    made, masked = tokenizer(), Labels(kind="mlm")
    pretrain = PretrainSettings(corpus="x", max_length=32)
    source = Electra(**TINY, pretrain=pretrain)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="predicts no masked ones"):
        source.classifier(made, masked, 32, None)
    source = Electra(**TINY, pretrain=pretrain, objective="replace_mlm")  # type: ignore[arg-type]
    pair, _ = source.pretraining(made)
    assert isinstance(pair, GeneratorPair)
    pair.save_pretrained(tmp_path)
    opened = source.classifier(made, masked, 32, tmp_path)
    assert isinstance(opened, Encoder) and source.training(masked) is None
    wanted = pair.main.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in opened.model.state_dict().items())


def test_a_masked_language_model_lies_where_one_was_kept() -> None:
    pretrain, place = PretrainSettings(corpus="x", max_length=32), Path("pretrain")

    def lies(**settings: Any) -> Path | None:
        return Electra(**{**TINY, "pretrain": pretrain, **settings}).masked_model(place)

    assert lies() is None and lies(keep_generator=True) == place / "generator"
    assert lies(objective="replace_mlm") == place
    assert lies(objective="replace_mlm", pretrain=None) is None
    assert lies(keep_generator=True, pretrain=None) is None


def config(folder: Path, **teacher: Any) -> Path:
    write_data(folder)
    shared = {name: value for name, value in CONFIG["teacher"].items() if name != "use"}
    finetune = {**shared["finetune"], "epochs": 6, "optimizer": {"lr": 1e-2}, "layer_decay": 0.9}
    made = {**shared, "use": "electra", "embedding": 16, "generator_width": 0.5, "finetune": finetune}
    return write_config(folder, teacher={**made, **teacher}, output=str(folder / "runs"))


def test_an_electra_goes_from_corpus_to_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "Child", Here)
    run = pipeline.run(config(tmp_path, keep_generator=True), progress="quiet").path
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first = next(row for row in rows if row["stage"] == "pretrain")
    assert set(first["terms"]) == {"generator", "discriminator"} and "auc" in first["figures"]
    assert all("figures" not in row for row in rows if row["stage"] != "pretrain")
    opened = AutoModelForSequenceClassification.from_pretrained(str(run / "teacher"), local_files_only=True)
    assert type(opened).__name__ == "ElectraForSequenceClassification"
    assert opened.config.embedding_size == 16
    generator = run / "pretrain" / "generator"
    AutoModelForMaskedLM.from_pretrained(str(generator), local_files_only=True)
    assert AutoTokenizer.from_pretrained(str(generator), local_files_only=True).mask_token == "[MASK]"
    assert not any(
        name.startswith("heads") for name in load_file(str(run / "pretrain" / "model.safetensors"))
    )
    measured = json.loads((run / "bench" / "measurements.json").read_text())["measurements"]
    assert {row["status"] for row in measured} == {"ok"}
    assert "electra" in (run / "report" / "report.html").read_text()
    assert pipeline.run(tmp_path / "config.yaml", progress="quiet").path == run


def test_validate_plan_schema_and_list_know_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = str(config(tmp_path))
    assert main(["validate", made]) == 0
    assert main(["plan", made]) == 0
    assert main(["schema"]) == 0
    told = capsys.readouterr().out
    assert "discriminator_weight" in told and "two_stage" in told
    assert main(["list", "teachers"]) == 0
    assert "electra" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("teacher.generator_width=0", "generator_width"),
        ("teacher.generator_width=1.5", "generator_width"),
        ("teacher.objective=electra15", "objective"),
        ("teacher.tie=all", "teacher.tie"),
        ("teacher.size=medium", "size"),
        ("teacher.discriminator_weight=-1", "discriminator_weight"),
        ("teacher.finetune.layer_decay=0", "layer_decay"),
    ],
)
def test_a_bad_setting_is_named_with_its_value_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, words: str
) -> None:
    assert main(["plan", str(config(tmp_path)), change]) == 2
    told = capsys.readouterr().err
    assert words in told and "Traceback" not in told
    assert change.split("=")[1] in told
