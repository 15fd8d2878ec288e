"""Old signed bodies sent again, with another id, topic, time or shop; and shops that leave, with all that is theirs."""

import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from rich.console import Console
from starlette.datastructures import Headers

from esl_pipeline.commands.status import print_status
from esl_pipeline.sources.shopify.deliveries import delivery
from esl_pipeline.stages.redactions import judge_redactions
from esl_pipeline_tests.world import SHOP, World, level, product, variant, when

pytestmark = pytest.mark.long

OTHER_SHOP = "other-shop.myshopify.com"
OTHER_STORE = "S2"


def kept(
    world: World, topic: str, body: Any, *, shop: str = SHOP, id: str = "w", at: str | None = None
) -> int:
    """Deliver as the receiver does, whatever becomes of it; 1 when it made (or revived) a row."""
    headers = {
        "x-shopify-topic": topic,
        "x-shopify-shop-domain": shop,
        "x-shopify-webhook-id": id,
        "x-shopify-triggered-at": at or datetime.now(UTC).isoformat(),
    }
    raw = json.dumps(body).encode()
    return int(
        world.buffer.inbox_add([delivery(topic, Headers(headers), raw, datetime.now(UTC))])["inserted"]
    )


def states(world: World) -> list[tuple[str, str | None]]:
    return [(r["state"], r["reason"]) for r in world.sql("select * from esl.webhook_inbox order by id")]


def counted(world: World) -> dict[str, int]:
    return {shop["source_store_id"]: shop["replays"] for shop in world.buffer.status()["shops"]}


def test_f23_same_headers_again(world: World) -> None:
    world.map()
    old, new = product(1, 1), product(1, 2, [variant(1, price="2.00")])
    assert [
        kept(world, "products/update", body, id=id) for id, body in zip("01", (old, new), strict=True)
    ] == [1, 1]
    world.settle()
    assert kept(world, "products/update", old, id="0") == 0
    world.settle()
    assert world.shown("C-1") == ["2.00"]
    assert counted(world) == {SHOP: 0}


def test_f23_new_webhook_id(world: World) -> None:
    world.map()
    old = product(1, 1)
    world.settle(old)
    world.settle(product(1, 2, [variant(1, price="2.00")]))
    assert kept(world, "products/update", old, id="new", at=when(1)) == 0
    # The same old content, at another time (which nobody has signed) or in other bytes: its version is old.
    assert kept(world, "products/update", old, id="newer") == 1
    assert kept(world, "products/update", old | {"new_field": 1}, id="newest") == 1
    world.settle()
    assert world.inbox() == ["done", "done", "superseded", "superseded"]
    assert world.shown("C-1") == ["1.00", "2.00"]


def test_f23_other_topic(world: World) -> None:
    world.map()
    old = product(1, 1)
    world.settle(old, product(1, 2, [variant(1, price="2.00")]))
    assert kept(world, "products/create", old, id="new") == 1
    assert kept(world, "products/delete", old, id="newer") == 1
    assert kept(world, "inventory_levels/update", old, id="newest") == 1
    world.settle()
    assert world.shown("C-1") == ["2.00"]
    assert world.inbox()[2:] == ["superseded", "unusable", "unusable"]
    assert counted(world) == {SHOP: 2}


def test_f23_other_shop(world: World) -> None:
    world.map()
    world.map(OTHER_SHOP, OTHER_STORE)
    body, stock = product(1), level(1)
    world.update(body)
    world.stock(stock)
    world.settle()
    for id, (topic, replayed) in enumerate(
        [("products/update", body), ("products/delete", {"id": 1}), ("inventory_levels/update", stock)]
    ):
        assert kept(world, topic, replayed, shop=OTHER_SHOP, id=str(id)) == 1
    genuine = product(2)
    world.update(genuine, shop=OTHER_SHOP)
    world.settle()
    assert (world.prices(), world.prices(OTHER_STORE)) == ({"C-1": "1.00"}, {"C-2": "1.00"})
    claimed = f"replay suspected: %s is known as shop {SHOP}'s"
    assert states(world)[2:] == [
        ("unusable", claimed % "product 1"),
        ("unusable", claimed % "product 1"),
        ("unusable", claimed % "inventory item 10001"),
        ("done", None),
    ]
    for table in ("products", "product_versions", "inventory_levels"):
        rows = world.sql(f"select * from esl.{table} where source_store_id = %s", OTHER_SHOP)
        assert len(rows) == (table != "inventory_levels"), table
    assert counted(world) == {SHOP: 0, OTHER_SHOP: 3}
    shown = Console(file=io.StringIO(), record=True, width=200)
    print_status(shown, world.buffer.status())
    assert f"{OTHER_SHOP}: 3 deliveries are suspected replays and were not used" in shown.export_text()


