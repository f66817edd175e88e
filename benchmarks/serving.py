"""The server under load, against the same model in one process: latency, throughput, overload, a soak,
clients that go away or send nonsense, and its end.

Random weights: what a server costs does not depend on what a model learned. Load and server share the
machine, so that what is said of the server holds for less than the whole of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RUNS, write_result
from load import THREADS, Client, Load, Served, drive, post, serving
from transformers import BertConfig, PreTrainedTokenizerBase

from distillkit import files
from distillkit.data.batching import encode
from distillkit.data.builtin import builtin_table
from distillkit.data.tasks import Rows
from distillkit.data.tokenizers import train_wordpiece
from distillkit.encoder import fresh
from distillkit.export.bundle import Reading, export
from distillkit.runtime import Artifact
from distillkit.settings import ExportSettings, Labels

LABELS = Labels(kind="classification", names=("negative", "positive"))
MODELS = {"6 x 384": (6, 12), "3 x 384": (3, 12)}
SERVED = "3 x 384"
"""The model that all but the first two loads are measured on."""
LENGTH, LONGEST = 64, 512
QUEUE = 64
"""Rows that have room in the overloaded server."""
_FIRST = """
import sys
from distillkit.runtime import Artifact
Artifact.load(sys.argv[1], threads=1).predict(["a"])
"""


def artifact(name: str, tokenizer: PreTrainedTokenizerBase) -> Path:
    """An exported encoder of that size with random weights."""
    folder = RUNS / "serving" / name.replace(" ", "")
    if files.flaw(folder, hashes=False):
        layers, heads = MODELS[name]
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=30_522,
            hidden_size=384,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=1536,
            max_position_embeddings=LONGEST,
        )
        texts = tuple((text,) for text in real_texts()[:32])
        rows = Rows(np.arange(32), texts, np.zeros(32, dtype=np.int64), "serving")
        samples = encode(rows, tokenizer, max_length=LONGEST, cache=RUNS / "serving" / "cache")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with files.appearing(folder, dict) as inside:
            model = fresh(config, LABELS)
            export(model, tokenizer, LABELS, samples, inside, ExportSettings(), reading=Reading(LONGEST))
    return folder


def counted(count: int, scale: float) -> int:
    """So many requests, scaled, but enough for percentiles."""
    return max(100, round(count * scale))


def real_texts() -> list[str]:
    return builtin_table("rotten_tomatoes", "train", ("text", "label")).columns["text"]


def texts_of(lengths: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """A text of exactly so many tokens each, [CLS] and [SEP] among them, of random words of one piece."""
    words = sorted(
        word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha() and len(word) > 2
    )
    generator = np.random.default_rng(0)
    return [" ".join(generator.choice(words, size=max(0, length - 2))) for length in lengths]


def alone(folder: Path, texts: Sequence[str], seconds: float) -> dict[str, float]:
    """The same model in this process: milliseconds of one text after the other, and texts a second in
    batches.
    """
    model = Artifact.load(folder, threads=THREADS)
    for text in texts[:10]:
        model.predict([text])
    times: list[float] = []
    while sum(times) < seconds / 2:
        start = time.perf_counter()
        model.predict([texts[len(times) % len(texts)]])
        times.append(time.perf_counter() - start)
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds / 2:
        model.predict(texts[:32])
        done += 32
    together = done / (time.perf_counter() - start)
    return {
        "p50_ms": float(np.percentile(times, 50)) * 1000,
        "p99_ms": float(np.percentile(times, 99)) * 1000,
        "per_s_one_by_one": len(times) / sum(times),
        "per_s_together": together,
    }


def light(name: str, folder: Path, texts: Sequence[str], scale: float) -> dict[str, Any]:
    """L1 and L2, with L10's three fresh processes for L1."""
    requests = [post([text]) for text in texts]
    one, inside = [], alone(folder, texts, 20 * scale)
    for _ in range(3):
        with serving(folder) as served:
            asyncio.run(drive(served.port, requests, clients=1, count=10))
            one.append(asyncio.run(drive(served.port, requests, clients=1, count=counted(500, scale))))
    told: dict[str, Any] = {"model": name, "in_process": inside, "c1": [load.told() for load in one]}
    with serving(folder) as served:
        asyncio.run(drive(served.port, requests, clients=8, count=50))
        for clients in (8, 32):
            load = asyncio.run(drive(served.port, requests, clients=clients, seconds=60 * scale))
            told[f"c{clients}"] = load.told()
    told["in_process_after"] = alone(folder, texts, 20 * scale)
    return told


