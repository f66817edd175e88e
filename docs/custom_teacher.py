"""A worked example: a torch model that is not of Hugging Face, its named states, and a student of it.

    python docs/custom_teacher.py

A two-layer GRU with a tokenizer of its own learns the bundled film snippets in a plain torch loop; then a
small CNN learns from its scores and from its states, and is exported, measured and reported like any other
student.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

import distillkit
from distillkit import Batch, Custom, Parts, Spec, run

WIDTH, LAYERS, LENGTH = 64, 2, 48
BUNDLED = Path(distillkit.__file__).parent / "data" / "bundled" / "rotten_tomatoes.jsonl.gz"


class Gru(nn.Module):
    """Embeddings, a GRU layer at a time, and the mean of the last states of real tokens into two classes."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, WIDTH)
        self.layers = nn.ModuleList(nn.GRU(WIDTH, WIDTH, batch_first=True) for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, ids_BL: Tensor, mask_BL: Tensor) -> dict[str, Tensor]:
        """Named tensors, as `Custom` asks for them."""
        states = [self.table(ids_BL)]
        for layer in self.layers:
            states.append(layer(states[-1])[0])
        real_BL1 = mask_BL[..., None].float()
        pooled_BD = (states[-1] * real_BL1).sum(1) / real_BL1.sum(1)
        return {
            "logits": self.head(pooled_BD),
            **{f"hidden.{index}": state for index, state in enumerate(states)},
        }


def train_tokenizer(texts: list[str], folder: Path) -> PreTrainedTokenizerFast:
    """Whole words in lower case, with [CLS] and [SEP] around them; any fast tokenizer would do."""
    made = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(texts, trainers.WordLevelTrainer(vocab_size=6000, special_tokens=special))
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(
        zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True)
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, **names)
    wrapped.save_pretrained(folder)
    return wrapped


def train_teacher(rows: list[dict[str, str]], tokenizer: PreTrainedTokenizerFast, epochs: int) -> Gru:
    torch.manual_seed(0)
    model = Gru(len(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for start in range(0, len(rows), 64):
            part = rows[start : start + 64]
            batch = tokenizer(
                [row["text"] for row in part],
                padding=True,
                truncation=True,
                max_length=LENGTH,
                return_tensors="pt",
            )
            gold = torch.tensor([row["label"] == "positive" for row in part]).long()
            said = model(batch["input_ids"], batch["attention_mask"])["logits"]
            nn.functional.cross_entropy(said, gold).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


def main(folder: Path = Path("runs/custom-teacher-example"), *, rows: int = 8000, epochs: int = 4) -> Path:
    """Returns the run's folder. The teacher sees none of the rows that the run holds out or measures on."""
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(BUNDLED, "rt", encoding="utf-8") as file:
        every = [json.loads(line) for line in file][:rows]
    apart = len(every) // 10
    train, measured = every[apart:], every[:apart]
    for name, part in (("train", train), ("validation", measured)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    tokenizer = train_tokenizer([row["text"] for row in train], folder / "tokenizer")
    model = train_teacher(train, tokenizer, epochs)

    def teacher(batch: Batch) -> dict[str, Tensor]:
        return model(batch.inputs["input_ids"], batch.mask)

    spec = Spec(
        num_layers=LAYERS,
        hidden_dim=WIDTH,
        num_heads=0,
        ffn_dim=0,
        vocab_size=len(tokenizer),
        num_labels=2,
        max_length=LENGTH,
    )
    config: dict[str, Any] = {
        "name": "run",
        "output": str(folder),
        "task": {
            "kind": "classification",
            "train": "train.jsonl",
            "validation": "validation.jsonl",
            "max_length": LENGTH,
        },
        "teacher": {"use": "bert", "allow_weak": True},  # the object below takes its place
        "student": {"use": "cnn", "layers": 1, "width": 32},
        "distill": {
            "epochs": 2,
            "optimizer": {"lr": 3e-3},
            "losses": {
                "gold": {"use": "gold", "weight": 0.5},
                "kd": {"use": "logits", "temperature": 2.0},
                "states": {"use": "hidden_cosine", "weight": 0.5, "layer_map": "last"},
            },
        },
    }
    recipe = folder / "config.yaml"
    recipe.write_text(json.dumps(config, indent=1))  # JSON is YAML
    parts = Parts(
        teacher=Custom(
            teacher, spec=spec, version=f"{rows} rows, {epochs} epochs", tokenizer=folder / "tokenizer"
        )
    )
    return run(recipe, parts=parts).path


if __name__ == "__main__":
    print(main())
