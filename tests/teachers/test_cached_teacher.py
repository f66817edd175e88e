"""Kept answers are the teacher's answers: the same training, and no way to be given another row's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import encoded, encoder, feed
from torch import Tensor
from training import StopAfter, digest, program, run, settings

from distillkit import files
from distillkit.data import batching
from distillkit.data.batching import Encoded, collate
from distillkit.data.ragged import shard_table
from distillkit.errors import (
    ConfigError,
    DivergedError,
    IntegrityError,
    ModelError,
    ResourceError,
    StoppedError,
)
from distillkit.losses.base import LossStack
from distillkit.losses.hidden_cosine import HiddenCosine
from distillkit.losses.logits import Logits
from distillkit.model import FixedTeacher, Teacher
from distillkit.settings import CacheSettings
from distillkit.teachers import cached
from distillkit.teachers.cached import CachedTeacher, Keep, record
from distillkit.train import Distillation
from distillkit.types import Access, Batch, Outputs, Projections, Reads, Spec, Swap, Want

EVERY = Reads(states=None, blocks=None, temperatures=None)


class Exact(Teacher):
    """Answers each token from tables of small whole numbers, so that a row's answer has the same bits in
    every batch (a matrix product's depend on its shape)."""

    spec = Spec(
        num_layers=2, hidden_dim=16, num_heads=2, ffn_dim=1, vocab_size=120, num_labels=3, max_length=32
    )
    access = Access.ALL_STATES

    def __init__(self, seed: int = 0, labels: int = 2) -> None:
        self.spec = replace(Exact.spec, num_labels=labels)
        generator = torch.Generator().manual_seed(seed)
        self.tables = torch.randint(-50, 50, (10, 120, 16), generator=generator).float() / 16
        self.answered = 0
        self.changed: dict[int, Callable[[Outputs], Outputs]] = {}

    def outputs(self, batch: Batch, *, want: Want, swap: Swap | None = None) -> Outputs:
        self.answered += batch.num_examples
        told = self.tables[:, batch.inputs["input_ids"]] + torch.arange(batch.mask.shape[1])[:, None] / 16
        heads = [state.unflatten(-1, (2, 8)).transpose(1, 2) for state in told[3:9]]
        labels = self.spec.num_labels
        whole = (told[9][..., :labels] * batch.mask[..., None]).sum(dim=1)
        return Outputs(
            logits=whole if batch.scored is None else told[9][..., :labels][batch.scored],
            hidden=tuple(told[:3]) if want.access == Access.ALL_STATES else (told[2],),
            attention=(Projections(*heads[:3]), Projections(*heads[3:])) if want.attention else (),
        )


def keep(
    reads: Reads = EVERY, *, want: Want | None = None, owner: str = "me", precision: str = "fp32", **how: Any
) -> Keep:
    asked = want or Want(Access.ALL_STATES, attention=True)
    chosen = CacheSettings(**{"dtype": "fp32", **how})
    return Keep(asked, reads, chosen, owner, torch.device("cpu"), precision)


def recorded(live: Teacher, rows: Encoded, root: Path, what: Keep | None = None) -> CachedTeacher:
    return record(live, rows, what or keep(), root, lambda done, total: None)[0]


def tensors(outputs: Outputs) -> list[Tensor]:
    told = [part for block in outputs.attention for part in (block.query, block.key, block.value)]
    return [outputs.logits, *outputs.hidden, *told]


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "BATCH_TOKENS", 60)
    monkeypatch.setattr(cached, "SHARD_BATCHES", 2)


@pytest.mark.usefixtures("small_shards")
def test_every_answer_comes_back_bit_for_bit_in_any_batch_and_padding_holds_nothing(tmp_path: Path) -> None:
    rows, live = encoded(tmp_path), Exact()
    told = recorded(live, rows, tmp_path)
    answered = live.answered
    for chosen in np.array_split(np.random.default_rng(0).permutation(len(rows)), 7):
        batch = collate(rows, chosen, epoch=3)
        want = Want(Access.ALL_STATES, attention=True)
        mine, theirs = told.outputs(batch, want=want), live.outputs(batch, want=want)
        assert torch.equal(mine.logits, theirs.logits)
        for one, other in zip(tensors(mine)[1:4], tensors(theirs)[1:4], strict=True):
            assert torch.equal(one, other * batch.mask[..., None])
        for one, other in zip(tensors(mine)[4:], tensors(theirs)[4:], strict=True):
            assert torch.equal(one, other * batch.mask[:, None, :, None])
    assert live.answered == answered + len(rows), "nothing was asked but the answers to compare with"


