"""An artifact with exits, opened: its parts in ONNX Runtime and the rule by which examples leave. No torch
here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distillkit.early_exit import FACTS, FOLDER, Array, Part, Rule, Walked, read_rule, walk
from distillkit.errors import ExportError
from distillkit.runtime.session import Provider, open_session


class EarlyExit:
    """The parts of an artifact in ONNX Runtime, and the rule that was chosen for them."""

    def __init__(self, sessions: Sequence[Any], depths: Sequence[int], rule: Rule) -> None:
        self.depths, self.rule = tuple(depths), rule
        self.parts = [_part(session) for session in sessions]

    @classmethod
    def open(cls, folder: Path, *, provider: Provider = "cpu", threads: int = 0) -> EarlyExit:
        """An exported artifact. Raises ExportError (10) for a folder that has no exits, SecurityError (11)
        for files that must not be opened.
        """
        try:
            facts = json.loads((folder / FACTS).read_text())
            depths, rule = tuple(facts["depths"]), read_rule(facts["rule"])
        except (OSError, ValueError, KeyError, TypeError):
            raise ExportError(
                f"no {FACTS} of a model with exits", where=str(folder), hint="export a student with exits"
            ) from None
        paths = [folder / FOLDER / f"{number}.onnx" for number in range(len(depths))]
        return cls([open_session(path, provider=provider, threads=threads) for path in paths], depths, rule)

    def run(self, inputs: Mapping[str, Array], rule: Rule | None = None) -> Walked:
        """Token tensors `[B, L]` int64 by name; by the artifact's own rule where none is given."""
        return walk(self.parts, inputs, self.rule if rule is None else rule)


def _part(session: Any) -> Part:
    names = [entry.name for entry in session.get_inputs()]

    def run(inputs: Mapping[str, Array]) -> Sequence[Array]:
        outputs: Sequence[Array] = session.run(None, {name: inputs[name] for name in names})
        return outputs

    return run
