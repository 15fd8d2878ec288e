"""What the labels show, event by event: each sentence of the pipeline's semantics, end to end over real HTTP."""

import hashlib
import itertools
import json
import random
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Any
from uuid import uuid4

import pytest
import regex

from esl_pipeline.labels.lengths import LENGTHS, fitted
from esl_pipeline.labels.text import clean
from esl_pipeline.stages.evaluate import due_variants, stage, validate
from esl_pipeline.stages.inbox import read_inbox
from esl_pipeline_tests.shared_data import DATA
from esl_pipeline_tests.world import LOCATION, SHOP, STORE, World, level, product, variant, when

pytestmark = pytest.mark.long

OTHER_SHOP = "other-shop.myshopify.com"
OTHER_STORE = "S2"


# --- what stands on a label


def test_each_variant_becomes_one_label(world: World) -> None:
    world.map(settings={"send_images": True, "image_hosts": ["cdn.example"]})
    images = [{"id": 9, "src": "https://cdn.example/red.png", "variant_ids": [2]}]
    world.settle(
        product(
            1,
            title="T-Shirt",
            variants=[variant(1, "0012", "8.9", title="Blue", sku=None), variant(2, title="Red")],
            image={"src": "https://cdn.example/first.png"},
            images=images,
        )
    )
    assert world.labels() == {
        "0012": {
            "pc": "0012", "pn": "T-Shirt - Blue", "pp": "8.90", "pi": "", "pop": "", "pim": "https://cdn.example/first.png",
        },
        "C-2": {
            "pc": "C-2", "pn": "T-Shirt - Red", "pp": "1.00", "pi": "sku-2", "pop": "", "pim": "https://cdn.example/red.png",
        },
    }  # fmt: skip


def test_unchanged_content_is_not_pushed(world: World) -> None:
    world.map()
    world.settle(product(version=1))
    world.settle(product(version=2), product(version=3))
    assert world.calls() == 1


# --- order of events


def test_events_are_folded_to_the_newest_state_before_anything_else(world: World) -> None:
    world.map()
    world.settle(*[product(version=v, variants=[variant(price=f"{v}.00")]) for v in (2, 5, 1, 4, 3)])
    assert world.shown("C-1") == ["5.00"]
    assert sorted(world.inbox()) == ["done"] + ["superseded"] * 4


def test_f05_a_stale_retry_is_superseded_and_not_pushed(world: World) -> None:
    world.map()
    world.settle(product(version=2, variants=[variant(price="2.00")]))
    world.settle(product(version=1, variants=[variant(price="1.00")]))
    assert world.shown("C-1") == ["2.00"]
    assert world.inbox() == ["done", "superseded"]


@pytest.mark.long
def test_f04_every_order_of_four_versions_ends_in_the_newest(world: World) -> None:
    world.map(settings={"guard_labels": 1_000})
    orders = list(itertools.permutations((1, 2, 3, 4)))
    for step in range(4):
        world.settle(
            *[
                product(n, version=order[step], variants=[variant(n, price=f"{order[step]}.00")])
                for n, order in enumerate(orders, start=1)
            ]
        )
    for n, order in enumerate(orders, start=1):
        newest_so_far = dict.fromkeys(itertools.accumulate(order, max))
        assert world.shown(f"C-{n}") == [f"{v}.00" for v in newest_so_far], order


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("triggers", [(4, 5), (4, 4)])
def test_f06_equal_times_are_decided_by_trigger_time_then_body(
    world: World, triggers: tuple[int, int], order: tuple[int, int], together: bool
) -> None:
    world.map()
    bodies = [product(variants=[variant(price=price)]) for price in ("1.00", "2.00")]
    bodies.sort(key=lambda body: hashlib.sha256(json.dumps(body).encode()).hexdigest())
    for number in order:
        world.send("products/update", bodies[number], at=when(triggers[number]))
        if not together:
            world.settle()
    world.settle()
    wins = bodies[1]["variants"][0]["price"]
    assert world.shown("C-1")[-1] == wins
    assert world.inbox().count("superseded") == (together or order == (1, 0))


