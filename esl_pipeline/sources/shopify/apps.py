"""Which app reads a shop: the entries of SHOPIFY_API_KEY, SHOPIFY_API_SECRET and SHOPIFY_APPS. Pure."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from esl_pipeline.sources.shopify.shop_names import shop_named

_WORD = re.compile("[!-~]+")
_FORM = "write shop.myshopify.com=id:secret"


@dataclass(frozen=True)
class App:
    """An app's id and its secrets, newest first: for one shop, or for every shop without one of its own (None)."""

    client_id: str = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)
    shop: str | None = None


def read_apps(entries: Sequence[str]) -> tuple[App, ...]:
    """The apps of `shop=id:secret[:older secret]`. Raises ValueError, which names the entry by its number only."""
    found = dict[str | None, App]()
    for number, entry in enumerate(entries, 1):
        app = _read(entry, f"entry {number}")
        if app.shop in found:
            raise ValueError(f"entry {number} is a second app for {app.shop}; remove one of them")
        found[app.shop] = app
    return tuple(found.values())


def read_word(text: str) -> str:
    """An id or a secret as Shopify shows it. Raises ValueError for what cannot be one."""
    if not _WORD.fullmatch(text):
        raise ValueError("holds characters that no id and no secret has; copy it anew")
    return text


def app_for(apps: Sequence[App], shop: str) -> App | None:
    """The app of a shop's domain: its own, else the one of all shops."""
    of = {app.shop: app for app in apps}
    return of.get(shop) or of.get(None)


def signing(apps: Sequence[App]) -> Iterator[tuple[str, str | None]]:
    """Every secret that may sign a webhook, with the shop that it is bound to."""
    return ((secret, app.shop) for app in apps for secret in app.secrets)


def _read(entry: str, name: str) -> App:
    before, separator, rest = entry.partition("=")
    shop = shop_named(before) if separator else None
    if shop is None:
        raise ValueError(f"{name} names no shop, or wrongly; {_FORM}")
    client_id, *secrets = (part.strip() for part in rest.split(":"))
    if not client_id or not secrets or not all(secrets):
        raise ValueError(f"{name} lacks the app's id or its secret; {_FORM}")
    try:
        return App(read_word(client_id), tuple(map(read_word, secrets)), shop)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None
