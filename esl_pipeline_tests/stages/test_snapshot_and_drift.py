"""Reconciliation against a real shop, label server and buffer: labels are what Shopify says, without any webhook."""

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import pytest
from fastapi import FastAPI, Response
from pydantic import SecretStr
from starlette.datastructures import Headers

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.transports import PsycopgTransport
from esl_pipeline.hipoink import HipoinkClient
from esl_pipeline.hipoink.paging import Page
from esl_pipeline.sandbox.label_server.server import SIGN
from esl_pipeline.sandbox.shopify.catalogue import LOCATION_ID, Product
from esl_pipeline.sandbox.shopify.sandbox import TOKEN
from esl_pipeline.sandbox.shopify.shop import Shop, stocked_shop
from esl_pipeline.sandbox.shopify.webhooks import Delivery, Webhooks
from esl_pipeline.sources.shopify.admin import (
    AdminClient,
    AdminError,
    BulkOperationFailedError,
    IncompleteDownloadError,
)
from esl_pipeline.sources.shopify.deliveries import delivery
from esl_pipeline.sources.shopify.reader import ShopifyReader
from esl_pipeline.stages import snapshot as snapshot_stage
from esl_pipeline.stages.catch_up import read_changes
from esl_pipeline.stages.drift import Drift, compare_store, differing_fields
from esl_pipeline.stages.snapshot import Snapshot, SnapshotLostError, read_snapshot
from esl_pipeline_tests.hipoink.servers import FreeLimiter, Sandbox, client_of, running
from esl_pipeline_tests.sandbox.shopify.support import Running
from esl_pipeline_tests.sandbox.shopify.support import running as running_shop
from esl_pipeline_tests.world import ASSET, AT_ONCE, RULES, RUN, STORE, World, drain_round
from esl_pipeline_tests.world import product as product_body
from esl_pipeline_tests.world import variant as variant_body

pytestmark = pytest.mark.long

DOMAIN = "corner-market.myshopify.com"
KEY = {"source_system": "shopify", "source_store_id": DOMAIN}


def nap(_: float) -> None:
    """Bulk operations of a small shop are soon over."""
    time.sleep(0.01)


@dataclass
class Market:
    """A shop, its webhooks, and the world that its labels hang in."""

    world: World
    shopify: Running
    admin: AdminClient

    @property
    def shop(self) -> Shop:
        return self.shopify.shop

    def products(self) -> list[Product]:
        """On sale, with a code."""
        return [product for product in self.shop.products.values() if not product.gift_card]

    def prices(self) -> dict[str | None, str | None]:
        """What the labels should show."""
        return {
            variant.barcode: variant.price
            for product in self.products()
            if product.status == "active"
            for variant in product.variants
        }

    def deliver(self, *deliveries: Delivery) -> None:
        for one in deliveries:
            headers = Headers({name.lower(): value for name, value in one.headers("any").items()})
            kept = delivery(one.topic, headers, one.body, datetime.now(UTC))
            assert kept["state"] == "ready", kept["reason"]
            self.world.buffer.inbox_add([kept])

    def updated(self, product: Product) -> Delivery:
        return Webhooks(self.shop).updated(product)

    def snapshot(self, **options: Any) -> Snapshot:
        return read_snapshot(self.world.buffer, self.reader, shop=KEY, run_id=RUN, **options)

    def changes(self, **options: Any) -> dict[str, Any]:
        return read_changes(self.world.buffer, self.reader, shop=KEY, run_id=RUN, **options)

    @property
    def reader(self) -> ShopifyReader:
        return ShopifyReader(self.admin, DOMAIN, sleep=nap)

    def compare(self, **options: Any) -> Drift:
        return compare_store(self.world.buffer, self.world.client, store=STORE, run_id=RUN, **options)

    def reconciled(self) -> None:
        """A nightly run, on both sides."""
        self.snapshot()
        self.world.settle()
        self.compare()
        self.world.settle()

    def change_prices(self, products: Sequence[Product]) -> None:
        for product in products:
            variant = product.variants[0]
            self.shop.set_price(product, variant, f"{float(variant.price or 0) + 0.5:.2f}")

    def edit_label(self, code: str, **fields: str) -> None:
        """Behind our back."""
        self.world.sandbox.http.put(f"/sandbox/labels/{STORE}/{code}", json=fields).raise_for_status()

    def lose_labels(self, *codes: str) -> None:
        """Behind our back, too."""
        self.world.client.del_multiple(STORE, codes)


@contextmanager
def open_market(world: World, shop: Shop) -> Iterator[Market]:
    with (
        running_shop(shop) as shopify,
        AdminClient(shopify.url, SecretStr(TOKEN), "2026-10", sleep=nap) as admin,
    ):
        yield Market(world, shopify, admin)


@pytest.fixture
def market(world: World) -> Iterator[Market]:
    """A small shop, mapped, its labels not there yet."""
    world.map(DOMAIN)
    with open_market(world, stocked_shop(1, variants=60)) as opened:
        yield opened


@pytest.fixture
def stocked(market: Market) -> Market:
    """The same, with all labels there."""
    market.snapshot()
    market.world.settle()
    assert market.world.prices() == market.prices()
    return market


def state_of(market: Market) -> list[dict[str, Any]]:
    return market.world.sql("select state, reason from esl.snapshots order by started_at")


# --- the snapshot


def test_a_snapshot_alone_fills_the_labels(world_over: World) -> None:
    world_over.map(DOMAIN)
    with open_market(world_over, stocked_shop(1)) as market:
        seen: list[int] = []
        snapshot = market.snapshot(on_progress=lambda so_far: seen.append(so_far.variants))
        world_over.settle()
        expected = market.prices()
        variants = sum(len(product.variants) for product in market.shop.products.values())
    assert world_over.prices() == expected
    assert (snapshot.variants, snapshot.changed, snapshot.removed) == (variants, variants, 0)
    assert snapshot.complete and seen == [0, variants]
    (shop,) = world_over.sql("select currency, taxes_included from esl.shops")
    assert shop == {"currency": "EUR", "taxes_included": True}
    (accuracy,) = world_over.buffer.accuracy(shop=KEY)
    assert (accuracy["publishable"], accuracy["accurate"]) == (len(expected), len(expected))


