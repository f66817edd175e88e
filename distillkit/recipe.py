"""Reads a recipe: YAML 1.2, safe, every error at once with `file:line:col`, the field, the value and what is allowed.

The file becomes a tree of nodes with marks, the tree becomes plain values (nothing else: tags are refused, aliases are
followed and counted), command-line overrides are set on top, and pydantic checks the whole. No torch here.
"""

from __future__ import annotations

import difflib
import io
import json
import os
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from distillkit.errors import ConfigError, DistillkitError, ErrorGroup
from distillkit.registry import did_you_mean
from distillkit.settings import RunConfig

MAX_BYTES, MAX_DEPTH, MAX_NODES = 2**20, 32, 20_000
_PLAIN = "tag:yaml.org,2002:"
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SECRET = re.compile(r"(?i)(^|_)(api_?key|secret|password|passwd|token|access_?key|credential)s?$")
_USER_INFO = re.compile(r"[a-z]+://[^/\s:@]+:[^/\s@]+@")
Components = Callable[[Collection[str]], type[RunConfig]]
Path_ = tuple[str | int, ...]


@dataclass(frozen=True)
class Loaded:
    """A checked recipe: the config, where each given value came from, and the folder its paths are relative to."""

    config: RunConfig
    origins: Mapping[str, str]
    base: Path
    source: Path | None = None


@dataclass
class _Document:
    """Plain values and the place of each, by path."""

    path: Path
    value: Any = None
    places: dict[Path_, str] = field(default_factory=dict)
    nodes: int = 0

    def place(self, at: Path_) -> str:
        """file:line:col of a path, or of the nearest thing around it."""
        while at and at not in self.places:
            at = at[:-1]
        return self.places.get(at, str(self.path))


def load(path: Path, overrides: Sequence[str] = (), *, components: Components) -> Loaded:
    """Read and check a recipe. Raises ConfigError (2), or an ErrorGroup of them."""
    document = _read(path)
    for override in overrides:
        _override(document, override)
    _refuse_secrets(document)
    model = components(_used_names(document.value))
    try:
        config = model.model_validate(document.value)
    except ValidationError as error:
        errors = _told(error, document, model)
        raise errors[0] if len(errors) == 1 else ErrorGroup(list(errors)) from None
    _refuse_contradictions(config, document)
    origins = {".".join(map(str, at)): place for at, place in document.places.items() if at}
    base = _base(document, path)
    return Loaded(config, origins, base, path)


def dump(loaded: Loaded) -> str:
    """The resolved config as YAML that loads again, each value with its origin as a comment."""
    lines = [f"# resolved by distillkit; paths are relative to: {_relative(loaded.base)}"]
    lines += _dump_mapping(loaded.config.model_dump(mode="json", by_alias=True), loaded.origins, (), 0)
    return "\n".join(lines) + "\n"


def parse_scalar(text: str, where: str) -> Any:
    """The value of an override, read as YAML (`3e-5` is a number, `[2, 4]` a list)."""
    document = _Document(Path(where))
    try:
        node = YAML(typ="safe", pure=True).compose(io.StringIO(text))
    except (YAMLError, ValueError) as error:
        raise ConfigError(f"{text!r} cannot be read: {str(error).splitlines()[0]}", where=where) from None
    return None if node is None else _plain(node, (), document, ())


def _read(path: Path) -> _Document:
    text = _text(path)
    document = _Document(path)
    try:
        node = YAML(typ="safe", pure=True).compose(io.StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        hint = "use spaces, not tabs" if "\t" in text else "one YAML document, properly indented"
        raise ConfigError(f"not YAML: {error.problem or error.context}", where=where, hint=hint) from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"not YAML: {str(error).splitlines()[0]}", where=str(path)) from None
    if node is None:
        raise ConfigError(
            "the file is empty", where=str(path), hint="distillkit init writes a config to start from"
        )
    if not isinstance(node, MappingNode):
        raise ConfigError(
            "a recipe is a mapping of keys, not a list or a single value",
            where=f"{path}:1:1",
            hint="start with `name: ...`",
        )
    document.value = _plain(node, (), document, ())
    return document


