"""Blocks of whole sentences and of a stream, RoBERTa's masks, GPT's next tokens: against short loops and
`transformers`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training
from scipy import stats
from tiny import WORDS, byte_tokenizer, documents, tokenizer
from training import StopAfter, digest
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from distillkit.flops import HONEST, counted
from distillkit.objectives.blocks import Blocks, Packing, full_blocks, sentence_blocks
from distillkit.objectives.corpus import Corpus, CorpusObjective, read_corpus
from distillkit.objectives.feed import ObjectiveFeed
from distillkit.objectives.gpt import GptObjective
from distillkit.objectives.roberta import RobertaObjective, masked_counts, plain_entries
from distillkit.progress import Progress
from distillkit.settings import OptimizerSettings, PretrainSettings, RuntimeSettings
from distillkit.teachers.gpt import Gpt
from distillkit.teachers.roberta import Roberta
from distillkit.train import Pretraining, TrainSettings
from distillkit.types import IGNORED, Batch

LENGTH = 32
SHAPE: dict[str, Any] = {"layers": 2, "width": 16, "heads": 2, "vocab_size": 320, "positions": LENGTH}
SOURCES = {"roberta": Roberta, "gpt": Gpt}
OBJECTIVES: dict[str, CorpusObjective] = {"roberta": RobertaObjective(), "gpt": GptObjective()}


@pytest.fixture(scope="module")
def byte() -> PreTrainedTokenizerBase:
    return byte_tokenizer()


@pytest.fixture(scope="module")
def texts() -> list[list[str]]:
    """Some sentences are longer than a block, one of them as long as two."""
    long = [" ".join(WORDS[:75]), " ".join(WORDS[:60])]
    return [*documents(), [*long, "ba be"], ["bi"], *documents(12, seed=4)]


@pytest.fixture(scope="module")
def prepared(
    byte: PreTrainedTokenizerBase, texts: list[list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "corpus"
    RobertaObjective().prepare(iter(texts), byte, folder, max_length=LENGTH)
    return folder


def ids_of(corpus: Corpus) -> list[list[list[int]]]:
    """The tokens of each sentence of each document."""
    sentences = np.split(corpus.tokens, corpus.sentences[1:-1])
    return [
        [sentence.tolist() for sentence in sentences[first:last]]
        for first, last in zip(corpus.documents[:-1], corpus.documents[1:], strict=True)
    ]


def packed(corpus: Corpus, *, crossing: bool) -> list[list[int]]:
    """Greedy packing as a loop over sentences."""
    room, separator = LENGTH - 2, corpus.facts["sep"]
    blocks: list[list[int]] = []
    block: list[int] = []
    for document in ids_of(corpus):
        for number, sentence in enumerate(document):
            between = [separator] if block and number == 0 else []
            if block and (len(block + between + sentence) > room or (between and not crossing)):
                blocks.append(block)
                block, between = [], []
            while len(sentence) > room:
                blocks.append(sentence[:room])
                sentence = sentence[room:]
            block = block + between + sentence
    return [*blocks, block]


def contents(blocks: Blocks) -> list[list[int]]:
    """What stands in each block, without what is around it."""
    tokens = blocks.lay_out(np.arange(len(blocks.start)))
    stop = tokens.real.sum(axis=1) - blocks.closed
    return [ids[1:end].tolist() for ids, end in zip(tokens.ids, stop, strict=True)]


@pytest.mark.parametrize("packing", ["full_sentences", "doc_sentences"])
def test_blocks_of_sentences_are_those_of_a_greedy_loop(prepared: Path, packing: Packing) -> None:
    corpus = read_corpus(prepared)
    blocks = sentence_blocks(corpus, packing)
    expected = packed(corpus, crossing=packing == "full_sentences")
    assert contents(blocks) == expected
    assert blocks.lengths.tolist() == [len(block) + 2 for block in expected]
    assert any(len(block) == LENGTH - 2 for block in expected), "a long sentence fills blocks"
    assert (blocks.metrics()["several_documents"] > 0) == (packing == "full_sentences")


@pytest.mark.parametrize("packing", ["full_sentences", "doc_sentences"])
def test_packing_loses_no_token_and_changes_no_order(prepared: Path, packing: Packing) -> None:
    corpus = read_corpus(prepared)
    blocks = sentence_blocks(corpus, packing)
    tokens = blocks.lay_out(np.arange(len(blocks.start)))
    assert tokens.ids[tokens.text].tolist() == corpus.tokens.tolist()
    edges = tokens.ids[tokens.real & ~tokens.text]
    separators = (edges == corpus.facts["sep"]).sum() - len(blocks.start)
    assert set(edges.tolist()) == {corpus.facts["cls"], corpus.facts["sep"]}
    first, last = (blocks.stream.document(place) for place in (blocks.start, blocks.end - 1))
    assert separators == (last - first).sum(), "one between two documents"


def test_a_stream_is_cut_into_full_blocks_and_every_token_is_a_target_once(prepared: Path) -> None:
    corpus = read_corpus(prepared)
    blocks, end = full_blocks(corpus), corpus.facts["sep"]
    stream = [token for document in ids_of(corpus) for token in [*chain(*document), end]]
    assert [*chain(*contents(blocks))] == stream
    assert set(blocks.lengths[:-1].tolist()) == {LENGTH}
    batch = GptObjective().collate(blocks, range(len(blocks.start)), epoch=0, seed=0)
    assert batch.labels is not None and "token_type_ids" not in batch.inputs
    following = batch.labels[:, 1:]
    assert following[following != IGNORED].tolist() == stream
    assert (batch.inputs["input_ids"][:, 0] == corpus.facts["cls"]).all()


def test_sentences_stand_in_blocks_as_in_a_text(
    byte: PreTrainedTokenizerBase, texts: list[list[str]], prepared: Path
) -> None:
    """Without the space between two sentences their words would run together."""
    blocks = full_blocks(read_corpus(prepared))
    assert byte.decode([*chain(*contents(blocks))]) == "".join(f"{' '.join(text)}</s>" for text in texts)


def collated(folder: Path, rows: Sequence[int] | None = None, *, epoch: int = 0, **settings: Any) -> Batch:
    objective = RobertaObjective(**settings)
    blocks = objective.examples(folder, epoch=epoch, seed=3)
    return objective.collate(blocks, rows or range(len(blocks.start)), epoch=epoch, seed=3)


def test_mask_counts_are_the_floor_of_the_share_plus_a_uniform_number(prepared: Path) -> None:
    lengths = sentence_blocks(read_corpus(prepared), "full_sentences").lengths
    counts = np.stack(
        [(collated(prepared, epoch=epoch).labels != IGNORED).sum(1).numpy() for epoch in range(60)]  # type: ignore[attr-defined]
    )
    share = 0.15 * lengths
    assert ((counts == np.floor(share)) | (counts == np.floor(share) + 1)).all()
    above = (counts - np.floor(share)).sum()
    expected, variance = share % 1, (share % 1) * (1 - share % 1)
    assert abs(above - 60 * expected.sum()) < 4.5 * (60 * variance.sum()) ** 0.5
    uniform = np.random.default_rng(0).random(20_000)
    assert masked_counts(0.15, np.full(20_000, 25), uniform).mean() == pytest.approx(3.75, abs=0.02)


def test_the_mask_profile_is_flat_and_no_special_token_is_masked(prepared: Path) -> None:
    """Of the tokens that may be masked those at every tenth of a block are as often as their number says."""
    blocks = sentence_blocks(read_corpus(prepared), "full_sentences")
    tokens = blocks.lay_out(np.arange(len(blocks.start)))
    tenth = (np.arange(tokens.ids.shape[1]) * 10) // (blocks.lengths[:, None] + 1)
    observed, expected = np.zeros(11), np.zeros(11)
    for epoch in range(80):
        labels = collated(prepared, epoch=epoch).labels
        assert labels is not None
        chosen = labels.numpy() != IGNORED
        assert not (chosen & ~tokens.text).any()
        odds = (chosen.sum(1) / tokens.text.sum(1))[:, None] * tokens.text
        observed += np.bincount(tenth.ravel(), chosen.ravel(), minlength=11)[:11]
        expected += np.bincount(tenth.ravel(), odds.ravel(), minlength=11)[:11]
    assert stats.chisquare(observed[:10], expected[:10]).pvalue > 1e-4
    assert observed.sum() > 10_000 and observed[10] == 0


def kinds(original: np.ndarray[Any, Any], given: np.ndarray[Any, Any], mask: int) -> np.ndarray[Any, Any]:
    """Shares of [MASK], unchanged and another token."""
    masked, kept = (given == mask).mean(), (given == original).mean()
    return np.asarray([masked, kept, 1 - masked - kept])


def test_masked_tokens_are_treated_as_by_the_collator_of_transformers(
    byte: PreTrainedTokenizerBase, prepared: Path
) -> None:
    """The same labels, no special tokens, 80 / 10 / 10. What differs is known: theirs flips a coin for each
    token, and may put a special token at random.
    """
    blocks = sentence_blocks(read_corpus(prepared), "full_sentences")
    whole = blocks.lay_out(np.arange(len(blocks.start)))
    theirs = DataCollatorForLanguageModeling(byte, mlm_probability=0.15, seed=5)
    rows = [ids[real].tolist() for ids, real in zip(whole.ids, whole.real, strict=True)]
    found = {"ours": [], "theirs": []}  # type: ignore[var-annotated]
    for epoch in range(40):
        made = theirs([{"input_ids": row} for row in rows])
        ours = collated(prepared, epoch=epoch)
        assert ours.labels is not None
        for name, ids, labels in (
            ("ours", ours.inputs["input_ids"], ours.labels),
            ("theirs", made["input_ids"], made["labels"]),
        ):
            chosen = labels != IGNORED
            assert not (chosen.numpy() & ~whole.text).any(), name
            assert torch.equal(torch.where(chosen, labels, ids), torch.from_numpy(whole.ids)), name
            found[name].append(np.stack([labels[chosen].numpy(), ids[chosen].numpy()]))
    (ours_2N, theirs_2N) = (np.concatenate(found[name], axis=1) for name in ("ours", "theirs"))
    assert ours_2N.shape[1] == pytest.approx(40 * 0.15 * whole.real.sum(), rel=0.02)
    assert theirs_2N.shape[1] == pytest.approx(40 * 0.15 * whole.text.sum(), rel=0.05)
    mine, other = (kinds(*pair, byte.mask_token_id) for pair in (ours_2N, theirs_2N))
    error = 4.5 * (0.16 / theirs_2N.shape[1]) ** 0.5
    assert np.abs(mine - [0.8, 0.1, 0.1]).max() < error and np.abs(other - [0.8, 0.1, 0.1]).max() < error
    changed = ours_2N[1][(ours_2N[1] != ours_2N[0]) & (ours_2N[1] != byte.mask_token_id)]
    plain = plain_entries(read_corpus(prepared))
    assert set(plain.tolist()) == set(range(len(byte))) - set(byte.all_special_ids)
    assert np.isin(changed, plain).all()
    assert stats.chisquare(np.histogram(np.searchsorted(plain, changed), bins=5)[0]).pvalue > 1e-4


def test_a_mask_belongs_to_its_row_and_epoch_alone(prepared: Path) -> None:
    """Masks drawn per batch would change with workers, ranks and resumes."""
    alone, together = collated(prepared, [9], epoch=2), collated(prepared, [4, 9, 2], epoch=2)
    width = alone.mask.shape[1]
    assert alone.labels is not None and together.labels is not None
    assert torch.equal(together.inputs["input_ids"][1, :width], alone.inputs["input_ids"][0])
    assert torch.equal(together.labels[1, :width], alone.labels[0])
    later = [collated(prepared, range(9), epoch=epoch).labels for epoch in (2, 3)]
    assert later[0] is not None and later[1] is not None and not torch.equal(later[0], later[1])


def test_whole_words_are_masked_all_or_none(byte: PreTrainedTokenizerBase, prepared: Path) -> None:
    """A word is what stands between spaces."""
    blocks = sentence_blocks(read_corpus(prepared), "full_sentences")
    tokens = blocks.lay_out(np.arange(len(blocks.start)))
    batch = collated(prepared, epoch=1, whole_word=True)
    assert batch.labels is not None
    chosen = batch.labels.numpy() != IGNORED
    partly = 0
    for row, ids in enumerate(tokens.ids):
        pieces = byte.convert_ids_to_tokens(ids.tolist())
        text = tokens.text[row]
        spaced = np.asarray([piece.startswith("\u0120") for piece in pieces])
        word = np.cumsum(spaced | ~text | ~np.concatenate([[False], text[:-1]]))
        for number in np.unique(word[text]):
            pieces_of_it = chosen[row][(word == number) & text]
            assert pieces_of_it.all() or not pieces_of_it.any()
            partly += len(pieces_of_it) > 1 and bool(pieces_of_it.all())
    assert partly > 10, "words of several pieces are masked too"
    assert chosen.sum() == pytest.approx(0.15 * blocks.lengths.sum(), rel=0.15)


def model_of(name: str, byte: PreTrainedTokenizerBase, **settings: Any) -> tuple[Any, CorpusObjective]:
    torch.manual_seed(0)
    model, objective = SOURCES[name](**{**SHAPE, "dropout": 0.0, **settings}).pretraining(byte)
    assert isinstance(objective, CorpusObjective)
    return model, objective


def a_batch(objective: CorpusObjective, folder: Path, rows: Sequence[int]) -> Batch:
    return objective.collate(objective.examples(folder, epoch=0, seed=3), rows, epoch=0, seed=3)


@pytest.mark.parametrize("name", SOURCES)
def test_the_loss_and_its_gradient_are_those_of_transformers(
    name: str, byte: PreTrainedTokenizerBase, prepared: Path
) -> None:
    model, objective = model_of(name, byte)
    rows = len(objective.examples(prepared, epoch=0, seed=3).lengths)
    batch = a_batch(objective, prepared, range(rows - 12, rows))
    assert not batch.full
    (term,) = objective.loss(model, batch).values()
    theirs = model(**batch.inputs, labels=batch.labels).loss
    assert term.value.item() == pytest.approx(theirs.item(), rel=1e-6)
    parameters = list(model.parameters())
    for mine, full in zip(
        torch.autograd.grad(term.value, parameters), torch.autograd.grad(theirs, parameters), strict=True
    ):
        assert torch.allclose(mine, full, atol=1e-6)
    assert list(objective.counts(batch).values()) == [term.count]
    figures = objective.figures(term.tallies)
    assert figures["perplexity"] == pytest.approx(math.exp(term.value.item()), rel=1e-5)
    scores = model(**batch.inputs).logits
    labels = batch.labels
    assert labels is not None
    if name == "gpt":
        scores, labels = scores[:, :-1], labels[:, 1:]
    right = (scores.argmax(-1) == labels)[labels != IGNORED].float().mean()
    assert figures["accuracy"] == pytest.approx(right.item())


@pytest.mark.parametrize("name", SOURCES)
def test_a_batch_without_a_target_adds_nothing_and_still_trains(
    name: str, byte: PreTrainedTokenizerBase, prepared: Path
) -> None:
    model, objective = model_of(name, byte)
    batch = a_batch(objective, prepared, range(3))
    assert batch.labels is not None
    (term,) = objective.loss(model, replace(batch, labels=torch.full_like(batch.labels, IGNORED))).values()
    assert term.count == 0 and term.value.item() == 0.0 and objective.figures(term.tallies) == {}
    term.value.backward()


def test_a_later_token_never_changes_an_earlier_answer_of_gpt_and_does_of_roberta(
    byte: PreTrainedTokenizerBase, prepared: Path
) -> None:
    for name in SOURCES:
        model, objective = model_of(name, byte)
        batch = a_batch(objective, prepared, range(4))
        ids = batch.inputs["input_ids"]
        place = 11
        other = ids.clone()
        other[:, place:] = (other[:, place:] + 7) % len(byte)
        with torch.no_grad():
            before, after = (model.eval()(input_ids=each).logits[:, :place] for each in (ids, other))
        assert torch.allclose(before, after, atol=1e-6) == (name == "gpt")


@pytest.mark.parametrize("name", SOURCES)
def test_flops_are_what_torch_counts(name: str, byte: PreTrainedTokenizerBase, prepared: Path) -> None:
    """Forward and backward of full blocks; of a masked model with as many masks as its share says."""
    model, objective = model_of(name, byte, ffn=24)
    lengths = objective.examples(prepared, epoch=0, seed=3).lengths
    rows = np.flatnonzero(lengths == LENGTH)[:3].tolist()
    batch = a_batch(objective, prepared, rows)
    assert batch.full and batch.labels is not None
    if name == "roberta":
        labels = torch.full_like(batch.labels, IGNORED)
        labels[:, 1 : 1 + round(0.15 * LENGTH)] = 7
        batch = replace(batch, labels=labels)

    def step() -> None:
        (term,) = objective.loss(model, batch).values()
        term.value.backward()

    assert counted(step) == HONEST.training(objective.flops(model, LENGTH), 3)


def how(**changes: Any) -> TrainSettings:
    made = TrainSettings(
        stage="pretrain",
        steps=6,
        optimizer=OptimizerSettings(lr=3e-3, eps=1e-3),
        save_every=2,
        seed=11,
        runtime=RuntimeSettings(device="cpu", precision="fp32", log_every=1),
        settings_digest="config",
    )
    return replace(made, **changes)


def run(
    name: str,
    folder: Path,
    byte: PreTrainedTokenizerBase,
    *,
    texts: list[list[str]],
    micro: int = 1,
    settings: TrainSettings | None = None,
    progress: Progress | None = None,
    **teacher: Any,
) -> Pretraining:
    torch.manual_seed(0)
    model, objective = SOURCES[name](**{**SHAPE, **teacher}).pretraining(byte)
    corpus = folder.parent / "corpus"
    objective.prepare(iter(texts), byte, corpus, max_length=LENGTH)
    feed = ObjectiveFeed(
        objective, corpus, PretrainSettings(corpus="c", batch=8, max_length=LENGTH, micro=micro), seed=3
    )
    made = Pretraining(model, objective)
    training.run(folder, made=made, data=feed, how=settings or how(), progress=progress)  # type: ignore[arg-type]
    return made


def told(folder: Path) -> list[dict[str, Any]]:
    """What is logged of every step, but for times."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: row.get(name) for name in ("step", "total", "terms", "figures")} for row in rows]


