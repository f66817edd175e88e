"""Any Hugging Face encoder folder, or an encoder-decoder, as a teacher: already fine-tuned, or fine-tuned
here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from distillkit.data.tokenizers import load_tokenizer
from distillkit.encoder import Encoder, folder_digest, load_config, stored_weights
from distillkit.errors import ConfigError, ModelError
from distillkit.heads import HEADS
from distillkit.model import Student, TrainableTeacherSource
from distillkit.opening import OPENINGS, open_model
from distillkit.settings import EVERY_KIND, FinetuneSettings, Folder, Labels
from distillkit.types import Finding

_HEADS = ("classifier", "score", "classification_head")
"""What the families of `transformers` call the head that answers a task."""


class Pretrained(TrainableTeacherSource):
    """A Hugging Face encoder folder (safetensors only), fine-tuned on the task where `finetune` is set.

    Settings:
        path: Folder with config.json, *.safetensors and tokenizer files.
        finetune: Train it on the task first; without it the folder's own head must answer the task. An mlm
            task always takes the folder's own head, and a task on texts an encoder-decoder as it is.
    """

    kinds = EVERY_KIND

    def __init__(self, *, path: Folder, finetune: FinetuneSettings | None = None) -> None:
        self.path, self.finetune = Path(path), finetune
        self.pretrain = None

    @property
    def origins(self) -> Sequence[Path]:
        return [self.path]

    def fingerprint(self) -> str:
        return folder_digest(self.path)

    def tokenizer(self, corpus: Iterable[str]) -> PreTrainedTokenizerBase:
        tokenizer = load_tokenizer(self.path)
        rows = load_config(self.path).vocab_size
        if len(tokenizer) > rows:
            raise ModelError(
                f"the tokenizer has {len(tokenizer)} entries, the embeddings {rows} rows",
                where=str(self.path),
                hint="they belong to different models",
            )
        return tokenizer

    def classifier(
        self, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int, pretrained: Path | None
    ) -> Student:
        opening = OPENINGS[labels.kind]
        limit = opening.spec(load_config(self.path)).max_length
        if max_length > limit:
            raise ConfigError(
                f"max_length {max_length} is more than the model's {limit} positions",
                where="task.max_length",
                hint=f"at most {limit}",
            )
        if self.finetune is not None or opening.own_head:
            return opening.start(self.path, labels)
        if not any(head in name for head in _HEADS for name in stored_weights(self.path)):
            raise ModelError(
                "the folder has no classification head: it was never trained on a task",
                where=str(self.path),
                hint="add `finetune` to the teacher",
            )
        model = Encoder.load(self.path)
        if model.head.suffix != HEADS[labels.kind].suffix:
            raise ModelError(
                f"the folder's model is made {model.head.suffix}, the task is {labels.kind}",
                where=str(self.path),
                hint="add `finetune` to the teacher: it keeps the body and trains a new head",
            )
        _order_labels(model, labels, self.path)
        return model

    def load(self, folder: Path) -> Student:
        return open_model(folder)

    def findings(self, labels: Labels) -> Sequence[Finding]:
        if self.finetune is not None or labels.kind != "classification":
            return ()
        theirs = list(load_config(self.path).id2label.values())
        if theirs == list(labels.names):
            return [Finding("fact", "teacher", "its labels are the task's, in the same order")]
        moved = ", ".join(
            f"its {theirs.index(name)} is {index} ({name})" for index, name in enumerate(labels.names)
        )
        return [Finding("fact", "teacher", f"its labels are put into the task's order by name: {moved:.300}")]


def _order_labels(model: Encoder, labels: Labels, folder: Path) -> None:
    """Put the head's rows into the task's order of labels, by name. Raises ModelError where the names
    differ.
    """
    theirs = [model.model.config.id2label[index] for index in range(model.spec.num_labels)]
    if len(theirs) != labels.num_labels:
        raise ModelError(
            f"the model has {len(theirs)} labels, the task {labels.num_labels}",
            where=str(folder),
            hint="add `finetune`, or use the data it was trained on",
        )
    if labels.kind == "regression" or theirs == list(labels.names):
        return
    if set(theirs) != set(labels.names):
        raise ModelError(
            f"the model's labels {theirs} are not the task's {list(labels.names)}",
            where=str(folder),
            hint="rename them in the data or in config.json: labels are matched by name",
        )
    order = torch.tensor([theirs.index(name) for name in labels.names])
    head = [
        part
        for part in model.model.modules()
        if isinstance(part, nn.Linear) and part.out_features == len(theirs)
    ][-1]
    with torch.no_grad():
        head.weight.copy_(head.weight[order].clone())
        if head.bias is not None:
            head.bias.copy_(head.bias[order].clone())
