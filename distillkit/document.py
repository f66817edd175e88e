"""YAML 1.2 text -> plain values, and where in the text each of them stands.

Built on the events of ruamel.yaml's safe parser, so that nothing is constructed before it was checked: a
document may be 1 MiB, 32 levels deep and 20,000 values large with its aliases written out, has no tags, no
duplicate keys and no alias inside its own anchor. Plain scalars follow the YAML 1.2 core schema: `1e-5` is a
number, `yes` and `12:30` are strings, `012` is 12. `${NAME}` stands for an environment variable, never for a
secret.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml import events as yaml_events
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from distillkit.errors import ConfigError, DistillkitError, ErrorGroup
from distillkit.registry import closest

MAX_BYTES, MAX_DEPTH, MAX_NODES, MAX_TEXT = 1 << 20, 32, 20_000, 10_000
Keys = tuple[str | int, ...]
"""Where a value stands: keys and list positions from the top."""

SECRET_NAME = re.compile(
    r"(^|[_-])(token|secrets?|passwords?|passwd|credentials?|(api|access|private|secret)_?keys?)$",
    re.IGNORECASE,
)
_SECRET_TEXT = re.compile(
    r"hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|xox[abpr]-[A-Za-z0-9-]{10,}"
    r"|AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|[a-z][a-z0-9+.-]*://[^/\s:@]*:[^/\s@]+@"
)
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_INT = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **{sign + word: float(sign + "inf") for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")},
}


class Place(NamedTuple):
    """1-based line and column."""

    line: int
    column: int


@dataclass(frozen=True)
class Document:
    """A parsed document.

    value: plain dicts, lists and scalars; values, keys: path -> place of the value, and of the key before it;
    variables: path -> names of the environment variables in it; notes: what deserves a word.
    """

    value: Any
    values: Mapping[Keys, Place]
    keys: Mapping[Keys, Place]
    variables: Mapping[Keys, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read(path: Path) -> Document:
    """Parse a file. Raises ConfigError, or an ErrorGroup of them, naming file, line and column."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or device"
            raise ConfigError(f"this is {kind}, not a config file", where=str(path), hint=_nearby(path))
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(error.strerror or "cannot be read", where=str(path), hint=_nearby(path)) from None
    if len(data) > MAX_BYTES:
        raise ConfigError("the file is larger than 1 MiB", where=str(path), hint="is this a config file?")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"not UTF-8 text (byte {data[error.start]:#04x} at offset {error.start})",
            where=str(path),
            hint="is this a config file?",
        ) from None
    document = parse(text, str(path))
    if document.value is None:
        raise ConfigError("the config is empty", where=str(path), hint="`distillkit init` writes one")
    return document


def parse(text: str, name: str) -> Document:
    """Parse one document; `name` stands for the file in messages."""
    builder = _Builder(name)
    try:
        root = builder.document(iter(YAML(typ="safe", pure=True).parse(text)))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        tab = "\\t" in str(error.problem) or "'\t'" in str(error.problem)
        hint = "indent with spaces, not tabs" if tab else "check quotes, brackets and indentation"
        raise ConfigError(
            f"not valid YAML: {error.problem or error.context}", where=where, hint=hint
        ) from None
    except YAMLError as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"not YAML text: {first}", where=name, hint="is this a config file?") from None
    if builder.errors:
        raise builder.errors[0] if len(builder.errors) == 1 else ErrorGroup(builder.errors)
    return builder.flat(root)


def scalar(text: str) -> Any:
    """The value of a plain scalar by the YAML 1.2 core schema."""
    if text in _SPECIAL:
        return _SPECIAL[text]
    if len(text) < 400 and _INT.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    return float(text) if _FLOAT.fullmatch(text) else text


def is_secret(text: str) -> bool:
    """Whether a value looks like an access key, a private key or a URL with a password."""
    return _SECRET_TEXT.search(text) is not None


@dataclass(frozen=True)
class _Node:
    """A value that is not flattened yet. `size` and `height` count aliases as if they were written out."""

    place: Place
    value: Any
    size: int = 1
    height: int = 0
    variables: tuple[str, ...] = ()
    keys: Mapping[str, Place] = field(default_factory=dict)


