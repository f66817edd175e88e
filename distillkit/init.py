"""`distillkit init`: looks at a data file and writes a commented config that validates. No torch here."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillkit import catalog, files
from distillkit.data.corpora import documents
from distillkit.data.reading import (
    Table,
    check_file,
    column_names,
    find_tables,
    kind_of,
    read_table,
    words_per_cell,
)
from distillkit.errors import ConfigError
from distillkit.schema import json_schema

SCHEMA_FILE = "distillkit.schema.json"
LABEL_NAMES = ("label", "labels", "class", "category", "target", "sentiment", "intent", "topic", "score", "y")
_PAIRS = (
    ("source", "target"),
    ("input", "output"),
    ("input", "target"),
    ("document", "summary"),
    ("article", "summary"),
    ("text", "summary"),
    ("prompt", "completion"),
    ("instruction", "response"),
)
"""Names of a column of texts and one of the texts that are written for them."""
_NUMBERING = ("id", "idx", "index", "row")
MOST_CLASSES, WORDS = 200, 3.0
_DELIMITERS = (";", "\t", "|", ":")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./ -]*[A-Za-z0-9_]|[A-Za-z_]")


@dataclass(frozen=True)
class Look:
    """What a data file seems to hold. `notes` says what was guessed and why."""

    kind: str
    text: tuple[str, ...]
    label: str
    classes: tuple[str, ...]
    rows: int
    longest_words: int
    delimiter: str | None
    sources: dict[str, Path]
    longest_target: int = 0


def write_config(data: Path, output: Path) -> str:
    """Write a config for a file or folder of rows, and the schema for editors beside it; says what was found.

    Raises ConfigError where the config is there already or no text and label column is found, DataError for
    a file that cannot be read.
    """
    if output.exists():
        raise ConfigError("there is a file already", where=str(output), hint="name another with --output")
    look = look_at(data)
    text = render(look, output)
    output.parent.mkdir(parents=True, exist_ok=True)
    files.atomic_write(output, text)
    schema = output.parent / SCHEMA_FILE
    if not schema.exists():
        files.atomic_write(schema, json.dumps(json_schema(catalog.components()), indent=1))
    return f"{output}: {_said(look)}\nnext: distillkit plan {output}"


def look_at(data: Path) -> Look:
    """Find the columns of a file, or of a folder's train file."""
    sources = find_tables(data) if data.is_dir() else {"train": data}
    if "train" not in sources:
        raise ConfigError(
            "the folder has no train file", where=str(data), hint="name a file, e.g. train.csv or train.jsonl"
        )
    path = sources["train"]
    check_file(path)
    if path.name.endswith((".txt", ".txt.gz")):
        return _corpus(path)
    delimiter = _delimiter(path)
    names = column_names(path, delimiter=delimiter)
    table = read_table(path, names, delimiter=delimiter, skip=True, lists=True)
    if lists := _lists(table.columns):
        return _words_and_tags(table, lists, sources)
    if pair := _pair(table.columns):
        return _texts_for_texts(table, pair, delimiter, sources)
    text, label = _roles(path, table.columns)
    classes = tuple(dict.fromkeys(str(cell) for cell in table.columns[label]))
    kind = "regression" if _is_regression(table.columns[label]) else "classification"
    longest = max(
        sum(len(str(table.columns[name][row]).split()) for name in text) for row in range(len(table.lines))
    )
    return Look(kind, text, label, classes, len(table.lines), longest, delimiter, sources)


def render(look: Look, output: Path) -> str:
    """The config's text; paths in it are relative to where it lies."""
    found = {
        split: os.path.relpath(path, output.parent).replace(os.sep, "/")
        for split, path in look.sources.items()
    }
    train = Path(found["train"])
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", train.name.split(".")[0]).strip("-._") or "mine"
    text = ", ".join(map(_quoted, look.text))
    lines = [
        f"# yaml-language-server: $schema={SCHEMA_FILE}",
        "# Paths are relative to this file. Every key: `distillkit schema`. Check: `distillkit validate`.",
        f"name: {_quoted(name)}-small",
        "seed: 13",
        "",
        "task:",
        f"  kind: {look.kind}",
        *(f"  {split}: {_quoted(path)}" for split, path in found.items()),
        *([] if "validation" in found else ["  holdout: 0.1          # share of train kept for validation"]),
        *([f"  text: {text if len(look.text) == 1 else f'[{text}]'}"] if look.text else []),
        *([f"  label: {_quoted(look.label)}"] if look.label else []),
        *([f"  delimiter: {json.dumps(look.delimiter)}"] if look.delimiter else []),
        f"  max_length: {_room(look, look.longest_words)}        # tokens; {_LONGER.get(look.kind, _CUT)}",
        *(
            [f"  max_target: {_room(look, look.longest_target)}        # tokens of a target"]
            if look.longest_target
            else []
        ),
        "",
        *(line.replace("CORPUS", _quoted(found["train"])) for line in _REST[look.kind]),
        "",
        "export: {}              # ONNX, checked against PyTorch",
        "bench: {batch: [1, 8, 32], length: [16, 64]}",
    ]
    return "\n".join(lines) + "\n"


