"""The student of another run as a teacher: a link of a chain, or of a run that was made by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from distillkit.data.tokenizers import load_tokenizer
from distillkit.encoder import folder_digest, label_names
from distillkit.errors import MissingError, ModelError
from distillkit.model import Student, StudentSource, TrainableTeacherSource
from distillkit.opening import open_model
from distillkit.settings import EVERY_KIND, Folder, Labels, OptionalStudent


class Distilled(TrainableTeacherSource):
    """The student that another run of distillkit made on the same task.

    Settings:
        path: Folder of that run.
        student: What its student is, as that run's `student` section says; not needed for transformers.
    """

    kinds = EVERY_KIND
    mechanical = {"path"}  # noqa: RUF012 - read from the source; the student counts by its content

    def __init__(self, *, path: Folder, student: OptionalStudent = None) -> None:
        self.path, self.pretrain, self.finetune = Path(path), None, None
        assert student is None or isinstance(student, StudentSource)  # the catalog made the object
        self._student = student

    @property
    def made_of(self) -> Sequence[object]:
        return [] if self._student is None else [self._student]

    @property
    def origins(self) -> Sequence[Path]:
        return [self._folder()]

    def fingerprint(self) -> str:
        return folder_digest(self._folder())

    def tokenizer(self, corpus: Iterable[str]) -> PreTrainedTokenizerBase:
        return load_tokenizer(self._folder())

    def classifier(
        self, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int, pretrained: Path | None
    ) -> Student:
        theirs = label_names(self._folder())
        if labels.names and theirs != labels.names:
            raise ModelError(
                f"that run's labels {list(theirs)[:10]} are not the task's {list(labels.names)[:10]}",
                where=str(self.path),
                hint="a run and its teacher answer one task; task.labels gives the order of the names",
            )
        return self.load(self._folder())

    def load(self, folder: Path) -> Student:
        return open_model(folder) if self._student is None else self._student.load(folder)

    def _folder(self) -> Path:
        folder = self.path / "student"
        if not (folder / "model.safetensors").exists():
            raise MissingError(
                "there is no trained student in this folder",
                where=str(self.path),
                hint="give the folder of a run that reached its student stage",
            )
        return folder
