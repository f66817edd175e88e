"""Times a model that writes texts: whole texts of one length, and the first token alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from distillkit.bench.timing import Cell, time_cell
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


def writing_cell(writer: Writer, device: torch.device, how: GenerationSettings) -> Cell:
    """Measures texts of exactly `new_tokens` tokens, whatever their ends, so that models are compared over
    equally long ones; `first_ms` is the median time until there is a first token.
    """

    def cell(batch: Batch, settings: Mapping[str, Any]) -> dict[str, Any]:
        sources, count = sources_of(batch).to(device), int(settings["new_tokens"])
        whole, first = (
            time_cell(lambda one, so_many=so_many: writer.write(one, so_many), sources, settings)  # type: ignore[misc]
            for so_many in (exactly(how, count), exactly(how, 1))
        )
        per_second = whole["examples_per_s"] * count
        return {**whole, "tokens_per_s": per_second, "first_ms": first["p50_ms"]}

    return cell


def exactly(how: GenerationSettings, count: int) -> GenerationSettings:
    """The same with texts of so many tokens."""
    return how.model_copy(update={"min_length": count, "max_length": count})
