"""Batches: every row once, the budget kept, little padding, a pure order; the cache is never trusted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from distillkit.data.batching import (
    Encoded,
    TaskFeed,
    collate,
    drawn,
    encode,
    epoch_plan,
    sequential_batches,
)
from distillkit.data.tasks import Rows
from distillkit.data.tokenizers import train_wordpiece
from distillkit.errors import DataError, ModelError, ResourceError
from distillkit.settings import BatchSettings

WORDS = [f"word{index}" for index in range(40)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_wordpiece([" ".join(WORDS)] * 3, vocab_size=400)


def rows_of(texts: Sequence[tuple[str, ...]], digest: str = "rows") -> Rows:
    labels = np.arange(len(texts), dtype=np.int64) % 3
    return Rows(np.arange(len(texts), dtype=np.int64) + 100, tuple(texts), labels, digest)


def some_rows(count: int, segments: int = 1) -> Rows:
    generator = np.random.default_rng(1)
    texts = [
        tuple(" ".join(generator.choice(WORDS, generator.integers(0, 12))) for _ in range(segments))
        for _ in range(count)
    ]
    return rows_of(texts)


def flat(plan: list[list[NDArray[np.int64]]]) -> list[int]:
    return sorted(int(row) for step in plan for part in step for row in part)


def padded(parts: Sequence[NDArray[np.int64]], lengths: NDArray[np.int64]) -> int:
    return sum(len(part) * int(lengths[part].max()) for part in parts)


LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=200).map(lambda found: np.array(found))
BATCHES = st.builds(
    BatchSettings,
    tokens=st.integers(60, 400),
    examples=st.integers(1, 40),
    micro=st.sampled_from([1, 2, 4]),
)


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, batches=BATCHES, seed=st.integers(0, 9), epoch=st.integers(0, 9))
def test_an_epoch_holds_every_row_once_within_the_budget(
    lengths: NDArray[np.int64], batches: BatchSettings, seed: int, epoch: int
) -> None:
    plan = epoch_plan(lengths, batches, seed=seed, epoch=epoch)
    assert flat(plan) == list(range(len(lengths)))
    for step in plan:
        size = sum(map(len, step))
        whole = np.concatenate(step)
        assert size <= batches.examples
        assert size * int(lengths[whole].max()) <= batches.tokens
        assert len(step) == min(batches.micro, max(1, size // 2))
        assert all(len(part) % 2 == 0 for part in step[:-1]), "pairs stay together"
        assert len(step[0]) - len(step[-1]) in (-1, 0, 1, 2)


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, tokens=st.integers(60, 400))
def test_evaluation_batches_hold_every_row_once_within_the_budget(
    lengths: NDArray[np.int64], tokens: int
) -> None:
    batches = sequential_batches(lengths, tokens=tokens)
    assert flat([batches]) == list(range(len(lengths)))
    assert all(padded([batch], lengths) <= tokens for batch in batches)


def test_a_row_longer_than_the_budget_is_a_batch_of_its_own() -> None:
    lengths = np.array([3, 90, 3, 3])
    for batches in (
        [step[0] for step in epoch_plan(lengths, BatchSettings(tokens=10), seed=0, epoch=0)],
        sequential_batches(lengths, tokens=10),
    ):
        assert flat([batches]) == [0, 1, 2, 3]
        assert [1] in [batch.tolist() for batch in batches]


def test_a_step_that_stops_at_the_budget_could_not_have_taken_one_more_row() -> None:
    """Otherwise the budget would be kept by steps of one row, and training would be slow."""
    lengths = np.full(1000, 10)
    sizes = [sum(map(len, step)) for step in epoch_plan(lengths, BatchSettings(tokens=95), seed=0, epoch=0)]
    assert sizes.count(9) >= len(sizes) - 2 * (len(sizes) // 50 + 1)
    sizes = [sum(map(len, step)) for step in epoch_plan(lengths, BatchSettings(examples=7), seed=0, epoch=0)]
    assert sizes.count(7) >= len(sizes) - 2 * (len(sizes) // 50 + 1)


def test_no_step_is_left_with_a_single_row() -> None:
    lengths = np.full(65, 10)
    sizes = [sum(map(len, step)) for step in epoch_plan(lengths, BatchSettings(examples=8), seed=0, epoch=0)]
    assert sorted(sizes) == [4, 5, 8, 8, 8, 8, 8, 8, 8]


DISTRIBUTIONS = {
    "phrases": lambda generator: 2 + generator.gamma(1.4, 8.0, 20_000),
    "sentences": lambda generator: 2 + generator.gamma(4.0, 7.0, 8_000),
    "pairs": lambda generator: 3 + generator.lognormal(4.0, 0.4, 4_000),
    "cut reviews": lambda generator: generator.lognormal(5.3, 0.6, 3_000),
}


@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_padding_stays_under_five_percent(name: str, micro: int) -> None:
    drawn = DISTRIBUTIONS[name](np.random.default_rng(5))
    lengths = np.clip(drawn, 3, 128).astype(np.int64)
    plan = epoch_plan(lengths, BatchSettings(micro=micro), seed=0, epoch=0)
    total = sum(padded(step, lengths) for step in plan)
    assert 1 - lengths.sum() / total < 0.05


def test_parts_of_a_step_have_nearly_equal_work() -> None:
    lengths = np.clip(np.random.default_rng(5).gamma(4.0, 7.0, 8_000), 3, 128).astype(np.int64)
    plan = epoch_plan(lengths, BatchSettings(tokens=4096, micro=4), seed=0, epoch=0)
    work = np.array([[padded([part], lengths) for part in step] for step in plan if len(step) == 4])
    assert np.median(work.max(axis=1) / work.min(axis=1)) < 1.15


def test_the_order_is_a_pure_function_of_seed_and_epoch() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 500)

    def order(seed: int, epoch: int) -> list[list[list[int]]]:
        plan = epoch_plan(lengths, BatchSettings(tokens=256, micro=2), seed=seed, epoch=epoch)
        return [[part.tolist() for part in step] for step in plan]

    # The global generators must not matter.
    torch.manual_seed(1)
    np.random.seed(1)
    first = order(0, 0)
    torch.manual_seed(2)
    np.random.seed(2)
    assert order(0, 0) == first
    assert len({json.dumps(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_the_micro_batches_of_a_step_are_the_step_cut_in_parts() -> None:
    """Otherwise accumulation over 4 parts would train on other batches than 1 part does."""
    lengths = np.random.default_rng(0).integers(3, 60, 500)
    whole, parts = (epoch_plan(lengths, BatchSettings(micro=micro), seed=3, epoch=2) for micro in (1, 4))
    assert [np.concatenate(step).tolist() for step in parts] == [step[0].tolist() for step in whole]


def test_steps_mix_rows_of_a_random_pool_and_not_of_the_whole_epoch() -> None:
    """Sorted as a whole, the same neighbours in length would meet in every epoch."""
    lengths = np.arange(3, 6003)
    plan = epoch_plan(lengths, BatchSettings(tokens=10**6, examples=8), seed=0, epoch=0)
    spans = [np.ptp(lengths[step[0]]) for step in plan]
    assert 30 < np.median(spans) < 300


def test_steps_are_not_in_order_of_length() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 3000)
    means = [
        lengths[np.concatenate(step)].mean() for step in epoch_plan(lengths, BatchSettings(), seed=0, epoch=0)
    ]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


@pytest.mark.parametrize("segments", [1, 2])
def test_encoding_equals_the_tokenizer_called_row_by_row(
    segments: int, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = some_rows(2300, segments)
    encoded = encode(rows, tokenizer, max_length=10, cache=tmp_path)
    assert len(encoded) == 2300 and encoded.lengths.max() == 10
    for index in (0, 1, 999, 1000, 1001, 2299):
        texts = [[text] for text in rows.texts[index]]
        oracle = {name: cells[0] for name, cells in tokenizer(*texts, truncation=True, max_length=10).items()}
        span = slice(encoded.offsets[index], encoded.offsets[index + 1])
        assert encoded.tokens[span].tolist() == oracle["input_ids"]
        assert encoded.types[span].tolist() == oracle["token_type_ids"]
    whole = tokenizer(*[list(texts) for texts in zip(*rows.texts, strict=True)])["input_ids"]
    longer = sum(len(ids) > 10 for ids in whole)
    assert encoded.truncated == longer > 0


def test_unknown_tokens_are_counted(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    encoded = encode(rows_of([("日 word1 本",), ("word2",)]), tokenizer, max_length=16, cache=tmp_path)
    assert encoded.unknown == 2


def test_a_tokenizer_without_segments_gives_zeros(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Even where the same texts are cached with segments."""
    names = tokenizer.model_input_names
    assert encode(some_rows(5, segments=2), tokenizer, max_length=16, cache=tmp_path).types.any()
    try:
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
        encoded = encode(some_rows(5, segments=2), tokenizer, max_length=16, cache=tmp_path)
    finally:
        tokenizer.model_input_names = names
    assert encoded.types.shape == encoded.tokens.shape and not encoded.types.any()


