"""LSTM, convolutions and static vectors against the formulas of their papers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import LABELS, batch, encoded, encoder, tokenizer
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from distillkit.errors import DistillkitError
from distillkit.export.parity import exact_batch
from distillkit.flops import flops_per_example
from distillkit.model import FixedTeacher, Material
from distillkit.students.bilstm import Bilstm, BothWays
from distillkit.students.cnn import Cnn, FilterBank
from distillkit.students.layers import Sizes, components
from distillkit.students.static import Static, inverse_frequency, piece_vectors
from distillkit.types import Want

SIZES = Sizes(
    rows=30, embedding=6, width=6, layers=1, num_labels=2, max_length=32, dropout=0.0, kernels=(2, 3)
)


def states_and_mask() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(3, 7, 6), torch.arange(7) < torch.tensor([7, 3, 1])[:, None]


def test_both_ways_is_torchs_packed_bidirectional_lstm() -> None:
    states, mask = states_and_mask()
    block, oracle = BothWays(6, 0.0), nn.LSTM(6, 3, batch_first=True, bidirectional=True)
    for name, weight in block.ahead.state_dict().items():
        oracle.state_dict()[name].copy_(weight)
        oracle.state_dict()[f"{name}_reverse"].copy_(block.back.state_dict()[name])
    packed = pack_padded_sequence(states, mask.sum(1), batch_first=True, enforce_sorted=False)
    expected, _ = pad_packed_sequence(oracle(packed)[0], batch_first=True)
    assert torch.allclose(block(states, mask)[mask], expected[mask], atol=1e-6)


@pytest.mark.parametrize("dilation", [1, 2])
def test_a_filter_looks_at_a_window_of_real_tokens(dilation: int) -> None:
    states, mask = states_and_mask()
    bank = FilterBank(SIZES, dilation)
    found = bank(states, mask)
    for row, length in enumerate(mask.sum(1).tolist()):
        for token in range(length):
            parts = []
            for convolution, width in zip(bank.convolutions, SIZES.kernels, strict=True):
                assert isinstance(convolution, nn.Conv1d) and convolution.bias is not None
                total = convolution.bias.clone()
                for place in range(width):
                    seen = token - (dilation * (width - 1)) // 2 + dilation * place
                    if 0 <= seen < length:
                        total = total + convolution.weight[:, :, place] @ states[row, seen]
                parts.append(total.relu())
            assert torch.allclose(found[row, token], torch.cat(parts), atol=1e-5)


def test_components_lose_no_more_than_the_smallest_variances() -> None:
    vectors = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 7.0)
    made = components(vectors, 4)
    sizes = torch.linalg.svdvals(vectors - vectors.mean(0))
    assert float(made.square().sum()) == pytest.approx(float(sizes[:4].square().sum()), rel=1e-4)


def test_a_static_vector_is_the_mean_of_the_teachers_states_of_the_piece_alone(tmp_path: Path) -> None:
    teacher, words = FixedTeacher(encoder(width=8)), tokenizer()
    made = piece_vectors(Material(teacher, words, encoded(tmp_path), torch.device("cpu")))
    for piece in (0, 2, 37, len(words) - 1):
        ids = torch.tensor([[words.cls_token_id, piece, words.sep_token_id]])
        with torch.no_grad():
            states = teacher.model.model.base_model(input_ids=ids).last_hidden_state  # type: ignore[attr-defined]
        assert torch.allclose(made[piece], states[0].mean(0), atol=1e-5)


def test_frequent_pieces_weigh_less() -> None:
    weights = inverse_frequency(np.asarray([0, 9, 99]), 0.1)
    share = np.asarray([1, 10, 100]) / 111
    assert weights.tolist() == pytest.approx((0.1 / (0.1 + share)).tolist())


def test_a_tagger_answers_each_scored_token_in_row_major_order(tmp_path: Path) -> None:
    rows = batch(tmp_path)
    scored = rows.mask & (torch.arange(rows.mask.shape[1]) % 2 == 1)
    student = Bilstm(width=6).build(tokenizer(), LABELS, 32, FixedTeacher(encoder())).eval()
    told = student.outputs(replace(rows, scored=scored), want=Want())
    assert told.logits.shape == (int(scored.sum()), 2)


def test_flops_of_an_lstm_are_those_of_the_closed_form(tmp_path: Path) -> None:
    """Per token and direction: four gates of (input + state) x state."""
    student = Bilstm(width=6, layers=2).build(tokenizer(), LABELS, 32, FixedTeacher(encoder())).eval()
    rows = exact_batch(encoded(tmp_path), 2, 9)
    layer = 9 * 2 * 2 * 4 * 3 * (6 + 3)
    assert flops_per_example(student, rows) == 2 * layer + 2 * 6 * 2


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (lambda: Static(width=32), "more than the teacher's 16"),
        (lambda: Bilstm(width=32, initialise="teacher"), "the teacher's table is 16 wide"),
        (lambda: Bilstm(width=8, vocabulary=5), "from 6 to"),
        (lambda: Bilstm(width=1), "halved"),
        (lambda: Cnn(width=2), "2 filters for 3"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(source: object, words: str) -> None:
    with pytest.raises(DistillkitError, match=words) as caught:
        source().build(tokenizer(), LABELS, 32, FixedTeacher(encoder()))  # type: ignore[operator]
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("harm", ["config", "weights"])
def test_a_damaged_folder_is_refused_in_words(harm: str, tmp_path: Path) -> None:
    source = Cnn(width=6)
    source.build(tokenizer(), LABELS, 32, FixedTeacher(encoder())).save(tmp_path, LABELS)
    if harm == "config":
        (tmp_path / "config.json").write_text('{"sizes": {"rows": -1}}')
    else:
        other = Cnn(width=7).build(tokenizer(), LABELS, 32, FixedTeacher(encoder()))
        (tmp_path / "other").mkdir()
        other.save(tmp_path / "other", LABELS)
        (tmp_path / "other" / "model.safetensors").replace(tmp_path / "model.safetensors")
    with pytest.raises(DistillkitError) as caught:
        source.load(tmp_path)
    assert caught.value.exit_code == 4
