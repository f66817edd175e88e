"""The stages that make the artifact and measure it."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillkit.bench.backends import BACKENDS
from distillkit.bench.leaving import measure_exits
from distillkit.bench.measure import bench as measure_all
from distillkit.bench.rows import MEASUREMENTS, Role, Variant
from distillkit.bench.timing import Opened
from distillkit.bench.writing import Texts
from distillkit.data.batching import Encoded, drawn
from distillkit.early_exit import FACTS as EXITS
from distillkit.encoder import Encoder
from distillkit.encoder_decoder import EncoderDecoder
from distillkit.export import forms
from distillkit.export.bundle import MODEL, Reading
from distillkit.export.bundle import export as export_student
from distillkit.export.exits import export_exits
from distillkit.export.formats import FORMATS, Source
from distillkit.export.parity import Parity
from distillkit.export.writers import export_writer
from distillkit.files import seal
from distillkit.flops import flops_per_example
from distillkit.licences import carry
from distillkit.model import FixedTeacher, LearningTeacherSource, Student, Teacher, TextStudent
from distillkit.recipe import measured_metrics
from distillkit.report import floors
from distillkit.report.facts import load_bench
from distillkit.report.floors import read_floor
from distillkit.settings import BackendName, TaskSettings
from distillkit.stages.job import PEERS, Job, Save
from distillkit.stages.texts import corrected, wanted, writing
from distillkit.stages.together import beside
from distillkit.text_metrics import score_texts
from distillkit.types import Batch, Want
from distillkit.writing import spelled


def export(job: Job) -> Save:
    """The student as a verified ONNX artifact; where all peers are asked for, theirs lie in `peers/NAME`."""
    source = job.teacher_source

    def save(folder: Path) -> None:
        _export(job, job.folder("student"), folder, "export")
        if isinstance(source, LearningTeacherSource) and source.keep == "all":
            for name, place in beside(job):
                (folder / PEERS / name).mkdir(parents=True)
                _export(job, place, folder / PEERS / name, f"export of peer {name}")
                seal(folder / PEERS / name, {})  # each can be deployed by itself

    return save


def _export(job: Job, student: Path, folder: Path, named: str) -> None:
    """The student that lies in a folder, whole and, where it has exits, in parts."""
    model = job.student_source.load(student).eval()
    carry([student], folder)
    settings, labels = job.config.export, job.task.labels
    parity = _exported(job, model, job.samples(job.judged), folder)
    job.progress.say(f"{named}: largest difference to PyTorch {parity.max_abs_difference:.2e}")
    _other_forms(job, folder, named)
    if model.spec.exits:
        held_out = job.samples(job.task.validation)
        parts = export_exits(model, labels, job.metric, held_out, folder, settings)
        count = len(model.spec.exits) + 1
        job.progress.say(f"{named}: of its {count} parts {parts.max_abs_difference:.2e}")


def _other_forms(job: Job, folder: Path, named: str) -> None:
    """Of the artifact that lies in a folder, the forms beside the plain one."""
    settings = job.config.export
    wanted = {name: FORMATS[name] for name in settings.forms}
    if not wanted:
        return
    rows = drawn(job.samples(job.task.train), settings.calibration, seed=job.config.seed)
    made = forms.export_forms(folder, wanted, Source(folder / MODEL, rows), job.samples(job.judged), settings)
    for name, one in made.items():
        job.progress.say(f"{named}: {name}: {one.status}, {one.size_bytes / 2**20:,.1f} MiB")


def _exported(job: Job, model: Student, samples: Encoded, folder: Path) -> Parity:
    """The artifact of a model, in the form that its kind has."""
    settings, labels, task = job.config.export, job.task.labels, job.config.task
    reading = Reading.of(task, job.metric)
    if isinstance(model, TextStudent):
        assert isinstance(task, TaskSettings)
        how = writing(job)
        return export_writer(
            model, job.tokenizer, labels, samples, folder, settings, how, task.prefix, reading=reading
        )
    return export_student(model, job.tokenizer, labels, samples, folder, settings, reading=reading)


def bench(job: Job) -> Save:
    """Teacher and student in every runtime asked for: latency, memory, size, and quality of what really
    runs.
    """
    samples = job.samples(job.judged)

    def save(folder: Path) -> None:
        variants = [*_variants(job, "teacher", folder, samples), *_variants(job, "student", folder, samples)]
        if "onnxruntime" in job.config.bench.backends:
            variants += _formats(job)
        command = [sys.executable, "-m", "distillkit.bench.child"]
        measure_all(
            variants,
            job.config.bench,
            samples,
            job.task.labels,
            folder,
            seed=job.config.seed,
            metric=job.metric,
            command=command,
            texts=_texts(job),
            between=between,
        )
        if (job.folder("export") / EXITS).is_file():
            with tempfile.TemporaryDirectory() as scratch:
                failed = measure_exits(
                    job.folder("export"),
                    job.config.bench,
                    samples,
                    job.task.labels,
                    folder,
                    Path(scratch),
                    seed=job.config.seed,
                    command=[sys.executable, "-m", "distillkit.bench.leaving"],
                    between=between,
                )
            if failed:
                job.progress.say(f"warning: bench: leaving early was not measured: {failed}")

    def between() -> None:
        job.signals.check("while a model was measured")

    return save


def check_floors(job: Job) -> None:
    """Say which form of the student meets the recipe's floors. Raises FloorError (12) where none does."""
    settings = job.config.bench
    if not settings.floor:
        return
    metrics, shapes = measured_metrics(job.config.task), set(product(settings.batch, settings.length))
    asked = [read_floor(name, bound, metrics, shapes) for name, bound in settings.floor.items()]
    chosen = floors.check(floors.named(asked, job.metric), load_bench(job.folder("bench") / MEASUREMENTS))
    job.progress.say(f"bench: {chosen.name} meets {', '.join(settings.floor)}")


