"""From a recipe's phases to loss stacks, and whether they fit the task, the teacher and the student.

An error of a loss names its place in the recipe: `distill.losses.kd`, `distill.1.losses.kd.layer_map`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from distillkit import catalog
from distillkit.errors import ConfigError, DistillkitError, ErrorGroup
from distillkit.interchange import Interchange
from distillkit.losses.at_exits import AtExits
from distillkit.losses.base import TEACHER, LossStack
from distillkit.model import LearningTeacherSource, StudentSource, TeacherSource, TrainableTeacherSource
from distillkit.settings import Labels, RunConfig, place_of
from distillkit.teachers.answers import WHERE, Packing
from distillkit.types import Access, Spec

_ANSWERED = {
    "text_to_text": "text_to_text is answered by an encoder-decoder: use: pretrained, or use: seq2seq for a "
    "student"
}


def build_stacks(config: RunConfig, base: Path) -> tuple[LossStack, ...]:
    """One stack per phase."""
    stacks = []
    for index, phase in enumerate(config.phases):
        losses = {}
        for name, component in phase.terms.items():
            with _placed(_place(config, index, name)):
                loss = catalog.build("loss", component, base=base)
                if name not in phase.losses:
                    assert phase.exits is not None
                    loss = AtExits(loss, phase.exits.teacher)
                losses[name] = (component.weight, loss)
        stacks.append(LossStack(losses))
    return tuple(stacks)


def check_access(
    config: RunConfig, stacks: Sequence[LossStack], teacher: TeacherSource, labels: Labels
) -> None:
    """The ladder of access, before anything is loaded: a loss that needs more than its teacher, its task or
    its phase's data gives is a ConfigError.
    """
    if labels.kind not in teacher.kinds:
        raise ConfigError(
            f"teacher {config.teacher.use!r} answers {' and '.join(teacher.kinds)}, not {labels.kind}",
            where="teacher.use",
            hint=_ANSWERED.get(labels.kind, "use: pretrained answers every kind of task"),
        )
    if labels.tasks:
        _check_tasks(config, teacher)
    for index, stack in enumerate(stacks):
        if config.phases[index].cache is not None:
            _check_cached(stack, teacher, labels)
        _check_augment(config, index, teacher)
        if stack.needs_teacher:
            _check_added(config, index, teacher)
        for name, loss in stack.terms.items():
            where = _place(config, index, name)
            if loss.needs_teacher and loss.needs.access > teacher.access:
                raise ConfigError(
                    f"this loss needs {loss.needs.access.name} of the teacher, which gives no more than "
                    f"{teacher.access.name}",
                    where=where,
                    hint="take a loss further up the ladder: " + " < ".join(access.name for access in Access),
                )
            if labels.kind not in loss.kinds:
                raise ConfigError(
                    f"this loss is not defined for {labels.kind}",
                    where=where,
                    hint=f"it is for {', '.join(loss.kinds)}",
                )
            if loss.needs_labels and config.phases[index].corpus is not None and labels.kind != "mlm":
                raise ConfigError(
                    "this loss needs labels, and a corpus has none",
                    where=where,
                    hint="use it in a phase on the task's rows",
                )


def check_student(config: RunConfig, student: StudentSource, labels: Labels) -> None:
    """Raises ConfigError for a student that cannot answer this kind of task."""
    if labels.kind not in student.kinds:
        raise ConfigError(
            f"student {config.student.use!r} answers {' and '.join(student.kinds)}, not {labels.kind}",
            where="student.use",
            hint=_ANSWERED.get(labels.kind, "use: transformer answers every other kind of task"),
        )


def bind(config: RunConfig, index: int, stack: LossStack, *, student: Spec, teacher: Spec) -> None:
    """Tell every loss of a phase the sizes of both models. Raises ConfigError where they do not fit, of all
    losses together, or where a cache would keep less than the losses read.
    """
    errors: list[DistillkitError] = []
    for name, loss in stack.terms.items():
        try:
            with _placed(_place(config, index, name)):
                loss.bind(student, {TEACHER: teacher})
        except ConfigError as error:
            errors.append(error)
    raise_all(errors)
    cache = config.phases[index].cache
    if cache is not None:
        Packing.of(teacher, stack.needs, stack.reads, cache)


def interchange_of(
    config: RunConfig, index: int, stack: LossStack, *, student: Spec, teacher: Spec
) -> Interchange | None:
    """What is swapped in a phase; None where a model has no blocks and no loss asks for interventions. Raises
    ConfigError for a block that does not exist.
    """
    if stack.needs.access < Access.INTERVENTIONS and not (student.num_layers and teacher.num_layers):
        return None
    with _placed(_phase(config, index)):
        settings = config.phases[index].interchange
        return Interchange(settings, seed=config.seed, student=student, teacher=teacher)


def raise_all(errors: Sequence[DistillkitError]) -> None:
    """Raise what was found, all of it together; nothing where there is nothing."""
    if errors:
        raise errors[0] if len(errors) == 1 else ErrorGroup(list(errors))


def _check_augment(config: RunConfig, index: int, teacher: TeacherSource) -> None:
    """Raise ConfigError where words are to be replaced and there is no masked language model to ask."""
    augment = config.phases[index].augment
    if augment is None or augment.model is not None:
        return
    if not isinstance(teacher, TrainableTeacherSource) or teacher.masked_model(Path()) is None:
        raise ConfigError(
            "this run's teacher is not pretrained here to fill masks, so there is no masked language model "
            "to ask",
            where=f"{_phase(config, index)}.augment.model",
            hint="give the Hugging Face folder of one",
        )


def _check_tasks(config: RunConfig, teacher: TeacherSource) -> None:
    """Raise ConfigError for a teacher that cannot tell which of several tasks a row is of."""
    by_task = getattr(config.teacher, "combine", "") == "task"
    if teacher.rows_only == "id":
        raise ConfigError(
            "its answers are found by id, and rows of several tasks are numbered anew",
            where="teacher",
            hint="let it find rows by their texts",
        )
    if teacher.access == Access.LABELS and not by_task:
        raise ConfigError(
            "it names one class, which may be another task's than the row's",
            where="teacher",
            hint="use: ensemble with combine: task, and one such member for each task",
        )


def _check_added(config: RunConfig, index: int, teacher: TeacherSource) -> None:
    """Raise ConfigError for rows that a phase adds and a file of answers cannot know."""
    phase = config.phases[index]
    found = {"corpus": phase.corpus, "augment": phase.augment}
    if teacher.rows_only == "id":
        found["unlabelled"] = phase.unlabelled
    for key, value in found.items():
        if teacher.rows_only and value is not None:
            raise ConfigError(
                f"the teacher answers only rows of a file, found by {teacher.rows_only}; {key} adds others",
                where=f"{_phase(config, index)}.{key}",
                hint="leave it out; a file that is matched by text can answer `unlabelled` rows",
            )


def _check_cached(stack: LossStack, teacher: TeacherSource, labels: Labels) -> None:
    """Raise ConfigError where the answers that a phase asks for cannot be kept, or none are asked for."""
    if labels.kind == "text_to_text":
        raise ConfigError(
            "the answers to the tokens of a target are not kept on disk",
            where=WHERE,
            hint="leave `cache` out; texts that the teacher writes are kept (`written`)",
        )
    if isinstance(teacher, LearningTeacherSource):
        raise ConfigError(
            "this teacher learns while the student does: its answers change with every step",
            where=WHERE,
            hint="leave `cache` out",
        )
    if not stack.needs_teacher:
        raise ConfigError("no loss of this phase asks the teacher", where=WHERE, hint="leave `cache` out")
    if stack.needs.access >= Access.INTERVENTIONS:
        raise ConfigError(
            "a loss of this phase intervenes on the teacher, anew in every step: its answers cannot be kept",
            where=WHERE,
            hint="leave `cache` out",
        )


def _place(config: RunConfig, index: int, loss: str) -> str:
    """The path of a loss in the recipe."""
    return ".".join((_phase(config, index), *place_of(loss)))


def _phase(config: RunConfig, index: int) -> str:
    """The path of a phase in the recipe."""
    return f"distill.{index}" if isinstance(config.distill, list) else "distill"


@contextmanager
def _placed(at: str) -> Iterator[None]:
    """Puts the place of a component before the field that its ConfigError names."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(
            error.problem, where=f"{at}.{error.where}" if error.where else at, hint=error.hint
        ) from None
