import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from esl_pipeline.sources.shopify.deliveries import DeliveryError, delivery, shop_domain
from esl_pipeline.sources.shopify.topics import TOPICS
from esl_pipeline_tests.receiver.support import BODIES, LEVEL, LIFECYCLE_BODIES, PRODUCT, SHOP
from esl_pipeline_tests.shared_data import DATA

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
# What the body cannot tell apart. A location's id names no product, and a level that ends names no quantity.
SAME_SHAPE = (
    {"products/create", "products/update"},
    {"products/delete", "locations/delete"},
    {"inventory_levels/update", "inventory_levels/disconnect"},
    {"inventory_levels/update", "inventory_levels/connect"},
    {"inventory_levels/connect", "inventory_levels/disconnect"},
)
SAMPLES = DATA / "shopify-webhooks"
JSON_CASES = DATA / "security" / "json_test_parsing"


def headers(topic: str, /, **changes: str | None) -> Headers:
    given: dict[str, str | None] = {
        "topic": topic,
        "shop-domain": SHOP,
        "webhook-id": "b54557e4-bdd9-4b37-8a5f-bf7d70bcd043",
        "event-id": "98880550-7158-44d4-b7cd-2c97c8a091b5",
        "triggered-at": "2026-03-02T11:59:58.877041743Z",
        "api-version": "2026-04",
    }
    given |= {name.replace("_", "-"): value for name, value in changes.items()}
    return Headers({f"X-Shopify-{name}": value for name, value in given.items() if value is not None})


def made(topic: str, body: Any, **changes: str | None) -> dict[str, Any]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return delivery(topic, headers(topic, **changes), raw, NOW)


def test_a_delivery_holds_what_was_received() -> None:
    raw = json.dumps(PRODUCT).encode()
    assert made("products/update", raw) == {
        "source_system": "shopify",
        "source_store_id": SHOP,
        "topic": "products/update",
        "webhook_id": "b54557e4-bdd9-4b37-8a5f-bf7d70bcd043",
        "event_id": "98880550-7158-44d4-b7cd-2c97c8a091b5",
        "triggered_at": "2026-03-02T11:59:58.877041+00:00",
        "api_version": "2026-04",
        "said_at": "2026-03-01T15:00:00+00:00",
        "body_base64": base64.b64encode(raw).decode(),
        "body_sha256": hashlib.sha256(raw).hexdigest(),
        "state": "ready",
        "reason": None,
    }


@pytest.mark.parametrize("topic", BODIES)
def test_a_body_of_each_topic_is_ready(topic: str) -> None:
    assert made(topic, BODIES[topic])["state"] == "ready"


# Headers


@pytest.mark.parametrize("topic", [None, "", "products/update", "Products/Delete", "products/delete,x"])
def test_the_topic_header_must_agree_with_the_route(topic: str | None) -> None:
    with pytest.raises(DeliveryError, match="X-Shopify-Topic"):
        delivery("products/delete", headers("products/delete", topic=topic), b'{"id":1}', NOW)


@pytest.mark.parametrize(
    "shop",
    [
        None,
        "",
        "corner-shop",
        "myshopify.com",
        ".myshopify.com",
        "-a.myshopify.com",
        "a.b.myshopify.com",
        "a.myshopify.com.evil.example",
        "a.myshopify.com\n",
        "a.myshopify.com/x",
        "x),id.gt.(0.myshopify.com",
        "shopé.myshopify.com",
        "a" * 64 + ".myshopify.com",
    ],
)
def test_s06_the_shop_header_must_be_a_myshopify_domain(shop: str | None) -> None:
    with pytest.raises(DeliveryError, match="X-Shopify-Shop-Domain"):
        made("products/delete", {"id": 1}, shop_domain=shop)


def test_the_shop_is_kept_in_lower_case() -> None:
    assert (
        made("products/delete", {"id": 1}, shop_domain="Corner-Shop.MyShopify.com")["source_store_id"] == SHOP
    )
    # The Kelvin sign lowers to a plain k.
    assert shop_domain("\u212aiosk.myshopify.com") is None


@pytest.mark.parametrize("name", ["x-shopify-topic", "x-shopify-shop-domain"])
def test_a_doubled_header_is_refused(name: str) -> None:
    doubled = Headers(raw=[*headers("products/delete").raw, (name.encode(), b"other")])
    with pytest.raises(DeliveryError, match="once"):
        delivery("products/delete", doubled, b'{"id":1}', NOW)


