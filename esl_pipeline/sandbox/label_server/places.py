"""A row of a device read at a moment: what the server says of it, what a shopper finds, and when it polls. Pure."""

import sqlite3
from datetime import UTC, datetime
from typing import Any

from esl_pipeline.sandbox.label_server.floor import Floor
from esl_pipeline.sandbox.label_server.pictures import NO_PRICE, is_right, seen, shows_price

DEAD_BATTERY = 2200.0
"""mV under which a device does nothing any more."""
NEVER = 1e18

_VERSION = "1.0.4"


def as_row(row: sqlite3.Row, floor: Floor, now: float) -> dict[str, Any]:
    """A device as esl/query tells of it; times as seconds."""
    lost = min(row["since"] if row["silent"] else NEVER, row["dies_at"])
    updated = row["updated"]
    if floor.rows_move == "on_poll" and row["reach"]:
        updated = max(updated, last_poll(row["id"], min(now, row["dies_at"]), floor.poll_seconds))
    return {
        "id": row["id"],
        "esl_code": row["esl"],
        "esl_version": _VERSION,
        "action": 0,  # nobody says what it means
        "online": int(now < lost + floor.offline_after),
        "esl_battery": int(battery(row, now)),
        "product_code": row["product"] or "",
        "created_at": row["created"],
        "updated_at": updated,
        "ap_code": row["ap"],
        "esltype_code": row["model"],
    }


def place(row: sqlite3.Row, now: float) -> dict[str, Any]:
    """One place on the shelf. state: what a shopper finds, whatever the server says; why: what stands in the way.

    right: it shows its product's price, and what else its template has, as the server holds them; unbound: it has no
    product; unreachable: it does not show it, and no refresh can help; stale: the same, but a refresh could help, or
    another template.
    """
    reachable = bool(row["reach"]) and now < row["dies_at"]
    right = is_right(row["shown"], row["held"], row["fields"]) and not row["fallen"]
    not_right = "unbound" if row["product"] is None else "stale" if reachable else "unreachable"
    return {
        "esl_code": row["esl"],
        "store": row["store"],
        "product_code": row["product"],
        "shown": seen(row["shown"]),
        "shown_at": row["shown_at"] and iso(row["shown_at"]),
        "held": seen(row["held"]),
        "template": row["template"],
        "template_has_price": shows_price(row["fields"]),
        "reachable": reachable,
        "state": "right" if right else not_right,
        "why": _why(row, now),
        "waits": bool(row["waits"]),
        "refreshing": row["due_at"] is not None,
        "flashes": row["flashes"],
        "model": row["model"],
        "ap": row["ap"],
        "battery": int(battery(row, now)),
        "change": row["change"],
    }


def _why(row: sqlite3.Row, now: float) -> str:
    for stands_in_the_way, what in (
        (row["fallen"], "fallen off"),
        (now >= row["dies_at"], "battery empty"),
        (row["ap_dead"], "access point dead"),
        (row["offline"], "offline"),
        (row["asleep"], "asleep"),
        (row["product"] is None, "not bound"),
        (not shows_price(row["fields"]), NO_PRICE),
        (row["due_at"] is not None, "is being refreshed"),
        (row["waits"], "waits for its refresh"),
    ):
        if stands_in_the_way:
            return what
    return ""


def battery(row: sqlite3.Row, now: float) -> float:
    left: float = row["battery"] - row["drain"] * (now - row["battery_at"]) / 3600
    return max(0.0, left)


def dies_at(battery: float, at: float, drain: float) -> float:
    if battery <= DEAD_BATTERY:
        return at
    return at + (battery - DEAD_BATTERY) / drain * 3600 if drain else NEVER


def next_poll(  # noqa: PLR0917 -- SQL calls it
    device: int, now: float, last: float, poll: float, sleep_after: float | None, wake: float
) -> float:
    """When a device fetches its picture; last: when it did last."""
    if sleep_after is not None and now - last > sleep_after:
        return now + wake
    return now if not poll else last_poll(device, now, poll) + poll


def last_poll(device: int, now: float, poll: float) -> float:
    """The devices of a store poll one after the other, not all at once."""
    return now - (now - device * 0.618034 * poll) % poll if poll else now


def is_found(search: str, *texts: str | None) -> bool:
    return any(search in text.casefold() for text in texts if text)


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")
