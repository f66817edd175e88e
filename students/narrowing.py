"""A student's first weights from the chosen blocks of a wider teacher.

All blocks of a transformer read and write one stream of states. Its best subspace of the student's width is
found on real rows (principal components, without centring: the maps are linear), and the teacher is written
anew in it: what reads the stream is multiplied by the basis, what writes it by the basis transposed. The
idea is SliceGPT's (Ashkboos et al. 2024, section 3); their exact treatment of norms is for norms before a
part, so here, with norms after it (BERT), gains and biases are fitted by least squares to what the teacher's
norms gave. Heads and hidden neurons that add least to the stream on real rows are left out; a head that must
become smaller keeps the best lower rank of its two bilinear forms. Nothing narrower: the same function.

Shape legend: N tokens of the sample, D and d widths of teacher and student, H and h values of a head of each,
K heads of the teacher, F neurons of a hidden layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distillkit.data.batching import Encoded, collate, sequential_batches
from distillkit.encoder import Encoder
from distillkit.errors import ConfigError
from distillkit.heads import HEADS
from distillkit.model import FixedTeacher, Material
from distillkit.types import Batch, Want

SAMPLE_TOKENS = 4096
"""Real tokens that the basis is found and the norms are fitted on."""
_BATCH_TOKENS = 1024
_BERT = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)
_DISTILBERT = (
    "attention.q_lin",
    "attention.k_lin",
    "attention.v_lin",
    "attention.out_lin",
    "sa_layer_norm",
    "ffn.lin1",
    "ffn.lin2",
    "output_layer_norm",
)
FAMILIES = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "distilbert": _DISTILBERT,
}
"""Families whose blocks have these parts and no others that depend on the width."""


@dataclass(frozen=True)
class Block:
    """The parts of a block that norms after each part; the fields stand in the order of `FAMILIES`."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    out: nn.Linear
    attention_norm: nn.LayerNorm
    up: nn.Linear
    down: nn.Linear
    norm: nn.LayerNorm


@dataclass(frozen=True)
class Around:
    """What is not in the blocks. widen: the linear map after a factorised table; head: what leads from states
    to logits, a hidden layer and the answers or the answers alone.
    """

    tables: tuple[nn.Embedding, ...]
    norm: nn.LayerNorm
    widen: nn.Linear | None
    head: tuple[nn.Linear, ...]


@dataclass(frozen=True)
class Seen:
    """What a module took and gave at the real tokens of a sample, `[N, width]` each."""

    taken: Tensor
    given: Tensor


@dataclass(frozen=True)
class Cut:
    """How the stream and the heads shrink. basis_Dd has orthonormal columns."""

    basis_Dd: Tensor
    heads: int
    head_dim: int
    teacher_heads: int


def check_family(model: Encoder) -> None:
    """Raises ConfigError where nobody has said how this family's weights become narrower."""
    family = model.model.config.model_type
    if family not in FAMILIES:
        raise ConfigError(
            f"a {family!r} cannot be made narrower with its weights",
            where="student.initialise",
            hint=f"keep the teacher's sizes, leave `initialise` out, or use one of {', '.join(FAMILIES)}",
        )
    if len(_around(model).head) > 2 or model.head.suffix == HEADS["mlm"].suffix:
        raise ConfigError(
            "this head cannot be made narrower",
            where="student.initialise",
            hint="keep the teacher's width, or leave `initialise` out",
        )


def narrow(
    student: Encoder, teacher: Encoder, blocks: Sequence[int], table: Tensor, material: Material
) -> None:
    """Give the student the chosen blocks (numbered from 1) of its wider teacher, and the rest around them.

    table: the teacher's token table, of the student's pieces.
    """
    chosen = [_parts(teacher, block - 1) for block in blocks]
    around, own = _around(teacher), _around(student)
    norms = [part for block in chosen for part in (block.attention_norm, block.norm)]
    hidden = [part for block in chosen for part in (block.out, block.down)]
    first = around.norm if around.widen is None else around.widen
    seen = observed(teacher, [first, *norms, *hidden, around.norm, *around.head], material)
    streams = [seen[first].given, *(seen[block.norm].given for block in chosen)]
    cut = Cut(
        basis_Dd=residual_basis(torch.cat(streams), student.spec.hidden_dim),
        heads=student.spec.num_heads,
        head_dim=student.spec.hidden_dim // student.spec.num_heads,
        teacher_heads=teacher.spec.num_heads,
    )
    with torch.no_grad():
        _narrow_embeddings(own, around, table, cut.basis_Dd, seen)
        for index, source in enumerate(chosen):
            _narrow_block(_parts(student, index), source, cut, seen)
        _narrow_head(own.head, around.head, cut.basis_Dd, seen)


