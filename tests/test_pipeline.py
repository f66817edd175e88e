"""The whole run on tiny data: every stage, what is skipped, what is rerun, objects in place of names."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import WORDS
from tinyrun import CONFIG, Here, write_config, write_data

from distillkit import Custom, Parts, Spec, files, pipeline, stages
from distillkit.bench import measure
from distillkit.cli import main
from distillkit.data.batching import Encoded, TaskFeed
from distillkit.data.tokenizers import load_tokenizer
from distillkit.errors import ConfigError, DistillkitError, ModelError, StoppedError
from distillkit.losses.base import Loss
from distillkit.losses.gold import Gold
from distillkit.losses.hidden_cosine import HiddenCosine
from distillkit.rundir import MetricsLog, RunDir
from distillkit.settings import FinetuneSettings, PretrainSettings
from distillkit.stages import learning, teaching, training
from distillkit.teachers.bert import Bert
from distillkit.train import TrainSettings, train
from distillkit.types import Batch

FOLDERS = ("tokenizer", "pretrain", "teacher", "student", "export", "bench", "report")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, not to be changed."""
    folder = tmp_path_factory.mktemp("done")
    write_data(folder)
    return pipeline.run(write_config(folder, output=str(folder / "runs")), progress="quiet").path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """`done` has the real children."""
    monkeypatch.setattr(measure, "Child", Here)


def made(run: Path) -> dict[str, int]:
    """When each stage's folder was made."""
    return {
        name: (run / name / "manifest.json").stat().st_mtime_ns for name in FOLDERS if (run / name).is_dir()
    }


