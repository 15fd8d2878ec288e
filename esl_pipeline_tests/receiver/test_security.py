"""Whose secret signs for whom, topics about people, and how fast a shop may send. See also test_webhooks."""

import json
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from esl_pipeline.guard import Guard
from esl_pipeline.receiver.intake import Limits
from esl_pipeline.receiver.pace import Pace
from esl_pipeline.sources.secrets import keys_for, read_secrets
from esl_pipeline.sources.shopify.deliveries import LIFECYCLE_TOPICS
from esl_pipeline.sources.shopify.shop_names import shop_before
from esl_pipeline.sources.shopify.topics import TOPICS
from esl_pipeline_tests.receiver.support import (
    BODIES,
    CANARY,
    LIFECYCLE_BODIES,
    PRODUCT,
    SHOP,
    call,
    deliver,
    make_app,
    signature,
    signed,
)
from esl_pipeline_tests.watched import WatchedBuffer

OTHER = "other-shop.myshopify.com"
THIRD = "third-shop.myshopify.com"
UPDATE = "/webhooks/shopify/products/update"
RAW = json.dumps(PRODUCT).encode()
REFUSED = (401, {"detail": "The signature is missing or wrong."})
NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def buffer(watched: WatchedBuffer) -> WatchedBuffer:
    return watched


def sent(app: Any, secret: str, shop: str | None = SHOP, number: int = 1) -> tuple[int, Any]:
    raw = json.dumps({"id": number}).encode()
    headers = signed("products/delete", raw, secret=secret, shop_domain=shop)
    answer = call(app, "POST", "/webhooks/shopify/products/delete", content=raw, headers=headers)
    return answer.status_code, answer.json()


# S4, S5, S6: secrets


def test_s04_an_old_secret_counts_until_its_end_and_not_after() -> None:
    secrets = read_secrets(["new", "old@2026-03-01T00:00:00Z"], shop_before)
    assert keys_for(secrets, SHOP, NOW) == [b"new", b"old"]
    assert keys_for(secrets, SHOP, NOW + timedelta(seconds=1)) == [b"new"]


def test_s04_the_receiver_takes_old_and_new_secret_and_refuses_an_expired_one(buffer: WatchedBuffer) -> None:
    ends = datetime.now(UTC) + timedelta(hours=1)
    app = make_app(buffer, shopify_webhook_secret=f"new,old@{ends:%Y-%m-%dT%H:%M:%SZ},oldest@2026-01-01")
    assert [sent(app, secret, number=n)[0] for n, secret in enumerate(("new", "old", "oldest"), 1)] == [
        200, 200, 401,
    ]  # fmt: skip


def test_s05_a_secret_of_a_shop_signs_for_that_shop_alone(buffer: WatchedBuffer) -> None:
    app = make_app(buffer, shopify_webhook_secret=f"{SHOP}=ours,{OTHER}=theirs,shared")
    expected = {
        (SHOP, "ours"): 200, (SHOP, "theirs"): 401, (SHOP, "shared"): 401,
        (OTHER, "ours"): 401, (OTHER, "theirs"): 200, (OTHER, "shared"): 401,
        (THIRD, "ours"): 401, (THIRD, "theirs"): 401, (THIRD, "shared"): 200,
    }  # fmt: skip
    found = {(shop, secret): sent(app, secret, shop)[0] for shop, secret in expected}
    assert found == expected
    assert sent(app, "ours", SHOP.upper(), 2)[0] == 200
    assert len(buffer.rows) == 4


def test_s05_a_shop_whose_own_secret_has_expired_is_refused_the_shared_one() -> None:
    secrets = read_secrets([f"{SHOP}=ours@2026-02-01", "shared"], shop_before)
    assert keys_for(secrets, SHOP, NOW) == []
    assert keys_for(secrets, OTHER, NOW) == [b"shared"]


@pytest.mark.parametrize("shop", [SHOP, OTHER, "evil.com", "", "a.myshopify.com/../x", None])
def test_s06_an_unknown_shop_answers_like_a_bad_signature(buffer: WatchedBuffer, shop: str | None) -> None:
    for secrets in ("right", f"{THIRD}=right"):
        app = make_app(buffer, shopify_webhook_secret=secrets)
        assert sent(app, "wrong", shop) == REFUSED
    assert sent(make_app(buffer, shopify_webhook_secret=f"{THIRD}=right"), "right", shop) == REFUSED
    assert buffer.calls == []


