"""The pretend shop's page and what it changes: an edit arrives as a signed webhook. And shops of every size."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from esl_pipeline.sandbox.shopify.catalogue import MAX_VARIANTS, measure_of
from esl_pipeline.sandbox.shopify.delivery import WebhookSender
from esl_pipeline.sandbox.shopify.keep import keep, kept_shop
from esl_pipeline.sandbox.shopify.shop import Shop, stocked_shop
from esl_pipeline.sandbox.shopify.webhooks import Webhooks, product_body, sign
from esl_pipeline_tests.sandbox.shopify.support import (
    START,
    Receiver,
    Running,
    receiving,
    running,
    small_shop,
)

pytestmark = pytest.mark.long

SECRET = "quiet"


@dataclass
class Page:
    """A sandbox whose webhooks go to a receiver."""

    shopify: Running
    receiver: Receiver
    sender: WebhookSender

    def products(self, **params: Any) -> dict[str, Any]:
        found: dict[str, Any] = (
            self.shopify.http.get("/sandbox/products", params=params).raise_for_status().json()
        )
        return found

    def edit(self, path: str, **fields: Any) -> httpx.Response:
        return self.shopify.http.patch(f"/sandbox/products/{path}", json=fields)

    def webhooks(self) -> list[tuple[str, dict[str, Any]]]:
        """Topic and body of what arrived, each rightly signed."""
        assert self.sender.wait(5)
        arrived = []
        for request in self.receiver.received:
            assert request.headers["x-shopify-hmac-sha256"] == sign(request.body, SECRET)
            arrived.append((request.headers["x-shopify-topic"], json.loads(request.body)))
        self.receiver.received.clear()
        return arrived


@pytest.fixture(scope="module")
def served() -> Iterator[Page]:
    with (
        receiving() as receiver,
        WebhookSender(receiver.url, SECRET) as sender,
        running(small_shop(), sender) as shopify,
    ):
        yield Page(shopify, receiver, sender)


@pytest.fixture
def page(served: Page) -> Page:
    served.shopify.http.put("/sandbox/deliveries/switches", json={}).raise_for_status()
    served.webhooks()
    return served


# --- the page -----------------------------------------------------------------------------------


def test_the_page_is_self_contained_and_guarded(page: Page) -> None:
    answer = page.shopify.http.get("/")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    outside = re.findall(r"""(?:src|href|action|url)\s*[=(]\s*["']?(?!data:)[\w./#]""", answer.text)
    assert outside == [] and "@import" not in answer.text
    # A shop's text may only enter the page as text.
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", answer.text)


def test_products_are_listed_page_by_page(page: Page) -> None:
    pages = [page.products(page=number, size=50) for number in (1, 2, 3, 4)]
    assert [len(one["products"]) for one in pages] == [50, 50, pages[0]["total"] - 100, 0]
    assert len({product["id"] for one in pages for product in one["products"]}) == pages[0]["total"]


def test_products_are_found_by_title_vendor_code_or_sku(page: Page) -> None:
    assert [product["title"] for product in page.products(q="käseSPÄTZLE")["products"]] == ["Käsespätzle"]
    (spaetzle,) = page.products(q="käsespätzle")["products"]
    code = spaetzle["variants"][0]["barcode"]
    assert [product["id"] for product in page.products(q=code)["products"]] == [spaetzle["id"]]
    assert page.products(q="La Ferme d’Élise")["matching"] == 3
    assert page.products(q="no such thing") == {
        "total": page.products()["total"],
        "matching": 0,
        "products": [],
    }


def test_a_big_product_is_listed_in_part_and_shown_whole(page: Page) -> None:
    (tea,) = page.products(q="Tee, lose")["products"]
    assert (tea["variants_total"], len(tea["variants"])) == (100, 4)
    whole = page.shopify.http.get(f"/sandbox/products/{tea['id']}").json()
    assert len(whole["variants"]) == 100


# --- edits --------------------------------------------------------------------------------------


def test_a_product_edit_arrives_as_a_webhook(page: Page) -> None:
    product = page.products(q="Sponge")["products"][0]
    assert page.edit(product["id"], title=" <b>Sponge</b> & Co ").json()["title"] == "<b>Sponge</b> & Co"
    assert page.edit(product["id"], status="draft").status_code == 200
    (_, renamed), (topic, withdrawn) = page.webhooks()
    assert topic == "products/update"
    assert (renamed["title"], renamed["status"]) == ("<b>Sponge</b> & Co", "active")
    assert (withdrawn["status"], withdrawn["published_at"]) == ("draft", None)
    assert withdrawn["updated_at"] > renamed["updated_at"]


def test_a_variant_edit_arrives_as_a_webhook(page: Page) -> None:
    product = page.products(q="Tee, lose")["products"][0]
    path = f"{product['id']}/variants/{product['variants'][1]['id']}"
    card = page.edit(path, price="7.5", compare_at_price="9", barcode="4006381333931").json()["variants"][1]
    assert (card["price"], card["compare_at_price"], card["barcode"]) == ("7.50", "9.00", "4006381333931")
    ((_, body),) = page.webhooks()
    sent = body["variants"][1]
    assert (sent["price"], sent["compare_at_price"], sent["barcode"]) == ("7.50", "9.00", "4006381333931")
    page.edit(path, compare_at_price="", barcode="")
    ((_, body),) = page.webhooks()
    assert (body["variants"][1]["compare_at_price"], body["variants"][1]["barcode"]) == (None, "")


def test_a_stock_edit_sends_the_level_too(page: Page) -> None:
    product = page.products(q="Kefir")["products"][0]
    path = f"{product['id']}/variants/{product['variants'][0]['id']}"
    assert page.edit(path, stock=17).json()["variants"][0]["stock"] == 17
    (level_topic, level), (product_topic, _) = page.webhooks()
    assert (level_topic, product_topic) == ("inventory_levels/update", "products/update")
    assert (level["available"], level["location_id"]) == (17, 71203456789)
    page.edit(path, stock=3, location_id="71203456790")
    (_, level), _ = page.webhooks()
    assert (level["available"], level["location_id"]) == (3, 71203456790)


def test_a_deletion_arrives_as_a_webhook(page: Page) -> None:
    product = page.products(q="Candles")["products"][0]
    assert page.shopify.http.delete(f"/sandbox/products/{product['id']}").status_code == 204
    assert page.webhooks() == [("products/delete", {"id": int(product["id"])})]
    assert page.products(q="Candles")["matching"] == 0
    assert page.shopify.http.delete(f"/sandbox/products/{product['id']}").status_code == 404


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("{product}", {"title": "  "}),
        ("{product}", {"status": "gone"}),
        ("{product}", {"price": "1.00"}),
        ("{product}/variants/{variant}", {"price": "-1"}),
        ("{product}/variants/{variant}", {"price": "1,50"}),
        ("{product}/variants/{variant}", {"price": ""}),
        ("{product}/variants/{variant}", {"stock": "many"}),
        ("{product}/variants/{variant}", {"stock": 1, "location_id": "1"}),
    ],
)
def test_impossible_edits_change_nothing(page: Page, path: str, fields: dict[str, Any]) -> None:
    product = page.products(q="Kefir")["products"][0]
    where = path.format(product=product["id"], variant=product["variants"][0]["id"])
    assert page.edit(where, **fields).status_code == 422
    assert page.webhooks() == []
    assert page.products(q="Kefir")["products"][0] == product


