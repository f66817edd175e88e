"""The contracts: Teacher (read only, no gradient) and Student (trained, exported).

A regime is a Teacher object: one model, an ensemble, cached outputs, peers, the student's own deeper layers.
The loop has no modes. What a *recipe* names with `use:` is a source: it knows where weights come from and
builds the object.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from distillkit.data.batching import Encoded
from distillkit.data.tasks import Rows
from distillkit.errors import ModelError
from distillkit.objectives.base import Objective
from distillkit.settings import (
    ENCODER_KINDS,
    EVERY_KIND,
    FinetuneSettings,
    GenerationSettings,
    Labels,
    PretrainSettings,
    TaskKind,
)
from distillkit.types import Access, Batch, Finding, Outputs, Spec, Swap, Want

STUDENT, LEFT, WHO = "student", "teacher", "peer.json"
"""Among peers: the run's own student; the folder in the student's of what stands beside it; who a folder
holds.
"""


class Writer(ABC):
    """A model that writes text, token by token."""

    @abstractmethod
    def beams(self, batch: Batch, how: GenerationSettings) -> list[list[list[int]]]:
        """The finished texts of each example, the best first, as tokens without an end token; nothing of the
        targets is looked at. The model is in eval mode, `how` says how many tokens at most.
        """

    def write(self, batch: Batch, how: GenerationSettings) -> list[list[int]]:
        """The best text of each example."""
        return [texts[0] for texts in self.beams(batch, how)]


class Teacher(ABC):
    """Gives targets. Never trained by the loop; `outputs` runs in eval mode without gradients."""

    follows: bool = False
    """Whether it is a module that learns while the student does, so that checkpoints hold it."""
    live: bool = True
    """Whether it answers any text; False: only the rows that it was given answers to, so that there is
    nothing to time.
    """

    @property
    @abstractmethod
    def access(self) -> Access:
        """The deepest access this teacher grants."""

    @property
    @abstractmethod
    def spec(self) -> Spec:
        """Sizes; a teacher below FINAL_STATES has num_layers 0 and hidden_dim 0."""

    @abstractmethod
    def outputs(self, batch: Batch, *, want: Want, swap: Swap | None = None) -> Outputs:
        """Detached outputs for the batch; `hidden` filled as far as `want` asks."""

    @property
    def body(self) -> Student | None:
        """The model that a student may take first weights from; None: it shows none."""
        return None

    @property
    def writer(self) -> Writer | None:
        """What writes its texts; None: it answers, and writes nothing."""
        return None

    @property
    def parts(self) -> Mapping[str, Teacher]:
        """The teachers that it is made of, by name."""
        return {}

    @property
    def num_parameters(self) -> int | None:
        """None where they are not known: a callable holds its weights itself."""
        return None

    def remarks(self) -> Sequence[str]:
        """What should be said after it has taught."""
        return ()

    def check_rows(self, rows: Rows, name: str) -> None:  # noqa: B027 - an optional check
        """Raise DataError for rows (the `name` rows of the task) that it will not be able to answer; called
        before anything is trained.
        """

    def after_step(self, step: int) -> None:  # noqa: B027 - an optional hook, nothing to do for a fixed teacher
        """Called after every optimizer step (an average follows the student here); of sharded parameters each
        rank sees its own part.
        """

    def to(self, device: torch.device) -> Teacher:
        """The same teacher with its weights on `device`; one without weights stays where it is."""
        return self


class Student(nn.Module, ABC):
    """Is trained. The same call as a teacher's, with gradients."""

    spec: Spec

    @abstractmethod
    def outputs(self, batch: Batch, *, want: Want, swap: Swap | None = None) -> Outputs:
        """Outputs with gradient; `hidden` filled as far as `want` asks."""

    @abstractmethod
    def exportable(self) -> nn.Module:
        """A module whose forward takes the tensors of `Batch.inputs` by keyword and returns the logits, `[B,
        V]`, or `[B, L, V]` of every token where the task asks for tokens.
        """

    @property
    def writer(self) -> Writer | None:
        """What writes its texts; None: it answers, and writes nothing."""
        return None

    def layers(self) -> Sequence[Sequence[nn.Parameter]]:
        """Its parameters by depth, from the embeddings up to the head; all in one where it has no blocks."""
        return [list(self.parameters())]

    def segments(self) -> Sequence[nn.Module]:
        """Parts that run one after the other, each with an answer of its own, where it may answer early
        (`distillkit.segments`); none where it cannot.
        """
        return ()

    @property
    def config(self) -> Mapping[str, Any]:
        """What `transformers` reads of it in config.json; empty for a class that it does not know."""
        return {}

    @abstractmethod
    def save(self, folder: Path, labels: Labels) -> None:
        """Write config.json (with the label names) and model.safetensors, never pickle; its source's `load`
        reads them.
        """

    def forward(self, batch: Batch, want: Want) -> Outputs:
        """nn.Module entry point, the same as `outputs` without a swap."""
        return self.outputs(batch, want=want)


