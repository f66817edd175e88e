"""The encoder wrapper: the states that blocks give, interventions, folders read without trusting them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from tiny import LABELS, batch, change_config, change_weights, config, encoded, encoder, tokenizer
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    RobertaConfig,
    T5Config,
)

from distillkit.encoder import Encoder, fresh, load_body, spec_of, stored_weights
from distillkit.errors import ConfigError, DistillkitError, ModelError
from distillkit.losses.minilm import Minilm
from distillkit.model import FixedTeacher, Material
from distillkit.settings import FinetuneSettings, Initialise, Labels
from distillkit.students.transformer import Transformer
from distillkit.teachers.pretrained import Pretrained
from distillkit.types import Access, Want

ALL, SCORES = Want(access=Access.ALL_STATES), Want()


def test_states_are_what_transformers_calls_hidden_states(tmp_path: Path) -> None:
    model, rows = encoder().eval(), batch(tmp_path)
    told = model.outputs(rows, want=ALL)
    theirs = model.model(**rows.inputs, output_hidden_states=True)
    assert torch.allclose(told.logits, theirs.logits, atol=1e-6)
    real = rows.mask
    for mine, other in zip(told.hidden, theirs.hidden_states, strict=True):
        assert torch.allclose(mine[real], other[real], atol=1e-6)
    (last,) = model.outputs(rows, want=Want(access=Access.FINAL_STATES)).hidden
    assert torch.equal(last, told.hidden[-1]) and model.outputs(rows, want=SCORES).hidden == ()


def test_a_full_batch_without_its_mask_gives_the_same(tmp_path: Path) -> None:
    model, rows = encoder().eval(), batch(tmp_path, 1)
    assert rows.full
    without = model.outputs(rows, want=ALL)
    with_mask = model.outputs(replace(rows, full=False), want=ALL)
    assert torch.allclose(without.logits, with_mask.logits, atol=1e-6)


def test_swapping_a_block_for_itself_is_the_identity_and_for_another_is_not(tmp_path: Path) -> None:
    model, rows = encoder().eval(), batch(tmp_path)
    plain = model.outputs(rows, want=ALL)
    same = model.outputs(rows, want=SCORES, swap={0: lambda state: plain.hidden[1]})
    assert torch.equal(same.logits, plain.logits)
    other = model.outputs(rows, want=ALL, swap={0: torch.zeros_like})
    assert torch.equal(other.hidden[1], torch.zeros_like(plain.hidden[1]))
    assert not torch.allclose(other.logits, plain.logits)
    assert torch.equal(model.outputs(rows, want=SCORES).logits, plain.logits), "hooks must be gone"


@pytest.mark.parametrize(
    "settings",
    [
        DistilBertConfig(
            vocab_size=120, dim=16, n_layers=3, n_heads=2, hidden_dim=40, max_position_embeddings=32
        ),
        ElectraConfig(
            vocab_size=120,
            embedding_size=8,
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=40,
            max_position_embeddings=32,
        ),
        RobertaConfig(
            vocab_size=120,
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=40,
            max_position_embeddings=34,
            pad_token_id=0,
        ),
    ],
    ids=["distilbert", "electra", "roberta"],
)
def test_other_families_have_the_same_form(tmp_path: Path, settings: object) -> None:
    model = fresh(settings, LABELS).eval()  # type: ignore[arg-type]
    assert (model.spec.num_layers, model.spec.hidden_dim, model.spec.num_heads, model.spec.ffn_dim) == (
        3,
        16,
        2,
        40,
    )
    assert model.spec.max_length == 32
    rows = batch(tmp_path)
    inputs = {"input_ids": rows.inputs["input_ids"], "attention_mask": rows.inputs["attention_mask"]}
    rows = replace(rows, inputs=inputs)
    told = model.outputs(rows, want=ALL)
    theirs = model.model(**inputs, output_hidden_states=True)
    assert torch.allclose(told.logits, theirs.logits, atol=1e-6)
    assert all(state.shape[-1] == model.spec.hidden_dim for state in told.hidden)
    for ours, state in zip(told.hidden, theirs.hidden_states, strict=True):
        assert torch.allclose(ours, state, atol=1e-6)
    model.save(tmp_path / "saved", LABELS)
    assert torch.equal(Encoder.load(tmp_path / "saved").eval().outputs(rows, want=SCORES).logits, told.logits)
    model.model.set_attn_implementation("eager")
    eager = model.model(**inputs, output_attentions=True)
    told = model.outputs(rows, want=Want(access=Access.ALL_STATES, attention=True))
    hidden_B11L = torch.where(rows.mask, 0.0, -torch.inf)[:, None, None, :]
    for ours, weights in zip(told.attention, eager.attentions, strict=True):
        scores = ours.query @ ours.key.transpose(-1, -2) / ours.query.shape[-1] ** 0.5 + hidden_B11L
        assert ours.value.shape == ours.query.shape
        assert torch.allclose(scores.softmax(-1), weights, atol=1e-6)


def test_a_model_that_computes_them_in_one_product_shows_no_queries_keys_and_values(tmp_path: Path) -> None:
    """It must be known before a teacher is trained: `bind` asks the spec."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    fused = ModernBertConfig(vocab_size=120, max_position_embeddings=32, **sizes, **ids)
    model = fresh(fused, LABELS).eval()
    assert not model.spec.attention and encoder().spec.attention
    assert len(model.outputs(batch(tmp_path), want=ALL).hidden) == 3
    with pytest.raises(ModelError, match="queries, keys and values"):
        model.outputs(batch(tmp_path), want=Want(access=Access.ALL_STATES, attention=True))
    with pytest.raises(ConfigError, match="the teacher shows no queries"):
        Minilm().bind(encoder().spec, {"teacher": model.spec})