def test_f02_the_same_event_under_other_ids_and_topics_is_one_push(world: World) -> None:
    world.map()
    for topic in ("products/create", "products/update", "products/update"):
        world.send(topic, product())
        world.settle()
    assert world.shown("C-1") == ["1.00"]
    assert world.calls() == 1
    assert world.inbox() == ["done", "done"]


def test_f03_create_and_update_at_once_end_in_the_newest(world: World) -> None:
    world.map()
    with ThreadPoolExecutor(2) as pool:
        for number in range(1, 13):
            started = Barrier(2)
            list(pool.map(partial(deliver_and_read, world, number, started), (1, 2)))
    rows = world.sql("select variant_id, price from esl.products order by variant_id::int")
    assert rows == [{"variant_id": str(number), "price": "2.00"} for number in range(1, 13)]
    world.settle()
    assert set(world.prices().values()) == {"2.00"} and len(world.prices()) == 12


def deliver_and_read(world: World, number: int, started: Barrier, version: int) -> None:
    topic = "products/create" if version == 1 else "products/update"
    started.wait()
    world.send(topic, product(number, version, [variant(number, price=f"{version}.00")]))
    read_inbox(world.buffer, run_id=f"run-{version}")


# --- variants and products that go


def test_a_variant_gone_from_variant_gids_is_removed(world: World) -> None:
    world.map()
    world.settle(product(variants=[variant(1), variant(2)]))
    world.settle(product(version=2, variants=[variant(1)]))
    assert list(world.labels()) == ["C-1"]


def test_a_variant_gone_from_a_complete_body_is_removed(world: World) -> None:
    world.map()
    world.settle(product(variants=[variant(1), variant(2)], variant_gids=None))
    world.settle(product(version=2, variants=[variant(1)], variant_gids=None))
    assert list(world.labels()) == ["C-1"]


def test_f30_variants_beyond_100_are_not_removed_when_only_their_ids_are_named(world: World) -> None:
    world.map()
    first = [variant(n) for n in range(1, 101)]
    world.settle(product(variants=first))
    shifted = product(version=2, variants=[variant(n) for n in range(2, 103)])
    world.settle(shifted | {"variants": [variant(n) for n in range(2, 102)]})
    assert set(world.labels()) == {f"C-{n}" for n in range(2, 102)}  # 1 is gone, 102 is known by its id only
    kept = product(version=3, variants=[variant(n) for n in range(2, 104)])
    world.settle(kept | {"variants": [variant(n) for n in range(2, 51)]})
    assert set(world.labels()) == {f"C-{n}" for n in range(2, 102)}
    assert world.buffer.status()["shops"][0]["variants_to_fetch"] == 53


def test_variants_beyond_100_follow_their_product(world: World) -> None:
    world.map(settings={"guard_labels": 1_000})
    first, rest = [variant(n) for n in range(1, 101)], [variant(n) for n in range(101, 104)]
    world.settle(product(variants=rest, variant_gids=None))
    world.settle(product(version=2, title="Pear", variants=first + rest) | {"variants": first})
    assert world.labels()["C-103"]["pn"].startswith("Pear")
    world.settle(product(version=3, status="draft", variants=first + rest) | {"variants": first})
    assert world.labels() == {}
    world.settle(product(version=4, variants=first + rest) | {"variants": first})
    assert len(world.labels()) == 103


def test_a_paused_mapping_that_changed_its_shop_clears_the_old_labels_when_it_is_back(world: World) -> None:
    mapping = world.map()
    world.settle(product(variants=[variant(1)]))
    world.buffer.mapping_update(mapping, {"is_active": False})
    world.buffer.mapping_update(mapping, {"source_store_id": "other.myshopify.com"})
    world.settle()
    assert list(world.labels()) == ["C-1"]
    world.buffer.mapping_update(mapping, {"is_active": True})
    world.settle()
    assert list(world.labels()) == ["C-1"]  # perhaps it is the same shop under another name
    other = {"source_system": "shopify", "source_store_id": "other.myshopify.com"}
    world.buffer.snapshot_begin(snapshot_id=str(uuid4()), shop=other, run_id="r")
    (read,) = world.sql("select id::text from esl.snapshots")
    world.buffer.snapshot_finish(snapshot_id=read["id"], as_of=when(9), counts={})
    world.settle()
    assert world.labels() == {}