@dataclass(frozen=True)
class Graphs:
    """A model that writes, as two modules without branches on values (`distillkit.export.decoding`).

    encoder: from input_ids and attention_mask `[B, L]` to a tensor for each name of `cross`, what is read of
        a source, and where the past is a state that a source begins, one for each of `past` behind them.
    decoder: from input_ids (new tokens `[B, T]`), attention_mask, a list of what is read and a list of the
        past to the logits `[B, T, V]` and the longer past.
    length: the dimension of what is read along which it is as long as the source.
    grows: whether the past is keys and values, which begin empty and grow along `length` by any number of new
        tokens; else it is a state, and one token is new.
    """

    encoder: nn.Module
    decoder: nn.Module
    cross: tuple[str, ...]
    past: tuple[str, ...]
    length: int
    grows: bool


class TextStudent(Student, Writer):
    """Writes texts. Its logits are fp32 `[N, V]`, a row for each real token of the targets.

    start_id: the token that a target begins after; end_id: the one that ends it.
    """

    start_id: int
    end_id: int

    @property
    def writer(self) -> Writer:
        return self

    @abstractmethod
    def graphs(self) -> Graphs:
        """Copies on the CPU in eval mode, as they are exported."""

    def exportable(self) -> nn.Module:
        """Raises NotImplementedError: it is two graphs."""
        raise NotImplementedError("what writes texts is exported as an encoder and a decoder")


class FixedTeacher(Teacher):
    """A trained Student as a Teacher: eval mode, no gradient, whatever mode its model was left in."""

    def __init__(self, model: Student, access: Access = Access.INTERVENTIONS) -> None:
        self.model = model.eval().requires_grad_(False)
        self._access = access

    @property
    def access(self) -> Access:
        return self._access

    @property
    def spec(self) -> Spec:
        return self.model.spec

    @property
    def body(self) -> Student:
        return self.model

    @property
    def writer(self) -> Writer | None:
        return self.model.writer

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def outputs(self, batch: Batch, *, want: Want, swap: Swap | None = None) -> Outputs:
        self.model.eval()
        with torch.no_grad():
            return self.model.outputs(batch, want=want, swap=swap)

    def to(self, device: torch.device) -> Teacher:
        self.model.to(device)
        return self


