"""`distillkit corpus`: reads a corpus once, block by block, and says what is in it.

Memory does not grow with the text but with the number of documents (`duplicates.BYTES_PER_DOCUMENT` each) and
of words to look for (`contamination`): besides these, some 400 MB and the longest document are held.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distillkit.audit.blocks import Block, blocks, digest
from distillkit.audit.characters import Characters, Odd
from distillkit.audit.contamination import Contamination, Evaluation, Overlap
from distillkit.audit.duplicates import Copies, DistinctTexts, Documents, NearCopies
from distillkit.audit.languages import guess_document
from distillkit.audit.sensitive import Found, Sensitive, redacted
from distillkit.audit.tallies import Frequent, Lengths
from distillkit.data.corpora import all_documents
from distillkit.errors import DataError, StoppedError
from distillkit.progress import Progress
from distillkit.report.text import size
from distillkit.signals import Signals

COMMON = 10
"""Sentences that are shown of those that come most often."""
Tokens = Callable[[Sequence[str]], list[tuple[int, int]]]
"""(tokens, unknown ones among them) of each text."""


@dataclass(frozen=True)
class Audit:
    """What is in a corpus. lengths: by what is measured; common: sentences (of long ones the beginning,
    redacted) with how often they come, at most `missed` times too rarely; odd_characters: sentences by kind;
    tokens: None without a tokenizer.
    """

    source: str
    documents: int
    empty_documents: int
    sentences: int
    words: int
    characters: int
    bytes: int
    tokens: int | None
    unknown_tokens: int | None
    lengths: Mapping[str, Lengths]
    document_copies: Copies
    near_copies: NearCopies
    sentence_copies: Copies
    common: tuple[tuple[str, int], ...]
    missed: int
    languages: Mapping[str, int]
    strings: tuple[Found, ...]
    odd_characters: tuple[Odd, ...]
    overlaps: tuple[Overlap, ...]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self)


def audit_corpus(
    source: str,
    *,
    base: Path,
    progress: Progress,
    evaluations: Sequence[Evaluation] = (),
    tokens: Tokens | None = None,
) -> Audit:
    """Audit a file, a folder or builtin:NAME.

    Raises DataError (3) or ConfigError (2) for what cannot be read, StoppedError (75, 130) after a signal.
    """
    with Signals() as signals:
        documents = _watched(all_documents(source, base=base), signals)
        try:
            return audit(source, documents, progress=progress, evaluations=evaluations, tokens=tokens)
        finally:
            progress.close()


def audit(
    source: str,
    documents: Iterable[Sequence[str]],
    *,
    progress: Progress,
    evaluations: Sequence[Evaluation] = (),
    tokens: Tokens | None = None,
) -> Audit:
    """Audit documents (sentences each) as they come; raises DataError where none has any."""
    started = time.monotonic()
    sizes, alike, sentences = _Sizes(tokens), Documents(), DistinctTexts()
    frequent, languages, characters = Frequent(), Counter[str](), Characters()
    strings, contamination = Sensitive(), Contamination(evaluations)
    for block in blocks(sizes.counted(documents)):
        for part in (sizes, alike, characters, strings, contamination):
            part.add(block)
        texts = [sentence for document in block.texts for sentence in document]
        sentences.add(np.fromiter(map(digest, texts), np.uint64, len(texts)))
        frequent.add(texts)
        languages.update(map(guess_document, block.texts))
        seconds = time.monotonic() - started
        rate = size(sizes.bytes / max(1e-9, seconds))
        progress.show(f"corpus: {sizes.documents:,} documents, {size(sizes.bytes)}, {rate}/s")
    if not sizes.sentences:
        raise DataError("the corpus has no sentences", where=source)
    document_copies, near_copies = alike.found()
    return Audit(
        source=source,
        documents=sizes.documents,
        empty_documents=sizes.empty,
        sentences=sizes.sentences,
        words=sizes.words,
        characters=sizes.characters,
        bytes=sizes.bytes,
        tokens=None if tokens is None else sizes.tokens,
        unknown_tokens=None if tokens is None else sizes.unknown,
        lengths={name: Lengths.of(counts) for name, counts in sizes.lengths.items()},
        document_copies=document_copies,
        near_copies=near_copies,
        sentence_copies=sentences.copies(),
        common=tuple((redacted(text), count) for text, count in frequent.most(COMMON)),
        missed=frequent.missed,
        languages=dict(sorted(languages.items(), key=lambda item: (-item[1], item[0]))),
        strings=strings.found(),
        odd_characters=characters.found(),
        overlaps=contamination.found(),
        seconds=time.monotonic() - started,
    )


class _Sizes:
    """How much there is. Empty documents are counted and not handed on."""

    def __init__(self, tokens: Tokens | None) -> None:
        self._tokens = tokens
        self.documents = self.empty = self.sentences = self.words = self.characters = self.bytes = 0
        self.tokens = self.unknown = 0
        self.lengths: dict[str, Counter[int]] = {
            "words of a document": Counter(),
            "words of a sentence": Counter(),
        }
        if tokens is not None:
            self.lengths["tokens of a document"] = Counter()

    def counted(self, documents: Iterable[Sequence[str]]) -> Iterator[Sequence[str]]:
        for document in documents:
            if document:
                yield document
            else:
                self.empty += 1

    def add(self, block: Block) -> None:
        self.documents += len(block)
        self.sentences += len(block.sentences) - 1
        self.words += len(block.words)
        self.lengths["words of a document"].update(np.diff(block.documents).tolist())
        self.lengths["words of a sentence"].update(np.diff(block.sentences).tolist())
        for document in block.texts:
            text = "".join(document)
            self.characters += len(text)
            self.bytes += len(text.encode())
            if self._tokens is not None:
                counts = self._tokens(document)
                self.tokens += sum(count for count, _ in counts)
                self.unknown += sum(unknown for _, unknown in counts)
                self.lengths["tokens of a document"][sum(count for count, _ in counts)] += 1


def _watched(documents: Iterable[Sequence[str]], signals: Signals) -> Iterator[Sequence[str]]:
    """The same; a signal stops between two documents."""
    for document in documents:
        if signals.stopping:
            raise StoppedError(
                "stopped by a signal while the corpus was read",
                interrupted=signals.interrupted,
                hint="nothing was written; the same command begins anew",
            )
        yield document
