"""What a receiver of Shopify's webhooks owes: the Python receiver (test_webhooks has the rest) and the function for
Supabase, each as it runs, over HTTP, before one buffer behind Supabase's API."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest

from esl_pipeline.sources.shopify.topics import TOPICS
from esl_pipeline_tests.gateway import Failure, Gateway
from esl_pipeline_tests.receiver.servers import Server, Servers
from esl_pipeline_tests.receiver.support import (
    BODIES,
    CANARY,
    LIFECYCLE_BODIES,
    PRODUCT,
    SHOP,
    connected,
    signature,
    signed,
)
from esl_pipeline_tests.shared_data import DATA
from esl_pipeline_tests.watched import WatchedBuffer

UPDATE, DELETE = "products/update", "products/delete"
OTHER, THIRD = "other-shop.myshopify.com", "third-shop.myshopify.com"
RAW = json.dumps(PRODUCT).encode()
REFUSED = (401, {"detail": "The signature is missing or wrong."})
KINDS = ("python", "deno")


@pytest.fixture(scope="module")
def gateway(watched_buffer: WatchedBuffer) -> Iterator[Gateway]:
    with Gateway.start(watched_buffer.dsn) as found:
        yield found


@pytest.fixture(scope="module")
def of_kind(gateway: Gateway, watched_buffer: WatchedBuffer) -> Iterator[dict[str, Servers]]:
    with (
        Servers("python", gateway, watched_buffer) as python,
        Servers("deno", gateway, watched_buffer) as deno,
    ):
        yield {"python": python, "deno": deno}
    watched_buffer.clean(whatever=True)


@pytest.fixture(params=KINDS)
def servers(request: pytest.FixtureRequest, of_kind: dict[str, Servers], fresh: None) -> Servers:
    return of_kind[request.param]


@pytest.fixture
def fresh(gateway: Gateway, watched_buffer: WatchedBuffer) -> None:
    """Nothing is kept, and nothing was asked for."""
    watched_buffer.clean(whatever=True)
    gateway.calls.clear()


@pytest.fixture
def server(servers: Servers) -> Server:
    return servers.with_settings()


def says(answer: httpx.Response) -> tuple[int, Any]:
    return answer.status_code, answer.json()


ACCEPTED, DUPLICATE = (200, {"status": "accepted"}), (200, {"status": "duplicate"})


# Acknowledgement


@pytest.mark.parametrize("topic", TOPICS)
def test_a_signed_delivery_is_kept_with_one_buffer_call(server: Server, topic: str) -> None:
    raw = json.dumps(BODIES[topic]).encode()
    assert says(server.deliver(topic, raw)) == ACCEPTED
    assert server.calls == ["esl_inbox_add"]
    (row,) = server.rows
    assert (row["topic"], row["source_store_id"], row["state"]) == (topic, SHOP, "ready")
    assert bytes.fromhex(row["body"].removeprefix("\\x")) == raw


@pytest.mark.parametrize("topic", [*TOPICS, *LIFECYCLE_BODIES])
def test_one_address_takes_every_topic(server: Server, topic: str) -> None:
    raw = json.dumps((BODIES | LIFECYCLE_BODIES)[topic]).encode()
    headers = signed(topic, raw)
    assert says(server.send(None, raw, headers)) == ACCEPTED
    assert says(server.send(topic, raw, headers)) == DUPLICATE, "the same delivery at its other address"
    assert server.calls == ["esl_inbox_add"] * 2
    (row,) = server.rows
    assert (row["topic"], row["state"]) == (topic, "done" if topic in LIFECYCLE_BODIES else "ready")


@pytest.mark.parametrize("topic", [None, "orders/create", "", "products/update, products/update"])
def test_the_one_address_refuses_what_names_no_topic_of_ours(server: Server, topic: str | None) -> None:
    assert server.send(None, RAW, signed(UPDATE, RAW, topic=topic)).status_code == 400
    assert server.calls == []


def test_a_duplicate_is_acknowledged_with_one_buffer_call(server: Server) -> None:
    assert says(server.deliver(UPDATE, RAW, webhook_id="same")) == ACCEPTED
    assert says(server.deliver(UPDATE, RAW, webhook_id="same")) == DUPLICATE
    assert (len(server.calls), len(server.rows)) == (2, 1)


def test_f01_copies_at_once_make_one_row(server: Server) -> None:
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: server.deliver(UPDATE, RAW, webhook_id="same"), range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert sorted(answer.json()["status"] for answer in answers) == ["accepted"] + ["duplicate"] * 19
    assert len(server.rows) == 1


def test_a_delivery_without_webhook_id_is_kept_once(server: Server) -> None:
    at = datetime.now(UTC).isoformat()
    answers = [server.deliver(UPDATE, RAW, webhook_id=None, triggered_at=at) for _ in range(2)]
    assert list(map(says, answers)) == [ACCEPTED, DUPLICATE]


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b'{"id":"x"}', b'{"id":1,"more":1}', b"[" * 5000])
def test_a_signed_body_that_is_not_usable_is_kept_and_acknowledged(server: Server, body: bytes) -> None:
    assert says(server.deliver(DELETE, body)) == ACCEPTED
    assert server.calls == ["esl_inbox_add"]
    (row,) = server.rows
    assert row["state"] == "unusable" and row["reason"]


@pytest.mark.parametrize(("id", "state"), [(2**53 + 1, "ready"), (2**63 - 1, "ready"), (2**63, "unusable")])
def test_an_id_that_no_float_holds_is_kept_as_it_is(server: Server, id: int, state: str) -> None:
    raw = json.dumps({"id": id}).encode()
    assert says(server.deliver(DELETE, raw)) == ACCEPTED
    (row,) = server.rows
    assert row["state"] == state
    with psycopg.connect(server.buffer.dsn) as connection:
        claimed = connection.execute(
            "select body_sha256 = encode(sha256(%s), 'hex') from esl.webhook_inbox", [raw]
        )
        assert claimed.fetchone() == (True,)


# Replay


def test_f23_at_the_one_address_too_the_shape_of_the_body_decides(server: Server) -> None:
    assert says(server.send(None, RAW, signed(DELETE, RAW))) == ACCEPTED
    (row,) = server.rows
    assert row["state"] == "unusable" and row["reason"].startswith(
        "replay suspected: the body is one of prod"
    )


def test_f23_a_body_of_the_same_time_under_a_new_webhook_id_is_a_duplicate(server: Server) -> None:
    at = datetime.now(UTC).isoformat()
    answers = [server.deliver(UPDATE, RAW, webhook_id=name, triggered_at=at) for name in "ab"]
    assert says(answers[1]) == DUPLICATE


def test_f23_an_update_replayed_as_a_delete_is_unusable(server: Server) -> None:
    assert server.deliver(DELETE, RAW).status_code == 200
    assert server.rows[0]["state"] == "unusable"


@pytest.mark.parametrize(
    ("triggered_at", "state"),
    [
        ("2020-01-01T00:00:00Z", "unusable"),
        ((datetime.now(UTC) + timedelta(minutes=20)).isoformat(), "unusable"),
        ((datetime.now(UTC) - timedelta(hours=47)).isoformat(), "ready"),
        (datetime.now(UTC).replace(tzinfo=None).isoformat(), "unusable"),
        ("yesterday", "unusable"),
        ("", "unusable"),
        (None, "ready"),
    ],
    ids=["long ago", "ahead", "late", "without a zone", "a word", "empty", "none"],
)
def test_f23_a_time_that_cannot_be_is_kept_as_unusable(
    server: Server, triggered_at: str | None, state: str
) -> None:
    assert says(server.deliver(UPDATE, RAW, triggered_at=triggered_at)) == ACCEPTED
    (row,) = server.rows
    assert row["state"] == state
    assert says(server.deliver(UPDATE, RAW)) == ACCEPTED, "a good copy is no duplicate of it"


def test_a_replay_under_another_shop_stays_with_that_shop(server: Server) -> None:
    for shop in (SHOP, "other.myshopify.com"):
        server.deliver(UPDATE, RAW, shop_domain=shop)
    assert [row["source_store_id"] for row in server.rows] == [SHOP, "other.myshopify.com"]


# Refusals: nothing is kept


BAD_SIGNATURES: dict[str, list[bytes]] = {
    "missing": [],
    "empty": [b""],
    "of another body": [signature(b"{}").encode()],
    "of another secret": [signature(RAW, "other").encode()],
    "not ASCII": [b"\xff\xfe"],
    "hex": [b"a3" * 32],
    "twice, both right": [signature(RAW).encode()] * 2,
    "twice, one right": [b"x", signature(RAW).encode()],
    "another spelling": [signature(RAW).encode().rstrip(b"=")],
    "very long": [b"A" * 10_000],
}


@pytest.mark.parametrize("values", BAD_SIGNATURES.values(), ids=BAD_SIGNATURES)
def test_f24_without_one_right_signature_it_is_401_with_one_answer(
    server: Server, values: list[bytes]
) -> None:
    headers = [
        (name.encode(), value.encode()) for name, value in signed(UPDATE, RAW, hmac_sha256=None).items()
    ] + [(b"X-Shopify-Hmac-Sha256", value) for value in values]
    assert says(server.send(UPDATE, RAW, headers)) == REFUSED
    assert server.calls == []


@pytest.mark.parametrize("raw", [b"", b"not JSON", b"[" * 100_000])
def test_s01_the_signature_is_looked_at_before_the_body_and_the_other_headers(
    server: Server, raw: bytes
) -> None:
    headers = {"X-Shopify-Hmac-Sha256": signature(b"other"), "X-Shopify-Topic": "nonsense"}
    assert says(server.send(UPDATE, raw, headers)) == REFUSED
    assert server.calls == []


@pytest.mark.parametrize(
    "changes",
    [{"topic": None}, {"topic": DELETE}, {"shop_domain": None}, {"shop_domain": "evil.com"}],
)
def test_signed_with_a_wrong_topic_or_shop_is_400(server: Server, changes: dict[str, Any]) -> None:
    assert server.send(UPDATE, RAW, signed(UPDATE, RAW, **changes)).status_code == 400
    assert server.calls == []


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "identity, gzip", "GZIP", ""])
def test_s07_an_encoded_body_is_415(server: Server, coding: str) -> None:
    assert server.send(UPDATE, RAW, signed(UPDATE, RAW) | {"Content-Encoding": coding}).status_code == 415
    assert server.calls == []


def test_identity_is_no_encoding(server: Server) -> None:
    headers = signed(UPDATE, RAW) | {"Content-Encoding": "identity"}
    assert says(server.send(UPDATE, RAW, headers)) == ACCEPTED


@pytest.mark.parametrize("topic", ["orders/create", "products", "products/update/x", "..%2fx"])
def test_an_unknown_topic_is_404(server: Server, topic: str) -> None:
    assert server.send(topic, RAW, signed("orders/create", RAW)).status_code == 404
    assert server.calls == []


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_another_method_is_405(server: Server, method: str) -> None:
    assert server.client.request(method, f"{server.address}/{UPDATE}").status_code == 405


# Secrets


def test_s04_old_and_new_secret_count_and_an_expired_one_does_not(servers: Servers) -> None:
    ends = f"{datetime.now(UTC) + timedelta(days=1):%Y-%m-%d}"
    server = servers.with_settings(shopify_webhook_secret=f"new-secret, old-secret@{ends},older@2026-01-01")
    found = {
        secret: server.deliver(DELETE, json.dumps({"id": number}).encode(), secret=secret).status_code
        for number, secret in enumerate(("new-secret", "old-secret", "older", "", "None"), 1)
    }
    assert found == {"new-secret": 200, "old-secret": 200, "older": 401, "": 401, "None": 401}
    assert len(server.rows) == 2


def test_s05_a_secret_of_a_shop_signs_for_that_shop_alone(servers: Servers) -> None:
    server = servers.with_settings(shopify_webhook_secret=f"{SHOP}=ours,{OTHER}=theirs,shared")
    expected = {
        (SHOP, "ours"): 200, (SHOP, "theirs"): 401, (SHOP, "shared"): 401,
        (OTHER, "ours"): 401, (OTHER, "theirs"): 200, (OTHER, "shared"): 401,
        (THIRD, "ours"): 401, (THIRD, "theirs"): 401, (THIRD, "shared"): 200,
        (None, "ours"): 401, ("evil.com", "theirs"): 401,
    }  # fmt: skip
    found = {
        (shop, secret): server.deliver(DELETE, b'{"id":1}', secret=secret, shop_domain=shop).status_code
        for shop, secret in expected
    }
    assert found == expected
    proven = {row["source_store_id"]: row["proven"] for row in server.rows}
    assert proven == {SHOP: True, OTHER: True, THIRD: False}


def test_s05_a_secret_that_another_shop_has_too_proves_nothing(servers: Servers) -> None:
    server = servers.with_settings(shopify_webhook_secret=f"{SHOP}=ours,{SHOP}=both,{OTHER}=both")
    for shop in (SHOP, OTHER):
        assert says(server.deliver(UPDATE, RAW, secret="both", shop_domain=shop)) == ACCEPTED
    assert [row["proven"] for row in server.rows] == [False, False]


def test_without_a_secret_everything_is_401(servers: Servers) -> None:
    server = servers.with_settings(shopify_webhook_secret=None)
    for secret in ("", "None", "undefined"):
        assert says(server.deliver(UPDATE, RAW, secret=secret)) == REFUSED
    assert server.calls == []


# Size, over real sockets


def first_line(server: Server, *pieces: bytes) -> bytes:
    """The answer's, read while the request is not at its end."""
    with connected(server.address) as connection:
        for piece in pieces:
            connection.sendall(piece)
        received = b""
        while b"\r\n" not in received and (part := connection.recv(65_536)):
            received += part
    return received.split(b"\r\n")[0]


