"""Webhook bodies to facts: a product, a variation or a deletion, folded to the newest version per product.

A body is what the REST API answers for the thing at the moment of sending. That of a variable product names its
variations and no more: the product is then fetched. That of a variation tells of it alone.
"""

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from esl_pipeline.sources.bodies import UnusableError, parsed
from esl_pipeline.sources.content import instant
from esl_pipeline.sources.facts import Facts, Row, told_once
from esl_pipeline.sources.folding import folded
from esl_pipeline.sources.woocommerce.content import (
    SYSTEM,
    is_gone,
    is_variation,
    number,
    told,
    told_alone,
    tombstone,
    utc,
    version,
)
from esl_pipeline.sources.woocommerce.deliveries import NEWEST
from esl_pipeline.sources.woocommerce.topics import DELETED, TOPICS

_HALFWAY = timedelta(minutes=1)
_OLDEST = datetime.min.replace(tzinfo=UTC)


def read_deliveries(deliveries: Sequence[Mapping[str, Any]]) -> Facts:
    """Facts of claimed inbox events (keys as returned by Buffer.inbox_claim), folded per product (see folding).

    Whether a sale is on is asked of the clock: of a delivery that has waited, the price of now counts.
    """
    now = datetime.now(UTC)
    return folded(deliveries, lambda delivery: _read(delivery, now))


def _read(delivery: Mapping[str, Any], now: datetime) -> Facts:
    topic = delivery["topic"]
    if topic not in TOPICS or delivery["source_system"] != SYSTEM:
        raise UnusableError(f"topic {topic} is not one that puts anything on a label")
    body = parsed(base64.b64decode(delivery["body_base64"]))
    try:
        facts = _read_deletion(delivery, body) if topic == DELETED else _read_product(delivery, body, now)
    except RecursionError:
        raise UnusableError("the body is nested too deeply") from None
    (product,) = facts.products
    keys = ("product_id", "version_at", "triggered_at", "body_sha256")
    done = {"id": delivery["id"], "state": "done", "reason": None} | {key: product[key] for key in keys}
    return Facts([product], told_once([product], facts.variants), levels=facts.levels, events=[done])


def _read_product(delivery: Mapping[str, Any], body: Mapping[str, Any], now: datetime) -> Facts:
    own = number(body.get("id"))
    if own is None:
        raise UnusableError("the product has no id")
    at = utc(body.get("date_modified_gmt"))
    if at is None:
        raise UnusableError("date_modified_gmt is not a time")
    received_at = instant(delivery["received_at"])
    if received_at is not None and at > received_at + NEWEST:
        raise UnusableError(f"date_modified_gmt {at.isoformat()} is in the future")
    if is_variation(body):
        parent = number(body.get("parent_id"))
        if parent is None:
            raise UnusableError("the variation has no parent_id")
        said = _version(delivery, parent, at)
        if is_gone(body):  # its product says which are left
            return Facts([said | {"deleted": False, "variant_ids": None, "missing_variants": 1}])
        return told_alone(body, said, own, now)
    said = _version(delivery, own, at)
    return Facts([tombstone(said)]) if is_gone(body) else told(body, said, now)


def _read_deletion(delivery: Mapping[str, Any], body: Mapping[str, Any]) -> Facts:
    """`{"id": …}` only: the deletion is as old as its arrival."""
    own = number(body.get("id"))
    if own is None:
        raise UnusableError("the deletion names no product id")
    at = instant(delivery.get("triggered_at")) or instant(delivery["received_at"]) or _OLDEST
    return Facts([tombstone(_version(delivery, own, at))])


def _version(delivery: Mapping[str, Any], product_id: str, at: datetime) -> Row:
    triggered_at = instant(delivery.get("triggered_at")) or _within_its_second(
        at, instant(delivery["received_at"])
    )
    said = version(
        shop=delivery["source_store_id"],
        product_id=product_id,
        at=at,
        triggered_at=triggered_at,
        sha256=delivery["body_sha256"],
    )
    return said | {"event_ids": [delivery["id"]]}


def _within_its_second(at: datetime, received_at: datetime | None) -> datetime:
    """A time within the second of `at`, the later the later the body arrived.

    Times of modification are whole seconds, and all variations priced anew at once have the same: the last arrival must
    count then. It stays within that second, since a read that began after it knows better, whatever our clock says.
    """
    late = max(timedelta(), received_at - at) if received_at else timedelta()
    return at + timedelta(seconds=1) * (late / (late + _HALFWAY))