def overload(folder: Path, texts: Sequence[str], scale: float) -> dict[str, Any]:
    """L3."""
    requests = [post([text]) for text in texts]
    with serving(folder, "--queue", str(QUEUE)) as served:
        asyncio.run(drive(served.port, requests, clients=8, count=100))
        before = served.metric("process_resident_memory_bytes")
        load = asyncio.run(drive(served.port, requests, clients=128, seconds=30 * scale))
        after = served.metric("process_resident_memory_bytes")
    return {**load.told(), "queue": QUEUE, "memory_mb": [before / 1e6, after / 1e6]}


def soak(folder: Path, tokenizer: PreTrainedTokenizerBase, scale: float) -> dict[str, Any]:
    """L4: every length from 1 to the longest, and memory from after the first longest row on."""
    lengths = np.random.default_rng(1).integers(2, LONGEST + 1, size=400).tolist()
    requests = [post([text]) for text in texts_of([LONGEST, *lengths], tokenizer)]
    points: list[tuple[float, float]] = []
    total = Load()
    with serving(folder) as served:
        asyncio.run(drive(served.port, requests[:1], clients=2, count=4))
        begun = time.perf_counter()
        while time.perf_counter() - begun < 600 * scale:
            load = asyncio.run(drive(served.port, requests, clients=4, seconds=5))
            total.statuses += load.statuses
            total.seconds += load.seconds
            total.resets += load.resets
            total.wall += load.wall
            points.append(
                ((time.perf_counter() - begun) / 60, served.metric("process_resident_memory_bytes") / 1e6)
            )
    minutes, memory = np.asarray(points).T
    half = len(minutes) // 2
    return {
        **total.told(),
        "memory_mb": [memory[0], memory[-1]],
        "mb_per_minute": float(np.polyfit(minutes, memory, 1)[0]),
        "mb_per_minute_second_half": float(np.polyfit(minutes[half:], memory[half:], 1)[0]),
    }


def compared(folder: Path, tokenizer: PreTrainedTokenizerBase, scale: float) -> dict[str, Any]:
    """L5: texts of all lengths up to 128, each by a request of its own among 16 at a time."""
    count = counted(2000, scale)
    texts = texts_of(np.random.default_rng(2).integers(2, 129, size=count).tolist(), tokenizer)
    model = Artifact.load(folder, threads=THREADS)
    expected = [list(model.predict([text])[0].as_json()["probabilities"].values()) for text in texts]
    got: dict[int, list[float]] = {}

    async def client(port: int, numbers: Sequence[int]) -> None:
        one = Client(port)
        for number in numbers:
            _, _, body = await one.ask(post([texts[number]]))
            got[number] = list(json.loads(body)["answers"][0]["probabilities"].values())
        one.close()

    async def all_of_them(port: int) -> None:
        await asyncio.gather(*(client(port, range(first, count, 16)) for first in range(16)))

    with serving(folder) as served:
        asyncio.run(all_of_them(served.port))
        batches = served.metric("distillkit_batch_rows_count")
    apart = max(float(np.abs(np.subtract(got[number], one)).max()) for number, one in enumerate(expected))
    return {"requests": len(got), "batches": batches, "largest_difference": apart}


