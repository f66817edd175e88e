"""Checkpoints: everything that training needs to go on exactly, whole or not at all.

    checkpoints/<stage>/000500/   model.safetensors  optimizer.safetensors  state.json  manifest.json

model.safetensors holds everything that is trained (the student and the losses' projections); no generator
state is needed, because every random choice is keyed by (seed, step). Tensors are safetensors, the rest is
JSON: nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file, save_model
from torch import nn

from distillkit import files
from distillkit.errors import ConfigError, DataError, IntegrityError
from distillkit.parallel import gather, like


@dataclass(frozen=True)
class Best:
    """The evaluation that scored best so far, and the step whose checkpoint holds its weights."""

    step: int
    value: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class State:
    """Where training stands after `step` optimizer steps; `index` is the next step within `epoch`.

    unevaluated: it was stopped within the evaluation that follows this step. scaler: state of the fp16 loss
    scaler, and how many steps it skipped in a row. tokens: read so far; padded: with their padding;
    flops_per_token: of forward and backward, padding included, as counted on the first batch (0: not yet).
    """

    step: int = 0
    epoch: int = 0
    index: int = 0
    best: Best | None = None
    unevaluated: bool = False
    seconds: float = 0.0
    tokens: int = 0
    padded: int = 0
    flops_per_token: float = 0.0
    scaler: Mapping[str, float] = field(default_factory=dict)
    skipped: int = 0


@dataclass(frozen=True)
class Key:
    """What a checkpoint belongs to. settings, data and order (of the batches) must agree on resume unless it
    is forced; a change of how it is computed (threads, processes, device, ...) ends bitwise equality.
    """

    settings: str
    data: str
    order: str
    computed: Mapping[str, str | int]


def save(
    root: Path, state: State, key: Key, program: nn.Module, slots: Mapping[str, torch.Tensor], *, keep: int
) -> None:
    """Write the checkpoint of `state.step`, then prune: the newest `keep` and the best stay. `slots` is the
    optimizer's state (see optimizer_slots).

    Raises ResourceError (7) where it cannot be written; older checkpoints are then untouched.
    """
    root.mkdir(parents=True, exist_ok=True)
    with files.appearing(root / f"{state.step:06d}", lambda: {"step": state.step}) as folder:
        save_model(program, str(folder / "model.safetensors"))
        save_file(dict(slots), str(folder / "optimizer.safetensors"))
        (folder / "state.json").write_text(json.dumps({"state": asdict(state), "key": asdict(key)}))
    _prune(root, state, keep)


def check(root: Path, *, settings: str, data: str) -> None:
    """Look at the newest checkpoint before anything else is done. Raises ConfigError (2) or DataError (3)
    where it belongs to other settings or data.
    """
    for step in reversed(steps(root)):
        folder = root / f"{step:06d}"
        if not files.flaw(folder, hashes=False):
            _refuse(json.loads((folder / "state.json").read_text())["key"], settings, data, folder)
            return


def resume(
    root: Path, key: Key, program: nn.Module, *, force: bool = False
) -> tuple[State, dict[str, torch.Tensor], list[str]]:
    """Load the newest valid checkpoint's weights: (state, the optimizer's slots, remarks); a fresh State
    where none was ever written.

    force: go on from it even where settings or data changed. Raises IntegrityError (8) where checkpoints
    exist and none is valid, ConfigError (2) or DataError (3) where they belong to other settings or data.
    """
    remarks: list[str] = []
    found = steps(root)
    for step in reversed(found):
        folder = root / f"{step:06d}"
        problem = files.flaw(folder, hashes=True)
        if problem:
            remarks.append(f"skipped checkpoint {folder.name}: {problem}")
            continue
        stored = json.loads((folder / "state.json").read_text())
        remarks += _compare(stored["key"], key, folder, force)
        load_weights(root, step, program)
        slots = load_file(str(folder / "optimizer.safetensors"))
        best = stored["state"].pop("best")
        return State(**stored["state"], best=Best(**best) if best else None), slots, remarks
    if found:
        raise IntegrityError(
            f"none of {len(found)} checkpoints is valid: {'; '.join(remarks)}",
            where=str(root),
            hint="restore the folder, or remove it to start this stage again",
        )
    return State(), {}, remarks


def load_weights(root: Path, step: int, program: nn.Module) -> None:
    """Put the weights of one checkpoint into the program. Raises IntegrityError where it is not whole."""
    folder = root / f"{step:06d}"
    problem = files.flaw(folder, hashes=False)
    if problem:
        raise IntegrityError(problem, where=str(folder))
    stored = load_file(str(folder / "model.safetensors"))
    places = program.state_dict(keep_vars=True)
    unknown = sorted(stored.keys() - places.keys())
    filled = {places[name] for name in stored.keys() & places.keys()}  # tied tensors are stored once
    missing = sorted(name for name, place in places.items() if place not in filled)
    if unknown or missing:
        raise IntegrityError(
            f"holds another program's tensors: unknown {unknown[:3]}, missing {missing[:3]}",
            where=str(folder),
            hint=f"the architecture or a projection changed: removing {root} starts this training again",
        )
    shapes = {
        name: (list(tensor.shape), list(places[name].shape))
        for name, tensor in stored.items()
        if tensor.shape != places[name].shape
    }
    if shapes:
        raise IntegrityError(
            f"holds tensors of other shapes: {dict(list(shapes.items())[:3])}",
            where=str(folder),
            hint=f"the architecture changed: removing {root} starts this training again",
        )
    with torch.no_grad():
        for name, tensor in stored.items():
            places[name].copy_(like(tensor, places[name]))


def steps(root: Path) -> list[int]:
    """Steps that have a checkpoint folder, ascending; their names count, not their times."""
    return (
        sorted(int(entry.name) for entry in root.iterdir() if entry.name.isdigit()) if root.is_dir() else []
    )


def _prune(root: Path, state: State, keep: int) -> None:
    for step in steps(root)[:-keep]:
        if state.best is None or step != state.best.step:
            files.remove(root / f"{step:06d}")
    files.sweep(root)


def _refuse(stored: Mapping[str, Any], settings: str, data: str, folder: Path) -> None:
    """Raise where a checkpoint belongs to other settings or data than these."""
    go_on = f"removing {folder.parent} starts this training again, --force goes on from it all the same"
    if stored["data"] != data:
        raise DataError(
            "the data changed since the checkpoint was made",
            where=str(folder),
            hint=f"restore the data, or run under another name; {go_on}",
        )
    if stored["settings"] != settings:
        raise ConfigError(
            "the checkpoint was made with other settings of this stage or of one before it",
            where=str(folder),
            hint=f"run with the old settings, or under another name; {go_on}",
        )


def _compare(stored: Mapping[str, Any], key: Key, folder: Path, force: bool) -> list[str]:
    if force:
        changed = [name for name in ("settings", "data", "order") if stored[name] != getattr(key, name)]
        remarks = [f"forced to go on although these changed: {', '.join(changed)}"] if changed else []
    else:
        _refuse(stored, key.settings, key.data, folder)
        _refuse({**stored, "settings": stored["order"]}, key.order, key.data, folder)
        remarks = []
    then, now = stored["computed"], key.computed
    changed = [
        f"{name} {then.get(name)} -> {value}" for name, value in now.items() if then.get(name) != value
    ]
    if changed:
        remarks.append(f"no longer bitwise equal to an undisturbed run: {', '.join(changed)}")
    return remarks


def optimizer_slots(
    program: nn.Module, optimizer: torch.optim.Optimizer, *, keep: bool = True
) -> dict[str, torch.Tensor]:
    """The optimizer's state by parameter name and slot, whole and on the CPU. Where it is sharded, every rank
    asks, and those that do not `keep` it get nothing.
    """
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in program.named_parameters()}
    found = {}
    for parameter, slots in optimizer.state.items():
        for slot, value in slots.items():
            whole = gather(value)
            if keep:
                found[f"{names[parameter]}.{slot}"] = whole.cpu().contiguous()
    return found


def load_slots(
    program: nn.Module, optimizer: torch.optim.Optimizer, slots: Mapping[str, torch.Tensor]
) -> None:
    """Give the optimizer of `program` the state that a checkpoint held."""
    parameters = dict(program.named_parameters())
    for name, tensor in slots.items():
        owner, slot = name.rsplit(".", 1)
        parameter = parameters[owner]
        if slot == "step":
            optimizer.state[parameter][slot] = tensor.to(parameter.device)
        else:
            optimizer.state[parameter][slot] = like(tensor, parameter)
