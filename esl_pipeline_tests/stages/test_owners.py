"""Whose a product is, is decided by evidence: a secret of one's own, the shop's own API, a person; never by order."""

import io
import json
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from rich.console import Console

from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.commands.status import print_status
from esl_pipeline.orchestration.checks import backlog
from esl_pipeline.receiver.app import create_app
from esl_pipeline.sources.content import CONTENT
from esl_pipeline_tests.receiver.support import SECRET, call, make_settings, signed
from esl_pipeline_tests.world import SHOP, STORE, World, level, product, variant, when

pytestmark = pytest.mark.long

HOSTILE = "hostile-shop.myshopify.com"
HOSTILE_STORE = "S2"
OWN = "a-secret-of-this-shop-alone"
PRICES = {"C-1": "1.00"}


@pytest.fixture
def two(world: World) -> World:
    """Both shops, each with a store of its own."""
    world.map()
    world.map(HOSTILE, HOSTILE_STORE)
    return world


def deliver(world: World, body: Any, *, shop: str = SHOP, secret: str = SECRET, secrets: str = SECRET) -> int:
    """Over HTTP to a receiver with these secrets; its answer."""
    raw = json.dumps(body).encode()
    at = str(body["updated_at"])
    headers = signed("products/update", raw, secret, shop_domain=shop, triggered_at=at)
    app = create_app(make_settings(shopify_webhook_secret=secrets), world.buffer)
    return call(app, "POST", "/webhooks/shopify/products/update", content=raw, headers=headers).status_code


def taken(world: World) -> None:
    """The hostile shop tells of product 1 first; then its real shop does, at 2.00, and waits."""
    world.settle_of(HOSTILE, product(1))
    world.settle(product(1, 2, [variant(1, price="2.00")]))
    assert (world.prices(), world.prices(HOSTILE_STORE)) == ({}, PRICES)
    (contest,) = world.buffer.status()["contests"]
    assert (contest["thing"], contest["shops"]) == ("product:1", [SHOP, HOSTILE])


def read(world: World, number: int = 1, version: int = 2, *, shop: str = SHOP, exists: bool = True) -> None:
    """What a shop's own API says of one product, asked for by its id (see stages/catch_up.py)."""
    key = {"source_system": "shopify", "source_store_id": shop, "product_id": str(number)}
    said = key | {"version_at": when(version), "triggered_at": when(version), "body_sha256": "read"}
    content = {"title": f"Product {number}", "status": "active", "published_at": when(0)}
    row = (
        dict.fromkeys(CONTENT)
        | said
        | content
        | {"variant_id": str(number), "barcode": f"C-{number}", "price": "2.00"}
    )
    row |= {"inventory_item_id": str(10_000 + number), "event_ids": []}
    gone = {
        "deleted": True,
        "body_sha256": "",
        "variant_ids": [],
        "version_at": datetime.now(UTC).isoformat(),
    }
    found = said | {"deleted": False, "missing_variants": 0, "variant_ids": [str(number)], "event_ids": []}
    world.buffer.variants_merge(
        claim_id=None,
        products=[found if exists else found | gone],
        variants=[row] if exists else [],
        levels=[],
        events=[],
    )


def of(world: World, shop: str) -> list[str]:
    rows = world.sql("select state from esl.webhook_inbox where source_store_id = %s order by id", shop)
    return [row["state"] for row in rows]


@pytest.mark.parametrize("hostile_secret", [SECRET, "the-hostile-shops-own-secret"])
def test_s31_a_shop_with_a_secret_of_its_own_is_never_suspected(two: World, hostile_secret: str) -> None:
    """Its signature says whose the body is, so no body of another shop can be it."""
    secrets = f"{SHOP}={OWN},{SECRET}"
    if hostile_secret != SECRET:
        secrets += f",{HOSTILE}={hostile_secret}"
    hostile = {"shop": HOSTILE, "secret": hostile_secret, "secrets": secrets}
    assert deliver(two, product(1), **hostile) == 200
    two.settle()
    assert deliver(two, product(1, 2, [variant(1, price="2.00")]), secret=OWN, secrets=secrets) == 200
    two.settle()
    assert two.prices() == {"C-1": "2.00"}
    assert [row["contested"] for row in two.buffer.status()["shops"]] == [0, 0]
    assert deliver(two, product(1, 3), secret=SECRET, secrets=secrets) == 401  # it has no other secret


