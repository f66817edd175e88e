"""Several tasks as one: classes that an example cannot have count nowhere, tasks are drawn and judged fairly,
and a student of one teacher a task goes all the way to the report.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, f1_score
from tiny import WORDS, encoder, random_step, tokenizer
from tinyrun import CONFIG, write_config, write_data
from torch import Tensor

from distillkit import catalog, evaluate, pipeline, planning, recipe
from distillkit.data.batching import TaskFeed, collate, drawn, drawn_rows, encode
from distillkit.data.layouts import Segments
from distillkit.data.several import load_tasks
from distillkit.data.tasks import Rows, Task, TaskOfRows
from distillkit.errors import ConfigError, DataError, DistillkitError, ErrorGroup, ModelError
from distillkit.judging import TasksJudge, task_seed
from distillkit.losses.base import Loss
from distillkit.losses.decoupled_kd import DecoupledKd
from distillkit.losses.gold import Gold
from distillkit.losses.hard_labels import HardLabels
from distillkit.losses.jensen_shannon import JensenShannon
from distillkit.losses.logit_mse import LogitMse
from distillkit.losses.logits import Logits
from distillkit.losses.reverse_kl import ReverseKl
from distillkit.model import FixedTeacher, Teacher
from distillkit.settings import ENCODER_KINDS, BatchSettings, Labels, SeveralTasks, TaskSettings
from distillkit.teachers.ensemble import Ensemble, EnsembleTeacher
from distillkit.types import IMPOSSIBLE, Access, Outputs, Spec, Step, Want, restricted

TASKS = {
    "mood": {"kind": "classification", "train": "train.jsonl", "validation": "validation.jsonl"},
    "same": {"kind": "classification", "train": "pairs.jsonl", "text": ["left", "right"], "label": "same"},
}
LABELS = Labels(
    kind="classification",
    names=("mood/bad", "mood/good", "same/no", "same/perhaps", "same/yes"),
    tasks={"mood": 2, "same": 3},
)


def write_pairs(folder: Path, count: int = 90) -> None:
    """Pairs of texts with equal, half equal or other words."""
    generator = np.random.default_rng(4)
    lines = []
    for index in range(count):
        words = generator.choice(WORDS, size=4).tolist()
        label = ("no", "perhaps", "yes")[int(generator.integers(3))]
        other = {"yes": words, "perhaps": [*words[:2], "ba", "da"], "no": generator.choice(WORDS, 4).tolist()}
        texts = {"left": f"{' '.join(words)} {index}", "right": " ".join([*other[label], label])}
        lines.append(json.dumps({**texts, "same": label}))
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_data(tmp_path)
    write_pairs(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def several(exponent: float = 0.75, **changes: Any) -> SeveralTasks:
    tasks = {name: TaskSettings(**task, max_length=24) for name, task in TASKS.items()}  # type: ignore[arg-type]
    return SeveralTasks(tasks=tasks, exponent=exponent, **changes)


def loaded(here: Path, exponent: float = 0.75) -> Task:
    return load_tasks(several(exponent), base=here, seed=3)


def test_rows_and_classes_lie_side_by_side_and_each_row_knows_its_task(here: Path) -> None:
    task = loaded(here)
    alone = {name: load_tasks(one, base=here, seed=3) for name, one in several().tasks.items()}
    assert task.labels == LABELS
    assert task.labels.of("same").names == ("no", "perhaps", "yes")
    assert task.train.texts == alone["mood"].train.texts + alone["same"].train.texts
    first = len(alone["mood"].train)
    assert task.train.tasks is not None and task.train.labels is not None
    assert task.train.tasks.task.tolist() == [0] * first + [1] * len(alone["same"].train)
    names = [task.labels.names[label] for label in task.train.labels]
    assert alone["same"].train.labels is not None
    assert names[first:] == [f"same/{alone['same'].labels.names[one]}" for one in alone["same"].train.labels]
    assert len(set(task.train.ids.tolist())) == len(task.train)
    assert any(note.startswith("same: no validation rows given") for note in task.notes)
    assert task.test is None
    other = loaded(here, exponent=1.0)
    assert other.digest != task.digest


def test_a_task_without_test_rows_sends_all_to_validation_and_errors_say_which_task(here: Path) -> None:
    made = several()
    tested = made.tasks["mood"].model_copy(update={"test": "validation.jsonl"})
    task = load_tasks(made.model_copy(update={"tasks": {**made.tasks, "mood": tested}}), base=here, seed=3)
    assert task.test is None
    assert "all are measured on validation rows: no test rows of same" in task.notes
    (here / "pairs.jsonl").write_text('{"left": "a", "right": "b", "same": "yes"}\n')
    with pytest.raises(DataError) as caught:
        loaded(here)
    assert "pairs.jsonl" in str(caught.value)
    (here / "pairs.jsonl").write_text(
        "".join(f'{{"left": "a", "right": "b", "same": "{label}"}}\n' for label in ("yes", "no"))
    )
    with pytest.raises(DataError) as caught:
        loaded(here)
    assert "task.tasks.same.validation" in str(caught.value)


def test_single_texts_and_pairs_are_tokenised_as_by_themselves(here: Path) -> None:
    texts = loaded(here).train.texts
    mixed = [texts[0], texts[-1], texts[1], texts[-2], texts[2]]
    reads = tokenizer()
    told = Segments().pieces(mixed, None, reads, 12)
    alone = [Segments().pieces([text], None, reads, 12) for text in mixed]
    assert told.lengths == [one.lengths[0] for one in alone]
    assert told.tokens.tolist() == [token for one in alone for token in one.tokens]
    assert told.types.tolist() == [kind for one in alone for kind in one.types]
    assert told.cut == sum(one.cut for one in alone) > 0


def fair(sizes: list[int], exponent: float) -> TaskOfRows:
    task = np.repeat(np.arange(len(sizes)), sizes)
    return TaskOfRows(task, np.eye(len(sizes), dtype=bool), exponent)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 0.75, 1.0])
def test_tasks_are_drawn_by_their_size_to_the_power_and_rows_of_a_task_alike(exponent: float) -> None:
    sizes = [1000, 90, 7]
    tasks = fair(sizes, exponent)
    wanted = np.asarray(sizes) ** exponent / (np.asarray(sizes) ** exponent).sum() * sum(sizes)
    seen: Counter[int] = Counter()
    for epoch in range(6):
        rows = drawn_rows(tasks, seed=5, epoch=epoch)
        assert len(rows) == sum(sizes)
        counts = np.bincount(tasks.task[rows], minlength=3)
        assert np.abs(counts - wanted).max() <= 1
        assert np.array_equal(rows, drawn_rows(tasks, seed=5, epoch=epoch))
        seen.update(rows.tolist())
    for task in range(3):
        times = [seen[row] for row in np.flatnonzero(tasks.task == task).tolist()]
        assert max(times) - min(times) <= 1
    if exponent == 1.0:
        assert set(seen.values()) == {6}
    again = drawn_rows(tasks, seed=6, epoch=0)
    assert not np.array_equal(again, drawn_rows(tasks, seed=5, epoch=0))


def test_a_feed_of_several_tasks_reads_what_is_drawn_and_knows_what_each_row_may_be(here: Path) -> None:
    encoded = encode(loaded(here).train, tokenizer(), max_length=24, cache=here / "cache")
    feed = TaskFeed(encoded, BatchSettings(tokens=400, examples=16), seed=5)
    assert encoded.tasks is not None
    for epoch in (0, 1):
        batches = [batch for index in range(feed.num_steps(epoch)) for batch in feed.step(epoch, index)]
        read = sorted(one for batch in batches for one in batch.ids.tolist())
        chosen = encoded.ids[drawn_rows(encoded.tasks, seed=5, epoch=epoch)]
        assert read == sorted(chosen.tolist())
        for batch in batches:
            assert batch.allowed is not None and batch.labels is not None
            assert batch.allowed.gather(1, batch.labels[:, None]).all()
            assert set(batch.allowed.sum(dim=1).tolist()) <= {2, 3}
            half = batch.take(torch.arange(0, batch.num_examples, 2))
            assert torch.equal(half.allowed, batch.allowed[::2])  # type: ignore[arg-type]
            assert half.texts == batch.texts[::2] and torch.equal(half.mask, batch.mask[::2])  # type: ignore[index]
    some = drawn(encoded, 10, seed=1)
    assert some.tasks is not None and some.gold is not None
    allowed = some.tasks.allowed(np.arange(10))
    assert all(allowed[row, label] for row, label in enumerate(some.gold))


SCORES = {
    "gold": Gold,
    "smoothed": lambda: Gold(label_smoothing=0.2),
    "hard labels": HardLabels,
    "trusted": lambda: HardLabels(trust="confidence"),
    "logits": lambda: Logits(temperature=4.0),
    "hot": lambda: Logits(temperature=100.0),
    "top": lambda: Logits(temperature=2.0, top_k=2),
    "reverse": lambda: ReverseKl(temperature=2.0),
    "js": lambda: JensenShannon(temperature=2.0),
    "mse": LogitMse,
    "dkd": lambda: DecoupledKd(temperature=3.0),
}


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("columns", [slice(0, 2), slice(2, 5)])
def test_a_loss_of_a_part_of_the_classes_is_the_loss_of_those_alone(name: str, columns: slice) -> None:
    """Value and gradient, in rows of one task; the other task's logits get no gradient at all."""
    classes = columns.stop - columns.start
    own = random_step(classes=classes, seed=7)
    generator = torch.Generator().manual_seed(1)

    def widened(logits_NV: Tensor) -> Tensor:
        wide_NV = 5 * torch.randn(len(logits_NV), 5, generator=generator)
        wide_NV[:, columns] = logits_NV.detach()
        return wide_NV

    allowed = torch.zeros(own.batch.num_examples, 5, dtype=torch.bool)
    allowed[:, columns] = True
    assert own.batch.labels is not None
    batch = replace(own.batch, labels=own.batch.labels + columns.start, allowed=allowed)
    logits_NV = widened(own.student.logits).requires_grad_()
    said = restricted(replace(own.student, logits=logits_NV), batch)
    told = restricted(replace(own.teachers["teacher"], logits=widened(own.teachers["teacher"].logits)), batch)
    loss: Loss = SCORES[name]()
    mine = loss(Step(batch, said, {"teacher": told}))
    alone = loss(own)
    assert mine.item() == pytest.approx(alone.item(), rel=1e-4, abs=1e-6)
    mine.backward()
    alone.backward()
    assert logits_NV.grad is not None and own.student.logits.grad is not None
    assert torch.allclose(logits_NV.grad[:, columns], own.student.logits.grad, rtol=1e-3, atol=1e-6)
    assert not logits_NV.grad[~allowed].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_what_cannot_be_is_the_same_number_in_every_precision(dtype: torch.dtype) -> None:
    """Else a difference of logits in bf16 and fp32 would count it."""
    step = random_step(classes=3)
    allowed = torch.tensor([[True, False, True]]).expand(step.batch.num_examples, 3)
    batch = replace(step.batch, allowed=allowed)
    said = restricted(replace(step.student, logits=step.student.logits.to(dtype)), batch)
    told = restricted(step.teachers["teacher"], batch)
    assert torch.equal(said.logits[:, 1].float(), told.logits[:, 1])
    assert (told.logits / 90).softmax(dim=-1)[:, 1].max() < 1e-35


