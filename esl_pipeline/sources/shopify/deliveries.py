"""From the headers and body of a signed webhook to the delivery that the inbox keeps. Pure, no I/O.

Only the body is signed. Topic, shop, ids and time come in unsigned headers, so an old body can be sent again
under another topic or with a fresh id: the body must therefore have the shape of its topic, and what does not
fit is kept as "unusable" with the reason, for a human, instead of being lost or bounced for ever. A body that has
the shape of another topic, or names another shop, is a suspected replay.

Lifecycle topics are about people (owners, customers): of them only the hash of the body is kept, and the time in it.
"""

import base64
import hashlib
import re
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.datastructures import Headers

from esl_pipeline.sources.bodies import UnusableError, check_counts, parsed
from esl_pipeline.sources.content import instant
from esl_pipeline.sources.shopify.shop_names import shop_domain
from esl_pipeline.sources.shopify.topics import TOPICS
from esl_pipeline.sources.source import DeliveryError

# The field of the signed body that names the shop, and what becomes of the delivery.
LIFECYCLE_TOPICS = {
    "customers/data_request": ("shop_domain", "no data of customers is held"),
    "customers/redact": ("shop_domain", "no data of customers is held"),
    "shop/redact": (
        "shop_domain",
        "housekeeping deletes what is held of the shop, once nothing speaks against it",
    ),
    "app/uninstalled": ("myshopify_domain", "the shop's mappings are inactive"),
}

# Shopify itself may deliver a day late, so a tight window would lose real events.
OLDEST = timedelta(hours=48)
NEWEST = timedelta(minutes=10)

_TEST = "a test delivery from Shopify's admin: its sample goes on no label"

_ID = re.compile(r"[!-~]{1,255}")
_VERSION = re.compile(r"[0-9A-Za-z-]{1,32}")
_MAX_INT64 = 2**63 - 1


def delivery(topic: str | None, headers: Headers, raw: bytes, now: datetime) -> dict[str, Any]:
    """The inbox delivery of one webhook whose signature is already verified.

    `topic` is the route's, None for the one that takes all of them; `now` an aware time. A missing or odd webhook id
    is replaced by one derived from shop, topic, body and trigger time, so that copies still meet in one inbox row.
    said_at: the time in the signed body, which judges messages that come late or again. Raises `DeliveryError` when the
    topic or shop header is missing, doubled or wrong.
    """
    topic = _topic(topic, headers)
    shop = claimed_shop(headers)
    if shop is None:
        raise DeliveryError(
            "X-Shopify-Shop-Domain must be given once and be the shop's myshopify.com domain."
        )
    digest = _sha256(raw)
    said_at, bad_body = _read_body(topic, shop, raw, now)
    triggered_at, bad_time = _read_time(headers, now)
    derived_id = "derived-" + _sha256(f"{shop}\n{topic}\n{digest}\n{triggered_at}".encode())
    # Unusable, not done: these headers are not signed, and a good copy must be able to take the row over.
    reason = bad_body or bad_time or (_TEST if _is_test(headers) else None)
    state = "unusable" if reason else "ready"
    if topic in LIFECYCLE_TOPICS and not reason:
        state, reason = "done", LIFECYCLE_TOPICS[topic][1]
    return {
        "source_system": "shopify",
        "source_store_id": shop,
        "topic": topic,
        "webhook_id": _single(headers, "x-shopify-webhook-id", _ID) or derived_id,
        "event_id": _single(headers, "x-shopify-event-id", _ID),
        "triggered_at": triggered_at,
        "api_version": _single(headers, "x-shopify-api-version", _VERSION),
        "said_at": said_at.isoformat() if said_at and state != "unusable" else None,
        "body_base64": None if topic in LIFECYCLE_TOPICS else base64.b64encode(raw).decode(),
        "body_sha256": digest,
        "state": state,
        "reason": reason,
    }


def _topic(of_route: str | None, headers: Headers) -> str:
    named = _single(headers, "x-shopify-topic")
    if of_route is not None and named != of_route:
        raise DeliveryError(f"X-Shopify-Topic must be given once and be {of_route} on this address.")
    if named not in TOPICS and named not in LIFECYCLE_TOPICS:
        raise DeliveryError("X-Shopify-Topic must be given once and be a topic that is taken here.")
    return named


