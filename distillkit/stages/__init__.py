"""The stages of a run: each makes the content of one folder from the folders of the stages before it.

    tokenizer/  pretrain/  teacher/  student/  export/  bench/  report/

A stage knows nothing of being skipped: the pipeline asks for it only where its folder is not there, and the
training loop goes on from the stage's own checkpoints. It returns a function that writes the folder; rank 0
alone calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from distillkit.stages.artifact import bench, check_floors, export
from distillkit.stages.checks import check, named
from distillkit.stages.job import STAGES, Job, Save
from distillkit.stages.learning import student
from distillkit.stages.reporting import report
from distillkit.stages.teaching import pretrain, teacher, tokenizer

__all__ = ["MAKE", "STAGES", "Job", "Save", "check", "check_floors", "named"]

_MAKERS = (tokenizer, pretrain, teacher, student, export, bench, report)
MAKE: Mapping[str, Callable[[Job], Save]] = dict(zip(STAGES, _MAKERS, strict=True))
