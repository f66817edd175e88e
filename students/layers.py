"""What students that are no transformers have in common: a table, blocks that take and return `[B, L, D]`, a
pooling over real tokens, a head.

A block is a module of (states_BLD, mask_BL); it may compute anything at padding, but real tokens must not see
it. Folders hold config.json and model.safetensors.
"""

from __future__ import annotations

import copy
import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from distillkit.encoder import Encoder, stored_weights
from distillkit.errors import ConfigError, ModelError
from distillkit.model import Material, Student, StudentSource, Teacher
from distillkit.settings import Labels
from distillkit.students.vocabulary import (
    Renumbered,
    check_size,
    choose,
    count,
    open_saved,
    renumbered,
    shared,
)
from distillkit.types import Access, Batch, Outputs, Spec, Swap, Want

SPREAD = 0.15
"""Standard deviation of a fresh table, that of Kim's (2014, section 3) uniform draw from [-0.25, 0.25]."""


@dataclass(frozen=True)
class Sizes:
    """All that a student is built from. rows: of the table; embedding: its width; inner: of a hidden layer of
    the head, 0 for a linear head; kernels: widths of filters, where there are any.
    """

    rows: int
    embedding: int
    width: int
    layers: int
    num_labels: int
    max_length: int
    dropout: float
    inner: int = 0
    kernels: tuple[int, ...] = ()

    @property
    def spec(self) -> Spec:
        """No heads and no feed-forward part."""
        return Spec(
            num_layers=self.layers,
            hidden_dim=self.width,
            num_heads=0,
            ffn_dim=0,
            vocab_size=self.rows,
            num_labels=self.num_labels,
            max_length=self.max_length,
        )


Filled = TypeVar("Filled", bound=nn.Module)
Pool = Callable[[Tensor, Tensor], Tensor]


class Layered(Student):
    """table -> blocks -> pool over real tokens -> head; a token task's head reads each scored token instead.

    `hidden[0]` is the table's output, widened to D by a linear map where the table is narrower (as in ALBERT,
    Lan et al. 2020, section 3.1).
    """

    def __init__(self, sizes: Sizes, blocks: Sequence[nn.Module], pool: Pool) -> None:
        super().__init__()
        self.sizes, self.spec, self.pool = sizes, sizes.spec, pool
        self.table = nn.Embedding(sizes.rows, sizes.embedding)
        nn.init.normal_(self.table.weight, std=SPREAD)
        same = sizes.embedding == sizes.width
        self.widen = nn.Identity() if same else nn.Linear(sizes.embedding, sizes.width)
        self.blocks = nn.ModuleList(blocks)
        self.dropout = nn.Dropout(sizes.dropout)
        self.head = _head(sizes)

    def outputs(self, batch: Batch, *, want: Want, swap: Swap | None = None) -> Outputs:
        _check(want, swap or {}, self.spec.num_layers)
        states = [self.embedded(batch.inputs["input_ids"])]
        for index, block in enumerate(self.blocks):
            state = block(states[-1], batch.mask)
            states.append(swap[index](state) if swap and index in swap else state)
        answers = self._answers(states[-1], batch)
        shown = {Access.ALL_STATES: states, Access.FINAL_STATES: states[-1:]}
        hidden = shown.get(min(want.access, Access.ALL_STATES), [])
        return Outputs(logits=self.head(self.dropout(answers)).float(), hidden=tuple(hidden))

    def _answers(self, states_BLD: Tensor, batch: Batch) -> Tensor:
        """`[N, D]`: what the head reads, a row for each answer."""
        return self.pool(states_BLD, batch.mask) if batch.scored is None else states_BLD[batch.scored]

    def embedded(self, ids_BL: Tensor) -> Tensor:
        states: Tensor = self.dropout(self.widen(self.table(ids_BL)))
        return states

    def exportable(self) -> nn.Module:
        return ExportableLayered(copy.deepcopy(self).eval())

    def save(self, folder: Path, labels: Labels) -> None:
        write_folder(folder, self, {"sizes": asdict(self.sizes), "kind": labels.kind, "labels": labels.names})


class ExportableLayered(nn.Module):
    """Takes `input_ids` and `attention_mask` `[B, L]` by keyword, returns logits `[B, V]`."""

    def __init__(self, model: Layered) -> None:
        super().__init__()
        self.model, self.input_names = model, ("input_ids", "attention_mask")

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask_BL = attention_mask.bool()
        states_BLD = self.model.embedded(input_ids)
        for block in self.model.blocks:
            states_BLD = block(states_BLD, mask_BL)
        logits: Tensor = self.model.head(self.model.pool(states_BLD, mask_BL))
        return logits


class LayeredSource(StudentSource):
    """Base of the sources of such students: a subclass sets these fields in its `__init__`, and makes the
    blocks.
    """

    layers: int
    width: int
    embedding: int
    vocabulary: int | None
    dropout: float
    initialise: Literal["teacher"] | None
    kernels: tuple[int, ...] = ()

    @abstractmethod
    def model(self, sizes: Sizes) -> Layered:
        """A fresh student of these sizes."""

    def build(
        self, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int, teacher: Teacher
    ) -> Student:
        if self.initialise:
            check_table(teacher, self.embedding)
        sizes = Sizes(
            rows=check_size(tokenizer, self.vocabulary),
            embedding=self.embedding,
            width=self.width,
            layers=self.layers,
            num_labels=labels.num_labels,
            max_length=max(max_length, teacher.spec.max_length),
            dropout=self.dropout,
            kernels=self.kernels,
        )
        return renumbered(self.model(sizes), tokenizer, self.vocabulary)

    def start(self, student: Student, material: Material) -> None:
        start_table(student, material, from_teacher=self.initialise is not None)

    def load(self, folder: Path) -> Student:
        return open_saved(folder, lambda folder: load_layered(folder, self.model))


