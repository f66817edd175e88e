"""Encoder-decoders as two graphs: they answer and write what PyTorch does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tinytexts
import torch
from onnx import numpy_helper
from tinytexts import FamilyName

from distillkit.data.batching import Encoded, collate
from distillkit.encoder_decoder import EncoderDecoder, shifted
from distillkit.errors import ExportError
from distillkit.export import writers
from distillkit.export.decoding import DECODER, ENCODER, OnnxWriter
from distillkit.export.writers import export_writer
from distillkit.files import seal
from distillkit.runtime import Artifact
from distillkit.settings import ExportSettings, GenerationSettings
from distillkit.types import Want
from distillkit.writing import spelled, write_tokens

HOW = GenerationSettings(beams=2, max_length=7)


class Made:
    """A model, its artifact and rows."""

    def __init__(self, family: FamilyName, folder: Path) -> None:
        blocks = {"t5": 2, "bart": 1}[family]  # of the decoder; an export takes seconds
        self.model = tinytexts.lively(tinytexts.model(family, seed=2, encoder=1, decoder=blocks))
        self.rows: Encoded = tinytexts.encoded(folder, 40, family=family)
        self.folder = folder / "export"
        self.folder.mkdir()
        read = tinytexts.tokenizer(family)
        settings = ExportSettings(rows=40, tolerance=5e-3)  # its weights make large scores
        self.parity = export_writer(
            self.model, read, tinytexts.LABELS, self.rows, self.folder, settings, HOW, "do: "
        )
        self.writer = OnnxWriter.open(self.folder, threads=1)


@pytest.fixture(scope="module", params=["t5", "bart"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(request.param, tmp_path_factory.mktemp(request.param))


def test_answers_are_those_of_pytorch_however_a_target_is_cut(made: Made) -> None:
    batch = collate(made.rows, np.arange(8))
    with torch.no_grad():
        wanted = made.model.outputs(batch, want=Want()).logits.numpy()
    np.testing.assert_allclose(made.writer.logits(batch), wanted, atol=1e-4)
    ids, mask = (batch.inputs[name].numpy() for name in ("input_ids", "attention_mask"))
    read = shifted(batch.inputs["target_ids"], made.model.start_id).numpy()
    for cuts in ([1] * read.shape[1], [2, 1, read.shape[1] - 3]):
        decoding, ends = made.writer.begin(ids, mask), np.cumsum(cuts)
        parts = [decoding.logits(read[:, end - size : end]) for size, end in zip(cuts, ends, strict=True)]
        said = np.concatenate(parts, axis=1)[batch.scored.numpy()]
        np.testing.assert_allclose(said, wanted, atol=1e-4)


@pytest.mark.parametrize("how", [{}, {"beams": 4}, {"beams": 3, "length_penalty": 2.0, "min_length": 2}])
def test_texts_are_those_of_pytorch(made: Made, how: dict[str, Any]) -> None:
    settings = GenerationSettings(max_length=7, **how)
    cpu = torch.device("cpu")
    theirs, mine = (write_tokens(one, made.rows, settings, device=cpu) for one in (made.model, made.writer))
    assert mine == theirs and len({tuple(text) for text in mine}) > 5


@pytest.mark.parametrize("tokens", [1, 200, 10_000])
def test_the_runtime_writes_the_same_texts(made: Made, tokens: int, tmp_path: Path) -> None:
    """From texts to texts without torch: the prefix, the source's tokens, the search, and the spelling."""
    family: FamilyName = made.model.model.config.model_type
    rows = tinytexts.encoded(tmp_path, 30, family=family, seed=3, prefix="do: ")
    theirs = write_tokens(made.model, rows, HOW, device=torch.device("cpu"))
    expected = spelled(theirs, tinytexts.tokenizer(family))
    seal(made.folder, {})
    answers = Artifact.load(made.folder, threads=1).predict([text for (text,) in rows.texts], tokens=tokens)
    assert [answer.as_json() for answer in answers] == [
        {"written": text, "truncated": False} for text in expected
    ]
    assert len(set(expected)) > 5


def test_the_files_have_no_branches_and_hold_each_large_weight_once(made: Made) -> None:
    entries = made.model.spec.vocab_size
    for name in (ENCODER, DECODER):
        graph = onnx.load(str(made.folder / name)).graph
        assert not {"If", "Loop", "Scan"} & {node.op_type for node in graph.node}
        tables = [one for one in graph.initializer if entries in one.dims and 1 not in one.dims]
        assert len(tables) == 1
        table = made.model.model.get_input_embeddings().weight.detach().numpy()
        np.testing.assert_array_equal(numpy_helper.to_array(tables[0]), table)
    names = {entry.name for entry in onnx.load(str(made.folder / DECODER)).graph.input}
    blocks = range(made.model.spec.decoder_layers)
    assert names == {"input_ids", "attention_mask"} | {
        f"{what}.{block}.{part}"
        for what in ("cross", "past")
        for block in blocks
        for part in ("key", "value")
    }


def test_the_folder_says_what_a_reader_needs(made: Made) -> None:
    config = json.loads((made.folder / "config.json").read_text())
    assert config["kind"] == "text_to_text" and config["prefix"] == "do: "
    assert config["decoder_start_token_id"] == made.model.start_id and config["eos_token_id"] == 1
    assert config["generation"]["beams"] == 2
    assert config["decoder_layers"] == made.model.spec.decoder_layers
    assert made.parity.texts == 40 and made.parity.same_greedy == 1.0
    assert made.parity.shapes["real rows"] < 1e-4
    written = json.loads((made.folder / "parity.json").read_text())
    assert written["same_texts"] == made.parity.same_texts and (made.folder / "tokenizer.json").is_file()


def test_another_model_does_not_pass_the_gates(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tinytexts.lively(
        tinytexts.model(made.model.model.config.model_type, seed=7, encoder=1, decoder=1)
    )
    with pytest.raises(ExportError, match="differs from PyTorch"):
        writers._compare(other, made.writer, made.rows, ExportSettings(), HOW)
    monkeypatch.setattr(writers, "compared", lambda *_: made.parity)
    with pytest.raises(ExportError, match="greedily the artifact writes another text"):
        writers._compare(other, made.writer, made.rows, ExportSettings(), HOW)


def test_a_tie_is_no_difference(made: Made) -> None:
    """Two tokens of one score: which is written, rounding decides."""
    tied = tinytexts.model("bart", seed=3)
    with torch.no_grad():
        tied.model.final_logits_bias.fill_(-50.0)
        tied.model.final_logits_bias[0, 20:22] = 50.0
        table = tied.model.get_input_embeddings().weight
        table[21] = table[20]
    rows = made.rows
    assert writers._tied(tied, rows, 0, [20, 20], [20, 21]) and writers._tied(tied, rows, 0, [21], [20, 9])
    assert not writers._tied(tied, rows, 0, [20, 20], [20, 22])
    assert not writers._tied(tied, rows, 0, [20], [20, 20])


def test_a_folder_that_writes_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no config\.json of a model that writes"):
        OnnxWriter.open(tmp_path)


def test_what_is_exported_in_one_piece_is_refused_in_words() -> None:
    model: EncoderDecoder = tinytexts.model()
    with pytest.raises(NotImplementedError, match="an encoder and a decoder"):
        model.exportable()
