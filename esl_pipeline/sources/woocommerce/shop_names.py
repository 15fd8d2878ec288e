"""How a shop is called: host and path of its site in small letters, without scheme and last slash. Pure."""

import re

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = rf"(?:{_LABEL}\.)+[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?"
# This machine alone may be named by its address and port: for a shop that is tried out.
_HERE = r"(?:localhost|127\.0\.0\.1)(?::[0-9]{1,5})?"
_PATH = r"(?:/[a-z0-9_~-][a-z0-9._~-]{0,99}){0,8}"
SHOP = re.compile(rf"(?:{_HERE}|{_HOST}){_PATH}")
_HERE_ONLY = re.compile(rf"{_HERE}{_PATH}")


def shop_id(text: str) -> str | None:
    """The canonical id of what a site's address or id names; None for what is neither. For what machines send."""
    if not text.isascii() or len(text) > 255:
        return None
    shop = text.lower().removeprefix("https://").removeprefix("http://").removesuffix("/")
    return shop if SHOP.fullmatch(shop) else None


def shop_named(text: str) -> str | None:
    """The same for what people write: also the address of a page of the site's admin."""
    return shop_id(text.strip().partition("/wp-admin")[0])


def shop_before(text: str, rest: str) -> str | None:  # noqa: ARG001
    """The shop that a webhook secret is bound to: see secrets.ReadShop."""
    shop = shop_named(text)
    if shop is None and "://" in text:
        raise ValueError("write shop.example.com=secret")
    return shop


def is_here(shop: str) -> bool:
    """Whether the shop is on this machine."""
    return _HERE_ONLY.fullmatch(shop) is not None


def address(shop: str) -> str:
    """Where the shop's site is: over https, but on this machine."""
    return f"{'http' if is_here(shop) else 'https'}://{shop}"
