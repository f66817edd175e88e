"""Greedy and beam search in NumPy, against `generate` of transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tinytexts
import torch
from tinytexts import FamilyName

from distillkit.data.batching import collate
from distillkit.encoder_decoder import EncoderDecoder
from distillkit.search import Ends, Floats, Ints, log_softmax, search
from distillkit.settings import GenerationSettings
from distillkit.types import Batch, Want

ENDS = Ends(start=9, end=1)


class Recomputed:
    """The texts are read anew at each step: no memory that could be wrong."""

    def __init__(self, model: EncoderDecoder, batch: Batch) -> None:
        self.model, self.batch = model, batch
        self.source, self.texts = torch.arange(batch.num_examples), [[] for _ in range(batch.num_examples)]

    def step(self, tokens_R: Ints, rows_R: Ints) -> Floats:
        self.source = self.source[torch.from_numpy(rows_R)]
        self.texts = [
            [*self.texts[row], token] for row, token in zip(rows_R.tolist(), tokens_R.tolist(), strict=True)
        ]
        asked = replace(self.batch.take(self.source), scored=None, labels=None)
        targets = torch.tensor([[*text[1:], 0] for text in self.texts])
        with torch.no_grad():
            inputs = {**asked.inputs, "target_ids": targets}
            logits = self.model.outputs(replace(asked, inputs=inputs), want=Want()).logits
        return logits.view(*targets.shape, -1)[:, -1].numpy()


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_every_text_of_the_beam_is_that_of_transformers(family: FamilyName, tmp_path: Path) -> None:
    model = tinytexts.lively(tinytexts.model(family, seed=2))
    batch = collate(tinytexts.encoded(tmp_path, 24, family=family), np.arange(24))
    ends = Ends(model.start_id, model.end_id)
    lengths = set()
    for how in (
        {"beams": 1},
        {"beams": 2},
        {"beams": 4},
        {"beams": 4, "length_penalty": 0.0},
        {"beams": 5, "length_penalty": 2.5},
        {"beams": 3, "length_penalty": -1.0},
        {"beams": 1, "min_length": 3},
        {"beams": 3, "min_length": 4},
    ):
        settings = GenerationSettings(max_length=7, **how)
        found = search(Recomputed(model, batch), 24, ends, settings)
        theirs = model.beams(batch, settings)
        assert [texts[0] for texts in found] == [texts[0] for texts in theirs], how
        assert found == theirs, how
        lengths |= {len(texts[0]) for texts in found}
        assert all(settings.min_length <= len(text) <= 7 for texts in found for text in texts)
    assert len(lengths) > 3, "texts that all run to the end would show little"


class Table:
    """Scores that hang on the last token alone."""

    def __init__(self, scores_VV: list[list[float]]) -> None:
        self.scores = np.log(np.asarray(scores_VV, dtype=np.float32))

    def step(self, tokens_R: Ints, rows_R: Ints) -> Floats:
        return self.scores[tokens_R]


def test_a_beam_finds_what_greed_does_not() -> None:
    """By hand: after the start (0) the token 2 is likelier than 3, but 3 ends surely."""
    chain = Table([[0.01, 0.01, 0.58, 0.4], [1, 1, 1, 1], [0.05, 0.45, 0.25, 0.25], [0.01, 0.97, 0.01, 0.01]])
    ends = Ends(start=0, end=1)
    greedy = search(chain, 1, ends, GenerationSettings(beams=1, max_length=3))
    beam = search(chain, 1, ends, GenerationSettings(beams=2, length_penalty=0.0, max_length=3))
    assert greedy == [[[2]]] and beam[0][0] == [3] and beam[0][1] == [2]


def test_what_is_written_stops_at_its_longest() -> None:
    endless = Table([[0.1, 1e-9, 0.9], [1, 1, 1], [0.1, 1e-9, 0.9]])
    for beams in (1, 2):
        how = GenerationSettings(beams=beams, max_length=4)
        found = search(endless, 2, Ends(0, 1), how)
        assert [texts[0] for texts in found] == [[2, 2, 2, 2]] * 2


def test_log_softmax_does_not_overflow() -> None:
    scores = np.asarray([[1e4, 1e4, 0.0]], dtype=np.float32)
    torch_said = torch.log_softmax(torch.from_numpy(scores), dim=-1).numpy()
    np.testing.assert_allclose(log_softmax(scores), torch_said, rtol=1e-6)
