"""A callable as a teacher: held to the contract on the first batch (B65), and asked for no more."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import LABELS, batch, encoder, tokenizer

from distillkit.errors import DistillkitError, ModelError
from distillkit.settings import Labels
from distillkit.teachers.custom import Custom, CustomTeacher
from distillkit.types import Access, Batch, Spec, Want

SPEC = Spec(num_layers=2, hidden_dim=16, num_heads=2, ffn_dim=32, vocab_size=120, num_labels=2, max_length=32)
NUMBERS = itertools.count()
ALL = Want(access=Access.ALL_STATES)


def good(rows: Batch) -> dict[str, Any]:
    told = encoder().eval().outputs(rows, want=ALL)
    states = {f"hidden.{index}": state.detach() for index, state in enumerate(told.hidden)}
    return {"logits": told.logits.detach(), **states}


def changed(name: str, value: Any) -> Any:
    def function(rows: Batch) -> Mapping[str, Any]:
        answer = good(rows)
        answer[name] = value(answer[name])
        return answer

    return function


def outputs(function: Any, rows: Batch) -> Any:
    return Custom(function, spec=SPEC, version="1").teacher(Path(), LABELS).outputs(rows, want=ALL)


def test_a_good_answer_is_passed_on(tmp_path: Path) -> None:
    rows = batch(tmp_path)
    told = outputs(good, rows)
    assert torch.equal(told.logits, good(rows)["logits"]) and len(told.hidden) == 3
    teacher = Custom(good, spec=SPEC, version="1").teacher(Path(), LABELS)
    (last,) = teacher.outputs(rows, want=Want(access=Access.FINAL_STATES)).hidden
    assert torch.equal(last, good(rows)["hidden.2"])
    assert teacher.outputs(rows, want=Want()).hidden == () and teacher.access is Access.ALL_STATES


@pytest.mark.parametrize(
    ("function", "code", "words"),
    [
        (lambda rows: good(rows)["logits"], 4, ("a mapping", "Tensor")),
        (lambda rows: {"scores": good(rows)["logits"]}, 4, ("the key 'logits'", "scores")),
        (lambda rows: {"logits": good(rows)["logits"]}, 4, ("the key 'hidden.0'",)),
        (changed("logits", lambda value: value.numpy()), 4, ("a torch tensor", "ndarray")),
        (changed("logits", lambda value: value[0]), 4, ("shape [6, 2]", "[2]")),
        (changed("logits", lambda value: torch.tensor(1.0)), 4, ("shape [6, 2]", "[]")),
        (changed("logits", lambda value: value[:, :1]), 4, ("shape [6, 2]", "[6, 1]")),
        (changed("logits", lambda value: value.long()), 4, ("floating point", "int64")),
        (changed("logits", lambda value: value.clone().requires_grad_()), 4, ("without gradient",)),
        (changed("hidden.1", lambda value: value[:, :, :8]), 4, ("hidden.1", "16]")),
        (changed("hidden.1", lambda value: value * float("nan")), 6, ("hidden.1", "NaN", "example ids")),
        (changed("logits", lambda value: value + next(NUMBERS)), 4, ("the same answer", "eval mode")),
    ],
)
def test_a_broken_answer_is_told_as_expected_and_got(
    tmp_path: Path, function: Any, code: int, words: tuple[str, ...]
) -> None:
    with pytest.raises(DistillkitError) as caught:
        outputs(function, batch(tmp_path))
    assert caught.value.exit_code == code
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_it_cannot_be_intervened_on(tmp_path: Path) -> None:
    teacher = Custom(good, spec=SPEC, version="1").teacher(Path(), LABELS)
    with pytest.raises(ModelError, match="intervened"):
        teacher.outputs(batch(tmp_path), want=ALL, swap={0: torch.zeros_like})


def test_its_tokenizer_is_its_folders_or_one_trained_on_the_task(tmp_path: Path) -> None:
    tokenizer().save_pretrained(tmp_path / "tokenizer")
    brought = Custom(good, spec=SPEC, version="1", tokenizer=tmp_path / "tokenizer").tokenizer([])
    assert brought.get_vocab() == tokenizer().get_vocab()
    trained = Custom(good, spec=SPEC, version="1").tokenizer(["some words of the task"] * 5)
    assert 5 < len(trained) <= 120


def test_another_version_is_another_teacher() -> None:
    first, second = (Custom(good, spec=SPEC, version=version).fingerprint() for version in ("1", "2"))
    assert first != second


def test_on_tokens_it_answers_the_asked_ones_over_the_vocabulary_of_its_spec(tmp_path: Path) -> None:
    made = batch(tmp_path)
    asked = replace(made, scored=made.mask & (torch.arange(made.mask.shape[1]) > 1))
    spec = Spec(0, 0, 0, 0, 120, 120, 32)

    def function(given: Batch) -> dict[str, torch.Tensor]:
        return {"logits": torch.nn.functional.one_hot(given.inputs["input_ids"][given.scored], 120).float()}

    teacher = CustomTeacher(function, spec, Labels(kind="mlm"))
    assert teacher.outputs(asked, want=Want()).logits.shape == (asked.num_answers, 120)
    with pytest.raises(ModelError, match=r"expected logits of shape"):
        CustomTeacher(function, replace(spec, num_labels=60), Labels(kind="mlm")).outputs(asked, want=Want())
