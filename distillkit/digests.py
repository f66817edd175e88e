"""What the result of each stage depends on, as digests: settings, content and code, but nothing that only
says how it is computed (`runtime`, `Section.mechanical`) or shown.

An object from Python is identified by the source of its class, by its public attributes and, where it has
one, by its own `fingerprint()`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distillkit.data.corpora import corpus_digest
from distillkit.data.reading import check_file, file_digest
from distillkit.data.tasks import Task
from distillkit.encoder import folder_digest
from distillkit.errors import ConfigError
from distillkit.losses.base import LossStack
from distillkit.model import StudentSource, TeacherSource, TrainableTeacherSource
from distillkit.runtime.description import FORMAT
from distillkit.settings import Phase, RunConfig, Section, TinybertAugment
from distillkit.types import Access

_SILENT = (None, TeacherSource.fingerprint, StudentSource.fingerprint)
"""Fingerprints of objects that have no own."""
_NOT_THEIRS = ("distillkit.", "torch.", "builtins.", "abc.", "typing.")


@dataclass(frozen=True)
class Training:
    """One call of the training loop: `name` is the folder of its checkpoints, `settings` and `data` are the
    digests that they are held to.
    """

    name: str
    stage: str
    settings: str
    data: str


def contents(config: RunConfig, base: Path, task: Task, teacher: TeacherSource) -> dict[str, str]:
    """Training -> digest of the data that it reads, in the order in which they run."""
    trainable = teacher if isinstance(teacher, TrainableTeacherSource) else None
    found = {}
    if trainable is not None and trainable.pretrain is not None:
        found["pretrain"] = corpus_digest(trainable.pretrain.corpus, base=base)
    finetune = None if trainable is None else trainable.training(task.labels)
    if finetune is not None:
        found |= dict.fromkeys(_numbered("teacher", finetune.seeds), task.train.digest)
    for name, phase in zip(_numbered("student", len(config.phases)), config.phases, strict=True):
        found[name] = _read_by(phase, base, task)
    return found


def _numbered(stage: str, count: int) -> list[str]:
    """Names of a stage's trainings."""
    return [stage] if count == 1 else [f"{stage}-{index}" for index in range(1, count + 1)]


def _read_by(phase: Phase, base: Path, task: Task) -> str:
    """Digest of what a phase reads: the task's rows or a corpus, rows and models that it adds to them."""
    rows = task.train.digest if phase.corpus is None else corpus_digest(phase.corpus, base=base)
    augment = phase.augment
    vectors = augment.vectors if isinstance(augment, TinybertAugment) else None
    more = [base / path for path in (phase.unlabelled, vectors) if path is not None]
    for path in more:
        check_file(path)
    contents = [file_digest(path) for path in more]
    if augment is not None and augment.model is not None:
        contents.append(folder_digest(base / augment.model))
    return digest(rows, *contents) if contents else rows


def trainings(data: Mapping[str, str], stages: Mapping[str, str]) -> dict[str, Training]:
    """Every training of a run by its name; `data` is what it reads (`contents`), `stages` are the stages'
    digests.
    """
    made = {}
    for name, content in data.items():
        stage = name.split("-")[0]
        made[name] = Training(name, stage, digest(stages[stage], name), content)
    return made


def stage_digests(
    config: RunConfig,
    task: Task,
    teacher: TeacherSource,
    student: StudentSource,
    stacks: Sequence[LossStack],
    data: Mapping[str, str],
    given: Mapping[str, object],
) -> dict[str, str]:
    """Stage -> digest of all that its result depends on, and of the stages before it.

    data: what each training reads (`contents`); given: the objects that took the place of what the config
    names, by what they are.
    """
    named = config.teacher.identity()
    finetune = named.pop("finetune", None)
    for one in (named, *named.get("members", {}).values()):
        one.pop("allow_weak")
    if given.get("teacher") is not None:
        named, finetune = {}, getattr(teacher, "finetune", None)
    body = [
        named,
        teacher.fingerprint(),
        _code(teacher),
        object_key(given.get("teacher"), leave=("finetune",)),
    ]
    inner = [_code(one) for one in teacher.made_of]
    body += [inner] if any(inner) else []
    phases = [content for name, content in data.items() if name.startswith("student")]
    losses = [_code(loss) for stack in stacks for loss in stack.terms.values()]
    judged = [task.digest, config.task.max_length, config.task.metric, config.seed]
    judged += [one.generation for one in config.task.single.values() if one.generation is not None]
    judged += ["edits" for one in config.task.single.values() if one.edits]
    objects = [object_key(given.get(name)) for name in ("student", "losses")]
    rounded = [_rounded(*pair) for pair in zip(config.phases, stacks, strict=True)]
    chain: dict[str, str] = {}
    chain["tokenizer"] = digest(body, data.get("pretrain", task.digest))
    chain["pretrain"] = digest(chain["tokenizer"], config.seed)
    chain["teacher"] = digest(chain["pretrain"], finetune, judged)
    chain["student"] = digest(
        chain["teacher"],
        config.student,
        student.fingerprint(),
        config.phases,
        phases,
        [code for one in getattr(student, "sources", {"": student}).values() for code in _code(one)],
        losses,
        objects,
        *([rounded] if any(rounded) else []),
    )
    chain["export"] = digest(chain["student"], config.export, FORMAT)
    chain["bench"] = digest(chain["export"], config.bench)
    chain["report"] = digest(chain["bench"], config.name, config.report)
    return chain


