"""Webhook bodies to facts: products, variations, deletions, sales and their dates; never an exception."""

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esl_pipeline.sandbox.woocommerce.shop import Product, Shop
from esl_pipeline.sources.woocommerce.facts import read_deliveries
from esl_pipeline.sources.woocommerce.topics import TOPICS
from esl_pipeline_tests.sources.woocommerce.support import body_of, delivered, hours, prices, read


def tea(**fields: Any) -> Product:
    return Shop().add("Tea", "2.50", **fields)


def bread() -> tuple[Shop, Product]:
    shop = Shop()
    return shop, shop.add("Bread", options={("1 kg",): "4.00", ("2 kg",): "7.00"})


def unusable(body: Any, topic: str = "product.updated", **fields: Any) -> str:
    facts = read(body, topic=topic, **fields)
    assert (facts.products, facts.variants, facts.levels) == ([], [], [])
    (event,) = facts.events
    assert event["state"] == "unusable"
    return str(event["reason"])


# --- products


def test_a_simple_product_is_one_variant_of_its_own_id() -> None:
    product = tea(gtin="4006381333931", manage_stock=True, stock=3, category="Drinks", tags=("b", "a"))
    facts = read(body_of(product))
    (found,), (row,), (level,) = facts.products, facts.variants, facts.levels
    assert (found["product_id"], found["variant_ids"], found["missing_variants"]) == ("1", ["1"], 0)
    assert found["version_at"] == product.modified_at.isoformat()
    assert (row["variant_id"], row["barcode"], row["price"], row["inventory_item_id"]) == (
        *("1", "4006381333931", "2.50", "1"),
    )
    assert (found["title"], found["product_type"], found["tags"], found["status"]) == (
        "Tea",
        "Drinks",
        "a, b",
        "active",
    )
    assert (level["inventory_item_id"], level["location_id"], level["available"]) == ("1", "0", 3)
    assert facts.events[0]["state"] == "done"


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("publish", "active"),
        ("draft", "draft"),
        ("pending", "draft"),
        ("private", "draft"),
        ("future", "draft"),
    ],
)
def test_only_what_is_published_is_for_sale(status: str, expected: str) -> None:
    (found,) = read(body_of(tea(status=status))).products
    assert (found["status"], found["published_at"] is None) == (expected, expected == "draft")


def test_a_variable_product_names_its_variations_and_is_fetched() -> None:
    _, product = bread()
    facts = read(body_of(product))
    (found,) = facts.products
    assert (found["variant_ids"], found["missing_variants"], facts.variants) == (["2", "3"], 2, [])


def test_a_variation_tells_of_itself_and_its_product_is_fetched() -> None:
    shop, product = bread()
    one = product.variations[0]
    shop.change(product, one, regular_price="4.50")
    facts = read(body_of(product, one))
    (found,), (row,) = facts.products, facts.variants
    assert (found["product_id"], found["variant_ids"], found["missing_variants"]) == ("1", None, 1)
    assert (row["variant_id"], row["price"], row["variant_title"]) == ("2", "4.50", "1 kg")
    assert {"title", "status", "vendor", "image_url"}.isdisjoint({**found, **row})  # its product says these


def test_a_variation_that_is_switched_off_is_not_for_sale() -> None:
    shop, product = bread()
    shop.change(product, product.variations[0], status="private")
    (row,) = read(body_of(product, product.variations[0])).variants
    assert row["status"] == "draft"


def test_two_variations_told_of_in_one_batch_are_both_told() -> None:
    shop, product = bread()
    bodies = []
    for number, variation in enumerate(product.variations):
        shop.change(product, variation, regular_price=f"{number + 1}.11")
        bodies += [body_of(product, variation), body_of(product)]
    facts = read(*reversed(bodies))
    assert prices(facts) == {"2": ("1.11", None), "3": ("2.11", None)}
    steps = [row.get("step", 0) for row in facts.products]
    assert steps == sorted(steps)
    assert facts.products[-1]["missing_variants"] > 0


def test_variations_of_one_second_count_in_the_order_of_arrival() -> None:
    _, product = bread()
    bodies = [
        body_of(product, one) | {"date_modified_gmt": "2026-01-01T00:00:00"} for one in product.variations
    ]
    arrived = [f"2026-01-01T{at}+00:00" for at in ("00:00:00.5", "00:00:00.6", "00:10:00", "05:00:00")]
    told = [
        read_deliveries([delivered(1, body, received_at=at)]).products[0]["triggered_at"]
        for at, body in zip(arrived, bodies * 2, strict=True)
    ]
    assert told == sorted(set(told))
    assert "2026-01-01T00:00:00" < told[0] < told[-1] < "2026-01-01T00:00:01"  # a later read knows better


def test_the_newest_of_a_product_counts() -> None:
    shop = Shop()
    product = shop.add("Tea", "2.50")
    bodies = [body_of(product)]
    for price in ("3.00", "3.50"):
        shop.change(product, regular_price=price)
        bodies.append(body_of(product))
    assert prices(read(bodies[2], bodies[0], bodies[1])) == {"1": ("3.50", None)}


def test_a_group_is_sold_by_its_parts() -> None:
    (found,) = read(body_of(tea(kind="grouped"))).products
    assert (found["variant_ids"], found["missing_variants"]) == ([], 0)


def test_what_a_body_does_not_say_is_not_told() -> None:
    body = body_of(tea())
    for name in ("global_unique_id", "brands", "manage_stock"):
        del body[name]  # WooCommerce before 9.2
    facts = read(body)
    said = {**facts.products[0], **facts.variants[0]}
    assert {"barcode", "vendor"}.isdisjoint(said)
    assert facts.levels == []


