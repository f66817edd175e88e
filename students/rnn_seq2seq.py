"""A recurrent encoder-decoder with attention (Luong et al. 2015).

Shapes: B sources, R texts, L tokens of a source, T of a target, V vocabulary entries, E width of the table, D
width of every state.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from distillkit.encoder_decoder import shifted
from distillkit.errors import ConfigError, ModelError
from distillkit.model import Graphs, Student, StudentSource, Teacher, TextStudent
from distillkit.search import Ends, Floats, Ints, search
from distillkit.settings import Count, Fraction, GenerationSettings, Labels
from distillkit.students.bilstm import BothWays
from distillkit.students.layers import SPREAD, filled, write_folder
from distillkit.types import TARGET_IDS, Access, Batch, Outputs, Spec, Swap, Want

Alignment = Literal["dot", "general", "concat"]
State = tuple[Tensor, ...]
"""Of the decoder, `[R, D]` each: the hidden state and cell of each layer, and what is fed where it is."""


class RnnSeq2seq(StudentSource):
    """LSTMs with attention on every token of the source, or on a window that is predicted (local-p), and
    input feeding.

    "Effective Approaches to Attention-based Neural Machine Translation" (arXiv 1508.04025, sections 2 and 3).
    Departures: the encoder reads both ways, as in Bahdanau et al. 2015, where theirs reads one way; the
    decoder begins with a map of what was read last in either direction, not with the encoder's cells; source
    and target have one table, since they have one vocabulary.

    Settings:
        encoder_layers: LSTM layers of the encoder, each in both directions.
        decoder_layers: LSTM layers of the decoder.
        width: Width of a layer, of the encoder both directions together.
        embedding: Width of the token table; default the same, a narrower one is widened by a linear map.
        attention: How a state is compared with those of the source (section 3.1): by their product, through a
            matrix, or by a layer on both.
        window: Tokens to either side of a predicted place that are looked at (local-p, section 3.2); default
            all tokens (global).
        feeding: Give each step what the one before it attended to (section 3.3).
        dropout: Probability of dropping an embedded value or a layer's output in training.
    """

    kinds = ("text_to_text",)

    def __init__(
        self,
        *,
        encoder_layers: Count = 1,
        decoder_layers: Count = 1,
        width: Count = 256,
        embedding: Count | None = None,
        attention: Literal["dot", "general", "concat"] = "general",
        window: Count | None = None,
        feeding: bool = True,
        dropout: Fraction = 0.1,
    ) -> None:
        if width < 2:
            raise ConfigError("one value cannot be halved", where="student.width", hint="at least 2")
        self.encoder_layers, self.decoder_layers, self.width = encoder_layers, decoder_layers, width
        self.embedding, self.attention, self.window = embedding or width, attention, window
        self.feeding, self.dropout = feeding, dropout

    def build(
        self, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int, teacher: Teacher
    ) -> Student:
        end = int(tokenizer.eos_token_id)
        return RecurrentWriter(
            WriterSizes(
                rows=teacher.spec.num_labels or len(tokenizer),
                embedding=self.embedding,
                width=self.width,
                encoder_layers=self.encoder_layers,
                decoder_layers=self.decoder_layers,
                max_length=max(max_length, teacher.spec.max_length),
                start_id=end,
                end_id=end,
                attention=self.attention,
                window=self.window or 0,
                feeding=self.feeding,
                dropout=self.dropout,
            )
        )

    def load(self, folder: Path) -> Student:
        return filled(RecurrentWriter(_read_sizes(folder / "config.json")), folder)


@dataclass(frozen=True)
class WriterSizes:
    """All that such a student is built from. rows: of the table and of the output layer; window 0: none."""

    rows: int
    embedding: int
    width: int
    encoder_layers: int
    decoder_layers: int
    max_length: int
    start_id: int
    end_id: int
    attention: Alignment
    window: int
    feeding: bool
    dropout: float

    @property
    def spec(self) -> Spec:
        """No heads and no feed-forward part."""
        return Spec(
            num_layers=self.encoder_layers,
            hidden_dim=self.width,
            num_heads=0,
            ffn_dim=0,
            vocab_size=self.rows,
            num_labels=self.rows,
            max_length=self.max_length,
            decoder_layers=self.decoder_layers,
        )


@dataclass(frozen=True)
class Memory:
    """What the decoder reads of sources: states `[R, L, D]`, what alignments are made from, and where tokens
    are real.
    """

    states: Tensor
    keys: Tensor
    mask: Tensor

    def rows(self, rows_R: Tensor) -> Memory:
        return Memory(self.states[rows_R], self.keys[rows_R], self.mask[rows_R])


class RecurrentWriter(TextStudent):
    """table -> encoder; table -> decoder cells -> attention -> output layer.

    `decoder_hidden` holds what each layer says; of the last one, what its scores are made from, after
    attention (the paper's h tilde).
    """

    def __init__(self, sizes: WriterSizes) -> None:
        super().__init__()
        self.sizes, self.spec = sizes, sizes.spec
        self.start_id, self.end_id = sizes.start_id, sizes.end_id
        width = sizes.width
        self.table = nn.Embedding(sizes.rows, sizes.embedding)
        nn.init.normal_(self.table.weight, std=SPREAD)
        self.widen = nn.Identity() if sizes.embedding == width else nn.Linear(sizes.embedding, width)
        self.encoder = nn.ModuleList(BothWays(width, sizes.dropout) for _ in range(sizes.encoder_layers))
        self.begin = nn.Linear(width, 2 * sizes.decoder_layers * width)
        first = 2 * width if sizes.feeding else width
        self.cells = nn.ModuleList(
            nn.LSTMCell(width if layer else first, width) for layer in range(sizes.decoder_layers)
        )
        self.score = SCORES[sizes.attention](width)
        self.window = Window(width) if sizes.window else None
        self.join = nn.Linear(2 * width, width, bias=False)
        self.output = nn.Linear(width, sizes.rows, bias=False)
        self.dropout = nn.Dropout(sizes.dropout)

    def outputs(self, batch: Batch, *, want: Want, swap: Swap | None = None) -> Outputs:
        """`swap` numbers the encoder's layers."""
        if want.attention:
            raise ModelError("this student shows no queries, keys and values", where="student")
        target_BT = batch.inputs[TARGET_IDS]
        scored_BT = torch.ones_like(target_BT, dtype=torch.bool) if batch.scored is None else batch.scored
        states = self.read(batch.inputs["input_ids"], batch.mask, swap or {})
        embedded_BTD = self.embedded(shifted(target_BT, self.start_id))
        memory, state = self.remembered(states[-1], batch.mask), self.started(states[-1], batch.mask)
        said: list[list[Tensor]] = []
        for place in range(target_BT.shape[1]):
            layers, state = self.step(embedded_BTD[:, place], memory, state)
            said.append(layers)
        decoder = [embedded_BTD, *(torch.stack(layer, dim=1) for layer in zip(*said, strict=True))]
        logits = self.output(self.dropout(decoder[-1][scored_BT]))
        shown = {Access.ALL_STATES: slice(None), Access.FINAL_STATES: slice(-1, None)}
        kept = shown.get(min(want.access, Access.ALL_STATES), slice(0))
        return Outputs(logits=logits.float(), hidden=tuple(states[kept]), decoder_hidden=tuple(decoder[kept]))

    def embedded(self, ids: Tensor) -> Tensor:
        states: Tensor = self.dropout(self.widen(self.table(ids)))
        return states

    def read(self, ids_BL: Tensor, mask_BL: Tensor, swap: Swap) -> list[Tensor]:
        """The embedded source, and the states of each layer of the encoder."""
        states = [self.embedded(ids_BL)]
        for index, layer in enumerate(self.encoder):
            state = layer(states[-1], mask_BL)
            states.append(swap[index](state) if index in swap else state)
        return states

    def remembered(self, states_BLD: Tensor, mask_BL: Tensor) -> Memory:
        return Memory(states_BLD, self.score.keys(states_BLD), mask_BL)

    def started(self, states_BLD: Tensor, mask_BL: Tensor) -> State:
        """From what the way ahead read last and the way back read last; nothing is fed yet."""
        ahead = self.sizes.width - self.sizes.width // 2
        last_B11 = (mask_BL.sum(1) - 1)[:, None, None].expand(-1, 1, ahead)
        ends_BD = torch.cat(
            [states_BLD[..., :ahead].gather(1, last_B11)[:, 0], states_BLD[:, 0, ahead:]], dim=-1
        )
        cells = torch.tanh(self.begin(ends_BD)).chunk(2 * self.sizes.decoder_layers, dim=-1)
        return (*cells, torch.zeros_like(ends_BD)) if self.sizes.feeding else tuple(cells)

    def step(self, embedded_RD: Tensor, memory: Memory, state: State) -> tuple[list[Tensor], State]:
        """One token further: what each layer says, the last one after attention, and the new state."""
        read = torch.cat([embedded_RD, state[-1]], dim=-1) if self.sizes.feeding else embedded_RD
        said, cells = [], []
        for layer, cell in enumerate(self.cells):
            hidden, carried = cell(read, (state[2 * layer], state[2 * layer + 1]))
            cells += [hidden, carried]
            said.append(hidden)
            read = self.dropout(hidden)
        joined_RD = torch.tanh(self.join(torch.cat([self.attended(said[-1], memory), said[-1]], dim=-1)))
        said[-1] = joined_RD
        return said, (*cells, joined_RD) if self.sizes.feeding else tuple(cells)

    def attended(self, query_RD: Tensor, memory: Memory) -> Tensor:
        """The context: the mean of the source's states by their weights."""
        scores_RL = self.score(query_RD, memory.keys)
        if self.window is None:
            weights_RL = global_weights(scores_RL, memory.mask)
        else:
            centre_R = self.window(query_RD, memory.mask)
            weights_RL = local_weights(scores_RL, memory.mask, centre_R, self.sizes.window)
        return (weights_RL[:, None] @ memory.states)[:, 0]

    def beams(self, batch: Batch, how: GenerationSettings) -> list[list[list[int]]]:
        with torch.inference_mode():
            states = self.read(batch.inputs["input_ids"], batch.mask, {})[-1]
            steps = Stepping(self, self.remembered(states, batch.mask), self.started(states, batch.mask))
            return search(steps, batch.num_examples, Ends(self.start_id, self.end_id), how)

    def graphs(self) -> Graphs:
        model = copy.deepcopy(self).eval().cpu()
        cross = ("cross.states", "cross.keys") if model.score.own_keys else ("cross.states",)
        layers = range(self.sizes.decoder_layers)
        past = [f"past.{layer}.{part}" for layer in layers for part in ("hidden", "cell")]
        past += ["past.fed"] if self.sizes.feeding else []
        return Graphs(ReadGraph(model), StepGraph(model), cross, tuple(past), length=1, grows=False)

    def save(self, folder: Path, labels: Labels) -> None:
        write_folder(folder, self, {"sizes": asdict(self.sizes), "kind": labels.kind})


class Score(nn.Module):
    """How much a source's token counts for a state of the decoder (section 3.1)."""

    own_keys = True
    """Whether alignments are made from something else than the source's states."""

    def keys(self, states_RLD: Tensor) -> Tensor:
        """What they are made from, once a source."""
        raise NotImplementedError

    def forward(self, query_RD: Tensor, keys_RLD: Tensor) -> Tensor:
        """`[R, L]`"""
        raise NotImplementedError


class Dot(Score):
    """h . s"""

    own_keys = False

    def __init__(self, width: int) -> None:
        super().__init__()

    def keys(self, states_RLD: Tensor) -> Tensor:
        return states_RLD

    def forward(self, query_RD: Tensor, keys_RLD: Tensor) -> Tensor:
        return (keys_RLD @ query_RD[..., None])[..., 0]


class General(Dot):
    """h . W s"""

    own_keys = True

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.matrix = nn.Linear(width, width, bias=False)

    def keys(self, states_RLD: Tensor) -> Tensor:
        keys: Tensor = self.matrix(states_RLD)
        return keys


class Concat(Score):
    """v . tanh(W [h; s])"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.of_query = nn.Linear(width, width, bias=False)
        self.of_source = nn.Linear(width, width, bias=False)
        self.vector = nn.Linear(width, 1, bias=False)

    def keys(self, states_RLD: Tensor) -> Tensor:
        keys: Tensor = self.of_source(states_RLD)
        return keys

    def forward(self, query_RD: Tensor, keys_RLD: Tensor) -> Tensor:
        scores: Tensor = self.vector(torch.tanh(self.of_query(query_RD)[:, None] + keys_RLD))
        return scores[..., 0]


SCORES: Mapping[Alignment, type[Dot] | type[Concat]] = {"dot": Dot, "general": General, "concat": Concat}


class Window(nn.Module):
    """Where a window lies: S * sigmoid(v . tanh(W h)) of a source of S tokens (local-p, equation 9)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width, bias=False)
        self.vector = nn.Linear(width, 1, bias=False)

    def forward(self, query_RD: Tensor, mask_RL: Tensor) -> Tensor:
        """`[R]`, between 0 and S."""
        share_R = torch.sigmoid(self.vector(torch.tanh(self.inner(query_RD))))[:, 0]
        centre: Tensor = mask_RL.sum(1) * share_R
        return centre


