"""distillkit: distil NLP transformers into small, measured ONNX artifacts.

    import distillkit
    run = distillkit.run("config.yaml")                       # the same as the command
    run = distillkit.run("config.yaml", parts=distillkit.Parts(teacher=my_teacher))

Names are loaded when first used, so that `import distillkit` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distillkit.errors import DistillkitError as DistillkitError
    from distillkit.losses.base import Loss as Loss
    from distillkit.losses.base import LossStack as LossStack
    from distillkit.model import Student as Student
    from distillkit.model import StudentSource as StudentSource
    from distillkit.model import Teacher as Teacher
    from distillkit.model import TeacherSource as TeacherSource
    from distillkit.pipeline import Parts as Parts
    from distillkit.pipeline import run as run
    from distillkit.rundir import RunDir as RunDir
    from distillkit.settings import Labels as Labels
    from distillkit.settings import RunConfig as RunConfig
    from distillkit.teachers.blackbox import BlackBox as BlackBox
    from distillkit.teachers.custom import Custom as Custom
    from distillkit.types import Access as Access
    from distillkit.types import Batch as Batch
    from distillkit.types import Outputs as Outputs
    from distillkit.types import Spec as Spec
    from distillkit.types import Step as Step
    from distillkit.types import Want as Want

_WHERE = {
    "DistillkitError": "errors",
    "Loss": "losses.base",
    "LossStack": "losses.base",
    "Student": "model",
    "StudentSource": "model",
    "Teacher": "model",
    "TeacherSource": "model",
    "Parts": "pipeline",
    "run": "pipeline",
    "RunDir": "rundir",
    "Labels": "settings",
    "RunConfig": "settings",
    "BlackBox": "teachers.blackbox",
    "Custom": "teachers.custom",
    "Access": "types",
    "Batch": "types",
    "Outputs": "types",
    "Spec": "types",
    "Step": "types",
    "Want": "types",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'distillkit' has no attribute {name!r}")
    return vars(import_module(f"distillkit.{_WHERE[name]}"))[name]


def __dir__() -> list[str]:
    return __all__
