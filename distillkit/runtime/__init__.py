"""An exported artifact, answering: ONNX Runtime, tokenizers and NumPy alone, no torch.

from distillkit.runtime import Artifact

model = Artifact.load("runs/mine/export")
for answer in model.predict(["a text to judge", "and another"]):
    print(answer.label, answer.probability)
"""

from __future__ import annotations

from distillkit.runtime.answers import Answer as Answer
from distillkit.runtime.answers import ClassAnswer as ClassAnswer
from distillkit.runtime.answers import TagsAnswer as TagsAnswer
from distillkit.runtime.answers import TextAnswer as TextAnswer
from distillkit.runtime.answers import ValueAnswer as ValueAnswer
from distillkit.runtime.artifact import Artifact as Artifact
