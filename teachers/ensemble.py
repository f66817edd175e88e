"""Several teachers as one: each answers, and what they answer is averaged.

A member may be of any family and read any tokenizer. One with the run's own tokenizer reads the batch's ids;
another reads the batch's texts by its own. Members that are trained are runs of their own, in `members/` of
the run's folder.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from distillkit.data.batching import reread
from distillkit.data.tasks import Rows
from distillkit.data.tokenizers import load_tokenizer, tokenizer_digest
from distillkit.errors import ConfigError, DivergedError, MissingError, ModelError
from distillkit.files import read_manifest
from distillkit.model import Student, Teacher, TeacherSource
from distillkit.settings import EVERY_KIND, Labels, Name, Positive, Teachers
from distillkit.types import IGNORED, Access, Batch, Finding, Outputs, Spec, Swap, Want, restricted


class Ensemble(TeacherSource):
    """Several teachers, whose answers are averaged; or one for each of several tasks.

    Settings:
        members: Teachers by name, each with the settings of its kind; they may differ in everything.
        combine: mean; confidence, where a member counts the less in an example the more its answer misses
            the gold label (MT-BERT), and all count alike where there is no label; or task, where each member
            has the name of one of several tasks, is trained on that alone and answers its rows (BAM).
        average: What is averaged, probabilities or logits (a mean of logits is a geometric mean).
        weights: Factor of each member in the average; 1 where none is given.
        tokenizer: Member whose tokenizer the student reads with; default the first that reads tokens.
    """

    def __init__(
        self,
        *,
        members: Teachers,
        combine: Literal["mean", "confidence", "task"] = "mean",
        average: Literal["probabilities", "logits"] = "probabilities",
        weights: dict[Name, Positive] | None = None,
        tokenizer: Name | None = None,
    ) -> None:
        self.combine, self.average = combine, average
        self.members: dict[str, TeacherSource] = dict(members)  # type: ignore[arg-type]  # made by the catalog
        self.weights = {name: (weights or {}).get(name, 1.0) for name in self.members}
        reading = [name for name, source in self.members.items() if source.reads_tokens]
        self.reads_as = tokenizer or next(iter(reading or self.members))
        for field, names in (("weights", weights or {}), ("tokenizer", [self.reads_as])):
            for name in names:
                if name not in self.members:
                    raise ConfigError(
                        f"no member is called {name!r}",
                        where=f"teacher.{field}",
                        hint=f"members are {', '.join(self.members)}",
                    )
        if combine == "task" and (weights or average == "logits"):
            field = "weights" if weights else "average"
            raise ConfigError(
                f"{field} and combine: task contradict each other: a row is answered by one member",
                where=f"teacher.{field}",
                hint="leave it out",
            )
        alone = len(self.members) == 1 and combine != "task"
        self.access = min(one.access for one in self.members.values()) if alone else Access.SCORES
        self.access = min(self.access, Access.SCORES)
        kinds = [set(one.kinds) for one in self.members.values()]
        self.kinds = tuple(kind for kind in EVERY_KIND if all(kind in one for one in kinds))
        found = {one.rows_only for one in self.members.values()}
        self.rows_only = "id" if "id" in found else "text" if "text" in found else ""
        self._root: Path | None = None
        self._max_length, self._made = 0, False

    def placed(self, members: Path, max_length: int, *, made: bool) -> None:
        self._root, self._max_length, self._made = members, max_length, made

    @property
    def made_of(self) -> Sequence[object]:
        return [part for source in self.members.values() for part in (source, *source.made_of)]

    @property
    def origins(self) -> Sequence[Path]:
        return [] if self._root is None else [self._root / name / "teacher" for name in self.members]

    def fingerprint(self) -> str:
        """What the members read; once they are placed, also what their own runs depend on."""
        return " ".join(
            f"{name} {source.fingerprint()} {self._made_for(name)}" for name, source in self.members.items()
        )

    def _made_for(self, member: str) -> str:
        if self._root is None or not self._made:
            return ""
        return str(read_manifest(self._root / member / "teacher").get("config"))

    def tokenizer(self, corpus: Iterable[str]) -> PreTrainedTokenizerBase:
        if self._root is None:
            return self.members[self.reads_as].tokenizer(corpus)
        return load_tokenizer(self._root / self.reads_as / "tokenizer")

    def trained(self, labels: Labels) -> bool:
        return all(source.trained(self._labels_of(name, labels)) for name, source in self.members.items())

    def _labels_of(self, member: str, labels: Labels) -> Labels:
        """What a member answers with. Raises ConfigError where members and tasks are not the same."""
        if self.combine != "task":
            return labels
        if set(labels.tasks) != set(self.members):
            tasks = ", ".join(labels.tasks) or "a single one"
            raise ConfigError(
                f"members are {', '.join(self.members)}, tasks are {tasks}",
                where="teacher.members",
                hint="combine: task takes a member for each of several tasks, by the task's name",
            )
        return labels.of(member)

    def prospect(
        self, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int, folder: Path
    ) -> Teacher:
        if self._made:
            return self._assembled(tokenizer, labels, max_length)
        made = {}
        for name, source in self.members.items():
            own = self._own_tokenizer(name, labels) if source.reads_tokens else None
            part = source.prospect(own or tokenizer, self._labels_of(name, labels), max_length, folder)
            made[name] = part if own is None else _bridged(name, part, own, tokenizer, labels, max_length)
        return EnsembleTeacher(made, self, labels)

    def teacher(self, folder: Path, labels: Labels) -> Teacher:
        assert self._root is not None, "the members' runs come first"
        return self._assembled(load_tokenizer(self._root.parent / "tokenizer"), labels, self._max_length)

    def findings(self, labels: Labels) -> Sequence[Finding]:
        found = [Finding("fact", "teacher", f"the student reads with the tokenizer of {self.reads_as!r}")]
        for name, source in self.members.items():
            place = f"teacher.members.{name}"
            found += [replace(one, place=place) for one in source.findings(self._labels_of(name, labels))]
            found.append(Finding("fact", place, self._bridge(name, labels)))
        return found

    def _bridge(self, member: str, labels: Labels) -> str:
        """How a member reads what the student reads, in words."""
        if not self.members[member].reads_tokens:
            return "it reads the texts themselves"
        mine, students = (self._tokens(name, labels) for name in (member, self.reads_as))
        if member == self.reads_as or mine == students != "":
            return "it reads the student's token ids"
        through_text = "each text is read anew by its own tokenizer, and only answers meet"
        if "" in (mine, students):
            return f"where its tokenizer comes out another than the student's, {through_text}"
        return f"it has another tokenizer than the student: {through_text}"

    def _tokens(self, member: str, labels: Labels) -> str:
        """Digest of a member's tokenizer; '' before that is there."""
        own = self._own_tokenizer(member, labels) if self.members[member].reads_tokens else None
        return "" if own is None else tokenizer_digest(own)

    def _own_tokenizer(self, member: str, labels: Labels) -> PreTrainedTokenizerBase | None:
        """A member's tokenizer, as its run made it or as it comes; None before that is there."""
        if self._root is not None:
            return load_tokenizer(self._root / member / "tokenizer")
        source = self.members[member]
        return source.tokenizer([]) if source.trained(self._labels_of(member, labels)) else None

    def _assembled(self, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int) -> Teacher:
        """The members as their runs made them."""
        assert self._root is not None
        made = {}
        for name, source in self.members.items():
            run = self._root / name
            if not read_manifest(run / "teacher"):
                raise MissingError(
                    f"member {name!r} is not there", where=str(run), hint="run the whole config again"
                )
            part = source.teacher(run / "teacher", self._labels_of(name, labels))
            if source.reads_tokens:
                own = load_tokenizer(run / "tokenizer")
                part = _bridged(name, part, own, tokenizer, labels, max_length)
            made[name] = part
        return EnsembleTeacher(made, self, labels)


