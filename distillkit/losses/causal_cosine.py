"""The direction of the last state after an intervention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from distillkit.losses.base import TEACHER, Compared, Loss, counterfactual_of
from distillkit.losses.hidden_cosine import cosine_distance
from distillkit.losses.states import Projections
from distillkit.settings import Projection
from distillkit.types import Access, Batch, Spec, Step, Want


class CausalCosine(Loss):
    """Counterfactual states: 1 - cosine of both models' last states over real tokens when states of another
    example stand in the place of their own (DIITO, Wu et al. 2022, section 3.3). What is swapped is the
    phase's `interchange` section.

    Settings:
        projection: auto projects where widths differ (a linear map without bias), linear always, none never.
    """

    needs = Want(access=Access.INTERVENTIONS)
    trains_logits = False

    def __init__(self, *, projection: Projection = "auto") -> None:
        super().__init__()
        self.projection = projection

    def bind(self, student: Spec, teachers: Mapping[str, Spec]) -> None:
        self.last = student.num_layers, teachers[TEACHER].num_layers
        self.projections = Projections(self.projection, student, teachers[TEACHER], 1)

    def count(self, batch: Batch) -> int:
        return batch.num_tokens

    def compared(self) -> Sequence[Compared]:
        return [Compared("state", *self.last, self.projections.words(1))]

    def forward(self, step: Step) -> Tensor:
        swapped = counterfactual_of(step)
        mine_BLD = self.projections(swapped.student.hidden[-1], 0)
        return cosine_distance(mine_BLD, swapped.teachers[TEACHER].hidden[-1], step.batch.mask)
