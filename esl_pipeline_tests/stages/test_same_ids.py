"""Two shops of a source whose ids are not global: equal ids are two things, and neither shop is the other's matter."""

import json
import uuid
from base64 import b64encode
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import pytest

from esl_pipeline.sources.content import CONTENT
from esl_pipeline_tests.world import World, when

SYSTEM = "woocommerce"
# One site with two shops on it, so that one name begins with the other.
HILL, VALLEY = "example.com/hill", "example.com/hill/valley"
STORES = {HILL: "S1", VALLEY: "S2"}

Rows = list[dict[str, Any]]


def key(shop: str) -> dict[str, str]:
    return {"source_system": SYSTEM, "source_store_id": shop}


def version(number: int) -> dict[str, Any]:
    return {"version_at": when(number), "triggered_at": when(number), "body_sha256": "same"}


def facts(shop: str, price: str, number: int = 1, *, gone: bool = False) -> dict[str, Rows]:
    """Product 1 with variant 11 and its stock, whose ids are those of the other shop too."""
    product = key(shop) | version(number) | {
        "product_id": "1", "deleted": gone, "missing_variants": 0, "variant_ids": ["11"], "event_ids": [],
    }  # fmt: skip
    content = {"title": f"Tea of {shop}", "barcode": "C-1", "price": price, "status": "active"}
    variant = dict.fromkeys(CONTENT) | key(shop) | version(number) | content
    variant |= {"product_id": "1", "variant_id": "11", "inventory_item_id": "11", "event_ids": []}
    level = key(shop) | {"inventory_item_id": "11", "location_id": "1", "available": len(shop)}
    level |= {"updated_at": when(number), "triggered_at": when(number), "body_sha256": "same"}
    detail = key(shop) | {"variant_id": "11", "gift_card": False, "unit_price": price}
    return {
        "products": [product],
        "variants": [] if gone else [variant],
        "levels": [] if gone else [level],
        "details": [] if gone else [detail | {"unit_price_measurement": None}],
    }


def tell(world: World, shop: str, price: str, number: int = 1, *, gone: bool = False) -> None:
    """A webhook of this shop, merged as the inbox's stage does; its body and time are those of the other shop too."""
    body = json.dumps({"id": 1, "number": number, "gone": gone}).encode()
    delivery = key(shop) | {
        "topic": "product.deleted" if gone else "product.updated", "webhook_id": f"w-{number}", "state": "ready",
        "body_base64": b64encode(body).decode(), "body_sha256": sha256(body).hexdigest(), "said_at": when(number),
    }  # fmt: skip
    assert world.buffer.inbox_add([delivery])["inserted"] == 1
    claim, (event,) = world.buffer.inbox_claim(run_id="r", shop=key(shop))
    events = [{"id": event["id"], "state": "done", "reason": None, "product_id": "1"} | version(number)]
    merged = world.buffer.variants_merge(
        claim_id=claim, events=events, **facts(shop, price, number, gone=gone)
    )
    assert merged["replays"] == []


def read(world: World, shop: str, price: str | None, number: int) -> dict[str, Any]:
    """A complete read of this shop, with product 1 at this price or, price None, without anything."""
    named = {"snapshot_id": str(uuid.uuid4())}
    world.buffer.snapshot_begin(**named, shop=key(shop), run_id="r")
    if price is not None:
        assert world.buffer.snapshot_merge(**named, **facts(shop, price, number))["open"]
    return world.buffer.snapshot_finish(**named, as_of=when(number), stock_as_of=when(number), counts={})


def prices(world: World) -> list[dict[str, str]]:
    world.settle()
    return [world.prices(store) for store in STORES.values()]


@pytest.fixture
def two(world: World) -> World:
    for shop, store in STORES.items():
        world.map(shop, store, source_system=SYSTEM)
    for shop, price in ((HILL, "1.00"), (VALLEY, "2.00")):
        tell(world, shop, price)
    return world


