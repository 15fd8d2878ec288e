"""What a source does not say, or says late or again, is no statement: partial, empty and repeated bodies."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from starlette.datastructures import Headers

from esl_pipeline.sandbox.shopify.catalogue import LOCATION_ID
from esl_pipeline.sandbox.shopify.shop import stocked_shop
from esl_pipeline.sandbox.shopify.webhooks import Webhooks
from esl_pipeline.sources.shopify.deliveries import delivery
from esl_pipeline.stages.inbox import read_inbox
from esl_pipeline_tests.stages.test_snapshot_and_drift import DOMAIN, KEY, Market, open_market
from esl_pipeline_tests.waiting import eventually
from esl_pipeline_tests.world import (
    LOCATION,
    SHOP,
    STORE,
    Body,
    World,
    level,
    product,
    variant,
    when,
)

pytestmark = pytest.mark.long

SHOWS_STOCK = {"stock_field": "kc", "location_id": str(LOCATION)}


def without(body: Body, *names: str) -> Body:
    """The body of a subscription that does not include these fields."""
    return {name: value for name, value in body.items() if name not in names}


def lean(number: int, version: int, *unsaid: str, own: tuple[str, ...] = (), **fields: Any) -> Body:
    """A product whose body leaves out `unsaid`, and `own` of its variant."""
    variants = [without(variant(number, **fields), *own)]
    return without(product(number, version, variants, vendor="Hill"), *unsaid)


def found(world: World) -> list[tuple[str, str, str]]:
    """The errors."""
    errors = [finding for finding in world.buffer.findings() if finding["level"] == "error"]
    return [(f["variant_id"], f["check_name"], f["value"]) for f in errors]


def to_fetch(world: World) -> list[str]:
    """Products with variants that webhooks did not tell."""
    rows = world.sql("select product_id from esl.product_versions where missing_variants > 0")
    return [row["product_id"] for row in rows]


def written(world: World) -> list[dict[str, Any]]:
    """Which transaction wrote each variant last, and which are due."""
    return world.sql("select variant_id, xmin::text, due from esl.products order by 1")


# --- said, said empty, not said


def test_field_08_a_body_without_published_at_keeps_the_label(world: World) -> None:
    world.map(settings={"require_published": True})
    world.settle(lean(1, 1), lean(2, 1))
    world.settle(lean(1, 2, "published_at", price="2.00"), product(2, 2, published_at=None))
    assert world.prices() == {"C-1": "2.00"}  # the second one says that it is not published
    assert found(world) == []


def test_field_08_a_body_without_vendor_shows_nothing_that_is_excluded(world: World) -> None:
    world.map(settings={"exclude": {"vendors": ["hill"]}})
    world.settle(lean(1, 1), lean(2, 1) | {"vendor": "Dale"})
    world.settle(*(lean(n, 2, "vendor", price="2.00") for n in (1, 2, 3)))
    assert world.prices() == {"C-2": "2.00"}
    assert found(world) == [("3", "not_said", "vendor")]
    finding = next(f for f in world.buffer.findings() if f["check_name"] == "not_said")
    assert "include_fields" in finding["action"] and "SHOPIFY_ADMIN_TOKEN" in finding["action"]
    assert world.buffer.missing_variants(shop={"source_system": "shopify", "source_store_id": SHOP}) == ["3"]
    world.settle(lean(3, 3) | {"vendor": "Dale"})
    assert (world.prices(), found(world)) == ({"C-2": "2.00", "C-3": "1.00"}, [])


@pytest.mark.parametrize(
    ("column", "settings"),
    [
        ("status", {}),
        ("title", {}),
        ("vendor", {"title_template": "{vendor} {title}"}),
        ("product_type", {"exclude": {"product_types": ["x"]}}),
        ("tags", {"exclude": {"tags": ["x"]}}),
        ("images", {"send_images": True}),
        ("variant price", {}),
        ("variant title", {}),
        ("variant barcode", {}),
        ("variant sku", {}),
        ("variant sku", {"code_source": ["sku", "barcode"], "fields": {"pi": ""}}),
        ("variant compare_at_price", {"show_compare_at": "if_higher"}),
        ("variant inventory_item_id", SHOWS_STOCK),
        ("variant created_at", {"duplicate_rule": "first_created"}),
        ("variant option2", {"title_template": "{title} {option2}"}),
    ],
)
def test_field_08_what_a_policy_needs_is_kept_or_waited_for(
    world: World, column: str, settings: dict[str, Any]
) -> None:
    full = {"product_type": "Fruit", "tags": "a", "images": [], "handle": "h"}
    own = {"compare_at_price": "9.00", "created_at": when(0), "option1": "a", "option2": "b", "option3": None}
    name = column.removeprefix("variant ")

    def told(number: int, version: int, price: str) -> Body:
        body = product(number, version, [variant(number, price=price) | own], vendor="Hill") | full
        if name == column:
            return without(body, name)
        return body | {"variants": [without(v, name) for v in body["variants"]]}

    world.map(settings=settings)
    world.settle(product(1, 1, [variant(1) | own], vendor="Hill") | full, told(2, 1, "1.00"))
    assert list(world.labels()) == ["C-1" if settings.get("code_source") is None else "sku-1"]
    assert [(variant_id, check) for variant_id, check, _ in found(world)] == [("2", "not_said")]
    before = world.labels()
    world.settle(told(1, 2, "2.00"))
    (label,), (was,) = world.labels().values(), before.values()
    assert label | {"pp": ""} == was | {"pp": ""}  # only what was said has changed
    assert label["pp"] == ("1.00" if name == "price" else "2.00")


def test_field_08_what_no_policy_needs_holds_nothing_up(world: World) -> None:
    world.map()
    world.settle(lean(1, 1, "vendor", "published_at", "tags", "handle", "images"))
    assert (list(world.labels()), found(world)) == (["C-1"], [])


def test_field_08_a_draft_goes_whatever_else_was_not_said(world: World) -> None:
    world.map(settings={"require_published": True})
    world.settle(lean(1, 1), lean(2, 1))
    world.settle(lean(1, 2, "published_at", "title", own=("barcode", "price")) | {"status": "draft"})
    assert list(world.labels()) == ["C-2"]


def test_field_08_the_same_partial_body_again_writes_no_variant(world: World) -> None:
    world.map(settings={"require_published": True})
    world.settle(lean(1, 1), lean(2, 1, "published_at"))
    before, calls = written(world), world.calls()
    for version in (2, 3, 4):
        world.settle(lean(1, version, "published_at"), lean(2, version, "published_at"))
    assert (written(world), world.calls()) == (before, calls)
    world.settle(lean(1, 5))  # said again, as it is stored
    assert (written(world), world.calls()) == (before, calls)


@pytest.mark.parametrize("together", [True, False])
def test_field_08_a_full_body_and_a_partial_one_after_it_say_both(world: World, together: bool) -> None:
    """Created with all there is, updated with less, in one batch or two: folding loses nothing."""
    world.map(settings={"title_template": "{vendor} {title}"})
    bodies = [
        lean(1, 1),
        lean(1, 2, "vendor", price="2.00"),
        lean(1, 3, "title", own=("price",)) | {"vendor": "Dale"},
        lean(1, 4, "vendor", own=("price",)) | {"title": "Pear"},
    ]
    for body in bodies:
        world.update(body)
        if not together:
            world.settle()
    world.settle()
    (label,) = world.labels().values()
    assert (label["pn"], label["pp"]) == ("Dale Pear", "2.00")
    assert set(world.inbox()) <= {"done", "superseded"}


def test_field_08_an_older_full_body_does_not_fill_in_for_a_newer_stored_one(world: World) -> None:
    """In the batch of a newer partial body comes one that is older than what is stored."""
    world.map(settings={"title_template": "{vendor} {title}"})
    world.settle(lean(1, 5) | {"vendor": "Dale"})
    world.settle(lean(1, 3), lean(1, 6, "vendor", price="2.00"))
    (label,) = world.labels().values()
    assert (label["pn"], label["pp"]) == ("Dale Product 1", "2.00")


def test_field_08_variants_beyond_100_follow_only_what_was_said(world: World) -> None:
    world.map(settings={"guard_labels": 1_000, "exclude": {"vendors": ["hill"]}})
    rest, first = [variant(n) for n in range(101, 104)], [variant(n) for n in range(1, 101)]
    world.settle(product(variants=rest, variant_gids=None, vendor="Dale"))
    world.settle(product(version=2, title="Pear", variants=first + rest) | {"variants": first})
    assert world.labels()["C-103"]["pn"] == "Pear"
    world.settle(product(version=3, status="draft", variants=first + rest) | {"variants": first})
    assert world.labels() == {}


@pytest.fixture
def market(world: World) -> Iterator[Market]:
    """A small shop whose vendors and stock matter, mapped, its labels not there yet."""
    settings = SHOWS_STOCK | {"location_id": str(LOCATION_ID), "exclude": {"vendors": ["nobody"]}}
    world.map(DOMAIN, settings=settings)
    with open_market(world, stocked_shop(1, variants=20)) as opened:
        yield opened


def changed(market: Market) -> Any:
    """The shop's first product, changed now."""
    first = market.products()[0]
    market.shop.touch(first)
    return first


