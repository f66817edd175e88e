"""What is timed of a model that writes texts: whole texts of one length, and the first token alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from distillkit.bench.timing import FIRST, FORWARD, Calls, Opened
from distillkit.metrics import Measured
from distillkit.model import Writer
from distillkit.settings import GenerationSettings
from distillkit.types import Batch
from distillkit.writing import sources_of


@dataclass(frozen=True)
class Texts:
    """How texts are written, and what scores those of the samples, given as tokens in row order."""

    how: GenerationSettings
    score: Callable[[list[list[int]]], Mapping[str, Measured]]


def time_texts(opened: Opened, writer: Writer, how: GenerationSettings, new_tokens: int) -> None:
    """Have texts timed in the place of forwards: in cells those of exactly `new_tokens` tokens, whatever
    their ends, so that models are compared over equally long ones, and until there is a first token; in
    scenarios texts as they end.
    """

    def calls(batch: Batch) -> Calls:
        sources = sources_of(batch).to(opened.device)
        whole, first = exactly(how, new_tokens), exactly(how, 1)
        return {FORWARD: lambda: writer.write(sources, whole), FIRST: lambda: writer.write(sources, first)}

    opened.calls = calls
    opened.request = lambda batch: writer.write(sources_of(batch).to(opened.device), how)


def exactly(how: GenerationSettings, count: int) -> GenerationSettings:
    """The same with texts of so many tokens."""
    return how.model_copy(update={"min_length": count, "max_length": count})
