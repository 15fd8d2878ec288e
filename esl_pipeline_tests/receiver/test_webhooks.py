import asyncio
import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
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
    BODIES,
    LEVEL,
    LIFECYCLE_BODIES,
    PRODUCT,
    SHOP,
    call,
    connected,
    deliver,
    make_app,
    raw_exchange,
    served,
    signature,
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


@pytest.mark.parametrize("topic", TOPICS)
def test_a_signed_delivery_is_kept_with_one_buffer_call(buffer: WatchedBuffer, topic: str) -> None:
    answer = deliver(make_app(buffer), topic, BODIES[topic])
    assert (answer.status_code, answer.json()) == (200, {"status": "accepted"})
    assert buffer.calls == ["inbox_add"]
    assert [(row["topic"], row["source_store_id"], row["state"]) for row in buffer.rows] == [
        (topic, SHOP, "ready")
    ]


@pytest.mark.parametrize("topic", [*TOPICS, *LIFECYCLE_BODIES])
def test_one_address_takes_every_topic(buffer: WatchedBuffer, topic: str) -> None:
    raw = json.dumps((BODIES | LIFECYCLE_BODIES)[topic]).encode()
    app, headers = make_app(buffer), signed(topic, raw)
    answer = call(app, "POST", "/webhooks/shopify", content=raw, headers=headers)
    assert (answer.status_code, answer.json()) == (200, {"status": "accepted"})
    again = call(app, "POST", f"/webhooks/shopify/{topic}", content=raw, headers=headers)
    assert again.json() == {"status": "duplicate"}, "the same delivery at its other address"
    assert buffer.calls == ["inbox_add"] * 2
    (row,) = buffer.rows
    assert (row["topic"], row["state"]) == (topic, "done" if topic in LIFECYCLE_BODIES else "ready")


def test_f23_at_the_one_address_too_the_shape_of_the_body_decides(buffer: WatchedBuffer) -> None:
    headers = signed("products/delete", RAW)
    assert (
        call(make_app(buffer), "POST", "/webhooks/shopify", content=RAW, headers=headers).status_code == 200
    )
    (row,) = buffer.rows
    assert row["state"] == "unusable" and row["reason"].startswith(
        "replay suspected: the body is one of prod"
    )


@pytest.mark.parametrize("topic", [None, "orders/create", ""])
def test_the_one_address_refuses_what_names_no_topic_of_ours(
    buffer: WatchedBuffer, topic: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    headers = signed("products/update", RAW, topic=topic)
    with caplog.at_level(logging.INFO, "esl_pipeline"):
        assert refused(make_app(buffer), buffer, RAW, headers, "/webhooks/shopify").status_code == 400
    assert "\n" not in caplog.messages[-1] and "outcome 400 X-Shopify-Topic must be" in caplog.messages[-1]


def test_a_duplicate_is_acknowledged_with_one_buffer_call(buffer: WatchedBuffer) -> None:
    app = make_app(buffer)
    answers = [deliver(app, "products/update", PRODUCT, webhook_id="same") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[1].json() == {"status": "duplicate"}
    assert (len(buffer.calls), len(buffer.rows)) == (2, 1)


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


def test_a_delivery_without_webhook_id_is_kept_once(buffer: WatchedBuffer) -> None:
    app, at = make_app(buffer), datetime.now(UTC).isoformat()
    statuses = [
        deliver(app, "products/update", PRODUCT, webhook_id=None, triggered_at=at).json() for _ in range(2)
    ]
    assert statuses == [{"status": "accepted"}, {"status": "duplicate"}]


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b'{"id":"x"}', b'{"id":1,"more":1}', b"[" * 5000])
def test_a_signed_body_that_is_not_usable_is_kept_and_acknowledged(
    buffer: WatchedBuffer, body: bytes
) -> None:
    answer = deliver(make_app(buffer), "products/delete", body)
    assert (answer.status_code, answer.json()) == (200, {"status": "accepted"})
    assert buffer.calls == ["inbox_add"]
    assert buffer.rows[0]["state"] == "unusable" and buffer.rows[0]["reason"]


# Replay