class EnsembleTeacher(Teacher):
    """Gives the average of its members' answers, or to the rows of each task its own member's, without
    gradient; an ensemble of one is that teacher.

    Raises DivergedError that names a member whose answer is not finite.
    """

    def __init__(self, members: Mapping[str, Teacher], source: Ensemble, labels: Labels) -> None:
        self._members, self._source, self._labels = dict(members), source, labels
        answers = {name: member.spec.num_labels for name, member in self._members.items()}
        self._by_task = source.combine == "task"
        if not self._by_task and len(set(answers.values())) > 1:
            raise ModelError(
                f"the members give different numbers of scores: {answers}",
                where="teacher.members",
                hint="all answer with one score for each label (or entry of one vocabulary)",
            )
        self._seconds = dict.fromkeys(self._members, 0.0)

    @property
    def access(self) -> Access:
        return self._source.access

    @property
    def spec(self) -> Spec:
        """No states: those of members have nothing in common."""
        told = [member.spec for member in self._members.values()]
        shortest = min(spec.max_length for spec in told)
        answers = self._labels.num_labels if self._by_task else told[0].num_labels
        return Spec(0, 0, 0, 0, vocab_size=0, num_labels=answers, max_length=shortest)

    @property
    def body(self) -> Student | None:
        return self._members[self._source.reads_as].body

    @property
    def parts(self) -> Mapping[str, Teacher]:
        return self._members

    @property
    def live(self) -> bool:  # type: ignore[override]
        return all(member.live for member in self._members.values())

    @property
    def num_parameters(self) -> int | None:
        counts = [member.num_parameters for member in self._members.values()]
        return None if None in counts else sum(count for count in counts if count is not None)

    def check_rows(self, rows: Rows, name: str) -> None:
        for called, member in self._members.items():
            member.check_rows(self._own_rows(called, rows), name)

    def _own_rows(self, member: str, rows: Rows) -> Rows:
        """Those of the rows that a member answers."""
        if not self._by_task or rows.tasks is None:
            return rows
        task = list(self._labels.tasks).index(member)
        return rows.take(np.flatnonzero(rows.tasks.task == task), member)

    def outputs(self, batch: Batch, *, want: Want, swap: Swap | None = None) -> Outputs:
        if swap or want.access > Access.SCORES:
            raise ModelError(f"an ensemble gives {self.access.name} and nothing deeper", where="teacher")
        if self._by_task:
            return Outputs(self._own_answers(batch))
        said = {name: self._said(name, batch) for name in self._members}
        if len(said) == 1:
            return Outputs(next(iter(said.values())))
        logits_MNV = torch.stack(list(said.values()))
        fixed_M = torch.tensor([self._source.weights[name] for name in said], device=logits_MNV.device)
        weights_MN = fixed_M[:, None].expand(logits_MNV.shape[:2])
        if self._source.combine == "confidence":
            weights_MN = weights_MN * confidence(logits_MNV, batch.targets)
        numbers = self._labels.kind == "regression" or self._source.average == "logits"
        return Outputs((mean_logits if numbers else mean_probabilities)(logits_MNV, weights_MN))

    def _said(self, name: str, batch: Batch) -> Tensor:
        """`[N, V]` the logits of one member."""
        start = time.perf_counter()
        said = self._members[name].outputs(batch, want=Want())
        logits_NV = restricted(replace(said, logits=said.logits.float()), batch).logits
        finite = bool(torch.isfinite(logits_NV).all())  # waits for a GPU
        self._seconds[name] += time.perf_counter() - start
        if not finite:
            raise DivergedError(
                f"member {name!r} of the teacher gives NaN or infinity (example ids "
                f"{batch.ids.tolist()[:8]})",
                where=f"teacher.members.{name}",
                hint="look at its weights, or leave it out",
            )
        return logits_NV

    def _own_answers(self, batch: Batch) -> Tensor:
        """`[B, V]` of each row what its own task's member says, in the columns of that task; 0 in the others,
        which nobody reads.
        """
        if batch.allowed is None:
            raise ModelError(
                "it answers rows of one of several tasks, and these are of none", where="teacher"
            )
        shape = (batch.num_examples, self._labels.num_labels)
        logits_BV = torch.zeros(shape, device=batch.mask.device)
        for name, columns in self._labels.columns.items():
            (rows,) = batch.allowed[:, columns.start].nonzero(as_tuple=True)
            if len(rows):
                own = replace(batch.take(rows), labels=None, allowed=None)
                logits_BV[rows, columns] = self._said(name, own)
        return logits_BV

    def remarks(self) -> Sequence[str]:
        total = sum(self._seconds.values())
        if not total or len(self._seconds) == 1:
            return ()
        shares = sorted(self._seconds.items(), key=lambda pair: -pair[1])
        told = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in shares)
        return [f"teacher: of the {total:.0f} s in which the members answered: {told}"]

    def to(self, device: torch.device) -> Teacher:
        self._members = {name: member.to(device) for name, member in self._members.items()}
        return self