def residual_basis(states_ND: Tensor, width: int) -> Tensor:
    """`[D, d]`, orthonormal columns: the projection that keeps most of the states' squared size, the best of
    rank d (Eckart and Young 1936). With nothing to lose it is the identity, which leaves every norm as it is.
    """
    states = states_ND.double()
    if states.shape[1] == width:
        return torch.eye(width, dtype=torch.float64)
    _, directions = torch.linalg.eigh(states.T @ states)
    best_Dd: Tensor = directions.flip(1)[:, :width]
    return best_Dd


def observed(teacher: Encoder, modules: Sequence[nn.Module], material: Material) -> Mapping[nn.Module, Seen]:
    """What these modules of the teacher take and give at evenly spaced training rows."""
    records: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {module: [] for module in modules}
    fixed = FixedTeacher(teacher)
    for batch in _sample(material.rows):
        with ExitStack() as hooks:
            for module in records:
                handle = module.register_forward_hook(_recorder(records[module], batch.mask))
                hooks.callback(handle.remove)
            fixed.outputs(batch.to(material.device), want=Want())
    return {module: _joined(pairs) for module, pairs in records.items()}


def narrow_attention(own: Block, source: Block, cut: Cut, context_ND: Tensor) -> None:
    """Score and value forms of the heads that add most to the stream, each of the student's rank."""
    basis_Dd, heads = cut.basis_Dd, cut.teacher_heads
    query, key, value = (_by_head(part, basis_Dd, heads) for part in (source.query, source.key, source.value))
    out_KHd = torch.stack((source.out.weight.double().cpu().T @ basis_Dd).chunk(heads))
    added_K = torch.stack(
        [(part @ out).square().mean() for part, out in zip(context_ND.chunk(heads, 1), out_KHd, strict=True)]
    )
    scale = (cut.head_dim / query.shape[1]) ** 0.25  # scores are divided by the root of the head's size
    made: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for head in strongest(added_K, cut.heads).tolist():
        queries, keys = low_rank(query[head], key[head], cut.head_dim)
        values, outs = low_rank(value[head], out_KHd[head], cut.head_dim)
        made.append((queries * scale, keys * scale, values, outs))
    queries, keys, values, outs = (torch.cat(parts) for parts in zip(*made, strict=True))
    for mine, both in ((own.query, queries), (own.key, keys), (own.value, values)):
        mine.weight.copy_(both[:, :-1])
        mine.bias.copy_(both[:, -1])
    own.out.weight.copy_(outs.T)
    own.out.bias.copy_(basis_Dd.T @ source.out.bias.double().cpu())


def fit_norm(own: nn.LayerNorm, before_Nd: Tensor, after_Nd: Tensor) -> None:
    """Gain and bias of each value by least squares: `own(before)` is as near to `after` as a norm can be."""
    mean, variance = before_Nd.mean(1, keepdim=True), before_Nd.var(1, keepdim=True, unbiased=False)
    normal_Nd = (before_Nd - mean) / (variance + own.eps).sqrt()
    centred_Nd = normal_Nd - normal_Nd.mean(0)
    gain_d = (centred_Nd * after_Nd).sum(0) / centred_Nd.square().sum(0).clamp(min=1e-12)
    own.weight.copy_(gain_d)
    own.bias.copy_(after_Nd.mean(0) - gain_d * normal_Nd.mean(0))


