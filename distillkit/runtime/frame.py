"""The special tokens around a row, and which tokens of a row that is too long stay.

tokenizers could cut rows itself, but keeps what it cuts off, for a pair in all combinations: two texts of
20,000 characters would take a gigabyte. Here they are cut as it does and nothing is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillkit.errors import ExportError

Ids = NDArray[np.int64]
_PROBES = ("a", "1", ".", "the", "\u4e00")


@dataclass(frozen=True)
class Frame:
    """What a tokenizer puts before, between and after the texts of a row, and the segment of every token.

    special, types: a part before each text and one after the last, `[S]` each; texts: the segment of each
    text's own tokens.
    """

    special: tuple[Ids, ...]
    types: tuple[Ids, ...]
    texts: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Any, texts: int) -> Frame:
        """That of rows of one text, or of two. Raises ExportError (10) where it cannot be told."""
        for probe in _PROBES:
            encoding = tokenizer.encode(*[probe] * texts)
            if set(encoding.sequence_ids) >= set(range(texts)):
                return _read(encoding, texts)
        raise ExportError("the special tokens of this tokenizer were not understood", where="tokenizer.json")

    @property
    def size(self) -> int:
        """Special tokens of a row."""
        return sum(map(len, self.special))

    def row(self, texts: Sequence[Ids]) -> tuple[Ids, Ids]:
        """ids and segments `[L]` of a row of these tokens."""
        ids, types = [self.special[0]], [self.types[0]]
        for number, text in enumerate(texts):
            own = np.full(len(text), self.texts[number], dtype=np.int64)
            ids += [text, self.special[number + 1]]
            types += [own, self.types[number + 1]]
        return np.concatenate(ids), np.concatenate(types)


def kept(lengths: Sequence[int], room: int) -> tuple[int, ...]:
    """How many tokens of each text stay where there is room for so many: the longer one is cut first
    (transformers' `longest_first`, as tokenizers has it), both to one half where both are longer.
    """
    if sum(lengths) <= room:
        return tuple(lengths)
    if len(lengths) == 1:
        return (room,)
    short, other = min(lengths), max(lengths)
    other = other if short > room else max(short, room - short)
    if short + other > room:
        short, other = room // 2, room // 2 + room % 2
    return (short, other) if lengths[0] <= lengths[1] else (other, short)


def _read(encoding: Any, texts: int) -> Frame:
    """Parts by what tokenizers says of the tokens of a probe: of which text each is, or of none."""
    ids, types = (np.asarray(values, dtype=np.int64) for values in (encoding.ids, encoding.type_ids))
    owner = np.asarray([texts if one is None else one for one in encoding.sequence_ids])
    places = [np.flatnonzero(owner == text) for text in range(texts)]
    starts, ends = [0, *(int(one[-1]) + 1 for one in places)], [*(int(one[0]) for one in places), len(ids)]
    parts = [slice(start, end) for start, end in zip(starts, ends, strict=True)]
    return Frame(
        tuple(ids[part] for part in parts),
        tuple(types[part] for part in parts),
        tuple(int(types[one[0]]) for one in places),
    )
