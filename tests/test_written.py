"""Targets that a teacher writes: chosen from its beam, kept in parts, trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tinytexts
import torch
from sacrebleu.metrics.bleu import BLEU

from distillkit import written
from distillkit.data.batching import Encoded, encode
from distillkit.data.tasks import Rows
from distillkit.errors import StoppedError
from distillkit.model import Writer
from distillkit.settings import GenerationSettings, WrittenSettings
from distillkit.text_metrics import sentence_bleu
from distillkit.types import Batch
from distillkit.writing import spelled, write_beams
from distillkit.written import Author, nearest, written_rows

MODEL = tinytexts.lively(tinytexts.model(seed=2))
READ = tinytexts.tokenizer()


class Counted(Writer):
    """Counts the sources that are read."""

    def __init__(self) -> None:
        self.asked = 0

    def beams(self, batch: Batch, how: GenerationSettings) -> list[list[list[int]]]:
        self.asked += batch.num_examples
        assert "target_ids" not in batch.inputs and batch.labels is None
        return MODEL.beams(batch, how)


def author(
    folder: Path, writer: Writer, check: Callable[[], None] = lambda: None, owner: str = "a"
) -> Author:
    return Author(writer, owner, READ, 16, 7, torch.device("cpu"), folder / "cache", check, lambda *_: None)


def beams_of(rows: Rows, folder: Path, beams: int) -> list[list[str]]:
    data: Encoded = encode(rows, READ, max_length=16, cache=folder / "plain")
    how = GenerationSettings(beams=beams, max_length=7)
    found = write_beams(MODEL, data, how, device=torch.device("cpu"))
    return [spelled(beam, READ) for beam in found]


def test_the_best_text_stands_in_the_place_of_the_target(tmp_path: Path) -> None:
    rows = tinytexts.rows(20)
    made = written_rows(rows, WrittenSettings(beams=3), author(tmp_path, MODEL))
    assert made.labels is not None and made.texts == rows.texts
    assert made.labels.tolist() == [beam[0] for beam in beams_of(rows, tmp_path, 3)]
    assert made.digest != rows.digest and made.layout == rows.layout
    assert (made.ids == rows.ids).all()


def test_the_nearest_text_is_that_of_the_best_sentence_bleu(tmp_path: Path) -> None:
    rows = tinytexts.rows(20)
    made = written_rows(rows, WrittenSettings(beams=4, choose="nearest"), author(tmp_path, MODEL))
    metric = BLEU(effective_order=True)
    for wanted, beam, chosen in zip(rows.labels, beams_of(rows, tmp_path, 4), made.labels, strict=True):
        scores = [metric.sentence_score(text, [wanted]).score for text in beam]
        assert chosen == beam[int(np.argmax(scores))]
    assert nearest("a b c", ["x", "a b", "b a"]) == "a b" and nearest("q", ["x", "y"]) == "x"


def test_sentence_bleu_is_sacrebleus() -> None:
    wanted = ["a b c d e", "a b", "a", "the cat sat", "x y z", ""]
    given = ["a b c x e", "a b", "b", "the cat sat on it", "", "a"]
    metric = BLEU(effective_order=True)
    told = [metric.sentence_score(mine, [right]).score for right, mine in zip(wanted, given, strict=True)]
    np.testing.assert_allclose(100 * sentence_bleu(wanted, given), told, atol=1e-9)


def test_kept_targets_stand_before_the_written_ones_and_ids_stay_apart(tmp_path: Path) -> None:
    rows = tinytexts.rows(9)
    made = written_rows(rows, WrittenSettings(beams=1, targets="kept"), author(tmp_path, MODEL))
    assert len(made) == 18 and len(set(made.ids.tolist())) == 18
    assert made.labels.tolist()[:9] == rows.labels.tolist() and made.texts[9:] == rows.texts
    assert made.labels.tolist()[9:] == [beam[0] for beam in beams_of(rows, tmp_path, 1)]


def test_rows_without_targets_get_the_teachers(tmp_path: Path) -> None:
    rows = tinytexts.rows(8)
    bare = replace(rows, labels=None)
    made = written_rows(bare, WrittenSettings(beams=2), author(tmp_path, MODEL))
    assert made.labels.tolist() == [beam[0] for beam in beams_of(rows, tmp_path, 2)]


def test_texts_are_written_once_in_parts_and_a_stopped_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(written, "PART_ROWS", 4)
    rows, settings = tinytexts.rows(10), WrittenSettings(beams=2)
    left = [2]

    def stop() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise StoppedError("enough", interrupted=False)

    first = Counted()
    with pytest.raises(StoppedError):
        written_rows(rows, settings, author(tmp_path, first, stop))
    assert first.asked == 8
    second, third, other = Counted(), Counted(), Counted()
    made = written_rows(rows, settings, author(tmp_path, second))
    assert second.asked == 2 and made.labels.tolist() == [b[0] for b in beams_of(rows, tmp_path, 2)]
    assert written_rows(rows, settings, author(tmp_path, third)).digest == made.digest and not third.asked
    nearer = written_rows(rows, WrittenSettings(beams=2, choose="nearest"), author(tmp_path, third))
    assert nearer.digest != made.digest and not third.asked, "the beam is there"
    written_rows(rows, settings, author(tmp_path, other, owner="another"))
    assert other.asked == 10, "another teacher's texts are not taken over"
    parts = sorted((tmp_path / "cache").glob("written-*-00000"))
    facts = json.loads((parts[0] / "manifest.json").read_text())
    assert facts["teacher"] in ("a", "another") and facts["search"]["beams"] == 2 and facts["rows"]


def test_a_spoiled_part_is_written_again(tmp_path: Path) -> None:
    rows, settings = tinytexts.rows(5), WrittenSettings(beams=1)
    whole = written_rows(rows, settings, author(tmp_path, MODEL))
    (part,) = (tmp_path / "cache").glob("written-*-00000")
    (part / "texts.jsonl").write_text('["x"]\n' * 5)
    again = Counted()
    assert written_rows(rows, settings, author(tmp_path, again)).labels.tolist() == whole.labels.tolist()
    assert again.asked == 5
