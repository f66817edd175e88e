"""The command: help, exit codes, words instead of tracebacks, and what must not be imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distillkit import catalog, launching, pipeline, recipe
from distillkit.cli import app, main
from distillkit.errors import DataError, DivergedError, ErrorGroup, StoppedError
from distillkit.judging import judge_of
from distillkit.rundir import RunDir
from distillkit.schema import json_schema
from distillkit.settings import Labels, TaskSettings
from distillkit.text_metrics import score_texts

ROOT = Path(__file__).parents[1]
COMMANDS = [
    *("run", "pretrain", "distill", "export", "bench", "plan", "validate"),
    *("init", "schema", "demo", "list", "report", "compare", "doctor", "corpus", "predict", "serve"),
]
CONFIG = """\
name: good
task: {kind: classification, train: train.csv}
teacher: {use: bert, size: tiny}
student: {use: transformer, layers: 1}
distill: {losses: {gold: {use: gold}}}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "train.csv").write_text("text,label\n" + "good film,pos\nbad film,neg\n" * 20)
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the pipeline was asked for, instead of running it."""
    asked: list[dict[str, Any]] = []

    def run(loaded: recipe.Loaded, **options: Any) -> Any:
        asked.append({"loaded": loaded, **options})
        return SimpleNamespace(path=Path(loaded.config.output) / loaded.config.name)

    monkeypatch.setattr(pipeline, "run", run)
    return asked


def child(folder: Path, *arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    command = ["-c", code] if code else ["-m", "distillkit", *arguments]
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "LC_ALL": "C", "TERM": "dumb", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_two_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "-h"]) == 0
    text = capsys.readouterr().out
    examples = [line for line in text.splitlines() if line.strip().startswith(f"distillkit {command}")]
    assert "Examples:" in text and len(examples) == 2


def test_the_commands_are_those_that_are_promised() -> None:
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    assert sorted(names) == sorted(COMMANDS)


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--help"], ["predict", "--help"], ["serve", "--help"]),
        *(["validate", "config.yaml"], ["schema"], ["list", "losses"], ["list"]),
    ],
)
def test_light_commands_import_nothing_heavy(arguments: list[str], here: Path) -> None:
    """torch alone takes seconds to import; a config is checked in less than one."""
    code = f"""
