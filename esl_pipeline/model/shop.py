"""A shop's key: how one text names (source_system, source_store_id), e.g. as the Dagster partition."""

from collections.abc import Mapping
from typing import Any

Shop = dict[str, str]


def shop_key(row: Mapping[str, Any]) -> str:
    """`shopify:demo.myshopify.com` for a row that has source_system and source_store_id."""
    return f"{row['source_system']}:{row['source_store_id']}"


def shop_of(key: str) -> Shop:
    """The reverse of shop_key. Raises ValueError for a text that is not a shop's key."""
    system, separator, store = key.partition(":")
    if not (system and separator and store):
        raise ValueError(f"{key!r} is not a shop: expected source_system:source_store_id")
    return {"source_system": system, "source_store_id": store}
