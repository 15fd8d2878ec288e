"""Stage 1: inbox events become stored variants; variants that are due come out as a frame."""

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from esl_pipeline.buffer.buffer import MAX_ROWS_PER_CALL, Buffer
from esl_pipeline.sources.facts import Facts, Source
from esl_pipeline.sources.shopify import ShopifySource
from esl_pipeline.stages.shops import Shop, shop_key

SOURCES: Mapping[str, Source] = {source.system: source for source in (ShopifySource(),)}

VARIANT_COLUMNS = {
    "source_system": "str",
    "source_store_id": "str",
    "variant_id": "str",
    "product_id": "str",
    "inventory_item_id": "str",
    "title": "str",
    "variant_title": "str",
    "barcode": "str",
    "sku": "str",
    "price": "str",
    "compare_at_price": "str",
    "image_url": "str",
    "status": "str",
    "published_at": "str",
    "vendor": "str",
    "product_type": "str",
    "tags": "str",
    "handle": "str",
    "option1": "str",
    "option2": "str",
    "option3": "str",
    "source_created_at": "str",
    "source_updated_at": "str",
    "unsaid": "str",
    "removed": "bool",
    "stock": "str",
    "gift_card": "bool",
    "unit_price": "str",
    "unit_price_measurement": "str",
    "history": "str",
    "event_ids": "object",
    "revision": "int64",
}

_JSON_COLUMNS = ("stock", "unit_price_measurement", "history")


def read_inbox(buffer: Buffer, *, run_id: str, shop: Shop | None = None) -> list[dict[str, Any]]:
    """Claim one micro-batch of events, merge what they say, finish them: three round trips at most.

    Returns the events read (id, shop key, topic, webhook_id, received_at, outcome, reason); empty: nothing is due.
    """
    claim_id, claimed = buffer.inbox_claim(run_id=run_id, shop=shop)
    if not claimed:
        return []
    facts = Facts()
    for system, source in SOURCES.items():
        facts.extend(source.read_deliveries([event for event in claimed if event["source_system"] == system]))
    read = {event["id"] for event in facts.events}
    facts.events += [
        {"id": event["id"], "state": "unusable", "reason": f"no source is called {event['source_system']}"}
        for event in claimed
        if event["id"] not in read
    ]
    merged = buffer.variants_merge(
        claim_id=claim_id,
        products=facts.products,
        variants=facts.variants,
        levels=facts.levels,
        events=facts.events,
        details=facts.details,
        shops=facts.shops,
    )
    outcome = {event["id"]: event for event in facts.events}
    outcome |= {replay["id"]: replay | {"state": "unusable"} for replay in merged["replays"]}
    return [
        {
            "id": event["id"],
            "shop": shop_key(event),
            "topic": event["topic"],
            "webhook_id": event["webhook_id"],
            "received_at": event["received_at"],
            "outcome": outcome[event["id"]]["state"],
            "reason": outcome[event["id"]].get("reason"),
        }
        for event in claimed
    ]


def due_variants(
    buffer: Buffer, *, shop: Shop | None = None, limit: int = MAX_ROWS_PER_CALL, after: int = 0
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Variants that are not evaluated yet, oldest change first, and the active mappings of their shops.

    The frame has VARIANT_COLUMNS: text as the source sent it, source_updated_at ISO 8601 in UTC, event_ids the inbox
    events behind the newest content, unsaid the columns that nobody has said yet (text with spaces). JSON text or null:
    stock {location id: quantity}, unit_price_measurement, history {mapping id: {shown, prior}} (prices). `after`
    pages on from a revision.
    """
    due = buffer.variants_due(limit=limit, shop=shop, after=after)
    rows = [
        row | {key: json.dumps(row[key]) if row[key] else None for key in _JSON_COLUMNS}
        for row in due["variants"]
    ]
    frame = pd.DataFrame(rows, columns=list(VARIANT_COLUMNS)).astype(VARIANT_COLUMNS)
    return frame, due["mappings"]
