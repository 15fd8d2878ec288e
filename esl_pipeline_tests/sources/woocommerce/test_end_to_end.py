"""From a WooCommerce shop to its labels: over the real receiver, buffer and label server, and without any webhook."""

import base64
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta

import pytest

from esl_pipeline.receiver.app import create_app
from esl_pipeline.sandbox.woocommerce.api import CONSUMER_KEY, CONSUMER_SECRET
from esl_pipeline.sandbox.woocommerce.delivery import Trouble, WebhookSender
from esl_pipeline.sandbox.woocommerce.faults import Redirect, Status
from esl_pipeline.sandbox.woocommerce.server import TOPICS, RunningWooCommerce, running_woocommerce
from esl_pipeline.sandbox.woocommerce.shop import Shop, stocked_shop
from esl_pipeline.settings import Settings, load_settings
from esl_pipeline.sources.source import Reader, SourceError
from esl_pipeline.stages.catch_up import read_changes
from esl_pipeline.stages.snapshot import Snapshot, read_snapshot
from esl_pipeline_tests.receiver.support import served
from esl_pipeline_tests.sources.woocommerce.support import hours
from esl_pipeline_tests.world import AT_ONCE, RUN, World

pytestmark = pytest.mark.long

SECRET = "of-the-webhooks"


@dataclass
class Market:
    """A shop, the labels that it feeds, and the verbs of the tests."""

    world: World
    settings: Settings
    running: RunningWooCommerce
    store: str

    @property
    def shop(self) -> Shop:
        return self.running.sandbox.shop

    @property
    def key(self) -> dict[str, str]:
        return {"source_system": "woocommerce", "source_store_id": self.running.shop_id}

    def reader(self) -> Reader:
        return self.settings.sources["woocommerce"].reader(self.running.shop_id)

    def night(self) -> Snapshot:
        """Read the whole shop and push what differs."""
        self.shop.wait()
        with self.reader() as reader:
            snapshot = read_snapshot(self.world.buffer, reader, shop=self.key, run_id=RUN)
        self.world.settle()
        return snapshot

    def catch_up(self) -> dict[str, object]:
        """Read what changed lately, and products of which webhooks did not tell all; push."""
        self.shop.wait()
        with self.reader() as reader:
            found = read_changes(self.world.buffer, reader, shop=self.key, run_id=RUN)
        self.world.settle()
        return found

    def prices(self) -> dict[str, str]:
        return self.world.prices(self.store)


def truth(shop: Shop) -> dict[str, str]:
    """What the labels must show, by rules of the test's own."""
    found = {}
    for product in shop.products.values():
        for item in product.variations if product.kind == "variable" else [product]:
            if product.status == item.status == "publish" and item.gtin:
                now = shop.time() if shop.clock else hours(0)
                on = (
                    item.sale_price
                    and not (item.sale_from and item.sale_from > now)
                    and not (item.sale_to and item.sale_to < now)
                    and float(item.sale_price) < float(item.regular_price)
                )
                found[item.gtin] = f"{float(item.sale_price if on else item.regular_price):.2f}"
    return found


def two_products(letter: str) -> Shop:
    """A simple product and a variable one; the ids are those of any other shop."""
    shop = Shop(start=hours(-0.15))
    shop.add("Tea", "2.50", gtin=f"{letter}-1", manage_stock=True, stock=3)
    bread = shop.add("Bread", options={("1 kg",): "4.00", ("2 kg",): "7.00"})
    for number, variation in enumerate(bread.variations):
        shop.sneak(bread, variation, gtin=f"{letter}-2{number}")
    return shop


def settings_of(*running: RunningWooCommerce) -> Settings:
    named = [f"{one.shop_id}={one.sandbox.consumer_key}:{one.sandbox.consumer_secret}" for one in running]
    secrets = [f"{one.shop_id}={SECRET}-{number}" for number, one in enumerate(running)]
    return load_settings(woocommerce_keys=",".join(named), woocommerce_webhook_secret=",".join(secrets))


@contextmanager
def markets(world: World, *shops: Shop) -> Iterator[list[Market]]:
    """Each shop served and mapped to a store of its own."""
    with ExitStack() as stack:
        running = [
            stack.enter_context(
                running_woocommerce(
                    shop,
                    consumer_key=f"ck_canary000{n}",
                    consumer_secret=f"cs_canary000{n}",
                    path=f"/shop{n}",
                )
            )
            for n, shop in enumerate(shops)
        ]
        settings = settings_of(*running)
        made = [Market(world, settings, one, f"S{n}") for n, one in enumerate(running)]
        for one in made:
            wish = {"hipoink_store_code": one.store, "settings": AT_ONCE | {"guard_labels": 2048}}
            world.buffer.mapping_create(one.key | wish)
        yield made


@pytest.fixture
def market(world: World) -> Iterator[Market]:
    with markets(world, two_products("A")) as (one,):
        yield one


# --- without webhooks