def claimed_shop(headers: Headers) -> str | None:
    """The shop that the delivery claims to come from, None when the header does not name one."""
    return shop_domain(_single(headers, "x-shopify-shop-domain") or "")


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _single(headers: Headers, name: str, pattern: re.Pattern[str] | None = None) -> str | None:
    values = headers.getlist(name)
    if len(values) != 1 or (pattern and not pattern.fullmatch(values[0])):
        return None
    return values[0]


def _read_time(headers: Headers, now: datetime) -> tuple[str | None, str | None]:
    """X-Shopify-Triggered-At as ISO text in UTC, and what is wrong with it. Shopify's retries keep it."""
    if not headers.getlist("x-shopify-triggered-at"):
        return None, None
    try:
        time = datetime.fromisoformat(_single(headers, "x-shopify-triggered-at") or "")
        if time.tzinfo is None:
            raise ValueError
        time = time.astimezone(UTC)
    except (ValueError, OverflowError):
        return None, "X-Shopify-Triggered-At is not one ISO 8601 time with its offset"
    if not now - OLDEST <= time <= now + NEWEST:
        return time.isoformat(), "replay suspected: X-Shopify-Triggered-At is over 48 h old or 10 min ahead"
    return time.isoformat(), None


def _is_test(headers: Headers) -> bool:
    return any(value.strip().lower() == "true" for value in headers.getlist("x-shopify-test"))


def _read_body(topic: str, shop: str, raw: bytes, now: datetime) -> tuple[datetime | None, str | None]:
    """The time in the body, and what is wrong with the body."""
    try:
        body = parsed(raw)
        said_at = instant(body.get("updated_at"))
        if said_at and said_at > now + NEWEST:
            said_at = None
        if topic in LIFECYCLE_TOPICS:
            _check_lifecycle(topic, shop, body, said_at)
            return said_at, None
    except UnusableError as wrong:
        return None, str(wrong)
    try:
        _check_shape(topic, body)
    except UnusableError as wrong:
        other = next((other for other in TOPICS if _has_shape(other, body)), None)
        return None, f"replay suspected: the body is one of {other}; {wrong}" if other else str(wrong)
    return said_at, None


def _has_shape(topic: str, body: dict[str, Any]) -> bool:
    try:
        _check_shape(topic, body)
    except UnusableError:
        return False
    return True


def _check_lifecycle(topic: str, shop: str, body: dict[str, Any], said_at: datetime | None) -> None:
    field = LIFECYCLE_TOPICS[topic][0]
    named = body.get(field)
    if not isinstance(named, str) or shop_domain(named) is None:
        raise UnusableError(f"a {topic} body needs the shop's domain in {field}")
    if shop_domain(named) != shop:
        raise UnusableError(f"replay suspected: {field} in the body is another shop's")
    # The other bodies that name a shop_domain are about customers.
    if topic == "shop/redact" and body.keys() != {"shop_id", "shop_domain"}:
        raise UnusableError(
            "replay suspected: a shop/redact body holds shop_id, shop_domain and nothing else"
        )
    if topic == "app/uninstalled" and said_at is None:
        raise UnusableError("an app/uninstalled body needs its time, updated_at, which is not ahead of ours")


def _check_shape(topic: str, body: dict[str, Any]) -> None:
    if topic.startswith("inventory_levels/"):
        if not (_is_id(body.get("inventory_item_id")) and _is_id(body.get("location_id"))):
            raise UnusableError(f"a {topic} body needs the integers inventory_item_id and location_id")
        if topic == "inventory_levels/disconnect" and len(body) != 2:
            raise UnusableError(f"a {topic} body holds inventory_item_id, location_id and nothing else")
        return
    if not _is_id(body.get("id")):
        raise UnusableError(f"a {topic} body needs the integer id")
    if topic == "products/delete":
        if len(body) != 1:
            raise UnusableError("a products/delete body holds the id and nothing else")
    elif not (isinstance(body.get("updated_at"), str) and isinstance(body.get("variants"), list)):
        raise UnusableError(f"a {topic} body needs the text updated_at and the list variants")
    else:
        check_counts(body)


def _is_id(value: object) -> bool:
    return type(value) is int and 0 < value <= _MAX_INT64