def max_pool(states_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """`[B, D]`: the largest value of each dimension over real tokens."""
    return states_BLD.masked_fill(~mask_BL[..., None], torch.finfo(states_BLD.dtype).min).amax(1)


def mean_pool(states_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """`[B, D]`: the mean over real tokens."""
    kept_BL1 = mask_BL[..., None].to(states_BLD.dtype)
    return (states_BLD * kept_BL1).sum(1) / kept_BL1.sum(1)


def load_layered(folder: Path, make: Callable[[Sizes], Layered]) -> Layered:
    """The student that `save` wrote. Raises ModelError (4) where a file is damaged or does not fit,
    DivergedError (6) where a weight is not finite.
    """
    return filled(make(_read_sizes(folder / "config.json")), folder)


def write_folder(folder: Path, model: nn.Module, config: Mapping[str, Any]) -> None:
    """config.json and model.safetensors."""
    (folder / "config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1), "utf-8")
    weights = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})


def filled(model: Filled, folder: Path) -> Filled:
    """The model with the weights that `write_folder` wrote. Raises ModelError (4) where a file is damaged or
    does not fit, DivergedError (6) where a weight is not finite.
    """
    wanted = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    stored = stored_weights(folder)
    wrong = sorted(name for name in {*wanted, *stored} if wanted.get(name) != stored.get(name))
    if wrong:
        raise ModelError(
            f"{len(wrong)} weights missing, unexpected or of another shape ({', '.join(wrong[:10])})",
            where=str(folder),
            hint="it was cut, or its config.json is another student's",
        )
    model.load_state_dict(load_file(str(folder / "model.safetensors")), strict=True)
    return model


def teacher_encoder(teacher: Teacher, where: str) -> Encoder:
    """The teacher's model. Raises ConfigError where it has no weights to start from."""
    if isinstance(teacher.body, Encoder):
        return teacher.body
    raise ConfigError(
        "this teacher has no weights to start from",
        where=where,
        hint="only Hugging Face encoders and teachers trained here have them",
    )


def check_table(teacher: Teacher, embedding: int) -> None:
    """Raises ConfigError where a table of this width cannot start from the teacher's."""
    table = teacher_encoder(teacher, "student.initialise").model.get_input_embeddings()
    if embedding > table.embedding_dim:
        raise ConfigError(
            f"the teacher's table is {table.embedding_dim} wide, the student's {embedding}",
            where="student.embedding",
            hint=f"at most {table.embedding_dim} with `initialise`",
        )


def start_table(student: Student, material: Material, *, from_teacher: bool) -> None:
    """Choose the pieces that have a row of their own, and where asked start the table from the teacher's: its
    leading principal components, rescaled to the spread of a fresh table.
    """
    rows = choose(student, material.tokenizer, material.rows)
    if not from_teacher:
        return
    model = student.inner if isinstance(student, Renumbered) else student
    assert isinstance(model, Layered)
    teacher = teacher_encoder(material.teacher, "student.initialise").model
    weight = teacher.get_input_embeddings().weight.detach().cpu()[: len(rows)]
    counts = count(material.rows, len(rows))
    with torch.no_grad():
        table = components(shared(weight, rows, counts), model.sizes.embedding)
        model.table.weight.copy_(table * (SPREAD / table.std()))


def components(vectors_ND: Tensor, width: int) -> Tensor:
    """`[N, width]`: the vectors' leading principal components (centred), in least squares the best they can
    be in so few dimensions (Eckart and Young 1936)."""
    centred = (vectors_ND - vectors_ND.mean(0)).double()
    _, directions = torch.linalg.eigh(centred.T @ centred)
    made: Tensor = (centred @ directions.flip(1)[:, :width]).to(vectors_ND.dtype)
    return made


def _head(sizes: Sizes) -> nn.Module:
    if not sizes.inner:
        return nn.Linear(sizes.width, sizes.num_labels)
    return nn.Sequential(
        nn.Linear(sizes.width, sizes.inner), nn.ReLU(), nn.Linear(sizes.inner, sizes.num_labels)
    )


def _check(want: Want, swap: Mapping[int, Any], num_layers: int) -> None:
    if want.attention:
        raise ConfigError(
            "this student has no attention", where="student", hint="compare hidden states instead"
        )
    missing = [index for index in swap if not 0 <= index < num_layers]
    if missing:
        raise ConfigError(
            f"block {missing[0]} does not exist: this student has {num_layers}",
            where="student",
            hint="a student without blocks takes no interventions",
        )


def _read_sizes(path: Path) -> Sizes:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))["sizes"]
        values["kernels"] = tuple(values["kernels"])
        sizes = Sizes(**values)
        whole = [getattr(sizes, field.name) for field in fields(sizes) if field.type == "int"]
        if not all(type(value) is int and value >= 0 for value in (*whole, *sizes.kernels)):
            raise TypeError("a size is no whole number")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"not the config of a student: {error}", where=str(path)) from None
    return sizes
