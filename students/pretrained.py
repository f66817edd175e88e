"""A student that starts from the body of any Hugging Face encoder folder, or from an encoder-decoder: the
student of a run without labels, or a small published model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from distillkit.data.tokenizers import load_tokenizer
from distillkit.data.vocabularies import check_agreement, read_otherwise
from distillkit.encoder import folder_digest, load_config
from distillkit.errors import ConfigError, ModelError
from distillkit.model import Student, StudentSource, Teacher
from distillkit.opening import OPENINGS, open_model
from distillkit.settings import EVERY_KIND, Folder, Labels
from distillkit.types import Finding


class Pretrained(StudentSource):
    """A Hugging Face encoder folder (safetensors only) whose body starts the student; its head is fresh, or
    the folder's own on an mlm task. A task on texts takes the folder of an encoder-decoder, whole.

    The run feeds it the teacher's token ids, so every id must be the same token in both tokenizers.

    Settings:
        path: Folder with config.json, *.safetensors and tokenizer files.
    """

    kinds = EVERY_KIND

    def __init__(self, *, path: Folder) -> None:
        self.path = Path(path)

    @property
    def origins(self) -> Sequence[Path]:
        return [self.path]

    def fingerprint(self) -> str:
        return folder_digest(self.path)

    def build(
        self, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int, teacher: Teacher
    ) -> Student:
        opening = OPENINGS[labels.kind]
        spec = opening.spec(load_config(self.path))
        if max_length > spec.max_length:
            raise ConfigError(
                f"max_length {max_length} is more than the student's {spec.max_length} positions",
                where="task.max_length",
                hint=f"at most {spec.max_length}",
            )
        own = load_tokenizer(self.path)
        if len(own) > spec.vocab_size:
            raise ModelError(
                f"the tokenizer has {len(own)} entries, the embeddings {spec.vocab_size} rows",
                where=str(self.path),
                hint="they belong to different models",
            )
        check_agreement(tokenizer, own, where=str(self.path))
        return opening.start(self.path, labels)

    def load(self, folder: Path) -> Student:
        return open_model(folder)

    def findings(
        self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, ...]]
    ) -> Sequence[Finding]:
        own = load_tokenizer(self.path)
        agree = f"its tokenizer knows {len(own):,} tokens, the teacher's {len(tokenizer):,} agree id by id"
        found = [Finding("fact", "student", agree)]
        differ = read_otherwise(tokenizer, own, texts)
        if differ:
            words = (
                f"{differ} of {len(texts)} texts are other token ids by its own tokenizer than the teacher's"
            )
            found.append(
                Finding("warning", "student", f"{words}: its body was trained on text read otherwise")
            )
        return found
