"""What the receiver keeps of a webhook: signature, headers, the body's shape, and which copies are one."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers

from esl_pipeline.sandbox.woocommerce.delivery import sign
from esl_pipeline.sandbox.woocommerce.shop import Shop
from esl_pipeline.sources.secrets import WebhookSecret
from esl_pipeline.sources.source import DeliveryError
from esl_pipeline.sources.woocommerce.deliveries import delivery
from esl_pipeline.sources.woocommerce.topics import TOPICS
from esl_pipeline.sources.woocommerce.webhooks import WooCommerceWebhooks
from esl_pipeline_tests.sources.woocommerce.support import SHOP, SITE, body_of, hours

OTHER = "other.example.com"
NOW = datetime.now(UTC)
PRODUCT = body_of(Shop().add("Tea", "2.00"))
HOOKS = WooCommerceWebhooks([WebhookSecret(b"ours", SHOP), WebhookSecret(b"shared")])


def headers(*, topic: str | None = "product.updated", **changes: str | None) -> Headers:
    given_: dict[str, str | None] = {
        "source": f"{SITE}/",
        "topic": topic,
        "resource": "product",
        "id": "3",
        "delivery-id": "0123456789abcdef",
    }
    given_ |= {name.replace("_", "-"): value for name, value in changes.items()}
    return Headers({f"X-WC-Webhook-{name}": value for name, value in given_.items() if value is not None})


def made(
    body: Any, topic: str = "product.updated", *, names_shop: bool = False, **changes: str | None
) -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return delivery(topic, headers(**{"topic": topic, **changes}), raw, NOW, names_shop=names_shop)


def test_a_delivery_holds_what_was_received() -> None:
    kept = made(PRODUCT)
    assert (kept["source_system"], kept["source_store_id"], kept["topic"]) == (
        "woocommerce",
        SHOP,
        "product.updated",
    )
    assert (kept["state"], kept["reason"]) == ("ready", None)
    assert kept["said_at"] == f"{PRODUCT['date_modified_gmt']}+00:00"
    assert kept["triggered_at"] is None


def test_two_products_of_one_second_are_two_deliveries() -> None:
    other = PRODUCT | {"id": 2}
    assert made(PRODUCT)["webhook_id"] != made(other)["webhook_id"]
    assert made(PRODUCT)["webhook_id"] == made(PRODUCT)["webhook_id"]
    assert made(PRODUCT, delivery_id=None)["webhook_id"].startswith("none-")


def test_each_deletion_is_one_of_its_own() -> None:
    first = made({"id": 7}, "product.deleted")
    assert (first["state"], first["said_at"], first["triggered_at"]) == ("ready", None, NOW.isoformat())


@pytest.mark.parametrize("id", ["7", 7])
def test_an_id_may_be_a_text(id: object) -> None:
    assert made({"id": id}, "product.deleted")["state"] == "ready"


def test_a_variation_is_kept() -> None:
    shop = Shop()
    product = shop.add("Bread", options={("1 kg",): "4.00"})
    assert made(body_of(product, product.variations[0]))["state"] == "ready"


@pytest.mark.parametrize(
    ("body", "topic", "reason"),
    [
        (PRODUCT, "product.deleted", "replay suspected: a product.deleted body holds the id"),
        ({"id": 7}, "product.updated", "replay suspected: the body is one of product.deleted"),
        ({"id": 7}, "product.restored", "replay suspected"),
        ({"id": 0}, "product.deleted", "needs the number id"),
        ({"id": True}, "product.deleted", "needs the number id"),
        ({"id": 7, "status": "completed", "line_items": []}, "product.updated", "needs the texts type"),
        (PRODUCT | {"variations": 3}, "product.updated", "variations are no list"),
        (PRODUCT | {"variations": [1] * 3000}, "product.updated", "variations are no list"),
        (PRODUCT | {"type": "variation", "parent_id": 0}, "product.updated", "needs the number parent_id"),
        (PRODUCT | {"date_modified_gmt": "2126-01-01T00:00:00"}, "product.updated", "in the future"),
        (
            {"code": "woocommerce_rest_product_invalid_id", "message": "Invalid ID.", "data": {}},
            "product.updated",
            "the shop sent an error and no product: woocommerce_rest_product_invalid_id",
        ),
        (b"{", "product.updated", "not JSON"),
        ([], "product.updated", "not a JSON object"),
    ],
)
def test_a_body_must_have_the_shape_of_its_topic(body: Any, topic: str, reason: str) -> None:
    kept = made(body, topic)
    assert kept["state"] == "unusable"
    assert reason in kept["reason"]
    assert kept["said_at"] is None


def test_where_the_secret_is_shared_the_body_must_be_of_the_shop() -> None:
    assert made(PRODUCT, names_shop=True)["state"] == "ready"
    theirs = body_of(Shop().add("Tea", "2.00"), site=f"https://{OTHER}")
    assert "permalink is another shop's" in made(theirs, names_shop=True)["reason"]
    near = body_of(Shop().add("Tea", "2.00"), site=f"https://{SHOP}.evil.example")
    assert made(near, names_shop=True)["state"] == "unusable"
    assert made(theirs)["state"] == "ready"  # a language of the shop may have a host of its own


@pytest.mark.parametrize(
    "changes", [{"source": None}, {"source": "nonsense"}, {"topic": None}, {"topic": "order.updated"}]
)
def test_headers_say_shop_and_topic(changes: dict[str, str | None]) -> None:
    with pytest.raises(DeliveryError):
        made(PRODUCT, **changes)
    with pytest.raises(DeliveryError):
        delivery(None, headers(**changes), json.dumps(PRODUCT).encode(), NOW, names_shop=False)


def test_a_header_given_twice_says_nothing() -> None:
    doubled = Headers(raw=[*headers().raw, (b"x-wc-webhook-source", b"https://other.example.com")])
    with pytest.raises(DeliveryError):
        delivery(None, doubled, json.dumps(PRODUCT).encode(), NOW, names_shop=False)


def test_the_topic_is_the_addresss() -> None:
    with pytest.raises(DeliveryError, match=r"must be given once and be product\.deleted"):
        delivery("product.deleted", headers(), b"{}", NOW, names_shop=False)


_NAMES = [
    "id",
    "type",
    "name",
    "parent_id",
    "date_modified_gmt",
    "code",
    "message",
    "permalink",
    "variations",
]
_JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_NAMES), inner, max_size=5),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200) | _JSON, st.sampled_from(TOPICS))
def test_no_signed_body_is_an_exception(body: Any, topic: str) -> None:
    assert made(body, topic, names_shop=True)["state"] in ("ready", "unusable")


# --- the signature


def signed(secret: str, **changes: str | None) -> tuple[Headers, bytes]:
    raw = json.dumps(PRODUCT).encode()
    return headers(signature=sign(raw, secret), **changes), raw


def test_a_shops_own_secret_signs_for_it_alone() -> None:
    assert HOOKS.is_signed(*signed("ours"), NOW)
    assert not HOOKS.is_signed(*signed("shared"), NOW)
    assert HOOKS.is_signed(*signed("shared", source=f"https://{OTHER}/"), NOW)
    assert not HOOKS.is_signed(*signed("ours", source=f"https://{OTHER}/"), NOW)
    assert (HOOKS.proves(SHOP), HOOKS.proves(OTHER)) == (True, False)


def test_a_changed_body_is_not_signed() -> None:
    sent, raw = signed("ours")
    assert not HOOKS.is_signed(sent, raw + b" ", NOW)
    assert not HOOKS.is_signed(headers(), raw, NOW)
    assert not HOOKS.is_signed(headers(signature=""), raw, NOW)


def test_the_ping_is_a_greeting_and_nothing_else_is() -> None:
    bare = Headers({"content-type": "application/x-www-form-urlencoded"})
    assert HOOKS.is_greeting(bare, b"webhook_id=17")
    for raw in (
        b"webhook_id=",
        b"webhook_id=1&x=2",
        b"webhook_id=1\n",
        b"{}",
        b"",
        b"webhook_id=" + b"1" * 30,
    ):
        assert not HOOKS.is_greeting(bare, raw)
    assert not HOOKS.is_greeting(headers(signature="x"), b"webhook_id=17")


def test_a_delivery_of_a_shop_with_its_own_secret_need_not_name_it() -> None:
    raw = json.dumps(body_of(Shop().add("Tea", "2.00"), site=f"https://{OTHER}")).encode()
    assert HOOKS.delivery(None, headers(), raw, NOW)["state"] == "ready"
    assert HOOKS.delivery(None, headers(source="https://third.example.com/"), raw, NOW)["state"] == "unusable"


def test_the_clocks_may_differ_a_little() -> None:
    ahead = PRODUCT | {"date_modified_gmt": f"{hours(0.1):%Y-%m-%dT%H:%M:%S}"}
    assert made(ahead)["state"] == "ready"