@pytest.mark.parametrize("name", SOURCES)
def test_a_resumed_pretraining_ends_with_the_same_weights_bit_for_bit(
    name: str, byte: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    whole = run(name, tmp_path / "whole", byte, texts=documents())
    with pytest.raises(KeyboardInterrupt):
        run(name, tmp_path / "cut", byte, texts=documents(), progress=StopAfter(3))
    again = run(name, tmp_path / "cut", byte, texts=documents())
    assert digest(again) == digest(whole) and told(tmp_path / "cut") == told(tmp_path / "whole")


@pytest.mark.parametrize("name", SOURCES)
def test_micro_batches_add_up_to_the_whole_batch(
    name: str, byte: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    shared = {"texts": documents(), "dropout": 0.0}
    made = [run(name, tmp_path / str(micro), byte, micro=micro, **shared) for micro in (1, 4)]
    for mine, theirs in zip(made[0].parameters(), made[1].parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=3e-5)
    for one, other in zip(told(tmp_path / "1"), told(tmp_path / "4"), strict=True):
        assert one["terms"] == pytest.approx(other["terms"], rel=1e-3)
        assert one["figures"] == pytest.approx(other["figures"], rel=1e-3)
        assert one["figures"]["perplexity"] == pytest.approx(math.exp(one["total"]), rel=1e-4)


@pytest.mark.parametrize("name", SOURCES)
def test_it_learns_what_can_be_known_and_no_more(
    name: str, byte: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Six words in any order: were an answer to be seen in the input, the loss would fall below their
    entropy, ln 6.
    """
    generator = np.random.default_rng(0)
    sentence = [[" ".join(generator.choice(WORDS[:6], size=10)) for _ in range(3)] for _ in range(60)]
    settings = how(steps=90, save_every=1000, optimizer=OptimizerSettings(lr=1e-2, warmup=0.1))
    run(name, tmp_path / "run", byte, texts=sentence, settings=settings, dropout=0.0)
    rows = told(tmp_path / "run")
    assert rows[0]["total"] == pytest.approx(math.log(len(byte)), rel=0.05)
    last = np.mean([row["total"] for row in rows[-10:]])
    assert math.log(6) * 0.85 < last < math.log(6) * 1.25


def test_a_vocabulary_of_wordpieces_is_packed_the_same(tmp_path: Path, texts: list[list[str]]) -> None:
    """The space that is put between sentences is nothing to it."""
    corpus = tmp_path / "corpus"
    RobertaObjective().prepare(iter(texts), tokenizer(), corpus, max_length=LENGTH)
    made = tokenizer()(list(chain(*texts)), add_special_tokens=False)
    assert read_corpus(corpus).tokens.tolist() == [*chain(*made.input_ids)]
