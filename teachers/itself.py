"""The student's own past as its teacher: an average of its weights over the training."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from distillkit.data.tokenizers import brought_or_trained, tokenizer_key
from distillkit.model import FixedTeacher, LearningTeacherSource, Student, Teacher
from distillkit.settings import Count, Folder, Labels, Momentum
from distillkit.types import Access


class Itself(LearningTeacherSource):
    """The exponential moving average of the student's weights teaches the student (Mean Teacher, Tarvainen
    and Valpola 2017).

    Settings:
        decay: Share of the average that a step keeps; in the first steps less, 1 - 1 / (step + 1).
        keep: What the run ends with and exports, the student or the better of both on the validation rows.
        tokenizer: Folder of the tokenizer that the student reads with; without it, a WordPiece is trained on
            the task's training texts.
        vocab_size: Entries of the tokenizer that is trained.
    """

    access = Access.ALL_STATES

    def __init__(
        self,
        *,
        decay: Momentum = 0.99,
        keep: Literal["student", "best"] = "student",
        tokenizer: Folder | None = None,
        vocab_size: Count = 8192,
    ) -> None:
        super().__init__()
        self.decay, self.keep, self.folder, self.vocab_size = decay, keep, tokenizer, vocab_size

    def fingerprint(self) -> str:
        return tokenizer_key(self.folder)

    def tokenizer(self, corpus: Iterable[str]) -> PreTrainedTokenizerBase:
        return brought_or_trained(self.folder, corpus, self.vocab_size)

    def beside(
        self, student: Student, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int
    ) -> Teacher:
        return Average(student, self.decay)


class Average(nn.Module, FixedTeacher):
    """Follows a student: after each step its weights go a little way to the student's. They are a part of
    what is trained, so that checkpoints hold them.
    """

    follows = True

    def __init__(self, student: Student, decay: float) -> None:
        nn.Module.__init__(self)
        FixedTeacher.__init__(self, copy.deepcopy(student), Access.ALL_STATES)
        self._student, self._decay = [student], decay  # a list: the student is not a part of it

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        kept = min(self._decay, 1 - 1 / (step + 1))
        student = self._student[0]
        for mine, theirs in zip(self.model.parameters(), student.parameters(), strict=True):
            mine.lerp_(theirs.detach(), 1 - kept)
        for buffer, its in zip(self.model.buffers(), student.buffers(), strict=True):
            buffer.copy_(its)
