"""What `validate` looks up outside the config: are the task's files there, and have they the columns it
names?
"""

from __future__ import annotations

from collections.abc import Iterator

from distillkit.data.corpora import corpus_files
from distillkit.data.reading import column_names, find_tables
from distillkit.errors import ConfigError, DistillkitError, ErrorGroup
from distillkit.recipe import Loaded
from distillkit.registry import did_you_mean
from distillkit.settings import TaskSettings

_ELSEWHERE = ("builtin:", "hf:")


def check_sources(loaded: Loaded) -> None:
    """Raise DataError (3) for a file that cannot be read, ConfigError (2) for a column that is not in it.

    Rows are not read, and nothing is fetched: a hub name is taken as it is.
    """
    errors = list(_errors(loaded))
    if errors:
        raise errors[0] if len(errors) == 1 else ErrorGroup(errors)


def _errors(loaded: Loaded) -> Iterator[DistillkitError]:
    for place, task in loaded.config.task.single.items():
        yield from _errors_of(loaded, place, task)


def _errors_of(loaded: Loaded, place: str, task: TaskSettings) -> Iterator[DistillkitError]:
    for split, source in (("train", task.train), ("validation", task.validation), ("test", task.test)):
        if source is None or source.startswith(_ELSEWHERE):
            continue
        path = loaded.base / source
        try:
            if task.kind == "mlm":
                corpus_files(source, base=loaded.base)
                continue
            path = find_tables(path).get(split, path) if path.is_dir() else path
            found = column_names(path, encoding=task.encoding, delimiter=task.delimiter)
        except DistillkitError as error:
            where = loaded.origins.get(f"{place}.{split}", f"{place}.{split}")
            yield type(error)(
                f"{place}.{split}: {error.where}: {error.problem}", where=where, hint=error.hint
            )
            continue
        for field, wanted in _columns(task):
            if wanted not in found:
                yield ConfigError(
                    f"{place}.{field}: column {wanted!r} is not in {path}",
                    where=loaded.origins.get(f"{place}.{field}", f"{place}.{field}"),
                    hint=did_you_mean(wanted, found),
                )


def _columns(task: TaskSettings) -> list[tuple[str, str]]:
    texts = (task.text,) if isinstance(task.text, str) else task.text
    named = [("id", task.id)] if task.id is not None else []
    return [*(("text", name) for name in texts), ("label", task.label), *named]
