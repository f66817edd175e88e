"""Extra rows in which words are replaced: what is asked of a masked language model, and what its answers
make.

Arrays and texts only: the model is a function from questions to answers (`Ask`). Everything outside the
replaced words stays as it stands, to the letter, and a replacement takes over the case of its word. What is
drawn is keyed by (seed, row id, segment) and, inside that, by copy and word, so that a copy depends neither
on the rows around it nor on how many are asked at once. Each copy changes all segments of a row from the
original ones.

Shapes: P masked places, M candidates of a place, W words of a text.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from distillkit.data.tasks import Rows
from distillkit.errors import ModelError
from distillkit.settings import Augment
from distillkit.types import IGNORED

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Texts = tuple[str, ...]

STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        a an the i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his
        himself she her hers herself it its itself they them their theirs themselves this that these those who
        whom whose which what when where why how am is are was were be been being have has had having do does
        did doing done can could may might must shall should will would ought of in on at by for with from to
        into onto about against between among through during before after above below under over up down out
        off upon within without and or but nor if than then as because while until unless although though
        since so yet no not none never neither any some all each every both few more most other such only own
        same too very just also again further once here there now s t d m ll re ve don didn doesn isn aren
        wasn weren hasn haven hadn won wouldn couldn shouldn mustn ain
        """,
    )
)
"""English function words, which carry the sentence: articles and pronouns; forms of be, have and do, and
modal verbs; prepositions and conjunctions; negation, quantity, degree and place; what apostrophes leave."""
_WORD = re.compile(r"(?<!\w)[^\W\d_]+(?!\w)")
_DRAWS = 0x617567
_CHUNK = 1024
_ROWS = 100
"""Rows whose questions are held at once: a long row has one a word, each as long as the row."""


@dataclass(frozen=True)
class Word:
    """A replaceable word: characters [start, end) of its text, pieces [first, last) of its tokens."""

    start: int
    end: int
    first: int
    last: int

    @property
    def whole(self) -> bool:
        """One piece of the vocabulary."""
        return self.last == self.first + 1


@dataclass(frozen=True)
class Marked:
    """A text, its tokens without special ones, and its replaceable words."""

    text: str
    tokens: tuple[int, ...]
    words: tuple[Word, ...]

    def pieces(self, word: Word) -> tuple[int, ...]:
        return self.tokens[word.first : word.last]


@dataclass(frozen=True)
class Question:
    """A sequence with masks. places: positions of the masks in it; without: at each, a token that is no
    answer.
    """

    tokens: tuple[int, ...]
    types: tuple[int, ...]
    places: tuple[int, ...]
    without: tuple[int, ...]


@dataclass(frozen=True)
class Answers:
    """The likeliest whole words at each place of some questions, in the order of the places.

    words: `[P, M]` token ids, ascending, so that near ties do not change what is drawn; shares: `[P, M]`
    their probabilities among themselves.
    """

    words: Ints
    shares: Floats


Ask = Callable[[Sequence[Question]], Answers]
"""A masked language model: the likeliest whole words at every place of every question."""


@dataclass(frozen=True)
class Copy:
    """A row's texts with other words. row: position of the original; number: which copy of it."""

    row: int
    number: int
    texts: Texts


class Marker:
    """Finds the words of texts that may be replaced, and their tokens.

    A word is a run of letters with no letter, digit or combining mark beside it, which is not a stop word and
    whose pieces cover exactly its characters. Tokens are cut at `limit`: what a model would not read is not
    replaced either.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_words: Collection[str], limit: int) -> None:
        self.tokenizer, self.stop_words, self.limit = tokenizer, stop_words, limit

    def mark(self, texts: Sequence[str]) -> list[Marked]:
        encoded: Any = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            truncation=True,
            max_length=self.limit,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        parts = zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
        return [Marked(text, tuple(ids), tuple(self._words(text, spans))) for text, ids, spans in parts]

    def _words(self, text: str, spans: Sequence[tuple[int, int]]) -> Iterator[Word]:
        first, last = {}, {}
        for index, (start, end) in enumerate(spans):
            space = len(text[start:end]) - len(text[start:end].lstrip())  # which some tokenizers count in
            first[start + space], last[end] = index, index + 1
        for match in _WORD.finditer(text):
            start, end = match.span()
            stop = match[0].lower() in self.stop_words or _mark_at(text, start - 1) or _mark_at(text, end)
            if not stop and start in first and end in last:
                yield Word(start, end, first[start], last[end])


@dataclass(frozen=True)
class Frame:
    """What a tokenizer puts around one text, or around and between two; types: of each of the five parts."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    types: tuple[int, ...]
    mask: int

    @property
    def size(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)

    def around(self, first: tuple[int, ...], second: tuple[int, ...] = ()) -> tuple[Any, Any]:
        """(tokens, types) of a sequence of these texts."""
        parts = (self.before, first, self.between, second, self.after)
        types = (kind for kind, part in zip(self.types, parts, strict=True) for _ in part)
        return sum(parts, ()), tuple(types)


