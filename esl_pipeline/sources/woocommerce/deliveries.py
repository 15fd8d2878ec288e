"""From the headers and body of a signed webhook to the delivery that the inbox keeps. Pure, no I/O.

Only the body is signed. Topic, shop and id come in unsigned headers, so an old body can be sent again under another
topic or with a fresh id: the body must therefore have the shape of its topic, and what does not fit is kept as
"unusable" with the reason. Where shops share a secret the body must name the shop too, by its product's address.

A delivery's id is made of the webhook and the second: two products that are told of in the same second share it. So the
body's hash belongs to the id that is kept.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from starlette.datastructures import Headers

from esl_pipeline.labels.lengths import MOST_VARIANTS
from esl_pipeline.sources.bodies import UnusableError, parsed
from esl_pipeline.sources.facts import Row
from esl_pipeline.sources.source import DeliveryError
from esl_pipeline.sources.woocommerce.content import SYSTEM, is_variation, number, utc
from esl_pipeline.sources.woocommerce.shop_names import shop_id
from esl_pipeline.sources.woocommerce.topics import DELETED, TOPICS

NEWEST = timedelta(minutes=10)
"""So far may the shop's clock be ahead of ours."""

_ID = re.compile(r"[!-~]{1,200}")
_GREETING = re.compile(rb"webhook_id=[0-9]{1,20}")


def is_greeting(headers: Headers, raw: bytes) -> bool:
    """Whether this is the ping that a new webhook sends, unsigned: a form with the webhook's number."""
    return not headers.getlist("x-wc-webhook-signature") and _GREETING.fullmatch(raw) is not None


def claimed_shop(headers: Headers) -> str | None:
    """The shop that the delivery claims to come from, None when the header does not name one."""
    return shop_id(_single(headers, "x-wc-webhook-source") or "")


def delivery(topic: str | None, headers: Headers, raw: bytes, now: datetime, *, names_shop: bool) -> Row:
    """The inbox delivery of one webhook whose signature is already verified.

    `topic` is the route's, None for the one that takes all of them; `now` an aware time. names_shop: whether the body
    must say which shop it is of, since others share the secret. said_at: the time in the signed body. A deletion has
    none: each is one of its own, as old as its arrival. Raises `DeliveryError` when the topic or source header is
    missing, doubled or wrong.
    """
    topic = _topic(topic, headers)
    shop = claimed_shop(headers)
    if shop is None:
        raise DeliveryError("X-WC-Webhook-Source must be given once and be the address of the shop's site.")
    sha256 = hashlib.sha256(raw).hexdigest()
    said_at, reason = None, None
    try:
        body = parsed(raw)
        _check_shape(topic, body)
        said_at = utc(body.get("date_modified_gmt"))
        _check_time(said_at, now)
        _check_shop(shop, body, names_shop=names_shop)
    except UnusableError as wrong:
        reason = str(wrong)
    return {
        "source_system": SYSTEM,
        "source_store_id": shop,
        "topic": topic,
        "webhook_id": f"{_single(headers, 'x-wc-webhook-delivery-id', _ID) or 'none'}-{sha256[:32]}",
        "event_id": None,
        "triggered_at": now.isoformat() if topic == DELETED else None,
        "api_version": None,
        "said_at": said_at.isoformat() if said_at and not reason else None,
        "body_base64": base64.b64encode(raw).decode(),
        "body_sha256": sha256,
        "state": "unusable" if reason else "ready",
        "reason": reason,
    }


def _topic(of_route: str | None, headers: Headers) -> str:
    named = _single(headers, "x-wc-webhook-topic")
    if of_route is not None and named != of_route:
        raise DeliveryError(f"X-WC-Webhook-Topic must be given once and be {of_route} on this address.")
    if named not in TOPICS:
        raise DeliveryError("X-WC-Webhook-Topic must be given once and be a topic that is taken here.")
    return named


def _single(headers: Headers, name: str, pattern: re.Pattern[str] | None = None) -> str | None:
    values = headers.getlist(name)
    if len(values) != 1 or (pattern and not pattern.fullmatch(values[0])):
        return None
    return values[0]


def _check_shape(topic: str, body: Mapping[str, Any]) -> None:
    """Raises UnusableError for what is no body of this topic."""
    if "code" in body and "message" in body and "id" not in body:
        raise UnusableError(f"the shop sent an error and no product: {str(body['code'])[:100]}")
    if number(body.get("id")) is None:
        raise UnusableError(f"a {topic} body needs the number id")
    if topic == DELETED:
        if len(body) != 1:
            raise UnusableError("replay suspected: a product.deleted body holds the id and nothing else")
        return
    if len(body) == 1:
        raise UnusableError(f"replay suspected: the body is one of product.deleted, not of {topic}")
    if not all(isinstance(body.get(name), str) for name in ("type", "date_modified_gmt", "name")):
        raise UnusableError(f"a {topic} body needs the texts type, name and date_modified_gmt")
    if not isinstance(body.get("variations", []), list) or len(body.get("variations", [])) > MOST_VARIANTS:
        raise UnusableError(f"the product's variations are no list of at most {MOST_VARIANTS:,}")
    if is_variation(body) and number(body.get("parent_id")) is None:
        raise UnusableError("a variation needs the number parent_id")


def _check_time(said_at: datetime | None, now: datetime) -> None:
    if said_at and said_at > now + NEWEST:
        raise UnusableError(
            f"date_modified_gmt {said_at.isoformat()} is in the future: is the shop's clock right?"
        )


def _check_shop(shop: str, body: Mapping[str, Any], *, names_shop: bool) -> None:
    address = body.get("permalink")
    if not names_shop or not isinstance(address, str):
        return
    place = address.lower().partition("://")[2]
    if not place.startswith((f"{shop}/", f"{shop}?")):
        raise UnusableError(
            "replay suspected: the product's permalink is another shop's; give each shop a secret of its own "
            "(WOOCOMMERCE_WEBHOOK_SECRET=shop=secret)"
        )
