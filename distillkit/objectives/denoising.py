"""Encoder-decoders that say what was corrupted: the objectives of T5 and BART.

The loss is the mean cross-entropy over all target tokens, what ends or begins a text included.

Shapes: B texts, L tokens of the inputs, T of the targets, V vocabulary entries.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from distillkit.data.masking import Bool, Ints
from distillkit.data.spans import Row
from distillkit.errors import ConfigError
from distillkit.flops import HONEST, Stacks
from distillkit.objectives.base import Examples, LossTerm, inputs_of
from distillkit.objectives.corpus import Corpus, CorpusObjective, read_corpus
from distillkit.objectives.corrupted import share
from distillkit.objectives.noise import Keys, Vocabulary
from distillkit.objectives.pairs import Pairing
from distillkit.objectives.passages import JoinedDocuments, Passages, WholeSentences
from distillkit.types import IGNORED, Batch

TERM = "denoising"
"""Name of the loss."""


@dataclass(frozen=True)
class Denoised:
    """The texts of an epoch, and the tokens of the inputs that each becomes, about."""

    passages: Passages
    lengths: Ints


class Denoising(CorpusObjective):
    """An encoder reads corrupted texts, a decoder says what `pairing` asks of it."""

    def __init__(self, pairing: Pairing, vocabulary: Vocabulary) -> None:
        self.pairing, self.vocabulary = pairing, vocabulary

    @abstractmethod
    def passages(self, corpus: Corpus, raw: int, *, epoch: int, seed: int) -> Passages:
        """Texts of at most `raw` tokens."""

    def raw_length(self, max_length: int) -> int:
        """Most tokens of a text whose inputs have at most `max_length`.

        Raises ConfigError where that takes more sentinels than there are.
        """
        raw = self.pairing.raw_length(max_length - self.vocabulary.framing)
        needed = self.pairing.sentinels(raw)
        if needed > self.vocabulary.sentinels:
            raise ConfigError(
                f"sequences of {max_length} tokens need {needed} sentinels, and there are "
                f"{self.vocabulary.sentinels}",
                where="teacher.sentinels",
                hint="raise it, or teacher.mean_span, or lower teacher.pretrain.max_length",
            )
        return raw

    def examples(self, folder: Path, *, epoch: int, seed: int) -> Denoised:
        corpus = read_corpus(folder)
        raw = self.raw_length(corpus.facts["max_length"])
        passages = self.passages(corpus, raw, epoch=epoch, seed=seed)
        kinds, which = np.unique(passages.sizes, return_inverse=True)
        read = [round(self.pairing.sizes(int(size))[0]) + self.vocabulary.framing for size in kinds]
        return Denoised(passages, np.asarray(read, dtype=np.int64)[which])

    def collate(self, examples: Examples, rows: Sequence[int], *, epoch: int, seed: int) -> Batch:
        """Inputs are cut where a rare draw makes them longer than `max_length`."""
        assert isinstance(examples, Denoised)
        index = np.asarray(rows, dtype=np.int64)
        text = examples.passages.text(index)
        inputs, targets = self.pairing(text, self.vocabulary, Keys(seed, epoch, index))
        ids_BL, real_BL = self._framed(inputs, examples.passages.corpus.facts["max_length"])
        target_BT, said_BT = self._target(targets)
        read_BT = np.where(said_BT, target_BT, self.vocabulary.pad)
        read_BT = np.pad(read_BT, ((0, 0), (1, 0)), constant_values=self.vocabulary.start)[:, :-1]
        mask = torch.from_numpy(real_BL)
        return Batch(
            inputs={
                "input_ids": torch.from_numpy(ids_BL),
                "attention_mask": mask.long(),
                "decoder_input_ids": torch.from_numpy(read_BT),
            },
            labels=torch.from_numpy(np.where(said_BT, target_BT, IGNORED)),
            mask=mask,
            ids=torch.from_numpy(index),
            full=bool(real_BL.all()),
            epoch=epoch,
        )

    def counts(self, batch: Batch) -> Mapping[str, int]:
        assert batch.labels is not None
        return {TERM: int((batch.labels != IGNORED).sum())}

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, LossTerm]:
        assert batch.labels is not None
        scores_NV = model(**inputs_of(batch), use_cache=False).logits.flatten(0, 1)
        labels_N = batch.labels.flatten()
        count = self.counts(batch)[TERM]
        summed = functional.cross_entropy(scores_NV.float(), labels_N, ignore_index=IGNORED, reduction="sum")
        said_N = labels_N != IGNORED
        right_N = (scores_NV.detach().argmax(-1) == labels_N)[said_N]
        told = {
            "token_accuracy": share(right_N),
            **self._told(batch.inputs["input_ids"], batch.mask, batch.labels),
        }
        return {TERM: LossTerm(summed / max(1, count), count, tallies=told)}

    def figures(self, tallies: Mapping[str, Tensor]) -> Mapping[str, float]:
        pairs = {name: sums.tolist() for name, sums in tallies.items()}
        return {name: part / whole for name, (part, whole) in pairs.items() if whole}

    def flops(self, model: nn.Module, length: int) -> float:
        """Of a text that fills a sequence of so many tokens, with inputs and targets of mean length."""
        assert isinstance(model, PreTrainedModel)
        return HONEST.encoder_decoder(Stacks.of(model.config), *self._foreseen(length))

    def metrics(self, examples: Examples) -> Mapping[str, float]:
        assert isinstance(examples, Denoised)
        sizes = examples.passages.sizes
        said = [self.pairing.sizes(int(size))[1] + self._closing for size in np.unique(sizes)]
        counts = np.unique(sizes, return_counts=True)[1]
        return {
            "sequences": float(len(sizes)),
            "tokens": float(sizes.sum()),
            "mean_length": float(sizes.mean()),
            "mean_input": float(examples.lengths.mean()),
            "mean_target": float(np.average(said, weights=counts)),
        }

    def _foreseen(self, length: int) -> tuple[int, int]:
        """Tokens of the inputs and of the targets of a text that fills a sequence, on average."""
        read, said = self.pairing.sizes(self.raw_length(length))
        return round(read) + self.vocabulary.framing, round(said) + self._closing

    @property
    def _closing(self) -> int:
        """Tokens that stand around a target."""
        return 0 if self.pairing.closed else self.vocabulary.framing

    def _framed(self, row: Row, most: int) -> tuple[Ints, Bool]:
        """(ids with what stands around a text, where they are real)."""
        ids_BL, lengths_B = row
        before = self.vocabulary.before
        kept_B = np.minimum(lengths_B, most - self.vocabulary.framing)
        position = np.arange(int(kept_B.max()) + self.vocabulary.framing)
        inner = np.clip(position - len(before), 0, ids_BL.shape[1] - 1)
        end = kept_B[:, None] + len(before)
        made = np.where(position < end, ids_BL[:, inner], self.vocabulary.eos)
        made[:, : len(before)] = before
        real = position <= end
        return np.where(real, made, self.vocabulary.pad).astype(np.int64), real

    def _target(self, row: Row) -> tuple[Ints, Bool]:
        if not self.pairing.closed:
            return self._framed(row, int(row[1].max()) + self.vocabulary.framing)
        return row[0], np.arange(row[0].shape[1]) < row[1][:, None]

    def _told(self, read: Tensor, real: Tensor, said: Tensor) -> dict[str, Tensor]:
        """Tallies of two numbers, part and whole, of the inputs' ids and where they are real, and the labels.
        removed: the share of the text's tokens that is not seen; marks: sentinels or masks of a text.
        """
        marks, text_read = self._kinds(read)
        text_said = self._kinds(said)[1]
        hidden = text_said - text_read if self.pairing.rebuilds else text_said
        whole = text_said if self.pairing.rebuilds else text_said + text_read
        texts = torch.tensor(float(len(read)), device=read.device)
        return {
            "removed": torch.stack([hidden, whole]),
            "marks": torch.stack([marks, texts]),
            "input_length": torch.stack([real.sum().float(), texts]),
            "target_length": torch.stack([(said != IGNORED).sum().float(), texts]),
        }

    def _kinds(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(how many are sentinels or masks, how many stand for text)."""
        known = self.vocabulary
        marks = (ids <= known.sentinel) & (ids > known.sentinel - known.sentinels)
        special = torch.from_numpy(known.special).to(ids.device)
        text = (ids != IGNORED) & ~torch.isin(ids, special)
        return marks.sum().float(), text.sum().float()


class T5Objective(Denoising):
    """Texts of one length from joined documents, so that inputs are as long as they may be (Raffel et al.
    2020, section 3.1.4)."""

    def passages(self, corpus: Corpus, raw: int, *, epoch: int, seed: int) -> Passages:
        generator = np.random.default_rng([seed, epoch, 0x7374726D])
        closing = (self.vocabulary.eos,) if self.pairing.closed else ()
        return JoinedDocuments.drawn(corpus, raw, generator, closing)


class BartObjective(Denoising):
    """Whole sentences of one document (Lewis et al. 2020, section 2); no dropout in the last `calm` share of
    the steps (section 5.1: a tenth)."""

    def __init__(self, pairing: Pairing, vocabulary: Vocabulary, *, calm: float = 0.1) -> None:
        super().__init__(pairing, vocabulary)
        self.calm = calm

    def passages(self, corpus: Corpus, raw: int, *, epoch: int, seed: int) -> Passages:
        return WholeSentences.packed(corpus, raw)

    def go_to(self, model: nn.Module, step: int, total: int) -> None:
        model.train(step < (1 - self.calm) * total)