def ended(folder: Path, texts: Sequence[str]) -> dict[str, Any]:
    """L6: SIGTERM while 8 clients ask."""
    requests = [post([text]) for text in texts]

    async def main(served: Served) -> tuple[Load, float]:
        asking = asyncio.create_task(drive(served.port, requests, clients=8, seconds=30, until_refused=True))
        await asyncio.sleep(2)
        served.process.send_signal(signal.SIGTERM)
        begun = time.perf_counter()
        await asyncio.to_thread(served.process.wait, 20)
        return await asking, time.perf_counter() - begun

    with serving(folder) as served:
        load, took = asyncio.run(main(served))
    return {**load.told(), "exit": served.process.returncode, "seconds_to_exit": took}


def left(folder: Path, texts: Sequence[str]) -> dict[str, Any]:
    """L8: 200 clients go away before they are answered; then all places are free."""

    async def main(port: int) -> None:
        for _ in range(200):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(post(list(texts[:8])))
            await writer.drain()
            writer.close()

    with serving(folder) as served:
        asyncio.run(main(served.port))
        begun = time.perf_counter()
        while served.metric("distillkit_rows_inside") and time.perf_counter() - begun < 30:
            pass
        free = served.metric("distillkit_rows_inside") == 0
        load = asyncio.run(drive(served.port, [post([texts[0]])], clients=4, count=100))
    return {"places_free": free, "seconds": time.perf_counter() - begun, "after": load.told()}


def nonsense(folder: Path, texts: Sequence[str], scale: float) -> dict[str, Any]:
    """L9: every fifth request is bad."""
    requests = [post([text]) if place % 5 else post([place]) for place, text in enumerate(texts)]
    with serving(folder) as served:
        load = asyncio.run(drive(served.port, requests, clients=8, count=counted(1000, scale)))
    return load.told()


def cold(folder: Path) -> dict[str, Any]:
    """L7, and the runtime by itself: seconds from the start of a process to its first answer."""
    ready, first = [], []
    for _ in range(5):
        with serving(folder) as served:
            ready.append(served.ready_after)
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", _FIRST, str(folder)], check=True)
        first.append(time.perf_counter() - begun)
    return {"ready_after_s": ready, "first_answer_after_s": first}


def lines_of(content: dict[str, Any]) -> list[str]:
    """The result for people, each figure beside what it should be."""
    before, after = content["load_average"]
    lines = [
        "# The server under load",
        f"`distillkit serve` with one ONNX Runtime thread, rows of {LENGTH} tokens, on loopback, random",
        "weights; the load runs on the same cores. Durations and counts are",
        f"{content['scale']:g} times the plan's (60 s, 30 s, 10 minutes). Load average {before:.1f} before",
        f"and {after:.1f} after: other work may have shared the cores.",
        "",
        "| | what | found | should be |",
        "|---|---|---|---|",
    ]
    rows = [row for told in content["light"] for row in _light_rows(told)]
    rows += [*_hard_rows(content), *_other_rows(content)]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


Cells = tuple[str, str, str, str]


def _light_rows(told: dict[str, Any]) -> list[Cells]:
    """L1 and L2 of one model."""
    inside = [told["in_process"], told["in_process_after"]]
    alone_p50 = [one["p50_ms"] for one in inside]
    fastest = max(max(one["per_s_together"], one["per_s_one_by_one"]) for one in inside)
    p50 = [one["p50_ms"] for one in told["c1"]]
    noisy = "; noisy" if max(_spread(p50), _spread(alone_p50)) > 0.1 else ""
    found = (
        f"{_said(told['c1'][0])} each; p50 {_range(p50)} ms, in one process {_range(alone_p50)}: "
        f"{np.median(p50) - min(alone_p50):+.1f} ms{noisy}"
    )
    rows = [("L1", f"{told['model']}, one client, 3 new servers", found, "no error, at most 8 ms more")]
    for clients in (8, 32):
        load = told[f"c{clients}"]
        bound = 1.5 * clients / load["per_s"] * 1000
        found = (
            f"{_said(load)}; {load['per_s']:.0f} a second, {load['per_s'] / fastest:.0%} of the "
            f"{fastest:.0f} in one process; p99 {load['p99_ms']:.0f} ms"
        )
        goal = f"no 5xx, at least 85 %, p99 at most {bound:.0f} ms"
        rows.append(("L2", f"{told['model']}, {clients} clients", found, goal))
    return rows


