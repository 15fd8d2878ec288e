"""Times as people write them. Pure."""

import re
from datetime import UTC, datetime, timedelta

_SPAN = re.compile(r"([0-9]{1,5})\s*(s|sec|m|min|h|d)")
_UNITS = {"s": "seconds", "sec": "seconds", "m": "minutes", "min": "minutes", "h": "hours", "d": "days"}


def moment_named(text: str, *, now: datetime, ahead: bool) -> str:
    """The time that somebody means, in ISO 8601 and UTC: `2026-11-28 18:00` (UTC, unless it names a zone), or a span
    like `90min`, `2h`, `3d` from now (ahead) or before. Raises ValueError in words for them."""
    text = text.strip().removesuffix(" UTC")
    try:
        if span := _SPAN.fullmatch(text.lower()):
            length = timedelta(**{_UNITS[span[2]]: int(span[1])})
            time = now + length if ahead else now - length
        else:
            time = datetime.fromisoformat(text)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC).isoformat()
    except (ValueError, OverflowError):  # the latter: before the year 1, or after 9999
        raise ValueError(
            f'{text} is no time: write for example "2026-11-28 18:00" (UTC) or 2026-11-28T18:00+01:00, or 90min, 2h or '
            "3d"
        ) from None
