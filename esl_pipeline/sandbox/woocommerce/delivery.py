"""Webhooks as WooCommerce sends them: signed, once each, and switched off after six failures in a row."""

import base64
import hashlib
import hmac
import itertools
import json
import random
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Self

import httpx

from esl_pipeline.sandbox.woocommerce.bodies import Json, product_body, variation_told
from esl_pipeline.sandbox.woocommerce.shop import Product, Shop, Variation

FAILURES = 5
"""One more in a row, and a webhook is switched off."""
TIMEOUT_SECONDS = 10.0


@dataclass
class Webhook:
    """One webhook: what it tells of, and where."""

    id: int
    topic: str
    delivery_url: str
    secret: str = field(repr=False)
    status: str = "active"
    failures: int = 0

    def shown(self) -> Json:
        """As the REST API lists it, without the secret."""
        return {
            "id": self.id,
            "name": f"Webhook {self.id}",
            "status": self.status,
            "topic": self.topic,
            "delivery_url": self.delivery_url,
        }


@dataclass(frozen=True)
class Delivery:
    """One webhook on its way."""

    webhook: Webhook
    body: bytes
    headers: dict[str, str]


@dataclass(frozen=True)
class Trouble:
    """What goes wrong on the way, as chances of a delivery: lost, sent twice, or overtaken by the next ones."""

    lost: float = 0
    doubled: float = 0
    overtaken: float = 0


@dataclass(frozen=True)
class Attempt:
    """One line of the log; status 0: no answer."""

    topic: str
    body: bytes
    status: int


class WebhookSender:
    """A shop's webhooks, sent from a thread of their own; use it as a context manager.

    site: the shop's address, as the webhooks tell it.
    """

    def __init__(self, shop: Shop, site: str, *, trouble: Trouble | None = None, seed: int = 0) -> None:
        self.webhooks: list[Webhook] = []
        self.attempts: list[Attempt] = []
        self.lost: list[Delivery] = []
        self.trouble = trouble or Trouble()
        self._shop, self.site = shop, site.rstrip("/")
        self._rng = random.Random(seed)  # noqa: S311 (repeatable on purpose, guards nothing)
        self._ids = itertools.count(1)
        self._waiting: deque[Delivery] = deque()
        self._busy = self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name="woocommerce-webhooks", daemon=True)

    def __enter__(self) -> Self:
        self._shop.listener = self.tell
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._shop.listener = None
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def add(self, topic: str, delivery_url: str, secret: str) -> Webhook:
        """Make a webhook, which is pinged at once, unsigned. Raises ValueError when that is not answered 200."""
        webhook = Webhook(next(self._ids), topic, delivery_url, secret)
        answer = httpx.post(
            delivery_url,
            content=f"webhook_id={webhook.id}",
            headers={"Content-Type": "application/x-www-form-urlencoded"},
            timeout=TIMEOUT_SECONDS,
            trust_env=False,
        )
        if answer.status_code != httpx.codes.OK:
            raise ValueError(f"Error: Delivery URL returned response code: {answer.status_code}")
        self.webhooks.append(webhook)
        return webhook

    def tell(self, event: str, product: Product, variation: Variation | None) -> None:
        """Send what happened to whoever wants to know."""
        zone, now = self._shop.time_zone, self._shop.time()
        if event == "deleted":
            body: Json = {"id": variation.id if variation else product.id}
        elif variation is not None:
            body = variation_told(product, variation, self.site, zone, now)
        else:
            body = product_body(product, self.site, zone, now)
        self.send(f"product.{event}", body)

    def send(self, topic: str, body: Json) -> None:
        """Send a body by every webhook of a topic."""
        raw = json.dumps(body).encode()
        for webhook in self.webhooks:
            if webhook.topic == topic:
                self.send_raw(webhook, raw)

    def send_raw(self, webhook: Webhook, raw: bytes) -> None:
        """Send these bytes, signed, unless the webhook is switched off."""
        if webhook.status != "active":
            return
        delivery = Delivery(webhook, raw, self.headers(webhook, raw))
        # Each chance is drawn for each delivery, so that one does not move the others' luck.
        lost, doubled, overtaken = (self._rng.random() for _ in range(3))
        with self._changed:
            if lost < self.trouble.lost:
                self.lost.append(delivery)
                return
            place = max(
                0, len(self._waiting) - 3 if overtaken < self.trouble.overtaken else len(self._waiting)
            )
            for _ in range(2 if doubled < self.trouble.doubled else 1):
                self._waiting.insert(place, delivery)
            self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """How many are not out yet."""
        with self._changed:
            return len(self._waiting) + self._busy

    def headers(self, webhook: Webhook, raw: bytes, *, secret: str | None = None) -> dict[str, str]:
        """The headers of a delivery, signed with the webhook's secret or another.

        Its id is made of webhook and second: others of that second have the same.
        """
        made = hashlib.md5(f"{webhook.id}{int(time.time())}".encode(), usedforsecurity=False)
        return {
            "Content-Type": "application/json",
            "X-WC-Webhook-Source": f"{self.site}/",
            "X-WC-Webhook-Topic": webhook.topic,
            "X-WC-Webhook-Resource": "product",
            "X-WC-Webhook-Event": webhook.topic.partition(".")[2],
            "X-WC-Webhook-Signature": sign(raw, secret or webhook.secret),
            "X-WC-Webhook-ID": str(webhook.id),
            "X-WC-Webhook-Delivery-ID": made.hexdigest(),
        }

    def wait(self, timeout: float) -> bool:
        """Whether everything was sent within so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._busy, timeout)

    def _serve(self) -> None:
        with httpx.Client(timeout=TIMEOUT_SECONDS, trust_env=False) as http:
            while (delivery := self._next()) is not None:
                self._deliver(http, delivery)
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _next(self) -> Delivery | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopped)
            if self._stopped:
                return None
            self._busy = True
            return self._waiting.popleft()

    def _deliver(self, http: httpx.Client, delivery: Delivery) -> None:
        webhook = delivery.webhook
        if webhook.status != "active":
            return
        try:
            status = http.post(
                webhook.delivery_url, content=delivery.body, headers=delivery.headers
            ).status_code
        except httpx.TransportError:
            status = 0
        self.attempts.append(Attempt(webhook.topic, delivery.body, status))
        if 200 <= status < 303:  # WooCommerce takes a redirect for a success
            webhook.failures = 0
        elif webhook.failures > FAILURES - 1:
            webhook.status = "disabled"
        else:
            webhook.failures += 1


def sign(body: bytes, secret: str) -> str:
    """X-WC-Webhook-Signature: base64 of the HMAC-SHA256 of the raw body."""
    return base64.b64encode(hmac.digest(secret.encode(), body, "sha256")).decode()
