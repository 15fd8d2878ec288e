"""Stage 1: inbox events become stored variants."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from esl_pipeline.buffer.buffer import MAX_BYTES_PER_CLAIM, Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.labels.lengths import FIELD_LENGTH, fitted
from esl_pipeline.model.shop import Shop, shop_key
from esl_pipeline.printable import printable
from esl_pipeline.sources.facts import Facts, Row
from esl_pipeline.sources.registry import source_of

# What one merge carries, unless a single product has more.
MERGE_BYTES = 2_000_000

log = logging.getLogger(__name__)


def read_inbox(
    buffer: Buffer, *, run_id: str, shop: Shop | None = None, max_bytes: int = MAX_BYTES_PER_CLAIM
) -> list[dict[str, Any]]:
    """Claim one micro-batch of events, merge what they say, finish them: two round trips, and one more for each further
    MERGE_BYTES.

    Returns the events read (id, shop key, topic, webhook_id, received_at, outcome, reason); empty: nothing is due. What
    one shop's events cannot be read or merged for holds up no other's: it is raised when these are done.
    """
    claim_id, claimed = buffer.inbox_claim(run_id=run_id, shop=shop, max_bytes=max_bytes)
    if not claimed:
        return []
    facts, unread = _read(claimed)
    outcome: dict[int, Row] = {}
    for part in _parts(facts, claimed):
        outcome |= _merge(buffer, claim_id, part)
    if unread:
        raise unread
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


def _read(claimed: Sequence[Row]) -> tuple[Facts, Exception | None]:
    """What the events say, and what kept those of a shop from being read; their claims run out, and they come again."""
    facts, unread = Facts(), None
    by_shop: dict[str, list[Row]] = {}
    for event in claimed:
        by_shop.setdefault(shop_key(event), []).append(event)
    for events in by_shop.values():
        system = events[0]["source_system"]
        source = source_of(system)
        if source is None:
            reason = f"no source is called {system}"
            facts.events += [{"id": event["id"], "state": "unusable", "reason": reason} for event in events]
            continue
        try:
            facts.extend(source.read_deliveries(events))
        except Exception as error:
            ids = ", ".join(str(event.get("webhook_id")) for event in events[:5])
            log.exception("deliveries cannot be read", extra={"shop": shop_key(events[0]), "webhook_id": ids})
            unread = error
    return facts, unread


# Facts that belong together, one product's or item's; with how many bytes they are.
_Group = tuple[Facts, int]


def _parts(facts: Facts, claimed: Sequence[Row]) -> Iterator[list[Facts]]:
    """The facts in parts for one merge each: products and stock whole, with the events that told them."""
    part, size = list[Facts](), 0
    for group, bytes_ in _groups(facts, claimed):
        if part and size + bytes_ > MERGE_BYTES:
            yield part
            part, size = [], 0
        part.append(group)
        size += bytes_
    if part:
        yield part


def _groups(facts: Facts, claimed: Sequence[Row]) -> Iterator[_Group]:
    shops = {event["id"]: shop_key(event) for event in claimed}
    groups: dict[tuple[str, ...], Facts] = {}

    def of(row: Row, *keys: str) -> Facts:
        shop = shops[row["id"]] if "id" in row else shop_key(row)
        named = [f"{key} {row[key]}" for key in keys if key in row]
        return groups.setdefault((shop, *named[:1]), Facts())

    for product in facts.products:
        of(product, "product_id").products.append(product)
    for variant in facts.variants:
        of(variant, "product_id").variants.append(variant)
    for level in facts.levels:
        of(level, "inventory_item_id").levels.append(level)
    for event in facts.events:
        of(event, "product_id", "inventory_item_id").events.append(event)
    for detail in facts.details:
        of(detail, "variant_id").details.append(detail)
    for shop in facts.shops:
        of(shop).shops.append(shop)
    for group in groups.values():
        yield group, len(orjson.dumps([group.products, group.variants, group.levels]))


def _merge(buffer: Buffer, claim_id: str, part: Sequence[Facts]) -> dict[int, Row]:
    """Merge a part; how its events ended, by id. What the buffer cannot take as data is parted until it is alone."""
    facts = Facts()
    for group in part:
        facts.extend(group)
    try:
        merged = buffer.variants_merge(
            claim_id=claim_id,
            products=facts.products,
            variants=facts.variants,
            levels=facts.levels,
            events=facts.events,
            details=facts.details,
            shops=facts.shops,
        )
    except BufferError as error:
        if not error.is_about_data or not (facts.products or facts.levels):
            raise
        half = len(part) // 2
        if half:
            return _merge(buffer, claim_id, part[:half]) | _merge(buffer, claim_id, part[half:])
        reason = fitted(printable(f"the buffer cannot take it: {error}"), FIELD_LENGTH)
        dead = [{"id": event["id"], "state": "dead", "reason": reason} for event in facts.events]
        return _merge(buffer, claim_id, [Facts(events=dead)])
    outcome = {event["id"]: event for event in facts.events}
    return outcome | {replay["id"]: replay | {"state": "unusable"} for replay in merged["replays"]}
