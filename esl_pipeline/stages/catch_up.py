"""What changed at the source since the last look, for silence; and products of which webhooks did not tell all."""

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from esl_pipeline.buffer.buffer import MAX_ROWS_PER_CALL, Buffer
from esl_pipeline.model.shop import Shop
from esl_pipeline.sources.facts import Facts, Row, told_once
from esl_pipeline.sources.source import Reader, SourceRefusedError
from esl_pipeline.stages.inbox import MERGE_BYTES
from esl_pipeline.stages.memory import BufferMemory

_FIRST_LOOK_BACK = timedelta(hours=1)
_CLOCKS_DIFFER = timedelta(minutes=10)
_WATERMARK = "updated_at"


def read_changes(
    buffer: Buffer,
    reader: Reader,
    *,
    shop: Shop,
    run_id: str,
    overlap: timedelta = timedelta(minutes=10),
) -> dict[str, Any]:
    """Read what changed since the last such read, and products of which webhooks did not tell all.

    A source's search may lag, and clocks differ: `overlap` is read twice. The first read goes back an hour. Returns
    since, until (ISO 8601), products (read), variants_changed, variants_removed, fetched (products read one by one),
    gone (those that are no more), failed ({product id: why}, tried again next time), run_id. Raises SourceError and
    BufferError; the next call then reads the same time again. alarm: None, or why no change was read: up to when they
    were read last is no time of the past; the next call goes back an hour.
    """
    store_id, until = shop["source_store_id"], datetime.now(UTC)
    watermark = buffer.watermark(shop=shop, source=_WATERMARK)
    last = _instant(watermark) if watermark else until - _FIRST_LOOK_BACK + overlap
    alarm = None
    if last is None or last > until + _CLOCKS_DIFFER:
        alarm = (
            f"the changes of {store_id} seem to have been read up to {watermark}: none was read this time, "
            "the next look goes back an hour. What is older comes with the nightly full_reconciliation, or start it."
        )
    since = until if alarm or last is None else last - overlap
    found: dict[str, Any] = {
        "run_id": run_id,
        "since": since.isoformat(),
        "until": until.isoformat(),
        "alarm": alarm,
        **dict.fromkeys(("products", "variants_changed", "variants_removed", "fetched", "gone"), 0),
        "failed": {},
    }
    reader.remember(BufferMemory(buffer, shop, run_id))
    if not alarm:
        for facts in reader.changes(since):
            found["products"] += len(facts.products)
            _merge(buffer, facts, found)
    _fetch_missing(buffer, reader, shop, found)
    read_until = until - _FIRST_LOOK_BACK + overlap if alarm else until
    buffer.watermark_move(shop=shop, source=_WATERMARK, at=read_until.isoformat())
    return found


def _instant(text: str) -> datetime | None:
    """A time of the database's, which knows more of them than Python does."""
    with suppress(ValueError):
        return datetime.fromisoformat(text)
    return None


def _fetch_missing(buffer: Buffer, reader: Reader, shop: Shop, found: dict[str, Any]) -> None:
    after: str | None = None
    while products := buffer.missing_variants(shop=shop, after=after):
        for product_id in products:
            try:
                facts = reader.product(product_id)
            except SourceRefusedError as error:  # of this product alone: it holds up no other
                found["failed"][product_id] = str(error)
                continue
            found["gone" if facts is None else "fetched"] += 1
            _merge(buffer, facts or _tombstone(shop, product_id), found)
        after = products[-1]


def _merge(buffer: Buffer, facts: Facts, found: dict[str, Any]) -> None:
    if facts.problems:
        buffer.problems_note(facts.problems)
    for part in _parts(facts):
        done = buffer.variants_merge(
            claim_id=None,
            products=part.products,
            variants=part.variants,
            levels=part.levels,
            events=[],
            details=part.details,
        )
        found["variants_changed"] += done["variants_changed"]
        found["variants_removed"] += done["variants_removed"]


def _parts(facts: Facts) -> Iterator[Facts]:
    """As many products as one call takes, each with all its variants: half a product would pass for the whole."""
    variants: dict[str, list[Row]] = {product["product_id"]: [] for product in facts.products}
    for variant in facts.variants:
        variants[variant["product_id"]].append(variant)
    details = {detail["variant_id"]: detail for detail in facts.details}
    levels: dict[str, list[Row]] = {}
    for level in facts.levels:
        levels.setdefault(level["inventory_item_id"], []).append(level)
    part, bytes_ = Facts(), 0
    for product in facts.products:
        rows = told_once([product], variants[product["product_id"]])
        size = len(orjson.dumps([product, rows]))
        if part.products and (
            len(part.variants) + len(rows) > MAX_ROWS_PER_CALL or bytes_ + size > MERGE_BYTES
        ):
            yield part
            part, bytes_ = Facts(), 0
        bytes_ += size
        own = (details.get(row["variant_id"]) for row in rows)
        stocked = [level for row in rows for level in levels.get(row.get("inventory_item_id") or "", ())]
        part.extend(Facts([product], rows, stocked, [detail for detail in own if detail]))
    if part.products:
        yield part


def _tombstone(shop: Shop, product_id: str) -> Facts:
    """A product that the source does not have."""
    now = datetime.now(UTC).isoformat()
    product = {
        **shop,
        "product_id": product_id,
        "version_at": now,
        "triggered_at": now,
        "body_sha256": "",  # concluded from absence: see esl.is_revived
        "deleted": True,
        "missing_variants": 0,
        "variant_ids": [],
        "event_ids": [],
    }
    return Facts(products=[product])
