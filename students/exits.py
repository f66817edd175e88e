"""A transformer that may answer before its last block."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from distillkit.encoder import Encoder, stored_weights
from distillkit.errors import ConfigError, ModelError
from distillkit.model import Material, Student, StudentSource, Teacher
from distillkit.segments import Segment
from distillkit.settings import Count, Depths, InnerStudent, Labels
from distillkit.types import Access, Batch, Finding, Outputs, Swap, Want

FOLDER = "exits"
"""In a saved student's folder: config.json and model.safetensors of its exits."""
_SHARE = 4
"""Width of the blocks over that of an adapter, where the recipe gives none."""


class Exits(StudentSource):
    """A transformer with exits: it also answers after chosen blocks, so that easy examples can leave early.

    An exit is a bottleneck adapter on the states of its block, a mean over real tokens and a linear
    classifier (Be Your Own Teacher, Zhang et al. 2019, section 3.1, has convolutions for that). What exits
    learn stands under `distill.exits`.

    Settings:
        of: The student whose blocks they stand between, a `transformer` or `pretrained`.
        at: Blocks after which it may answer, numbered from 1; its last block answers in any case.
        adapter: Inner width of an exit's adapter; default a quarter of the blocks'.
        joint: Whether what the exits learn trains the blocks too (Be Your Own Teacher, PABEE); else they
            learn to read blocks that are trained for the last answer alone (DeeBERT, FastBERT).
    """

    def __init__(
        self, *, of: InnerStudent, at: Depths, adapter: Count | None = None, joint: bool = True
    ) -> None:
        self.of: StudentSource = of  # type: ignore[assignment]  # made by the catalog
        self.at, self.adapter, self.joint = tuple(at), adapter, joint
        self.kinds = tuple(kind for kind in StudentSource.kinds if kind in self.of.kinds)
        if list(self.at) != sorted(set(self.at)):
            raise ConfigError(
                f"blocks {list(self.at)} are not strictly increasing", where="student.at", hint="order them"
            )

    def build(
        self, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int, teacher: Teacher
    ) -> Student:
        inner = self.of.build(tokenizer, labels, max_length, teacher)
        if not isinstance(inner, Encoder):
            raise ConfigError(
                "exits stand between the blocks of an encoder that reads every piece of its tokenizer",
                where="student.of",
                hint="use: transformer without `vocabulary`, or use: pretrained",
            )
        if inner.length_first:
            raise ConfigError(
                f"the blocks of a {inner.model.config.model_type!r} hand on states by position, not by "
                "example, and exits cannot stand between them",
                where="student.of",
                hint="take a student of another family",
            )
        depth = inner.spec.num_layers
        if self.at[-1] >= depth:
            raise ConfigError(
                f"there is no exit after block {self.at[-1]} of {depth}",
                where="student.at",
                hint=f"1 to {depth - 1}; the last block answers in any case",
            )
        width = self.adapter or max(1, inner.spec.hidden_dim // _SHARE)
        return WithExits(inner, self.at, width, joint=self.joint)

    def start(self, student: Student, material: Material) -> None:
        assert isinstance(student, WithExits)
        self.of.start(student.inner, material)

    def load(self, folder: Path) -> Student:
        return WithExits.load(self.of.load(folder), folder)

    def fingerprint(self) -> str:
        return self.of.fingerprint()

    def findings(
        self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, ...]]
    ) -> Sequence[Finding]:
        after = ", ".join(map(str, self.at))
        said = f"it may answer after block {after} too; an artifact of {len(self.at) + 1} parts is exported"
        return [Finding("fact", "student", said), *self.of.findings(tokenizer, texts)]