def test_f23_other_shop_in_the_same_batch_and_before_the_real_one_is_known(world: World) -> None:
    world.map()
    world.map(OTHER_SHOP, OTHER_STORE)
    body = product(1)
    world.update(body)
    world.update(body, shop=OTHER_SHOP)
    done = world.round()
    assert [(event["shop"].partition(":")[2], event["outcome"]) for event in done.events] == [
        (SHOP, "done"),
        (OTHER_SHOP, "unusable"),
    ]
    world.settle()
    assert (world.prices(), world.prices(OTHER_STORE)) == ({"C-1": "1.00"}, {})


def test_f23_equal_numbers_of_a_product_and_an_item_are_no_replay(world: World) -> None:
    world.map()
    world.map(OTHER_SHOP, OTHER_STORE)
    world.update(product(10_002))
    world.settle()
    world.update(product(2, variants=[variant(2)]), shop=OTHER_SHOP)
    world.send("inventory_levels/update", level(2), shop=OTHER_SHOP)
    world.send("inventory_levels/update", level(10_002), shop=OTHER_SHOP)
    world.settle()
    assert list(world.prices(OTHER_STORE)) == ["C-2"]
    assert counted(world) == {SHOP: 0, OTHER_SHOP: 0 + (level(10_002)["inventory_item_id"] == 20_002)}


def test_f23_what_the_admin_api_says_of_a_shop_stands_above_who_came_first(world: World) -> None:
    """A replay that came first does not keep the real shop out for ever: a read of the shop settles it."""
    world.map()
    world.map(OTHER_SHOP, OTHER_STORE)
    world.update(product(1), shop=OTHER_SHOP)
    world.settle()
    world.settle(product(1, 2))
    assert states(world)[1][0] == "unusable"
    # A read of the whole shop comes without events.
    rows = world.sql("select to_jsonb(v) as v from esl.product_versions v")
    own = rows[0]["v"] | {"source_store_id": SHOP, "variant_ids": ["1"], "event_ids": []}
    world.buffer.variants_merge(claim_id=None, products=[own], variants=[], levels=[], events=[])
    world.settle(product(1, 3, [variant(1, price="3.00")]))
    assert world.prices() == {"C-1": "3.00"}


def test_f23_a_shop_that_is_renamed_keeps_its_products(world: World) -> None:
    mapping = world.map()
    world.settle(product(1))
    world.buffer.mapping_update(mapping, {"source_store_id": OTHER_SHOP})
    world.update(product(1, 2, [variant(1, price="2.00")]), shop=OTHER_SHOP)
    world.settle()
    assert world.prices() == {"C-1": "2.00"}


@pytest.mark.parametrize("id", ["w", "other"])
def test_f23_a_copy_with_a_bad_time_does_not_stand_in_the_way_of_the_good_one(world: World, id: str) -> None:
    world.map()
    body = product(1)
    assert kept(world, "products/update", body, at="2020-01-01T00:00:00Z") == 1
    assert kept(world, "products/update", body, at="2020-01-01T00:00:00Z") == 0
    world.settle()
    assert (world.inbox(), world.prices(), counted(world)) == (["unusable"], {}, {SHOP: 1})
    assert kept(world, "products/update", body, id=id) == 1
    assert kept(world, "products/update", body, id=id) == 0
    world.settle()
    # Under its id the good one takes its place, else it has one of its own.
    bad = ["unusable"] if id == "other" else []
    assert (world.inbox(), world.prices(), counted(world)) == (
        [*bad, "done"],
        {"C-1": "1.00"},
        {SHOP: len(bad)},
    )
    # And a bad copy after it is a duplicate.
    assert kept(world, "products/update", body, at="2020-01-01T00:00:00Z", id="late") == 0


