"""A student with exits: what it answers, who teaches whom, its parts in PyTorch and ONNX, and the loop around
it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import LABELS, batch, change_config, change_weights, encoded, encoder, feed, tokenizer
from torch.nn import functional
from training import StopAfter, digest, run, settings

from distillkit import files
from distillkit.data.batching import collate
from distillkit.early_exit import Budget, Entropy, Never, Patience, simulate, write_rule
from distillkit.encoder import Encoder, fresh
from distillkit.errors import ConfigError, ExportError, ModelError
from distillkit.export.bundle import export
from distillkit.export.exits import candidates, choose, exit_logits, export_exits
from distillkit.losses.at_exits import AtExits
from distillkit.losses.attention_scores import AttentionScores
from distillkit.losses.base import LossStack
from distillkit.losses.causal_kl import CausalKl
from distillkit.losses.gold import Gold
from distillkit.losses.hidden_mse import HiddenMse
from distillkit.losses.logits import Logits
from distillkit.model import FixedTeacher
from distillkit.runtime import Artifact, ClassAnswer
from distillkit.runtime.early_exit import EarlyExit
from distillkit.segments import STATES
from distillkit.settings import ExportSettings, Labels
from distillkit.students.exits import FOLDER, Exits, WithExits
from distillkit.students.transformer import Transformer
from distillkit.train import Distillation
from distillkit.types import Access, Batch, Want

ASK = Want(exits=True)
LONGEST = 32
REGRESSION = Labels(kind="regression")


def student(*, joint: bool = True, dropout: float = 0.0, labels: Labels = LABELS, seed: int = 3) -> WithExits:
    """Five blocks, exits after the first and the third."""
    inner = encoder(seed, layers=5, width=16, dropout=dropout, labels=labels)
    return WithExits(inner, (1, 3), 4, joint=joint)


def stack(teacher: str = "deepest", **losses: Any) -> LossStack:
    """gold for the last answer; for the exits gold, scores and states, unless others are given."""
    terms = losses or {"gold": Gold(), "kd": Logits(temperature=3.0), "hint": HiddenMse(layer_map="last")}
    made = LossStack(
        {
            "gold": (1.0, Gold()),
            **{f"{name} at exits": (0.5, AtExits(loss, teacher)) for name, loss in terms.items()},  # type: ignore[arg-type]
        }
    )
    made.bind(student().spec, {"teacher": encoder(1, layers=2, width=8).spec})
    return made


def program(*, dropout: float = 0.0, joint: bool = True, teacher: str = "deepest") -> Distillation:
    made = student(joint=joint, dropout=dropout)
    torch.manual_seed(9)
    return Distillation(made, stack(teacher), {"teacher": FixedTeacher(encoder(1, layers=2, width=8))})


def test_an_exit_answers_from_its_block_alone(tmp_path: Path) -> None:
    """Blocks behind an exit do not change what it says; the last answer is the encoder's own."""
    made, rows = student().eval(), batch(tmp_path)
    first, second, last = made.outputs(rows, want=ASK).exits
    plain = made.inner.outputs(rows, want=Want())
    assert torch.equal(last.logits, plain.logits)
    assert made.outputs(rows, want=ASK).hidden == () and made.outputs(rows, want=Want()).exits == ()
    with torch.no_grad():
        for parameter in made.inner.blocks[2].parameters():
            parameter.add_(0.5)
    changed = made.outputs(rows, want=ASK).exits
    assert torch.equal(first.logits, changed[0].logits)
    assert not torch.equal(second.logits, changed[1].logits)
    states = made.outputs(rows, want=Want(Access.ALL_STATES, exits=True)).hidden
    assert len(states) == 6 and torch.equal(changed[1].hidden[0], states[3])


def test_padding_changes_no_exit(tmp_path: Path) -> None:
    made, rows = student().eval(), batch(tmp_path)
    together = made.outputs(rows, want=ASK).exits
    for index, length in enumerate(rows.mask.sum(1).tolist()):
        alone = replace(
            rows,
            inputs={name: value[index : index + 1, :length] for name, value in rows.inputs.items()},
            mask=rows.mask[index : index + 1, :length],
        )
        for mine, padded in zip(made.outputs(alone, want=ASK).exits, together, strict=True):
            torch.testing.assert_close(mine.logits[0], padded.logits[index], atol=1e-5, rtol=0)


