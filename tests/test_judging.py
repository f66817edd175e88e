"""Tags and masked tokens: scores against hand counts, seqeval and torch; what is kept of logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from seqeval.metrics import f1_score as seqeval_f1
from sklearn import metrics as sk
from torch.nn import functional

from distillkit import evaluate
from distillkit.answers import BEST, collect, logits, pieces
from distillkit.data.batching import Encoded
from distillkit.data.scoring import LabelledTokens
from distillkit.errors import ModelError
from distillkit.settings import Labels
from distillkit.types import IGNORED, Batch

NAMES = ("B-a", "B-b", "I-a", "I-b", "O")
TAGS = Labels(kind="token_classification", names=NAMES)
PLAIN = Labels(kind="token_classification", names=("DET", "NOUN", "VERB"))
MASKED = Labels(kind="mlm")


def gold_of(rows: list[list[str]]) -> np.ndarray:
    return np.array([(NAMES.index(tag), place) for place, row in enumerate(rows) for tag in row])


def answers_of(rows: list[list[str]]) -> np.ndarray:
    return 3.0 * np.eye(len(NAMES))[gold_of(rows)[:, 0]]


def random_rows(count: int, seed: int) -> list[list[str]]:
    generator = np.random.default_rng(seed)
    return [generator.choice(NAMES, size=generator.integers(1, 8)).tolist() for _ in range(count)]


def test_entities_are_counted_whole() -> None:
    """By hand: gold has 4 entities, 3 are predicted, 2 of them exactly; half an entity is none."""
    gold = [["B-a", "I-a", "O", "B-b"], ["B-a", "O"], ["B-b", "I-b", "I-b"]]
    said = [["B-a", "I-a", "O", "B-a"], ["B-a", "O"], ["O", "O", "O"]]
    scores = evaluate.values(TAGS, gold_of(gold), answers_of(said))
    assert scores["entity_f1"] == pytest.approx(2 * 2 / (3 + 4))
    assert scores["accuracy"] == pytest.approx(5 / 9)


def test_an_entity_ends_with_its_row() -> None:
    """Rows laid end to end would make one entity of two."""
    gold = [["B-a"], ["I-a", "O"]]
    assert evaluate.values(TAGS, gold_of(gold), answers_of(gold))["entity_f1"] == 1.0
    said = [["B-a"], ["O", "O"]]
    assert evaluate.values(TAGS, gold_of(gold), answers_of(said))["entity_f1"] == pytest.approx(2 / 3)


def test_scores_of_tags_are_seqevals_and_scikit_learns() -> None:
    gold, said = random_rows(60, 1), random_rows(60, 1)
    generator = np.random.default_rng(2)
    said = [[tag if generator.random() < 0.7 else "O" for tag in row] for row in said]
    scores = evaluate.score(TAGS, gold_of(gold), answers_of(said), seed=0)
    flat = [tag for row in gold for tag in row], [tag for row in said for tag in row]
    expected = {
        "entity_f1": seqeval_f1(gold, said),
        "accuracy": sk.accuracy_score(*flat),
        "macro_f1": sk.f1_score(*flat, average="macro"),
    }
    assert list(scores) == list(expected)
    for name, value in expected.items():
        assert scores[name].value == pytest.approx(value)
        assert scores[name].low < value < scores[name].high and scores[name].n == 60


def test_tags_that_begin_no_entity_are_scored_by_word() -> None:
    gold = np.array([[0, 0], [1, 0], [2, 1]])
    assert list(evaluate.values(PLAIN, gold, np.eye(3))) == ["accuracy", "macro_f1"]
    assert evaluate.default_metric(PLAIN) == "accuracy" and evaluate.default_metric(TAGS) == "entity_f1"


def test_intervals_resample_rows_and_not_words() -> None:
    """All words of a row are right or all wrong: by rows the interval is that of 40 coin tosses."""
    right = np.random.default_rng(3).random(40) < 0.5
    gold = np.array([(0, row) for row in range(40) for _ in range(25)])
    answers = np.eye(3)[np.repeat(np.where(right, 0, 1), 25)]
    by_words = evaluate.score(PLAIN, gold, answers, seed=0)["accuracy"]
    deviation = math.sqrt(right.mean() * (1 - right.mean()) / 40)
    assert by_words.high - by_words.low == pytest.approx(2 * 1.96 * deviation, rel=0.15)


def test_a_teacher_of_tags_is_held_to_entities_where_nearly_all_words_lie_outside() -> None:
    rows = [["O"] * 30 + (["B-a"] if row % 2 else ["O"]) for row in range(60)]
    gold = gold_of(rows)
    lazy, good = answers_of([["O"] * 31 for _ in rows]), answers_of(rows)
    assert not evaluate.better_than_majority(TAGS, gold, gold, lazy, seed=0).passes
    verdict = evaluate.better_than_majority(TAGS, gold, gold, good, seed=0)
    assert verdict.passes and "entity_f1 1.0000 against 0.0000" in verdict.sentence


def test_what_is_kept_of_a_vocabulary_is_enough_for_loss_and_confidence() -> None:
    torch.manual_seed(0)
    scores, gold = torch.randn(50, 11), torch.randint(11, (50,))
    kept = pieces(scores, gold).numpy()
    rows = np.stack([gold.numpy(), np.arange(50) // 5], axis=1)
    found = evaluate.score(MASKED, rows, kept, seed=0)
    cost = float(functional.cross_entropy(scores, gold))
    assert found["cross_entropy"].value == pytest.approx(cost, rel=1e-6)
    assert found["perplexity"].value == pytest.approx(math.exp(cost), rel=1e-6)
    assert found["accuracy"].value == pytest.approx(float((scores.argmax(1) == gold).float().mean()))
    assert found["accuracy"].n == 10
    calibrated = evaluate.calibration(MASKED, rows, kept)
    whole = evaluate.calibration(Labels(kind="classification"), gold.numpy(), scores.numpy())
    assert (
        calibrated is not None and whole is not None and calibrated.ece == pytest.approx(whole.ece, rel=1e-5)
    )
    with pytest.raises(ModelError, match="11 entries do not fit"):
        pieces(scores, gold + 11)


def test_the_constant_answer_of_a_vocabulary_is_how_often_each_entry_stands_in_train() -> None:
    train = np.array([[2, 0]] * 5 + [[1, 0]] * 2)
    gold = np.array([[2, 0], [2, 0], [1, 1], [3, 1]])
    baseline = evaluate.majority(MASKED, train, gold)
    probability = np.array([1, 3, 6, 1]) / 11
    expected = -np.log(probability[gold[:, 0]]).mean()
    assert baseline.metrics["cross_entropy"] == pytest.approx(expected)
    assert baseline.metrics["accuracy"] == 0.5 and baseline.answer == "entry 2"


def test_agreement_over_a_vocabulary_is_share_and_kappa() -> None:
    generator = np.random.default_rng(5)
    first, second = generator.integers(0, 9, 80), generator.integers(0, 9, 80)
    second[:50] = first[:50]
    one, two = (np.stack([ids, np.zeros(80), -np.arange(80.0)], axis=1) for ids in (first, second))
    found = evaluate.agreement(MASKED, one, two)
    assert found["same"] == pytest.approx((first == second).mean())
    assert found["kappa"] == pytest.approx(sk.cohen_kappa_score(first, second))


def test_answers_to_tokens_come_back_in_the_order_of_the_rows() -> None:
    """Batches run longest first; a row without an answer takes no place."""
    lengths = np.array([3, 6, 2, 5, 4])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.arange(offsets[-1], dtype=np.int32)
    labels = np.where(tokens % 3 == 0, tokens, IGNORED)
    labels[offsets[2] : offsets[3]] = IGNORED
    made = Encoded(
        tokens=tokens,
        types=np.zeros(len(tokens), dtype=np.int8),
        offsets=offsets,
        labels=labels,
        ids=np.arange(5),
        texts=((),) * 5,
        pad_id=0,
        truncated=0,
        unknown=0,
        digest="d",
        scoring=LabelledTokens(),
    )

    def forward(batch: Batch) -> torch.Tensor:
        return batch.inputs["input_ids"][batch.scored][:, None].float()

    found = collect(forward, made, logits, tokens=8)
    assert made.gold is not None and found[:, BEST].tolist() == made.gold[:, 0].tolist()
    with pytest.raises(ModelError, match="for 2 answers"):
        collect(lambda batch: torch.zeros(1, 2), made, logits, tokens=8)
