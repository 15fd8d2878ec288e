"""Text for labels: one clean line, whatever came in."""

import json
import unicodedata
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from esl_pipeline.labels.text import clean

NAUGHTY = Path(__file__).parents[2].parent / "shared" / "data" / "security" / "blns.json"


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [
        (None, ""),
        ("", ""),
        ("  Crème\tfraîche \n 200 g ", "Crème fraîche 200 g"),
        ("Creme\u0301", "Crem\u00e9"),
        ("\u202e99.1\u202c", "99.1"),
        ("a\u2066b\u2069", "ab"),
        ("a\x00b\x1b[31m", "a b [31m"),
        ("line\u2028break\u00a0space", "line break space"),
        ("👩\u200d👩\u200d👧 family", "👩\u200d👩\u200d👧 family"),
        ("زعتر بلدي", "زعتر بلدي"),
    ],
)
def test_what_is_cleaned(given_text: str | None, expected: str) -> None:
    assert clean(given_text) == expected


@given(st.text())
def test_clean_text_is_one_line_and_stays_as_it_is(text: str) -> None:
    cleaned = clean(text)
    assert clean(cleaned) == cleaned
    assert cleaned == cleaned.strip()
    assert "  " not in cleaned
    assert not [c for c in cleaned if unicodedata.category(c) in ("Cc", "Zl", "Zp")]


@pytest.mark.skipif(not NAUGHTY.is_file(), reason="the shared test data is not here")
def test_naughty_strings_keep_their_visible_characters() -> None:
    for text in json.loads(NAUGHTY.read_text(encoding="utf-8")):
        ascii_letters = [c for c in text if c.isascii() and c.isalnum()]
        assert [c for c in clean(text) if c.isascii() and c.isalnum()] == ascii_letters
