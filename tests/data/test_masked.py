"""Documents to mask: packed without loss, masked by (seed, epoch, id) whatever else is in the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import WORDS, tokenizer

from distillkit.data.batching import Encoded, collate, encode, measured
from distillkit.data.layouts import Documents, frame
from distillkit.data.tasks import load_task
from distillkit.errors import DataError
from distillkit.settings import TaskSettings
from distillkit.types import IGNORED

LENGTH = 16
TOKENIZER = tokenizer()


def corpus(folder: Path, documents: int = 12) -> list[list[str]]:
    """Sentences from one word to more than a sequence holds."""
    generator = np.random.default_rng(4)
    made = [
        [
            " ".join(generator.choice(WORDS, size=size)).capitalize() + "."
            for size in generator.integers(1, 24, 6)
        ]
        for _ in range(documents)
    ]
    (folder / "corpus.txt").write_text("\n\n".join("\n".join(document) for document in made) + "\n")
    return made


def data(folder: Path, **options: Any) -> Encoded:
    settings = TaskSettings(kind="mlm", train="corpus.txt", max_length=LENGTH, **options)
    task = load_task(settings, base=folder, seed=7)
    return encode(task.train, TOKENIZER, max_length=LENGTH, cache=folder / "cache")


def test_documents_are_packed_without_losing_or_mixing_tokens(tmp_path: Path) -> None:
    documents = corpus(tmp_path)
    pieces = Documents(0).pieces([tuple(document) for document in documents], None, TOKENIZER, LENGTH)
    front, back = frame(TOKENIZER)
    ends = np.cumsum(pieces.lengths)
    sequences = [
        pieces.tokens[end - length : end].tolist() for end, length in zip(ends, pieces.lengths, strict=True)
    ]
    assert max(pieces.lengths) == LENGTH
    inner = [sequence[len(front) : -len(back)] for sequence in sequences]
    assert all([*front, *part, *back] == whole for part, whole in zip(inner, sequences, strict=True))
    place = 0
    for document in documents:
        sentences = [TOKENIZER(one, add_special_tokens=False).input_ids for one in document]
        left = [token for sentence in sentences for token in sentence]
        while left:  # whole sequences make up the document: none holds tokens of two
            assert left[: len(inner[place])] == inner[place]
            left = left[len(inner[place]) :]
            place += 1
    assert place == len(inner)


def test_a_sentence_that_fits_is_never_cut() -> None:
    sentences = ("ba de.", "lo mu na.", "ra si to pa ri ke no.", "ba.")
    pieces = Documents(0).pieces([sentences], None, TOKENIZER, LENGTH)
    ids = [TOKENIZER(one, add_special_tokens=False).input_ids for one in sentences]
    text = " ".join(map(str, pieces.tokens.tolist()))
    assert all(" ".join(map(str, sentence)) in text for sentence in ids) and len(pieces.lengths) > 1


@pytest.mark.parametrize("scored", ["masked", "all"])
def test_masks_depend_on_seed_epoch_and_id_alone(scored: str, tmp_path: Path) -> None:
    corpus(tmp_path)
    made = data(tmp_path, scored=scored)
    together = collate(made, np.arange(len(made)), epoch=3)
    for row in (0, len(made) - 1, 5):
        alone = collate(made, np.array([row]), epoch=3)
        width = alone.mask.shape[1]
        for name in ("labels", "scored"):
            assert (getattr(together, name)[row, :width] == getattr(alone, name)[0]).all()
        assert (together.inputs["input_ids"][row, :width] == alone.inputs["input_ids"][0]).all()
    other = collate(made, np.arange(len(made)), epoch=4)
    assert together.labels is not None and other.labels is not None
    assert (together.labels != other.labels).any()


def test_what_is_asked_is_a_share_of_the_text_and_never_a_special_token(tmp_path: Path) -> None:
    corpus(tmp_path)
    made = data(tmp_path, mask_rate=0.3)
    batch = collate(made, np.arange(len(made)), epoch=1)
    assert batch.labels is not None and batch.scored is not None
    asked = batch.labels != IGNORED
    counts = np.maximum(1, np.rint(0.3 * batch.mask.sum(1).numpy()))
    around = [token for side in frame(TOKENIZER) for token in side]
    text = ~np.isin(batch.labels.numpy(), around)
    assert (asked.sum(1).numpy() == np.minimum(counts, batch.mask.sum(1).numpy() - 2)).all()
    assert (asked <= batch.mask).all() and text[asked.numpy()].all() and (batch.scored == asked).all()


def test_every_real_token_is_answered_where_all_are_scored(tmp_path: Path) -> None:
    corpus(tmp_path)
    batch = collate(data(tmp_path, scored="all"), np.arange(6))
    assert batch.scored is not None and (batch.scored == batch.mask).all()
    assert batch.targets is not None and 0 < (batch.targets != IGNORED).sum() < batch.num_answers


def test_models_are_measured_on_masks_that_stay_and_that_no_training_epoch_draws(tmp_path: Path) -> None:
    corpus(tmp_path)
    made = data(tmp_path, scored="all")
    first, again = measured(made), measured(data(tmp_path, scored="all"))
    rows = np.arange(len(made))
    early, late = collate(first, rows, epoch=0), collate(again, rows, epoch=9)
    assert early.labels is not None and late.labels is not None and early.scored is not None
    assert (early.labels == late.labels).all()
    assert (early.inputs["input_ids"] == late.inputs["input_ids"]).all()
    assert (early.scored == (early.labels != IGNORED)).all(), "measured on masked tokens alone"
    training = collate(made, rows, epoch=0)
    assert training.labels is not None and (training.labels != early.labels).any()
    restored = np.where(early.scored, early.labels, early.inputs["input_ids"])
    assert (restored[early.mask] == made.tokens).all(), "what is asked for is what stood there"


def test_held_out_documents_are_whole_and_one_document_cannot_be_split(tmp_path: Path) -> None:
    documents = corpus(tmp_path)
    task = load_task(TaskSettings(kind="mlm", train="corpus.txt", holdout=0.25), base=tmp_path, seed=7)
    both = {*task.train.texts, *task.validation.texts}
    assert both == {tuple(document) for document in documents} and len(task.validation) == 3
    (tmp_path / "one.txt").write_text("\n".join(documents[0]))
    with pytest.raises(DataError, match="blank lines"):
        load_task(TaskSettings(kind="mlm", train="one.txt"), base=tmp_path, seed=7)
