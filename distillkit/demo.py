"""The packaged demo: the whole pipeline on built-in data, small enough for two CPU cores."""

from __future__ import annotations

import json
from pathlib import Path

from distillkit.data.builtin import builtin_path
from distillkit.errors import MissingError

CONFIG = Path(__file__).parent / "demo.yaml"


def overrides(output: Path) -> list[str]:
    """What the demo changes in its config: where it writes, and its corpus where IMDB is not installed."""
    changes = [f"output={json.dumps(str(output))}"]
    try:
        builtin_path("imdb")
    except MissingError:
        changes.append("teacher.pretrain.corpus=builtin:rotten_tomatoes")
    return changes
