"""The artifact of a model that writes texts: encoder.onnx, decoder.onnx, tokenizer files, config.json,
labels.json, parity.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from distillkit.data.batching import Encoded, collate, drawn
from distillkit.errors import ExportError
from distillkit.export.bundle import AS_LONG_AS_IT_TAKES, Reading, describe, facts
from distillkit.export.decoding import OnnxWriter, write_graphs
from distillkit.export.parity import TIE, Parity, batches, compared
from distillkit.model import TextStudent
from distillkit.runtime.description import Writing, write_description
from distillkit.settings import ExportSettings, GenerationSettings, Labels
from distillkit.types import TARGET_IDS, Want
from distillkit.writing import sources_of, write_tokens

LONGEST = 256
"""Longest source and target that are compared beside the real rows."""
FEWEST_SAME = 0.98
"""Share of rows for which beam search must write the same text: where two beams tie, all that follows may
differ.
"""


@dataclass(frozen=True)
class TextParity(Parity):
    """The same of logits of targets, and for how many rows the artifact wrote PyTorch's text: greedily, and
    by the task's own search. A greedy text counts as the same where the two tokens at which it first differs
    are decided by rounding.
    """

    texts: int = 0
    same_greedy: float = 1.0
    same_texts: float = 1.0


def export_writer(
    student: TextStudent,
    tokenizer: PreTrainedTokenizerBase,
    labels: Labels,
    samples: Encoded,
    folder: Path,
    settings: ExportSettings,
    how: GenerationSettings,
    prefix: str,
    *,
    reading: Reading = AS_LONG_AS_IT_TAKES,
) -> TextParity:
    """Write the artifact into `folder` and prove that it answers and writes the same. Raises ExportError (10)
    where it does not.
    """
    student = student.eval().cpu()
    write_graphs(student, folder, opset=settings.opset, metadata=facts(student, labels))
    tokenizer.save_pretrained(folder)
    names = {"kind": labels.kind}
    config = {
        **asdict(student.spec),
        **names,
        "decoder_start_token_id": student.start_id,
        "eos_token_id": student.end_id,
        "pad_token_id": tokenizer.pad_token_id,
        "prefix": prefix,
        "generation": how.model_dump(mode="json"),
        "opset": settings.opset,
    }
    (folder / "config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1), encoding="utf-8")
    (folder / "labels.json").write_text(json.dumps(names, indent=1))
    assert how.max_length is not None
    ends = (student.start_id, student.end_id)
    writing = Writing(*ends, how.beams, how.length_penalty, how.min_length, how.max_length)
    told = describe(student, tokenizer, labels, ("input_ids", "attention_mask"), reading)
    tokens = replace(told.tokens, prefix=prefix)
    write_description(replace(told, tokens=tokens, writing=writing), folder)
    made = OnnxWriter.open(folder, threads=1)
    parity = _compare(student, made, samples, settings, how)
    (folder / "parity.json").write_text(json.dumps(asdict(parity), indent=1))
    return parity


def _compare(
    student: TextStudent,
    made: OnnxWriter,
    samples: Encoded,
    settings: ExportSettings,
    how: GenerationSettings,
) -> TextParity:
    logits = compared(_pairs(student, made, samples, settings.rows), settings.tolerance)
    some = drawn(samples, settings.rows, seed=0)
    greedy = _same_greedy(student, made, some, how.model_copy(update={"beams": 1}))
    if greedy < 1:
        raise ExportError(
            f"greedily the artifact writes another text than PyTorch for {1 - greedy:.1%} of {len(some)} "
            "rows",
            where="export",
        )
    texts = greedy
    if how.beams > 1:
        cpu = torch.device("cpu")
        both = zip(*(write_tokens(one, some, how, device=cpu) for one in (student, made)), strict=True)
        texts = float(np.mean([mine == theirs for mine, theirs in both]))
    if texts < FEWEST_SAME:
        raise ExportError(
            f"by beam search the artifact writes another text than PyTorch for {1 - texts:.1%} of "
            f"{len(some)} rows",
            where="export",
        )
    return TextParity(**asdict(logits), texts=len(some), same_greedy=greedy, same_texts=texts)


def _pairs(
    student: TextStudent, made: OnnxWriter, samples: Encoded, rows: int
) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.float32]]]:
    longest = min(student.spec.max_length, LONGEST)
    for name, batch in batches(samples, rows, longest):
        with torch.inference_mode():
            expected = student.outputs(batch, want=Want()).logits.numpy()
        yield f"shape {name}", expected, made.logits(batch)


def _same_greedy(student: TextStudent, made: OnnxWriter, samples: Encoded, how: GenerationSettings) -> float:
    """Share of the rows with the same text, or one that is another by rounding alone."""
    cpu = torch.device("cpu")
    theirs, mine = (write_tokens(one, samples, how, device=cpu) for one in (student, made))
    same = [
        left == right or _tied(student, samples, row, left, right)
        for row, (left, right) in enumerate(zip(theirs, mine, strict=True))
    ]
    return float(np.mean(same))


def _tied(student: TextStudent, samples: Encoded, row: int, left: list[int], right: list[int]) -> bool:
    """Whether the tokens at which two texts first differ (perhaps the end of one) have one score."""
    ended = [[*text, student.end_id] for text in (left, right)]
    place = next(at for at, pair in enumerate(zip(*ended, strict=False)) if pair[0] != pair[1])
    batch = sources_of(collate(samples, np.asarray([row])))
    target = torch.tensor([ended[0][: place + 1]])
    with torch.inference_mode():
        told = student.outputs(replace(batch, inputs={**batch.inputs, TARGET_IDS: target}), want=Want())
    scores = told.logits[-1]
    return abs(float(scores[ended[0][place]] - scores[ended[1][place]])) < TIE