WRITTEN = (
    "products",
    "product_versions",
    "variant_details",
    "inventory_levels",
    "labels",
    "hipoink_products",
)


def rows_written(world: World) -> dict[str, list[dict[str, Any]]]:
    """Who wrote each row last: another transaction means that it was written again."""
    return {name: world.sql(f"select ctid::text, xmin::text from esl.{name} order by 1") for name in WRITTEN}


def wal(world: World) -> int:
    (row,) = world.sql("select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint as at")
    return int(row["at"])


@pytest.mark.long
def test_an_unchanged_shop_writes_nothing_and_pushes_nothing(world: World) -> None:
    world.map(DOMAIN, settings={"stock_field": "kc", "location_id": str(LOCATION_ID)})
    with open_market(world, stocked_shop(1)) as market:
        start = wal(world)
        market.snapshot()
        first = wal(world) - start
        world.settle()
        market.compare()
        before, calls = rows_written(world), world.sandbox.state()["pushes"]
        seconds = []
        for _ in range(3):  # a checkpoint may fall into one of them
            start = wal(world)
            snapshot = market.snapshot()
            seconds.append(wal(world) - start)
        world.settle()
    assert (snapshot.changed, snapshot.newer, snapshot.removed) == (0, 0, 0)
    assert snapshot.unchanged == snapshot.variants > 300
    assert snapshot.levels == 2 * snapshot.variants
    assert rows_written(world) == before
    assert world.sandbox.state()["pushes"] == calls
    assert min(seconds) < first / 10


def test_stock_is_read_only_for_labels_that_show_it(market: Market) -> None:
    assert market.snapshot().levels == 0
    (mapping,) = market.world.buffer.mapping_list()
    product, variant = market.products()[0], market.products()[0].variants[0]
    market.shop.set_stock(product, variant, 41)
    fields = {"fields": {"f1": "{stock} left"}, "location_id": str(LOCATION_ID)}
    market.world.buffer.mapping_update(mapping["id"], {"settings": fields})
    assert market.snapshot().levels == 120
    market.world.settle()
    assert market.world.labels()[str(variant.barcode)]["f1"] == "41 left"


def test_of_two_stocks_of_one_second_the_one_that_is_read_later_holds(market: Market) -> None:
    world = market.world
    (mapping,) = world.buffer.mapping_list()
    settings = {"stock_field": "kc", "location_id": str(LOCATION_ID)}
    world.buffer.mapping_update(mapping["id"], {"settings": settings})
    product, variant = market.products()[0], market.products()[0].variants[0]
    market.shop.set_stock(product, variant, 7)
    market.deliver(Webhooks(market.shop).level(variant))
    variant.levels[LOCATION_ID].available = 6  # its webhook says the same second, and comes to nothing
    market.shop.touch(market.products()[1])
    for _ in range(2):
        market.snapshot()
        world.settle()
        assert world.labels()[str(variant.barcode)]["kc"] == "6"


def test_what_a_complete_snapshot_does_not_have_leaves_the_labels(stocked: Market) -> None:
    gone, halved = stocked.products()[0], next(p for p in stocked.products()[1:] if len(p.variants) > 1)
    stocked.shop.touch(gone)
    late = stocked.updated(gone)
    stocked.shop.remove_variant(halved, halved.variants[0])
    stocked.shop.delete(gone)
    assert stocked.snapshot().removed == len(gone.variants) + 1
    stocked.world.settle()
    stocked.world.buffer.changes_approve(store=STORE, by="test")
    stocked.world.settle()
    assert stocked.world.prices() == stocked.prices()
    stocked.deliver(late)  # newer than all that was known of it, but its product is gone
    stocked.world.settle()
    assert stocked.world.prices() == stocked.prices()


def test_a_mass_of_absent_products_waits_for_approval(stocked: Market) -> None:
    everything = stocked.prices()
    for product in stocked.products()[: len(stocked.products()) // 2]:
        stocked.shop.delete(product)
    assert stocked.snapshot().removed > 5
    stocked.world.settle()
    assert stocked.world.prices() == everything
    stocked.world.buffer.changes_approve(store=STORE, by="test")
    stocked.world.settle()
    assert stocked.world.prices() == stocked.prices()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"kind": "bulk_failed", "keep": 0.5}, BulkOperationFailedError),
        ({"kind": "bulk_failed"}, BulkOperationFailedError),
        ({"kind": "cut_download", "keep": 0.5}, IncompleteDownloadError),
        ({"kind": "expired_url"}, IncompleteDownloadError),
        ({"kind": "unauthorized"}, AdminError),
    ],
    ids=["partial", "failed", "truncated", "expired", "refused"],
)
def test_what_was_not_read_to_its_end_removes_nothing_and_says_why(
    stocked: Market, fault: dict[str, Any], error: type[Exception]
) -> None:
    before = stocked.world.prices()
    for product in stocked.products()[:2]:
        stocked.shop.delete(product)
    stocked.shopify.faults(fault)
    with pytest.raises(error) as failed:
        stocked.snapshot()
    stocked.world.settle()
    assert stocked.world.prices() == before
    assert state_of(stocked)[-1] == {"state": "abandoned", "reason": f"{error_name(failed)}: {failed.value}"}
    assert stocked.world.sql("select from esl.snapshot_variants") == []


def error_name(failed: pytest.ExceptionInfo[Exception]) -> str:
    return type(failed.value).__name__