def fetch(market: Market) -> None:
    """Look for what webhooks did not tell, and for nothing else; the shop's clock may be a second ahead of ours."""

    def fetched() -> bool:
        # Changed longer ago than the look goes back.
        market.world.buffer.watermark_move(shop=KEY, source="updated_at", at="2100-01-01T00:00:00Z")
        assert market.changes()["fetched"] == 1
        return not market.world.buffer.missing_variants(shop=KEY)

    eventually(fetched)
    market.world.settle()


def partial(market: Market, number: int, *unsaid: str) -> Any:
    """A products/update of the shop's that leaves these fields out."""
    told = market.updated(market.products()[number])
    return told.__class__(
        **told.__dict__ | {"body": json.dumps(without(json.loads(told.body), *unsaid)).encode()}
    )


def test_field_08_what_nobody_said_is_fetched_once(market: Market) -> None:
    world, first = market.world, changed(market)
    market.deliver(partial(market, 0, "vendor"))
    world.settle()
    assert world.labels() == {}
    assert world.buffer.missing_variants(shop=KEY) == [str(first.id)]
    fetch(market)
    assert set(world.prices()) == {v.barcode for v in first.variants}
    assert found(world) == []
    market.shop.touch(first)
    market.deliver(partial(market, 0, "vendor"))
    world.settle()
    assert world.buffer.missing_variants(shop=KEY) == []


