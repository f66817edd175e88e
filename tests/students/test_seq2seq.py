"""Smaller encoder-decoders: their sizes, their first weights, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinytexts
import torch
from tiny import encoder
from tinytexts import FamilyName

from distillkit.data.batching import collate
from distillkit.encoder_decoder import EncoderDecoder, fresh
from distillkit.errors import ConfigError
from distillkit.losses.base import TEACHER, Loss
from distillkit.losses.hidden_cosine import HiddenCosine
from distillkit.losses.hidden_mse import HiddenMse
from distillkit.model import FixedTeacher, Material, Nothing
from distillkit.settings import InitialiseStacks
from distillkit.students.seq2seq import Seq2seq
from distillkit.types import Access, Step, Want

FROM_TEACHER = InitialiseStacks.model_validate({"from": "teacher"})


def made(teacher: Any, **settings: Any) -> EncoderDecoder:
    source = Seq2seq(**settings)
    student = source.build(tinytexts.tokenizer(), tinytexts.LABELS, 16, teacher)
    source.start(student, Material(teacher, tinytexts.tokenizer(), None, torch.device("cpu")))  # type: ignore[arg-type]
    assert isinstance(student, EncoderDecoder)
    return student.eval()


def taught(family: FamilyName = "t5", **how: Any) -> FixedTeacher:
    return FixedTeacher(tinytexts.model(family, **how))


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_by_default_half_of_the_decoder_is_left(family: FamilyName) -> None:
    teacher = taught(family, encoder=3, decoder=3)
    student = made(teacher, dropout=0.25)
    assert (student.spec.num_layers, student.spec.decoder_layers) == (3, 2)
    assert student.spec.vocab_size == teacher.spec.vocab_size and student.start_id == teacher.model.start_id
    rate = "dropout_rate" if family == "t5" else "dropout"
    assert getattr(student.model.config, rate) == 0.25


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_whole_start_is_the_teacher(family: FamilyName, tmp_path: Path) -> None:
    teacher = taught(family, encoder=2, decoder=2)
    student = made(teacher, decoder_layers=2, dropout=0.0, initialise=FROM_TEACHER)
    batch = collate(tinytexts.encoded(tmp_path, 6, family=family), np.arange(6))
    with torch.no_grad():
        said = student.outputs(batch, want=Want()).logits
    assert torch.equal(said, teacher.outputs(batch, want=Want()).logits)


def test_an_output_layer_of_its_own_is_taken_and_survives_being_saved(tmp_path: Path) -> None:
    """T5 1.1: transformers ties the output of every new model: a student would answer by the table."""
    plain = tinytexts.model(feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    teacher = FixedTeacher(fresh(plain.model.config, own_output=True))
    with torch.no_grad():
        teacher.model.model.lm_head.weight.normal_()
    student = made(teacher, decoder_layers=2, dropout=0.0, initialise=FROM_TEACHER)
    batch = collate(tinytexts.encoded(tmp_path, 6), np.arange(6))
    student.save(tmp_path / "saved", tinytexts.LABELS)
    again = EncoderDecoder.load(tmp_path / "saved").eval()
    told = teacher.outputs(batch, want=Want()).logits
    for one in (student, again):
        assert one.own_output and not plain.own_output
        with torch.no_grad():
            assert torch.equal(one.outputs(batch, want=Want()).logits, told)


def test_the_named_blocks_are_taken() -> None:
    teacher = taught(encoder=3, decoder=3)
    chosen = InitialiseStacks.model_validate({"from": "teacher", "encoder": [1, 3], "decoder": [2]})
    student = made(teacher, encoder_layers=2, decoder_layers=1, initialise=chosen)
    name = "layer.0.SelfAttention.q.weight"
    blocks = teacher.model.encoder_blocks
    for own, theirs in zip(student.encoder_blocks, (blocks[0], blocks[2]), strict=True):
        assert torch.equal(own.state_dict()[name], theirs.state_dict()[name])
    own, theirs = student.decoder_blocks[0], teacher.model.decoder_blocks[1]
    assert torch.equal(own.state_dict()[name], theirs.state_dict()[name])


def test_a_fresh_student_may_be_narrower_or_of_another_family() -> None:
    teacher = taught("t5")
    narrow = made(teacher, width=8, heads=2, ffn=12)
    assert (narrow.spec.hidden_dim, narrow.spec.num_heads, narrow.spec.ffn_dim) == (8, 2, 12)
    other = made(teacher, family="bart", width=8, heads=1)
    assert other.model.config.model_type == "bart" and other.spec.num_labels == teacher.spec.num_labels
    assert other.start_id == other.end_id == 1
    nothing = Nothing(tinytexts.LABELS, 16, len(tinytexts.tokenizer()))
    alone = made(nothing, family="t5", encoder_layers=1, decoder_layers=1, width=8, heads=1)
    assert alone.spec.vocab_size == len(tinytexts.tokenizer()) and alone.start_id == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": 8, "initialise": FROM_TEACHER}, "student.width: 8 is not the teacher's 16"),
        ({"ffn": 9, "initialise": FROM_TEACHER}, "student.ffn: 9 is not the teacher's 32"),
        ({"decoder_layers": 3, "initialise": FROM_TEACHER}, "student has 3 layers, the teacher 2"),
        ({"width": 10, "heads": 3}, "3 heads do not divide"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made(taught(), **settings)
    assert words in str(caught.value)


def test_a_teacher_that_shows_no_encoder_decoder_is_no_start() -> None:
    bert = FixedTeacher(encoder())
    with pytest.raises(ConfigError, match="no encoder-decoder to start from"):
        made(bert, initialise=FROM_TEACHER)
    with pytest.raises(ConfigError, match="no architecture to take over"):
        made(bert)
    nothing = Nothing(tinytexts.LABELS, 16, 50)
    with pytest.raises(ConfigError, match=r"student\.encoder_layers"):
        made(nothing, family="t5", width=8)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
@pytest.mark.parametrize("make", [HiddenMse, HiddenCosine])
def test_terms_on_states_compare_the_stack_that_they_name(make: Any, stack: str, tmp_path: Path) -> None:
    """The oracle walks over the rows: padding of sources and of targets lies at other places."""
    teacher, student = taught(seed=1, decoder=2), made(taught(seed=5), decoder_layers=1)
    loss: Loss = make(layer_map="last", stack=stack)
    loss.bind(student.spec, {TEACHER: teacher.spec})
    batch = collate(tinytexts.encoded(tmp_path, 6), np.arange(6))
    want = Want(access=Access.ALL_STATES)
    mine, theirs = student.outputs(batch, want=want), teacher.outputs(batch, want=want)
    value = loss(Step(batch, mine, {TEACHER: theirs}))
    decoder = stack == "decoder"
    left, right = (one.decoder_hidden[-1] if decoder else one.hidden[-1] for one in (mine, theirs))
    real = batch.scored if decoder else batch.mask
    terms = []
    for row in range(6):
        for place in range(int(real[row].sum())):
            a, b = left[row, place], right[row, place]
            if make is HiddenMse:
                terms.append(((a - b) ** 2).mean())
            else:
                terms.append(1 - torch.dot(a, b) / (a.norm() * b.norm()))
    assert loss.count(batch) == len(terms)
    torch.testing.assert_close(value, torch.stack(terms).mean())
    value.backward()
    grown = [block for block in student.decoder_blocks if next(block.parameters()).grad is not None]
    assert bool(grown) == decoder
    assert {pair.part for pair in loss.compared()} == {"decoder state" if decoder else "state"}


def test_a_decoder_is_not_asked_of_an_encoder() -> None:
    loss = HiddenMse(stack="decoder")
    with pytest.raises(ConfigError, match="no decoder"):
        loss.bind(encoder().spec, {TEACHER: encoder().spec})
