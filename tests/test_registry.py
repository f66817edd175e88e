"""Registry: loading on use, base class, duplicates, and what was probably meant."""

import sys
from pathlib import Path

import pytest

from distillkit.errors import ConfigError
from distillkit.registry import Entry, Registry, at, closest, did_you_mean


class Shape: ...


class Circle(Shape): ...


def registry() -> Registry:
    shapes = Registry("shape")
    shapes.add(Entry("circle", "round", lambda: Circle))
    shapes.add(Entry("number", "no shape", lambda: int))
    return shapes


def test_a_registered_class_is_found() -> None:
    assert registry().get("circle", Shape) is Circle


def test_names_and_entries_are_sorted() -> None:
    assert registry().names() == ["circle", "number"]
    assert [entry.summary for entry in registry().entries()] == ["round", "no shape"]


def test_an_unknown_name_is_refused_with_a_guess() -> None:
    with pytest.raises(ConfigError, match=r"(?s)no shape is called 'circel'.*did you mean 'circle'"):
        registry().get("circel", Shape)


def test_a_class_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="'number' is not a Shape"):
        registry().get("number", Shape)


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ConfigError, match="'circle' is registered twice"):
        registry().add(Entry("circle", "", lambda: Circle))


def test_a_module_is_imported_when_its_class_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it were imported earlier, `validate` would import torch."""
    (tmp_path / "far_away.py").write_text("class Square: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    load = at("far_away", "Square")
    assert "far_away" not in sys.modules
    assert load().__name__ == "Square"


@pytest.mark.parametrize(
    ("word", "meant"),
    [("temprature", "temperature"), ("Layer-Map", "layer_map"), ("epoch", "epochs"), ("xyzzy", None)],
)
def test_the_closest_word_is_what_was_meant(word: str, meant: str | None) -> None:
    assert closest(word, ["temperature", "layer_map", "epochs", "weight"]) == meant


def test_a_hint_lists_all_that_is_known() -> None:
    assert did_you_mean("wieght", ["weight", "use"]) == "did you mean 'weight'? (known: use, weight)"
    assert did_you_mean("qqq", []) == "none is known"
