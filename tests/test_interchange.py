"""Interchange interventions against a reference written from the paper, example by example."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import batch, encoded, encoder
from torch.nn import functional

from distillkit.encoder import Encoder
from distillkit.errors import ConfigError
from distillkit.evaluate import predict
from distillkit.interchange import Interchange, Intervened, Intervention, paired_rows, sites_of
from distillkit.losses.base import LossStack
from distillkit.losses.causal_cosine import CausalCosine
from distillkit.losses.causal_kl import CausalKl
from distillkit.losses.gold import Gold
from distillkit.model import FixedTeacher
from distillkit.settings import InterchangeSettings
from distillkit.train import Distillation, take_step
from distillkit.types import Access, Batch, Want

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")

ALL = Want(access=Access.ALL_STATES)


def interchange(rows: int = 2, teacher: int = 4, **settings: object) -> Interchange:
    student_spec, teacher_spec = (encoder(layers=layers).spec for layers in (rows, teacher))
    return Interchange(InterchangeSettings(**settings), seed=7, student=student_spec, teacher=teacher_spec)  # type: ignore[arg-type]


def strong(seed: int, *, layers: int) -> Encoder:
    """A model whose blocks do something: fresh weights of the usual size hardly change a state."""
    model = encoder(seed, layers=layers)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10.0)
    return model


def part(rows: Batch, index: list[int]) -> Batch:
    take = torch.tensor(index)
    return replace(
        rows,
        inputs={name: value[take] for name, value in rows.inputs.items()},
        labels=None if rows.labels is None else rows.labels[take],
        mask=rows.mask[take],
        ids=rows.ids[take],
        full=False,
    )


@pytest.mark.parametrize("positions", ["span", "random"])
@pytest.mark.parametrize("sites", ["middle", "late", "multilayer"])
def test_the_swapped_run_is_the_reference_one_example_at_a_time(
    tmp_path: Path, positions: str, sites: str
) -> None:
    """Run the base and its source alone, put the source's state at the drawn tokens of the base by hand in a
    copy of the block's output, and read the logits.
    """
    model, rows = strong(1, layers=4).eval(), batch(tmp_path, 7)
    swapping = interchange(positions=positions, sites=sites)
    drawn = swapping.draw(rows)
    base = model.outputs(rows, want=ALL)
    swapped = model.outputs(rows, want=ALL, swap=swapping.teacher_swap(drawn, base)).logits
    for row, source in enumerate(paired_rows(7).tolist()):
        mine, other = part(rows, [row]), model.outputs(part(rows, [source]), want=ALL)
        places = drawn.swapped_BL[row].nonzero()[:, 0].tolist()
        taken = drawn.from_BL[row][places].tolist()

        def by_hand(block: int, state: torch.Tensor, places=places, taken=taken, other=other) -> torch.Tensor:
            state = state.clone()
            for place, origin in zip(places, taken, strict=True):
                state[0, place] = other.hidden[block][0, origin]
            return state

        blocks = swapping.sites[int(drawn.site_B[row])].teacher
        swap = {block - 1: lambda state, block=block: by_hand(block, state) for block in blocks}
        assert torch.allclose(model.outputs(mine, want=ALL, swap=swap).logits[0], swapped[row], atol=1e-5)
    assert not torch.allclose(swapped, base.logits, atol=1e-2), "the interventions must be seen at all"


def test_what_is_swapped_lies_in_real_tokens_and_is_as_long_as_the_paper_says(tmp_path: Path) -> None:
    rows = batch(tmp_path, 7)
    source, lengths = paired_rows(7), rows.mask.sum(-1)
    for positions in ("span", "random"):
        drawn = interchange(positions=positions, rate=0.5).draw(rows)
        for row in range(7):
            places = drawn.swapped_BL[row].nonzero()[:, 0]
            taken = drawn.from_BL[row][places]
            shorter = min(int(lengths[row]), int(lengths[source[row]]))
            assert len(places) == max(1, shorter // 2)
            assert int(places.max()) < lengths[row] and int(taken.max()) < lengths[source[row]]
            assert sorted(set(taken.tolist())) == taken.tolist(), "the k-th place gets the k-th state"
            if positions == "span":
                assert (places.diff() == 1).all() and (taken.diff() == 1).all()


def test_spans_start_anywhere_alike(tmp_path: Path) -> None:
    rows, swapping = batch(tmp_path, 6), interchange()
    starts = [
        int(swapping.draw(replace(rows, epoch=epoch)).swapped_BL[0].int().argmax()) for epoch in range(200)
    ]
    length, count = int(rows.mask[0].sum()), int(swapping.draw(rows).swapped_BL[0].sum())
    found = np.bincount(starts, minlength=length - count + 1)
    assert len(found) == length - count + 1 and found.min() > 0.4 * 200 / len(found)


def test_swapping_an_example_with_itself_changes_nothing_at_the_same_site_alone(tmp_path: Path) -> None:
    """The published code takes the state from the block's input, one block off, so that even a self-swap
    changes the run.
    """
    model, rows = strong(1, layers=4).eval(), batch(tmp_path, 6)
    base = model.outputs(rows, want=ALL)
    tokens = torch.arange(rows.mask.shape[1]).expand_as(rows.mask)
    zero = torch.zeros(6, dtype=torch.long)
    itself = Intervention(zero, rows.mask, torch.arange(6), tokens)
    same, reference = (interchange(site_offset=offset) for offset in ("same", "reference"))
    assert torch.equal(
        model.outputs(rows, want=ALL, swap=same.teacher_swap(itself, base)).logits, base.logits
    )
    moved = model.outputs(rows, want=ALL, swap=reference.teacher_swap(itself, base))
    assert torch.allclose(moved.hidden[2][rows.mask], base.hidden[1][rows.mask])
    assert not torch.allclose(moved.logits, base.logits, atol=1e-2)


def test_an_intervention_depends_on_the_example_and_not_on_its_batch(tmp_path: Path) -> None:
    rows = batch(tmp_path, 8)
    swapping = interchange(sites="multilayer")
    whole, half = swapping.draw(rows), swapping.draw(part(rows, [4, 5, 6, 7]))
    for name in ("site_B", "swapped_BL", "from_BL"):
        assert torch.equal(getattr(whole, name)[4:], getattr(half, name))
    other = swapping.draw(replace(rows, epoch=1))
    assert not torch.equal(whole.swapped_BL, other.swapped_BL)


def test_the_gradient_runs_through_base_source_and_swapped_runs(tmp_path: Path) -> None:
    """With the blocks after the site frozen out, what is left of the gradient came through the states taken
    from the source's run: cutting it there must change it.
    """
    student, rows = strong(1, layers=2), batch(tmp_path, 6)
    swapping = interchange(sites=[(1, 1)])
    drawn = swapping.draw(rows)
    base = student.outputs(rows, want=ALL)
    (state,) = (base.hidden[1],)
    swapped = student.outputs(rows, want=ALL, swap=swapping.student_swap(drawn, base))
    (through,) = torch.autograd.grad(swapped.logits[0].sum(), [state])
    source = int(drawn.source_B[0])
    places = drawn.from_BL[0][drawn.swapped_BL[0]]
    assert float(through[source, places].abs().min()) > 0 and float(through[0].abs().sum()) == 0


def test_a_step_runs_each_model_twice_and_losses_read_the_swapped_runs(tmp_path: Path) -> None:
    student, rows = strong(1, layers=2), batch(tmp_path, 6)
    model = strong(2, layers=4)
    teacher = FixedTeacher(model)
    swapping = interchange()
    losses = {"gold": (1.0, Gold()), "kl": (1.0, CausalKl(temperature=2.0)), "cos": (1.0, CausalCosine())}
    stack = LossStack(losses)
    stack.bind(student.spec, {"teacher": teacher.spec})
    calls = {"student": 0, "teacher": 0}
    for name, counted in (("student", student), ("teacher", model)):
        counted.model.register_forward_hook(
            lambda *_, name=name: calls.update({name: calls[name] + 1})  # type: ignore[misc]
        )
    student.eval()
    step = take_step(student, stack, {"teacher": teacher}, rows, swapping)
    assert calls == {"student": 2, "teacher": 2}
    drawn = swapping.draw(rows)
    mine, told = (m.outputs(rows, want=ALL) for m in (student, model))
    swapped_mine = student.outputs(rows, want=ALL, swap=swapping.student_swap(drawn, mine))
    swapped_told = model.outputs(rows, want=ALL, swap=swapping.teacher_swap(drawn, told))
    q = functional.log_softmax(swapped_mine.logits / 2, -1)
    p = functional.log_softmax(swapped_told.logits / 2, -1)
    raw = stack.raw(step)
    divergence = 4 * (p.exp() * (p - q)).sum(-1).mean()
    assert float(raw["kl"]) == pytest.approx(float(divergence), rel=1e-6, abs=1e-6)
    cosine = functional.cosine_similarity(swapped_mine.hidden[-1], swapped_told.hidden[-1], dim=-1)
    assert float(raw["cos"]) == pytest.approx(float((1 - cosine)[rows.mask].mean()), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("sites", "student", "teacher", "expected"),
    [
        ("middle", 3, 12, [((1,), (6,))]),
        ("middle", 6, 12, [((3,), (6,))]),
        ("middle", 9, 12, [((4,), (6,))]),
        ("late", 6, 12, [((3,), (9,)), ((4,), (10,))]),
        ("multilayer", 3, 12, [((1,), (1, 2, 3, 4)), ((2,), (5, 6, 7, 8)), ((3,), (9, 10, 11, 12))]),
        ("middle", 1, 1, [((1,), (1,))]),
        ([(2, 3)], 2, 4, [((2,), (3,))]),
    ],
)
def test_the_named_maps_are_the_published_ones(
    sites: object, student: int, teacher: int, expected: object
) -> None:
    made = sites_of(InterchangeSettings(sites=sites), student_layers=student, teacher_layers=teacher)  # type: ignore[arg-type]
    assert [(site.student, site.teacher) for site in made] == expected


def test_blocks_that_do_not_exist_are_refused() -> None:
    settings = InterchangeSettings(sites=[(3, 1)])
    with pytest.raises(ConfigError, match="1 to 2 and 1 to 4"):
        sites_of(settings, student_layers=2, teacher_layers=4)
    with pytest.raises(ConfigError, match="interventions need blocks"):
        sites_of(InterchangeSettings(), student_layers=0, teacher_layers=4)


def test_a_loss_that_needs_interventions_without_any_is_refused(tmp_path: Path) -> None:
    student, teacher = encoder(1), FixedTeacher(encoder(2))
    stack = LossStack({"kl": (1.0, CausalKl())})
    with pytest.raises(ConfigError, match="what to swap"):
        Distillation(student, stack, {"teacher": teacher}).terms(batch(tmp_path))


def test_interchange_accuracy_of_a_copy_is_one_and_of_another_model_less(tmp_path: Path) -> None:
    """The report's figure: both models are given the same interventions, pair by pair."""
    model, other = strong(1, layers=4), strong(5, layers=2)
    rows = encoded(tmp_path, 40)

    def answers(model: Encoder, twin: Encoder) -> tuple[np.ndarray, np.ndarray]:
        swapping = Interchange(InterchangeSettings(), seed=7, student=twin.spec, teacher=model.spec)
        sides = ((model, swapping.teacher_swap), (twin, swapping.student_swap))
        told, mine = (
            predict(
                lambda batch, side=side: Intervened(side[0].eval(), swapping, side[1]).outputs(
                    batch, want=Want()
                ),
                rows,
                device=torch.device("cpu"),
            )
            for side in sides
        )
        return told, mine

    told, mine = answers(model, model)
    assert np.array_equal(told, mine)
    plain = predict(lambda batch: model.outputs(batch, want=Want()), rows, device=torch.device("cpu"))
    assert not np.allclose(plain, told, atol=1e-2), "the interventions must be seen at all"
    told, mine = answers(model, other)
    assert told.shape == mine.shape == (40, 2) and not np.allclose(told, mine, atol=1e-2)
