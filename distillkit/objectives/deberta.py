"""DeBERTa-v3's objective: replaced token detection with a shared table of tokens (He, Gao and Chen 2021).

ELECTRA's objective on `transformers`' DeBERTa-v2 classes, with what is different in the paper and the
released code: the generator reads [MASK] at every chosen position; it is as wide as the main model and half
as deep; the table of tokens is shared as `sharing` says, and nothing else is; the head sees a token's state
beside that of [CLS]; the generator answers through an enhanced mask decoder (He et al. 2021, section 3.2).

Departures. The released code makes an optimizer step for the generator, then one for the main model; here one
step makes both. With `gdes` and `nes` no parameter has a gradient from both terms, AdamW works weight by
weight, and each network's gradient is clipped alone, so that the two steps are the same but for one thing:
here the main model reads the generator's table as it was before this step, there as it is after. Masked
positions are drawn evenly over the sequence; the released code's n-gram masker goes from left to right and
stops when it has enough, so that the end of a sequence is hardly ever masked. Sequences are packed as for
ELECTRA.

Shapes: B sequences, L tokens, N positions, V vocabulary entries, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2ForMaskedLM, DebertaV2Model, PretrainedConfig
from transformers.activations import ACT2FN

from distillkit.data.masking import Bool, choose_words
from distillkit.flops import HONEST, Shape
from distillkit.objectives.base import inputs_of
from distillkit.objectives.corpus import Corpus, Tokens
from distillkit.objectives.corrupted import ReplacedTokenDetection
from distillkit.objectives.pair import GeneratorPair, to_number
from distillkit.objectives.replaced import Floats, GeneratorObjective
from distillkit.objectives.sharing import Sharing, share_table
from distillkit.types import Batch

MaskDecoder = Literal["enhanced", "plain"]
_DETECTOR, _DECODER = "detector", "mask_decoder"
_PASSES = 2
"""Times that the enhanced mask decoder runs the last block."""


class Detector(nn.Module):
    """The head of replaced token detection: norm(state + state of [CLS]), a hidden layer, one number
    (released code)."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dense = nn.Linear(width, width)
        nn.init.normal_(self.dense.weight, std=config.initializer_range)
        nn.init.zeros_(self.dense.bias)
        self.activation = ACT2FN[config.hidden_act]
        self.answer = to_number(config)

    def forward(self, states_BLD: Tensor, counted_BL: Tensor) -> Tensor:
        """`[N]` logits at the counted positions."""
        seen_ND = self.norm((states_BLD + states_BLD[:, :1])[counted_BL])
        logits_N: Tensor = self.answer(self.activation(self.dense(seen_ND))).squeeze(-1)
        return logits_N


class EnhancedMaskDecoder(nn.Module):
    """A table of absolute positions, which enter after the blocks, not before (He et al. 2021, section 3.2).

    The last block runs twice with the states below it as keys and values: its query is these states plus
    their positions, then what came out. The body's own last pass is left out, for nothing reads it.
    """

    def __init__(self, config: DebertaV2Config) -> None:
        super().__init__()
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        nn.init.normal_(self.positions.weight, std=config.initializer_range)

    def forward(self, body: DebertaV2Model, inputs: Mapping[str, Tensor]) -> Tensor:
        """`[B, L, D]`."""
        ids_BL, encoder = inputs["input_ids"], body.encoder
        mask_BL = inputs["attention_mask"] if "attention_mask" in inputs else torch.ones_like(ids_BL)
        states_BLD = body.embeddings(input_ids=ids_BL, mask=mask_BL)
        seen = encoder.get_attention_mask(mask_BL)
        distances, table = encoder.get_rel_pos(states_BLD), encoder.get_rel_embedding()
        for block in encoder.layer[:-1]:
            states_BLD, _ = block(states_BLD, seen, relative_pos=distances, rel_embeddings=table)
        query_BLD = states_BLD + self.positions.weight[: ids_BL.shape[1]]
        for _ in range(_PASSES):
            query_BLD, _ = encoder.layer[-1](
                states_BLD, seen, query_states=query_BLD, relative_pos=distances, rel_embeddings=table
            )
        read: Tensor = query_BLD
        return read


