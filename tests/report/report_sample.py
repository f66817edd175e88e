"""Invented facts of a run, complete enough for every part of the page. No figure here was ever measured."""

from __future__ import annotations

import math
from dataclasses import replace

from distillkit.metrics import Baseline, Calibration, ClassScore, Measured, ReliabilityBin
from distillkit.report.facts import (
    BenchRow,
    Cell,
    Curve,
    Example,
    ModelFacts,
    Point,
    RunFacts,
    Setting,
    TaskFacts,
)


def measured(value: float, half: float = 0.022, n: int = 872) -> Measured:
    return Measured(value=value, low=value - half, high=value + half, n=n)


def model(source: str, layers: int, width: int, parameters: int, accuracy: float) -> ModelFacts:
    wrong = round(436 * (1 - accuracy))
    return ModelFacts(
        source=source,
        sizes={"num_layers": layers, "hidden_dim": width, "num_heads": width // 64},
        parameters=parameters,
        metrics={
            "accuracy": measured(accuracy),
            "macro_f1": measured(accuracy - 0.001),
            "mcc": measured(2 * accuracy - 1, 0.04),
        },
        per_class=(
            ClassScore("negative", accuracy + 0.01, accuracy - 0.01, accuracy, 436),
            ClassScore("positive", accuracy - 0.01, accuracy + 0.01, accuracy, 436),
        ),
        confusion=((436 - wrong, wrong), (wrong + 3, 433 - wrong)),
        calibration=Calibration(
            ece=0.03,
            bins=tuple(
                ReliabilityBin(
                    low=x / 15, high=(x + 1) / 15, count=20 * x, confidence=(x + 0.5) / 15, accuracy=x / 15.5
                )
                for x in range(7, 15)
            ),
        ),
    )


def curve(stage: str, steps: int, terms: dict[str, float]) -> Curve:
    def point(step: int) -> Point:
        raw = {
            name: (0.2 + math.exp(-step / (0.25 * steps))) * (1 + 0.1 * math.sin(step * (3 + index)))
            for index, name in enumerate(terms)
        }
        weighted = {name: weight * raw[name] for name, weight in terms.items()}
        total = sum(weighted.values())
        shares = {name: value / total for name, value in weighted.items()}
        return Point(step=step, total=total, raw=raw, weighted=weighted, shares=shares, lr=1e-4)

    return Curve(
        stage=stage,
        points=tuple(point(step) for step in range(20, steps, 20)),
        evaluations=tuple(
            (step, {"accuracy": 0.85 - 0.3 * math.exp(-step / 400)}) for step in range(200, steps, 200)
        ),
    )


def bench_row(
    role: str, backend: str, base_ms: float, size: int, parameters: int, accuracy: float
) -> BenchRow:
    cells = tuple(
        Cell(batch, length, ms, 1.12 * ms, 1.3 * ms, 1000 * batch / ms)
        for batch in (1, 8, 32)
        for length in (16, 64, 128)
        for ms in [base_ms * (0.4 + 0.6 * batch * length / 64)]
    )
    return BenchRow(
        name=f"{role}-{backend}",
        role=role,
        backend=backend,
        provider="CPUExecutionProvider" if backend == "onnxruntime" else "cpu",
        size_bytes=size,
        parameters=parameters,
        flops=parameters * 24.0,
        peak_memory_bytes=3 * size + 90_000_000,
        load_seconds=0.21,
        cells=cells,
        metrics={"accuracy": measured(accuracy)},
    )


def classification() -> RunFacts:
    """A run with every part present."""
    return RunFacts(
        name="sst2-small",
        task=TaskFacts(
            kind="classification",
            metric="accuracy",
            measured_on="validation",
            rows={"train": 67_349, "validation": 872},
            baseline=Baseline("positive", {"accuracy": 0.509, "macro_f1": 0.337, "mcc": 0.0}),
            labels=("negative", "positive"),
            label_counts={
                "train": {"negative": 29_780, "positive": 37_569},
                "validation": {"negative": 428, "positive": 444},
            },
            notes=("train: 312 of 67,349 rows (0.5 %) are duplicates", "0 rows longer than 128 tokens"),
        ),
        teacher=model("bert", 4, 256, 11_170_000, 0.867),
        student=model("transformer", 2, 128, 4_390_000, 0.842),
        difference={
            "accuracy": Measured(-0.025, -0.041, -0.009, 872),
            "mcc": Measured(-0.05, -0.08, -0.02, 872),
        },
        agreement={"same": 0.932, "kappa": 0.864, "kl": 0.041},
        interchange={"same": 0.874, "kappa": 0.75, "kl": 0.08, "changed": 0.213, "rows": 500},
        outcomes={
            "both right": 710,
            "only the teacher right": 46,
            "only the student right": 24,
            "both wrong": 92,
        },
        examples=(
            Example(
                ("it 's a charming and often affecting journey .",),
                "positive",
                "positive",
                "negative",
                0.98,
                0.71,
            ),
            Example(("unflinchingly bleak and desperate",), "negative", "positive", "negative", 0.62, 0.83),
            Example(
                (
                    "allows us to hope that a major career as a commercial yet inventive filmmaker begins . "
                    * 2,
                ),
                "positive",
                "positive",
                "negative",
                0.91,
                0.55,
            ),
        ),
        losses={
            "gold": "0.3 × gold",
            "kd": "0.7 × logits, temperature 4",
            "states": "1.0 × hidden_cosine, layers last",
        },
        curves=(
            curve("pretrain", 5000, {"mlm": 1.0, "nsp": 1.0}),
            curve("teacher", 1200, {"gold": 1.0}),
            curve("student", 2400, {"gold": 0.3, "kd": 0.7, "states": 1.0}),
        ),
        bench=(
            bench_row("teacher", "pytorch", 6.4, 44_800_000, 11_170_000, 0.867),
            bench_row("teacher", "onnxruntime", 4.2, 44_900_000, 11_170_000, 0.867),
            bench_row("student", "pytorch", 2.1, 17_600_000, 4_390_000, 0.842),
            bench_row("student", "onnxruntime", 1.08, 17_700_000, 4_390_000, 0.842),
        ),
        parity={"max_abs_difference": 2.4e-06, "tolerance": 0.0001, "rows": 64, "same_predictions": True},
        environment={
            "distillkit": "0.1.0",
            "python": "3.11.15",
            "platform": "Linux x86_64",
            "cpu": "a processor, 2 cores",
            "threads": 2,
            "packages": {"torch": "2.13.0", "transformers": "5.23.0", "onnxruntime": "1.31.1"},
        },
        timings={
            "tokenizer": 3.1,
            "pretrain": 1830.0,
            "teacher": 412.0,
            "student": 655.0,
            "export": 21.0,
            "bench": 130.0,
        },
        settings=(
            Setting("name", '"sst2-small"', "config.yaml:1:7"),
            Setting("student.layers", "2", "command line"),
            Setting("distill.epochs", "6", "config.yaml:12:11"),
            Setting("export.opset", "18", "default"),
        ),
        config="name: sst2-small\nseed: 13\ntask: {kind: classification, train: train.jsonl.gz}\n",
    )


def regression() -> RunFacts:
    """A run whose task is regression: no classes, no calibration."""

    def scores(value: float) -> dict[str, Measured]:
        return {
            "pearson": measured(value),
            "spearman": measured(value - 0.01),
            "mse": measured(0.8 - value / 2),
        }

    full = classification()
    return replace(
        full,
        name="similarity",
        task=TaskFacts(
            kind="regression",
            metric="pearson",
            measured_on="test",
            rows={"train": 5749, "validation": 1500, "test": 1379},
            baseline=Baseline("2.701", {"pearson": 0.0, "spearman": 0.0, "mse": 2.2}),
        ),
        teacher=replace(full.teacher, metrics=scores(0.84), per_class=(), confusion=(), calibration=None),
        student=replace(full.student, metrics=scores(0.79), per_class=(), confusion=(), calibration=None),
        difference={"pearson": measured(-0.05, 0.01)},
        agreement={"pearson": 0.93, "mean_abs_difference": 0.31},
        interchange={"pearson": 0.87, "mean_abs_difference": 0.41},
        outcomes={},
        examples=(Example(("a man plays", "a man is playing"), "4.8", "4.6", "2.1"),),
        bench=tuple(replace(row, metrics={"pearson": measured(0.8)}) for row in full.bench),
    )


def minimal() -> RunFacts:
    """The least that a run can have: two models and their scores."""
    plain = ModelFacts(source="custom", sizes={}, parameters=100, metrics={"accuracy": measured(0.8)})
    return RunFacts(
        name="least",
        task=TaskFacts(
            kind="classification",
            metric="accuracy",
            measured_on="validation",
            rows={"train": 20, "validation": 10},
            baseline=Baseline("a", {"accuracy": 0.5}),
            labels=("a", "b"),
        ),
        teacher=plain,
        student=plain,
    )
