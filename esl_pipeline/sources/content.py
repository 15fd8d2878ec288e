"""What a source says of a variant, in one form whichever way it came: by webhook, by a read, in a file.

Everything has three values: said, said empty (None), and not said (no key). What is not said here has no key in the
row either, and the buffer keeps what it has. What is longer than lengths.LENGTHS allows is cut here, and nowhere else.
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from esl_pipeline.labels.lengths import LENGTHS, fitted
from esl_pipeline.model.rows import VARIANTS
from esl_pipeline.sources.facts import Row

# NUL is legal JSON that Postgres text refuses; a lone surrogate cannot be encoded at all.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")

# What is said of a product, for all its variants; and of a variant's own content the buffer's name, with ours of what
# is in it.
_SHARED = tuple(column.name for column in VARIANTS.columns if column.is_shared)
_OF_DETAILS = "unit_price"
_OWN = {
    column.name: {"variant_title": "title", "source_created_at": "created_at"}.get(column.name, column.name)
    for column in VARIANTS.columns
    if column.name == "inventory_item_id"
    or (column.longest and not column.is_shared and column.name != _OF_DETAILS)
}
CONTENT = frozenset((*_SHARED, *_OWN))


def variant_row(
    *, product_id: str, variant_id: str, product: Mapping[str, Any], variant: Mapping[str, Any]
) -> Row:
    """One variant for Buffer.variants_merge, without its version: its ids and what was said of its content.

    In: product as product_content made it, once for all its variants; variant with any of inventory_item_id, title,
    barcode, sku, price, compare_at_price, image_url, option1 to option3, created_at, as the source sent them. Text is
    kept as it is, but empty text is null.
    """
    own = {
        name: _READ.get(name, text_of)(variant[said], LENGTHS.get(name))
        for name, said in _OWN.items()
        if said in variant
    }
    return {"product_id": product_id, "variant_id": variant_id, **own, **product}


def product_content(product: Mapping[str, Any]) -> Row:
    """What all variants of a product share.

    In: any of title, handle, status, published_at, vendor, product_type, tags (list, or text with commas), as sent.
    """
    return {
        name: _READ.get(name, text_of)(product[name], LENGTHS[name]) for name in _SHARED if name in product
    }


def text_of(value: object, most: int | None = None) -> str | None:
    """A value as text that Postgres can store, cut to `most` characters.

    Unstorable ones become U+FFFD, which the schema refuses.
    """
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value)
    return _UNSTORABLE.sub("\ufffd", text if most is None else fitted(text, most)) or None


def instant(value: object) -> datetime | None:
    """An ISO 8601 time with zone, in UTC; None for anything else."""
    if not isinstance(value, str):
        return None
    try:
        at = datetime.fromisoformat(value)
        return at.astimezone(UTC) if at.tzinfo else None
    except (ValueError, OverflowError):
        return None


def _time(value: object, most: int | None) -> str | None:
    """In UTC, since webhooks carry the shop's offset and the Admin API does not; odd text as it is."""
    at = instant(value)
    return at.replace(microsecond=0).isoformat() if at else text_of(value, most)


def _tags(value: object, most: int | None) -> str | None:
    """Sorted, joined with ", ": webhooks send one text, the Admin API a list, and neither promises an order."""
    parts = value if isinstance(value, list) else (text_of(value) or "").split(",")
    tags = sorted({tag.strip() for part in parts if (tag := text_of(part))} - {""})
    return text_of(", ".join(tags), most)


def _status(value: object, most: int | None) -> str | None:
    return text_of((text_of(value) or "").lower(), most)


_READ = {"status": _status, "published_at": _time, "source_created_at": _time, "tags": _tags}
