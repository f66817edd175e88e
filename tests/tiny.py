"""Tiny models and data that tests share: everything is made here, nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, PreTrainedTokenizerBase

from distillkit.data.batching import Encoded, TaskFeed, collate, encode
from distillkit.data.tasks import Rows
from distillkit.data.tokenizers import train_byte_bpe, train_wordpiece
from distillkit.encoder import Encoder, fresh
from distillkit.settings import BatchSettings, Labels
from distillkit.types import IGNORED, Batch, Outputs, Projections, Step

LABELS = Labels(kind="classification", names=("bad", "good"))
WORDS = [f"{start}{end}" for start in "bdfgklmnprst" for end in ("a", "e", "i", "o", "u", "an", "or")]


def texts(count: int, *, seed: int = 0, longest: int = 12) -> tuple[tuple[str], ...]:
    """Random words; a text that holds "bad" or "good" more often is of that class."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        words = generator.choice(WORDS, size=generator.integers(2, longest)).tolist()
        words += [LABELS.names[generator.integers(2)]]
        made.append((" ".join(words),))
    return tuple(made)


def documents(count: int = 30, seed: int = 1) -> list[list[str]]:
    """Documents of sentences of random words."""
    generator = np.random.default_rng(seed)
    return [
        [
            " ".join(generator.choice(WORDS, size=generator.integers(1, 14)))
            for _ in range(generator.integers(1, 9))
        ]
        for _ in range(count)
    ]


def rows(count: int = 40, *, seed: int = 0, longest: int = 12) -> Rows:
    made = texts(count, seed=seed, longest=longest)
    labels = np.asarray([LABELS.names.index(text.split()[-1]) for (text,) in made])
    return Rows(ids=np.arange(count), texts=made, labels=labels, digest=f"tiny {count} {seed} {longest}")


def tokenizer() -> PreTrainedTokenizerBase:
    return train_wordpiece((text for (text,) in texts(400, seed=99)), vocab_size=120)


def byte_tokenizer() -> PreTrainedTokenizerBase:
    return train_byte_bpe((text for (text,) in texts(400, seed=99)), vocab_size=320)


def encoded(
    cache: Path,
    count: int = 40,
    *,
    seed: int = 0,
    longest: int = 12,
    by: Callable[[], PreTrainedTokenizerBase] = tokenizer,
) -> Encoded:
    return encode(rows(count, seed=seed, longest=longest), by(), max_length=32, cache=cache)


def feed(cache: Path, *, micro: int = 1, examples: int = 8, count: int = 40) -> TaskFeed:
    return TaskFeed(encoded(cache, count), BatchSettings(tokens=400, examples=examples, micro=micro), seed=5)


def config(
    *, layers: int = 2, width: int = 16, heads: int = 2, dropout: float = 0.0, vocab: int = 120
) -> BertConfig:
    return BertConfig(
        vocab_size=vocab,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        max_position_embeddings=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )


def encoder(
    seed: int = 0, *, layers: int = 2, width: int = 16, dropout: float = 0.0, labels: Labels = LABELS
) -> Encoder:
    torch.manual_seed(seed)
    return fresh(config(layers=layers, width=width, dropout=dropout), labels)


def batch(cache: Path, count: int = 6, *, longest: int = 12) -> Batch:
    """A padded batch of rows of different lengths."""
    made = encoded(cache, count, longest=longest)
    return collate(made, np.arange(count))


def random_outputs(
    generator: torch.Generator, mask: torch.Tensor, *, answers: int, classes: int, width: int, layers: int
) -> Outputs:
    """Random logits, states, and queries, keys and values of two heads; leaves without gradient."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    examples, tokens = mask.shape
    heads = (examples, 2, tokens, width // 2)
    return Outputs(
        logits=random(answers, classes),
        hidden=tuple(random(examples, tokens, width) for _ in range(layers + 1)),
        attention=tuple(Projections(random(*heads), random(*heads), random(*heads)) for _ in range(layers)),
    )


def mapped(outputs: Outputs, change: Callable[[torch.Tensor], torch.Tensor]) -> Outputs:
    """Every tensor of the outputs, changed."""
    return Outputs(
        change(outputs.logits),
        tuple(change(state) for state in outputs.hidden),
        tuple(Projections(change(p.query), change(p.key), change(p.value)) for p in outputs.attention),
    )


def tensors(outputs: Outputs) -> list[torch.Tensor]:
    """Every tensor of the outputs."""
    found: list[torch.Tensor] = []
    mapped(outputs, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def random_step(
    *,
    seed: int = 0,
    examples: int = 5,
    tokens: int = 7,
    classes: int = 3,
    width: int = 8,
    teacher_width: int = 8,
    layers: int = 2,
    per_token: bool = False,
) -> Step:
    """A step of random tensors with padding, and its counterfactual; student tensors are leaves with
    gradient.

    per_token: about half of the real tokens are answered, one of them without a label.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, tokens + 1, (examples,), generator=generator)
    lengths[0] = tokens
    mask = torch.arange(tokens) < lengths[:, None]
    labels = torch.randint(classes, (examples,), generator=generator)
    scored = None
    if per_token:
        scored = mask & (torch.rand(examples, tokens, generator=generator) < 0.5)
        scored[:, 0] = True
        labels = torch.randint(classes, (examples, tokens), generator=generator)
        labels[0, 0] = IGNORED
    elif classes == 1:
        labels = torch.randn(examples, generator=generator)
    made = Batch(inputs={}, labels=labels, mask=mask, ids=torch.arange(examples), scored=scored)

    def random(wide: int) -> Outputs:
        sizes = {"answers": made.num_answers, "classes": classes, "width": wide, "layers": layers}
        return random_outputs(generator, mask, **sizes)

    def step(counterfactual: Step | None) -> Step:
        student = mapped(random(width), lambda tensor: tensor.requires_grad_())
        return Step(made, student, {"teacher": random(teacher_width)}, counterfactual)

    return step(step(None))


def change_config(folder: Path, **values: object) -> None:
    """Other values in the config.json of a saved model."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_weights(folder: Path, **values: torch.Tensor | None) -> None:
    """Other weights in a saved model; None takes one away."""
    path = folder / "model.safetensors"
    tensors = {name: tensor for name, tensor in (load_file(str(path)) | values).items() if tensor is not None}
    save_file(tensors, str(path), metadata={"format": "pt"})
