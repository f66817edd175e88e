"""One contract for every teacher that is pretrained here: whoever registers one gets these tests."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import LABELS, documents
from tinytexts import LABELS as TEXT_LABELS
from torch import nn
from transformers import AutoModel, AutoModelForSeq2SeqLM, PreTrainedTokenizerBase

from distillkit.catalog import REGISTRIES, names
from distillkit.encoder import Encoder
from distillkit.encoder_decoder import EncoderDecoder
from distillkit.flops import counted
from distillkit.model import TeacherSource, TrainableTeacherSource
from distillkit.objectives.base import Examples, Objective
from distillkit.settings import PretrainSettings
from distillkit.teachers.denoisers import DenoiserHere
from distillkit.teachers.encoders import PretrainedHere
from distillkit.types import IGNORED, Batch

LENGTH = 32
CLASSES = {name: REGISTRIES["teacher"].get(name, TeacherSource) for name in names("teacher")}
NAMES = [name for name, cls in CLASSES.items() if issubclass(cls, PretrainedHere | DenoiserHere)]


@dataclass(frozen=True)
class Made:
    """A tiny teacher of a kind and its data, of which a few sequences are `rows` of several lengths."""

    source: TrainableTeacherSource
    tokenizer: PreTrainedTokenizerBase
    model: nn.Module
    objective: Objective
    examples: Examples
    rows: tuple[int, ...]

    def batch(self, *rows: int) -> Batch:
        return self.objective.collate(self.examples, rows or self.rows, epoch=1, seed=5)

    @property
    def writes(self) -> bool:
        return isinstance(self.source, DenoiserHere)


@pytest.fixture(scope="module", params=NAMES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder, texts = tmp_path_factory.mktemp("pretraining"), documents()
    settings = PretrainSettings(corpus="x", max_length=LENGTH)
    sizes = {"layers": 2, "width": 16, "heads": 2, "vocab_size": 320, "positions": LENGTH}
    source = CLASSES[request.param](**sizes, dropout=0.0, pretrain=settings)
    tokenizer = source.tokenizer(chain(*texts))
    torch.manual_seed(0)
    model, objective = source.pretraining(tokenizer)
    objective.prepare(iter(texts), tokenizer, folder / "corpus", max_length=LENGTH)
    examples = objective.examples(folder / "corpus", epoch=1, seed=5)
    order = np.argsort(examples.lengths, kind="stable").tolist()
    return Made(source, tokenizer, model, objective, examples, (order[0], *order[-3:]))


def test_a_sequence_is_the_same_in_any_batch(made: Made) -> None:
    """Else it would change with workers, ranks and resumes."""
    together = made.batch()
    assert together.labels is not None and not together.full
    for place, row in enumerate(made.rows):
        alone = made.batch(row)
        assert alone.labels is not None
        real, said = alone.mask[0], alone.labels[0] != IGNORED
        assert real.sum() == together.mask[place].sum()
        assert made.writes or real.sum() == made.examples.lengths[row]  # what is read of a text is drawn
        for name, single in alone.inputs.items():
            counted_L = said if name == "decoder_input_ids" else real
            shared_L = together.inputs[name][place, : len(counted_L)]
            assert torch.equal(shared_L[counted_L], single[0][counted_L])
        assert torch.equal(together.labels[place, : len(said)], alone.labels[0])
        assert bool((together.labels[place, len(said) :] == IGNORED).all())


def test_terms_are_means_over_what_counts_and_padding_changes_nothing(made: Made) -> None:
    whole = made.objective.loss(made.model, made.batch())
    assert {name: term.count for name, term in whole.items()} == made.objective.counts(made.batch())
    parts = [made.objective.loss(made.model, made.batch(row)) for row in made.rows]
    for name, term in whole.items():
        total = sum(part[name].value.item() * part[name].count for part in parts)
        assert term.count == sum(part[name].count for part in parts) > 0
        assert term.value.item() == pytest.approx(total / term.count, rel=1e-4), name


def test_every_weight_is_trained(made: Made) -> None:
    made.model.zero_grad()
    terms = made.objective.loss(made.model, made.batch())
    torch.stack([term.weight * term.value for term in terms.values()]).sum().backward()
    lost = [name for name, one in made.model.named_parameters() if one.requires_grad and one.grad is None]
    assert not lost


def test_the_flops_that_a_plan_tells_are_those_that_torch_counts(made: Made) -> None:
    """Of one forward of more sequences in a batch, within the tokens more or less that each may have to
    predict; what a batch costs once is left out.
    """
    lengths = made.examples.lengths
    longest = np.flatnonzero(lengths == lengths.max())[:9].tolist()

    def forward(batch: Batch) -> None:
        made.objective.loss(made.model, batch)

    one, many = (counted(partial(forward, made.batch(*rows))) for rows in (longest[:1], longest))
    filled, apart = (LENGTH, 0.1) if made.writes else (int(lengths.max()), 0.05)  # a text is read shortened
    told = made.objective.flops(made.model, filled)
    assert (many - one) / (len(longest) - 1) == pytest.approx(told, rel=apart)


def test_what_is_saved_goes_on_in_the_task_and_opens_in_transformers(made: Made, tmp_path: Path) -> None:
    made.model.save_pretrained(tmp_path)  # type: ignore[operator]
    labels = TEXT_LABELS if made.writes else LABELS
    model = made.source.classifier(made.tokenizer, labels, LENGTH, tmp_path)
    assert model.spec.max_length >= LENGTH
    opened = (AutoModelForSeq2SeqLM if made.writes else AutoModel).from_pretrained(
        str(tmp_path), local_files_only=True
    )
    theirs = opened.state_dict()
    if made.writes:
        assert isinstance(model, EncoderDecoder)
        mine = model.model.state_dict()
    else:
        assert isinstance(model, Encoder) and model.spec.num_labels == 2
        mine = model.model.base_model.state_dict()
    shared = [name for name in mine if "pooler" not in name]
    assert shared and all(torch.equal(mine[name], theirs[name]) for name in shared)
