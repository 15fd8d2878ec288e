"""Webhook bodies to facts: one small reader per topic, then folding to the newest version per product.

Bodies are read tolerantly (shopify.md section 5): only what a label needs is required. Ids are taken from the gid,
because Shopify's numeric ids may exceed 2^53 and its own samples show them rounded.
"""

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from esl_pipeline.sources.facts import Facts, Row
from esl_pipeline.sources.shopify.content import instant, product_content, text_of, variant_row

# Shopify puts full data of the first 100 variants only into a body (shopify.md section 5).
MAX_VARIANTS_IN_BODY = 100
MAX_CLOCK_AHEAD = timedelta(minutes=10)

_GID = re.compile(r"^gid://shopify/[A-Za-z]+/([0-9]{1,20})$")
_OLDEST = datetime.min.replace(tzinfo=UTC)


class UnusableError(Exception):
    """A signed body that says nothing we can use; the text is the reason that is kept with it."""


def read_deliveries(deliveries: Sequence[Mapping[str, Any]]) -> Facts:
    """Facts of claimed inbox events (keys as returned by Buffer.inbox_claim), folded per product."""
    facts = Facts()
    newest: dict[tuple[str, str], tuple[tuple[Any, ...], Facts]] = {}
    for delivery in deliveries:
        try:
            read = _read(delivery)
        except UnusableError as refused:
            facts.events.append({"id": delivery["id"], "state": "unusable", "reason": str(refused)})
            continue
        facts.events += read.events
        facts.levels += read.levels
        for product in read.products:
            key = (product["source_store_id"], product["product_id"])
            version = (product["version_at"], product["triggered_at"], product["body_sha256"])
            if key not in newest or version > newest[key][0]:
                newest[key] = (version, read)
    for _, read in newest.values():
        facts.products += read.products
        facts.variants += read.variants
    return facts


def _read(delivery: Mapping[str, Any]) -> Facts:
    topic = delivery["topic"]
    if topic not in _READERS:
        raise UnusableError(f"topic {topic} is not one that puts anything on a label")
    try:
        body = orjson.loads(base64.b64decode(delivery["body_base64"]))
    except ValueError as error:
        raise UnusableError(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise UnusableError("the body is not a JSON object")
    try:
        return _READERS[topic](delivery, body)
    except RecursionError:
        raise UnusableError("the body is nested too deeply") from None


def _read_product(delivery: Mapping[str, Any], body: Mapping[str, Any]) -> Facts:
    product_id = _id(body)
    version_at = _version(body.get("updated_at"), delivery)
    variants = body.get("variants")
    if product_id is None:
        raise UnusableError("the product has no id")
    if not isinstance(variants, list):
        raise UnusableError("the product has no list of variants")
    version, shared = _version_row(delivery, product_id, version_at), product_content(body)
    rows, without_id = [], 0
    for variant in variants:
        if isinstance(variant, dict) and (variant_id := _id(variant)) is not None:
            rows.append(_variant(body, shared, product_id, variant, variant_id) | version)
        else:
            without_id += 1
    named = _named_variants(body, rows)
    reason = f"{without_id} variants without an id left out" if without_id else None
    product = (
        version
        | shared
        | {
            "deleted": False,
            # A variant that could not be identified may be any of the known ones: remove none.
            "variant_ids": None if without_id else named,
            "missing_variants": len(set(named or ()) - {row["variant_id"] for row in rows}),
        }
    )
    return Facts(products=[product], variants=rows, events=[_done(delivery, product, reason)])


def _read_deletion(delivery: Mapping[str, Any], body: Mapping[str, Any]) -> Facts:
    """`{"id": …}` only: the deletion is as old as its trigger time, or as its arrival."""
    product_id = _id(body)
    if product_id is None:
        raise UnusableError("the deletion names no product id")
    at = instant(delivery.get("triggered_at")) or instant(delivery["received_at"]) or _OLDEST
    product = _version_row(delivery, product_id, at) | {
        "deleted": True,
        "variant_ids": [],
        "missing_variants": 0,
    }
    return Facts(products=[product], events=[_done(delivery, product)])


def _read_level(delivery: Mapping[str, Any], body: Mapping[str, Any]) -> Facts:
    item, location = _number(body.get("inventory_item_id")), _number(body.get("location_id"))
    if item is None or location is None:
        raise UnusableError("the inventory level names no inventory_item_id and location_id")
    available = body.get("available")
    if available is not None and (
        isinstance(available, bool) or not isinstance(available, int) or abs(available) > 2**62
    ):
        raise UnusableError("the available quantity is not a whole number")
    at = _version(body.get("updated_at"), delivery)
    level = {
        "source_system": delivery["source_system"],
        "source_store_id": delivery["source_store_id"],
        "inventory_item_id": item,
        "location_id": location,
        "available": available,
        "updated_at": at.isoformat(),
    }
    event = {
        "id": delivery["id"],
        "state": "done",
        "inventory_item_id": item,
        "location_id": location,
        "version_at": at.isoformat(),
    }
    return Facts(levels=[level], events=[event])


_READERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], Facts]] = {
    "products/create": _read_product,
    "products/update": _read_product,
    "products/delete": _read_deletion,
    "inventory_levels/update": _read_level,
}


