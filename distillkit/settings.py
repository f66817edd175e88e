"""The sections of a recipe that more than one module reads, and the value types settings are written
in.

No torch here: `distillkit validate` imports this module and must stay fast. Every model is frozen,
strict and refuses unknown keys; every field has a sentence.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Momentum = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Folder = Annotated[str, Field(min_length=1, json_schema_extra={"format": "path"})]
"""A folder, relative to the config; it reaches the component as an absolute path."""
File = Annotated[str, Field(min_length=1, json_schema_extra={"format": "path"})]
"""A file, likewise."""
Columns = str | Annotated[tuple[str, str], Field(strict=False)]
"""A column of a file, or two."""
Kernels = Annotated[tuple[Count, ...], Field(strict=False, min_length=1)]
"""Widths of convolution windows, in tokens."""
LayerPair = Annotated[tuple[Index, Index], Field(strict=False)]
LayerPairs = Annotated[list[LayerPair], Field(min_length=1)]
"""Explicit [student, teacher] pairs of states or blocks."""
LayerMap = Literal["last", "uniform", "skip", "embeddings", "tinybert"] | LayerPairs
"""How student states meet teacher states: a strategy, or explicit pairs (0 = embeddings)."""
Stack = Literal["encoder", "decoder"]
"""Which blocks of a model that writes text; any other model has an encoder only."""
Trust = Literal["always", "right", "confidence"]
"""How much an answer of the teacher counts: always 1; 1 where it is the gold label, else 0; its
probability."""
Projection = Literal["auto", "shared", "linear", "none"]
"""From the student's width to the teacher's: auto is linear where widths differ; shared is one map for all
pairs, always; linear is one map a pair, always."""


TaskKind = Literal["classification", "regression", "token_classification", "mlm", "text_to_text"]
"""What a task predicts: a class or a number of each text, a tag of each word, its masked tokens, or another
text.
"""
ENCODER_KINDS: tuple[TaskKind, ...] = ("classification", "regression", "token_classification", "mlm")
"""What an encoder answers."""
EVERY_KIND: tuple[TaskKind, ...] = (*ENCODER_KINDS, "text_to_text")


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,59}$")]
"""What a person calls a part of a recipe."""


class Section(BaseModel):
    """Base of every section: frozen, strict, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=False
    )
    mechanical: ClassVar[frozenset[str]] = frozenset()
    """Fields that do not say what is computed: how often it is saved, in how many parts, where it is read
    from. No digest covers them, so that they may change while a run is stopped.
    """

    def identity(self) -> dict[str, Any]:
        """Every field that says what is computed, sections in it likewise."""
        return {
            name: _identity(getattr(self, name))
            for name in type(self).model_fields
            if name not in self.mechanical
        }


def _identity(value: Any) -> Any:
    if isinstance(value, Section):
        return value.identity()
    if isinstance(value, list | tuple):
        return [_identity(part) for part in value]
    if isinstance(value, dict):
        return {name: _identity(part) for name, part in value.items()}
    return value


class Component(Section):
    """`use:` names a registered class; the other keys are that class's settings."""

    use: str = Field(description="registered name")


class OptimizerSettings(Section):
    """The optimizer and its schedule; no weight decay on norms and biases."""

    use: Literal["adamw", "adafactor", "scaled_adamw"] = Field(
        default="adamw",
        description="adafactor (T5) keeps row and column means of squared gradients only and has no use for "
        "betas and eps; it and scaled_adamw scale each parameter's step by its own size",
    )
    lr: Positive = Field(default=1e-4, description="peak learning rate")
    schedule: Literal["linear", "cosine", "inverse_sqrt", "constant"] = Field(
        default="linear",
        description="how the rate falls after the warm-up, to 0 or by one over the root of the step; with "
        "inverse_sqrt (T5) it is at its peak all through the warm-up",
    )
    warmup: Fraction = Field(default=0.06, description="share of the steps over which the rate rises from 0")
    weight_decay: NonNegative = Field(default=0.01, description="decoupled decay, not on norms and biases")
    betas: Annotated[tuple[Momentum, Momentum], Field(strict=False)] = Field(
        default=(0.9, 0.999), description="AdamW betas"
    )
    eps: Positive = Field(default=1e-6, description="AdamW epsilon")
    clip: Positive = Field(default=1.0, description="largest global gradient norm")


