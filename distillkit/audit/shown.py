"""An audit for a terminal. What comes from the corpus is shortened, and harmless to a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.console import Group
from rich.table import Table
from rich.text import Text

from distillkit.audit.contamination import LONG, SHORT
from distillkit.audit.corpus import Audit
from distillkit.audit.duplicates import NEAR, SHINGLE, Copies
from distillkit.report.text import clean, duration, percent, scaled, shorten, size

_LANGUAGES = 8
_SENTENCE, _WIDTH = 80, 70


def shown(audit: Audit) -> Group:
    """Tables: the corpus, lengths, what comes often, strings that should not be there, evaluation data."""
    facts = Table(show_header=False, highlight=False, title=clean(audit.source))
    for row in _facts(audit):
        facts.add_row(*map(_cell, row))
    tables = [facts, _lengths(audit)]
    if audit.common:
        tables.append(_common(audit))
    tables.append(_strings(audit))
    if audit.overlaps:
        tables.append(_overlaps(audit))
    return Group(*tables)


def _facts(audit: Audit) -> Iterator[tuple[str, str]]:
    empty = f" ({audit.empty_documents:,} more are empty)" if audit.empty_documents else ""
    yield "documents", f"{audit.documents:,}{empty}"
    yield "sentences", f"{audit.sentences:,}"
    yield "words", f"{audit.words:,}"
    yield "characters", f"{audit.characters:,} ({size(audit.bytes)} in UTF-8)"
    if audit.tokens is not None:
        unknown = (audit.unknown_tokens or 0) / max(1, audit.tokens)
        yield (
            "tokens",
            f"{audit.tokens:,} ({audit.tokens / max(1, audit.words):.2f} a word, {unknown:.2%} unknown)",
        )
    yield "same documents", _copies(audit.document_copies)
    near = audit.near_copies
    share = percent(near.documents / max(1, near.compared))
    repeats = f"{near.documents:,} of {near.compared:,} ({share}) repeat an earlier one"
    rule = f"word {SHINGLE}-grams, Jaccard {NEAR} or more, estimated; same and shorter documents left out"
    yield "near duplicates", f"{repeats} ({rule})"
    for cluster in near.clusters:
        numbers = ", ".join(f"{number:,}" for number in cluster.documents)
        more = ", …" if cluster.size > len(cluster.documents) else ""
        yield "", f"{cluster.size:,} documents: {numbers}{more} (the first two: {cluster.similarity:.2f})"
    yield "same sentences", _copies(audit.sentence_copies)
    yield "languages (a guess)", _languages(audit.languages)
    for odd in audit.odd_characters:
        which = f", mostly {', '.join(odd.most)}" if odd.most else ""
        yield odd.kind, f"in {odd.sentences:,} sentences{which}" if odd.sentences else "none"
    yield "read in", f"{duration(audit.seconds)}, {size(audit.bytes / max(1e-9, audit.seconds))}/s"


def _lengths(audit: Audit) -> Table:
    table = _table("lengths", "", "mean", "shortest", "5 %", "median", "95 %", "longest")
    for name, lengths in audit.lengths.items():
        numbers = (lengths.shortest, lengths.p5, lengths.median, lengths.p95, lengths.longest)
        table.add_row(_cell(name), f"{lengths.mean:,.1f}", *(f"{number:,}" for number in numbers))
    return table


def _common(audit: Audit) -> Table:
    missed = f" (each up to {audit.missed:,} times more)" if audit.missed else ""
    table = _table(f"sentences that come most often{missed}", "times", "sentence")
    for sentence, count in audit.common:
        table.add_row(f"{count:,}", _cell(shorten(sentence, _SENTENCE)))
    return table


def _strings(audit: Audit) -> Table:
    table = _table("strings that look like", "kind", "count", "the first ones, redacted")
    for found in audit.strings:
        examples = "; ".join(f"{text} in document {number:,}" for number, text in found.examples)
        table.add_row(_cell(found.kind), f"{found.count:,}", _cell(examples))
    return table


def _overlaps(audit: Audit) -> Table:
    columns = (
        "texts",
        f"under {SHORT} words",
        "a whole sentence or document",
        "a shared run",
        "every run",
        "either",
    )
    table = _table(
        f"evaluation texts in the corpus (runs of {LONG} words, {SHORT} in short texts)", "", *columns
    )
    for overlap in audit.overlaps:
        counts = (overlap.short, overlap.whole, overlap.overlapping, overlap.verbatim)
        first = ", ".join(f"{number:,}" for number in overlap.examples)
        more = ", …" if overlap.contaminated > len(overlap.examples) else ""
        either = percent(overlap.share) + (f" (numbers {first}{more})" if first else "")
        row = (overlap.name, f"{overlap.texts:,}", *(f"{count:,}" for count in counts), either)
        table.add_row(*map(_cell, row))
    return table


def _copies(copies: Copies) -> str:
    number = f"{copies.copies:,}" if copies.exact else f"about {scaled(copies.copies)}"
    return f"{number} ({percent(copies.share)}) repeat an earlier one"


def _languages(languages: Mapping[str, int]) -> str:
    total = sum(languages.values())
    told = [f"{name} {percent(count / total)}" for name, count in list(languages.items())[:_LANGUAGES]]
    more = len(languages) - len(told)
    return ", ".join([*told, *([f"{more} more"] if more > 0 else [])]) + " of the documents"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, highlight=False, min_width=_WIDTH)
    for column in columns:
        table.add_column(column)
    return table


def _cell(text: str) -> Text:
    return Text(clean(text))