class _Builder:
    """Builds nodes from events. Errors after which one can read on are collected, the others raised."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.errors: list[DistillkitError] = []
        self.notes: list[str] = []
        self.anchors: dict[str, _Node | None] = {}
        self.seen = 0

    def document(self, events: Iterator[Any]) -> _Node:
        root: _Node | None = None
        for event in events:
            if isinstance(event, yaml_events.DocumentStartEvent):
                if root is not None:
                    raise self.error(event, "a second document starts here", "keep one document in the file")
                root = self.node(next(events), events, 0)
        return root or _Node(Place(1, 1), None)

    def node(self, event: Any, events: Iterator[Any], depth: int) -> _Node:
        self.seen += 1
        if depth > MAX_DEPTH:
            raise self.error(event, f"nested deeper than {MAX_DEPTH} levels", "a recipe is flat")
        if isinstance(event, yaml_events.AliasEvent):
            return self.alias(event, depth)
        if event.tag is not None:
            self.errors.append(
                self.error(event, f"tag {str(event.tag)[:60]!r} is not allowed", "write a plain value")
            )
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        if isinstance(event, yaml_events.ScalarEvent):
            node = self.scalar(event)
        elif isinstance(event, yaml_events.SequenceStartEvent):
            node = self.sequence(event, events, depth)
        else:
            node = self.mapping(event, events, depth)
        if self.seen > MAX_NODES or node.size > MAX_NODES:
            raise self.error(event, f"more than {MAX_NODES:,} values", "is this a config file?")
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def alias(self, event: Any, depth: int) -> _Node:
        if event.anchor not in self.anchors:
            raise self.error(
                event, f"alias *{event.anchor} has no anchor", f"write &{event.anchor} before it"
            )
        node = self.anchors[event.anchor]
        if node is None:
            raise self.error(
                event, f"alias *{event.anchor} stands inside its own anchor", "write the value out"
            )
        if depth + node.height > MAX_DEPTH:
            raise self.error(event, f"nested deeper than {MAX_DEPTH} levels", "a recipe is flat")
        return node

    def sequence(self, event: Any, events: Iterator[Any], depth: int) -> _Node:
        children: list[_Node] = []
        size = 1
        while not isinstance(item := next(events), yaml_events.SequenceEndEvent):
            children.append(self.node(item, events, depth + 1))
            size += children[-1].size
            self.limit(item, size)
        return _Node(
            self.place(event), children, size, 1 + max((child.height for child in children), default=0)
        )

    def mapping(self, event: Any, events: Iterator[Any], depth: int) -> _Node:
        children: dict[str, _Node] = {}
        keys: dict[str, Place] = {}
        size = 1
        while not isinstance(item := next(events), yaml_events.MappingEndEvent):
            if not isinstance(item, yaml_events.ScalarEvent):
                raise self.error(
                    item, "a key must be a plain word", "quote a text that starts with [ { * or &"
                )
            if item.tag is not None:
                self.errors.append(
                    self.error(item, f"tag {str(item.tag)[:60]!r} is not allowed", "remove it")
                )
            key, place = item.value, self.place(item)
            if key in keys:
                problem = f"key {key[:60]!r} stands here and in line {keys[key].line}"
                self.errors.append(self.error(item, f"duplicate key: {problem}", "keep one of them"))
            child = self.node(next(events), events, depth + 1)
            children[key], keys[key] = child, place
            size += child.size + 1
            self.limit(item, size)
        height = 1 + max((child.height for child in children.values()), default=0)
        return _Node(self.place(event), children, size, height, keys=keys)

    def scalar(self, event: Any) -> _Node:
        text, plain = event.value, event.style is None
        if len(text) > MAX_TEXT:
            raise self.error(event, f"a text of {len(text):,} characters", f"at most {MAX_TEXT:,}")
        names = tuple(dict.fromkeys(_VARIABLE.findall(text)))
        for name in names:
            self.variable(event, name)
        text = _VARIABLE.sub(lambda match: os.environ.get(match[1], ""), text)
        if is_secret(text):
            self.errors.append(
                self.error(event, "this looks like a secret", "keys and passwords stay in the environment")
            )
        value = scalar(text) if plain else text
        if plain and len(text) > 1 and _INT.fullmatch(text) and text.lstrip("+-").startswith("0") and value:
            where = f"{self.name}:{event.start_mark.line + 1}:{event.start_mark.column + 1}"
            self.notes.append(f"{where}: {text} is read as the decimal number {value}")
        return _Node(self.place(event), value, variables=names)

    def variable(self, event: Any, name: str) -> None:
        if SECRET_NAME.search(name):
            problem = f"${{{name}}} names a secret, and the config is saved with the run"
            self.errors.append(self.error(event, problem, "tools read it from the environment themselves"))
        elif name not in os.environ:
            problem = f"the environment variable {name} is not set"
            self.errors.append(self.error(event, problem, f"export {name}=..., or write the value"))

    def limit(self, event: Any, size: int) -> None:
        if size > MAX_NODES:
            raise self.error(
                event, f"more than {MAX_NODES:,} values with aliases written out", "write it plainly"
            )

    def place(self, event: Any) -> Place:
        return Place(event.start_mark.line + 1, event.start_mark.column + 1)

    def error(self, event: Any, problem: str, hint: str) -> ConfigError:
        place = self.place(event)
        return ConfigError(problem, where=f"{self.name}:{place.line}:{place.column}", hint=hint)

    def flat(self, root: _Node) -> Document:
        """Plain values and the tables of places."""
        values: dict[Keys, Place] = {}
        keys: dict[Keys, Place] = {}
        variables: dict[Keys, tuple[str, ...]] = {}

        def visit(node: _Node, path: Keys) -> Any:
            values[path] = node.place
            if node.variables:
                variables[path] = node.variables
            if isinstance(node.value, list):
                return [visit(child, (*path, index)) for index, child in enumerate(node.value)]
            if isinstance(node.value, dict):
                keys.update({(*path, key): place for key, place in node.keys.items()})
                return {key: visit(child, (*path, key)) for key, child in node.value.items()}
            return node.value

        return Document(visit(root, ()), values, keys, variables, tuple(self.notes))


def _nearby(path: Path) -> str:
    """A hint for a path that cannot be opened: the file that it may have meant."""
    names = [entry.name for entry in path.parent.glob("*.y*ml") if entry.is_file()]
    return (
        f"did you mean {found!r}?" if (found := closest(path.name, names)) else "`distillkit init` writes one"
    )