class BatchSettings(Section):
    """How examples become batches."""

    mechanical = frozenset({"micro"})
    tokens: Count = Field(
        default=1024, description="most tokens (padding included) of one batch, over all micro-batches"
    )
    examples: Count = Field(default=64, description="most examples of one batch")
    micro: Count = Field(
        default=1, description="parts a batch is computed in (gradient accumulation; a multiple of ranks)"
    )


class PretrainSettings(Section):
    """Pretraining of a teacher in this repo, on a corpus."""

    mechanical = frozenset({"corpus", "micro", "save_every"})  # the corpus counts by its content
    corpus: str = Field(description="file, folder or built-in name with documents of sentences")
    steps: Count = Field(default=5000, description="optimizer steps")
    max_length: Annotated[int, Field(ge=8)] = Field(
        default=128, description="tokens of one training sequence"
    )
    batch: Count = Field(default=32, description="sequences of one batch")
    micro: Count = Field(default=1, description="parts a batch is computed in")
    optimizer: OptimizerSettings = OptimizerSettings(warmup=0.1)
    save_every: Count = Field(default=500, description="steps between checkpoints")


class FinetuneSettings(Section):
    """Supervised training of a teacher on the task."""

    mechanical = frozenset({"save_every"})
    epochs: Count = Field(default=3, description="passes over the training rows")
    batch: BatchSettings = BatchSettings()
    optimizer: OptimizerSettings = OptimizerSettings(lr=5e-5)
    save_every: Count = Field(default=500, description="steps between checkpoints")
    keep: Literal["best", "last"] = Field(
        default="best", description="weights kept: best on validation, or the last"
    )
    layer_decay: Share = Field(
        default=1.0, description="factor of the learning rate from the head to the top block, and so on down"
    )
    seeds: Count = Field(
        default=1,
        description="fine-tunings with a seed each; that of median validation score is kept",
    )


class Labels(Section):
    """What a task's answers are: class names in id order, or a regression target.

    Labels are matched by name between data, teacher, student and artifact, never by position.
    """

    kind: TaskKind = Field(description="what the task predicts")
    names: tuple[str, ...] = Field(
        default=(), description="names of classes or tags in id order; empty for all other kinds"
    )
    tasks: dict[str, int] = Field(
        default={}, description="of several tasks: how many of the classes, in order, are each one's"
    )

    @property
    def num_labels(self) -> int:
        """Width of the output layer: classes or tags, 1 for regression, 0 where it is the vocabulary's."""
        return 1 if self.kind == "regression" else len(self.names)

    @property
    def columns(self) -> dict[str, slice]:
        """Which classes are those of each of several tasks."""
        ends = itertools.accumulate(self.tasks.values())
        return {name: slice(end - self.tasks[name], end) for name, end in zip(self.tasks, ends, strict=True)}

    def of(self, task: str) -> Labels:
        """The labels of one of several tasks, by their own names."""
        names = self.names[self.columns[task]]
        return Labels(kind=self.kind, names=tuple(name.removeprefix(f"{task}/") for name in names))


Blocks = Literal["uniform"] | Annotated[list[Count], Field(min_length=1)]
"""Blocks of a teacher, numbered from 1."""


class Initialise(Section):
    """Which weights a student starts from."""

    source: Literal["teacher"] = Field(alias="from", description="where the weights come from")
    layers: Blocks = Field(
        default="uniform", description="teacher blocks to copy, numbered from 1, strictly increasing"
    )


class InitialiseStacks(Section):
    """Which weights an encoder-decoder starts from."""

    source: Literal["teacher"] = Field(alias="from", description="where the weights come from")
    encoder: Blocks = Field(
        default="uniform", description="blocks of the teacher's encoder to copy, strictly increasing"
    )
    decoder: Blocks = Field(
        default="uniform", description="blocks of the teacher's decoder to copy, strictly increasing"
    )


