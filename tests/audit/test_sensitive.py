"""Strings that should not be learnt are counted by their form and check digits, and never shown."""

from __future__ import annotations

import secrets

import pytest

from distillkit.audit.blocks import Block
from distillkit.audit.sensitive import KINDS, Sensitive, redacted

KEY = "AKIA" + "IOSFODNN7EXAMPLE"
TOKEN = "ghp_" + "a1B2" * 9
PLANTED = [
    ("e-mail address", "mail jane.doe+x@mail.example.org, please", "jane.doe+x@mail.example.org"),
    ("API key or token", f"id={KEY}.", KEY),
    ("API key or token", f"({TOKEN})", TOKEN),
    ("private key", "-----BEGIN RSA PRIVATE KEY-----", "RSA PRIVATE"),
    ("password in a URL", "at https://bob:hunter22@host.example/x", "hunter22"),
    ("password or secret", 'password: "correct-horse"', "correct-horse"),
    ("password or secret", "API_KEY=0123456", "0123456"),
    ("random-looking string", "sum 9f86d081884c7d659a2feaa0c55ad015 ok", "9f86d081884c7d659a2feaa0c55ad015"),
    ("random-looking string", "x kR7vPq2LmZ9tXw4BnYc6HdJf8Gs3Ae5U", "kR7vPq2LmZ9tXw4BnYc6HdJf8Gs3Ae5U"),
    ("URL", "see https://example.org/people/jane?id=77.", "/people/jane"),
    ("IBAN", "to DE89 3704 0044 0532 0130 00 now", "0532"),
    ("card number", "card 4111 1111 1111 1111,", "1111"),
]
HARMLESS = [
    "She said: passwords are long, at 3:30 on page 12345678901234567890.",
    "to DE89 3704 0044 0532 0130 01 now",  # wrong check digits
    "card 4111 1111 1111 1112",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14",
    "3.14159265358979323846",
    "a risk-perception-of-students-in-the-2020s study, task-42-and-others-of-the-kind",
    "-" * 60 + "=" * 60,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "the user @mention and a@b",
]


@pytest.mark.parametrize(("kind", "text", "secret"), PLANTED)
def test_a_planted_string_is_counted_once_and_never_shown(kind: str, text: str, secret: str) -> None:
    sensitive = Sensitive()
    sensitive.add(Block.of([["nothing here"], ["first", text]], first=6))
    counts = {found.kind: found for found in sensitive.found()}
    assert counts[kind].count == 1
    ((document, shown),) = counts[kind].examples
    assert document == 8
    for told in (shown, redacted(text)):
        assert secret not in told and "…" in told


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_a_little_alike_is_left_alone(text: str) -> None:
    sensitive = Sensitive()
    sensitive.add(Block.of([[text]]))
    assert [found for found in sensitive.found() if found.count] == []
    assert redacted(text) == text


def test_what_is_in_a_url_is_counted_as_that_alone() -> None:
    sensitive = Sensitive()
    sensitive.add(
        Block.of([["https://example.org/a?mail=x@y.org&t=9f86d081884c7d659a2feaa0c55ad015 and b@c.org"]])
    )
    assert {found.kind: found.count for found in sensitive.found() if found.count} == {
        "URL": 1,
        "e-mail address": 1,
    }


def test_redaction_is_complete_and_stable() -> None:
    """Several in one text, and a redacted text is redacted already."""
    token = "xoxb-" + secrets.token_hex(12)
    text = f"a@b.org, c@d.org; {token} https://u:p4ssw0rd@h.org/{token} {KEY} 4111111111111111"
    told = redacted(text)
    for secret in ("a@b", "c@d", token, "p4ssw0rd", KEY, "4111"):
        assert secret not in told
    assert redacted(told) == told


def test_every_kind_is_planted_here() -> None:
    assert {kind.name for kind in KINDS} == {kind for kind, _, _ in PLANTED}
