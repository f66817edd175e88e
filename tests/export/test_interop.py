"""Artifacts and students opened by other people's loaders: optimum's and transformers'."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from environments import LIMIT, fresh, run, succeeded
from tiny import LABELS, encoded, encoder, tokenizer
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from distillkit.data.batching import collate
from distillkit.export.bundle import export
from distillkit.settings import ExportSettings
from distillkit.types import Want

OPTIMUM = """
import json, sys
import torch
from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import PreTrainedTokenizerFast
folder, texts, told = sys.argv[1:]
model = ORTModelForSequenceClassification.from_pretrained(folder)
tokenizer = PreTrainedTokenizerFast(tokenizer_file=folder + "/tokenizer.json", pad_token="[PAD]")
inputs = tokenizer(json.load(open(texts)), padding=True, return_tensors="pt")
logits = model(**inputs).logits
names = [model.config.id2label[number] for number in range(model.config.num_labels)]
json.dump({"logits": logits.tolist(), "names": names}, open(told, "w"))
"""


def test_config_json_is_one_of_transformers_and_still_says_what_it_said(tmp_path: Path) -> None:
    """What optimum reads before it opens model.onnx."""
    student = encoder(3)
    export(student, tokenizer(), LABELS, encoded(tmp_path, 8), tmp_path, ExportSettings(rows=4))
    told = json.loads((tmp_path / "config.json").read_text())
    read = AutoConfig.from_pretrained(tmp_path)
    assert told["model_type"] == "bert" and told["architectures"] == ["BertForSequenceClassification"]
    assert read.id2label == {0: "bad", 1: "good"} and read.label2id == {"bad": 0, "good": 1}
    assert (told["num_layers"], told["kind"], told["max_length"]) == (2, "classification", 32)
    assert told["pad_token_id"] == tokenizer().pad_token_id
    assert told["inputs"] == ["input_ids", "attention_mask", "token_type_ids"]


def test_a_students_folder_opens_in_transformers_with_the_same_answers(tmp_path: Path) -> None:
    student = encoder(3).eval()
    student.save(tmp_path, LABELS)
    tokenizer().save_pretrained(tmp_path)
    samples = encoded(tmp_path / "cache", 12)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    texts = [text for (text,) in samples.texts]
    inputs = AutoTokenizer.from_pretrained(tmp_path)(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        theirs = model(**inputs).logits
        mine = student.outputs(collate(samples, np.arange(12)), want=Want()).logits
    assert torch.allclose(theirs, mine, atol=1e-6)
    assert model.config.id2label == {0: "bad", 1: "good"}


@pytest.mark.slow
@pytest.mark.timeout(2 * LIMIT)
def test_an_artifact_opens_in_optimum_with_the_same_answers(tmp_path: Path) -> None:
    """optimum's own classes need transformers 4.57, and so an environment of their own."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    student = encoder(3).eval()
    samples = encoded(tmp_path / "cache", 12)
    texts = [text for (text,) in samples.texts]
    export(student, tokenizer(), LABELS, samples, folder, ExportSettings(rows=4))
    with torch.inference_mode():
        wanted = student.model(**tokenizer()(texts, padding=True, return_tensors="pt")).logits.numpy()
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    python = fresh(
        tmp_path / "theirs", "optimum-onnx==0.1.0", "transformers==4.57.6", "onnxruntime", "torch==2.13.0"
    )
    files = [str(folder), str(tmp_path / "texts.json"), str(tmp_path / "told.json")]
    succeeded(run(python, "-c", OPTIMUM, *files))
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["names"] == list(LABELS.names)
    assert np.abs(np.asarray(told["logits"]) - wanted).max() < 1e-5