def _rounded(phase: Phase, stack: LossStack) -> list[object]:
    """What a cache of the teacher's answers changes in them; nothing where it keeps them as they are."""
    cache = phase.cache
    if cache is None:
        return []
    states = stack.needs.access >= Access.FINAL_STATES or stack.needs.attention
    dtype = cache.dtype if states else "fp32"
    return [] if (dtype, cache.logits) == ("fp32", "full") else [dtype, cache.logits]


def digest(*parts: object) -> str:
    """sha256 of the parts' JSON; settings count whole, so that a default that changes counts too."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=_section).encode()).hexdigest()


def object_key(part: object, *, leave: Sequence[str] = ()) -> Any:
    """What identifies an object from Python across processes, as JSON; attributes named in `leave` do not
    count.

    Raises ConfigError for an attribute that says nothing across processes (a connection, an open file) where
    the object has no `fingerprint()` of its own that stands for it.
    """
    return None if part is None else _key(part, type(part).__qualname__, frozenset(), tuple(leave))


def _key(value: Any, where: str, inside: frozenset[int], leave: tuple[str, ...] = ()) -> Any:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Section):
        return value.identity()
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous().view(torch.uint8).numpy() if value.ndim else value.tolist()
    if isinstance(value, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    if id(value) in inside:
        return "..."
    inside = inside | {id(value)}
    if isinstance(value, Mapping):
        return {str(name): _key(part, f"{where}.{name}", inside) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_key(part, where, inside) for part in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(_key(part, where, inside), sort_keys=True) for part in value)
    if isinstance(value, type) or inspect.isroutine(value):
        return f"{value.__module__}.{value.__qualname__} {_source(value)}"
    return _object(value, where, inside, leave)


def _object(value: Any, where: str, inside: frozenset[int], leave: tuple[str, ...]) -> dict[str, Any]:
    """Class, code, state and own words of an object with attributes."""
    key: dict[str, Any] = {"class": type(value).__qualname__, "code": _code(value)}
    speaks = getattr(type(value), "fingerprint", None) not in _SILENT
    if speaks:
        key["fingerprint"] = value.fingerprint()
    if is_dataclass(value):
        state = {field.name: getattr(value, field.name) for field in fields(value)}
    elif hasattr(value, "__dict__"):
        state = {name: part for name, part in vars(value).items() if not name.startswith("_")}
    elif not repr(value).startswith("<"):
        return {**key, "value": repr(value)}
    elif not speaks:
        raise ConfigError(
            f"{where} is a {type(value).__qualname__}, which says nothing to another process, so that a "
            "stopped run could not tell whether it is still the same",
            where="parts",
            hint="give the object a fingerprint() that names its content, or make this attribute private",
        )
    else:
        state = {}
    if isinstance(value, torch.nn.Module):
        state.pop("training", None)
        state["weights"] = value.state_dict()
    for name, part in state.items():
        if name not in leave:
            try:
                key[f".{name}"] = _key(part, f"{where}.{name}", inside)
            except ConfigError:
                if not speaks:
                    raise
    return key


def _code(value: object) -> list[str]:
    """The source of an object's class and of those it derives from, as far as somebody else wrote
    them."""
    classes = [cls for cls in type(value).__mro__ if not f"{cls.__module__}.".startswith(_NOT_THEIRS)]
    return [_source(cls) for cls in classes]


def _source(value: Any) -> str:
    """sha256 of the file that a class or function stands in; of its own lines in a script that also runs
    things; '' where there is no source to read.
    """
    try:
        if value.__module__ == "__main__":
            text = inspect.getsource(value)
        else:
            text = Path(inspect.getsourcefile(value) or "").read_text(encoding="utf-8")
    except (OSError, TypeError, UnicodeDecodeError):
        return ""
    return hashlib.sha256(text.encode()).hexdigest()


def _section(part: object) -> object:
    if isinstance(part, Section):
        return part.identity()
    raise TypeError(f"{type(part).__name__} cannot stand in a digest")