def test_a_night_fills_the_labels_and_changes_nothing_the_second_time(market: Market) -> None:
    assert market.night().complete
    assert market.prices() == truth(market.shop) == {"A-1": "2.50", "A-20": "4.00", "A-21": "7.00"}
    assert market.world.labels(market.store)["A-20"]["pn"] == "Bread - 1 kg"
    before = market.world.calls()
    again = market.night()
    assert (again.changed, again.unchanged, market.world.calls()) == (0, 3, before)


def test_polling_alone_brings_every_change(market: Market) -> None:
    market.night()
    shop = market.shop
    tea, bread = shop.products.values()
    shop.change(tea, regular_price="3.00", stock=1)
    shop.change(bread, bread.variations[0], regular_price="4.40")
    shop.remove_variation(bread, bread.variations[1])
    milk = shop.add("Milk", "1.10", gtin="A-3")
    market.catch_up()
    assert market.prices() == truth(shop) == {"A-1": "3.00", "A-20": "4.40", "A-3": "1.10"}
    (level,) = market.world.sql("select available from esl.inventory_levels where inventory_item_id = '1'")
    assert level["available"] == 1
    shop.delete(milk)  # for good: nothing tells of it but a whole read
    shop.change(tea, status="private")
    market.catch_up()
    assert set(market.prices()) == {"A-20", "A-3"}
    market.night()
    assert market.prices() == truth(shop) == {"A-20": "4.40"}


def test_a_sale_that_begins_by_its_date_comes_with_the_night(market: Market) -> None:
    tea = market.shop.products[1]
    market.shop.sneak(tea, sale_price="2.00", sale_from=hours(1))
    market.night()
    assert market.prices()["A-1"] == "2.50"
    market.shop.sneak(tea, sale_from=hours(-1))  # an hour has passed: the product itself is unchanged
    market.night()
    assert market.prices()["A-1"] == "2.00"


def test_a_read_that_fails_takes_nothing_off(market: Market) -> None:
    market.night()
    del market.shop.products[1]
    market.running.sandbox.faults.replace([Status(status=404)])
    with pytest.raises(SourceError):
        market.night()
    market.running.sandbox.faults.replace([])
    market.shop.products[2].hidden = True
    with pytest.raises(SourceError, match="counted and not shown"):
        market.night()
    assert set(market.prices()) == {"A-1", "A-20", "A-21"}


# --- with webhooks


@contextmanager
def webhooks(*markets: Market, trouble: Trouble | None = None) -> Iterator[list[WebhookSender]]:
    """Every shop's webhooks, made and pinged, to one receiver."""
    app = create_app(markets[0].settings, markets[0].world.buffer, only="webhooks")
    with served(app) as receiver, ExitStack() as stack:
        senders = []
        for number, market in enumerate(markets):
            sender = stack.enter_context(WebhookSender(market.shop, market.running.url, trouble=trouble))
            market.running.sandbox.sender = sender
            for topic in TOPICS:
                sender.add(topic, f"{receiver}/webhooks/woocommerce", f"{SECRET}-{number}")
            senders.append(sender)
        yield senders


def test_webhooks_bring_what_they_tell_and_the_rest_is_fetched(market: Market) -> None:
    market.night()
    shop = market.shop
    tea, bread = shop.products.values()
    with webhooks(market) as (sender,):
        shop.change(tea, sale_price="2.00")
        shop.change(bread, bread.variations[0], regular_price="4.40")
        assert sender.wait(10)
        assert {attempt.status for attempt in sender.attempts} == {200}
        market.world.settle()
        assert market.prices() == {"A-1": "2.00", "A-20": "4.40", "A-21": "7.00"}
        shop.change(bread, name="Rye bread")
        shop.add_variation(bread, ("3 kg",), "9.00", gtin="A-22")
        shop.add("Rolls", options={("6",): "3.00"}, brand="Oven")
        shop.sneak(shop.products[6], shop.products[6].variations[0], gtin="A-6")
        assert sender.wait(10)
        market.world.settle()
        assert market.world.labels(market.store)["A-20"]["pn"] == "Rye bread - 1 kg"
        assert "A-6" not in market.prices()  # its name is not told yet
        found = market.catch_up()
        assert found["fetched"] or found["products"]
        assert market.prices() == truth(shop)
        assert market.world.labels(market.store)["A-6"]["pn"] == "Rolls - 6"


def test_the_trash_takes_a_label_off_and_gives_it_back(market: Market) -> None:
    market.night()
    tea = market.shop.products[1]
    with webhooks(market) as (sender,):
        market.shop.trash(tea)
        assert sender.wait(10)
        market.world.settle()
        assert "A-1" not in market.prices()
        # Put back at once, by a shop whose clock is behind: it is older than the news that it was gone. A read that
        # begins later by that clock sees it.
        market.shop.restore(tea, "publish")
        assert sender.wait(10)
        market.shop.now = hours(0.1)
        market.night()
        assert market.prices() == truth(market.shop)