def test_unknown_things_are_not_found(page: Page) -> None:
    product = page.products(q="Kefir")["products"][0]
    assert page.edit("1", title="x").status_code == 404
    assert page.edit(f"{product['id']}/variants/1", price="1").status_code == 404


def test_webhooks_can_be_made_to_go_astray_and_are_told_of(page: Page) -> None:
    product = page.products(q="Kefir")["products"][0]
    page.shopify.http.put("/sandbox/deliveries/switches", json={"drop": 1}).raise_for_status()
    page.edit(product["id"], title="Kefir, new")
    assert page.webhooks() == []
    state = page.shopify.http.get("/sandbox/deliveries", params={"last": 1}).json()
    assert [line["outcome"] for line in state["attempts"]] == ["dropped"]
    assert state["switches"]["drop"] == 1
    assert page.shopify.http.put("/sandbox/deliveries/switches", json={"drop": 2}).status_code == 422


def test_a_sandbox_without_a_receiver_takes_edits_too() -> None:
    with running() as shopify:
        product = shopify.http.get("/sandbox/products").json()["products"][0]
        assert (
            shopify.http.patch(f"/sandbox/products/{product['id']}", json={"title": "New"}).status_code == 200
        )
        assert shopify.http.get("/sandbox/deliveries").json() is None
        assert shopify.http.post("/sandbox/deliveries/subscribe").status_code == 409


