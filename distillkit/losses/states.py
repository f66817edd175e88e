"""What the terms on hidden states share: which state learns from which, and the maps between widths.

States are numbered as in `Outputs.hidden` and `Outputs.decoder_hidden`: 0 is the embedding output, l the
output of block l. A projection is trained with the student, saved in checkpoints, and never exported.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from distillkit.errors import ConfigError
from distillkit.losses.base import TEACHER, Compared, Loss, masked_mean
from distillkit.losses.layer_maps import Pairs, layer_pairs
from distillkit.settings import LayerMap, Projection, Stack
from distillkit.types import Access, Batch, Outputs, Reads, Spec, Step, Want


class Projections(nn.Module):
    """Linear maps without bias from the student's width to the teacher's: none, one for all pairs, or one a
    pair.

    Raises ConfigError where widths differ and none is allowed.
    """

    def __init__(self, kind: Projection, student: Spec, teacher: Spec, num_pairs: int) -> None:
        super().__init__()
        differ = student.hidden_dim != teacher.hidden_dim
        if differ and kind == "none":
            raise ConfigError(
                f"student width {student.hidden_dim} and teacher width {teacher.hidden_dim} differ",
                where="projection",
                hint="add projection: linear",
            )
        count = {"shared": 1, "linear": num_pairs, "auto": num_pairs if differ else 0, "none": 0}[kind]
        self.maps = nn.ModuleList(_linear(student.hidden_dim, teacher.hidden_dim) for _ in range(count))

    def words(self, num_pairs: int) -> str:
        """What is between two states."""
        if not len(self.maps):
            return ""
        return "one linear map for all" if len(self.maps) < num_pairs else "a linear map"

    def forward(self, state_BLD: Tensor, pair: int) -> Tensor:
        if not len(self.maps):
            return state_BLD
        projected: Tensor = self.maps[pair % len(self.maps)](state_BLD)
        return projected


class Side(ABC):
    """The encoder's states or the decoder's: where they are, and at which tokens they count."""

    part: Literal["state", "decoder state"]

    @abstractmethod
    def layers(self, spec: Spec) -> int:
        """Blocks."""

    @abstractmethod
    def states(self, outputs: Outputs) -> Sequence[Tensor]:
        """One more than there are blocks."""

    @abstractmethod
    def mask(self, batch: Batch) -> Tensor:
        """The real tokens, of the states' first two dimensions."""

    @abstractmethod
    def reads(self, states: frozenset[int]) -> Reads:
        """These states of a teacher."""


class EncoderSide(Side):
    """Of the text that is read, at its tokens."""

    part = "state"

    def layers(self, spec: Spec) -> int:
        return spec.num_layers

    def states(self, outputs: Outputs) -> Sequence[Tensor]:
        return outputs.hidden

    def mask(self, batch: Batch) -> Tensor:
        return batch.mask

    def reads(self, states: frozenset[int]) -> Reads:
        return Reads(states=states)


class DecoderSide(Side):
    """Of the text that is written, at every token of a target: the state that its answer is made of."""

    part = "decoder state"

    def layers(self, spec: Spec) -> int:
        if not spec.decoder_layers:
            raise ConfigError(
                "this model has no decoder",
                where="stack",
                hint="stack: decoder is for models that write text",
            )
        return spec.decoder_layers

    def states(self, outputs: Outputs) -> Sequence[Tensor]:
        return outputs.decoder_hidden

    def mask(self, batch: Batch) -> Tensor:
        assert batch.scored is not None, "a decoder answers tokens"
        return batch.scored

    def reads(self, states: frozenset[int]) -> Reads:
        return Reads(decoder_states=states)


SIDES: Mapping[Stack, Side] = {"encoder": EncoderSide(), "decoder": DecoderSide()}


class StateLoss(Loss):
    """Base of the terms that compare states token by token: the mean over real tokens and pairs of a
    distance.

    layer_map "closest" asks the student which block comes nearest: each teacher state of the uniform map
    learns with the student block whose mean distance over the tokens of the example is least (CoFi, Xia et
    al. 2022, section 3.2, equation 5; there one choice a batch, here one an example, so that parts of a
    batch add up).
    """

    needs = Want(access=Access.ALL_STATES)
    trains_logits = False

    def __init__(
        self, *, layer_map: LayerMap | Literal["closest"], projection: Projection, stack: Stack = "encoder"
    ) -> None:
        super().__init__()
        self.layer_map, self.projection, self.side = layer_map, projection, SIDES[stack]
        self.pairs: Pairs = ()

    def bind(self, student: Spec, teachers: Mapping[str, Spec]) -> None:
        teacher = teachers[TEACHER]
        self.pairs = layer_pairs(
            "uniform" if self.layer_map == "closest" else self.layer_map,
            student_layers=self.side.layers(student),
            teacher_layers=self.side.layers(teacher),
        )
        # which block meets which is known in the forward only, so that no pair can have a map of its own
        maps = 1 if self.layer_map == "closest" else len(self.pairs)
        self.projections = Projections(self.projection, student, teacher, maps)

    def reads(self) -> Reads:
        return self.side.reads(frozenset(high for _, high in self.pairs))

    def count(self, batch: Batch) -> int:
        return int(self.side.mask(batch).sum())

    def compared(self) -> Sequence[Compared]:
        chosen = self.layer_map == "closest"
        how = self.projections.words(len(self.pairs))
        return [Compared(self.side.part, None if chosen else low, high, how) for low, high in self.pairs]

    @abstractmethod
    def distance(self, student_BLD: Tensor, teacher_BLD: Tensor) -> Tensor:
        """`[B, L]` in fp32; 0 for equal states."""

    def forward(self, step: Step) -> Tensor:
        mask_BL = self.side.mask(step.batch)
        if self.layer_map == "closest":
            terms = [self._closest(step, high) for _, high in self.pairs]
        else:
            terms = [self._distance(step, low, high, pair) for pair, (low, high) in enumerate(self.pairs)]
        return torch.stack([masked_mean(term_BL, mask_BL) for term_BL in terms]).mean()

    def _distance(self, step: Step, low: int, high: int, pair: int) -> Tensor:
        mine_BLD = self.projections(self.side.states(step.student)[low], pair)
        return self.distance(mine_BLD, self.side.states(step.teachers[TEACHER])[high])

    def _closest(self, step: Step, high: int) -> Tensor:
        """`[B, L]` distances to one teacher state, of the student block that is nearest in each example."""
        blocks = range(1, len(self.side.states(step.student)))
        every_SBL = torch.stack([self._distance(step, low, high, 0) for low in blocks])
        real_BL = self.side.mask(step.batch)
        total_SB = torch.where(real_BL, every_SBL.detach(), 0.0).sum(dim=-1)
        nearest_B = total_SB.argmin(dim=0)
        return every_SBL[nearest_B, torch.arange(len(nearest_B), device=nearest_B.device)]


def _linear(width: int, out: int) -> nn.Linear:
    layer = nn.Linear(width, out, bias=False)
    nn.init.normal_(layer.weight, std=width**-0.5)
    return layer
