"""DeBERTa-v3's objective: who shares which table, its head and its mask decoder, against the forward of
`transformers` and plain loops."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from test_electra_objective import corpus_of, figures, parts
from test_electra_training import SHAPE, STEPS, run, told
from tiny import documents, tokenizer
from torch import Tensor, nn
from torch.nn import functional
from training import StopAfter, digest
from transformers import AutoModel, DebertaV2ForMaskedLM

from distillkit.flops import HONEST, counted
from distillkit.objectives.base import inputs_of
from distillkit.objectives.deberta import DebertaObjective
from distillkit.objectives.packing import pack
from distillkit.objectives.pair import GeneratorPair
from distillkit.objectives.sharing import Sharing, SummedTable, settled, share_table
from distillkit.teachers.deberta import Deberta
from distillkit.train import Pretraining
from distillkit.types import IGNORED, Batch

LENGTH, WIDTH = 32, 16
WAYS: tuple[Sharing, ...] = ("gdes", "es", "nes")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "corpus"
    DebertaObjective().prepare(iter(documents()), tokenizer(), folder, max_length=LENGTH)
    return folder


def made(folder: Path, rows: int = 12, **settings: Any) -> tuple[GeneratorPair, DebertaObjective, Batch]:
    """A pair without dropout whose weights are large enough to tell effects apart, and a padded batch."""
    shape = {"layers": 4, "width": WIDTH, "heads": 2, "vocab_size": 120, "positions": LENGTH}
    torch.manual_seed(0)
    pair, objective = Deberta(**{**shape, "dropout": 0.0, **settings}).pretraining(tokenizer())
    assert isinstance(pair, GeneratorPair) and isinstance(objective, DebertaObjective)
    with torch.no_grad():
        for name, parameter in pair.named_parameters():
            if "delta" not in name and (parameter.ndim >= 2 or "bias" in name):
                parameter.add_(0.2 * torch.randn_like(parameter))
    batch = objective.collate(objective.examples(folder, epoch=0, seed=3), range(rows), epoch=0, seed=3)
    assert not batch.full
    return pair, objective, batch


def generator_of(pair: GeneratorPair) -> DebertaV2ForMaskedLM:
    assert isinstance(pair.generator, DebertaV2ForMaskedLM)
    return pair.generator


def table_of(pair: GeneratorPair) -> nn.Parameter:
    return generator_of(pair).deberta.embeddings.word_embeddings.weight


def read_by_main(pair: GeneratorPair, objective: DebertaObjective, batch: Batch) -> Tensor:
    """The token ids that the discriminator is given."""
    seen: list[Tensor] = []
    handle = pair.main.register_forward_pre_hook(
        lambda _module, _inputs, named: seen.append(named["input_ids"]), with_kwargs=True
    )
    objective.loss(pair, batch)
    handle.remove()
    (ids,) = seen
    return ids


def plainly(pair: GeneratorPair, batch: Batch, ids: Tensor) -> Tensor:
    """`[B, L]` logits of the discriminator by its formula, a token at a time."""
    head = pair.heads["detector"]
    states = pair.main(ids, attention_mask=batch.mask.long()).last_hidden_state
    rows = []
    for sequence in states:
        for state in sequence:
            norm = (head.norm.weight, head.norm.bias)
            both = functional.layer_norm(state + sequence[0], (WIDTH,), *norm, eps=1e-7)
            inner = functional.gelu(head.dense.weight @ both + head.dense.bias)
            rows.append(head.answer.weight[0] @ inner + head.answer.bias[0])
    return torch.stack(rows).view(ids.shape)


def test_the_discriminator_teaches_the_generators_table_nothing_unless_they_share_it_whole(
    prepared: Path,
) -> None:
    for sharing in WAYS:
        pair, objective, batch = made(prepared, sharing=sharing)
        terms = objective.loss(pair, batch)
        generators = list(generator_of(pair).parameters())
        grads = torch.autograd.grad(
            terms["discriminator"].value, generators, allow_unused=True, retain_graph=True
        )
        reached = [one for one, grad in zip(generators, grads, strict=True) if grad is not None]
        if sharing == "es":
            assert len(reached) == 1 and reached[0] is table_of(pair)
            assert any(grad is not None and bool(grad.abs().sum() > 0) for grad in grads)
        else:
            assert reached == [], "exactly no gradient, not a small one"
        (own,) = torch.autograd.grad(terms["generator"].value, [table_of(pair)], retain_graph=True)
        assert bool(own.abs().sum() > 0)


def test_only_the_discriminator_trains_the_difference(prepared: Path) -> None:
    pair, objective, batch = made(prepared, sharing="gdes")
    terms = objective.loss(pair, batch)
    summed = pair.main.get_input_embeddings()
    assert isinstance(summed, SummedTable) and summed.base.weight is table_of(pair)
    (none,) = torch.autograd.grad(
        terms["generator"].value, [summed.delta.weight], allow_unused=True, retain_graph=True
    )
    assert none is None
    (grad,) = torch.autograd.grad(terms["discriminator"].value, [summed.delta.weight])
    used = torch.zeros(len(grad), dtype=torch.bool)
    used[read_by_main(pair, objective, batch)[batch.mask]] = True
    assert torch.equal(grad.abs().sum(dim=1) > 0, used)


def test_the_gradient_of_the_difference_is_that_of_a_table_of_ones_own(prepared: Path) -> None:
    pair, objective, batch = made(prepared, sharing="gdes")
    with torch.no_grad():
        pair.main.get_input_embeddings().delta.weight.normal_(std=0.3)
    other = copy.deepcopy(pair)
    other.main = settled(other.main)
    (mine,) = torch.autograd.grad(
        objective.loss(pair, batch)["discriminator"].value, [pair.main.get_input_embeddings().delta.weight]
    )
    (theirs,) = torch.autograd.grad(
        objective.loss(other, batch)["discriminator"].value, [other.main.get_input_embeddings().weight]
    )
    torch.testing.assert_close(mine, theirs, atol=1e-7, rtol=1e-4)


def test_all_ways_of_sharing_are_one_function_at_the_start(prepared: Path) -> None:
    pair, objective, batch = made(prepared, sharing="nes")
    with torch.no_grad():
        pair.main.get_input_embeddings().weight.normal_()  # what sharing has to replace
    values = []
    for sharing in WAYS:
        one = copy.deepcopy(pair)
        share_table(generator_of(one), one.main, sharing)
        values.append({name: term.value.item() for name, term in objective.loss(one, batch).items()})
    assert values[0] == values[1] == values[2]
    assert objective.loss(pair, batch)["discriminator"].value.item() != values[0]["discriminator"]


@pytest.mark.parametrize("sharing", WAYS)
def test_nothing_but_the_table_is_shared(prepared: Path, sharing: Sharing) -> None:
    pair, _, _ = made(prepared, sharing=sharing)
    shared = {id(one) for one in generator_of(pair).parameters()} & {id(p) for p in pair.main.parameters()}
    assert shared == (set() if sharing == "nes" else {id(table_of(pair))})
    generator = generator_of(pair)
    assert generator.cls.predictions.decoder.weight is table_of(pair), "its output layer is its table"


def test_what_is_saved_has_the_sum_as_its_table_and_opens_in_transformers(
    prepared: Path, tmp_path: Path
) -> None:
    for sharing in WAYS:
        pair, _, batch = made(prepared, sharing=sharing)
        table = pair.main.get_input_embeddings()
        with torch.no_grad():
            expected = table.weight.clone() if isinstance(table, nn.Embedding) else table_of(pair).clone()
            if isinstance(table, SummedTable):
                table.delta.weight.normal_()
                expected += table.delta.weight
        pair.save_pretrained(tmp_path / sharing)
        opened = AutoModel.from_pretrained(str(tmp_path / sharing), local_files_only=True)
        assert torch.equal(opened.get_input_embeddings().weight, expected)
        asked = {"input_ids": batch.inputs["input_ids"], "attention_mask": batch.mask.long()}
        with torch.no_grad():
            ours, theirs = (one(**asked).last_hidden_state for one in (pair.main, opened))
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
        assert pair.main.get_input_embeddings() is table, "training could go on"


def test_one_step_for_both_is_a_step_for_each(prepared: Path) -> None:
    """The departure from the released code: with gdes the two steps have nothing in common but their time."""
    pair, objective, batch = made(prepared, sharing="gdes")
    apart = copy.deepcopy(pair)
    groups = Pretraining(pair, objective).groups()
    terms = objective.loss(pair, batch)
    torch.stack([term.weight * term.value for term in terms.values()]).sum().backward()
    for group in groups:
        nn.utils.clip_grad_norm_(group, 0.1)
    torch.optim.AdamW(pair.parameters(), lr=0.01).step()
    terms, sides = objective.loss(apart, batch), objective.groups(apart)
    for name, side in zip(("generator", "discriminator"), sides, strict=True):
        (terms[name].weight * terms[name].value).backward(retain_graph=True)
        nn.utils.clip_grad_norm_(side, 0.1)
    for side in sides:
        torch.optim.AdamW(side, lr=0.01).step()
    for one, other in zip(pair.parameters(), apart.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("sharing", WAYS)
def test_each_network_is_clipped_alone(prepared: Path, sharing: Sharing) -> None:
    pair, objective, _ = made(prepared, sharing=sharing)
    generators, mains = objective.groups(pair)
    assert {id(p) for p in generators}.isdisjoint({id(p) for p in mains})
    assert {id(p) for p in (*generators, *mains)} == {id(p) for p in pair.parameters()}
    assert any(p is table_of(pair) for p in generators)
    assert any(p is pair.heads["mask_decoder"].positions.weight for p in generators)
    assert all(any(p is own for p in mains) for own in pair.heads["detector"].parameters())


def test_the_head_is_its_formula_and_a_sample_that_is_right_counts_as_original(prepared: Path) -> None:
    pair, objective, batch = made(prepared)
    chosen, original = parts(batch)
    common = int(original[chosen].mode().values)
    with torch.no_grad():
        generator_of(pair).cls.predictions.bias[common] = 100.0  # it always says the commonest token
    ids = read_by_main(pair, objective, batch)
    assert bool((ids[chosen] == common).all()) and torch.equal(ids[~chosen], original[~chosen])
    replaced = (ids != original).float()
    assert 0 < int(replaced.sum()) < int(chosen.sum())
    with torch.no_grad():
        logits = plainly(pair, batch, ids)
    costs = functional.binary_cross_entropy_with_logits(logits, replaced, reduction="none")
    term = objective.loss(pair, batch)["discriminator"]
    assert term.value.item() == pytest.approx(costs[batch.mask].mean().item(), rel=1e-5)
    assert (term.count, term.weight) == (batch.num_tokens, 50.0)
    assert dict(objective.counts(batch)) == {"generator": int(chosen.sum()), "discriminator": term.count}
    told = figures(objective, objective.loss(pair, batch))
    called = (logits > 0)[batch.mask]
    assert told["called_replaced"] == pytest.approx(float(called.float().mean()))
    assert told["replaced_rate"] == pytest.approx(float(replaced[batch.mask].mean()))


def test_a_plain_generator_is_the_masked_language_model_of_transformers(prepared: Path) -> None:
    pair, objective, batch = made(prepared, mask_decoder="plain")
    assert set(pair.heads) == {"detector"}
    inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
    wanted = generator_of(pair)(**inputs, labels=batch.labels).loss
    assert objective.loss(pair, batch)["generator"].value.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_an_enhanced_mask_decoder_runs_the_last_block_twice_with_positions_in_its_query(
    prepared: Path,
) -> None:
    """Against the way that the encoder of `transformers` has for queries of their own."""
    pair, _, batch = made(prepared)
    body, decoder = generator_of(pair).deberta, pair.heads["mask_decoder"]
    inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        below = body(**inputs, output_hidden_states=True).hidden_states[-2]
        twice = copy.deepcopy(body.encoder)
        twice.layer = nn.ModuleList([body.encoder.layer[-1]] * 2)
        query = below + decoder.positions.weight[: below.shape[1]]
        wanted = twice(below, inputs["attention_mask"], query_states=query).last_hidden_state
        found = decoder(body, inputs)
    torch.testing.assert_close(found[batch.mask], wanted[batch.mask], atol=1e-6, rtol=1e-5)


def test_the_enhanced_mask_decoder_knows_where_a_token_stands_and_the_plain_one_does_not(
    prepared: Path,
) -> None:
    same = torch.full((1, 9), 7)
    pair, _, _ = made(prepared)
    body, decoder = generator_of(pair).deberta, pair.heads["mask_decoder"]
    with torch.no_grad():
        plain = body(same).last_hidden_state[0]
        told = decoder(body, {"input_ids": same})[0]
    assert float((plain - plain[0]).abs().max()) < 1e-5
    assert float((told - told[0]).abs().max()) > 0.1


def test_every_chosen_position_reads_mask_and_the_profile_over_positions_is_flat() -> None:
    """The released n-gram masker goes from left to right and stops: the last tenth is hardly masked."""
    corpus = corpus_of([[58]] * 4000, 60)
    objective = DebertaObjective()
    packed = pack(corpus, random.Random(1), 0.0)
    batch = objective.collate(packed, range(len(packed.lengths)), epoch=0, seed=3)
    assert batch.full and batch.labels is not None
    chosen = (batch.labels != IGNORED).numpy()
    assert (chosen.sum(axis=1) == 9).all() and not chosen[:, [0, 59]].any()
    assert stats.chisquare(chosen[:, 1:59].sum(axis=0)).pvalue > 1e-4
    assert np.array_equal(batch.inputs["input_ids"].numpy() == corpus.facts["mask"], chosen)


def test_whole_words_are_masked_all_or_not_at_all(prepared: Path) -> None:
    objective = DebertaObjective(whole_word=True, mask_rate=0.3)
    examples = objective.examples(prepared, epoch=0, seed=3)
    batch = objective.collate(examples, range(len(examples.lengths)), epoch=0, seed=3)
    chosen, original = parts(batch)
    continues = torch.tensor(examples.corpus.continues)[original]
    goes_on = continues[:, 1:] & batch.mask[:, 1:]
    assert bool(goes_on.any()) and torch.equal(chosen[:, 1:][goes_on], chosen[:, :-1][goes_on])
    limit = np.maximum(1, np.rint(0.3 * examples.lengths))
    assert bool((chosen.sum(dim=1).numpy() <= limit).all()) and float(chosen.sum()) > 0.8 * limit.sum()


def test_more_padding_changes_no_loss(prepared: Path) -> None:
    pair, objective, _ = made(prepared)
    examples = objective.examples(prepared, epoch=0, seed=3)
    short = np.argsort(examples.lengths, kind="stable")[:6].tolist()
    small = objective.collate(examples, short, epoch=0, seed=3)
    assert small.labels is not None and small.uniform is not None and small.mask.shape[1] < LENGTH

    def padded(tensor: Tensor, value: float) -> Tensor:
        return functional.pad(tensor, (0, LENGTH - tensor.shape[1]), value=value)

    wide = replace(
        small,
        inputs={name: padded(value, 0) for name, value in small.inputs.items()},
        labels=padded(small.labels, IGNORED),
        mask=padded(small.mask, False),
        uniform=padded(small.uniform, 0.5),
        full=False,
    )
    few, many = objective.loss(pair, small), objective.loss(pair, wide)
    for name in few:
        assert few[name].value.item() == pytest.approx(many[name].value.item(), rel=1e-5)


def test_a_batch_without_padding_has_the_same_loss_as_with_a_mask(prepared: Path) -> None:
    pair, objective, _ = made(prepared)
    examples = objective.examples(prepared, epoch=0, seed=3)
    rows = np.flatnonzero(examples.lengths == LENGTH)[:4].tolist()
    full = objective.collate(examples, rows, epoch=0, seed=3)
    assert full.full and "attention_mask" not in inputs_of(full)
    for name, term in objective.loss(pair, full).items():
        masked = objective.loss(pair, replace(full, full=False))[name]
        assert term.value.item() == pytest.approx(masked.value.item(), rel=1e-5)


def test_at_the_start_the_total_is_ln_v_and_50_ln_2(prepared: Path) -> None:
    _, objective, batch = made(prepared, rows=30)
    source = Deberta(size="tiny", dropout=0.0)
    config = source.config(5000)
    torch.manual_seed(1)
    pair = objective.pair(source.generator_config(config), config, never=[0, 2, 3, 4])
    total = sum(term.weight * term.value.item() for term in objective.loss(pair, batch).values())
    assert total == pytest.approx(math.log(5000) + 50 * math.log(2), rel=0.02)


@pytest.mark.parametrize("mask_decoder", ["enhanced", "plain"])
def test_its_flops_are_what_torch_counts_but_for_the_distances_once_a_batch(
    prepared: Path, mask_decoder: str
) -> None:
    pair, objective, _ = made(prepared, mask_decoder=mask_decoder, mask_rate=0.25)
    ids = torch.randint(5, 100, (3, 20))
    labels = torch.full_like(ids, IGNORED)
    labels[:, :5] = ids[:, :5]
    ones = torch.ones_like(ids)
    rows = Batch(
        {"input_ids": ids, "attention_mask": ones},
        labels,
        ones.bool(),
        torch.arange(3),
        uniform=torch.rand(ids.shape, dtype=torch.float64),
        full=True,
    )

    def step() -> None:
        torch.stack([term.value for term in objective.loss(pair, rows).values()]).sum().backward()

    blocks = 4 + 2 + (mask_decoder == "enhanced")
    once = blocks * 2 * 2 * 512 * WIDTH * WIDTH
    assert counted(step) == HONEST.training(objective.flops(pair, 20), 3) + HONEST.passes * once


@pytest.mark.parametrize("settings", [{}, {"sharing": "es", "mask_decoder": "plain"}], ids=["gdes", "es"])
def test_a_resumed_pretraining_ends_with_the_same_weights_bit_for_bit(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    source = Deberta(**{**SHAPE, **settings})
    whole = run(tmp_path / "whole", source=source)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", progress=StopAfter(3), source=source)
    assert digest(run(tmp_path / "cut", source=source)) == digest(whole)
    assert told(tmp_path / "cut") == told(tmp_path / "whole")
    rows = told(tmp_path / "whole")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert set(rows[0]["terms"]) == {"generator", "discriminator"} and "auc" in rows[0]["figures"]


def test_micro_batches_add_up_to_the_whole_batch(tmp_path: Path) -> None:
    source = Deberta(**SHAPE, dropout=0.0)
    made = [run(tmp_path / str(micro), micro=micro, source=source) for micro in (1, 4)]
    for mine, theirs in zip(made[0].parameters(), made[1].parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=3e-5)
    pair = made[0].model
    assert isinstance(pair, GeneratorPair)
    table = pair.main.get_input_embeddings()
    assert isinstance(table, SummedTable) and bool(table.delta.weight.any()), "it has learnt"
