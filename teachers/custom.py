"""Your own teacher: any callable that takes a Batch and returns named tensors.

    def my_model(batch: Batch) -> dict[str, Tensor]:
        return {"logits": ..., "hidden.0": ..., "hidden.1": ...}

    distillkit.run("config.yaml", parts=Parts(teacher=Custom(my_model, spec=spec, version="2026-11")))

`logits` is `[B, V]` in the order of the task's labels (`[B, 1]` for regression), or `[N, V]` for the tokens
where `batch.scored` is True, row by row, on tasks that ask for tokens; `hidden.0` (embeddings) to `hidden.N`
are `[B, L, D]` and needed where the spec names N layers. The first batch is checked against this contract.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from distillkit.data.tokenizers import load_tokenizer, tokenizer_key, train_wordpiece
from distillkit.errors import DivergedError, ModelError
from distillkit.model import Teacher, TeacherSource
from distillkit.settings import EVERY_KIND, Labels
from distillkit.types import Access, Batch, Outputs, Spec, Swap, Want

Function = Callable[[Batch], Mapping[str, Tensor]]


class Custom(TeacherSource):
    """A callable as a teacher, from Python.

    function: called in eval conditions (no gradient) once per batch; spec: its sizes, num_layers 0 where it
    has no hidden states to show; tokenizer: folder of the tokenizer that makes its `input_ids` (without one,
    a WordPiece is trained on the task's texts, for callables that read `batch.texts`); version: identifies
    its weights: another version reruns the stages that depend on it.
    """

    kinds = EVERY_KIND

    def __init__(
        self, function: Function, *, spec: Spec, version: str, tokenizer: Path | None = None
    ) -> None:
        self.function, self.version, self.folder = function, version, tokenizer
        self.reads_tokens = tokenizer is not None
        self.spec = replace(spec, attention=False)  # a callable names logits and states, and nothing else
        self.access = Access.ALL_STATES if spec.num_layers else Access.SCORES

    def fingerprint(self) -> str:
        return f"custom {self.version} {self.spec} {tokenizer_key(self.folder)}"

    def tokenizer(self, corpus: Iterable[str]) -> PreTrainedTokenizerBase:
        if self.folder is None:
            return train_wordpiece(corpus, vocab_size=self.spec.vocab_size or 8192)
        return load_tokenizer(self.folder)

    def teacher(self, folder: Path, labels: Labels) -> Teacher:
        return CustomTeacher(self.function, self.spec, labels)


class CustomTeacher(Teacher):
    """Calls the function without gradients and holds its first answer to the contract.

    Raises ModelError (4) that says what was expected and what came, DivergedError (6) for NaN.
    """

    def __init__(self, function: Function, spec: Spec, labels: Labels) -> None:
        self._function, self._spec, self._labels = function, spec, labels
        self._checked = False

    @property
    def access(self) -> Access:
        return Access.ALL_STATES if self._spec.num_layers else Access.SCORES

    @property
    def spec(self) -> Spec:
        return self._spec

    def outputs(self, batch: Batch, *, want: Want, swap: Swap | None = None) -> Outputs:
        if swap:
            raise ModelError(
                "a custom teacher cannot be intervened on",
                where="teacher",
                hint="a loss that swaps states needs a model of this repo or a Hugging Face folder",
            )
        with torch.no_grad():
            answer = self._function(batch)
            if not self._checked:
                self._check(batch, answer)
                self._checked = True
        states = want.access >= Access.FINAL_STATES
        return Outputs(
            logits=answer["logits"].detach(),
            hidden=tuple(answer[f"hidden.{index}"].detach() for index in self._layers(want))
            if states
            else (),
        )

    def _layers(self, want: Want) -> Iterable[int]:
        last = self._spec.num_layers
        return range(last + 1) if want.access >= Access.ALL_STATES else (last,)

    def _check(self, batch: Batch, answer: Any) -> None:
        width = self._labels.num_labels or self._spec.num_labels  # 0: the answers are the vocabulary's
        expected = {"logits": (batch.num_answers, width)}
        if self._spec.num_layers:
            shape = (*batch.mask.shape, self._spec.hidden_dim)
            expected |= {f"hidden.{index}": shape for index in range(self._spec.num_layers + 1)}
        if not isinstance(answer, Mapping):
            raise _broken("a mapping of names to tensors", type(answer).__name__)
        for name, shape in expected.items():
            if name not in answer:
                raise _broken(f"the key {name!r}", f"keys {sorted(answer)}")
            _check_tensor(name, answer[name], shape, batch)
        again = self._function(batch)
        # kernels of a GPU may round differently from call to call; dropout changes far more
        if not all(torch.allclose(answer[name], again[name], rtol=1e-2, atol=1e-2) for name in expected):
            raise _broken(
                "the same answer to the same batch",
                "two different answers",
                "put the model into eval mode: dropout is on",
            )


def _check_tensor(name: str, value: Any, shape: tuple[int, ...], batch: Batch) -> None:
    if not isinstance(value, Tensor):
        raise _broken(f"{name} as a torch tensor", type(value).__name__)
    if tuple(value.shape) != shape:
        raise _broken(f"{name} of shape {list(shape)}", f"{list(value.shape)}")
    if not value.is_floating_point():
        raise _broken(f"{name} as floating point", str(value.dtype))
    if value.requires_grad:
        raise _broken(
            f"{name} without gradient", "a tensor that requires grad", "detach it; the teacher is not trained"
        )
    if not bool(torch.isfinite(value).all()):
        raise DivergedError(
            f"the teacher's {name} holds NaN or infinity (example ids {batch.ids.tolist()[:8]})",
            where="teacher",
        )


def _broken(expected: str, got: str, hint: str = "") -> ModelError:
    return ModelError(
        f"the teacher's answer to the first batch: expected {expected}, got {got}",
        where="teacher",
        hint=hint or "see docs/how-to-add-a-teacher.md",
    )