def test_an_event_that_arrives_during_the_read_wins(stocked: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_stage, "SNAPSHOT_ROWS", 20)
    world, first = stocked.world, stocked.products()[0]
    lost = stocked.products()[-1]
    stocked.change_prices([first, lost])  # both webhooks are lost
    made = stocked.shop.catalogue.loose_tea(stocked.shop.now)
    arrived: list[int] = []

    def meanwhile(_: Snapshot) -> None:
        if not arrived:  # the shop's record; the catalogue is not asked for yet
            arrived.append(0)
            return
        if arrived == [0]:
            arrived.append(1)
            stocked.change_prices([first, *stocked.products()[1:5]])
            stocked.shop.add(made)
            stocked.deliver(*map(stocked.updated, [first, *stocked.products()[1:5], made]))
            world.round()

    snapshot = stocked.snapshot(on_progress=meanwhile)
    world.settle()
    assert snapshot.complete and snapshot.removed == 0 and snapshot.newer > 0
    assert world.prices() == stocked.prices()
    code = str(first.variants[0].barcode)
    assert world.shown(code)[-1] == first.variants[0].price
    shown = [float(price or 0) for price in world.shown(code)]
    assert shown == sorted(shown)


def test_a_webhook_from_before_an_unchanged_read_comes_too_late(stocked: Market) -> None:
    product, variant = stocked.products()[0], stocked.products()[0].variants[0]
    right = str(variant.price)
    stocked.shop.set_price(product, variant, "77.00")
    late = stocked.updated(product)
    stocked.shop.set_price(product, variant, right)
    stocked.shop.touch(stocked.products()[1])
    assert stocked.snapshot().changed == 0
    stocked.deliver(late)
    stocked.world.settle()
    assert stocked.world.shown(str(variant.barcode)) == [right]


def test_a_newer_snapshot_of_the_shop_overtakes(stocked: Market) -> None:
    stocked.shop.delete(stocked.products()[0])

    def another(_: Snapshot) -> None:
        stocked.world.buffer.snapshot_begin(
            snapshot_id="9b2f8a40-0d8c-4f4e-8c38-55c0c6a4a2a1", shop=KEY, run_id="other"
        )

    with pytest.raises(SnapshotLostError, match="newer snapshot"):
        stocked.snapshot(on_progress=another)
    assert stocked.world.sql("select from esl.products where removed") == []


def test_notes_that_a_database_crash_lost_are_missed(stocked: Market) -> None:
    def crash(so_far: Snapshot) -> None:
        if so_far.variants:  # what a crash does to an unlogged table
            stocked.world.sql("truncate esl.snapshot_variants")

    with pytest.raises(SnapshotLostError, match="lost its notes"):
        stocked.snapshot(on_progress=crash)
    assert stocked.world.sql("select from esl.products where removed") == []


# --- latest changes


def test_dropped_webhooks_are_repaired_by_the_next_look(stocked: Market) -> None:
    first = stocked.changes()
    stocked.change_prices(stocked.products()[:3])
    gone_variant = next(product for product in stocked.products()[3:] if len(product.variants) > 1)
    stocked.shop.remove_variant(gone_variant, gone_variant.variants[0])
    second = stocked.changes()
    stocked.world.settle()
    assert stocked.world.prices() == stocked.prices()
    assert (second["variants_changed"], second["variants_removed"]) == (3, 1)
    since = datetime.fromisoformat(first["until"]) - timedelta(minutes=10)
    assert datetime.fromisoformat(second["since"]) == since


@pytest.mark.long
def test_f32_one_webhook_in_a_hundred_is_lost_and_the_read_finds_exactly_those(stocked: Market) -> None:
    products = stocked.products()
    lost = set(random.Random(32).sample(range(200), 2))
    stale: dict[int, bool] = {}
    for number in range(200):
        product = products[number % len(products)]
        stocked.change_prices([product])
        stale[product.id] = number in lost
        if number not in lost:
            stocked.deliver(stocked.updated(product))
    stocked.world.settle()
    wrong = {code for code, price in stocked.prices().items() if stocked.world.prices()[str(code)] != price}
    stocked.shop.touch(products[0])  # Shopify's clock moves on before the read
    assert stocked.snapshot().changed == len(wrong) == sum(stale.values())
    stocked.world.settle()
    assert stocked.world.prices() == stocked.prices()


@pytest.mark.parametrize("watermark", ["2100-01-01T00:00:00Z", "infinity", "20000-01-01T00:00:00Z"])
def test_f38_a_watermark_of_the_future_reads_nothing_and_raises_an_alarm(
    stocked: Market, watermark: str
) -> None:
    stocked.changes()
    stocked.change_prices(stocked.products()[:1])
    stocked.world.sql("update esl.watermarks set at = %s::timestamptz", watermark)
    found = stocked.changes()
    assert (found["products"], found["variants_changed"]) == (0, 0)
    assert "nightly full_reconciliation" in found["alarm"]
    again = stocked.changes()
    assert (again["alarm"], again["variants_changed"]) == (None, 1)


def test_a_look_that_failed_is_looked_again(stocked: Market) -> None:
    watermark = stocked.changes()["until"]
    stocked.change_prices(stocked.products()[:1])
    stocked.shopify.faults({"kind": "unauthorized", "times": 1})
    with pytest.raises(AdminError):
        stocked.changes()
    assert datetime.fromisoformat(
        str(stocked.world.buffer.watermark(shop=KEY, source="updated_at"))
    ) == datetime.fromisoformat(watermark)
    assert stocked.changes()["variants_changed"] == 1


@pytest.mark.long
def test_f30_2048_variants_become_2048_labels(world: World) -> None:
    world.map(DOMAIN)
    shop = stocked_shop(1, variants=0)
    bolt = shop.catalogue.bolt(shop.now)
    shop.add(bolt)
    with open_market(world, shop) as market:
        market.deliver(market.updated(bolt))
        world.round()
        assert world.buffer.missing_variants(shop=KEY) == [str(bolt.id)]
        # Changed longer ago than the look goes back: found by its missing variants.
        world.buffer.watermark_move(shop=KEY, source="updated_at", at="2100-01-01T00:00:00Z")
        found = market.changes()
        world.settle(batch_size=1000)
        assert (found["products"], found["fetched"], found["variants_changed"]) == (0, 1, 1948)
        assert len(world.labels()) == 2048
        assert world.prices() == market.prices()
        assert world.buffer.missing_variants(shop=KEY) == []
        # Another webhook names them all again; a snapshot knows them as well.
        shop.touch(bolt)
        market.deliver(market.updated(bolt))
        world.settle()
        shop.touch(bolt)
        assert market.snapshot().changed == 0
        assert world.buffer.missing_variants(shop=KEY) == []