def test_answers_are_restricted_where_they_are_collected(here: Path) -> None:
    encoded = encode(loaded(here).validation, tokenizer(), max_length=24, cache=here / "cache")
    assert encoded.tasks is not None
    model = encoder(2, labels=LABELS).eval()
    answers = evaluate.predict(
        lambda batch: model.outputs(batch, want=Want()), encoded, device=torch.device("cpu")
    )
    allowed = encoded.tasks.allowed(np.arange(len(encoded)))
    assert (answers[~allowed] == IMPOSSIBLE).all()
    with torch.no_grad():
        free = model.outputs(collate(encoded, np.arange(len(encoded))), want=Want()).logits.numpy()
    assert np.allclose(answers[allowed], free[allowed], atol=1e-5)


def test_tasks_are_judged_each_by_itself_and_by_their_mean() -> None:
    generator = np.random.default_rng(0)
    gold = np.concatenate([generator.integers(0, 2, 40), generator.integers(2, 5, 11)])
    answers = generator.normal(size=(51, 5))
    answers[:40, 2:] = answers[40:, :2] = IMPOSSIBLE
    said = answers.argmax(axis=1)
    found = evaluate.values(LABELS, gold, answers)
    parts = {"mood": slice(0, 40), "same": slice(40, 51)}
    for task, part in parts.items():
        assert found[f"{task}.accuracy"] == pytest.approx(accuracy_score(gold[part], said[part]))
        f1 = f1_score(gold[part], said[part], average="macro", zero_division=0.0)
        assert found[f"{task}.macro_f1"] == pytest.approx(f1)
    assert found["accuracy"] == pytest.approx((found["mood.accuracy"] + found["same.accuracy"]) / 2)
    assert found["accuracy"] != pytest.approx(accuracy_score(gold, said))  # the tasks differ in size
    measured = evaluate.score(LABELS, gold, answers, seed=1)
    assert {name: one.value for name, one in measured.items()} == pytest.approx(found)
    chance = task_seed(LABELS, "same", 1)
    assert chance != task_seed(LABELS, "mood", 1)
    alone = evaluate.score(LABELS.of("same"), gold[40:] - 2, answers[40:, 2:], seed=chance)["accuracy"]
    assert (measured["same.accuracy"].low, measured["same.accuracy"].high) == (alone.low, alone.high)
    assert measured["accuracy"].low < found["accuracy"] < measured["accuracy"].high
    base = evaluate.majority(LABELS, gold, gold)
    counts = np.bincount(gold, minlength=5)
    assert base.metrics["mood.accuracy"] == pytest.approx(counts[:2].max() / 40)
    assert base.metrics["same.accuracy"] == pytest.approx(counts[2:].max() / 11)
    assert evaluate.default_metric(LABELS) == "accuracy"
    cut = {
        task: (own, list(golds), said)
        for task, own, golds, said in evaluate.by_task(LABELS, gold, answers=answers)
    }
    assert cut["same"][0] == LABELS.of("same") and np.array_equal(cut["same"][1][0], gold[40:] - 2)
    assert np.array_equal(cut["mood"][2], answers[:40, :2])


