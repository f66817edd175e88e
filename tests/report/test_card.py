"""The card: metadata that the hub accepts, snippets that run, no text of the data, nothing hostile."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from artifacts import make
from hostile import PAYLOADS, hostile
from huggingface_hub import ModelCard
from report_sample import classification, minimal, regression
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from distillkit.report.card import render_card, write_model_card
from distillkit.report.facts import RunFacts


@pytest.mark.parametrize("facts", [classification(), regression(), minimal()], ids=lambda facts: facts.name)
def test_the_front_matter_is_read_back_by_the_hub_library(facts: RunFacts, tmp_path: Path) -> None:
    write_model_card(facts, tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "text-classification"
    found = {result.metric_name: result.metric_value for result in data.eval_results}
    assert found == {name: round(one.value, 4) for name, one in facts.student.metrics.items()}
    assert all(result.dataset_split == facts.task.measured_on for result in data.eval_results)


def test_the_card_says_what_was_kept_and_lost() -> None:
    card = render_card(classification())
    assert "The student keeps 97.1 % of the teacher’s accuracy (0.842 vs 0.867)" in card
    assert (
        "| accuracy | 0.867 (0.845 to 0.889) | 0.842 (0.820 to 0.864) | −0.025 (−0.041 to −0.009) |" in card
    )
    assert "Classes, in id order: negative, positive." in card
    assert "Texts are cut after 128 tokens" in card
    assert "None" not in "".join(re.split(r"```python.*?```", card, flags=re.DOTALL))


def test_no_text_of_the_data_stands_in_the_card() -> None:
    facts = classification()
    card = render_card(facts)
    assert not [text for row in facts.examples for text in row.texts if text[:20] in card]
    assert facts.config.splitlines()[2] not in card


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_names_do_not_become_markup(payload: str) -> None:
    card = render_card(hostile(payload))
    body = ModelCard(card).text
    assert not re.search(r"<(?!/?(br)\b)[a-zA-Z!/]", body)
    assert not re.search(r"(?<!\\)\]\(", body)
    fences = [line for line in body.splitlines() if line.startswith("```")]
    assert fences == ["```python", "```"] * 3
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", card)
    card.encode("utf-8")


def test_home_folders_do_not_reach_the_card() -> None:
    facts = replace(classification(), losses={"kd": "reads /home/alice/teacher"})
    assert "alice" not in render_card(facts)


def _snippets(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "a",
        "text",
        "to",
        "judge",
        "and",
        "another",
        "longer",
        "one",
        ",",
    ]
    inner = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(folder)


def _run(snippet: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    exec(snippet.replace('folder = "."', f"folder = {str(folder)!r}"), {})
    return json.loads(capsys.readouterr().out.replace("'", '"'))


@pytest.fixture
def student_folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=13,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        id2label={0: "negative", 1: "positive"},
        label2id={"negative": 0, "positive": 1},
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    _tokenizer(tmp_path)
    return tmp_path


def test_the_transformers_snippet_runs(student_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snippet = _snippets(render_card(classification()))[0]
    assert _run(snippet, student_folder, capsys)[0] in ("negative", "positive")


def test_the_snippet_of_the_runtime_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snippet = _snippets(render_card(classification()))[1]
    folder = make(tmp_path, labels=("negative", "positive")).folder
    assert set(_run(snippet, folder, capsys)) <= {"negative", "positive"}


def test_the_onnx_snippet_runs_and_names_the_label(
    student_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session is stood in for: what is fed, and how the answer is read, can be wrong here."""
    fed: dict[str, np.ndarray] = {}

    class Entry:
        def __init__(self, name: str) -> None:
            self.name = name

    class Session:
        def __init__(self, path: str, providers: list[str]) -> None:
            assert path.endswith("model.onnx")

        def get_inputs(self) -> list[Entry]:
            return [Entry("input_ids"), Entry("attention_mask")]

        def run(self, _: None, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
            fed.update(feed)
            return [np.array([[0.0, 1.0], [1.0, 0.0]])]

    monkeypatch.setattr("onnxruntime.InferenceSession", Session)
    snippet = _snippets(render_card(classification()))[2]
    assert _run(snippet, student_folder, capsys) == ["positive", "negative"]
    assert fed["input_ids"].shape == fed["attention_mask"].shape == (2, 7)
    assert fed["attention_mask"].sum(axis=1).tolist() == [6, 7]
