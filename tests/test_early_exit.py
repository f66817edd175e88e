"""Rules by which examples leave, and the walk through the parts, against loops over single examples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import entropy

from distillkit.early_exit import (
    Budget,
    Entropy,
    Never,
    Patience,
    Rule,
    mean_depth,
    read_rule,
    simulate,
    uncertainty,
    walk,
    write_rule,
)
from distillkit.errors import ExportError
from distillkit.runtime.early_exit import EarlyExit

SAID = np.random.default_rng(0).normal(size=(4, 300, 3)) * np.array([1.0, 2.0, 3.0, 4.0])[:, None, None]
DEPTHS = (1, 2, 4, 6)
RULES: list[Rule] = [Never(), Entropy(0.5), Patience(1), Patience(2), Budget(3.0, (0.2, 0.4, 0.6))]


def test_uncertainty_is_the_share_of_the_largest_entropy() -> None:
    probabilities = np.exp(SAID[0]) / np.exp(SAID[0]).sum(-1, keepdims=True)
    np.testing.assert_allclose(uncertainty(SAID[0]), entropy(probabilities, axis=-1) / np.log(3))
    assert uncertainty(np.zeros((1, 7)))[0] == pytest.approx(1.0)
    assert uncertainty(np.array([[1e4, 0.0]]))[0] == 0.0  # no overflow


def leave_one(said_EV: np.ndarray[Any, Any], rule: Rule) -> int:
    """One example by hand."""
    named = [int(one.argmax()) for one in said_EV]
    for index in range(len(said_EV) - 1):
        sure = float(uncertainty(said_EV[index : index + 1])[0])
        match rule:
            case Entropy(threshold):
                leaves = sure < threshold
            case Patience(times, _):
                leaves = index >= times and len(set(named[index - times : index + 1])) == 1
            case Budget(_, thresholds):
                leaves = sure < thresholds[index]
            case _:
                leaves = False
        if leaves:
            return index
    return len(said_EV) - 1


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_rule_is_what_it_is_for_one_example(rule: Rule) -> None:
    expected = [leave_one(SAID[:, row], rule) for row in range(SAID.shape[1])]
    assert simulate(SAID, rule).tolist() == expected
    if not isinstance(rule, Never):
        assert len(set(expected)) > 1


def test_patience_of_numbers_is_a_small_change() -> None:
    said = np.array([[[1.0], [1.0]], [[1.04], [1.2]], [[1.5], [1.21]]])
    assert simulate(said, Patience(1, tolerance=0.05)).tolist() == [1, 2]
    assert simulate(said, Patience(1, tolerance=0.3)).tolist() == [1, 1]


@pytest.mark.parametrize("depth", [1.5, 2.0, 3.5, 5.0])
def test_a_budget_is_met_on_the_sample_and_on_others_like_it(depth: float) -> None:
    rule = Budget.fit(SAID, DEPTHS, depth)
    exits = simulate(SAID, rule)
    assert depth - 0.1 < mean_depth(exits, DEPTHS) <= depth
    left = [np.mean(exits[exits >= index] == index) for index in range(3)]
    assert np.ptp(left) < 0.02  # the same share of what comes to each exit
    other = np.random.default_rng(1).normal(size=SAID.shape) * np.array([1, 2, 3, 4])[:, None, None]
    assert mean_depth(simulate(other, rule), DEPTHS) == pytest.approx(depth, abs=0.4)


class Counted:
    """Parts that look answers up by the first token, and remember what they were given."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []

    def parts(self) -> list[Any]:
        return [lambda inputs, index=index: self._part(inputs, index) for index in range(len(SAID))]

    def _part(self, inputs: Mapping[str, Any], index: int) -> Sequence[Any]:
        mask = inputs["attention_mask"]
        self.sizes.append(mask.shape)
        states = inputs["input_ids"][..., None].astype(float) if index == 0 else inputs["states"]
        assert states.shape[:2] == mask.shape and (states[mask == 0] == 0).all()
        rows = states[:, 0, 0].astype(int)
        logits = SAID[index, rows]
        return (logits,) if index == len(SAID) - 1 else (logits, states)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_the_walk_gives_each_example_the_answer_of_its_exit(rule: Rule) -> None:
    count, lengths = 40, np.random.default_rng(2).integers(1, 12, size=40)
    mask = (np.arange(12) < lengths[:, None]).astype(np.int64)
    ids = np.arange(count)[:, None] * mask
    counted = Counted()
    walked = walk(counted.parts(), {"input_ids": ids, "attention_mask": mask}, rule)
    expected = simulate(SAID[:, :count], rule)
    assert np.array_equal(walked.exits, expected)
    np.testing.assert_allclose(walked.logits, SAID[expected, np.arange(count)], rtol=1e-6)
    inside = [np.flatnonzero(expected >= index) for index in range(4)]
    for size, rows in zip(counted.sizes, inside, strict=False):
        shrunk = len(rows) < count
        assert size == ((len(rows), lengths[rows].max()) if shrunk else (count, 12))


def test_parts_behind_the_last_example_do_not_run() -> None:
    counted = Counted()
    inputs = {"input_ids": np.array([[3, 3]]), "attention_mask": np.ones((1, 2), dtype=np.int64)}
    walked = walk(counted.parts(), inputs, Entropy(1.1))
    assert walked.exits.tolist() == [0] and len(counted.sizes) == 1


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_rules_are_written_and_read(rule: Rule) -> None:
    assert read_rule(json.loads(json.dumps(write_rule(rule)))) == rule and rule.words


def test_an_artifact_without_exits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no exits\.json"):
        EarlyExit.open(tmp_path)
    (tmp_path / "exits.json").write_text(json.dumps({"depths": [1], "rule": {"use": "whim"}}))
    with pytest.raises(ExportError, match=r"no exits\.json"):
        EarlyExit.open(tmp_path)
