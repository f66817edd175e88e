"""The body of a request: what is asked, checked before anything waits or is computed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from distillkit.errors import DistillkitError
from distillkit.runtime.artifact import Artifact
from distillkit.serving.limits import Limits
from distillkit.wording import shown

_FIELDS = ("texts", "task", "probabilities")
_FORM = '{"texts": ["...", "..."]}'


class Refused(Exception):
    """A request that is not answered: the HTTP status, why in words, and after how many seconds it may be
    tried again (0: the same request will never do).
    """

    def __init__(self, status: int, problem: str, *, after: int = 0) -> None:
        self.status, self.problem, self.after = status, problem, after
        super().__init__(problem)


@dataclass(frozen=True)
class Asked:
    """rows: checked, as the artifact takes them; probabilities: whether those of every class are told."""

    rows: Sequence[tuple[str, ...]]
    task: str
    probabilities: bool


def parse(body: bytes, model: Artifact, limits: Limits) -> Asked:
    """What a body asks for. Raises Refused (400 for what is no JSON, 413 for too much, 422 for the rest)."""
    told = _object(body)
    unknown = [name for name in told if name not in _FIELDS]
    if unknown:
        raise Refused(422, f"unknown field {shown(unknown[0])}; known: {', '.join(_FIELDS)}")
    texts, task, every = told.get("texts"), told.get("task", ""), told.get("probabilities", True)
    if not isinstance(texts, list):
        raise Refused(422, f"texts is {_kind(texts)}, not a list: send {_FORM}")
    if not isinstance(task, str) or not isinstance(every, bool):
        raise Refused(422, "task is a text and probabilities true or false")
    if len(texts) > limits.rows:
        raise Refused(413, f"{len(texts)} texts; at most {limits.rows} in one request")
    try:
        rows = model.check(texts, task)
    except DistillkitError as error:
        raise Refused(422, str(error)) from None
    longest = max((sum(map(len, row)) for row in rows), default=0)
    if longest > limits.characters:
        raise Refused(413, f"a text of {longest} characters; at most {limits.characters}")
    return Asked(rows, task, every)


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        told = json.loads(body.decode("utf-8"), parse_constant=_no_number, object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise Refused(400, f"byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise Refused(400, "nested too deeply") from None
    except ValueError as error:
        raise Refused(400, f"not JSON: {error}") from None
    if not isinstance(told, dict):
        raise Refused(422, f"the body is {_kind(told)}, not an object: send {_FORM}")
    return told


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    told = dict(pairs)
    if len(told) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return told


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "missing"}
    return names.get(type(value), "a number")
