from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esl_pipeline.hipoink import (
    AuthenticationError,
    HipoinkError,
    RejectedError,
    TransientError,
    UnknownOutcomeError,
)
from esl_pipeline.hipoink.answers import Judge, Reply

NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)

CHANGE = Judge("create for store 001", True, str)
READ = Judge("query for store 001", False, str)


def reply(body: bytes | str | object, status: int = 200, **fields: Any) -> Reply:
    if not isinstance(body, bytes):
        body = body.encode() if isinstance(body, str) else orjson.dumps(body)
    return Reply(
        **{
            "http_status": status,
            "retry_after": None,
            "body": body,
            "complete": True,
            "duration_ms": 7,
            **fields,
        }
    )


def failure(
    body: bytes | str | object, status: int = 200, judge: Judge = CHANGE, **fields: Any
) -> HipoinkError:
    with pytest.raises(HipoinkError) as caught:
        judge.change(reply(body, status, **fields))
    return caught.value


# --- success ------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, "0"])
def test_only_error_code_zero_is_success(code: object):
    answer = CHANGE.change(reply({"error_code": code, "error_msg": "", "count": 3}))
    assert (answer.http_status, answer.error_code, answer.error_msg, answer.duration_ms) == (200, 0, "", 7)
    assert orjson.loads(answer.body) == {"error_code": code, "error_msg": "", "count": 3}


def test_a_success_may_speak_of_errors():
    assert CHANGE.change(reply({"error_code": 0, "error_msg": "0 error, 1 ok"})).error_msg == "0 error, 1 ok"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.just("error_code") | st.text(max_size=3), inner)
    ),
    max_leaves=8,
)


@given(json_values, st.sampled_from([200, 201, 301, 404, 429, 500, 503]))
def test_nothing_else_is_success(value: object, status: int):
    code = value.get("error_code") if isinstance(value, dict) else None
    says_zero = code == "0" or (isinstance(code, int) and not isinstance(code, bool) and code == 0)
    try:
        CHANGE.change(reply(value, status))
    except HipoinkError:
        assert not (says_zero and status < 300)
    else:
        assert says_zero and status < 300


@given(st.binary(max_size=60))
def test_any_bytes_are_judged(body: bytes):
    try:
        CHANGE.change(reply(body))
    except HipoinkError as error:
        assert str(error).startswith("create for store 001: the label server ")


# --- logical errors -----------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1, "1", 2, -1, 500])
def test_http_200_with_an_error_code_is_a_rejection_in_the_servers_words(code: object):
    error = failure({"error_code": code, "error_msg": "default missing store_code field"})
    assert type(error) is RejectedError
    assert (error.http_status, error.error_code) == (200, int(str(code)))
    assert f'"default missing store_code field" (error_code {code})' in str(error)


@pytest.mark.parametrize(
    "body",
    [{}, [], {"error_msg": "ok"}, {"error_code": None}, {"error_code": ""}, {"error_code": True}, {"error_code": False},
     {"error_code": 0.0}, {"error_code": "٠"}, {"error_code": [0]}, "0", "null", '"error_code"', [{"error_code": 0}]],
)  # fmt: skip
def test_an_answer_that_does_not_say_leaves_the_outcome_open(body: object):
    assert type(failure(body)) is UnknownOutcomeError


@pytest.mark.parametrize(
    "body", [b"", b"OK", b"<html>", b'{"error_code":0', b"\xff\xfe\x00", b"[" * 5000, b'{"error_code":NaN}']
)
def test_a_body_that_is_not_json_leaves_the_outcome_open(body: bytes):
    assert type(failure(body)) is UnknownOutcomeError


def test_a_body_cut_at_our_limit_is_no_success():
    assert type(failure({"error_code": 0}, complete=False)) is UnknownOutcomeError


@pytest.mark.parametrize(
    "message",
    ["app_key is disable", "default app_key is disable", "default invalid sign", "sign error", "Wrong signature.",
     "default missing sign field", "app_key not exists", "invalid client_id", "client not found"],
)  # fmt: skip
def test_messages_about_the_key_pause_the_store(message: str):
    assert type(failure({"error_code": 1, "error_msg": message})) is AuthenticationError
    assert type(failure(message)) is AuthenticationError


