"""Tiny T5 and BART objectives over a corpus of random words, which tests share."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tiny import byte_tokenizer, documents
from torch import nn
from transformers import PreTrainedTokenizerBase

from distillkit.data.unigram import train_unigram
from distillkit.objectives.base import Objective
from distillkit.objectives.denoising import Denoising
from distillkit.teachers.bart import Bart
from distillkit.teachers.t5 import T5

LENGTH = 32
SHAPE: dict[str, Any] = {"layers": 2, "width": 16, "heads": 2, "positions": 40, "dropout": 0.0}
SOURCES = {"t5": T5, "bart": Bart}


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    if name == "bart":
        return byte_tokenizer()
    texts = [sentence for document in documents() for sentence in document]
    return train_unigram(texts, vocab_size=150, sentinels=20)


def source(name: str, **settings: Any) -> T5 | Bart:
    entries = {"vocab_size": 150, "sentinels": 20} if name == "t5" else {"vocab_size": 320}
    made: T5 | Bart = SOURCES[name](**{**SHAPE, **entries, **settings})
    return made


def objective_of(name: str, **settings: Any) -> Denoising:
    _, objective = source(name, **settings).pretraining(tokenizer_of(name))
    assert isinstance(objective, Denoising)
    return objective


def prepare(objective: Objective, name: str, folder: Path, length: int = LENGTH) -> Path:
    objective.prepare(iter(documents()), tokenizer_of(name), folder, max_length=length)
    return folder


def model_of(name: str, **settings: Any) -> nn.Module:
    """A fresh model whose weights are large enough for a test to tell their effects apart."""
    torch.manual_seed(0)
    model, _ = source(name, **settings).pretraining(tokenizer_of(name))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model