def mean_probabilities(logits_MNV: Tensor, weights_MN: Tensor) -> Tensor:
    """`[N, V]` log of the weighted mean of the members' probabilities at temperature 1; weights are
    normalised over members.
    """
    shares_MN1 = (weights_MN / weights_MN.sum(0)).log()[..., None]
    return torch.logsumexp(functional.log_softmax(logits_MNV, dim=-1) + shares_MN1, dim=0)


def mean_logits(logits_MNV: Tensor, weights_MN: Tensor) -> Tensor:
    """`[N, V]` weighted mean of the members' logits, or of their numbers."""
    shares_MN1 = (weights_MN / weights_MN.sum(0))[..., None]
    return (logits_MNV * shares_MN1).sum(0)


def confidence(logits_MNV: Tensor, targets_N: Tensor | None) -> Tensor:
    """`[M, N]` 1 / (1 + a member's loss on the gold label), 1 where there is none (MT-BERT, Wu et
    al. 2021, their multi-teacher distillation loss, of cross-entropies; the squared error of a regression is
    ours).

    A departure: MT-BERT weighs each teacher's loss and lets the sum grow where all are sure; here the weights
    of an example are normalised, so that the term keeps its size.
    """
    members, answers, classes = logits_MNV.shape
    if targets_N is None:
        return torch.ones(members, answers, device=logits_MNV.device)
    if targets_N.is_floating_point():
        return 1 / (1 + (logits_MNV[..., 0] - targets_N).square())
    repeated = targets_N.repeat(members)
    missed = functional.cross_entropy(
        logits_MNV.reshape(-1, classes), repeated, ignore_index=IGNORED, reduction="none"
    )
    return 1 / (1 + missed.reshape(members, answers))


