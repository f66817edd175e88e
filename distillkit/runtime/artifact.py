"""An exported artifact, opened: from texts to answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distillkit.errors import ConfigError, ExportError
from distillkit.runtime.answers import (
    Answer,
    Said,
    class_answer,
    finite,
    tags_answer,
    text_answer,
    value_answer,
)
from distillkit.runtime.check import check_files
from distillkit.runtime.description import (
    FILE,
    MODEL,
    TOKENIZER,
    Description,
    TaskRows,
    read_description,
)
from distillkit.runtime.models import Model, open_model
from distillkit.runtime.rows import Layout, Reader, Row, Texts, Where, Words, nth, sequential_batches
from distillkit.runtime.session import Provider, provider_named
from distillkit.wording import shown

BATCH_TOKENS = 4096
"""Tokens of a batch, padding included, where a caller does not say."""
_KNOWN_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}


@dataclass(frozen=True)
class Form:
    """What a kind of task is at run time: how its rows are laid out, and how what a model said is read."""

    layout: Layout
    answer: Callable[[TaskRows, Row, Said], Answer]


FORMS: Mapping[str, Form] = {
    "classification": Form(Texts(), class_answer),
    "regression": Form(Texts(), value_answer),
    "token_classification": Form(Words(), tags_answer),
    "text_to_text": Form(Texts(), text_answer),
}
"""The kinds of task that have answers for texts."""


class Artifact:
    """An exported model that answers texts.

    Not changed by anything that it does: one may be used by several threads.
    """

    def __init__(self, description: Description, form: Form, reader: Reader, model: Model) -> None:
        self.description, self._form, self._reader, self._model = description, form, reader, model

    @classmethod
    def load(cls, folder: str | Path, *, provider: Provider = "cpu", threads: int = 0) -> Artifact:
        """Open an exported folder, or the `export/` of a run's.

        provider: cpu or cuda, never another than this; threads: of one forward, 0 for one a core. Raises
        ExportError (10) where files are missing, damaged or of another version, SecurityError (11) where they
        lead out of the folder, MissingError (5) where the provider is not there, ConfigError (2) for a folder
        that is none and for a kind of task that has no answers for texts.
        """
        provider = provider_named(provider)
        if threads < 0:
            raise ConfigError(f"{threads} is no number of threads", where="threads", hint="0: one a core")
        place = artifact_folder(Path(folder))
        files = check_files(place)
        description = read_description(place)
        _complete(place, files, description)
        form = FORMS[description.kind]
        reader = Reader.open(place, description.tokens, form.layout)
        model = open_model(place, files, reader, description.writing, provider, threads)
        return cls(description, form, reader, model)

    def predict(self, rows: Sequence[Any], *, task: str = "", tokens: int = BATCH_TOKENS) -> list[Answer]:
        """Answers in the order of the rows: each a text, a pair of texts, or a list of words, as in training.

        task: which of several; tokens: of one batch, padding included (a row that is longer goes alone).
        Raises DataError (3) for what is not such a row, ConfigError (2) for a task that is not there.
        """
        return self.answers(self.check(rows, task), task=task, tokens=tokens)

    def check(self, rows: Sequence[Any], task: str = "", where: Where = nth) -> list[tuple[str, ...]]:
        """The texts of each row; `where` names the place of one in an error. Errors as in `predict`."""
        return self._reader.check(rows, self.description.task(task), where)

    def answers(
        self, rows: Sequence[tuple[str, ...]], *, task: str = "", tokens: int = BATCH_TOKENS
    ) -> list[Answer]:
        """Answers to checked rows, in their order."""
        read = self.read(rows, task)
        lengths = np.array([self.size(row) for row in read], dtype=np.int64)
        said: dict[int, Said] = {}
        for batch in sequential_batches(lengths, tokens=tokens):
            said.update(zip(batch.tolist(), self.run([read[place] for place in batch]), strict=True))
        return [self.answer(row, said[place], task) for place, row in enumerate(read)]

    def read(self, rows: Sequence[tuple[str, ...]], task: str = "") -> list[Row]:
        """Checked rows in tokens."""
        return self._reader.read(rows, self.description.task(task))

    def size(self, row: Row) -> int:
        """Tokens that a row costs: its own, and where texts are written those of all that are pursued."""
        writing = self.description.writing
        return len(row) if writing is None else (len(row) + writing.max_length) * writing.beams

    def run(self, rows: Sequence[Row]) -> list[Said]:
        """One batch of rows, of whatever tasks, through the model. Raises ExportError (10) where it answers
        with what is no number.
        """
        said = self._model.said(rows)
        if not finite(said):
            raise ExportError("the model answered NaN or infinity", where=MODEL, hint="export it again")
        return said

    def answer(self, row: Row, said: Said, task: str = "") -> Answer:
        """What the model said of a row, read as the answer to one of its tasks."""
        return self._form.answer(self.description.task(task), row, said)


def artifact_folder(folder: Path) -> Path:
    """The folder, or the `export/` of a run's folder. Raises ConfigError (2) where neither is there."""
    if not folder.is_dir():
        raise ConfigError(
            "there is no such folder", where=str(folder), hint="name an artifact or a run's folder"
        )
    if (folder / FILE).is_file() or not (folder / "config.yaml").is_file():
        return folder
    if not (folder / "export").is_dir():
        raise ConfigError("this run has no artifact yet", where=str(folder), hint="distillkit export FOLDER")
    return folder / "export"


def _complete(folder: Path, files: frozenset[str], description: Description) -> None:
    """Refuse an artifact that the manifest does not cover, or that this runtime has no answers for."""
    for name in (FILE, TOKENIZER):
        if name not in files:
            raise ExportError(
                f"{name} does not stand in the manifest", where=str(folder), hint="export it again"
            )
    if description.kind not in FORMS:
        raise ConfigError(
            f"an artifact of kind {shown(description.kind)} has no answers for texts",
            where=str(folder),
            hint=f"known: {', '.join(FORMS)}",
        )
    unknown = sorted(set(description.inputs) - _KNOWN_INPUTS)
    if unknown:
        raise ExportError(f"unknown input {shown(unknown[0])}", where=str(folder / FILE))
