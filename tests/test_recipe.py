"""Reading a recipe: values, places, overrides, origins, the saved form; and that nothing ends in a
traceback.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from distillkit import catalog, document, recipe
from distillkit.errors import ConfigError, DistillkitError, ErrorGroup

GOOD: dict[str, Any] = {
    "name": "good",
    "seed": 13,
    "task": {"kind": "classification", "train": "train.csv", "text": ["a", "b"], "max_length": 64},
    "teacher": {
        "use": "bert",
        "size": "tiny",
        "pretrain": {"corpus": "corpus.txt", "steps": 10, "optimizer": {"lr": 1e-4}},
        "finetune": {"epochs": 1, "keep": "last"},
    },
    "student": {"use": "transformer", "layers": 2, "initialise": {"from": "teacher", "layers": [1, 2]}},
    "distill": {
        "epochs": 2,
        "losses": {
            "gold": {"use": "gold", "weight": 0.3},
            "kd": {"use": "logits", "weight": 0.7, "temperature": 4},
            "states": {"use": "hidden_cosine", "layer_map": [[1, 1], [2, 2]], "projection": "linear"},
        },
    },
    "bench": {"batch": [1, 8], "length": [16]},
    "export": {"opset": 18},
    "runtime": {"device": "cpu"},
}


PRINTABLE = st.characters(
    codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="\u2028\u2029\ufeff\ufffe\uffff"
)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(PRINTABLE),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=4)
    ),
    max_leaves=12,
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.just("gold"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


def load(text: str, *overrides: str, folder: Path) -> recipe.Loaded:
    path = folder / "config.yaml"
    path.write_text(text)
    return recipe.load(path, overrides, components=catalog.components)


def plain(text: str) -> Any:
    return document.parse(text, "config.yaml").value


def test_scalars_follow_yaml_1_2() -> None:
    """PyYAML reads 1e-5 as text, yes as a boolean, 012 as 10 and 12:30 as 750: labels and rates would
    change."""
    text = "[1e-5, yes, no, off, 012, 12:30, 0o14, 0xC, 2020-01-01, 1_000, ~, .inf, -1.5, '7', true]"
    expected = [
        1e-5,
        "yes",
        "no",
        "off",
        12,
        "12:30",
        12,
        12,
        "2020-01-01",
        "1_000",
        None,
        float("inf"),
        -1.5,
    ]
    assert plain(text) == [*expected, "7", True]


@given(JSON)
@settings(max_examples=100, deadline=None)
def test_json_is_read_as_json_reads_it(value: Any) -> None:
    assert plain(json.dumps([value], ensure_ascii=False)) == [value]


@pytest.mark.parametrize(
    "text", ["a: 1\nb: {c: [x, 2]}\n", "- 1\n- {a: b}\n", "a: &x [1, 2]\nb: *x\n", '"q": |\n  l\n']
)
def test_documents_are_read_as_ruamel_reads_them(text: str) -> None:
    assert plain(text) == YAML(typ="safe", pure=True).load(text)


def test_a_leading_zero_is_noted(tmp_path: Path) -> None:
    loaded = load(json.dumps(GOOD).replace("13", "013"), folder=tmp_path)
    assert loaded.config.seed == 13
    assert len(loaded.notes) == 1 and "013" in loaded.notes[0]


def test_a_variable_is_read_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_DATA", "here")
    monkeypatch.setenv("MY_SEED", "7")
    text = json.dumps(GOOD).replace('"train.csv"', '"${MY_DATA}/train.csv"').replace("13,", "'${MY_SEED}',")
    with pytest.raises(ConfigError, match="seed: '7' must be a whole number"):
        load(text, folder=tmp_path)
    text = "\n".join(f"{key}: {json.dumps(value)}" for key, value in GOOD.items()).replace("13", "${MY_SEED}")
    text = text.replace("train.csv", "${MY_DATA}/train.csv")
    loaded = load(text, folder=tmp_path)
    assert loaded.config.task.train == "here/train.csv"
    assert loaded.config.seed == 7
    assert loaded.origins["task.train"].endswith(" $MY_DATA")


def test_an_override_wins_and_is_typed(tmp_path: Path) -> None:
    overrides = (
        "student.layers=1",
        "student.initialise=null",
        "distill.optimizer.lr=3e-5",
        "bench.batch=[2, 4]",
    )
    loaded = load(json.dumps(GOOD), *overrides, "--seed=5", "distill.losses.kd.weight=0.5", folder=tmp_path)
    config = loaded.config
    assert config.seed == 5 and config.bench.batch == [2, 4]
    assert config.student.model_dump()["layers"] == 1
    assert config.phases[0].optimizer.lr == 3e-5
    assert config.phases[0].losses["kd"].weight == 0.5
    assert loaded.origins["bench.batch"] == "command line (bench.batch)"


@pytest.mark.parametrize("path", ["distill.1.epochs", "distill[1].epochs"])
def test_an_override_reaches_into_a_list(path: str, tmp_path: Path) -> None:
    phase = {"losses": {"gold": {"use": "gold"}}}
    loaded = load(json.dumps({**GOOD, "distill": [phase, phase]}), f"{path}=9", folder=tmp_path)
    assert [one.epochs for one in loaded.config.phases] == [3, 9]


def test_an_override_of_a_whole_section_replaces_it(tmp_path: Path) -> None:
    loaded = load(json.dumps(GOOD), "teacher={use: pretrained, path: here}", folder=tmp_path)
    assert loaded.config.teacher.use == "pretrained"
    assert loaded.origins["teacher.path"] == "command line (teacher)"
    assert "teacher.size" not in loaded.origins


def test_the_origin_of_every_value_is_known(tmp_path: Path) -> None:
    text = f"name: x\ntask:\n  kind: classification\n  train: t.csv\n{json.dumps(GOOD)[1:-1]}"
    text = "\n".join(
        ["name: x", *(f"{key}: {json.dumps(value)}" for key, value in GOOD.items() if key != "name")]
    )
    origins = load(text, "seed=1", folder=tmp_path).origins
    assert origins["name"] == f"{tmp_path / 'config.yaml'}:1:7"
    assert origins["seed"] == "command line (seed)"
    assert "task" not in origins and "task.label" not in origins


def test_the_saved_form_loads_to_the_same_config(tmp_path: Path) -> None:
    loaded = load(json.dumps(GOOD), "name=other", folder=tmp_path)
    saved = tmp_path / "run" / "config.yaml"
    saved.parent.mkdir()
    saved.write_text(recipe.dump(loaded))
    again = recipe.load(saved, components=catalog.components)
    assert again.config.model_dump() == loaded.config.model_dump()
    assert again.base == loaded.base == tmp_path


@given(st.text(max_size=20), st.lists(st.text(max_size=8), min_size=2, max_size=2, unique=True))
@example("-", ["---", "0"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_survives_being_saved(tmp_path: Path, label: str, columns: list[str]) -> None:
    """Control characters, quotes, emoji, line separators: the saved config must be the config that ran."""
    try:
        values = {**GOOD, "task": {**GOOD["task"], "label": label, "text": columns}}
        config = catalog.components().model_validate(values)
    except ValueError:
        return
    saved = tmp_path / "config.yaml"
    try:
        saved.write_text(recipe.dump(recipe.Loaded(config, {}, tmp_path)), encoding="utf-8", newline="")
        again = recipe.load(saved, components=catalog.components)
    except (UnicodeEncodeError, ConfigError):
        assert (
            label == columns[0]
            or label in columns
            or any(document.is_secret(one) for one in (label, *columns))
        )
        return
    assert (again.config.task.label, list(again.config.task.text)) == (label, columns)


def test_the_saved_form_says_where_each_value_came_from(tmp_path: Path) -> None:
    lines = recipe.dump(load(json.dumps(GOOD), "seed=1", folder=tmp_path)).splitlines()
    assert lines[0] == f"{recipe.HEADER}{tmp_path}"
    assert "seed: 1  # command line (seed)" in lines
    assert "  label: label  # default" in lines
    assert all("#" in line or line.endswith(":") for line in lines)


def test_paths_are_relative_to_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path)
    Path("deep/config.yaml").write_text(json.dumps(GOOD))
    assert recipe.load(Path("deep/config.yaml"), components=catalog.components).base == tmp_path / "deep"


def test_errors_stand_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = 'name: "?"\nseed: -1\nzzz: 1\ntask: {kind: 3, train: 4}\n'
    with pytest.raises(ErrorGroup) as caught:
        load(text, folder=tmp_path)
    lines = [int(error.where.split(":")[-2]) for error in caught.value.errors]
    assert lines == sorted(lines) and len(lines) >= 5


TYPOS = [
    line.split()
    for line in """
    seed sede
    name nmae
    task.train trian
    task.max_length maxlength
    task.max_length max-length
    task.max_length max_len
    task.text texts
    task.kind knd
    teacher.size sise
    teacher.finetune fine_tune
    teacher.pretrain pretraining
    teacher.pretrain.corpus corpse
    teacher.pretrain.steps step
    teacher.pretrain.optimizer optimiser
    student.layers layer
    student.initialise initialize
    distill distil
    distill.epochs epoch
    distill.losses loss
    distill.losses.kd.temperature temprature
    distill.losses.kd.weight wieght
    distill.losses.states.layer_map layermap
    distill.losses.states.projection project
    bench.batch batches
    bench.length lenght
    export.opset op_set
    runtime.device devise
    runtime run_time
    teacher.finetune.keep keeps
    export exports
    """.strip().splitlines()
]
"""(path of a key, how it was written instead)."""


def renamed(config: dict[str, Any], path: str, name: str) -> dict[str, Any]:
    config = copy.deepcopy(config)
    *sections, key = path.split(".")
    inner = config
    for section in sections:
        inner = inner[section]
    inner[name] = inner.pop(key)
    return config


def test_what_was_meant_is_guessed(tmp_path: Path) -> None:
    right = []
    for path, typo in TYPOS:
        with pytest.raises(DistillkitError) as caught:
            load(json.dumps(renamed(GOOD, path, typo)), folder=tmp_path)
        if f"did you mean {path.split('.')[-1]!r}" in str(caught.value):
            right.append(typo)
    assert len(TYPOS) == 30 and len(right) >= 29, [typo for _, typo in TYPOS if typo not in right]


@pytest.mark.parametrize(
    ("path", "value", "meant"),
    [
        ("task.kind", "clasification", "classification"),
        ("task.metric", "acuracy", "accuracy"),
        ("teacher.use", "brt", "bert"),
        ("teacher.size", "tinny", "tiny"),
        ("student.use", "transformr", "transformer"),
        ("distill.losses.kd.use", "logit", "logits"),
        ("distill.losses.states.use", "hidden-cosine", "hidden_cosine"),
        ("runtime.precision", "bfloat16", "bf16"),
        ("runtime.device", "gpu", "cuda"),
    ],
)
def test_what_value_was_meant_is_guessed(path: str, value: str, meant: str, tmp_path: Path) -> None:
    with pytest.raises(DistillkitError) as caught:
        load(json.dumps(GOOD), f"{path}={value}", folder=tmp_path)
    assert meant in str(caught.value)


def mutated(data: st.DataObject) -> Any:
    """The good config with one to three keys deleted, renamed or given a value of another type."""
    config = copy.deepcopy(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        holder: Any = config
        while True:
            if not holder:
                break
            key = data.draw(
                st.sampled_from(list(holder) if isinstance(holder, dict) else list(range(len(holder))))
            )
            if isinstance(holder[key], dict | list) and data.draw(st.booleans()):
                holder = holder[key]
                continue
            action = data.draw(st.sampled_from(["delete", "rename", "retype"]))
            if action == "delete":
                del holder[key]
            elif action == "rename" and isinstance(holder, dict):
                holder[data.draw(st.text(max_size=12))] = holder.pop(key)
            else:
                holder[key] = data.draw(ANYTHING)
            break
    return config


def never_a_traceback(data: st.DataObject, folder: Path) -> None:
    text = json.dumps(mutated(data)).replace("Infinity", ".inf").replace("NaN", ".nan")
    try:
        load(text, folder=folder)
    except DistillkitError as error:
        assert error.exit_code in (2, 11)
        assert str(error)


@given(st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mutated_config_is_good_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    never_a_traceback(data, tmp_path)


@pytest.mark.slow
@given(st.data())
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_many_mutated_configs_are_good_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    never_a_traceback(data, tmp_path)


@pytest.mark.parametrize(
    "value", ["hf_" + "a" * 30, "AKIA" + "A" * 16, "sk-" + "b" * 24, "https://me:pw@host/x"]
)
def test_a_secret_is_refused_and_not_repeated(value: str, tmp_path: Path) -> None:
    with pytest.raises(DistillkitError) as caught:
        load(json.dumps({**GOOD, "name": value}), folder=tmp_path)
    assert "secret" in str(caught.value) and value not in str(caught.value)


@pytest.mark.parametrize(
    "word", ["num_tokens", "tokenizer", "cls_token_id", "tokens", "keyboard", "passwordless"]
)
def test_a_word_of_the_trade_is_no_secret(word: str) -> None:
    assert not document.SECRET_NAME.search(word)
