"""Whether two tokenizers mean the same by a token id: a run feeds teacher and student the same ids."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from distillkit.errors import ModelError


def check_agreement(
    teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase, *, where: str
) -> None:
    """Raise ModelError where an id of the teacher's tokenizer is another token, or none, in the student's.

    A student that knows more tokens is fine: they are never fed.
    """
    theirs, own = _tokens(teacher), _tokens(student)
    shared = sorted(theirs.keys() & own.keys())
    moved = [index for index in shared if theirs[index] != own[index]]
    sizes = (
        "" if len(theirs) == len(own) else f" ({len(theirs):,} tokens in the teacher's, {len(own):,} here)"
    )
    hint = "start from a model of the teacher's tokenizer, or build a student by another `use`"
    if moved:
        first = moved[0]
        raise ModelError(
            f"{len(moved):,} of {len(shared):,} shared token ids are other tokens{sizes}, e.g. {first}: "
            f"{theirs[first]!r} in the teacher's tokenizer, {own[first]!r} here",
            where=where,
            hint=hint,
        )
    lacking = sorted(theirs.keys() - own.keys())
    if lacking:
        raise ModelError(
            f"{len(lacking):,} of the teacher's tokens are not known{sizes}; the ids that both have agree; "
            f"e.g. {lacking[0]}: {theirs[lacking[0]]!r}",
            where=where,
            hint=hint,
        )
    if teacher.pad_token_id != student.pad_token_id:
        raise ModelError(
            f"padding is {student.pad_token!r} here and {teacher.pad_token!r} for the teacher",
            where=where,
            hint="set the same pad_token in both folders",
        )


def read_otherwise(
    teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase, texts: Sequence[tuple[str, ...]]
) -> int:
    """How many texts become other token ids: case, accents or the tokens around a text differ."""
    return sum(_ids(teacher, text) != _ids(student, text) for text in texts)


def _tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {index: token for token, index in tokenizer.get_vocab().items()}


def _ids(tokenizer: PreTrainedTokenizerBase, text: tuple[str, ...]) -> list[int]:
    ids: list[int] = tokenizer(*text, verbose=False)["input_ids"]
    return ids
