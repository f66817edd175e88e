"""Two processes (gloo) compute what one computes at the same global batch, with every loss there is, and with
exits.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tinytexts
import torch
from safetensors.torch import load_file
from test_text_runs import STUDENT, TASK
from tinyrun import CONFIG, write_config, write_data

from distillkit import catalog

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def run(config: Path, name: str, processes: int, *overrides: str, until: str = "distill") -> Path:
    """A run up to its student, or another stage, with one process, or two under torchrun."""
    code = "import sys; from distillkit.cli import main; sys.exit(main())"
    start = [sys.executable, "-c", code] if processes == 1 else [*LAUNCH, "-m", "distillkit"]
    done = subprocess.run(
        [*start, until, "--quiet", str(config), f"name={name}", *overrides],
        cwd=config.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return config.parent / "runs" / name


def config(folder: Path, **student: Any) -> Path:
    write_data(folder, rows=90)
    finetune = {**CONFIG["teacher"]["finetune"], "batch": {"tokens": 400, "examples": 16, "micro": 2}}
    teacher = {**CONFIG["teacher"], "finetune": finetune, "allow_weak": True}
    teacher["pretrain"] = {**teacher["pretrain"], "micro": 2}
    losses = {name: {"use": name} for name in catalog.names("loss")}
    batch = {"tokens": 400, "examples": 16, "micro": 2}
    distill = {**CONFIG["distill"], "losses": losses, "batch": batch, "epochs": 2}
    distill["exits"] = {
        "losses": {
            "gold": {"use": "gold"},
            "kd": {"use": "logits"},
            "hint": {"use": "hidden_mse", "projection": "linear"},
        }
    }
    inner = {**CONFIG["student"], "layers": 2, **student}
    return write_config(
        folder, teacher=teacher, distill=distill, student={"use": "exits", "at": [1], "of": inner}
    )


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    return run(config(tmp_path_factory.mktemp("one"), dropout=0.1), "one", 1)


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_processes_equal_one(one: Path, parallel: str) -> None:
    """Dropout is keyed by step and micro-batch, so it is the same wherever a micro-batch is computed."""
    two = run(one.parent.parent / "config.yaml", parallel, 2, f"runtime.parallel={parallel}")
    for stage in ("pretrain", "teacher", "student", "student/exits"):
        mine, theirs = (load_file(str(folder / stage / "model.safetensors")) for folder in (one, two))
        for name, tensor in mine.items():
            assert torch.allclose(tensor, theirs[name], atol=2e-4), f"{stage} {name}"
    lines = {}
    for folder in (one, two):
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        lines[folder.name] = [row for row in records if "terms" in row]
    assert len(lines["one"]) == len(lines[parallel]) > 4
    for mine, theirs in zip(lines["one"], lines[parallel], strict=True):
        assert (mine["stage"], mine["step"]) == (theirs["stage"], theirs["step"])
        for name, value in mine["terms"].items():
            assert theirs["terms"][name] == pytest.approx(value, rel=2e-3, abs=2e-4), (mine["stage"], name)


ONE_SHAPE = {"generator_width": 1.0, "tie": "none"}
BYTES = {"vocab_size": 300}
"""Every byte is an entry."""
PRETRAINED: dict[str, dict[str, Any]] = {
    "electra": {"generator_width": 0.5},
    "electra, two stages": {"generator": "two_stage", **ONE_SHAPE},
    "electra, adversarial": {"generator": "adversarial", "generator_width": 0.5},
    "electra, unigram": {"generator": "unigram"},
    "electra, masks": {"generator": "mask", "objective": "replace_mlm"},
    "electra, 15 %": {"objective": "electra_15", "generator_width": 0.5},
    "electra, all tokens": {"objective": "all_tokens_mlm", "generator_width": 0.5},
    "electra, all tied": {"generator_width": 1.0, "tie": "all"},
    "deberta": {},
    "deberta, one table": {"sharing": "es"},
    "roberta": BYTES,
    "gpt": BYTES,
    "xlnet": {},
    "xlnet, memory": {"memory": 8},
    "t5": {"sentinels": 20},
    "bart": BYTES,
}
WRITERS = {"t5", "bart"}


def pretraining_config(folder: Path, name: str) -> Path:
    """A run that pretrains the teacher of this name, in two micro-batches a step."""
    use = name.split(",")[0]
    pretrain = {**CONFIG["teacher"]["pretrain"], "steps": 6, "micro": 2, "optimizer": {"lr": 1e-3}}
    embedding = {"embedding": 16} if use == "electra" else {}
    same = {key: value for key, value in CONFIG["teacher"].items() if key != "finetune"}
    teacher = {**same, **embedding, "use": use, "dropout": 0.1, "pretrain": pretrain, **PRETRAINED[name]}
    write_data(folder)
    if use not in WRITERS:
        return write_config(folder, teacher=teacher)
    tinytexts.write_rows(folder)
    losses = {"losses": {"gold": {"use": "gold"}}}
    return write_config(folder, teacher=teacher, task=TASK, student=STUDENT, distill=losses)


@pytest.mark.parametrize(
    "parallel, name",
    [
        ("ddp", "electra"),
        *(pytest.param("ddp", name, marks=pytest.mark.slow) for name in list(PRETRAINED)[1:]),
        *(pytest.param("fsdp", name, marks=pytest.mark.slow) for name in list(PRETRAINED)[:2]),
    ],
)
def test_a_teacher_is_pretrained_alike_by_one_process_and_by_two(
    tmp_path: Path, parallel: str, name: str
) -> None:
    """Masks, samples and dropout are keyed by row or micro-batch, and figures are made of sums over both."""
    made = pretraining_config(tmp_path, name)
    one = run(made, "one", 1, until="pretrain")
    two = run(made, "two", 2, f"runtime.parallel={parallel}", until="pretrain")
    mine, theirs = (load_file(str(folder / "pretrain" / "model.safetensors")) for folder in (one, two))
    assert mine.keys() == theirs.keys()
    for weight, tensor in mine.items():
        assert torch.allclose(tensor, theirs[weight], atol=2e-4), weight
    told = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (one, two)
    ]
    assert len(told[0]) == len(told[1]) == 3
    for alone, shared in zip(*told, strict=True):
        assert alone["terms"] == pytest.approx(shared["terms"], rel=2e-3, abs=2e-4)
        assert alone["figures"] == pytest.approx(shared["figures"], rel=2e-2, abs=2e-3)


@pytest.mark.parametrize("parallel", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_two_ranks_stop_together_and_go_on_bit_for_bit(tmp_path: Path, parallel: str) -> None:
    """The signal reaches one rank only. Under fsdp each rank keeps its part of the parameters and no more."""
    done = subprocess.run(
        [*LAUNCH, str(Path(__file__).with_name("ranks.py")), str(tmp_path), parallel],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert len({ranks[rank][name] for rank in range(2) for name in ("whole", "again")}) == 1
    for found in ranks:
        assert found["stopped"] and found["resumed_from"] == 3 < found["steps"]
    total = ranks[0]["parameters"]["total"]
    assert all(found["parameters"]["inside"] == total for found in ranks)
    mine = [found["parameters"]["mine"] for found in ranks]
    if parallel == "ddp":
        assert mine == [total, total]
    else:
        assert sum(mine) == total and max(mine) < 0.75 * total