def test_s31_what_a_shop_with_a_secret_of_its_own_has_counts_against_nobody(two: World) -> None:
    """It can sign what it likes, but its signature is not the others'."""
    secrets = f"{HOSTILE}={OWN},{SECRET}"
    deliver(two, product(1), shop=HOSTILE, secret=OWN, secrets=secrets)
    two.settle()
    deliver(two, product(1, 2, [variant(1, price="2.00")]), secrets=secrets)
    two.settle()
    assert two.prices() == {"C-1": "2.00"}


def test_s31_a_secret_that_two_shops_are_bound_to_proves_nothing(two: World) -> None:
    secrets = f"{SHOP}={OWN},{HOSTILE}={OWN}"
    body = product(1)
    deliver(two, body, secret=OWN, secrets=secrets)
    two.settle()
    deliver(two, body, shop=HOSTILE, secret=OWN, secrets=secrets)  # the same bytes under another name
    two.settle()
    assert (two.prices(), two.prices(HOSTILE_STORE)) == (PRICES, {})
    assert of(two, HOSTILE) == ["unusable"]


def test_s31_a_conflict_is_shown_by_both_names(two: World) -> None:
    taken(two)
    shown = Console(file=io.StringIO(), record=True, width=400)
    status = two.buffer.status()
    print_status(shown, status)
    said = shown.export_text()
    assert f"product 1 is claimed by {SHOP} and {HOSTILE} since" in said
    assert "esl-pipeline stores owner SHOP product:1" in said
    for shop, other in ((SHOP, HOSTILE), (HOSTILE, SHOP)):
        check = backlog(
            two.buffer.status(shops=[key(shop)]),
            f"shopify:{shop}",
            servers=["default"],
            now=datetime.now(UTC),
        )
        assert not check.passed and f"claimed by {other} as well" in str(check.description)


def key(shop: str) -> dict[str, str]:
    return {"source_system": "shopify", "source_store_id": shop}


def test_s31_only_active_shops_are_rivals_and_what_waited_is_read(two: World) -> None:
    """The hostile shop uninstalls: nothing has to be sent again."""
    taken(two)
    goodbye = {"id": 1, "myshopify_domain": HOSTILE, "updated_at": datetime.now(UTC).isoformat()}
    raw = json.dumps(goodbye).encode()
    app = create_app(make_settings(), two.buffer)
    headers = signed("app/uninstalled", raw, shop_domain=HOSTILE)
    assert (
        call(app, "POST", "/webhooks/shopify/app/uninstalled", content=raw, headers=headers).status_code
        == 200
    )
    two.settle()
    assert two.prices() == {"C-1": "2.00"}
    two.settle(product(1, 3, [variant(1, price="3.00")]))
    assert two.prices() == {"C-1": "3.00"}
    status = two.buffer.status()
    assert (status["contests"], status["contested"]) == ([], 0)


def test_s31_a_read_of_the_shop_settles_it_and_the_label_of_the_other_one_goes(two: World) -> None:
    taken(two)
    # catch_up asks both shops for it.
    for shop in (SHOP, HOSTILE):
        assert two.buffer.missing_variants(shop=key(shop)) == ["1"]
    read(two)
    two.settle()
    assert (two.prices(), two.prices(HOSTILE_STORE)) == ({"C-1": "2.00"}, {})
    assert two.buffer.missing_variants(shop=key(SHOP)) == []
    (settled,) = two.sql("select * from esl.contests")
    assert (settled["owner"], settled["settled_by"]) == (SHOP, f"the Admin API of {SHOP}")
    # From now on it is known whose it is.
    two.settle_of(HOSTILE, product(1, 9, [variant(1, price="0.01")]))
    two.settle(product(1, 10, [variant(1, price="3.00")]))
    assert (two.prices(), two.prices(HOSTILE_STORE)) == ({"C-1": "3.00"}, {})
    assert of(two, HOSTILE) == ["done", "unusable"] and two.buffer.status()["contested"] == 0


def test_s31_a_shop_whose_api_does_not_know_the_product_gives_it_up(two: World) -> None:
    taken(two)
    read(two, shop=HOSTILE, exists=False)
    two.settle()
    assert (two.prices(), two.prices(HOSTILE_STORE)) == ({"C-1": "2.00"}, {})


def test_s31_a_complete_read_without_the_product_gives_it_up(two: World) -> None:
    taken(two)
    snapshot = str(uuid4())
    two.buffer.snapshot_begin(snapshot_id=snapshot, shop=key(HOSTILE), run_id="r")
    two.buffer.snapshot_merge(snapshot_id=snapshot)
    done = two.buffer.snapshot_finish(
        snapshot_id=snapshot, as_of=datetime.now(UTC).isoformat(), counts={"variants": 0}
    )
    assert done["finished"]
    two.settle()
    assert (two.prices(), two.prices(HOSTILE_STORE)) == ({"C-1": "2.00"}, {})


