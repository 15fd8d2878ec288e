"""Any Postgres, any age: a short drain on a stock server, counters that equal what they count, what is forgotten."""

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from pydantic import SecretStr
from rich.console import Console

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.transports import PsycopgTransport
from esl_pipeline.commands.status import print_status
from esl_pipeline.model.shop import shop_key
from esl_pipeline.orchestration.checks import webhooks_arrive
from esl_pipeline_tests.stages.test_budgets import HUNDRED
from esl_pipeline_tests.stock import through
from esl_pipeline_tests.world import SHOP, STORE, World, level, product, variant, when

pytestmark = pytest.mark.long

KEPT = {"keep_bodies_days": 30, "keep_deliveries_days": 90}

# What esl_status counted before, for comparison.
COUNTED = """
select source_system, source_store_id, count(*) filter (where state = 'done') as done,
       count(*) filter (where state = 'superseded') as superseded,
       count(*) filter (where state = 'unusable') as unusable,
       count(*) filter (where state = 'unusable' and reason like 'replay suspected%%') as replays,
       count(*) filter (where state = 'dead') as dead, max(received_at) as last_received_at
from esl.webhook_inbox where state not in ('ready', 'leased') group by 1, 2 order by 1, 2"""
KEPT_COUNTS = """
select source_system, source_store_id, done, superseded, unusable, replays, dead, last_received_at
from esl.shop_deliveries where done + superseded + unusable + dead > 0 order by 1, 2"""


@pytest.fixture(params=["direct", "transaction", pytest.param("session", marks=pytest.mark.slow)])
def stock_world(request: pytest.FixtureRequest, world: World) -> Iterator[World]:
    """The world on a stock Postgres with JIT, direct and by way of pgbouncer in both modes."""
    stock = request.getfixturevalue("stock")
    name = f"drain_{time.monotonic_ns()}"
    stock.create_database(name, template="migrated")
    dsn = stock.dsn(name)
    if request.param != "direct":
        dsn = through(request.getfixturevalue("pooler")(request.param), dsn)
    with PsycopgTransport(SecretStr(dsn)) as transport:
        yield replace(world, buffer=Buffer(transport), dsn=stock.dsn(name))


def test_field_37_a_short_drain_on_a_stock_postgres_and_through_its_poolers(stock_world: World) -> None:
    world = stock_world
    world.map()
    world.settle(product(1, variants=HUNDRED))
    assert len(world.labels(STORE)) == 100
    world.settle(product(1, version=2, variants=[variant(n, price="1.10") for n in range(1, 100)]))
    assert world.prices(STORE) == {f"C-{n}": "1.10" for n in range(1, 100)}


def _ago(world: World, days: int) -> None:
    world.sql(f"update esl.webhook_inbox set finished_at = finished_at - interval '{days} d'")


def test_field_35_the_counters_of_a_shop_equal_its_deliveries_however_they_ended(world: World) -> None:
    world.map()
    world.map("other.myshopify.com", "S2")
    assert world.sql(KEPT_COUNTS) == []
    world.update(product(1, version=2), product(2), product(3))
    world.round()
    world.update(product(1, version=1))  # superseded
    world.update(product(2, version=5), shop="other.myshopify.com")  # a replay: product 2 is the first shop's
    world.stock(level(1))
    world.round()
    world.sql("insert into esl.webhook_inbox (source_system, source_store_id, topic, webhook_id, body_sha256, body)"
              " values ('shopify', 'nobody.myshopify.com', 'products/update', 'w', 's', '')")  # fmt: skip
    assert world.sql(KEPT_COUNTS) == world.sql(COUNTED)
    assert {row["source_store_id"]: row["done"] for row in world.sql(KEPT_COUNTS)} == {
        SHOP: 4,
        "other.myshopify.com": 0,
    }

    # Given up, then sent again by hand; a claim alone changes nothing.
    world.update(product(4))
    for attempt in range(3):
        world.buffer.inbox_claim(run_id="dies", max_attempts=2, lease_seconds=-1)
        assert world.sql(KEPT_COUNTS) == world.sql(COUNTED), attempt
    assert world.inbox().count("dead") == 1
    world.buffer.transport.call("esl_redrive", {})
    assert [row["dead"] for row in world.sql(KEPT_COUNTS)] == [0, 0]
    world.settle()
    assert world.sql(KEPT_COUNTS) == world.sql(COUNTED)

    status = world.buffer.status()
    shops = {row["source_store_id"]: row for row in status["shops"]}
    assert (shops[SHOP]["deliveries"], shops[SHOP]["dead"], shops[SHOP]["superseded"]) == (6, 0, 1)
    assert (shops["other.myshopify.com"]["replays"], shops["other.myshopify.com"]["mapped"]) == (1, True)
    nobody = shops["nobody.myshopify.com"]
    assert (nobody["waiting"], nobody["deliveries"], nobody["mapped"]) == (1, 1, False)
    assert nobody["last_received_at"] is not None, "an open delivery has been received too"
    only = world.buffer.status(shops=[{"source_system": "shopify", "source_store_id": SHOP}])
    assert only["shops"] == [shops[SHOP]]
    assert only["stores"] == [row for row in status["stores"] if row["source_store_id"] == SHOP]


