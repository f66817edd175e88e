"""Strings that should not be learnt by heart: addresses, keys, account and card numbers, random-looking ones.

Found by their form and, where they have one, their check digits. They are counted and never shown: `redacted`
replaces each by its kind's public part and its length.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from distillkit.audit.blocks import Block

_SHOWN = 3
_RANDOM = 4.0
"""Bits a character from which a long string looks random; hexadecimal digits never have more than 4."""
_EMAIL = re.compile(r"@[\w-]+(?:\.[\w-]+)+")
_BEFORE_AT = re.compile(r"[\w.+%-]+\Z")
_URL = re.compile(r"https?://[^\s<>\"']+")
_IN_URL = re.compile(r"://[^\s/:@]+:[^\s/@]+@")
_ASSIGNED = re.compile(r"[:=]\s?[\"']?([^\s\"']{6,200})")
_SECRET_NAME = re.compile(
    r"(?:passw(?:or)?d|secret|api[_ -]?key|access[_ -]?key|auth[_ -]?token)[\"']?\s?\Z", re.I
)
_IBAN = re.compile(r"[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?")
_CARD = re.compile(r"\d(?:[ -]?\d){12,18}")
_JOINED, _JOINS = re.compile(r"\w[-/.,]?\Z"), re.compile(r"[-/.,]?\w")
_LONG = re.compile(r"[A-Za-z0-9+/_=-]{32,}")
_HEXADECIMAL = re.compile(r"[0-9a-f]{32,}|[0-9A-F]{32,}")
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")
_KEYS = tuple(
    re.compile(pattern)
    for pattern in (
        r"AKIA[0-9A-Z]{16}",  # AWS
        r"ASIA[0-9A-Z]{16}",
        r"gh[pousr]_[A-Za-z0-9]{36,}",  # GitHub
        r"github_pat_\w{22,}",
        r"glpat-[\w-]{20,}",  # GitLab
        r"xox[abprs]-[\w-]{10,}",  # Slack
        r"AIza[\w-]{35}",  # Google
        r"sk-[\w-]{20,}",  # OpenAI, Anthropic
        r"sk_live_\w{16,}",  # Stripe
        r"hf_[A-Za-z0-9]{30,}",  # Hugging Face
        r"eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}",  # JSON web token
    )
)

Span = tuple[int, int]


@dataclass(frozen=True)
class Kind:
    """One kind of string: where it stands in a text, and what of it may be shown."""

    name: str
    spans: Callable[[str], Iterator[Span]]
    shown: Callable[[str], str]


@dataclass(frozen=True)
class Found:
    """How often a kind of string was found, and the first ones: number of the document (from 1), and what may
    be shown.
    """

    kind: str
    count: int
    examples: tuple[tuple[int, str], ...]


def redacted(text: str) -> str:
    """The text with every string of these kinds replaced by what of it may be shown."""
    for kind in KINDS:
        parts, done = [], 0
        for start, end in sorted(kind.spans(text)):
            if start >= done:
                parts += [text[done:start], kind.shown(text[start:end])]
                done = end
        text = "".join((*parts, text[done:]))
    return text


class Sensitive:
    """Counts the strings of each kind in a corpus."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[tuple[int, str]]] = {kind.name: [] for kind in KINDS}

    def add(self, block: Block) -> None:
        texts = ["\n".join(document) for document in block.texts]
        text = "\n".join(texts)
        for kind in KINDS:
            for start, end in kind.spans(text):
                self._counts[kind.name] += 1
                examples = self._examples[kind.name]
                if len(examples) < _SHOWN:
                    examples.append((block.first + 1 + _document(texts, start), kind.shown(text[start:end])))

    def found(self) -> tuple[Found, ...]:
        """Every kind, those that were not found too."""
        return tuple(
            Found(kind.name, self._counts[kind.name], tuple(self._examples[kind.name])) for kind in KINDS
        )


def _document(texts: Sequence[str], place: int) -> int:
    """Index of the text that holds a place of them all, joined by line ends."""
    starts, start = [], 0
    for text in texts:
        starts.append(start)
        start += len(text) + 1
    return bisect_right(starts, place) - 1


