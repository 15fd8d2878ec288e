"""What Shopify sends when something changes: bodies, ids and headers in its shape, API version 2026-04. No I/O.

The same seed and start of a shop give the same bytes.
"""

import base64
import hmac
import json
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from esl_pipeline.sandbox.shopify.catalogue import LOCATION_ID, Photo, Product, Variant
from esl_pipeline.sandbox.shopify.shop import DOMAIN, Shop

API_VERSION = "2026-04"
MAX_VARIANTS_IN_BODY = 100

Json = dict[str, Any]


@dataclass(frozen=True)
class Delivery:
    """One webhook as Shopify sends it, but for the signature. `triggered_at` is text as in the header."""

    topic: str
    body: bytes
    shop: str
    webhook_id: str
    event_id: str
    triggered_at: str
    api_version: str = API_VERSION

    def headers(self, secret: str) -> dict[str, str]:
        """The headers of the request, signed with the app's client secret."""
        return {
            "Content-Type": "application/json",
            "X-Shopify-Topic": self.topic,
            "X-Shopify-Shop-Domain": self.shop,
            "X-Shopify-API-Version": self.api_version,
            "X-Shopify-Webhook-Id": self.webhook_id,
            "X-Shopify-Event-Id": self.event_id,
            "X-Shopify-Triggered-At": self.triggered_at,
            "X-Shopify-Hmac-Sha256": sign(self.body, secret),
        }


def sign(body: bytes, secret: str) -> str:
    """X-Shopify-Hmac-Sha256: base64 of the HMAC-SHA256 of the raw body."""
    return base64.b64encode(hmac.digest(secret.encode(), body, "sha256")).decode()