class WithExits(Student):
    """An encoder and an Exit after some of its blocks. Its own answer is that of its last block; `Want.exits`
    asks for all of them (see `Outputs.exits`).
    """

    def __init__(self, inner: Encoder, at: Sequence[int], adapter: int, *, joint: bool) -> None:
        super().__init__()
        self.inner, self.adapter, self.joint = inner, adapter, joint
        self.spec = replace(inner.spec, exits=tuple(at))
        spec = inner.spec
        self.exits = nn.ModuleList(
            Exit(spec.hidden_dim, adapter, spec.num_labels, _dropout(inner)) for _ in at
        )

    def outputs(self, batch: Batch, *, want: Want, swap: Swap | None = None) -> Outputs:
        if not want.exits:
            return self.inner.outputs(batch, want=want, swap=swap)
        every = replace(want, access=max(want.access, Access.ALL_STATES), exits=False)
        said = self.inner.outputs(batch, want=every, swap=swap)
        last = said.hidden[-1]
        answers = [
            leave(said.hidden[depth] if self.joint else said.hidden[depth].detach(), batch.mask)
            for leave, depth in zip(self.exits, self.spec.exits, strict=True)
        ]
        deepest = Outputs(said.logits, (last, last))
        states = {Access.ALL_STATES: said.hidden, Access.FINAL_STATES: (last,)}
        hidden = states.get(min(want.access, Access.ALL_STATES), ())
        return replace(said, hidden=hidden, exits=(*answers, deepest))

    def exportable(self) -> nn.Module:
        return self.inner.exportable()

    def segments(self) -> tuple[Segment, ...]:
        depths = (0, *self.spec.exits, self.spec.num_layers)
        leaves = (*self.exits, None)
        return tuple(
            Segment(self.inner, start, stop, leave)
            for start, stop, leave in zip(depths[:-1], depths[1:], leaves, strict=True)
        )

    @property
    def config(self) -> Mapping[str, Any]:
        return self.inner.config

    def save(self, folder: Path, labels: Labels) -> None:
        """The folder of its encoder, which opens as one, with the exits in a folder of their own in it."""
        self.inner.save(folder, labels)
        own = folder / FOLDER
        own.mkdir(exist_ok=True)
        config = {"at": self.spec.exits, "adapter": self.adapter, "joint": self.joint}
        (own / "config.json").write_text(json.dumps(config))
        weights = {name: tensor.detach().contiguous() for name, tensor in self.exits.state_dict().items()}
        save_file(weights, str(own / "model.safetensors"), metadata={"format": "pt"})

    @classmethod
    def load(cls, inner: Student, folder: Path) -> WithExits:
        """Raises ModelError (4) for exits that are damaged or do not fit the encoder."""
        own = folder / FOLDER
        try:
            config = json.loads((own / "config.json").read_text())
            at, adapter, joint = tuple(config["at"]), int(config["adapter"]), bool(config["joint"])
        except (OSError, ValueError, KeyError, TypeError):
            raise ModelError("not the config.json of exits", where=str(own)) from None
        if not isinstance(inner, Encoder) or not at or not 0 < min(at) <= max(at) < inner.spec.num_layers:
            raise ModelError(
                f"its exits after block {list(at)} do not fit the model beside them", where=str(own)
            )
        made = cls(inner, at, adapter, joint=joint)
        stored, wanted = stored_weights(own), made.exits.state_dict()
        if stored != {name: list(tensor.shape) for name, tensor in wanted.items()}:
            raise ModelError("the weights of its exits do not fit", where=str(own))
        made.exits.load_state_dict(load_file(str(own / "model.safetensors")))
        return made


class Exit(nn.Module):
    """states [B, L, D] -> adapter -> mean over real tokens -> logits [B, V]."""

    def __init__(self, width: int, adapter: int, num_labels: int, dropout: float) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, adapter), nn.Linear(adapter, width)
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)
        self.classifier = nn.Linear(width, num_labels)

    def forward(self, states_BLD: Tensor, mask_BL: Tensor) -> Outputs:
        """logits in fp32, and as `hidden` what it reads and what its classifier reads of every token."""
        inside = torch.nn.functional.gelu(self.down(states_BLD))
        adapted_BLD = self.norm(states_BLD + self.dropout(self.up(inside)))
        real_BL1 = mask_BL.unsqueeze(-1)
        total_BD = torch.where(real_BL1, adapted_BLD, 0.0).sum(dim=1)
        pooled_BD = total_BD / real_BL1.sum(dim=1).clamp(min=1)
        logits = self.classifier(self.dropout(pooled_BD)).float()
        return Outputs(logits, (states_BLD, adapted_BLD))


def _dropout(encoder: Encoder) -> float:
    """The rate of the encoder's own layers."""
    return max((part.p for part in encoder.model.modules() if isinstance(part, nn.Dropout)), default=0.0)