def _text(path: Path) -> str:
    if path.is_dir():
        raise ConfigError(
            "this is a folder, not a config file", where=str(path), hint="give a YAML file or a run's folder"
        )
    if not path.is_file():
        close = difflib.get_close_matches(
            path.name, [entry.name for entry in path.parent.glob("*")] if path.parent.is_dir() else [], n=2
        )
        raise ConfigError(
            "there is no such file",
            where=str(path),
            hint=f"did you mean {' or '.join(close)}?" if close else "distillkit init writes one",
        )
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(
            f"the file has {path.stat().st_size:,} bytes; a recipe has at most {MAX_BYTES:,}", where=str(path)
        )
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"not UTF-8 text (byte {error.start})", where=str(path), hint="is this a config file?"
        ) from None
    if "\0" in text:
        raise ConfigError("holds NUL bytes: not a text file", where=str(path))
    return text


def _plain(node: Node, at: Path_, document: _Document, above: tuple[int, ...]) -> Any:
    """A node as plain values; marks are kept, tags, deep nesting, bombs and self-reference are refused."""
    where = f"{document.path}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
    document.places.setdefault(at, where)
    document.nodes += 1
    if document.nodes > MAX_NODES:
        raise ConfigError(
            f"more than {MAX_NODES:,} values once aliases are followed",
            where=where,
            hint="write it out without aliases",
        )
    if len(at) > MAX_DEPTH:
        raise ConfigError(f"nested deeper than {MAX_DEPTH} levels", where=where)
    if id(node) in above:
        raise ConfigError("an alias that holds itself", where=where)
    tag = str(node.tag)
    if tag.removeprefix(_PLAIN) not in ("map", "seq", "str", "int", "float", "bool", "null"):
        raise ConfigError(
            f"tag {tag.replace(_PLAIN, '!!')!r} is not allowed: a config holds plain values only",
            where=where,
            hint="code is reached by registered names and --code",
        )
    if isinstance(node, ScalarNode):
        return _scalar(node, at, document, where)
    above = (*above, id(node))
    if isinstance(node, SequenceNode):
        return [_plain(child, (*at, index), document, above) for index, child in enumerate(node.value)]
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key_where = f"{document.path}:{key_node.start_mark.line + 1}:{key_node.start_mark.column + 1}"
        if not isinstance(key_node, ScalarNode):
            raise ConfigError("a key is a word, not a list or mapping", where=key_where)
        key = str(key_node.value)
        if key in values:
            first = document.places[(*at, key)]
            raise ConfigError(
                f"key {key!r} stands twice", where=key_where, hint=f"first at {first}; keep one"
            )
        document.places[(*at, key)] = key_where
        values[key] = _plain(value_node, (*at, key), document, above)
    return values


def _scalar(node: ScalarNode, at: Path_, document: _Document, where: str) -> Any:
    kind, text = str(node.tag).removeprefix(_PLAIN), str(node.value)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return _whole(text, where)
    if kind == "float":
        return float(
            text.replace("_", "")
            .replace(".inf", "inf")
            .replace(".Inf", "inf")
            .replace(".nan", "nan")
            .replace(".NaN", "nan")
        )
    if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", text) and node.style is None:
        return float(text)
    return _VARIABLE.sub(lambda match: _variable(match.group(1), where), text)


def _whole(text: str, where: str) -> int:
    digits = text.replace("_", "")
    if re.fullmatch(r"[-+]?0\d+", digits):
        warnings.warn(
            f"{where}: {text} is read as {int(digits, 10)} (YAML 1.2 has no leading-zero octals)",
            UserWarning,
            stacklevel=2,
        )
        return int(digits, 10)
    return int(digits, 0)


def _variable(name: str, where: str) -> str:
    if _SECRET.search(name):
        raise ConfigError(
            f"${{{name}}} looks like a secret, and the resolved config is saved",
            where=where,
            hint="the tools read it from the environment by themselves",
        )
    if name not in os.environ:
        raise ConfigError(
            f"the environment variable {name!r} is not set",
            where=where,
            hint=f"export {name}=... or write the value",
        )
    return os.environ[name]