def test_a_full_body_without_ids_of_the_rest_removes_nothing(world: World) -> None:
    world.map()
    world.settle(product(variants=[variant(n) for n in range(1, 101)], variant_gids=None))
    world.settle(product(version=2, variants=[variant(n) for n in range(2, 102)], variant_gids=None))
    assert len(world.labels()) == 101


def test_a_variant_that_cannot_be_identified_removes_no_other(world: World) -> None:
    world.map()
    world.settle(product(variants=[variant(1), variant(2)]))
    nameless = variant(2, price="2.00") | {"id": None, "admin_graphql_api_id": None}
    world.settle(product(version=2, variants=[variant(1, price="2.00"), nameless]))
    assert world.prices() == {"C-1": "2.00", "C-2": "1.00"}


def test_f31_a_deleted_product_loses_its_labels_and_no_late_update_revives_it(world: World) -> None:
    world.map()
    world.settle(product(version=1, variants=[variant(1), variant(2)]))
    world.delete(1, version=3)
    world.settle()
    assert world.labels() == {}
    assert world.sandbox.state()["calls"]["del_multiple"] == 1
    world.settle(product(version=2))
    assert world.labels() == {}
    assert world.inbox() == ["done", "done", "superseded"]


def test_f31_an_update_newer_than_the_tombstone_is_allowed(world: World) -> None:
    world.map()
    world.settle(product(version=1))
    world.delete(1, version=2)
    world.settle(product(version=3, variants=[variant(price="3.00")]))
    assert world.prices() == {"C-1": "3.00"}


def test_a_deletion_older_than_the_newest_update_does_nothing(world: World) -> None:
    world.map()
    world.settle(product(version=3))
    world.delete(1, version=2)
    world.settle()
    assert list(world.labels()) == ["C-1"]


@pytest.mark.parametrize("status", ["draft", "archived"])
def test_draft_and_archived_products_lose_their_labels_as_with_a_delete(world: World, status: str) -> None:
    world.map()
    world.settle(product(), product(2, status=status))
    assert list(world.labels()) == ["C-1"]
    world.settle(product(version=2, status=status))
    assert world.labels() == {}
    world.settle(product(version=3))
    assert list(world.labels()) == ["C-1"]


@pytest.mark.parametrize(("status", "warned"), [("unlisted", False), ("paused", True), (None, True)])
def test_other_statuses_flow(world: World, status: str | None, warned: bool) -> None:
    world.map()
    world.settle(product(status=status))
    assert list(world.labels()) == ["C-1"]
    assert world.findings("warning") == ({("1", "status_unknown")} if warned else set())


# --- codes that change


def test_a_changed_barcode_writes_the_new_code_then_deletes_the_old_one(world: World) -> None:
    world.map()
    world.settle(product(variants=[variant(1, "OLD")]))
    world.settle(product(version=2, variants=[variant(1, "NEW")]))
    history = world.sandbox.state()["history"][STORE]
    assert list(world.labels()) == ["NEW"]
    assert history["NEW"][0]["at"] < history["OLD"][1]["at"]
    assert [change["action"] for change in history["OLD"]] == ["create_multiple", "del_multiple"]


def test_the_old_code_stays_until_the_new_one_is_accepted(world: World) -> None:
    world.map()
    world.settle(product(variants=[variant(1, "OLD")]))
    world.sandbox.faults({"kind": "bad_codes", "codes": ["NEW"]})
    world.settle(product(version=2, variants=[variant(1, "NEW")]))
    assert list(world.labels()) == ["OLD"]
    world.sandbox.faults()
    world.buffer.redrive()
    world.settle()
    assert list(world.labels()) == ["NEW"]