def test_the_total_is_be_your_own_teacher(tmp_path: Path) -> None:
    """Against the paper's formula written out: CE of every exit, T^2 KL to the deepest and the distance of
    what the classifiers read; the deepest learns from labels alone.
    """
    made, rows = student(), batch(tmp_path)
    total, _ = Distillation(made, stack(), {})(
        rows, {"gold": 6, "gold at exits": 6, "kd at exits": 6, "hint at exits": int(rows.mask.sum())}
    )
    states = made.inner.outputs(rows, want=Want(Access.ALL_STATES))
    assert rows.labels is not None
    expected = functional.cross_entropy(states.logits, rows.labels)
    target = (states.logits.detach() / 3).softmax(-1)
    for depth, leave in ((1, made.exits[0]), (3, made.exits[1])):
        h = states.hidden[depth]
        f = leave.norm(h + leave.up(functional.gelu(leave.down(h))))
        pooled = torch.stack([one[real].mean(0) for one, real in zip(f, rows.mask, strict=True)])
        logits = leave.classifier(pooled)
        kl = functional.kl_div((logits / 3).log_softmax(-1), target, reduction="batchmean")
        hint = (f - states.hidden[5].detach()).square().mean(-1)[rows.mask].mean()
        expected = expected + 0.5 * (functional.cross_entropy(logits, rows.labels) + 9 * kl + hint)
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-6)


def reached(made: WithExits, losses: LossStack, rows: Batch, names: set[str]) -> set[str]:
    """Parameters that get a gradient of some terms."""
    made.zero_grad()
    terms = Distillation(made, losses, {"teacher": FixedTeacher(encoder(1, layers=2, width=8))}).terms(rows)
    torch.stack([terms[name] for name in names]).sum().backward()
    return {
        name for name, one in made.named_parameters() if one.grad is not None and float(one.grad.abs().max())
    }


def test_the_deepest_answer_gets_no_gradient_from_its_pupils(tmp_path: Path) -> None:
    made, rows = student(), batch(tmp_path)
    at_exits = {"gold at exits", "kd at exits", "hint at exits"}
    found = reached(made, stack(), rows, at_exits)
    behind = ("layer.3.", "layer.4.", "pooler", "inner.model.classifier")
    assert not [name for name in found if any(part in name for part in behind)]
    assert {f"exits.{number}.classifier.weight" for number in (0, 1)} <= found
    assert any("layer.2." in name for name in found) and any("embeddings" in name for name in found)


def test_apart_from_the_body_exits_train_themselves_alone(tmp_path: Path) -> None:
    made, rows = student(joint=False), batch(tmp_path)
    found = reached(made, stack(), rows, {"gold at exits", "kd at exits", "hint at exits"})
    assert found and all(name.startswith("exits.") for name in found)
    assert reached(made, stack(), rows, {"gold"}) & {"inner.model.classifier.weight"}


def test_exits_may_learn_from_the_teacher_of_the_run(tmp_path: Path) -> None:
    """Also its states, through a projection of each exit's own; without a teacher in the recipe they need
    none.
    """
    rows, teacher = batch(tmp_path), FixedTeacher(encoder(1, layers=2, width=8))
    losses = stack("teacher", kd=Logits(temperature=1.0), states=HiddenMse(layer_map="last"))
    assert losses.needs_teacher and not stack().needs_teacher
    assert losses.needs == Want(Access.ALL_STATES, exits=True)
    made = student()
    terms = Distillation(made, losses, {"teacher": teacher}).terms(rows)
    said = made.outputs(rows, want=ASK).exits
    target = teacher.outputs(rows, want=Want()).logits.softmax(-1)
    expected = sum(
        functional.kl_div(one.logits.log_softmax(-1), target, reduction="batchmean") for one in said[:-1]
    )
    torch.testing.assert_close(terms["kd at exits"], expected)
    projections = [name for name, _ in losses.named_parameters()]
    assert len(projections) == 2  # 16 wide here, 8 there


