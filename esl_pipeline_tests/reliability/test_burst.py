"""F34: a promotion changes 20,000 variants within a minute, at a real pipeline whose label server is slow just then."""

import random
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import psycopg
import psycopg.rows
import pytest

from esl_pipeline.local.variables import running_environment
from esl_pipeline.local.webserver import Webserver
from esl_pipeline.sandbox.shopify.catalogue import Product, price_text
from esl_pipeline.sandbox.shopify.delivery import WebhookSender
from esl_pipeline.sandbox.shopify.server import running_shopify
from esl_pipeline.sandbox.shopify.shop import DOMAIN, Shop, real_time
from esl_pipeline.sandbox.shopify.webhooks import Webhooks
from esl_pipeline_tests.reliability.outside import (
    STORE,
    WEBHOOK_SECRET,
    LabelServer,
    map_shop,
    pipeline_settings,
    scratch_home,
)
from esl_pipeline_tests.reliability.victim import Victim
from esl_pipeline_tests.waiting import eventually

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
    pytest.mark.slow,
    pytest.mark.timeout(900),
]

PRODUCTS, VARIANTS, PASSES = 200, 100, 5
BURST_SECONDS = 60.0
BATCH = 100


def _shop() -> Shop:
    shop = Shop(34, real_time() - timedelta(hours=1))
    for number in range(PRODUCTS):
        product = shop.catalogue.product(
            shop.now,
            f"Artikel {number}",
            vendor="Lager",
            product_type="Promo",
            option_names=["Size"],
            options=[(f"{size} g",) for size in range(1, VARIANTS + 1)],
        )
        shop.add(product)
    shop.clock = real_time
    return shop


def _reprice(product: Product, part: int, rng: random.Random) -> None:
    """Every fifth variant: of ten 6 get dearer, 3 cheaper, one gets a new name only (with the product)."""
    for number, variant in enumerate(product.variants):
        if number % PASSES != part:
            continue
        cents = int((variant.price or "").replace(".", ""))
        kind = number // PASSES % 10
        if kind < 6:
            variant.price = price_text(cents + rng.randrange(1, 50))
        elif kind < 9:
            variant.price = price_text(cents - rng.randrange(1, 20))


def _due(dsn: str) -> dict[str, int]:
    with psycopg.connect(dsn, row_factory=psycopg.rows.dict_row) as connection:
        row = connection.execute(
            "select (select count(*) from esl.webhook_inbox where state in ('ready', 'leased')) as inbox,"
            " (select count(*) from esl.products where due) as variants,"
            " (select count(*) from esl.sync_queue) as queue"
        ).fetchone()
    return row or {}


def _changes(state: dict[str, Any], since: datetime) -> Iterator[tuple[datetime, str]]:
    """What was written to the labels since then, and whether it was a rise, a cut or something else."""
    for history in state["history"][STORE].values():
        for before, entry in pairwise(history):
            at = datetime.fromisoformat(entry["at"])
            old, new = float(before["record"]["pp"]), float(entry["record"]["pp"])
            if at > since:
                yield at, "rise" if new > old else "cut" if new < old else "other"


def test_f34_twenty_thousand_variants_in_a_minute_lose_nothing_and_rises_come_first() -> None:
    shop, rng = _shop(), random.Random(34)
    webhooks = Webhooks(shop)
    with ExitStack() as stack:
        home = stack.enter_context(scratch_home("esl-burst-"))
        (home / "outside").mkdir()
        labels = stack.enter_context(LabelServer(home / "outside"))
        victim = Victim(home / "up", {})
        sender = stack.enter_context(
            WebhookSender(f"{victim.receiver}/webhooks/shopify", WEBHOOK_SECRET, connections=8)
        )
        shopify = stack.enter_context(running_shopify(shop))
        victim.variables |= pipeline_settings(labels.url, shopify.url)
        victim.variables |= {"HIPOINK_RATE_LIMIT_PER_SECOND": "1000", "HIPOINK_BATCH_SIZE": str(BATCH)}
        # One call at a time, or the label server takes the rises as fast as they come and no queue is left to look at.
        victim.variables |= {"HIPOINK_CONCURRENCY": "1"}
        stack.callback(victim.stop)
        victim.start()
        victim.wait()
        dsn = running_environment(victim.home)["ESL_DATABASE_URL"]
        map_shop(dsn)
        webserver = Webserver(victim.ui)
        time.sleep(5)  # the sensor adds the shop's partition
        webserver.wait(webserver.launch("full_reconciliation", partition=f"shopify:{DOMAIN}"), 300)
        eventually(lambda: not any(_due(dsn).values()), 120, "the first fill")
        assert not labels.wrong(list(shop.products.values()))

        labels.faults({"kind": "latency", "action": "create_multiple", "ms": 1500})
        began = time.monotonic()
        products = list(shop.products.values())
        for number in range(PRODUCTS * PASSES):
            product = products[number % PRODUCTS]
            with shop.lock:
                _reprice(product, number // PRODUCTS, rng)
                if number >= PRODUCTS * (PASSES - 1):
                    product.title += " Aktion"
                shop.touch(product)
                sender.send(webhooks.updated(product))
            time.sleep(max(0.0, began + number * BURST_SECONDS / (PRODUCTS * PASSES) - time.monotonic()))
        assert sender.wait(30), sender.state(5)
        burst = time.monotonic() - began
        attempts = sender.attempts()
        seconds = sorted(one.seconds for one in attempts)
        p50, p99 = seconds[len(seconds) // 2], seconds[len(seconds) * 99 // 100]
        print(
            f"{len(attempts)} webhooks of {VARIANTS} variants in {burst:.0f} s: acknowledged in {p50 * 1000:.0f} ms"
            f" (median), {p99 * 1000:.0f} ms (p99), {seconds[-1] * 1000:.0f} ms (longest)"
        )
        eventually(lambda: not (_due(dsn)["inbox"] or _due(dsn)["variants"]), 180, "all that came to be read")
        read = time.monotonic() - began
        complete, waiting = datetime.now(UTC), _due(dsn)["queue"]
        time.sleep(3)  # the call that is on its way
        labels.faults()
        eventually(lambda: not _due(dsn)["queue"], 240, "the queue to drain")
        drained = time.monotonic() - began

        wrong = labels.wrong(products)
        order = [kind for _, kind in sorted(_changes(labels.state(), complete + timedelta(seconds=3)))]
        with psycopg.connect(dsn) as connection:
            (kept,) = connection.execute("select count(*) from esl.webhook_inbox").fetchone() or (0,)

    print(
        f"all read after {read:.0f} s, {waiting} labels in the queue then, pushed in this order:"
        f" {order.count('rise')} rises, {order.count('cut')} cuts, {order.count('other')} others;"
        f" all {PRODUCTS * VARIANTS} labels right after {drained:.0f} s"
    )
    assert burst < BURST_SECONDS + 15
    assert p99 < 5
    assert {one.outcome for one in attempts} == {"delivered"} and kept == len(attempts) == PRODUCTS * PASSES
    assert wrong == []
    assert order.count("rise") > 10 * BATCH and order.count("cut") > 10 * BATCH
    # One call may hold the last rises and the first cuts, in the order of their codes.
    for first, second in (("rise", "cut"), ("cut", "other"), ("rise", "other")):
        if second in order:
            last = max(n for n, kind in enumerate(order) if kind == first)
            assert last - order.index(second) < BATCH, (first, second)