def test_a_product_that_is_gone_when_it_is_fetched_leaves(world: World) -> None:
    world.map(DOMAIN, settings={"guard_labels": 2048})
    shop = stocked_shop(1, variants=0)
    bolt = shop.catalogue.bolt(shop.now)
    bolt.variants = bolt.variants[:110]
    shop.add(bolt)
    with open_market(world, shop) as market:
        market.deliver(market.updated(bolt))
        world.settle()
        assert len(world.labels()) == 100
        shop.delete(bolt)
        assert market.changes()["gone"] == 1
        world.settle()
    assert world.labels() == {}
    assert world.buffer.missing_variants(shop=KEY) == []


# --- the label server's own list


def test_drift_is_found_exactly_and_repaired(stocked: Market) -> None:
    world, codes = stocked.world, sorted(stocked.world.labels())
    right = world.labels()
    stocked.edit_label(codes[0], pp="0.01")
    stocked.edit_label(codes[1], pn="Somebody's own")
    stocked.edit_label(codes[2], pp="not a price")
    stocked.lose_labels(*codes[3:5])
    stocked.edit_label("FOREIGN", pn="not ours", pp="1.00")

    calls = world.calls()
    told = stocked.compare(dry_run=True)
    assert (told.requeued, world.queue()) == (0, {})
    assert world.sql("select from esl.drift") == []
    drift = stocked.compare()
    assert (drift.listed, drift.ledger, drift.complete) == (len(codes) - 1, len(codes), True)
    assert drift.missing == told.missing == codes[3:5]
    assert {row["code"]: row["fields"] for row in drift.different} == {
        codes[0]: {"pp": (right[codes[0]]["pp"], "0.01")},
        codes[1]: {"pn": (right[codes[1]]["pn"], "Somebody's own")},
        codes[2]: {"pp": (right[codes[2]]["pp"], "not a price")},
    }
    assert (drift.foreign, drift.foreign_count) == (["FOREIGN"], 1)
    assert (drift.missing_count, drift.different_count, drift.requeued) == (2, 3, 5)
    world.settle()
    assert world.labels() == right | {"FOREIGN": world.labels()["FOREIGN"]}
    assert world.sandbox.state()["calls"]["create_multiple"] <= calls  # one batch for all five

    again = stocked.compare()
    assert (again.missing, again.different, again.foreign_count, again.requeued) == ([], [], 1, 0)
    audit = world.sql("select code, kind, run_id from esl.drift order by code")
    assert audit == [
        {"code": code, "kind": kind, "run_id": RUN}
        for code, kind in zip(codes, ["different"] * 3 + ["missing"] * 2, strict=False)
    ]
    (accuracy,) = world.buffer.accuracy(shop=KEY)
    assert accuracy["accurate"] == accuracy["publishable"] == len(codes)


@pytest.mark.parametrize("meddled", ["changed", "lost"])
def test_the_label_of_a_variant_that_is_held_back_is_put_back_as_it_was(world: World, meddled: str) -> None:
    world.map()
    world.settle(
        product_body(1, variants=[variant_body(1, price="2.00")]), product_body(2, variants=[variant_body(2)])
    )
    world.settle(product_body(1, version=2, variants=[variant_body(1, price=None)]))
    right = world.labels()
    if meddled == "changed":
        world.sandbox.http.put(f"/sandbox/labels/{STORE}/C-1", json={"pp": "0.01"}).raise_for_status()
    else:
        world.client.del_multiple(STORE, ["C-1"])

    def requeued() -> int:
        return compare_store(world.buffer, world.client, store=STORE, run_id=RUN).requeued

    assert requeued() == 1
    world.settle(product_body(1, version=3, variants=[variant_body(1, price="-1")]))
    assert world.labels() == right
    assert requeued() == 0


def test_foreign_labels_leave_a_store_that_is_ours_alone_under_the_guard(stocked: Market) -> None:
    world, right = stocked.world, stocked.world.labels()
    (mapping,) = world.buffer.mapping_list()
    world.buffer.mapping_update(mapping["id"], {"settings": AT_ONCE | {"owns_store": True}})
    world.settle()
    stocked.edit_label("FOREIGN", pn="not ours", pp="1.00")
    assert stocked.compare().requeued == 1
    world.settle()
    assert world.labels() == right
    for number in range(40):
        stocked.edit_label(f"F{number}", pn="not ours", pp="")
    assert stocked.compare(dry_run=True).foreign_count == 40
    assert stocked.compare().requeued == 40
    world.settle()
    assert len(world.labels()) == len(right) + 40
    world.buffer.changes_approve(store=STORE, by="test")
    world.settle()
    assert world.labels() == right


def test_labels_on_their_way_are_not_compared(stocked: Market) -> None:
    world, codes = stocked.world, sorted(stocked.world.labels())
    stocked.change_prices(stocked.products()[:1])
    stocked.changes()
    world.round(batch_size=0)
    (waiting,) = world.queue()
    stocked.edit_label(waiting, pp="0.01")
    world.sql("update esl.sync_queue set state = 'leased', lease_until = now() + interval '1 hour'")
    drift = stocked.compare()
    assert (drift.different, drift.complete, drift.listed) == ([], True, len(codes))


@pytest.mark.parametrize("meddled", ["edited", "lost"])
def test_labels_that_only_wait_are_compared(stocked: Market, meddled: str) -> None:
    """Rises wait for their window, perhaps for days: meanwhile what hangs is what the ledger says."""
    world = stocked.world
    (mapping,) = world.buffer.mapping_list()
    now = datetime.now(UTC)
    opens, closes = (f"{now + timedelta(hours=hours):%H:%M}" for hours in (2, 3))
    window = {"opens": opens, "closes": closes, "time_zone": "UTC"}
    world.buffer.mapping_update(mapping["id"], {"settings": mapping["settings"] | {"raise_window": window}})
    world.settle()
    stocked.change_prices(stocked.products()[:1])
    stocked.changes()
    world.round()
    (waiting,) = world.queue()
    if meddled == "edited":
        stocked.edit_label(waiting, pp="0.01")
    else:
        stocked.lose_labels(waiting)
    drift = stocked.compare()
    assert [*(one["code"] for one in drift.different), *drift.missing] == [waiting]
    world.settle()
    assert world.labels()[waiting]["pp"] != "0.01" and not world.queue()