@pytest.mark.parametrize("loss", [AttentionScores, CausalKl])
def test_what_an_exit_does_not_show_is_refused(loss: Any) -> None:
    with pytest.raises(ConfigError, match="an exit shows its answer and its states"):
        AtExits(loss(), "deepest")


def test_a_student_without_exits_is_refused() -> None:
    plain = encoder(1).spec
    with pytest.raises(ConfigError, match="the student has no exits"):
        AtExits(Gold(), "deepest").bind(plain, {"teacher": plain})


def test_a_constant_deepest_answer_is_what_the_exits_collapse_to(tmp_path: Path) -> None:
    """Whatever the labels say: the exits learn the distribution that the last classifier's bias gives."""
    made = student(joint=False)
    with torch.no_grad():
        made.inner.model.classifier.weight.zero_()
        made.inner.model.classifier.bias.copy_(torch.tensor([1.2, -0.3]))
    losses = stack(kd=Logits(temperature=1.0))
    losses.schedules.pop("gold")
    del losses.losses["gold"]
    losses.go_to(0)
    for parameter in made.inner.parameters():
        parameter.requires_grad_(False)
    trained, _ = run(
        tmp_path,
        made=Distillation(made, losses, {}),
        data=feed(tmp_path / "cache"),
        how=replace(settings(epochs=30)),
    )
    assert trained is not None
    rows = batch(tmp_path)
    *exits, deepest = made.eval().outputs(rows, want=ASK).exits
    for said in exits:
        torch.testing.assert_close(said.logits.softmax(-1), deepest.logits.softmax(-1), atol=0.03, rtol=0)


@pytest.mark.parametrize("teacher", ["deepest", "teacher"])
def test_a_training_that_was_cut_goes_on_bit_for_bit(tmp_path: Path, teacher: str) -> None:
    data: Any = feed(tmp_path / "cache", count=24)
    how = settings(save_every=1, log_every=1)
    whole, _ = run(tmp_path / "whole", made=program(dropout=0.1, teacher=teacher), data=data, how=how)
    with pytest.raises(KeyboardInterrupt):
        cut = program(dropout=0.1, teacher=teacher)
        run(tmp_path / "cut", made=cut, data=data, how=how, progress=StopAfter(2))
    again, result = run(tmp_path / "cut", made=program(dropout=0.1, teacher=teacher), data=data, how=how)
    assert result.resumed_from and digest(again) == digest(whole)


def test_a_batch_in_parts_gives_the_same_gradient(tmp_path: Path) -> None:
    gradients = []
    for micro in (1, 2, 3):
        made = program()
        parts = feed(tmp_path, micro=micro, examples=9, count=9).step(0, 0)
        totals = {name: sum(made.counts(part)[name] for part in parts) for name in made.weights}
        for part in parts:
            total, _ = made(part, totals)
            total.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in made.parameters() if p.grad is not None]))
    for other in gradients[1:]:
        torch.testing.assert_close(gradients[0], other, rtol=1e-3, atol=1e-6)


def source(**changes: Any) -> Exits:
    inner = Transformer(layers=4, width=16, heads=2)
    return Exits(**{"of": inner, "at": [1, 3], **changes})


def test_sizes_are_checked_where_they_are_given() -> None:
    teacher = FixedTeacher(encoder(1))
    built = source().build(tokenizer(), LABELS, LONGEST, teacher)
    assert isinstance(built, WithExits) and built.spec.exits == (1, 3) and built.adapter == 4
    with pytest.raises(ConfigError, match="not strictly increasing"):
        source(at=[3, 1])
    with pytest.raises(ConfigError, match="no exit after block 4 of 4"):
        source(at=[2, 4]).build(tokenizer(), LABELS, LONGEST, teacher)
    small = Transformer(layers=4, width=16, heads=2, vocabulary=60)
    with pytest.raises(ConfigError, match="reads every piece"):
        source(of=small).build(tokenizer(), LABELS, LONGEST, teacher)


