"""A Hugging Face dataset by name (`hf:OWNER/NAME`, `hf:OWNER/NAME/CONFIG`, then `@SPLIT`), where a recipe
says so.

`datasets` never runs code of the dataset here; what it gives passes the same checks as a file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from distillkit.data.reading import Table, missing_column, shown
from distillkit.errors import ConfigError, MissingError

_SOURCE = re.compile(
    r"(?P<name>[\w-][\w.-]*(/[\w-][\w.-]*)?)(/(?P<config>[\w-][\w.-]*))?(@(?P<split>[\w.-]+))?"
)


def hub_table(source: str, split: str, columns: Sequence[str]) -> Table:
    """The wanted columns of one split (of the one that `source` names after `@`, where it does).

    Raises ConfigError (2) for a malformed name, MissingError (5) where the hub or the dataset cannot be
    reached.
    """
    import datasets

    match = _SOURCE.fullmatch(source)
    if match is None:
        raise ConfigError(
            f"hf:{source!r} is not the name of a dataset",
            where=f"task.{split}",
            hint="hf:OWNER/NAME@SPLIT, or hf:OWNER/NAME/CONFIG@SPLIT",
        )
    name, split = match["name"], match["split"] or split
    try:
        data = datasets.load_dataset(name, match["config"], split=split)
    except Exception as error:  # the library and its transports raise many types
        raise MissingError(
            f"dataset {name!r}, split {split!r}: {shown(' '.join(str(error).split()))[:200]}",
            where=f"hf:{source}",
            hint="check the name and the network, or use a file",
        ) from None
    for column in columns:
        if column not in data.column_names:
            raise missing_column(Path(f"hf:{name}"), column, data.column_names)
    cells = {column: list(data[column]) for column in columns}
    for column in columns:
        feature = data.features[column]
        if isinstance(feature, datasets.ClassLabel):
            cells[column] = [None if value < 0 else feature.int2str(value) for value in cells[column]]
        if isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.ClassLabel):
            cells[column] = [list(map(feature.feature.int2str, values)) for values in cells[column]]
    digest = hashlib.sha256(
        json.dumps(cells, sort_keys=True, default=str).encode("utf-8", "backslashreplace")
    ).hexdigest()
    return Table(Path(f"hf:{name}"), cells, list(range(1, len(data) + 1)), digest)
