"""Heads on tokens: run on the asked tokens alone they say what they would have said of all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import config as bert
from transformers import (
    AutoModel,
    BartConfig,
    BartForConditionalGeneration,
    BertForPreTraining,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    MPNetConfig,
    PretrainedConfig,
    RobertaConfig,
)

from distillkit.encoder import Encoder, fresh, load_body, load_masked
from distillkit.errors import ModelError
from distillkit.export.onnx import write_onnx
from distillkit.opening import open_model
from distillkit.runtime.session import open_session
from distillkit.settings import Labels
from distillkit.teachers.pretrained import Pretrained
from distillkit.types import Access, Batch, Want

TAGS = Labels(kind="token_classification", names=("B-x", "I-x", "O"))
MASKED = Labels(kind="mlm")
CLASSES = Labels(kind="classification", names=("bad", "good"))
SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}
FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "bert": lambda: bert(vocab=60),
    "roberta": lambda: RobertaConfig(**SIZES, pad_token_id=0),
    "distilbert": lambda: DistilBertConfig(vocab_size=60, dim=16, n_layers=2, n_heads=2, hidden_dim=32),
    "electra": lambda: ElectraConfig(**SIZES, embedding_size=8),
    "mpnet": lambda: MPNetConfig(**SIZES),
    "deberta": lambda: DebertaV2Config(**SIZES),
}


def batch(*, scored: bool = True) -> Batch:
    """Three padded rows of which about half of the tokens are asked, of one none."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 60, (3, 7), generator=generator)
    mask = torch.arange(7) < torch.tensor([[7], [4], [5]])
    asked = mask & (torch.rand(3, 7, generator=generator) < 0.5)
    asked[1] = False
    inputs = {"input_ids": ids, "attention_mask": mask.long(), "token_type_ids": torch.zeros_like(ids)}
    return Batch(inputs, None, mask, torch.arange(3), scored=asked if scored else None)