def test_an_encoder_decoder_is_refused_in_words() -> None:
    with pytest.raises(ModelError, match="encoder-decoder"):
        spec_of(T5Config())


def test_a_fixed_teacher_answers_in_eval_mode_without_gradient(tmp_path: Path) -> None:
    model = encoder(dropout=0.5)
    teacher = FixedTeacher(model)
    model.train()
    first, second = (teacher.outputs(batch(tmp_path), want=ALL) for _ in range(2))
    assert torch.equal(first.logits, second.logits) and not first.logits.requires_grad


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    encoder().save(path, LABELS)
    tokenizer().save_pretrained(path)
    return path


def pretrained(folder: Path, labels: Labels = LABELS, *, finetune: bool = False) -> Encoder:
    made = Pretrained(path=str(folder), finetune=FinetuneSettings() if finetune else None)
    model = made.classifier(made.tokenizer([]), labels, 32, None)
    assert isinstance(model, Encoder)
    return model


def spoil(folder: Path, how: str) -> None:
    if how == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif how == "code":
        change_config(folder, auto_map={"AutoModel": "evil.Model"})
    elif how == "private":
        change_config(folder, _attn_implementation_internal="evil/kernels")
    elif how == "kernels":
        change_config(folder, attn_implementation="evil/kernels")
    elif how == "nested":
        change_config(folder, text_config={"deep": [{"experts_implementation": {"": "evil/kernels"}}]})
    elif how == "nan":
        change_weights(folder, **{"classifier.bias": torch.tensor([float("nan"), 0.0])})
    elif how == "missing":
        change_weights(folder, **{"bert.encoder.layer.1.output.dense.weight": None})
    elif how == "unexpected":
        change_weights(folder, **{"bert.extra": torch.zeros(2)})
    elif how == "headless":
        change_weights(folder, **{"classifier.weight": None, "classifier.bias": None})
    elif how == "cut":
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-20])
    elif how == "json":
        (folder / "config.json").write_text("{")
    elif how == "nothing":
        (folder / "config.json").unlink()
    elif how == "vocabulary":
        change_config(folder, vocab_size=50)
        change_weights(folder, **{"bert.embeddings.word_embeddings.weight": torch.zeros(50, 16)})


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ("pickle", 11, "pickled"),
        ("code", 11, "auto_map"),
        ("private", 11, "_attn_implementation_internal"),
        ("kernels", 11, "'attn_implementation'"),
        ("nested", 11, "experts_implementation"),
        ("nan", 6, "classifier.bias"),
        ("missing", 4, "layer.1.output.dense.weight"),
        ("unexpected", 4, "bert.extra"),
        ("headless", 4, "never trained"),
        ("cut", 4, "damaged"),
        ("json", 4, "not a JSON file"),
        ("nothing", 4, "no config.json"),
        ("vocabulary", 4, "50 rows"),
    ],
)
def test_a_folder_that_cannot_be_trusted_is_refused_in_words(
    folder: Path, how: str, code: int, words: str
) -> None:
    spoil(folder, how)
    with pytest.raises(DistillkitError) as caught:
        pretrained(folder)
    assert caught.value.exit_code == code and words in str(caught.value)


def test_an_attention_that_is_built_in_may_be_named(folder: Path) -> None:
    """Older versions of transformers wrote these keys into every config."""
    change_config(folder, _attn_implementation_autoset=True, attn_implementation="sdpa")
    assert pretrained(folder).spec.num_labels == 2


def test_labels_in_another_order_are_matched_by_name(folder: Path, tmp_path: Path) -> None:
    """Matched by position, every answer would be the opposite one, and nothing would say so."""
    turned = Labels(kind="classification", names=("good", "bad"))
    rows = batch(tmp_path / "cache")
    straight = pretrained(folder).eval().outputs(rows, want=SCORES).logits
    swapped = pretrained(folder, turned).eval().outputs(rows, want=SCORES).logits
    assert torch.allclose(swapped, straight.flip(-1), atol=1e-6)


