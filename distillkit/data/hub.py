"""A Hugging Face dataset by name (`hf:NAME` or `hf:NAME/CONFIG`), only where the recipe says so.

`datasets` never runs code of the dataset here; what it gives passes the same checks as a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from distillkit.data.reading import Table, missing_column
from distillkit.errors import MissingError


def hub_table(name: str, split: str, columns: Sequence[str]) -> Table:
    """The wanted columns of one split. Raises MissingError (5) where the hub or the dataset cannot be reached."""
    import datasets

    try:
        data = datasets.load_dataset(name, split=split)
    except Exception as error:  # the library and its transports raise many types
        raise MissingError(
            f"dataset {name!r}, split {split!r}: {str(error).splitlines()[0]}",
            where=f"task.{split}",
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
    digest = hashlib.sha256(
        json.dumps(cells, sort_keys=True, default=str).encode("utf-8", "backslashreplace")
    ).hexdigest()
    return Table(Path(f"hf:{name}"), cells, list(range(1, len(data) + 1)), digest)