# --- prices


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ("2.50", None)),
        ({"sale_price": "2.00"}, ("2.00", "2.50")),
        ({"sale_price": "2.00", "sale_from": hours(-1), "sale_to": hours(1)}, ("2.00", "2.50")),
        ({"sale_price": "2.00", "sale_from": hours(1)}, ("2.50", None)),
        ({"sale_price": "2.00", "sale_to": hours(-1)}, ("2.50", None)),
        ({"sale_price": "2.50"}, ("2.50", None)),
        ({"sale_price": "9.00"}, ("2.50", None)),
        ({"sale_price": "0"}, ("0", "2.50")),
        ({"regular_price": ""}, (None, None)),
        ({"regular_price": "", "sale_price": "2.00"}, (None, None)),
    ],
)
def test_a_sale_counts_while_its_dates_say_so(
    fields: dict[str, Any], expected: tuple[str | None, str | None]
) -> None:
    shop = Shop()
    product = shop.add("Tea", "2.50")
    shop.change(product, **fields)
    body = body_of(product)
    assert prices(read(body)) == {"1": expected}
    if fields.get("regular_price") != "":
        assert body["price"] == expected[0]  # as WooCommerce itself reckons


def test_a_delivery_that_has_waited_is_read_at_the_price_of_now() -> None:
    shop = Shop()
    product = shop.add("Tea", "2.50")
    shop.change(product, sale_price="2.00", sale_to=hours(-1))
    body = body_of(product) | {"price": "2.00", "on_sale": True}  # when it was sent, the sale was on
    assert prices(read(body)) == {"1": ("2.50", None)}


def test_a_price_that_is_no_number_goes_on_to_be_held_back() -> None:
    assert prices(read(body_of(tea()) | {"regular_price": "cheap"})) == {"1": ("cheap", None)}
    assert prices(read(body_of(tea()) | {"sale_price": "cheap"})) == {"1": ("cheap", "2.50")}


def test_a_price_of_a_plugins_kind_counts_where_there_is_no_regular_one() -> None:
    assert prices(read(body_of(tea()) | {"type": "bundle", "regular_price": "", "price": "12.00"})) == {
        "1": ("12.00", None)
    }


# --- stock


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"manage_stock": True, "stock_quantity": 5}, 5),
        ({"manage_stock": True, "stock_quantity": -2}, -2),
        ({"manage_stock": True, "stock_quantity": 2.75}, 2),
        ({"manage_stock": True, "stock_quantity": None}, None),
        ({"manage_stock": False, "stock_quantity": 5}, None),
        ({"manage_stock": "parent", "stock_quantity": 9}, 9),
        ({"manage_stock": True, "stock_quantity": 1e300}, None),
    ],
)
def test_stock_that_is_not_counted_is_none(said: dict[str, Any], expected: int | None) -> None:
    (level,) = read(body_of(tea()) | said).levels
    assert level["available"] == expected


# --- the trash


def test_a_deletion_is_as_old_as_its_arrival_and_a_later_read_may_revive_it() -> None:
    at = hours(-1).isoformat()
    facts = read({"id": "1"}, topic="product.deleted", triggered_at=at, received_at=hours(0).isoformat())
    (found,) = facts.products
    assert (found["product_id"], found["deleted"], found["variant_ids"]) == ("1", True, [])
    assert (found["version_at"], found["body_sha256"]) == (at, "")


def test_what_lies_in_the_trash_is_gone_whatever_the_topic() -> None:
    shop = Shop()
    product = shop.add("Tea", "2.50")
    shop.trash(product)
    (found,) = read(body_of(product)).products
    assert found["deleted"]


def test_a_restored_product_is_newer_than_its_deletion() -> None:
    shop = Shop()
    product = shop.add("Tea", "2.50")
    deletion = delivered(1, {"id": 1}, "product.deleted", triggered_at=shop.time().isoformat())
    shop.restore(product, "publish")
    facts = read_deliveries([deletion, delivered(2, body_of(product), "product.restored")])
    assert [row["deleted"] for row in facts.products][-1] is False


# --- what is of no use


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": None}, "no id"),
        ({"id": 1.5}, "no id"),
        ({"date_modified_gmt": None}, "not a time"),
        ({"date_modified_gmt": "yesterday"}, "not a time"),
        ({"date_modified_gmt": "2126-01-01T00:00:00"}, "in the future"),
        ({"type": "variation", "parent_id": 0}, "no parent_id"),
    ],
)
def test_a_body_without_what_identifies_it_is_unusable(change: dict[str, Any], reason: str) -> None:
    assert reason in unusable(body_of(tea()) | change)


def test_another_topic_puts_nothing_on_a_label() -> None:
    assert "puts anything" in unusable({"id": 1}, "order.updated")


def test_deep_nesting_is_unusable() -> None:
    assert unusable(b"[" * 90_000 + b"]" * 90_000)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(body_of(tea()))), JSON), st.sampled_from(TOPICS))
def test_nothing_signed_raises(changes: dict[str, Any], topic: str) -> None:
    raw = json.dumps(body_of(tea()) | changes).encode(errors="replace")
    facts = read(raw, topic=topic)
    assert [event["state"] for event in facts.events] in (["done"], ["unusable"])


def test_times_without_a_zone_are_utc() -> None:
    product = tea()
    body = body_of(product)
    assert body["date_modified"] != body["date_modified_gmt"]  # the first is in the shop's zone
    (found,) = read(body).products
    assert found["version_at"] == product.modified_at.isoformat()
    assert product.modified_at.utcoffset() == timedelta(0)
