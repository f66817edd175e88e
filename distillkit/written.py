"""Targets that a teacher writes: its texts in the place of a phase's own (sequence-level distillation, Kim
and Rush 2016, section 3.2), or of its beam the one that is nearest to the right text (interpolation, section
3.3).

    cache/written-<key>-00000/  texts.jsonl  manifest.json

The key covers the rows, the teacher, the tokenizer and the search. A part holds the texts of some rows and
appears whole, so that a stopped or killed run goes on at the next one; its manifest says who wrote them and
how. What is kept are texts: they are tokenised as any target is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from distillkit import files
from distillkit.data.augment import joined
from distillkit.data.batching import encode
from distillkit.data.tasks import Rows
from distillkit.data.tokenizers import tokenizer_digest
from distillkit.model import Writer
from distillkit.settings import GenerationSettings, WrittenSettings
from distillkit.text_metrics import sentence_bleu
from distillkit.writing import spelled, write_beams

PART_ROWS = 1000
"""Rows whose texts are written together: what a kill loses at most."""
_FORMAT = 1
Texts = list[str]


@dataclass(frozen=True)
class Author:
    """Who writes, and how its work is kept. owner: a digest that names the teacher; max_length, longest:
    tokens of a source and of a text; check: called between two batches, may raise to stop; tell: told how
    many of how many rows are done.
    """

    writer: Writer
    owner: str
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    longest: int
    device: torch.device
    cache: Path
    check: Callable[[], None]
    tell: Callable[[int, int], None]


def written_rows(rows: Rows, settings: WrittenSettings, author: Author) -> Rows:
    """The rows with the teacher's texts as their targets, or these beside the rows; written once and read
    from the cache ever after. Rows may come without targets where none is compared.

    Raises ResourceError where there is no room, and what `check` raises; whole parts are kept.
    """
    how = GenerationSettings(
        beams=settings.beams, length_penalty=settings.length_penalty, max_length=author.longest
    )
    facts = {
        "format": _FORMAT,
        "teacher": author.owner,
        "tokenizer": tokenizer_digest(author.tokenizer),
        "rows": rows.digest,
        "search": how.model_dump(mode="json"),
        "max_length": author.max_length,
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    beams: list[Texts] = []
    for part, start in enumerate(range(0, len(rows), PART_ROWS)):
        folder = author.cache / f"written-{key[:32]}-{part:05d}"
        end = min(start + PART_ROWS, len(rows))
        if files.flaw(folder, hashes=True):
            with files.appearing(folder, lambda part=part: {**facts, "part": part}) as work:  # type: ignore[misc]
                _write(work / "texts.jsonl", _beams(rows, np.arange(start, end), how, author))
            author.tell(end, len(rows))
        beams += _read(folder / "texts.jsonl")
    texts = _chosen(rows, beams, settings)
    digest = hashlib.sha256(f"{key} {settings.identity()}".encode()).hexdigest()
    made = replace(rows, labels=np.asarray(texts, dtype=object), digest=digest)
    return made if settings.targets == "replaced" else joined(rows, made)


def nearest(wanted: str, beam: Sequence[str]) -> str:
    """The text of a beam whose sentence BLEU against the wanted one is largest; of equals the first."""
    return beam[int(np.argmax(sentence_bleu([wanted] * len(beam), beam)))]


def _chosen(rows: Rows, beams: Sequence[Texts], settings: WrittenSettings) -> Texts:
    if settings.choose == "best":
        return [beam[0] for beam in beams]
    assert rows.labels is not None, "a recipe that compares targets has some"
    return [nearest(str(text), beam) for text, beam in zip(rows.labels, beams, strict=True)]


def _beams(rows: Rows, part: NDArray[np.int64], how: GenerationSettings, author: Author) -> list[Texts]:
    """Every finished text of each row, the best first."""
    nothing = np.full(len(rows), "", dtype=object)  # a target is not looked at
    sources = replace(rows, labels=nothing, digest=f"{rows.digest} sources").take(part, f"from {part[0]}")
    encoded = encode(sources, author.tokenizer, max_length=author.max_length, cache=author.cache)
    found = write_beams(author.writer, encoded, how, device=author.device, check=author.check)
    return [spelled(beam, author.tokenizer) for beam in found]


def _write(path: Path, beams: Sequence[Texts]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for texts in beams:
            file.write(json.dumps(texts, ensure_ascii=False) + "\n")


def _read(path: Path) -> list[Texts]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
