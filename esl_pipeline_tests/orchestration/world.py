"""The same world for tests that see it through Dagster: two shops, their partitions, products that change."""

import itertools
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline_tests import world
from esl_pipeline_tests.world import SHOP, STORE, map_shop

__all__ = [
    "KEY",
    "OTHER_KEY",
    "OTHER_SHOP",
    "OTHER_STORE",
    "SHOP",
    "STORE",
    "arrive",
    "map_shop",
    "plain",
    "product",
]

OTHER_SHOP = "other-shop.myshopify.com"
OTHER_STORE = "S2"
KEY = f"shopify:{SHOP}"
OTHER_KEY = f"shopify:{OTHER_SHOP}"

_versions = itertools.count(1)


def product(number: int, *, codes: list[str | None] | None = None, **changes: Any) -> world.Body:
    """A product that is newer than every earlier one: one variant per code (C-<number> by default).

    `changes` go to every variant, title and status to the product.
    """
    own = {name: changes.pop(name) for name in ("title", "status") if name in changes}
    fields = {"price": "1.50"} | changes
    variants = [
        world.variant(number * 1000 + i, code, inventory_item_id=number * 1000 + 500 + i, **fields)
        for i, code in enumerate([f"C-{number}"] if codes is None else codes)
    ]
    return world.product(number, next(_versions), variants, **own)


def plain(metadata: Mapping[str, dg.MetadataValue]) -> dict[str, Any]:
    """What a report says, before its numbers became text, or those of a shop's line."""
    return {re.sub(r", \w+:\S+$", "", name): _number(value.value) for name, value in metadata.items()}


def _number(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
        return float(value) if "." in value else int(value)
    return value


def arrive(buffer: Buffer, *bodies: world.Body, shop: str = SHOP, topic: str = "products/update") -> None:
    """Put deliveries of these bodies into the inbox, as the receiver would, triggered now."""
    now = datetime.now(UTC).isoformat()
    buffer.inbox_add([world.kept(topic, body, shop=shop, at=now) for body in bodies])