@pytest.mark.parametrize("together", [True, False])
def test_two_barcodes_may_be_swapped(world: World, together: bool) -> None:
    world.map()
    world.settle(
        product(1, variants=[variant(1, "A", "1.00")]), product(2, variants=[variant(2, "B", "2.00")])
    )
    first = product(1, version=2, variants=[variant(1, "B", "1.00")])
    second = product(2, version=2, variants=[variant(2, "A", "2.00")])
    world.settle(first, *([second] if together else []))
    if not together:
        assert world.prices() == {"A": "1.00", "B": "2.00"}  # both claim B, so nothing moves
        world.settle(second)
    assert world.prices() == {"A": "2.00", "B": "1.00"}
    assert None not in world.shown("A") + world.shown("B")
    assert world.findings() == set()


def test_a_code_that_was_given_up_may_be_taken_by_another_variant(world: World) -> None:
    world.map()
    world.settle(product(1, variants=[variant(1, "A", "1.00")]))
    world.settle(
        product(1, version=2, variants=[variant(1, "B", "1.00")]),
        product(2, version=2, variants=[variant(2, "A", "2.00")]),
    )
    assert world.prices() == {"A": "2.00", "B": "1.00"}
    assert world.shown("A") == ["1.00", "2.00"]


# --- held back


HELD: dict[str, dict[str, Any]] = {
    "code_missing": {"code": None},
    "code_form": {"code": "two words"},
    "code_zero": {"code": "00000000"},
    "price_missing": {"price": None},
    "price_form": {"price": "-1.00"},
    "price_zero": {"price": "0.00"},
    "price_decimals": {"price": "1.005"},
}


def test_variants_held_back_keep_their_labels_and_recover(world: World) -> None:
    world.map(settings={"guard_labels": 1_000})
    checks = dict(enumerate(HELD, start=1))
    good = [variant(n) for n in (*checks, 99)]
    world.settle(product(variants=good))
    bad = [variant(n, **HELD[check]) for n, check in checks.items()]
    world.settle(product(version=2, variants=[*bad, variant(99, price="2.00")]))
    assert world.findings() == {(str(n), check) for n, check in checks.items()}
    assert world.prices() == {f"C-{n}": "1.00" for n in checks} | {"C-99": "2.00"}
    world.settle(product(version=3, variants=[variant(n, price="3.00") for n in (*checks, 99)]))
    assert set(world.prices().values()) == {"3.00"}
    assert world.findings() == set()


def test_products_without_a_usable_title_keep_their_labels(world: World) -> None:
    world.map()
    titles = {1: None, 2: "", 3: "\u202e \x01", 4: "a\x00b"}
    world.settle(*[product(n) for n in titles])
    world.settle(*[product(n, 2, [variant(n, price="2.00")], title=title) for n, title in titles.items()])
    assert set(world.prices().values()) == {"1.00"}
    missing = {(str(n), "title_missing") for n in (1, 2, 3)}
    assert world.findings() == missing | {("4", "title_unreadable")}


def test_a_held_variant_that_is_removed_loses_its_label(world: World) -> None:
    world.map()
    world.settle(product(variants=[variant(1), variant(2)]))
    world.settle(product(version=2, variants=[variant(1, price=None), variant(2)]))
    world.settle(product(version=3, variants=[variant(2)]))
    assert list(world.labels()) == ["C-2"]


def test_a_held_variant_that_comes_back_with_another_code_moves_its_label(world: World) -> None:
    world.map()
    world.settle(product(variants=[variant(1, "OLD")]))
    world.settle(product(version=2, variants=[variant(1, None)]))
    world.settle(product(version=3, variants=[variant(1, "NEW")]))
    assert list(world.labels()) == ["NEW"]


def test_two_variants_with_one_code_are_both_held_back_until_one_changes(world: World) -> None:
    world.map()
    world.settle(product(1, variants=[variant(1, "A", "1.00")]))
    world.settle(product(2, variants=[variant(2, "A", "2.00")]))
    world.settle(product(1, version=2, variants=[variant(1, "A", "9.00")]))
    assert world.prices() == {"A": "1.00"}
    assert world.findings() == {("1", "duplicate_code"), ("2", "duplicate_code")}
    world.settle(product(2, version=2, variants=[variant(2, "B", "2.00")]))
    assert world.prices() == {"A": "9.00", "B": "2.00"}
    assert world.findings() == set()