class TeacherSource(ABC):
    """What `teacher: {use: name}` names: settings in `__init__` (keyword-only, typed), a Teacher on
    request."""

    access: Access = Access.INTERVENTIONS
    """The deepest access its teacher grants; known before anything is loaded."""
    kinds: tuple[TaskKind, ...] = ENCODER_KINDS
    """Task kinds that its teacher can answer."""
    reads_tokens: bool = True
    """Whether it reads token ids; False: texts, so that its tokenizer is the student's alone."""
    rows_only: Literal["", "text", "id"] = ""
    """What the only rows are found by that it can answer, those that it was given answers for; '': it answers
    any.
    """
    peers: Mapping[str, StudentSource] = {}
    """Students that learn beside the run's own, each from all others."""
    members: Mapping[str, TeacherSource] = {}
    """Sources that it is made of, each of which has a run of its own (`placed`)."""

    def placed(self, members: Path, max_length: int, *, made: bool) -> None:  # noqa: B027 - optional
        """Told the folder of the members' runs once they have tokenizers, how many tokens of a text are read,
        and whether their models are made.
        """

    @property
    def made_of(self) -> Sequence[object]:
        """Other sources whose code it runs."""
        return ()

    @abstractmethod
    def tokenizer(self, corpus: Iterable[str]) -> PreTrainedTokenizerBase:
        """The fast tokenizer that the teacher brings, or one trained on `corpus` (an iterable of texts, read
        once).
        """

    @abstractmethod
    def teacher(self, folder: Path, labels: Labels) -> Teacher:
        """The fixed teacher; `folder` is what the teacher stage saved (weights of a trainable teacher)."""

    def trained(self, labels: Labels) -> bool:
        """Whether it answers the task as it comes, without training in this run."""
        return True

    def prospect(
        self, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int, folder: Path
    ) -> Teacher:
        """The teacher as far as it is there before this run trains anything: sizes count, answers do not
        where it is not `trained`.
        """
        return self.teacher(folder, labels)

    @property
    def origins(self) -> Sequence[Path]:
        """Folders of models that it starts from, whose licences travel with what is made."""
        return ()

    def fingerprint(self) -> str:
        """Identifies what the teacher reads beside its settings (the bytes of a folder); a change reruns its
        stages.
        """
        return ""

    def findings(self, labels: Labels) -> Sequence[Finding]:
        """What `plan` should say of it beside its sizes."""
        return ()


class TrainableTeacherSource(TeacherSource):
    """A source whose model this repo trains: pretrained where `pretrain` is set, fine-tuned where `finetune`
    is.

    The pipeline asks in this order: `tokenizer`; `pretraining` (trained, then saved by `save_pretrained` to a
    folder); `classifier` (trained, then saved by `Student.save`); `load` and `teacher` from that folder ever
    after.
    """

    pretrain: PretrainSettings | None
    finetune: FinetuneSettings | None

    def training(self, labels: Labels) -> FinetuneSettings | None:
        """How the model is trained on the task; None where it answers it already: it is not to be fine-tuned,
        or it was pretrained on masked tokens and those are the task.
        """
        return None if labels.kind == "mlm" and self.pretrain is not None else self.finetune

    def pretraining(self, tokenizer: PreTrainedTokenizerBase) -> tuple[nn.Module, Objective]:
        """A fresh pretraining model and its objective; only called where `pretrain` is set."""
        raise NotImplementedError(f"{type(self).__name__} cannot be pretrained")

    def masked_model(self, pretrained: Path) -> Path | None:
        """Where a masked language model lies in what the pretrain stage writes to `pretrained`; None: nowhere
        in it."""
        return pretrained if self.pretrain is not None else None

    @abstractmethod
    def classifier(
        self, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int, pretrained: Path | None
    ) -> Student:
        """The model that answers the task: body from `pretrained` (a folder written by the pretrain stage),
        from the source's own weights, or fresh. It is a Student while it is fine-tuned."""

    @abstractmethod
    def load(self, folder: Path) -> Student:
        """The classifier that `Student.save` wrote to `folder`."""

    def trained(self, labels: Labels) -> bool:
        return self.pretrain is None and self.training(labels) is None

    def prospect(
        self, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int, folder: Path
    ) -> Teacher:
        return FixedTeacher(self.classifier(tokenizer, labels, max_length, None))

    def teacher(self, folder: Path, labels: Labels) -> Teacher:
        return FixedTeacher(self.load(folder))


