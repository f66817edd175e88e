"""ELECTRA's data and losses against closed forms, plain loops and the forward of `transformers`."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sklearn
from tiny import documents, tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import ElectraForMaskedLM

from distillkit.data.masking import choose_repeatedly, hide, keyed_uniform
from distillkit.objectives.base import LossTerm
from distillkit.objectives.corpus import Corpus
from distillkit.objectives.corrupted import (
    BINS,
    REACH,
    DetectionAtMasked,
    ReplacedTokenDetection,
    copied_or_predicted,
    detection_figures,
    histogram,
)
from distillkit.objectives.electra import ElectraObjective, by_frequency, policy_costs
from distillkit.objectives.packing import pack
from distillkit.objectives.pair import GeneratorPair
from distillkit.objectives.replaced import MASKED, GeneratorObjective
from distillkit.objectives.sampling import sample_tokens, without, without_own
from distillkit.teachers.electra import Electra
from distillkit.types import IGNORED, Batch

LENGTH, WIDTH = 32, 32


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "corpus"
    texts = documents()
    texts[0][0] += " [MASK] [SEP] [CLS]"  # a corpus may spell them
    ElectraObjective(ReplacedTokenDetection()).prepare(iter(texts), tokenizer(), folder, max_length=LENGTH)
    return folder


def made(folder: Path, rows: int = 12, **settings: Any) -> tuple[GeneratorPair, ElectraObjective, Batch]:
    """A fresh pair without dropout, its objective, and a padded batch."""
    shape = {"layers": 2, "width": WIDTH, "heads": 2, "embedding": 24, "generator_width": 0.5}
    source = Electra(**{**shape, "vocab_size": 120, "positions": LENGTH, "dropout": 0.0, **settings})
    torch.manual_seed(0)
    pair, objective = source.pretraining(tokenizer())
    assert isinstance(pair, GeneratorPair) and isinstance(objective, ElectraObjective)
    with torch.no_grad():  # fresh weights are too small for a test to tell their effects apart
        for name, parameter in pair.named_parameters():
            if parameter.ndim >= 2 or "bias" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    batch = objective.collate(objective.examples(folder, epoch=0, seed=3), range(rows), epoch=0, seed=3)
    assert not batch.full
    return pair, objective, batch


def read_by_main(pair: GeneratorPair, objective: ElectraObjective, batch: Batch) -> Tensor:
    """The token ids that the main model is given."""
    seen: list[Tensor] = []
    handle = pair.main.electra.register_forward_pre_hook(
        lambda _module, _inputs, named: seen.append(named["input_ids"]), with_kwargs=True
    )
    objective.loss(pair, batch)
    handle.remove()
    (ids,) = seen
    return ids


def parts(batch: Batch) -> tuple[Tensor, Tensor]:
    """(chosen positions, original tokens)."""
    assert batch.labels is not None
    chosen = batch.labels != IGNORED
    return chosen, torch.where(chosen, batch.labels, batch.inputs["input_ids"])


def figures(objective: GeneratorObjective, terms: Mapping[str, LossTerm]) -> Mapping[str, float]:
    return objective.figures({name: sums for term in terms.values() for name, sums in term.tallies.items()})


def corpus_of(lengths: list[list[int]], max_length: int) -> Corpus:
    """Documents of sentences of these lengths."""
    sentences = [length for document in lengths for length in document]
    facts = {"pad": 0, "cls": 2, "sep": 3, "mask": 4, "vocabulary": 50, "max_length": max_length}
    return Corpus(
        np.arange(sum(sentences), dtype=np.int32) % 40 + 5,
        np.concatenate([[0], np.cumsum(sentences)]),
        np.concatenate([[0], np.cumsum([len(document) for document in lengths])]),
        np.zeros(50, dtype=bool),
        facts,
    )


def many_documents() -> list[list[int]]:
    generator = np.random.default_rng(5)
    return [generator.integers(1, 30, size=generator.integers(1, 40)).tolist() for _ in range(300)]


def test_sequences_gather_sentences_up_to_the_target_and_lose_only_what_is_cut_off() -> None:
    corpus = corpus_of(many_documents(), 64)
    made = pack(corpus, random.Random(1), 0.0)
    documents_end = set(corpus.sentences[corpus.documents].tolist())
    edges = corpus.sentences.tolist()
    starts = made.a_start.tolist()
    for index, start in enumerate(starts):
        stop = starts[index + 1] if index + 1 < len(starts) else edges[-1]
        last = edges[edges.index(stop) - 1]
        assert stop - start >= 64 or stop in documents_end
        assert last == start or last - start < 64, "the sequence was long enough before its last sentence"
        a_end, b_start, b_end = (int(ends[index]) for ends in (made.a_end, made.b_start, made.b_end))
        assert a_end == min(b_start, start + 62) and b_start in edges
        assert b_end == min(stop, b_start + max(0, 61 - (a_end - start)))
    assert starts[0] == 0 and int(made.lengths.max()) == 64


def test_the_first_segment_takes_what_fits_into_half_and_one_beyond_in_half_of_the_cases() -> None:
    corpus = corpus_of([[10] * 7] * 3000, 67)  # half of the target without special tokens is 32
    made = pack(corpus, random.Random(2), 0.0)
    first = (made.b_start - made.a_start).tolist()
    assert set(first) == {30, 40, 70}
    shares = {length: first.count(length) / len(first) for length in (30, 40, 70)}
    for length, share in {30: 0.45, 40: 0.45, 70: 0.1}.items():
        assert shares[length] == pytest.approx(share, abs=4.5 * (share * (1 - share) / 3000) ** 0.5)


def test_some_sequences_aim_at_a_shorter_length() -> None:
    corpus = corpus_of([[1] * 100] * 2000, 53)
    assert set(np.unique(pack(corpus, random.Random(3), 0.0).lengths).tolist()) <= {52, 53, 49, 50}
    made = pack(corpus, random.Random(3), 1.0)
    gathered = np.diff([*made.a_start.tolist(), len(corpus.tokens)])
    whole = gathered[1:][made.a_start[1:] % 100 + gathered[1:] < 100]  # not cut by a document's end
    assert whole.min() == 5 and whole.max() <= 53 and stats.chisquare(np.bincount(whole)[5:20]).pvalue > 1e-4


def test_a_single_segment_has_one_separator(prepared: Path) -> None:
    objective = ElectraObjective(ReplacedTokenDetection())
    examples = objective.examples(prepared, epoch=0, seed=3)
    facts, tokens = examples.corpus.facts, examples.corpus.tokens
    single = np.flatnonzero(examples.b_start == examples.b_end)
    double = np.flatnonzero(examples.b_start < examples.b_end)
    assert len(single) and len(double)
    rows = [int(single[0]), int(double[0])]
    batch = objective.collate(examples, rows, epoch=0, seed=3)
    _, original = parts(batch)
    for row, index in zip(original.tolist(), rows, strict=True):
        a = tokens[examples.a_start[index] : examples.a_end[index]].tolist()
        b = tokens[examples.b_start[index] : examples.b_end[index]].tolist()
        wanted = [facts["cls"], *a, facts["sep"], *([*b, facts["sep"]] if b else [])]
        assert row[: len(wanted)] == wanted and len(wanted) == examples.lengths[index]
        assert set(row[len(wanted) :]) <= {facts["pad"]}
    assert batch.inputs["token_type_ids"][0].sum() == 0
    assert batch.mask.sum(dim=1).tolist() == examples.lengths[rows].tolist()


@pytest.mark.parametrize("rate", [0.15, 0.25, 0.5])
def test_the_number_of_chosen_positions_is_exact_and_special_tokens_are_never_among_them(
    prepared: Path, rate: float
) -> None:
    objective = ElectraObjective(ReplacedTokenDetection(), mask_rate=rate)
    examples = objective.examples(prepared, epoch=0, seed=3)
    batch = objective.collate(examples, range(len(examples.lengths)), epoch=0, seed=3)
    chosen, original = parts(batch)
    facts = examples.corpus.facts
    special = {facts[name] for name in ("pad", "cls", "sep", "mask")}
    assert facts["mask"] in examples.corpus.tokens
    for row, length in enumerate(examples.lengths.tolist()):
        room = sum(token not in special for token in original[row].tolist())
        wanted = min(max(1, round(rate * length)), int((rate + 0.005) * LENGTH))
        assert int(chosen[row].sum()) == min(wanted, room)
    assert not special & set(original[chosen].tolist())


def test_the_profile_over_positions_is_flat_and_85_percent_are_hidden_never_by_a_random_token() -> None:
    corpus = corpus_of([[58]] * 4000, 60)
    objective = ElectraObjective(ReplacedTokenDetection())
    made = pack(corpus, random.Random(1), 0.0)
    batch = objective.collate(made, range(len(made.lengths)), epoch=0, seed=3)
    assert batch.full and batch.labels is not None
    chosen = (batch.labels != IGNORED).numpy()
    assert (chosen.sum(axis=1) == 9).all() and not chosen[:, [0, 59]].any()
    assert stats.chisquare(chosen[:, 1:59].sum(axis=0)).pvalue > 1e-4
    ids = batch.inputs["input_ids"].numpy()
    hidden = ids == corpus.facts["mask"]
    assert (chosen | ~hidden).all()
    kept = chosen & ~hidden
    assert (ids[kept] == batch.labels.numpy()[kept]).all(), "the generator reads [MASK] or the original"
    total = int(chosen.sum())
    assert hidden.sum() / total == pytest.approx(0.85, abs=4.5 * (0.85 * 0.15 / total) ** 0.5)
    assert MASKED == 0.85
    assert (hide(ids, chosen, np.zeros(ids.shape), mask_id=4, share=1.0)[chosen] == 4).all()


def test_draws_with_replacement_hit_what_a_plain_loop_hits_and_fewer_positions() -> None:
    """Of n candidates k draws hit n (1 - (1 - 1/n)^k) positions."""
    generator = np.random.default_rng(0)
    candidates = generator.random((3000, 128)) < 0.98
    candidates[0] = False
    counts, uniform = np.full(3000, 19), generator.random((3000, 128))
    chosen = choose_repeatedly(candidates, counts, uniform)
    for row in range(40):
        places = np.flatnonzero(candidates[row])
        hit = {int(places[int(u * len(places))]) for u in uniform[row, :19]} if len(places) else set()
        assert set(np.flatnonzero(chosen[row]).tolist()) == hit
    n = candidates[1:].sum(axis=1)
    distinct = chosen[1:].sum(axis=1)
    wanted = (n * (1 - (1 - 1 / n) ** 19)).mean()
    assert distinct.mean() == pytest.approx(wanted, abs=4.5 * distinct.std() / 3000**0.5)
    assert wanted == pytest.approx(17.7, abs=0.05)


def test_masked_positions_repeat_only_where_that_is_asked_for(prepared: Path) -> None:
    counts = {}
    for repeats in (False, True):
        objective = ElectraObjective(ReplacedTokenDetection(), mask_rate=0.5, with_replacement=repeats)
        examples = objective.examples(prepared, epoch=0, seed=3)
        batch = objective.collate(examples, range(len(examples.lengths)), epoch=0, seed=3)
        counts[repeats] = int(parts(batch)[0].sum())
    assert counts[True] < 0.9 * counts[False]


def test_a_rows_corruption_and_noise_do_not_depend_on_its_batch(prepared: Path) -> None:
    objective = ElectraObjective(ReplacedTokenDetection())
    examples = objective.examples(prepared, epoch=2, seed=7)
    together = objective.collate(examples, [4, 9, 2], epoch=2, seed=7)
    alone = objective.collate(examples, [9], epoch=2, seed=7)
    width = alone.mask.shape[1]
    assert torch.equal(together.inputs["input_ids"][1, :width], alone.inputs["input_ids"][0])
    assert together.uniform is not None and alone.uniform is not None
    assert torch.equal(together.uniform[1, :width], alone.uniform[0])
    for key in ({"epoch": 3, "seed": 7}, {"epoch": 2, "seed": 8}):
        other = objective.collate(examples, [9], **key)
        assert other.uniform is not None and not torch.equal(other.uniform, alone.uniform)
        assert other.labels is not None and not torch.equal(other.labels, alone.labels)
    moved = alone.to(torch.device("meta"))
    assert moved.uniform is not None and moved.uniform.is_meta


def test_the_noise_is_not_what_chose_the_positions(prepared: Path) -> None:
    """Sampling with the numbers by which positions were chosen would draw frequent entries only."""
    objective = ElectraObjective(ReplacedTokenDetection())
    noise = []
    for seed in range(40):
        examples = objective.examples(prepared, epoch=0, seed=seed)
        batch = objective.collate(examples, range(40), epoch=0, seed=seed)
        assert batch.uniform is not None
        noise.append(batch.uniform[parts(batch)[0]].numpy())
    assert stats.kstest(np.concatenate(noise), "uniform").pvalue > 1e-4


def test_samples_follow_the_softmax_and_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(700, 11, generator=generator) * 2
    uniform = torch.rand(700, generator=generator, dtype=torch.float64)
    drawn = sample_tokens(scores, uniform)
    for row in range(700):
        chances = torch.softmax(scores[row].double(), -1).numpy()
        left, entry = float(uniform[row]), 0
        while left >= chances[entry]:
            left -= chances[entry]
            entry += 1
        assert int(drawn[row]) == entry
    many = keyed_uniform(1, 0, np.arange(400), 500, draw=2).ravel()
    same = sample_tokens(scores[:1].expand(len(many), -1), torch.from_numpy(many))
    expected = torch.softmax(scores[0].double(), -1).numpy() * len(many)
    assert stats.chisquare(np.bincount(same, minlength=11), expected).pvalue > 1e-4
    assert sample_tokens(scores[:0], uniform[:0]).shape == (0,)


def test_entries_that_are_ruled_out_are_never_drawn() -> None:
    scores = torch.zeros(1000, 6)
    uniform = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1]
    never = without(scores, torch.tensor([0, 5]))
    assert set(sample_tokens(never, uniform).tolist()) == {1, 2, 3, 4}
    own = torch.arange(1000) % 6
    drawn = sample_tokens(without_own(scores, own), uniform)
    assert not bool((drawn == own).any()) and set(drawn.tolist()) == set(range(6))
    highest = torch.full((6,), 1 - 2.0**-53, dtype=torch.float64)
    assert sample_tokens(never[:6], highest).tolist() == [4] * 6


def test_each_rare_entry_of_a_large_vocabulary_can_be_drawn() -> None:
    """Cumulated in fp32, three of four entries whose probability is 1.5e-8 have no room of their own."""
    scores = torch.full((1, 2**15), -18.0)
    scores[0, 0] = 0.0
    chances = scores[0].softmax(-1).double()
    wanted = torch.arange(1000, 1400)
    middle = (chances[0] + (wanted.double() - 0.5) * chances[1]) / chances.sum()
    assert torch.equal(sample_tokens(scores.expand(400, -1), middle), wanted)


def test_only_chosen_positions_change_and_what_stands_there_is_text(prepared: Path) -> None:
    pair, objective, batch = made(prepared, rows=40)
    ids = read_by_main(pair, objective, batch)
    chosen, original = parts(batch)
    assert torch.equal(ids[~chosen], original[~chosen])
    changed = ids != original
    assert bool(changed.any()) and bool((changed <= chosen).all())
    assert not set(ids[chosen].tolist()) & {0, 2, 3, 4}, "no [PAD], [CLS], [SEP] or [MASK] is sampled"


def test_the_losses_and_their_gradients_are_those_of_transformers(prepared: Path) -> None:
    pair, objective, batch = made(prepared)
    terms = objective.loss(pair, batch)
    ours = sum(term.weight * term.value for term in terms.values())
    ids = read_by_main(pair, objective, batch)
    _, original = parts(batch)
    assert pair.generator is not None
    generator = pair.generator(**batch.inputs, labels=batch.labels).loss
    replaced = (ids != original).long()
    main = pair.main(**{**batch.inputs, "input_ids": ids}, labels=replaced).loss
    assert terms["generator"].value.item() == pytest.approx(generator.item(), rel=1e-5)
    assert terms["discriminator"].value.item() == pytest.approx(main.item(), rel=1e-5)
    assert (terms["generator"].weight, terms["discriminator"].weight) == (1.0, 50.0)
    assert isinstance(ours, Tensor)
    parameters = list(pair.parameters())
    theirs = torch.autograd.grad(generator + 50 * main, parameters)
    for mine, full in zip(torch.autograd.grad(ours, parameters), theirs, strict=True):
        assert torch.allclose(mine, full, atol=1e-4, rtol=1e-4)
    assert dict(objective.counts(batch)) == {name: term.count for name, term in terms.items()}
    assert terms["discriminator"].count == batch.num_tokens < batch.mask.numel()


@pytest.mark.parametrize("objective", ["electra", "electra_15", "replace_mlm", "all_tokens_mlm"])
def test_each_forward_runs_once_and_the_generators_output_layer_at_the_chosen_positions(
    prepared: Path, objective: str
) -> None:
    pair, made_for, batch = made(prepared, objective=objective)
    assert pair.generator is not None
    seen: list[tuple[str, int]] = []
    layers = {"generator": pair.generator.electra, "main": pair.main.electra}
    layers["scores"] = pair.generator.generator_lm_head
    for name, module in layers.items():
        module.register_forward_hook(
            lambda _module, inputs, _output, name=name: seen.append((name, len(inputs[0]) if inputs else 0))
        )
    made_for.loss(pair, batch)
    assert seen == [("generator", 0), ("scores", int(parts(batch)[0].sum())), ("main", 0)]


def test_a_batch_without_padding_has_the_same_loss_as_with_a_mask(prepared: Path) -> None:
    pair, objective, _ = made(prepared)
    examples = objective.examples(prepared, epoch=0, seed=3)
    rows = np.flatnonzero(examples.lengths == LENGTH)[:4]
    full = objective.collate(examples, rows.tolist(), epoch=0, seed=3)
    assert full.full
    for name, term in objective.loss(pair, full).items():
        masked = objective.loss(pair, replace(full, full=False))[name]
        assert term.value.item() == pytest.approx(masked.value.item(), rel=1e-5)


def test_more_padding_changes_neither_a_loss_nor_a_figure(prepared: Path) -> None:
    """The released code counts padding as easy negatives in its AUC."""
    pair, objective, _ = made(prepared)

    def padded(tensor: Tensor, value: float) -> Tensor:
        return functional.pad(tensor, (0, LENGTH - tensor.shape[1]), value=value)

    examples = objective.examples(prepared, epoch=0, seed=3)
    short = np.argsort(examples.lengths, kind="stable")[:6].tolist()
    small = objective.collate(examples, short, epoch=0, seed=3)
    assert small.labels is not None and small.uniform is not None and small.mask.shape[1] < LENGTH
    wide = replace(
        small,
        inputs={name: padded(value, 0) for name, value in small.inputs.items()},
        labels=padded(small.labels, IGNORED),
        mask=padded(small.mask, False),
        uniform=padded(small.uniform, 0.5),
        full=False,
    )
    few, many = objective.loss(pair, small), objective.loss(pair, wide)
    for name in few:
        assert few[name].value.item() == pytest.approx(many[name].value.item(), rel=1e-5)
    assert figures(objective, few) == pytest.approx(figures(objective, many), rel=1e-6)


def test_the_discriminator_trains_the_shared_embeddings_and_nothing_else_of_the_generator(
    prepared: Path,
) -> None:
    pair, objective, batch = made(prepared)
    terms = objective.loss(pair, batch)
    assert pair.generator is not None
    shared = {id(p) for p in pair.main.electra.embeddings.parameters()}
    own = [p for p in pair.generator.parameters() if id(p) not in shared]
    assert all(
        g is None
        for g in torch.autograd.grad(terms["discriminator"].value, own, allow_unused=True, retain_graph=True)
    )
    embeddings = list(pair.main.electra.embeddings.parameters())
    for name in terms:
        grads = torch.autograd.grad(terms[name].value, embeddings, retain_graph=True)
        assert all(bool(grad.abs().sum() > 0) for grad in grads), name
    main = [p for p in pair.main.parameters() if id(p) not in shared]
    assert all(g is None for g in torch.autograd.grad(terms["generator"].value, main, allow_unused=True))


@pytest.mark.parametrize("tied", ["none", "embeddings", "all"])
def test_what_is_tied_is_one_object_and_what_is_not_is_two(prepared: Path, tied: str) -> None:
    pair, objective, batch = made(prepared, tie=tied, generator_width=1.0 if tied == "all" else 0.5)
    assert pair.generator is not None
    mine, theirs = pair.generator.electra, pair.main.electra
    for name in (
        "word_embeddings.weight",
        "position_embeddings.weight",
        "token_type_embeddings.weight",
        "LayerNorm.weight",
        "LayerNorm.bias",
    ):
        one, other = (body.embeddings.get_parameter(name) for body in (mine, theirs))
        assert (one is other) == (tied != "none"), name
    assert pair.generator.generator_lm_head.weight is mine.embeddings.word_embeddings.weight
    assert (mine.encoder is theirs.encoder) == (tied == "all")
    assert (mine.embeddings_project is theirs.embeddings_project) == (tied == "all")
    total = sum(term.weight * term.value for term in objective.loss(pair, batch).values())
    assert isinstance(total, Tensor)
    total.backward()
    assert all(p.grad is not None for p in pair.parameters())


def test_at_the_start_the_total_is_ln_v_and_50_ln_2(prepared: Path) -> None:
    _, objective, batch = made(prepared, rows=30)
    source = Electra(size="tiny", dropout=0.0)
    config = source.config(30_522)
    torch.manual_seed(1)
    pair = objective.pair(source.generator_config(config), config, tied="embeddings", never=[0, 2, 3, 4])
    terms = objective.loss(pair, batch)
    total = sum(term.weight * term.value.item() for term in terms.values())
    assert total == pytest.approx(math.log(30_522) + 50 * math.log(2), rel=0.01)


def test_electra_15_is_the_same_loss_at_the_chosen_positions(prepared: Path) -> None:
    pair, objective, batch = made(prepared)
    _, at_masked, _ = made(prepared, objective="electra_15")
    assert isinstance(at_masked.task, DetectionAtMasked)
    term = at_masked.loss(pair, batch)["discriminator"]
    ids = read_by_main(pair, objective, batch)
    chosen, original = parts(batch)
    logits = pair.main(**{**batch.inputs, "input_ids": ids}).logits
    costs = functional.softplus(torch.where(ids != original, -logits, logits))
    assert term.value.item() == pytest.approx(costs[chosen].mean().item(), rel=1e-5)
    assert term.count == int(chosen.sum()) == at_masked.counts(batch)["discriminator"]
    assert term.weight == 50.0


def test_the_replaced_rate_is_the_chosen_share_of_what_was_not_sampled_right(prepared: Path) -> None:
    pair, objective, batch = made(prepared, rows=40, temperature=0.05)
    told = figures(objective, objective.loss(pair, batch))
    chosen, original = parts(batch)
    ids = read_by_main(pair, objective, batch)
    assert pair.generator is not None
    best = pair.generator(**batch.inputs).logits.argmax(-1)
    assert told["generator_accuracy"] == pytest.approx(float((best == original)[chosen].float().mean()))
    assert told["sampled_accuracy"] == pytest.approx(float((ids == original)[chosen].float().mean()))
    share = int(chosen.sum()) / batch.num_tokens
    assert told["replaced_rate"] == pytest.approx(share * (1 - told["sampled_accuracy"]), rel=1e-6)


def test_where_the_right_token_is_not_allowed_every_chosen_one_is_replaced(prepared: Path) -> None:
    pair, objective, batch = made(prepared, rows=40, disallow_correct=True)
    with torch.no_grad():  # without the rule this generator copies what it reads, mostly right
        assert pair.generator is not None
        chosen, original = parts(batch)
        pair.generator.generator_lm_head.bias[original[chosen].mode().values] += 8.0
    told = figures(objective, objective.loss(pair, batch))
    assert told["sampled_accuracy"] == 0.0
    assert told["replaced_rate"] == pytest.approx(int(chosen.sum()) / batch.num_tokens, rel=1e-6)


def test_a_sample_that_is_right_counts_as_original(prepared: Path) -> None:
    pair, objective, batch = made(prepared)
    chosen, original = parts(batch)
    (common,) = [int(original[chosen].mode().values)]
    with torch.no_grad():
        assert pair.generator is not None
        pair.generator.generator_lm_head.bias[common] = 100.0  # it always says the commonest token
    ids = read_by_main(pair, objective, batch)
    assert bool((ids[chosen] == common).all())
    told = figures(objective, objective.loss(pair, batch))
    right = int((original[chosen] == common).sum())
    assert right > 0
    assert told["replaced_rate"] == pytest.approx((int(chosen.sum()) - right) / batch.num_tokens, rel=1e-6)
    term = objective.loss(pair, batch)["discriminator"]
    labels = (ids != original).long()
    wanted = pair.main(**{**batch.inputs, "input_ids": ids}, labels=labels).loss
    assert term.value.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_the_temperature_divides_the_scores(prepared: Path) -> None:
    pair, objective, batch = made(prepared, rows=40, temperature=1e-3)
    ids = read_by_main(pair, objective, batch)
    chosen, _ = parts(batch)
    assert pair.generator is not None
    scores = pair.generator(**batch.inputs).logits[chosen]
    scores[:, [0, 2, 3, 4]] = -math.inf
    assert float((ids[chosen] == scores.argmax(-1)).float().mean()) > 0.95
    objective.temperature = 1e3
    flat = read_by_main(pair, objective, batch)[chosen]
    assert batch.uniform is not None
    entries = np.setdiff1d(np.arange(scores.shape[1]), [0, 2, 3, 4])
    even = entries[(batch.uniform[chosen].numpy() * len(entries)).astype(int)]
    assert float(np.mean(np.abs(flat.numpy() - even) <= 1)) > 0.95


def test_detection_figures_are_those_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    replaced = torch.rand(5000, generator=generator) < 0.14
    logits = torch.randn(5000, generator=generator) * 1.5 - 1.2 + 1.5 * replaced
    told = detection_figures(histogram(logits, replaced))
    called = logits > 0
    assert told["discriminator_accuracy"] == pytest.approx(sklearn.accuracy_score(replaced, called))
    assert told["precision"] == pytest.approx(sklearn.precision_score(replaced, called))
    assert told["recall"] == pytest.approx(sklearn.recall_score(replaced, called))
    assert told["called_replaced"] == pytest.approx(float(called.float().mean()))
    assert told["auc"] == pytest.approx(sklearn.roc_auc_score(replaced, logits), abs=2e-3)
    binned = ((logits + REACH) * BINS / (2 * REACH)).long().clamp(0, BINS - 1)
    assert told["auc"] == pytest.approx(sklearn.roc_auc_score(replaced, binned), rel=1e-9)
    rate = float(replaced.float().mean())
    assert told["majority_loss"] == pytest.approx(stats.entropy([rate, 1 - rate]), rel=1e-5)


def test_figures_of_layersadd_up_and_what_is_not_defined_is_left_out() -> None:
    logits, replaced = torch.tensor([-3.0, 50.0, 0.2, -0.1]), torch.tensor([False, True, False, True])
    whole = histogram(logits, replaced)
    assert torch.equal(whole, histogram(logits[:1], replaced[:1]) + histogram(logits[1:], replaced[1:]))
    assert float(whole.sum()) == 4
    none = detection_figures(histogram(torch.tensor([-1.0, -2.0]), torch.tensor([False, False])))
    assert none == {"discriminator_accuracy": 1.0, "called_replaced": 0.0, "majority_loss": 0.0}
    assert detection_figures(histogram(logits[:0], replaced[:0])) == {"majority_loss": 0.0}


def test_a_discriminator_that_answers_the_share_of_replaced_tokens_has_collapsed(prepared: Path) -> None:
    """Its loss is then H(r) exactly; with the total at ln V + 50 H(r) nothing looks wrong."""
    pair, objective, batch = made(prepared, rows=40)
    _, original = parts(batch)
    rate = int((read_by_main(pair, objective, batch) != original).sum()) / batch.num_tokens
    head = pair.main.discriminator_predictions.dense_prediction
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(math.log(rate / (1 - rate)))
    terms = objective.loss(pair, batch)
    told = figures(objective, terms)
    loss = terms["discriminator"].value.item()
    assert loss == pytest.approx(-rate * math.log(rate) - (1 - rate) * math.log(1 - rate), rel=1e-5)
    assert told["majority_loss"] == pytest.approx(loss, rel=1e-5)
    assert (told["recall"], told["auc"]) == (0.0, 0.5) and "precision" not in told
    (warning,) = objective.warnings({"discriminator": loss}, told)
    assert "collapsed to the majority" in warning and f"{loss:.4f}" in warning
    assert objective.warnings({"discriminator": 0.9 * loss}, told) == ()
    assert objective.warnings({"discriminator": loss}, {**told, "called_replaced": 0.3}) == ()
    with torch.no_grad():
        head.bias.zero_()  # untrained: ln 2, but half of the answers differ from the others'
        head.weight.normal_()
    fresh = objective.loss(pair, batch)
    values = {name: term.value.item() for name, term in fresh.items()}
    assert objective.warnings(values, figures(objective, fresh)) == ()


def test_bf16_autocast_gives_losses_in_fp32_close_to_those_of_fp32(prepared: Path) -> None:
    pair, objective, batch = made(prepared)
    plain = objective.loss(pair, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fast = objective.loss(pair, batch)
        total = sum(term.weight * term.value for term in fast.values())
    assert isinstance(total, Tensor)
    total.backward()
    for name, term in fast.items():
        assert term.value.dtype == torch.float32
        assert term.value.item() == pytest.approx(plain[name].value.item(), rel=0.1)


def test_a_batch_in_which_nothing_can_be_chosen_adds_nothing_and_still_trains(prepared: Path) -> None:
    for variant in ("electra", "electra_15", "replace_mlm", "all_tokens_mlm"):
        pair, objective, batch = made(prepared, objective=variant)
        _, original = parts(batch)
        assert batch.labels is not None
        bare = replace(
            batch,
            inputs={**batch.inputs, "input_ids": original},
            labels=torch.full_like(batch.labels, IGNORED),
        )
        terms = objective.loss(pair, bare)
        assert terms["generator"].count == 0 and terms["generator"].value.item() == 0.0
        sum(term.value for term in terms.values()).backward()  # type: ignore[union-attr]
        grads = [p.grad for p in pair.parameters() if p.grad is not None]
        assert grads and all(bool(torch.isfinite(grad).all()) for grad in grads)
        assert "generator_accuracy" not in figures(objective, terms)


def test_replace_mlm_is_the_cross_entropy_at_the_chosen_positions_of_what_was_replaced(
    prepared: Path,
) -> None:
    pair, objective, batch = made(prepared, objective="replace_mlm")
    assert isinstance(pair.main, ElectraForMaskedLM)
    term = objective.loss(pair, batch)["replace_mlm"]
    ids = read_by_main(pair, objective, batch)
    chosen, original = parts(batch)
    told = pair.main(**{**batch.inputs, "input_ids": ids}, labels=batch.labels)
    assert term.value.item() == pytest.approx(told.loss.item(), rel=1e-5)
    assert (term.count, term.weight) == (int(chosen.sum()), 1.0)
    right = float((told.logits.argmax(-1) == original)[chosen].float().mean())
    assert figures(objective, objective.loss(pair, batch))["main_accuracy"] == pytest.approx(right)


def test_the_probabilities_of_copying_and_predicting_add_up_to_one() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1, 9, generator=generator).expand(9, -1) * 3
    copied = 4
    for copy in (-20.0, -1.0, 0.3, 30.0):
        targets = torch.arange(9)
        costs = copied_or_predicted(scores, torch.full((9,), copy), targets, targets == copied)
        assert float((-costs).double().exp().sum()) == pytest.approx(1.0, rel=1e-5)
    predicted = functional.cross_entropy(scores, torch.arange(9), reduction="none")
    never = copied_or_predicted(scores, torch.full((9,), -80.0), torch.arange(9), torch.arange(9) == copied)
    assert torch.allclose(never, predicted, atol=1e-5), "D = 0 predicts everywhere"
    always = copied_or_predicted(scores, torch.full((9,), 80.0), torch.arange(9), torch.arange(9) == copied)
    assert float(always[copied]) == pytest.approx(0.0, abs=1e-6)
    assert bool(torch.isfinite(always).all()), "a sure wrong copy costs much, not infinity"
    assert torch.allclose(
        always - predicted, torch.where(torch.arange(9) == copied, -predicted, 80.0), atol=1e-3
    )


def test_all_tokens_mlm_is_the_mixture_at_every_real_position(prepared: Path) -> None:
    pair, objective, batch = made(prepared, objective="all_tokens_mlm")
    chosen, original = parts(batch)
    with torch.no_grad():  # some samples are right
        assert pair.generator is not None
        pair.generator.generator_lm_head.bias[original[chosen].mode().values] = 100.0
    term = objective.loss(pair, batch)["all_tokens_mlm"]
    ids = read_by_main(pair, objective, batch)
    assert 0 < int((ids == original)[chosen].sum()) < int(chosen.sum())
    with torch.no_grad():
        told = pair.main(**{**batch.inputs, "input_ids": ids}, output_hidden_states=True)
        copy = torch.sigmoid(pair.heads["copy"](told.hidden_states[-1]).squeeze(-1).double())
    chances = told.logits.double().softmax(-1)
    total = 0.0
    for row, column in batch.mask.nonzero().tolist():
        right = int(original[row, column])
        chance = (1 - copy[row, column]) * chances[row, column, right]
        if int(ids[row, column]) == right:
            chance = chance + copy[row, column]
        total -= math.log(float(chance))
    assert term.value.item() == pytest.approx(total / batch.num_tokens, rel=1e-5)
    assert term.count == batch.num_tokens == objective.counts(batch)["all_tokens_mlm"]
    shown = figures(objective, objective.loss(pair, batch))
    assert shown["copied"] == pytest.approx(float(copy[batch.mask].mean()), rel=1e-5)


def test_two_stages_train_the_generator_then_a_copy_of_it(prepared: Path) -> None:
    pair, objective, batch = made(prepared, generator="two_stage", generator_width=1.0, tie="none")
    assert pair.generator is not None
    before = {name: tensor.clone() for name, tensor in pair.main.electra.state_dict().items()}
    for step in (0, 3):
        objective.go_to(pair, step, 9)
        terms = objective.loss(pair, batch)
        assert set(terms) == {"generator"}
    wanted = pair.generator(**batch.inputs, labels=batch.labels).loss
    assert terms["generator"].value.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert all(torch.equal(before[name], one) for name, one in pair.main.electra.state_dict().items())
    objective.go_to(pair, 5, 9)
    copied = pair.main.electra.state_dict()
    assert all(torch.equal(one, copied[name]) for name, one in pair.generator.electra.state_dict().items())
    assert pair.main.electra.encoder is not pair.generator.electra.encoder
    terms = objective.loss(pair, batch)
    assert set(terms) == {"discriminator"}
    terms["discriminator"].value.backward()
    assert all(p.grad is None for p in pair.generator.parameters())
    assert all(p.grad is not None for p in pair.main.parameters())
    assert {"sampled_accuracy", "replaced_rate", "auc"} <= set(figures(objective, terms))
    with torch.no_grad():
        pair.main.electra.embeddings.LayerNorm.weight.add_(1.0)
    objective.go_to(pair, 6, 9)
    assert not torch.equal(
        pair.main.electra.embeddings.LayerNorm.weight, pair.generator.electra.embeddings.LayerNorm.weight
    ), "copied once"


def test_unigram_replacements_follow_the_corpus_and_need_no_generator(prepared: Path) -> None:
    pair, objective, batch = made(prepared, generator="unigram", generator_width=None, rows=40)
    assert pair.generator is None
    terms = objective.loss(pair, batch)
    assert set(terms) == set(objective.counts(batch)) == {"discriminator"}
    chosen, original = parts(batch)
    ids = read_by_main(pair, objective, batch)
    assert torch.equal(ids, batch.inputs["input_ids"]) and torch.equal(ids[~chosen], original[~chosen])
    labels = (ids != original).long()
    wanted = pair.main(**batch.inputs, labels=labels).loss
    assert terms["discriminator"].value.item() == pytest.approx(wanted.item(), rel=1e-5)
    examples = objective.examples(prepared, epoch=0, seed=3)
    drawn: list[int] = []
    for seed in range(60):
        one = objective.collate(examples, range(len(examples.lengths)), epoch=0, seed=seed)
        drawn += one.inputs["input_ids"][parts(one)[0]].tolist()
    counts = np.bincount(examples.corpus.tokens, minlength=120).astype(float)
    counts[[0, 2, 3, 4]] = 0
    seen = np.bincount(drawn, minlength=120)
    assert seen[counts == 0].sum() == 0
    expected = counts[counts > 0] / counts.sum() * seen.sum()
    assert stats.chisquare(seen[counts > 0], expected).pvalue > 1e-4


def test_with_mask_and_replace_mlm_it_is_a_masked_language_model(prepared: Path) -> None:
    """BERT's corruption (80 % [MASK], 10 % as it was, 10 % anything) and transformers' loss of the same
    model."""
    pair, objective, batch = made(
        prepared, generator="mask", objective="replace_mlm", generator_width=None, rows=40
    )
    assert pair.generator is None
    terms = objective.loss(pair, batch)
    assert set(terms) == set(objective.counts(batch)) == {"replace_mlm"}
    chosen, _ = parts(batch)
    ids = read_by_main(pair, objective, batch)
    assert torch.equal(ids, batch.inputs["input_ids"])
    wanted = pair.main(**batch.inputs, labels=batch.labels).loss
    assert terms["replace_mlm"].value.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert terms["replace_mlm"].count == int(chosen.sum())
    examples = objective.examples(prepared, epoch=0, seed=3)
    kinds = np.zeros(3)
    for seed in range(60):
        one = objective.collate(examples, range(len(examples.lengths)), epoch=0, seed=seed)
        at, before = parts(one)
        assert torch.equal(one.inputs["input_ids"][~at], before[~at])
        now, then = one.inputs["input_ids"][at], before[at]
        hidden = now == examples.corpus.facts["mask"]
        kinds += [int(hidden.sum()), int((now == then).sum()), int((~hidden & (now != then)).sum())]
    shares = kinds / kinds.sum()
    assert shares == pytest.approx([0.8 + 0.1 / 120, 0.1 + 0.1 / 120, 0.1 - 0.2 / 120], abs=0.02)


def test_unigram_draws_without_the_right_token_follow_the_rest() -> None:
    counts = np.asarray([3, 0, 5, 2])
    places = (np.arange(70_000) + 0.5) / 70_000
    assert np.bincount(by_frequency(counts, places), minlength=4).tolist() == [21_000, 0, 35_000, 14_000]
    for wrong in range(4):
        drawn = by_frequency(counts, places, np.full(len(places), wrong))
        left = np.where(np.arange(4) == wrong, 0, counts)
        assert np.bincount(drawn, minlength=4) == pytest.approx(left / left.sum() * 70_000, abs=1)
    assert by_frequency(np.asarray([0, 7, 0]), places[:3], np.ones(3, dtype=int)).max() < 3


def test_the_policy_gradient_is_the_gradient_of_the_expected_reward() -> None:
    """By enumeration; the baseline changes its variance, not its mean."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1, 5, generator=generator, dtype=torch.float64).requires_grad_()
    rewards = torch.tensor([0.2, 1.5, 0.9, 3.0, 0.4], dtype=torch.float64)
    expected = (torch.softmax(scores, -1) * rewards).sum()
    (wanted,) = torch.autograd.grad(-expected, scores)
    grid = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    sampled = sample_tokens(scores.expand(len(grid), -1), grid)
    for baseline in (-2.0, 0.7):
        guessed = torch.full((len(grid),), baseline, dtype=torch.float64)
        costs, _ = policy_costs(scores.expand(len(grid), -1), sampled, rewards[sampled], guessed)
        (mine,) = torch.autograd.grad(costs.mean(), scores)
        assert torch.allclose(mine, wanted, atol=1e-4)


