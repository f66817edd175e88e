"""Measurements: each variant in a process of its own that takes turns, a failed one is a row with its
reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import LABELS, encoded, encoder, tokenizer

from distillkit import evaluate
from distillkit.answers import logits
from distillkit.bench import measure
from distillkit.bench.backends import BACKENDS, Machine, bound_calls
from distillkit.bench.binding import Bound
from distillkit.bench.child import peak_resident_bytes
from distillkit.bench.measure import bench
from distillkit.bench.process import Child, FailedError
from distillkit.bench.rows import Cell, Measurement, Variant, with_noise
from distillkit.bench.timing import Clocked, Opened, Subject, predict
from distillkit.errors import MissingError, StoppedError
from distillkit.export.bundle import export
from distillkit.export.parity import exact_batch
from distillkit.export.parity import run as run_session
from distillkit.flops import flops_per_example
from distillkit.metrics import told_apart
from distillkit.runtime.session import open_session
from distillkit.settings import BenchSettings, ExportSettings
from distillkit.types import Batch, Want

FAST = BenchSettings(
    batch=[1, 3], length=[4, 8], rounds=2, warmup=1, iterations=4, seconds=0.0, threads=1, provider="cpu"
)
CHILD = [sys.executable, "-m", "distillkit.bench.child"]
FAKES = {
    "crash": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "hang": "import time; time.sleep(60)",
    "raise": "raise RuntimeError('no such operator')",
    "exit": "import sys; sys.exit(3)",
}
ECHO = """
from distillkit.bench.process import serve
from distillkit.errors import MissingError

def answer(question):
    print("what a library says")
    if question["say"] == "no":
        raise MissingError("it is not there", hint="install it")
    if question["say"] == "die":
        raise ValueError("no such thing")
    return {"said": question["say"]}

