"""T5's and BART's data and losses against plain loops and the forward of `transformers`."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from denoisers import LENGTH, model_of, objective_of, prepare, source, tokenizer_of

from distillkit.data.noising import Text
from distillkit.errors import ConfigError, DataError, ModelError
from distillkit.flops import counted
from distillkit.objectives.corpus import read_corpus
from distillkit.objectives.denoising import Denoising
from distillkit.objectives.feed import ObjectiveFeed
from distillkit.objectives.noise import (
    DocumentRotation,
    Keys,
    Noise,
    SentencePermutation,
    Stack,
    TextInfilling,
    TokenDeletion,
    TokenInsertion,
    TokenMasking,
    Vocabulary,
)
from distillkit.objectives.passages import JoinedDocuments, WholeSentences
from distillkit.settings import PretrainSettings
from distillkit.types import IGNORED, Batch

NAMES = ("t5", "bart")
T5S = ("spans", "tokens", "drop", "bert", "mass", "deshuffle", "prefix_lm", "lm")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("corpora")
    return {name: prepare(objective_of(name), name, root / name) for name in NAMES}


def batch_of(objective: Denoising, folder: Path, rows: Any, *, epoch: int = 0) -> tuple[Batch, Text]:
    """A batch, and the texts that it was made of."""
    examples = objective.examples(folder, epoch=epoch, seed=3)
    batch = objective.collate(examples, list(rows), epoch=epoch, seed=3)
    return batch, examples.passages.text(np.asarray(list(rows)))


def real(text: Text) -> list[list[int]]:
    return [row[:length].tolist() for row, length in zip(text.ids, text.lengths, strict=True)]


def read(batch: Batch) -> list[list[int]]:
    """The inputs without padding."""
    ids = batch.inputs["input_ids"]
    return [row[mask].tolist() for row, mask in zip(ids, batch.mask, strict=True)]


def said(batch: Batch) -> list[list[int]]:
    assert batch.labels is not None
    return [[token for token in row if token != IGNORED] for row in batch.labels.tolist()]


def rebuilt(inputs: list[int], targets: list[int], sentinels: list[int]) -> list[int]:
    """The original, by a plain loop: what follows a sentinel in the targets stands at it in the inputs."""
    spans: dict[int, list[int]] = {}
    for token in targets:
        if token in sentinels:
            assert token not in spans
            spans[token] = []
        else:
            spans[list(spans)[-1]].append(token)
    used = [token for token in inputs if token in sentinels]
    assert used == list(spans) == sentinels[: len(spans)]
    return [one for token in inputs for one in spans.get(token, [token])]


@pytest.mark.parametrize("ends", ["even", "released"])
@pytest.mark.parametrize("density", [0.1, 0.15, 0.25, 0.5])
@pytest.mark.parametrize("mean_span", [1.0, 3.0])
def test_t5s_inputs_and_targets_are_the_text_and_fill_the_length(
    folders: dict[str, Path], ends: str, density: float, mean_span: float
) -> None:
    objective = objective_of("t5", ends=ends, density=density, mean_span=mean_span)
    sentinels = tokenizer_of("t5").convert_tokens_to_ids([f"<extra_id_{number}>" for number in range(20)])
    sizes = objective.examples(folders["t5"], epoch=0, seed=3).passages.sizes
    batch, text = batch_of(objective, folders["t5"], range(len(sizes)))
    for original, inputs, targets in zip(real(text), read(batch), said(batch), strict=True):
        assert inputs.pop() == targets.pop() == 1, "EOS is last"
        assert 1 not in inputs + targets
        assert rebuilt(inputs, targets, sentinels) == original
    assert batch.mask[:-1].all(), "only what is left over is shorter"
    uneven = density == 0.5 and mean_span == 1.0  # a token more is two tokens more of the inputs
    assert batch.mask.shape[1] == LENGTH - uneven


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_the_one_of_transformers_which_shifts_the_labels_itself(
    folders: dict[str, Path], name: str
) -> None:
    """Its value and its gradient: the decoder reads what it should, and padding counts nowhere."""
    objective, model = objective_of(name), model_of(name)
    last = len(objective.examples(folders[name], epoch=0, seed=3).passages.sizes) - 1
    batch, _ = batch_of(objective, folders[name], [last, 0, 1, 2, 3])
    assert batch.labels is not None and not batch.full and bool((batch.labels == IGNORED).any())
    (term,) = objective.loss(model, batch).values()
    names = ("input_ids", "attention_mask")
    theirs = model(**{one: batch.inputs[one] for one in names}, labels=batch.labels).loss
    assert term.value.item() == pytest.approx(theirs.item(), rel=1e-5)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for mine, other in zip(
        torch.autograd.grad(term.value, parameters), torch.autograd.grad(theirs, parameters), strict=True
    ):
        assert torch.allclose(mine, other, atol=1e-5)
    assert dict(objective.counts(batch)) == {"denoising": term.count}


@pytest.mark.parametrize(
    ("name", "settings"), [("t5", {}), ("t5", {"version": "v1.1"}), ("bart", {"decoder_layers": 1})]
)
def test_every_weight_is_trained(folders: dict[str, Path], name: str, settings: dict[str, Any]) -> None:
    objective, model = objective_of(name, **settings), model_of(name, **settings)
    batch, _ = batch_of(objective, folders[name], range(6))
    (term,) = objective.loss(model, batch).values()
    term.value.backward()
    assert not [one for one, parameter in model.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("name", NAMES)
def test_a_text_is_corrupted_the_same_whatever_its_batch_and_anew_in_each_epoch(
    folders: dict[str, Path], name: str
) -> None:
    objective = objective_of(name, **({"insert": 0.2, "rotate": 0.5} if name == "bart" else {}))
    examples = objective.examples(folders[name], epoch=0, seed=3)
    together = objective.collate(examples, [5, 2, 8], epoch=0, seed=3)
    alone = objective.collate(examples, [2], epoch=0, seed=3)
    assert read(together)[1] == read(alone)[0] and said(together)[1] == said(alone)[0]
    later = objective.collate(examples, [2], epoch=1, seed=3)
    assert read(later) != read(alone)


def test_joined_documents_hold_every_token_once_in_the_order_of_whole_documents(
    folders: dict[str, Path],
) -> None:
    corpus = read_corpus(folders["t5"])
    edges = corpus.sentences[corpus.documents]
    whole = [corpus.tokens[a:b].tolist() for a, b in pairwise(edges)]
    seen = []
    for epoch in range(2):
        made = JoinedDocuments.drawn(corpus, 29, np.random.default_rng(epoch))
        text = made.text(np.arange(len(made.sizes)))
        flat = [token for row in real(text) for token in row]
        around = np.roll(flat, made.start).tolist()
        order = [whole[np.searchsorted(edges, one)] for one in made.first]
        assert around == [token for document in order for token in document]
        assert sorted(map(tuple, order)) == sorted(map(tuple, whole))
        assert set(made.sizes[:-1].tolist()) == {29}
        seen.append(around)
    assert seen[0] != seen[1], "another epoch has another order"


def test_the_plain_language_model_says_where_documents_end_and_nothing_else(
    folders: dict[str, Path],
) -> None:
    objective = objective_of("t5", objective="lm")
    examples = objective.examples(folders["t5"], epoch=0, seed=3)
    batch, _ = batch_of(objective, folders["t5"], range(len(examples.passages.sizes)))
    assert all(inputs == [1] for inputs in read(batch))
    corpus = read_corpus(folders["t5"])
    flat = [token for row in said(batch) for token in row]
    assert flat.count(1) == len(corpus.documents) - 1
    assert len(flat) == len(corpus.tokens) + len(corpus.documents) - 1
    made = examples.passages
    assert isinstance(made, JoinedDocuments)
    around = np.roll(flat, made.start)
    assert np.flatnonzero(around == 1).tolist() == (made.ends - 1).tolist()


def test_blocks_are_whole_sentences_of_one_document_as_many_as_fit(folders: dict[str, Path]) -> None:
    corpus, room = read_corpus(folders["bart"]), 12
    blocks = WholeSentences.packed(corpus, room)
    assert blocks.start.tolist() == [0, *blocks.end.tolist()[:-1]] and blocks.end[-1] == len(corpus.tokens)
    edges = corpus.sentences.tolist()
    documents_end = set(corpus.sentences[corpus.documents].tolist())
    for start, end in zip(blocks.start.tolist(), blocks.end.tolist(), strict=True):
        assert 0 < end - start <= room
        inside = [edge for edge in edges if start < edge < end]
        assert not documents_end & set(inside)
        if end in edges and start in edges and end not in documents_end:
            following = edges[edges.index(end) + 1]
            assert following - start > room, "the next sentence would have fitted"
    cut = [start for start in blocks.start.tolist() if start not in edges]
    assert cut, "the test needs a sentence that is longer than a block"


@pytest.mark.parametrize("name", T5S)
def test_every_objective_of_t5s_study_asks_for_what_it_should(folders: dict[str, Path], name: str) -> None:
    objective = objective_of("t5", objective=name)
    batch, text = batch_of(objective, folders["t5"], range(12))
    mask = objective.vocabulary.mask
    for original, inputs, targets in zip(real(text), read(batch), said(batch), strict=True):
        assert inputs.pop() == 1 and len(inputs) < LENGTH
        if name == "lm":
            assert not inputs and targets == original
            continue
        assert targets.pop() == 1
        if name == "prefix_lm":
            assert inputs and targets and inputs + targets == original
        elif name == "drop":
            assert sorted(inputs + targets) == sorted(original)
            left = iter(original)
            assert all(token in left for token in inputs), "the inputs are what is left, in order"
        elif name == "tokens":
            sentinels = [mask - number for number in range(20)]
            assert rebuilt(inputs, targets, sentinels) == original
        elif name == "spans":
            assert len(targets) < len(original)
        else:
            assert targets == original and len(inputs) == len(original)
        if name == "mass":
            assert all(a in (mask, b) for a, b in zip(inputs, original, strict=True))
        if name == "deshuffle":
            assert sorted(inputs) == sorted(original) and inputs != original


def words(count: int) -> tuple[Text, Vocabulary]:
    """Rows of 60 tokens that all differ, and a vocabulary whose text entries are those from 10 on."""
    ids = np.tile(np.arange(60) + 1000, (count, 1))
    ends = np.zeros((count, 60), dtype=bool)
    ends[:, 9::10] = True
    vocabulary = Vocabulary(
        1, (0,), 2, 2, 4, 4, 1, np.arange(10), np.arange(10, 900), np.ones(2000, dtype=bool)
    )
    return Text(ids, np.full(count, 60), ends), vocabulary


@pytest.mark.parametrize("noise", [TokenMasking(0.3, 0.25), TokenInsertion(0.3, 0.25), TextInfilling(0.3)])
def test_random_tokens_stand_for_masks_as_often_as_asked_and_are_text(noise: Noise) -> None:
    text, vocabulary = words(3000)
    made = noise(text, vocabulary, Keys(1, 0, np.arange(3000)))
    found = made.ids[made.real]
    masks, others = int((found == 4).sum()), found[(found < 1000) & (found != 4)]
    assert others.min() >= 10 and others.max() < 900
    wanted = 0.1 if isinstance(noise, TextInfilling) else 0.25
    assert len(others) / (len(others) + masks) == pytest.approx(wanted, abs=0.012)


def test_noises_of_a_stack_draw_by_themselves_and_in_order() -> None:
    """With the same numbers for all, what one noise does would tell what the next one does."""
    text, vocabulary = words(2000)
    keys = Keys(1, 0, np.arange(2000))
    noises = [SentencePermutation(1.0), TokenDeletion(0.3), TokenInsertion(0.2, 0.0), DocumentRotation(0.5)]
    made = Stack(noises)(text, vocabulary, keys)
    by_hand = text
    for number, noise in enumerate(noises):
        by_hand = noise(by_hand, vocabulary, keys.part(number))
    assert real(made) == real(by_hand)
    twice = Stack([TokenDeletion(0.5), TokenDeletion(0.5)])(text, vocabulary, keys)
    assert (twice.lengths == 15).all()
    counts = np.bincount((np.concatenate(real(twice)) - 1000), minlength=60)
    assert np.abs(counts / 2000 - 0.25).max() < 0.05
    assert Stack(noises).length(60) == pytest.approx(60 * 0.7 * 1.2)


@pytest.mark.parametrize(
    "noise", [TextInfilling(0.3), TextInfilling(0.15, 3.5), TokenDeletion(0.2), TokenInsertion(0.2)]
)
def test_the_foreseen_length_is_the_mean(noise: Noise) -> None:
    text, vocabulary = words(3000)
    made = noise(text, vocabulary, Keys(1, 0, np.arange(3000)))
    assert made.lengths.mean() == pytest.approx(noise.length(60), rel=0.03)
    assert (made.lengths <= noise.longest(60)).mean() > 0.99


def test_bart_rebuilds_the_untouched_text_between_its_marks(folders: dict[str, Path]) -> None:
    objective = objective_of("bart", rotate=0.5, insert=0.1)
    batch, text = batch_of(objective, folders["bart"], range(20))
    for original, inputs, targets in zip(real(text), read(batch), said(batch), strict=True):
        assert targets == [0, *original, 2]
        assert inputs[0] == 0 and inputs[-1] == 2 and not {0, 1, 2} & set(inputs[1:-1])
        assert inputs != targets
    decoder = batch.inputs["decoder_input_ids"]
    assert (decoder[:, 0] == 2).all() and (decoder[:, 1] == 0).all()


def test_whole_words_are_deleted_whole(folders: dict[str, Path]) -> None:
    """A word begins at a piece with a space before it; the first of a text has none."""
    objective = objective_of("bart", masking="deletion", share=0.4, permute=0.0, whole_word=True)
    batch, text = batch_of(objective, folders["bart"], range(20))
    decode, cut = tokenizer_of("bart").decode, 0
    for original, inputs in zip(real(text), read(batch), strict=True):
        before, after = decode(original).split(), decode(inputs[1:-1]).split()
        assert len(after) == len(before) - math.ceil(0.4 * len(before))
        left = iter(before)
        assert all(word in left for word in after)
        cut += len(original) > len(before)
    assert cut > 10, "words of several pieces, or the test says nothing"


@pytest.mark.parametrize("masking", ["infilling", "tokens", "deletion"])
def test_without_noise_bart_reads_the_text(folders: dict[str, Path], masking: str) -> None:
    objective = objective_of("bart", masking=masking, share=0.0, permute=0.0)
    batch, _ = batch_of(objective, folders["bart"], range(20))
    assert read(batch) == said(batch)


def test_inputs_are_never_longer_than_asked(folders: dict[str, Path]) -> None:
    """A learned position that is not there would be an index error on a CPU, and worse on a GPU."""
    for settings in ({"share": 1.0, "mean_span": 0.2}, {"share": 0.0, "insert": 1.0}):
        objective = objective_of("bart", **settings)
        count = len(objective.examples(folders["bart"], epoch=0, seed=3).passages.sizes)
        batch, _ = batch_of(objective, folders["bart"], range(count))
        assert batch.mask.shape[1] <= LENGTH
        assert all(row[-1] == 2 for row in read(batch))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("t5", {}),
        ("t5", {"version": "v1.1", "decoder_layers": 3, "head": 5, "ffn": 24}),
        ("t5", {"objective": "bert"}),
        ("t5", {"objective": "lm"}),
        ("bart", {"decoder_layers": 1}),
    ],
)
def test_flops_are_what_torch_counts(folders: dict[str, Path], name: str, settings: dict[str, Any]) -> None:
    objective, model = objective_of(name, **settings), model_of(name, **settings)
    count = len(objective.examples(folders[name], epoch=0, seed=3).passages.sizes)
    batch, text = batch_of(objective, folders[name], range(count))
    whole = np.flatnonzero(text.lengths >= text.lengths.max() - 1)
    read_size = round(np.mean([len(read(batch)[row]) for row in whole]))
    said_size = round(np.mean([len(said(batch)[row]) for row in whole]))
    ids = [torch.ones(2, size, dtype=torch.int64) for size in (read_size, said_size)]
    found = counted(lambda: model(input_ids=ids[0], decoder_input_ids=ids[1], use_cache=False))  # type: ignore[operator]
    told = objective.flops(model, LENGTH)
    assert told == (pytest.approx(found / 2, rel=0.08) if name == "bart" else found / 2)


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_what_a_loop_counts(folders: dict[str, Path], name: str) -> None:
    objective, model = objective_of(name, **({"random": 0.0} if name == "bart" else {})), model_of(name)
    batch, text = batch_of(objective, folders[name], range(9))
    (term,) = objective.loss(model, batch).values()
    figures = objective.figures(term.tallies)
    marks = set(objective.vocabulary.sentinel - np.arange(objective.vocabulary.sentinels))
    ids = [token for row in read(batch) for token in row]
    seen = len([token for token in ids if token not in marks]) - 9 * objective.vocabulary.framing
    assert figures["removed"] == pytest.approx(1 - seen / int(text.lengths.sum()))
    assert figures["marks"] == pytest.approx(len([token for token in ids if token in marks]) / 9)
    assert figures["input_length"] == pytest.approx(len(ids) / 9)
    assert figures["target_length"] == pytest.approx(sum(map(len, said(batch))) / 9)
    with torch.no_grad():
        best = model(**batch.inputs).logits.argmax(-1)  # type: ignore[operator]
    assert batch.labels is not None
    right = [a == b for a, b in zip(best.flatten(), batch.labels.flatten(), strict=True) if b != IGNORED]
    assert figures["token_accuracy"] == pytest.approx(sum(map(bool, right)) / len(right))


def test_a_batch_that_asks_nothing_costs_nothing_and_can_go_backward(folders: dict[str, Path]) -> None:
    objective, model = objective_of("t5"), model_of("t5")
    batch, _ = batch_of(objective, folders["t5"], range(2))
    assert batch.labels is not None
    bare = replace(batch, labels=torch.full_like(batch.labels, IGNORED))
    (term,) = objective.loss(model, bare).values()
    assert term.count == 0 and term.value.item() == 0.0
    term.value.backward()


def test_the_feed_gives_full_batches_of_inputs(folders: dict[str, Path]) -> None:
    settings = PretrainSettings(corpus="c", batch=8, max_length=LENGTH)
    feed = ObjectiveFeed(objective_of("t5"), folders["t5"], settings, seed=3)
    batches = [batch for index in range(feed.num_steps(0)) for batch in feed.step(0, index)]
    padded = 1 - sum(batch.num_tokens for batch in batches) / sum(batch.mask.numel() for batch in batches)
    assert padded < 0.03
    assert {"sequences", "tokens", "mean_length", "mean_input", "mean_target"} == set(feed.metrics(0))
    assert sum(batch.num_examples for batch in batches) == feed.metrics(0)["sequences"]


def test_too_few_sentinels_are_refused_before_anything_is_made() -> None:
    pretrain = PretrainSettings(corpus="c", max_length=LENGTH)
    with pytest.raises(ConfigError, match="need 10 sentinels, and there are 3") as caught:
        made = source("t5", density=0.5, mean_span=2.0, sentinels=3, pretrain=pretrain)
        made.pretraining(made.tokenizer(["some words and more words"] * 3))
    assert caught.value.where == "teacher.sentinels"


def test_a_corpus_of_one_token_is_refused(tmp_path: Path) -> None:
    objective = objective_of("t5")
    objective.prepare(iter([["\u2581"]]), tokenizer_of("t5"), tmp_path / "c", max_length=LENGTH)
    with pytest.raises(DataError, match="a single token"):
        objective.examples(tmp_path / "c", epoch=0, seed=0)


def test_a_tokenizer_without_sentinels_is_refused() -> None:
    with pytest.raises(ModelError, match="no sentinels"):
        Vocabulary.of_t5(tokenizer_of("bart"))


def test_dropout_is_off_at_the_end_of_barts_training() -> None:
    objective, model = objective_of("bart", calm=0.25), model_of("bart")
    seen = []
    for step in range(8):
        objective.go_to(model, step, 8)
        seen.append(model.training)
    assert seen == [True] * 6 + [False] * 2
