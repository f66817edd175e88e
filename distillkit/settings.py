"""The sections of a recipe that more than one module reads, and the value types settings are written in.

No torch here: `distillkit validate` imports this module and must stay fast. Every model is frozen, strict and refuses
unknown keys; every field has a sentence.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
LayerPair = Annotated[tuple[Index, Index], Field(strict=False)]
LayerMap = Literal["last", "uniform", "skip"] | Annotated[list[LayerPair], Field(min_length=1)]
"""How student states meet teacher states: a strategy, or explicit [student, teacher] pairs (0 = embeddings)."""


class Section(BaseModel):
    """Base of every section: frozen, strict, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=False)


class Component(Section):
    """`use:` names a registered class; the other keys are that class's settings."""

    use: str = Field(description="registered name")


class OptimizerSettings(Section):
    """AdamW with warm-up and linear decay; no decay on norms and biases."""

    lr: Positive = Field(default=1e-4, description="peak learning rate")
    warmup: Fraction = Field(default=0.06, description="share of the steps over which the rate rises from 0")
    weight_decay: NonNegative = Field(default=0.01, description="decoupled decay, not on norms and biases")
    betas: Annotated[tuple[Fraction, Fraction], Field(strict=False)] = Field(default=(0.9, 0.999), description="AdamW betas")
    eps: Positive = Field(default=1e-6, description="AdamW epsilon")
    clip: Positive = Field(default=1.0, description="largest global gradient norm")


class BatchSettings(Section):
    """How examples become batches."""

    tokens: Count = Field(default=1024, description="most tokens (padding included) of one batch, over all micro-batches")
    examples: Count = Field(default=64, description="most examples of one batch")
    micro: Count = Field(default=1, description="parts a batch is computed in (gradient accumulation; a multiple of ranks)")


class PretrainSettings(Section):
    """Pretraining of a teacher in this repo, on a corpus."""

    corpus: str = Field(description="file, folder or built-in name with documents of sentences")
    steps: Count = Field(default=5000, description="optimizer steps")
    max_length: Annotated[int, Field(ge=8)] = Field(default=128, description="tokens of one training sequence")
    batch: Count = Field(default=32, description="sequences of one batch")
    micro: Count = Field(default=1, description="parts a batch is computed in")
    optimizer: OptimizerSettings = OptimizerSettings(warmup=0.1)
    save_every: Count = Field(default=500, description="steps between checkpoints")


class FinetuneSettings(Section):
    """Supervised training of a teacher on the task."""

    epochs: Count = Field(default=3, description="passes over the training rows")
    batch: BatchSettings = BatchSettings()
    optimizer: OptimizerSettings = OptimizerSettings(lr=5e-5)
    save_every: Count = Field(default=500, description="steps between checkpoints")
    keep: Literal["best", "last"] = Field(default="best", description="weights kept: best on validation, or the last")


class Labels(Section):
    """What a task's answers are: class names in id order, or a regression target.

    Labels are matched by name between data, teacher, student and artifact, never by position.
    """

    kind: Literal["classification", "regression"] = Field(description="what the task predicts")
    names: tuple[str, ...] = Field(default=(), description="class names in id order; empty for regression")

    @property
    def num_labels(self) -> int:
        """Width of the output layer: classes, or 1 for regression."""
        return len(self.names) if self.kind == "classification" else 1
