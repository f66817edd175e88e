"""T5 and BART as teachers: published sizes, folders that `transformers` opens, what is refused, a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tinytexts
import torch
from denoisers import SHAPE, model_of, source, tokenizer_of
from tinyrun import CONFIG, write_config, write_data
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartForConditionalGeneration,
    PreTrainedModel,
)

from distillkit import pipeline
from distillkit.encoder_decoder import EncoderDecoder
from distillkit.errors import ConfigError
from distillkit.objectives.noise import Vocabulary
from distillkit.settings import Labels, PretrainSettings
from distillkit.teachers.bart import Bart
from distillkit.teachers.t5 import T5

WRITING = Labels(kind="text_to_text")


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("size", "version", "published"),
    [
        ("small", "v1.0", 60_506_624),
        ("base", "v1.0", 222_903_552),
        ("small", "v1.1", 76_961_152),
        ("base", "v1.1", 247_577_856),
    ],
)
def test_t5s_sizes_have_the_published_numbers_of_parameters(size: Any, version: Any, published: int) -> None:
    """32,000 entries and 100 sentinels, in 32,128 rows."""
    with torch.device("meta"):
        assert parameters(T5(size=size, version=version).model(32_100)) == published


@pytest.mark.parametrize(("size", "published"), [("base", 139_420_416), ("large", 406_291_456)])
def test_barts_sizes_have_the_published_numbers_of_parameters(size: Any, published: int) -> None:
    known = Vocabulary.of_bart(tokenizer_of("bart"))
    with torch.device("meta"):
        assert parameters(BartForConditionalGeneration(Bart(size=size).config(50_265, known))) == published


@pytest.mark.parametrize("size", ["tiny", "mini"])
def test_the_smaller_sizes_have_the_blocks_of_the_smaller_berts(size: Any) -> None:
    from distillkit.teachers.bert import SIZES

    layers, width, heads = SIZES[size]
    for version in ("v1.0", "v1.1"):
        made = T5(size=size, version=version).config(1000)  # type: ignore[arg-type]
        assert (made.num_layers, made.num_decoder_layers, made.d_model, made.num_heads) == (
            layers,
            layers,
            width,
            heads,
        )
        assert made.d_kv == 64 and made.vocab_size == 1024
    assert Bart(size=size).shape == (layers, width, heads)


@pytest.mark.parametrize(
    ("name", "settings"), [("t5", {}), ("t5", {"version": "v1.1", "decoder_layers": 1}), ("bart", {})]
)
def test_a_saved_folder_opens_in_transformers_and_answers_the_same(
    tmp_path: Path, name: str, settings: dict[str, Any]
) -> None:
    model = model_of(name, **settings)
    assert isinstance(model, PreTrainedModel)
    model.save_pretrained(tmp_path)
    tokenizer_of(name).save_pretrained(tmp_path)
    opened = AutoModelForSeq2SeqLM.from_pretrained(str(tmp_path), local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
    assert type(opened) is type(model) and len(tokenizer) == len(tokenizer_of(name))
    ids = tokenizer("ba de fi go ku", return_tensors="pt").input_ids
    ours, theirs = (one.eval()(input_ids=ids, decoder_input_ids=ids).logits for one in (model, opened))
    assert torch.equal(ours, theirs)
    untied = settings.get("version") == "v1.1"
    assert (opened.get_output_embeddings().weight is opened.get_input_embeddings().weight) != untied
    if untied:
        shared = opened.get_input_embeddings().weight
        assert opened.encoder.embed_tokens.weight is shared and opened.decoder.embed_tokens.weight is shared
    start = {"t5": 0, "bart": 2}[name]
    assert opened.config.decoder_start_token_id == start
    written = opened.generate(ids, max_new_tokens=3, do_sample=False)
    assert written[0, 0] == start


def test_version_1_1_gates_and_does_not_scale_its_output() -> None:
    plain, gated = T5(**SHAPE).config(100), T5(version="v1.1", **SHAPE).config(100)
    assert (plain.is_gated_act, plain.dense_act_fn, plain.scale_decoder_outputs) == (False, "relu", True)
    assert (gated.is_gated_act, gated.dense_act_fn, gated.scale_decoder_outputs) == (True, "gelu_new", False)
    assert T5(size="small", version="v1.1").config(100).dropout_rate == 0.0
    model = T5(layers=1, width=256, heads=4, version="v1.1").model(2000)
    assert float(model.lm_head.weight.detach().std()) == pytest.approx(256**-0.5, rel=0.02)


@pytest.mark.parametrize(("name", "more"), [("t5", {}), ("t5", {"version": "v1.1"}), ("bart", {})])
def test_what_was_pretrained_writes_texts_with_the_same_weights(
    tmp_path: Path, name: str, more: dict[str, Any]
) -> None:
    """Also where the output layer is no table of tokens: it is not tied again, and not fresh."""
    made, labels = source(name, pretrain=PretrainSettings(corpus="c", max_length=32), **more), WRITING
    tokenizer = tokenizer_of(name)
    torch.manual_seed(1)
    model, _ = made.pretraining(tokenizer)
    model.save_pretrained(tmp_path / "pretrain")
    started = made.classifier(tokenizer, labels, 32, tmp_path / "pretrain")
    assert isinstance(started, EncoderDecoder)
    wanted = model.state_dict()
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in started.model.state_dict().items())
    started.save(tmp_path / "teacher", labels)
    again = made.load(tmp_path / "teacher")
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in again.model.state_dict().items())
    assert made.masked_model(tmp_path) is None and "text_to_text" in made.kinds
    fresh = made.classifier(tokenizer, labels, 32, None)
    assert fresh.spec == started.spec
    with pytest.raises(ConfigError, match="positions"):
        made.classifier(tokenizer, labels, 2000, None)


@pytest.mark.parametrize("architecture", ["causal_lm", "prefix_lm"])
def test_one_stack_is_not_fine_tuned(architecture: str) -> None:
    made = source("t5", architecture=architecture)
    with pytest.raises(ConfigError, match="comparisons of pretraining"):
        made.classifier(tokenizer_of("t5"), WRITING, 32, None)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_sequences_longer_than_the_positions_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="64 is more than the 40 positions"):
        source(name, pretrain=PretrainSettings(corpus="c", max_length=64))


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("t5", {"vocab_size": 120, "sentinels": 10, "pretrain": {"optimizer": {"use": "adafactor"}}}),
        pytest.param("bart", {"vocab_size": 320, "rotate": 0.2, "pretrain": {}}, marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_from_pretraining_to_texts(tmp_path: Path, name: str, more: dict[str, Any]) -> None:
    """The folder of the pretraining opens in `transformers`, and the teacher of the task starts from it."""
    write_data(tmp_path)
    tinytexts.write_rows(tmp_path, 60)
    pretrain = {**CONFIG["teacher"]["pretrain"], **more["pretrain"]}
    shape = {"layers": 1, "width": 16, "heads": 2, "positions": 32}
    finetune = {"epochs": 1, "batch": {"tokens": 600, "examples": 32}}
    config = write_config(
        tmp_path,
        task={
            **CONFIG["task"],
            "kind": "text_to_text",
            "text": "source",
            "label": "target",
            "max_length": 16,
        },
        teacher={
            "use": name,
            **shape,
            **more,
            "pretrain": pretrain,
            "finetune": finetune,
            "allow_weak": True,
        },
        student={"use": "seq2seq", "initialise": {"from": "teacher"}},
        distill={**CONFIG["distill"], "losses": {"gold": {"use": "gold"}, "kd": {"use": "logits"}}},
        output=str(tmp_path / "runs"),
    )
    run = pipeline.run(config, until="export", progress="quiet")
    folder = run.path / "pretrain"
    model = AutoModelForSeq2SeqLM.from_pretrained(str(folder), local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    hole = {"t5": "<extra_id_0>", "bart": "<mask>"}[name]
    written = model.generate(**tokenizer(f"Ba de {hole} go.", return_tensors="pt"), max_new_tokens=5)
    assert isinstance(tokenizer.decode(written[0]), str)
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    (last,) = [row for row in rows if row["stage"] == "pretrain" and row["step"] == 4]
    assert set(last["figures"]) == {"token_accuracy", "removed", "marks", "input_length", "target_length"}
    assert last["flops"] > 0
    assert {"teacher", "student"} <= {row["stage"] for row in rows}
    assert json.loads((run.path / "export" / "parity.json").read_text())["same_predictions"] == 1.0


@pytest.mark.slow
def test_a_bart_is_pretrained_and_teaches_classes_to_an_encoder_and_to_a_bart(tmp_path: Path) -> None:
    write_data(tmp_path)
    bart = {"use": "bart", "layers": 1, "width": 16, "heads": 2, "positions": 32, "vocab_size": 320}
    finetune = {"epochs": 2, "batch": {"tokens": 600, "examples": 32}}
    teacher = {**bart, "pretrain": CONFIG["teacher"]["pretrain"], "finetune": finetune, "allow_weak": True}
    losses = {"kd": {"use": "logits"}, "states": {"use": "hidden_mse", "layer_map": "last"}}
    sections = {
        "task": {**CONFIG["task"], "max_length": 16},
        "distill": {**CONFIG["distill"], "losses": losses},
        "output": str(tmp_path / "runs"),
    }
    first = write_config(
        tmp_path, teacher=teacher, student={"use": "transformer", "layers": 1, "width": 8}, **sections
    )
    run = pipeline.run(first, until="export", progress="quiet")
    start = str(run.path / "pretrain")
    second = write_config(
        tmp_path,
        name="again",
        teacher={"use": "pretrained", "path": str(run.path / "teacher"), "allow_weak": True},
        student={"use": "pretrained", "path": start},
        **sections,
    )
    again = pipeline.run(second, until="report", progress="quiet")
    for folder in (run.path, again.path):
        assert json.loads((folder / "export" / "parity.json").read_text())["same_predictions"] == 1.0
    cut = write_config(
        tmp_path,
        name="cut",
        teacher={"use": "pretrained", "path": str(run.path / "teacher"), "allow_weak": True},
        student={"use": "transformer", "layers": 1, "initialise": {"from": "teacher"}},
        **sections,
    )
    with pytest.raises(ConfigError, match="two stacks"):
        pipeline.run(cut, until="student", progress="quiet")