@pytest.mark.parametrize("micro", [1, 2])
def test_training_with_kept_answers_gives_the_weights_of_live_teaching(tmp_path: Path, micro: int) -> None:
    """Bit for bit, with dropout in the student, and again after a stop. Kept answers draw from no generator
    and lose no bit; one that did would change every step after it."""
    data, live = feed(tmp_path / "data", micro=micro), Exact()
    made = program()
    taught, _ = run(
        tmp_path / "live", made=Distillation(made.student, made.stack, {"teacher": live}), data=data
    )

    def with_cache() -> Distillation:
        made = program()
        what = keep(made.stack.reads, want=made.stack.needs)
        told = recorded(live, data.encoded, tmp_path, what)
        return Distillation(made.student, made.stack, {"teacher": told})

    again, _ = run(tmp_path / "kept", made=with_cache(), data=data)
    assert digest(again) == digest(taught)
    how = settings(save_every=2, log_every=1)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", made=with_cache(), data=data, how=how, progress=StopAfter(5))
    resumed, _ = run(tmp_path / "cut", made=with_cache(), data=data, how=how)
    assert digest(resumed) == digest(taught)


def test_rows_are_answered_once_and_training_asks_no_more(tmp_path: Path) -> None:
    data, live, made = feed(tmp_path / "data"), Exact(), program()
    what = keep(made.stack.reads, want=made.stack.needs)
    told = recorded(live, data.encoded, tmp_path, what)
    sample = min(len(data.encoded), cached.SAMPLE_ROWS)
    assert live.answered == len(data.encoded) + sample
    run(tmp_path / "run", made=Distillation(made.student, made.stack, {"teacher": told}), data=data)
    assert live.answered == len(data.encoded) + sample
    recorded(live, data.encoded, tmp_path, what)
    assert live.answered == len(data.encoded) + 2 * sample, "opened again, only the sample is answered"


@pytest.mark.parametrize(("dtype", "error"), [("fp32", 1e-6), ("fp16", 1e-4), ("bf16", 1e-3)])
def test_a_real_teachers_losses_change_by_rounding_alone(tmp_path: Path, dtype: str, error: float) -> None:
    """Not bitwise even in fp32: the last bits of a matrix product depend on the shape of the batch."""
    rows, live, made = encoded(tmp_path), FixedTeacher(encoder(1, layers=2, width=16)), program(dropout=0.0)
    told = recorded(live, rows, tmp_path, keep(made.stack.reads, want=made.stack.needs, dtype=dtype))
    batch = collate(rows, np.arange(12))
    terms = [
        Distillation(made.student, made.stack, {"teacher": teacher}).terms(batch) for teacher in (live, told)
    ]
    for name in ("kd", "states"):
        lively, kept = (float(found[name].detach()) for found in terms)
        assert kept == pytest.approx(lively, rel=error)


def test_a_teacher_is_recorded_in_the_precision_of_the_training(tmp_path: Path) -> None:
    rows, live = encoded(tmp_path), FixedTeacher(encoder(1))
    what = keep(Reads(states=frozenset({-1})), want=Want(Access.FINAL_STATES), precision="bf16")
    batch = collate(rows, np.arange(len(rows)))
    with torch.autocast("cpu", torch.bfloat16):
        theirs = live.outputs(batch, want=Want()).logits
    mine = recorded(live, rows, tmp_path, what).outputs(batch, want=Want()).logits
    exact = live.outputs(batch, want=Want()).logits
    assert float((mine - theirs).abs().mean()) < 0.2 * float((exact - theirs).abs().mean())


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_largest_logits_keep_their_probabilities_and_the_rest_its_sum(
    tmp_path: Path, temperature: float
) -> None:
    rows, live = encoded(tmp_path), Exact(labels=9)
    what = keep(Reads(temperatures=frozenset({temperature})), want=Want(), logits=3)
    batch = collate(rows, np.arange(len(rows)))
    mine, theirs = (
        teacher.outputs(batch, want=Want()).logits for teacher in (recorded(live, rows, tmp_path, what), live)
    )
    for kept_V, all_V in zip(mine.double() / temperature, theirs.double() / temperature, strict=True):
        top = sorted(range(9), key=lambda label: -float(all_V[label]))[:3]
        total, seen = float(all_V.exp().sum()), kept_V.softmax(dim=-1)
        for label in range(9):
            known = float(all_V[label].exp()) / total if label in top else None
            rest = (total - sum(float(all_V[best].exp()) for best in top)) / total / 6
            assert float(seen[label]) == pytest.approx(rest if known is None else known, rel=1e-5)


def test_too_few_logits_for_what_the_losses_read_are_refused_in_words(tmp_path: Path) -> None:
    rows, live = encoded(tmp_path), Exact(labels=9)
    several = Reads(temperatures=frozenset({1.0, 2.0}))
    for reads, word in ((EVERY, "each logit"), (several, r"\[1.0, 2.0\]")):
        with pytest.raises(ConfigError, match=word):
            recorded(live, rows, tmp_path, keep(reads, want=Want(), logits=3))
    with pytest.raises(ConfigError, match="9 logits of 9"):
        recorded(live, rows, tmp_path, keep(Reads(), want=Want(), logits=9))