@pytest.mark.parametrize("webhook_id", [None, "", "two words", "x" * 256, "\u00fcber"])
def test_a_missing_or_odd_webhook_id_is_derived_from_shop_topic_body_and_time(webhook_id: str | None) -> None:
    first, again = (made("products/delete", {"id": 1}, webhook_id=webhook_id) for _ in range(2))
    assert first["webhook_id"] == again["webhook_id"] != webhook_id
    assert first["state"] == "ready"
    others = [
        made("products/delete", {"id": 2}, webhook_id=webhook_id),
        made("products/delete", {"id": 1}, webhook_id=webhook_id, shop_domain="other.myshopify.com"),
        made("inventory_levels/update", {"id": 1}, webhook_id=webhook_id),
        made("products/delete", {"id": 1}, webhook_id=webhook_id, triggered_at="2026-03-02T11:59:58.9Z"),
    ]
    assert len({first["webhook_id"], *(other["webhook_id"] for other in others)}) == 5


def test_optional_headers_are_bounded() -> None:
    found = made("products/delete", {"id": 1}, event_id="e" * 256, api_version="v" * 33)
    assert (found["event_id"], found["api_version"], found["state"]) == (None, None, "ready")
    assert made("products/delete", {"id": 1}, event_id=None, api_version=None)["event_id"] is None


# Time


@pytest.mark.parametrize(
    ("age", "state"),
    [
        (timedelta(hours=48), "ready"),
        (timedelta(hours=48, seconds=1), "unusable"),
        (timedelta(minutes=-10), "ready"),
        (timedelta(minutes=-10, seconds=-1), "unusable"),
    ],
)
def test_f23_the_replay_window_reaches_from_48_hours_back_to_10_minutes_ahead(
    age: timedelta, state: str
) -> None:
    found = made("products/delete", {"id": 1}, triggered_at=(NOW - age).isoformat())
    assert found["state"] == state
    assert (found["reason"] or "").startswith("replay suspected") == (state == "unusable")
    assert found["triggered_at"] == (NOW - age).isoformat()


def test_a_time_with_another_offset_is_kept_in_utc() -> None:
    found = made("products/delete", {"id": 1}, triggered_at="2026-03-02T17:00:00+05:30")
    assert (found["triggered_at"], found["state"]) == ("2026-03-02T11:30:00+00:00", "ready")


def test_a_missing_time_is_no_fault() -> None:
    found = made("products/delete", {"id": 1}, triggered_at=None)
    assert (found["triggered_at"], found["state"]) == (None, "ready")


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "2026-03-02T12:00:00", "2026-13-02T12:00:00Z", "0001-01-01T00:00:00+14:00", "1e9"],
)
def test_a_time_that_is_none_is_kept_as_unusable(text: str) -> None:
    found = made("products/delete", {"id": 1}, triggered_at=text)
    assert found["state"] == "unusable"
    assert "X-Shopify-Triggered-At" in found["reason"]


@pytest.mark.parametrize(
    ("topic", "body", "said_at"),
    [
        ("products/update", PRODUCT, "2026-03-01T15:00:00+00:00"),
        ("products/update", {**PRODUCT, "updated_at": "2026-03-02T12:10:01Z"}, None),  # it cannot be
        ("products/update", {**PRODUCT, "updated_at": "yesterday"}, None),
        ("products/delete", {"id": 1}, None),
        ("app/uninstalled", LIFECYCLE_BODIES["app/uninstalled"], "2026-03-01T15:00:00+00:00"),
        ("shop/redact", LIFECYCLE_BODIES["shop/redact"], None),
    ],
)
def test_field_13_the_time_in_the_signed_body_is_kept(topic: str, body: Any, said_at: str | None) -> None:
    assert made(topic, body)["said_at"] == said_at


@pytest.mark.parametrize("at", [None, "", "2026-03-02T12:10:01Z", 5])
def test_field_13_uninstalling_without_a_time_of_its_own_is_unusable(at: Any) -> None:
    found = made("app/uninstalled", LIFECYCLE_BODIES["app/uninstalled"] | {"updated_at": at})
    assert (found["state"], found["said_at"], found["body_base64"]) == ("unusable", None, None)
    assert "updated_at" in found["reason"]


@pytest.mark.parametrize("topic", [*BODIES, *LIFECYCLE_BODIES])
def test_field_15_a_test_delivery_is_kept_with_a_note(topic: str) -> None:
    body = {**BODIES, **LIFECYCLE_BODIES}[topic]
    found = made(topic, body, test="true")
    assert (found["state"], found["said_at"]) == ("unusable", None)
    assert found["reason"].startswith("a test delivery")
    assert made(topic, body, test="false")["state"] != "unusable"


# Shape