def _variant(
    product: Mapping[str, Any],
    shared: Row,
    product_id: str,
    variant: Mapping[str, Any],
    variant_id: str,
) -> Row:
    said = {
        key: variant.get(key)
        for key in ("title", "barcode", "sku", "price", "compare_at_price", "created_at")
    }
    said |= {
        "inventory_item_id": _number(variant.get("inventory_item_id")),
        "image_url": _image(product, variant),
        "options": [variant.get(f"option{i}") for i in (1, 2, 3)],
    }
    return variant_row(product_id=product_id, variant_id=variant_id, product=shared, variant=said)


def _version_row(delivery: Mapping[str, Any], product_id: str, at: datetime) -> Row:
    """Which statement about the product this is: newest updated_at, then trigger time, then body hash wins."""
    triggered_at = instant(delivery.get("triggered_at")) or at
    return {
        "source_system": delivery["source_system"],
        "source_store_id": delivery["source_store_id"],
        "product_id": product_id,
        "version_at": at.isoformat(),
        "triggered_at": triggered_at.isoformat(),
        "body_sha256": delivery["body_sha256"],
        "event_ids": [delivery["id"]],
    }


def _done(delivery: Mapping[str, Any], product: Mapping[str, Any], reason: str | None = None) -> Row:
    keys = ("product_id", "version_at", "triggered_at", "body_sha256")
    return {"id": delivery["id"], "state": "done", "reason": reason} | {key: product[key] for key in keys}


def _named_variants(body: Mapping[str, Any], rows: Sequence[Row]) -> list[str] | None:
    """Ids of all variants that the product has, or None when the body does not say."""
    gids = body.get("variant_gids")
    if isinstance(gids, list):
        ids = [_id(gid) if isinstance(gid, dict) else None for gid in gids]
        if all(ids):
            return sorted({str(i) for i in ids} | {row["variant_id"] for row in rows})
        return None
    if len(rows) < MAX_VARIANTS_IN_BODY:
        return sorted({row["variant_id"] for row in rows})
    return None


def _image(product: Mapping[str, Any], variant: Mapping[str, Any]) -> str | None:
    """The variant's own image, else the product's first."""
    images = [
        i for i in _list(product.get("images")) if isinstance(i, dict) and isinstance(i.get("src"), str)
    ]
    wanted = variant.get("image_id")
    for image in images:
        if (wanted is not None and image.get("id") == wanted) or (
            variant.get("id") is not None and variant["id"] in _list(image.get("variant_ids"))
        ):
            return text_of(image["src"])
    first = product.get("image")
    if isinstance(first, dict) and isinstance(first.get("src"), str):
        return text_of(first["src"])
    return text_of(images[0]["src"]) if images else None


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _id(thing: Mapping[str, Any]) -> str | None:
    """The number in admin_graphql_api_id, else `id`."""
    gid = thing.get("admin_graphql_api_id")
    if isinstance(gid, str) and (match := _GID.match(gid)):
        return match[1]
    return _number(thing.get("id"))


def _number(value: object) -> str | None:
    """A positive integer as text; floats are refused, they have lost digits already."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return str(value)
    if isinstance(value, str) and re.fullmatch("[0-9]{1,20}", value):
        return value
    return None


def _version(value: object, delivery: Mapping[str, Any]) -> datetime:
    at = instant(value)
    if at is None:
        raise UnusableError("updated_at is not a time with a zone")
    received_at = instant(delivery["received_at"])
    if received_at is not None and at > received_at + MAX_CLOCK_AHEAD:
        raise UnusableError(f"updated_at {at.isoformat()} is in the future")
    return at