def test_field_35_status_reads_nothing_that_is_over(world: World) -> None:
    world.map()
    world.settle(product(1))
    world.sql(
        "insert into esl.webhook_inbox (source_system, source_store_id, topic, webhook_id, body_sha256, state,"
        " finished_at) select 'shopify', %s, 'products/update', 'w' || n, 's' || n, 'done', now()"
        " from generate_series(1, 20000) n",
        SHOP,
    )
    world.sql("insert into esl.drift (store_code, code, kind) select 'S1', 'c' || n, 'missing'"
              " from generate_series(1, 20000) n")  # fmt: skip
    world.sql("analyze esl.webhook_inbox")

    def read() -> int:
        row, = world.sql("select pg_stat_clear_snapshot(), sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) as n"
                         " from pg_stat_user_tables where schemaname = 'esl'")  # fmt: skip
        return int(row["n"])

    with PsycopgTransport(SecretStr(world.dsn)) as transport:
        Buffer(transport).status()
        transport.close()
    before = read()
    with PsycopgTransport(SecretStr(world.dsn)) as transport:
        status = Buffer(transport).status()
    deadline = time.monotonic() + 10  # a session reports what it has read when it ends
    while (after := read()) == before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert status["shops"][0]["deliveries"] == 20_001
    assert 0 < after - before < 1_000


def test_field_30_a_shop_whose_deliveries_are_all_refused_raises_the_alarm(world: World) -> None:
    console = Console(file=io.StringIO(), record=True, width=250)
    world.map()
    world.settle(*[product(n) for n in range(1, 8)])
    # The shop's name has changed, and with it what its deliveries say.
    world.map("renamed.myshopify.com", "S9")

    def judged() -> tuple[bool, str]:
        status = world.buffer.status()
        result = webhooks_arrive(
            status, "shopify:renamed.myshopify.com", hours=24, now=datetime.now(UTC)
        )  # fmt: skip
        print_status(console, status)
        return result.passed, result.description or ""

    for n in range(1, 5):
        world.update(product(n, version=2), shop="renamed.myshopify.com")
        world.round()
    assert judged()[0], "four are not many"
    world.update(product(5, version=2), product(6, version=2), shop="renamed.myshopify.com")
    world.round()
    passed, says = judged()
    words = "replay suspected: product 6 is known as shop corner-shop.myshopify.com's"
    assert (passed, says) == (False, f"none of the last 6 webhooks could be used: {words}")
    assert "none of its last 6 deliveries could be used" in console.export_text()
    # One that is used ends it; a lone refusal after it begins anew.
    world.update(product(70, version=2), shop="renamed.myshopify.com")
    world.round()
    assert judged()[0]
    world.update(product(7, version=2), shop="renamed.myshopify.com")
    world.round()
    (row,) = [s for s in world.buffer.status()["shops"] if s["source_store_id"] == "renamed.myshopify.com"]
    assert (row["refused_in_a_row"], shop_key(row)) == (1, "shopify:renamed.myshopify.com")


def test_field_42_old_deliveries_are_forgotten_where_their_signed_time_protects(world: World) -> None:
    world.map()
    world.settle(product(1, version=1))
    world.settle(product(1, version=2, variants=[variant(1, price="2.00")]), product(2))
    world.stock(level(1, 5, version=1))
    world.round()
    world.stock(level(1, 4, version=2))
    world.delete(2, version=3)
    world.settle()
    world.send("products/update", product(3))  # open: never forgotten
    _ago(world, 91)
    done = world.buffer.housekeep(**KEPT)
    assert (done["bodies"], done["deliveries"], done["more"]) == (6, 5, False)
    left = world.sql("select topic, state from esl.webhook_inbox order by id")
    assert left == [
        {"topic": "products/delete", "state": "done"},
        {"topic": "products/update", "state": "ready"},
    ]
    shop = world.buffer.status()["shops"][0]
    assert (shop["deliveries"], shop["done"]) == (7, 6), "what has been counted stays so"

    # Replays of what is forgotten are older than what is known; that of the delete is known by its hash.
    pushes = world.calls()
    world.update(product(1, version=1), product(2))
    world.stock(level(1, 5, version=1))
    assert world.buffer.inbox_add([_again(world)])["inserted"] == 0
    world.settle()
    assert world.inbox()[2:] == ["superseded"] * 3
    assert world.prices() == {"C-1": "2.00", "C-3": "1.00"}
    assert world.calls() == pushes + 1, "that of product 3"
    (stock,) = world.sql("select available from esl.inventory_levels")
    assert stock["available"] == 4

    # The label's history bears that its first deliveries are gone.
    (place,) = world.buffer.trace("C-1")
    assert (place["forgotten"], place["deliveries"]) == (2, [])


def _again(world: World) -> dict[str, object]:
    (row,) = world.sql("select * from esl.webhook_inbox where topic = 'products/delete'")
    keys = ("source_system", "source_store_id", "topic", "body_sha256")
    return {key: row[key] for key in keys} | {
        "webhook_id": "another",
        "triggered_at": when(3),
        "body_base64": "e30=",
        "state": "ready",
    }


def test_field_42_deliveries_go_in_batches_and_not_without_being_told(world: World) -> None:
    world.map()
    world.settle(*[product(n) for n in range(1, 6)])
    _ago(world, 91)
    assert world.buffer.housekeep(keep_bodies_days=30)["deliveries"] == 0
    told: Callable[[], dict[str, object]] = lambda: world.buffer.housekeep(**KEPT, limit=2)  # noqa: E731
    assert [(d["deliveries"], d["more"]) for d in (told(), told(), told())] == [
        (2, True),
        (2, True),
        (1, False),
    ]