# Shops that leave


def left(shop: str = SHOP) -> dict[str, Any]:
    return {"shop_id": 1, "shop_domain": shop}


def goodbye(at: datetime | None = None, shop: str = SHOP) -> dict[str, Any]:
    """The body of app/uninstalled, of this time."""
    said_at = (at or datetime.now(UTC)).isoformat(timespec="seconds")
    return {"id": 1, "email": "x", "myshopify_domain": shop, "updated_at": said_at}


def active(world: World) -> dict[str, bool]:
    return {m["hipoink_store_code"]: m["is_active"] for m in world.buffer.mapping_list()}


def two_days_later(world: World) -> None:
    """For orders to erase: they wait that long, whatever is known (see test_s39)."""
    world.sql("update esl.redactions set not_before = now()")


def keep_house(world: World, token_works: bool | None = False, **options: Any) -> dict[str, Any]:
    """What the housekeeping run does about shops that have left, once their orders have waited."""
    two_days_later(world)
    judged = judge_redactions(world.buffer, lambda _shop: token_works)
    while world.buffer.housekeep(keep_bodies_days=30, **options)["more"]:
        pass
    return judged


def shown_status(world: World) -> str:
    shown = Console(file=io.StringIO(), record=True, width=200)
    print_status(shown, world.buffer.status())
    return shown.export_text()


def test_s11_uninstalling_stops_pushes_at_once(world: World) -> None:
    world.map()
    world.map(store="S3")
    world.map(OTHER_SHOP, OTHER_STORE)
    world.settle(product(1))
    body = goodbye()
    assert kept(world, "app/uninstalled", body) == 1
    before = world.calls()
    world.update(product(1, 2, [variant(1, price="2.00")]))
    world.update(product(2), shop=OTHER_SHOP)
    world.settle()
    assert world.calls() == before + 1  # the other shop's
    assert active(world) == {"S1": False, "S3": False, OTHER_STORE: True}
    # A replay after the shop has come back does not stop it again.
    for mapping in world.buffer.mapping_list():
        world.buffer.mapping_update(mapping["id"], {"is_active": True})
    world.sql("update esl.store_mappings set activated_at = activated_at + interval '1 s'")
    assert kept(world, "app/uninstalled", body, id="replay") == 1
    world.settle()
    assert world.prices() == {"C-1": "2.00"}
    assert active(world) == {"S1": True, "S3": True, OTHER_STORE: True}


def test_field_13_uninstalling_that_comes_late_is_void(world: World) -> None:
    """Triggered 40 s before the shop's newest webhook, which is not even read yet."""
    world.map()
    world.settle(product(1, 1))
    newest = datetime.now(UTC)
    world.update(product(1, 2, [variant(1, price="2.00")]) | {"updated_at": newest.isoformat()})
    world.sql("update esl.store_mappings set activated_at = activated_at - interval '1 h'")
    assert kept(world, "app/uninstalled", goodbye(newest - timedelta(seconds=40))) == 1
    world.settle()
    assert (active(world), world.prices()) == ({"S1": True}, {"C-1": "2.00"})
    state, reason = states(world)[-1]
    assert state == "superseded" and str(reason).startswith("void: ")
    assert f"{newest:%Y-%m-%d %H:%M:%S}Z" in str(reason)  # what the shop has said since
    # A read of the whole shop says as well that it is there.
    world.sql(
        "insert into esl.snapshots (id, source_system, source_store_id, state, as_of)"
        " values (gen_random_uuid(), 'shopify', %s, 'finished', now() + interval '1 min')",
        SHOP,
    )
    assert kept(world, "app/uninstalled", goodbye(newest + timedelta(seconds=5)), id="later") == 1
    assert active(world) == {"S1": True}