class Schedule(Section):
    """A weight that changes in a straight line over its phase (BAM's teacher annealing: gold from 0 to 1,
    logits from 1 to 0).
    """

    start: NonNegative = Field(description="weight at the first step")
    end: NonNegative = Field(description="weight at the end")
    over: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="share of the phase after which the end is reached and kept"
    )

    def __str__(self) -> str:
        over = f" over {self.over:.0%} of the phase" if self.over < 1 else ""
        return f"({self.start:g} to {self.end:g}{over})"

    def at(self, progress: float) -> float:
        """The weight when `progress` (0 to 1) of the phase is done."""
        return self.start + (self.end - self.start) * min(1.0, progress / self.over)


class LossComponent(Component):
    """One term of the loss stack; the other keys are that loss's settings.

    needs_labels and kinds are the loss class's own, read without importing it.
    """

    needs_labels: ClassVar[bool] = False
    kinds: ClassVar[tuple[str, ...]] = (
        "classification",
        "regression",
        "token_classification",
        "mlm",
        "text_to_text",
    )
    weight: Positive | Schedule = Field(
        default=1.0,
        description="factor of this term in the total: a number, or {start, end, over}; a term that should "
        "not act is left out",
    )

    @property
    def shown_weight(self) -> str:
        return f"{self.weight:g}" if isinstance(self.weight, float) else str(self.weight)


class TeacherComponent(Component):
    """The teacher; the other keys are that source's settings."""

    allow_weak: bool = Field(
        default=False, description="go on with a teacher no better than the majority class"
    )


class StudentComponent(Component):
    """The student; the other keys are that source's settings."""


Teachers = dict[str, TeacherComponent]
"""Teachers by name, as a setting; in a recipe each has the settings of its own class."""
Students = dict[str, StudentComponent]
"""Students by name, likewise."""
OptionalStudent = StudentComponent | None
"""A student as a setting."""
InnerStudent = StudentComponent
"""A student that another is made of."""
Depths = Annotated[list[Count], Field(min_length=1)]
"""Blocks, numbered from 1."""


class GenerationSettings(Section):
    """How a text is written, token by token. What a model's own folder says of this is not used."""

    beams: Count = Field(default=1, description="texts that are pursued side by side; 1: greedy")
    length_penalty: Annotated[float, Field(allow_inf_nan=False)] = Field(
        default=1.0, description="power of the length by which the score of a beam is divided"
    )
    min_length: Index = Field(default=0, description="fewest tokens that are written")
    max_length: Count | None = Field(
        default=None, description="most tokens that are written; default: max_target"
    )