def _formats(job: Job) -> list[Variant]:
    """The student's other forms; one that was not kept is a row with its reason."""
    folder, found = job.folder("export"), []
    for name in job.config.export.forms:
        status = json.loads((folder / forms.FILE).read_text())[name]["status"]
        place = folder / forms.FOLDER / name if status == "ok" else None
        absent = "" if status == "ok" else status
        found.append(
            Variant(f"student-onnxruntime-{name}", "student", "onnxruntime", place, absent, format=name)
        )
    return found


def _texts(job: Job) -> Texts | None:
    """How models write, where the task is to."""
    if job.task.labels.kind != "text_to_text":
        return None
    right, sources, seed = wanted(job), corrected(job), job.config.seed
    return Texts(
        writing(job),
        lambda tokens: score_texts(right, spelled(tokens, job.tokenizer), sources=sources, seed=seed),
    )


def _variants(job: Job, role: Role, folder: Path, samples: Encoded) -> list[Variant]:
    """A model in every runtime asked for; exported into `folder` where it has to be."""
    asked = list(dict.fromkeys(job.config.bench.backends))
    if role == "teacher" and job.trainable is None:
        return [_of_python(job, name) for name in asked]
    source = job.student_source if role == "student" else job.trainable
    assert source is not None
    where = job.folder(role)
    model = source.load(where).eval()
    artifact = job.folder("export")
    if role == "teacher" and any(BACKENDS[name].exported for name in asked):
        artifact = folder / "teacher-onnx"
        artifact.mkdir()
        _exported(job, model, samples, artifact)
    ours = isinstance(model, Encoder | EncoderDecoder)
    found = []
    for name in asked:
        named = (f"{role}-{name}", role, name)
        if BACKENDS[name].exported:
            found.append(Variant(*named, artifact))
        elif ours:
            found.append(Variant(*named, where))
        elif name == "pytorch":  # of a class that the measuring process lacks
            found.append(Variant(*named, None, live=lambda: _loaded_here(job, model, where)))
        else:
            found.append(Variant(*named, None, "a model of its own class is measured as it is"))
    return found


def _of_python(job: Job, name: BackendName) -> Variant:
    """A teacher that this run did not train."""
    teacher = job.teacher()

    def variant(absent: str = "", live: Callable[[], Opened] | None = None) -> Variant:
        return Variant(f"teacher-{name}", "teacher", name, None, absent, live)

    if not teacher.live:
        return variant("its answers come from a file: nothing is computed")
    if name == "pytorch":
        return variant(live=lambda: _in_this_process(job, teacher))
    if BACKENDS[name].exported:
        return variant("a teacher from Python is not exported")
    return variant("a teacher from Python is measured as it is")


def _loaded_here(job: Job, model: Student, folder: Path) -> Opened:
    """A model that a source read from its folder, timed in this process."""
    opened = _in_this_process(job, FixedTeacher(model))
    opened.size = (folder / "model.safetensors").stat().st_size
    opened.flops = lambda batch: flops_per_example(model, batch.to(job.device))
    return opened


def _in_this_process(job: Job, model: Teacher) -> Opened:
    """A model of somebody's own class, timed on token ids and their texts."""
    device = job.device
    model = model.to(device)
    want = Want()

    def forward(batch: Batch) -> NDArray[np.float32]:
        said = model.outputs(replace(batch, labels=None).to(device), want=want).logits
        logits: NDArray[np.float32] = said.float().cpu().numpy()
        return logits

    segments = range(max(map(len, job.judged.texts)))

    def with_texts(batch: Batch) -> Batch:
        ids, types = batch.inputs["input_ids"], batch.inputs["token_type_ids"]
        spelled = [
            [[token for token, kind in zip(*row, strict=True) if kind == segment] for segment in segments]
            for row in zip(ids.tolist(), types.tolist(), strict=True)
        ]
        texts = (job.tokenizer.batch_decode(parts, skip_special_tokens=True) for parts in spelled)
        return replace(batch, texts=tuple(map(tuple, texts)))

    opened = Opened(forward, "this process", None, model.spec.max_length)
    opened.writer, opened.device = model.writer, device
    if job.task.labels.kind != "text_to_text":
        opened.prepare = with_texts
    opened.parameters = model.num_parameters
    return opened