class Source:
    """As far as an ensemble looks at its members' sources."""

    access = Access.SCORES
    reads_tokens = True
    rows_only = ""
    kinds = ENCODER_KINDS


def test_each_member_answers_the_rows_of_its_own_task(here: Path) -> None:
    encoded = encode(loaded(here).train, tokenizer(), max_length=24, cache=here / "cache")
    assert encoded.tasks is not None
    members = {
        name: FixedTeacher(encoder(seed, labels=LABELS.of(name))) for seed, name in enumerate(LABELS.tasks)
    }
    source = Ensemble(members={name: Source() for name in members}, combine="task")  # type: ignore[dict-item]
    teacher = EnsembleTeacher(members, source, LABELS)
    assert teacher.spec.num_labels == 5
    rows = np.asarray([0, len(encoded) - 1, 3, len(encoded) - 2])
    batch = collate(encoded, rows)
    told = teacher.outputs(batch, want=Want()).logits
    for place, name, columns in (
        (0, "mood", slice(0, 2)),
        (1, "same", slice(2, 5)),
        (3, "same", slice(2, 5)),
    ):
        own = members[name].outputs(collate(encoded, rows[[place]]), want=Want()).logits
        assert torch.allclose(told[place, columns], own[0], atol=1e-5)
    with pytest.raises(ModelError, match="of none"):
        teacher.outputs(replace(batch, allowed=None), want=Want())