class TaskSettings(Section):
    """The data and what is predicted from it. Paths are relative to the config's folder."""

    kind: TaskKind = Field(description="what the task predicts")
    train: str = Field(
        description="file (csv, tsv, jsonl, parquet, each also .gz), folder, builtin:NAME or hf:NAME; for "
        "mlm a corpus (txt, jsonl, each also .gz, a folder of these, or builtin:NAME)"
    )
    validation: str | None = Field(
        default=None, description="the same kinds of source; without it, rows are held out of train"
    )
    test: str | None = Field(default=None, description="measured once at the end; without it, validation is")
    holdout: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.1, description="share of train (rows, documents) held out where validation is not given"
    )
    holdout_seed: Index | None = Field(
        default=None, description="chooses the rows that are held out; default: the run's seed"
    )
    text: Columns = Field(
        default="text",
        description="text column, or two columns for a pair; for token_classification the list of words, for "
        "text_to_text the source",
    )
    label: str = Field(
        default="label",
        description="label column; for token_classification the list of tags, for text_to_text the target",
    )
    id: str | None = Field(
        default=None,
        description="column that names each row, once over all files; a file of predictions finds rows by it",
    )
    labels: Annotated[tuple[str, ...], Field(strict=False)] | None = Field(
        default=None, description="class names in id order; default: sorted names found in train"
    )
    encoding: str = Field(default="utf-8", description="text encoding of the files")
    delimiter: str | None = Field(default=None, description="field separator; default: by the file's ending")
    on_bad_row: Literal["error", "skip"] = Field(
        default="error", description="a row that cannot be used: stop, or skip it and count"
    )
    max_chars: Count = Field(
        default=20_000, description="longer texts are cut before tokenising, and counted"
    )
    max_length: Annotated[int, Field(ge=4)] = Field(
        default=128, description="tokens of one example; longer ones are truncated and counted"
    )
    allow_single_class: bool = Field(
        default=False, description="accept training rows that all have one label"
    )
    mask_rate: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.15, description="share of the tokens of a text that are masked; mlm only"
    )
    scored: Literal["masked", "all"] = Field(
        default="masked",
        description="tokens that teacher and student answer in training: the masked ones, or every one "
        "(DistilBERT); mlm only",
    )
    prefix: str = Field(
        default="",
        description="put before each source, as in 'translate English to German: '; text_to_text only",
    )
    max_target: Annotated[int, Field(ge=2)] | None = Field(
        default=None,
        description="tokens of a target; longer ones are truncated and counted; default: max_length; "
        "text_to_text only",
    )
    generation: GenerationSettings | None = Field(
        default=None, description="how texts are written; default: greedily; text_to_text only"
    )
    edits: bool = Field(
        default=False,
        description="a target is a corrected source: measure edits too (precision, recall, F0.5); "
        "text_to_text only",
    )
    metric: (
        Literal["accuracy", "macro_f1", "mcc", "pearson", "spearman", "entity_f1", "cross_entropy"] | None
    ) = Field(
        default=None,
        description="chooses the best weights; default accuracy (of tokens where texts are written), pearson "
        "for regression, entity_f1 for tags that begin entities (B-)",
    )

    @property
    def single(self) -> dict[str, TaskSettings]:
        """This task, by where it stands in a recipe."""
        return {"task": self}

    @property
    def longest_target(self) -> int:
        """Tokens of a target, its end included."""
        return self.max_target or self.max_length

    @property
    def writing(self) -> GenerationSettings:
        """How texts are written, with its length."""
        told = self.generation or GenerationSettings()
        return told.model_copy(update={"max_length": told.max_length or self.longest_target})


class SeveralTasks(Section):
    """Several classifications that one student learns, with a part of its output layer for each. Its classes
    are called TASK/CLASS; an example is only ever asked for those of its own task. Figures are means over the
    tasks, and each task's own.
    """

    tasks: Annotated[dict[Name, TaskSettings], Field(min_length=2)] = Field(
        description="each as a single `task` is given; kind: classification"
    )
    exponent: Fraction = Field(
        default=0.75,
        description="how often tasks are trained on: in proportion to their rows to this power (1: every row "
        "alike, 0: every task alike); an epoch is as many rows as all have together",
    )
    metric: Literal["accuracy", "macro_f1", "mcc"] | None = Field(
        default=None, description="chooses the best weights, as a mean over the tasks; default accuracy"
    )
    holdout_seed: Index | None = Field(
        default=None, description="chooses rows that are held out where a task does not say; default: seed"
    )

    @property
    def kind(self) -> TaskKind:
        return "classification"

    @property
    def single(self) -> dict[str, TaskSettings]:
        """The tasks, by where each stands in a recipe."""
        return {f"task.tasks.{name}": task for name, task in self.tasks.items()}

    @property
    def max_length(self) -> int:
        """Tokens of one example: the most that any of the tasks asks for."""
        return max(task.max_length for task in self.tasks.values())


def _shape_of_task(value: Any) -> str:
    several = "tasks" in value if isinstance(value, dict) else isinstance(value, SeveralTasks)
    return "several" if several else "one"


AnyTask = Annotated[
    Annotated[TaskSettings, Tag("one")] | Annotated[SeveralTasks, Tag("several")],
    Discriminator(_shape_of_task),
]
"""One task, or several under `tasks`."""