def test_s31_a_complete_read_that_finds_it_unchanged_settles_it(two: World) -> None:
    """What is stored already is left out of the merge, and is evidence all the same."""
    two.settle(product(1))
    two.settle_of(HOSTILE, product(1, 2))
    snapshot = str(uuid4())
    rows = two.sql("select to_jsonb(o) as o, to_jsonb(v) as v from esl.products o, esl.product_versions v")
    two.buffer.snapshot_begin(snapshot_id=snapshot, shop=key(SHOP), run_id="r")
    merged = two.buffer.snapshot_merge(
        snapshot_id=snapshot, products=[rows[0]["v"]], variants=[rows[0]["v"] | rows[0]["o"]]
    )
    assert (merged["changed"], merged["unchanged"]) == (0, 1)
    (settled,) = two.sql("select owner from esl.contests")
    assert settled["owner"] == SHOP


def test_s31_a_person_settles_it_and_may_think_again(two: World) -> None:
    taken(two)
    two.buffer.owner_settle(shop=key(SHOP), by="ana")
    two.settle()
    assert (two.prices(), two.prices(HOSTILE_STORE)) == ({"C-1": "2.00"}, {})
    assert two.buffer.owner_settle(shop=key(HOSTILE), thing="product:1", by="ana") == ["product:1"]
    two.settle()
    assert (two.prices(), two.prices(HOSTILE_STORE)) == ({}, PRICES)
    (settled,) = two.sql("select * from esl.contests")
    assert (settled["owner"], settled["settled_by"]) == (HOSTILE, "ana") and settled["db_user"]


def test_s31_what_was_settled_stays_so_when_the_owner_leaves_and_its_own_api_corrects_a_person(
    two: World,
) -> None:
    taken(two)
    two.buffer.owner_settle(shop=key(HOSTILE), by="ana")
    (mapping,) = (m for m in two.buffer.mapping_list() if m["source_store_id"] == HOSTILE)
    two.buffer.mapping_update(mapping["id"], {"is_active": False})
    two.settle(product(1, 3, [variant(1, price="3.00")]))
    assert two.prices() == {}
    read(two, version=3)
    two.settle()
    two.settle(product(1, 4, [variant(1, price="4.00")]))
    assert two.prices() == {"C-1": "4.00"}


def test_s31_stock_is_judged_by_the_same_rule(two: World) -> None:
    two.send("inventory_levels/update", level(1, 9), shop=HOSTILE)
    two.settle()
    two.send("inventory_levels/update", level(1, 5, 2))
    two.settle()
    (contest,) = two.buffer.status()["contests"]
    assert (contest["thing"], contest["shops"]) == ("inventory_item:10001", [SHOP, HOSTILE])
    read(two)  # it names the item too
    two.settle()
    (stock,) = two.sql("select available from esl.inventory_levels where source_store_id = %s", SHOP)
    assert stock["available"] == 5


def test_s31_a_deletion_of_what_a_shop_never_had_keeps_nobody_out_for_ever(two: World) -> None:
    two.send("products/delete", {"id": 1}, shop=HOSTILE, at=when(1))
    two.settle()
    two.settle(product(1, 2, [variant(1, price="2.00")]))
    assert two.prices() == {}
    read(two, shop=HOSTILE, exists=False)
    two.settle()
    assert two.prices() == {"C-1": "2.00"}


def test_s36_a_store_that_another_shop_feeds_needs_a_word(world: World) -> None:
    mapping = {**key(SHOP), "hipoink_store_code": STORE}
    first = world.buffer.mapping_create(mapping)
    with pytest.raises(BufferError) as refused:
        world.buffer.mapping_create(mapping | key(HOSTILE))
    assert refused.value.code == "23P01"
    assert f"store {STORE} is fed by {SHOP} already" in refused.value.message
    elsewhere = world.buffer.mapping_create(mapping | key(HOSTILE) | {"hipoink_store_code": "S2"})
    with pytest.raises(BufferError, match=SHOP):
        world.buffer.mapping_update(elsewhere["id"], {"hipoink_store_code": STORE})
    # What stands may go on, and be switched; with the word it is taken.
    world.buffer.mapping_update(first["id"], {"is_active": False})
    with pytest.raises(BufferError, match="inactive"):
        world.buffer.mapping_create(mapping | key(HOSTILE))
    moved = world.buffer.mapping_update(elsewhere["id"], {"hipoink_store_code": STORE, "shared": True})
    assert moved is not None and moved["hipoink_store_code"] == STORE
    world.buffer.mapping_update(first["id"], {"is_active": True, "hipoink_store_code": STORE})