def frame(tokenizer: PreTrainedTokenizerBase, *, pair: bool) -> Frame:
    """The tokenizer's frame, read off a sequence that it makes of bare masks. Raises ModelError where it has
    no mask.
    """
    mask: Any = tokenizer.mask_token
    encoded: Any = (
        tokenizer(*([mask] * (1 + pair)), return_token_type_ids=True) if mask else {"input_ids": []}
    )
    ids = encoded["input_ids"]
    places = [index for index, token in enumerate(ids) if token == tokenizer.mask_token_id]
    if len(places) != 1 + pair:
        raise ModelError(
            "the tokenizer has no mask token",
            where="augment.model",
            hint="take a masked language model's folder",
        )
    start, end = places[0], places[-1]
    types = encoded["token_type_ids"]
    return Frame(
        before=tuple(ids[:start]),
        between=tuple(ids[start + 1 : end]),
        after=tuple(ids[end + 1 :]),
        types=(types[0], types[start], types[start], types[end], types[end]),
        mask=ids[start],
    )


@dataclass(frozen=True)
class Base:
    """What every replacer works with. vocabulary: token id -> word, the answers of `ask`; positions: longest
    sequence that `ask` takes.
    """

    settings: Augment
    marker: Marker
    ask: Ask
    frame: Frame
    vocabulary: Mapping[int, str]
    positions: int
    seed: int


class Replacer(ABC):
    """A way to replace words: makes the copies of some rows."""

    def __init__(self, base: Base) -> None:
        self.base, self.settings = base, base.settings

    @abstractmethod
    def segments(self, texts: Sequence[str], keys: Sequence[tuple[int, int]]) -> list[list[str]]:
        """`settings.copies` copies of each text; keys: the (row id, segment) that its draws depend on."""

    def copies(self, rows: Rows, positions: Sequence[int]) -> Iterator[Copy]:
        """The copies of the rows at these positions that differ from the row and from each other."""
        for start in range(0, len(positions), _ROWS):
            yield from self._copies_of(rows, positions[start : start + _ROWS])

    def _copies_of(self, rows: Rows, positions: Sequence[int]) -> Iterator[Copy]:
        places = [(row, segment) for row in positions for segment in range(len(rows.texts[row]))]
        texts = [rows.texts[row][segment] for row, segment in places]
        made = self.segments(texts, [(int(rows.ids[row]), segment) for row, segment in places])
        of_row: dict[int, list[list[str]]] = {}
        for (row, _), copies in zip(places, made, strict=True):
            of_row.setdefault(row, []).append(copies)
        for row, segments in of_row.items():
            seen = {rows.texts[row]}
            for number, copy in enumerate(zip(*segments, strict=True)):
                if copy not in seen:
                    seen.add(copy)
                    yield Copy(row, number, copy)

    def draws(self, key: tuple[int, int], words: int) -> Floats:
        """`[copies, W, 2]` numbers in [0, 1): whether a word is replaced, and by which candidate."""
        generator = np.random.default_rng([self.base.seed, _DRAWS, *key])
        return generator.random((self.settings.copies, words, 2))


