"""What can be known of a run before anything is trained: whether its models fit each other, the data and the
losses, which layer learns from which, and what would go wrong silently.

`plan` shows it, and a run asks for it right after its tokenizer is there. What cannot work is raised, all of
it together; everything else is a Finding. What only trained weights can show is judged later (`stages`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from distillkit import evaluate
from distillkit.answers import KEPT
from distillkit.data.batching import Encoded, measured
from distillkit.data.tasks import Rows, Task
from distillkit.errors import ConfigError, DistillkitError, ModelError
from distillkit.losses.base import Compared, LossStack
from distillkit.model import (
    LearningTeacherSource,
    Student,
    StudentSource,
    Teacher,
    TeacherSource,
    TrainableTeacherSource,
)
from distillkit.settings import EVERY_KIND, Labels, RunConfig, TaskSettings
from distillkit.stacks import bind, interchange_of, raise_all
from distillkit.types import Finding, Spec, Want

JUDGED_ROWS = 256
"""Validation rows that a teacher which comes trained is judged on beforehand."""
SAMPLE_TEXTS = 200
"""Texts on which two tokenizers are compared."""


@dataclass(frozen=True)
class Named:
    """What a recipe names, as objects that are there before any weights."""

    config: RunConfig
    task: Task
    teacher: TeacherSource
    student: StudentSource
    stacks: tuple[LossStack, ...]


@dataclass(frozen=True)
class Prospect:
    """The models of a run at their real sizes, before anything is trained."""

    named: Named
    tokenizer: PreTrainedTokenizerBase
    teacher: Teacher
    student: Student


@dataclass(frozen=True)
class Meeting:
    """A line of the layer map: what of the student learns from what of the teacher, in words; phases count
    from 1.
    """

    phase: int
    loss: str
    student: str
    teacher: str
    how: str


class Upcoming(TrainableTeacherSource):
    """A student that another run will train, as a teacher whose sizes are known."""

    kinds = EVERY_KIND

    def __init__(self, student: Student, tokenizer: PreTrainedTokenizerBase) -> None:
        self._student, self._tokenizer = student, tokenizer
        self.pretrain = self.finetune = None

    def tokenizer(self, corpus: Iterable[str]) -> PreTrainedTokenizerBase:
        return self._tokenizer

    def trained(self, labels: Labels) -> bool:
        return False

    def classifier(
        self, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int, pretrained: Path | None
    ) -> Student:
        return copy.deepcopy(self._student)  # a teacher is frozen

    def load(self, folder: Path) -> Student:
        raise ModelError("this student is not trained yet", where=str(folder))


def build(named: Named, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Prospect:
    """Both models, untrained where the run trains them; `folder` is the teacher's where it does not.

    Raises DistillkitError where one cannot be made.
    """
    labels, length = named.task.labels, named.config.task.max_length
    teacher = named.teacher.prospect(tokenizer, labels, length, folder)
    student = named.student.build(tokenizer, labels, length, teacher)
    if isinstance(named.teacher, LearningTeacherSource):
        teacher = named.teacher.beside(student, tokenizer, labels, length)
    return Prospect(named, tokenizer, teacher, student)


def findings(prospect: Prospect) -> tuple[Finding, ...]:
    """Bind the losses and look at everything that needs no trained weights.

    Raises what cannot work: ConfigError (2) for the recipe, ModelError (4) for the models, ErrorGroup for
    several.
    """
    raise_all(list(_errors(prospect)))
    named = prospect.named
    train = named.task.train
    texts = [train.layout.plain(texts) for texts in islice(train.texts, SAMPLE_TEXTS)]
    return (
        _access(prospect),
        *named.teacher.findings(named.task.labels),
        *named.student.findings(prospect.tokenizer, texts),
        *_padded_rows(prospect),
        *_segments(prospect),
        *_larger(prospect),
    )


def meetings(prospect: Prospect) -> tuple[Meeting, ...]:
    """The layer map of every term and of the interventions, once the losses are bound."""
    return tuple(
        line
        for index, stack in enumerate(prospect.named.stacks)
        for line in (*_terms(index, stack, prospect), *_sites(index, stack, prospect))
    )


def sample(rows: Rows, count: int) -> Rows:
    """At most `count` rows, evenly spread."""
    if len(rows) <= count:
        return rows
    chosen = np.linspace(0, len(rows) - 1, count).astype(np.int64)
    return rows.take(chosen, f"{count} of it")


def judged(prospect: Prospect, train: Encoded, validation: Encoded, device: torch.device) -> Finding:
    """What the teacher scores on validation rows (some of them or all) against the constant answer that
    training rows suggest, where it comes trained; when it will be judged, where it does not.

    Raises ModelError as the run would, where all rows were asked and it is no better.
    """
    named = prospect.named
    if isinstance(named.teacher, LearningTeacherSource):
        return Finding("fact", "teacher", "it learns while the student does: there is nothing to judge yet")
    if not named.teacher.trained(named.task.labels):
        return Finding("fact", "teacher", "it is judged against the majority class when it is trained")
    samples, labels = measured(validation), named.task.labels
    train_gold, gold = train.gold, samples.gold
    assert train_gold is not None and gold is not None
    answers = _answers(prospect.teacher.to(device), samples, labels, device)
    seed = named.config.seed
    whole = len(named.task.validation) <= JUDGED_ROWS
    verdicts = {
        task: evaluate.better_than_majority(own, seen, right, said, seed=seed)
        for task, own, (seen, right), said in evaluate.by_task(labels, train_gold, gold, answers=answers)
        if len(seen) and len(right)
    }
    words = "; ".join(f"{task}: {one.sentence}" if task else one.sentence for task, one in verdicts.items())
    failed = [task for task, verdict in verdicts.items() if not verdict.passes]
    if not failed or named.config.teacher.allow_weak:
        return Finding("warning" if failed else "fact", "teacher", words)
    if whole:
        raise weak(verdicts[failed[0]], task=failed[0])
    return Finding("warning", "teacher", f"{words}; a run refuses it if all rows say so")


def weak(verdict: evaluate.Verdict, named: str = "teacher", task: str = "") -> ModelError:
    """The refusal of a teacher, called `named` in the recipe, that has nothing to teach (of a task)."""
    on_task = f" on {task}" if task else ""
    return ModelError(
        f"the teacher is no better than a constant answer{on_task}: {verdict.sentence}",
        where=named,
        hint=f"train it longer or on more data; {named}.allow_weak: true goes on all the same",
    )


def _answers(teacher: Teacher, samples: Encoded, labels: Labels, device: torch.device) -> NDArray[np.float32]:
    keep = KEPT[labels.kind]
    return evaluate.predict(
        lambda batch: teacher.outputs(batch, want=Want()), samples, keep=keep, device=device
    )


def _errors(prospect: Prospect) -> Iterator[DistillkitError]:
    named, specs = prospect.named, _specs(prospect)
    limits = {"student": prospect.student.spec.max_length}
    if prospect.teacher.body is not None:
        limits["teacher"] = prospect.teacher.spec.max_length
    for (key, length), (role, longest) in product(_lengths(named.config).items(), limits.items()):
        if length > longest:
            yield ConfigError(
                f"{key} {length} is more than the {role}'s {longest} positions",
                where=f"task.{key}",
                hint=f"at most {longest}",
            )
    told, tokens = prospect.teacher.spec, len(prospect.tokenizer)
    rows = told.num_ids or told.vocab_size
    if 0 < rows < tokens:
        yield ModelError(
            f"the tokenizer has {tokens} entries, the teacher's embeddings {rows} rows",
            where="teacher",
            hint="they belong to different models",
        )
    mine, theirs = (spec.num_labels for spec in specs.values())
    if mine != theirs:
        yield ModelError(
            f"the student gives {mine:,} scores, the teacher {theirs:,}",
            where="student",
            hint="both answer with one score for each label, in the task's order",
        )
    if prospect.teacher.writer is None and any(phase.written for phase in named.config.phases):
        yield ConfigError(
            "this teacher answers, and writes no texts", where="distill.written", hint="leave it out"
        )
    for split, name in _asked_rows(prospect):
        try:
            prospect.teacher.check_rows(split, name)
        except DistillkitError as error:
            yield error
    for index, stack in enumerate(named.stacks):
        try:
            bind(named.config, index, stack, **specs)
            interchange_of(named.config, index, stack, **specs)
        except DistillkitError as error:
            yield error


def _lengths(config: RunConfig) -> dict[str, int]:
    """The lengths that a task asks for, by their keys."""
    task = config.task
    given = {"max_target": task.max_target} if isinstance(task, TaskSettings) else {}
    asked = {"max_length": task.max_length, **given}
    return {key: value for key, value in asked.items() if value is not None}


def _asked_rows(prospect: Prospect) -> Iterator[tuple[Rows, str]]:
    """The task's rows that the teacher answers, and what they are called."""
    named = prospect.named
    yield named.task.validation, "validation"
    if named.task.test is not None:
        yield named.task.test, "test"
    pairs = zip(named.config.phases, named.stacks, strict=True)
    if any(stack.needs_teacher and phase.corpus is None for phase, stack in pairs):
        yield named.task.train, "train"


