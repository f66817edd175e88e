"""A callable on raw text as a teacher: a scikit-learn pipeline, a service, rules.

run("config.yaml", parts=Parts(teacher=BlackBox.of(pipeline, version="2026-11")))
run("config.yaml", parts=Parts(teacher=BlackBox(my_function, gives="labels", version="1")))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from distillkit.blackbox import BlackBoxTeacher, in_task_order, log_probabilities, named_once
from distillkit.data.tokenizers import brought_or_trained, tokenizer_key
from distillkit.errors import DivergedError, ModelError
from distillkit.model import Teacher, TeacherSource
from distillkit.settings import Labels
from distillkit.types import Access, Batch

Gives = Literal["labels", "probabilities", "logits"]
Function = Callable[[list[Any]], Any]
"""Texts -> answers. A text is a string, or a tuple of two for a pair."""


class BlackBox(TeacherSource):
    """A function of texts as a teacher, from Python.

    function: takes a list of texts (of pairs of texts where the task has two) and returns for each of them
    the name of a class (gives: labels), a row of probabilities or logits `[n, V]`, or for a regression a
    number `[n]` (gives: logits). names: the classes of the columns, by default the task's in their order;
    tokenizer: folder of the one that the student reads with (without it, a WordPiece is trained on the task's
    texts); version: identifies what the function knows: another one reruns the stages that depend on it.
    """

    reads_tokens = False

    def __init__(
        self,
        function: Function,
        *,
        version: str,
        gives: Gives = "probabilities",
        names: Sequence[str] | None = None,
        tokenizer: Path | None = None,
        vocab_size: int = 8192,
    ) -> None:
        self.function, self.version, self.gives, self.names = function, version, gives, names
        self.folder, self.vocab_size = tokenizer, vocab_size
        self.access = Access.LABELS if gives == "labels" else Access.SCORES

    @classmethod
    def of(cls, model: Any, *, version: str, tokenizer: Path | None = None) -> BlackBox:
        """A fitted scikit-learn pipeline that takes texts: its probabilities where it has them, else the
        classes that it predicts; the numbers of a regressor.
        """
        if not hasattr(model, "classes_"):
            return cls(model.predict, version=version, gives="logits", tokenizer=tokenizer)
        names = [str(name) for name in model.classes_]
        if hasattr(model, "predict_proba"):
            return cls(model.predict_proba, version=version, names=names, tokenizer=tokenizer)
        return cls(model.predict, version=version, gives="labels", names=names, tokenizer=tokenizer)

    def fingerprint(self) -> str:
        return f"black box {self.version} {self.gives} {self.names} {tokenizer_key(self.folder)}"

    def tokenizer(self, corpus: Iterable[str]) -> PreTrainedTokenizerBase:
        return brought_or_trained(self.folder, corpus, self.vocab_size)

    def teacher(self, folder: Path, labels: Labels) -> Teacher:
        return FunctionTeacher(self, labels)


class FunctionTeacher(BlackBoxTeacher):
    """Calls the function, and holds every answer to the contract and the first one to being the same again.

    Raises ModelError (4) that says what was expected and what came, DivergedError (6) for NaN.
    """

    def __init__(self, source: BlackBox, labels: Labels) -> None:
        super().__init__(labels, source.access)
        self._source, self._order, self._checked = source, None, False
        if source.names is not None and labels.names:
            self._order = in_task_order(source.names, labels)

    def answers(self, batch: Batch) -> NDArray[np.float32]:
        assert batch.texts is not None
        texts: list[Any] = [row[0] if len(row) == 1 else row for row in batch.texts]
        told = self._logits(texts, batch)
        if not self._checked:
            if not np.allclose(told, self._logits(texts, batch), rtol=1e-2, atol=1e-2):
                raise _broken("the same answer to the same texts", "two different answers")
            self._checked = True
        return told

    def _logits(self, texts: list[Any], batch: Batch) -> NDArray[np.float32]:
        said = self._source.function(texts)
        if self._source.gives == "labels":
            return self._named(said, len(texts))
        try:
            given = np.asarray(said, dtype=np.float64)
        except (TypeError, ValueError):
            raise _broken("an array of numbers", type(said).__name__) from None
        width = self.labels.num_labels
        if self.labels.kind == "regression" and given.shape == (len(texts),):
            given = given[:, None]
        if given.shape != (len(texts), width):
            raise _broken(f"numbers of shape {[len(texts), width]}", str(list(given.shape)))
        if not np.isfinite(given).all():
            raise DivergedError(
                f"the teacher's answer holds NaN or infinity (example ids {batch.ids.tolist()[:8]})",
                where="teacher",
            )
        if self._order is not None:
            given = given[:, self._order]
        if self._source.gives == "logits":
            return given.astype(np.float32)
        try:
            return log_probabilities(given)
        except ValueError as error:
            raise _broken("probabilities of each class", str(error), "gives='logits' takes any") from None

    def _named(self, said: Any, count: int) -> NDArray[np.float32]:
        try:
            names = [str(name) for name in said]
        except TypeError:
            raise _broken(f"{count} class names", type(said).__name__) from None
        if len(names) != count:
            raise _broken(f"{count} class names", str(len(names)))
        other = [name for name in names if name not in self.labels.names]
        if other:
            raise _broken(f"one of the task's labels {list(self.labels.names)[:10]}", repr(other[0]))
        return named_once([self.labels.names.index(name) for name in names], self.labels.num_labels)


def _broken(expected: str, got: str, hint: str = "") -> ModelError:
    return ModelError(
        f"the teacher's answer: expected {expected}, got {got}",
        where="teacher",
        hint=hint or "see docs/how-to-add-a-teacher.md",
    )