class LearningTeacherSource(TrainableTeacherSource):
    """A source whose teacher comes into being while the student learns. There is no teacher stage: what is
    left at the end is saved with the student (`LEFT`).
    """

    in_turn: bool = False
    """Whether peers are trained one after the other on each batch."""
    keep: str = STUDENT
    """What the run ends with: its own student, or the `best` of all; with `all`, the others are exported too.
    """

    kinds = EVERY_KIND

    def __init__(self) -> None:
        self.pretrain = self.finetune = None
        self._sources: dict[str, StudentSource] = {}

    def joined(self, student: StudentSource) -> StudentSource:
        """Told the source of the run's student; the source that loads what the run ends with."""
        self._sources = {STUDENT: student, **self.peers}
        return AnyOf(self._sources)

    @abstractmethod
    def beside(
        self, student: Student, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int
    ) -> Teacher:
        """The teacher of a student that is there; of peers, the first."""

    def trained(self, labels: Labels) -> bool:
        return False

    def prospect(
        self, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int, folder: Path
    ) -> Teacher:
        return Nothing(labels, max_length, len(tokenizer))

    def classifier(
        self, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int, pretrained: Path | None
    ) -> Student:
        raise NotImplementedError(f"{type(self).__name__} has no model before the student")

    def load(self, folder: Path) -> Student:
        return AnyOf(self._sources).load(folder)


class Nothing(Teacher):
    """Stands where a teacher will be: it has no sizes and says nothing."""

    def __init__(self, labels: Labels, max_length: int, entries: int) -> None:
        answers = labels.num_labels or entries
        self._spec = Spec(0, 0, 0, 0, vocab_size=0, num_labels=answers, max_length=max_length)

    @property
    def access(self) -> Access:
        return Access.LABELS

    @property
    def spec(self) -> Spec:
        return self._spec

    def outputs(self, batch: Batch, *, want: Want, swap: Swap | None = None) -> Outputs:
        raise ModelError("there is no teacher yet", where="teacher")


@dataclass(frozen=True)
class Material:
    """What a student's first weights may be made from: the trained teacher, its tokenizer and the training
    rows. `device` is where the teacher computes.
    """

    teacher: Teacher
    tokenizer: PreTrainedTokenizerBase
    rows: Encoded
    device: torch.device


class StudentSource(ABC):
    """What `student: {use: name}` names: settings in `__init__`, an untrained Student of the right sizes on
    request, and its first weights once there is a trained teacher.
    """

    kinds: tuple[TaskKind, ...] = ("classification", "regression")
    """Task kinds that its students can answer."""

    @abstractmethod
    def build(
        self, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int, teacher: Teacher
    ) -> Student:
        """A new student with fresh weights. The teacher may be untrained: only its sizes count here. Raises
        ConfigError where settings and teacher do not fit.
        """

    def start(self, student: Student, material: Material) -> None:  # noqa: B027 - an optional step
        """Change the fresh weights of what `build` made into those that the settings ask for; called once,
        before training. A student that starts fresh needs nothing here.
        """

    @abstractmethod
    def load(self, folder: Path) -> Student:
        """The student that `Student.save` wrote to `folder`."""

    @property
    def origins(self) -> Sequence[Path]:
        """As of a `TeacherSource`."""
        return ()

    def fingerprint(self) -> str:
        """Identifies what the student starts from beside its settings (the bytes of a folder); a change
        trains it again.
        """
        return ""

    def findings(
        self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, ...]]
    ) -> Sequence[Finding]:
        """What `plan` should say of it beside its sizes; `tokenizer` is the run's, `texts` are some of the
        task's.
        """
        return ()


class AnyOf(StudentSource):
    """The student of whichever source made it, as its folder says."""

    def __init__(self, sources: Mapping[str, StudentSource]) -> None:
        self.sources = dict(sources)
        kinds = [set(source.kinds) for source in self.sources.values()]
        self.kinds = tuple(kind for kind in self.sources[STUDENT].kinds if all(kind in one for one in kinds))

    def build(
        self, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int, teacher: Teacher
    ) -> Student:
        return self.sources[STUDENT].build(tokenizer, labels, max_length, teacher)

    def start(self, student: Student, material: Material) -> None:
        self.sources[STUDENT].start(student, material)

    def load(self, folder: Path) -> Student:
        return self.sources[json.loads((folder / WHO).read_text())["name"]].load(folder)

    @property
    def origins(self) -> Sequence[Path]:
        return [path for source in self.sources.values() for path in source.origins]

    def fingerprint(self) -> str:
        return self.sources[STUDENT].fingerprint()

    def findings(
        self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, ...]]
    ) -> Sequence[Finding]:
        return self.sources[STUDENT].findings(tokenizer, texts)