import sys
from distillkit.cli import main
code = main({arguments!r})
heavy = {{"torch", "transformers", "numpy", "sklearn", "matplotlib", "datasets"}} & set(sys.modules)
print("heavy", code, sorted(heavy))
"""
    assert child(here, code=code).stdout.splitlines()[-1] == "heavy 0 []"


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) in (0, 2)
    said = capsys.readouterr()
    assert "Commands:" in said.out + said.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], ("no config given", "distillkit init", "distillkit demo")),
        (["runn"], ("runn", "run")),
        (["run", "config.yaml", "--gpu", "2"], ("--gpu",)),
        (["run", "student.layers=2"], ("student.layers=2", "config")),
        (["validate", "confg.yaml"], ("confg.yaml", "config.yaml")),
        (["list", "lossez"], ("lossez", "losses")),
        (["compare", "a"], ("at least two",)),
        (["compare", "a", "b", "--html", "--csv"], ("--html", "--csv")),
        (["report", "."], ("no report", "distillkit run")),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_to_do(
    arguments: list[str], words: tuple[str, ...], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    text = capsys.readouterr().err
    assert [word for word in words if word not in text] == [], text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DivergedError("the loss is nan", where="step 3"), 6),
        (StoppedError("stopped"), 75),
        (StoppedError("stopped", interrupted=True), 130),
        (ErrorGroup([DivergedError("one"), DivergedError("two")]), 6),
    ],
)
def test_a_failure_ends_with_its_own_code(
    error: Exception,
    code: int,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(pipeline, "run", fail)
    assert main(["run", "config.yaml"]) == code
    assert str(error).splitlines()[0] in capsys.readouterr().err


def test_a_bug_leaves_a_crash_file_and_no_traceback(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("not foreseen \ud800")

    monkeypatch.setattr(pipeline, "run", fail)
    assert main(["run", "config.yaml"]) == 1
    text = capsys.readouterr().err
    assert "Traceback" not in text
    crash = Path(text.split()[-1])
    assert "not foreseen" in crash.read_text()
    crash.unlink()
    assert main(["run", "config.yaml", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "until"),
    [
        ("run", "report"),
        ("pretrain", "pretrain"),
        ("distill", "student"),
        ("export", "export"),
        ("bench", "bench"),
    ],
)
def test_a_stage_command_runs_up_to_its_stage(
    command: str, until: str, here: Path, ran: list[dict[str, Any]]
) -> None:
    assert main([command, "config.yaml", "student.layers=2", "--set", "seed=3", "--quiet"]) == 0
    config = ran[0]["loaded"].config
    assert (config.student.layers, config.seed) == (2, 3)
    assert (ran[0]["until"], ran[0]["progress"]) == (until, "quiet")


def test_a_run_is_gone_on_with_by_its_folder(here: Path, ran: list[dict[str, Any]]) -> None:
    """The folder stays where it is, wherever the command is typed and whatever the config called it."""
    loaded = recipe.load(here / "config.yaml", components=catalog.components)
    folder = RunDir.open(here / "elsewhere" / "renamed").path
    (folder / "config.yaml").write_text(recipe.dump(loaded))
    assert main(["run", "elsewhere/renamed", "seed=4"]) == 0
    again = ran[0]["loaded"]
    assert Path(again.config.output) / again.config.name == folder
    assert again.base == here and again.config.seed == 4


def test_the_demo_is_a_config_that_validates(here: Path, ran: list[dict[str, Any]]) -> None:
    assert main(["demo", "--output", "out", "distill.epochs=1"]) == 0
    config = ran[0]["loaded"].config
    assert (config.output, config.phases[0].epochs) == ("out", 1)
    assert config.task.train.startswith("builtin:")


def test_validate_says_valid(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "config.yaml"]) == 0
    assert capsys.readouterr().out == "config.yaml: valid (good)\n"


def test_validate_as_json_lists_the_errors(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "config.yaml", "--json", "seed=-1", "name='?'"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert told["exit_code"] == 2 and {error["where"] for error in told["errors"]} == {
        "command line (seed)",
        "command line (name)",
    }


@pytest.mark.parametrize(
    ("override", "code", "words"),
    [
        ("task.train=trian.csv", 3, ("trian.csv", "train.csv")),
        ("task.label=lable", 2, ("'lable'", "did you mean 'label'", "command line (task.label)")),
        ("task.text=[text, other]", 2, ("'other'",)),
    ],
)
def test_validate_looks_into_the_data(
    override: str, code: int, words: tuple[str, ...], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", "config.yaml", override]) == code
    text = capsys.readouterr().err
    assert [word for word in words if word not in text] == [], text


def test_runs_are_listed_with_their_state(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir.open(here / "runs" / "one")
    run.status("stopped", 75, "SIGTERM", "distillkit run runs/one")
    assert main(["list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["state"], row["next"]) == ("one", "stopped", "distillkit run runs/one")


def test_control_characters_are_shown_and_not_obeyed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file name or label could otherwise clear the screen or hide what was said."""
    assert main(["validate", "\x1b[2Jevil\u202e.yaml"]) == 2
    text = capsys.readouterr().err
    assert "\x1b" not in text and "\u202e" not in text and "evil" in text


def test_a_closed_pipe_and_a_plain_locale_are_no_bug(here: Path) -> None:
    code = "import os, sys; from distillkit.cli import main; os.close(1); sys.exit(main(['schema']))"
    assert "Traceback" not in child(here, code=code).stderr
    assert child(here, "validate", "config.yaml", "name=größe").returncode == 2


def test_the_schema_knows_what_the_config_knows() -> None:
    schema = json_schema(catalog.components())
    text = json.dumps(schema)
    assert schema["$schema"].endswith("draft-07/schema#")
    assert "$defs" not in text and "prefixItems" not in text and '"discriminator":' not in text
    references = {node.split("/")[-1] for node in text.split('"') if node.startswith("#/definitions/")}
    assert references <= set(schema["definitions"])
    assert set(schema["properties"]) == set(catalog.components().model_fields)
    temperature = schema["definitions"]["LogitsLoss"]["properties"]["temperature"]
    assert (temperature["exclusiveMinimum"], temperature["default"]) == (0, 2.0)