def test_the_adversary_is_rewarded_by_the_discriminators_cost_and_its_baseline_learns_it(
    prepared: Path,
) -> None:
    pair, objective, batch = made(prepared, generator="adversarial")
    terms = objective.loss(pair, batch)
    assert set(terms) == set(objective.counts(batch)) == {"generator", "baseline", "discriminator"}
    ids = read_by_main(pair, objective, batch)
    chosen, original = parts(batch)
    replaced = ids != original
    logits = pair.main(**{**batch.inputs, "input_ids": ids}).logits
    chance = torch.where(replaced, logits.sigmoid(), 1 - logits.sigmoid())[chosen].detach()  # of the truth
    assert pair.generator is not None
    told = pair.generator(**batch.inputs, output_hidden_states=True)
    scores = told.logits[chosen].clone()
    scores[:, [0, 2, 3, 4]] = -math.inf
    chosen_by = scores.log_softmax(-1).gather(1, ids[chosen][:, None]).squeeze(1)
    guess = torch.sigmoid(pair.heads["baseline"](told.hidden_states[-1][chosen].detach())).squeeze(1)
    ascent = (chosen_by * (-chance.log() + guess.log().detach())).mean()
    assert terms["generator"].value.item() == pytest.approx(-ascent.item(), rel=1e-4)
    crossed = functional.binary_cross_entropy(guess, chance)
    assert terms["baseline"].value.item() == pytest.approx(crossed.item(), rel=1e-4)
    baseline = [*pair.heads["baseline"].parameters()]
    others = [p for p in pair.parameters() if all(p is not one for one in baseline)]
    grads = torch.autograd.grad(terms["baseline"].value, others, allow_unused=True, retain_graph=True)
    assert all(grad is None for grad in grads), "the baseline trains its own weights only"
    shared = {id(p) for p in pair.generator.parameters()}
    main = [p for p in pair.main.parameters() if id(p) not in shared]
    grads = torch.autograd.grad(terms["generator"].value, main, allow_unused=True)
    assert all(grad is None for grad in grads), "the reward trains no discriminator"
    wanted = pair.generator(**batch.inputs, labels=batch.labels).loss.item()
    assert figures(objective, terms)["generator_mlm"] == pytest.approx(wanted, rel=1e-4)


def test_figures_of_an_epoch_describe_its_sequences(prepared: Path) -> None:
    objective = ElectraObjective(ReplacedTokenDetection())
    examples = objective.examples(prepared, epoch=0, seed=3)
    told = objective.metrics(examples)
    assert told["sequences"] == len(examples.lengths) and told["tokens"] == examples.lengths.sum()
    assert told["single_segment"] == np.mean(
        [b == e for b, e in zip(examples.b_start, examples.b_end, strict=True)]
    )
    again = objective.examples(prepared, epoch=0, seed=3)
    other = objective.examples(prepared, epoch=1, seed=3)
    assert np.array_equal(examples.b_start, again.b_start)
    assert not np.array_equal(examples.b_start, other.b_start)