def test_everything_is_right_after_a_day_of_trouble(world: World) -> None:
    shop = stocked_shop(variants=60)
    shop.clock, shop.now = None, hours(-0.5).replace(microsecond=0)
    with markets(world, shop) as (market,):
        market.night()
        trouble = Trouble(lost=0.1, doubled=0.2, overtaken=0.3)
        with webhooks(market, trouble=trouble) as (sender,):
            _trade(shop)
            assert sender.wait(20)
            world.settle()
        market.catch_up()
        assert market.prices() == truth(shop)


def _trade(shop: Shop) -> None:
    for product in list(shop.products.values()):
        thing = shop.rng.choice(product.variations) if product.variations else None
        shop.change(product, thing, regular_price=f"{shop.rng.randrange(100, 999) / 100:.2f}", sale_price="")
        match shop.rng.randrange(5):
            case 0:
                shop.change(product, name=f"{product.name} (neu)")
            case 1:
                shop.change(product, status="draft")
            case 2:
                shop.change(product, thing, sale_price="0.99", sale_to=hours(1))
            case 3 if len(product.variations) > 1:
                shop.remove_variation(product, product.variations[0])


# --- two shops


def test_two_shops_with_equal_ids_live_side_by_side(world: World) -> None:
    with markets(world, two_products("A"), two_products("B")) as (first, second):
        for market in (first, second):
            market.night()
        assert list(first.shop.products) == list(second.shop.products)
        with webhooks(first, second) as senders:
            first.shop.change(first.shop.products[1], regular_price="9.90")
            second.shop.trash(second.shop.products[1])
            assert all(sender.wait(10) for sender in senders)
            world.settle()
        assert first.prices() == {"A-1": "9.90", "A-20": "4.00", "A-21": "7.00"}
        assert second.prices() == {"B-20": "4.00", "B-21": "7.00"}
        assert world.findings() == set()


def test_a_key_goes_to_its_own_shop_alone(world: World) -> None:
    with markets(world, two_products("A"), two_products("B")) as (first, second):
        first.running.sandbox.faults.replace([Redirect(to=second.running.url, times=1)])
        with pytest.raises(SourceError, match="another address"):
            first.night()
        for market in (first, second):
            market.night()
            list(
                market.settings.sources["woocommerce"].checks(
                    [market.running.shop_id], [market.running.shop_id]
                )
            )
            sandbox = market.running.sandbox
            shown = {
                base64.b64decode(text.removeprefix("Basic ")).decode() for text in sandbox.authorizations
            }
            assert shown == {f"{sandbox.consumer_key}:{sandbox.consumer_secret}"}


def test_a_signature_of_one_shop_is_none_of_another(world: World) -> None:
    with (
        markets(world, two_products("A"), two_products("B")) as (first, second),
        webhooks(first, second) as senders,
    ):
        theirs, ours = senders
        ours.site, site = theirs.site, ours.site  # the second shop claims to be the first
        second.shop.change(second.shop.products[1], regular_price="0.01")
        assert ours.wait(10)
        ours.site = site
        assert [attempt.status for attempt in ours.attempts] == [401]


# --- for doctor


def test_doctor_sees_the_shop_and_webhooks_that_were_switched_off(market: Market) -> None:
    source, shop = market.settings.sources["woocommerce"], market.running.shop_id
    with webhooks(market) as (sender,):
        (check,) = source.checks([shop], [shop])
        assert (check.state, "prices in EUR with taxes" in check.says) == ("ok", True)
        sender.webhooks[1].secret = "wrong"
        for _ in range(7):
            market.shop.change(market.shop.products[1])
        assert sender.wait(10)
        assert sender.webhooks[1].status == "disabled"
        _, check = source.checks([shop], [shop])
        assert check.state == "warning"
        assert "switched off (product.updated)" in check.says


def test_doctor_tells_of_entries_that_fit_no_shop(market: Market) -> None:
    source = market.settings.sources["woocommerce"]
    said = [(check.what, check.says) for check in source.checks(["other.example.com"], ["other.example.com"])]
    assert (
        "shop other.example.com",
        "cannot send webhooks: WOOCOMMERCE_WEBHOOK_SECRET has no valid secret for it",
    ) in said
    assert (
        f"shop {market.running.shop_id}",
        "has an entry in WOOCOMMERCE_KEYS, but feeds no store: is it misspelt?",
    ) in said


def test_the_sandboxs_own_address_stands_for_any_shop(world: World) -> None:
    with running_woocommerce(two_products("A")) as running:
        settings = load_settings(
            woocommerce_keys=f"shop.example.com={CONSUMER_KEY}:{CONSUMER_SECRET}", woocommerce_url=running.url
        )
        with settings.sources["woocommerce"].reader("shop.example.com") as reader:
            assert reader.lets_in()
            since = running.sandbox.shop.now - timedelta(days=9)
            assert {row["source_store_id"] for facts in reader.changes(since) for row in facts.products} == {
                "shop.example.com"
            }


def test_products_are_found_whatever_they_are(world: World) -> None:
    shop = two_products("A")
    shop.add("Set", kind="grouped")
    shop.add("Draft", "1.00", gtin="A-9", status="draft")
    with markets(world, shop) as (market,):
        market.night()
        assert market.prices() == truth(shop)
