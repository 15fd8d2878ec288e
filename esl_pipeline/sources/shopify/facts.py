"""Webhook bodies to facts: one small reader per topic, then folding to the newest version per product.

Bodies are read tolerantly (shopify.md section 5): only what a label needs is required. A subscription may leave fields
out (include_fields): what a body has no key for, it does not say. Ids are taken from the gid, because Shopify's numeric
ids may exceed 2^53 and its own samples show them rounded.
"""

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from esl_pipeline.sources.bodies import UnusableError, check_counts, parsed
from esl_pipeline.sources.content import instant, product_content, text_of, variant_row
from esl_pipeline.sources.facts import Facts, Row, told_once
from esl_pipeline.sources.folding import folded
from esl_pipeline.sources.shopify.gids import number_in

# Shopify puts full data of the first 100 variants only into a body (shopify.md section 5).
MAX_VARIANTS_IN_BODY = 100
MAX_CLOCK_AHEAD = timedelta(minutes=10)

NO_VARIANTS = (
    "the body lists no variants, and a product has one at least: none is removed, the product is fetched"
)

_OLDEST = datetime.min.replace(tzinfo=UTC)


def read_deliveries(deliveries: Sequence[Mapping[str, Any]]) -> Facts:
    """Facts of claimed inbox events (keys as returned by Buffer.inbox_claim), folded per product (see folding)."""
    return folded(deliveries, _read)


def _read(delivery: Mapping[str, Any]) -> Facts:
    topic = delivery["topic"]
    if topic not in _READERS:
        raise UnusableError(f"topic {topic} is not one that puts anything on a label")
    body = parsed(base64.b64decode(delivery["body_base64"]))
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
    check_counts(body)
    version, shared = _version_row(delivery, product_id, version_at), product_content(body)
    images = (
        _Images(body) if "images" in body else None
    )  # without them nobody knows which is the variant's own
    rows, without_id = [], 0
    for variant in variants:
        if isinstance(variant, dict) and (variant_id := _id(variant)) is not None:
            rows.append(_variant(images, shared, product_id, variant, variant_id) | version)
        else:
            without_id += 1
    named = _named_variants(body, rows)
    missing = len(set(named or ()) - {row["variant_id"] for row in rows})
    reason = None
    if not rows or without_id:
        # A product has a variant, and one that could not be identified may be any of the known ones: this is not the
        # truth of which there are, so none is removed, and the product is fetched.
        named, missing = None, max(1, missing)
        reason = f"{without_id} variants without an id left out" if without_id else NO_VARIANTS
    product = version | shared | {"deleted": False, "variant_ids": named, "missing_variants": missing}
    return Facts([product], told_once([product], rows), events=[_done(delivery, product, reason)])


def _read_deletion(delivery: Mapping[str, Any], body: Mapping[str, Any]) -> Facts:
    """`{"id": …}` only: the deletion is as old as its trigger time, or as its arrival."""
    product_id = _id(body)
    if product_id is None:
        raise UnusableError("the deletion names no product id")
    product = _version_row(delivery, product_id, _time_of_delivery(delivery)) | {
        "deleted": True,
        "variant_ids": [],
        "missing_variants": 0,
    }
    return Facts(products=[product], events=[_done(delivery, product)])


def _read_level(delivery: Mapping[str, Any], body: Mapping[str, Any]) -> Facts:
    if "available" not in body:
        raise UnusableError("the body does not say how much is available")
    available = body["available"]
    if available is not None and (
        isinstance(available, bool) or not isinstance(available, int) or abs(available) > 2**62
    ):
        raise UnusableError("the available quantity is not a whole number")
    return _level(delivery, body, _version(body.get("updated_at"), delivery), available=available)


def _read_disconnection(delivery: Mapping[str, Any], body: Mapping[str, Any]) -> Facts:
    """`{"inventory_item_id": …, "location_id": …}` only: as old as its trigger time, or as its arrival."""
    return _level(delivery, body, _time_of_delivery(delivery), gone=True)


def _level(delivery: Mapping[str, Any], body: Mapping[str, Any], at: datetime, **said: Any) -> Facts:
    item, location = _number(body.get("inventory_item_id")), _number(body.get("location_id"))
    if item is None or location is None:
        raise UnusableError("the inventory level names no inventory_item_id and location_id")
    place = {"inventory_item_id": item, "location_id": location}
    triggered_at = (instant(delivery.get("triggered_at")) or at).isoformat()
    version = {"triggered_at": triggered_at, "body_sha256": delivery["body_sha256"]}
    shop = {key: delivery[key] for key in ("source_system", "source_store_id")}
    level = {**shop, **place, **version, "updated_at": at.isoformat(), **said}
    event = {"id": delivery["id"], "state": "done", **place, **version, "version_at": at.isoformat()}
    return Facts(levels=[level], events=[event])


_READERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], Facts]] = {
    "products/create": _read_product,
    "products/update": _read_product,
    "products/delete": _read_deletion,
    "inventory_levels/connect": _read_level,
    "inventory_levels/update": _read_level,
    "inventory_levels/disconnect": _read_disconnection,
}


def _variant(
    images: "_Images | None",
    shared: Row,
    product_id: str,
    variant: Mapping[str, Any],
    variant_id: str,
) -> Row:
    said = {name: variant[name] for name in _SAID if name in variant}
    if "inventory_item_id" in variant:
        said["inventory_item_id"] = _number(variant["inventory_item_id"])
    if images is not None:
        said["image_url"] = images.of(variant)
    return variant_row(product_id=product_id, variant_id=variant_id, product=shared, variant=said)


_SAID = (
    *("title", "barcode", "sku", "price", "compare_at_price", "created_at"),
    *("option1", "option2", "option3"),
)


def _time_of_delivery(delivery: Mapping[str, Any]) -> datetime:
    """For a body without a time of its own."""
    return instant(delivery.get("triggered_at")) or instant(delivery["received_at"]) or _OLDEST


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


class _Images:
    """Which image a variant has: its own, else the product's first. Looked up: there may be thousands of both."""

    def __init__(self, product: Mapping[str, Any]) -> None:
        images = [(image, source) for image in _list(product.get("images")) if (source := _source(image))]
        self._first = _source(product.get("image")) or (images[0][1] if images else None)
        # With its place in the list, so that of several the first counts.
        self._by_id: dict[object, tuple[int, str]] = {}
        self._by_variant: dict[object, tuple[int, str]] = {}
        for place, (image, source) in enumerate(images):
            self._by_id.setdefault(_key(image.get("id")), (place, source))
            for variant in _list(image.get("variant_ids")):
                self._by_variant.setdefault(_key(variant), (place, source))

    def of(self, variant: Mapping[str, Any]) -> str | None:
        wanted, own = _key(variant.get("image_id")), _key(variant.get("id"))
        by_id = self._by_id.get(wanted) if wanted is not None else None
        by_variant = self._by_variant.get(own) if own is not None else None
        found = min(filter(None, (by_id, by_variant)), default=None)
        return text_of(found[1] if found else self._first)


def _source(image: object) -> str | None:
    source = image.get("src") if isinstance(image, dict) else None
    return source if isinstance(source, str) else None


def _key(value: object) -> int | str | None:
    """An id as JSON has it; nothing else names anything."""
    return value if isinstance(value, int | str) else None


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _id(thing: Mapping[str, Any]) -> str | None:
    """The number in admin_graphql_api_id, else `id`."""
    return number_in(thing.get("admin_graphql_api_id")) or _number(thing.get("id"))


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
