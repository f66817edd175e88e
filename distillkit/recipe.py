"""Reads a recipe: every error at once, each with `file:line:col`, the field, the value and what is
allowed.

`document.py` turns YAML 1.2 into plain values and their places, command-line overrides are set on top,
pydantic checks the whole against the registered components, and what no field can know alone is checked
last. No torch here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from distillkit import document
from distillkit.document import Keys
from distillkit.errors import ConfigError, DistillkitError, ErrorGroup, SecurityError
from distillkit.registry import did_you_mean
from distillkit.settings import Phase, RunConfig, SeveralTasks, TaskSettings, place_of

Components = Callable[[Collection[str]], type[RunConfig]]
"""The names that a recipe uses -> RunConfig with the settings of every registered component."""
HEADER = "# resolved by distillkit; paths are relative to: "
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_METRICS = {
    "classification": ("accuracy", "macro_f1", "mcc"),
    "regression": ("pearson", "spearman"),
    "token_classification": ("entity_f1", "accuracy", "macro_f1"),
    "mlm": ("accuracy", "cross_entropy"),
    "text_to_text": ("accuracy", "cross_entropy"),
}
_ALSO_MEASURED = {
    "regression": ("mse",),
    "mlm": ("perplexity",),
    "text_to_text": ("perplexity", "exact_match", "bleu", "chrf", "rouge1", "rouge2", "rouge_l"),
}
"""Metrics that choose no weights."""
_OF_EDITS = ("edit_precision", "edit_recall", "edit_f05")
_OF_TEXTS = ("prefix", "max_target", "generation", "edits")
"""Settings of a task whose answers are texts."""
_NO_LABELS = ("regression", "mlm", "text_to_text")
_NO_EXTRA_ROWS = ("token_classification", "mlm", "text_to_text")
_ONE_TEXT = {
    "token_classification": "name the one column that holds the words",
    "text_to_text": "name the one column of the source; label names the target's",
}


@dataclass(frozen=True)
class Loaded:
    """A checked recipe: the config, where each given value came from, the folder its paths are relative
    to."""

    config: RunConfig
    origins: Mapping[str, str]
    base: Path
    source: Path | None = None
    notes: tuple[str, ...] = ()


@dataclass
class _Draft:
    """Plain values, not checked yet; places: of each value, keys: of each key, as a person reads them."""

    name: str
    value: dict[str, Any]
    places: dict[Keys, str]
    keys: dict[Keys, str]
    variables: Mapping[Keys, tuple[str, ...]] = field(default_factory=dict)

    def place(self, at: Keys, *, key: bool = False) -> str:
        """Where the value (or its key) stands, or the nearest thing around it."""
        table = {**self.places, **self.keys} if key else self.places
        while at and at not in table:
            at = at[:-1]
        return table.get(at, self.name)


def load(path: Path, overrides: Sequence[str] = (), *, components: Components) -> Loaded:
    """Read and check a recipe; an override is `path.to.field=value`. Raises ConfigError (2) or an
    ErrorGroup."""
    read = document.read(path)
    if not isinstance(read.value, dict):
        raise ConfigError(
            f"a config is a mapping of keys, not {'a list' if isinstance(read.value, list) else 'one value'}",
            where=f"{path}:1:1",
            hint="start with `name: ...`",
        )
    draft = _Draft(
        name=str(path),
        value=read.value,
        places={at: f"{path}:{place.line}:{place.column}" for at, place in read.values.items()},
        keys={at: f"{path}:{place.line}:{place.column}" for at, place in read.keys.items()},
        variables=read.variables,
    )
    _raise_all([*_apply(draft, overrides), *_secrets(draft)])
    model = components(_used_names(draft.value))
    try:
        config = model.model_validate(draft.value)
    except ValidationError as error:
        _raise_all(_told(error, draft, model))
        raise
    _raise_all(
        ConfigError(problem, where=draft.place(at), hint=hint)
        for at, problem, hint in _contradictions(config)
    )
    return Loaded(config, _origins(draft), _base(path), path, read.notes)


def dump(loaded: Loaded) -> str:
    """The resolved config as YAML that loads again, each value with its origin as a comment."""
    values = loaded.config.model_dump(mode="json", by_alias=True)
    return "\n".join([f"{HEADER}{loaded.base}", *_lines(values, loaded.origins, (), 0)]) + "\n"


def _apply(draft: _Draft, overrides: Sequence[str]) -> Iterator[DistillkitError]:
    for override in overrides:
        try:
            _override(draft, override)
        except ConfigError as error:
            yield error


def _override(draft: _Draft, override: str) -> None:
    """Set one value. A new key is made here and refused by the schema, which knows what was meant."""
    name, found, text = override.removeprefix("--").partition("=")
    place = f"command line ({name.strip()})"
    if not found or not name.strip():
        raise ConfigError(
            f"{override!r} is not KEY=VALUE", where="command line", hint="e.g. student.layers=2"
        )
    value = document.parse(text, place).value if text.strip() else None
    keys = re.sub(r"\[(\d+)\]", r".\1", name.strip()).split(".")
    target: Any = draft.value
    at: Keys = ()
    for key in keys[:-1]:
        at = (*at, _step(target, key, at, place))
        if isinstance(target, dict) and key not in target:
            target[key], draft.places[at], draft.keys[at] = {}, place, place
        target = target[at[-1]]
    at = (*at, _step(target, keys[-1], at, place))
    target[at[-1]] = value
    for table in (draft.places, draft.keys):
        for known in [known for known in table if known[: len(at)] == at]:
            del table[known]
        table.update(dict.fromkeys(_paths(value, at), place))


def _step(target: Any, key: str, at: Keys, place: str) -> str | int:
    """The key as this mapping or list takes it."""
    if isinstance(target, dict):
        return key
    path = _dotted(at)
    if not isinstance(target, list):
        raise ConfigError(f"{path} is a single value, {key!r} cannot be set in it", where=place)
    if not key.isdecimal() or int(key) >= len(target):
        raise ConfigError(
            f"{path}.{key}: {path} is a list of {len(target)}", where=place, hint=f"0 to {len(target) - 1}"
        )
    return int(key)


def _paths(value: Any, at: Keys) -> Iterator[Keys]:
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inner:
        yield from _paths(child, (*at, key))


def _secrets(draft: _Draft) -> Iterator[DistillkitError]:
    for at in _paths(draft.value, ()):
        if at and document.SECRET_NAME.search(str(at[-1])):
            yield ConfigError(
                f"{_dotted(at)} looks like a secret, and the config is saved and shown",
                where=draft.place(at, key=True),
                hint="keep secrets in the environment, where the tools look for them",
            )


def _used_names(value: Any) -> frozenset[str]:
    """Every value of a `use` key."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    inner = frozenset[str]().union(*(_used_names(child) for child in children))
    use = value.get("use") if isinstance(value, dict) else None
    return inner | {use} if isinstance(use, str) else inner