def _all(
    pattern: re.Pattern[str], valid: Callable[[re.Match[str]], bool] = lambda match: True
) -> Callable[[str], Iterator[Span]]:
    def spans(text: str) -> Iterator[Span]:
        return (match.span() for match in pattern.finditer(text) if valid(match))

    return spans


def _stands_alone(match: re.Match[str]) -> bool:
    """Whether it is no part of a longer word, number or path."""
    text, start, end = match.string, match.start(), match.end()
    return not (_JOINED.search(text, max(0, start - 2), start) or _JOINS.match(text, end))


def _in_url(match: re.Match[str]) -> bool:
    """Whether nothing but an URL's beginning stands before it up to the next white space."""
    before = match.string[max(0, match.start() - 300) : match.start()]
    return "://" in before[max(map(before.rfind, " \t\n")) + 1 :]


def _emails(text: str) -> Iterator[Span]:
    """From the @ to both sides: looking for a name everywhere would take ten times as long."""
    for match in _EMAIL.finditer(text):
        name = _BEFORE_AT.search(text[max(0, match.start() - 64) : match.start()])
        if name and not _in_url(match):
            yield match.start() - len(name.group()), match.end()


def _keys(text: str) -> Iterator[Span]:
    for pattern in _KEYS:
        yield from _all(pattern, _is_key)(text)


def _assigned(text: str) -> Iterator[Span]:
    for match in _ASSIGNED.finditer(text):
        if _SECRET_NAME.search(text[max(0, match.start() - 24) : match.start()]):
            yield match.span(1)


def _random(text: str) -> Iterator[Span]:
    for match in _LONG.finditer(text):
        if _looks_random(match.group()) and not _in_url(match):
            yield match.span()


def _is_key(match: re.Match[str]) -> bool:
    """Begins a word and has a digit."""
    begins = not match.string[max(0, match.start() - 1) : match.start()].isalnum()
    return begins and any(sign.isdigit() for sign in match.group())


def _looks_random(text: str) -> bool:
    """Hexadecimal with letters and digits, or of three kinds of characters and high entropy."""
    if _HEXADECIMAL.fullmatch(text):
        return not text.isdigit() and not text.isalpha()
    kinds = (str.isdigit, str.islower, str.isupper)
    return all(any(map(kind, text)) for kind in kinds) and _entropy(text) >= _RANDOM


def _entropy(text: str) -> float:
    """Bits a character."""
    shares = (count / len(text) for count in Counter(text).values())
    return -sum(share * math.log2(share) for share in shares)


def _is_iban(match: re.Match[str]) -> bool:
    """Length and check digits (ISO 13616): modulo 97 it is 1."""
    plain = match.group().replace(" ", "")
    turned = plain[4:] + plain[:4]
    check = int("".join(str(int(sign, 36)) for sign in turned)) % 97
    return 15 <= len(plain) <= 34 and check == 1 and _stands_alone(match)


def _is_card(match: re.Match[str]) -> bool:
    """First digit and check digit (ISO/IEC 7812, Luhn)."""
    digits = [int(sign) for sign in match.group() if sign.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    right = (sum(digits[::-2]) + sum(doubled)) % 10 == 0
    return digits[0] in (2, 3, 4, 5, 6) and right and _stands_alone(match)


def _size(text: str) -> str:
    return f"({len(text)} characters)"


def _host(url: str) -> str:
    """Scheme and host; who, where and what for can be secrets."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        host = None
    return f"{parts.scheme}://{host}/…" if host else f"http…{_size(url)}"


KINDS = (
    Kind("private key", _all(_PRIVATE_KEY), lambda text: "-----BEGIN …"),
    Kind("API key or token", _keys, lambda text: f"{text[:4]}… {_size(text)}"),
    Kind("password in a URL", _all(_IN_URL), lambda text: "://…:…@"),
    Kind("password or secret", _assigned, lambda text: f"… {_size(text)}"),
    Kind("random-looking string", _random, lambda text: f"… {_size(text)}"),
    Kind("e-mail address", _emails, lambda text: f"{text[0]}…@… {_size(text)}"),
    Kind("URL", _all(_URL), _host),
    Kind("IBAN", _all(_IBAN, _is_iban), lambda text: f"{text[:2]}… {_size(text)}"),
    Kind("card number", _all(_CARD, _is_card), lambda text: f"… {_size(text)}"),
)
"""In the order in which texts are redacted."""