class _Bridged(Teacher):
    """A teacher that reads a batch's texts by its own tokenizer."""

    def __init__(self, inner: Teacher, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self._inner, self._tokenizer, self._max_length = inner, tokenizer, max_length

    @property
    def access(self) -> Access:
        return min(self._inner.access, Access.SCORES)

    @property
    def spec(self) -> Spec:
        return self._inner.spec

    @property
    def num_parameters(self) -> int | None:
        return self._inner.num_parameters

    def outputs(self, batch: Batch, *, want: Want, swap: Swap | None = None) -> Outputs:
        again = reread(batch, self._tokenizer, max_length=self._max_length)
        return self._inner.outputs(again, want=want, swap=swap)

    def to(self, device: torch.device) -> Teacher:
        self._inner = self._inner.to(device)
        return self


def _bridged(
    name: str,
    member: Teacher,
    own: PreTrainedTokenizerBase,
    run: PreTrainedTokenizerBase,
    labels: Labels,
    max_length: int,
) -> Teacher:
    """The member as it reads the run's batches. Raises ConfigError where it cannot."""
    if tokenizer_digest(own) == tokenizer_digest(run):
        return member
    if labels.kind not in ("classification", "regression"):
        raise ConfigError(
            f"it has another tokenizer than the student, and {labels.kind} is answered token by token",
            where=f"teacher.members.{name}",
            hint="take members of one tokenizer, or a task on whole texts",
        )
    return _Bridged(member, own, max_length)
