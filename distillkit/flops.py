"""Floating point operations: of transformers as closed forms by two conventions, of anything as torch counts.

`HONEST` counts what is truly computed in matrix products: 2 for a multiply-add, nothing for a look-up in a
table or for element-wise work, an output layer only where a token is answered, and for backward twice the
forward. `ELECTRA` is the convention of the ELECTRA paper (Clark et al. 2020, appendix; the authors' published
counts), by which its tables compare models: element-wise work counts too, an embedding is a product with
one-hot vectors, and training is twice the forward, not three times. Torch's own count is `HONEST` for any
model, convolutions and recurrent layers included.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from distillkit.types import Batch, Outputs, Want


@dataclass(frozen=True)
class Shape:
    """Sizes of a transformer. inner: of the feed-forward part; embedding: of the token table, which a
    projection joins to another width; attended: of all heads' queries together; attentions: in a block, 2 in
    a decoder that also attends to an encoder; matrices: of the feed-forward part, 3 where one of them gates.
    """

    layers: int
    width: int
    heads: int
    inner: int
    vocabulary: int
    embedding: int
    attended: int
    attentions: int = 1
    matrices: int = 2

    @classmethod
    def of(cls, config: Any) -> Shape:
        """Of a config of `transformers`' BERT or ELECTRA."""
        width = config.hidden_size
        return cls(
            layers=config.num_hidden_layers,
            width=width,
            heads=config.num_attention_heads,
            inner=config.intermediate_size,
            vocabulary=config.vocab_size,
            embedding=getattr(config, "embedding_size", width),
            attended=width,
        )

    @classmethod
    def bert(cls, layers: int, width: int, *, vocabulary: int = 30522, embedding: int | None = None) -> Shape:
        """In BERT's proportions: a head for each 64 of width, the inner part 4 times as wide."""
        return cls(layers, width, max(1, width // 64), 4 * width, vocabulary, embedding or width, width)


@dataclass(frozen=True)
class Stacks:
    """Sizes of an encoder and of the decoder that reads it."""

    encoder: Shape
    decoder: Shape

    @classmethod
    def of(cls, config: Any) -> Stacks:
        """Of a config of `transformers`' T5 or BART."""
        width, vocabulary = config.d_model, config.vocab_size
        if config.model_type == "t5":
            attended, matrices = config.num_heads * config.d_kv, 3 if config.is_gated_act else 2
            inside = (width, config.num_heads, config.d_ff, vocabulary, width, attended, 1, matrices)
            return cls(Shape(config.num_layers, *inside), Shape(config.num_decoder_layers, *inside))
        sizes = (
            (config.encoder_layers, config.encoder_attention_heads, config.encoder_ffn_dim),
            (config.decoder_layers, config.decoder_attention_heads, config.decoder_ffn_dim),
        )
        made = (
            Shape(layers, width, heads, inner, vocabulary, width, width) for layers, heads, inner in sizes
        )
        return cls(*made)


class Convention(ABC):
    """How FLOPs are counted. All methods are of one forward of one sequence of `length` tokens."""

    passes: int
    """Forwards that training on a sequence is worth."""

    @abstractmethod
    def encoder(self, shape: Shape, length: int) -> float:
        """Embeddings and blocks."""

    @abstractmethod
    def vocabulary_head(self, shape: Shape, answers: float) -> float:
        """The scores of all entries of the vocabulary at `answers` tokens."""

    @abstractmethod
    def token_head(self, shape: Shape, length: int) -> float:
        """A hidden layer and one score for each token, as ELECTRA's discriminator has them."""

    @abstractmethod
    def example_head(self, shape: Shape, labels: int) -> float:
        """A hidden layer and scores of `labels` classes for the sequence."""

    def training(self, forward: float, sequences: float) -> float:
        """Forward and backward of so many sequences."""
        return self.passes * forward * sequences


class Honest(Convention):
    """Matrix products as they are computed; a multiply-add is 2."""

    passes = 3

    def encoder(self, shape: Shape, length: int) -> float:
        projections = 4 * 2 * shape.width * shape.attended
        attention = shape.attentions * (projections + 2 * 2 * shape.attended * length)
        block = attention + shape.matrices * 2 * shape.width * shape.inner
        return length * (shape.layers * block + _joined(shape))

    def encoder_decoder(self, stacks: Stacks, read: int, said: int) -> float:
        """Both stacks and the scores of all entries of the vocabulary at each of the `said` tokens; the
        decoder's blocks make keys and values of the `read` tokens of the encoder."""
        decoder = stacks.decoder
        projection = 2 * decoder.width * decoder.attended
        attended = 2 * projection * (said + read) + 2 * 2 * decoder.attended * said * read
        scores = said * 2 * decoder.width * decoder.vocabulary
        own = self.encoder(decoder, said)
        return self.encoder(stacks.encoder, read) + own + decoder.layers * attended + scores

    def vocabulary_head(self, shape: Shape, answers: float) -> float:
        return answers * 2 * shape.embedding * (shape.width + shape.vocabulary)

    def token_head(self, shape: Shape, length: int) -> float:
        return length * 2 * shape.width * (shape.width + 1)

    def example_head(self, shape: Shape, labels: int) -> float:
        return 2 * shape.width * (shape.width + labels)


class Electra(Convention):
    """As the ELECTRA paper counts, its two oddities included: one of the two layer norms of a block counts
    once a token and not once a value, and drawing from the generator is free.

    Of a value: 5 for layer norm and softmax, 4 for dropout, 8 for an activation.
    """

    passes = 2
    _NORM, _SOFTMAX, _DROPOUT, _ACTIVATION = 5, 5, 4, 8

    def encoder(self, shape: Shape, length: int) -> float:
        width, inner, attended = shape.width, shape.inner, shape.attended
        projections = 3 * (2 * width + 1) * attended + (2 * width + 1) * width
        scores = (2 * attended + (self._SOFTMAX + self._DROPOUT + 1) * shape.heads + 2 * width) * length
        attention = projections + scores + (self._DROPOUT + 1) * width + self._NORM
        forward = (4 * width + self._ACTIVATION + 1) * inner + (self._DROPOUT + 2 + self._NORM) * width
        embedding = shape.embedding
        tables = (
            2 * embedding * (shape.vocabulary + length + 2) + (2 + self._NORM + self._DROPOUT) * embedding
        )
        projected = _joined(shape) + (width if embedding != width else 0)
        return length * (shape.layers * (shape.attentions * attention + forward) + tables + projected)

    def vocabulary_head(self, shape: Shape, answers: float) -> float:
        embedding, entries = shape.embedding, shape.vocabulary
        hidden = (2 * shape.width + 1 + self._ACTIVATION + self._NORM) * embedding
        return answers * (hidden + (2 * embedding + self._SOFTMAX + 2) * entries)

    def token_head(self, shape: Shape, length: int) -> float:
        return length * (2 * shape.width + 1 + self._ACTIVATION + 2) * shape.width

    def example_head(self, shape: Shape, labels: int) -> float:
        return 0.0  # the paper counts none


HONEST, ELECTRA = Honest(), Electra()
CONVENTIONS: Mapping[str, Convention] = {"honest": HONEST, "electra": ELECTRA}

_PEAKS = (
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
)
"""FLOPs a second of dense bf16 and fp16 products, by the maker's data sheets; the first name that fits."""


def peak(device: str, precision: str) -> float | None:
    """FLOPs a second that a device of this name can reach in bf16 or fp16; None where that is not known."""
    known = (flops for name, flops in _PEAKS if name in device)
    return next(known, None) if precision in ("bf16", "fp16") else None


class Answering(Protocol):
    """A teacher or student."""

    def outputs(self, batch: Batch, *, want: Want) -> Outputs: ...


def flops_per_example(model: Answering, batch: Batch) -> float:
    """FLOPs of the logits of one example of the batch's length, counted by torch as they are computed."""
    with torch.inference_mode():
        return counted(lambda: model.outputs(batch, want=Want())) / batch.num_examples


def counted(run: Callable[[], object]) -> float:
    """FLOPs of whatever `run` computes, backward too, counted by torch; it does not know an LSTM that is
    trained on a GPU.
    """
    plain = sdpa_kernel(SDPBackend.MATH)  # torch's counter does not know the fused attention of CPUs
    counter = FlopCounterMode(display=False, custom_mapping=dict(_UNKNOWN))
    counter.mod_tracker = _NoModules()
    with plain, counter:
        run()
    return float(counter.get_total_flops())


class _NoModules(ModuleTracker):
    """Does not follow which module computes: torch's record fails in inference, and in autograd.grad, where
    a module is given a parameter itself, as DeBERTa's norm is given its table of distances."""

    def __enter__(self) -> _NoModules:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _joined(shape: Shape) -> int:
    """The projection from the token table to the blocks, for a token."""
    return 2 * shape.embedding * shape.width if shape.embedding != shape.width else 0


def _lstm_flops(
    inputs: Sequence[int], _start: Any, weights: Sequence[Sequence[int]], *_: Any, **_out: Any
) -> int:
    """Every weight matrix once for each token; takes shapes in place of tensors."""
    matrices = [shape[0] * shape[1] for shape in weights if len(shape) == 2]
    return 2 * inputs[0] * inputs[1] * sum(matrices)


def _layer_flops(
    inputs: Sequence[int], weight: Sequence[int], recurrent: Sequence[int], *_: Any, **_out: Any
) -> int:
    """One direction of one layer, as a CPU computes it outside of inference."""
    return _lstm_flops(inputs, None, (weight, recurrent))


def _layer_backward_flops(*shapes: Any, **_out: Any) -> int:
    return 2 * _layer_flops(*shapes)


_UNKNOWN: Mapping[Any, Any] = {
    torch.ops.aten.lstm: _lstm_flops,
    torch.ops.aten.lstm.input: _lstm_flops,
    torch.ops.aten.mkldnn_rnn_layer: _layer_flops,
    torch.ops.aten.mkldnn_rnn_layer_backward: _layer_backward_flops,
}
"""What torch's counter does not know, and how to count it."""