def test_field_13_uninstalling_of_before_the_last_activation_is_void_and_a_second_one_counts(
    world: World,
) -> None:
    mapping = world.map()
    first = goodbye()
    assert kept(world, "app/uninstalled", first) == 1
    assert active(world) == {"S1": False}
    world.buffer.mapping_update(mapping, {"is_active": True})
    world.sql("update esl.store_mappings set activated_at = now() + interval '2 s'")
    assert kept(world, "app/uninstalled", first, id="again") == 1
    assert active(world) == {"S1": True}
    assert [state for state, _ in states(world)] == ["done", "superseded"]
    assert "was activated at" in str(states(world)[1][1])
    assert kept(world, "app/uninstalled", goodbye(datetime.now(UTC) + timedelta(seconds=3)), id="second") == 1
    assert active(world) == {"S1": False}


def test_field_13_uninstalling_of_before_the_shop_was_connected_anew_is_void(world: World) -> None:
    """Installed anew and connected at once, while the message was still on its way: its subscriptions are new ones."""
    world.map()
    shop = {"source_system": "shopify", "source_store_id": SHOP}
    world.buffer.connection_set(shop, "api", "anna")
    world.sql("update esl.store_mappings set activated_at = activated_at - interval '1 h'")
    late, later = (datetime.now(UTC) + timedelta(seconds=s) for s in (-40, 3))
    assert kept(world, "app/uninstalled", goodbye(late)) == 1
    assert active(world) == {"S1": True}
    assert "the shop was connected at" in str(states(world)[0][1])
    assert world.buffer.connection_list()[0]["subscriptions"] == "api"
    assert kept(world, "app/uninstalled", goodbye(later), id="later") == 1
    assert active(world) == {"S1": False}
    assert world.buffer.connection_list()[0]["subscriptions"] is None


def test_field_13_what_a_message_switched_off_is_told_until_somebody_decides(world: World) -> None:
    mapping = world.map()
    at = datetime.now(UTC)
    kept(world, "app/uninstalled", goodbye(at))
    (store,) = world.buffer.status()["stores"]
    assert store["switched_off"] == f"app/uninstalled of {at:%Y-%m-%d %H:%M:%S}Z"
    assert f"store S1: switched off by {store['switched_off']}" in shown_status(world)
    assert "set by app/uninstalled; nothing is pushed" in shown_status(world)
    (change, _) = world.buffer.mapping_history()
    assert (change["by"], change["new"]["is_active"]) == ("app/uninstalled", False)
    for word in (True, False):
        world.sql("update esl.store_mappings set switched_off = 'x'")
        world.buffer.mapping_update(mapping, {"is_dry_run": word})
        assert world.buffer.status()["stores"][0]["switched_off"] == "x"
        world.buffer.mapping_update(mapping, {"is_active": word})
        assert world.buffer.status()["stores"][0]["switched_off"] is None


def erased(world: World) -> bool:
    """Whether nothing is left of the shop's products."""
    return world.sql("select from esl.products where source_store_id = %s", SHOP) == []


REDACTIONS: dict[str, tuple[bool | None, bool, str | None]] = {
    "all says that it has left": (False, True, None),
    "its token works": (True, False, "still takes our Admin token"),
    "its token cannot be tried now": (None, False, None),
    "it is active": (False, False, "has said something"),
    "it is active, and was silent for a week": (False, False, None),
    "it was activated after it": (False, False, "activated after"),
    "it was connected after it": (False, False, "connected after"),
    "it has said something since": (False, False, "has said something"),
    "nobody uninstalled, it spoke yesterday": (False, False, "has said something"),
    "nobody uninstalled, it spoke last week": (False, True, None),
}