def test_a_label_that_is_switched_off_is_not_there(stocked: Market) -> None:
    first, *_ = sorted(stocked.world.labels())
    rows = stocked.world.client.query(STORE, 1, 200)
    off = [row | {"enabled": 0 if row["product_code"] == first else 1} for row in rows]
    off.append({"product_code": "OLD", "enabled": "0"})
    with running(listing(off)) as url, client_of(url) as client:
        drift = compare_store(stocked.world.buffer, client, store=STORE, run_id=RUN)
    assert (drift.missing, drift.different, drift.foreign_count) == ([first], [], 0)


def listing(
    rows: list[dict[str, Any]], *, count: int | None = None, later: int | None = None, shift: int = 0
) -> FastAPI:
    """A label server with this list, which may count otherwise, and whose pages may shift while they are read."""
    app, counts = FastAPI(), iter([count] * 2 + [later] * 9)

    @app.get("/api/default/product/query_count")
    def query_count() -> dict[str, int]:
        return {"count": next(counts) or len(rows)}

    @app.get("/api/default/product/query")
    def query(f1: int, f2: int) -> Response:
        start = (f1 - 1) * (f2 + shift)
        return Response(json.dumps(rows[start : start + f2]), media_type="application/json")

    return app


@pytest.mark.parametrize(
    ("options", "words"),
    [({"shift": 3}, "of 60 products"), ({"count": 70, "later": 70}, "of 70 products")],
    ids=["unstable", "counts more"],
)
def test_an_incomplete_list_tells_nothing_of_what_is_missing(
    stocked: Market, options: dict[str, Any], words: str
) -> None:
    rows = stocked.world.client.query(STORE, 1, 200)
    rows[0]["product_price"] = "0.01"
    rows[9] = {"product_code": "FOREIGN", "product_name": "?", "product_price": "1.00"}
    with running(listing(rows, **options)) as url, client_of(url) as client:
        drift = compare_store(stocked.world.buffer, client, store=STORE, run_id=RUN, page_size=10)
    assert not drift.complete and words in str(drift.reason)
    assert (drift.missing, drift.different_count, drift.foreign) == ([], 1, ["FOREIGN"])
    assert {row["operation"] for row in stocked.world.queue().values()} == {"upsert"}
    (kept,) = stocked.world.sql("select * from esl.comparisons")
    assert (kept["complete"], kept["reason"], kept["skipped"]) == (False, drift.reason, drift.skipped)
    assert drift.skipped == 60 - drift.listed + 1 > 0  # one of those listed is foreign


@pytest.mark.parametrize("fault", [{"kind": "status", "status": 503}, {"kind": "reset"}])
def test_a_label_server_that_does_not_answer_proves_nothing(stocked: Market, fault: dict[str, Any]) -> None:
    stocked.lose_labels(*sorted(stocked.world.labels())[:2])
    stocked.world.sandbox.faults(fault | {"action": "query"})
    drift = stocked.compare(page_size=10)
    assert (drift.complete, drift.missing, drift.listed) == (False, [], 0)
    assert "query for store" in str(drift.reason)


def test_a_difference_that_always_comes_back_is_the_servers_own_way(stocked: Market) -> None:
    code, *_ = sorted(stocked.world.labels())
    requeued = []
    for _ in range(5):
        stocked.edit_label(code, pn="cut off")
        requeued.append(stocked.compare().requeued)
        stocked.world.settle()
    assert requeued == [1, 1, 1, 0, 0]
    world = stocked.world
    world.sql("alter table esl.drift disable trigger user")
    world.sql("update esl.drift set at = at - interval '15 days'")
    assert stocked.compare().requeued == 1


@pytest.mark.parametrize(
    ("ours", "theirs", "differing"),
    [
        ({"pp": "8.90"}, {"product_price": 8.9}, {}),
        ({"pp": "8.90"}, {"product_price": "8.91"}, {"pp"}),
        ({"pop": ""}, {"product_origin_price": "0.00"}, {}),
        ({"pop": ""}, {"product_origin_price": None}, {}),
        ({"pop": "2.00"}, {"product_origin_price": ""}, {"pop"}),
        ({"pn": "Tea", "pi": "A"}, {"product_name": " Tea "}, {}),
        ({"pi": "1"}, {"product_inner": 1}, {}),
        ({"pi": "01"}, {"product_inner": "1"}, {"pi"}),
        ({"kc": "5", "qty": "5"}, {"product_storage": "9"}, {}),
        ({"f1": "a"}, {"field1": "b"}, {"f1"}),
        ({"extend": {"e001": "a", "e002": "b"}}, {"extend": {"e002": "c", "v1": "a"}}, {"extend.e002"}),
        ({"extend": {"e001": "a"}}, {"extend": "[]"}, {}),
        ({"pp": "1.00"}, {"product_price": "NaN"}, {"pp"}),
    ],
)
def test_only_fields_that_are_sent_and_returned_can_differ(
    ours: dict[str, Any], theirs: dict[str, Any], differing: set[str]
) -> None:
    assert set(differing_fields(ours, theirs)) == set(differing)


# --- absence in a list is doubt


class SlippingClient(HipoinkClient):
    """While it lists a store, after the first page one label is taken away and one is hung up."""

    sandbox: Sandbox

    def query_page(self, store_code: str, page: int, size: int) -> Page:
        listed = super().query_page(store_code, page, size)
        if page == 1:
            self.sandbox.http.delete(f"/sandbox/labels/{STORE}/GOES").raise_for_status()
            comes = {"pn": "not ours", "pp": "1.00"}
            self.sandbox.http.put(f"/sandbox/labels/{STORE}/COMES", json=comes).raise_for_status()
        return listed


OLD_SERVERS: dict[str, dict[str, Any]] = {
    "does not know it": {"kind": "status", "status": 404},
    "does not know it in PHP": {"kind": "error", "error_msg": "Method query_with_code does not exist."},
    "answers nothing": {"kind": "text", "body": "[]"},
    "answers no list": {"kind": "text", "body": "{}"},
}