@pytest.mark.parametrize(
    "message",
    ["default missing store_code field", "product STOP sign is invalid", 'title "wrong sign" too long', "design error",
     "client missing pn field", "not exists", "sign", ""],
)  # fmt: skip
def test_other_messages_do_not(message: str):
    assert type(failure({"error_code": 1, "error_msg": message})) is RejectedError


# --- HTTP status --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "leaf"),
    [
        *[(status, AuthenticationError) for status in (401, 403)],
        *[(status, RejectedError) for status in (400, 404, 405, 413, 415, 422, 451)],
        *[(status, TransientError) for status in (301, 302, 408, 425, 429, 503)],
        *[(status, UnknownOutcomeError) for status in (500, 501, 502, 504, 520, 524, 599)],
    ],
)
@pytest.mark.parametrize("body", [b"", b"<html>nope</html>", b'{"error_code":0,"error_msg":""}'])
def test_the_status_decides_whatever_the_body_says(status: int, leaf: type[HipoinkError], body: bytes):
    error = failure(body, status, retry_after="12")
    assert type(error) is leaf
    assert (error.http_status, error.retry_after) == (status, 12.0)


def test_a_4xx_about_the_key_pauses_the_store():
    assert type(failure({"error_code": 1, "error_msg": "app_key is disable"}, 400)) is AuthenticationError


# --- reads --------------------------------------------------------------------------------------


def test_a_listing_is_a_bare_array_of_objects():
    assert READ.rows(reply([{"product_code": "1"}])) == [{"product_code": "1"}]
    assert READ.rows(reply([])) == []
    assert READ.rows(reply([{"product_code": "1"}, None, "?"])) == [{"product_code": "1"}, {}, {}]


@pytest.mark.parametrize("body", [{}, {"error_code": 0}, {"data": []}, [1], [[]], "null", "7"])
def test_any_other_shape_is_refused(body: object):
    with pytest.raises(RejectedError, match="did not answer with a list of products"):
        READ.rows(reply(body))


def test_a_listings_failure_is_an_object():
    with pytest.raises(RejectedError, match="default missing store_code field"):
        READ.rows(reply({"error_code": 1, "error_msg": "default missing store_code field"}))


@pytest.mark.parametrize(("count", "number"), [(0, 0), (12, 12), ("12", 12)])
def test_a_count(count: object, number: int):
    assert READ.count(reply({"count": count})) == number


@pytest.mark.parametrize("body", [[], {}, {"count": None}, {"count": -1}, {"count": "many"}, {"count": True}])
def test_no_count(body: object):
    with pytest.raises(RejectedError, match="did not answer with a count"):
        READ.count(reply(body))


@pytest.mark.parametrize("failed", [reply(b"<html>"), reply(b"", 502), reply(b"", 503)])
def test_a_read_leaves_nothing_in_doubt(failed: Reply):
    with pytest.raises(TransientError) as caught:
        READ.rows(failed)
    assert type(caught.value) is TransientError


def test_a_page_over_our_limit_asks_for_smaller_ones():
    with pytest.raises(RejectedError, match="smaller pages"):
        READ.rows(reply([{}], complete=False))


# --- what the reader sees -----------------------------------------------------------------------


def test_answers_cannot_play_tricks_in_a_log_or_terminal():
    nasty = "bad\nINFO all is well \x1b[31mred\x1b[0m \u202eoverride\x00"
    error = failure({"error_code": 1, "error_msg": nasty})
    assert "bad INFO all is well" in str(error)
    assert str(error).isprintable() and error.answer is not None and error.answer.isprintable()


def test_long_answers_are_cut():
    error = failure({"error_code": 1, "error_msg": "x" * 50_000})
    assert len(str(error)) < 400
    assert error.answer is not None and len(error.answer) == 2000
    assert len(CHANGE.change(reply({"error_code": 0, "error_msg": "", "more": "y" * 50_000})).body) == 2000
