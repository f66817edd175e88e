"""How figures and untrusted text are written."""

from __future__ import annotations

import pytest

from distillkit.report import text


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("a\x1b[31mred", "a␛[31mred"),
        ("bell\x07", "bell␇"),
        ("nul\x00", "nul␀"),
        ("del\x7f", "del␡"),
        ("c1\x9b31m", "c1⟨U+009B⟩31m"),
        ("abc\u202edcba", "abc⟨U+202E⟩dcba"),
        ("\u2066x\u2069", "⟨U+2066⟩x⟨U+2069⟩"),
        ("zero\u200bwidth", "zero⟨U+200B⟩width"),
        ("\ufeffbom", "⟨U+FEFF⟩bom"),
        ("lone \ud800", "lone ⟨U+D800⟩"),
        ("two\r\nlines\tand tab", "two lines and tab"),
        ("é 漢字 👩‍👩‍👧 עברית", "é 漢字 👩‍👩‍👧 עברית"),
    ],
)
def test_control_and_direction_characters_become_visible_and_scripts_stay(raw: str, shown: str) -> None:
    assert text.clean(raw) == shown


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("/home/alice/data/train.csv", "~/data/train.csv"),
        ("/Users/bob/x", "~/x"),
        (r"C:\Users\Carol\x.csv", r"~\x.csv"),
        ("see /root/run", "see ~/run"),
        ("/rooted/x", "/rooted/x"),
        ("data/home/alice.csv", "data/home/alice.csv"),
    ],
)
def test_home_folders_do_not_name_their_owner(raw: str, shown: str) -> None:
    assert text.redact(raw) == shown


def test_figures_carry_units_and_a_sensible_number_of_digits() -> None:
    assert [text.count(value) for value in (None, 0, 67_349, 4_390_000)] == ["–", "0", "67,349", "4.39 M"]
    assert [text.scaled(value) for value in (12.0, 1500.0, 2.346e9, 999_900.0)] == [
        "12",
        "1.5 k",
        "2.35 G",
        "1 M",
    ]
    assert [text.size(value) for value in (None, 12, 1500, 17_600_000, 2.5e9)] == [
        "–",
        "12 B",
        "1.5 kB",
        "17.6 MB",
        "2.5 GB",
    ]
    assert [text.milliseconds(value) for value in (0.421, 12.34, 1250.0)] == ["0.42 ms", "12.3 ms", "1.25 s"]
    assert [text.duration(value) for value in (8.2, 59.97, 200, 3599.9, 7500)] == [
        "8.2 s",
        "1 min 00 s",
        "3 min 20 s",
        "1 h 00 min",
        "2 h 05 min",
    ]
    assert [text.signed(value) for value in (0.0251, -0.0251, -0.0001)] == ["+0.025", "−0.025", "0.000"]
    assert (text.provider("CPUExecutionProvider"), text.provider("cpu"), text.provider("")) == (
        "CPU",
        "CPU",
        "–",
    )


def test_shortening_keeps_short_text_and_marks_the_cut() -> None:
    assert text.shorten("abc", 3) == "abc"
    assert text.shorten("abcd", 3) == "ab…"