class InterchangeSettings(Section):
    """Interchange interventions (DIITO, Wu et al. 2022): which states of an example are replaced by those of
    another one, in the teacher and in the student alike. Used where a loss asks for them.
    """

    sites: Literal["middle", "late", "multilayer"] | LayerPairs = Field(
        default="middle", description="blocks that meet: a strategy, or [student, teacher] blocks from 1"
    )
    rate: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.3, description="share of the tokens whose states are replaced"
    )
    positions: Literal["span", "random"] = Field(
        default="span", description="one run of neighbouring tokens, or tokens anywhere"
    )
    site_offset: Literal["same", "reference"] = Field(
        default="same",
        description="same: the output of a block is replaced by the output of that block; reference: by its "
        "input, as the published code does",
    )


class CacheSettings(Section):
    """The teacher's answers kept on disk: each row is answered once, before the first step, and read again in
    every epoch. Logits are kept in fp32.
    """

    dtype: Literal["fp16", "bf16", "fp32"] = Field(
        default="fp16", description="how hidden states and attention projections are kept"
    )
    logits: Literal["full"] | Count = Field(
        default="full",
        description="all logits, or the largest so many and the probability of all others together, at the "
        "temperature of the losses",
    )
    limit_gb: Positive = Field(default=20.0, description="largest size on disk, in 10^9 bytes")


class WrittenSettings(Section):
    """Texts that the teacher writes for a phase's sources, as targets (Kim and Rush 2016): written once
    before its training, by beam search, and kept on disk.
    """

    beams: Count = Field(default=5, description="texts that are pursued side by side; 1: greedy")
    length_penalty: Annotated[float, Field(allow_inf_nan=False)] = Field(
        default=1.0, description="power of the length by which the score of a beam is divided"
    )
    choose: Literal["best", "nearest"] = Field(
        default="best",
        description="of a beam: the text of the best score, or the one that is nearest to the target by "
        "sentence BLEU (sequence-level interpolation)",
    )
    targets: Literal["replaced", "kept"] = Field(
        default="replaced",
        description="replaced: the phase trains on these texts alone; kept: on the rows' own targets too",
    )


class Augment(Section):
    """Extra rows: copies of a phase's rows in which words are replaced, made once before its training."""

    mechanical = frozenset({"model"})  # counts by its content
    model: Folder | None = Field(
        default=None,
        description="Hugging Face folder with a masked language model; default: what this run's teacher was "
        "pretrained to",
    )
    copies: Count = Field(
        default=20, description="copies of each row; those that equal it or each other are left out"
    )
    candidates: Count = Field(
        default=15, description="words that a word may be replaced by, the likeliest ones"
    )
    probability: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.4, description="of replacing a word in a copy"
    )
    stop_words: Literal["english", "none"] | list[str] = Field(
        default="english",
        description="words that are never replaced, in lower case: a built-in list, or your own",
    )
    labels: Literal["none", "keep"] = Field(
        default="none",
        description="none: only the teacher answers a copy, whose label may have changed; keep: it has the "
        "row's label",
    )


class TinybertAugment(Augment):
    """TinyBERT's augmentation (Jiao et al. 2020): each word by one that the model finds
    likely in its place.
    """

    mechanical = frozenset({"model", "vectors"})
    use: Literal["tinybert"] = Field(description="the way words are replaced")
    vectors: str | None = Field(
        default=None,
        description="file of word vectors (GloVe or word2vec text format) for words of several pieces; "
        "default: the model's own embeddings of the rows' words",
    )


class MaskedAugment(Augment):
    """Contextual augmentation (Wu et al. 2019): the chosen words of a copy are masked all at once and drawn
    from the model.
    """

    use: Literal["masked"] = Field(description="the way words are replaced")
    probability: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.15, description="of replacing a word in a copy"
    )


AT_EXITS = " at exits"
"""How the name of a loss at the exits ends where it is reported."""


def place_of(term: str) -> tuple[str, ...]:
    """The keys of a loss in its phase, by the name that it is reported by."""
    name = term.removesuffix(AT_EXITS)
    return ("losses", name) if name == term else ("exits", "losses", name)