def _specs(prospect: Prospect) -> dict[str, Spec]:
    return {"student": prospect.student.spec, "teacher": prospect.teacher.spec}


def _access(prospect: Prospect) -> Finding:
    needs = max(
        (
            loss.needs.access
            for stack in prospect.named.stacks
            for loss in stack.terms.values()
            if loss.needs_teacher
        ),
        default=None,
    )
    asked = "no loss asks it" if needs is None else f"the losses ask for {needs.name} at most"
    return Finding("fact", "teacher", f"it gives {prospect.named.teacher.access.name}; {asked}")


def _padded_rows(prospect: Prospect) -> Iterator[Finding]:
    tokens = len(prospect.tokenizer)
    for role, spec in _specs(prospect).items():
        if spec.vocab_size > tokens:
            words = f"its embeddings have {spec.vocab_size:,} rows for the {tokens:,} tokens of the tokenizer"
            yield Finding("fact", role, f"{words}; the rest is never read")


def _segments(prospect: Prospect) -> Iterator[Finding]:
    """What a model would silently lose of a pair of texts."""
    specs = _specs(prospect)
    knows = [role for role, spec in specs.items() if spec.num_segments > 1]
    pairs = any(len(texts) > 1 for texts in prospect.named.task.train.texts)
    if not pairs or "teacher" not in knows:
        return
    if "token_type_ids" not in prospect.tokenizer.model_input_names:
        words = (
            "it tells the two texts of a pair apart, but its tokenizer does not say which token is of which"
        )
        yield Finding(
            "warning", "teacher", f"{words}: add token_type_ids to model_input_names of its tokenizer"
        )
    elif "student" not in knows:
        words = "it does not read which of the two texts a token is of (token_type_ids); the teacher does"
        yield Finding("warning", "student", words)


