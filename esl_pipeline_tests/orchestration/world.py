"""The outside world in small: products as Shopify sends them, an inbox that has them, mapped shops."""

import itertools
import json
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.datastructures import Headers

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.sources.shopify.deliveries import delivery
from esl_pipeline_tests.receiver.support import signed

SHOP = "corner-shop.myshopify.com"
OTHER_SHOP = "other-shop.myshopify.com"
STORE = "S1"
OTHER_STORE = "S2"
KEY = f"shopify:{SHOP}"
OTHER_KEY = f"shopify:{OTHER_SHOP}"

_ticks = itertools.count(1)


def later() -> str:
    """A time of the shop that is after every earlier one."""
    return (datetime(2026, 3, 1, tzinfo=UTC) + timedelta(seconds=next(_ticks))).isoformat()


def product(number: int, *, codes: list[str | None] | None = None, **changes: Any) -> dict[str, Any]:
    """A product body: one variant per code (C-<number> by default); `changes` go to every variant or the product."""
    at = later()
    own = {name: changes.pop(name) for name in ("title", "status") if name in changes}
    variants = [
        {
            "id": number * 1000 + i,
            "product_id": number,
            "inventory_item_id": number * 1000 + 500 + i,
            "title": "Default Title",
            "barcode": code,
            "sku": f"sku-{number}-{i}",
            "price": "1.50",
            "updated_at": at,
            **dict.fromkeys(("compare_at_price", "created_at", "option1", "option2", "option3")),
            **changes,
        }
        for i, code in enumerate([f"C-{number}"] if codes is None else codes)
    ]
    return {
        "id": number,
        "admin_graphql_api_id": f"gid://shopify/Product/{number}",
        "title": f"Product {number}",
        "status": "active",
        "updated_at": at,
        "published_at": at,
        **dict.fromkeys(("handle", "vendor", "product_type", "tags"), ""),
        "images": [],
        "variants": variants,
        "variant_gids": [
            {"admin_graphql_api_id": f"gid://shopify/ProductVariant/{v['id']}", "updated_at": at}
            for v in variants
        ],
        **own,
    }


def arrive(buffer: Buffer, *bodies: dict[str, Any], shop: str = SHOP, topic: str = "products/update") -> None:
    """Put deliveries of these bodies into the inbox, as the receiver would."""
    deliveries = []
    for body in bodies:
        raw = json.dumps(body).encode()
        headers = Headers(signed(topic, raw, shop_domain=shop))
        deliveries.append(delivery(topic, headers, raw, datetime.now(UTC)))
    assert {d["state"] for d in deliveries} == {"ready"}
    buffer.inbox_add(deliveries)


def map_shop(buffer: Buffer, shop: str = SHOP, store: str = STORE, **fields: Any) -> dict[str, Any]:
    """Map a shop to a store. Where several shops feed one, the tests mean it."""
    named = {"source_system": "shopify", "source_store_id": shop, "hipoink_store_code": store, "shared": True}
    return buffer.mapping_create(named | fields)
