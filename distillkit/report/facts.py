"""All that the report, the model card and the comparison of runs show, as plain values in one JSON file.

The pipeline fills a RunFacts; nothing else reaches the page. No torch here: `distillkit compare` reads
facts only. What a run does not have is empty: an empty tuple or dict, or None where a whole part is
missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from distillkit.errors import IntegrityError
from distillkit.metrics import Baseline, Calibration, ClassScore, Measured
from distillkit.settings import TaskKind

FACTS_FILE = "facts.json"
PLAIN = "fp32"
"""The form of an artifact that the others are made from."""
Role = Literal["member", "first teacher", "assistant", "peer"]
"""What a model was in the making of another."""


@dataclass(frozen=True)
class Setting:
    """One value of the resolved config: the path of its field, the value, and where it came from."""

    path: str
    value: str
    origin: str


@dataclass(frozen=True)
class TaskFacts:
    """The task: rows by split, gold labels by split, the constant answer's score, and what the reader noted.

    metric: the one that leads the report; measured_on: the split that every figure is measured on; tasks: of
    several, the first of its labels and the one behind its last; prefix, max_target: where texts are written.
    """

    kind: TaskKind
    metric: str
    measured_on: str
    rows: dict[str, int]
    baseline: Baseline
    labels: tuple[str, ...] = ()
    max_length: int = 128
    label_counts: dict[str, dict[str, int]] = field(default_factory=dict)
    tasks: dict[str, tuple[int, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    prefix: str = ""
    max_target: int | None = None


@dataclass(frozen=True)
class ModelFacts:
    """One model: what it is, its sizes, and how well it answers.

    source: the registered name it came from; sizes: the fields of its Spec; confusion: gold x predicted
    counts.
    """

    source: str
    sizes: dict[str, int]
    parameters: int | None
    metrics: dict[str, Measured]
    per_class: tuple[ClassScore, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    calibration: Calibration | None = None


@dataclass(frozen=True)
class Example:
    """A row where teacher and student answer differently; for regression and tags the confidences are
    None.
    """

    texts: tuple[str, ...]
    gold: str
    teacher: str
    student: str
    teacher_confidence: float | None = None
    student_confidence: float | None = None


@dataclass(frozen=True)
class Point:
    """One logged step: the total, each term raw and weighted, and each term's share of the gradient."""

    step: int
    total: float
    raw: dict[str, float] = field(default_factory=dict)
    weighted: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    lr: float | None = None


@dataclass(frozen=True)
class Curve:
    """The training of one stage; `evaluations` holds (step, metric name -> value) on the validation rows."""

    stage: str
    points: tuple[Point, ...]
    evaluations: tuple[tuple[int, dict[str, float]], ...] = ()


@dataclass(frozen=True)
class Cell:
    """Latency of one batch x length, in milliseconds for a whole batch; of a model that writes, of whole
    texts, with the time until their first token. rounds_ms: the median of each round; noisy: they overlap
    with those of another row of its role, so that the two are not told apart.
    """

    batch: int
    length: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    examples_per_s: float
    tokens_per_s: float | None = None
    first_ms: float | None = None
    rounds_ms: tuple[float, ...] = ()
    noisy: bool = False


@dataclass(frozen=True)
class BenchRow:
    """A model in a runtime, measured. Unknown sizes are None; `status` is "ok" or says what went wrong.

    format: the form of an artifact; precision: of its arithmetic; first_seconds: until its first answer, once
    loaded; scenarios: figures by name; difference: its metrics minus those of the plain form of its
    role; agreement: with that one's answers.
    """

    name: str
    role: str
    backend: str
    provider: str
    status: str = "ok"
    size_bytes: int | None = None
    parameters: int | None = None
    flops: float | None = None
    peak_memory_bytes: int | None = None
    load_seconds: float | None = None
    cells: tuple[Cell, ...] = ()
    metrics: dict[str, Measured] = field(default_factory=dict)
    format: str = PLAIN
    difference: dict[str, Measured] = field(default_factory=dict)
    precision: str = PLAIN
    first_seconds: float | None = None
    scenarios: dict[str, dict[str, Any]] = field(default_factory=dict)
    agreement: dict[str, float] = field(default_factory=dict)

    @property
    def throughput(self) -> float | None:
        """Most examples a second at any batch x length; None where nothing was timed."""
        return max((cell.examples_per_s for cell in self.cells), default=None)

    @property
    def cold_seconds(self) -> float | None:
        """From an open folder to the first answer."""
        if self.load_seconds is None or self.first_seconds is None:
            return self.load_seconds
        return self.load_seconds + self.first_seconds


@dataclass(frozen=True)
class FormFacts:
    """What came of another form of the artifact when it was exported: as in `export/formats.json`."""

    status: str
    size_bytes: int
    made: dict[str, int]
    max_abs_difference: float
    relative_difference: float
    same_predictions: float


@dataclass(frozen=True)
class Link:
    """A model that this one was made through, on the same rows: a member of the teacher, a peer, or what
    stands between the first teacher and the student. source: its registered name; parameters: None where they
    are not known.
    """

    role: Role
    name: str
    source: str
    parameters: int | None
    metrics: dict[str, Measured]