def test_s06_two_shop_headers_have_no_secret_of_a_shop(buffer: WatchedBuffer) -> None:
    headers = [*signed("products/update", RAW, secret="ours").items(), ("X-Shopify-Shop-Domain", OTHER)]
    app = make_app(buffer, shopify_webhook_secret=f"{SHOP}=ours,{OTHER}=theirs")
    assert call(app, "POST", UPDATE, content=RAW, headers=headers).status_code == 401
    assert buffer.calls == []


# S10 to S12: topics about shops and people


@pytest.mark.parametrize("topic", LIFECYCLE_TOPICS)
def test_s10_lifecycle_topics_are_verified_and_kept_without_their_body(
    buffer: WatchedBuffer, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    app, raw = make_app(buffer), json.dumps(LIFECYCLE_BODIES[topic]).encode()
    path = f"/webhooks/shopify/{topic}"
    for bad in (None, "", signature(raw, "other"), signature(raw)[:-4]):
        headers = signed(topic, raw, hmac_sha256=bad)
        answer = call(app, "POST", path, content=raw, headers=headers)
        assert (answer.status_code, answer.json()) == REFUSED
    assert buffer.calls == []
    answer = deliver(app, topic, raw)
    assert (answer.status_code, answer.json()) == (200, {"status": "accepted"})
    (row,) = buffer.rows
    assert (row["state"], row["body"]) == ("done", None)
    assert row["reason"] == LIFECYCLE_TOPICS[topic][1] and len(row["body_sha256"]) == 64
    assert CANARY not in json.dumps(row) and CANARY not in caplog.text and CANARY not in answer.text


def changed(topic: str, **fields: Any) -> dict[str, Any]:
    return LIFECYCLE_BODIES[topic] | fields


@pytest.mark.parametrize(
    ("topic", "body", "reason"),
    [
        ("shop/redact", changed("shop/redact", shop_domain=OTHER), "replay suspected: shop_domain"),
        ("customers/redact", changed("customers/redact", shop_domain=OTHER), "replay suspected: shop_domain"),
        (
            "app/uninstalled",
            changed("app/uninstalled", myshopify_domain=OTHER),
            "replay suspected: myshopify",
        ),
        ("app/uninstalled", changed("app/uninstalled", myshopify_domain=None), "needs the shop's domain"),
        ("app/uninstalled", LIFECYCLE_BODIES["shop/redact"], "needs the shop's domain"),
        ("shop/redact", LIFECYCLE_BODIES["customers/redact"], "replay suspected: a shop/redact body"),
        ("shop/redact", LIFECYCLE_BODIES["customers/data_request"], "replay suspected: a shop/redact body"),
        ("shop/redact", LIFECYCLE_BODIES["app/uninstalled"], "needs the shop's domain"),
        ("shop/redact", {}, "needs the shop's domain"),
        ("shop/redact", [CANARY], "not a JSON object"),
        ("customers/redact", b"{" + CANARY.encode(), "not JSON"),
    ],
)
def test_s11_the_signed_body_must_name_the_shop_and_have_its_topics_shape(
    buffer: WatchedBuffer, topic: str, body: Any, reason: str
) -> None:
    assert deliver(make_app(buffer), topic, body).status_code == 200
    (row,) = buffer.rows
    assert (row["state"], row["body"]) == ("unusable", None)
    assert row["reason"].startswith(reason) or reason in row["reason"]
    assert CANARY not in json.dumps(row)


@pytest.mark.long
@pytest.mark.parametrize("topic", [topic for topic in LIFECYCLE_TOPICS if topic != "shop/redact"])
def test_s12_what_is_about_people_is_not_used_under_a_product_topic(
    buffer: WatchedBuffer, topic: str
) -> None:
    for other in TOPICS:
        deliver(make_app(buffer), other, LIFECYCLE_BODIES[topic])
    assert {row["state"] for row in buffer.rows} == {"unusable"}


@pytest.mark.parametrize(
    ("of", "sent_as"),
    [
        ("products/update", "products/delete"),
        ("products/delete", "products/update"),
        ("products/update", "inventory_levels/update"),
        ("inventory_levels/update", "products/update"),
    ],
)
def test_f23_a_body_under_another_topic_is_counted_as_a_replay(
    buffer: WatchedBuffer, of: str, sent_as: str
) -> None:
    deliver(make_app(buffer), sent_as, BODIES[of])
    assert buffer.rows[0]["state"] == "unusable"
    # Of the topics with this shape the first is named: create for update.
    assert buffer.rows[0]["reason"].startswith(
        f"replay suspected: the body is one of {of.partition('/')[0]}/"
    )


# S9: pace


def test_s09_a_shop_that_sends_too_much_is_429_and_the_others_are_not(buffer: WatchedBuffer) -> None:
    app = make_app(buffer, Limits(per_second=0.5, burst=2))
    answers = [sent(app, "current-webhook-secret", SHOP, number)[0] for number in range(1, 5)]
    assert answers == [200, 200, 429, 429]
    raw = b'{"id":9}'
    answer = deliver(app, "products/delete", raw)
    assert answer.status_code == 429 and 1 <= int(answer.headers["retry-after"]) <= 2
    assert sent(app, "current-webhook-secret", OTHER)[0] == 200
    assert len(buffer.calls) == 3


def test_s09_strangers_cannot_use_up_a_shops_share(buffer: WatchedBuffer) -> None:
    app = make_app(buffer, Limits(per_second=0.01, burst=1))
    assert {sent(app, "wrong")[0] for _ in range(20)} == {401}
    assert sent(app, "current-webhook-secret")[0] == 200


def test_s09_the_bucket_fills_again_and_a_forgotten_shop_has_a_full_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("esl_pipeline.receiver.pace._SHOPS", 2)
    pace = Pace(per_second=2, burst=2)
    assert [pace.wait("a", 100) for _ in range(3)] == [0, 0, 0.5]
    assert pace.wait("a", 100.5) == 0
    assert pace.wait("a", 100.5) == 0.5
    assert pace.wait("b", 100.5) == pace.wait("c", 100.5) == 0  # a is forgotten: it fails open
    assert pace.wait("a", 100.5) == 0
    assert [pace.wait("d", 1_000) for _ in range(3)] == [0, 0, 0.5]


# Anything at all

ANSWERS = {200, 202, 400, 401, 404, 405, 408, 413, 415, 429, 503}
PATHS = [f"/webhooks/shopify/{topic}" for topic in (*TOPICS, *LIFECYCLE_TOPICS, "orders/create", "")]


@pytest.fixture
def fuzzed(buffer: WatchedBuffer) -> FastAPI:
    return make_app(buffer)


# What an earlier example left in the buffer is no matter to the next.
@hypothesis_settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    st.sampled_from(PATHS),
    st.sampled_from(["POST", "POST", "POST", "GET", "PUT", "DELETE"]),
    st.one_of(
        st.binary(max_size=300),
        st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=10,
        ).map(lambda value: json.dumps(value).encode()),
        st.sampled_from([*BODIES.values(), *LIFECYCLE_BODIES.values()]).map(
            lambda body: json.dumps(body).encode()
        ),
    ),
    st.booleans(),
    st.dictionaries(
        st.sampled_from(["topic", "shop-domain", "webhook-id", "event-id", "triggered-at", "api-version"]),
        st.binary(max_size=60) | st.text(max_size=60).map(str.encode),
    ),
)
def test_f26_nothing_makes_an_error(
    buffer: WatchedBuffer,
    fuzzed: FastAPI,
    path: str,
    method: str,
    raw: bytes,
    is_signed: bool,
    changed: dict[str, bytes],
) -> None:
    buffer.forget_calls()
    topic = path.removeprefix("/webhooks/shopify/")
    kept = signed(topic, raw) if is_signed else signed(topic, raw, hmac_sha256=None)
    headers = {name.lower().encode(): value.encode() for name, value in kept.items()}
    headers |= {f"x-shopify-{name}".encode(): value for name, value in changed.items()}
    answer: httpx.Response = call(fuzzed, method, path, content=raw, headers=headers)
    assert answer.status_code in ANSWERS
    assert is_signed or answer.status_code in {401, 404, 405}
    assert len(buffer.calls) == (answer.status_code == 200)


# S32: foreign pages


@pytest.mark.parametrize(
    "page", [{"Origin": "http://foreign.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}]
)
def test_s32_what_a_page_sends_is_no_webhook_whoever_signed_it(
    buffer: WatchedBuffer, page: dict[str, str]
) -> None:
    app = make_app(buffer)
    app.add_middleware(Guard, only_json=False, any_host=("/webhooks/",))
    headers = signed("products/update", RAW)

    refused = call(app, "POST", UPDATE, content=RAW, headers=headers | page)
    assert (refused.status_code, refused.headers["x-frame-options"]) == (403, "DENY")
    assert buffer.calls == []
    assert call(app, "POST", UPDATE, content=RAW, headers=headers).status_code == 200
