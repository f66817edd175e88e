"""Adapters that copy metrics.jsonl's records to a tracker. They can never stop a run.

Each works in a thread of its own behind a bounded queue; one that fails, hangs or falls behind is dropped
with one warning.
"""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]
Write = Callable[[Mapping[str, float], int], None]
_WAITING, _PATIENCE = 1000, 10.0


@contextmanager
def trackers(names: Sequence[str], folder: Path, run: str) -> Iterator[tuple[Callable[[Record], None], ...]]:
    """One function per tracker, to be called with each record."""
    started = [_Tracker(name, OPEN[name], folder / "trackers" / name, run) for name in names]
    try:
        yield tuple(tracker.tell for tracker in started)
    finally:
        for tracker in started:
            tracker.close()


class _Tracker:
    def __init__(self, name: str, opener: Callable[[Path, str], Write], folder: Path, run: str) -> None:
        self.name, self._alive = name, True
        self._queue: queue.Queue[Record | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._work, args=(opener, folder, run), daemon=True)
        self._thread.start()

    def tell(self, record: Record) -> None:
        if self._alive:
            try:
                self._queue.put_nowait(record)
            except queue.Full:
                self._drop("it does not keep up")

    def close(self) -> None:
        if self._alive:
            self._queue.put(None)
            self._thread.join(_PATIENCE)

    def _work(self, opener: Callable[[Path, str], Write], folder: Path, run: str) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write = opener(folder, run)
            while (record := self._queue.get()) is not None:
                write(flat(record), int(record["step"]))
        except Exception as error:  # whatever a tracker raises must not reach the run
            self._drop(str(error) or type(error).__name__)

    def _drop(self, reason: str) -> None:
        self._alive = False
        warnings.warn(f"tracker {self.name} is left out from here on: {reason}", RuntimeWarning, stacklevel=2)


def flat(record: Record) -> dict[str, float]:
    """`stage/name` -> number, nested names joined by a slash."""
    numbers: dict[str, float] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                walk(f"{prefix}/{name}", inner)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[prefix] = float(value)

    for name, value in record.items():
        if name not in ("stage", "step"):
            walk(f"{record['stage']}/{name}", value)
    return numbers


def _tensorboard(folder: Path, run: str) -> Write:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))

    def write(numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return write


def _wandb(folder: Path, run: str) -> Write:
    import wandb

    session = wandb.init(project="distillkit", name=run, dir=str(folder))
    return lambda numbers, step: session.log(dict(numbers))


def _mlflow(folder: Path, run: str) -> Write:
    import mlflow

    mlflow.set_tracking_uri(folder.as_uri())
    mlflow.start_run(run_name=run)
    return lambda numbers, step: mlflow.log_metrics(dict(numbers), step=step)


def _trackio(folder: Path, run: str) -> Write:
    import trackio

    trackio.init(project="distillkit", name=run)
    return lambda numbers, step: trackio.log(dict(numbers))


OPEN: Mapping[str, Callable[[Path, str], Write]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}