def _told(error: ValidationError, draft: _Draft, model: type[RunConfig]) -> list[DistillkitError]:
    """One error per field. Where all branches of a union fail, what they allow is joined; where one of
    them got deeper into the value, the others are left out."""
    found: dict[Keys, list[Any]] = {}
    for entry in error.errors():
        found.setdefault(_real_path(entry, draft.value), []).append(entry)
    errors = []
    for at, entries in found.items():
        deeper = any(len(other) > len(at) and other[: len(at)] == at for other in found)
        if deeper and all(entry["type"].endswith(("_type", "_error")) for entry in entries):
            continue
        errors.append(_one(at, entries, draft, model))
    return sorted(errors, key=lambda one: (not isinstance(one, SecurityError), _line(one.where)))


def _line(where: str) -> tuple[int, ...]:
    """Line and column of a place, for the order of the file; the command line comes first."""
    return tuple(int(number) for number in re.findall(r":(\d+)(?=:|$)", where))


def _real_path(entry: Any, value: Any) -> Keys:
    """A pydantic location without the parts that name a branch of a union."""
    at: list[str | int] = []
    for key in entry["loc"]:
        inside = (
            key in value if isinstance(value, dict) else isinstance(value, list) and key in range(len(value))
        )
        if inside:
            at.append(key)
            value = value[key]
    if entry["type"] == "missing":
        at.append(entry["loc"][-1])
    return tuple(at)