def test_what_is_saved_opens_as_an_encoder_too(tmp_path: Path) -> None:
    made, rows = student().eval(), batch(tmp_path / "cache")
    made.save(tmp_path, LABELS)
    again = source().load(tmp_path)
    assert isinstance(again, WithExits) and again.spec == made.spec and again.joint
    for mine, theirs in zip(
        again.eval().outputs(rows, want=ASK).exits, made.outputs(rows, want=ASK).exits, strict=True
    ):
        assert torch.equal(mine.logits, theirs.logits)
    plain = Encoder.load(tmp_path).eval()
    assert torch.equal(plain.outputs(rows, want=Want()).logits, made.outputs(rows, want=Want()).logits)


def test_damaged_exits_are_refused(tmp_path: Path) -> None:
    student().save(tmp_path, LABELS)
    name = "0.classifier.bias"
    whole = load_file(str(tmp_path / FOLDER / "model.safetensors"))[name]
    change_weights(tmp_path / FOLDER, **{name: whole[:1].clone()})
    with pytest.raises(ModelError, match="do not fit"):
        source().load(tmp_path)
    change_weights(tmp_path / FOLDER, **{name: whole})
    change_config(tmp_path / FOLDER, at=[1, 9])
    with pytest.raises(ModelError, match="do not fit the model beside them"):
        source().load(tmp_path)
    (tmp_path / FOLDER / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"not the config\.json of exits"):
        source().load(tmp_path)


FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {
        "type_vocab_size": 2,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    },
    "electra": {
        "embedding_size": 8,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    },
    "roberta": {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "pad_token_id": 1,
    },
    "distilbert": {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24},
    "mpnet": {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24},
    "deberta-v2": {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
    },
}