@pytest.mark.parametrize("leaves", ["deleted", "draft", "cleared"])
def test_a_duplicate_ends_when_one_of_the_two_leaves(world: World, leaves: str) -> None:
    world.map()
    world.settle(product(1, variants=[variant(1, "A", "1.00"), variant(2, "A", "2.00")]), product(3))
    assert list(world.labels()) == ["C-3"]
    last = {
        "deleted": product(1, version=2, variants=[variant(1, "A", "1.00")]),
        "draft": product(1, version=2, status="draft", variants=[variant(2, "A", "2.00")]),
        "cleared": product(1, version=2, variants=[variant(1, "A", "1.00"), variant(2, None, "2.00")]),
    }[leaves]
    world.settle(last)
    assert world.prices().get("A") == (None if leaves == "draft" else "1.00")
    assert "duplicate_code" not in {check for _, check in world.findings()}


def test_a_label_that_an_equal_variant_took_over_is_kept_when_that_is_held_back(world: World) -> None:
    """A product is deleted and made again, alike to the letter: nothing to push, but the label has a new owner."""
    world.map()
    world.settle(product(1, title="Apple", variants=[variant(1, "A", sku="x")]))
    world.delete(1, version=2)
    world.settle(product(2, version=3, title="Apple", variants=[variant(2, "A", sku="x")]))
    assert world.calls() == 1
    world.settle(product(2, version=4, title="Apple", variants=[variant(2, "A", None, sku="x")]))
    assert world.prices() == {"A": "1.00"}
    world.delete(2, version=5)
    world.settle()
    assert world.labels() == {}


# --- stock


def test_stock_reaches_the_label_only_by_the_stores_policy(world: World) -> None:
    world.map()
    world.map(store=OTHER_STORE, settings={"stock_field": "kc", "location_id": str(LOCATION)})
    world.settle(product())
    world.stock(level(available=5, version=2), level(available=90, version=2, location=78))
    world.settle()
    assert world.labels(STORE)["C-1"].get("kc") is None
    assert world.labels(OTHER_STORE)["C-1"]["kc"] == "5"
    assert [len(world.shown("C-1", store)) for store in (STORE, OTHER_STORE)] == [1, 2]


def test_stock_may_arrive_before_its_product_and_out_of_order(world: World) -> None:
    world.map(settings={"stock_field": "qty", "location_id": str(LOCATION)})
    world.stock(level(available=3, version=3))
    world.settle()
    world.stock(level(available=9, version=2))
    world.settle(product())
    assert world.labels()["C-1"]["qty"] == "3"
    assert world.inbox() == ["done", "superseded", "done"]
    world.stock(level(available=None, version=4))
    world.settle()
    assert world.labels()["C-1"].get("qty", "") == ""


# --- store mappings


def test_a_shop_without_a_mapping_waits_for_it(world: World) -> None:
    world.map(OTHER_SHOP, OTHER_STORE)
    world.settle(product())
    assert world.inbox() == ["ready"]
    world.map()
    world.settle()
    assert list(world.labels()) == ["C-1"]


def test_f35_a_deactivated_mapping_stops_pushes_at_once_and_catches_up_later(world: World) -> None:
    mapping = world.map()
    world.settle(product(1), product(2))
    world.sandbox.faults({"kind": "status", "status": 503})
    world.update(product(1, version=2, variants=[variant(1, price="2.00")]))
    world.round()
    world.sandbox.faults()
    world.buffer.mapping_update(mapping, {"is_active": False})
    before = world.calls()
    world.delete(2, version=2)
    world.settle(product(1, version=3, variants=[variant(1, price="3.00")]))
    assert world.calls() == before
    assert world.prices() == {"C-1": "1.00", "C-2": "1.00"}
    world.buffer.mapping_update(mapping, {"is_active": True})
    world.settle()
    assert world.prices() == {"C-1": "3.00"}