def global_weights(scores_RL: Tensor, mask_RL: Tensor) -> Tensor:
    """`[R, L]` a softmax over real tokens."""
    return scores_RL.masked_fill(~mask_RL, -torch.inf).softmax(dim=-1)


def local_weights(scores_RL: Tensor, mask_RL: Tensor, centre_R: Tensor, half: int) -> Tensor:
    """`[R, L]` a softmax over real tokens at most `half` from the centre, times a Gaussian around it of the
    standard deviation half / 2 (section 3.2, equation 10), so that they do not add up to 1.

    The centre lies between 0 and the number of tokens, so that there is always a token in the window.
    """
    away_RL = torch.arange(scores_RL.shape[1], device=scores_RL.device) - centre_R[:, None]
    inside_RL = mask_RL & (away_RL.abs() <= half)
    near_RL = torch.exp(-away_RL.square() / (2 * (half / 2) ** 2))
    return scores_RL.masked_fill(~inside_RL, -torch.inf).softmax(dim=-1) * near_RL


class Stepping:
    """The decoder, for a search (`distillkit.search.Steps`)."""

    def __init__(self, model: RecurrentWriter, memory: Memory, state: State) -> None:
        self.model, self.memory, self.state = model, memory, state

    def step(self, tokens_R: Ints, rows_R: Ints) -> Floats:
        device = self.memory.mask.device
        rows = torch.from_numpy(rows_R).to(device)
        if not np.array_equal(rows_R, np.arange(len(self.memory.mask))):
            self.memory, self.state = self.memory.rows(rows), tuple(one[rows] for one in self.state)
        embedded_RD = self.model.embedded(torch.from_numpy(tokens_R).to(device))
        said, self.state = self.model.step(embedded_RD, self.memory, self.state)
        scores: Floats = self.model.output(said[-1]).float().cpu().numpy()
        return scores


