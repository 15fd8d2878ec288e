"""The sender of webhooks: patience, retries with the original body, and what the switches do, over real HTTP."""

import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import pytest

from esl_pipeline.sandbox.shopify.delivery import RETRIES, Switches, WebhookSender, retry_gaps
from esl_pipeline.sandbox.shopify.shop import Shop
from esl_pipeline.sandbox.shopify.webhooks import Delivery, Webhooks, sign
from esl_pipeline_tests.sandbox.shopify.support import Receiver, receiving, small_shop
from esl_pipeline_tests.waiting import eventually

SECRET = "quiet"
SHORT_HOURS = 0.5 / 3600  # all retries within half a second


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture(scope="module")
def shop() -> Shop:
    return small_shop()


def updates(shop: Shop, count: int) -> list[Delivery]:
    webhooks, products = Webhooks(shop), list(shop.products.values())
    return [webhooks.updated(products[number % len(products)]) for number in range(count)]


def ids(receiver: Receiver) -> list[str]:
    return [request.headers["x-shopify-webhook-id"] for request in receiver.received]


def test_a_delivery_arrives_signed_at_its_topics_address(receiver: Receiver, shop: Shop) -> None:
    (delivery,) = updates(shop, 1)
    with WebhookSender(receiver.url, SECRET) as sender:
        sender.send(delivery)
        assert sender.wait(5)
        (attempt,) = sender.attempts()
    (request,) = receiver.received
    assert request.path == "/webhooks/shopify/products/update"
    assert request.body == delivery.body
    assert request.headers["x-shopify-hmac-sha256"] == sign(delivery.body, SECRET)
    assert request.headers["x-shopify-shop-domain"] == "corner-market.myshopify.com"
    assert (attempt.outcome, attempt.attempt, attempt.detail) == ("delivered", 1, "200")


def test_deliveries_leave_in_order(receiver: Receiver, shop: Shop) -> None:
    deliveries = updates(shop, 40)
    with WebhookSender(receiver.url, SECRET) as sender:
        for delivery in deliveries:
            sender.send(delivery)
        assert sender.wait(10)
    assert ids(receiver) == [delivery.webhook_id for delivery in deliveries]


@pytest.mark.parametrize("status", [500, 401, 404, 302, 429])
def test_anything_but_2xx_is_sent_again_as_it_was(receiver: Receiver, shop: Shop, status: int) -> None:
    receiver.script = [status, status]
    product = next(iter(shop.products.values()))
    delivery = Webhooks(shop).updated(product)
    with WebhookSender(receiver.url, SECRET, retry_hours=SHORT_HOURS) as sender:
        sender.send(delivery)
        eventually(lambda: receiver.received)
        shop.set_price(product, product.variants[0], "9.99")
        assert sender.wait(5)
        attempts = sender.attempts()
    assert [request.body for request in receiver.received] == [delivery.body] * 3
    assert {request.headers["x-shopify-triggered-at"] for request in receiver.received} == {
        delivery.triggered_at
    }
    assert [(one.attempt, one.outcome) for one in attempts] == [
        (1, "failed"),
        (2, "failed"),
        (3, "delivered"),
    ]


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_any_2xx_is_success(receiver: Receiver, shop: Shop, status: int) -> None:
    receiver.always = status
    with WebhookSender(receiver.url, SECRET) as sender:
        sender.send(updates(shop, 1)[0])
        assert sender.wait(5)
        assert sender.attempts()[0].outcome == "delivered"


def test_retries_are_spread_over_four_hours_at_doubling_intervals() -> None:
    gaps = retry_gaps()
    assert (len(gaps), sum(gaps)) == (8, pytest.approx(4 * 3600))
    assert all(later == pytest.approx(2 * earlier) for earlier, later in pairwise(gaps))


def test_intervals_are_kept(receiver: Receiver, shop: Shop) -> None:
    receiver.script = [500] * 6
    with WebhookSender(receiver.url, SECRET, retry_hours=SHORT_HOURS) as sender:
        sender.send(updates(shop, 1)[0])
        assert sender.wait(5)
    waits = [later.at - earlier.at for earlier, later in pairwise(receiver.received)]
    assert all(wait >= gap for wait, gap in zip(waits, retry_gaps(SHORT_HOURS), strict=False))


