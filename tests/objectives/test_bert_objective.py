"""BERT's data and loss: exact counts, keyed randomness, put-back, and the same loss as the full model."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import documents, tokenizer
from transformers import BertForPreTraining

from distillkit.data.masking import choose, choose_words, corrupt, keyed_uniform
from distillkit.errors import DataError
from distillkit.objectives.bert import BertObjective, Pairs, build_pairs
from distillkit.objectives.feed import ObjectiveFeed
from distillkit.settings import PretrainSettings
from distillkit.teachers.bert import Bert
from distillkit.types import IGNORED

LENGTH = 32


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "corpus"
    BertObjective().prepare(iter(documents()), tokenizer(), folder, max_length=LENGTH)
    return folder


def pairs_of(folder: Path, *, epoch: int = 0, seed: int = 3, objective: BertObjective | None = None) -> Pairs:
    return (objective or BertObjective()).examples(folder, epoch=epoch, seed=seed)


def test_pairs_are_next_or_random_and_lie_in_whole_documents(prepared: Path) -> None:
    pairs = pairs_of(prepared)
    corpus = pairs.corpus
    edges = corpus.sentences[corpus.documents]

    def document(token: int) -> int:
        return int(np.searchsorted(edges, token, side="right"))

    assert {0, 1} == set(pairs.is_random.tolist())
    for a_start, a_end, b_start, b_end, label in zip(
        pairs.a_start, pairs.a_end, pairs.b_start, pairs.b_end, pairs.is_random, strict=True
    ):
        assert a_end > a_start and b_end > b_start
        assert document(a_start) == document(a_end - 1) and document(b_start) == document(b_end - 1)
        if label:
            assert document(a_start) != document(b_start), (
                "a random next from the same document may be the true next"
            )
        else:
            assert document(a_start) == document(b_start) and b_start >= a_end
    assert int(pairs.lengths.max()) <= LENGTH


def test_no_sentence_is_lost_because_what_b_did_not_use_is_put_back(prepared: Path) -> None:
    """Dropping the rest of a chunk after a random next loses about half of the corpus."""
    corpus = pairs_of(prepared).corpus
    wide = Pairs(corpus, *(np.zeros(0, dtype=np.int64) for _ in range(5))).corpus
    facts = {**wide.facts, "max_length": 10_000}  # nothing is truncated
    roomy = build_pairs(
        type(corpus)(corpus.tokens, corpus.sentences, corpus.documents, corpus.continues, facts),
        random.Random(1),
        0.5,
    )
    seen = np.zeros(len(corpus.tokens), dtype=int)
    for a_start, a_end in zip(roomy.a_start, roomy.a_end, strict=True):
        seen[a_start:a_end] += 1
    for b_start, b_end, label in zip(roomy.b_start, roomy.b_end, roomy.is_random, strict=True):
        if not label:
            seen[b_start:b_end] += 1
    assert (seen == 1).all()


def test_truncation_takes_from_the_longer_segment_one_by_one(prepared: Path) -> None:
    corpus = pairs_of(prepared).corpus
    room = LENGTH - 3
    whole = build_pairs(
        type(corpus)(
            corpus.tokens,
            corpus.sentences,
            corpus.documents,
            corpus.continues,
            {**corpus.facts, "max_length": 10_000},
        ),
        random.Random(2),
        0.0,
    )
    from distillkit.objectives.bert import _truncate

    a_start, a_end, b_start, b_end = _truncate(
        (whole.a_start, whole.a_end, whole.b_start, whole.b_end), room, random.Random(3)
    )
    for row in range(len(whole.a_start)):
        a, b = int(whole.a_end[row] - whole.a_start[row]), int(whole.b_end[row] - whole.b_start[row])
        while a + b > room:
            if a > b:
                a -= 1
            else:
                b -= 1
        assert (a_end[row] - a_start[row], b_end[row] - b_start[row]) == (a, b)
        assert a_start[row] >= whole.a_start[row] and a_end[row] <= whole.a_end[row]


def test_another_epoch_draws_other_pairs_and_static_masking_does_not(prepared: Path) -> None:
    static = BertObjective(masking="static")
    first, later = pairs_of(prepared), pairs_of(prepared, epoch=1)
    assert not (len(first.a_start) == len(later.a_start) and (first.b_start == later.b_start).all())
    fixed = [
        static.collate(pairs_of(prepared, epoch=e, objective=static), [0, 1], epoch=e, seed=3) for e in (0, 5)
    ]
    assert torch.equal(fixed[0].inputs["input_ids"], fixed[1].inputs["input_ids"])
    again = pairs_of(prepared)
    assert all((vars(first)[name] == vars(again)[name]).all() for name in ("a_start", "b_end", "is_random"))


def test_a_rows_mask_does_not_depend_on_its_batch(prepared: Path) -> None:
    """Masks drawn per batch would change with workers, ranks and resumes."""
    objective, pairs = BertObjective(), pairs_of(prepared)
    together = objective.collate(pairs, [4, 9, 2], epoch=2, seed=7)
    alone = objective.collate(pairs, [9], epoch=2, seed=7)
    width = alone.mask.shape[1]
    assert torch.equal(together.inputs["input_ids"][1, :width], alone.inputs["input_ids"][0])
    assert together.labels is not None and alone.labels is not None
    assert torch.equal(together.labels[1, :width], alone.labels[0])
    other = objective.collate(pairs, [9], epoch=3, seed=7)
    assert other.labels is not None and not torch.equal(other.labels, alone.labels)


def test_the_layout_is_cls_a_sep_b_sep(prepared: Path) -> None:
    pairs, facts = pairs_of(prepared), pairs_of(prepared).corpus.facts
    batch = BertObjective().collate(pairs, range(10), epoch=0, seed=0)
    assert batch.labels is not None and batch.sequence_labels is not None
    original = torch.where(batch.labels != IGNORED, batch.labels, batch.inputs["input_ids"])
    for row in range(10):
        a = pairs.corpus.tokens[pairs.a_start[row] : pairs.a_end[row]].tolist()
        b = pairs.corpus.tokens[pairs.b_start[row] : pairs.b_end[row]].tolist()
        ids = [facts["cls"], *a, facts["sep"], *b, facts["sep"]]
        assert original[row, : len(ids)].tolist() == ids
        assert batch.inputs["token_type_ids"][row, : len(ids)].tolist() == [0] * (len(a) + 2) + [1] * (
            len(b) + 1
        )
        assert (original[row, len(ids) :] == facts["pad"]).all() and int(batch.mask[row].sum()) == len(ids)
    assert batch.sequence_labels.tolist() == pairs.is_random[:10].tolist()


def test_mask_counts_are_exact_and_special_tokens_are_never_chosen(prepared: Path) -> None:
    pairs = pairs_of(prepared)
    batch = BertObjective().collate(pairs, range(len(pairs.is_random)), epoch=0, seed=0)
    assert batch.labels is not None
    chosen = batch.labels != IGNORED
    for row, length in enumerate(pairs.lengths):
        assert int(chosen[row].sum()) == max(1, round(0.15 * int(length)))
    originals = set(batch.labels[chosen].tolist())
    assert not originals & {pairs.corpus.facts[name] for name in ("pad", "cls", "sep")}


def test_eighty_ten_ten_and_a_flat_profile_over_positions() -> None:
    rows, width, vocabulary = 4000, 60, 1000
    candidates = np.ones((rows, width), dtype=bool)
    index = np.arange(rows)
    uniform = [keyed_uniform(5, 1, index, width, draw=draw) for draw in range(3)]
    chosen = choose(candidates, np.full(rows, 9), uniform[0])
    assert (chosen.sum(axis=1) == 9).all()
    assert stats.chisquare(chosen.sum(axis=0)).pvalue > 1e-4
    ids = np.full((rows, width), 500)
    changed = corrupt(ids, chosen, uniform[1], uniform[2], mask_id=4, vocab_size=vocabulary)
    assert (changed[~chosen] == 500).all()
    total = int(chosen.sum())
    masked, kept = int((changed[chosen] == 4).sum()), int((changed[chosen] == 500).sum())
    assert masked / total == pytest.approx(0.8, abs=4.5 * (0.16 / total) ** 0.5 + 2e-4)
    assert kept / total == pytest.approx(0.1, abs=4.5 * (0.09 / total) ** 0.5 + 2e-4)
    others = changed[chosen & (changed != 4) & (changed != 500)]
    assert stats.chisquare(np.bincount(others * 10 // vocabulary, minlength=10)).pvalue > 1e-4


def test_keyed_numbers_are_uniform_and_differ_in_every_part_of_the_key() -> None:
    base = keyed_uniform(1, 2, np.arange(300), 50, draw=0)
    assert stats.kstest(base.ravel(), "uniform").pvalue > 1e-4
    others = [
        keyed_uniform(2, 2, np.arange(300), 50, draw=0),
        keyed_uniform(1, 3, np.arange(300), 50, draw=0),
        keyed_uniform(1, 2, np.arange(300) + 1, 50, draw=0),
        keyed_uniform(1, 2, np.arange(300), 50, draw=1),
    ]
    assert not np.array_equal(others[0], others[1]), "seed 1 in epoch 2 is not seed 2 in epoch 1"
    for other in others:
        assert abs(float(np.corrcoef(base.ravel(), other.ravel())[0, 1])) < 0.04
    assert (keyed_uniform(1, 2, np.asarray([7]), 50, draw=0) == base[7]).all()


def test_whole_words_are_masked_all_or_none_and_never_too_many() -> None:
    continues = np.asarray([[False, False, True, True, False, False, True, False, False, False]])
    candidates = np.asarray([[False, True, True, True, True, True, True, True, True, False]])
    words = [{1, 2, 3}, {4}, {5, 6}, {7}, {8}]
    sizes: Counter[int] = Counter()
    for seed in range(60):
        chosen = choose_words(
            candidates, continues, np.asarray([3]), keyed_uniform(seed, 0, np.asarray([0]), 10, draw=0)
        )
        found = set(np.flatnonzero(chosen[0]).tolist())
        assert len(found) <= 3 and all(word <= found or not word & found for word in words)
        sizes[len(found)] += 1
    assert sizes[3] > 40


def test_the_loss_on_chosen_positions_is_the_full_models_loss_and_gradient(prepared: Path) -> None:
    source = Bert(layers=2, width=16, heads=2, vocab_size=120, positions=LENGTH, dropout=0.0)
    torch.manual_seed(0)
    model, objective = source.pretraining(tokenizer())
    assert isinstance(model, BertForPreTraining)
    batch = objective.collate(pairs_of(prepared), range(12), epoch=0, seed=0)
    terms = objective.loss(model, batch)
    ours = sum(term.weight * term.value for term in terms.values())
    theirs = model(**batch.inputs, labels=batch.labels, next_sentence_label=batch.sequence_labels).loss
    assert isinstance(ours, torch.Tensor)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for mine, full in zip(
        torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True
    ):
        assert torch.allclose(mine, full, atol=1e-6)
    assert dict(objective.counts(batch)) == {name: term.count for name, term in terms.items()}


def test_a_batch_without_a_masked_token_adds_nothing_and_still_trains(prepared: Path) -> None:
    """Whole words may all be longer than the share to mask; the mean over none of them is not NaN."""
    objective = BertObjective(whole_word=True)
    source = Bert(layers=1, width=16, heads=2, vocab_size=120, positions=LENGTH)
    model, _ = source.pretraining(tokenizer())
    batch = objective.collate(pairs_of(prepared), range(4), epoch=0, seed=3)
    assert batch.labels is not None
    bare = replace(batch, labels=torch.full_like(batch.labels, IGNORED))
    terms = objective.loss(model, bare)
    assert terms["mlm"].count == 0 and terms["mlm"].value.item() == 0.0
    (terms["mlm"].value + terms["nsp"].value).backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_the_feed_gives_every_pair_once_an_epoch_with_little_padding(prepared: Path) -> None:
    settings = PretrainSettings(corpus="x", batch=8, max_length=LENGTH)
    feed = ObjectiveFeed(BertObjective(), prepared, settings, seed=3)
    batches = [batch for index in range(feed.num_steps(0)) for batch in feed.step(0, index)]
    ids = sorted(int(example) for batch in batches for example in batch.ids)
    assert ids == list(range(len(pairs_of(prepared).is_random)))
    again = ObjectiveFeed(BertObjective(), prepared, settings, seed=3)
    later = again.step(1, 2)[0]
    assert torch.equal(again.step(0, 1)[0].inputs["input_ids"], feed.step(0, 1)[0].inputs["input_ids"])
    assert torch.equal(again.step(1, 2)[0].inputs["input_ids"], later.inputs["input_ids"])
    assert 0 < feed.metrics(0)["random_next"] < 1


def test_documents_of_one_sentence_teach_nothing_of_the_next_and_it_is_said(
    prepared: Path, tmp_path: Path
) -> None:
    objective, settings = BertObjective(), PretrainSettings(corpus="c", max_length=LENGTH, batch=8)
    assert ObjectiveFeed(objective, prepared, settings, seed=3).remarks(0) == ()
    single = ([sentence] for document in documents() for sentence in document)
    objective.prepare(single, tokenizer(), tmp_path / "single", max_length=LENGTH)
    (remark,) = ObjectiveFeed(objective, tmp_path / "single", settings, seed=3).remarks(0)
    assert remark.startswith("100% of the second segments are random")


def test_a_corpus_without_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tokens"):
        BertObjective().prepare(iter([[""]]), tokenizer(), tmp_path / "c", max_length=LENGTH)
