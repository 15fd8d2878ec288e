"""What all our HTTP clients read alike."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esl_pipeline.http import parse_retry_after

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5", 5.0), ("0", 0.0), (" 7 ", 7.0), ("1.5", 1.5), ("007", 7.0),
        ("999999999999", 3600.0), ("9" * 400, 3600.0),
        ("Sun, 22 Nov 2026 12:00:30 GMT", 30.0),
        ("Sunday, 22-Nov-26 12:00:30 GMT", 30.0),
        ("Sun Nov 22 12:00:30 2026", 30.0),
        ("Sun, 22 Nov 2026 13:00:30 +0100", 30.0),
        ("Sun, 22 Nov 2026 11:00:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600.0),
        ("-5", None), ("-0.1", None), ("", None), ("   ", None), (None, None), ("soon", None), ("5 minutes", None),
        ("nan", None), ("inf", None), ("1e9", None), ("0x10", None), ("٣", None), ("1,5", None),
        ("Sun, 99 Nov 2026 12:00:30 GMT", None), ("Sun, 22 Nov 99999 12:00:30 GMT", None),
    ],
)  # fmt: skip
def test_every_form_of_retry_after(value: str | None, seconds: float | None):
    assert parse_retry_after(value, NOW) == seconds


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, \d{1,5} [A-Z][a-z]{2} \d{1,6} [\d:]{1,9} [-+A-Z\d]{1,8}"))
def test_any_retry_after_is_a_sane_pause_or_none(value: str):
    seconds = parse_retry_after(value, NOW)
    assert seconds is None or 0 <= seconds <= 3600


@given(st.integers(0, 3600))
def test_a_date_means_the_time_until_then(ahead: int):
    moment = (NOW + timedelta(seconds=ahead)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    assert parse_retry_after(moment, NOW) == ahead