def test_f23_a_body_of_the_same_time_under_a_new_webhook_id_is_a_duplicate(buffer: WatchedBuffer) -> None:
    app, at = make_app(buffer), datetime.now(UTC).isoformat()
    statuses = [
        deliver(app, "products/update", PRODUCT, webhook_id=name, triggered_at=at).json() for name in "ab"
    ]
    assert statuses[1] == {"status": "duplicate"}


def test_f23_an_update_replayed_as_a_delete_is_unusable(buffer: WatchedBuffer) -> None:
    assert deliver(make_app(buffer), "products/delete", PRODUCT).status_code == 200
    assert buffer.rows[0]["state"] == "unusable"


def test_f23_an_old_time_is_kept_as_a_suspected_replay(buffer: WatchedBuffer) -> None:
    answer = deliver(make_app(buffer), "products/update", PRODUCT, triggered_at="2020-01-01T00:00:00Z")
    assert answer.status_code == 200
    assert buffer.rows[0]["reason"].startswith("replay suspected")


def test_a_replay_under_another_shop_stays_with_that_shop(buffer: WatchedBuffer) -> None:
    app = make_app(buffer)
    for shop in (SHOP, "other.myshopify.com"):
        deliver(app, "products/update", PRODUCT, shop_domain=shop)
    assert [row["source_store_id"] for row in buffer.rows] == [SHOP, "other.myshopify.com"]


# Refusals: nothing is kept


def refused(app: Any, buffer: WatchedBuffer, raw: bytes, headers: Any, path: str = UPDATE) -> httpx.Response:
    answer = call(app, "POST", path, content=raw, headers=headers)
    assert buffer.calls == []
    return answer


BAD_SIGNATURES: dict[str, list[bytes]] = {
    "missing": [],
    "empty": [b""],
    "of another body": [signature(b"{}").encode()],
    "of another secret": [signature(RAW, "other").encode()],
    "not ASCII": [b"\xff\xfe"],
    "hex": [b"a3" * 32],
    "twice, both right": [signature(RAW).encode()] * 2,
    "twice, one right": [b"x", signature(RAW).encode()],
    "very long": [b"A" * 50_000],
}


@pytest.mark.parametrize("values", BAD_SIGNATURES.values(), ids=BAD_SIGNATURES)
def test_f24_without_one_right_signature_it_is_401_with_one_answer(
    buffer: WatchedBuffer, values: list[bytes]
) -> None:
    headers = [
        (name.encode(), value.encode())
        for name, value in signed("products/update", RAW, hmac_sha256=None).items()
    ] + [(b"X-Shopify-Hmac-Sha256", value) for value in values]
    answer = refused(make_app(buffer), buffer, RAW, headers)
    assert (answer.status_code, answer.json()) == (401, {"detail": "The signature is missing or wrong."})


@pytest.mark.parametrize("raw", [b"", b"not JSON", b"[" * 100_000])
def test_s01_the_signature_is_looked_at_before_the_body_and_the_other_headers(
    buffer: WatchedBuffer, raw: bytes
) -> None:
    headers = {"X-Shopify-Hmac-Sha256": signature(b"other"), "X-Shopify-Topic": "nonsense"}
    assert refused(make_app(buffer), buffer, raw, headers).status_code == 401


def test_old_and_new_secret_are_both_accepted(buffer: WatchedBuffer) -> None:
    app = make_app(buffer, shopify_webhook_secret="new-secret, old-secret")
    for number, secret in enumerate(["new-secret", "old-secret", "older-secret"]):
        raw = json.dumps({"id": number + 1}).encode()
        answer = call(
            app,
            "POST",
            "/webhooks/shopify/products/delete",
            content=raw,
            headers=signed("products/delete", raw, secret=secret),
        )
        assert answer.status_code == (401 if secret == "older-secret" else 200)
    assert len(buffer.rows) == 2


