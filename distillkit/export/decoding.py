"""An encoder-decoder in ONNX: two graphs without control flow, and what writes texts with them.

`encoder.onnx` takes `input_ids` and `attention_mask` and gives the keys and values that every block of the
decoder reads of the source (`cross.0.key`, ...), once for a text. `decoder.onnx` takes any number of new
tokens, these, and the keys and values of what was written before (`past.0.key`, ...), of which there may be
none, and gives `logits` and the longer past (`present.0.key`, ...). Between two steps nothing is copied: what
one gives is bound to the next. Weights that are tied are stored once in each file.

Shapes: B sources, R texts, L tokens of a source, T new tokens, P written before, H heads, V entries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from distillkit.encoder_decoder import EncoderDecoder, eager, shifted
from distillkit.errors import ExportError
from distillkit.export.onnx import OUTPUT, exported
from distillkit.model import Writer
from distillkit.runtime.decoding import DECODER as DECODER
from distillkit.runtime.decoding import ENCODER as ENCODER
from distillkit.runtime.decoding import Decoding
from distillkit.runtime.session import open_session
from distillkit.search import Ends, Ints, search
from distillkit.settings import GenerationSettings
from distillkit.types import TARGET_IDS, Batch

_PARTS = ("key", "value")
_SIZES = {"batch": 3, "source": 11, "past": 6, "new": 2}
"""Of the example that is traced: all different, and neither 0 nor 1, which the exporter takes for constants.
"""


class CrossEncoder(nn.Module):
    """From a source to the keys and values that each block of the decoder reads of it, `[B, H, L, D / H]`."""

    def __init__(self, model: EncoderDecoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        told = self.model.model.get_encoder()(input_ids=input_ids, attention_mask=attention_mask)
        states = told.last_hidden_state
        found = []
        for block in self.model.decoder_blocks:
            cross = self.model.family.cross(block)
            for part in (cross.key, cross.value):
                B, L, _ = states.shape
                found.append(part(states).view(B, L, cross.heads, cross.head_dim).transpose(1, 2))
        return tuple(found)


class StepDecoder(nn.Module):
    """New tokens `[B, T]` after a past: logits `[B, T, V]` and the longer past, keys and values in turn."""

    def __init__(self, model: EncoderDecoder) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, cross: Sequence[Tensor], past: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        written, read = DynamicCache(), DynamicCache()
        memory = EncoderDecoderCache(written, read)
        for block in range(len(cross) // 2):
            written.update(past[2 * block], past[2 * block + 1], block)
            read.update(cross[2 * block], cross[2 * block + 1], block)
            memory.is_updated[block] = True
        # of the states only the shape is looked at: their keys and values are there
        shape = cross[0].transpose(1, 2).flatten(2)
        told = self.model.model.get_decoder()(
            input_ids=input_ids,
            encoder_hidden_states=shape,
            encoder_attention_mask=attention_mask,
            past_key_values=memory,
            use_cache=True,
        )
        logits = self.model.family.logits(self.model.model, told.last_hidden_state)
        layers = told.past_key_values.self_attention_cache.layers
        return (logits, *(part for layer in layers for part in (layer.keys, layer.values)))


def write_graphs(model: EncoderDecoder, folder: Path, *, opset: int, metadata: Mapping[str, str]) -> None:
    """Write encoder.onnx and decoder.onnx. Raises ExportError (10) where the exporter cannot follow the
    model.
    """
    model = eager(model)
    size = _SIZES
    batch, source, past, new = (torch.export.Dim(name) for name in size)
    mask = torch.ones(size["batch"], size["source"], dtype=torch.int64)
    ids = torch.full_like(mask, 3)
    encoder = CrossEncoder(model).eval()
    with torch.no_grad():
        cross = list(encoder(ids, mask))
    blocks = range(model.spec.decoder_layers)
    names = {what: _names(what, blocks) for what in ("cross", "past", "present")}
    pair = {0: batch, 1: source}
    exported(
        encoder,
        folder / ENCODER,
        {"input_ids": ids, "attention_mask": mask},
        {"input_ids": pair, "attention_mask": pair},
        inputs=["input_ids", "attention_mask"],
        outputs=names["cross"],
        opset=opset,
        metadata=metadata,
    )
    shape = cross[0].shape
    before = [torch.randn(shape[0], shape[1], size["past"], shape[3]) for _ in cross]
    exported(
        StepDecoder(model).eval(),
        folder / DECODER,
        {
            "input_ids": torch.full((size["batch"], size["new"]), 3),
            "attention_mask": mask,
            "cross": cross,
            "past": before,
        },
        {
            "input_ids": {0: batch, 1: new},
            "attention_mask": pair,
            "cross": [{0: batch, 2: source} for _ in cross],
            "past": [{0: batch, 2: past} for _ in cross],
        },
        inputs=["input_ids", "attention_mask", *names["cross"], *names["past"]],
        outputs=[OUTPUT, *names["present"]],
        opset=opset,
        metadata=metadata,
    )
    store_once(folder / DECODER)


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


def _names(what: str, blocks: Sequence[int]) -> list[str]:
    return [f"{what}.{block}.{part}" for block in blocks for part in _PARTS]


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
