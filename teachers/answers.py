"""What of a teacher's outputs is kept on disk, and how it becomes outputs again.

Only what the losses read is kept (`Loss.reads`), only at real tokens, and by name: `logits`, `hidden.6`,
`query.5`, `key.5`, `value.5`. Shape legend beside `distillkit.types`: T real tokens of a batch, k logits kept
of V.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, overload

import torch
from torch import Tensor

from distillkit.data.ragged import NAMES, Column
from distillkit.errors import ConfigError, DivergedError, ModelError
from distillkit.settings import CacheSettings
from distillkit.types import Access, Batch, Outputs, Projections, Reads, Spec, Want

WHERE = "distill.cache"
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_PARTS = ("query", "key", "value")
Item = TypeVar("Item")
Items = Mapping[str, Tensor]


class Kept(Sequence[Item]):
    """Some of `size` items. Raises ModelError for one that was not kept: none stands for another."""

    def __init__(self, items: Mapping[int, Item], size: int, what: str) -> None:
        self._items, self._size, self._what = items, size, what

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(self._size))]
        if not -self._size <= index < self._size:
            raise IndexError(index)
        place = index % self._size
        if place not in self._items:
            raise ModelError(
                f"{self._what} {place} of the teacher was not kept, only {sorted(self._items)}",
                where=WHERE,
                hint="the loss that looks at it must say so in `reads`",
            )
        return self._items[place]


class KeptLogits(ABC):
    """How logits are kept."""

    @property
    @abstractmethod
    def identity(self) -> tuple[float, ...]:
        """What decides the bytes."""

    @abstractmethod
    def pack(self, logits_NV: Tensor) -> dict[str, Tensor]:
        """The items of each column."""

    @abstractmethod
    def again(self, items: Items, logits_NV: Tensor) -> dict[str, Tensor]:
        """What other logits say in the place of these items."""

    @abstractmethod
    def unpack(self, read: Callable[[str], Tensor]) -> Tensor:
        """`[N, V]` of the columns that `pack` made."""


class AllLogits(KeptLogits):
    """Every logit, in fp32."""

    identity = ()

    def pack(self, logits_NV: Tensor) -> dict[str, Tensor]:
        return {"logits": logits_NV.float()}

    def again(self, items: Items, logits_NV: Tensor) -> dict[str, Tensor]:
        return self.pack(logits_NV)

    def unpack(self, read: Callable[[str], Tensor]) -> Tensor:
        return read("logits")


class TopLogits(KeptLogits):
    """The k largest logits in fp32, and the probability of all others together.

    At `temperature` the probabilities of the kept are exact, and so is the rest's sum, which the others share
    evenly: as much as is known of them. At another temperature neither would hold.
    """

    def __init__(self, k: int, num_labels: int, temperature: float) -> None:
        if k >= num_labels:
            raise ConfigError(
                f"{k} logits of {num_labels} are all of them",
                where=f"{WHERE}.logits",
                hint="write full, or fewer",
            )
        self.k, self.num_labels, self.temperature = k, num_labels, temperature

    @property
    def identity(self) -> tuple[float, ...]:
        return (self.k, self.temperature)

    def pack(self, logits_NV: Tensor) -> dict[str, Tensor]:
        top_Nk, index_Nk = logits_NV.float().topk(self.k, dim=-1)
        rest_N = self._rest(logits_NV, index_Nk)
        return {"logits.top": top_Nk, "logits.index": index_Nk.int(), "logits.rest": rest_N}

    def again(self, items: Items, logits_NV: Tensor) -> dict[str, Tensor]:
        index_Nk = items["logits.index"].long()
        top_Nk = logits_NV.float().gather(-1, index_Nk)
        return {"logits.top": top_Nk, "logits.rest": self._rest(logits_NV, index_Nk)}

    def unpack(self, read: Callable[[str], Tensor]) -> Tensor:
        rest_NV = read("logits.rest").unsqueeze(-1).repeat(1, self.num_labels)
        return rest_NV.scatter(-1, read("logits.index").long(), read("logits.top"))

    def _rest(self, logits_NV: Tensor, index_Nk: Tensor) -> Tensor:
        """`[N]` the one logit that gives the others the probability that they have together."""
        others_NV = logits_NV.float().scatter(-1, index_Nk, -math.inf)
        mass_N = torch.logsumexp(others_NV / self.temperature, dim=-1)
        return self.temperature * (mass_N - math.log(self.num_labels - self.k))


@dataclass(frozen=True)
class Packing:
    """Which outputs are kept, and how.

    states, blocks: numbers in `Outputs.hidden` of Access.ALL_STATES and in `Outputs.attention`; depth: the
    teacher's blocks; dtype: of states and projections.
    """

    want: Want
    states: tuple[int, ...]
    blocks: tuple[int, ...]
    depth: int
    dtype: Literal["fp16", "bf16", "fp32"]
    logits: KeptLogits

    @classmethod
    def of(cls, spec: Spec, want: Want, reads: Reads, settings: CacheSettings) -> Packing:
        """What losses that need and read this keep. Raises ConfigError where too few logits can be kept."""
        depth = spec.num_layers
        states = {Access.FINAL_STATES: range(depth, depth + 1), Access.ALL_STATES: range(depth + 1)}
        blocks = range(depth if want.attention else 0)
        return cls(
            want=want,
            states=_chosen(states.get(want.access, range(0)), reads.states, depth + 1),
            blocks=_chosen(blocks, reads.blocks, depth),
            depth=depth,
            dtype=settings.dtype,
            logits=kept_logits(spec, reads, settings),
        )

    @property
    def rounds(self) -> bool:
        """Whether anything is kept in `dtype`."""
        return bool(self.states or self.blocks)

    @property
    def identity(self) -> list[object]:
        """What decides the bytes."""
        return [self.states, self.blocks, self.dtype if self.rounds else "", self.logits.identity]

    def pack(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """The items of every column, on the CPU. Raises DivergedError for NaN and infinity, ModelError for a
        value that the dtype cannot hold.
        """
        items = {**self._states(outputs, batch), **self.logits.pack(outputs.logits)}
        return {name: self._rounded(name, item, batch).cpu() for name, item in items.items()}

    def again(self, items: Items, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """What other outputs say in the place of these items, in fp32 on the CPU."""
        said = {**self._states(outputs, batch), **self.logits.again(items, outputs.logits.cpu())}
        return {name: item.float().cpu() for name, item in said.items()}

    def columns(self, items: Items) -> dict[str, Column]:
        """What these items are."""
        return {
            name: Column(
                dtype=NAMES[item.dtype],
                shape=tuple(item.shape[1:]),
                per="answers" if name.startswith("logits") else "tokens",
            )
            for name, item in items.items()
        }

    def unpack(self, read: Callable[[str], Tensor], mask_BL: Tensor, want: Want) -> Outputs:
        """Outputs in fp32, 0 at padding. `read` gives the items of a column. Raises ModelError for a want
        that nothing was kept for.
        """
        if want | self.want != self.want:
            raise ModelError(f"asked for {want}, kept for {self.want}", where=WHERE)

        def padded(name: str) -> Tensor:
            flat = read(name).float()
            whole = flat.new_zeros((*mask_BL.shape, *flat.shape[1:]))
            whole[mask_BL] = flat
            return whole

        hidden: Sequence[Tensor] = ()
        if want.access >= Access.FINAL_STATES:
            states = self.states if want.access > Access.FINAL_STATES else self.states[-1:]
            hidden = Kept({state: padded(f"hidden.{state}") for state in states}, self.depth + 1, "state")
        if want.access == Access.FINAL_STATES:
            hidden = (hidden[-1],)
        blocks = self.blocks if want.attention else ()
        attention = {
            block: Projections(*(padded(f"{part}.{block}").transpose(1, 2) for part in _PARTS))
            for block in blocks
        }
        return Outputs(
            logits=self.logits.unpack(read),
            hidden=hidden,
            attention=Kept(attention, self.depth, "attention of block") if want.attention else (),
        )

    def _states(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """`[T, ...]` of each state and projection."""
        last_only = self.want.access == Access.FINAL_STATES
        found = {
            f"hidden.{state}": outputs.hidden[-1 if last_only else state][batch.mask] for state in self.states
        }
        for block in self.blocks:
            told = outputs.attention[block]
            for part, heads_BHLd in zip(_PARTS, (told.query, told.key, told.value), strict=True):
                found[f"{part}.{block}"] = heads_BHLd.transpose(1, 2)[batch.mask]
        return found

    def _rounded(self, name: str, item: Tensor, batch: Batch) -> Tensor:
        if not bool(torch.isfinite(item).all()):
            raise DivergedError(
                f"the teacher's {name} holds NaN or infinity (example ids {batch.ids.tolist()[:8]})",
                where="teacher",
                hint="nothing was trained; look at the teacher's weights",
            )
        if name.startswith("logits"):
            return item
        rounded = item.to(_DTYPES[self.dtype])
        if not bool(torch.isfinite(rounded).all()):
            raise ModelError(
                f"the teacher's {name} reaches {float(item.abs().max()):.3g}, more than {self.dtype} holds",
                where=f"{WHERE}.dtype",
                hint="use bf16 or fp32",
            )
        return rounded


def kept_logits(spec: Spec, reads: Reads, settings: CacheSettings) -> KeptLogits:
    """How the logits are kept for losses that read this. Raises ConfigError where so few say too little."""
    if settings.logits == "full":
        return AllLogits()
    if reads.temperatures is None or len(reads.temperatures) > 1:
        read = "each logit" if reads.temperatures is None else f"temperatures {sorted(reads.temperatures)}"
        raise ConfigError(
            f"the largest logits give probabilities at one temperature, and the losses read {read}",
            where=f"{WHERE}.logits",
            hint="write logits: full",
        )
    return TopLogits(settings.logits, spec.num_labels, next(iter(reads.temperatures), 1.0))


def _chosen(there: range, read: frozenset[int] | None, size: int) -> tuple[int, ...]:
    """The numbers that are there and read. Raises ModelError for one that does not exist."""
    if read is None or not there:
        return tuple(there)
    if any(not -size <= number < size for number in read):
        raise ModelError(f"a loss reads {sorted(read)} of {size}", where=WHERE)
    return tuple(sorted({number % size for number in read} & set(there)))
