"""Fills the registries: what is in this package, installed entry points, and a file that the user names
with --code.

A recipe alone can never cause an import of anything else. Built-in classes are read, not imported: the
settings of a class are the keyword-only arguments of its `__init__`, its sentences stand under
`Settings:` in its docstring, and both are taken from the source by `ast`, so that `validate` and
`--help` never import torch.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sys
import typing
from collections.abc import Collection
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import Discriminator, Field, Tag, create_model

from distillkit import settings as section
from distillkit.errors import ConfigError, DistillkitError
from distillkit.registry import Entry, Registry, at
from distillkit.settings import (
    Assistant,
    Component,
    ExitSettings,
    LossComponent,
    Phase,
    RunConfig,
    StudentComponent,
    TeacherComponent,
)

_PACKAGE = Path(__file__).parent
_FOLDERS = {"teacher": "teachers", "student": "students", "loss": "losses"}
_COMPONENTS: dict[str, type[Component]] = {
    "teacher": TeacherComponent,
    "student": StudentComponent,
    "loss": LossComponent,
}
_COMMON = {"use", *LossComponent.model_fields, *TeacherComponent.model_fields, *StudentComponent.model_fields}
_FACTS: dict[str, tuple[str, ...]] = {
    "loss": ("needs_labels", "kinds"),
    "teacher": ("mechanical",),
    "student": (),
}
"""Class attributes that a recipe is checked against, and settings that count by what they name alone."""
_OF_ITS_KIND = (section.Teachers, section.InnerStudent)
"""Settings by which a component is made of others of its own kind."""
_NAMESPACE = {**vars(typing), **vars(section), "Field": Field}


@dataclass(frozen=True)
class Described:
    """A component's settings: name -> (annotation, default or ..., sentence), a sentence on itself, and
    its facts."""

    summary: str
    fields: dict[str, tuple[Any, Any, str]]
    facts: dict[str, Any]


REGISTRIES = {kind: Registry(kind) for kind in _FOLDERS}
_described: dict[str, dict[str, Described]] = {kind: {} for kind in _FOLDERS}
_entry_points: dict[str, dict[str, metadata.EntryPoint]] = {kind: {} for kind in _FOLDERS}


def names(kind: str) -> list[str]:
    """Registered names of a kind, entry points included (they are not imported by that)."""
    return sorted({*REGISTRIES[kind].names(), *_entry_points[kind]})


def entries(kind: str) -> list[tuple[str, str]]:
    """(name, sentence) of every registered class of a kind."""
    known = {entry.name: entry.summary for entry in REGISTRIES[kind].entries()}
    return [(name, known.get(name, "from an installed package")) for name in names(kind)]


def build(kind: str, component: Component, *, base: Path) -> Any:
    """Make the object that a component names, from its settings; folders become absolute against `base`.

    Raises ConfigError whose place is the field in the recipe.
    """
    cls = REGISTRIES[kind].get(component.use, _base(kind))
    values = {}
    for name, info in type(component).model_fields.items():
        if name in _COMMON:
            continue
        value = getattr(component, name)
        optional = section.Folder in typing.get_args(info.annotation)
        if isinstance(value, dict | Component):
            values[name] = _nested(value, base=base)
            continue
        extra = info.json_schema_extra
        is_folder = optional or (isinstance(extra, dict) and extra.get("format") == "path")
        values[name] = str(base / value) if is_folder and value is not None else value
    return cls(**values)


def _nested(value: Any, *, base: Path) -> Any:
    """The objects that a setting names, one or several by name; other values stay what they are."""
    if isinstance(value, dict):
        return {name: _nested(inner, base=base) for name, inner in value.items()}
    kinds = {cls: kind for kind, cls in _COMPONENTS.items()}
    kind = next((kind for cls, kind in kinds.items() if isinstance(value, cls)), None)
    return value if kind is None else build(kind, value, base=base)


def components(named: Collection[str] = ()) -> type[RunConfig]:
    """RunConfig with every registered component's settings in it; entry points that `named` holds are
    imported first."""
    for kind, points in _entry_points.items():
        for name in set(points) & set(named):
            _register_class(kind, name, _import(points.pop(name)))
    teacher, student, loss = (_union(kind) for kind in ("teacher", "student", "loss"))
    losses: Any = typing.Annotated[dict[section.Name, loss], Field(min_length=1)]  # type: ignore[valid-type]
    exits: Any = create_model(
        "ExitSettings", __base__=ExitSettings, losses=(losses, _described_as(ExitSettings, "losses"))
    )
    phase: Any = create_model(
        "Phase",
        __base__=Phase,
        losses=(losses, _described_as(Phase, "losses")),
        exits=(exits | None, _described_as(Phase, "exits", default=None)),
    )
    one: Any = typing.Annotated[phase, Tag("phase")]
    several: Any = typing.Annotated[list[phase], Field(min_length=1), Tag("phases")]
    choice = Discriminator(lambda value: "phases" if isinstance(value, list) else "phase")
    distill: Any = typing.Annotated[one | several, choice]
    assistant: Any = create_model(
        "Assistant",
        __base__=Assistant,
        student=(student | None, _described_as(Assistant, "student", default=None)),
        distill=(distill | None, _described_as(Assistant, "distill", default=None)),
    )
    return create_model(
        "RunConfig",
        __base__=RunConfig,
        teacher=(teacher, Field(description="where the teacher comes from")),
        student=(student, Field(description="what is trained")),
        distill=(distill, Field(description="one phase, or a list of them")),
        assistants=(list[assistant], _described_as(RunConfig, "assistants", default=[])),
    )


def _described_as(model: type[section.Section], name: str, *, default: Any = ...) -> Any:
    """A field with the sentence of the one that it takes the place of."""
    return Field(default=default, description=model.model_fields[name].description)


def load_code(path: Path) -> None:
    """Import the user's file, which the command line named, and register the classes it defines.

    A class is registered under the snake_case form of its name. Raises ConfigError where the file
    cannot be imported.
    """
    if not path.is_file():
        raise ConfigError(f"there is no file {path}", where="--code", hint="give a Python file")
    name = f"distillkit_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file", where="--code")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except DistillkitError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise ConfigError(
            f"{path} cannot be imported: {type(error).__name__}: {error}", where="--code"
        ) from error
    found = 0
    for cls in vars(module).values():
        if inspect.isclass(cls) and cls.__module__ == name and not inspect.isabstract(cls):
            for kind in _FOLDERS:
                if issubclass(cls, _base(kind)):
                    _register_class(kind, snake_case(cls.__name__), cls)
                    found += 1
    if not found:
        raise ConfigError(
            f"{path} defines no teacher, student or loss",
            where="--code",
            hint="derive a class from TeacherSource, StudentSource or Loss",
        )


def snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def camel_case(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _base(kind: str) -> type:
    """The contract of a kind; imported on use, because contracts need torch."""
    from distillkit.losses.base import Loss
    from distillkit.model import StudentSource, TeacherSource

    return {"teacher": TeacherSource, "student": StudentSource, "loss": Loss}[kind]


def _union(kind: str, *, nesting: bool = True) -> Any:
    """Every component of a kind, told apart by `use`; nesting: also those that are made of others of it."""
    chosen = {
        name: described
        for name, described in sorted(_described[kind].items())
        if nesting or all(field[0] not in _OF_ITS_KIND for field in described.fields.values())
    }
    models = [_component_model(kind, name, described) for name, described in chosen.items()]
    if len(models) == 1:
        return models[0]
    tagged = tuple(typing.Annotated[model, Tag(name)] for name, model in zip(chosen, models, strict=True))
    return typing.Annotated[typing.Union[tagged], Discriminator(_used)]  # noqa: UP007 - built at run time


def _used(value: Any) -> Any:
    return value.get("use") if isinstance(value, dict) else getattr(value, "use", None)


def _component_model(kind: str, name: str, described: Described) -> Any:
    fields: dict[str, Any] = {"use": (Literal[name], Field(description=described.summary))}
    for setting, (annotation, default, sentence) in described.fields.items():
        fields[setting] = (_real(annotation), Field(default=default, description=sentence))
    model: Any = create_model(
        f"{camel_case(name)}{kind.capitalize()}",
        __base__=_COMPONENTS[kind],
        __doc__=described.summary,
        **fields,
    )
    for fact, value in described.facts.items():
        setattr(model, fact, value)
    return model


def _real(annotation: Any) -> Any:
    """A setting that names components, with the settings of all that it may name."""
    if annotation == section.Teachers:
        member: Any = _union("teacher", nesting=False)
        return typing.Annotated[dict[section.Name, member], Field(min_length=1)]
    if annotation == section.Students:
        peer: Any = _union("student")
        return typing.Annotated[dict[section.Name, peer], Field(min_length=1)]
    if annotation == section.InnerStudent:
        return _union("student", nesting=False)
    return _union("student") | None if annotation == section.OptionalStudent else annotation


def _register_builtin(kind: str) -> None:
    folder = _PACKAGE / _FOLDERS[kind]
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        cls = next(
            (
                node
                for node in tree.body
                if isinstance(node, ast.ClassDef) and node.name == camel_case(path.stem)
            ),
            None,
        )
        if cls is None or path.stem == "base":
            continue
        described = _describe(kind, cls)
        if described is not None:
            _described[kind][path.stem] = described
            REGISTRIES[kind].add(
                Entry(path.stem, described.summary, at(f"distillkit.{_FOLDERS[kind]}.{path.stem}", cls.name))
            )


def _describe(kind: str, cls: ast.ClassDef) -> Described | None:
    """Settings of a class in this package, from its source; None for one that is made from Python only."""
    init = next(
        (node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"), None
    )
    if init is None or len(init.args.args) > 1:
        return None
    summary, sentences = _docstring(ast.get_docstring(cls) or "")
    fields = {}
    for argument, default in zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True):
        assert argument.annotation is not None
        value = ... if default is None else _evaluate(default)
        fields[argument.arg] = (_evaluate(argument.annotation), value, sentences.get(argument.arg, ""))
    return Described(summary, fields, _facts(kind, cls))


def _facts(kind: str, cls: ast.ClassDef) -> dict[str, Any]:
    """The class attributes that a recipe is checked against, where the class sets them."""
    assigned = [node for node in cls.body if isinstance(node, ast.Assign) and len(node.targets) == 1]
    named = [(node.targets[0], node.value) for node in assigned]
    return {
        target.id: ast.literal_eval(value)
        for target, value in named
        if isinstance(target, ast.Name) and target.id in _FACTS[kind]
    }


def _evaluate(node: ast.expr) -> Any:
    """An annotation or default of a file in this package, in a namespace of types and settings only."""
    return eval(compile(ast.Expression(node), "<settings>", "eval"), dict(_NAMESPACE))


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """(first sentence, setting -> sentence)."""
    summary = " ".join(text.split("\n\n")[0].split())
    block = text.split("Settings:")[1] if "Settings:" in text else ""
    return summary, {
        name: " ".join(sentence.split())
        for name, sentence in re.findall(r"^\s+(\w+): ((?:.+\n?)+?)(?=^\s+\w+: |\s*\Z)", block, re.M)
    }


def _register_class(kind: str, name: str, cls: Any) -> None:
    """A class from outside this package, which is imported already: read its signature."""
    if not (inspect.isclass(cls) and issubclass(cls, _base(kind))):
        raise ConfigError(
            f"{kind} {name!r} is not a {_base(kind).__name__}", hint="derive it from distillkit's contract"
        )
    hints = typing.get_type_hints(cls.__init__, include_extras=True)
    summary, sentences = _docstring(inspect.getdoc(cls) or "")
    fields: dict[str, tuple[Any, Any, str]] = {}
    own = cls.__init__ is not inspect.getattr_static(_base(kind), "__init__")
    for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:] if own else []:
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY or parameter.name not in hints:
            raise ConfigError(
                f"{kind} {name!r}: setting {parameter.name!r} must be keyword-only and typed",
                where=cls.__name__,
            )
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        fields[parameter.name] = (hints[parameter.name], default, sentences.get(parameter.name, ""))
    REGISTRIES[kind].add(Entry(name, summary, lambda: cls))
    facts = {fact: getattr(cls, fact) for fact in _FACTS[kind] if hasattr(cls, fact)}
    _described[kind][name] = Described(summary, fields, facts)


def _import(point: metadata.EntryPoint) -> Any:
    """The class of an entry point that a recipe names. Raises ConfigError where its package cannot be
    imported."""
    try:
        return point.load()
    except DistillkitError:
        raise
    except Exception as error:  # an installed package may raise anything
        raise ConfigError(
            f"{point.name!r} ({point.value}) cannot be imported: {type(error).__name__}: {error}",
            hint="update or uninstall the package",
        ) from error


def _find_entry_points() -> None:
    for kind, folder in _FOLDERS.items():
        for point in metadata.entry_points(group=f"distillkit.{folder}"):
            if point.name in _described[kind] or point.name in _entry_points[kind]:
                raise ConfigError(
                    f"{kind} {point.name!r} is registered twice",
                    hint="uninstall one of the packages that name it",
                )
            _entry_points[kind][point.name] = point


for _kind in _FOLDERS:
    _register_builtin(_kind)
_find_entry_points()
