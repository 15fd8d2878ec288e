"""Webhook bodies to facts: tolerant, folded, and never an exception, whatever was signed."""

import base64
import hashlib
import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.sources.content import CONTENT
from esl_pipeline.sources.facts import Facts
from esl_pipeline.sources.shopify.facts import read_deliveries
from esl_pipeline.stages.evaluate import due_variants, stage, validate
from esl_pipeline_tests.shared_data import DATA
from esl_pipeline_tests.world import level, product, variant, when

SAMPLES = DATA / "shopify-webhooks"
SHOP = "corner-shop.myshopify.com"
TOPICS = (
    *("products/create", "products/update", "products/delete", "inventory_levels/update"),
    "inventory_levels/disconnect",
)
RECEIVED = when(3600)


def delivery(number: int, body: Any, topic: str = "products/update", **fields: Any) -> dict[str, Any]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return {
        "id": number,
        "source_system": "shopify",
        "source_store_id": SHOP,
        "topic": topic,
        "triggered_at": None,
        "received_at": RECEIVED,
        "body_sha256": hashlib.sha256(raw).hexdigest(),
        "body_base64": base64.b64encode(raw).decode(),
    } | fields


def read(*bodies: Any, topic: str = "products/update", **fields: Any) -> Facts:
    return read_deliveries([delivery(n, body, topic, **fields) for n, body in enumerate(bodies, start=1)])


def unusable(body: Any, topic: str = "products/update", **fields: Any) -> str:
    facts = read(body, topic=topic, **fields)
    assert (facts.products, facts.variants, facts.levels) == ([], [], [])
    (event,) = facts.events
    assert event["state"] == "unusable"
    return str(event["reason"])


# --- products


def test_a_products_facts() -> None:
    facts = read(product(7, 3, [variant(70, "A"), variant(71, "B")]))
    (found,) = facts.products
    assert (found["product_id"], found["version_at"], found["deleted"]) == ("7", when(3), False)
    assert (found["variant_ids"], found["missing_variants"], found["event_ids"]) == (["70", "71"], 0, [1])
    assert [(v["variant_id"], v["barcode"], v["inventory_item_id"]) for v in facts.variants] == [
        ("70", "A", "10070"),
        ("71", "B", "10071"),
    ]
    assert [event["state"] for event in facts.events] == ["done"]


def test_a_batch_is_folded_to_the_newest_version_of_each_product() -> None:
    facts = read(*[product(1, v, [variant(1, price=f"{v}.00")]) for v in (2, 3, 1)], product(2, 1))
    assert [(p["product_id"], p["version_at"]) for p in facts.products] == [("1", when(3)), ("2", when(1))]
    assert [v["price"] for v in facts.variants] == ["3.00", "1.00"]
    assert [event["state"] for event in facts.events] == ["done"] * 4


def test_times_of_other_zones_and_with_fractions_are_in_order() -> None:
    later = product(1) | {"updated_at": when(1).replace("+00:00", ".5+00:00")}
    assert read(product(1, 1), later).products[0]["body_sha256"] == read(later).products[0]["body_sha256"]
    shifted = product(1) | {"updated_at": "2026-03-01T05:00:00-05:00"}
    assert read(shifted).products[0]["version_at"] == "2026-03-01T10:00:00+00:00"


def test_the_gid_is_the_truth_about_an_id() -> None:
    body = product(
        1, variants=[variant(1) | {"admin_graphql_api_id": "gid://shopify/ProductVariant/9007199254740993"}]
    )
    assert read(body).variants[0]["variant_id"] == "9007199254740993"
    assert read(product(9007199254740993)).products[0]["product_id"] == "9007199254740993"


def test_content_that_is_no_text_is_written_as_json() -> None:
    facts = read(product(1, variants=[variant(1, price=1.5, barcode=4006)]))
    assert (facts.variants[0]["price"], facts.variants[0]["barcode"]) == ("1.5", "4006")