@pytest.mark.parametrize("by_code", [None, *OLD_SERVERS.values()], ids=["answers", *OLD_SERVERS])
def test_field_14_a_row_that_slips_between_pages_is_asked_for(
    market: Market, by_code: dict[str, Any] | None
) -> None:
    world = market.world
    market.edit_label("GOES", pn="not ours", pp="1.00")
    market.snapshot()
    world.settle()
    right = world.prices()
    if by_code:
        world.sandbox.faults(by_code | {"action": "query_with_code"})
    with SlippingClient(world.sandbox.url, "default", SecretStr(SIGN), limiter=FreeLimiter()) as client:
        client.sandbox = world.sandbox
        drift = compare_store(world.buffer, client, store=STORE, run_id=RUN, page_size=10)
    assert (drift.complete, drift.missing, drift.different_count, drift.skipped) == (True, [], 0, 0)
    assert drift.listed == drift.ledger + 2  # both strangers were seen
    assert world.queue() == {}
    calls = world.sandbox.state()["calls"]
    assert calls["query_with_code"] == 1
    assert world.prices() == {code: price for code, price in right.items() if code != "GOES"} | {
        "COMES": "1.00"
    }


def hide(world: World, *codes: str, everywhere: bool = True) -> None:
    """The label server leaves these labels out of its lists, or denies them in every answer."""
    actions = ["query", "query_count", "query_with_code"][: 3 if everywhere else 2]
    world.sandbox.faults(*({"kind": "hidden", "hides": list(codes), "action": action} for action in actions))


def test_field_14_a_missing_label_that_is_deleted_before_its_push_is_removed_all_the_same(
    world: World,
) -> None:
    world.map()
    world.settle(product_body(1), product_body(2))
    hide(world, "C-1")
    drift = compare_store(world.buffer, world.client, store=STORE, run_id=RUN)
    assert (drift.missing, drift.requeued) == (["C-1"], 1)
    assert world.queue()["C-1"]["in_doubt"]
    assert "C-1" in {row["code"] for row in world.sql("select code from esl.hipoink_products")}
    world.delete(1, 2)
    world.settle()
    assert world.sandbox.state()["labels"][STORE].keys() == {"C-2"}
    world.sandbox.faults()
    again = compare_store(world.buffer, world.client, store=STORE, run_id=RUN)
    assert again == Drift(STORE, listed=1, ledger=1)


def test_field_14_what_is_there_after_all_is_compared(stocked: Market) -> None:
    world, (first, second, *_) = stocked.world, sorted(stocked.world.labels())
    right = world.labels()
    hide(world, first, second, everywhere=False)
    stocked.edit_label(first, pp="0.01")
    drift = stocked.compare()
    assert (drift.missing, [row["code"] for row in drift.different]) == ([], [first])
    world.settle()
    assert world.labels() == right


def forget(world: World, code: str) -> None:
    """What an older build did with a label that a list lacked."""
    world.sql("delete from esl.hipoink_products where code = %s", code)


def lost_delete(world: World, code: str) -> None:
    """A removal that the label server never confirmed, and of which the queue knows nothing any more."""
    forget(world, code)
    world.sql(
        "insert into esl.sync_log (kind, push_id, store_code, code, mapping_id, variant_id, operation)"
        " select 'intent', gen_random_uuid(), store_code, code, mapping_id, variant_id, 'delete'"
        " from esl.sync_log where code = %s and kind = 'intent'",
        code,
    )


def own(world: World) -> None:
    """From now on nobody else keeps labels in the stores."""
    world.sql("""update esl.store_mappings set settings = settings || '{"owns_store": true}'""")


def compare(world: World, **options: Any) -> Drift:
    return compare_store(world.buffer, world.client, store=STORE, run_id=RUN, **options)


@pytest.mark.parametrize("how", [forget, lost_delete])
@pytest.mark.parametrize("owns_store", [True, False])
def test_field_14_what_our_audit_says_we_wrote_is_ours(
    world: World, how: Callable[[World, str], None], owns_store: bool
) -> None:
    world.map(settings={"owns_store": owns_store})
    world.settle(product_body(1), product_body(2), product_body(3))
    right = world.labels()
    for code in ("C-1", "C-2"):
        how(world, code)
    world.delete(1, 2)
    world.settle()
    assert world.labels() == right  # nobody knows of C-1 any more
    world.sandbox.http.put(f"/sandbox/labels/{STORE}/C-2", json={"pp": "0.01"}).raise_for_status()
    drift = compare(world)
    assert (drift.taken_back, drift.foreign_count, drift.requeued) == (["C-1", "C-2"], 0, 2)
    (queued,) = world.sql("select label ->> 'pp' as pp from esl.hipoink_products where code = 'C-2'")
    assert queued["pp"] == "0.01"  # what hangs, not what should
    world.settle()
    assert world.labels() == {code: right[code] for code in ("C-2", "C-3")}
    assert compare(world) == Drift(STORE, listed=2, ledger=2)


def test_field_14_what_a_paused_mapping_wrote_stays_and_is_not_foreign(world: World) -> None:
    mapping = world.map()
    world.map("other-shop.myshopify.com", settings={"owns_store": True})
    world.settle(product_body(1), product_body(2))
    right = world.labels()
    forget(world, "C-1")
    world.delete(1, 2)
    world.settle()
    world.buffer.mapping_update(mapping, {"is_active": False})
    drift = compare(world)
    assert (drift.taken_back, drift.foreign_count) == (["C-1"], 0)
    world.round()
    assert world.labels() == right
    world.buffer.mapping_update(mapping, {"is_active": True})
    world.settle()
    assert world.labels().keys() == {"C-2"}


def test_field_14_what_we_removed_and_somebody_hung_up_again_is_foreign(world: World) -> None:
    world.map()
    world.settle(product_body(1), product_body(2))
    world.delete(1, 2)
    world.settle()
    world.sandbox.http.put(
        f"/sandbox/labels/{STORE}/C-1", json={"pn": "theirs", "pp": "1"}
    ).raise_for_status()
    assert (compare(world).foreign, compare(world).taken_back) == (["C-1"], [])