@pytest.mark.parametrize(
    ("names", "words"), [(("yes", "no"), "not the task's"), (("a", "b", "c"), "2 labels, the task 3")]
)
def test_labels_that_differ_are_refused_with_both_lists(
    folder: Path, names: tuple[str, ...], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        pretrained(folder, Labels(kind="classification", names=names))


def test_fine_tuning_takes_the_body_and_a_fresh_head_of_the_tasks_size(folder: Path) -> None:
    labels = Labels(kind="classification", names=("a", "b", "c"))
    model = pretrained(folder, labels, finetune=True)
    assert model.spec.num_labels == 3
    original = Encoder.load(folder)
    body = original.model.base_model.state_dict()
    assert all(
        torch.equal(tensor, body[name]) for name, tensor in model.model.base_model.state_dict().items()
    )


def test_a_body_with_a_hole_is_not_filled_with_noise(folder: Path) -> None:
    change_weights(folder, **{"bert.encoder.layer.1.output.dense.weight": None})
    with pytest.raises(ModelError, match=r"layer\.1\.output\.dense\.weight"):
        load_body(folder, LABELS)


def test_a_folder_written_here_opens_in_transformers(folder: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(str(folder), local_files_only=True)
    assert model.config.label2id == {"bad": 0, "good": 1}
    assert AutoModel.from_pretrained(str(folder), local_files_only=True) is not None
    assert load_body(folder, LABELS).spec == Encoder.load(folder).spec


def student(teacher: Encoder, **settings: object) -> Encoder:
    source, fixed = Transformer(**settings), FixedTeacher(teacher)  # type: ignore[arg-type]
    model = source.build(tokenizer(), LABELS, 32, fixed)
    with TemporaryDirectory() as cache:
        source.start(model, Material(fixed, tokenizer(), encoded(Path(cache)), torch.device("cpu")))
    assert isinstance(model, Encoder)
    return model


def blocks(*layers: int) -> Initialise:
    return Initialise.model_validate({"from": "teacher", "layers": list(layers)})


def test_a_student_of_all_the_teachers_blocks_computes_what_the_teacher_computes(tmp_path: Path) -> None:
    teacher, rows = encoder(layers=3), batch(tmp_path)
    same = student(teacher, layers=3, initialise=blocks(1, 2, 3)).eval()
    assert torch.equal(
        same.outputs(rows, want=SCORES).logits, teacher.eval().outputs(rows, want=SCORES).logits
    )


def test_chosen_blocks_are_copied_and_not_shared() -> None:
    teacher = encoder(layers=4)
    made = student(teacher, layers=2, initialise=blocks(2, 4))
    for own, source in zip(made.blocks, (teacher.blocks[1], teacher.blocks[3]), strict=True):
        for mine, theirs in zip(own.parameters(), source.parameters(), strict=True):
            assert torch.equal(mine, theirs) and mine.data_ptr() != theirs.data_ptr() and mine.requires_grad


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layers": 2, "initialise": blocks(2, 5)}, "1 to 4"),
        ({"layers": 2, "initialise": blocks(3, 3)}, "strictly increasing"),
        ({"layers": 2, "initialise": blocks(4, 2)}, "strictly increasing"),
        ({"layers": 2, "initialise": blocks(1, 2, 3)}, "3 blocks for a student of 2"),
        ({"layers": 2, "width": 32, "initialise": blocks(1, 2)}, "cannot be grown"),
        ({"layers": 2, "heads": 4, "initialise": blocks(1, 2)}, "4 is more than the teacher's 2, which"),
        ({"layers": 2, "width": 8, "heads": 1, "ffn": 64, "initialise": blocks(1, 2)}, "64 is more"),
        ({"layers": 2, "embedding": 4, "initialise": blocks(1, 2)}, "does not start from"),
        ({"layers": 2, "vocabulary": 5}, "from 6 to"),
        ({"layers": 2, "width": 10, "heads": 4}, "do not divide"),
    ],
)
def test_students_that_cannot_be_built_are_refused_with_the_range(
    settings: dict[str, object], words: str
) -> None:
    with pytest.raises(DistillkitError, match=words) as caught:
        student(encoder(layers=4), **settings)
    assert caught.value.exit_code == 2


def test_a_student_of_another_width_is_fresh_and_takes_the_vocabulary() -> None:
    made = student(encoder(), layers=1, width=8, heads=2)
    assert (made.spec.hidden_dim, made.spec.ffn_dim, made.spec.vocab_size) == (8, 32, len(tokenizer()))
    assert config().vocab_size == 120


@pytest.mark.slow
def test_two_thousand_mutated_weight_files_are_refused_in_words_or_read(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole, generator = path.read_bytes(), np.random.default_rng(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(2000):
        changed = bytearray(whole)
        for place in generator.integers(0, header, size=int(generator.integers(1, 12))):
            changed[int(place)] = int(generator.integers(256))
        path.write_bytes(bytes(changed))
        try:
            stored_weights(folder)
        except DistillkitError as error:
            assert error.exit_code in (4, 6)