@pytest.mark.parametrize("labels", [TAGS, MASKED], ids=lambda labels: labels.kind)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_on_asked_tokens_says_what_the_head_on_all_says_of_them(family: str, labels: Labels) -> None:
    torch.manual_seed(1)
    model = fresh(FAMILIES[family](), labels).eval()
    made = batch()
    assert made.scored is not None
    inputs = {name: made.inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        plain = model.model(**inputs).logits
        found = model.outputs(made, want=Want(Access.ALL_STATES))
        every = model.outputs(batch(scored=False), want=Want()).logits
    assert found.logits.shape == (int(made.scored.sum()), model.spec.num_labels)
    torch.testing.assert_close(found.logits, plain[made.scored], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(every, plain[made.mask], atol=1e-6, rtol=1e-5)
    assert [tuple(state.shape) for state in found.hidden] == [(3, 7, 16)] * 3, "states of all tokens"
    assert not model.model.base_model._forward_hooks, "the model is left as it was"


def test_gradients_of_asked_tokens_are_those_of_the_whole(tmp_path: Path) -> None:
    """With the vocabulary's head and its tied table, which two ways lead to."""
    torch.manual_seed(2)
    model, made = fresh(bert(vocab=60), MASKED).eval(), batch()
    table = model.model.get_input_embeddings().weight
    (ours,) = torch.autograd.grad(model.outputs(made, want=Want()).logits.logsumexp(1).sum(), table)
    whole = model.model(made.inputs["input_ids"], made.inputs["attention_mask"]).logits[made.scored]
    (theirs,) = torch.autograd.grad(whole.logsumexp(1).sum(), table)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("labels", [TAGS, MASKED], ids=lambda labels: labels.kind)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_comes_back_with_its_head_and_opens_without_this_package(
    family: str, labels: Labels, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    model, made = fresh(FAMILIES[family](), labels).eval(), batch()
    model.save(tmp_path, labels)
    again = Encoder.load(tmp_path).eval()
    assert type(again.head) is type(model.head) and again.spec == model.spec
    with torch.no_grad():
        assert torch.equal(again.outputs(made, want=Want()).logits, model.outputs(made, want=Want()).logits)
    body = AutoModel.from_pretrained(tmp_path)
    name, weight = next(iter(model.model.base_model.named_parameters()))
    assert torch.equal(dict(body.named_parameters())[name], weight)
    assert load_body(tmp_path, CLASSES).spec.num_labels == 2, "it can be the start of another run"


def test_pretraining_of_this_repo_leaves_a_masked_language_model(tmp_path: Path) -> None:
    torch.manual_seed(4)
    made, model = batch(), BertForPreTraining(bert(vocab=60)).eval()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        plain = model(made.inputs["input_ids"], made.inputs["attention_mask"]).prediction_logits
        found = load_masked(tmp_path).eval().outputs(made, want=Want()).logits
    torch.testing.assert_close(found, plain[made.scored])


def test_a_teacher_without_the_head_that_a_task_needs_is_refused(tmp_path: Path) -> None:
    fresh(bert(vocab=60), CLASSES).save(tmp_path, CLASSES)
    with pytest.raises(ModelError, match="no whole masked language model"):
        load_masked(tmp_path)
    source = Pretrained(path=str(tmp_path))
    with pytest.raises(ModelError, match="ForSequenceClassification, the task is token_classification"):
        source.classifier(None, TAGS, 8, None)


def test_a_damaged_tied_weight_is_still_found(tmp_path: Path) -> None:
    """The one copy on disk stands for both names; without it there is none."""
    from tiny import change_weights

    fresh(bert(vocab=60), MASKED).save(tmp_path, MASKED)
    change_weights(tmp_path, **{"bert.embeddings.word_embeddings.weight": None})
    with pytest.raises(ModelError, match="weights missing"):
        Encoder.load(tmp_path)


_BART = {"attention_heads": 2, "ffn_dim": 32}


def bart(**changes: Any) -> BartConfig:
    sizes = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "max_position_embeddings": 40}
    heads = {f"{stack}_{what}": size for stack in ("encoder", "decoder") for what, size in _BART.items()}
    return BartConfig(vocab_size=60, init_std=0.3, dropout=0.0, **{**sizes, **heads, **changes})


def test_a_bart_answers_from_the_last_state_of_its_decoder(tmp_path: Path) -> None:
    """As `transformers` does where every row ends with its only end token; also where a row holds another
    one, which `transformers` refuses in a batch with rows that do not."""
    torch.manual_seed(1)
    model, made = fresh(bart(), CLASSES).eval(), batch(scored=False)
    ids, mask = made.inputs["input_ids"].clone(), made.inputs["attention_mask"]
    last = mask.sum(1) - 1
    ids[torch.arange(3), last] = 2
    made = replace(made, inputs={"input_ids": ids, "attention_mask": mask})
    with torch.no_grad():
        told = model.outputs(made, want=Want(Access.ALL_STATES, attention=True))
        wanted = model.model(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(told.logits, wanted, atol=1e-6, rtol=1e-5)
        ids[0, 2] = 2
        odd = model.outputs(made, want=Want()).logits
        alone = model.model(input_ids=ids[:1]).logits
    torch.testing.assert_close(odd[:1], alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(odd[0], told.logits[0], atol=1e-3) and torch.equal(odd[1:], told.logits[1:])
    assert (len(told.hidden), len(told.attention), model.spec.num_layers) == (3, 2, 2)
    model.save(tmp_path, CLASSES)
    again = open_model(tmp_path).eval()
    assert isinstance(again, Encoder) and again.spec == model.spec
    with torch.no_grad():
        assert torch.equal(again.outputs(made, want=Want()).logits, odd)
    path = tmp_path / "model.onnx"
    write_onnx(model, path, opset=18, metadata={})
    session = open_session(path, provider="cpu", threads=1)
    feed = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    assert abs(session.run(None, feed)[0] - odd.numpy()).max() < 1e-5


@pytest.mark.parametrize("labels", [TAGS, MASKED], ids=lambda labels: labels.kind)
def test_a_bart_answers_no_tokens(labels: Labels) -> None:
    with pytest.raises(ModelError):
        fresh(bart(), labels)


def test_a_bart_that_writes_starts_one_that_answers(tmp_path: Path) -> None:
    """Its body, both stacks and the table, and a fresh head; a folder with that head answers as it is."""
    torch.manual_seed(2)
    writes = BartForConditionalGeneration(bart())
    writes.save_pretrained(tmp_path / "writes")
    model = load_body(tmp_path / "writes", CLASSES)
    body = writes.model.state_dict()
    assert all(torch.equal(tensor, body[name]) for name, tensor in model.model.model.state_dict().items())
    model.save(tmp_path / "answers", CLASSES)
    source = Pretrained(path=str(tmp_path / "answers"))
    swapped = Labels(kind="classification", names=("good", "bad"))
    opened = source.classifier(None, swapped, 16, None).eval()  # type: ignore[arg-type]
    made = batch(scored=False)
    with torch.no_grad():
        mine, theirs = (one.eval().outputs(made, want=Want()).logits for one in (model, opened))
    assert torch.equal(mine.flip(1), theirs)
