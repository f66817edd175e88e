"""A transformer narrower than its teacher, or with fewer pieces: closed forms, and exactness where nothing
is lost.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import LABELS, batch, config, encoded, encoder, tokenizer
from torch import nn
from transformers import AutoModel, DistilBertConfig, ElectraConfig, RobertaConfig

from distillkit.encoder import Encoder, fresh
from distillkit.errors import ModelError
from distillkit.model import FixedTeacher, Material, Student
from distillkit.settings import Initialise
from distillkit.students.narrowing import (
    Block,
    Cut,
    fit_norm,
    low_rank,
    narrow,
    narrow_attention,
    residual_basis,
    strongest,
)
from distillkit.students.transformer import Transformer
from distillkit.students.vocabulary import KEPT, Renumbered, choose, count, open_saved, renumbered, shared
from distillkit.types import Want

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24, "vocab_size": 120}
TEACHERS = {
    "bert": lambda: config(width=16, heads=4),
    "roberta": lambda: RobertaConfig(**SIZES, hidden_size=16, max_position_embeddings=40, pad_token_id=0),
    "electra": lambda: ElectraConfig(**SIZES, hidden_size=16, embedding_size=6),
    "distilbert": lambda: DistilBertConfig(vocab_size=120, dim=16, n_layers=2, n_heads=4, hidden_dim=24),
}
FROM_TEACHER = Initialise.model_validate({"from": "teacher"})


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def teacher_of(family: str) -> Encoder:
    """Every weight is random, gains and biases too, so that nothing is right by being zero or one."""
    torch.manual_seed(3)
    model = fresh(TEACHERS[family](), LABELS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def attention_of(width: int) -> Block:
    """A block whose attention has random weights of this width."""
    torch.manual_seed(width)
    linear = [nn.Linear(width, width) for _ in range(6)]
    norm = nn.LayerNorm(width)
    return Block(*linear[:4], norm, *linear[4:], norm)


def attended(block: Block, states: torch.Tensor) -> torch.Tensor:
    """What four heads of attention write to the stream."""
    split = [part.double()(states).unflatten(-1, (4, -1)) for part in (block.query, block.key, block.value)]
    query, key, value = (part.transpose(0, 1) for part in split)
    scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
    return block.out.double()((scores.softmax(-1) @ value).transpose(0, 1).flatten(1))


def started(teacher: Encoder, folder: Path, **settings: Any) -> Student:
    source, fixed = Transformer(**{"layers": teacher.spec.num_layers, **settings}), FixedTeacher(teacher)
    student = source.build(tokenizer(), LABELS, 32, fixed)
    source.start(student, Material(fixed, tokenizer(), encoded(folder), torch.device("cpu")))
    return student.eval()


@pytest.mark.parametrize("family", list(TEACHERS))
def test_narrowing_by_nothing_gives_the_teachers_function(family: str, tmp_path: Path) -> None:
    """Every weight of the student is written anew here, the norms by least squares."""
    teacher, rows = teacher_of(family), batch(tmp_path)
    student = fresh(TEACHERS[family](), LABELS).eval()
    material = Material(FixedTeacher(teacher), tokenizer(), encoded(tmp_path), torch.device("cpu"))
    narrow(student, teacher, [1, 2], teacher.model.get_input_embeddings().weight.detach(), material)
    assert torch.allclose(
        student.outputs(rows, want=Want()).logits, teacher.outputs(rows, want=Want()).logits, atol=1e-4
    )


@pytest.mark.parametrize("family", list(TEACHERS))
def test_a_narrower_student_has_the_sizes_asked_for(family: str, tmp_path: Path) -> None:
    student = started(teacher_of(family), tmp_path, initialise=FROM_TEACHER, width=12, heads=3, ffn=5)
    spec = student.spec
    assert (spec.hidden_dim, spec.num_heads, spec.ffn_dim) == (12, 3, 5)
    assert all(bool(parameter.isfinite().all()) for parameter in student.parameters())


def test_a_head_of_low_rank_loses_nothing_in_a_smaller_one() -> None:
    """Scores, divided by the root of the head's size, and what is written, in the student's own basis; a
    factor of the two sizes left out would be silent."""
    big, small = attention_of(16), attention_of(8)
    with torch.no_grad():
        for part in (big.query, big.key, big.value):
            for own in (part.weight, part.bias):
                own.view(4, 4, -1)[:, 2:] = 0.0  # two of four values of each head say nothing
    basis, _ = torch.linalg.qr(random(16, 8))
    states, context = random(9, 8, seed=1), random(9, 16, seed=2)
    with torch.no_grad():
        narrow_attention(small, big, Cut(basis, heads=4, head_dim=2, teacher_heads=4), context)
    told, expected = attended(small, states), attended(big, states @ basis.T)
    assert torch.allclose(told, expected @ basis, atol=1e-5)


def test_the_basis_is_the_best_of_its_rank() -> None:
    """What it leaves out is the sum of the smallest eigenvalues; no other basis leaves out less."""
    states = random(50, 8) @ random(8, 8, seed=1)
    basis = residual_basis(states, 5)
    left_out = (states - states @ basis @ basis.T).square().sum()
    assert torch.allclose(basis.T @ basis, torch.eye(5, dtype=torch.float64))
    assert torch.allclose(left_out, torch.linalg.svdvals(states)[5:].square().sum())
    for seed in range(5):
        other, _ = torch.linalg.qr(random(8, 5, seed=seed + 2))
        assert left_out < (states - states @ other @ other.T).square().sum()
    assert torch.equal(residual_basis(states, 8), torch.eye(8, dtype=torch.float64))


def test_a_smaller_head_keeps_the_best_of_its_form() -> None:
    left, right = random(6, 9), random(6, 7, seed=1)
    outer, sizes, inner = torch.linalg.svd(left.T @ right)
    small_left, small_right = low_rank(left, right, 4)
    assert torch.allclose(small_left.T @ small_right, outer[:, :4] * sizes[:4] @ inner[:4])
    assert low_rank(left, right, 6)[0] is left
    assert strongest(torch.tensor([1.0, 9.0, 3.0, 5.0]), 2).tolist() == [1, 3]


def test_a_norm_is_fitted_by_least_squares() -> None:
    before, after, norm = random(30, 4), random(30, 4, seed=1), nn.LayerNorm(4)
    with torch.no_grad():
        fit_norm(norm, before, after)
    normal = nn.functional.layer_norm(before, (4,), eps=norm.eps)
    for value in range(4):
        design = torch.stack([normal[:, value], torch.ones(30, dtype=torch.float64)], dim=1)
        gain, bias = torch.linalg.lstsq(design, after[:, value]).solution.tolist()
        assert (norm.weight[value].item(), norm.bias[value].item()) == pytest.approx((gain, bias), abs=1e-5)


def test_frequent_pieces_keep_their_row_and_the_rest_share_one(tmp_path: Path) -> None:
    words, rows = tokenizer(), encoded(tmp_path)
    student = renumbered(fresh(config(vocab=40), LABELS), words, 40)
    chosen, counts = choose(student, words, rows).tolist(), count(rows, len(words)).tolist()
    own = [piece for piece in range(len(words)) if chosen[piece] != 39]
    assert sorted(chosen[piece] for piece in own) == list(range(39))
    assert [chosen[piece] for piece in sorted(words.all_special_ids)] == list(range(5))
    least = min(counts[piece] for piece in own if piece not in words.all_special_ids)
    assert all(counts[piece] <= least for piece in range(len(words)) if piece not in own)


def test_a_shared_row_is_the_mean_of_its_pieces_and_another_is_exact() -> None:
    table = random(5, 3).float()
    made = shared(table, torch.tensor([0, 2, 1, 2, 2]), np.asarray([4, 0, 7, 2, 1]))
    assert torch.equal(made[:2], table[[0, 2]])
    assert torch.allclose(made[2], (1 * table[1] + 3 * table[3] + 2 * table[4]) / 6)


def test_a_student_that_knows_fewer_pieces_answers_like_its_teacher_on_those(tmp_path: Path) -> None:
    teacher, rows = encoder(), batch(tmp_path)
    student = started(teacher, tmp_path, initialise=FROM_TEACHER, vocabulary=70)
    assert isinstance(student, Renumbered) and student.spec.vocab_size == 70
    known = (student.rows[rows.inputs["input_ids"]] != 69).all(dim=1)
    mine, theirs = (model.eval().outputs(rows, want=Want()).logits for model in (student, teacher))
    assert bool(known.any()) and torch.allclose(mine[known], theirs[known], atol=1e-6)


def test_a_factorised_student_opens_in_transformers(tmp_path: Path) -> None:
    student = Transformer(layers=1, width=8, heads=2, embedding=4)
    made = student.build(tokenizer(), LABELS, 32, FixedTeacher(encoder()))
    made.save(tmp_path, LABELS)
    opened = AutoModel.from_pretrained(str(tmp_path), local_files_only=True)
    assert opened.get_input_embeddings().weight.shape == (len(tokenizer()), 4)


@pytest.mark.parametrize("content", ["{", '{"rows": [0, 99999]}', '{"rows": []}', '{"rows": "x"}'])
def test_a_map_that_does_not_fit_is_refused_in_words(content: str, tmp_path: Path) -> None:
    encoder().save(tmp_path, LABELS)
    (tmp_path / KEPT).write_text(content)
    with pytest.raises(ModelError, match=KEPT):
        open_saved(tmp_path, Encoder.load)
