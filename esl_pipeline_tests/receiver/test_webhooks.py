"""The Python receiver beside what test_contract asks of every receiver: groups, limits, connections, pages, logs."""

import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from esl_pipeline.buffer.errors import BufferError, BufferUnavailable
from esl_pipeline.receiver.groups import Groups
from esl_pipeline.receiver.intake import Limits
from esl_pipeline.sources.shopify.topics import TOPICS
from esl_pipeline_tests.receiver.support import (
    LEVEL,
    PRODUCT,
    SHOP,
    call,
    connected,
    deliver,
    make_app,
    raw_exchange,
    served,
    signed,
)
from esl_pipeline_tests.shared_data import DATA
from esl_pipeline_tests.waiting import eventually
from esl_pipeline_tests.watched import WatchedBuffer

UPDATE = "/webhooks/shopify/products/update"
RAW = json.dumps(PRODUCT).encode()


@pytest.fixture
def buffer(watched: WatchedBuffer) -> WatchedBuffer:
    return watched


# Acknowledgement


def test_f01_fifty_copies_at_once_make_one_row(buffer: WatchedBuffer) -> None:
    with (
        served(make_app(buffer)) as url,
        httpx.Client(base_url=url) as client,
        ThreadPoolExecutor(50) as pool,
    ):
        headers = signed("products/update", RAW, webhook_id="same")
        answers = list(
            pool.map(lambda _: client.post(UPDATE, content=RAW, headers=headers, timeout=20), range(50))
        )
    assert {answer.status_code for answer in answers} == {200}
    assert sorted(answer.json()["status"] for answer in answers) == ["accepted"] + ["duplicate"] * 49
    assert len(buffer.calls) < 25 and len(buffer.rows) == 1


# Refusals: nothing is kept


def refused(app: Any, buffer: WatchedBuffer, raw: bytes, headers: Any, path: str = UPDATE) -> httpx.Response:
    answer = call(app, "POST", path, content=raw, headers=headers)
    assert buffer.calls == []
    return answer


