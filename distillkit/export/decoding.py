"""A model that writes in ONNX: two graphs without control flow, and what writes texts with them.

`encoder.onnx` takes `input_ids` and `attention_mask` and gives what the decoder reads of the source
(`cross.0.key`, ...), once for a text. `decoder.onnx` takes new tokens, these, and the past (`past.0.key`,
...), and gives `logits` and the longer past (`present.0.key`, ...). The past of an encoder-decoder is the
keys and values of what was written before, of which there may be none, and any number of tokens is new; that
of a recurrent model is its state, which the encoder begins, and one token is new. Between two steps nothing
is copied: what one gives is bound to the next. Weights that are tied are stored once in each file.

Shapes: B sources, R texts, L tokens of a source, T new tokens, P written before, H heads, V entries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from distillkit.encoder_decoder import shifted
from distillkit.errors import ExportError
from distillkit.export.onnx import OUTPUT, exported
from distillkit.model import Graphs, TextStudent, Writer
from distillkit.runtime.decoding import DECODER as DECODER
from distillkit.runtime.decoding import ENCODER as ENCODER
from distillkit.runtime.decoding import Decoding
from distillkit.runtime.session import open_session
from distillkit.search import Ends, Ints, search
from distillkit.settings import GenerationSettings
from distillkit.types import TARGET_IDS, Batch

_SIZES = {"batch": 3, "source": 11, "past": 6, "new": 2}
"""Of the example that is traced: all different, and neither 0 nor 1, which the exporter takes for constants.
"""


def write_graphs(model: TextStudent, folder: Path, *, opset: int, metadata: Mapping[str, str]) -> None:
    """Write encoder.onnx and decoder.onnx. Raises ExportError (10) where the exporter cannot follow the
    model.
    """
    graphs = model.graphs()
    batch, source, past, new = (torch.export.Dim(name) for name in _SIZES)
    mask = torch.ones(_SIZES["batch"], _SIZES["source"], dtype=torch.int64)
    ids = torch.full_like(mask, 3)
    pair = {0: batch, 1: source}
    exported(
        graphs.encoder,
        folder / ENCODER,
        {"input_ids": ids, "attention_mask": mask},
        {"input_ids": pair, "attention_mask": pair},
        inputs=["input_ids", "attention_mask"],
        outputs=[*graphs.cross, *([] if graphs.grows else graphs.past)],
        opset=opset,
        metadata=metadata,
    )
    cross, before = _example(graphs, ids, mask)
    exported(
        graphs.decoder,
        folder / DECODER,
        {
            "input_ids": torch.full((_SIZES["batch"], _SIZES["new"] if graphs.grows else 1), 3),
            "attention_mask": mask,
            "cross": cross,
            "past": before,
        },
        {
            "input_ids": {0: batch, 1: new} if graphs.grows else {0: batch},
            "attention_mask": pair,
            "cross": [{0: batch, graphs.length: source} for _ in cross],
            "past": [{0: batch, graphs.length: past} if graphs.grows else {0: batch} for _ in before],
        },
        inputs=["input_ids", "attention_mask", *graphs.cross, *graphs.past],
        outputs=[OUTPUT, *(name.replace("past", "present", 1) for name in graphs.past)],
        opset=opset,
        metadata=metadata,
    )
    store_once(folder / DECODER)


def _example(
    graphs: Graphs, ids: torch.Tensor, mask: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What is read of a source, and a past."""
    with torch.no_grad():
        given = list(graphs.encoder(ids, mask))
    cross, state = given[: len(graphs.cross)], given[len(graphs.cross) :]
    if not graphs.grows:
        return cross, state
    shapes = [[*one.shape[: graphs.length], _SIZES["past"], *one.shape[graphs.length + 1 :]] for one in cross]
    return cross, [torch.randn(shape) for shape in shapes]


def store_once(path: Path) -> None:
    """Replace every matrix of a file that is another one transposed by that transposition: the exporter folds
    it where a table serves for tokens and for scores, and writes the largest weight of a model twice.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(str(path))
    matrices = {one.name: one for one in model.graph.initializer if len(one.dims) == 2}
    arrays = {name: numpy_helper.to_array(one) for name, one in matrices.items()}
    kept: dict[bytes, str] = {}
    added = []
    for name, array in arrays.items():
        source = kept.get(np.ascontiguousarray(array.T).tobytes())
        if source is None or arrays[source].shape != array.shape[::-1]:
            kept.setdefault(array.tobytes(), name)
            continue
        model.graph.initializer.remove(matrices[name])
        added.append(helper.make_node("Transpose", [source], [name], perm=[1, 0]))
    if added:
        nodes = [*added, *model.graph.node]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        onnx.save(model, str(path))


class OnnxWriter(Writer):
    """The two graphs in ONNX Runtime: answers to targets, and texts."""

    def __init__(self, encoder: Any, decoder: Any, ends: Ends, provider: Literal["cpu", "cuda"]) -> None:
        self._encoder, self._decoder, self._ends, self.provider = encoder, decoder, ends, provider

    @classmethod
    def open(cls, folder: Path, *, threads: int = 0, provider: Literal["cpu", "cuda"] = "cpu") -> OnnxWriter:
        """An exported artifact. Raises ExportError (10) for a folder that writes no text, and as
        `open_session` does.
        """
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            ends = Ends(int(config["decoder_start_token_id"]), int(config["eos_token_id"]))
        except (OSError, ValueError, KeyError, TypeError):
            raise ExportError(
                "no config.json of a model that writes text",
                where=str(folder),
                hint="export a student of a text_to_text task",
            ) from None
        encoder, decoder = (
            open_session(folder / name, provider=provider, threads=threads) for name in (ENCODER, DECODER)
        )
        return cls(encoder, decoder, ends, provider)

    @property
    def provider_name(self) -> str:
        """As ONNX Runtime calls it."""
        return str(self._decoder.get_providers()[0])

    def begin(self, input_ids: Ints, attention_mask: Ints) -> Decoding:
        """Read sources; nothing is written yet."""
        return Decoding(self._encoder, self._decoder, self.provider, input_ids, attention_mask)

    def beams(self, batch: Batch, how: GenerationSettings) -> list[list[list[int]]]:
        ids, mask = (batch.inputs[name].cpu().numpy() for name in ("input_ids", "attention_mask"))
        return search(self.begin(ids, mask), len(ids), self._ends, how)

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        """`[N, V]` the answers to a batch's targets."""
        ids, mask = (batch.inputs[name].cpu().numpy() for name in ("input_ids", "attention_mask"))
        target_BT = batch.inputs[TARGET_IDS].cpu()
        logits_BTV = self.begin(ids, mask).logits(shifted(target_BT, self._ends.start).numpy())
        scored_BT = torch.ones_like(target_BT) if batch.scored is None else batch.scored.cpu()
        answers: NDArray[np.float32] = logits_BTV[scored_BT.bool().numpy()]
        return answers