def test_several_processes_tell_an_error_once_and_in_words(here: Path) -> None:
    """Every process meets it; the agent that starts them adds nothing."""
    (here / "train.csv").write_text("text,label\nonly one class,a\n" * 3)
    done = child(here, "run", "config.yaml", "--gpus", "2", "--quiet")
    assert done.returncode == DataError.exit_code, done.stderr
    told = [line for line in done.stderr.splitlines() if "too few to hold any out" in line]
    assert len(told) == done.stderr.count("error:") == 1, done.stderr
    assert "Traceback" not in done.stderr and "torch" not in done.stderr, done.stderr


def test_an_error_of_another_process_alone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in distillkit's place: the second process fails, the first would go on."""
    program = tmp_path / "distillkit"
    program.mkdir()
    (program / "__main__.py").write_text(
        "import os, sys, time\n"
        "from torch.distributed.elastic.multiprocessing.errors import get_error_handler\n"
        "if os.environ['RANK'] == '0':\n"
        "    time.sleep(60)\n"
        "get_error_handler().record_exception(ValueError(f'only here: {sys.argv[1:]}'))\n"
        "sys.exit(7)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
    told: list[str] = []
    assert launching.launch(2, ["run", "x.yaml"], told.append) == 7
    assert told == ["only here: ['run', 'x.yaml']"]


@pytest.mark.parametrize(("rank", "told"), [("0", 1), ("1", 0)])
def test_one_of_several_processes_leaves_its_error_and_rank_0_alone_tells_it(
    rank: str, told: int, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left = here / "error.json"
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(left))
    assert main(["validate", "missing.yaml"]) == 2
    assert capsys.readouterr().err.count("missing.yaml: No such file") == told
    assert "missing.yaml: No such file" in json.loads(left.read_text())["message"]["message"]


def test_signals_and_other_ends_of_several_processes(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of the process that failed first; else what the run's status names."""
    ends: list[int | None] = [0, 4, None]
    monkeypatch.setattr(launching, "launch", lambda processes, arguments, tell: ends.pop(0))
    RunDir.open(here / "runs" / "good").status("failed", 75, "stopped", "")
    codes = [main(["run", "config.yaml", "seed=3", "--gpus", "2"]) for _ in range(3)]
    assert codes == [0, 4, 75]


def test_what_follows_a_floor_and_is_no_setting_is_a_floor(here: Path, ran: list[dict[str, Any]]) -> None:
    floors = ["--floor", "metric=0.90", "p95=10ms", "--floor", "size=20MB"]
    assert main(["bench", "config.yaml", "student.layers=2", *floors, "seed=4"]) == 0
    config = ran[0]["loaded"].config
    assert config.bench.floor == {"metric": 0.9, "size": "20MB", "p95": "10ms"}
    assert (config.student.layers, config.seed) == (2, 4)


@pytest.mark.parametrize(
    ("floor", "words"),
    [
        ("accurcy=0.9", "did you mean 'accuracy'?"),
        ("p95=10MB", "'10MB' is no bound of p95"),
        ("pearson=0.9", "'pearson' is nothing that is measured"),
        ("p95@3x3=1ms", "names no batch x length that is timed"),
        ("p95", "is no floor"),
        ("=3", "is no floor"),
    ],
)
def test_a_floor_that_cannot_be_asked_is_refused_before_anything_runs(
    floor: str, words: str, here: Path, ran: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "config.yaml", "--floor", floor]) == 2
    assert words in capsys.readouterr().err and not ran
    (here / "config.yaml").write_text(CONFIG + "bench: {backends: [pytorch]}\n")
    assert main(["bench", "config.yaml", "--floor", "metric=0.9"]) == 2
    assert "add onnxruntime" in capsys.readouterr().err and not ran


def test_floors_know_the_metrics_that_are_measured() -> None:
    """Names that a recipe may give a floor must be those that a model's row has."""
    for kind in ("classification", "regression", "token_classification", "mlm", "text_to_text"):
        task = TaskSettings(kind=kind, train="train.csv")
        labels = Labels(kind=kind, names=("O", "B-x") if kind == "token_classification" else ())
        written = set(score_texts(["a b"], ["a c"], seed=0)) if kind == "text_to_text" else set()
        assert set(recipe.measured_metrics(task)) == {*judge_of(labels).metrics(labels), *written}