# --- lists that lack what they should have


EMPTY: dict[str, dict[str, Any]] = {
    "no variants": {"variants": []},
    "no variants and no ids": {"variants": [], "variant_gids": []},
    "no variants, ids not said": {"variants": [], "variant_gids": None},
    "variants without ids": {"variants": [{"price": "9.00"}], "variant_gids": []},
}


@pytest.mark.parametrize("odd", EMPTY.values(), ids=EMPTY)
def test_field_09_a_product_without_variants_removes_nothing(world: World, odd: dict[str, Any]) -> None:
    world.map()
    world.settle(product(1, 1, [variant(1), variant(2)]))
    world.settle(product(1, 2, title="Pear") | odd)
    assert world.prices() == {"C-1": "1.00", "C-2": "1.00"}
    assert {label["pn"] for label in world.labels().values()} == {"Pear"}  # it does say its title
    (state,) = world.sql("select state, reason from esl.webhook_inbox order by id desc limit 1")
    assert (state["state"] == "done" and "left out" in state["reason"]) or "lists no variants" in state[
        "reason"
    ]
    assert world.buffer.missing_variants(shop={"source_system": "shopify", "source_store_id": SHOP}) == ["1"]
    world.settle(product(1, 3, [variant(2)]))  # a list that can be true
    assert (list(world.labels()), to_fetch(world)) == (["C-2"], [])


def test_field_09_a_product_without_variants_is_fetched(market: Market) -> None:
    world, first = market.world, changed(market)
    market.deliver(market.updated(first))
    world.settle()
    right = world.labels()
    assert right
    market.shop.touch(first)
    told = market.updated(first)
    body = json.loads(told.body) | {"variants": [], "variant_gids": []}
    market.deliver(told.__class__(**told.__dict__ | {"body": json.dumps(body).encode()}))
    world.settle()
    assert world.labels() == right
    fetch(market)
    assert (world.labels(), world.buffer.missing_variants(shop=KEY)) == (right, [])


# --- what a complete read does not have


def test_field_10_a_level_that_a_complete_read_does_not_have_is_gone(market: Market) -> None:
    world, product_ = market.world, market.products()[0]
    sold = product_.variants[0]
    market.snapshot()
    market.shop.set_stock(product_, sold, 7)
    told = Webhooks(market.shop).level(sold)
    market.shop.set_stock(product_, sold, 8)
    late = Webhooks(market.shop).level(sold)
    market.deliver(told)
    world.settle()
    assert world.labels()[str(sold.barcode)]["kc"] == "7"
    level_before = sold.levels.pop(LOCATION_ID)
    market.shop.touch(market.products()[1])  # Shopify's clock goes on
    snapshot = market.snapshot()
    assert (snapshot.levels_gone, snapshot.removed) == (1, 0)
    world.settle()
    assert world.labels()[str(sold.barcode)].get("kc", "") == ""
    assert (f"{sold.id}", "stock_missing") in world.findings("warning")
    market.deliver(late)  # newer than all that was known of it, but older than the read
    world.settle()
    assert world.labels()[str(sold.barcode)].get("kc", "") == ""
    assert market.snapshot().levels_gone == 0
    # It comes back, and says an old time: the read that finds it began later.
    sold.levels[LOCATION_ID] = level_before
    market.shop.touch(market.products()[1])
    market.snapshot()
    world.settle()
    assert world.labels()[str(sold.barcode)]["kc"] == "8"
    assert market.snapshot().levels_gone == 0


