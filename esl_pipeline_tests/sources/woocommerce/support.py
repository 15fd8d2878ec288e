"""What the tests of this source share: a key, a shop over real HTTP, and deliveries as the inbox gives them."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from esl_pipeline.sandbox.woocommerce.api import CONSUMER_KEY, CONSUMER_SECRET
from esl_pipeline.sandbox.woocommerce.bodies import product_body, variation_told
from esl_pipeline.sandbox.woocommerce.server import RunningWooCommerce, running_woocommerce
from esl_pipeline.sandbox.woocommerce.shop import Product, Shop, Variation
from esl_pipeline.sources.facts import Facts
from esl_pipeline.sources.woocommerce.client import Client
from esl_pipeline.sources.woocommerce.facts import read_deliveries
from esl_pipeline.sources.woocommerce.reader import WooCommerceReader
from esl_pipeline.sources.woocommerce.settings import Key

SHOP = "shop.example.com"
SITE = f"https://{SHOP}"
KEY = Key(CONSUMER_KEY, CONSUMER_SECRET)


def body_of(product: Product, variation: Variation | None = None, *, site: str = SITE) -> dict[str, Any]:
    """As a webhook tells it now."""
    now = datetime.now(UTC)
    if variation is not None:
        return variation_told(product, variation, site, "Europe/Berlin", now)
    return product_body(product, site, "Europe/Berlin", now)


def delivered(number: int, body: Any, topic: str = "product.updated", **fields: Any) -> dict[str, Any]:
    """A claimed delivery."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return {
        "id": number,
        "source_system": "woocommerce",
        "source_store_id": SHOP,
        "topic": topic,
        "triggered_at": None,
        "received_at": datetime.now(UTC).isoformat(),
        "body_sha256": hashlib.sha256(raw).hexdigest(),
        "body_base64": base64.b64encode(raw).decode(),
    } | fields


def read(*bodies: Any, topic: str = "product.updated", **fields: Any) -> Facts:
    """The facts of deliveries of these bodies."""
    return read_deliveries([delivered(n, body, topic, **fields) for n, body in enumerate(bodies, start=1)])


@contextmanager
def served(shop: Shop, **fields: Any) -> Iterator[tuple[RunningWooCommerce, WooCommerceReader]]:
    """The shop over HTTP, and a reader of it."""
    with (
        running_woocommerce(shop, **fields) as running,
        Client(running.url, KEY, shop=running.shop_id, retries=2, timeout_seconds=2) as client,
    ):
        yield running, WooCommerceReader(client, running.shop_id)


def whole(reader: WooCommerceReader, chunk: int = 2500) -> Facts:
    """The catalogue in one."""
    facts = Facts()
    for part in reader.catalogue(lambda _: None, chunk=chunk):
        facts.extend(part)
    return facts


def prices(facts: Facts) -> dict[str, tuple[str | None, str | None]]:
    """(price, compare_at_price) by variant."""
    return {row["variant_id"]: (row["price"], row["compare_at_price"]) for row in facts.variants}


def hours(number: float) -> datetime:
    """So many hours from now."""
    return datetime.now(UTC) + timedelta(hours=number)
