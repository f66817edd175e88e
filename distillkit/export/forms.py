"""The other forms of an artifact as folders that can be deployed, each compared with the plain one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from distillkit.data.batching import Encoded
from distillkit.export.formats import Allowed, Format, Source
from distillkit.export.parity import Apart, apart, batches
from distillkit.files import remove, seal
from distillkit.runtime.description import MODEL
from distillkit.runtime.session import open_session
from distillkit.settings import ExportSettings

FOLDER, FILE = "formats", "formats.json"
_PARITY = "parity.json"


@dataclass(frozen=True)
class Formed:
    """What came of one form. status: "ok" or why it was not kept; made: what was counted in it; differences
    are to the plain form, relative ones a share of its largest logit.
    """

    status: str
    size_bytes: int = 0
    made: Mapping[str, int] = field(default_factory=dict)
    max_abs_difference: float = 0.0
    relative_difference: float = 0.0
    same_predictions: float = 0.0


def export_forms(
    folder: Path, formats: Mapping[str, Format], source: Source, samples: Encoded, settings: ExportSettings
) -> dict[str, Formed]:
    """Beside the artifact in `folder` a whole one for each form, in `formats/NAME`, and formats.json with
    what came of each.

    One that cannot be made, or changes answers beyond what it may, is not kept; the others are.
    """
    found = {}
    for name, form in formats.items():
        place = folder / FOLDER / name
        place.mkdir(parents=True)
        found[name] = formed = _formed(folder, place, form, source, samples, settings)
        if formed.status != "ok":
            remove(place)
            continue
        (place / _PARITY).write_text(json.dumps(asdict(formed), indent=1))
        seal(place, {})
    content = {name: asdict(one) for name, one in found.items()}
    (folder / FILE).write_text(json.dumps(content, indent=1))
    return found


def _formed(
    folder: Path, place: Path, form: Format, source: Source, samples: Encoded, settings: ExportSettings
) -> Formed:
    try:
        made = form.write(source, place / MODEL)
        plain, other = (open_session(one / MODEL, provider="cpu", threads=1) for one in (folder, place))
        longest = json.loads((folder / "config.json").read_text())["max_length"]
        told = apart(plain, other, batches(samples, settings.rows, longest))
    except Exception as error:  # converters, quantisers and runtimes raise many types
        return Formed(f"failed: {[*str(error).splitlines(), type(error).__name__][0]}")
    for path in folder.iterdir():
        if path.is_file() and path.name not in (MODEL, _PARITY):
            shutil.copy(path, place / path.name)
    size = (place / MODEL).stat().st_size
    return Formed(_verdict(told, form.allowed), size, made, told.largest, told.relative, told.same)


def _verdict(told: Apart, allowed: Allowed) -> str:
    if not np.isfinite(told.largest):
        return "it answers with what is no number"
    if allowed.relative is not None and told.relative > allowed.relative:
        return f"its logits differ by {told.relative:.1e} of the largest, more than {allowed.relative:.0e}"
    if allowed.same is not None and told.same < allowed.same:
        return f"{told.same:.2%} of its answers are the same, fewer than {allowed.same:.1%}"
    return "ok"