def test_members_that_learned_all_tasks_are_averaged_over_the_rows_own_classes() -> None:
    """What a member says of another task's classes neither moves the average nor its weight in it."""

    class Says(Teacher):
        def __init__(self, logits: list[float]) -> None:
            self.logits = torch.tensor([logits])

        @property
        def access(self) -> Access:
            return Access.SCORES

        @property
        def spec(self) -> Spec:
            return Spec(0, 0, 0, 0, vocab_size=0, num_labels=5, max_length=99)

        def outputs(self, given: Any, *, want: Want, swap: Any = None) -> Outputs:
            return Outputs(self.logits)

    told = [[2.0, 0.0, 8.0, 8.0, 1.0], [0.0, 2.5, -8.0, -8.0, -8.0]]
    members = {str(index): Says(one) for index, one in enumerate(told)}
    allowed = torch.tensor([[True, True, False, False, False]])
    batch = replace(random_step(examples=1).batch, labels=torch.tensor([0]), allowed=allowed)
    for how in ({}, {"average": "logits"}, {"combine": "confidence"}):
        sources = {name: Source() for name in members}
        wide = EnsembleTeacher(members, Ensemble(members=sources, **how), LABELS)  # type: ignore[arg-type]
        narrow = {name: Says(one[:2]) for name, one in zip(members, told, strict=True)}
        alone = EnsembleTeacher(narrow, Ensemble(members=sources, **how), LABELS.of("mood"))  # type: ignore[arg-type]
        mine = restricted(wide.outputs(batch, want=Want()), batch).logits[:, :2].softmax(dim=-1)
        own = alone.outputs(replace(batch, allowed=None), want=Want()).logits.softmax(dim=-1)
        assert torch.allclose(mine, own, atol=1e-6), how