def test_each_shop_has_its_own_price_stock_and_details(two: World) -> None:
    assert prices(two) == [{"C-1": "1.00"}, {"C-1": "2.00"}]
    assert two.inbox() == ["done", "done"]
    assert two.sql("select * from esl.contests") == []
    for table, column, wanted in (
        ("inventory_levels", "available", [len(HILL), len(VALLEY)]),
        ("variant_details", "unit_price", ["1.00", "2.00"]),
        ("product_versions", "deleted", [False, False]),
    ):
        rows = two.sql(f"select {column} as it from esl.{table} order by source_store_id")
        assert [row["it"] for row in rows] == wanted, table


def test_what_one_changes_or_deletes_leaves_the_other_alone(two: World) -> None:
    tell(two, VALLEY, "3.00", 2)
    assert prices(two) == [{"C-1": "1.00"}, {"C-1": "3.00"}]
    tell(two, HILL, "", 3, gone=True)
    assert prices(two) == [{}, {"C-1": "3.00"}]
    tell(two, VALLEY, "4.00", 4)
    assert prices(two) == [{}, {"C-1": "4.00"}]


def test_a_complete_read_concludes_for_its_own_shop(two: World) -> None:
    assert prices(two) == [{"C-1": "1.00"}, {"C-1": "2.00"}]
    found = read(two, HILL, None, 5)
    assert (found["finished"], found["removed"], found["levels_gone"]) == (True, 1, 1)
    assert prices(two) == [{}, {"C-1": "2.00"}]
    assert two.sql("select source_store_id from esl.inventory_levels where not gone") == [
        {"source_store_id": VALLEY}
    ]
    assert read(two, VALLEY, "2.50", 6)["removed"] == 0
    assert prices(two) == [{}, {"C-1": "2.50"}]
    # An older word on it comes too late for the shop that was read, whatever the other one has.
    tell(two, HILL, "9.00", 4)
    assert prices(two) == [{}, {"C-1": "2.50"}]


def test_a_shop_that_is_forgotten_takes_nothing_of_the_other_along(two: World) -> None:
    prices(two)
    two.sql("update esl.store_mappings set is_active = false where source_store_id = %s", HILL)
    two.sql(
        "insert into esl.redactions (source_system, source_store_id, requested_at, not_before, confirmed_at)"
        " values (%s, %s, now() + interval '3 days', now(), now())", SYSTEM, HILL,
    )  # fmt: skip
    while two.buffer.housekeep(keep_bodies_days=30)["more"]:
        pass
    left = two.sql(
        "select source_store_id from esl.products union all select source_store_id from esl.inventory_levels"
        " union all select source_store_id from esl.webhook_inbox"
    )
    assert left == [{"source_store_id": VALLEY}] * 3
    assert two.prices("S2") == {"C-1": "2.00"}


def test_a_source_that_nobody_has_told_the_buffer_of_works_the_same(world: World) -> None:
    """Somebody's own, in Python alone: its ids are taken for its shops' own."""
    system = "square"
    for shop, store in (("L1", "S1"), ("L2", "S2")):
        world.map(shop, store, source_system=system)
        body = b"{}"
        world.buffer.inbox_add(
            [
                {"source_system": system, "source_store_id": shop, "topic": "catalog.version.updated"}
                | {"webhook_id": "w", "body_base64": b64encode(body).decode(), "state": "ready"}
                | {"body_sha256": sha256(body).hexdigest(), "said_at": datetime.now(UTC).isoformat()}
            ]
        )
    for shop, price in (("L1", "1.00"), ("L2", "2.00")):
        claim, (event,) = world.buffer.inbox_claim(
            run_id="r", shop={"source_system": system, "source_store_id": shop}
        )
        rows = facts(shop, price)
        for row in (row for kind in rows.values() for row in kind):
            row["source_system"] = system
        events = [{"id": event["id"], "state": "done", "reason": None, "product_id": "1"} | version(1)]
        world.buffer.variants_merge(claim_id=claim, events=events, **rows)
    assert prices(world) == [{"C-1": "1.00"}, {"C-1": "2.00"}]
    assert world.inbox() == ["done", "done"]