def _one(at: Keys, entries: list[Any], draft: _Draft, model: type[RunConfig]) -> DistillkitError:
    """The error of one field, in words."""
    first = entries[0]
    kind, context, given = first["type"], first.get("ctx", {}), first["input"]
    name = _dotted(at)
    if kind == "extra_forbidden":
        hint = _known_keys(model, at, draft.value)
        return ConfigError(f"{name}: unknown key {str(at[-1])!r}", where=draft.place(at, key=True), hint=hint)
    if kind == "missing":
        return ConfigError(
            f"{name} is missing", where=draft.place(at, key=True), hint="this key has no default"
        )
    if kind == "union_tag_not_found":
        return ConfigError(
            f"{name}.use is missing", where=draft.place(at), hint="see `distillkit list losses`"
        )
    allowed = _quoted_words(context.get("expected_tags", "") or context.get("expected", ""))
    if kind == "union_tag_invalid" or (kind == "literal_error" and at[-1] == "use"):
        at = at if at[-1] == "use" else (*at, "use")
        return _not_registered(at, allowed, draft)
    words = dict.fromkeys(_allowed(entry) for entry in entries)
    hint = did_you_mean(given, allowed) if allowed and isinstance(given, str) else ""
    if given is None and words.keys() == {"a mapping of keys"}:
        hint = "write {} for its defaults"
    if isinstance(given, str) and kind in ("int_type", "float_type", "bool_type"):
        hint = "write it without quotes" if draft.places.get(at, "").startswith(draft.name) else ""
    return ConfigError(
        f"{name}: {_short(given)} must be {' or '.join(words)}", where=draft.place(at), hint=hint
    )


def _not_registered(at: Keys, known: list[str], draft: _Draft) -> DistillkitError:
    """A `use` that names nothing; a path or dotted name in it is an attempt to reach other code."""
    given: Any = draft.value
    for key in at:
        given = given[key]
    problem = f"{_dotted(at)}: nothing is registered as {_short(given)}"
    if isinstance(given, str) and not _NAME.fullmatch(given):
        return SecurityError(
            problem, where=draft.place(at), hint="a config reaches code by registered names only; see --code"
        )
    return ConfigError(problem, where=draft.place(at), hint=did_you_mean(str(given), known))


