"""Products and variations as WooCommerce's REST API v3 writes them, in lists, alone and in webhooks. No I/O."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from esl_pipeline.sandbox.woocommerce.shop import Item, Product, Variation

Json = dict[str, Any]


def product_body(product: Product, site: str, zone: str, now: datetime) -> Json:
    """`/products/{id}`, and the body of its webhooks. A variable product names its variations and no more."""
    images = [_image(product.id, product.image)] if product.image else []
    return {
        **_item(product, zone, now),
        "name": product.name,
        "slug": product.slug,
        "permalink": f"{site}/product/{product.slug}/",
        "type": product.kind,
        "parent_id": 0,
        "catalog_visibility": "visible",
        "categories": _terms(product.category),
        "brands": _terms(product.brand),
        "tags": _terms(*product.tags),
        "images": images,
        "attributes": [
            {
                "id": 0,
                "name": name,
                "slug": name,
                "position": place,
                "visible": True,
                "variation": True,
                "options": list(dict.fromkeys(one.options[place] for one in product.variations)),
            }
            for place, name in enumerate(product.attributes)
        ],
        "variations": [one.id for one in product.variations],
        "meta_data": [],
    }


def variation_body(product: Product, variation: Variation, site: str, zone: str, now: datetime) -> Json:
    """`/products/{id}/variations/{id}`: one image, no name of the product."""
    image = variation.image or product.image
    return {
        **_item(variation, zone, now),
        "permalink": f"{site}/product/{product.slug}/?attribute_size=1",
        "image": _image(variation.id, image) if image else None,
        "attributes": _values(product, variation),
        "meta_data": [],
    }


def variation_told(product: Product, variation: Variation, site: str, zone: str, now: datetime) -> Json:
    """A variation in a webhook, where it is written as if it were a product."""
    image = variation.image or product.image
    return {
        **_item(variation, zone, now),
        "name": f"{product.name} - {', '.join(variation.options)}",
        "slug": f"{product.slug}-{variation.id}",
        "permalink": f"{site}/product/{product.slug}/?attribute_size=1",
        "type": "variation",
        "parent_id": product.id,
        "categories": [],
        "brands": [],
        "tags": [],
        "images": [_image(variation.id, image)] if image else [],
        "attributes": _values(product, variation),
        "variations": [],
        "meta_data": [],
    }


def is_on_sale(item: Item, now: datetime) -> bool:
    """As WooCommerce reckons it."""
    if not item.sale_price or not item.regular_price or float(item.sale_price) >= float(item.regular_price):
        return False
    return not ((item.sale_from and item.sale_from > now) or (item.sale_to and item.sale_to < now))


def only(body: Json, fields: Sequence[str]) -> Json:
    """The fields of a body that were asked for; all of them when none was."""
    return {name: value for name, value in body.items() if name in fields} if fields else body


def _item(item: Item, zone: str, now: datetime) -> Json:
    on_sale = is_on_sale(item, now)
    times = {
        "date_created": item.created_at,
        "date_modified": item.modified_at,
        "date_on_sale_from": item.sale_from,
        "date_on_sale_to": item.sale_to,
    }
    return {
        "id": item.id,
        **{name: _local(at, zone) for name, at in times.items()},
        **{f"{name}_gmt": _local(at, "UTC") for name, at in times.items()},
        "status": item.status,
        "sku": item.sku,
        "global_unique_id": item.gtin,
        "price": item.sale_price if on_sale else item.regular_price,
        "regular_price": item.regular_price,
        "sale_price": item.sale_price,
        "on_sale": on_sale,
        "manage_stock": item.manage_stock,
        "stock_quantity": item.stock if item.manage_stock else None,
        "stock_status": "outofstock" if item.manage_stock and not item.stock else "instock",
    }


def _local(at: datetime | None, zone: str) -> str | None:
    return (
        None if at is None else f"{at.astimezone(UTC if zone == 'UTC' else ZoneInfo(zone)):%Y-%m-%dT%H:%M:%S}"
    )


def _image(number: int, source: str) -> Json:
    return {"id": 100_000 + number, "src": source, "name": "", "alt": ""}


def _terms(*names: str) -> list[Json]:
    return [
        {"id": 900 + place, "name": name, "slug": name.lower()} for place, name in enumerate(names) if name
    ]


def _values(product: Product, variation: Variation) -> list[Json]:
    return [
        {"id": 0, "name": name, "slug": name, "option": option}
        for name, option in zip(product.attributes, variation.options, strict=False)
    ]