def _override(document: _Document, override: str) -> None:
    text = override.removeprefix("--")
    if "=" not in text:
        raise ConfigError(
            f"{override!r} is not key=value", where="command line", hint="for example student.layers=2"
        )
    name, raw = (part.strip() for part in text.split("=", 1))
    keys: list[str | int] = [
        int(key) if key.isdigit() else key for key in re.sub(r"\[(\d+)\]", r".\1", name).split(".")
    ]
    value = parse_scalar(raw, f"command line ({override})")
    target: Any = document.value
    for depth, key in enumerate(keys):
        last = depth + 1 == len(keys)
        if isinstance(target, list):
            if not isinstance(key, int) or key >= len(target):
                raise ConfigError(
                    f"{override!r}: {'.'.join(map(str, keys[:depth]))} is a list of {len(target)}; {key!r} is not one of its places",
                    where="command line",
                )
        elif not isinstance(target, dict):
            raise ConfigError(
                f"{override!r}: {'.'.join(map(str, keys[:depth]))} is a single value", where="command line"
            )
        key = key if isinstance(target, list) else str(key)
        if last:
            target[key] = value  # type: ignore[index]
        elif isinstance(target, dict):
            target = target.setdefault(str(key), {})
        else:
            target = target[key]  # type: ignore[index]
    at = tuple(keys)
    for known in [known for known in document.places if known[: len(at)] == at]:
        del document.places[known]
    document.places[at] = f"command line ({override})"


def _refuse_secrets(document: _Document) -> None:
    def walk(value: Any, at: Path_) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                if _SECRET.search(key):
                    raise ConfigError(
                        f"{'.'.join(map(str, (*at, key)))} looks like a secret",
                        where=document.place((*at, key)),
                        hint="keep secrets in the environment; configs are saved and shown",
                    )
                walk(inner, (*at, key))
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                walk(inner, (*at, index))
        elif isinstance(value, str) and _USER_INFO.search(value):
            raise ConfigError(
                "the address holds a user name and password",
                where=document.place(at),
                hint="keep secrets in the environment",
            )

    walk(document.value, ())


def _used_names(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["use"]} if isinstance(value.get("use"), str) else set()
        return own.union(*(_used_names(inner) for inner in value.values()))
    if isinstance(value, list):
        return set().union(*(_used_names(inner) for inner in value))
    return set()


def _told(error: ValidationError, document: _Document, model: type[RunConfig]) -> list[DistillkitError]:
    """One ConfigError per field, in the order of the file."""
    told: dict[Path_, list[tuple[str, str]]] = {}
    for entry in error.errors():
        at, model_here = _real_path(entry["loc"], document.value)
        told.setdefault(at, []).append(_words(entry, at, document, model))
    errors = []
    for at, words in told.items():
        problem, hint = words[0]
        if len(words) > 1:
            problem = " or ".join(dict.fromkeys(text for text, _ in words))
        errors.append(
            ConfigError(f"{'.'.join(map(str, at))}: {problem}", where=document.place(at), hint=hint)
        )
    return list(errors)


def _real_path(loc: Sequence[str | int], value: Any) -> tuple[Path_, Any]:
    """A pydantic location without the parts that name a branch of a union."""
    at: list[str | int] = []
    for position, key in enumerate(loc):
        inside = (isinstance(value, dict) and key in value) or (
            isinstance(value, list) and isinstance(key, int) and key < len(value)
        )
        if inside:
            at.append(key)
            value = value[key]
        elif (
            position + 1 == len(loc)
            and isinstance(value, dict)
            and isinstance(key, str)
            and not _is_branch(key, value)
        ):
            at.append(key)
    return tuple(at), value


def _is_branch(key: str, value: dict[str, Any]) -> bool:
    return key == value.get("use") or key in ("phase", "phases") or "[" in key


def _words(entry: Any, at: Path_, document: _Document, model: type[RunConfig]) -> tuple[str, str]:
    """(problem, hint) of one pydantic error."""
    kind, context = entry["type"], entry.get("ctx", {})
    shown = _short(entry.get("input"))
    if kind == "extra_forbidden":
        known = _fields_at(model, at[:-1], document.value)
        return f"unknown key {at[-1]!r}", did_you_mean(str(at[-1]), known) or "remove it"
    if kind == "missing":
        return "is missing", "this key has no default"
    if kind == "union_tag_invalid":
        known = re.findall(r"'([^']+)'", context.get("expected_tags", ""))
        return f"use: {context.get('tag')!r} is not registered", did_you_mean(str(context.get("tag")), known)
    if kind == "union_tag_not_found":
        return "`use:` is missing", "name what to use"
    if kind == "literal_error":
        known = re.findall(r"'([^']+)'", context.get("expected", ""))
        hint = did_you_mean(str(entry.get("input")), known) if known else ""
        return f"{shown} must be {context.get('expected', '')}", hint
    message = entry["msg"].replace("Input should be", "must be").replace("Value error, ", "")
    hint = (
        "write it without quotes"
        if isinstance(entry.get("input"), str) and kind in ("int_type", "float_type", "bool_type")
        else ""
    )
    return f"{shown} {message}", hint