@pytest.mark.parametrize(
    ("topic", "body", "reason"),
    [
        ("products/delete", PRODUCT, "nothing else"),
        ("products/delete", {"id": 1, "x": 1}, "nothing else"),
        ("products/delete", {}, "integer id"),
        ("products/delete", {"id": "1"}, "integer id"),
        ("products/delete", {"id": True}, "integer id"),
        ("products/delete", {"id": None}, "integer id"),
        ("products/delete", {"id": 1.0}, "integer id"),
        ("products/delete", {"id": 0}, "integer id"),
        ("products/delete", {"id": 2**63}, "integer id"),
        ("products/delete", {"id": 2**64}, "integer id"),
        ("products/delete", {"id": {"$ne": 1}}, "integer id"),
        ("products/update", {"id": 1}, "updated_at"),
        ("products/update", {**PRODUCT, "variants": None}, "variants"),
        ("products/update", {**PRODUCT, "updated_at": None}, "updated_at"),
        ("products/update", {**PRODUCT, "id": None}, "integer id"),
        ("products/create", {**PRODUCT, "variants": {}}, "variants"),
        ("products/create", LEVEL, "integer id"),
        ("inventory_levels/update", PRODUCT, "inventory_item_id"),
        ("inventory_levels/update", {"inventory_item_id": 1}, "location_id"),
        ("inventory_levels/update", {"inventory_item_id": "1", "location_id": 1}, "inventory_item_id"),
        ("inventory_levels/disconnect", LEVEL, "nothing else"),
        ("inventory_levels/disconnect", {"inventory_item_id": 1}, "location_id"),
        ("products/delete", [1], "not a JSON object"),
        ("products/delete", b"null", "not a JSON object"),
        ("products/delete", b"", "not JSON"),
        ("products/delete", b'{"id":NaN}', "not JSON"),
        ("products/delete", b'\xef\xbb\xbf{"id":1}', "not JSON"),
        ("products/delete", b'{"id":1,"x":"\\ud800"}', "not JSON"),
        ("products/update", b"[" * 100_000, "not JSON"),
    ],
)
def test_f23_a_body_without_its_topics_shape_is_kept_as_unusable(topic: str, body: Any, reason: str) -> None:
    found = made(topic, body)
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert found["state"] == "unusable"
    assert reason in found["reason"]
    assert base64.b64decode(found["body_base64"]) == raw


def test_an_unknown_field_or_status_is_no_fault() -> None:
    assert made("products/update", {**PRODUCT, "status": "UNLISTED", "new": [{}]})["state"] == "ready"


def test_f26_hostile_but_legal_text_is_kept_as_sent() -> None:
    raw = b'{"id":1,"id":632910392,"updated_at":"x","variants":[],"title":"\\u0000\\u202e"}'
    found = made("products/update", raw)
    assert found["state"] == "ready"
    assert base64.b64decode(found["body_base64"]) == raw


@given(st.binary(max_size=200), st.sampled_from(TOPICS))
def test_any_body_makes_a_delivery_that_can_be_sent_as_json(raw: bytes, topic: str) -> None:
    found = made(topic, raw)
    assert found["state"] == "unusable"
    assert "\\u0000" not in json.dumps(found)


@given(st.text(max_size=60))
def test_any_time_text_makes_a_delivery(text: str) -> None:
    raw = [
        (b"x-shopify-triggered-at", text.encode("latin-1", "replace")),
        *headers("products/delete").raw[:2],
    ]
    found = delivery("products/delete", Headers(raw=raw), b'{"id":1}', NOW)
    assert found["state"] in {"ready", "unusable"}


# Shared test data


@pytest.mark.shared_data("data/security/json_test_parsing")
def test_f25_every_file_of_the_json_test_suite_is_kept() -> None:
    files = sorted(JSON_CASES.glob("*.json"))
    assert len(files) == 318
    for file in files:
        found = made("products/update", file.read_bytes())
        assert found["state"] == "unusable", file.name
        # "n" must be refused as JSON; "y" is JSON, of another shape.
        if file.name[0] in "ny":
            assert ("not JSON:" in found["reason"]) == (file.name[0] == "n"), file.name


@pytest.mark.shared_data("data/shopify-webhooks")
@pytest.mark.parametrize("topic", ["products/create", "products/update", "products/delete"])
def test_shopifys_sample_bodies_are_ready(topic: str) -> None:
    sample = SAMPLES / "metadatas" / "2026-04" / f"{topic.replace('/', '__')}.json"
    found = made(topic, json.loads(sample.read_text())["response"])
    assert found["state"] == "ready"


@pytest.mark.shared_data("data/shopify-webhooks")
@pytest.mark.parametrize(
    ("topic", "folder"),
    [("products/update", "products"), ("inventory_levels/update", "inventory_levels")],
)
def test_real_bodies_are_ready(topic: str, folder: str) -> None:
    assert (
        made(topic, (SAMPLES / "exemplars" / "2025-04" / folder / "1.json").read_bytes())["state"] == "ready"
    )


@pytest.mark.shared_data("data/shopify-webhooks")
def test_no_other_sample_body_passes_for_one_of_our_topics() -> None:
    for file in (SAMPLES / "metadatas" / "2026-04").glob("*.json"):
        sent_as = file.stem.replace("__", "/")
        body = json.loads(file.read_text())["response"]
        for topic in TOPICS:
            if topic != sent_as and {topic, sent_as} not in SAME_SHAPE:
                assert made(topic, body)["state"] == "unusable", (sent_as, topic)