def test_after_nine_tries_the_topics_subscription_is_gone(receiver: Receiver, shop: Shop) -> None:
    receiver.always = 500
    with WebhookSender(receiver.url, SECRET, retry_hours=SHORT_HOURS) as sender:
        first, second, third = updates(shop, 3)
        deletion = Webhooks(shop).deleted(next(iter(shop.products.values())))
        sender.send(first)
        assert sender.wait(5)
        assert len(receiver.received) == 1 + RETRIES
        receiver.always = 200
        sender.send(second)
        sender.send(deletion)
        assert sender.wait(5)
        assert sender.state()["removed"] == ["products/update"]
        assert second.webhook_id not in ids(receiver)
        assert deletion.webhook_id in ids(receiver)
        assert (
            sender.attempts()[-2].outcome == "unsubscribed" or sender.attempts()[-1].outcome == "unsubscribed"
        )
        sender.subscribe()
        sender.send(third)
        assert sender.wait(5)
        assert ids(receiver)[-1] == third.webhook_id


def test_a_slow_receiver_has_failed(receiver: Receiver, shop: Shop) -> None:
    receiver.hold = 0.4
    with WebhookSender(receiver.url, SECRET, timeout_seconds=0.1, retry_hours=1) as sender:
        sender.send(updates(shop, 1)[0])
        eventually(sender.attempts)
        (attempt,) = sender.attempts()
    assert attempt.outcome == "failed" and attempt.detail in ("TimeoutError", "ReadTimeout")
    assert 0.1 <= attempt.seconds < 0.4


def test_a_receiver_that_is_down_is_tried_again(shop: Shop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with WebhookSender(f"http://127.0.0.1:{port}", SECRET, retry_hours=SHORT_HOURS) as sender:
        sender.send(updates(shop, 1)[0])
        assert sender.wait(5)
        assert {one.detail for one in sender.attempts()} == {"ConnectError"}


@pytest.mark.long
def test_dropped_deliveries_never_arrive(receiver: Receiver, shop: Shop) -> None:
    deliveries = updates(shop, 60)

    def dropped(switches: Switches, seed: int) -> list[int]:
        with WebhookSender(receiver.url, SECRET, switches=switches, seed=seed) as sender:
            for delivery in deliveries:
                sender.send(delivery)
            assert sender.wait(10)
            return [one.number for one in sender.attempts() if one.outcome == "dropped"]

    assert dropped(Switches(drop_numbers=[2, 5]), 1) == [2, 5]
    assert len(receiver.received) == 58
    some = dropped(Switches(drop=0.2), 1)
    assert 3 < len(some) < 25
    assert len(receiver.received) == 58 + 60 - len(some)
    assert dropped(Switches(drop=0.2), 1) == some != dropped(Switches(drop=0.2), 2)


def test_duplicates_are_exact_copies(receiver: Receiver, shop: Shop) -> None:
    deliveries = updates(shop, 20)
    with WebhookSender(receiver.url, SECRET, switches=Switches(duplicate=0.5)) as sender:
        for delivery in deliveries:
            sender.send(delivery)
        assert sender.wait(10)
    assert set(Counter(ids(receiver)).values()) == {1, 2}
    assert (
        len({(request.headers["x-shopify-webhook-id"], request.body) for request in receiver.received}) == 20
    )


def test_delayed_deliveries_are_overtaken(receiver: Receiver, shop: Shop) -> None:
    deliveries = updates(shop, 30)
    with WebhookSender(receiver.url, SECRET, switches=Switches(delay=0.3, delay_seconds=0.3)) as sender:
        for delivery in deliveries:
            sender.send(delivery)
        assert sender.wait(10)
    order = [delivery.webhook_id for delivery in deliveries]
    assert sorted(ids(receiver)) == sorted(order)
    assert ids(receiver) != order


def test_it_stops_at_once_with_retries_still_to_come(receiver: Receiver, shop: Shop) -> None:
    receiver.always = 500
    with WebhookSender(receiver.url, SECRET) as sender:
        sender.send(updates(shop, 1)[0])
        eventually(lambda: receiver.received)
        assert not sender.wait(0.05)
        began = time.monotonic()
    assert time.monotonic() - began < 1
    assert len(receiver.received) == 1


def test_the_log_tells_neither_secret_nor_body(receiver: Receiver, shop: Shop) -> None:
    with WebhookSender(receiver.url, SECRET) as sender:
        sender.send(updates(shop, 1)[0])
        assert sender.wait(5)
        told = json.dumps(sender.state())
        assert len(sender.state()["attempts"]) == 1 and sender.state(0)["attempts"] == []
    assert SECRET not in told
    assert "variants" not in told
