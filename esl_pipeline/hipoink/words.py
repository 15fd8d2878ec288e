"""What the label server's names of what is on a label mean, for people."""

from collections.abc import Mapping
from typing import Any

WORDS = {
    "pc": "code",
    "pn": "name",
    "pp": "price",
    "pop": "price before",
    "vp": "member price",
    "pu": "unit",
    "ps": "specification",
    "pi": "article number",
    "pg": "grade",
    "po": "origin",
    "pm": "maker",
    "pim": "picture",
    "pqr": "QR code",
    "kc": "stock",
    "promotion": "scene",
}


def in_words(field: str) -> str:
    """A field of a label as people call it; one that has no name of its own, and what is in `extend`, as it is sent."""
    return WORDS.get(field, field)


def face(label: Mapping[str, Any] | None) -> dict[str, str]:
    """What of a label has a place of its own on its picture, by the words above; "" where it is not filled."""
    return {word: str((label or {}).get(name) or "") for name, word in WORDS.items()}


def price_on(label: Mapping[str, Any] | None) -> str:
    """The price on a label, "" where there is none."""
    return face(label)["price"]