serve(answer)
"""


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
def test_a_process_that_dies_or_hangs_is_a_reason(name: str, words: str) -> None:
    start = time.monotonic()
    with closing(Child(fake(name), threads=1)) as child, pytest.raises(FailedError, match=words):
        child.ask({}, limit=1.0 if name == "hang" else 30.0)
    assert time.monotonic() - start < 20


def test_a_process_answers_line_by_line_whatever_it_prints() -> None:
    with closing(Child([sys.executable, "-c", ECHO], threads=1)) as child:
        for text in ("one", "ä\n" * 100_000):  # longer than a pipe holds
            assert child.ask({"say": text}, limit=60.0) == {"said": text}
        with pytest.raises(FailedError, match=r"^it is not there \(install it\)$"):
            child.ask({"say": "no"}, limit=60.0)
        with pytest.raises(FailedError, match="ValueError: no such thing"):
            child.ask({"say": "die"}, limit=60.0)
        with pytest.raises(FailedError, match="ValueError: no such thing"):
            child.ask({"say": "again"}, limit=60.0)


def test_what_stops_the_wait_for_a_process_goes_through() -> None:
    def stop() -> None:
        raise StoppedError("a signal")

    with closing(Child(fake("hang"), threads=1)) as child, pytest.raises(StoppedError):
        child.ask({}, limit=30.0, between=stop)


def test_real_measurements_stand_beside_a_row_that_failed(tmp_path: Path) -> None:
    model, samples = encoder(4), encoded(tmp_path / "cache", 30)
    model.save(tmp_path / "student", LABELS)
    (tmp_path / "empty").mkdir()
    variants = [
        Variant("student-pytorch", "student", "pytorch", tmp_path / "student"),
        Variant("student-onnxruntime", "student", "onnxruntime", tmp_path / "empty"),
        Variant("teacher-pytorch", "teacher", "pytorch", None, "it has no file"),
    ]
    rows = bench(variants, FAST, samples, LABELS, tmp_path, seed=0, metric="accuracy", command=CHILD)
    good, broken, absent = rows
    assert good.status == "ok" and "no such model file" in broken.status and absent.status == "it has no file"
    assert [(cell.batch, cell.length) for cell in good.cells] == [(1, 4), (1, 8), (3, 4), (3, 8)]
    assert all(0 < cell.p50_ms <= cell.p95_ms <= cell.p99_ms and cell.iterations >= 4 for cell in good.cells)
    assert all(len(cell.rounds_ms) == 2 for cell in good.cells)
    answers = evaluate.predict(
        lambda batch: model.eval().outputs(batch, want=Want()), samples, device=torch.device("cpu")
    )
    assert samples.labels is not None
    scores = evaluate.values(LABELS, samples.labels, answers)
    assert good.metrics["accuracy"]["value"] == pytest.approx(scores["accuracy"])
    assert good.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert good.size_bytes == (tmp_path / "student" / "model.safetensors").stat().st_size
    assert good.load_seconds is not None and good.load_seconds > 0
    assert good.first_seconds is not None and good.first_seconds > 0
    told = json.loads((tmp_path / "measurements.json").read_text())
    assert [row["status"] for row in told["measurements"]] == [row.status for row in rows]
    assert told["machine"]["threads"] == 1 and told["metric"] == "accuracy"


@pytest.fixture
def turns(tmp_path: Path) -> Iterator[tuple[list[str], Callable[..., list[Measurement]]]]:
    """What models in this process were asked, in order; and a bench of such models by name, with what the
    model does after so many calls."""
    asked: list[str] = []
    samples = encoded(tmp_path / "cache", 10)

    def run(settings: BenchSettings, names: str, fails: Mapping[str, int] = {}) -> list[Measurement]:
        def live(name: str) -> Callable[[], Opened]:
            def forward(batch: Batch) -> Any:
                asked.append(name)
                if asked.count(name) > fails.get(name, 10**6):
                    raise LookupError("too often")
                return np.zeros((batch.num_answers, 2), dtype=np.float32)

            return lambda: Opened(forward, "here", None, 8)

        variants = [Variant(name, "student", "pytorch", None, live=live(name)) for name in names]
        options = {"seed": 0, "metric": "accuracy", "command": CHILD}
        return bench(variants, settings, samples, LABELS, tmp_path, **options)  # type: ignore[arg-type]

    yield asked, run


def _blocks(asked: list[str]) -> str:
    return "".join(name for place, name in enumerate(asked) if place == 0 or asked[place - 1] != name)


ONE_CELL = FAST.model_copy(update={"batch": [1], "length": [4], "warmup": 0, "iterations": 3})


def test_models_take_turns_forward_and_backward(turns: Any) -> None:
    asked, run = turns
    rows = run(ONE_CELL.model_copy(update={"rounds": 3}), "abc")
    assert _blocks(asked) == "abcbabc", "c twice in a row at the first turn, a at the second"
    assert [len(row.cells[0].rounds_ms) for row in rows] == [3, 3, 3]
    assert [row.cells[0].iterations for row in rows] == [3, 3, 3], "one a round"
    asked.clear()
    run(ONE_CELL.model_copy(update={"rounds": 1}), "abc")
    assert _blocks(asked) == "abc"


def test_a_model_that_fails_in_a_later_round_is_a_row_and_the_others_go_on(turns: Any) -> None:
    asked, run = turns
    good, bad = run(ONE_CELL.model_copy(update={"rounds": 3}), "ab", {"b": 2})
    assert good.status == "ok" and bad.status == "failed: LookupError: too often"
    assert len(good.cells[0].rounds_ms) == 3 and asked.count("b") == 3


def test_every_round_has_its_share(tmp_path: Path) -> None:
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.01)

    clocked = Clocked(call)
    clocked.round(warmup=4, iterations=6, seconds=0.0)
    assert calls == 4 + 6
    clocked.round(warmup=1, iterations=1, seconds=0.1)
    told = clocked.told()
    assert told["p50_ms"] >= 10 and told["iterations"] >= 6 + 5 and calls == told["iterations"] + 5
    assert told["rounds_ms"] == clocked.medians and len(clocked.medians) == 2
    settings = FAST.model_copy(update={"batch": [2], "length": [5], "warmup": 3, "iterations": 5})
    opened = Opened(lambda batch: np.zeros((len(batch.ids), 2), dtype=np.float32), "here", None, 32)
    subject = Subject(opened, encoded(tmp_path, 10), settings, seed=0)
    for _ in range(settings.rounds):
        subject.round()
    (cell,) = subject.finish(logits)[0]["cells"]
    assert cell["iterations"] == 2 * 3 and (cell["batch"], cell["length"]) == (2, 5)
    assert cell["examples_per_s"] > 0


def test_percentiles_are_those_of_all_single_calls() -> None:
    clocked = Clocked(lambda: None)
    rounds = [np.random.default_rng(one).exponential(size=100) for one in range(3)]
    clocked.rounds = rounds
    told, every = clocked.told(), np.sort(np.concatenate(rounds))
    assert told["rounds_ms"] == [float(np.median(one)) for one in rounds]
    for name, share in (("p50_ms", 0.5), ("p95_ms", 0.95), ("p99_ms", 0.99)):
        place = share * 299
        low, high = every[int(place)], every[int(place) + 1]
        assert told[name] == pytest.approx(low + (place - int(place)) * (high - low))


def _row(name: str, role: str, *rounds: float) -> Measurement:
    cell = Cell(1, 8, *[float(np.median(rounds))] * 3, 1.0, 9, 0.1, list(rounds))
    return Measurement(name, role, "pytorch", "cpu", cells=[cell])  # type: ignore[arg-type]


def test_a_ranking_inside_the_noise_is_flagged() -> None:
    rows = [
        _row("a", "student", 1.0, 1.1, 1.2),
        _row("b", "student", 1.15, 1.3, 1.4),
        _row("c", "student", 2.0, 2.1, 2.2),
        _row("d", "teacher", 2.0, 2.1, 2.2),
    ]
    assert [row.cells[0].noisy for row in with_noise(rows)] == [True, True, False, False]
    single = [_row("a", "student", 1.0), _row("b", "student", 1.0)]
    assert not any(row.cells[0].noisy for row in with_noise(single)), "one round says nothing of noise"


def test_what_is_told_apart_comes_by_chance_as_rarely_as_is_said() -> None:
    """Two rows of one and the same model: in 2 of 20 orders of six values three lie below the other three."""
    drawn = np.random.default_rng(0).normal(size=(4000, 6))
    told = np.mean([told_apart(one[:3], one[3:]) for one in drawn.tolist()])
    assert told == pytest.approx(0.1, abs=0.015)


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
    samples = encoded(tmp_path, 10)
    with pytest.raises(MissingError, match="CUDA") as caught:
        bench([], settings, samples, LABELS, tmp_path, seed=0, metric="accuracy", command=CHILD)
    assert caught.value.exit_code == 5
    assert measure._provider(FAST.model_copy(update={"provider": "auto"})) == "cpu"


def test_peak_memory_is_that_of_the_process_and_not_of_the_one_that_started_it() -> None:
    """A child inherits ru_maxrss, so that every model would seem as large as the run that measures it."""
    ballast = np.ones(150_000_000)
    code = "from distillkit.bench.child import peak_resident_bytes as peak; print(peak())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(told.stdout) < peak_resident_bytes() - ballast.nbytes // 2


CPU = Machine("cpu", 1)


def test_bf16_in_pytorch_is_that_of_a_model_in_bfloat16(tmp_path: Path) -> None:
    """Not that of autocast, which keeps norms and sums in fp32."""
    model, samples = encoder(4).eval(), encoded(tmp_path / "cache", 12)
    model.save(tmp_path / "student", LABELS)
    batch = exact_batch(samples, 3, 8)
    with torch.inference_mode():
        plain = model.outputs(batch, want=Want()).logits.numpy()
        half = model.bfloat16().outputs(batch, want=Want()).logits.float().numpy()
    opened = BACKENDS["pytorch-bf16"].open(tmp_path / "student", CPU)
    assert np.array_equal(opened.forward(batch), half) and not np.array_equal(half, plain)
    eager = BACKENDS["pytorch"].open(tmp_path / "student", CPU)
    assert np.allclose(eager.forward(batch), plain, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(
    os.system("c++ --version > /dev/null 2>&1") != 0, reason="torch.compile wants a C++ compiler"
)
def test_compiled_answers_are_the_eager_ones_at_timed_shapes_and_at_others(tmp_path: Path) -> None:
    model, samples = encoder(4).eval(), encoded(tmp_path / "cache", 12)
    model.save(tmp_path / "student", LABELS)
    opened = BACKENDS["pytorch-compile"].open(tmp_path / "student", CPU)
    eager = BACKENDS["pytorch"].open(tmp_path / "student", CPU).forward
    for size, length in ((1, 4), (3, 8), (2, 5)):
        batch = exact_batch(samples, size, length)
        assert np.allclose(opened.calls(batch)["forward"](), eager(batch), atol=1e-5)  # type: ignore[arg-type]
    assert np.allclose(predict(opened.forward, samples, logits), predict(eager, samples, logits), atol=1e-5)
    batch = exact_batch(samples, 1, 4)
    from torch._dynamo.utils import counters

    before = counters["stats"]["unique_graphs"]
    opened.calls(batch)["forward"]()
    opened.forward(batch)
    assert counters["stats"]["unique_graphs"] == before, "no shape is compiled twice"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact")
    samples = encoded(folder / "cache", 12)
    (folder / "export").mkdir()
    export(encoder(4), tokenizer(), LABELS, samples, folder / "export", ExportSettings())
    return folder / "export"


def test_openvino_that_is_not_installed_says_how_to_install_it(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_openvino", None)
    with pytest.raises(MissingError, match="OpenVINO is not installed") as caught:
        BACKENDS["openvino"].open(artifact, CPU)
    assert caught.value.hint == "pip install 'distillkit[openvino]'"
    with pytest.raises(MissingError, match="on the CPU only"):
        BACKENDS["openvino"].open(artifact, replace(CPU, provider="cuda"))


@pytest.mark.parametrize("spinning", [False, True])
def test_an_artifact_answers_the_same_whether_its_threads_spin(
    artifact: Path, tmp_path: Path, spinning: bool
) -> None:
    batch = exact_batch(encoded(tmp_path, 12), 3, 8)
    opened = BACKENDS["onnxruntime"].open(artifact, Machine("cpu", 2, spinning))
    plain = encoder(4).eval()
    with torch.inference_mode():
        wanted = plain.outputs(batch, want=Want()).logits.numpy()
    assert np.allclose(opened.forward(batch), wanted, atol=1e-5)


def test_openvino_answers_like_the_plain_form_in_the_precision_that_is_asked_for(
    artifact: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime_ep_openvino", reason="the extra openvino is not installed")
    samples = encoded(tmp_path, 12)
    plain = BACKENDS["onnxruntime"].open(artifact, CPU)
    try:
        exact, half = (BACKENDS[name].open(artifact, CPU) for name in ("openvino", "openvino-bf16"))
    except MissingError as error:
        pytest.skip(error.problem)
    assert {exact.provider, half.provider} == {"OpenVINOExecutionProvider"}
    for size, length in ((1, 4), (3, 8)):
        batch = exact_batch(samples, size, length)
        wanted = plain.forward(batch)
        assert np.allclose(exact.forward(batch), wanted, atol=1e-5)
        assert np.allclose(half.forward(batch), wanted, atol=5e-2)


def test_buffers_that_stay_on_the_device_give_the_same_answers_batch_after_batch(
    artifact: Path, tmp_path: Path
) -> None:
    """On a GPU they save copies; a second batch must not be answered with the first one's."""
    samples = encoded(tmp_path, 12)
    session = open_session(artifact / "model.onnx", provider="cpu", threads=1)
    batches = [exact_batch(samples, 3, 8), exact_batch(encoded(tmp_path, 12, seed=7), 3, 8)]
    plain = [run_session(session, batch) for batch in batches]
    assert not np.allclose(*plain)
    bound = Bound(session, batches[0], "cpu")
    for place in (0, 1, 0):
        assert np.array_equal(bound.run(batches[place]), plain[place])
    assert np.array_equal(bound_calls(session, batches[1], "cpu")["forward"](), plain[1])  # type: ignore[arg-type]