def test_members_are_asked_for_their_own_tasks_rows_alone(here: Path) -> None:
    seen: list[tuple[set[int], int]] = []

    class Noting(FixedTeacher):
        def check_rows(self, rows: Rows, name: str) -> None:
            assert rows.tasks is not None
            seen.append((set(rows.tasks.task.tolist()), len(rows)))

    members = {name: Noting(encoder(0, labels=LABELS.of(name))) for name in LABELS.tasks}
    source = Ensemble(members={name: Source() for name in members}, combine="task")  # type: ignore[dict-item]
    rows = loaded(here).train
    EnsembleTeacher(members, source, LABELS).check_rows(rows, "train")
    assert rows.tasks is not None
    assert seen == [({task}, count) for task, count in enumerate(np.bincount(rows.tasks.task).tolist())]


def test_resamples_of_small_tasks_do_not_rise_and_fall_together() -> None:
    generator = np.random.default_rng(0)
    gold = np.concatenate([generator.integers(0, 2, 30), generator.integers(2, 5, 30)])
    answers = generator.normal(size=(60, 5))
    answers[:30, 2:] = answers[30:, :2] = IMPOSSIBLE
    drawn_ = TasksJudge().resample(LABELS, gold, [answers], seed=3, resamples=800)
    pair = np.stack([drawn_["mood.accuracy"][0], drawn_["same.accuracy"][0]])
    assert abs(np.corrcoef(pair)[0, 1]) < 0.15
    assert np.allclose(drawn_["accuracy"][0], pair.mean(axis=0))


def config(here: Path, name: str, teacher: Any, **changes: Any) -> Path:
    tasks = {name: {**task, "max_length": 24} for name, task in TASKS.items()}
    distill = {
        **CONFIG["distill"],
        "losses": {"gold": {"use": "gold", "weight": 0.5}, "kd": {"use": "logits", "temperature": 2.0}},
        "epochs": 2,
    }
    return write_config(here, name=name, task={"tasks": tasks}, teacher=teacher, distill=distill, **changes)


def specialist(**changes: Any) -> dict[str, Any]:
    return {**{key: value for key, value in CONFIG["teacher"].items() if key != "pretrain"}, **changes}


def test_one_student_of_a_teacher_for_each_task_to_the_report(here: Path) -> None:
    teacher = {
        "use": "ensemble",
        "combine": "task",
        "members": {name: specialist(allow_weak=True) for name in TASKS},
        "allow_weak": True,
    }
    run = pipeline.run(config(here, "both", teacher), progress="quiet").path
    heads = {
        name: load_file(run / "members" / name / "teacher" / "model.safetensors")["classifier.weight"].shape[
            0
        ]
        for name in TASKS
    }
    assert heads == {"mood": 2, "same": 3}
    facts = json.loads((run / "report" / "facts.json").read_text())
    metrics = facts["student"]["metrics"]
    assert metrics["accuracy"]["value"] == pytest.approx(
        (metrics["mood.accuracy"]["value"] + metrics["same.accuracy"]["value"]) / 2
    )
    measured = {row["name"]: row["metrics"] for row in facts["bench"]}
    for runtime in ("pytorch", "onnxruntime"):
        for name in ("mood.accuracy", "same.macro_f1"):
            assert measured[f"student-{runtime}"][name]["value"] == pytest.approx(metrics[name]["value"])
    labels = json.loads((run / "export" / "labels.json").read_text())
    assert labels["tasks"] == {"mood": [0, 2], "same": [2, 5]}
    assert list(labels["id2label"].values()) == list(LABELS.names)
    # each member is what a run of its own task alone comes to, held-out rows included
    scores = json.loads((run / "members" / "same" / "teacher" / "scores.json").read_text())["scores"]
    assert scores["accuracy"]["value"] == pytest.approx(facts["teacher"]["metrics"]["same.accuracy"]["value"])
    told = facts["teacher"]["metrics"]["mood.accuracy"]["value"]
    assert measured["teacher-pytorch"]["mood.accuracy"]["value"] == pytest.approx(told)
    page = (run / "report.html").read_text()
    card = (run / "report" / "README.md").read_text()
    assert 'config["tasks"].items()' in card and "logits[:, 2:5]" in card
    assert "accuracy of same" in page and "same/perhaps" in page


def test_a_weak_teacher_of_all_tasks_is_refused_by_the_task_that_it_does_not_know(here: Path) -> None:
    with pytest.raises(ModelError, match=r"constant answer on (mood|same)"):
        lazy = specialist(finetune={"epochs": 1, "optimizer": {"lr": 1e-9}})
        pipeline.run(config(here, "weak", lazy), progress="quiet", until="student")


