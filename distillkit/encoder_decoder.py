"""A Hugging Face encoder-decoder as a Student: logits of a target's tokens, the states of both stacks, text
that it writes.

The model is used unmodified, as encoders are (`distillkit.encoder`). It answers a target token by token, each
from the source and the tokens before it (teacher forcing): its own first token stands before the target,
whatever that is in its family (in T5 the padding token), so that the first real token is answered like all
others. Nothing is masked in the decoder beside the future: padding stands behind a target, where no real
token looks.

Shapes: B examples, L tokens of the source, T of the target, N answers, V vocabulary entries, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from distillkit.encoder import (
    bare,
    by_depth,
    changed,
    check_weights,
    load_config,
    load_weights,
    read,
    read_input,
)
from distillkit.errors import ModelError
from distillkit.families import FAMILIES, Family
from distillkit.model import Graphs, TextStudent
from distillkit.settings import GenerationSettings, Labels
from distillkit.types import TARGET_IDS, Access, Batch, Outputs, Spec, Swap, Want

_SUFFIX = "ForConditionalGeneration"


class EncoderDecoder(TextStudent):
    """A model of `transformers` that writes text (`*ForConditionalGeneration`). Logits are fp32 `[N, V]`, a
    row for each real token of the targets (for every one, where a batch does not say which are real).
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model: Any = model
        self.family = family_of(model.config)
        self.spec = spec_of(model.config)
        self.start_id, self.end_id = start_of(model.config), end_of(model.config)
        self.model.generation_config = GenerationConfig(
            decoder_start_token_id=self.start_id,
            eos_token_id=self.end_id,
            pad_token_id=model.config.pad_token_id,
        )
        self.encoder_blocks, self.decoder_blocks = self.family.stacks(model)

    @property
    def own_output(self) -> bool:
        """Whether its output layer is another matrix than its token table."""
        return self.model.get_output_embeddings().weight is not self.model.get_input_embeddings().weight

    def layers(self) -> Sequence[Sequence[nn.Parameter]]:
        """Embeddings, the encoder's blocks, the decoder's, and what is left."""
        return by_depth(self.model, [*self.encoder_blocks, *self.decoder_blocks])

    def outputs(self, batch: Batch, *, want: Want, swap: Swap | None = None) -> Outputs:
        """`swap` numbers the encoder's blocks."""
        if want.attention:
            raise ModelError("an encoder-decoder shows no queries, keys and values", where="model")
        target_BT = batch.inputs[TARGET_IDS]
        scored_BT = torch.ones_like(target_BT, dtype=torch.bool) if batch.scored is None else batch.scored
        states: dict[int, Tensor] = {}
        decoder_states: dict[int, Tensor] = {}
        with ExitStack() as hooks:
            for index, change in (swap or {}).items():
                hooks.enter_context(changed(self.encoder_blocks[index], change))
            for blocks, kept in ((self.encoder_blocks, states), (self.decoder_blocks, decoder_states)):
                if want.access >= Access.ALL_STATES:
                    hooks.enter_context(read_input(blocks[0], kept, 0))
                    for index, block in enumerate(blocks, start=1):
                        hooks.enter_context(read(block, kept, index))
                elif want.access == Access.FINAL_STATES:
                    hooks.enter_context(read(blocks[-1], kept, 0))
            encoded = self._encoded(batch)
            decoder_ids_BT = shifted(target_BT, self.start_id)
            decoded = self._decoder()(
                input_ids=decoder_ids_BT,
                encoder_hidden_states=encoded,
                encoder_attention_mask=_mask(batch),
                use_cache=False,
            )
        logits = self.family.logits(self.model, decoded.last_hidden_state[scored_BT])
        return Outputs(
            logits=logits.float(),
            hidden=tuple(states[index] for index in range(len(states))),
            decoder_hidden=tuple(decoder_states[index] for index in range(len(decoder_states))),
        )

    def beams(self, batch: Batch, how: GenerationSettings) -> list[list[list[int]]]:
        """Greedy or beam search of `transformers`; no generation settings of the folder are used."""
        config = self.model.config
        settings = GenerationConfig(
            max_new_tokens=how.max_length,
            min_new_tokens=how.min_length or None,
            num_beams=how.beams,
            num_return_sequences=how.beams,
            length_penalty=how.length_penalty,
            early_stopping=False,
            do_sample=False,
            use_cache=True,
            decoder_start_token_id=self.start_id,
            eos_token_id=self.end_id,
            pad_token_id=config.pad_token_id,
        )
        # a memory that grows as it is used: that of `generate` has as many blocks as T5's encoder
        memory = EncoderDecoderCache(DynamicCache(), DynamicCache())
        with torch.inference_mode():
            written = self.model.generate(
                input_ids=batch.inputs["input_ids"],
                attention_mask=batch.inputs["attention_mask"],
                generation_config=settings,
                past_key_values=memory,
            )
        texts = [until_end(row, self.end_id) for row in written[:, 1:].tolist()]
        return [texts[start : start + how.beams] for start in range(0, len(texts), how.beams)]

    def graphs(self) -> Graphs:
        """With attention that can be traced."""
        model = eager(self)
        blocks = range(self.spec.decoder_layers)
        cross, past = (
            tuple(f"{what}.{block}.{part}" for block in blocks for part in ("key", "value"))
            for what in ("cross", "past")
        )
        return Graphs(
            CrossEncoder(model).eval(), StepDecoder(model).eval(), cross, past, length=2, grows=True
        )

    def save(self, folder: Path, labels: Labels) -> None:
        """A Hugging Face folder: config.json, generation_config.json, model.safetensors."""
        self.model.save_pretrained(folder)

    def _encoded(self, batch: Batch) -> Tensor:
        told = self.model.get_encoder()(input_ids=batch.inputs["input_ids"], attention_mask=_mask(batch))
        states: Tensor = told.last_hidden_state
        return states

    def _decoder(self) -> Any:
        return self.model.get_decoder()

    @classmethod
    def load(cls, folder: Path) -> EncoderDecoder:
        """Read a whole model. Raises ModelError (4) where weights are missing or do not fit or the family is
        not known, SecurityError (11) where reading would run code, DivergedError (6) where a weight is not
        finite."""
        config = load_config(folder)
        family_of(config, where=str(folder))
        with torch.device("meta"):
            empty = bare(AutoModelForSeq2SeqLM, _SUFFIX, config)
        model, _ = load_weights(AutoModelForSeq2SeqLM, folder, config)
        check_weights(empty, folder)
        return cls(model)


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


