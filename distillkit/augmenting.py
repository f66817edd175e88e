"""Augmentation of a phase's rows: the masked language model behind `data.augment`, and its copies on disk.

    cache/augment-<digest>-00000/  copies.jsonl  manifest.json

The digest covers the rows, the model's folder, the settings and the seed. A part holds the copies of some
rows and appears whole, so that a stopped or killed run goes on at the next one. The model computes in fp32
whatever the training's precision is, in batches that depend on the texts alone.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distillkit import files
from distillkit.data.augment import (
    STOP_WORDS,
    Answers,
    Base,
    Copy,
    Floats,
    Ints,
    Marker,
    MaskedWords,
    Question,
    Replacer,
    Texts,
    TinyBert,
    frame,
    nearest,
    whole_words,
    with_copies,
)
from distillkit.data.batching import sequential_batches
from distillkit.data.reading import check_file, file_digest, text_lines
from distillkit.data.tasks import Rows
from distillkit.data.tokenizers import load_tokenizer
from distillkit.encoder import Encoder, folder_digest, load_masked
from distillkit.errors import DataError
from distillkit.settings import Augment, RunConfig, TinybertAugment
from distillkit.types import Batch, Want

BATCH_TOKENS = 8192
"""Tokens that the model reads at once, padding included."""
PART_ROWS = 1000
"""Rows whose copies are written together: what a kill loses at most."""
POOL = 50_000
"""Words that can be neighbours of others: the most frequent ones."""
SAMPLE_ROWS = 3
"""Rows shown before anything is made."""
_FORMAT = 1


@dataclass(frozen=True)
class Augmentation:
    """How rows are augmented. model: a folder with a masked language model; vectors: a file of word vectors;
    max_length: tokens of a text that count, those of the task.
    """

    settings: Augment
    model: Path
    vectors: Path | None
    max_length: int
    seed: int

    @classmethod
    def of(cls, settings: Augment, pretrained: Path, base: Path, config: RunConfig) -> Augmentation:
        """pretrained: the folder that serves where the settings name none; paths are relative to `base`."""
        given = settings.vectors if isinstance(settings, TinybertAugment) else None
        return cls(
            settings=settings,
            model=pretrained if settings.model is None else base / settings.model,
            vectors=None if given is None else base / given,
            max_length=config.task.max_length,
            seed=config.seed,
        )


@dataclass(frozen=True)
class Place:
    """Where copies are made and kept. check: called between two batches, may raise to stop; tell: told how
    many of how many rows are done.
    """

    device: torch.device
    cache: Path
    check: Callable[[], None]
    tell: Callable[[int, int], None]


def augment(rows: Rows, how: Augmentation, place: Place) -> Rows:
    """The rows and their copies, made once and read from the cache ever after.

    Raises ModelError, DataError or ResourceError, and what `check` raises; whole parts are kept.
    """
    digest = _digest(rows, how)
    copies: list[Copy] = []
    replacer: Replacer | None = None
    for part, start in enumerate(range(0, len(rows), PART_ROWS)):
        folder = place.cache / f"augment-{digest[:32]}-{part:05d}"
        end = min(start + PART_ROWS, len(rows))
        if files.flaw(folder, hashes=True):
            replacer = replacer or open_replacer(rows, how, place)
            with files.appearing(folder, dict) as work:
                _write(work / "copies.jsonl", replacer.copies(rows, range(start, end)))
            place.tell(end, len(rows))
        copies += _read(folder / "copies.jsonl")
    settings = how.settings
    whole = with_copies(rows, copies, labels=settings.labels, most=settings.copies)
    return replace(whole, digest=digest)


def open_replacer(rows: Rows, how: Augmentation, place: Place) -> Replacer:
    """The model, and what it needs to replace words in these rows."""
    model = load_masked(how.model).to(place.device).eval()
    base = _base(how, model, place)
    if not isinstance(how.settings, TinybertAugment):
        return MaskedWords(base)
    known, count = known_words(base.marker, rows, place.check), how.settings.candidates
    if how.vectors is None:
        return TinyBert(base, neighbours_by_pieces(known, _embeddings(model.model), count))
    return TinyBert(base, neighbours_by_vectors(known, how.vectors, count))


def sample(rows: Rows, how: Augmentation, place: Place) -> list[tuple[Texts, Texts]]:
    """Some rows and a copy of each, to be looked at."""
    copies = open_replacer(rows, how, place).copies(rows, range(min(SAMPLE_ROWS, len(rows))))
    first = {copy.row: copy.texts for copy in reversed(list(copies))}
    return [(rows.texts[row], first[row]) for row in sorted(first)]


def check_model(how: Augmentation, place: Place) -> None:
    """Raise ModelError or DataError where the model or the vectors cannot be used, before anything is
    trained."""
    _base(how, load_masked(how.model), place)
    if how.vectors is not None:
        read_vectors(how.vectors, ())


def _base(how: Augmentation, model: Encoder, place: Place) -> Base:
    settings, tokenizer = how.settings, load_tokenizer(how.model)
    vocabulary, positions = whole_words(tokenizer), model.spec.max_length
    framed = frame(tokenizer, pair=isinstance(settings, TinybertAugment))
    return Base(
        settings=settings,
        marker=Marker(tokenizer, _stop_words(settings), min(how.max_length, positions - framed.size)),
        ask=MaskedModel(model, tokenizer, vocabulary, settings.candidates, place.check),
        frame=framed,
        vocabulary=vocabulary,
        positions=positions,
        seed=how.seed,
    )


class MaskedModel:
    """A masked language model as a function from questions to answers: whole words only, and no more of its
    head than the masked places need.
    """

    def __init__(
        self,
        model: Encoder,
        tokenizer: PreTrainedTokenizerBase,
        words: Collection[int],
        candidates: int,
        check: Callable[[], None],
    ) -> None:
        self.model, self.check = model, check
        self.pad = int(tokenizer.pad_token_id)
        self.words = torch.tensor(sorted(words), device=model.model.device)
        self.candidates = min(candidates, len(words) - 1)

    def __call__(self, questions: Sequence[Question]) -> Answers:
        lengths = np.asarray([len(question.tokens) for question in questions], dtype=np.int64)
        ends = np.cumsum([len(question.places) for question in questions])
        total = int(ends[-1]) if questions else 0
        words_PM = np.zeros((total, self.candidates), dtype=np.int64)
        shares_PM = np.zeros((total, self.candidates), dtype=np.float64)
        for batch in sequential_batches(lengths, tokens=BATCH_TOKENS):
            self.check()
            chosen = [questions[index] for index in batch]
            places = np.concatenate(
                [np.arange(ends[index] - len(questions[index].places), ends[index]) for index in batch]
            )
            words_PM[places], shares_PM[places] = self._likeliest(chosen)
        return Answers(words_PM, shares_PM)

    def _likeliest(self, questions: Sequence[Question]) -> tuple[Ints, Floats]:
        scores_PW = self._scores(questions)[:, self.words]
        without_P = torch.tensor(
            [token for question in questions for token in question.without], device=scores_PW.device
        )
        scores_PW = scores_PW.masked_fill(self.words == without_P[:, None], -torch.inf)
        chosen_PM = scores_PW.topk(self.candidates).indices.sort(dim=1).values
        shares_PM = scores_PW.gather(1, chosen_PM).double().softmax(dim=1)
        return self.words[chosen_PM].cpu().numpy(), shares_PM.cpu().numpy()

    def _scores(self, questions: Sequence[Question]) -> Tensor:
        """`[P, V]` logits of the masked places."""
        width = max(len(question.tokens) for question in questions)
        ids_BL = np.full((len(questions), width), self.pad, dtype=np.int64)
        types_BL = np.zeros_like(ids_BL)
        mask_BL, masked_BL = (np.zeros(ids_BL.shape, dtype=np.bool_) for _ in range(2))
        for row, question in enumerate(questions):
            size = len(question.tokens)
            ids_BL[row, :size], types_BL[row, :size] = question.tokens, question.types
            mask_BL[row, :size] = True
            masked_BL[row, list(question.places)] = True
        arrays = {"input_ids": ids_BL, "attention_mask": mask_BL.astype(np.int64), "token_type_ids": types_BL}
        batch = Batch(
            inputs={name: torch.from_numpy(array) for name, array in arrays.items()},
            labels=None,
            mask=torch.from_numpy(mask_BL),
            ids=torch.arange(len(questions)),
            scored=torch.from_numpy(masked_BL),
        )
        with torch.inference_mode():
            return self.model.outputs(batch.to(self.words.device), want=Want()).logits


@dataclass(frozen=True)
class Known:
    """A word of the rows: its pieces, and how it is written most often."""

    pieces: tuple[int, ...]
    written: str


def known_words(marker: Marker, rows: Rows, check: Callable[[], None]) -> list[Known]:
    """The replaceable words of the rows, the most frequent first (ties by their letters)."""
    counts: Counter[tuple[tuple[int, ...], str]] = Counter()
    texts = list(dict.fromkeys(text for texts in rows.texts for text in texts))
    for start in range(0, len(texts), PART_ROWS):
        check()
        for marked in marker.mark(texts[start : start + PART_ROWS]):
            counts.update((marked.pieces(word), marked.text[word.start : word.end]) for word in marked.words)
    often: Counter[tuple[int, ...]] = Counter()
    written: dict[tuple[int, ...], str] = {}
    for (pieces, form), count in sorted(counts.items(), key=lambda item: (-item[1], item[0][1])):
        often[pieces] += count
        written.setdefault(pieces, form)
    order = sorted(often, key=lambda pieces: (-often[pieces], written[pieces]))
    return [Known(pieces, written[pieces]) for pieces in order]


def neighbours_by_pieces(
    known: Sequence[Known], embeddings_VD: NDArray[np.float32], count: int
) -> dict[tuple[int, ...], Texts]:
    """Pieces of a word of several -> the known words nearest to it by cosine, where a word is the mean of its
    pieces' input embeddings.

    TinyBERT takes GloVe vectors, which need a file of their own (`vectors`); the embeddings of the model at
    hand stand in for them.
    """
    pool = known[:POOL]
    asked = [place for place, word in enumerate(known) if len(word.pieces) > 1]
    if not asked or len(pool) < 2:
        return {}
    own = np.asarray([place if place < POOL else -1 for place in asked], dtype=np.int64)
    queries_QD = _means([known[place].pieces for place in asked], embeddings_VD)
    found = nearest(queries_QD, _means([word.pieces for word in pool], embeddings_VD), own, count)
    return {
        known[place].pieces: tuple(pool[index].written for index in of_word)
        for place, of_word in zip(asked, found.tolist(), strict=True)
    }


def neighbours_by_vectors(known: Sequence[Known], path: Path, count: int) -> dict[tuple[int, ...], Texts]:
    """Pieces of a word of several -> the words nearest to it by cosine in a file of vectors; a word that the
    file does not hold, as it is written or in lower case, has none.
    """
    asked = [word for word in known if len(word.pieces) > 1]
    words, vectors_ND = read_vectors(path, {form for word in asked for form in _forms(word.written)})
    place = {word: index for index, word in enumerate(words)}
    held = {
        word.pieces: next(place[form] for form in _forms(word.written) if form in place)
        for word in asked
        if any(form in place for form in _forms(word.written))
    }
    if not held or len(words) < 2:
        return {}
    own = np.asarray(list(held.values()), dtype=np.int64)
    found = nearest(vectors_ND[own], vectors_ND, own, count)
    return {
        pieces: tuple(words[index] for index in of_word)
        for pieces, of_word in zip(held, found.tolist(), strict=True)
    }


def read_vectors(path: Path, wanted: Collection[str]) -> tuple[list[str], NDArray[np.float32]]:
    """(words, `[N, D]`) of a file in GloVe or word2vec text format, a word and its numbers a line: the first
    POOL words of letters, and beyond these the wanted ones. Raises DataError with the line where a vector is
    none, or has another size than the first.
    """
    check_file(path)
    words: dict[str, NDArray[np.float32]] = {}
    size = 0
    for number, line in text_lines(path, "utf-8", path.name.endswith(".gz")):
        word, *values = line.rstrip().split(" ")
        if number == 1 and len(values) == 1:
            continue  # word2vec's head: how many words, how many numbers
        if not word.isalpha() or word in words or (len(words) >= POOL and word not in wanted):
            continue
        words[word] = _vector(values, f"{path}:{number}")
        size = size or len(values)
        if len(values) != size:
            raise DataError(f"{len(values)} numbers, not {size}", where=f"{path}:{number}")
    if not words:
        raise DataError("the file holds no words of letters", where=str(path))
    return list(words), np.stack(list(words.values()))


def _vector(values: Sequence[str], where: str) -> NDArray[np.float32]:
    try:
        vector = np.asarray([float(value) for value in values], dtype=np.float32)
    except ValueError:
        vector = np.zeros(0, dtype=np.float32)
    if not len(vector) or not np.isfinite(vector).all():
        raise DataError(
            "not a word and its vector", where=where, hint="a line is a word and its numbers, one space apart"
        )
    return vector


def _forms(word: str) -> tuple[str, str]:
    return word, word.lower()


def _means(words: Sequence[tuple[int, ...]], embeddings_VD: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.stack([embeddings_VD[list(pieces)].mean(axis=0) for pieces in words])


def _embeddings(model: PreTrainedModel) -> NDArray[np.float32]:
    table: Tensor = model.get_input_embeddings().weight
    embeddings: NDArray[np.float32] = table.detach().float().cpu().numpy()
    return embeddings


def _stop_words(settings: Augment) -> frozenset[str]:
    if isinstance(settings.stop_words, list):
        return frozenset(settings.stop_words)
    return STOP_WORDS if settings.stop_words == "english" else frozenset()


def _digest(rows: Rows, how: Augmentation) -> str:
    vectors = "" if how.vectors is None else file_digest(how.vectors)
    parts = [
        _FORMAT,
        rows.digest,
        how.settings.identity(),
        folder_digest(how.model),
        vectors,
        how.max_length,
        how.seed,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _write(path: Path, copies: Iterable[Copy]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for copy in copies:
            file.write(json.dumps([copy.row, copy.number, *copy.texts]) + "\n")


def _read(path: Path) -> Iterator[Copy]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            row, number, *texts = json.loads(line)
            yield Copy(row, number, tuple(texts))
