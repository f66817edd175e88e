"""Runs that a run is made of: the members of an ensemble, and the assistants between teacher and student.

    runs/NAME/members/<member>/       up to its teacher stage
    runs/NAME/assistants/<number>/    up to its student stage

Each is a run folder like any other, made from a recipe that is derived here, and reads the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from distillkit.recipe import Loaded
from distillkit.settings import RunConfig, SeveralTasks

MEMBERS, ASSISTANTS = "members", "assistants"
_SEEDS = 2**63


def member(loaded: Loaded, folder: Path, name: str, number: int) -> Loaded:
    """The run of one member of the teacher; `folder` is the run's own. Members of one shape differ by their
    seeds.
    """
    teacher = _values(loaded)["teacher"]
    # it stops before any student, whose losses may ask for more than this member alone can give
    changes: dict[str, Any] = {
        "teacher": teacher["members"][name],
        "distill": {"losses": {"gold": {"use": "gold"}}},
    }
    under = {"teacher": f"teacher.members.{name}"}
    if teacher.get("combine") == "task":
        changes["task"] = _own_task(loaded.config, name)
        under["task"] = f"task.tasks.{name}"
    return _derived(loaded, folder / MEMBERS, name, number, changes, under)


def assistants(loaded: Loaded, folder: Path) -> Iterator[Loaded]:
    """The runs of a chain in their order; the teacher of each is the student of the one before it."""
    values, before = _values(loaded), loaded
    for number, assistant in enumerate(values["assistants"]):
        given = {name: value for name, value in assistant.items() if value is not None}
        changes = given if number == 0 else {**given, "teacher": _student_of(before)}
        own = {name: f"assistants.{number}.{name}" for name in given}
        before = _derived(loaded, folder / ASSISTANTS, str(number + 1), number + 1, changes, own)
        yield before


def last(loaded: Loaded, before: Loaded) -> Loaded:
    """The run itself, taught by the student of its last assistant."""
    return _changed(loaded, {"teacher": _student_of(before), "assistants": []})


def _own_task(config: RunConfig, name: str) -> dict[str, Any]:
    """One of several tasks by itself, with the same rows held out."""
    assert isinstance(config.task, SeveralTasks)
    task = config.task.tasks[name]
    chosen = (task.holdout_seed, config.task.holdout_seed, config.seed)
    split = next(seed for seed in chosen if seed is not None)
    own = {"holdout_seed": split, "metric": task.metric or config.task.metric}
    return task.model_dump(by_alias=True) | own


def _student_of(loaded: Loaded) -> dict[str, Any]:
    """A run's student as a teacher."""
    config = loaded.config
    path = (Path(config.output) / config.name).absolute()
    return {
        "use": "distilled",
        "path": str(path),
        "student": _values(loaded)["student"],
        "allow_weak": config.teacher.allow_weak,
    }


def _derived(
    loaded: Loaded,
    folder: Path,
    name: str,
    number: int,
    changes: Mapping[str, Any],
    moved: Mapping[str, str],
) -> Loaded:
    """The recipe of a run in `folder`. moved: section of it -> where that stands in the whole recipe."""
    config, task = loaded.config, _values(loaded)["task"]
    split = config.seed if config.task.holdout_seed is None else config.task.holdout_seed
    own = {
        "name": name,
        "output": str(folder),
        "seed": (config.seed + number) % _SEEDS,
        "task": {**task, "holdout_seed": split},
        "assistants": [],
    }
    made = _changed(loaded, {**own, **changes})
    return replace(made, origins=_origins(loaded.origins, moved))


def _values(loaded: Loaded) -> dict[str, Any]:
    return loaded.config.model_dump(by_alias=True)


def _changed(loaded: Loaded, changes: Mapping[str, Any]) -> Loaded:
    config = type(loaded.config).model_validate({**_values(loaded), **changes})
    return replace(loaded, config=config)


def _origins(origins: Mapping[str, str], moved: Mapping[str, str]) -> dict[str, str]:
    """Where each value of a derived recipe was given."""
    kept = {at: place for at, place in origins.items() if at.split(".")[0] not in ("assistants", *moved)}
    for section, source in moved.items():
        inside = {at: place for at, place in origins.items() if f"{at}.".startswith(f"{source}.")}
        kept |= {f"{section}{at.removeprefix(source)}": place for at, place in inside.items()}
    return kept