def test_what_a_body_has_no_key_for_has_none_in_the_row() -> None:
    body = product(1, vendor=None, variants=[{"id": 1, "sku": "", "option1": "a"}])
    for name in ("handle", "tags", "published_at", "product_type"):
        del body[name]
    facts = read(body)
    assert CONTENT & facts.variants[0].keys() == {"sku", "option1", "image_url"}  # its product says the rest
    row = facts.products[0] | facts.variants[0]
    assert CONTENT & row.keys() == {"title", "status", "vendor", "sku", "option1", "image_url"}
    assert (row["vendor"], row["sku"], row["image_url"], row["option1"]) == (None, None, None, "a")


def test_an_older_version_is_told_as_well_where_a_newer_one_says_less() -> None:
    less = product(1, 3)
    del less["title"]
    facts = read(
        product(1, 1), product(1, 2), less, product(1, 4) | {"title": "Pear"}, less | {"updated_at": when(5)}
    )
    told = [(p["version_at"], p.get("step", 0)) for p in facts.products]
    assert told == [(when(4), 0), (when(5), 1)]
    assert [v.get("step", 0) for v in facts.variants] == [0, 1]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b'{"a": NaN}', "not JSON"),
        (b'"\\ud800"', "not JSON"),
        (b"[1]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (product() | {"id": None, "admin_graphql_api_id": None}, "no id"),
        (product() | {"id": -1, "admin_graphql_api_id": ""}, "no id"),
        (product() | {"id": True, "admin_graphql_api_id": 1}, "no id"),
        (product() | {"id": 1.5, "admin_graphql_api_id": "gid://shopify/Product/x"}, "no id"),
        (product() | {"variants": None}, "no list of variants"),
        (product() | {"variants": {}}, "no list of variants"),
        (product() | {"updated_at": None}, "updated_at"),
        (product() | {"updated_at": 5}, "updated_at"),
        (product() | {"updated_at": "2026-03-01T10:00:00"}, "with a zone"),
        (product() | {"updated_at": "yesterday"}, "updated_at"),
        (product() | {"updated_at": "0001-01-01T00:00:00+14:00"}, "updated_at"),
        (product() | {"updated_at": when(3600 + 601)}, "in the future"),
    ],
)
def test_a_product_that_says_nothing_usable_is_kept_with_the_reason(body: Any, words: str) -> None:
    assert words in unusable(body)


def test_a_clock_a_little_ahead_is_forgiven() -> None:
    assert read(product() | {"updated_at": when(3600 + 599)}).events[0]["state"] == "done"


def test_a_body_nested_too_deeply_is_unusable() -> None:
    deep = b"[" * 1_000 + b"]" * 1_000
    body = json.dumps(product(title=0)).encode().replace(b'"title": 0', b'"title": ' + deep)
    assert "nested too deeply" in unusable(body)


def test_an_unknown_topic_is_unusable() -> None:
    assert "orders/create" in unusable({}, topic="orders/create")


def test_a_variant_without_an_id_leaves_a_note_and_removes_no_other() -> None:
    nameless = variant(2) | {"id": None, "admin_graphql_api_id": None}
    facts = read(product(1) | {"variants": [variant(1), "x", nameless]})
    assert [v["variant_id"] for v in facts.variants] == ["1"]
    assert facts.products[0]["variant_ids"] is None
    assert facts.events[0]["reason"] == "2 variants without an id left out"


@pytest.mark.parametrize(
    ("gids", "count", "known"),
    [
        (None, 2, ["1", "2"]),
        ([], 2, ["1", "2"]),
        ([{"admin_graphql_api_id": "gid://shopify/ProductVariant/9"}], 2, ["1", "2", "9"]),
        ([{"admin_graphql_api_id": "nonsense"}], 2, None),
        (["x"], 2, None),
        (None, 100, None),
    ],
)
def test_which_variants_a_body_names(gids: Any, count: int, known: list[str] | None) -> None:
    body = product(1, variants=[variant(n) for n in range(1, count + 1)], variant_gids=gids)
    assert read(body).products[0]["variant_ids"] == known


