"""Terms on hidden states against loops."""

from __future__ import annotations

import pytest
import torch
from tiny import random_step

from distillkit.errors import ConfigError
from distillkit.losses.hidden_cosine import HiddenCosine
from distillkit.losses.hidden_mse import HiddenMse
from distillkit.losses.pkd import Pkd, patient_pairs
from distillkit.losses.states import StateLoss
from distillkit.types import Spec, Step

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")


def spec(layers: int, width: int) -> Spec:
    return Spec(
        num_layers=layers, hidden_dim=width, num_heads=2, ffn_dim=1, vocab_size=1, num_labels=2, max_length=8
    )


def bound(loss: StateLoss | Pkd, step: Step, *, width: int = 8, teacher_width: int = 8, layers: int = 2):
    torch.manual_seed(1)
    loss.bind(spec(layers, width), {"teacher": spec(layers, teacher_width)})
    return loss


def test_hidden_mse_is_a_loop_over_real_tokens_widths_and_layers() -> None:
    step = random_step()
    total = []
    for low, high in ((0, 0), (1, 1), (2, 2)):
        for example, token in step.batch.mask.nonzero().tolist():
            mine, told = step.student.hidden[low], step.teachers["teacher"].hidden[high]
            total += [float((mine[example, token, d] - told[example, token, d]) ** 2) for d in range(8)]
    loss = bound(HiddenMse(layer_map="tinybert"), step)
    assert float(loss(step)) == pytest.approx(sum(total) / len(total), rel=1e-5)


@pytest.mark.parametrize(("kind", "maps"), [("shared", 1), ("linear", 3), ("auto", 3)])
def test_one_map_for_all_layers_or_one_a_layer(kind: str, maps: int) -> None:
    step = random_step(width=6, teacher_width=10)
    loss = bound(HiddenMse(layer_map="tinybert", projection=kind), step, width=6, teacher_width=10)  # type: ignore[arg-type]
    weights = [parameter for parameter in loss.parameters()]
    assert len(weights) == maps and weights[0].shape == (10, 6)
    expected = [
        (step.student.hidden[layer] @ weights[layer % maps].T - step.teachers["teacher"].hidden[layer])
        .square()
        .mean(-1)[step.batch.mask]
        .mean()
        for layer in range(3)
    ]
    assert float(loss(step)) == pytest.approx(float(sum(expected)) / 3, rel=1e-5)


def test_equal_widths_need_no_map_unless_one_is_asked_for() -> None:
    step = random_step()
    counts = {
        kind: len(list(bound(HiddenCosine(projection=kind), step).parameters()))  # type: ignore[arg-type]
        for kind in ("auto", "none", "linear", "shared")
    }
    assert counts == {"auto": 0, "none": 0, "linear": 1, "shared": 1}


@pytest.mark.parametrize("make", [HiddenMse, HiddenCosine])
def test_the_closest_block_is_chosen_by_each_example(make: type) -> None:
    step = random_step(layers=3)
    loss = bound(make(layer_map="closest"), step, layers=3)
    mask, told = step.batch.mask, step.teachers["teacher"].hidden
    terms = []
    for high in (1, 2, 3):
        for example in range(5):
            real = mask[example]
            choices = [
                loss.distance(step.student.hidden[low][example, real], told[high][example, real])
                for low in (1, 2, 3)
            ]
            terms.append(min(choices, key=lambda distance: float(distance.sum())))
    expected = torch.cat(terms).mean()
    assert float(loss(step)) == pytest.approx(float(expected), rel=1e-5)


def test_closest_with_other_widths_shares_one_map() -> None:
    step = random_step(width=6, teacher_width=10)
    loss = bound(HiddenMse(layer_map="closest"), step, width=6, teacher_width=10)
    assert len(list(loss.parameters())) == 1 and float(loss(step)) > 0


def test_pkd_is_twice_one_minus_cosine_of_the_first_tokens() -> None:
    step = random_step(layers=3)
    loss = bound(Pkd(), step, layers=3)
    assert loss.pairs == ((1, 1), (2, 2))
    cosine = torch.nn.functional.cosine_similarity
    mine, told = step.student.hidden, step.teachers["teacher"].hidden
    expected = [(2 - 2 * cosine(mine[b][:, 0], told[b][:, 0], dim=-1)).mean() for b in (1, 2)]
    assert float(loss(step)) == pytest.approx(float(sum(expected)) / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("blocks", "student", "teacher", "pairs"),
    [
        ("skip", 6, 12, ((1, 2), (2, 4), (3, 6), (4, 8), (5, 10))),
        ("last", 6, 12, ((1, 7), (2, 8), (3, 9), (4, 10), (5, 11))),
        ("skip", 3, 6, ((1, 2), (2, 4))),
    ],
)
def test_the_patient_maps_are_the_papers(blocks: str, student: int, teacher: int, pairs: object) -> None:
    assert patient_pairs(blocks, student_layers=student, teacher_layers=teacher) == pairs  # type: ignore[arg-type]


def test_a_student_of_one_block_has_nothing_to_be_patient_with() -> None:
    with pytest.raises(ConfigError, match="2 blocks or more"):
        Pkd().bind(spec(1, 8), {"teacher": spec(4, 8)})
    with pytest.raises(ConfigError, match="block 0 does not exist"):
        Pkd(layers=[(0, 1)]).bind(spec(2, 8), {"teacher": spec(4, 8)})
