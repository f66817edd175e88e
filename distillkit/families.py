"""The encoder-decoder architectures that are known to write text, and what differs between them.

Shapes: B examples, L tokens of the source, V vocabulary entries, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import BartConfig, PretrainedConfig, T5Config

from distillkit.errors import ModelError

RELATIVE_POSITIONS = 2048
"""Longest input of a model without positions of its own, which has no limit but memory."""


@dataclass(frozen=True)
class Sizes:
    """What a student may have less of than its teacher."""

    encoder_layers: int
    decoder_layers: int
    width: int
    heads: int
    ffn: int


@dataclass(frozen=True)
class Cross:
    """What a decoder block reads of the encoder: its key and value maps and the size of a head."""

    key: nn.Module
    value: nn.Module
    heads: int
    head_dim: int


class Family(ABC):
    """What differs between the architectures."""

    types: tuple[str, ...]
    """Names that configs have in `model_type`."""

    @abstractmethod
    def sizes(self, config: PretrainedConfig) -> Sizes:
        """Raises ModelError where the two stacks do not have one width, heads and inner size."""

    @abstractmethod
    def set_sizes(self, config: PretrainedConfig, sizes: Sizes, dropout: float) -> None:
        """Write the sizes into a config."""

    @abstractmethod
    def new(self, *, vocab_size: int, max_length: int, pad_id: int, end_id: int) -> PretrainedConfig:
        """A config of the family for a vocabulary, in whatever sizes."""

    @abstractmethod
    def max_length(self, config: PretrainedConfig) -> int:
        """Longest source or target."""

    @abstractmethod
    def stacks(self, model: Any) -> tuple[nn.ModuleList, nn.ModuleList]:
        """The encoder's blocks and the decoder's."""

    @abstractmethod
    def cross(self, block: Any) -> Cross:
        """Of a block of the decoder."""

    @abstractmethod
    def logits(self, model: Any, states: Tensor) -> Tensor:
        """From the decoder's states to scores of every entry."""

    def shared_between_blocks(self, name: str) -> bool:
        """Whether a weight of a stack's first block serves all of its blocks."""
        return False


class T5(Family):
    """T5 (Raffel et al. 2020), and its version 1.1 with gated feed-forward parts."""

    types = ("t5",)

    def sizes(self, config: PretrainedConfig) -> Sizes:
        return Sizes(
            config.num_layers, config.num_decoder_layers, config.d_model, config.num_heads, config.d_ff
        )

    def set_sizes(self, config: PretrainedConfig, sizes: Sizes, dropout: float) -> None:
        if (sizes.width, sizes.heads) != (config.d_model, config.num_heads):
            config.d_kv = max(1, sizes.width // sizes.heads)
        config.num_layers, config.num_decoder_layers = sizes.encoder_layers, sizes.decoder_layers
        config.d_model, config.num_heads, config.d_ff = sizes.width, sizes.heads, sizes.ffn
        config.dropout_rate = dropout

    def new(self, *, vocab_size: int, max_length: int, pad_id: int, end_id: int) -> PretrainedConfig:
        return T5Config(
            vocab_size=vocab_size, pad_token_id=pad_id, eos_token_id=end_id, decoder_start_token_id=pad_id
        )

    def max_length(self, config: PretrainedConfig) -> int:
        return RELATIVE_POSITIONS

    def stacks(self, model: Any) -> tuple[nn.ModuleList, nn.ModuleList]:
        return model.encoder.block, model.decoder.block

    def cross(self, block: Any) -> Cross:
        attention = block.layer[1].EncDecAttention
        return Cross(attention.k, attention.v, attention.n_heads, attention.key_value_proj_dim)

    def logits(self, model: Any, states: Tensor) -> Tensor:
        scaled = states * model.model_dim**-0.5 if model.config.scale_decoder_outputs else states
        scores: Tensor = model.lm_head(scaled)
        return scores

    def shared_between_blocks(self, name: str) -> bool:
        return "relative_attention_bias" in name


class MT5(T5):
    """mT5 (Xue et al. 2021), which scales no scores."""

    types = ("mt5",)

    def logits(self, model: Any, states: Tensor) -> Tensor:
        scores: Tensor = model.lm_head(states)
        return scores


class Bart(Family):
    """BART (Lewis et al. 2020)."""

    types = ("bart",)

    def sizes(self, config: PretrainedConfig) -> Sizes:
        pairs = {
            "attention heads": (config.encoder_attention_heads, config.decoder_attention_heads),
            "inner sizes": (config.encoder_ffn_dim, config.decoder_ffn_dim),
        }
        for what, (encoder, decoder) in pairs.items():
            if encoder != decoder:
                raise ModelError(
                    f"encoder and decoder have different {what}, {encoder} and {decoder}", where="model"
                )
        return Sizes(
            config.encoder_layers,
            config.decoder_layers,
            config.d_model,
            config.encoder_attention_heads,
            config.encoder_ffn_dim,
        )

    def set_sizes(self, config: PretrainedConfig, sizes: Sizes, dropout: float) -> None:
        config.encoder_layers, config.decoder_layers = sizes.encoder_layers, sizes.decoder_layers
        config.d_model = sizes.width
        config.encoder_attention_heads = config.decoder_attention_heads = sizes.heads
        config.encoder_ffn_dim = config.decoder_ffn_dim = sizes.ffn
        config.dropout, config.attention_dropout, config.activation_dropout = dropout, dropout, 0.0
        config.encoder_layerdrop = config.decoder_layerdrop = 0.0

    def new(self, *, vocab_size: int, max_length: int, pad_id: int, end_id: int) -> PretrainedConfig:
        return BartConfig(
            vocab_size=vocab_size,
            max_position_embeddings=max_length,
            pad_token_id=pad_id,
            eos_token_id=end_id,
            decoder_start_token_id=end_id,
            forced_eos_token_id=None,
        )

    def max_length(self, config: PretrainedConfig) -> int:
        return int(config.max_position_embeddings)

    def stacks(self, model: Any) -> tuple[nn.ModuleList, nn.ModuleList]:
        return model.model.encoder.layers, model.model.decoder.layers

    def cross(self, block: Any) -> Cross:
        attention = block.encoder_attn
        return Cross(attention.k_proj, attention.v_proj, attention.num_heads, attention.head_dim)

    def logits(self, model: Any, states: Tensor) -> Tensor:
        scores: Tensor = model.lm_head(states) + model.final_logits_bias
        return scores


FAMILIES: Mapping[str, Family] = {name: family for family in (T5(), MT5(), Bart()) for name in family.types}
