"""The labels as the sandbox's page draws them."""

import json
import sqlite3
from typing import Any

from esl_pipeline.sandbox.label_server.shelf import latest
from esl_pipeline.sandbox.label_server.store import LabelStore

Card = dict[str, Any]


def latest_cards(store: LabelStore, search: str, limit: int) -> list[Card]:
    """The physical labels that changed last whose product, store or own code contains `search`, by store."""
    cards = [_card(row) for row in store.latest(search, limit)]
    cards += [_device_card(place) for place in latest(store.fleet, search.casefold(), limit)]
    newest = sorted(cards, key=lambda card: card["change"], reverse=True)[:limit]
    return sorted(newest, key=lambda card: (card["store"], card["id"]))


def _device_card(place: dict[str, Any]) -> Card:
    """What a device shows, and beside it, where that is not what the server holds, what it holds and why it differs."""
    shown, held = place["shown"] or {}, place["held"]
    differs = held is not None and place["state"] != "right"
    # A label without a code of its own picture is drawn with that of its product.
    code = shown.get("code") or place["product_code"] or place["esl_code"]
    return {
        "id": place["esl_code"],
        "store": place["store"],
        "code": code,
        "change": place["change"],
        "updated_at": place["shown_at"] or "",
        "blank": not shown,
        "waits": place["waits"] or place["refreshing"],
        "next": held["price"] if held else "",
        **{name: shown.get(name, "") for name in ("name", "price", "was", "sku", "unit", "spec")},
        "esl": place["esl_code"],
        "state": place["state"],
        "why": place["why"],
        "holds": held if differs else None,
    }


def _card(row: sqlite3.Row) -> Card:
    """A physical label as the page draws it: what it shows, and what will be on it (`next`) while it waits."""
    shown, held = (json.loads(row[name]) if row[name] else {} for name in ("record", "held"))
    names = {"name": "pn", "price": "pp", "was": "pop", "sku": "pi", "unit": "pu", "spec": "ps"}
    return {
        "id": row["id"],
        "store": row["store"],
        "code": row["code"],
        "change": row["change"],
        "updated_at": row["changed_at"],
        "blank": not shown,
        "waits": bool(row["waits"]),
        "next": str(held.get("pp", "")),
        **{name: str(shown.get(code, "")) for name, code in names.items()},
    }