def family_of(config: PretrainedConfig, *, where: str = "model") -> Family:
    """Raises ModelError for a model that does not write text, or that nobody has looked at."""
    if config.model_type not in FAMILIES:
        what = "encoder-decoder" if config.is_encoder_decoder else "model"
        raise ModelError(
            f"a {config.model_type!r} is no {what} that is known to write text",
            where=where,
            hint=f"text_to_text takes {', '.join(FAMILIES)}",
        )
    return FAMILIES[config.model_type]


def spec_of(config: PretrainedConfig) -> Spec:
    """Sizes of an encoder-decoder. Raises ModelError for another model."""
    family = family_of(config)
    sizes = family.sizes(config)
    return Spec(
        num_layers=sizes.encoder_layers,
        hidden_dim=sizes.width,
        num_heads=sizes.heads,
        ffn_dim=sizes.ffn,
        vocab_size=config.vocab_size,
        num_labels=config.vocab_size,
        max_length=family.max_length(config),
        decoder_layers=sizes.decoder_layers,
    )


def start_of(config: PretrainedConfig) -> int:
    """The token that a target begins after. Raises ModelError where the config does not name it."""
    found = config.to_dict().get("decoder_start_token_id")
    if found is None:
        raise ModelError(
            "its config does not say which token a text begins after",
            where="model",
            hint="set decoder_start_token_id in config.json (T5: the padding token, BART: the end token)",
        )
    return int(found)


def end_of(config: PretrainedConfig) -> int:
    """The token that ends a text. Raises ModelError where there is not one."""
    if not isinstance(config.eos_token_id, int):
        raise ModelError(
            f"its config names {config.eos_token_id!r} as the end of a text, not one token",
            where="model",
            hint="set eos_token_id in config.json",
        )
    return config.eos_token_id


def shifted(target_BT: Tensor, start_id: int) -> Tensor:
    """What the decoder reads: the start token, and of the target all but the last."""
    start_B1 = torch.full_like(target_BT[:, :1], start_id)
    return torch.cat([start_B1, target_BT[:, :-1]], dim=1)


def until_end(row: Sequence[int], end_id: int) -> list[int]:
    """The tokens of a text before its end token; all where it has none."""
    return list(row[: row.index(end_id)] if end_id in row else row)


def fresh(config: PretrainedConfig, *, own_output: bool = False) -> EncoderDecoder:
    """A model with fresh weights; own_output: its output layer is not its token table, as in T5 1.1, which
    `transformers` ties in every new model.
    """
    model: Any = bare(AutoModelForSeq2SeqLM, _SUFFIX, config)
    if own_output:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    return EncoderDecoder(model)


def from_blocks(
    student: EncoderDecoder, teacher: EncoderDecoder, encoder: Sequence[int], decoder: Sequence[int]
) -> None:
    """Copy the chosen blocks (numbered from 1) of the teacher's stacks, and all that is left, bit for bit.

    What the first block of a stack holds for all of them (T5's relative positions) comes from the teacher's
    first, whichever is chosen. A student with every block computes what the teacher computes.
    """
    stacks = [
        (student.encoder_blocks, teacher.encoder_blocks, encoder),
        (student.decoder_blocks, teacher.decoder_blocks, decoder),
    ]
    theirs = teacher.model.state_dict()
    inside = {id(one) for blocks, _, _ in stacks for one in blocks.parameters()}
    with torch.no_grad():
        named = [*student.model.named_parameters(), *student.model.named_buffers()]
        for name, weight in named:
            if id(weight) not in inside:
                weight.copy_(theirs[name])
        for own, source, chosen in stacks:
            for block, number in zip(own, chosen, strict=True):
                _copy_block(block, source[number - 1], source[0], student.family)


def _copy_block(own: nn.Module, source: nn.Module, first: nn.Module, family: Family) -> None:
    weights, shared = source.state_dict(), first.state_dict()
    for name, weight in own.state_dict().items():
        weight.copy_((shared if family.shared_between_blocks(name) else weights)[name])


def _mask(batch: Batch) -> Tensor | None:
    """None where nothing is padded: attention without a mask is the same and faster."""
    return None if batch.full else batch.inputs["attention_mask"]


def eager(model: EncoderDecoder) -> EncoderDecoder:
    """A copy on the CPU whose attention can be traced."""
    again = copy.deepcopy(model).eval().cpu()
    again.model.set_attn_implementation("eager")
    return again