class TinyBert(Replacer):
    """TinyBERT's augmentation (Jiao et al. 2020, algorithm 1): a word that is one piece is masked
    and asked for beside the original text, a word of several pieces takes its neighbours; each copy replaces
    each word with some probability by one of its candidates, all alike.

    Departures: candidates are whole words of letters, so that continuations of words take no places, and
    never the word itself; the text keeps its case and punctuation, and both texts of a pair are changed from
    the original ones in each copy (the released code keeps the last changed first text). A text longer than
    half the model's positions is seen through a window around the word.
    """

    def __init__(self, base: Base, neighbours: Mapping[tuple[int, ...], Texts]) -> None:
        super().__init__(base)
        self.neighbours = neighbours

    def segments(self, texts: Sequence[str], keys: Sequence[tuple[int, int]]) -> list[list[str]]:
        once = list(dict.fromkeys(texts))
        marked = dict(zip(once, self.base.marker.mark(once), strict=True))
        candidates = self._candidates(list(marked.values()))
        return [
            list(self._changed(marked[text], candidates[text], key))
            for text, key in zip(texts, keys, strict=True)
        ]

    def _candidates(self, marked: Sequence[Marked]) -> dict[str, list[Texts]]:
        """Text -> the candidates of each of its words."""
        asked = [self._question(one, word) for one in marked for word in one.words if word.whole]
        answers = iter(self.base.ask(asked).words.tolist())
        return {
            one.text: [
                tuple(self.base.vocabulary[token] for token in next(answers))
                if word.whole
                else self.neighbours.get(one.pieces(word), ())
                for word in one.words
            ]
            for one in marked
        }

    def _question(self, marked: Marked, word: Word) -> Question:
        """[masked ; original], cut to a window around the word."""
        room = (self.base.positions - self.base.frame.size) // 2
        start = max(0, min(word.first - room // 2, len(marked.tokens) - room))
        original = marked.tokens[start : start + room]
        place = word.first - start
        masked = (*original[:place], self.base.frame.mask, *original[place + 1 :])
        tokens, types = self.base.frame.around(masked, original)
        return Question(tokens, types, (len(self.base.frame.before) + place,), (original[place],))

    def _changed(self, marked: Marked, candidates: Sequence[Texts], key: tuple[int, int]) -> Iterator[str]:
        for draws_W2 in self.draws(key, len(marked.words)):
            changes = [
                (word, options[int(which * len(options))])
                for word, options, (whether, which) in zip(marked.words, candidates, draws_W2, strict=True)
                if options and whether < self.settings.probability
            ]
            yield replaced(marked.text, changes)


class MaskedWords(Replacer):
    """Contextual augmentation by a masked language model (Wu et al. 2019, "Conditional BERT Contextual
    Augmentation", without the condition): in each copy each word is chosen with some probability,
    the chosen ones are masked all at once, and each is drawn from the model's likeliest words, by their
    probabilities.

    Departures: the paper masks single pieces, and a label embedding may steer what is drawn; here words are
    masked, one of several pieces by one mask, and the teacher tells what became of the label. A word is never
    drawn in its own place.
    """

    def segments(self, texts: Sequence[str], keys: Sequence[tuple[int, int]]) -> list[list[str]]:
        marked = self.base.marker.mark(texts)
        draws = [self.draws(key, len(one.words)) for one, key in zip(marked, keys, strict=True)]
        chosen = [
            [self._chosen(one, draws_W2[:, 0]) for draws_W2 in of_text]
            for one, of_text in zip(marked, draws, strict=True)
        ]
        asked = [
            self._question(one, [one.words[index] for index in indices])
            for one, of_text in zip(marked, chosen, strict=True)
            for indices in of_text
            if indices
        ]
        answers = self.base.ask(asked)
        place = iter(range(len(answers.words)))
        return [
            [
                replaced(
                    one.text, [(one.words[w], self._drawn(answers, next(place), draws_W2[w, 1])) for w in ws]
                )
                for ws, draws_W2 in zip(of_text, drawn, strict=True)
            ]
            for one, of_text, drawn in zip(marked, chosen, draws, strict=True)
        ]

    def _chosen(self, marked: Marked, whether_W: Floats) -> list[int]:
        return [index for index in range(len(marked.words)) if whether_W[index] < self.settings.probability]

    def _question(self, marked: Marked, words: Sequence[Word]) -> Question:
        """The text with one mask in place of each of these words."""
        tokens: list[int] = []
        places, end = [], 0
        for word in words:
            tokens += marked.tokens[end : word.first]
            places.append(len(self.base.frame.before) + len(tokens))
            tokens.append(self.base.frame.mask)
            end = word.last
        framed, types = self.base.frame.around((*tokens, *marked.tokens[end:]))
        without = tuple(marked.tokens[word.first] if word.whole else self.base.frame.mask for word in words)
        return Question(framed, types, tuple(places), without)

    def _drawn(self, answers: Answers, place: int, uniform: float) -> str:
        shares_M = np.cumsum(answers.shares[place])
        index = int(np.searchsorted(shares_M, uniform * shares_M[-1], side="right"))
        return self.base.vocabulary[int(answers.words[place, min(index, len(shares_M) - 1)])]


def replaced(text: str, changes: Iterable[tuple[Word, str]]) -> str:
    """The text with other words in these places, in the case of what stood there; all else is kept."""
    pieces, end = [], 0
    for word, new in changes:
        pieces += [text[end : word.start], in_case(new, text[word.start : word.end])]
        end = word.end
    return "".join([*pieces, text[end:]])


def in_case(word: str, like: str) -> str:
    """The word in capitals where `like` is, or with a capital where it begins with one."""
    if len(like) > 1 and like.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if like[:1].isupper() else word


def whole_words(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Token id -> word, for the entries that are a word of letters by themselves: what the tokenizer makes of
    a space and that word is this entry alone. Raises ModelError where there are fewer than two.
    """
    special = set(tokenizer.all_special_ids)
    entries = [entry for entry in range(len(tokenizer)) if entry not in special]
    texts = [tokenizer.decode([entry]).strip() for entry in entries]
    spelled = [(entry, text) for entry, text in zip(entries, texts, strict=True) if _WORD.fullmatch(text)]
    again: Any = tokenizer([f" {text}" for _, text in spelled], add_special_tokens=False) if spelled else {}
    pairs = zip(spelled, again.get("input_ids", []), strict=True)
    found = {entry: text for (entry, text), ids in pairs if ids == [entry]}
    if len(found) < 2:
        raise ModelError(
            "the vocabulary has no whole words", where="augment.model", hint="take another model"
        )
    return found


def nearest(queries_QD: NDArray[np.float32], pool_ND: NDArray[np.float32], own_Q: Ints, count: int) -> Ints:
    """`[Q, M]` places in the pool with the largest cosine to each query, ascending; never a query's own (-1:
    it has none).
    """
    pool_ND, queries_QD = _unit(pool_ND), _unit(queries_QD)
    count = min(count, len(pool_ND) - 1)
    found = np.empty((len(queries_QD), count), dtype=np.int64)
    for start in range(0, len(queries_QD), _CHUNK):
        cosine_CN = queries_QD[start : start + _CHUNK] @ pool_ND.T
        own_C = own_Q[start : start + _CHUNK]
        with_own = np.flatnonzero(own_C >= 0)
        cosine_CN[with_own, own_C[with_own]] = -np.inf
        found[start : start + _CHUNK] = np.sort(np.argpartition(-cosine_CN, count - 1, axis=1)[:, :count])
    return found


def joined(rows: Rows, more: Rows) -> Rows:
    """Rows, and after them more, whose ids go on after the largest. Classes that `more` lacks are IGNORED;
    where it lacks targets, no row has one: there is no target that does not count.
    """
    labels = None
    if rows.labels is not None and more.labels is not None:
        labels = np.concatenate([rows.labels, more.labels])
    elif rows.labels is not None and rows.labels.dtype.kind == "i":
        labels = np.concatenate([rows.labels, np.full(len(more), IGNORED, dtype=rows.labels.dtype)])
    return replace(
        rows,
        ids=np.concatenate([rows.ids, rows.ids.max() + 1 + more.ids]),
        texts=rows.texts + more.texts,
        labels=labels,
        digest=_sha(f"{rows.digest} and {more.digest}"),
        tasks=rows.tasks if rows.tasks is None or more.tasks is None else rows.tasks.joined(more.tasks),
    )


def with_copies(rows: Rows, copies: Sequence[Copy], *, labels: Literal["none", "keep"], most: int) -> Rows:
    """Rows, and after them their copies; their digest is the caller's to set.

    labels: keep gives a copy its row's label; none gives it none, and where rows have targets, not classes,
    none to any row, since there is no target that does not count. most: copies that a row may have, which
    fixes the ids.
    """
    source = np.asarray([copy.row for copy in copies], dtype=np.int64)
    number = np.asarray([copy.number for copy in copies], dtype=np.int64)
    more = Rows(source * most + number, tuple(copy.texts for copy in copies), None, f"{most} copies")
    if labels == "keep" and rows.labels is not None:
        more = replace(more, labels=rows.labels[source])
    if rows.tasks is not None:
        more = replace(more, tasks=rows.tasks.take(source))
    return joined(rows, more)


def _mark_at(text: str, place: int) -> bool:
    """A combining mark, which is part of the letter before it."""
    return 0 <= place < len(text) and unicodedata.category(text[place]).startswith("M")


def _unit(vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return np.asarray(vectors_ND / np.maximum(norms, 1e-12), dtype=np.float32)


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
