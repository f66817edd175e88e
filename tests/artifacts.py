"""Small artifacts made by hand: a table of what each token says; the mean over its tokens answers a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tiny import tokenizer as tiny_tokenizer
from transformers import PreTrainedTokenizerBase

from distillkit import files
from distillkit.data.layouts import Segments, Words
from distillkit.runtime.description import Description, TaskRows, Tokens, write_description

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class Made:
    """folder: sealed; table: `[vocabulary, V]`; oracle: what a row must be answered."""

    folder: Path
    table: NDArray[np.float32]
    tokenizer: PreTrainedTokenizerBase
    description: Description

    def logits(self, texts: Sequence[tuple[str, ...]]) -> list[NDArray[np.float64]]:
        """Row by row, from the ids that training has: `[V]` each, of tokens `[L, V]`."""
        by_token = self.description.kind == "token_classification"
        layout = Words() if by_token else Segments()
        made = layout.pieces(texts, None, self.tokenizer, self.description.tokens.max_length)
        ends = np.cumsum(made.lengths)[:-1]
        rows = zip(np.split(made.tokens, ends), np.split(made.types, ends), strict=True)
        said = [self.table[ids].astype(np.float64) * (1 + types)[:, None] for ids, types in rows]
        return said if by_token else [one.mean(axis=0) for one in said]


def make(
    folder: Path,
    kind: str = "classification",
    *,
    labels: Sequence[str] = ("bad", "good"),
    columns: Sequence[str] = ("text",),
    tasks: Mapping[str, Sequence[str]] | None = None,
    max_length: int = 24,
    max_chars: int = 20_000,
    tokenizer: PreTrainedTokenizerBase | None = None,
    seed: int = 0,
) -> Made:
    """An artifact of one task, or of several that read the same column."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer or tiny_tokenizer()
    several = tasks or {"": labels}
    firsts = np.cumsum([0, *map(len, several.values())]).tolist()
    rows = tuple(
        TaskRows(name, tuple(columns), max_chars, tuple(own), first)
        for (name, own), first in zip(several.items(), firsts, strict=False)
    )
    description = Description(
        kind,
        "accuracy",
        INPUTS,
        Tokens(
            max_length,
            int(tokenizer.pad_token_id or 0),
            "token_type_ids" in tokenizer.model_input_names,
            tokenizer.truncation_side,
            False,
        ),
        rows,
    )
    width = max(1, firsts[-1])
    table = np.random.default_rng(seed).normal(size=(len(tokenizer), width)).astype(np.float32)
    (folder / "model.onnx").write_bytes(model(table, kind == "token_classification").SerializeToString())
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    write_description(description, folder)
    files.seal(folder, {})
    return Made(folder, table, tokenizer, description)


def model(table: NDArray[np.float32], by_token: bool) -> Any:
    """logits = table[ids] (1 + segment), averaged over real tokens unless tokens are answered."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["said"]),
        helper.make_node("Cast", ["token_type_ids"], ["types"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["types", "last"], ["segment"]),
        helper.make_node("Mul", ["said", "segment"], ["more"]),
        helper.make_node("Add", ["said", "more"], ["logits" if by_token else "tokens"]),
    ]
    if not by_token:
        nodes += [
            helper.make_node("Cast", ["attention_mask"], ["real"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["real", "last"], ["mask"]),
            helper.make_node("Mul", ["tokens", "mask"], ["counted"]),
            helper.make_node("ReduceSum", ["counted", "middle"], ["sum"], keepdims=0),
            helper.make_node("ReduceSum", ["mask", "middle"], ["count"], keepdims=0),
            helper.make_node("Div", ["sum", "count"], ["logits"]),
        ]
    shape = ["batch", *(["length"] if by_token else []), table.shape[1]]
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in INPUTS],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([-1]), "last"),
            numpy_helper.from_array(np.array([1]), "middle"),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(made)
    return made