def test_field_14_a_foreign_label_that_was_to_be_removed_does_not_become_ours(world: World) -> None:
    world.map(settings={"owns_store": True})
    world.settle(product_body(1))
    world.sandbox.http.put(f"/sandbox/labels/{STORE}/X", json={"pn": "theirs", "pp": "1"}).raise_for_status()
    assert compare(world).requeued == 1
    world.sandbox.faults({"kind": "error", "action": "del_multiple"})
    world.round()
    world.sql("delete from esl.sync_queue")
    forget(world, "X")
    assert (compare(world).foreign, compare(world).taken_back) == (["X"], [])


# --- one odd record


def test_field_07_one_odd_record_is_left_out_and_the_others_are_compared(stocked: Market) -> None:
    rows = stocked.world.client.query(STORE, 1, 200)
    lost, ours, twin, *_ = sorted(stocked.world.labels())
    for number, row in enumerate(rows):
        row["id"] = number
    rows = [row for row in rows if row["product_code"] != lost]
    twins = [dict(row) for row in rows if row["product_code"] == twin]
    strange: list[Any] = [
        {"product_code": f"{ours} "},  # beside the same code without the space
        {"product_code": "FOREIGN ", "product_name": "a\x00b\ud800"},
        {"product_code": "F\x00", "product_name": "NUL"},
        {"product_code": None},
        {"product_name": "no code at all"},
        {"product_code": 4711, "product_name": {"not": "text"}},
        {"product_code": 1.5},
        {"product_code": True},
        {"product_code": ["F"]},
        {"product_code": "  "},
        {"product_code": "half \ud800"},
        None,
        {"product_code": "OFF", "enabled": 0},
        *(twin_row | {"id": 900, "product_price": "0.02"} for twin_row in twins),
    ]
    with running(listing([strange[0], *rows, *strange[1:]])) as url, client_of(url) as client:
        drift = compare_store(stocked.world.buffer, client, store=STORE, run_id=RUN, page_size=20)
        told = compare_store(stocked.world.buffer, client, store=STORE, run_id=RUN, dry_run=True)
    assert (drift.complete, drift.reason, drift.missing) == (True, None, [lost])
    assert [row["code"] for row in drift.different] == [twin]
    assert (drift.foreign, drift.odd_count, drift.requeued) == (["4711", "FOREIGN"], 10, 2)
    assert f"{ours} " in drift.odd and "F\ufffd" in drift.odd
    assert drift.remarks() == [
        f"{STORE}: 10 have codes that no label of ours could have and are left: {', '.join(drift.odd)}"
    ]
    assert told.odd_count == 10


def test_a_server_that_pads_all_codes_with_spaces_has_our_labels(stocked: Market) -> None:
    rows = stocked.world.client.query(STORE, 1, 200)
    padded = [row | {"product_code": f"{row['product_code']}   "} for row in rows]
    with running(listing(padded)) as url, client_of(url) as client:
        drift = compare_store(stocked.world.buffer, client, store=STORE, run_id=RUN)
    assert drift == Drift(STORE, listed=len(rows), ledger=len(rows))


@pytest.mark.parametrize("code", ["0", "000", "A B", "Ä1", "x" * 33, "a,b"])
def test_field_06_a_foreign_code_that_we_could_not_send_is_not_adopted(stocked: Market, code: str) -> None:
    world = stocked.world
    stocked.edit_label(code, pn="not ours", pp="1.00")
    stocked.edit_label("FOREIGN", pn="not ours", pp="1.00")
    own(world)
    drift = stocked.compare()
    assert (drift.odd, drift.odd_count, drift.foreign) == ([code], 1, ["FOREIGN"])
    world.settle()
    assert world.labels().keys() - stocked.prices().keys() == {code}


# --- a repair that does not hold


def nights(market: Market, number: int, **options: Any) -> list[int]:
    """What each of so many nights queues again."""
    requeued = []
    for _ in range(number):
        requeued.append(market.compare(**options).requeued)
        market.world.settle()
    return requeued


def test_field_16_a_label_that_the_server_hides_is_pushed_three_times_and_reported(stocked: Market) -> None:
    world, (code, *_) = stocked.world, sorted(stocked.world.labels())
    hide(world, code)
    assert nights(stocked, 5) == [1, 1, 1, 0, 0]
    drift = stocked.compare()
    assert (drift.missing, drift.given_up, drift.given_up_count) == ([code], {code: "missing"}, 1)
    assert drift.remarks() == [
        f"{STORE}: 1 came back after three repairs and are left as they are: {code} (missing)"
    ]
    (kept,) = world.sql("select complete, skipped, given_up, ledger from esl.comparisons")
    assert kept == {"complete": True, "skipped": 0, "given_up": 1, "ledger": 60}
    # Its next price is pushed as any other, and it goes when its product goes.
    stocked.change_prices(
        [product for product in stocked.products() if code in {v.barcode for v in product.variants}]
    )
    stocked.changes()
    world.settle()
    assert world.prices() == stocked.prices()
    world.sql("alter table esl.drift disable trigger user")
    world.sql("update esl.drift set at = at - interval '15 days'")
    assert stocked.compare().requeued == 1


def test_field_16_a_foreign_label_that_always_comes_back_is_somebody_elses(stocked: Market) -> None:
    requeued = []
    own(stocked.world)
    for night in range(5):
        stocked.edit_label("FOREIGN", pn="not ours", pp=f"{night}.00")
        drift = stocked.compare()
        requeued.append(drift.requeued)
        stocked.world.settle()
    assert requeued == [1, 1, 1, 0, 0]
    assert (drift.foreign, drift.given_up) == (["FOREIGN"], {"FOREIGN": "foreign"})
    assert "FOREIGN" in stocked.world.labels()