@pytest.mark.parametrize("case", REDACTIONS)
def test_field_13_a_shop_is_erased_only_when_all_says_that_it_has_left(world: World, case: str) -> None:
    token_works, goes, words = REDACTIONS[case]
    mapping = world.map()
    world.settle(product(1))
    if case.endswith("week"):
        world.sql("update esl.webhook_inbox set said_at = said_at - interval '7 d'")
    if case.startswith("nobody"):
        world.buffer.mapping_update(mapping, {"is_active": False})
    elif not case.startswith("it is active"):
        kept(world, "app/uninstalled", goodbye())
    assert kept(world, "shop/redact", left()) == 1
    if case == "it was activated after it":
        world.buffer.mapping_update(mapping, {"is_active": True})
        world.buffer.mapping_update(mapping, {"is_active": False})
    if case == "it was connected after it":
        world.buffer.connection_set({"source_system": "shopify", "source_store_id": SHOP}, "api", "a test")
    if case == "it has said something since":
        said = datetime.now(UTC) + timedelta(seconds=2)
        world.update(product(2) | {"updated_at": said.isoformat()})
    judged = keep_house(world, token_works)
    assert erased(world) is goes
    assert judged["confirmed"] == goes
    (row,) = world.sql("select * from esl.webhook_inbox where topic = 'shop/redact'")
    assert (row["state"] == "superseded") is (words is not None)
    assert words is None or words in row["reason"]
    (order,) = world.sql("select * from esl.redactions")
    assert (order["finished_at"] is not None) is (goes or words is not None)
    if (
        case.startswith("it is active") and words is None
    ):  # its order waits: a person may find that it has left
        world.buffer.mapping_update(mapping, {"is_active": False})
        keep_house(world)
        assert erased(world)


def test_field_13_a_shop_that_comes_back_while_it_is_erased_stays(world: World) -> None:
    mapping = world.map()
    world.settle(product(1), product(2))
    kept(world, "app/uninstalled", goodbye())
    kept(world, "shop/redact", left())
    two_days_later(world)
    judge_redactions(world.buffer, lambda _shop: False)
    world.buffer.mapping_update(mapping, {"is_active": True})
    done = world.buffer.housekeep(keep_bodies_days=30)
    assert (done["redacted"], done["more"]) == (0, False)
    keep_house(world)
    (order,) = world.sql("select void from esl.redactions")
    assert "activated after" in order["void"] and not erased(world)


KEPT_TABLES = {
    "store_mappings",
    "mapping_changes",
    "hipoink_products",
    "price_history",
    "sync_log",
    "labels",
    "redactions",
}


def rows_of(world: World, shop: str, mapping: str) -> dict[str, int]:
    """Rows per table that name the shop or its mapping, where there are any."""
    found = {}
    columns = world.sql(
        "select table_name, array_agg(column_name::text) as names from information_schema.columns"
        " where table_schema = 'esl' group by 1"
    )
    for table in columns:
        if "source_store_id" in table["names"]:
            where, value = "source_store_id = %s", shop
        elif "mapping_id" in table["names"]:
            where, value = "mapping_id::text = %s", mapping
        else:
            continue
        (row,) = world.sql(f"select count(*) as n from esl.{table['table_name']} where {where}", value)
        if row["n"]:
            found[table["table_name"]] = row["n"]
    return found


def test_s11_redacting_deletes_the_shops_rows_and_nobody_elses(world: World) -> None:
    mine, theirs = world.map(), world.map(OTHER_SHOP, OTHER_STORE)
    everything = {}
    for shop, numbers in ((SHOP, range(1, 8)), (OTHER_SHOP, range(11, 18))):
        world.update(*(product(n) for n in numbers), shop=shop)
        world.update(product(numbers[-1] + 100, variants=[variant(numbers[0] + 100, None)]), shop=shop)
        world.send("inventory_levels/update", level(numbers[0]), shop=shop)
    world.settle()
    for shop in (SHOP, OTHER_SHOP):
        world.buffer.watermark_move(
            shop={"source_system": "shopify", "source_store_id": shop}, source="updated_at", at=when(1)
        )
        world.buffer.snapshot_begin(
            snapshot_id=str(uuid4()),
            shop={"source_system": "shopify", "source_store_id": shop},
            run_id="r",
        )
    everything = rows_of(world, OTHER_SHOP, theirs)
    assert {"webhook_inbox", "products", "findings", "labels", "hipoink_products", "snapshots"} <= set(
        everything
    )
    assert rows_of(world, SHOP, mine) == everything

    assert kept(world, "app/uninstalled", goodbye()) == 1
    assert kept(world, "shop/redact", left()) == 1
    world.update(product(1, 9))  # a late one, while it waits
    two_days_later(world)
    assert judge_redactions(world.buffer, lambda _shop: False) == {"confirmed": 1, "void": 0, "undecided": 0}
    removed, calls = 0, 0
    while (done := world.buffer.housekeep(keep_bodies_days=30, limit=3))["more"] or not calls:
        removed, calls = removed + done["redacted"], calls + 1
    assert calls > 3
    found = rows_of(world, SHOP, mine)
    assert set(found) == KEPT_TABLES | {"webhook_inbox"}
    # The two that ended the relation, without their bodies.
    assert found["webhook_inbox"] == 2
    bodies = world.sql("select body from esl.webhook_inbox where source_store_id = %s", SHOP)
    assert bodies == [{"body": None}] * 2
    assert {name: found[name] for name in ("hipoink_products", "sync_log", "price_history")} == {
        name: everything[name] for name in ("hipoink_products", "sync_log", "price_history")
    }
    hanging = world.sql(
        "select state, code, label, label_hash from esl.labels where mapping_id::text = %s", mine
    )
    assert hanging == [{"state": "withdrawn", "code": None, "label": None, "label_hash": None}] * 7
    assert rows_of(world, OTHER_SHOP, theirs) == everything
    (redaction,) = world.sql("select * from esl.redactions")
    assert redaction["finished_at"] is not None and redaction["removed"] == removed

    # The body of every redaction is the same: after the shop has come back it is an order that must be judged anew.
    world.buffer.mapping_update(mine, {"is_active": True})
    assert kept(world, "shop/redact", left(), id="replay") == 1
    keep_house(world)
    assert world.sql("select finished_at from esl.redactions order by id")[1]["finished_at"] is None
    assert kept(world, "shop/redact", left(), id="replay") == 0


