"""What identifies an object from Python: all that changes its answer, nothing that changes by itself."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distillkit.digests import digest, object_key
from distillkit.errors import ConfigError
from distillkit.losses.base import Loss
from distillkit.losses.hidden_cosine import HiddenCosine
from distillkit.settings import BatchSettings, FinetuneSettings, OptimizerSettings, PretrainSettings
from distillkit.teachers.bert import Bert
from distillkit.types import Step


class Tabled(Loss):
    """A loss with settings of every kind."""

    needs_teacher = False

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        for name, value in settings.items():
            if isinstance(value, Tensor):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, step: Step) -> Tensor:
        return step.student.logits.mean()


class Holder:
    def __init__(self, value: object) -> None:
        self.value = value


PAIRS: list[tuple[Any, Any]] = [
    (Path("a"), Path("b")),
    ({"lr": 1}, {"lr": 2}),
    (FinetuneSettings(epochs=1), FinetuneSettings(epochs=2)),
    (FinetuneSettings(), FinetuneSettings(optimizer=OptimizerSettings(lr=1.0))),
    (Holder(Holder(1)), Holder(Holder(2))),
    ({1, 2}, {1, 3}),
    (torch.zeros(2), torch.ones(2)),
    (torch.zeros(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)),
    (torch.float32, torch.float64),
    (len, max),
    (None, 0.0),
]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_a_setting_of_any_kind_counts(one: Any, other: Any) -> None:
    key = object_key(Tabled(value=one))
    assert json.dumps(key) == json.dumps(object_key(Tabled(value=one)))
    assert key != object_key(Tabled(value=other))


def test_settings_of_a_teacher_from_python_count_and_its_fine_tuning_by_itself() -> None:
    def teacher(**changes: Any) -> Bert:
        return Bert(**{"layers": 2, "width": 16, **changes})

    plain = object_key(teacher(), leave=("finetune",))
    for changes in ({"layers": 3}, {"vocab_size": 99}, {"mask_rate": 0.2}, {"whole_word": True}):
        assert object_key(teacher(**changes), leave=("finetune",)) != plain, changes
    assert object_key(teacher(pretrain=PretrainSettings(corpus="x", steps=3)), leave=("finetune",)) != plain
    assert object_key(teacher(finetune=FinetuneSettings(epochs=9)), leave=("finetune",)) == plain


def test_what_says_nothing_to_another_process_is_refused_unless_the_object_speaks_for_itself() -> None:
    class Spoken(Holder):
        def fingerprint(self) -> str:
            return f"version {self.version}"

        version = 1

    with pytest.raises(ConfigError, match=r"Tabled\.value\.value is a lock"):
        object_key(Tabled(value=Holder(threading.Lock())))
    one, two = Spoken(threading.Lock()), Spoken(threading.Lock())
    assert object_key(one) == object_key(two)
    two.version = 2
    assert object_key(one) != object_key(two)


def test_an_object_that_holds_itself_has_a_key() -> None:
    one = Holder(None)
    one.value = one
    assert object_key(one) == object_key(one)


def test_private_attributes_and_the_mode_of_a_module_do_not_count() -> None:
    loss = HiddenCosine()
    before = object_key(loss)
    loss.eval()
    loss._scratch = 3  # type: ignore[assignment]
    assert object_key(loss) == before


LOSS = """
from distillkit.losses.base import Loss
def scale():
    return {scale}
class Mine(Loss):
    def forward(self, step):
        return step.student.logits.mean() * scale()
"""
KEY = """
import json, sys
sys.path.insert(0, ".")
from distillkit.digests import object_key
from mine import Mine
print(json.dumps(object_key(Mine())))
"""


def test_the_code_of_a_class_counts_with_the_helpers_of_its_file_and_is_the_same_in_every_process(
    tmp_path: Path,
) -> None:
    def key(scale: int) -> str:
        (tmp_path / "mine.py").write_text(LOSS.format(scale=scale))
        return subprocess.run(
            [sys.executable, "-B", "-c", KEY], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    assert key(1) == key(1) != key(2)


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (lambda: FinetuneSettings(save_every=7), False),
        (lambda: FinetuneSettings(batch=BatchSettings(micro=4)), False),
        (lambda: FinetuneSettings(batch=BatchSettings(tokens=4)), True),
        (lambda: FinetuneSettings(epochs=7), True),
    ],
)
def test_how_often_is_saved_and_in_how_many_parts_is_computed_are_not_what_is_computed(
    change: Callable[[], FinetuneSettings], counts: bool
) -> None:
    assert (digest(change()) != digest(FinetuneSettings())) is counts