def test_a_state_that_no_loss_said_it_reads_is_refused_and_the_last_may_be_named_from_the_end(
    tmp_path: Path,
) -> None:
    """A teacher that gave what it has would train the student on another layer without a word."""
    rows = encoded(tmp_path)
    want, reads = Want(Access.ALL_STATES, attention=True), Reads(frozenset({-1, 0}), frozenset({1}))
    batch = collate(rows, np.arange(4))
    told = recorded(Exact(), rows, tmp_path, keep(reads, want=want)).outputs(batch, want=want)
    theirs = Exact().outputs(batch, want=want)
    assert len(told.hidden) == 3 and len(told.attention) == 2
    assert torch.equal(told.hidden[-1][batch.mask], theirs.hidden[2][batch.mask])
    for ask in (
        lambda: told.hidden[1],
        lambda: list(told.hidden),
        lambda: told.hidden[:2],
        lambda: told.attention[0],
    ):
        with pytest.raises(ModelError, match="was not kept"):
            ask()
    with pytest.raises(ModelError, match="of 3"):
        recorded(Exact(), rows, tmp_path, keep(Reads(frozenset({3})), want=want))
    scores = recorded(Exact(), rows, tmp_path, keep(Reads(), want=Want()))
    with pytest.raises(ModelError, match="ALL_STATES"):
        scores.outputs(batch, want=Want(Access.ALL_STATES))


def test_answers_to_single_tokens_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, live = encoded(tmp_path), Exact()
    score_every_third(monkeypatch)
    told = recorded(live, rows, tmp_path)
    batch = cached.collate(rows, np.asarray([5, 1, 7]))
    assert torch.equal(told.outputs(batch, want=Want()).logits, live.outputs(batch, want=Want()).logits)


def score_every_third(monkeypatch: pytest.MonkeyPatch, *, anew: bool = False) -> None:
    """Rows whose every third token is answered; `anew`: other ones in every epoch."""

    def scored(rows: Encoded, chosen: Any, *, epoch: int = 0) -> Batch:
        batch = batching.collate(rows, chosen, epoch=epoch)
        third = (torch.arange(batch.mask.shape[1]) + epoch * anew) % 3 == 1
        return replace(batch, scored=batch.mask & third)

    monkeypatch.setattr(cached, "collate", scored)


def test_rows_that_are_masked_anew_in_every_epoch_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = encoded(tmp_path)
    told = recorded(Exact(), rows, tmp_path)
    batch = collate(rows, np.arange(3))
    inputs = {**batch.inputs, "input_ids": batch.inputs["input_ids"].clone()}
    inputs["input_ids"][1, 1] += 1
    with pytest.raises(IntegrityError, match="row 1 does not hold the tokens"):
        told.outputs(replace(batch, inputs=inputs), want=Want())
    with pytest.raises(IntegrityError, match="no answers are kept for row 77"):
        told.outputs(replace(batch, ids=torch.tensor([0, 77, 2])), want=Want())
    score_every_third(monkeypatch, anew=True)
    with pytest.raises(ConfigError, match="from epoch to epoch"):
        recorded(Exact(), rows, tmp_path)


def test_a_teacher_that_learns_too_is_refused(tmp_path: Path) -> None:
    class Following(Exact):
        def after_step(self, step: int) -> None:
            pass

    with pytest.raises(ModelError, match="changes while"):
        recorded(Following(), encoded(tmp_path), tmp_path)


class Killed(Exception):
    pass


@pytest.mark.usefixtures("small_shards")
def test_a_killed_recording_goes_on_at_its_last_whole_shard(tmp_path: Path) -> None:
    rows, live = encoded(tmp_path), Exact()

    def stop(done: int, total: int) -> None:
        if done == 5:
            raise StoppedError("stopped")

    with pytest.raises(StoppedError):
        record(live, rows, keep(), tmp_path, stop)
    (folder,) = tmp_path.glob("teacher-*")
    assert sorted(entry.name for entry in folder.iterdir()) == ["00000", "00001"], "nothing half done is left"
    before, there = live.answered, sum(len(shard_table(shard)) for shard in folder.iterdir())
    recorded(live, rows, tmp_path)
    assert live.answered - before == len(rows) - there + cached.SAMPLE_ROWS


def cut(folder: Path) -> None:
    path = folder / "00001" / "hidden.2.bin"
    path.write_bytes(path.read_bytes()[:-4])


def flip(folder: Path) -> None:
    path = folder / "00001" / "logits.bin"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def exchange(folder: Path) -> None:
    for source, target in (("00000", "x"), ("00001", "00000"), ("x", "00001")):
        (folder / source).rename(folder / target)


