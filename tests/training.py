"""A small real distillation that tests of the loop share: student, three losses with a projection, dropout
on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from tiny import encoder, feed

from distillkit.data.batching import Feed
from distillkit.losses.base import LossStack
from distillkit.losses.gold import Gold
from distillkit.losses.hidden_cosine import HiddenCosine
from distillkit.losses.logits import Logits
from distillkit.model import FixedTeacher
from distillkit.progress import Progress, Quiet
from distillkit.rundir import MetricsLog
from distillkit.settings import OptimizerSettings, RuntimeSettings
from distillkit.signals import Signals
from distillkit.train import Distillation, Hooks, TrainResult, TrainSettings, train


def program(*, dropout: float = 0.1, width: int = 8) -> Distillation:
    teacher = encoder(1, layers=2, width=16)
    student = encoder(2, layers=1, width=width, dropout=dropout)
    torch.manual_seed(3)
    stack = LossStack({"gold": (0.5, Gold()), "kd": (0.7, Logits()), "states": (1.0, HiddenCosine())})
    stack.bind(student.spec, {"teacher": teacher.spec})
    return Distillation(student, stack, {"teacher": FixedTeacher(teacher)})


def settings(
    *, save_every: int = 4, epochs: int = 2, log_every: int = 3, keep: str = "last"
) -> TrainSettings:
    return TrainSettings(
        stage="student",
        epochs=epochs,
        optimizer=OptimizerSettings(lr=1e-2),
        save_every=save_every,
        seed=11,
        runtime=RuntimeSettings(device="cpu", precision="fp32", log_every=log_every),
        settings_digest="config",
        keep=keep,  # type: ignore[arg-type]
        metric="score",
    )


def run(
    folder: Path,
    *,
    made: Distillation | None = None,
    data: Feed | None = None,
    how: TrainSettings | None = None,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    progress: Progress | None = None,
) -> tuple[Distillation, TrainResult]:
    """One call of `train` in a folder; again in the same folder it goes on."""
    made = made or program()
    folder.mkdir(parents=True, exist_ok=True)
    with Signals() as signals:
        hooks = Hooks(
            log=MetricsLog(folder / "metrics.jsonl"),
            progress=progress or Quiet(),
            signals=signals,
            evaluate=evaluate,
        )
        result = train(
            made, data or feed(folder / "cache"), how or settings(), hooks, checkpoints=folder / "checkpoints"
        )
    return made, result


def digest(made: torch.nn.Module) -> str:
    """sha256 of all weights, bit for bit."""
    total = hashlib.sha256()
    for name, tensor in sorted(made.state_dict().items()):
        total.update(name.encode() + tensor.detach().numpy().tobytes())
    return total.hexdigest()


class StopAfter(Quiet):
    """Raises, as a crash would, after a number of logged steps."""

    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, stage: str, step: int, total: int, record: Mapping[str, object]) -> None:
        if step >= self.at:
            raise KeyboardInterrupt
