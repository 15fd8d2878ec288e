"""The pretend WooCommerce itself: pages that slip, webhooks that are pinged, signed and switched off."""

import base64
import hmac
import json
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response

from esl_pipeline.sandbox.label_server.server import listen, server
from esl_pipeline.sandbox.woocommerce.api import CONSUMER_KEY, CONSUMER_SECRET
from esl_pipeline.sandbox.woocommerce.delivery import Trouble, WebhookSender
from esl_pipeline.sandbox.woocommerce.server import RunningWooCommerce, running_woocommerce
from esl_pipeline.sandbox.woocommerce.shop import Shop, stocked_shop

AUTH = (CONSUMER_KEY, CONSUMER_SECRET)


class Ear:
    """Listens, and answers what it is told to."""

    def __init__(self) -> None:
        self.heard: list[tuple[dict[str, str], bytes]] = []
        self.answer = 200
        self.url = ""

    def bodies(self) -> list[dict[str, Any]]:
        """Of all but the pings."""
        return [json.loads(raw) for _, raw in self.heard if not raw.startswith(b"webhook_id=")]


@contextmanager
def ear() -> Iterator[Ear]:
    app, found = FastAPI(), Ear()

    @app.post("/hooks")
    async def take(request: Request) -> Response:
        found.heard.append((dict(request.headers), await request.body()))
        return Response(status_code=found.answer)

    with listen(0) as sock:
        running = server(app, forms={"/hooks"})
        thread = Thread(target=running.run, kwargs={"sockets": [sock]})
        thread.start()
        found.url = f"http://127.0.0.1:{sock.getsockname()[1]}/hooks"
        try:
            yield found
        finally:
            running.should_exit = True
            thread.join()


@pytest.fixture
def served() -> Iterator[RunningWooCommerce]:
    shop = Shop()
    for number in range(1, 8):
        shop.add(f"Product {number}", f"{number}.00")
    with running_woocommerce(shop) as running:
        yield running


def get(served: RunningWooCommerce, path: str, **query: Any) -> httpx.Response:
    return httpx.get(f"{served.url}/wp-json/wc/v3/{path}", params=query, auth=AUTH)


def ids(answer: httpx.Response) -> list[int]:
    return [row["id"] for row in answer.json()]


def test_lists_are_paged_and_counted(served: RunningWooCommerce) -> None:
    answer = get(served, "products", per_page=3, page=2, orderby="id", order="asc")
    assert ids(answer) == [4, 5, 6]
    assert answer.headers["X-WP-Total"] == "7"
    assert ids(get(served, "products", per_page=3, offset=5, orderby="id", order="asc")) == [6, 7]


def test_a_page_slips_when_something_goes_before_it(served: RunningWooCommerce) -> None:
    page = {"per_page": 3, "orderby": "id", "order": "asc"}
    assert ids(get(served, "products", page=1, **page)) == [1, 2, 3]
    served.sandbox.shop.trash(served.sandbox.shop.products[1])
    assert ids(get(served, "products", page=2, **page)) == [5, 6, 7]  # 4 is on none of the pages


def test_only_the_fields_that_were_asked_for_are_told(served: RunningWooCommerce) -> None:
    assert get(served, "products/1", _fields="id,name").json() == {"id": 1, "name": "Product 1"}


def test_a_wrong_key_is_refused(served: RunningWooCommerce) -> None:
    for auth, code in (((CONSUMER_KEY, "cs_x"), "authentication_error"), (None, "cannot_view")):
        answer = httpx.get(f"{served.url}/wp-json/wc/v3/products", auth=auth)
        assert (answer.status_code, answer.json()["code"]) == (401, f"woocommerce_rest_{code}")


def test_what_is_not_there_is_said_as_wordpress_says_it(served: RunningWooCommerce) -> None:
    assert get(served, "products/99").json()["code"] == "woocommerce_rest_product_invalid_id"
    assert get(served, "nonsense").json()["code"] == "rest_no_route"


def test_a_price_may_be_changed_by_hand(served: RunningWooCommerce) -> None:
    httpx.patch(f"{served.url}/sandbox/products/2", json={"regular_price": "9.90"}).raise_for_status()
    assert get(served, "products/2").json()["price"] == "9.90"


