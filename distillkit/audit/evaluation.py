"""The texts of evaluation data: a table's text columns, a config's validation and test rows, or built-in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distillkit import catalog, recipe
from distillkit.audit.contamination import Evaluation
from distillkit.data.builtin import builtin_table
from distillkit.data.reading import Table, column_names, half_character, read_table, words_per_cell
from distillkit.data.several import load_tasks
from distillkit.errors import DataError

WORDS = 3.0
"""Words a cell, on average, from which a column holds texts."""


def evaluations(source: str) -> list[Evaluation]:
    """What a file, a config (.yaml, .yml) or builtin:NAME (its held-out rows) would be measured on.

    Raises DataError (3) or ConfigError (2) for what cannot be read, or holds no texts.
    """
    if source.startswith("builtin:"):
        table = builtin_table(source.removeprefix("builtin:"), "validation", ["text"])
        return [Evaluation(f"{source} (held out)", tuple(table.columns["text"]))]
    path = Path(source)
    return _of_config(path) if path.suffix in (".yaml", ".yml") else [_of_table(path)]


def _of_table(path: Path) -> Evaluation:
    """Every column that holds texts, row by row, one column after the other."""
    names = column_names(path)
    table = read_table(path, names, lists=True)
    columns = {name: _texts(cells) for name, cells in table.columns.items() if not _is_tags(name, table)}
    found = [texts for texts in columns.values() if words_per_cell(texts) >= WORDS]
    if not found:
        raise DataError(
            f"no column looks like texts; found {', '.join(map(repr, names))}",
            where=str(path),
            hint=f"texts have {WORDS:.0f} words and more on average",
        )
    for line, *row in zip(table.lines, *found, strict=True):
        if problem := next(filter(None, map(half_character, row)), ""):
            raise DataError(f"the text {problem}", where=f"{path}:{line}")
    return Evaluation(str(path), tuple(text for texts in found for text in texts))


def _of_config(path: Path) -> list[Evaluation]:
    loaded = recipe.load(path, [], components=catalog.components)
    task = load_tasks(loaded.config.task, base=loaded.base, seed=loaded.config.seed)
    splits = {"validation": task.validation, "test": task.test}
    segments = task.labels.kind in ("classification", "regression")
    return [
        Evaluation(
            f"{path}: {split}",
            tuple(text for row in rows.texts for text in (row if segments else (" ".join(row),))),
        )
        for split, rows in splits.items()
        if rows is not None
    ]


def _is_tags(name: str, table: Table) -> bool:
    """Whether a column of lists stands beside one with more different entries: that one has the words."""
    sizes = {
        column: len({str(entry) for cell in cells for entry in cell})
        for column, cells in table.columns.items()
        if all(isinstance(cell, list) for cell in cells)
    }
    return name in sizes and name != max(sizes, key=lambda column: sizes[column])


def _texts(cells: Sequence[Any]) -> list[str]:
    """Cells as texts: lists of words joined, what is no text left empty."""
    return [
        " ".join(map(str, cell)) if isinstance(cell, list) else cell if isinstance(cell, str) else ""
        for cell in cells
    ]