def forget(folder: Path) -> None:
    (folder / "00001" / "manifest.json").unlink()


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize(
    ("spoil", "word"),
    [(cut, "bytes"), (flip, "sha256"), (exchange, "another place"), (forget, "manifest")],
)
def test_a_spoiled_shard_is_recorded_again(tmp_path: Path, spoil: Callable[[Path], None], word: str) -> None:
    rows, live = encoded(tmp_path), Exact()
    recorded(live, rows, tmp_path)
    (folder,) = tmp_path.glob("teacher-*")
    spoil(folder)
    before = live.answered
    told, remarks = record(live, rows, keep(), tmp_path, lambda done, total: None)
    assert word in remarks[0] and "00001" in remarks[-1]
    assert 0 < live.answered - before - cached.SAMPLE_ROWS < len(rows)
    batch = collate(rows, np.arange(len(rows)))
    assert torch.equal(told.outputs(batch, want=Want()).logits, live.outputs(batch, want=Want()).logits)


def test_another_teacher_under_the_same_key_is_an_error(tmp_path: Path) -> None:
    rows = encoded(tmp_path)
    recorded(Exact(), rows, tmp_path)
    with pytest.raises(IntegrityError, match="differs by") as caught:
        recorded(Exact(seed=1), rows, tmp_path)
    assert caught.value.exit_code == 8
    recorded(Exact(), rows, tmp_path)


def test_one_row_that_was_given_the_answers_of_another_is_found_where_the_sample_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole files, right hashes, two rows of one length exchanged: only the teacher can tell."""
    rows = encoded(tmp_path)
    recorded(Exact(), rows, tmp_path)
    (shard,) = tmp_path.glob("teacher-*/00000")
    path, lengths = shard / "hidden.1.bin", shard_table(shard)[:, 2]
    first = int(np.flatnonzero(np.diff(lengths) == 0)[0])
    start, length = int(lengths[:first].sum()), int(lengths[first])
    states = np.fromfile(path, dtype=np.float32).reshape(-1, 16)
    one, other = states[start : start + length].copy(), states[start + length : start + 2 * length].copy()
    states[start : start + 2 * length] = np.concatenate([other, one])
    path.write_bytes(states.tobytes())
    manifest = files.read_manifest(shard)
    files.seal(shard, {name: fact for name, fact in manifest.items() if name != "files"})
    monkeypatch.setattr(cached, "SAMPLE_ROWS", len(rows))
    with pytest.raises(IntegrityError, match=r"hidden.1 differs by"):
        recorded(Exact(), rows, tmp_path)


def test_another_teacher_other_rows_or_another_dtype_is_another_cache(tmp_path: Path) -> None:
    rows, live = encoded(tmp_path), Exact()
    for what in (
        keep(),
        keep(owner="you"),
        keep(dtype="fp16"),
        keep(precision="bf16"),
        keep(Reads(frozenset({1}))),
    ):
        recorded(live, rows, tmp_path, what)
    recorded(live, encoded(tmp_path, seed=1), tmp_path)
    recorded(live, rows, tmp_path, keep(limit_gb=1.0))
    assert len(list(tmp_path.glob("teacher-*"))) == 6
    scores = [keep(Reads(), want=Want(), dtype=dtype) for dtype in ("fp16", "bf16")]
    folders = [
        recorded(live, rows, tmp_path, what) and len(list(tmp_path.glob("teacher-*"))) for what in scores
    ]
    assert folders == [7, 7], "the dtype of states says nothing about logits"


def test_what_does_not_fit_is_said_before_it_is_recorded(tmp_path: Path) -> None:
    rows, large = encoded(tmp_path), Exact()
    with pytest.raises(ResourceError, match=r"more than 1e-06"):
        recorded(Exact(), rows, tmp_path, keep(limit_gb=1e-6))
    large.tables[1] *= 1e5
    with pytest.raises(ModelError, match=r"hidden.1 reaches .* more than fp16 holds"):
        recorded(large, rows, tmp_path, keep(dtype="fp16"))
    recorded(large, rows, tmp_path, keep(dtype="bf16"))
    large.tables[9] = float("nan")
    with pytest.raises(DivergedError, match="logits holds NaN"):
        recorded(large, rows, tmp_path, keep(owner="you"))


def test_losses_say_which_states_they_read() -> None:
    stack = LossStack(
        {"kd": (1.0, Logits(temperature=4.0)), "states": (1.0, HiddenCosine(layer_map=[(0, 0), (1, 2)]))}
    )
    spec = replace(Exact.spec, num_layers=1)
    stack.bind(spec, {"teacher": Exact.spec})
    assert stack.reads == Reads(frozenset({0, 2}), frozenset(), frozenset({4.0}))
    assert (stack.reads | EVERY) == EVERY
