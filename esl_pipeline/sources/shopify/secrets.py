"""The entries of SHOPIFY_WEBHOOK_SECRET: `[shop=]secret[@not-after]`, and which of them may sign for a shop. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, time

from esl_pipeline.sources.shopify.shop_names import shop_domain, shop_named

# As Shopify makes them. Only what is bound to such a secret is surely meant as a shop: others may hold '=' themselves.
_OF_SHOPIFY = re.compile(r"(?:shpss_)?[0-9a-f]{32,}(?:@.*)?")
_DATE_LIKE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ].*)?")


@dataclass(frozen=True)
class WebhookSecret:
    """One secret: for one shop, or for every shop that has none of its own (None); until `not_after`, if given."""

    key: bytes = field(repr=False)
    shop: str | None = None
    not_after: datetime | None = None

    def expired(self, now: datetime) -> bool:
        """Whether it no longer counts at `now` (aware)."""
        return self.not_after is not None and now > self.not_after


def read_secrets(entries: Sequence[str]) -> tuple[WebhookSecret, ...]:
    """The secrets of the entries. Raises ValueError, which names the entry by its number and not its text."""
    return tuple(_read(entry, f"entry {number}") for number, entry in enumerate(entries, 1))


def keys_for(secrets: Sequence[WebhookSecret], shop: str | None, now: datetime) -> list[bytes]:
    """The keys that may have signed a webhook that claims to come from `shop` (None: from no shop we can name).

    A shop with entries of its own has no others, even when all of them have expired.
    """
    own = [secret for secret in secrets if shop is not None and secret.shop == shop]
    shared = [secret for secret in secrets if secret.shop is None]
    return [secret.key for secret in own or shared if not secret.expired(now)]


def proves(secrets: Sequence[WebhookSecret], shop: str | None) -> bool:
    """Whether what `keys_for` lets sign for `shop` can have been made for no other shop: its secrets are its own."""
    own = {secret.key for secret in secrets if shop is not None and secret.shop == shop}
    return bool(own) and own.isdisjoint(secret.key for secret in secrets if secret.shop != shop)


def _read(entry: str, name: str) -> WebhookSecret:
    before, separator, rest = entry.partition("=")
    shop = shop_domain(before.strip()) if separator else None
    if shop is None and separator and (".myshopify." in before.lower() or _is_near(before, rest)):
        raise ValueError(f"{name} names its shop wrongly; write shop.myshopify.com=secret")
    text = entry if shop is None else rest
    key, separator, end = text.rpartition("@")
    not_after = _not_after(end.strip(), name) if separator else None
    if not_after is None:
        key = text
    if not key.strip():
        raise ValueError(f"{name} holds no secret; write [shop=]secret[@not-after]")
    return WebhookSecret(key.strip().encode(), shop, not_after)


def _is_near(before: str, rest: str) -> bool:
    """Whether an entry names a shop in a form that is not the domain, like corner-market=shpss_…"""
    return shop_named(before) is not None and _OF_SHOPIFY.fullmatch(rest.strip()) is not None


def _not_after(text: str, name: str) -> datetime | None:
    """The end of a date in UTC, or a time (UTC unless it says otherwise); None for what does not look like either."""
    if not _DATE_LIKE.fullmatch(text):
        return None
    try:
        found = datetime.fromisoformat(text)
        if len(text) == len("2026-12-31"):
            found = datetime.combine(found, time.max)
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{name} ends with a date that is none; write @2026-12-31 or @2026-12-31T12:00:00Z"
        ) from None
