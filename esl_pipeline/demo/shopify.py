"""The demo's shop at Shopify: 300 webhooks, some of them late, lost, copied or forged."""

import random
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.commands.shopify import first_day
from esl_pipeline.demo.day import DemoDay, Label, Shelf
from esl_pipeline.demo.shop import BY, POLICY, STORE, Act, DemoError, Fate, ShopUnderDemo, Tell
from esl_pipeline.sandbox.shopify.delivery import Switches, WebhookSender
from esl_pipeline.sandbox.shopify.oauth import CLIENT_ID, App
from esl_pipeline.sandbox.shopify.server import running_shopify
from esl_pipeline.sandbox.shopify.shop import DOMAIN, real_time
from esl_pipeline.sandbox.shopify.webhooks import Delivery
from esl_pipeline.settings import Settings
from esl_pipeline.sources.shopify.connect import NotConnectedError

CONNECTIONS = 8
# What goes wrong between shop and receiver. Retries come as Shopify's do, within a minute instead of four hours.
TROUBLE = Switches(drop=0.1, duplicate=0.04, delay=0.1, delay_seconds=0.5)
_RETRY_HOURS = 1 / 60
_SENDING_SECONDS = 60.0
_SEED = 2026


class ShopifyDemo(ShopUnderDemo):
    """The day of demo.day; the labels are right when they show what has arrived, however much that is."""

    system = "shopify"
    acts = (
        Act("opening", "The shop opens: 121 products come in, one of them with 100 variants"),
        Act("trading", "A working day: prices, names, barcodes, deletions, mistakes and noise"),
    )
    first_day = "as by esl-pipeline shopify connect"

    def __init__(self) -> None:
        super().__init__()
        self._day = DemoDay(_SEED, datetime.now(UTC) - timedelta(hours=1))
        self._shelf = Shelf()
        self._secret = secrets.token_hex(16)
        self._url = ""
        self._arrived: set[str] = set()
        """The events that the receiver was told of, by id."""
        self._sender = WebhookSender(
            None,
            self._secret,
            subscriptions=self._day.shop.subscriptions,
            retry_hours=_RETRY_HOURS,
            connections=CONNECTIONS,
            switches=TROUBLE,
            seed=_SEED,
        )

    @property
    def shop(self) -> str:
        """The sandbox's domain."""
        return DOMAIN

    @contextmanager
    def running(self) -> Iterator[None]:
        """Serve the Admin API, and send."""
        with (
            self._sender,
            running_shopify(self._day.shop, app=App(secrets=[self._secret]), sender=self._sender) as shopify,
        ):
            self._url = shopify.url
            yield

    def environment(self) -> dict[str, str]:
        """An app of its own."""
        return {"SHOPIFY_ADMIN_URL": self._url, "SHOPIFY_APPS": f"{DOMAIN}={CLIENT_ID}:{self._secret}"}

    def connect(self, settings: Settings, buffer: Buffer, receiver: str, tell: Tell) -> None:  # noqa: ARG002
        """Still without products, as any shop is connected."""
        wish = first_day.Wish(DOMAIN, store=STORE)
        try:
            done = first_day.connect(
                settings, buffer, wish, by=BY, say=lambda line: tell(line.what, line.says)
            )
        except NotConnectedError as error:
            raise DemoError(f"the shop could not be connected: {error}") from None
        if done.mapping is not None:
            policy = done.mapping["settings"] | POLICY
            buffer.mapping_update(done.mapping["id"], {"settings": policy}, by=BY)
            first_day.live(buffer, done.mapping, by=BY)

    def play(self, act: str, receiver: str) -> Iterator[tuple[int, int]]:
        """Send everything, with trouble on the way."""
        wave = {"opening": self._day.opening, "trading": self._day.trading}[act]()
        before = self._sender.state(0)["sent"]
        for delivery in wave.deliveries:
            self._sender.send(delivery)
        for delivery in wave.forged:
            _forge(delivery, receiver)
        deadline = time.monotonic() + _SENDING_SECONDS
        while not self._sender.wait(0.1):
            yield max(0, len(wave) - self._sender.state(0)["pending"]), len(wave)
            if time.monotonic() > deadline:
                raise DemoError(f"the receiver did not take all webhooks within {_SENDING_SECONDS:.0f} s")
        yield len(wave), len(wave)
        fates = [attempt for attempt in self._sender.attempts() if attempt.number > before]
        delivered = [attempt.number for attempt in fates if attempt.outcome == "delivered"]
        self._arrived |= {wave.deliveries[number - before - 1].event_id for number in delivered}
        dropped = sum(attempt.outcome == "dropped" for attempt in fates)
        self.fate = Fate(len(delivered), len(wave.forged), dropped)
        self._shelf.settle(self._day.as_told(self._arrived))

    @property
    def labels(self) -> Mapping[str, Label]:
        """By what has arrived."""
        return self._shelf.labels

    @property
    def held_back(self) -> int:
        """By the same."""
        return self._shelf.held_back

    def night_falls(self) -> None:
        """The whole shop is read."""
        self._shelf.settle(self._day.shop.products.values())
        self._day.shop.clock = real_time

    @property
    def rng(self) -> random.Random:
        """The shop's."""
        return self._day.shop.rng

    def example(self) -> str:
        """Of the product with the most variants."""
        told = [change for change in self._day.repriced if change.event_id in self._arrived]
        best = max(told, key=lambda change: len(change.product.variants), default=None)
        return (best.variant.barcode or "") if best else ""


def _forge(delivery: Delivery, receiver: str) -> None:
    """Send what somebody else has signed; it has to be refused."""
    answer = httpx.post(
        f"{receiver}/webhooks/shopify/{delivery.topic}",
        content=delivery.body,
        headers=delivery.headers("not the secret"),
    )
    if answer.status_code != httpx.codes.UNAUTHORIZED:
        raise DemoError(f"the receiver answered {answer.status_code} to a forged webhook: {answer.text}")
