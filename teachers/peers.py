"""Other students as the teachers: all learn together, each from the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from distillkit.data.tokenizers import brought_or_trained, tokenizer_key
from distillkit.errors import ConfigError
from distillkit.model import (
    LEFT,
    STUDENT,
    FixedTeacher,
    LearningTeacherSource,
    Student,
    StudentSource,
    Teacher,
)
from distillkit.settings import Count, Folder, Labels, Students
from distillkit.types import Access


class Peers(LearningTeacherSource):
    """Students that learn together with the run's own student, each from all others (deep mutual learning).

    A larger peer makes it a teacher and a student that learn together from scratch.

    Settings:
        peers: Students by name, beside the run's own (`student`); they may differ in everything.
        update: simultaneous (all from one forward of each), or sequential (one after the other on each batch,
            with what the others say by then).
        keep: What the run ends with and exports: its own student, the best on the validation rows, or with
            all the best, and beside its artifact those of all others (`export/peers/NAME`). The best of the
            others stands beside it as the teacher, and the weights of all are kept.
        tokenizer: Folder of the tokenizer that all read with; without it, a WordPiece is trained on the
            task's training texts.
        vocab_size: Entries of the tokenizer that is trained.
    """

    access = Access.ALL_STATES

    def __init__(
        self,
        *,
        peers: Students,
        update: Literal["simultaneous", "sequential"] = "simultaneous",
        keep: Literal["student", "best", "all"] = "student",
        tokenizer: Folder | None = None,
        vocab_size: Count = 8192,
    ) -> None:
        super().__init__()
        self.peers: Mapping[str, StudentSource] = dict(peers)  # type: ignore[arg-type]  # made by the catalog
        for name in (STUDENT, LEFT):
            if name in self.peers:
                raise ConfigError(
                    f"a peer cannot be called {name!r}: the run has one",
                    where=f"teacher.peers.{name}",
                    hint="choose another name",
                )
        self.in_turn, self.keep = update == "sequential", keep
        self.folder, self.vocab_size = tokenizer, vocab_size

    def fingerprint(self) -> str:
        peers = " ".join(f"{name} {source.fingerprint()}" for name, source in self.peers.items())
        return f"{peers} {tokenizer_key(self.folder)}"

    def tokenizer(self, corpus: Iterable[str]) -> PreTrainedTokenizerBase:
        return brought_or_trained(self.folder, corpus, self.vocab_size)

    def beside(
        self, student: Student, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int
    ) -> Teacher:
        source = next(iter(self.peers.values()))
        nothing = self.prospect(tokenizer, labels, max_length, Path())
        return FixedTeacher(source.build(tokenizer, labels, max_length, nothing))