def test_field_10_a_level_first_heard_of_after_the_read_that_lacks_it_is_gone(market: Market) -> None:
    world, product_ = market.world, market.products()[0]
    sold = product_.variants[0]
    market.shop.set_stock(product_, sold, 7)
    late = Webhooks(market.shop).level(sold)
    del sold.levels[LOCATION_ID]
    market.shop.touch(market.products()[1])
    market.snapshot()
    market.deliver(late)
    world.settle()
    assert world.labels()[str(sold.barcode)].get("kc", "") == ""


@pytest.mark.parametrize("why", ["not read to its end", "no label shows stock"])
def test_field_10_a_read_without_the_whole_stock_concludes_nothing_about_it(market: Market, why: str) -> None:
    world, product_ = market.world, market.products()[0]
    sold = product_.variants[0]
    market.snapshot()
    world.settle()
    shown = world.labels()[str(sold.barcode)]["kc"]
    del sold.levels[LOCATION_ID]
    market.shop.touch(market.products()[1])
    (mapping,) = world.buffer.mapping_list()
    if why == "no label shows stock":
        world.buffer.mapping_update(mapping["id"], {"settings": {}})
        assert market.snapshot().levels_gone == 0
    else:

        def lose_the_notes(so_far: Any) -> None:
            if so_far.levels:
                world.sql("truncate esl.snapshot_levels")

        with pytest.raises(Exception, match="lost its notes"):
            market.snapshot(on_progress=lose_the_notes)
    world.buffer.mapping_update(mapping["id"], {"settings": mapping["settings"]})
    world.settle()
    assert world.labels()[str(sold.barcode)]["kc"] == shown


def test_field_10_details_of_variants_that_are_gone_go_too(market: Market) -> None:
    market.snapshot()
    gone = market.products()[0]
    market.shop.delete(gone)
    market.snapshot()
    left = {row["variant_id"] for row in market.world.sql("select variant_id from esl.variant_details")}
    assert left == {str(v.id) for p in market.shop.products.values() for v in p.variants}


def test_field_10_a_shop_that_disconnects_a_level_says_so(market: Market) -> None:
    world, product_ = market.world, market.products()[0]
    sold = product_.variants[0]
    market.snapshot()
    market.shop.set_stock(product_, sold, 7)
    market.deliver(Webhooks(market.shop).level(sold))
    world.settle()
    assert world.labels()[str(sold.barcode)]["kc"] == "7"
    market.shop.disconnect(product_, sold)
    market.deliver(Webhooks(market.shop).disconnected(sold))
    world.settle()
    assert world.labels()[str(sold.barcode)].get("kc", "") == ""


def disconnect(world: World, at: int, number: int = 1) -> None:
    body = without(level(number), "available", "updated_at")
    world.send("inventory_levels/disconnect", body, at=when(at))


def test_field_10_a_disconnected_level_is_gone_and_fenced(world: World) -> None:
    world.map(settings=SHOWS_STOCK)
    world.settle(product())
    world.stock(level(available=5, version=2))
    world.settle()
    assert world.labels()["C-1"]["kc"] == "5"
    disconnect(world, at=4)
    world.settle()
    assert world.labels()["C-1"].get("kc", "") == ""
    world.stock(level(available=9, version=3))  # older than that
    world.settle()
    assert world.labels()["C-1"].get("kc", "") == ""
    assert world.inbox()[-1] == "superseded"
    world.send("inventory_levels/connect", level(available=3, version=5))
    world.settle()
    assert world.labels()["C-1"]["kc"] == "3"
    disconnect(world, at=4)  # the same delivery again
    disconnect(world, at=5 - 1)
    world.settle()
    assert world.labels()["C-1"]["kc"] == "3"


