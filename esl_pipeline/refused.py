"""The one sentence on webhooks whose signature was wrong, for status, the daily check and `shopify status`. Pure."""

from datetime import UTC, datetime


def refused_sentence(count: int, since: str, last_at: str, accepted_at: str | None, *, now: datetime) -> str:
    """How many, since when, and what it looks like; times in ISO 8601, told in UTC.

    accepted_at: when the newest webhook with a good signature came.
    """
    first, last = datetime.fromisoformat(since), datetime.fromisoformat(last_at)
    good = datetime.fromisoformat(accepted_at) if accepted_at else None
    says = f"{count} refused since {_at(first, now)}"
    if good and good > last:
        return f"{says}, but the newest webhook was accepted"
    if good and good > first:
        return f"{says}, others were accepted: does something else sign them, with another secret?"
    return f"{says}: wrong secret? (UTC; no secret of ours made the signatures that come in the shop's name)"


def _at(time: datetime, now: datetime) -> str:
    time, now = time.astimezone(UTC), now.astimezone(UTC)
    return f"{time:%H:%M}" if time.date() == now.date() else f"{time:%Y-%m-%d %H:%M}"
