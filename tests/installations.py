"""Students whose answers to real texts differ, exported, and installations of their own to open them in."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, PreTrainedTokenizerBase, RobertaConfig

from distillkit import files
from distillkit.data.batching import collate, encode
from distillkit.data.builtin import builtin_rows
from distillkit.data.layouts import Segments, Words
from distillkit.data.tasks import Rows
from distillkit.data.tokenizers import train_byte_bpe, train_wordpiece
from distillkit.encoder import Encoder, fresh
from distillkit.export.bundle import Reading, export
from distillkit.settings import ExportSettings, Labels
from distillkit.types import Want

ROOT = Path(__file__).resolve().parent.parent
MAX_LENGTH = 40
"""Some of the texts are longer."""
_SIZES: dict[str, Any] = {
    "vocab_size": 2000,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.3,
}
FAMILIES = {
    "bert": (lambda: BertConfig(**_SIZES), train_wordpiece),
    "roberta": (lambda: RobertaConfig(**_SIZES, pad_token_id=1, type_vocab_size=1), train_byte_bpe),
}
_OFFLINE = ("(from versions: none)", "Max retries exceeded", "connection broken by", "Read timed out")
"""What pip says where it reaches no package index."""


def real_texts(count: int) -> list[str]:
    return [text for text, _ in islice(builtin_rows("rotten_tomatoes"), count)]


@dataclass(frozen=True)
class Opened:
    """student: in PyTorch; in `folder`: the same as a run leaves it in `student/`, and `export/`."""

    folder: Path
    student: Encoder
    tokenizer: PreTrainedTokenizerBase


def made(folder: Path, family: str, labels: Labels) -> Opened:
    """Weights are drawn, wide enough that texts are told apart, and the head's bias is set so that no class
    is preferred: with random answers a wrong order of labels or a wrong token shows.
    """
    texts = real_texts(2000)
    shape, train = FAMILIES[family]
    tokenizer = train(texts, vocab_size=_SIZES["vocab_size"])
    by_word = labels.kind == "token_classification"
    torch.manual_seed(7)
    student = fresh(shape(), labels).eval()
    rows = Rows(
        np.arange(200),
        tuple(tuple(text.split()) if by_word else (text,) for text in texts[-200:]),
        None,
        f"real {family} {labels.kind}",
        layout=Words() if by_word else Segments(),
    )
    samples = encode(rows, tokenizer, max_length=MAX_LENGTH, cache=folder / "cache")
    said = student.outputs(collate(samples, np.arange(200)), want=Want()).logits.detach()
    last = [part for part in student.modules() if isinstance(part, nn.Linear)][-1]
    last.bias.data -= said.mean(dim=0)
    for name in ("student", "export"):
        (folder / name).mkdir()
    student.save(folder / "student", labels)
    tokenizer.save_pretrained(folder / "student")
    reading = Reading(max_length=MAX_LENGTH)
    export(student, tokenizer, labels, samples, folder / "export", ExportSettings(), reading=reading)
    files.seal(folder / "export", {})
    return Opened(folder, student, tokenizer)


def new_environment(folder: Path) -> str:
    """The Python of a virtual environment in which there is nothing but pip."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return str(folder / "bin" / "python")


def install(python: str, *what: str) -> None:
    """Skips the test where no package index is reached; any other failure is one."""
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--retries", "1", *what], capture_output=True, text=True
    )
    if done.returncode and any(words in done.stderr for words in _OFFLINE):
        pytest.skip(f"pip reaches no package index for {' '.join(what)}: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


def pinned(name: str) -> str:
    """A package as constraints.txt pins it."""
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    return next(line.split(";")[0].strip() for line in pins if line.startswith(f"{name}=="))


def answered(python: str, code: str, given: Any, folder: Path) -> Any:
    """What a script that reads JSON from stdin prints as JSON in its last line, in an environment that knows
    nothing of this one's.
    """
    done = subprocess.run(
        [python, "-c", code],
        input=json.dumps(given),
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def packages(python: str) -> Sequence[str]:
    """Names of what is installed."""
    told = subprocess.run(
        [python, "-m", "pip", "list", "--format", "json"], capture_output=True, text=True, check=True
    )
    return [one["name"].lower() for one in json.loads(told.stdout)]