def test_the_command_serves_until_it_is_stopped_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "esl_pipeline.sandbox.shopify.server", "--port", "0", "--token", "own"]
    scratch = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=scratch) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().split()[-1]
            assert httpx.get(f"{url}/sandbox/products").json()["total"] == 122
            answer = httpx.post(
                f"{url}/admin/api/2026-10/graphql.json",
                json={"query": "{ shop { name } }"},
                headers={"X-Shopify-Access-Token": "own"},
            )
            assert answer.json()["data"] == {"shop": {"name": "Corner Market"}}
        finally:
            assert list(tmp_path.iterdir())
            process.terminate()
            assert process.wait(10) == 0
    assert list(tmp_path.iterdir()) == []


# --- the shop -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "price", "unit_price"),
    [
        ("250 g", "1.99", "7.96"),
        ("0,33 l", "1.00", "3.03"),
        ("1,5 l", "2.25", "1.50"),
        ("100 g", "abc", None),
    ],
)
def test_unit_prices(size: str, price: str, unit_price: str | None) -> None:
    measure = measure_of(size)
    assert measure is not None
    assert measure.unit_price(price) == unit_price


def test_pieces_have_no_unit_price() -> None:
    assert measure_of("6 ×") is None


def test_a_product_of_2048_variants_names_all_and_tells_100() -> None:
    shop = Shop(1, START)
    bolt = shop.catalogue.bolt(shop.now)
    shop.add(bolt)
    assert len(bolt.variants) == MAX_VARIANTS == len({variant.options for variant in bolt.variants})
    body = product_body(bolt)
    assert (len(body["variants"]), len(body["variant_gids"])) == (100, 2048)
    assert json.loads(Webhooks(shop).updated(bolt).body)["handle"] == bolt.handle


def test_a_shop_is_as_large_as_asked_for_and_the_same_for_a_seed() -> None:
    one, same, other = (stocked_shop(seed, variants=3000) for seed in (1, 1, 2))
    assert sum(len(product.variants) for product in one.products.values()) == 3000
    codes = [variant.barcode for product in one.products.values() for variant in product.variants]
    assert len(set(codes)) == 3000
    assert codes == [variant.barcode for product in same.products.values() for variant in product.variants]
    assert one.products.keys() == same.products.keys() != other.products.keys()


def test_a_shop_of_the_real_time_changes_now() -> None:
    shop = stocked_shop(1)
    assert max(product.updated_at for product in shop.products.values()) < datetime.now(UTC)
    product = next(iter(shop.products.values()))
    before = datetime.now(UTC).replace(microsecond=0)
    shop.rename(product, "New")
    first = product.updated_at
    shop.rename(product, "Newer")
    assert before <= first < product.updated_at <= before + timedelta(seconds=5)


def test_no_webhook_of_the_real_time_is_of_the_future() -> None:
    """What is read after it must be newer: both have the second of the last change, and when they were made."""
    shop, now = stocked_shop(3, variants=3), START + timedelta(milliseconds=20)
    (product,) = shop.products.values()
    shop.clock, shop.now, product.updated_at = (lambda: now), START, START
    for _ in range(5):
        assert START <= datetime.fromisoformat(Webhooks(shop).updated(product).triggered_at[:26] + "Z") <= now


def test_a_kept_shop_is_the_same_shop_and_goes_on_in_the_real_time(tmp_path: Path) -> None:
    file = tmp_path / "shop.json"
    shop = small_shop()
    gone, changed, *_ = list(shop.products.values())
    shop.delete(gone)
    shop.set_price(changed, changed.variants[0], None)
    keep(shop, file)

    same = kept_shop(file, 1)

    assert list(same.products.values()) == list(shop.products.values())
    assert (same.now, same.created_at) == (shop.now, shop.created_at)
    for one, other in zip(shop.products.values(), same.products.values(), strict=True):
        assert product_body(one) == product_body(other)
    (same_changed,) = [product for product in same.products.values() if product.id == changed.id]
    before = datetime.now(UTC).replace(microsecond=0)
    same.touch(same_changed)
    assert before <= same_changed.updated_at <= before + timedelta(seconds=5)
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_holds_no_shop_is_named(tmp_path: Path) -> None:
    file = tmp_path / "shop.json"
    file.write_text('{"now": "yesterday"}')
    with pytest.raises(ValueError, match=r"shop\.json holds no shop that this version can read: remove it"):
        kept_shop(file, 1)


def test_gift_cards_and_two_locations() -> None:
    shop = small_shop()
    (card,) = [product for product in shop.products.values() if product.gift_card]
    assert [variant.barcode for variant in card.variants] == [None] * 3
    variant = next(iter(shop.products.values())).variants[0]
    assert len(variant.levels) == 2
    assert product_body(next(iter(shop.products.values())))["variants"][0]["inventory_quantity"] == sum(
        level.available for level in variant.levels.values()
    )
    assert all(Decimal(variant.price or "") > 0 for variant in card.variants)
