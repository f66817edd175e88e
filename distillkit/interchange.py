"""Interchange interventions: the same states of one example put in the place of another one's, in teacher and
student alike (DIITO, Wu et al. 2022, "Causal Distillation for Language Models", section 3).

Every example of a batch is a base, and the row beside it (2k and 2k + 1) its source, so that the base run of
the whole batch is the source run too: an intervention costs one more forward of each model, not two. Rows
come sorted by length and shuffled anew each epoch, so that sources are of nearly the same length and change.
In the student gradient flows through the base run, the states taken from the source's run, and the swapped
run.

Departures from the published code: sources are drawn anew each epoch and within a step (there: one fixed
permutation of the corpus); states are taken from the output of the block that they replace (there: from its
input, one block off, so that swapping an example with itself changes it; `site_offset: reference` does
that); at least one token is swapped; random positions are never padding.

Shapes: B examples, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillkit.data.masking import choose, keyed_uniform
from distillkit.errors import ConfigError
from distillkit.model import Student, Teacher
from distillkit.settings import InterchangeSettings
from distillkit.types import Access, Batch, Outputs, Spec, Swap, Want, restricted

_SITE, _BASE, _SOURCE = 0x5173, 0xBA5E, 0x50CE
"""Names of the three draws of an example."""
RUNS = Want(access=Access.ALL_STATES)
"""What the base run must return for a swapped run to be made of it."""


@dataclass(frozen=True)
class Site:
    """Blocks, numbered from 1, that are intervened on together: in the student, and in the teacher."""

    student: tuple[int, ...]
    teacher: tuple[int, ...]


@dataclass(frozen=True)
class Intervention:
    """What is swapped in one batch; the same for teacher and student.

    site_B: index into the sites, for each example; swapped_BL: True at base tokens whose state is replaced;
    source_B: the row it comes from; from_BL: the token it comes from.
    """

    site_B: Tensor
    swapped_BL: Tensor
    source_B: Tensor
    from_BL: Tensor


def sites_of(settings: InterchangeSettings, *, student_layers: int, teacher_layers: int) -> tuple[Site, ...]:
    """The sites that examples draw from, each as likely as the other (Causal-Distill's `.nm` files).

    middle: block M / 2 of the student, N / 2 of the teacher. late: the two blocks from M / 2 on and those
    from 3 N / 4 on. multilayer: every student block i with the whole run of teacher blocks that it stands
    for. Raises ConfigError where a block does not exist or a model has none.
    """
    depth, height = student_layers, teacher_layers
    if not depth or not height:
        raise ConfigError(
            f"interventions need blocks: the student has {depth}, the teacher {height}",
            where="interchange.sites",
        )
    if settings.sites == "middle":
        return (Site((max(1, depth // 2),), (max(1, height // 2),)),)
    if settings.sites == "late":
        low, high = max(1, depth // 2), max(1, 3 * height // 4)
        return tuple(
            Site((low + i,), (high + i,)) for i in range(2) if low + i <= depth and high + i <= height
        )
    if settings.sites == "multilayer":
        cuts = [block * height // depth for block in range(depth + 1)]
        runs = (tuple(range(cuts[block] + 1, cuts[block + 1] + 1)) for block in range(depth))
        return tuple(Site((block,), run) for block, run in enumerate(runs, start=1) if run)
    for pair in settings.sites:
        if not (1 <= pair[0] <= depth and 1 <= pair[1] <= height):
            raise ConfigError(
                f"[student, teacher] blocks {list(pair)} do not exist",
                where="interchange.sites",
                hint=f"1 to {depth} and 1 to {height}",
            )
    return tuple(Site((low,), (high,)) for low, high in settings.sites)


class Interchange:
    """Draws interventions by (seed, epoch, example id) and runs a model under them."""

    def __init__(self, settings: InterchangeSettings, *, seed: int, student: Spec, teacher: Spec) -> None:
        self.settings, self.seed = settings, seed
        self.sites = sites_of(settings, student_layers=student.num_layers, teacher_layers=teacher.num_layers)

    def draw(self, batch: Batch) -> Intervention:
        """The intervention of a batch. A batch of one example swaps it with itself, which changes nothing."""
        ids, mask = batch.ids.cpu().numpy(), batch.mask.cpu().numpy()
        lengths, width = mask.sum(axis=1), mask.shape[1]
        source = paired_rows(len(ids))
        counts = np.maximum(1, (np.minimum(lengths, lengths[source]) * self.settings.rate).astype(np.int64))
        site = (keyed_uniform(self.seed, batch.epoch, ids, 1, draw=_SITE)[:, 0] * len(self.sites)).astype(int)
        pick = _span if self.settings.positions == "span" else _anywhere
        draws = (keyed_uniform(self.seed, batch.epoch, ids, width, draw=draw) for draw in (_BASE, _SOURCE))
        swapped = pick(mask, counts, next(draws))
        taken = pick(mask[source], counts, next(draws))
        origin = np.zeros(mask.shape, dtype=np.int64)
        _, places = np.nonzero(taken)
        origin[swapped] = places  # the k-th chosen token of the base gets the k-th of the source
        parts = (torch.from_numpy(part).to(batch.mask.device) for part in (site, swapped, source, origin))
        return Intervention(*parts)

    def student_swap(self, drawn: Intervention, base: Outputs) -> Swap:
        return self._swap(drawn, base.hidden, [site.student for site in self.sites])

    def teacher_swap(self, drawn: Intervention, base: Outputs) -> Swap:
        return self._swap(drawn, base.hidden, [site.teacher for site in self.sites])

    def _swap(self, drawn: Intervention, states: Sequence[Tensor], sites: Sequence[tuple[int, ...]]) -> Swap:
        """states: of the base run, which holds every source's run too."""
        offset = 0 if self.settings.site_offset == "same" else -1
        swaps: dict[int, Callable[[Tensor], Tensor]] = {}
        for block in sorted({block for site in sites for block in site}):
            here_B = torch.zeros_like(drawn.site_B, dtype=torch.bool)
            for index, site in enumerate(sites):
                if block in site:
                    here_B |= drawn.site_B == index
            swapped_BL1 = (drawn.swapped_BL & here_B[:, None]).unsqueeze(-1)
            source_BLD = states[block + offset][drawn.source_B[:, None], drawn.from_BL]
            swaps[block - 1] = partial(_replaced, swapped_BL1, source_BLD)
        return swaps


def run_twice(
    model: Student | Teacher, batch: Batch, want: Want, swap: Callable[[Outputs], Swap]
) -> tuple[Outputs, Outputs]:
    """(base run, swapped run) of a model; `swap` makes the second from the first."""
    base = model.outputs(batch, want=want | RUNS)
    swapped = model.outputs(batch, want=want, swap=swap(base))
    return restricted(base, batch), restricted(swapped, batch)


class Intervened(Teacher):
    """A model that answers every batch after an intervention on it, without gradient; `swap` is the
    Interchange's method for its side.
    """

    def __init__(
        self,
        model: Student | Teacher,
        interchange: Interchange,
        swap: Callable[[Intervention, Outputs], Swap],
    ) -> None:
        self.model, self._interchange, self._swap = model, interchange, swap

    @property
    def access(self) -> Access:
        return Access.SCORES

    @property
    def spec(self) -> Spec:
        return self.model.spec

    def outputs(self, batch: Batch, *, want: Want, swap: Swap | None = None) -> Outputs:
        drawn = self._interchange.draw(batch)
        with torch.no_grad():
            return run_twice(self.model, batch, want, partial(self._swap, drawn))[1]


def paired_rows(count: int) -> NDArray[np.int64]:
    """Each row's source: the other of rows 2k and 2k + 1; the row before for an odd last one, itself where it
    is the only one.
    """
    rows = np.arange(count)
    source: NDArray[np.int64] = rows ^ 1
    if count % 2:
        source[-1] = max(0, count - 2)
    return source


def _span(
    mask_BL: NDArray[np.bool_], counts_B: NDArray[np.int64], uniform_BL: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """A run of `counts_B` real tokens, its start uniform (the first number of each row)."""
    lengths_B = mask_BL.sum(axis=1)
    starts_B = (uniform_BL[:, 0] * (lengths_B - counts_B + 1)).astype(np.int64)[:, None]
    positions_L = np.arange(mask_BL.shape[1])
    run: NDArray[np.bool_] = (positions_L >= starts_B) & (positions_L < starts_B + counts_B[:, None])
    return run


def _anywhere(
    mask_BL: NDArray[np.bool_], counts_B: NDArray[np.int64], uniform_BL: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """`counts_B` real tokens without replacement."""
    return choose(mask_BL, counts_B, uniform_BL)


def _replaced(swapped_BL1: Tensor, source_BLD: Tensor, state_BLD: Tensor) -> Tensor:
    return torch.where(swapped_BL1, source_BLD.to(state_BLD.dtype), state_BLD)
