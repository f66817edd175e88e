"""What computes in an artifact: a whole model, its parts by the rule of its exits, or one that writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distillkit.early_exit import FACTS, FOLDER, Never
from distillkit.errors import ExportError
from distillkit.runtime.answers import Said
from distillkit.runtime.decoding import DECODER, ENCODER, Decoding
from distillkit.runtime.description import MODEL, Writing
from distillkit.runtime.early_exit import EarlyExit
from distillkit.runtime.rows import Reader, Row, padded
from distillkit.runtime.session import Provider, open_session
from distillkit.search import Ends, search


class Model(ABC):
    """From rows in tokens to what is said of each."""

    @abstractmethod
    def said(self, rows: Sequence[Row]) -> list[Said]:
        """Of one batch, in its order."""


class Whole(Model):
    """One graph: an answer to each row, or to each of its tokens."""

    def __init__(self, session: Any, pad: int) -> None:
        self.session, self.pad = session, pad
        self.names = [entry.name for entry in session.get_inputs()]

    def said(self, rows: Sequence[Row]) -> list[Said]:
        inputs = padded(rows, self.pad)
        logits = self.session.run(None, {name: inputs[name] for name in self.names})[0]
        by_token = logits.ndim == 3
        return [Said(one[: len(row)] if by_token else one) for one, row in zip(logits, rows, strict=True)]


class ByParts(Model):
    """Some blocks after the others; a row leaves as the artifact's rule says."""

    def __init__(self, parts: EarlyExit, pad: int) -> None:
        self.parts, self.pad = parts, pad

    def said(self, rows: Sequence[Row]) -> list[Said]:
        walked = self.parts.run(padded(rows, self.pad))
        return [Said(one, exit + 1) for one, exit in zip(walked.logits, walked.exits.tolist(), strict=True)]


class Writes(Model):
    """An encoder and a decoder; the best text of each row."""

    def __init__(self, encoder: Any, decoder: Any, reader: Reader, writing: Writing, device: str) -> None:
        self.encoder, self.decoder, self.reader, self.device = encoder, decoder, reader, device
        self.writing, self.ends = writing, Ends(writing.start, writing.end)

    def said(self, rows: Sequence[Row]) -> list[Said]:
        inputs = padded(rows, self.reader.tokens.pad)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        read = Decoding(self.encoder, self.decoder, self.device, ids, mask)
        nothing = np.zeros(0, dtype=np.float32)
        texts = search(read, len(rows), self.ends, self.writing)
        return [Said(nothing, written=self.reader.spelled(beams[0])) for beams in texts]


def open_model(
    folder: Path,
    files: frozenset[str],
    reader: Reader,
    writing: Writing | None,
    provider: Provider,
    threads: int,
) -> Model:
    """What an artifact's files hold; the whole model too where a rule lets nothing leave. Raises ExportError
    (10) for a file that does not stand in the manifest.
    """
    pad = reader.tokens.pad
    if writing is not None:
        _listed(folder, files, {ENCODER, DECODER})
        encoder, decoder = (
            open_session(folder / name, provider=provider, threads=threads) for name in (ENCODER, DECODER)
        )
        return Writes(encoder, decoder, reader, writing, provider)
    if FACTS in files:
        _listed(folder, files, {f"{FOLDER}/{path.name}" for path in (folder / FOLDER).iterdir()})
        parts = EarlyExit.open(folder, provider=provider, threads=threads)
        if not isinstance(parts.rule, Never):
            return ByParts(parts, pad)
    _listed(folder, files, {MODEL})
    return Whole(open_session(folder / MODEL, provider=provider, threads=threads), pad)


def _listed(folder: Path, files: frozenset[str], names: set[str]) -> None:
    missing = names - files
    if missing:
        problem = f"{min(missing)} does not stand in the manifest"
        raise ExportError(problem, where=str(folder), hint="export it again")