_CUT = "`distillkit plan` says how many rows are cut"
_LONGER = {"mlm": "sentences of a document are packed up to it"}
_STUDENT = (
    "student:",
    "  use: transformer",
    "  layers: 2",
    "  initialise: {from: teacher, layers: [2, 4]}   # start from these blocks of the teacher",
    "",
    "distill:",
    "  epochs: 3",
)
_MODELS = (
    "teacher:",
    "  use: bert              # or: {use: pretrained, path: folder-of-a-hugging-face-encoder, finetune: {}}",
    "  size: mini             # tiny, mini, small, medium, base, large",
    "  # pretrain:            # first learn the language from text of your own: worth far more than epochs",
    "  #   corpus: corpus.txt # a blank line between documents; also .jsonl, a folder, builtin:NAME",
    "  #   steps: 5000",
    "  finetune: {epochs: 3}",
    "",
    *_STUDENT,
    "  losses:                # all are added up; `distillkit list losses` shows what there is",
)
_CLASS_LOSSES = (
    "    gold: {use: gold, weight: 0.3}                   # the labels of the data",
    "    soft: {use: logits, weight: 0.7, temperature: 4} # what the teacher thinks of every class",
    "    states: {use: hidden_cosine}                     # how the teacher sees every token",
)
_NUMBER_LOSSES = (
    "    gold: {use: gold, weight: 0.3}                   # the targets of the data",
    "    soft: {use: logits, weight: 0.7}                 # the teacher's answers",
    "    states: {use: hidden_cosine}                     # how the teacher sees every token",
)
_CORPUS_MODELS = (
    "teacher:",
    "  use: bert              # or: {use: pretrained, path: folder-of-a-hugging-face-masked-language-model}",
    "  size: mini             # tiny, mini, small, medium, base, large",
    "  pretrain:              # on masked tokens and next sentences; a blank line stands between documents",
    "    corpus: CORPUS",
    "    steps: 5000",
    "",
    *_STUDENT,
    "  losses:                # as DistilBERT weighs them; `distillkit list losses` shows what there is",
    "    gold: {use: gold, weight: 2}                     # the tokens that stood there",
    "    soft: {use: logits, weight: 5, temperature: 2}   # what the teacher thinks of every token",
    "    states: {use: hidden_cosine, weight: 1}          # how the teacher sees every token",
)
_TEXT_MODELS = (
    "teacher:",
    "  use: t5                # or: {use: pretrained, path: folder-of-a-t5-or-bart, finetune: {}}",
    "  size: mini             # tiny, mini, small, base",
    "  # pretrain:            # first learn the language from text of your own: worth far more than epochs",
    "  #   corpus: corpus.txt # a blank line between documents; also .jsonl, a folder, builtin:NAME",
    "  #   steps: 5000",
    "  finetune: {epochs: 10, optimizer: {lr: 1.0e-3}}",
    "",
    "student:",
    "  use: seq2seq           # its decoder, which runs once a token, is half as deep as the teacher's",
    "  initialise: {from: teacher}",
    "",
    "distill:",
    "  epochs: 3",
    "  # written: {beams: 5}  # train on texts that the teacher writes, in the place of the targets",
    "  losses:                # all are added up; `distillkit list losses` shows what there is",
    "    gold: {use: gold, weight: 0.5}                   # the targets of the data",
    "    soft: {use: logits, weight: 0.5, temperature: 1} # what the teacher thinks of every next token",
)
_REST: Mapping[str, Sequence[str]] = {
    "classification": (*_MODELS, *_CLASS_LOSSES),
    "token_classification": (*_MODELS, *_CLASS_LOSSES),
    "regression": (*_MODELS, *_NUMBER_LOSSES),
    "mlm": _CORPUS_MODELS,
    "text_to_text": _TEXT_MODELS,
}


def _said(look: Look) -> str:
    """What was found, in words."""
    if look.kind == "mlm":
        return f"mlm on a corpus of {look.rows} documents"
    what = {
        "regression": "a number",
        "text_to_text": "a text",
        "token_classification": f"{len(look.classes)} tags",
    }.get(look.kind, f"{len(look.classes)} classes")
    columns = " and ".join(map(repr, look.text))
    return f"{look.kind} of {columns} into {what} ({look.label!r}), {look.rows} rows"