@pytest.mark.parametrize(
    "family",
    [name if name in ("bert", "mpnet") else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def test_the_parts_of_any_family_compute_the_whole(family: str, tmp_path: Path) -> None:
    """In PyTorch here, and in ONNX through the gate of the export, on every shape that breaks exports."""
    from transformers import AutoConfig

    torch.manual_seed(2)
    settings = {"vocab_size": 120, "max_position_embeddings": 40, **FAMILIES[family]}
    inner = fresh(AutoConfig.for_model(family, **settings), LABELS)
    made = WithExits(inner, (1, 2), 4, joint=True).eval()
    rows = batch(tmp_path / "cache")
    with torch.no_grad():
        whole = made.outputs(rows, want=ASK).exits
        inputs = dict(rows.inputs)
        for part, said in zip(made.segments(), whole, strict=True):
            logits, *handed = part(**{name: inputs[name] for name in part.input_names})
            torch.testing.assert_close(logits, said.logits, atol=1e-5, rtol=0)
            inputs |= dict(zip([STATES], handed, strict=False))
    samples = encoded(tmp_path / "cache")
    parity = export_exits(made, LABELS, "accuracy", samples, tmp_path, ExportSettings())
    assert parity.max_abs_difference < 1e-4 and len(parity.shapes) == 3 * 5
    sizes = [(tmp_path / "segments" / f"{number}.onnx").stat().st_size for number in range(3)]
    table = inner.model.get_input_embeddings().weight.numel() * 4
    assert sizes[0] > table  # the only part that holds the table
    assert all(size < sizes[0] for size in sizes[1:]) or family == "deberta-v2"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WithExits]:
    """An exported student whose exits know something: trained for a while."""
    folder = tmp_path_factory.mktemp("artifact")
    made = program()
    run(folder / "run", made=made, data=feed(folder / "cache", count=200), how=settings(epochs=4))
    trained = made.student
    assert isinstance(trained, WithExits)
    samples = encoded(folder / "cache", 120, seed=8)
    out = folder / "export"
    out.mkdir()
    export(trained, tokenizer(), LABELS, samples, out, ExportSettings())
    export_exits(trained, LABELS, "accuracy", samples, out, ExportSettings())
    return out, trained


def test_the_walk_of_an_artifact_is_what_its_exits_say(
    artifact: tuple[Path, WithExits], tmp_path: Path
) -> None:
    """On a padded batch that shrinks: who leaves where, and the answer that each got there."""
    folder, trained = artifact
    samples = encoded(tmp_path, 60, seed=4)
    said_EnV = exit_logits(trained, samples)
    inputs = {name: value.numpy() for name, value in collate(samples, np.arange(60)).inputs.items()}
    twice = Budget.fit(said_EnV, (1, 3, 5), 3.0)
    assert len(np.unique(simulate(said_EnV, twice))) == 3  # so that the batch shrinks twice
    for rule in (Never(), Entropy(1.1), Patience(1), twice):
        expected = simulate(said_EnV, rule)
        walked = EarlyExit.open(folder).run(inputs, rule)
        assert np.array_equal(walked.exits, expected), rule
        np.testing.assert_allclose(walked.logits, said_EnV[expected, np.arange(60)], atol=1e-4)


def test_the_runtime_answers_by_the_rule_of_the_artifact(
    artifact: tuple[Path, WithExits], tmp_path: Path
) -> None:
    """And by the whole model where the rule lets nothing leave."""
    folder, trained = Path(shutil.copytree(artifact[0], tmp_path / "copy")), artifact[1]
    samples = encoded(tmp_path, 60, seed=4)
    said_EnV = exit_logits(trained, samples)
    for rule in (Never(), Budget.fit(said_EnV, (1, 3, 5), 3.0)):
        facts = json.loads((folder / "exits.json").read_text())
        (folder / "exits.json").write_text(json.dumps({**facts, "rule": write_rule(rule)}))
        files.seal(folder, {})
        answers = Artifact.load(folder, threads=1).predict([text for (text,) in samples.texts], tokens=90)
        exits = simulate(said_EnV, rule)
        for answer, exit, said_EV in zip(answers, exits, said_EnV.swapaxes(0, 1), strict=True):
            assert isinstance(answer, ClassAnswer)
            assert answer.exit == (None if rule == Never() else exit + 1)
            expected = torch.from_numpy(said_EV[exit]).softmax(-1).tolist()
            assert list(answer.probabilities.values()) == pytest.approx(expected, abs=1e-4)
    next((folder / "segments").iterdir()).rename(folder / "segments" / "9.onnx")
    with pytest.raises(ExportError):
        Artifact.load(folder)


def test_the_rule_of_an_artifact_loses_nothing_where_it_was_chosen(
    artifact: tuple[Path, WithExits], tmp_path: Path
) -> None:
    folder, trained = artifact
    samples = encoded(folder.parent / "cache", 120, seed=8)
    said = exit_logits(trained, samples)
    gold = samples.gold
    assert gold is not None
    rules = candidates(LABELS, said, (1, 3, 5))
    chosen = choose(LABELS, "accuracy", gold, said, (1, 3, 5), rules)
    assert EarlyExit.open(folder).rule == chosen
    depths = np.asarray((1, 3, 5))
    right, blocks = {}, {}
    for rule in rules:
        exits = simulate(said, rule)
        right[rule] = (said[exits, np.arange(120)].argmax(-1) == gold).mean()
        blocks[rule] = depths[exits].mean()
    whole = (said[-1].argmax(-1) == gold).mean()
    assert right[chosen] >= whole
    assert blocks[chosen] == min(depth for rule, depth in blocks.items() if right[rule] >= whole)
    facts = json.loads((folder / "exits.json").read_text())
    assert facts["depths"] == [1, 3, 5] and facts["chosen_on"] == {"rows": 120, "metric": "accuracy"}


def test_a_regression_leaves_by_patience(tmp_path: Path) -> None:
    made = student(labels=REGRESSION).eval()
    samples = encoded(tmp_path / "cache")
    said = exit_logits(made, samples)
    assert said.shape == (3, 40, 1)
    rules = candidates(REGRESSION, said, (1, 3, 5))
    assert rules[0] == Never() and len(rules) > 1
    assert all(isinstance(rule, Patience) and rule.tolerance > 0 for rule in rules[1:])
