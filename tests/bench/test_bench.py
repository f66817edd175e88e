"""Measurements: each variant in a process of its own, a failed one is a row with its reason."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import LABELS, encoded, encoder

from distillkit import evaluate
from distillkit.answers import logits
from distillkit.bench import measure
from distillkit.bench.child import peak_resident_bytes
from distillkit.bench.measure import Variant, bench, run_child
from distillkit.bench.timing import predict, time_cell
from distillkit.errors import MissingError
from distillkit.export.parity import exact_batch
from distillkit.flops import flops_per_example
from distillkit.settings import BenchSettings
from distillkit.types import Batch, Want

FAST = BenchSettings(
    batch=[1, 3], length=[4, 8], warmup=1, iterations=3, seconds=0.0, threads=1, provider="cpu"
)
CHILD = [sys.executable, "-m", "distillkit.bench.child"]
FAKES = {
    "crash": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "hang": "import time; time.sleep(60)",
    "raise": "raise RuntimeError('no such operator')",
    "exit": "import sys; sys.exit(3)",
}


def fake(name: str) -> list[str]:
    return [sys.executable, "-c", FAKES[name]]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("crash", "killed by signal 11"),
        ("killed", "killed by signal 9"),
        ("hang", "did not finish within 1 s"),
        ("raise", "no such operator"),
        ("exit", "exit code 3"),
    ],
)
def test_a_process_that_dies_or_hangs_is_a_reason(tmp_path: Path, name: str, words: str) -> None:
    start = time.monotonic()
    result, reason = run_child(fake(name), {"threads": 1}, tmp_path, limit=1.0 if name == "hang" else 30.0)
    assert result is None and words in reason and time.monotonic() - start < 20


def test_real_measurements_stand_beside_a_row_that_failed(tmp_path: Path) -> None:
    model, samples = encoder(4), encoded(tmp_path / "cache", 30)
    model.save(tmp_path / "student", LABELS)
    (tmp_path / "empty").mkdir()
    variants = [
        Variant("student-pytorch", "student", "pytorch", tmp_path / "student"),
        Variant("student-onnxruntime", "student", "onnxruntime", tmp_path / "empty"),
        Variant("teacher-pytorch", "teacher", "pytorch", None, "it has no file"),
    ]
    rows = bench(variants, FAST, samples, LABELS, tmp_path, seed=0, command=CHILD)
    good, broken, absent = rows
    assert good.status == "ok" and "no such model file" in broken.status and absent.status == "it has no file"
    assert [(cell.batch, cell.length) for cell in good.cells] == [(1, 4), (1, 8), (3, 4), (3, 8)]
    assert all(0 < cell.p50_ms <= cell.p95_ms <= cell.p99_ms and cell.iterations >= 3 for cell in good.cells)
    logits = evaluate.predict(
        lambda batch: model.eval().outputs(batch, want=Want()), samples, device=torch.device("cpu")
    )
    assert samples.labels is not None
    scores = evaluate.values(LABELS, samples.labels, logits)
    assert good.metrics["accuracy"]["value"] == pytest.approx(scores["accuracy"])
    assert good.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert good.size_bytes == (tmp_path / "student" / "model.safetensors").stat().st_size
    told = json.loads((tmp_path / "measurements.json").read_text())
    assert [row["status"] for row in told["measurements"]] == [row.status for row in rows]
    assert told["machine"]["threads"] == 1


def test_a_cell_runs_as_often_and_as_long_as_asked(tmp_path: Path) -> None:
    batch, calls = exact_batch(encoded(tmp_path, 10), 2, 5), 0

    def forward(rows: Batch) -> Any:
        nonlocal calls
        calls += 1
        time.sleep(0.01)
        return np.zeros((2, 2), dtype=np.float32)

    cell = time_cell(forward, batch, {"warmup": 4, "iterations": 6, "seconds": 0.0})
    assert calls == 4 + 6 == 4 + cell["iterations"] and cell["p50_ms"] >= 10
    assert cell["examples_per_s"] == pytest.approx(2 / 0.0102, rel=0.2)
    assert time_cell(forward, batch, {"warmup": 1, "iterations": 1, "seconds": 0.1})["iterations"] >= 8


def test_answers_come_back_in_the_order_of_the_rows(tmp_path: Path) -> None:
    samples = encoded(tmp_path, 30)

    def forward(rows: Batch) -> Any:
        return rows.ids.numpy()[:, None].astype(np.float32)

    assert predict(forward, samples, logits)[:, 0].tolist() == list(range(30))


def test_flops_are_those_of_the_closed_form(tmp_path: Path) -> None:
    """Per token and block: 4 projections of D x D, two of D x F, attention 2 L D; twice that in FLOPs."""
    model = encoder(layers=3, width=16).eval()
    length, width, inner, layers = 9, 16, 32, 3
    batch = exact_batch(encoded(tmp_path, 10), 2, length)
    block = length * (2 * 4 * width**2 + 2 * 2 * width * inner) + 2 * 2 * length**2 * width
    head = 2 * width**2 + 2 * width * 2
    assert flops_per_example(model, batch) == pytest.approx(layers * block + head, rel=1e-6)


def test_asking_for_a_gpu_that_is_not_there_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = FAST.model_copy(update={"provider": "cuda"})
    with pytest.raises(MissingError, match="CUDA") as caught:
        bench([], settings, encoded(tmp_path, 10), LABELS, tmp_path, seed=0, command=CHILD)
    assert caught.value.exit_code == 5
    assert measure._provider(FAST.model_copy(update={"provider": "auto"})) == "cpu"


def test_peak_memory_is_that_of_the_process_and_not_of_the_one_that_started_it() -> None:
    """A child inherits ru_maxrss, so that every model would seem as large as the run that measures it."""
    ballast = np.ones(150_000_000)
    code = "from distillkit.bench.child import peak_resident_bytes as peak; print(peak())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(told.stdout) < peak_resident_bytes() - ballast.nbytes // 2