ONE_BLOCK = {"use": "transformer", "layers": 2, "width": 16}
REFUSED = {
    "kind": (
        {"tasks": {**TASKS, "same": {**TASKS["same"], "kind": "regression"}}},
        {},
        "task.tasks.same.kind",
    ),
    "id": ({"tasks": {**TASKS, "same": {**TASKS["same"], "id": "left"}}}, {}, "task.tasks.same.id"),
    "one": ({"tasks": {"mood": TASKS["mood"]}}, {}, "task.tasks"),
    "corpus": ({"tasks": TASKS}, {"distill.corpus": "corpus.txt"}, "distill.corpus"),
    "unlabelled": ({"tasks": TASKS}, {"distill.unlabelled": "train.jsonl"}, "distill.unlabelled"),
    "cache": ({"tasks": TASKS}, {"distill.cache.logits": "2"}, "distill.cache.logits"),
    "exits": (
        {"tasks": TASKS},
        {"assistants": json.dumps([{"student": {"use": "exits", "at": [1], "of": ONE_BLOCK}}])},
        "assistants.0.student.use",
    ),
    "missing": ({"tasks": {**TASKS, "same": {"kind": "classification"}}}, {}, "task.tasks.same.train"),
    "typo": ({"tasks": TASKS, "exponnent": 1}, {}, "did you mean 'exponent'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_with_several_tasks_is_refused_with_its_place(here: Path, name: str) -> None:
    task, overrides, place = REFUSED[name]
    path = write_config(here, task=task)
    with pytest.raises(DistillkitError) as caught:
        recipe.load(
            path, [f"{key}={value}" for key, value in overrides.items()], components=catalog.components
        )
    assert place in str(caught.value) and caught.value.exit_code == 2


def test_members_are_the_tasks_by_name(here: Path) -> None:
    members = {"mood": specialist(), "other": specialist()}
    path = config(here, "named", {"use": "ensemble", "combine": "task", "members": members})
    with pytest.raises((ConfigError, ErrorGroup), match="are not the tasks: mood, same"):
        recipe.load(path, components=catalog.components)
    path = write_config(here, teacher={"use": "ensemble", "combine": "task", "members": members})
    with pytest.raises((ConfigError, ErrorGroup), match="a single task contradict"):
        recipe.load(path, components=catalog.components)


def test_a_plan_counts_each_members_own_rows(here: Path) -> None:
    teacher = {"use": "ensemble", "combine": "task", "members": {name: specialist() for name in TASKS}}
    made = planning.plan(recipe.load(config(here, "planned", teacher), components=catalog.components))
    steps = {stage.stage: stage.steps for stage in made.stages}
    task = loaded(here)
    assert made.rows == {"train": len(task.train), "validation": len(task.validation)}
    assert steps.keys() == {"member mood: teacher", "member same: teacher", "student"}
    assert task.train.tasks is not None
    sizes = np.bincount(task.train.tasks.task)
    ratio = steps["member mood: teacher"] / steps["member same: teacher"]
    assert 0.4 * sizes[0] / sizes[1] < ratio < 2 * sizes[0] / sizes[1]
    assert task.train.labels is not None
    counts = np.bincount(task.train.labels, minlength=5)
    assert made.majority == pytest.approx((counts[:2].max() / sizes[0] + counts[2:].max() / sizes[1]) / 2)


@pytest.mark.parametrize(("by", "word"), [({}, "names one class"), ({"id": "row"}, "numbered anew")])
def test_a_file_of_labels_is_a_teacher_of_one_task_only(here: Path, by: dict[str, str], word: str) -> None:
    """A class that it names may be another task's; its ids would be those of single tasks."""
    (here / "said.jsonl").write_text('{"text": "ba", "row": 1, "says": "mood/good"}\n')
    said = {"use": "predictions", "path": "said.jsonl", "label": "says", **by}
    with pytest.raises(ConfigError, match=word):
        pipeline.run(config(here, "filed", said), progress="quiet", until="student")


def test_a_task_without_rows_is_drawn_from_at_no_exponent() -> None:
    tasks = TaskOfRows(np.asarray([0, 0, 2, 2, 2]), np.eye(3, dtype=bool), 0.0)
    rows = drawn_rows(tasks, seed=1, epoch=0)
    assert len(rows) == 5 and set(tasks.task[rows].tolist()) == {0, 2}