def _fields_at(model: type[RunConfig], at: Path_, value: Any) -> list[str]:
    """Known keys of the section at a path, read from the JSON schema."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    nodes = [schema]
    for key in at:
        value = value[key]
        nodes = [inner for node in nodes for inner in _inner(node, key, value, definitions)]
    return sorted({name for node in nodes for name in node.get("properties", {})})


def _inner(node: Mapping[str, Any], key: str | int, value: Any, definitions: Mapping[str, Any]) -> list[Any]:
    found = (
        node.get("items")
        if isinstance(key, int)
        else node.get("properties", {}).get(key, node.get("additionalProperties"))
    )
    return _expand(found, value, definitions) if isinstance(found, dict) else []


def _expand(node: Any, value: Any, definitions: Mapping[str, Any]) -> list[Any]:
    if "$ref" in node:
        node = definitions[node["$ref"].rsplit("/", 1)[1]]
    branches = node.get("oneOf") or node.get("anyOf")
    if not branches:
        use = value.get("use") if isinstance(value, dict) else None
        const = node.get("properties", {}).get("use", {}).get("const")
        return [] if const and use in (_constants(definitions)) and const != use else [node]
    return [inner for branch in branches for inner in _expand(branch, value, definitions)]


def _constants(definitions: Mapping[str, Any]) -> set[str]:
    return {
        node["properties"]["use"]["const"]
        for node in definitions.values()
        if "const" in node.get("properties", {}).get("use", {})
    }


def _refuse_contradictions(config: RunConfig, document: _Document) -> None:
    runtime = config.runtime
    if runtime.device == "cpu" and runtime.precision == "fp16":
        raise ConfigError(
            "runtime.precision: fp16 and runtime.device: cpu contradict each other",
            where=document.place(("runtime", "precision")),
            hint="fp16 training needs a GPU; use bf16 or fp32",
        )
    for index, phase in enumerate(config.phases):
        at: Path_ = ("distill", index) if isinstance(config.distill, list) else ("distill",)
        for name, loss in phase.losses.items():
            if phase.corpus is not None and loss.use == "gold":
                raise ConfigError(
                    f"losses.{name}: gold needs labels, and corpus: {phase.corpus} has none",
                    where=document.place((*at, "losses", name)),
                    hint="leave gold out of this phase, or train on the task's rows",
                )


def _base(document: _Document, path: Path) -> Path:
    """The folder paths are relative to: the config's own; a run's config.yaml remembers the original one."""
    first = path.read_text(encoding="utf-8-sig").splitlines()[0]
    match = re.fullmatch(r"# resolved by distillkit; paths are relative to: (.+)", first)
    folder = (
        path.parent / match.group(1)
        if match and not os.path.isabs(match.group(1))
        else Path(match.group(1))
        if match
        else path.parent
    )
    return Path(os.path.abspath(folder))


def _relative(base: Path) -> str:
    return str(base)


def _dump_mapping(values: Mapping[str, Any], origins: Mapping[str, str], at: Path_, depth: int) -> list[str]:
    lines = []
    for key, value in values.items():
        lines += _dump_value(f"{'  ' * depth}{key}:", value, origins, (*at, key), depth)
    return lines


def _dump_value(head: str, value: Any, origins: Mapping[str, str], at: Path_, depth: int) -> list[str]:
    if isinstance(value, dict) and value:
        return [head, *_dump_mapping(value, origins, at, depth + 1)]
    if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        lines = [head]
        for index, entry in enumerate(value):
            inner = _dump_mapping(entry, origins, (*at, index), depth + 2)
            lines += [f"{'  ' * (depth + 1)}- {inner[0].strip()}", *inner[1:]]
        return lines
    return [f"{head} {json.dumps(value, ensure_ascii=False)}  # {_origin(at, origins)}"]


def _origin(at: Path_, origins: Mapping[str, str]) -> str:
    name = ".".join(map(str, at))
    return origins.get(name, "default")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