def _allowed(entry: Any) -> str:
    """What one branch allows, in a person's words."""
    message = str(entry["msg"])
    if entry["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return "a mapping of keys"
    for pattern, words in (
        (r"^Value error, ", ""),
        (r"^(Input|Value|String|List|Tuple|Dictionary) should (be|have|match) ?", ""),
        (r"^a valid tuple|^a valid list", "a list"),
        (r"^a valid integer.*", "a whole number"),
        (r"^a valid number.*", "a number"),
        (r"^a valid boolean.*", "true or false"),
        (r"^a valid string", "a text"),
        (r"^pattern '.*'$", "letters, digits and . _ - only, at most 100, and begin with a letter or digit"),
    ):
        message = re.sub(pattern, words, message)
    return message


def _known_keys(model: type[RunConfig], at: Keys, value: Any) -> str:
    """The hint for an unknown key: what it resembles among its neighbours, or the section that has it."""
    schema, key = _schema(model), str(at[-1])
    known = [name for name in _fields_at(schema, at[:-1], value) if name != key]  # of another form of it
    for section, node in schema["properties"].items():
        inner = _expand(node, value.get(section), schema["$defs"])
        if key not in known and len(at) == 1 and any(key in one.get("properties", {}) for one in inner):
            return f"{key!r} belongs under `{section}`"
    return did_you_mean(key, known)


@lru_cache(maxsize=4)
def _schema(model: type[RunConfig]) -> dict[str, Any]:
    return model.model_json_schema()


def _fields_at(schema: Mapping[str, Any], at: Keys, value: Any) -> list[str]:
    """Known keys of the section at a path."""
    nodes: list[Any] = [schema]
    for key in at:
        value = value[key]
        nodes = [inner for node in nodes for inner in _inner(node, key, value, schema["$defs"])]
    return sorted({name for node in nodes for name in node.get("properties", {})})


def _inner(node: Mapping[str, Any], key: str | int, value: Any, definitions: Mapping[str, Any]) -> list[Any]:
    if isinstance(key, int):
        found = node.get("items")
    else:
        anything = next(iter(node.get("patternProperties", {}).values()), None)
        found = node.get("properties", {}).get(key, anything)
    return _expand(found, value, definitions) if isinstance(found, dict) else []


def _expand(node: Any, value: Any, definitions: Mapping[str, Any]) -> list[Any]:
    """The branches of a schema that a value may have meant."""
    if "$ref" in node:
        node = definitions[node["$ref"].rsplit("/", 1)[1]]
    branches = node.get("oneOf") or node.get("anyOf")
    if branches:
        return [inner for branch in branches for inner in _expand(branch, value, definitions)]
    const = node.get("properties", {}).get("use", {}).get("const")
    use = value.get("use") if isinstance(value, dict) else None
    return [node] if const in (None, use) or use is None else []


def _contradictions(config: RunConfig) -> Iterator[tuple[Keys, str, str]]:
    """(path, problem, hint) of what no field can know alone. Both fields are named."""
    runtime, task = config.runtime, config.task
    if runtime.device == "cpu" and runtime.precision == "fp16":
        problem = "runtime.precision: fp16 and runtime.device: cpu contradict each other"
        yield ("runtime", "precision"), problem, "fp16 training needs a GPU; use bf16 or fp32"
    for place, one in task.single.items():
        for key, problem, hint in _task(one, place):
            yield (*place.split("."), key), problem, hint
    if isinstance(task, SeveralTasks):
        yield from _several(config, task)
    elif getattr(config.teacher, "combine", "") == "task":
        problem = "teacher.combine: task and a single task contradict each other"
        yield ("teacher", "combine"), problem, "give several under task.tasks, or combine: mean"
    if task.kind == "text_to_text" and config.export.forms:
        forms = ", ".join(config.export.forms)
        problem = f"export.formats: {forms} and task.kind: {task.kind} contradict each other"
        yield ("export", "formats"), problem, "an artifact of two graphs has one form, fp32"
    yield from _floors(config)
    for at, phase in _phases(config):
        if phase.batch.micro > phase.batch.examples:
            problem = f"batch.micro: {phase.batch.micro} is more than batch.examples: {phase.batch.examples}"
            yield (*at, "batch", "micro"), f"{_dotted(at)}.{problem}", "every part needs an example"
        for key, problem, hint in _extra_rows(config, phase):
            yield (*at, key), f"{_dotted(at)}.{problem}", hint
        for name, loss in phase.terms.items():
            here: Keys = (*at, *place_of(name))
            if task.kind not in loss.kinds:
                problem = (
                    f"{_dotted(here)}: {loss.use} is for {' or '.join(loss.kinds)}, task.kind: {task.kind}"
                )
                yield here, problem, "leave it out"
            if phase.corpus is not None and loss.needs_labels and task.kind != "mlm":
                problem = f"{_dotted(here)}: {loss.use} needs labels, and corpus: {phase.corpus} has none"
                yield here, problem, "leave it out of this phase, or train on the task's rows"


def measured_metrics(task: TaskSettings | SeveralTasks) -> tuple[str, ...]:
    """Names of the metrics that models of the task are measured in; of several tasks also of each."""
    names = (*_METRICS[task.kind], *_ALSO_MEASURED.get(task.kind, ()))
    if not isinstance(task, SeveralTasks):
        return (*names, *(_OF_EDITS if task.edits else ()))
    return (*names, *(f"{one}.{name}" for one in task.tasks for name in names))


def _floors(config: RunConfig) -> Iterator[tuple[Keys, str, str]]:
    """(path, problem, hint) of floors that cannot be measured."""
    bench, at = config.bench, ("bench", "floor")
    if not bench.floor:
        return
    from distillkit.report.floors import read_floor  # numpy, which other recipes need not

    if all(name.startswith("pytorch") for name in bench.backends):
        problem = f"bench.floor and bench.backends: {', '.join(bench.backends)} contradict each other"
        yield at, problem, "floors are asked of the exported student: add onnxruntime"
    metrics, shapes = measured_metrics(config.task), set(product(bench.batch, bench.length))
    for name, bound in bench.floor.items():
        try:
            read_floor(name, bound, metrics, shapes)
        except ConfigError as error:
            yield (*at, name), f"bench.floor: {error.problem}", error.hint


def _task(task: TaskSettings, at: str) -> Iterator[tuple[str, str, str]]:
    """(key, problem, hint) of the contradictions in one task, which stands `at` a place."""
    contradict = f"{at}.kind: {task.kind} contradict each other"
    metrics = _METRICS[task.kind]
    if task.metric is not None and task.metric not in metrics:
        yield "metric", f"{at}.metric: {task.metric} and {contradict}", f"one of {', '.join(metrics)}"
    if task.labels is not None and task.kind in _NO_LABELS:
        yield "labels", f"{at}.labels and {contradict}", "leave it out"
    if task.kind != "mlm" and task.scored != "masked":
        hint = "leave it out; only mlm masks tokens"
        yield "scored", f"{at}.scored: {task.scored} and {contradict}", hint
    if task.kind in _ONE_TEXT and not isinstance(task.text, str):
        yield "text", f"{at}.text: {list(task.text)} and {contradict}", _ONE_TEXT[task.kind]
    for key in _OF_TEXTS:
        if task.kind != "text_to_text" and getattr(task, key):
            yield key, f"{at}.{key} and {contradict}", "leave it out; only text_to_text writes texts"
    names = task.labels or ()
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        yield "labels", f"{at}.labels: {twice[0]!r} stands there twice", "name each class once"
    columns = [task.text] if isinstance(task.text, str) else list(task.text)
    if len({*columns, task.label}) <= len(columns):
        problem = f"{at}.text and {at}.label name one column twice: {', '.join([*columns, task.label])}"
        yield "text", problem, "text and label are different columns"


def _several(config: RunConfig, tasks: SeveralTasks) -> Iterator[tuple[Keys, str, str]]:
    """(path, problem, hint) of what does not go together with several tasks."""
    for name, task in tasks.tasks.items():
        at: Keys = ("task", "tasks", name)
        if task.kind != "classification":
            problem = f"{_dotted(at)}.kind: {task.kind} and several tasks contradict each other"
            yield (*at, "kind"), problem, "several tasks are classifications; another kind takes its own run"
        if task.id is not None:
            problem = f"{_dotted(at)}.id: {task.id} and several tasks contradict each other"
            yield (*at, "id"), problem, "leave it out: rows are numbered over all tasks"
    for place, phase in _phases(config):
        for key in ("corpus", "unlabelled"):
            if getattr(phase, key) is not None:
                problem = f"{_dotted((*place, key))} and several tasks contradict each other"
                yield (*place, key), problem, "leave it out: its rows would be of no task"
        if phase.cache is not None and phase.cache.logits != "full":
            problem = (
                f"{_dotted((*place, 'cache'))}.logits: {phase.cache.logits} and several tasks contradict"
            )
            yield (*place, "cache", "logits"), f"{problem} each other", "keep the full logits"
    peers = getattr(config.teacher, "peers", {})
    students: dict[Keys, Any] = {("teacher", "peers", name): one for name, one in peers.items()}
    for number, assistant in enumerate(config.assistants):
        if assistant.student is not None:
            students["assistants", number, "student"] = assistant.student
    for here, student in {**students, ("student",): config.student}.items():
        if student.use == "exits":
            problem = f"{_dotted(here)}.use: exits and several tasks contradict each other"
            yield (*here, "use"), problem, "a model that answers early answers one task"
    members = getattr(config.teacher, "members", {})
    if getattr(config.teacher, "combine", "") == "task" and set(members) != set(tasks.tasks):
        problem = f"teacher.members: {', '.join(members)} are not the tasks: {', '.join(tasks.tasks)}"
        yield ("teacher", "members"), problem, "combine: task takes a member of the name of each task"


def _phases(config: RunConfig) -> Iterator[tuple[Keys, Phase]]:
    """Every phase of the run and of its assistants, by its place."""
    sections: list[tuple[Keys, Any]] = [(("distill",), config.distill)]
    sections += [(("assistants", n, "distill"), one.distill) for n, one in enumerate(config.assistants)]
    for at, distill in sections:
        if isinstance(distill, list):
            yield from (((*at, index), phase) for index, phase in enumerate(distill))
        elif distill is not None:
            yield at, distill


def _extra_rows(config: RunConfig, phase: Phase) -> Iterator[tuple[str, str, str]]:
    """(key, problem, hint) of rows that a phase adds to the task's and that nothing could teach."""
    kind = config.task.kind
    yield from _written(config, phase)
    for key, added in (("unlabelled", phase.unlabelled), ("augment", phase.augment)):
        if added is not None and kind in _NO_EXTRA_ROWS and not (key == "unlabelled" and phase.written):
            problem = f"{key} and task.kind: {kind} contradict each other: it adds whole texts"
            yield key, problem, _HINTS_EXTRA[kind == "text_to_text" and key == "unlabelled"]
    if phase.corpus is not None and kind == "text_to_text":
        problem = f"corpus: {phase.corpus} and task.kind: {kind} contradict each other: it has no targets"
        yield "corpus", problem, "leave it out; the teacher answers the tokens of a target"
    if phase.corpus is not None and phase.unlabelled is not None:
        problem = f"unlabelled: {phase.unlabelled} and corpus: {phase.corpus} contradict each other"
        yield "unlabelled", problem, "unlabelled rows are added to the task's; a corpus takes their place"
    if phase.written is not None:
        return
    copies = phase.augment is not None and phase.augment.labels == "none"
    if phase.unlabelled is not None or copies:
        yield from _untaught(config, phase, "unlabelled" if phase.unlabelled is not None else "augment")


def _written(config: RunConfig, phase: Phase) -> Iterator[tuple[str, str, str]]:
    """(key, problem, hint) of texts that a teacher is to write."""
    written, kind = phase.written, config.task.kind
    if written is None:
        return
    if kind != "text_to_text":
        problem = f"written and task.kind: {kind} contradict each other: nothing is written there"
        yield "written", problem, "leave it out"
    if config.teacher.use in ("peers", "itself"):
        problem = f"written and teacher.use: {config.teacher.use} contradict each other"
        yield "written", problem, "it learns while the student does, and has nothing to write beforehand"
    compares = written.choose == "nearest" or written.targets == "kept"
    if phase.unlabelled is not None and compares:
        key = "choose: nearest" if written.choose == "nearest" else "targets: kept"
        problem = f"written.{key} and unlabelled contradict each other: those rows have no targets"
        yield "unlabelled", problem, "choose: best and targets: replaced go with them"


_HINTS_EXTRA = (
    "leave it out; it is for classification and regression",
    "add `written: {}`: the teacher writes their targets",
)


def _untaught(config: RunConfig, phase: Phase, key: str) -> Iterator[tuple[str, str, str]]:
    """(key, problem, hint) of rows without labels that no loss, or not every one, could use."""
    names = [name for name, loss in phase.terms.items() if loss.needs_labels]
    more = ", or set augment.labels: keep" if key == "augment" else ""
    if len(names) == len(phase.terms):
        problem = f"{key} adds rows without labels, and every loss needs labels"
        yield key, problem, f"add a loss that asks the teacher{more}"
    elif names and config.task.kind == "regression":
        problem = f"{key} adds rows without targets, which {names[0]} needs; it cannot leave rows out"
        yield key, problem, f"leave the loss out{more}"


def _origins(draft: _Draft) -> dict[str, str]:
    """Dotted path of each given value -> its place; sections have none, so that defaults in them are
    told apart."""
    origins = {}
    for at in _paths(draft.value, ()):
        value: Any = draft.value
        for key in at:
            value = value[key]
        if at in draft.places and not isinstance(value, dict):
            names = "".join(f" ${name}" for name in draft.variables.get(at, ()))
            origins[_dotted(at)] = draft.places[at] + names
    return origins


def _base(path: Path) -> Path:
    """The folder that paths are relative to: the config's own; a run's config.yaml remembers the
    original one."""
    first, _, _ = path.read_text(encoding="utf-8-sig").partition("\n")
    folder = Path(first.removeprefix(HEADER)) if first.startswith(HEADER) else path.parent
    return Path(os.path.abspath(path.parent / folder if first.startswith(HEADER) else folder))


def _lines(values: Mapping[str, Any], origins: Mapping[str, str], at: Keys, depth: int) -> Iterator[str]:
    for key, value in values.items():
        head, here = f"{'  ' * depth}{_scalar(key)}:", (*at, key)
        if isinstance(value, dict) and value:
            yield head
            yield from _lines(value, origins, here, depth + 1)
        elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
            yield head
            for index, entry in enumerate(value):
                first, *rest = _lines(entry, origins, (*here, index), depth + 2)
                yield f"{'  ' * (depth + 1)}- {first.strip()}"
                yield from rest
        else:
            origin = "".join(sign if sign.isprintable() else " " for sign in _origin(here, origins))
            yield f"{head} {_scalar(value)}  # {origin}"


def _scalar(value: Any) -> str:
    """A value on one line, as JSON, which YAML 1.2 reads; a plain word stays plain."""
    if isinstance(value, str) and _NAME.fullmatch(value) and document.scalar(value) == value:
        return value
    text = json.dumps(value, ensure_ascii=False)
    return "".join(sign if sign.isprintable() else f"\\U{ord(sign):08x}" for sign in text)


def _origin(at: Keys, origins: Mapping[str, str]) -> str:
    return origins.get(_dotted(at), "default")


def _dotted(at: Keys) -> str:
    return ".".join(map(str, at))


def _quoted_words(text: str) -> list[str]:
    return re.findall(r"'([^']+)'", text)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _raise_all(errors: Sequence[DistillkitError] | Iterator[DistillkitError]) -> None:
    found = list(errors)
    if found:
        raise found[0] if len(found) == 1 else ErrorGroup(found)