class ContextDetection(ReplacedTokenDetection):
    """Replaced token detection by a head that sees [CLS] beside each token."""

    model = DebertaV2Model

    def heads(self, config: PretrainedConfig) -> dict[str, nn.Module]:
        return {_DETECTOR: Detector(config)}

    def logits(self, pair: GeneratorPair, states_BLD: Tensor, counted_BL: Tensor) -> Tensor:
        logits_N: Tensor = pair.heads[_DETECTOR](states_BLD, counted_BL)
        return logits_N


class DebertaObjective(GeneratorObjective):
    """Generator and discriminator of DeBERTa-v3, trained together: masked language model plus `weight` times
    replaced token detection."""

    hidden = 1.0

    def __init__(
        self,
        *,
        sharing: Sharing = "gdes",
        mask_decoder: MaskDecoder = "enhanced",
        whole_word: bool = False,
        weight: float | None = None,
        mask_rate: float = 0.15,
        short_sequences: float = 0.05,
        temperature: float = 1.0,
        disallow_correct: bool = False,
    ) -> None:
        super().__init__(
            ContextDetection(),
            weight=weight,
            mask_rate=mask_rate,
            short_sequences=short_sequences,
            temperature=temperature,
            disallow_correct=disallow_correct,
        )
        self.sharing, self.mask_decoder, self.whole_word = sharing, mask_decoder, whole_word

    def pair(
        self,
        generator: DebertaV2Config,
        main: DebertaV2Config,
        *,
        never: Sequence[int],
        keep_generator: bool = False,
    ) -> GeneratorPair:
        """Fresh models for this objective."""
        made, answers = DebertaV2ForMaskedLM(generator), DebertaV2Model(main)
        share_table(made, answers, self.sharing)
        heads = self.task.heads(main)
        if self.mask_decoder == "enhanced":
            heads[_DECODER] = EnhancedMaskDecoder(generator)
        return GeneratorPair(made, answers, heads, never=never, keep_generator=keep_generator)

    def groups(self, model: nn.Module) -> Sequence[Sequence[nn.Parameter]]:
        """The generator's, a table that is shared included, and the main model's."""
        assert isinstance(model, GeneratorPair) and model.generator is not None
        generators = [*model.generator.parameters()]
        if _DECODER in model.heads:
            generators += model.heads[_DECODER].parameters()
        of_generator = set(generators)
        return [generators, [one for one in model.parameters() if one not in of_generator]]

    def _choose(self, tokens: Tokens, corpus: Corpus, order: Floats) -> Bool:
        if not self.whole_word:
            return super()._choose(tokens, corpus, order)
        candidates_BL, counts_B = self._candidates(tokens, corpus)
        return choose_words(candidates_BL, tokens.continues, counts_B, order)

    def _read(self, model: GeneratorPair, batch: Batch) -> Tensor:
        assert isinstance(model.generator, DebertaV2ForMaskedLM)
        if self.mask_decoder == "plain":
            return super()._read(model, batch)
        read: Tensor = model.heads[_DECODER](model.generator.deberta, inputs_of(batch))
        return read

    def _scores(self, model: GeneratorPair, states_ND: Tensor) -> Tensor:
        assert isinstance(model.generator, DebertaV2ForMaskedLM)
        scores_NV: Tensor = model.generator.cls(states_ND)
        return scores_NV

    def _flops(self, model: nn.Module, length: int) -> tuple[float, float]:
        """Without the projections of the table of distances, which are made once a batch."""
        assert isinstance(model, GeneratorPair) and isinstance(model.generator, DebertaV2ForMaskedLM)
        generator, main = super()._flops(model, length)
        made, answers = model.generator.config, model.main.config
        again = 0.0
        if self.mask_decoder == "enhanced":  # the last block once more
            shape = Shape.of(made)
            again = HONEST.encoder(replace(shape, layers=_PASSES - 1), length) + distances(made, length, 1)
        return (
            generator + distances(made, length, made.num_hidden_layers) + again,
            main + distances(answers, length, answers.num_hidden_layers),
        )


def distances(config: DebertaV2Config, length: int, layers: int) -> float:
    """FLOPs that relative positions add to one forward of one sequence in so many blocks: each query and each
    key times every row of the table."""
    rows = 2 * config.position_buckets
    return float(len(config.pos_att_type) * 2 * length * rows * config.hidden_size * layers)
