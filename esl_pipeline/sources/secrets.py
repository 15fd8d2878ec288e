"""Secrets that sign webhooks: entries `[shop=]secret[@not-after]`, and which of them may sign for a shop. Pure."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta

ReadShop = Callable[[str, str], str | None]
"""What stands before and after an entry's first '=' -> the shop's canonical id; None where no shop is named, since a
secret may hold '=' itself. Raises ValueError, which says how it is written, for a shop that is named wrongly."""

_SAID_BEFORE_EXPIRY = timedelta(days=14)
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


def read_secrets(entries: Sequence[str], read_shop: ReadShop) -> tuple[WebhookSecret, ...]:
    """The secrets of the entries. Raises ValueError, which names the entry by its number and not its text."""
    return tuple(_read(entry, f"entry {number}", read_shop) for number, entry in enumerate(entries, 1))


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


def ending(secrets: Sequence[WebhookSecret], variable: str, now: datetime) -> Iterator[str]:
    """A sentence on each secret of that variable that has expired or does so soon."""
    for number, secret in enumerate(secrets, 1):
        if secret.not_after is None or secret.not_after > now + _SAID_BEFORE_EXPIRY:
            continue
        whose = f"entry {number} of {variable} (for {secret.shop or 'shops without their own'})"
        if secret.expired(now):
            yield f"{whose} expired at {secret.not_after:%Y-%m-%d %H:%MZ}: what it signs is refused; remove it."
        else:
            yield f"{whose} expires at {secret.not_after:%Y-%m-%d %H:%MZ}: what it signs is refused from then on."


def _read(entry: str, name: str, read_shop: ReadShop) -> WebhookSecret:
    before, separator, rest = entry.partition("=")
    try:
        shop = read_shop(before, rest) if separator else None
    except ValueError as wrong:
        raise ValueError(f"{name} names its shop wrongly; {wrong}") from None
    text = entry if shop is None else rest
    key, separator, end = text.rpartition("@")
    not_after = _not_after(end.strip(), name) if separator else None
    if not_after is None:
        key = text
    if not key.strip():
        raise ValueError(f"{name} holds no secret; write [shop=]secret[@not-after]")
    return WebhookSecret(key.strip().encode(), shop, not_after)


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