def _corpus(path: Path) -> Look:
    """A text file is a corpus: nothing in it is a label."""
    lengths = [
        len(sentence.split()) for document in documents(path.name, base=path.parent) for sentence in document
    ]
    rows = sum(1 for _ in documents(path.name, base=path.parent))
    return Look("mlm", (), "", (), rows, max(lengths), None, {"train": path})


def _lists(columns: Mapping[str, list[Any]]) -> list[str]:
    """Columns whose cells are lists of strings, at least two, the one with most different entries first."""
    sizes = {
        name: len({entry for cell in cells for entry in cell})
        for name, cells in columns.items()
        if all(isinstance(cell, list) and all(isinstance(entry, str) for entry in cell) for cell in cells)
    }
    return sorted(sizes, key=lambda name: -sizes[name]) if len(sizes) > 1 else []


def _words_and_tags(table: Table, lists: Sequence[str], sources: dict[str, Path]) -> Look:
    words, tags = lists[0], lists[-1]
    names = tuple(dict.fromkeys(tag for cell in table.columns[tags] for tag in cell))
    longest = max(map(len, table.columns[words]))
    return Look("token_classification", (words,), tags, names, len(table.lines), longest, None, sources)


def _pair(columns: Mapping[str, list[Any]]) -> tuple[str, str] | None:
    """A column of texts and one of the texts that are written for them, by their names; classes and numbers
    are none.
    """
    texts = [name for name, cells in columns.items() if all(isinstance(cell, str) for cell in cells)]
    named = {name.lower(): name for name in texts}
    for first, second in _PAIRS:
        if first in named and second in named:
            answers = columns[named[second]]
            if not (_is_class(answers) or _is_regression(answers)):
                return named[first], named[second]
    return None


def _texts_for_texts(
    table: Table, pair: tuple[str, str], delimiter: str | None, sources: dict[str, Path]
) -> Look:
    source, target = pair
    words = [max(len(cell.split()) for cell in table.columns[name]) for name in pair]
    return Look(
        "text_to_text", (source,), target, (), len(table.lines), words[0], delimiter, sources, words[1]
    )


def _delimiter(path: Path) -> str | None:
    """The separator of a CSV file whose header has no comma."""
    if kind_of(path)[0] != ".csv":
        return None
    names = column_names(path)
    if len(names) > 1:
        return None
    return next((sign for sign in _DELIMITERS if sign in names[0]), None)


def _roles(path: Path, columns: Mapping[str, list[Any]]) -> tuple[tuple[str, ...], str]:
    """(text columns, label column)."""
    labels = [
        name
        for name, cells in columns.items()
        if name.lower() not in _NUMBERING and (_is_regression(cells) or _is_class(cells))
    ]
    named = [name for name in LABEL_NAMES if name in {column.lower() for column in labels}]
    label = next(
        (column for column in labels if named and column.lower() == named[0]), labels[-1] if labels else ""
    )
    texts = [name for name in columns if name != label and words_per_cell(columns[name]) >= WORDS]
    if not texts:
        texts = [name for name in columns if name != label and name.lower() in ("text", "sentence", "review")]
    if not label or not texts:
        missing = "text" if label else "label"
        raise ConfigError(
            f"no column looks like a {missing}; found {', '.join(map(repr, columns))}",
            where=str(path),
            hint="texts have several words, labels few different values; a corpus is a .txt file",
        )
    return tuple(texts[:2]), label


def _is_class(cells: Sequence[Any]) -> bool:
    """Few different short values, each of them often."""
    found = {str(cell) for cell in cells}
    few = 2 <= len(found) <= min(MOST_CLASSES, max(2, len(cells) // 2))
    return few and all(isinstance(cell, str | int) for cell in cells) and words_per_cell(cells) < WORDS


def _is_regression(cells: Sequence[Any]) -> bool:
    """Numbers of which some are not whole, or too many different ones for classes."""
    try:
        numbers = [float(cell) for cell in cells]
    except (TypeError, ValueError):
        return False
    whole = all(number.is_integer() for number in numbers)
    return not whole or len(set(numbers)) > MOST_CLASSES


def _room(look: Look, words: int) -> int:
    """A power of two that holds so many words at 1.5 tokens each, from 32 to 256; 128 of packed rows."""
    if look.kind == "mlm":
        return 128
    return next((size for size in (32, 64, 128) if size >= 1.5 * words + 3), 256)


def _quoted(text: str) -> str:
    """The text as YAML: plain where it is plain, else in double quotes."""
    plain = _PLAIN.fullmatch(text) and text.lower() not in ("true", "false", "null")
    return text if plain else json.dumps(text)
