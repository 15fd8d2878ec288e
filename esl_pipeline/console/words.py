"""What the console says, in a shop's words. Pure."""

import re
from datetime import UTC, datetime
from typing import NamedTuple

# Control characters, and those that turn the reading direction of what follows; joiners of emoji and scripts stay.
_STEERING = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")


def harmless(text: str) -> str:
    """A stranger's text without what steers a page: each such character as the sign for one that cannot be shown."""
    return _STEERING.sub("\ufffd", text)


class Rung(NamedTuple):
    """How far a price is known to have come (docs/shelf.md)."""

    name: str
    known: str


RUNGS = {
    1: Rung("wanted", "It should hang, and is not accepted yet, or that is in doubt."),
    2: Rung("accepted", "The label server has said that it took it. No more is known."),
    3: Rung("stored", "The label server's own list of last night had it so."),
    4: Rung("triggered", "The label server was told to refresh the store's labels, or does so by itself."),
    5: Rung("reachable", "A label is bound to it that the server calls online, with a good battery."),
    6: Rung("refreshed", "The label's row in the server's list has moved since, so it was redrawn."),
    7: Rung("seen", "Somebody has looked at it since, and seen it."),
}

HINDRANCES = {
    "no label": "no label is bound to it",
    "bound to nothing": "bound to no product",
    "for measuring": "kept for measuring",
    "no product of a shop": "bound to a product of no shop",
    "not accepted yet": "not accepted by the label server yet",
    "seen otherwise": "somebody has seen something else on it",
    "not triggered": "the server was not told to refresh it yet",
    "not read lately": "not read lately, so nothing newer is known",
    "offline": "offline: the server does not reach it",
    "battery low": "battery low",
    "not refreshed": "not redrawn yet",
}


def moment(value: str | datetime | None) -> str:
    """A time (ISO 8601) to the minute as people read it, in UTC; with its day."""
    if value == "infinity":
        return "never"
    return "" if value is None else _parsed(value).strftime("%Y-%m-%d %H:%MZ")


def exact(value: str | datetime | None) -> str:
    """The same to the second."""
    return "" if value is None else _parsed(value).strftime("%Y-%m-%d %H:%M:%SZ")


def ago(value: str | datetime | None, now: datetime | None = None) -> str:
    """How long ago it was, or in how long it will be, in its largest unit."""
    if value is None:
        return ""
    seconds = int(((now or datetime.now(UTC)) - _parsed(value)).total_seconds())
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        if abs(seconds) >= size:
            return f"{seconds // size} {unit} ago" if seconds > 0 else f"in {-seconds // size} {unit}"
    return "now"


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number with its noun."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _parsed(value: str | datetime) -> datetime:
    found = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    return found.astimezone(UTC)