IMAGES = [
    {"id": 5, "src": "https://x/5", "variant_ids": []},
    {"id": 6, "src": "https://x/6", "variant_ids": [2]},
]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"images": IMAGES}, "https://x/5"),
        ({"images": IMAGES, "image": {"src": "https://x/0"}}, "https://x/0"),
        ({"images": IMAGES, "variants": [variant(1, image_id=6)]}, "https://x/6"),
        ({"images": IMAGES, "variants": [variant(2)]}, "https://x/6"),
        ({"images": [None, {"src": 5}], "image": "x"}, None),
        ({}, None),
    ],
)
def test_the_image_is_the_variants_own_or_the_products_first(
    body: dict[str, Any], expected: str | None
) -> None:
    assert read(product() | body).variants[0].get("image_url") == expected


# --- deletions and stock


def test_a_deletion_is_as_old_as_its_trigger_or_its_arrival() -> None:
    triggered = read({"id": 1}, topic="products/delete", triggered_at=when(5)).products[0]
    assert (triggered["deleted"], triggered["version_at"], triggered["variant_ids"]) == (True, when(5), [])
    assert read({"id": 1}, topic="products/delete").products[0]["version_at"] == RECEIVED
    assert "no product id" in unusable({"id": "x"}, topic="products/delete")


def test_stock_levels() -> None:
    (found,) = read(level(1, 5, 2), topic="inventory_levels/update").levels
    assert (found["inventory_item_id"], found["location_id"], found["available"]) == ("10001", "77", 5)
    assert read(level(1, None), topic="inventory_levels/update").levels[0]["available"] is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"inventory_item_id": None}, "inventory_item_id"),
        ({"location_id": 1.5}, "location_id"),
        ({"available": "5"}, "whole number"),
        ({"available": 1.5}, "whole number"),
        ({"available": True}, "whole number"),
        ({"available": 2**63}, "whole number"),
        ({"updated_at": None}, "updated_at"),
    ],
)
def test_stock_that_says_nothing_usable(fields: dict[str, Any], words: str) -> None:
    assert words in unusable(level() | fields, topic="inventory_levels/update")


# --- Shopify's own samples


needs_samples = pytest.mark.shared_data("data")


@needs_samples
def test_shopifys_sample_has_rounded_ids_beside_true_ones() -> None:
    body = json.loads((SAMPLES / "metadatas/2026-04/products__update.json").read_text(encoding="utf-8"))[
        "response"
    ]
    assert body["id"] == 788032119674292900
    facts = read(body)
    assert facts.products[0]["product_id"] == "788032119674292922"
    assert [v["variant_id"] for v in facts.variants] == [
        v["admin_graphql_api_id"].rpartition("/")[2] for v in body["variants"]
    ]
    assert {v["barcode"] for v in facts.variants} == {None}


@needs_samples
@pytest.mark.parametrize("topic", TOPICS)
def test_f29_every_payload_at_hand_is_read_without_an_exception(topic: str) -> None:
    for file in SAMPLES.rglob("*.json"):
        sample = json.loads(file.read_text(encoding="utf-8"))
        (event,) = read(sample.get("response", sample), topic=topic).events
        assert event["state"] in ("done", "unusable")


@needs_samples
def test_hostile_json_is_read_without_an_exception() -> None:
    files = sorted((SAMPLES.parent / "security" / "json_test_parsing").glob("*.json"))
    assert len(files) > 300
    for topic in TOPICS:
        facts = read_deliveries([delivery(n, file.read_bytes(), topic) for n, file in enumerate(files)])
        assert {event["state"] for event in facts.events} == {"unusable"}