class ReadGraph(nn.Module):
    """From a source to what the decoder reads of it and the state that it begins with."""

    def __init__(self, model: RecurrentWriter) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        mask_BL = attention_mask.bool()
        states_BLD = self.model.read(input_ids, mask_BL, {})[-1]
        memory = self.model.remembered(states_BLD, mask_BL)
        keys = (memory.keys,) if self.model.score.own_keys else ()
        return (memory.states, *keys, *self.model.started(states_BLD, mask_BL))


class StepGraph(nn.Module):
    """A new token `[R, 1]` after a state: logits `[R, 1, V]` and the new state."""

    def __init__(self, model: RecurrentWriter) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, cross: Sequence[Tensor], past: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        memory = Memory(cross[0], cross[-1], attention_mask.bool())
        said, state = self.model.step(self.model.embedded(input_ids[:, 0]), memory, tuple(past))
        return (self.model.output(said[-1])[:, None], *state)


def _read_sizes(path: Path) -> WriterSizes:
    """Raises ModelError (4) for another config."""
    try:
        sizes = WriterSizes(**json.loads(path.read_text(encoding="utf-8"))["sizes"])
        counts = (sizes.rows, sizes.embedding, sizes.width, sizes.encoder_layers, sizes.decoder_layers)
        if not all(type(one) is int and one > 0 for one in counts) or sizes.attention not in SCORES:
            raise TypeError("a size is no whole number")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"not the config of a student: {error}", where=str(path)) from None
    return sizes
