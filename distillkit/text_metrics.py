"""How near written texts come to the wanted ones: exact match, BLEU, chrF, ROUGE, edits, as functions of sums
over rows, so that their bootstrap needs no text. numpy only, no torch.

All are shares from 0 to 1; BLEU and chrF times 100 are sacrebleu's corpus figures with its defaults (Post
2018). BLEU of texts of fewer than four words each is 0, as it is there.

Shapes: n rows, R resamples, M models, K sums.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from distillkit.metrics import Measured, interval, resample_sums

Floats = NDArray[np.float64]

WORD_ORDER, CHARACTER_ORDER = 4, 6
EDIT_BETA2 = 0.25
"""F0.5 counts precision twice as much as recall; squared."""
_BETA2 = 4.0
"""chrF counts recall beta = 2 times as much as precision; squared."""
_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
_SPLITS = (
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)
_WORD = re.compile(r"\w+")


def score_texts(
    wanted: Sequence[str],
    written: Sequence[str],
    *,
    sources: Sequence[str] = (),
    seed: int,
    resamples: int = 1000,
) -> dict[str, Measured]:
    """Every metric with its 95 % bootstrap interval over rows; with sources also those of edits."""
    sums = text_sums(wanted, written, sources)
    plain = text_metrics(sums.sum(axis=0, keepdims=True))
    drawn = text_metrics(resample_sums(sums[None], seed=seed, resamples=resamples)[0])
    return {name: interval(float(plain[name][0]), drawn[name], len(sums)) for name in plain}


def compare_texts(
    wanted: Sequence[str],
    first: Sequence[str],
    second: Sequence[str],
    *,
    sources: Sequence[str] = (),
    seed: int,
    resamples: int = 1000,
) -> dict[str, Measured]:
    """Metrics of `first` minus those of `second`, with paired bootstrap intervals."""
    sums_MnK = np.stack([text_sums(wanted, one, sources) for one in (first, second)])
    plain = [text_metrics(sums.sum(axis=0, keepdims=True)) for sums in sums_MnK]
    drawn = [text_metrics(sums) for sums in resample_sums(sums_MnK, seed=seed, resamples=resamples)]
    return {
        name: interval(
            float(plain[0][name][0] - plain[1][name][0]), drawn[0][name] - drawn[1][name], len(wanted)
        )
        for name in plain[0]
    }


def text_sums(wanted: Sequence[str], written: Sequence[str], sources: Sequence[str] = ()) -> Floats:
    """`[n, K]` what each row adds to the sums: that it is a row, whether it is exact, lengths and n-grams of
    BLEU, n-grams of chrF, ROUGE-1, -2 and -L; with sources written, wanted and right edits of these.
    """
    rows = [list(_row(left, right)) for left, right in zip(wanted, written, strict=True)]
    if sources:
        triples = zip(rows, sources, wanted, written, strict=True)
        rows = [[*row, *_edit_counts(*texts)] for row, *texts in triples]
    return np.asarray(rows, dtype=np.float64).reshape(len(rows), -1)


def text_metrics(sums_RK: Floats) -> dict[str, Floats]:
    """Every metric of sums, each `[R]`."""
    bleu = 2 + 2 + 2 * WORD_ORDER
    chrf = bleu + 3 * CHARACTER_ORDER
    rows_R = sums_RK[:, 0]
    return {
        "exact_match": sums_RK[:, 1] / rows_R,
        "bleu": bleu_of(sums_RK[:, 2:bleu]),
        "chrf": chrf_of(sums_RK[:, bleu:chrf]),
        **{name: sums_RK[:, chrf + at] / rows_R for at, name in enumerate(("rouge1", "rouge2", "rouge_l"))},
        **(edit_metrics(sums_RK[:, chrf + 3 :]) if sums_RK.shape[1] > chrf + 3 else {}),
    }


def edit_metrics(sums_R3: Floats) -> dict[str, Floats]:
    """Precision, recall and F0.5 of edits, from written, wanted and right ones. Where nothing was written (or
    wanted), nothing of it was wrong, as the scorers of shared tasks have it (Dahlmeier and Ng 2012).
    """
    written_R, wanted_R, right_R = sums_R3.T
    precision_R, recall_R = (
        np.divide(right_R, all_R, out=np.ones_like(right_R), where=all_R > 0)
        for all_R in (written_R, wanted_R)
    )
    weighted_R = EDIT_BETA2 * precision_R + recall_R
    both_R = (1 + EDIT_BETA2) * precision_R * recall_R
    return {
        "edit_precision": precision_R,
        "edit_recall": recall_R,
        "edit_f05": np.divide(both_R, weighted_R, out=np.zeros_like(both_R), where=weighted_R > 0),
    }


def edits_of(source: str, text: str) -> set[tuple[int, int, tuple[str, ...]]]:
    """What was changed in a source: the first word of each changed run, the word behind it, and what stands
    in their place. Runs lie between words that stayed, matched as difflib matches them; words are those of
    BLEU. Nothing is known of grammar, by which ERRANT (Bryant et al. 2017) splits and joins edits.
    """
    before, after = words_of(source), words_of(text)
    matched = difflib.SequenceMatcher(None, before, after, autojunk=False)
    return {
        (start, end, tuple(after[first:last]))
        for kind, start, end, first, last in matched.get_opcodes()
        if kind != "equal"
    }


def bleu_of(sums_RK: Floats) -> Floats:
    """Corpus BLEU (Papineni et al. 2002) from the lengths of written and wanted texts, right n-grams and
    written n-grams of orders 1 to 4. An order without a right n-gram counts as 1 / 2, 1 / 4, ... of one
    (sacrebleu's exponential smoothing), unless there is none at all.
    """
    return _bleu_over(sums_RK, np.ones((len(sums_RK), WORD_ORDER), dtype=bool))


def _bleu_over(sums_RK: Floats, orders_RN: NDArray[np.bool_]) -> Floats:
    """BLEU as the mean over some orders."""
    written_R, wanted_R = sums_RK[:, 0], sums_RK[:, 1]
    right, total = sums_RK[:, 2 : 2 + WORD_ORDER], sums_RK[:, 2 + WORD_ORDER :]
    halvings = np.cumsum((right == 0) & (total > 0), axis=1)
    counted = np.where(right > 0, right, 0.5**halvings)
    usable = ((total > 0) | ~orders_RN).all(axis=1) & (right > 0).any(axis=1)
    precisions = np.divide(counted, total, out=np.ones_like(counted), where=total > 0)
    shortness = np.divide(wanted_R, written_R, out=np.ones_like(wanted_R), where=written_R > 0)
    penalty = np.where(written_R < wanted_R, np.exp(1 - shortness), 1.0)
    logs_R = np.where(orders_RN, np.log(precisions), 0.0).sum(axis=1) / orders_RN.sum(axis=1).clip(1)
    return np.where(usable, penalty * np.exp(logs_R), 0.0)


def sentence_bleu(wanted: Sequence[str], written: Sequence[str]) -> Floats:
    """`[n]` BLEU of each row by itself, over those orders that its text has n-grams of (sacrebleu's
    `sentence_bleu`).
    """
    sums_nK = np.asarray([list(_bleu(*pair)) for pair in zip(wanted, written, strict=True)])
    return _bleu_over(sums_nK, sums_nK[:, 2 + WORD_ORDER :] > 0)


def chrf_of(sums_RK: Floats) -> Floats:
    """chrF2 (Popovic 2015) from written, wanted and right character n-grams of orders 1 to 6: precision and
    recall are meaned over the orders that both sides have.
    """
    written, wanted, right = (sums_RK[:, at::3] for at in range(3))
    both = (written > 0) & (wanted > 0)
    orders_R = np.maximum(1, both.sum(axis=1))
    zero = np.zeros_like(right)
    precision_R = np.divide(right, written, out=zero.copy(), where=both).sum(axis=1) / orders_R
    recall_R = np.divide(right, wanted, out=zero.copy(), where=both).sum(axis=1) / orders_R
    weighted_R = _BETA2 * precision_R + recall_R
    result: Floats = np.divide(
        (1 + _BETA2) * precision_R * recall_R, weighted_R, out=np.zeros_like(weighted_R), where=weighted_R > 0
    )
    return result


def words_of(text: str) -> list[str]:
    """The words that BLEU compares: mteval-v13a's, which sacrebleu takes by default."""
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in _ENTITIES:
        text = text.replace(entity, character)
    text = f" {text} "
    for pattern, spaced in _SPLITS:
        text = pattern.sub(spaced, text)
    return text.split()


def longest_common(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    lengths = [0] * (len(right) + 1)
    for word in left:
        before = 0
        for at, other in enumerate(right, start=1):
            before, lengths[at] = (
                lengths[at],
                before + 1 if word == other else max(lengths[at], lengths[at - 1]),
            )
    return lengths[-1]


def _row(wanted: str, written: str) -> Iterator[float]:
    yield 1.0
    yield float(_plain(wanted) == _plain(written))
    for parts in (_bleu, _chrf, _rouge):
        yield from parts(wanted, written)


def _edit_counts(source: str, wanted: str, written: str) -> Iterator[float]:
    made, asked = edits_of(source, written), edits_of(source, wanted)
    yield from map(float, (len(made), len(asked), len(made & asked)))


def _bleu(wanted: str, written: str) -> Iterator[float]:
    left, right = words_of(wanted), words_of(written)
    yield float(len(right))
    yield float(len(left))
    orders = range(1, WORD_ORDER + 1)
    yield from (float(_shared(_grams(left, order), _grams(right, order))) for order in orders)
    yield from (float(max(0, len(right) - order + 1)) for order in orders)


def _chrf(wanted: str, written: str) -> Iterator[float]:
    left, right = ("".join(text.split()) for text in (wanted, written))
    for order in range(1, CHARACTER_ORDER + 1):
        theirs, mine = _grams(left, order), _grams(right, order)
        yield float(mine.total() if theirs else 0)  # an order that the wanted text does not have
        yield float(theirs.total())
        yield float(_shared(theirs, mine))


def _rouge(wanted: str, written: str) -> Iterator[float]:
    """F1 of ROUGE-1, -2 and -L (Lin 2004) on words in lower case, without stemming; words are runs of letters
    and digits of any alphabet, where the published code knows a to z.
    """
    left, right = (_WORD.findall(text.lower()) for text in (wanted, written))
    for order in (1, 2):
        theirs, mine = _grams(left, order), _grams(right, order)
        yield _f1(_shared(theirs, mine), theirs.total(), mine.total())
    yield _f1(longest_common(left, right), len(left), len(right))


def _grams(items: Sequence[str], order: int) -> Counter[tuple[str, ...] | str]:
    return Counter(
        items[at : at + order] if isinstance(items, str) else tuple(items[at : at + order])
        for at in range(len(items) - order + 1)
    )


def _shared(left: Counter[tuple[str, ...] | str], right: Counter[tuple[str, ...] | str]) -> int:
    return (left & right).total()


def _f1(right: int, wanted: int, written: int) -> float:
    return 2 * right / (wanted + written) if wanted + written else 0.0


def _plain(text: str) -> str:
    return " ".join(text.split())