def test_without_a_secret_everything_is_401_and_the_log_says_so(
    buffer: WatchedBuffer, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(buffer, shopify_webhook_secret=None)
    assert "No webhook secret is set" in caplog.text
    for secret in ("", "None"):
        headers = signed("products/update", RAW, secret=secret)
        assert refused(app, buffer, RAW, headers).status_code == 401


# Size and time, over real sockets


def request_head(length: str) -> bytes:
    lines = [f"POST {UPDATE} HTTP/1.1", "Host: receiver", length]
    lines += [f"{name}: {value}" for name, value in signed("products/update", RAW).items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@pytest.mark.parametrize(
    ("length", "piece"),
    [
        ("Content-Length: 30000000", b""),
        ("Transfer-Encoding: chunked", b"3e9\r\n" + b" " * 1_001 + b"\r\n"),
    ],
)
def test_s07_a_body_that_is_too_long_is_413_and_the_connection_is_closed(
    buffer: WatchedBuffer, length: str, piece: bytes
) -> None:
    with served(make_app(buffer, esl_webhook_body_limit_bytes=1_000)) as url:
        answer = raw_exchange(url, request_head(length), piece)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nconnection: close\r\n" in answer.lower()
    assert buffer.calls == []


def test_s07_a_slow_sender_is_408_and_frees_its_place(buffer: WatchedBuffer) -> None:
    with served(make_app(buffer, Limits(body_seconds=0.2, reading=1))) as url:
        answer = raw_exchange(url, request_head("Content-Length: 100"), b'{"id"')
        again = httpx.post(url + UPDATE, content=RAW, headers=signed("products/update", RAW))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"\r\nconnection: close\r\n" in answer.lower()
    assert again.status_code == 200
    assert len(buffer.calls) == 1


def test_s07_of_more_bodies_than_places_the_oldest_unfinished_one_is_503(buffer: WatchedBuffer) -> None:
    with served(make_app(buffer, Limits(body_seconds=30, reading=1))) as url, connected(url) as slow:
        slow.sendall(request_head("Content-Length: 100") + b'{"id"')
        time.sleep(0.1)
        answer = httpx.post(url + UPDATE, content=RAW, headers=signed("products/update", RAW))
        assert answer.status_code == 200
        refusal = slow.recv(65_536)
    assert refusal.startswith(b"HTTP/1.1 503 ") and b"\r\nretry-after: 1\r\n" in refusal.lower()
    assert b"\r\nconnection: close\r\n" in refusal.lower()


def test_a_sender_that_goes_away_is_no_error(buffer: WatchedBuffer, caplog: pytest.LogCaptureFixture) -> None:
    with served(make_app(buffer)) as url:
        with connected(url) as sender:
            sender.sendall(request_head("Content-Length: 100") + b"{")
            time.sleep(0.2)  # who goes before the request begins is not even told of
        eventually(lambda: "went away" in caplog.text)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert buffer.calls == []


# The buffer fails or is slow


@pytest.mark.parametrize(
    "failure",
    [
        BufferUnavailable("the buffer is not available", retryable=True),
        BufferError("no such function", code="42883"),
    ],
)
def test_a_buffer_that_keeps_nothing_is_503_with_retry_after(
    buffer: WatchedBuffer, caplog: pytest.LogCaptureFixture, failure: BufferError
) -> None:
    app = make_app(buffer)
    with buffer.failing(failure):
        answer = deliver(app, "products/update", PRODUCT)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert str(failure) not in answer.text
    assert "outcome 503" in caplog.text and str(failure) in caplog.text
    assert deliver(app, "products/update", PRODUCT).json() == {"status": "accepted"}


def test_a_slow_buffer_blocks_neither_health_nor_the_next_sender(
    buffer: WatchedBuffer, made_groups: list[Groups]
) -> None:
    release = buffer.stall("inbox_add")
    with served(make_app(buffer, Limits(threads=2, storing=4))) as url, ThreadPoolExecutor(2) as pool:

        def send(number: int) -> httpx.Response:
            raw = json.dumps({**LEVEL, "available": number}).encode()
            headers = signed("inventory_levels/update", raw)
            path = f"{url}/webhooks/shopify/inventory_levels/update"
            return httpx.post(path, content=raw, headers=headers, timeout=20)

        waiting = [pool.submit(send, number) for number in range(2)]
        eventually(lambda: len(buffer.calls) == len(made_groups[0]) == 1)  # no shop is in two calls at a time
        assert httpx.get(f"{url}/health").status_code == 200
        eventually(lambda: send(2).status_code == 503)
        refusal = send(2)
        assert (refusal.status_code, refusal.headers["retry-after"]) == (503, "5")
        assert not any(sender.done() for sender in waiting)
        release.set()
        assert [sender.result().status_code for sender in waiting] == [200, 200]
        assert send(3).status_code == 200
    assert len(buffer.rows) == 3


# Health


@pytest.mark.parametrize("path", ["/", "/health"])
def test_health_tells_whether_the_buffer_answers_and_nothing_else(buffer: WatchedBuffer, path: str) -> None:
    app = make_app(buffer)
    answer = call(app, "GET", path)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    with buffer.failing(BufferUnavailable("the buffer at db.example.com is not available")):
        answer = call(app, "GET", path)
    assert (answer.status_code, answer.json()) == (503, {"status": "unavailable"})


@pytest.mark.long
def test_health_does_not_wait_for_a_silent_buffer_and_pings_once_for_all(
    buffer: WatchedBuffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = buffer.stall("probe")
    monkeypatch.setattr("esl_pipeline.receiver.app.PING_SECONDS", 0.3)
    with served(make_app(buffer)) as url, ThreadPoolExecutor(5) as pool:
        began = time.monotonic()
        answers = list(pool.map(lambda _: httpx.get(f"{url}/health").status_code, range(10)))
        took = time.monotonic() - began
        assert buffer.pings == 1
        silent.set()
        eventually(lambda: httpx.get(f"{url}/health").status_code == 200)
    assert set(answers) == {503}
    assert took < 15


# Documentation page


@pytest.mark.parametrize(
    ("environment", "status"), [("development", 200), ("staging", 200), ("production", 404)]
)
def test_the_openapi_page_is_not_shown_in_production(
    buffer: WatchedBuffer, environment: str, status: int
) -> None:
    app = make_app(buffer, app_environment=environment)
    assert [call(app, "GET", path).status_code for path in ("/docs", "/openapi.json")] == [status, status]
    assert call(app, "GET", "/redoc").status_code == 404


# Logs


def test_one_line_per_delivery_without_its_body(
    buffer: WatchedBuffer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "esl_pipeline")
    deliver(make_app(buffer), "products/update", {**PRODUCT, "title": "owner@example.com"}, webhook_id="w-1")
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("esl_pipeline")]
    assert line == f"webhook products/update from shop '{SHOP}' with id 'w-1', outcome accepted"


def test_a_topic_that_is_none_of_ours_is_told(
    buffer: WatchedBuffer, caplog: pytest.LogCaptureFixture
) -> None:
    answer = refused(make_app(buffer), buffer, RAW, signed("orders/create", RAW), "/webhooks/shopify")
    assert answer.status_code == 400
    assert "\n" not in caplog.messages[-1] and "outcome 400 X-Shopify-Topic must be" in caplog.messages[-1]


def test_s25_header_text_cannot_forge_log_lines(
    buffer: WatchedBuffer, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {
        b"X-Shopify-Shop-Domain": b"a\r\n2026 webhook ok\x1b[31m\x9b\x7f" + b"x" * 5_000,
        b"X-Shopify-Webhook-Id": b"\xe2\x80\xae",
    }
    assert refused(make_app(buffer), buffer, RAW, headers).status_code == 401
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("esl_pipeline")]
    assert line.isascii() and line.isprintable()
    assert len(line) < 600
    assert line.endswith("outcome 401 The signature is missing or wrong.")


# Anything at all

# What an earlier example left in the buffer is no matter to the next.
FUZZ = hypothesis_settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
HEADER_NAMES = [
    b"x-shopify-topic",
    b"x-shopify-shop-domain",
    b"x-shopify-hmac-sha256",
    b"x-shopify-webhook-id",
    b"x-shopify-event-id",
    b"x-shopify-triggered-at",
    b"x-shopify-api-version",
    b"content-encoding",
    b"content-length",
    b"content-type",
]


@pytest.fixture
def fuzzed(buffer: WatchedBuffer) -> FastAPI:
    return make_app(buffer)


@FUZZ
@given(
    st.binary(max_size=300),
    st.lists(st.tuples(st.sampled_from(HEADER_NAMES), st.binary(max_size=60)), max_size=8),
)
def test_no_unsigned_request_makes_an_error(
    buffer: WatchedBuffer, fuzzed: FastAPI, raw: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    answer = call(fuzzed, "POST", UPDATE, content=raw, headers=headers)
    assert answer.status_code in {401, 413, 415}
    assert buffer.calls == []


@FUZZ
@given(
    st.binary(max_size=300),
    st.sampled_from(TOPICS),
    st.dictionaries(st.sampled_from([*HEADER_NAMES[1:2], *HEADER_NAMES[3:7]]), st.binary(max_size=60)),
)
def test_no_signed_request_makes_an_error(
    buffer: WatchedBuffer, fuzzed: FastAPI, raw: bytes, topic: str, changed: dict[bytes, bytes]
) -> None:
    buffer.forget_calls()
    headers = {name.lower().encode(): value.encode() for name, value in signed(topic, raw).items()}
    answer = call(fuzzed, "POST", f"/webhooks/shopify/{topic}", content=raw, headers=headers | changed)
    assert answer.status_code in {200, 400}
    assert len(buffer.calls) == (answer.status_code == 200)


@pytest.mark.shared_data("data/security")
def test_s06_hostile_strings_in_the_shop_header_reach_no_buffer(buffer: WatchedBuffer) -> None:
    app = make_app(buffer)
    for text in json.loads((DATA / "security" / "blns.json").read_text()):
        headers: list[tuple[bytes, bytes]] = [
            (name.encode(), value.encode())
            for name, value in signed("products/update", RAW, shop_domain=None).items()
        ]
        headers.append((b"X-Shopify-Shop-Domain", text.encode() + b".myshopify.com"))
        status = call(app, "POST", UPDATE, content=RAW, headers=headers).status_code
        assert status == 400 or text.isalnum()
    assert all(row["source_store_id"].removesuffix(".myshopify.com").isalnum() for row in buffer.rows)