def test_field_16_a_server_that_drops_leading_zeros_loses_no_label(world: World) -> None:
    world.map(settings={"owns_store": True, "guard_labels": 100})
    world.sandbox.faults({"kind": "drops_zeros"})
    codes = ["00123", "0456", "789"]
    world.settle(*(product_body(n, variants=[variant_body(n, code=code)]) for n, code in enumerate(codes, 1)))
    requeued = []
    for _ in range(5):
        drift = compare(world)
        requeued.append(drift.requeued)
        world.settle()
    assert requeued == [2, 2, 2, 0, 0]
    assert drift.changed == {"00123": "123", "0456": "456"}
    assert "2 missing labels, because the server changes codes: 00123 may hang as 123" in drift.remarks()[0]
    assert drift.given_up == {"00123": "missing", "0456": "missing"}
    assert world.labels().keys() == {"123", "456", "789"}
    assert None not in world.shown("123") + world.shown("456")


@pytest.mark.parametrize(
    "written",
    [str.upper, str.lower, lambda c: c.replace("-", ""), lambda c: c[:10], lambda c: c.lstrip("0")],
    ids=["upper case", "lower case", "no signs", "cut", "no zeros"],
)
def test_field_16_a_code_that_may_be_ours_is_not_removed_as_foreign(
    world: World, written: Callable[[str], str]
) -> None:
    world.map(settings={"owns_store": True})
    code = "0Ab-1234567cD"
    world.settle(product_body(1, variants=[variant_body(1, code=code)]), product_body(2))
    rows = [
        row | {"product_code": written(str(row["product_code"]))} if row["product_code"] == code else row
        for row in world.client.query(STORE, 1, 9)
    ]
    rows.append({"product_code": "FOREIGN", "product_name": "?", "product_price": "1.00"})
    with running(listing(rows)) as url, client_of(url) as client:
        drift = compare_store(world.buffer, client, store=STORE, run_id=RUN)
    assert drift.changed == {code: written(code)}
    removed = {code for code, row in world.queue().items() if row["operation"] == "delete"}
    assert removed == {"FOREIGN"}


def test_a_label_on_its_way_may_hang_under_a_changed_code_as_well(world: World) -> None:
    world.map(settings={"owns_store": True})
    world.sandbox.faults({"kind": "drops_zeros"}, {"kind": "error", "action": "create_multiple", "times": 1})
    world.settle(product_body(1, variants=[variant_body(1, code="00123")]))
    world.sandbox.http.put(f"/sandbox/labels/{STORE}/123", json={"pn": "P", "pp": "1"}).raise_for_status()
    world.sql("update esl.sync_queue set state = 'failed', in_doubt = true")
    forget(world, "00123")
    world.update(product_body(1, version=2, variants=[variant_body(1, code="00123", price="2.00")]))
    world.round(batch_size=0)
    drift = compare(world)
    assert (drift.foreign, drift.changed) == (["123"], {"00123": "123"})
    assert "123" in world.labels()


# --- killed and tried again


class _Doomed(Buffer):
    """The buffer of a process that is killed at a call: before it is made, or after its nth answer."""

    def __init__(self, dsn: str, point: tuple[str, str, int]) -> None:
        super().__init__(PsycopgTransport(SecretStr(dsn)))
        self._when, self._function, self._left = point

    def _call(self, function: str, **p: Any) -> dict[str, Any]:
        last = function == self._function and self._count()
        if last and self._when == "before":
            _die()
        answer = super()._call(function, **p)
        if last:
            _die()
        return answer

    def _count(self) -> bool:
        self._left -= 1
        return self._left == 0


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def _nightly(dsn: str, shopify_url: str, label_url: str, point: tuple[str, str, int]) -> None:
    """A run in a process of its own."""
    snapshot_stage.SNAPSHOT_ROWS = 20
    buffer = _Doomed(dsn, point)
    with (
        AdminClient(shopify_url, SecretStr(TOKEN), "2026-10", sleep=nap) as admin,
        client_of(label_url, retries=1) as client,
    ):
        read_snapshot(buffer, ShopifyReader(admin, DOMAIN, sleep=nap), shop=KEY, run_id="killed")
        while drain_round(buffer, client, RULES, run_id="killed", asset=ASSET).did_something:
            pass
        compare_store(buffer, client, store=STORE, run_id="killed")


POINTS = {
    "after begin": ("after", "esl_snapshot_begin", 1),
    "mid merge": ("after", "esl_snapshot_merge", 3),
    "before finish": ("before", "esl_snapshot_finish", 1),
    "after finish": ("after", "esl_snapshot_finish", 1),
    "after stage": ("after", "esl_labels_stage", 1),
    "claimed": ("after", "esl_push_claim", 1),
    "pushed": ("before", "esl_push_finish", 1),
    "recorded": ("after", "esl_push_finish", 1),
    "mid compare": ("after", "esl_drift_repair", 1),
}


@pytest.mark.long
@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS.keys())
def test_a_run_that_is_killed_and_tried_again_converges(stocked: Market, point: tuple[str, str, int]) -> None:
    world = stocked.world
    stocked.change_prices(stocked.products()[:4])
    stocked.shop.delete(next(product for product in stocked.products()[4:] if len(product.variants) < 6))
    stocked.shop.add(stocked.shop.catalogue.loose_tea(stocked.shop.now))
    staying = set(stocked.prices())
    stocked.edit_label(str(stocked.products()[3].variants[-1].barcode), pn="Somebody's own")

    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(
        ["esl_pipeline.stages.snapshot", "esl_pipeline.stages.drift", "esl_pipeline.sandbox.shopify.server"]
    )
    run = forks.Process(target=_nightly, args=(world.dsn, stocked.shopify.url, world.sandbox.url, point))
    run.start()
    run.join(30)
    assert run.exitcode == -signal.SIGKILL

    world.expire_leases()
    stocked.reconciled()
    assert world.prices() == stocked.prices()
    assert stocked.compare() == Drift(STORE, listed=len(staying), ledger=len(staying))
    for code, changes in world.sandbox.state()["history"][STORE].items():
        assert code not in staying or all(change["record"] for change in changes)
    assert world.sql("select from esl.snapshot_variants") == []
    assert state_of(stocked)[-1]["state"] == "finished"
    calls = world.calls()
    stocked.snapshot()
    world.settle()
    assert world.calls() == calls
