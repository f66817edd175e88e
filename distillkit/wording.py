"""Values in messages, and texts that no tokenizer and no file takes."""

from __future__ import annotations


def shown(value: object) -> str:
    """A value as it may stand in a message: control characters escaped, long ones cut."""
    text = repr(value[:80] if isinstance(value, str) else value)
    return text if len(text) <= 80 else text[:77] + "..."


def half_character(text: str) -> str:
    """What is wrong with a text that cannot be encoded, or ''."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"holds half a character (a lone surrogate, \\u{ord(text[error.start]):04x})"
    return ""