def test_without_a_secret_everything_is_401_and_the_log_says_so(
    buffer: WatchedBuffer, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(buffer, shopify_webhook_secret=None)
    assert "No webhook secret is set" in caplog.text
    for secret in ("", "None"):
        headers = signed("products/update", RAW, secret=secret)
        assert refused(app, buffer, RAW, headers).status_code == 401


@pytest.mark.parametrize(
    "changes",
    [{"topic": None}, {"topic": "products/delete"}, {"shop_domain": None}, {"shop_domain": "evil.com"}],
)
def test_signed_with_a_wrong_topic_or_shop_is_400(buffer: WatchedBuffer, changes: dict[str, Any]) -> None:
    headers = signed("products/update", RAW, **changes)
    assert refused(make_app(buffer), buffer, RAW, headers).status_code == 400


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "identity, gzip", "GZIP", ""])
def test_s07_an_encoded_body_is_415(buffer: WatchedBuffer, coding: str) -> None:
    headers = signed("products/update", RAW) | {"Content-Encoding": coding}
    assert refused(make_app(buffer), buffer, RAW, headers).status_code == 415


def test_identity_is_no_encoding(buffer: WatchedBuffer) -> None:
    headers = signed("products/update", RAW) | {"Content-Encoding": "identity"}
    assert call(make_app(buffer), "POST", UPDATE, content=RAW, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "path", ["/webhooks/shopify/orders/create", "/webhooks/shopify/products", "/webhooks/x"]
)
def test_an_unknown_topic_is_404(buffer: WatchedBuffer, path: str) -> None:
    assert refused(make_app(buffer), buffer, RAW, signed("orders/create", RAW), path).status_code == 404


def test_another_method_is_405(buffer: WatchedBuffer) -> None:
    assert call(make_app(buffer), "GET", UPDATE).status_code == 405


# Size and time, over real sockets


def request_head(length: str) -> bytes:
    lines = [f"POST {UPDATE} HTTP/1.1", "Host: receiver", length]
    lines += [f"{name}: {value}" for name, value in signed("products/update", RAW).items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def test_s07_a_body_at_the_limit_is_kept_and_one_byte_more_is_413(buffer: WatchedBuffer) -> None:
    app = make_app(buffer, esl_webhook_body_limit_bytes=1_000)
    assert deliver(app, "products/update", RAW.ljust(1_000)).status_code == 200
    assert deliver(app, "products/update", RAW.ljust(1_001)).status_code == 413
    assert len(buffer.calls) == 1


def test_s07_a_long_content_length_is_413_before_any_body_comes(buffer: WatchedBuffer) -> None:
    with served(make_app(buffer)) as url:
        answer = raw_exchange(url, request_head("Content-Length: 30000000"))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nconnection: close\r\n" in answer.lower()
    assert buffer.calls == []


def test_s07_an_endless_chunked_body_is_413_at_the_limit(buffer: WatchedBuffer) -> None:
    with served(make_app(buffer, esl_webhook_body_limit_bytes=1_000)) as url:
        answer = raw_exchange(
            url, request_head("Transfer-Encoding: chunked"), b"3e9\r\n" + b" " * 1_001 + b"\r\n"
        )
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nconnection: close\r\n" in answer.lower()
    assert buffer.calls == []


def test_a_chunked_body_below_the_limit_is_kept(buffer: WatchedBuffer) -> None:
    with served(make_app(buffer)) as url:
        answer = httpx.post(
            url + UPDATE, content=iter([RAW[:50], RAW[50:]]), headers=signed("products/update", RAW)
        )
    assert answer.status_code == 200


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


def test_health_does_not_wait_for_a_silent_buffer_and_pings_once_for_all(
    buffer: WatchedBuffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = buffer.stall("version")
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
def test_f25_every_file_of_the_json_test_suite_is_acknowledged(buffer: WatchedBuffer) -> None:
    bodies = {file.read_bytes() for file in (DATA / "security" / "json_test_parsing").glob("*.json")}
    app = make_app(buffer)

    async def send_all() -> list[int]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://receiver") as client:
            return [
                (await client.post(UPDATE, content=raw, headers=signed("products/update", raw))).status_code
                for raw in bodies
            ]

    assert set(asyncio.run(send_all())) == {200}
    assert len(buffer.rows) == len(bodies) == len(buffer.calls)


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