def low_rank(left_Ha: Tensor, right_Hb: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """`[h, a]` and `[h, b]` whose product left^T right is the best of this rank; the factors themselves where
    they have no more."""
    if left_Ha.shape[0] == rank:
        return left_Ha, right_Hb
    (basis_aH, mix_left), (basis_bH, mix_right) = torch.linalg.qr(left_Ha.T), torch.linalg.qr(right_Hb.T)
    outer, sizes, inner = torch.linalg.svd(mix_left @ mix_right.T)
    root = sizes[:rank].sqrt()
    return (basis_aH @ outer[:, :rank] * root).T, (basis_bH @ inner[:rank].T * root).T


def strongest(sizes: Tensor, number: int) -> Tensor:
    """Indices of the largest, in their own order."""
    return sizes.argsort(descending=True, stable=True)[:number].sort().values


def _narrow_embeddings(
    own: Around, source: Around, table: Tensor, basis_Dd: Tensor, seen: Mapping[nn.Module, Seen]
) -> None:
    factorised = source.widen is not None
    weights = [table, *(part.weight for part in source.tables[1:])]
    for mine, weight in zip(own.tables, weights, strict=True):
        mine.weight.copy_(weight.cpu() if factorised else weight.double().cpu() @ basis_Dd)
    if source.widen is None:
        _fit(own.norm, seen[source.norm], basis_Dd)
        return
    assert own.widen is not None
    own.norm.load_state_dict(source.norm.state_dict())
    _write(own.widen, source.widen, basis_Dd, torch.arange(source.widen.in_features))


def _narrow_block(own: Block, source: Block, cut: Cut, seen: Mapping[nn.Module, Seen]) -> None:
    narrow_attention(own, source, cut, seen[source.out].taken)
    _fit(own.attention_norm, seen[source.attention_norm], cut.basis_Dd)
    neurons = _neurons(source.down, seen[source.down].taken, own.down.in_features)
    _read(own.up, source.up, cut.basis_Dd, neurons)
    _write(own.down, source.down, cut.basis_Dd, neurons)
    _fit(own.norm, seen[source.norm], cut.basis_Dd)


def _narrow_head(
    own: Sequence[nn.Linear], source: Sequence[nn.Linear], basis_Dd: Tensor, seen: Mapping[nn.Module, Seen]
) -> None:
    answers, mine = source[-1], own[-1]
    if len(source) == 1:
        _read(mine, answers, basis_Dd, torch.arange(answers.out_features))
        return
    neurons = _neurons(answers, seen[answers].taken, mine.in_features)
    _read(own[0], source[0], basis_Dd, neurons)
    mine.weight.copy_(answers.weight[:, neurons.to(answers.weight.device)])
    mine.bias.copy_(answers.bias)


def _neurons(reader: nn.Linear, values_NF: Tensor, number: int) -> Tensor:
    """The hidden neurons that add most to what `reader` writes: mean square of the neuron times that of its
    column."""
    columns_F = reader.weight.double().cpu().square().sum(0)
    return strongest(values_NF.square().mean(0) * columns_F, number)


def _read(own: nn.Linear, source: nn.Linear, basis_Dd: Tensor, neurons: Tensor) -> None:
    """A map from the stream to these of its outputs."""
    own.weight.copy_(source.weight.double().cpu()[neurons] @ basis_Dd)
    own.bias.copy_(source.bias.cpu()[neurons])


def _write(own: nn.Linear, source: nn.Linear, basis_Dd: Tensor, neurons: Tensor) -> None:
    """A map from these of its inputs to the stream."""
    own.weight.copy_(basis_Dd.T @ source.weight.double().cpu()[:, neurons])
    own.bias.copy_(basis_Dd.T @ source.bias.double().cpu())


def _fit(own: nn.LayerNorm, seen: Seen, basis_Dd: Tensor) -> None:
    fit_norm(own, seen.taken @ basis_Dd, seen.given @ basis_Dd)


def _by_head(part: nn.Linear, basis_Dd: Tensor, heads: int) -> Tensor:
    """`[K, H, d + 1]`: weight and bias of each head, for a stream with a 1 behind it."""
    weight = part.weight.double().cpu() @ basis_Dd
    both = torch.cat([weight, part.bias.double().cpu()[:, None]], dim=1)
    return torch.stack(both.chunk(heads))


def _sample(rows: Encoded) -> Iterator[Batch]:
    number = min(len(rows), max(1, round(SAMPLE_TOKENS / float(rows.lengths.mean()))))
    chosen = np.linspace(0, len(rows) - 1, num=number).astype(np.int64)
    for part in sequential_batches(rows.lengths[chosen], tokens=_BATCH_TOKENS):
        yield collate(rows, chosen[part])


def _joined(pairs: Sequence[tuple[Tensor, Tensor]]) -> Seen:
    return Seen(torch.cat([taken for taken, _ in pairs]), torch.cat([given for _, given in pairs]))


def _recorder(record: list[tuple[Tensor, Tensor]], mask_BL: Tensor) -> Any:
    """A forward hook that keeps what a module sees at real tokens; a head sees one state of each answer."""

    def keep(tensor: Tensor) -> Tensor:
        by_token = tensor.shape[:-1] == mask_BL.shape
        kept = tensor[mask_BL.to(tensor.device)] if by_token else tensor.flatten(0, -2)
        return kept.detach().double().cpu()

    return lambda _module, inputs, output: record.append((keep(inputs[0]), keep(output)))


def _parts(model: Encoder, index: int) -> Block:
    names = FAMILIES[model.model.config.model_type]
    found: list[Any] = [model.blocks[index].get_submodule(name) for name in names]
    return Block(*found)


def _around(model: Encoder) -> Around:
    embeddings = model.model.base_model.embeddings
    inside = {*model.blocks.modules(), *embeddings.modules()}
    linear = [part for part in model.model.modules() if isinstance(part, nn.Linear) and part not in inside]
    widen = dict(model.model.base_model.named_children()).get("embeddings_project")
    return Around(
        tables=tuple(part for part in embeddings.modules() if isinstance(part, nn.Embedding)),
        norm=next(part for part in embeddings.modules() if isinstance(part, nn.LayerNorm)),
        widen=widen if isinstance(widen, nn.Linear) else None,
        head=tuple(part for part in linear if part is not widen),
    )