def test_a_changed_store_code_moves_the_labels(world: World) -> None:
    mapping = world.map()
    world.settle(product(1), product(2))
    world.buffer.mapping_update(mapping, {"hipoink_store_code": OTHER_STORE})
    world.settle(product(1, version=2, variants=[variant(1, price="2.00")]))
    assert (world.prices(STORE), world.prices(OTHER_STORE)) == ({}, {"C-1": "2.00", "C-2": "1.00"})


def test_f35_pushes_that_wait_do_not_go_to_a_store_that_the_mapping_has_left(world: World) -> None:
    mapping = world.map()
    world.sandbox.faults({"kind": "status", "status": 503, "times": 1})
    world.update(product())
    world.round(initial_delay=60, max_delay=60)
    world.buffer.mapping_update(mapping, {"hipoink_store_code": OTHER_STORE})
    world.settle()
    assert world.shown("C-1", STORE) == []
    assert list(world.labels(OTHER_STORE)) == ["C-1"]


def test_a_changed_policy_is_enough_to_change_labels(world: World) -> None:
    mapping = world.map()
    world.settle(product(variants=[variant(price="100.00")]))
    world.buffer.mapping_update(mapping, {"settings": {"expected_currency": "JPY"}})
    world.settle()
    assert [row["label"]["pp"] for row in world.sql("select label from esl.hipoink_products")] == ["100"]


def test_a_mapping_with_impossible_settings_leaves_its_labels_and_stops_no_other(world: World) -> None:
    mapping = world.map()
    world.map(store=OTHER_STORE)
    world.settle(product())
    world.buffer.mapping_update(mapping, {"settings": {"expected_currency": "EURO"}})
    world.settle(product(version=2, variants=[variant(price="2.00")]))
    assert (world.prices(STORE), world.prices(OTHER_STORE)) == ({"C-1": "1.00"}, {"C-1": "2.00"})


def test_one_shop_may_feed_two_stores(world: World) -> None:
    world.map()
    second = world.map(store=OTHER_STORE)
    world.settle(product())
    assert world.prices(STORE) == world.prices(OTHER_STORE) == {"C-1": "1.00"}
    world.buffer.mapping_update(second, {"is_active": False})
    world.delete(1, version=2)
    world.settle()
    assert (world.labels(STORE), list(world.labels(OTHER_STORE))) == ({}, ["C-1"])


def test_two_shops_that_claim_one_code_in_one_store_are_held_back(world: World) -> None:
    world.map()
    world.map(OTHER_SHOP)
    world.settle(product(1, variants=[variant(1, "A", "1.00")]))
    world.update(product(2, variants=[variant(2, "A", "2.00")]), shop=OTHER_SHOP)
    world.settle()
    assert world.prices() == {"A": "1.00"}
    assert [finding["check_name"] for finding in world.buffer.findings()] == ["duplicate_code"] * 2
    world.update(product(2, version=2, variants=[variant(2, "B", "2.00")]), shop=OTHER_SHOP)
    world.settle()
    assert world.prices() == {"A": "1.00", "B": "2.00"}
    assert world.findings() == set()


def test_a_shop_whose_mapping_is_deactivated_no_longer_collides(world: World) -> None:
    world.map()
    rival = world.map(OTHER_SHOP)
    world.settle(product(1, variants=[variant(1, "A", "1.00")]))
    world.update(product(2, variants=[variant(2, "A", "2.00")]), shop=OTHER_SHOP)
    world.settle(product(1, version=2, variants=[variant(1, "A", "3.00")]))
    assert world.prices() == {"A": "1.00"}
    world.buffer.mapping_update(rival, {"is_active": False})
    world.settle()
    assert world.prices() == {"A": "3.00"}
    world.buffer.mapping_update(rival, {"is_active": True})
    world.settle(product(1, version=3, variants=[variant(1, "A", "4.00")]))
    assert world.prices() == {"A": "3.00"}


