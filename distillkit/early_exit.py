"""When a model with exits answers, and the walk through its parts in which the batch shrinks.

No torch here: an artifact is walked with NumPy and ONNX Runtime alone.

Shape legend: E exits (the model's own answer is the last), n examples, V classes (1 for regression), B
examples that are still there, L tokens, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Part = Callable[[Mapping[str, Array]], Sequence[Array]]
"""Takes a part's inputs by name; returns logits `[B, V]` and, but for the last part, what it hands on."""
FOLDER, FACTS = "segments", "exits.json"
"""In an artifact: the folder of its parts; its exits, and the rule that was chosen for them."""


class Rule(ABC):
    """Says which examples leave at an exit, from all that the exits so far have said of them."""

    @abstractmethod
    def leaves(self, said_EBV: Array) -> NDArray[np.bool_]:
        """`[B]`: who leaves at the last of the E exits so far."""

    @property
    @abstractmethod
    def words(self) -> str:
        """The rule in a few words."""


@dataclass(frozen=True)
class Never(Rule):
    """Every example goes to the end."""

    def leaves(self, said_EBV: Array) -> NDArray[np.bool_]:
        return np.zeros(said_EBV.shape[1], dtype=bool)

    @property
    def words(self) -> str:
        return "never"


@dataclass(frozen=True)
class Entropy(Rule):
    """Leave where the answer is sure: entropy / log(V) below the threshold (DeeBERT, Xin et al. 2020, section
    3.2, normalised as FastBERT's speed, Liu et al. 2020, section 3.3.2). For classes only.
    """

    threshold: float

    def leaves(self, said_EBV: Array) -> NDArray[np.bool_]:
        below: NDArray[np.bool_] = uncertainty(said_EBV[-1]) < self.threshold
        return below

    @property
    def words(self) -> str:
        return f"entropy below {self.threshold:g}"


@dataclass(frozen=True)
class Patience(Rule):
    """Leave once the answer has stayed the same for so many exits after the first that gave it (PABEE, Zhou
    et al. 2020, section 3.2). Numbers are the same where they differ by less than the tolerance.
    """

    times: int
    tolerance: float = 0.0

    def leaves(self, said_EBV: Array) -> NDArray[np.bool_]:
        depth, count, classes = said_EBV.shape
        if depth <= self.times:
            return np.zeros(count, dtype=bool)
        recent = said_EBV[-self.times - 1 :]
        if classes == 1:
            same = np.abs(np.diff(recent[..., 0], axis=0)) < self.tolerance
        else:
            named = recent.argmax(axis=-1)
            same = named == named[0]
        steady: NDArray[np.bool_] = np.asarray(same.all(axis=0))
        return steady

    @property
    def words(self) -> str:
        within = f", within {self.tolerance:g}" if self.tolerance else ""
        return f"{self.times + 1} times the same answer{within}"


@dataclass(frozen=True)
class Budget(Rule):
    """Leave where the entropy is below the threshold of the exit; the thresholds were fitted so that examples
    like those of a sample go through `depth` blocks on the average (MSDNet, Huang et al. 2018, section 5,
    budgeted batch classification: the share of what comes to an exit that leaves there is the same at every
    exit). For classes only.
    """

    depth: float
    thresholds: tuple[float, ...]

    def leaves(self, said_EBV: Array) -> NDArray[np.bool_]:
        below: NDArray[np.bool_] = uncertainty(said_EBV[-1]) < self.thresholds[len(said_EBV) - 1]
        return below

    @property
    def words(self) -> str:
        return f"{self.depth:g} blocks on average, fitted"

    @classmethod
    def fit(cls, said_EnV: Array, depths: Sequence[int], depth: float) -> Budget:
        """The thresholds for a mean depth on this sample, from the first exit's on, found by halving."""
        low, high = 0.0, 1.0
        for _ in range(20):
            share = (low + high) / 2
            made = cls(depth, _thresholds(said_EnV, share))
            if mean_depth(simulate(said_EnV, made), depths) > depth:
                low = share
            else:
                high = share
        return cls(depth, _thresholds(said_EnV, high))


RULES: Mapping[str, type[Rule]] = {
    "never": Never,
    "entropy": Entropy,
    "patience": Patience,
    "budget": Budget,
}


@dataclass(frozen=True)
class Walked:
    """logits `[n, V]` and exits `[n]`: what each example was answered, and at which exit (from 0)."""

    logits: NDArray[np.float32]
    exits: NDArray[np.int64]


