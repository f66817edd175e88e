"""What an artifact says of itself: artifact.json, all that is needed to answer a text as it was answered in
training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

from distillkit.errors import ConfigError, ExportError
from distillkit.wording import shown

FILE = "artifact.json"
MODEL = "model.onnx"
TOKENIZER = "tokenizer.json"
OUTPUT = "logits"
FORMAT = 2
"""Of artifact.json. A reader refuses what it does not know."""
_SIDES = ("left", "right")
T = TypeVar("T")


@dataclass(frozen=True)
class TaskRows:
    """One task of an artifact: how its rows are read, and which of the logits answer it.

    name: '' where it is the only one; columns: its text column in training, or two for a pair; max_chars:
    longer texts are cut before they become tokens; labels: its classes or tags, empty for a number; first:
    its first column of the logits.
    """

    name: str
    columns: tuple[str, ...]
    max_chars: int
    labels: tuple[str, ...]
    first: int

    @property
    def logits(self) -> slice:
        """Its columns of the logits."""
        return slice(self.first, self.first + max(1, len(self.labels)))


@dataclass(frozen=True)
class Tokens:
    """How texts become tokens, beside what tokenizer.json says.

    max_length: most tokens of a row; pad: id that fills up a batch; segments: whether the tokenizer's segment
    ids are used (else all are 0); cut: the side at which a row that is too long loses tokens; split_special:
    whether special tokens that are written in a text are text; prefix: what stands before every text.
    """

    max_length: int
    pad: int
    segments: bool
    cut: str
    split_special: bool
    prefix: str = ""


@dataclass(frozen=True)
class Writing:
    """How a model that writes does: the token before a text and the one behind it, texts that are pursued
    side by side, the power of the length by which their scores are divided, and tokens of a text.
    """

    start: int
    end: int
    beams: int
    length_penalty: float
    min_length: int
    max_length: int


@dataclass(frozen=True)
class Description:
    """kind: as in a recipe's `task.kind`; metric: what the weights were chosen by; inputs: of the model, in
    order; tasks: one, or several; writing: where texts are written, how.
    """

    kind: str
    metric: str
    inputs: tuple[str, ...]
    tokens: Tokens
    tasks: tuple[TaskRows, ...]
    writing: Writing | None = None

    def task(self, name: str) -> TaskRows:
        """A task by its name; '' is the only one. Raises ConfigError (2) for one that is not there."""
        names = [task.name for task in self.tasks]
        if name in names:
            return self.tasks[names.index(name)]
        if names == [""]:
            raise ConfigError(f"{shown(name)}: this artifact has one task, without a name", where="task")
        problem = f"there is no task {shown(name)}" if name else "this artifact has several tasks"
        raise ConfigError(problem, where="task", hint=f"name one of {', '.join(names)}")


def write_description(description: Description, folder: Path) -> None:
    """Write artifact.json."""
    content = {"format": FORMAT, **asdict(description)}
    (folder / FILE).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def read_description(folder: Path) -> Description:
    """Raises ExportError (10) where artifact.json is missing, of another format, or not what was written."""
    where = str(folder / FILE)
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(
            "the artifact does not describe itself",
            where=where,
            hint="an older version made it: export it again",
        ) from None
    except (OSError, ValueError, RecursionError):
        raise ExportError("not a readable JSON file", where=where, hint="export it again") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = shown(content.get("format") if isinstance(content, dict) else content)
        raise ExportError(
            f"format {found}; this version reads {FORMAT}",
            where=where,
            hint="use the distillkit that made it",
        )
    try:
        return _description(content)
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(
            f"not an artifact's description: {error}", where=where, hint="export it again"
        ) from None


def _description(content: Mapping[str, Any]) -> Description:
    told = _of(content, "tokens", dict)
    tokens = Tokens(
        _of(told, "max_length", int),
        _of(told, "pad", int),
        _of(told, "segments", bool),
        _of(told, "cut", str),
        _of(told, "split_special", bool),
        _of(told, "prefix", str),
    )
    if tokens.cut not in _SIDES or tokens.max_length < 1:
        raise ValueError(f"tokens.cut or tokens.max_length is {shown((tokens.cut, tokens.max_length))}")
    tasks = tuple(_task(task) for task in _of(content, "tasks", list))
    if not tasks:
        raise ValueError("it has no task")
    kind, metric = _of(content, "kind", str), _of(content, "metric", str)
    writing = None if content["writing"] is None else _writing(_of(content, "writing", dict))
    return Description(kind, metric, _names(content, "inputs"), tokens, tasks, writing)


def _writing(told: Mapping[str, Any]) -> Writing:
    start, end, beams = (_of(told, name, int) for name in ("start", "end", "beams"))
    fewest, most = _of(told, "min_length", int), _of(told, "max_length", int)
    penalty = told["length_penalty"]
    if not isinstance(penalty, float) or not isfinite(penalty) or not beams or not most:
        raise ValueError(f"writing is {shown(told)}")
    return Writing(start, end, beams, penalty, fewest, most)


def _task(told: Any) -> TaskRows:
    if not isinstance(told, dict):
        raise ValueError(f"a task is {shown(told)}")
    columns = _names(told, "columns")
    if len(columns) not in (1, 2):
        raise ValueError(f"a task has {len(columns)} text columns")
    first, max_chars = _of(told, "first", int), _of(told, "max_chars", int)
    return TaskRows(_of(told, "name", str), columns, max_chars, _names(told, "labels"), first)


def _of(told: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """A value of this type and, where it is a number, not negative."""
    value = told[name]
    if type(value) is not kind or (isinstance(value, int) and value < 0):
        raise ValueError(f"{name} is {shown(value)}")
    return value


def _names(told: Mapping[str, Any], name: str) -> tuple[str, ...]:
    values = _of(told, name, list)
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"{name} is {shown(values)}")
    return tuple(values)