class ExitSettings(Section):
    """What every exit of a student learns (`student: {use: exits}`)."""

    teacher: Literal["deepest", "teacher"] = Field(
        default="deepest",
        description="who teaches the exits: the student's own deepest answer, which these losses do not "
        "reach (Be Your Own Teacher), or the run's teacher",
    )
    losses: Annotated[dict[Name, LossComponent], Field(min_length=1)] = Field(
        description="name -> loss; all are added up, over all exits"
    )


class Phase(Section):
    """One phase of distillation: its data, losses and settings."""

    mechanical = frozenset(
        {"corpus", "unlabelled", "save_every", "cache"}
    )  # a cache counts by what it rounds
    losses: Annotated[dict[Name, LossComponent], Field(min_length=1)] = Field(
        description="name -> loss; all are added up"
    )
    exits: ExitSettings | None = Field(default=None, description="what the student's exits learn")
    corpus: str | None = Field(
        default=None,
        description="train on the unlabelled sentences of this corpus instead of the task's rows",
    )
    unlabelled: str | None = Field(
        default=None,
        description="file (csv, tsv, jsonl, parquet, each also .gz) with the task's text columns; its rows, "
        "which only the teacher answers, are added to the task's",
    )
    augment: Annotated[TinybertAugment | MaskedAugment, Field(discriminator="use")] | None = Field(
        default=None, description="add copies of the phase's rows in which words are replaced"
    )
    written: WrittenSettings | None = Field(
        default=None,
        description="train on texts that the teacher writes, in the place of targets or beside them; "
        "text_to_text only",
    )
    epochs: Count = Field(default=3, description="passes over the phase's data")
    cache: CacheSettings | None = Field(
        default=None, description="keep the teacher's answers on disk; without it, it answers in every step"
    )
    batch: BatchSettings = BatchSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    interchange: InterchangeSettings = InterchangeSettings()
    save_every: Count = Field(default=500, description="steps between checkpoints")
    keep: Literal["best", "last"] | None = Field(
        default=None,
        description="weights kept: best on validation, or the last; default best, but last where the phase "
        "trains on a corpus or on hidden states alone, which the task's validation cannot judge",
    )

    @property
    def terms(self) -> dict[str, LossComponent]:
        """Every loss, those of the exits too, by the name that it is reported by."""
        at_exits = {} if self.exits is None else self.exits.losses
        return {**self.losses, **{f"{name}{AT_EXITS}": loss for name, loss in at_exits.items()}}


ExportFormat = Literal["fp32", "fused", "fp16", "int8", "int8-static", "int4"]
"""Forms of an artifact (`distillkit.export.formats`)."""


class ExportSettings(Section):
    """The ONNX artifact and the gate it must pass."""

    opset: Annotated[int, Field(ge=18, le=23)] = Field(default=18, description="ONNX operator set")
    tolerance: Positive = Field(
        default=1e-4, description="largest absolute difference of the logits to PyTorch"
    )
    rows: Count = Field(default=64, description="real rows compared")
    formats: list[ExportFormat] = Field(
        default=["fp32"], description="forms of the artifact; fp32 is always made, the others from it"
    )
    calibration: Count = Field(
        default=256, description="training rows that show which values fp16 and int8-static must hold"
    )

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms beside fp32, each once."""
        return tuple(name for name in dict.fromkeys(self.formats) if name != "fp32")


BackendName = Literal[
    "pytorch",
    "pytorch-bf16",
    "pytorch-compile",
    "pytorch-compile-bf16",
    "onnxruntime",
    "openvino",
    "openvino-bf16",
]
"""A runtime, and the precision of its arithmetic where it is not the model's."""
ScenarioName = Literal["single-stream", "offline", "server"]
Bound = float | str
"""A number, or one with its unit (10ms, 1.5s, 20MB)."""