def uncertainty(logits: Array) -> NDArray[np.float64]:
    """Entropy of the softmax over the last axis as a share of the largest possible, log(V): 0 (sure) to 1."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    log = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    entropy: NDArray[np.float64] = -(np.exp(log) * log).sum(axis=-1) / np.log(logits.shape[-1])
    return entropy


def simulate(said_EnV: Array, rule: Rule) -> NDArray[np.int64]:
    """`[n]` the exit at which each example would leave, from what every exit says of it."""
    last = len(said_EnV) - 1
    exits = np.full(said_EnV.shape[1], last)
    inside = np.arange(said_EnV.shape[1])
    for index in range(last):
        leaves = rule.leaves(said_EnV[: index + 1, inside])
        exits[inside[leaves]] = index
        inside = inside[~leaves]
    return exits


def answered(said_EnV: Array, exits: Array) -> Array:
    """`[n, V]`: what each example is answered at its exit."""
    answers: Array = said_EnV[exits, np.arange(said_EnV.shape[1])]
    return answers


def mean_depth(exits: Array, depths: Sequence[int]) -> float:
    """Blocks that an example goes through on the average; depths: of every exit."""
    return float(np.asarray(depths)[exits].mean())


def every_exit(parts: Sequence[Part], inputs: Mapping[str, Array]) -> list[Array]:
    """What each part says of a batch that nothing leaves: logits `[B, V]`, the shallowest first."""
    said = []
    for part in parts:
        logits, *handed = part(inputs)
        said.append(logits)
        if handed:
            inputs = {**inputs, "states": handed[0]}
    return said


def by_exit(flat_nEV: Array, exits: int) -> Array:
    """`[E, n, V]` of rows that hold what every exit says side by side, `[n, E V]`."""
    return flat_nEV.reshape(len(flat_nEV), exits, -1).transpose(1, 0, 2)


def walk(parts: Sequence[Part], inputs: Mapping[str, Array], rule: Rule) -> Walked:
    """Run the parts one after the other; who leaves is taken out of the batch, and columns that are then
    padding alone are cut off.

    inputs: token tensors `[B, L]` by name, `attention_mask` among them.
    """
    mask = inputs["attention_mask"]
    inside = np.arange(len(mask))
    exits = np.full(len(mask), len(parts) - 1)
    answers: Array | None = None
    said: list[Array] = []
    for index, part in enumerate(parts):
        logits, *handed = part(inputs)
        if answers is None:
            answers = np.empty((len(mask), logits.shape[-1]), dtype=np.float32)
        said.append(logits)
        answers[inside] = logits  # those who stay are answered again
        if not handed:
            break
        leaves = rule.leaves(np.stack(said))
        exits[inside[leaves]] = index
        stays = ~leaves
        if not stays.any():
            break
        states = handed[0]
        if leaves.any():
            inside, mask, states = inside[stays], mask[stays], states[stays]
            said = [one[stays] for one in said]
            longest = _last_real(mask)
            mask, states = mask[:, :longest], states[:, :longest]
        inputs = {"attention_mask": np.ascontiguousarray(mask), "states": np.ascontiguousarray(states)}
    assert answers is not None
    return Walked(answers, exits)


def write_rule(rule: Rule) -> dict[str, Any]:
    """A rule as plain values."""
    name = next(name for name, cls in RULES.items() if type(rule) is cls)
    return {"use": name, **asdict(rule)}  # type: ignore[call-overload]


def read_rule(values: Mapping[str, Any]) -> Rule:
    """What `write_rule` made. Raises KeyError or TypeError for anything else."""
    settings: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return RULES[settings.pop("use")](**settings)


def _thresholds(said_EnV: Array, share: float) -> tuple[float, ...]:
    """Thresholds by which this share of the sample that comes to an exit leaves there."""
    thresholds = []
    inside = np.arange(said_EnV.shape[1])
    for index in range(len(said_EnV) - 1):
        unsure = uncertainty(said_EnV[index, inside])
        threshold = float(np.quantile(unsure, share)) if len(unsure) else 0.0
        threshold = np.nextafter(threshold, 2.0) if share == 1.0 else threshold
        thresholds.append(float(threshold))
        inside = inside[unsure >= threshold]
    return tuple(thresholds)


def _last_real(mask: Array) -> int:
    """Columns up to the last that is not padding in every row."""
    real = np.flatnonzero(mask.any(axis=0))
    return int(real[-1]) + 1 if len(real) else 1
