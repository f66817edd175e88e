"""The recurrent student: against a loop written from the paper, its local attention in closed form, its texts
and its two graphs."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinytexts
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from distillkit.data.batching import collate
from distillkit.errors import ModelError
from distillkit.export.decoding import DECODER, ENCODER, OnnxWriter
from distillkit.export.writers import export_writer
from distillkit.files import seal
from distillkit.model import FixedTeacher
from distillkit.runtime import Artifact
from distillkit.search import Ends, search
from distillkit.settings import ExportSettings, GenerationSettings
from distillkit.students.rnn_seq2seq import RecurrentWriter, RnnSeq2seq, local_weights
from distillkit.types import TARGET_IDS, Access, Batch, Want
from distillkit.writing import spelled, write_tokens

ALL = Want(Access.ALL_STATES)
ONNX = ({"attention": "general", "window": 2}, {"attention": "dot", "feeding": False, "decoder_layers": 2})


def made(seed: int = 0, scale: float = 3.0, **settings: Any) -> RecurrentWriter:
    """Small, with larger weights than fresh ones, so that texts differ."""
    torch.manual_seed(seed)
    source = RnnSeq2seq(**{"width": 12, **settings})
    teacher = FixedTeacher(tinytexts.model())
    student = source.build(tinytexts.tokenizer(), tinytexts.LABELS, 16, teacher)
    assert isinstance(student, RecurrentWriter)
    with torch.no_grad():
        for weight in student.parameters():
            weight.mul_(scale)
    return student.eval()


def ending(model: RecurrentWriter, batch: Batch) -> RecurrentWriter:
    """The same, which ends a text where it said the word that it said most often."""
    texts = model.beams(batch, GenerationSettings(max_length=7))
    ((word, _),) = Counter(token for (text,) in texts for token in text).most_common(1)
    with torch.no_grad():
        model.output.weight[model.end_id] = 1.01 * model.output.weight[word]
    return model


def batch_of(folder: Path, count: int = 6) -> Batch:
    return collate(tinytexts.encoded(folder, count), np.arange(count))


def lstm_step(cell: nn.LSTMCell, read: Tensor, hidden: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
    """One step of one row, gate by gate."""
    gates = linear(read, cell.weight_ih, cell.bias_ih) + linear(hidden, cell.weight_hh, cell.bias_hh)
    enter, forget, new, leave = gates.chunk(4)
    carried = forget.sigmoid() * carried + enter.sigmoid() * new.tanh()
    return leave.sigmoid() * carried.tanh(), carried


def by_the_paper(model: RecurrentWriter, source: list[int], target: list[int]) -> Tensor:
    """`[T, V]` of one row, token by token (Luong et al. 2015, equations 5 to 10 and figure 4)."""
    sizes = model.sizes
    states = [model.widen(model.table.weight[token]) for token in source]
    for layer in model.encoder:
        stacked = torch.stack(states)[None]
        back = layer.back(stacked.flip(1))[0].flip(1)
        states = list(torch.cat([layer.ahead(stacked)[0], back], dim=-1)[0])
    ahead = sizes.width - sizes.width // 2
    begun = (
        model.begin(torch.cat([states[-1][:ahead], states[0][ahead:]])).tanh().chunk(2 * sizes.decoder_layers)
    )
    hidden, carried = list(begun[::2]), list(begun[1::2])
    fed, said = torch.zeros(sizes.width), []
    for token in [model.start_id, *target[:-1]]:
        read = model.widen(model.table.weight[token])
        read = torch.cat([read, fed]) if sizes.feeding else read
        for layer, cell in enumerate(model.cells):
            hidden[layer], carried[layer] = lstm_step(cell, read, hidden[layer], carried[layer])
            read = hidden[layer]
        context = torch.zeros(sizes.width)
        for weight, state in zip(weights(model, read, states), states, strict=True):
            context = context + weight * state
        fed = (model.join.weight @ torch.cat([context, read])).tanh()
        said.append(model.output.weight @ fed)
    return torch.stack(said)


def weights(model: RecurrentWriter, query: Tensor, states: list[Tensor]) -> list[Tensor]:
    """What each state of the source counts."""
    score: Any = model.score
    scores = []
    for state in states:
        if model.sizes.attention == "dot":
            scores.append(query @ state)
        elif model.sizes.attention == "general":
            scores.append(query @ (score.matrix.weight @ state))
        else:
            both = torch.cat([score.of_query.weight, score.of_source.weight], dim=1)
            scores.append(score.vector.weight[0] @ (both @ torch.cat([query, state])).tanh())
    if model.window is None:
        return list(torch.stack(scores).softmax(0))
    centre = (
        len(states) * (model.window.vector.weight[0] @ (model.window.inner.weight @ query).tanh()).sigmoid()
    )
    half = model.sizes.window
    inside = [place for place in range(len(states)) if abs(place - float(centre)) <= half]
    shares = dict(zip(inside, torch.stack([scores[place] for place in inside]).softmax(0), strict=True))
    return [
        shares[place] * torch.exp(-((place - centre) ** 2) / (2 * (half / 2) ** 2))
        if place in shares
        else torch.tensor(0.0)
        for place in range(len(states))
    ]


@pytest.mark.parametrize("attention", ["dot", "general", "concat"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"feeding": False, "decoder_layers": 2},
        {"window": 1, "embedding": 5},
        {"window": 2, "encoder_layers": 2, "decoder_layers": 2},
    ],
)
def test_answers_are_those_of_the_paper(attention: str, more: dict[str, Any], tmp_path: Path) -> None:
    """Rows of a padded batch against a loop over the tokens of each alone."""
    model, batch = made(attention=attention, **more), batch_of(tmp_path)
    assert not batch.full
    with torch.no_grad():
        logits = model.outputs(batch, want=Want()).logits
        place = 0
        for row in range(batch.num_examples):
            assert batch.scored is not None
            source = batch.inputs["input_ids"][row][batch.mask[row]].tolist()
            target = batch.inputs[TARGET_IDS][row][batch.scored[row]].tolist()
            wanted = by_the_paper(model, source, target)
            torch.testing.assert_close(logits[place : place + len(target)], wanted, atol=1e-4, rtol=1e-4)
            place += len(target)
    assert place == len(logits)


def test_a_predicted_window_weighs_by_a_gaussian_and_nothing_outside_of_it() -> None:
    """Equal scores: an equal share of the window each, times exp(-2 (s - p)^2 / D^2)."""
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    centre = torch.tensor([2.25, 4.0])  # the second at the very end of its four tokens
    found = local_weights(torch.zeros(2, 6), mask, centre, 2)
    share = np.exp(-2 * (np.arange(6)[None] - centre[:, None].numpy()) ** 2 / 4)
    share[0, [0, 5]] = 0.0  # 2.25 and 2.75 away
    share[0] /= 4
    share[1, [0, 1, 4, 5]] = 0.0  # 4 and 3 away, and padding
    share[1] /= 2
    np.testing.assert_allclose(found.numpy(), share, atol=1e-6)


def test_the_window_lies_between_the_ends_of_the_real_tokens_and_is_learned(tmp_path: Path) -> None:
    model, batch = made(window=1), batch_of(tmp_path)
    assert model.window is not None
    lengths = batch.mask.sum(1)
    with torch.no_grad():
        model.window.vector.weight.zero_()
        query = torch.randn(batch.num_examples, 12)
        torch.testing.assert_close(model.window(query, batch.mask), lengths / 2)
        model.window.vector.weight.fill_(1e6)
        far = model.window(query, batch.mask)
    assert ((far == 0) | (far == lengths)).all()
    assert torch.isfinite(model.outputs(batch, want=Want()).logits).all()
    trained = made(window=2, attention="concat").train()
    trained.outputs(batch, want=Want()).logits.square().sum().backward()
    missed = [
        name for name, weight in trained.named_parameters() if weight.grad is None or not weight.grad.any()
    ]
    assert missed == []


def test_states_have_the_depth_and_width_that_the_spec_says(tmp_path: Path) -> None:
    model, batch = made(encoder_layers=2, decoder_layers=3), batch_of(tmp_path)
    told = model.outputs(batch, want=ALL)
    assert (len(told.hidden), len(told.decoder_hidden)) == (3, 4)
    assert {state.shape for state in told.decoder_hidden} == {(*batch.inputs[TARGET_IDS].shape, 12)}
    final = model.outputs(batch, want=Want(Access.FINAL_STATES))
    assert torch.equal(final.hidden[0], told.hidden[-1])
    assert torch.equal(final.decoder_hidden[0], told.decoder_hidden[-1])
    assert model.outputs(batch, want=Want()).hidden == ()
    same = model.outputs(batch, want=Want(), swap={0: lambda state: state})
    other = model.outputs(batch, want=Want(), swap={0: lambda state: state + 1.0})
    assert torch.equal(same.logits, told.logits) and not torch.equal(other.logits, told.logits)
    with pytest.raises(ModelError, match="no queries"):
        model.outputs(batch, want=Want(attention=True))


class FromTheStart:
    """Scores every text by answering all of it anew."""

    def __init__(self, model: RecurrentWriter, batch: Batch) -> None:
        self.model, self.batch, self.texts = model, batch, [[] for _ in range(batch.num_examples)]
        self.sources = list(range(batch.num_examples))

    def step(self, tokens_R: Any, rows_R: Any) -> Any:
        self.sources = [self.sources[row] for row in rows_R]
        texts = [[*self.texts[row], int(token)] for row, token in zip(rows_R, tokens_R, strict=True)]
        self.texts = texts
        rows = self.batch.take(torch.tensor(self.sources))
        target = torch.tensor([[*text[1:], 0] for text in texts])  # what is answered last is not looked at
        told = self.model.outputs(
            replace(rows, inputs={**rows.inputs, TARGET_IDS: target}, scored=None, labels=None), want=Want()
        )
        return told.logits.view(len(texts), -1, self.model.spec.vocab_size)[:, -1].detach().numpy()


@pytest.mark.parametrize("beams", [1, 3])
def test_texts_are_those_of_a_search_that_forgets_nothing(beams: int, tmp_path: Path) -> None:
    batch, how = batch_of(tmp_path, 12), GenerationSettings(beams=beams, max_length=7)
    model = ending(made(window=2), batch)
    slow = FromTheStart(model, batch)
    wanted = search(slow, batch.num_examples, Ends(model.start_id, model.end_id), how)
    assert model.beams(batch, how) == wanted
    assert len({tuple(text) for (text, *_) in wanted}) > 3 and len({len(text) for (text, *_) in wanted}) > 1


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    model, batch = made(window=3, embedding=5), batch_of(tmp_path / "cache")
    model.save(tmp_path, tinytexts.LABELS)
    again = RnnSeq2seq().load(tmp_path).eval()
    with torch.no_grad():
        told, back = (one.outputs(batch, want=Want()).logits for one in (model, again))
    assert torch.equal(told, back) and again.spec == model.spec
    config = json.loads((tmp_path / "config.json").read_text())
    for change in ({"width": 0}, {"attention": "luck"}, {"more": 1}):
        (tmp_path / "config.json").write_text(json.dumps({**config, "sizes": {**config["sizes"], **change}}))
        with pytest.raises(ModelError, match="not the config of a student"):
            RnnSeq2seq().load(tmp_path)


@pytest.mark.parametrize("settings", ONNX)
def test_two_graphs_answer_and_write_what_pytorch_does(settings: dict[str, Any], tmp_path: Path) -> None:
    rows, how = tinytexts.encoded(tmp_path, 30), GenerationSettings(beams=2, max_length=7)
    model = ending(made(seed=1, scale=2.0, **settings), collate(rows, np.arange(30)))
    folder = tmp_path / "export"
    folder.mkdir()
    checks = ExportSettings(rows=30, tolerance=1e-3)
    read = tinytexts.tokenizer()
    parity = export_writer(model, read, tinytexts.LABELS, rows, folder, checks, how, "")
    assert parity.same_texts >= 0.98
    writer, batch = OnnxWriter.open(folder, threads=1), collate(rows, np.arange(8))
    with torch.no_grad():
        wanted = model.outputs(batch, want=Want()).logits.numpy()
    np.testing.assert_allclose(writer.logits(batch), wanted, atol=1e-4)
    for beams in (1, 4):
        search_by = how.model_copy(update={"beams": beams})
        theirs, mine = (
            write_tokens(one, rows, search_by, device=torch.device("cpu")) for one in (model, writer)
        )
        assert mine == theirs and len({tuple(text) for text in mine}) > 5
    seal(folder, {})
    answers = Artifact.load(folder, threads=1).predict([text for (text,) in rows.texts])
    expected = spelled(write_tokens(model, rows, how, device=torch.device("cpu")), read)
    assert [answer.as_json()["written"] for answer in answers] == expected
    assert (folder / ENCODER).is_file() and (folder / DECODER).is_file()
