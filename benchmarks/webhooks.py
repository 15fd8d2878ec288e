"""Webhooks as Shopify sends them, of made-up shops, and their sender in a process of its own.

In the child (`python -m benchmarks.webhooks`, of the standard library alone, so that it starts at once): a plan as JSON
on stdin, sent at its times by several connections; answered with when each webhook was acknowledged.
"""

import http.client
import json
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from esl_pipeline.sandbox.shopify.webhooks import sign

PATH = "/webhooks/shopify/products/update"
_ENOUGH_TRIES = 200


def shop_name(number: int) -> str:
    """The shop of this number."""
    return f"shop-{number}.myshopify.com"


def price(cents: int) -> str:
    """As Shopify writes it, and the label server."""
    return f"{cents // 100}.{cents % 100:02}"


def code(shop: int, product: int, variant: int = 1) -> str:
    """The barcode of a variant."""
    return f"B{_number(shop, product) + variant}"


def body(shop: int, product: int, variants: int, cents: int) -> bytes:
    """A products/update as Shopify sends it, all variants at one price."""
    now, number = datetime.now(UTC).isoformat(), _number(shop, product)
    gid = "gid://shopify/ProductVariant/"
    rows = [
        {
            "id": number + n,
            "admin_graphql_api_id": f"{gid}{number + n}",
            "product_id": number,
            "title": f"Size {n}",
            "price": price(cents),
            "compare_at_price": None,
            "position": n,
            "inventory_policy": "deny",
            "option1": f"Size {n}",
            "option2": None,
            "option3": None,
            "barcode": code(shop, product, n),
            "sku": f"SKU-{number + n}",
            "taxable": True,
            "fulfillment_service": "manual",
            "grams": 500,
            "inventory_management": "shopify",
            "requires_shipping": True,
            "weight": 0.5,
            "weight_unit": "kg",
            "inventory_item_id": number + n,
            "inventory_quantity": 10,
            "old_inventory_quantity": 10,
            "image_id": None,
            "created_at": now,
            "updated_at": now,
        }
        for n in range(1, variants + 1)
    ]
    said = {
        "id": number,
        "admin_graphql_api_id": f"gid://shopify/Product/{number}",
        "title": f"Product {number}",
        "body_html": "<p>Text</p>",
        "vendor": "Vendor",
        "product_type": "Type",
        "handle": f"product-{number}",
        "tags": "",
        "status": "active",
        "created_at": now,
        "updated_at": now,
        "published_at": now,
        "images": [],
        "options": [{"name": "Size", "values": [row["title"] for row in rows]}],
        "variants": rows,
        "variant_gids": [
            {"admin_graphql_api_id": row["admin_graphql_api_id"], "updated_at": now} for row in rows
        ],
    }
    return json.dumps(said, separators=(",", ":")).encode()


def headers(raw: bytes, shop: int, secret: str) -> dict[str, str]:
    """Of a new delivery."""
    return {
        "Content-Type": "application/json",
        "X-Shopify-Topic": "products/update",
        "X-Shopify-Shop-Domain": shop_name(shop),
        "X-Shopify-Webhook-Id": str(uuid4()),
        "X-Shopify-Triggered-At": datetime.now(UTC).isoformat(),
        "X-Shopify-Hmac-Sha256": sign(raw, secret),
    }


@dataclass
class Change:
    """One webhook: a product of a shop gets a price, so many seconds after the start.

    rises: whether that is more than before. acked: when the receiver had said 200.
    """

    due: float
    shop: int
    product: int
    cents: int
    rises: bool = False
    variants: int = 1
    acked: float = 0


def _number(shop: int, product: int) -> int:
    # Of no two shops the same, for the ids of Shopify's products are one shop's.
    return 1_000_000_000 * (shop + 1) + 1_000 * product


def _send_all(plan: Mapping[str, Any]) -> list[float]:
    events, lock = iter(enumerate(plan["changes"])), threading.Lock()
    acked = [0.0] * len(plan["changes"])
    began = time.time()

    def connection() -> None:
        link = http.client.HTTPConnection(urlsplit(plan["address"]).netloc, timeout=30)
        while True:
            with lock:
                number, event = next(events, (-1, None))
            if event is None:
                link.close()
                return
            due, shop, product, variants, cents = event
            time.sleep(max(0.0, began + due - time.time()))
            raw = body(shop, product, variants, cents)
            acked[number] = _send(link, raw, headers(raw, shop, plan["secret"]))

    with ThreadPoolExecutor(plan["connections"]) as pool:
        for done in [pool.submit(connection) for _ in range(plan["connections"])]:
            done.result()
    return acked


def _send(link: http.client.HTTPConnection, raw: bytes, said: Mapping[str, str]) -> float:
    """Until it is taken, as Shopify does (though sooner); when that was."""
    for _ in range(_ENOUGH_TRIES):
        try:
            link.request("POST", PATH, raw, dict(said))
            answer = link.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            link.close()  # the next request opens it again
            time.sleep(0.02)
            continue
        if answer.status == 200:
            return time.time()
        time.sleep(min(float(answer.headers.get("Retry-After") or 0.2), 2))
    raise SystemExit("the receiver takes nothing")


if __name__ == "__main__":
    print(json.dumps(_send_all(json.load(sys.stdin))))