# --- anything at all


TEXT = st.one_of(
    st.text(max_size=10),
    st.sampled_from(
        ["\x00", "\ud800", "a\udc00b", "12", "0" * 20, "9" * 20, "1" * 21, "1.50", "active", "٣"]
    ),
)
SCALAR = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([2**53 + 1, 2**63, 2**64 - 1, 1e300, -0.0]),
    st.floats(),
    TEXT,
)
ANYTHING = st.recursive(
    SCALAR,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=6,
)
IDS = st.one_of(st.sampled_from([1, 2, 2**60, "3"]), ANYTHING)
TIMES = st.one_of(
    st.sampled_from([when(1), when(2), "2026-03-01T05:00:00.123456789-05:00", "0001-01-01T00:00:00Z"]), SCALAR
)
GIDS = st.one_of(st.none(), st.from_regex(r"gid://shopify/[A-Z][a-z]+/[0-9]{1,25}", fullmatch=True), ANYTHING)


def _maybe(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


VARIANT = _maybe(
    id=IDS, admin_graphql_api_id=GIDS, title=ANYTHING, barcode=ANYTHING, sku=ANYTHING, price=ANYTHING,
    compare_at_price=ANYTHING, inventory_item_id=IDS, image_id=ANYTHING,
)  # fmt: skip
IMAGE = _maybe(id=ANYTHING, src=ANYTHING, variant_ids=ANYTHING)
PRODUCT = st.fixed_dictionaries(
    {"id": IDS, "updated_at": TIMES, "variants": st.one_of(st.lists(VARIANT, max_size=3), ANYTHING)},
    optional={
        "admin_graphql_api_id": GIDS,
        "title": ANYTHING,
        "status": ANYTHING,
        "tags": ANYTHING,
        "published_at": ANYTHING,
        "image": st.one_of(IMAGE, ANYTHING),
        "images": st.one_of(st.lists(IMAGE, max_size=2), ANYTHING),
        "variant_gids": st.one_of(st.lists(_maybe(admin_graphql_api_id=GIDS), max_size=3), ANYTHING),
    },
)
LEVEL = st.fixed_dictionaries(
    {"inventory_item_id": IDS, "location_id": IDS, "available": ANYTHING, "updated_at": TIMES}
)
BODIES = st.one_of(
    st.tuples(st.sampled_from(TOPICS[:2]), PRODUCT),
    st.tuples(st.just(TOPICS[2]), st.fixed_dictionaries({"id": IDS})),
    st.tuples(st.sampled_from(TOPICS[3:]), LEVEL),
    st.tuples(st.sampled_from(TOPICS), ANYTHING),
)


@given(raw=st.binary(max_size=50), topic=st.sampled_from(TOPICS))
def test_any_bytes_are_read_without_an_exception(raw: bytes, topic: str) -> None:
    assert len(read(raw, topic=topic).events) == 1


@pytest.mark.long
@given(bodies=st.lists(BODIES, min_size=1, max_size=8))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_was_read_can_be_stored_and_evaluated(buffer: Buffer, bodies: list[tuple[str, Any]]) -> None:
    mapping = {"source_system": "shopify", "source_store_id": SHOP, "hipoink_store_code": "S"}
    if not buffer.mapping_list():
        buffer.mapping_create(mapping | {"settings": {"stock_field": "kc", "location_id": "1"}})
    deliveries = [delivery(n, body, topic) for n, (topic, body) in enumerate(bodies)]
    facts = read_deliveries(deliveries)
    assert sorted(event["id"] for event in facts.events) == list(range(len(bodies)))
    buffer.variants_merge(
        claim_id=None,
        products=facts.products,
        variants=facts.variants,
        levels=facts.levels,
        events=facts.events,
    )
    variants, mappings = due_variants(buffer)
    stage(buffer, variants, validate(variants, mappings))
    assert due_variants(buffer)[0].empty