def test_shops_with_equal_codes_do_not_touch_each_other(world: World) -> None:
    world.map()
    world.map(OTHER_SHOP, OTHER_STORE)
    for number, shop in enumerate((SHOP, OTHER_SHOP), 1):
        world.update(product(number, variants=[variant(number, "C-1", f"{number}.00")]), shop=shop)
    world.settle()
    assert (world.prices(STORE), world.prices(OTHER_STORE)) == ({"C-1": "1.00"}, {"C-1": "2.00"})
    world.delete(2, version=2, shop=OTHER_SHOP)
    world.settle()
    assert (world.prices(STORE), world.prices(OTHER_STORE)) == ({"C-1": "1.00"}, {})


# --- whatever a body holds


NAUGHTY = DATA / "security" / "blns.json"


@pytest.mark.long
@pytest.mark.shared_data("data/security/blns.json")
def test_f28_naughty_titles_are_stored_as_they_are_and_cut_between_characters(world: World) -> None:
    world.map(settings={"title_max_length": 7, "emoji": "keep"})
    titles = dict(enumerate(json.loads(NAUGHTY.read_text(encoding="utf-8")), start=1))
    world.settle(*[product(number, title=title) for number, title in titles.items()], batch_size=1000)
    stored = {int(row["variant_id"]): row["title"] for row in world.sql("select * from esl.products")}
    assert stored == {number: fitted(title, LENGTHS["title"]) or None for number, title in titles.items()}
    labels = world.labels()
    assert len(labels) > 400
    for code, label in labels.items():
        characters = regex.findall(r"\X", clean(stored[int(code.removeprefix("C-"))]))
        assert label["pn"] == "".join(characters[:7]).rstrip()


# Longer than what an index row of Postgres takes, even compressed.
LONG_NUMBER = str(random.Random(1).getrandbits(13_900))
NESTED: list[Any] = []
for _ in range(500):
    NESTED = [NESTED]

ODD: dict[str, dict[str, Any]] = {
    "price as a number": {"price": 1.5},
    "price as an object": {"price": {"amount": "1.00"}},
    "barcode as a number": {"barcode": 4006381333931},
    "id as text": {"id": "1"},
    "id as a fraction": {"id": 1.5, "admin_graphql_api_id": None},
    "gid of 4,200 digits": {"admin_graphql_api_id": f"gid://shopify/ProductVariant/{LONG_NUMBER}"},
    "item of 4,200 digits": {"inventory_item_id": LONG_NUMBER},
    "sku of a megabyte": {"sku": "x" * 1_000_000},
    "a text nested 500 deep": {"sku": NESTED},
    "null characters": {"sku": "a\x00b", "title": "\x00"},
    "half a surrogate pair, escaped": {"sku": "\\ud800"},
}


def test_odd_variants_hold_up_no_other(world: World) -> None:
    world.map()
    world.settle(
        *[product(n, variants=[variant(n) | odd]) for n, odd in enumerate(ODD.values(), 1)], product(99)
    )
    assert "C-99" in world.labels()
    assert set(world.inbox()) == {"done"}
    assert world.sql("select from esl.products where due") == []


def test_a_code_taken_over_before_its_owner_goes_leaves_no_old_label(world: World) -> None:
    world.map()
    world.settle(product(1, variants=[variant(1, "GONE")]), product(2, variants=[variant(2, "OLD")]))
    world.settle(product(2, version=2, variants=[variant(2, "GONE")]))
    assert set(world.labels()) == {"GONE", "OLD"}  # two variants share a code: both labels stay
    world.delete(1, version=3)
    world.settle()
    assert set(world.labels()) == {"GONE"}


def test_a_code_lost_on_its_way_keeps_the_old_label(world: World) -> None:
    world.map()
    world.settle(product(1, variants=[variant(1, "OLD")]))
    world.update(product(1, version=2, variants=[variant(1, "NEW")]))
    read_inbox(world.buffer, run_id="r")
    variants, mappings = due_variants(world.buffer)
    stage(world.buffer, variants, validate(variants, mappings))  # queued: NEW, and OLD's removal after it
    world.update(product(2, version=2, variants=[variant(2, "NEW")]))
    world.settle()
    assert set(world.labels()) == {"OLD"}