def test_a_run_leaves_every_stage_whole_and_no_checkpoints(done: Path) -> None:
    for name in FOLDERS:
        assert files.flaw(done / name, hashes=True) == "", name
    assert not [path for path in done.rglob("*") if path.name.startswith(".tmp-")]
    assert not [path for path in (done / "checkpoints").rglob("*") if path.is_file()]
    status = json.loads((done / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("done", 0)
    assert not [path for path in done.rglob("*") if path.suffix in (".pkl", ".pt", ".bin", ".pth")]


def test_other_forms_of_the_artifact_are_measured_beside_it(here: Path) -> None:
    """Each in its own folder and with its own row; one that is not kept is a row with its reason."""
    config = write_config(here, export={"formats": ["fp32", "int8", "fp16"]})
    run = pipeline.run(config, progress="quiet").path
    assert {path.name for path in (run / "export" / "formats").iterdir()} == {"int8", "fp16"}
    rows = json.loads((run / "bench" / "measurements.json").read_text())["measurements"]
    formed = {
        row["format"]: row for row in rows if row["role"] == "student" and row["backend"] == "onnxruntime"
    }
    assert set(formed) == {"fp32", "int8", "fp16"} and {row["status"] for row in formed.values()} == {"ok"}
    plain, small = formed["fp32"], formed["int8"]
    assert small["size_bytes"] < plain["size_bytes"] and small["cells"] and not plain["difference"]
    lost = small["metrics"]["accuracy"]["value"] - plain["metrics"]["accuracy"]["value"]
    assert small["difference"]["accuracy"]["value"] == pytest.approx(lost)
    page = (run / "report.html").read_text()
    assert 'id="forms"' in page and "ONNX Runtime int8" in page
    told = json.loads((run / "report" / "facts.json").read_text())
    assert set(told["formats"]) == {"int8", "fp16"}


def test_the_artifact_is_complete_and_answers_like_the_student(done: Path) -> None:
    present = {path.name for path in (done / "export").iterdir()}
    assert {
        "model.onnx",
        "tokenizer.json",
        "config.json",
        "labels.json",
        "parity.json",
        "manifest.json",
    } <= present
    parity = json.loads((done / "export" / "parity.json").read_text())
    assert set(parity["shapes"]) == {"real rows", "(1, 1)", "(1, 5)", "(7, 32)", "(1, 32)"}, (
        "at most its positions"
    )
    assert parity["max_abs_difference"] <= 1e-4 and parity["same_predictions"] == 1.0
    labels = json.loads((done / "export" / "labels.json").read_text())
    assert labels["id2label"] == {"0": "bad", "1": "good"}


def test_quality_is_measured_again_on_what_really_runs(done: Path) -> None:
    rows = json.loads((done / "bench" / "measurements.json").read_text())["measurements"]
    assert {(row["role"], row["backend"], row["status"]) for row in rows} == {
        (role, backend, "ok") for role in ("teacher", "student") for backend in ("pytorch", "onnxruntime")
    }
    for row in rows:
        scores = json.loads((done / row["role"] / "scores.json").read_text())["scores"]
        assert row["metrics"]["accuracy"]["value"] == pytest.approx(scores["accuracy"]["value"], abs=0.02)
        assert len(row["cells"]) == 2 and all(cell["p50_ms"] > 0 for cell in row["cells"])
        assert row["provider"] in ("PyTorch cpu", "CPUExecutionProvider") and row["flops"] > 0


def test_every_term_is_logged_raw_and_weighted(done: Path) -> None:
    records = RunDir.reopen(done).metrics.records()
    steps = [row for row in records if row["stage"] == "student" and "terms" in row]
    assert steps and all(set(row["terms"]) == {"gold", "kd", "states"} for row in steps)
    assert steps[0]["weighted"]["kd"] == pytest.approx(0.7 * steps[0]["terms"]["kd"])
    pretrain = [row for row in records if row["stage"] == "pretrain" and "terms" in row]
    assert pretrain and set(pretrain[0]["terms"]) == {"mlm", "nsp"}


def test_the_report_is_one_offline_file_and_the_config_is_resolved(done: Path) -> None:
    page = (done / "report.html").read_text()
    assert (done / "report.html").stat().st_size < 3_000_000
    assert "<link" not in page and "http://" not in page.replace("http://www.w3.org", "")
    resolved = (done / "config.yaml").read_text()
    assert "temperature: 2" in resolved and "# default" in resolved


def test_a_finished_run_says_so_and_does_nothing(
    done: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(here)
    shutil.copytree(done, here / "runs" / "tiny")
    before = made(here / "runs" / "tiny")
    assert main(["run", str(config)]) == 0
    told = capsys.readouterr()
    assert "already complete" in told.out + told.err
    assert made(here / "runs" / "tiny") == before
    assert main(["run", "runs/tiny"]) == 0, "the run's folder goes on from its own saved config"
    assert made(here / "runs" / "tiny") == before


@pytest.mark.parametrize(
    ("override", "first"),
    [
        ("report.samples=3", "report"),
        ("bench.iterations=3", "bench"),
        pytest.param("export.rows=32", "export", marks=pytest.mark.slow),
        ("distill.losses.kd.temperature=4", "student"),
        pytest.param("teacher.finetune.epochs=5", "teacher", marks=pytest.mark.slow),
    ],
)
def test_a_changed_config_reruns_just_the_stages_it_touches(
    done: Path, here: Path, override: str, first: str
) -> None:
    config = write_config(here)
    shutil.copytree(done, here / "runs" / "tiny")
    before = made(here / "runs" / "tiny")
    pipeline.run(config, overrides=[override], progress="quiet")
    after = made(here / "runs" / "tiny")
    changed = FOLDERS.index(first)
    assert all(after[name] == before[name] for name in FOLDERS[:changed])
    assert all(after[name] > before[name] for name in FOLDERS[changed:])


@pytest.mark.parametrize(
    "override",
    [
        "teacher.pretrain.save_every=3",
        "teacher.finetune.batch.micro=2",
        "distill.save_every=9",
        "distill.batch.micro=4",
        "runtime.log_every=7",
    ],
)
def test_what_does_not_change_the_result_reruns_nothing(done: Path, here: Path, override: str) -> None:
    config = write_config(here)
    shutil.copytree(done, here / "runs" / "tiny")
    before = made(here / "runs" / "tiny")
    pipeline.run(config, overrides=[override], progress="quiet")
    assert made(here / "runs" / "tiny") == before


def test_a_finished_run_is_judged_by_floors_without_being_measured_again(
    done: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(done, here / "runs" / "tiny")
    run = here / "runs" / "tiny"
    before = made(run)
    assert main(["bench", "runs/tiny", "--floor", "metric=0.01", "p95=60s", "p99@2x8=60s"]) == 0
    told = capsys.readouterr()
    assert "student-onnxruntime meets metric, p95, p99@2x8" in told.out + told.err
    assert "ONNX Runtime, CPU" in told.out and "against plain" in told.out
    assert main(["bench", "runs/tiny", "--quiet", "--floor", "accuracy=1.01", "--floor", "size=1kB"]) == 12
    told = capsys.readouterr()
    assert "student-onnxruntime: accuracy is " in told.err and ", at least 1.0100 asked" in told.err
    assert ", at most 1.0 kB asked" in told.err and "ONNX Runtime, CPU" in told.out
    assert json.loads((run / "status.json").read_text())["exit_code"] == 12
    assert made(run) == before


class Crash(Exception):
    """Ends a run as a bug would."""


@pytest.fixture
def crashed(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config whose run ended in the middle of the student's training, with a checkpoint."""
    config = write_config(here)

    def crash(log: Any, record: Mapping[str, Any]) -> None:
        if record["stage"] == "student" and record["step"] >= 6:
            raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(MetricsLog, "append", crash)
        pipeline.run(config, progress="quiet")
    assert list((here / "runs" / "tiny" / "checkpoints" / "student").iterdir())
    return config


@pytest.mark.parametrize(
    ("override", "code"), [("distill.optimizer.lr=0.5", 2), ("teacher.finetune.epochs=5", 2), ("", 3)]
)
def test_what_a_stopped_run_left_is_judged_before_anything_is_made_again(
    crashed: Path, override: str, code: int
) -> None:
    """Finding out after the teacher was trained anew costs the hours that the checkpoint was to save."""
    run = crashed.parent / "runs" / "tiny"
    if code == 3:
        rows = [json.loads(row) for row in (crashed.parent / "train.jsonl").read_text().splitlines()]
        rows[-1]["text"] = next(row["text"] for row in rows if row["label"] == rows[-1]["label"])
        (crashed.parent / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before, resolved = made(run), (run / "config.yaml").read_text()
    overrides = [override] if override else []
    with pytest.raises(DistillkitError, match="--force") as caught:
        pipeline.run(crashed, overrides=overrides, progress="quiet")
    assert caught.value.exit_code == code and "student" in str(caught.value)
    assert made(run) == before and (run / "config.yaml").read_text() == resolved
    weak = "teacher.allow_weak=true"  # other data or epochs may leave it no better than chance
    assert main(["distill", str(crashed), *overrides, weak, "--force", "--quiet"]) == 0


def test_a_stopped_run_goes_on_in_smaller_parts(crashed: Path) -> None:
    """What the error for a full memory tells the user to do must not be refused."""
    run = pipeline.run(crashed, overrides=["distill.batch.micro=2"], until="student", progress="quiet")
    steps = [row["step"] for row in run.metrics.records() if row["stage"] == "student" and "terms" in row]
    assert steps[0] > 4, "the first steps came from the checkpoint, whose lines the crash kept from the log"


def test_of_several_fine_tunings_the_median_is_kept_and_a_stopped_one_goes_on(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has its own seed, the first that of the run; what was trained before a crash stays trained."""
    finetune = {**CONFIG["teacher"]["finetune"], "epochs": 1, "keep": "last"}
    body = {**CONFIG["teacher"], "pretrain": None}

    def run(output: str, seeds: int) -> RunDir:
        teacher = {**body, "finetune": {**finetune, "seeds": seeds}}
        config = write_config(here, teacher=teacher, output=str(here / output))
        return pipeline.run(config, until="teacher", progress="quiet")

    trained: dict[str, torch.Tensor] = {}
    real = teaching.fit

    def watched(job: Any, program: Any, feed: Any, how: TrainSettings, measure: Any) -> None:
        if how.stage == "teacher-3" and "teacher-3" not in trained:
            trained["teacher-3"] = torch.zeros(0)
            raise RuntimeError("the machine went away")
        real(job, program, feed, how, measure)
        trained[how.stage] = torch.cat([one.detach().flatten() for one in program.student.parameters()])

    monkeypatch.setattr(teaching, "fit", watched)
    with pytest.raises(RuntimeError, match="went away"):
        run("several", 3)
    once = {name: weights.clone() for name, weights in trained.items()}
    done = run("several", 3)
    steps = [(row["stage"], row["step"]) for row in done.metrics.records() if "terms" in row]
    assert len(steps) == len(set(steps)) and {stage for stage, _ in steps} == set(trained)
    assert all(torch.equal(trained[name], once[name]) for name in ("teacher-1", "teacher-2"))
    told = json.loads((done.path / "teacher" / "seeds.json").read_text())
    scores = told["validation"]
    assert scores[told["kept"]] == sorted(scores.values())[1] and told["metric"] == "accuracy"
    judged = json.loads((done.path / "teacher" / "scores.json").read_text())["scores"]["accuracy"]["value"]
    assert judged == pytest.approx(scores[told["kept"]]), "there is no test split: validation rows are judged"
    run("single", 1)
    assert torch.equal(trained["teacher"], trained["teacher-1"])
    assert not torch.equal(trained["teacher-1"], trained["teacher-2"])
    assert not torch.equal(trained["teacher-2"], trained["teacher-3"])


@pytest.mark.parametrize(
    ("scores", "kept"), [([0.3, 0.1, 0.2], "c"), ([0.4, 0.1, 0.2, 0.3], "c"), ([0.5], "a")]
)
def test_the_median_of_an_even_number_is_the_lower_of_two(scores: list[float], kept: str) -> None:
    assert teaching._median(dict(zip("abcd", scores, strict=False))) == kept


OWN_LOSS = """
from distillkit.losses.base import Loss

class Doubled(Loss):
    needs_teacher = False

    def forward(self, step):
        return step.student.logits.square().mean() * {factor}
"""


def test_a_changed_file_of_code_reruns_what_it_touches(here: Path) -> None:
    losses = {**CONFIG["distill"]["losses"], "own": {"use": "doubled"}}
    config = write_config(here, distill={**CONFIG["distill"], "losses": losses})

    def run(factor: int) -> dict[str, int]:
        (here / "own.py").write_text(OWN_LOSS.format(factor=factor))
        command = [sys.executable, "-B", "-m", "distillkit", "distill", "-q", "--code", "own.py", str(config)]
        subprocess.run(command, cwd=here, check=True, capture_output=True)
        return made(here / "runs" / "tiny")

    first, same, other = run(2), run(2), run(3)
    assert first == same
    assert {name for name in other if other[name] != same[name]} == {"student"}


def test_another_teacher_object_reruns_its_stages(here: Path) -> None:
    def teacher(**changes: Any) -> Parts:
        shape = {"layers": 1, "width": 16, "heads": 2, "vocab_size": 200, "positions": 32}
        pretrain = PretrainSettings(corpus="corpus.txt", steps=2, max_length=24, batch=8)
        return Parts(teacher=Bert(**{**shape, "pretrain": pretrain, **changes}))

    config = write_config(here, distill={**CONFIG["distill"], "losses": {"kd": {"use": "logits"}}})

    def run(parts: Parts) -> dict[str, int]:
        overrides = ["teacher.allow_weak=true"]
        return made(
            pipeline.run(config, overrides=overrides, parts=parts, until="student", progress="quiet").path
        )

    first = run(teacher())
    assert run(teacher()) == first
    wider = run(teacher(width=32))
    assert all(wider[name] > first[name] for name in ("tokenizer", "pretrain", "teacher", "student"))
    tuned = run(teacher(width=32, finetune=FinetuneSettings(epochs=1)))
    assert {name for name in tuned if tuned[name] != wider[name]} == {"teacher", "student"}


def test_a_loss_object_is_not_changed_by_a_run_and_its_second_run_does_nothing(here: Path) -> None:
    states = HiddenCosine()
    parts = Parts(losses={"gold": (1.0, Gold()), "states": (1.0, states)})
    first = made(pipeline.run(write_config(here), parts=parts, until="student", progress="quiet").path)
    assert states.pairs == () and not list(states.parameters())
    assert (
        made(pipeline.run(write_config(here), parts=parts, until="student", progress="quiet").path) == first
    )


@pytest.mark.parametrize(
    "stage",
    [
        "tokenizer",
        "student",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("teacher", "export", "bench")),
    ],
)
def test_a_signal_stops_every_stage_and_the_same_command_goes_on(
    here: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    config = write_config(here)
    real = stages.MAKE[stage]

    def signalled(job: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(job)

    with monkeypatch.context() as patch:
        patch.setattr(stages, "MAKE", {**stages.MAKE, stage: signalled})
        with pytest.raises(StoppedError) as caught:
            pipeline.run(config, progress="quiet")
    status = json.loads((here / "runs" / "tiny" / "status.json").read_text())
    assert caught.value.exit_code == 75 and (status["state"], status["exit_code"]) == ("stopped", 75)
    assert "bench" not in made(here / "runs" / "tiny")
    assert (pipeline.run(config, progress="quiet").path / "report.html").is_file()


@pytest.mark.parametrize(
    ("losses", "corpus", "kept"),
    [
        ({"kd": {"use": "logits"}}, None, "best"),
        ({"kd": {"use": "logits"}}, "corpus.txt", "last"),
        ({"states": {"use": "hidden_cosine"}}, None, "last"),
        ({"gold": {"use": "gold"}, "states": {"use": "hidden_cosine"}}, None, "best"),
    ],
)
def test_validation_chooses_weights_only_where_it_can_judge_them(
    here: Path, monkeypatch: pytest.MonkeyPatch, losses: Any, corpus: str | None, kept: str
) -> None:
    told: dict[str, str] = {}

    def spy(program: Any, feed: Any, settings: TrainSettings, *rest: Any, **named: Any) -> Any:
        told[settings.stage] = settings.keep
        return train(program, feed, settings, *rest, **named)

    monkeypatch.setattr(training, "train", spy)
    phase = {**CONFIG["distill"], "losses": losses, **({"corpus": corpus} if corpus else {})}
    pipeline.run(write_config(here, distill=phase), until="student", progress="quiet")
    assert told["student"] == kept and told["teacher"] == "best"


def test_single_stages_stop_where_they_are_asked_to(here: Path) -> None:
    config = write_config(here)
    for command, last in (("pretrain", 1), ("distill", 3), ("export", 4), ("bench", 5)):
        assert main([command, str(config), "--quiet"]) == 0
        assert set(made(here / "runs" / "tiny")) == set(FOLDERS[: last + 1])


def test_two_runs_of_one_config_give_the_same_weights(here: Path) -> None:
    config = write_config(here)
    first = pipeline.run(config, until="student", progress="quiet").path
    second = pipeline.run(config, overrides=["name=again"], until="student", progress="quiet").path
    for stage in ("pretrain", "teacher", "student"):
        name = f"{stage}/model.safetensors"
        assert (first / name).read_bytes() == (second / name).read_bytes(), stage


def test_phases_run_one_after_the_other_each_with_its_own_data(here: Path) -> None:
    general = {
        **CONFIG["distill"],
        "corpus": "corpus.txt",
        "losses": {"kd": {"use": "logits"}},
        "keep": "last",
    }
    config = write_config(here, distill=[general, CONFIG["distill"]])
    run = pipeline.run(config, progress="quiet")
    stages_seen = {row["stage"] for row in run.metrics.records()}
    assert {"student-1", "student-2"} <= stages_seen and (run.path / "report.html").is_file()


def test_two_phases_with_two_corpora_each_train_on_their_own_text(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "other.txt").write_text("\n".join(f"{word} and {word}." for word in WORDS[:30]) + "\n")
    base = {**CONFIG["distill"], "losses": {"kd": {"use": "logits"}}}
    fed: list[Encoded] = []

    class Watched(TaskFeed):
        def __init__(self, encoded: Encoded, *settings: Any, **named: Any) -> None:
            fed.append(encoded)
            super().__init__(encoded, *settings, **named)

    monkeypatch.setattr(learning, "TaskFeed", Watched)
    config = write_config(here, distill=[{**base, "corpus": name} for name in ("corpus.txt", "other.txt")])
    run = pipeline.run(config, until="student", progress="quiet")
    words = load_tokenizer(run.path / "tokenizer")
    for encoded, name in zip(fed[-2:], ("corpus.txt", "other.txt"), strict=True):
        sentences = [line for line in (here / name).read_text().splitlines() if line]
        assert [text for (text,) in encoded.texts] == sentences
        first = encoded.tokens[: encoded.offsets[1]].tolist()
        assert first == words(sentences[0])["input_ids"]


def test_a_loss_on_labels_is_refused_where_a_corpus_has_none(here: Path) -> None:
    config = write_config(here, distill={**CONFIG["distill"], "corpus": "corpus.txt"})
    with pytest.raises(DistillkitError, match="label") as caught:
        pipeline.run(config, progress="quiet")
    assert caught.value.exit_code == 2


def test_regression_and_pairs_go_all_the_way(here: Path) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", 200), ("validation", 60)):
        lines = []
        for index in range(count):
            good = int(generator.integers(0, 5))
            words = generator.choice(WORDS, size=3).tolist()
            row = {"one": " ".join(words), "two": f"{'good ' * good} {split}{index}", "value": good / 2}
            lines.append(json.dumps(row))
        (here / f"{split}.jsonl").write_text("\n".join(lines))
    task = {**CONFIG["task"], "kind": "regression", "text": ["one", "two"], "label": "value"}
    teacher = {**CONFIG["teacher"], "finetune": {**CONFIG["teacher"]["finetune"], "epochs": 8}}
    run = pipeline.run(write_config(here, task=task, teacher=teacher), progress="quiet")
    scores = json.loads((run.path / "teacher" / "scores.json").read_text())["scores"]
    assert scores["pearson"]["value"] > 0.5 and "spearman" in scores


def test_a_teacher_no_better_than_the_majority_is_an_error_unless_allowed(here: Path) -> None:
    rows = [json.loads(line) for line in (here / "train.jsonl").read_text().splitlines()]
    for index, row in enumerate(rows):
        row["text"] = f"{WORDS[index % 60]} {index}"
    (here / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    config = write_config(here)
    with pytest.raises(ModelError, match="no better than a constant answer"):
        pipeline.run(config, progress="quiet")
    status = json.loads((here / "runs" / "tiny" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 4)
    assert pipeline.run(config, overrides=["teacher.allow_weak=true"], until="student", progress="quiet")


def keyword_teacher(batch: Batch) -> Mapping[str, torch.Tensor]:
    """Reads the text itself: no token ids, no weights."""
    good = torch.tensor([float("good" in texts[0].split()) for texts in batch.texts])
    return {"logits": torch.stack([1 - good, good], dim=1) * 4}


NO_STATES = Spec(
    num_layers=0, hidden_dim=0, num_heads=0, ffn_dim=0, vocab_size=200, num_labels=2, max_length=24
)


def test_a_callable_that_reads_text_can_teach(here: Path) -> None:
    losses: dict[str, Any] = {"kd": {"use": "logits"}}
    config = write_config(here, distill={**CONFIG["distill"], "losses": losses, "epochs": 3})
    parts = Parts(teacher=Custom(keyword_teacher, spec=NO_STATES, version="1"))
    run = pipeline.run(config, parts=parts, progress="quiet")
    scores = json.loads((run.path / "teacher" / "scores.json").read_text())["scores"]
    assert scores["accuracy"]["value"] == 1.0
    rows = json.loads((run.path / "bench" / "measurements.json").read_text())["measurements"]
    named = {row["name"]: row for row in rows}
    assert {name for name, row in named.items() if row["status"] == "ok"} == {
        "student-pytorch",
        "student-onnxruntime",
        "teacher-pytorch",
    }
    assert "from Python" in named["teacher-onnxruntime"]["status"]
    taught = named["teacher-pytorch"]
    assert taught["metrics"]["accuracy"]["value"] == 1.0 and taught["provider"] == "this process"
    assert [cell["batch"] for cell in taught["cells"]] == [1, 2] and taught["cells"][0]["p50_ms"] > 0
    assert (run.path / "report.html").is_file()


def test_a_callable_that_breaks_on_what_is_timed_is_a_row_with_its_reason(here: Path) -> None:
    def moody(batch: Batch) -> Mapping[str, torch.Tensor]:
        if batch.num_examples <= 2:  # as no rows of the task come
            raise LookupError("too few rows")
        return keyword_teacher(batch)

    config = write_config(here, distill={**CONFIG["distill"], "losses": {"kd": {"use": "logits"}}})
    parts = Parts(teacher=Custom(moody, spec=NO_STATES, version="1"))
    run = pipeline.run(config, parts=parts, progress="quiet")
    rows = json.loads((run.path / "bench" / "measurements.json").read_text())["measurements"]
    status = {row["name"]: row["status"] for row in rows}
    assert status["teacher-pytorch"] == "failed: LookupError: too few rows"
    assert status["student-pytorch"] == "ok"


def test_a_loss_that_needs_more_than_the_teacher_gives_is_refused_before_anything_is_made(here: Path) -> None:
    parts = Parts(teacher=Custom(keyword_teacher, spec=NO_STATES, version="1"))
    with pytest.raises(ConfigError, match="SCORES"):
        pipeline.run(write_config(here), parts=parts, progress="quiet")
    assert made(here / "runs" / "tiny") == {}


def test_losses_given_as_objects_take_the_place_of_the_configs(here: Path) -> None:
    class Halved(Gold):
        def forward(self, step: Any) -> torch.Tensor:
            return super().forward(step) / 2

    losses: dict[str, tuple[float, Loss]] = {"mine": (1.0, Halved())}
    run = pipeline.run(write_config(here), parts=Parts(losses=losses), until="student", progress="quiet")
    rows = [row for row in run.metrics.records() if row["stage"] == "student" and "terms" in row]
    assert rows and all(set(row["terms"]) == {"mine"} for row in rows)


def test_a_report_that_fails_loses_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(job: Any) -> Any:
        raise RuntimeError("no fonts")

    monkeypatch.setattr(stages, "MAKE", {**stages.MAKE, "report": broken})
    run = pipeline.run(write_config(here), progress="quiet")
    assert set(made(run.path)) == set(FOLDERS[:-1])
