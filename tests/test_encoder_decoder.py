"""Encoder-decoders as students: against what transformers computes by itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tinytexts
import torch
from tiny import LABELS, change_config, change_weights, encoder
from tinytexts import FamilyName
from transformers import AutoModelForSeq2SeqLM, BertConfig, MBartConfig, MT5Config

from distillkit.data.batching import collate
from distillkit.encoder_decoder import EncoderDecoder, family_of, fresh, from_blocks, shifted, start_of
from distillkit.errors import DivergedError, ModelError, SecurityError
from distillkit.model import FixedTeacher
from distillkit.opening import open_model
from distillkit.settings import GenerationSettings
from distillkit.types import Access, Batch, Outputs, Want

STATES = Want(access=Access.ALL_STATES)
BOTH = pytest.mark.parametrize("family", ["t5", "bart"])


def batch_of(tmp_path: Path, family: FamilyName, count: int = 6) -> Batch:
    return collate(tinytexts.encoded(tmp_path, count, family=family), np.arange(count))


def said(model: EncoderDecoder, batch: Batch, want: Want = STATES) -> Outputs:
    with torch.no_grad():
        return model.outputs(batch, want=want)


@BOTH
def test_every_token_of_a_target_is_answered_as_transformers_does(family: FamilyName, tmp_path: Path) -> None:
    """The first too, though T5 begins with the padding token: a mask made from it would lose that answer."""
    model, batch = tinytexts.model(family), batch_of(tmp_path, family)
    with torch.no_grad():
        told = model.model(
            input_ids=batch.inputs["input_ids"],
            attention_mask=batch.inputs["attention_mask"],
            labels=batch.labels,
            output_hidden_states=True,
        )
    outputs = said(model, batch)
    assert outputs.logits.shape == (batch.num_answers, model.spec.num_labels)
    torch.testing.assert_close(outputs.logits, told.logits[batch.scored])
    for mine, theirs, mask in (
        (outputs.hidden, told.encoder_hidden_states, batch.mask),
        (outputs.decoder_hidden, told.decoder_hidden_states, batch.scored),
    ):
        assert len(mine) == len(theirs) == 3
        for number in range(2):  # the last of theirs may be normed
            torch.testing.assert_close(mine[number][mask], theirs[number][mask])
    assert outputs.logits.dtype == torch.float32 and len(said(model, batch, Want()).hidden) == 0
    final = said(model, batch, Want(access=Access.FINAL_STATES))
    assert len(final.hidden) == len(final.decoder_hidden) == 1
    torch.testing.assert_close(final.decoder_hidden[0], outputs.decoder_hidden[-1])


@BOTH
def test_an_answer_sees_the_target_before_it_and_nothing_of_what_comes(
    family: FamilyName, tmp_path: Path
) -> None:
    model, batch = tinytexts.model(family), batch_of(tmp_path, family)
    target = batch.inputs["target_ids"]
    other = torch.where(target > 3, (target - 3) % 80 + 4, target)
    place = 2
    changed = torch.cat([target[:, :place], other[:, place:]], dim=1)
    answers = []
    for ids in (target, changed):
        outputs = said(model, replace(batch, inputs={**batch.inputs, "target_ids": ids}))
        padded = torch.zeros(*target.shape, outputs.logits.shape[-1])
        padded[batch.scored] = outputs.logits
        answers.append(padded)
    moved = (answers[0] - answers[1]).abs().amax(dim=-1)
    assert moved[:, : place + 1].max() < 1e-5 < moved[:, place + 1 :].max()


@BOTH
def test_what_stands_in_padding_changes_nothing_and_rows_do_not_meet(
    family: FamilyName, tmp_path: Path
) -> None:
    model, batch = tinytexts.model(family), batch_of(tmp_path, family)
    noise = torch.full_like(batch.inputs["input_ids"], 9)
    spoiled = replace(
        batch,
        inputs={
            **batch.inputs,
            "input_ids": torch.where(batch.mask, batch.inputs["input_ids"], noise),
            "target_ids": batch.inputs["target_ids"].masked_fill(~batch.scored, 9),
        },
    )
    whole = said(model, batch).logits
    torch.testing.assert_close(said(model, spoiled).logits, whole)
    encoded = tinytexts.encoded(tmp_path, 6, family=family)
    rows = [said(model, collate(encoded, np.asarray([row]))).logits for row in range(6)]
    torch.testing.assert_close(torch.cat(rows), whole, atol=1e-5, rtol=1e-4)


@BOTH
def test_a_saved_model_is_the_same_model_and_transformers_reads_it(
    family: FamilyName, tmp_path: Path
) -> None:
    model, batch = tinytexts.model(family, seed=3), batch_of(tmp_path, family)
    folder = tinytexts.save(tmp_path / "model", model, family)
    again = open_model(folder)
    assert isinstance(again, EncoderDecoder) and again.spec == model.spec
    torch.testing.assert_close(said(again, batch).logits, said(model, batch).logits, rtol=0, atol=0)
    theirs = AutoModelForSeq2SeqLM.from_pretrained(folder)
    table = theirs.get_input_embeddings().weight
    assert theirs.get_output_embeddings().weight is table or torch.equal(
        theirs.get_output_embeddings().weight, table
    )


def test_a_gated_t5_that_does_not_scale_its_scores_stays_one(tmp_path: Path) -> None:
    """Version 1.1 says so by a key that transformers no longer keeps."""
    model = tinytexts.model(feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    plain = tinytexts.model()
    assert not model.model.config.scale_decoder_outputs and plain.model.config.scale_decoder_outputs
    batch = batch_of(tmp_path, "t5")
    with torch.no_grad():
        told = model.model(
            **{k: batch.inputs[k] for k in ("input_ids", "attention_mask")}, labels=batch.labels
        )
    torch.testing.assert_close(said(model, batch).logits, told.logits[batch.scored])
    model.save(tmp_path / "model", tinytexts.LABELS)
    again = EncoderDecoder.load(tmp_path / "model")
    torch.testing.assert_close(said(again, batch).logits, said(model, batch).logits)


def test_an_mt5_scales_no_scores(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = MT5Config(
        vocab_size=88, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    model, batch = fresh(config).eval(), batch_of(tmp_path, "t5")
    with torch.no_grad():
        told = model.model(
            **{k: batch.inputs[k] for k in ("input_ids", "attention_mask")}, labels=batch.labels
        )
    torch.testing.assert_close(said(model, batch).logits, told.logits[batch.scored])
    assert len(model.write(batch, GenerationSettings(max_length=3))) == 6


@BOTH
def test_a_student_of_every_block_computes_what_its_teacher_does(family: FamilyName, tmp_path: Path) -> None:
    teacher, student = tinytexts.model(family, encoder=3), tinytexts.model(family, seed=9, encoder=3)
    batch = batch_of(tmp_path, family)
    from_blocks(student, teacher, [1, 2, 3], [1, 2])
    torch.testing.assert_close(said(student, batch).logits, said(teacher, batch).logits, rtol=0, atol=0)


@BOTH
def test_the_chosen_blocks_of_both_stacks_are_copied_and_not_shared(family: FamilyName) -> None:
    teacher, student = (tinytexts.model(family, seed=seed, encoder=3, decoder=3) for seed in (1, 2))
    small = tinytexts.model(family, seed=5, encoder=2, decoder=1)
    from_blocks(small, teacher, [2, 3], [3])
    chosen = [(small.encoder_blocks[0], teacher.encoder_blocks[1])]
    chosen += [(small.decoder_blocks[0], teacher.decoder_blocks[2])]
    for own, theirs in chosen:
        source = theirs.state_dict()
        for name, weight in own.state_dict().items():
            if "relative_attention_bias" not in name:
                assert torch.equal(weight, source[name]) and weight is not source[name]
    if family == "t5":  # a block that is not the first has no positions of its own
        name = "layer.0.SelfAttention.relative_attention_bias.weight"
        stacks = [(one.encoder_blocks, one.decoder_blocks) for one in (small, teacher)]
        for own, theirs in zip(*stacks, strict=True):
            assert torch.equal(own[0].state_dict()[name], theirs[0].state_dict()[name])
    table = small.model.get_input_embeddings().weight
    assert torch.equal(table, teacher.model.get_input_embeddings().weight)
    assert table.data_ptr() != teacher.model.get_input_embeddings().weight.data_ptr()
    assert student is not teacher


@BOTH
def test_parameters_stand_by_depth_and_each_once(family: FamilyName) -> None:
    model = tinytexts.model(family)
    layers = model.layers()
    assert len(layers) == 2 + 2 + 2
    flat = [id(one) for layer in layers for one in layer]
    assert sorted(flat) == sorted({id(one) for one in model.parameters()})
    assert any(one is model.model.get_input_embeddings().weight for one in layers[0])


@BOTH
def test_a_swap_replaces_the_state_of_an_encoder_block(family: FamilyName, tmp_path: Path) -> None:
    model, batch = tinytexts.model(family), batch_of(tmp_path, family)
    base = said(model, batch)
    with torch.no_grad():
        same = model.outputs(batch, want=STATES, swap={0: lambda state: state})
        other = model.outputs(batch, want=STATES, swap={0: lambda state: state.roll(1, dims=0)})
    torch.testing.assert_close(same.logits, base.logits, rtol=0, atol=0)
    assert (other.logits - base.logits).abs().max() > 1e-3
    torch.testing.assert_close(other.hidden[1], base.hidden[1].roll(1, dims=0))


@BOTH
@pytest.mark.parametrize("beams", [1, 3])
def test_texts_written_in_a_batch_are_those_written_alone_and_no_target_is_looked_at(
    family: FamilyName, beams: int, tmp_path: Path
) -> None:
    model = tinytexts.model(family, seed=2)
    batch = batch_of(tmp_path, family)
    how = GenerationSettings(beams=beams, max_length=9)
    together = model.write(batch, how)
    encoded = tinytexts.encoded(tmp_path, 6, family=family)
    blind = {name: value for name, value in batch.inputs.items() if name != "target_ids"}
    assert model.write(replace(batch, inputs=blind, labels=None, scored=None), how) == together
    for row in range(6):
        alone = collate(encoded, np.asarray([row]))
        assert model.write(alone, how) == [together[row]]
    assert len({tuple(text) for text in together}) > 1 and all(1 not in text for text in together)
    assert FixedTeacher(model).writer is model


def test_a_decoder_may_be_deeper_than_its_encoder(tmp_path: Path) -> None:
    """The memory that transformers makes for T5 has as many blocks as the encoder."""
    model = tinytexts.model(encoder=1, decoder=3)
    for beams in (1, 2):
        texts = model.write(batch_of(tmp_path, "t5"), GenerationSettings(beams=beams, max_length=4))
        assert len(texts) == 6


def test_generation_settings_of_a_folder_are_not_used(tmp_path: Path) -> None:
    """Another run of the same recipe would write other texts, and so would the artifact."""
    model = tinytexts.lively(tinytexts.model("bart", seed=2))
    folder = tinytexts.save(tmp_path / "model", model, "bart")
    theirs = {"no_repeat_ngram_size": 1, "forced_bos_token_id": 7, "max_length": 3, "num_beams": 2}
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | theirs))
    again, batch = EncoderDecoder.load(folder), batch_of(tmp_path, "bart")
    for beams in (1, 3):
        how = GenerationSettings(beams=beams, max_length=7)
        assert again.eval().write(batch, how) == model.write(batch, how)


def test_greedy_text_follows_the_largest_answer(tmp_path: Path) -> None:
    """Written token by token from the answers to what was written so far."""
    model, batch = tinytexts.model("bart", seed=4), batch_of(tmp_path, "bart")
    (text, *_) = model.write(batch, GenerationSettings(max_length=7))
    row = replace(batch.take(torch.tensor([0])), labels=None)
    written: list[int] = []
    while len(written) < 7:
        inputs = {**row.inputs, "target_ids": torch.tensor([[*written, 0]])}
        logits = said(model, replace(row, inputs=inputs, scored=None)).logits
        token = int(logits[-1].argmax())
        if token == 1:
            break
        written.append(token)
    assert written == text


def test_what_is_shifted_begins_with_the_start_token() -> None:
    assert shifted(torch.tensor([[5, 6, 1], [7, 1, 0]]), 9).tolist() == [[9, 5, 6], [9, 7, 1]]


def test_models_that_cannot_write_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'bert' is no model that is known to write text"):
        family_of(BertConfig())
    with pytest.raises(ModelError, match="takes t5, mt5, bart"):
        family_of(MBartConfig())
    folder = tinytexts.save(tmp_path / "model", tinytexts.model())
    change_config(folder, decoder_start_token_id=None)
    with pytest.raises(ModelError, match="which token a text begins after"):
        EncoderDecoder.load(folder)
    uneven = tinytexts.model("bart").model.config
    uneven.decoder_attention_heads = 4
    with pytest.raises(ModelError, match="different attention heads, 2 and 4"):
        fresh(uneven)
    encoder().save(tmp_path / "bert", LABELS)
    with pytest.raises(ModelError, match="no model that is known to write"):
        EncoderDecoder.load(tmp_path / "bert")
    assert start_of(tinytexts.model("bart").model.config) == 1


def test_broken_folders_are_refused(tmp_path: Path) -> None:
    cut = tinytexts.save(tmp_path / "cut", tinytexts.model())
    name = "decoder.block.1.layer.2.DenseReluDense.wi.weight"
    change_weights(cut, **{name: None})
    with pytest.raises(ModelError, match="1 weights missing"):
        EncoderDecoder.load(cut)
    change_weights(cut, **{name: torch.full((32, 16), torch.nan)})
    with pytest.raises(DivergedError, match="NaN"):
        EncoderDecoder.load(cut)
    change_config(cut, auto_map={"AutoModel": "x.y"})
    with pytest.raises(SecurityError):
        EncoderDecoder.load(cut)
