"""The BERT teacher: published sizes, and folders that `transformers` opens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import LABELS, tokenizer
from transformers import AutoModel, BertForPreTraining, BertModel

from distillkit.encoder import Encoder
from distillkit.errors import ConfigError
from distillkit.settings import PretrainSettings
from distillkit.teachers.bert import Bert

PUBLISHED = {
    "tiny": (4_385_920, 4_433_468),
    "mini": (11_170_560, 11_267_900),
    "small": (28_763_648, 29_058_876),
    "medium": (41_373_184, 41_668_412),
    "base": (109_482_240, 110_106_428),
    "large": (335_141_888, 336_226_108),
}


@pytest.mark.parametrize("size", list(PUBLISHED))
def test_sizes_have_the_published_numbers_of_parameters(size: str) -> None:
    config = Bert(size=size).config(30_522)  # type: ignore[arg-type]
    with torch.device("meta"):
        counts = tuple(
            sum(p.numel() for p in kind(config).parameters()) for kind in (BertModel, BertForPreTraining)
        )
    assert counts == PUBLISHED[size]


def test_a_pretrained_body_goes_on_in_the_classifier_and_opens_in_transformers(tmp_path: Path) -> None:
    source = Bert(layers=2, width=16, heads=2, vocab_size=120, positions=32)
    made = tokenizer()
    model, _ = source.pretraining(made)
    assert isinstance(model, BertForPreTraining)
    model.save_pretrained(tmp_path / "pretrain")
    classifier = source.classifier(made, LABELS, 32, tmp_path / "pretrain")
    assert isinstance(classifier, Encoder)
    body = classifier.model.base_model.state_dict()
    assert all(torch.equal(tensor, body[name]) for name, tensor in model.bert.state_dict().items())
    classifier.save(tmp_path / "teacher", LABELS)
    opened = AutoModel.from_pretrained(str(tmp_path / "teacher"), local_files_only=True)
    assert all(torch.equal(tensor, opened.state_dict()[name]) for name, tensor in body.items())
    assert opened.config.id2label == {0: "bad", 1: "good"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": "mini", "layers": 2}, "both given"),
        ({"layers": 2}, "neither size nor layers and width"),
        ({"layers": 2, "width": 130, "heads": 4}, "do not divide"),
        (
            {"size": "tiny", "positions": 64, "pretrain": PretrainSettings(corpus="x", max_length=128)},
            "64 positions",
        ),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Bert(**settings)  # type: ignore[arg-type]


def test_a_task_longer_than_the_positions_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"32 positions"):
        Bert(layers=1, width=16, heads=2, positions=32).classifier(tokenizer(), LABELS, 64, None)
