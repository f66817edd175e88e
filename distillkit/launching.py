"""Several processes of one run on this machine, started and watched by torch's elastic agent.

The agent's own words are left out: every process says in words what went wrong.
"""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Callable, Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import (
    ChildFailedError,
    ProcessFailure,
    get_error_handler,
)
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from distillkit.errors import DistillkitError


def launch(processes: int, arguments: Sequence[str], tell: Callable[[str], None]) -> int | None:
    """Run `python -m distillkit ARGUMENTS` as the ranks of one world.

    Returns the exit code of the rank that failed first, 0 where none did, None where a signal ended them.
    `tell` hears the error of another rank where rank 0 met none or another.
    """
    logging.disable(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP's advice on a flag that it needs
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "distillkit", *arguments)
    except SignalException:
        return None
    except ChildFailedError as error:
        said = {rank: _message(failure) for rank, failure in error.failures.items()}
        for message in dict.fromkeys(said.values()):
            if message and message != said.get(0):
                tell(message)
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else None
    finally:
        logging.disable(logging.NOTSET)
    return 0


def leave(error: DistillkitError) -> None:
    """Leave this process's error where the one that started it looks, if it named such a place."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        get_error_handler().record_exception(error)


def _message(failure: ProcessFailure) -> str:
    """What `leave` left, without the name of its class; of a process that was killed, how."""
    if isinstance(failure.message, dict):  # what a process recorded
        return str(failure.message["message"]).partition(": ")[2]
    return str(failure.message) if failure.exitcode < 0 else ""