class BenchSettings(Section):
    """What is measured, and how long."""

    mechanical = frozenset({"floor"})

    batch: Annotated[list[Count], Field(min_length=1)] = Field(default=[1, 8, 32], description="batch sizes")
    length: Annotated[list[Annotated[int, Field(ge=3)]], Field(min_length=1)] = Field(
        default=[16, 64, 128], description="tokens per example"
    )
    new_tokens: Count = Field(
        default=32, description="tokens that a timed text has, whatever its end; text_to_text only"
    )
    backends: Annotated[list[BackendName], Field(min_length=1)] = Field(
        default=["pytorch", "onnxruntime"], description="runtimes to measure teacher and student in"
    )
    provider: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="device measured; what is asked for must be what runs"
    )
    rounds: Count = Field(
        default=3,
        description="rounds in which the models take turns, each in a process that stays; with 1, one after "
        "the other, and no spread between rounds",
    )
    warmup: Count = Field(default=10, description="untimed iterations of a cell, over all rounds")
    iterations: Count = Field(default=50, description="fewest timed iterations of a cell, over all rounds")
    seconds: NonNegative = Field(
        default=5.0, description="shortest timed duration of a cell or a scenario, over all rounds"
    )
    threads: Count | None = Field(
        default=None, description="threads per process; default: the machine's physical cores"
    )
    spinning: bool = Field(
        default=False,
        description="let ONNX Runtime's threads spin during a run, which disturbs a busy machine",
    )
    scenarios: list[ScenarioName] = Field(
        default=[],
        description="also measured, on rows as long as they are: one after the other, all at once, arriving "
        "by chance",
    )
    bound_ms: Positive = Field(
        default=100.0, description="server: milliseconds from its arrival that 99 of 100 requests may take"
    )
    floor: dict[str, Bound] = Field(
        default={},
        description="what a form of the exported student must reach, or the command fails (exit code 12): "
        "metric or a metric's name, p50, p95, p99 (also p95@8x128), throughput, size, memory, cold",
    )


class ReportSettings(Section):
    """What the report shows."""

    samples: Index = Field(
        default=12, description="examples shown where teacher and student differ; 0 shows no text"
    )
    tolerance: NonNegative = Field(
        default=0.005, description="of the task's metric, that a faster form of the artifact may lose"
    )


class RuntimeSettings(Section):
    """How the machine is used. None of this changes what is computed, apart from rounding."""

    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where training runs")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="auto: bf16 where the hardware has it"
    )
    compile: bool = Field(default=False, description="torch.compile the training step")
    parallel: Literal["ddp", "fsdp"] = Field(
        default="ddp",
        description="several processes hold a copy each (ddp), or a part each of parameters, gradients and "
        "optimizer state (fsdp)",
    )
    threads: Count | None = Field(default=None, description="CPU threads; default: torch's choice")
    log_every: Count = Field(default=20, description="steps between lines of metrics.jsonl")
    keep_checkpoints: Count = Field(default=2, description="newest checkpoints kept per stage")


class Assistant(Section):
    """A model between the teacher and the student: it learns from the one before it and teaches the next
    (teacher assistants, Mirzadeh et al. 2020; of the student's own shape: born-again generations, Furlanello
    et al. 2018). It is a run of its own, with the run's seed and its number added.
    """

    student: StudentComponent | None = Field(
        default=None, description="what is trained; default: one of the run's own student's shape"
    )
    distill: Phase | Annotated[list[Phase], Field(min_length=1)] | None = Field(
        default=None, description="how it learns; default: as the run's student does"
    )


class RunConfig(Section):
    """A whole run: task, teacher, student, losses, export, bench, report."""

    version: Literal[1] = Field(default=1, description="version of this schema")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = Field(
        description="names the run's folder"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(default=0, description="keys every random choice")
    output: str = Field(default="runs", description="folder that holds the run's folder")
    task: AnyTask
    teacher: TeacherComponent
    student: StudentComponent
    assistants: list[Assistant] = Field(
        default=[], description="models between teacher and student, each taught by the one before it"
    )
    distill: Phase | Annotated[list[Phase], Field(min_length=1)]
    export: ExportSettings = ExportSettings()
    bench: BenchSettings = BenchSettings()
    report: ReportSettings = ReportSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    track: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(
        default=[], description="extra trackers; they can never stop a run"
    )

    @property
    def phases(self) -> list[Phase]:
        return self.distill if isinstance(self.distill, list) else [self.distill]