def _larger(prospect: Prospect) -> Iterator[Finding]:
    mine, theirs = parameters(prospect.student), prospect.teacher.num_parameters
    learning = isinstance(prospect.named.teacher, LearningTeacherSource)
    if not learning and theirs is not None and mine > theirs:
        words = f"the student is larger than its teacher: {mine:,} parameters, not {theirs:,}"
        yield Finding("warning", "student", words)


def parameters(model: Student) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _terms(index: int, stack: LossStack, prospect: Prospect) -> Iterator[Meeting]:
    for name, loss in stack.terms.items():
        pairs = loss.compared()
        if not pairs:
            yield Meeting(index + 1, name, "answers", "answers" if loss.needs_teacher else "labels", "")
        for pair in pairs:
            yield Meeting(index + 1, name, *_sides(pair, _specs(prospect)))


def _sides(pair: Compared, specs: Mapping[str, Spec]) -> tuple[str, str, str]:
    numbers = {"student": pair.student, "teacher": pair.teacher}
    mine, theirs = (_place(pair.part, numbers[role], spec) for role, spec in specs.items())
    return mine, theirs, pair.how


def _place(part: str, number: int | None, spec: Spec) -> str:
    if part == "attention":
        return f"block {number} of {spec.num_layers}, {spec.num_heads} heads"
    of_decoder = part == "decoder state"
    layers, whose = (spec.decoder_layers, "decoder ") if of_decoder else (spec.num_layers, "")
    if number is None:
        return f"nearest of {layers} {whose}blocks, {spec.hidden_dim} wide"
    state = f"{whose}embeddings" if number == 0 else f"{whose}state {number} of {layers}"
    return f"{state}, {spec.hidden_dim} wide"


def _sites(index: int, stack: LossStack, prospect: Prospect) -> Iterator[Meeting]:
    swapped = interchange_of(prospect.named.config, index, stack, **_specs(prospect))
    for site in swapped.sites if swapped is not None else ():
        mine, theirs = (f"swap after block {_numbers(blocks)}" for blocks in (site.student, site.teacher))
        yield Meeting(index + 1, "interchange", mine, theirs, "")


def _numbers(blocks: Sequence[int]) -> str:
    return ", ".join(map(str, blocks))
