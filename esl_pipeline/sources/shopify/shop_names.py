"""How a shop is called: its myshopify.com domain in small letters, at every door. Pure."""

import re

SHOP = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\.myshopify\.com")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
# As Shopify makes secrets. Only what is bound to such a one is surely meant as a shop: others may hold '=' themselves.
_SECRET = re.compile(r"(?:shpss_)?[0-9a-f]{32,}(?:@.*)?")
_ADMIN = re.compile(r"admin\.shopify\.com/store/([a-z0-9-]+).*")


def shop_domain(text: str) -> str | None:
    """The myshopify.com domain in lower case, None when `text` is not one. For what machines send."""
    shop = text.lower()
    return shop if text.isascii() and SHOP.fullmatch(shop) else None


def shop_named(text: str) -> str | None:
    """The same for what people write: also an address (https://corner.myshopify.com/admin) or a bare name (corner)."""
    if not text.isascii():
        return None
    name = text.strip().lower().removeprefix("https://").removeprefix("http://")
    if admin := _ADMIN.fullmatch(name):
        name = admin[1]
    name = name.partition("/")[0].rstrip(".")
    return shop_domain(f"{name}.myshopify.com" if _NAME.fullmatch(name) else name)


def shop_before(text: str, rest: str) -> str | None:
    """The shop that a webhook secret is bound to: see secrets.ReadShop."""
    shop = shop_domain(text.strip())
    if shop is None and (
        ".myshopify." in text.lower() or (shop_named(text) and _SECRET.fullmatch(rest.strip()))
    ):
        raise ValueError("write shop.myshopify.com=secret")
    return shop
