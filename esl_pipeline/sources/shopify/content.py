"""What Shopify says of a variant, in one form whichever way it came: by webhook or by the Admin API.

The content hash is made here, so that a product which the nightly read finds unchanged is not written again.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import orjson

from esl_pipeline.sources.facts import Row

# NUL is legal JSON that Postgres text refuses; a lone surrogate cannot be encoded at all.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_NUMBER = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,6})?")


def variant_row(
    *, product_id: str, variant_id: str, product: Mapping[str, Any], variant: Mapping[str, Any]
) -> Row:
    """One variant for Buffer.variants_merge, without its version: ids, content and content_hash (SHA-256, hex).

    In: product as product_content made it, once for all its variants; variant with inventory_item_id, title, barcode,
    sku, price, compare_at_price, image_url, options (up to three texts), created_at, as the source sent them. Text is
    kept as it is, but empty text is null.
    """
    content = {
        "product_id": product_id,
        "inventory_item_id": variant.get("inventory_item_id"),
        "variant_title": text_of(variant.get("title")),
        "barcode": text_of(variant.get("barcode")),
        "sku": text_of(variant.get("sku")),
        "price": text_of(variant.get("price")),
        "compare_at_price": text_of(variant.get("compare_at_price")),
        "image_url": text_of(variant.get("image_url")),
        "source_created_at": _time(variant.get("created_at")),
    }
    options = [text_of(option) for option in variant.get("options") or ()][:3]
    content |= {f"option{i + 1}": options[i] if i < len(options) else None for i in range(3)}
    content |= product
    hashed = content | {key: _canonical(content[key]) for key in ("price", "compare_at_price")}
    digest = hashlib.sha256(orjson.dumps(hashed, option=orjson.OPT_SORT_KEYS)).hexdigest()
    return content | {"variant_id": variant_id, "content_hash": digest}


def product_content(product: Mapping[str, Any]) -> Row:
    """What all variants of a product share.

    In: title, handle, status, published_at, vendor, product_type, tags (list, or text with commas), as sent.
    """
    return {key: text_of(product.get(key)) for key in ("title", "handle", "vendor", "product_type")} | {
        "status": (text_of(product.get("status")) or "").lower() or None,
        "published_at": _time(product.get("published_at")),
        "tags": _tags(product.get("tags")),
    }


def text_of(value: object) -> str | None:
    """A value as text that Postgres can store; unstorable characters become U+FFFD, which the schema refuses."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value)
    return _UNSTORABLE.sub("\ufffd", text) or None


def instant(value: object) -> datetime | None:
    """An ISO 8601 time with zone, in UTC; None for anything else."""
    if not isinstance(value, str):
        return None
    try:
        at = datetime.fromisoformat(value)
        return at.astimezone(UTC) if at.tzinfo else None
    except (ValueError, OverflowError):
        return None


def _time(value: object) -> str | None:
    """In UTC, since webhooks carry the shop's offset and the Admin API does not; odd text as it is."""
    at = instant(value)
    return at.replace(microsecond=0).isoformat() if at else text_of(value)


def _tags(value: object) -> str | None:
    """Sorted, joined with ", ": webhooks send one text, the Admin API a list, and neither promises an order."""
    parts = value if isinstance(value, list) else (text_of(value) or "").split(",")
    tags = sorted({tag.strip() for part in parts if (tag := text_of(part))} - {""})
    return ", ".join(tags) or None


def _canonical(price: str | None) -> str | None:
    """ "10.0" and "10.00" are the same price; for the hash only, the text is kept as sent."""
    if price is None or not _NUMBER.fullmatch(price):
        return price
    return str(Decimal(price).normalize())