def head(server: Server, length: str) -> bytes:
    lines = [f"POST {httpx.URL(server.address).path}/{UPDATE} HTTP/1.1", "Host: receiver", length]
    lines += [f"{name}: {value}" for name, value in signed(UPDATE, RAW).items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def test_s07_a_body_at_the_limit_is_kept_and_one_byte_more_is_413(servers: Servers) -> None:
    server = servers.with_settings(esl_webhook_body_limit_bytes="1000")
    assert server.deliver(UPDATE, RAW.ljust(1_000)).status_code == 200
    assert server.deliver(UPDATE, RAW.ljust(1_001)).status_code == 413
    assert len(server.calls) == 1


def test_s07_a_long_content_length_is_413_before_any_body_comes(server: Server) -> None:
    assert first_line(server, head(server, "Content-Length: 30000000")).startswith(b"HTTP/1.1 413 ")
    assert server.calls == []


def test_s07_an_endless_chunked_body_is_413_at_the_limit(servers: Servers) -> None:
    server = servers.with_settings(esl_webhook_body_limit_bytes="1000")
    pieces = head(server, "Transfer-Encoding: chunked"), b"3e9\r\n" + b" " * 1_001 + b"\r\n"
    assert first_line(server, *pieces).startswith(b"HTTP/1.1 413 ")
    assert server.calls == []


def test_a_chunked_body_below_the_limit_is_kept(server: Server) -> None:
    answer = server.client.post(
        f"{server.address}/{UPDATE}", content=iter([RAW[:50], RAW[50:]]), headers=signed(UPDATE, RAW)
    )
    assert says(answer) == ACCEPTED


@pytest.mark.long
def test_s07_a_body_of_megabytes_is_kept_to_the_last_byte(server: Server) -> None:
    raw = json.dumps({**PRODUCT, "body_html": "é" * 700_000}).encode()
    assert 4_000_000 < len(raw) < 5_000_000
    assert says(server.deliver(UPDATE, raw)) == ACCEPTED
    (row,) = server.rows
    assert (row["state"], bytes.fromhex(row["body"].removeprefix("\\x")) == raw) == ("ready", True)


# The buffer fails, or takes no more


@pytest.mark.parametrize("failure", [Failure.UNAVAILABLE, Failure.BAD_GATEWAY, Failure.RATE_LIMITED])
def test_a_buffer_that_keeps_nothing_is_503_with_retry_after(server: Server, failure: Failure) -> None:
    server.gateway.fail(failure)
    answer = server.deliver(UPDATE, RAW, webhook_id="same")
    assert says(answer) == (503, {"detail": "The delivery could not be kept; send it again."})
    assert int(answer.headers["retry-after"]) > 0
    assert says(server.deliver(UPDATE, RAW, webhook_id="same")) == ACCEPTED


@pytest.mark.parametrize("failure", [Failure.DROPPED, Failure.ANSWER_LOST])
def test_a_broken_connection_to_the_buffer_loses_and_doubles_nothing(
    server: Server, failure: Failure
) -> None:
    server.gateway.fail(failure)
    # Deno's fetch itself sends once more what broke on a connection that was open already.
    answers = [says(server.deliver(UPDATE, RAW, webhook_id="same")) for _ in range(2)]
    assert answers[0][0] in {503, 200} and answers[1] in (ACCEPTED, DUPLICATE)
    assert len(server.rows) == 1


def test_a_shop_of_which_too_much_waits_is_429(server: Server) -> None:
    assert says(server.deliver(DELETE, b'{"id":1}')) == ACCEPTED
    with psycopg.connect(server.buffer.dsn) as connection:
        connection.execute("update esl.shop_waiting set deliveries = 20000")
    answer = server.deliver(UPDATE, RAW)
    assert answer.status_code == 429 and "no store is mapped" in answer.json()["detail"]
    assert int(answer.headers["retry-after"]) >= 60
    assert len(server.rows) == 1


def test_health_tells_whether_the_buffer_answers_and_nothing_else(server: Server) -> None:
    assert says(server.client.get(server.health)) == (200, {"status": "ok"})
    server.gateway.fail(Failure.UNAVAILABLE)
    assert says(server.client.get(server.health)) == (503, {"status": "unavailable"})


# People


@pytest.mark.parametrize("topic", LIFECYCLE_BODIES)
def test_s10_topics_about_people_are_verified_and_kept_without_their_body(server: Server, topic: str) -> None:
    raw = json.dumps(LIFECYCLE_BODIES[topic]).encode()
    assert says(server.deliver(topic, raw, hmac_sha256=signature(raw, "other"))) == REFUSED
    assert server.calls == []
    assert says(server.deliver(topic, raw)) == ACCEPTED
    (row,) = server.rows
    assert (row["state"], row["body"], len(row["body_sha256"])) == ("done", None, 64)
    assert CANARY not in json.dumps(row)


def test_s10_a_shop_that_has_left_is_not_pushed_any_more(server: Server) -> None:
    with psycopg.connect(server.buffer.dsn) as connection:
        connection.execute(
            "insert into esl.store_mappings (source_system, source_store_id, hipoink_store_code)"
            " values ('shopify', %s, '001')",
            [SHOP],
        )
        connection.execute("update esl.store_mappings set activated_at = '2026-01-01'")
    server.deliver("app/uninstalled", json.dumps(LIFECYCLE_BODIES["app/uninstalled"]).encode())
    with psycopg.connect(server.buffer.dsn) as connection:
        assert connection.execute("select is_active from esl.store_mappings").fetchall() == [(False,)]


# Any body, and both alike


@pytest.mark.shared_data("data/security/json_test_parsing")
@pytest.mark.long
def test_f25_every_file_of_the_json_test_suite_is_acknowledged(server: Server) -> None:
    files = sorted((DATA / "security" / "json_test_parsing").glob("*.json"))
    assert len(files) == 318
    bodies = {file.read_bytes() for file in files}
    assert {server.deliver(UPDATE, raw).status_code for raw in bodies} == {200}
    assert {row["state"] for row in server.rows} == {"unusable"}
    assert len(server.rows) == len(bodies) == len(server.calls)


# Of one request the row, but for when it came.
WHEN = ("id", "received_at", "finished_at")
AT = datetime.now(UTC).replace(microsecond=123_456)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"webhook_id": None},
        {"webhook_id": "two words", "event_id": "x" * 256, "api_version": "v" * 33},
        {"webhook_id": None, "triggered_at": None},
        {"webhook_id": None, "triggered_at": AT.isoformat().replace("+00:00", "789Z")},
        {"webhook_id": None, "triggered_at": f"{AT:%Y-%m-%d %H:%M:%S}+00:00"},
        {
            "webhook_id": None,
            "triggered_at": (AT + timedelta(hours=5, minutes=30)).replace(tzinfo=None).isoformat() + "+0530",
        },
        {"webhook_id": None, "triggered_at": "2026-02-30T10:00:00Z"},
        {"webhook_id": None, "triggered_at": "0001-01-01T00:00:00+14:00"},
        {"shop_domain": "Corner-SHOP.MyShopify.com"},
        {"test": "true"},
        {"test": "false"},
    ],
)
@pytest.mark.parametrize("topic", [UPDATE, "shop/redact", "app/uninstalled"])
def test_both_keep_the_same_row(
    of_kind: dict[str, Servers],
    fresh: None,
    watched_buffer: WatchedBuffer,
    topic: str,
    changes: dict[str, Any],
) -> None:
    raw = json.dumps((BODIES | LIFECYCLE_BODIES)[topic]).encode()
    headers, found = signed(topic, raw, **({"triggered_at": AT.isoformat()} | changes)), []
    for kind in KINDS:
        watched_buffer.clean(whatever=True)
        server = of_kind[kind].with_settings()
        assert says(server.send(topic, raw, headers)) == ACCEPTED, kind
        (row,) = server.rows
        found.append({name: value for name, value in row.items() if name not in WHEN})
    assert found[0] == found[1]