def _hard_rows(content: dict[str, Any]) -> list[Cells]:
    """L3 and L4."""
    over, long = content["overload"], content["soak"]
    best = next(told["c32"]["per_s"] for told in content["light"] if told["model"] == SERVED)
    first, last = over["memory_mb"]
    found = (
        f"{_said(over)}; {over['per_s']:.0f} a second, {over['per_s'] / best:.0%} of L2; "
        f"memory {first:.0f} to {last:.0f} MB"
    )
    slope = (
        f"{_said(long)}; {long['mb_per_minute']:+.2f} MB a minute, "
        f"{long['mb_per_minute_second_half']:+.2f} in the second half"
    )
    minutes = f"{long['wall_s'] / 60:.1f} minutes, lengths 2 to {LONGEST}"
    return [
        ("L3", f"128 clients, room for {QUEUE}", found, "200 and 429 alone, at least 80 %, memory flat"),
        ("L4", minutes, slope, "no error, at most 1 MB a minute"),
    ]


def _other_rows(content: dict[str, Any]) -> list[Cells]:
    """L5 to L9."""
    same, end, cold_one = content["compared"], content["end"], content["cold"]
    apart = f"largest difference {same['largest_difference']:.1e}, in {same['batches']:.0f} batches"
    took, resets = end["seconds_to_exit"], end["resets"]
    stopped = f"exit {end['exit']} after {took:.1f} s; {_said(end)}, {resets} connections reset"
    gone = content["left"]
    free = "all places free" if gone["places_free"] else "places lost"
    bad = _said(content["nonsense"])
    ready, first = (_range(cold_one[name]) for name in ("ready_after_s", "first_answer_after_s"))
    return [
        ("L5", f"{same['requests']} answers against those given alone", apart, "at most 1e-5"),
        ("L6", "SIGTERM under load", stopped, "exit 0 within 10 s, none reset"),
        ("L7", "ready after its start", f"{ready} s", "at most 2 s"),
        ("", "the runtime's first answer after Python's start", f"{first} s", "at most 1 s"),
        ("L8", "200 clients go away", f"{free}; then {_said(gone['after'])}", "no place lost"),
        ("L9", "every fifth request is bad", bad, "four times as many 200 as 422"),
    ]


def _said(load: dict[str, Any]) -> str:
    return ", ".join(f"{count} times {status}" for status, count in load["statuses"].items())


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.3g} to {max(values):.3g}"


def _spread(values: Sequence[float]) -> float:
    return (max(values) - min(values)) / min(values)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", type=float, default=1.0, help="durations, as a share of the plan's")
    scale = parser.parse_args().scale
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = train_wordpiece(real_texts(), vocab_size=8000, max_length=LONGEST)
    folders = {name: artifact(name, tokenizer) for name in MODELS}
    served, texts = folders[SERVED], texts_of([LENGTH] * 200, tokenizer)
    before = os.getloadavg()[0]
    content: dict[str, Any] = {"scale": scale, "threads": THREADS, "tokens": LENGTH}
    content["light"] = [light(name, folder, texts, scale) for name, folder in folders.items()]
    content["overload"] = overload(served, texts, scale)
    content["compared"] = compared(served, tokenizer, scale)
    content["end"], content["left"] = ended(served, texts), left(served, texts)
    content["nonsense"], content["cold"] = nonsense(served, texts, scale), cold(served)
    content["soak"] = soak(served, tokenizer, scale)
    content["load_average"] = [before, os.getloadavg()[0]]
    write_result("serving", content, lines_of(content))


if __name__ == "__main__":
    main()
