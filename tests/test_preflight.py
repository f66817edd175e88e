"""Preflight: what it says of a run's models is true of them, and what a model would silently lose is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import LABELS, change_config, change_weights, config, encoder, tokenizer
from tinyrun import CONFIG, write_config, write_data
from torch.nn.functional import one_hot
from transformers import BertForMaskedLM, DistilBertConfig, RobertaConfig

from distillkit import Custom, Spec, catalog, pipeline, planning, preflight, recipe, stages
from distillkit.data.batching import Encoded, collate, encode
from distillkit.data.tasks import Rows, load_task
from distillkit.encoder import Encoder, fresh
from distillkit.errors import ErrorGroup, ModelError
from distillkit.losses.base import LossStack
from distillkit.losses.logits import Logits
from distillkit.model import FixedTeacher
from distillkit.preflight import Named, Prospect, build, findings, judged, sample
from distillkit.progress import Progress
from distillkit.rundir import RunDir
from distillkit.settings import Labels
from distillkit.signals import Signals
from distillkit.stages import reporting
from distillkit.students.pretrained import Pretrained
from distillkit.train import take_step
from distillkit.types import Batch
from distillkit.world import World

TEACHER = {"use": "pretrained", "path": "teacher", "allow_weak": True}
STUDENT = {"use": "pretrained", "path": "student"}
CPU = torch.device("cpu")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data and the folders of a teacher of 4 blocks and a narrower student of 2."""
    write_data(tmp_path)
    for name, model in (("teacher", encoder(layers=4)), ("student", encoder(1, layers=2, width=8))):
        model.save(tmp_path / name, LABELS)
        tokenizer().save_pretrained(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def loaded(folder: Path, **changes: Any) -> recipe.Loaded:
    path = write_config(folder, **{"teacher": TEACHER, "student": STUDENT, **changes})
    return recipe.load(path, [], components=catalog.components)


def losses(**terms: Any) -> dict[str, Any]:
    return {**CONFIG["distill"], "losses": terms}


def said(plan: planning.Plan, severity: str) -> str:
    return "\n".join(f"{one.place}: {one.sentence}" for one in plan.findings if one.severity == severity)


def pairs(folder: Path) -> dict[str, Any]:
    """The task's texts as pairs."""
    for split in ("train", "validation"):
        path = folder / f"{split}.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("\n".join(json.dumps({**line, "other": line["text"][::-1]}) for line in lines))
    return {"task": {**CONFIG["task"], "text": ["text", "other"]}}


def pair_batch(cache: Path) -> Batch:
    texts = tuple((f"ba da {index}", "ka la") for index in range(4))
    rows = Rows(np.arange(4), texts, np.zeros(4, dtype=np.int64), "pairs")
    return collate(encode(rows, tokenizer(), max_length=24, cache=cache), np.arange(4))


def test_the_layer_map_is_what_the_losses_compare(here: Path) -> None:
    """State l meets state l * 4 / 2 (TinyBERT), blocks alike; the site is in the middle of each."""
    terms = {
        "states": {"use": "hidden_mse", "layer_map": "tinybert", "projection": "shared"},
        "attention": {"use": "attention_scores"},
        "swapped": {"use": "causal_kl"},
        "gold": {"use": "gold"},
    }
    plan = planning.plan(loaded(here, distill=losses(**terms)))
    shown = [(line.loss, line.student, line.teacher, line.how) for line in plan.layer_map]
    through = "one linear map for all"
    expected = [("states", "embeddings, 8 wide", "embeddings, 16 wide", through)]
    expected += [
        ("states", f"state {low} of 2, 8 wide", f"state {low * 2} of 4, 16 wide", through) for low in (1, 2)
    ]
    expected += [
        ("attention", f"block {low} of 2, 2 heads", f"block {low * 2} of 4, 2 heads", "") for low in (1, 2)
    ]
    expected += [("swapped", "answers", "answers", ""), ("gold", "answers", "labels", "")]
    expected += [("interchange", "swap after block 1", "swap after block 2", "")]
    assert sorted(shown) == sorted(expected)
    assert "it gives INTERVENTIONS; the losses ask for INTERVENTIONS at most" in said(plan, "fact")


@pytest.mark.parametrize("term", ["hidden_cosine", "pkd", "minilm", "minilm_v2", "causal_cosine"])
def test_every_term_inside_the_models_says_where_it_compares(term: str, here: Path) -> None:
    plan = planning.plan(loaded(here, distill=losses(it={"use": term})))
    lines = [line for line in plan.layer_map if line.loss == "it"]
    assert lines and all(" of 2, " in line.student and " of 4, " in line.teacher for line in lines)


def test_a_student_starts_from_a_folders_body_whatever_its_head_was(here: Path) -> None:
    torch.manual_seed(3)
    BertForMaskedLM(config(layers=1)).save_pretrained(here / "student")
    run = pipeline.run(
        loaded(here, distill={**CONFIG["distill"], "epochs": 1}), until="student", progress="quiet"
    )
    source = Pretrained(path=str(here / "student"))
    torch.manual_seed(0)
    model = source.build(tokenizer(), LABELS, 24, FixedTeacher(encoder()))
    assert isinstance(model, Encoder)
    stored, made = load_file(str(here / "student" / "model.safetensors")), model.model.state_dict()
    body = [name for name in stored if name.startswith("bert.")]
    assert body and all(torch.equal(made[name], stored[name]) for name in body)
    saved = source.load(run.path / "student")
    assert saved.spec.num_labels == 2 and saved.spec.num_layers == 1


def test_other_weights_in_the_students_folder_train_the_student_again_and_nothing_before(here: Path) -> None:
    def digests() -> dict[str, str]:
        config = loaded(here)
        with RunDir.open(pipeline.run_path(config)).lock(), Signals() as signals:
            progress = Progress.make("quiet", True)
            run = RunDir.open(pipeline.run_path(config))
            place = pipeline.Place(run, World(0, 1), signals, progress)
            job = pipeline.prepare(config, pipeline.Parts(), place)
        return dict(job.digests)

    before = digests()
    change_weights(here / "student", **{"classifier.bias": torch.ones(2)})
    after = digests()
    assert [name for name in before if before[name] != after[name]] == [
        "student",
        "export",
        "bench",
        "report",
    ]


def test_a_student_that_knows_more_tokens_and_padded_tables_are_fine_and_said(here: Path) -> None:
    more = tokenizer()
    more.add_tokens(["extra"])
    more.save_pretrained(here / "student")
    for name, width in (("student", 8), ("teacher", 16)):
        change_config(here / name, vocab_size=128)
        rows = {"bert.embeddings.word_embeddings.weight": torch.zeros(128, width)}
        change_weights(here / name, **rows)
    facts = said(planning.plan(loaded(here)), "fact")
    assert "student: its tokenizer knows 121 tokens, the teacher's 120 agree id by id" in facts
    assert "teacher: its embeddings have 128 rows for the 120 tokens" in facts


def test_a_student_whose_own_tokenizer_reads_text_otherwise_is_warned_of(here: Path) -> None:
    """The same vocabulary, but trained on text that was not lowercased: no id tells."""
    path = here / "student" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["normalizer"]["lowercase"] = False
    path.write_text(json.dumps(content))
    values = here / "student" / "tokenizer_config.json"
    values.write_text(json.dumps(json.loads(values.read_text()) | {"do_lower_case": False}))
    lines = [json.loads(line) for line in (here / "train.jsonl").read_text().splitlines()]
    for line in lines[:50]:
        line["text"] = line["text"].title()
    (here / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert "50 of 160 texts are other token ids" in said(planning.plan(loaded(here)), "warning")


def test_labels_are_matched_by_name_and_the_permutation_is_shown(here: Path) -> None:
    change_config(here / "teacher", id2label={"0": "good", "1": "bad"}, label2id={"good": 0, "bad": 1})
    facts = said(planning.plan(loaded(here)), "fact")
    assert "put into the task's order by name: its 1 is 0 (bad), its 0 is 1 (good)" in facts


def distilbert() -> Encoder:
    made = DistilBertConfig(
        vocab_size=120, dim=8, n_layers=1, n_heads=2, hidden_dim=16, max_position_embeddings=32
    )
    return fresh(made, LABELS)


def roberta() -> Encoder:
    """Its forward takes token_type_ids, but a 1 is outside its table."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    made = RobertaConfig(
        vocab_size=120, max_position_embeddings=34, type_vocab_size=1, pad_token_id=0, **sizes
    )
    return fresh(made, LABELS)


@pytest.mark.parametrize("make", [distilbert, roberta])
def test_a_student_without_segments_is_warned_of_and_its_teacher_still_gets_them(
    make: Any, here: Path
) -> None:
    """Otherwise the teacher reads both texts as one and teaches what it would never say."""
    student, teacher, batch = make(), encoder(), pair_batch(here)
    student.save(here / "student", LABELS)
    plan = planning.plan(loaded(here, **pairs(here), distill=losses(kd={"use": "logits"})))
    assert "student: it does not read which of the two texts" in said(plan, "warning")
    assert int(batch.inputs["token_type_ids"].max()) == 1
    with torch.no_grad():
        for weight in teacher.model.parameters():
            weight.mul_(5)  # fresh weights are too small for anything to matter
        whole = teacher.model(**batch.inputs).logits
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        blind = teacher.model(input_ids=ids, attention_mask=mask).logits
    step = take_step(student, LossStack({"kd": (1.0, Logits())}), {"teacher": FixedTeacher(teacher)}, batch)
    torch.testing.assert_close(step.teachers["teacher"].logits, whole)
    assert not torch.allclose(whole, blind, atol=1e-4)


def test_a_tokenizer_that_gives_no_segments_is_warned_of_on_pairs_alone(here: Path) -> None:
    path = here / "teacher" / "tokenizer_config.json"
    names = {"model_input_names": ["input_ids", "attention_mask"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | names))
    assert "token_type_ids" not in said(planning.plan(loaded(here)), "warning")
    assert "teacher: it tells the two texts" in said(planning.plan(loaded(here, **pairs(here))), "warning")


def test_a_training_larger_than_the_memory_is_warned_of(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planning.plan(loaded(here))
    assert "memory" not in said(plan, "warning")
    (stage,) = plan.stages
    monkeypatch.setattr(planning, "free_memory", lambda device: 1000)
    assert "student: it needs about" in said(planning.plan(loaded(here)), "warning")
    weights = 16 * plan.student.parameters + 4 * plan.teacher.parameters  # type: ignore[union-attr]
    assert stage.memory > weights


def knows(batch: Batch) -> dict[str, torch.Tensor]:
    assert batch.texts is not None and batch.labels is None, "a model that is measured sees no labels"
    return {"logits": one_hot(torch.tensor(["good" in text for (text,) in batch.texts]).long(), 2).float()}


def constant(batch: Batch) -> dict[str, torch.Tensor]:
    return {"logits": torch.tensor([[1.0, 0.0]]).repeat(batch.num_examples, 1)}


def prospect(folder: Path, answer: Any, *, allow_weak: bool = False) -> tuple[Prospect, Encoded, Encoded]:
    found = loaded(
        folder, teacher={**TEACHER, "allow_weak": allow_weak}, distill=losses(kd={"use": "logits"})
    )
    task = load_task(found.config.task, base=folder, seed=0)
    sizes = {"num_layers": 0, "hidden_dim": 0, "num_heads": 0, "ffn_dim": 0, "vocab_size": 0}
    source = Custom(answer, spec=Spec(**sizes, num_labels=2, max_length=128), version="1")
    stacks = (LossStack({"kd": (1.0, Logits())}),)
    named = Named(found.config, task, source, Pretrained(path=str(folder / "student")), stacks)
    return build(named, tokenizer(), folder), *(
        encode(rows, tokenizer(), max_length=24, cache=folder / "cache")
        for rows in (task.train, task.validation)
    )


def test_a_teacher_that_comes_trained_is_judged_and_a_weak_one_refused_by_its_rows(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, train, every = prospect(here, knows)
    finding = judged(made, train, every, CPU)
    assert finding.severity == "fact" and "accuracy 1.0000 against 0.5000" in finding.sentence
    made, train, every = prospect(here, constant)
    with pytest.raises(ModelError, match="no better than a constant answer"):
        judged(made, train, every, CPU)
    task = made.named.task
    monkeypatch.setattr(preflight, "JUDGED_ROWS", 30)
    some = encode(
        sample(task.validation, preflight.JUDGED_ROWS), tokenizer(), max_length=24, cache=here / "cache"
    )
    assert len(some) == 30 and judged(made, train, some, CPU).severity == "warning"
    assert judged(prospect(here, constant, allow_weak=True)[0], train, every, CPU).severity == "warning"


def test_objects_from_python_that_do_not_fit_are_refused_with_all_that_is_wrong(here: Path) -> None:
    made, *_ = prospect(here, knows)
    few = FixedTeacher(fresh(config(vocab=100), LABELS))
    student = encoder(labels=Labels(kind="classification", names=("a", "b", "c")))
    student.spec = replace(student.spec, max_length=20)
    with pytest.raises(ErrorGroup) as caught:
        findings(replace(made, teacher=few, student=student))
    told = str(caught.value)
    assert "max_length 24 is more than the student's 20 positions" in told
    assert "120 entries, the teacher's embeddings 100 rows" in told
    assert "the student gives 3 scores, the teacher 2" in told
    assert caught.value.exit_code == 2


def test_a_teacher_that_is_trained_here_is_judged_later(here: Path) -> None:
    facts = said(planning.plan(loaded(here, teacher=CONFIG["teacher"], student=CONFIG["student"])), "fact")
    assert "teacher: it is judged against the majority class when it is trained" in facts


def test_a_run_says_its_warnings_and_keeps_them_for_the_report(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    distilbert().save(here / "student", LABELS)
    config = loaded(here, **pairs(here), distill=losses(kd={"use": "logits"}))
    run = pipeline.run(config, until="tokenizer", progress="plain")
    with Signals() as signals:
        world, progress = World(0, 1), Progress.make("plain", True)
        job = pipeline.prepare(config, pipeline.Parts(), pipeline.Place(run, world, signals, progress))
        stages.check(job)
        assert "warning: student: it does not read which" in capsys.readouterr().err
        (kept,) = reporting.warnings_of(job)
    assert kept.startswith("student: it does not read which of the two texts")
