"""What a pretrained encoder has learnt, asked without training it: linear probes of its states on chunking
(CoNLL-2000), and minimal pairs (BLiMP).

Ties in minimal pairs count half: a model that scores everything alike gets 0.5, not 1. Shapes: B sentences,
L tokens, N words, D width, C tags.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import DATA
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer

from distillkit.data.batching import Encoded, collate, encode, sequential_batches
from distillkit.data.tasks import load_task
from distillkit.encoder import Encoder, load_body
from distillkit.settings import TaskSettings
from distillkit.types import Access, Want

SPLITS = ("train", "validation", "test")
TOKENS = 8192
PAIRS_EACH = 20
"""Of the 300 minimal pairs of each of BLiMP's 67 paradigms."""
PENALTY = 1e-4
"""On the squared weights of a probe, whose loss is a mean over words."""
ITERATIONS = 30
"""Of L-BFGS."""
FITTED = 2400
"""Training sentences that a chunking probe is fitted on, evenly over the file."""


@dataclass(frozen=True)
class Words:
    """The states of each word's first piece, after each block `[N, D]`; gold tags and sentences `[N]`."""

    states: list[Tensor]
    gold: Tensor
    sentence: Tensor


class Probe:
    """A softmax over tags of standardised states, fitted by L-BFGS."""

    def __init__(self, states_ND: Tensor, gold_N: Tensor, tags: int) -> None:
        self.mean_D, self.scale_D = states_ND.mean(0), states_ND.std(0).clamp_min(1e-6)
        self.weight_CD = torch.zeros(tags, states_ND.shape[1], requires_grad=True)
        self.bias_C = torch.zeros(tags, requires_grad=True)
        inputs_ND = (states_ND - self.mean_D) / self.scale_D
        solver = torch.optim.LBFGS(
            [self.weight_CD, self.bias_C], max_iter=ITERATIONS, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            solver.zero_grad()
            scores_NC = functional.linear(inputs_ND, self.weight_CD, self.bias_C)
            value = functional.cross_entropy(scores_NC, gold_N) + PENALTY * self.weight_CD.square().sum()
            value.backward()
            return value

        solver.step(loss)

    def right(self, states_ND: Tensor, gold_N: Tensor) -> Tensor:
        """`[N]` whether the likeliest tag is the gold one."""
        with torch.no_grad():
            inputs_ND = (states_ND - self.mean_D) / self.scale_D
            return functional.linear(inputs_ND, self.weight_CD, self.bias_C).argmax(-1) == gold_N


def chunking(folder: Path, max_length: int) -> dict[str, Any]:
    """A probe of each block's output (0: of the first block's input); the block is chosen on validation
    words. accuracy: by block on these; right: how many words of each test sentence, words: of so many.
    """
    settings = TaskSettings(
        kind="token_classification",
        text="tokens",
        label="tags",
        on_bad_row="skip",  # one test sentence has a tag that training never shows
        max_length=max_length,
        **{split: str(DATA / "conll2000_chunks" / f"{split}.jsonl.gz") for split in SPLITS},
    )
    task = load_task(settings, base=Path(), seed=0)
    assert task.test is not None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = load_body(folder, task.labels).eval()
    chosen = np.linspace(0, len(task.train) - 1, FITTED).astype(np.int64)
    fitted = task.train.take(chosen, "fitted")
    with tempfile.TemporaryDirectory() as cache:
        train, validation, test = (
            words_of(model, encode(rows, tokenizer, max_length=max_length, cache=Path(cache)))
            for rows in (fitted, task.validation, task.test)
        )
    probes = [Probe(states, train.gold, len(task.labels.names)) for states in train.states]
    accuracy = [
        float(probe.right(states, validation.gold).float().mean())
        for probe, states in zip(probes, validation.states, strict=True)
    ]
    best = int(np.argmax(accuracy))
    right_N = probes[best].right(test.states[best], test.gold).double()
    right = torch.bincount(test.sentence, weights=right_N).long()
    words = torch.bincount(test.sentence)
    return {
        "block": best,
        "accuracy": accuracy,
        "right": right.tolist(),
        "words": words.tolist(),
    }


def words_of(model: Encoder, encoded: Encoded) -> Words:
    """What a model makes of each word that has a tag."""
    states: list[list[Tensor]] = []
    gold, sentence = [], []
    with torch.inference_mode():
        for rows in sequential_batches(encoded.lengths, tokens=TOKENS):
            batch = collate(encoded, rows)
            assert batch.scored is not None and batch.targets is not None
            hidden = model.outputs(batch, want=Want(access=Access.ALL_STATES)).hidden
            states.append([layer_BLD[batch.scored] for layer_BLD in hidden])
            gold.append(batch.targets)
            sentence.append(torch.from_numpy(rows)[batch.scored.nonzero()[:, 0]])
    by_block = [torch.cat(parts).clone() for parts in zip(*states, strict=True)]
    return Words(by_block, torch.cat(gold).clone(), torch.cat(sentence).clone())


def minimal_pairs(folder: Path, scorer: Callable[[Path], Scorer]) -> dict[str, float]:
    """Phenomenon -> share of the pairs whose good sentence scores higher, ties as half; `all`: over pairs."""
    with gzip.open(DATA / "blimp" / "test.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    seen: dict[str, int] = {}
    kept = []
    for row in rows:
        seen[row["uid"]] = seen.get(row["uid"], 0) + 1
        if seen[row["uid"]] <= PAIRS_EACH:
            kept.append(row)
    score = scorer(folder)
    good, bad = (np.asarray(score([row[side] for row in kept])) for side in ("good", "bad"))
    won = np.where(good == bad, 0.5, good > bad)
    phenomena = np.asarray([row["phenomenon"] for row in kept])
    by_name = {name: float(won[phenomena == name].mean()) for name in np.unique(phenomena)}
    return {"all": float(won.mean()), **by_name}


Scorer = Callable[[list[str]], list[float]]
"""Sentences -> the higher the likelier, in nats."""


def masked_likelihood(folder: Path) -> Scorer:
    """A masked language model's pseudo-log-likelihood: the sum of log p(token | all others), each behind
    [MASK] in turn (Salazar et al. 2020, section 2)."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder)

    def sums(ids_BL: Tensor, real_BL: Tensor, text_BL: Tensor) -> Tensor:
        row_N, place_N = text_BL.nonzero(as_tuple=True)
        each = torch.arange(len(row_N))
        masked_NL = ids_BL[row_N].index_put((each, place_N), torch.tensor(tokenizer.mask_token_id))
        found = []
        for part in each.split(max(1, TOKENS // ids_BL.shape[1])):
            states = model.base_model(masked_NL[part], attention_mask=real_BL[row_N[part]].long())
            at_ND = states.last_hidden_state[torch.arange(len(part)), place_N[part]]
            scores_NV = model.generator_lm_head(model.generator_predictions(at_ND)).log_softmax(-1)
            found.append(scores_NV.gather(1, ids_BL[row_N[part], place_N[part], None]).squeeze(1))
        return torch.zeros(len(ids_BL)).index_add(0, row_N, torch.cat(found))

    return scorer_of(tokenizer, model.eval(), sums)


def original_odds(folder: Path) -> Scorer:
    """A discriminator's sum of the log odds that each token is the original one."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForPreTraining.from_pretrained(folder)

    def sums(ids_BL: Tensor, real_BL: Tensor, text_BL: Tensor) -> Tensor:
        replaced_BL = model(ids_BL, attention_mask=real_BL.long()).logits
        return -(replaced_BL * text_BL).sum(-1)

    return scorer_of(tokenizer, model.eval(), sums)


def scorer_of(tokenizer: Any, model: Any, sums: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Scorer:
    """sums: of token ids, real and text (neither padding nor special) positions, all `[B, L]`."""

    def score(sentences: list[str]) -> list[float]:
        scores = np.zeros(len(sentences))
        for rows, ids_BL, real_BL in padded(tokenizer, sentences):
            special = torch.tensor([tokenizer.cls_token_id, tokenizer.sep_token_id])
            with torch.inference_mode():
                scores[rows] = sums(ids_BL, real_BL, real_BL & ~torch.isin(ids_BL, special)).numpy()
        return scores.tolist()

    return score


def padded(tokenizer: Any, sentences: list[str]) -> Iterator[tuple[Any, Tensor, Tensor]]:
    """Rows of one length after another, so that nothing is padded: row numbers, ids, real."""
    encoded = tokenizer(sentences)["input_ids"]
    lengths = np.asarray([len(ids) for ids in encoded])
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        for part in np.array_split(rows, -(-len(rows) * int(length) // TOKENS)):
            ids_BL = torch.tensor([encoded[row] for row in part])
            yield part, ids_BL, torch.ones_like(ids_BL, dtype=torch.bool)