def test_field_10_a_level_that_does_not_say_how_much_changes_nothing(world: World) -> None:
    world.map(settings=SHOWS_STOCK)
    world.settle(product())
    world.stock(level(available=5, version=2), without(level(version=3), "available"))
    world.settle()
    assert world.labels()["C-1"]["kc"] == "5"
    assert world.inbox() == ["done", "done", "unusable"]


# --- twice within a second


def moment(version: int, fraction: int) -> str:
    """A trigger time within the second of this version."""
    return (datetime.fromisoformat(when(version)) + timedelta(milliseconds=fraction)).isoformat()


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_field_11_of_two_levels_of_one_second_the_later_trigger_wins(
    world: World, order: tuple[int, int], together: bool
) -> None:
    world.map(settings=SHOWS_STOCK)
    world.settle(product())
    told = [(level(available=5, version=2), 100), (level(available=4, version=2), 200)]
    for number in order:
        body, fraction = told[number]
        world.send("inventory_levels/update", body, at=moment(2, fraction))
        if not together:
            world.settle()
    world.settle()
    assert world.labels()["C-1"]["kc"] == "4"
    assert world.inbox().count("superseded") == (together or order == (1, 0))


@pytest.mark.parametrize("together", [True, False])
def test_field_12_a_price_that_goes_and_comes_back_within_a_second(world: World, together: bool) -> None:
    world.map()
    for fraction, price in ((100, "10.00"), (200, "12.00"), (300, "10.00")):
        world.send("products/update", product(variants=[variant(price=price)]), at=moment(1, fraction))
        if not together:
            world.settle()
    world.settle()
    assert world.prices() == {"C-1": "10.00"}
    assert len(world.inbox()) == 3
    # The first body again, with a time before the second's: a copy, or too old.
    world.send("products/update", product(variants=[variant(price="12.00")]), at=moment(1, 250))
    world.send("products/update", product(variants=[variant(price="12.00")]), at=moment(1, 200))
    world.settle()
    assert (world.prices(), len(world.inbox())) == ({"C-1": "10.00"}, 4)


@pytest.mark.parametrize("together", [True, False])
def test_field_12_a_stock_that_goes_and_comes_back_within_a_second(world: World, together: bool) -> None:
    world.map(settings=SHOWS_STOCK)
    world.settle(product())
    for fraction, available in ((100, 5), (200, 4), (300, 5)):
        body = level(available=available, version=2)
        world.send("inventory_levels/update", body, at=moment(2, fraction))
        if not together:
            world.settle()
    world.settle()
    assert world.labels()["C-1"]["kc"] == "5"
    assert len(world.inbox()) == 4


def test_field_12_without_webhook_ids_it_holds_as_well(world: World) -> None:
    world.map()
    for fraction, price in ((100, "10.00"), (200, "12.00"), (300, "10.00"), (300, "10.00")):
        headers = {
            "x-shopify-topic": "products/update",
            "x-shopify-shop-domain": SHOP,
            "x-shopify-triggered-at": moment(1, fraction),
        }
        raw = json.dumps(product(variants=[variant(price=price)])).encode()
        world.buffer.inbox_add([delivery("products/update", Headers(headers), raw, datetime.now(UTC))])
    world.settle()
    assert (world.prices(), len(world.inbox())) == ({"C-1": "10.00"}, 3)


# --- deliveries that are no events


def test_field_15_a_test_delivery_makes_no_label_and_no_finding(world: World) -> None:
    world.map()
    body = product(788032119674292922, 1, [variant(1, None, "19.99")], title="Example T-Shirt")
    raw = json.dumps(body).encode()
    for topic in ("products/update", "products/create"):
        headers = {
            "x-shopify-topic": topic,
            "x-shopify-shop-domain": SHOP,
            "x-shopify-webhook-id": topic,
            "x-shopify-test": "true",
        }
        kept = delivery(topic, Headers(headers), raw, datetime.now(UTC))
        assert world.buffer.inbox_add([kept])["inserted"] == 1
    assert not read_inbox(world.buffer, run_id="r")
    world.settle()
    assert (world.labels(STORE), world.buffer.findings()) == ({}, [])
    assert world.sql("select from esl.products") == []
    kept_with = {
        row["reason"] for row in world.sql("select reason from esl.webhook_inbox where body is not null")
    }
    assert kept_with == {"a test delivery from Shopify's admin: its sample goes on no label"}
    # That header is not signed: the event itself, should it ever be one, takes its place.
    world.update(body | {"variants": [variant(1)]})
    world.settle()
    assert list(world.labels()) == ["C-1"]