class Webhooks:
    """Makes the deliveries that tell of a shop's present state; each has an id of its own."""

    def __init__(self, shop: Shop, domain: str = DOMAIN) -> None:
        self._shop, self.domain = shop, domain

    def created(self, product: Product) -> Delivery:
        return self._delivery("products/create", product_body(product), product.updated_at)

    def updated(self, product: Product) -> Delivery:
        return self._delivery("products/update", product_body(product), product.updated_at)

    def deleted(self, product: Product) -> Delivery:
        return self._delivery("products/delete", {"id": as_double(product.id)}, product.updated_at)

    def level(self, variant: Variant, location_id: int = LOCATION_ID) -> Delivery:
        return self._delivery(
            "inventory_levels/update",
            level_body(variant, location_id),
            variant.levels[location_id].updated_at,
        )

    def disconnected(self, variant: Variant, location_id: int = LOCATION_ID) -> Delivery:
        """The variant is no longer stocked at a location, since its last change."""
        body = {"inventory_item_id": variant.inventory_item_id, "location_id": location_id}
        return self._delivery("inventory_levels/disconnect", body, variant.updated_at)

    def uninstalled(self) -> Delivery:
        """The app was removed from the shop: the last webhook that it gets."""
        at = self._shop.time()
        body = {"id": 71_203_450, "myshopify_domain": self.domain, "updated_at": _time(at)}
        return self._delivery("app/uninstalled", body, at)

    def new_id(self) -> str:
        """A webhook or event id."""
        return str(uuid.UUID(int=self._shop.rng.getrandbits(128), version=4))

    def _delivery(self, topic: str, body: Json, at: datetime) -> Delivery:
        nanoseconds = self._shop.rng.randrange(10**9)
        triggered = at + timedelta(microseconds=nanoseconds // 1000)
        if self._shop.clock is not None:  # a webhook is not of the future, and a read after it is newer
            triggered = max(at, min(triggered, self._shop.clock()))
        return Delivery(
            topic=topic,
            body=json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode(),
            shop=self.domain,
            webhook_id=self.new_id(),
            event_id=self.new_id(),
            triggered_at=f"{triggered.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}{nanoseconds % 1000:03d}Z",
        )


def as_double(number: int) -> int:
    """An id as JavaScript prints it: exact up to 2^53, beyond that rounded as in Shopify's own samples."""
    return int(Decimal(repr(float(number))))


def product_body(product: Product) -> Json:
    """The body of products/create and products/update. Only the first 100 variants are in it in full."""
    newest_first = sorted(product.variants, key=lambda variant: variant.updated_at, reverse=True)
    images = [_image(product, photo, position) for position, photo in enumerate(product.photos, 1)]
    return {
        "admin_graphql_api_id": gid("Product", product.id),
        "body_html": f"<p>{product.vendor}</p>",
        "created_at": _time(product.created_at),
        "handle": product.handle,
        "id": as_double(product.id),
        "product_type": product.product_type,
        "published_at": None if product.status == "draft" else _time(product.created_at),
        "template_suffix": None,
        "title": product.title,
        "updated_at": _time(product.updated_at),
        "vendor": product.vendor,
        "status": product.status,
        "published_scope": "web",
        "tags": ", ".join(product.tags),
        "variants": [
            _variant(product, variant, position)
            for position, variant in enumerate(product.variants[:MAX_VARIANTS_IN_BODY], 1)
        ],
        "options": [
            {
                "name": name,
                "id": option_id,
                "product_id": as_double(product.id),
                "position": position,
                "values": list(dict.fromkeys(variant.options[position - 1] for variant in product.variants)),
            }
            for position, (name, option_id) in enumerate(product.options.items(), 1)
        ],
        "images": images,
        "image": images[0] if images else None,
        "media": [_media(product, photo, position) for position, photo in enumerate(product.photos, 1)],
        "variant_gids": [
            {
                "admin_graphql_api_id": gid("ProductVariant", variant.id),
                "updated_at": f"{variant.updated_at.astimezone(UTC):%Y-%m-%dT%H:%M:%S}.000Z",
            }
            for variant in newest_first
        ],
        "has_variants_that_requires_components": False,
        "category": None,
    }


def level_body(variant: Variant, location_id: int = LOCATION_ID) -> Json:
    """The body of inventory_levels/update."""
    level = variant.levels[location_id]
    return {
        "inventory_item_id": variant.inventory_item_id,
        "location_id": location_id,
        "available": level.available,
        "updated_at": _time(level.updated_at),
        "admin_graphql_api_id": f"{gid('InventoryLevel', location_id)}?inventory_item_id={variant.inventory_item_id}",
    }


def _variant(product: Product, variant: Variant, position: int) -> Json:
    first, second, third = (*variant.options, None, None)[:3]
    return {
        "admin_graphql_api_id": gid("ProductVariant", variant.id),
        "barcode": variant.barcode,
        "compare_at_price": variant.compare_at_price,
        "created_at": _time(variant.created_at),
        "id": as_double(variant.id),
        "inventory_policy": "deny",
        "position": position,
        "price": variant.price,
        "product_id": as_double(product.id),
        "sku": variant.sku,
        "taxable": True,
        "title": variant.title,
        "updated_at": _time(variant.updated_at),
        "option1": first,
        "option2": second,
        "option3": third,
        "image_id": variant.photo.id if variant.photo else None,
        "inventory_item_id": variant.inventory_item_id,
        "inventory_quantity": variant.stock,
        "old_inventory_quantity": variant.stock,
    }


def _image(product: Product, photo: Photo, position: int) -> Json:
    return _picture(product, photo, position, "ProductImage") | {
        "src": photo.src,
        "width": 800,
        "height": 600,
    }


def _media(product: Product, photo: Photo, position: int) -> Json:
    return _picture(product, photo, position, "MediaImage") | {
        "media_content_type": "IMAGE",
        "status": "READY",
        "preview_image": {"width": 800, "height": 600, "src": photo.src, "status": "READY"},
    }


def _picture(product: Product, photo: Photo, position: int, kind: str) -> Json:
    return {
        "id": photo.id,
        "product_id": as_double(product.id),
        "position": position,
        "created_at": _time(product.created_at),
        "updated_at": _time(product.created_at),
        "alt": photo.alt,
        "variant_ids": [as_double(variant.id) for variant in product.variants if variant.photo == photo],
        "admin_graphql_api_id": gid(kind, photo.id),
    }


def gid(kind: str, number: int) -> str:
    """An id as the Admin API writes it; exact, whatever its size."""
    return f"gid://shopify/{kind}/{number}"


def _time(at: datetime) -> str:
    return at.isoformat()