def test_a_new_webhook_pings_unsigned_and_then_signs(served: RunningWooCommerce) -> None:
    shop = served.sandbox.shop
    with ear() as found, WebhookSender(shop, served.url) as sender:
        sender.add("product.updated", found.url, "secret")
        shop.change(shop.products[1], regular_price="5.00")
        assert sender.wait(5)
        (ping, form), (headers, raw) = found.heard
        assert form == b"webhook_id=1"
        assert "x-wc-webhook-signature" not in ping
        expected = base64.b64encode(hmac.digest(b"secret", raw, "sha256")).decode()
        assert headers["x-wc-webhook-signature"] == expected
        assert headers["x-wc-webhook-source"] == f"{served.url}/"
        assert json.loads(raw)["regular_price"] == "5.00"


def test_deliveries_of_one_second_share_their_id(served: RunningWooCommerce) -> None:
    with WebhookSender(served.sandbox.shop, served.url) as sender, ear() as found:
        webhook = sender.add("product.updated", found.url, "secret")
        one, other = (sender.headers(webhook, raw) for raw in (b"1", b"2"))
        assert one["X-WC-Webhook-Delivery-ID"] == other["X-WC-Webhook-Delivery-ID"]


def test_a_ping_that_is_not_taken_makes_no_webhook(served: RunningWooCommerce) -> None:
    with ear() as found, WebhookSender(served.sandbox.shop, served.url) as sender:
        found.answer = 401
        with pytest.raises(ValueError, match="returned response code: 401"):
            sender.add("product.updated", found.url, "secret")
        assert sender.webhooks == []


def test_after_six_failures_in_a_row_the_next_one_switches_it_off(served: RunningWooCommerce) -> None:
    shop = served.sandbox.shop
    with ear() as found, WebhookSender(shop, served.url) as sender:
        webhook = sender.add("product.updated", found.url, "secret")
        for answer in (500, 500, 500, 500, 500, 200, *[500] * 6):
            assert webhook.status == "active"
            found.answer = answer
            shop.change(shop.products[1])
            assert sender.wait(5)
        assert webhook.status == "active"
        shop.change(shop.products[1])
        assert sender.wait(5)
        assert webhook.status == "disabled"
        heard = len(found.heard)
        shop.change(shop.products[1])
        assert sender.wait(5)
        assert len(found.heard) == heard


def test_trouble_loses_doubles_and_reorders(served: RunningWooCommerce) -> None:
    shop = served.sandbox.shop
    trouble = Trouble(lost=0.2, doubled=0.2, overtaken=0.5)
    with ear() as found, WebhookSender(shop, served.url, trouble=trouble) as sender:
        sender.add("product.updated", found.url, "secret")
        for number in range(60):
            shop.change(shop.products[1], regular_price=f"{number + 1}.00")
        assert sender.wait(10)
        told = [float(body["regular_price"]) for body in found.bodies()]
    assert sender.lost
    assert len(told) > len(set(told))
    assert told != sorted(told)


def test_a_variation_is_told_of_with_its_product(served: RunningWooCommerce) -> None:
    shop = served.sandbox.shop
    bread = shop.add("Bread", options={("1 kg",): "4.00"})
    with ear() as found, WebhookSender(shop, served.url) as sender:
        sender.add("product.updated", found.url, "secret")
        shop.change(bread, bread.variations[0], regular_price="4.50")
        assert sender.wait(5)
        variation, product = found.bodies()
    assert (variation["type"], variation["parent_id"]) == ("variation", bread.id)
    assert (product["id"], product["variations"]) == (bread.id, [bread.variations[0].id])


def test_a_stocked_shop_is_the_same_for_a_seed() -> None:
    one, other = stocked_shop(5), stocked_shop(5)
    assert [product.name for product in one.products.values()] == [
        product.name for product in other.products.values()
    ]
    assert {product.kind for product in one.products.values()} == {"simple", "variable"}
    assert sum(len(p.variations) or 1 for p in stocked_shop(variants=40).products.values()) == 40