@dataclass(frozen=True)
class Leaving:
    """One rule by which examples leave a model with exits, measured on the artifact. shares: of the rows, by
    the exit at which they leave; difference: to the model's own last answer on the same rows; ece: expected
    calibration error, None where answers are numbers; ms: milliseconds a row, by batch size; speedup: over
    the whole model in one piece.
    """

    rule: str
    chosen: bool
    depth: float
    shares: tuple[float, ...]
    metrics: dict[str, Measured]
    difference: dict[str, Measured]
    ece: float | None
    ms: dict[int, float]
    speedup: dict[int, float]


@dataclass(frozen=True)
class ExitFacts:
    """A student's exits. depths: blocks before each, the whole depth last; status is "ok" or says what went
    wrong.
    """

    depths: tuple[int, ...]
    rules: tuple[Leaving, ...]
    status: str = "ok"


@dataclass(frozen=True)
class RunFacts:
    """What one run asked for and what came out."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    task: TaskFacts
    teacher: ModelFacts
    student: ModelFacts
    difference: dict[str, Measured] = field(default_factory=dict)
    """Student minus teacher on the same rows, with paired intervals."""
    agreement: dict[str, float] = field(default_factory=dict)
    interchange: dict[str, float] = field(default_factory=dict)
    """Agreement under the same interventions on both (`same`, or `pearson`), the share of the teacher's
    answers that these change (`changed`), and how many `rows` that is measured on."""
    outcomes: dict[str, int] = field(default_factory=dict)
    """Answers (rows, words, masked tokens) that both models get right, one of them, or neither."""
    learning: str = ""
    """Registered name of the teacher where it learned while the student did."""
    links: tuple[Link, ...] = ()
    examples: tuple[Example, ...] = ()
    losses: dict[str, str] = field(default_factory=dict)
    """Loss name -> what it is, in words (`0.7 x logits, temperature 4`)."""
    curves: tuple[Curve, ...] = ()
    bench: tuple[BenchRow, ...] = ()
    exits: ExitFacts | None = None
    licences: tuple[str, ...] = ()
    """Of the models that teacher and student were made from, as their cards call them."""
    formats: dict[str, FormFacts] = field(default_factory=dict)
    """Other forms of the artifact by name."""
    tolerance: float = 0.005
    """Of the leading metric, that a faster form may lose and still be recommended."""
    parity: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    """Stage -> seconds."""
    settings: tuple[Setting, ...] = ()
    config: str = ""
    """The resolved config as YAML, as it lies in the run."""
    command: str = "distillkit run config.yaml"
    notes: tuple[str, ...] = ()
    version: int = 1


_ADAPTER = TypeAdapter(RunFacts)
_BENCH = TypeAdapter(tuple[BenchRow, ...])
_EXITS = TypeAdapter(ExitFacts)
_FORMATS = TypeAdapter(dict[str, FormFacts])


def save_facts(facts: RunFacts, path: Path) -> None:
    """Write the facts as ASCII JSON (Python's `NaN` and `Infinity` where a figure is not finite)."""
    path.write_text(json.dumps(_ADAPTER.dump_python(facts), indent=1), encoding="ascii")


def load_facts(path: Path) -> RunFacts:
    """Read what `save_facts` wrote; IntegrityError (8): damaged, or of another version."""
    try:
        return _ADAPTER.validate_python(json.loads(path.read_bytes()))
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(map(str, first['loc'])) or 'file'}: {first['msg']}"
    except ValueError as error:
        problem = str(error)
    raise IntegrityError(
        f"not the facts of a run: {problem}",
        where=path.name,
        hint="remove the run's folder report/ and run it again: it is made anew from the other stages",
    )


def load_bench(path: Path) -> tuple[BenchRow, ...]:
    """The rows of bench/measurements.json: a list under `measurements`, by the fields of BenchRow.

    Other fields are ignored. No file, no rows; raises IntegrityError (8) where it is damaged.
    """
    if not path.exists():
        return ()
    with _measurements(path):
        return _BENCH.validate_python(json.loads(path.read_bytes())["measurements"])


def load_exits(path: Path) -> ExitFacts | None:
    """What bench/exits.json holds; None where a student has none. Raises IntegrityError (8) where it is
    damaged.
    """
    if not path.exists():
        return None
    with _measurements(path):
        return _EXITS.validate_python(json.loads(path.read_bytes()))


def load_formats(path: Path) -> dict[str, FormFacts]:
    """What export/formats.json holds; nothing where there is the plain form alone. Raises IntegrityError (8)
    where it is damaged.
    """
    if not path.exists():
        return {}
    with _measurements(path):
        return _FORMATS.validate_python(json.loads(path.read_bytes()))


@contextmanager
def _measurements(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"not the measurements of a run: {error}",
            where=path.name,
            hint="remove the run's folder bench/ and run it again: it is measured anew",
        ) from error


def flat_settings(config: Mapping[str, Any], origins: Mapping[str, str]) -> tuple[Setting, ...]:
    """Every leaf of a resolved config, in its order: `distill.losses.kd.weight`, its JSON, its origin.

    origins: field path -> where the value came from; a leaf without its own origin takes its nearest
    parent's.
    """
    return tuple(
        Setting(path=path, value=json.dumps(value, ensure_ascii=False), origin=_origin(path, origins))
        for path, value in _leaves(config, "")
    )


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(inner, Mapping) for inner in value):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{index}]")
    else:
        yield path, value


def _origin(path: str, origins: Mapping[str, str]) -> str:
    while path and path not in origins:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return origins.get(path, "default")
