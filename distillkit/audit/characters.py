"""Characters that are no text: control characters, what was decoded wrongly, what nobody sees."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from distillkit.audit.blocks import Block

_SHOWN = 4
_TAILS = "\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ•˜™š›œžŸ"
_SUSPECT = re.compile(rf"Ã[{_TAILS}]|Â[\u00a0-\u00bf]|â€[{_TAILS}“”’‘–—]?|ï»¿|ðŸ|ï¿½")
"""What UTF-8 looks like that was read as Latin-1 or Windows-1252: accents, quotes, marks, pictures."""
_PATTERNS = {
    "control characters": re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"),
    "replacement characters (U+FFFD)": re.compile("\ufffd"),
    "zero-width or bidirectional characters": re.compile(
        "[\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]"
    ),
    "mojibake suspects": _SUSPECT,
}


@dataclass(frozen=True)
class Odd:
    """Sentences that hold characters of one kind, and which these are most often, as code points."""

    kind: str
    sentences: int
    most: tuple[str, ...]


class Characters:
    """Counts sentences that hold such characters, by kind."""

    def __init__(self) -> None:
        self._sentences = Counter[str]()
        self._found = {kind: Counter[str]() for kind in _PATTERNS}

    def add(self, block: Block) -> None:
        for document in block.texts:
            for sentence in document:
                if not (sentence.isascii() and sentence.isprintable()):
                    self._look_at(sentence)

    def found(self) -> tuple[Odd, ...]:
        """Every kind, those of which there are none too."""
        return tuple(
            Odd(kind, self._sentences[kind], tuple(_points(text) for text, _ in counts.most_common(_SHOWN)))
            for kind, counts in self._found.items()
        )

    def _look_at(self, sentence: str) -> None:
        for kind, pattern in _PATTERNS.items():
            found = pattern.findall(sentence)
            if found:
                self._sentences[kind] += 1
                self._found[kind].update(found)


def _points(text: str) -> str:
    return " ".join(f"U+{ord(sign):04X}" for sign in text)