def test_s11_a_redaction_of_a_shop_that_was_never_mapped_deletes_its_waiting_bodies(world: World) -> None:
    world.update(product(1))
    assert kept(world, "shop/redact", left()) == 1
    keep_house(world)
    assert len(world.inbox()) == 2  # it spoke three hours ago
    world.sql("update esl.webhook_inbox set said_at = said_at - interval '2 d'")
    assert kept(world, "shop/redact", left(), id="again") == 1
    keep_house(world)
    assert {row["topic"] for row in world.sql("select topic from esl.webhook_inbox")} == {"shop/redact"}


# How long bodies are kept


def test_s12_bodies_of_finished_deliveries_go_and_their_hashes_stay(world: World) -> None:
    world.map()
    body, waiting = product(1), product(2)
    world.settle(body)
    kept(world, "products/update", {"id": 3}, id="unusable")
    world.update(waiting, shop=OTHER_SHOP)  # not mapped: it waits
    world.sql("update esl.webhook_inbox set finished_at = finished_at - interval '31 d'")
    world.settle(product(4))
    one = {"bodies": 1, "deliveries": 0, "unmapped": 0, "redacted": 0, "passes": 0, "reach": 0}
    assert world.buffer.housekeep(keep_bodies_days=30, limit=1) == one | {"more": True}
    assert world.buffer.housekeep(keep_bodies_days=30, limit=9) == one | {"more": False}
    bodies = world.sql("select body is not null as here from esl.webhook_inbox order by id")
    assert [row["here"] for row in bodies] == [False, False, True, True]
    assert kept(world, "products/update", body, id="again", at=when(1)) == 0
    (place,) = world.buffer.trace("C-1")
    assert len(place["deliveries"]) == 1
    world.map(OTHER_SHOP, OTHER_STORE)
    world.settle()
    assert list(world.prices(OTHER_STORE)) == ["C-2"]


def test_s12_a_dead_delivery_without_its_body_stays_dead_and_a_new_copy_of_an_unusable_one_has_one(
    world: World,
) -> None:
    world.map()
    kept(world, "products/update", product(1), id="dead")
    kept(world, "products/update", product(2), id="old", at="2020-01-01T00:00:00Z")
    world.sql("update esl.webhook_inbox set state = 'dead', finished_at = now() where state = 'ready'")
    world.sql("update esl.webhook_inbox set finished_at = now() - interval '31 d'")
    assert world.buffer.housekeep(keep_bodies_days=30)["bodies"] == 2
    assert world.buffer.redrive() == {"labels": 0, "deliveries": 0}
    assert kept(world, "products/update", product(2), id="old") == 1
    world.settle()
    assert (world.inbox(), list(world.prices())) == (["dead", "done"], ["C-2"])
