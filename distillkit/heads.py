"""What an encoder answers with: a head on whole examples, on words, or over the vocabulary.

A head is an object per kind of task. A head on tokens runs on the scored tokens only: what the body returns
is cut down to them before the model's own head sees it, so that no family of `transformers` needs code of its
own and logits over a vocabulary are never made for tokens that nobody asks for.

Shapes: B examples, L tokens, D width, N answers, V labels or vocabulary entries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from distillkit.errors import ModelError
from distillkit.settings import Labels
from distillkit.types import Batch


class Head(ABC):
    """A class of `transformers` models, and how one of them answers a batch."""

    auto: Any
    suffix: str
    """How the names of its classes end."""

    @abstractmethod
    def set_labels(self, config: PretrainedConfig, labels: Labels) -> None:
        """Write the labels by name into a config."""

    @abstractmethod
    def num_labels(self, config: PretrainedConfig) -> int:
        """Width of the output layer."""

    @abstractmethod
    def logits(self, model: PreTrainedModel, inputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """One forward of the whole model: `[N, V]`."""


class ExampleHead(Head):
    """One answer for each example: classification and regression."""

    auto = AutoModelForSequenceClassification
    suffix = "ForSequenceClassification"

    def set_labels(self, config: PretrainedConfig, labels: Labels) -> None:
        _set_names(config, labels)
        single = labels.kind == "classification"
        config.problem_type = "single_label_classification" if single else "regression"

    def num_labels(self, config: PretrainedConfig) -> int:
        return int(config.num_labels)

    def logits(self, model: PreTrainedModel, inputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        if model.config.is_encoder_decoder:
            return final_token(model, **inputs)
        logits: Tensor = model(**inputs, return_dict=True).logits
        return logits


def final_token(model: Any, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """`[B, V]` what an encoder-decoder answers that reads the same text with both stacks, from the decoder's
    state at the last token, which has seen all others (Lewis et al. 2020, section 3.1).

    `transformers` looks for the end token instead, and refuses a batch whose rows have different numbers of
    it.
    """
    start_B1 = torch.full_like(input_ids[:, :1], model.config.decoder_start_token_id)
    states_BLD = model.model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        decoder_input_ids=torch.cat([start_B1, input_ids[:, :-1]], dim=1),
        use_cache=False,
    ).last_hidden_state
    real_BL = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    last_B11 = (real_BL.sum(dim=1) - 1)[:, None, None].expand(-1, 1, states_BLD.shape[-1])
    logits: Tensor = model.classification_head(states_BLD.gather(1, last_B11)[:, 0])
    return logits


class TokenHead(Head):
    """One answer for each scored token: tags of words."""

    auto = AutoModelForTokenClassification
    suffix = "ForTokenClassification"

    def set_labels(self, config: PretrainedConfig, labels: Labels) -> None:
        _set_names(config, labels)
        config.problem_type = None

    def num_labels(self, config: PretrainedConfig) -> int:
        return int(config.num_labels)

    def logits(self, model: PreTrainedModel, inputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """A batch that names no scored tokens is answered at every real one. Raises ModelError for a family
        whose head does not take states by their position.
        """
        scored_BL = batch.mask if batch.scored is None else batch.scored

        def cut(_module: Any, _inputs: Any, output: Any) -> Any:
            output.last_hidden_state = output.last_hidden_state[scored_BL].unsqueeze(0)
            return output

        handle = model.base_model.register_forward_hook(cut)
        try:
            logits: Tensor = model(**inputs, return_dict=True).logits
        finally:
            handle.remove()
        if logits.ndim != 3 or logits.shape[0] != 1:
            raise ModelError(
                f"the head of a {model.config.model_type!r} gives logits {list(logits.shape)} for tokens",
                where="model",
                hint="use a custom teacher",
            )
        return logits.squeeze(0)


class VocabularyHead(TokenHead):
    """One answer for each scored token: which entry of the vocabulary stood there."""

    auto = AutoModelForMaskedLM
    suffix = "ForMaskedLM"

    def set_labels(self, config: PretrainedConfig, labels: Labels) -> None:
        """The answers are the vocabulary's, which has its names in the tokenizer."""

    def num_labels(self, config: PretrainedConfig) -> int:
        return int(config.vocab_size)


HEADS: Mapping[str, Head] = {
    "classification": ExampleHead(),
    "regression": ExampleHead(),
    "token_classification": TokenHead(),
    "mlm": VocabularyHead(),
}


def head_of(config: PretrainedConfig, where: str) -> Head:
    """The head of a saved model, by the class that its config names. Raises ModelError for another."""
    named = (config.architectures or ["nothing"])[0]
    for head in HEADS.values():
        if named.endswith(head.suffix):
            return head
    raise ModelError(
        f"a {named} answers no task here",
        where=where,
        hint=f"known: {', '.join(dict.fromkeys(head.suffix for head in HEADS.values()))}",
    )


def _set_names(config: PretrainedConfig, labels: Labels) -> None:
    names = labels.names or ("value",)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