def test_a_tokenizer_without_padding_token_is_refused(tmp_path: Path) -> None:
    tokenizer = train_wordpiece([" ".join(WORDS)] * 3, vocab_size=400)
    tokenizer.pad_token = None
    with pytest.raises(ModelError, match="padding token"):
        encode(some_rows(3), tokenizer, max_length=16, cache=tmp_path)


def test_a_text_without_any_token_is_refused(tmp_path: Path) -> None:
    """An all-masked row makes attention NaN."""
    tokenizer = train_wordpiece([" ".join(WORDS)] * 3, vocab_size=400)
    tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(DataError, match="no tokens"):
        encode(rows_of([("word1",), ("",)]), tokenizer, max_length=16, cache=tmp_path)


@pytest.fixture
def encoded(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Encoded:
    return encode(some_rows(50, segments=2), tokenizer, max_length=20, cache=tmp_path / "cache")


def test_collate_equals_a_loop(encoded: Encoded) -> None:
    chosen = np.array([7, 0, 49, 7, 23])
    batch = collate(encoded, chosen)
    spans = [slice(encoded.offsets[row], encoded.offsets[row + 1]) for row in chosen]
    width = max(span.stop - span.start for span in spans)
    for index, (row, span) in enumerate(zip(chosen, spans, strict=True)):
        tokens, types = encoded.tokens[span].tolist(), encoded.types[span].tolist()
        rest = width - len(tokens)
        assert batch.inputs["input_ids"][index].tolist() == tokens + [encoded.pad_id] * rest
        assert batch.inputs["token_type_ids"][index].tolist() == types + [0] * rest
        assert batch.inputs["attention_mask"][index].tolist() == [1] * len(tokens) + [0] * rest
        assert batch.mask[index].tolist() == [True] * len(tokens) + [False] * rest
        assert batch.ids[index] == row + 100 and batch.labels is not None and batch.labels[index] == row % 3
        assert batch.texts is not None and batch.texts[index] == encoded.texts[row]
    assert all(value.dtype == torch.int64 for value in batch.inputs.values())
    assert batch.mask.dtype == torch.bool and batch.ids.dtype == torch.int64


def test_unlabelled_rows_and_targets_keep_their_kind(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    texts = (("word1",), ("word2",))
    for labels in (None, np.array([0.5, 1.5], dtype=np.float32)):
        rows = Rows(np.arange(2), texts, labels, f"{labels}")
        batch = collate(encode(rows, tokenizer, max_length=8, cache=tmp_path), np.array([1, 0]))
        if labels is None:
            assert batch.labels is None
        else:
            assert batch.labels is not None and batch.labels.dtype == torch.float32
            assert batch.labels.tolist() == [1.5, 0.5]


def test_a_batch_may_be_changed_without_touching_the_cache(encoded: Encoded) -> None:
    before = encoded.tokens.copy()
    collate(encoded, np.array([0, 1])).inputs["input_ids"].fill_(7)
    assert np.array_equal(before, encoded.tokens)


def arrays(encoded: Encoded) -> list[list[int]]:
    return [array.tolist() for array in (encoded.tokens, encoded.types, encoded.offsets)]


def test_a_second_encoding_reads_the_cache_and_is_the_same(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = some_rows(40)
    first = encode(rows, tokenizer, max_length=16, cache=tmp_path)

    def refuse(*arguments: object) -> None:
        raise AssertionError("tokenised again")

    monkeypatch.setattr("distillkit.data.batching._tokenise", refuse)
    second = encode(rows, tokenizer, max_length=16, cache=tmp_path)
    assert arrays(first) == arrays(second)
    assert (first.truncated, first.unknown, first.digest) == (second.truncated, second.unknown, second.digest)
    assert isinstance(second.tokens, np.memmap)
    assert [path.name.startswith(".") for path in tmp_path.iterdir()] == [False], "work aside is left"


@pytest.mark.parametrize("change", ["rows", "length", "tokenizer"])
def test_another_input_is_another_cache(
    change: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows, length = some_rows(40), 16
    first = encode(rows, tokenizer, max_length=length, cache=tmp_path)
    if change == "rows":
        rows = rows_of(rows.texts, "other")
    elif change == "length":
        length = 17
    else:
        tokenizer = train_wordpiece([" ".join(WORDS[:20])] * 3, vocab_size=400)
    second = encode(rows, tokenizer, max_length=length, cache=tmp_path)
    assert first.digest != second.digest and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["tokens.npy", "types.npy", "offsets.npy", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_cache_is_made_again(
    name: str, damage: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = some_rows(40)
    first = arrays(encode(rows, tokenizer, max_length=16, cache=tmp_path))
    (path,) = tmp_path.glob(f"*/{name}")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(bytes(content) if damage == "flip" else content[:-5])
    again = encode(rows, tokenizer, max_length=16, cache=tmp_path)
    assert arrays(again) == first
    assert path.is_file() and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_told_in_words_and_leaves_nothing_behind(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(ResourceError, match="No space left"):
        encode(some_rows(5), tokenizer, max_length=16, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_feed_gives_the_planned_rows_in_any_order_of_asking(encoded: Encoded) -> None:
    batches = BatchSettings(tokens=100, micro=2)
    feed = TaskFeed(encoded, batches, seed=4)
    plans = [epoch_plan(encoded.lengths, batches, seed=4, epoch=epoch) for epoch in range(2)]
    for epoch, index in [(1, 2), (0, 0), (1, 0), (0, 1), (0, 0)]:
        assert feed.num_steps(epoch) == len(plans[epoch])
        got = [batch.ids.tolist() for batch in feed.step(epoch, index)]
        assert got == [(part + 100).tolist() for part in plans[epoch][index]]


def test_a_feed_of_another_order_has_another_digest(encoded: Encoded) -> None:
    feeds = [
        TaskFeed(encoded, BatchSettings(), seed=0),
        TaskFeed(encoded, BatchSettings(), seed=1),
        TaskFeed(encoded, BatchSettings(tokens=99), seed=0),
    ]
    assert len({feed.digest for feed in feeds}) == 3
    assert feeds[0].digest == TaskFeed(encoded, BatchSettings(), seed=0).digest


def test_drawn_rows_are_some_of_the_rows_as_they_were(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    whole = encode(some_rows(50, segments=2), tokenizer, max_length=20, cache=tmp_path)
    some = drawn(whole, 20, seed=1)
    assert len(some) == 20 and len(set(some.ids)) == 20 and (np.diff(some.ids) > 0).all()
    assert not np.array_equal(some.ids, whole.ids[:20]), "not just the first ones"
    mine, theirs = collate(some, np.arange(20)), collate(whole, some.ids - 100)
    assert all(torch.equal(mine.inputs[name], theirs.inputs[name]) for name in theirs.inputs)
    assert mine.labels is not None and theirs.labels is not None and torch.equal(mine.labels, theirs.labels)
    assert mine.texts == theirs.texts
    assert np.array_equal(drawn(whole, 20, seed=1).ids, some.ids)
    assert not np.array_equal(drawn(whole, 20, seed=2).ids, some.ids)
    assert drawn(whole, 50, seed=1) is whole and some.digest != whole.digest
