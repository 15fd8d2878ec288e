"""Shopify's global ids, such as gid://shopify/Product/1: the number in one is the id as we keep it, always as text.

A number beside the gid may have lost digits: a sender that keeps ids as doubles rounds them beyond 2^53, as Shopify's
own samples do.
"""

import re

_GID = re.compile(r"gid://shopify/([A-Za-z]+)/([0-9]{1,20})(?:\?.*)?")


def gid(kind: str, number: str) -> str:
    return f"gid://shopify/{kind}/{number}"


def number_in(value: object, kind: str | None = None) -> str | None:
    """The number in a gid; None for what is none, or is that of another kind of thing than asked for."""
    found = _GID.fullmatch(value) if isinstance(value, str) else None
    return found[2] if found and kind in (None, found[1]) else None
