"""What of WooCommerce's REST API version 3 is read here, without the HTTP.

Lists are paged as WordPress pages them: by offset or page number, so they slip when something comes or goes before.
"""

import base64
import hmac
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from esl_pipeline.sandbox.woocommerce.bodies import Json, only, product_body, variation_body, variation_told
from esl_pipeline.sandbox.woocommerce.delivery import WebhookSender
from esl_pipeline.sandbox.woocommerce.faults import Faults
from esl_pipeline.sandbox.woocommerce.shop import Product, Shop

CONSUMER_KEY = "ck_sandbox00000000"
CONSUMER_SECRET = "cs_sandbox00000000"  # noqa: S105 (of a shop that does not exist)

Query = Mapping[str, str]


class RefusedError(Exception):
    """WordPress's answer to what it does not do."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"code": code, "message": message, "data": {"status": status}}


@dataclass
class Sandbox:
    """A shop behind its REST API. path: of the site on its host; site: its address.

    calls: every path that was asked for, with its query; authorizations: what was shown with them. For tests, role:
    what the key's user may do, all or read no settings; before: called with each path before it is answered.
    """

    shop: Shop
    consumer_key: str = CONSUMER_KEY
    consumer_secret: str = CONSUMER_SECRET
    sender: WebhookSender | None = None
    path: str = ""
    site: str = ""
    role: Literal["manager", "customer"] = "manager"
    before: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        self.faults = Faults()
        self.calls: list[str] = []
        self.authorizations: set[str] = set()

    def admit(self, authorization: str | None) -> None:
        """Raises RefusedError unless the header holds the key."""
        self.authorizations.add(authorization or "")
        kind, _, text = (authorization or "").partition(" ")
        if not kind:
            raise RefusedError(401, "woocommerce_rest_cannot_view", "Sorry, you cannot list resources.")
        try:
            given = base64.b64decode(text).decode() if kind == "Basic" else ""
        except ValueError:
            given = ""
        key, _, secret = given.partition(":")
        for said, right, name in (
            (key, self.consumer_key, "key"),
            (secret, self.consumer_secret, "secret"),
        ):
            if not hmac.compare_digest(said.encode(), right.encode()):
                raise RefusedError(
                    401, "woocommerce_rest_authentication_error", f"Consumer {name} is invalid."
                )

    def answer(self, path: str, query: Query) -> tuple[Any, int | None]:
        """What a path below the API's root answers, and how long the whole list is. Raises RefusedError."""
        with self.shop.lock:
            match path.split("/"):
                case ["products"]:
                    return self._products(query)
                case ["products", number]:
                    return only(self._product(int(number)), _asked(query)), None
                case ["products", number, "variations"]:
                    return self._variations(int(number), query)
                case ["products", number, "variations", own]:
                    return only(self._variation(int(number), int(own)), _asked(query)), None
                case ["settings", group]:
                    return self._settings(group), None
                case ["webhooks"]:
                    made = self.sender.webhooks if self.sender else []
                    return [one.shown() for one in made], len(made)
        raise RefusedError(404, "rest_no_route", "No route was found matching the URL and request method.")

    def body(self, product: Product) -> Json:
        """A product as the API writes it now."""
        return product_body(product, self.site, self.shop.time_zone, self.shop.time())

    def _products(self, query: Query) -> tuple[list[Json], int]:
        after = query.get("modified_after")
        found = [
            product
            for product in self.shop.products.values()
            if product.status != "trash" and (after is None or _modified_after(product, after, query))
        ]
        return _page(query, found, self.body)

    def _product(self, number: int) -> Json:
        found = self.shop.found(number)
        if found is None:
            raise RefusedError(404, "woocommerce_rest_product_invalid_id", "Invalid ID.")
        product, variation = found
        if variation is None:
            return self.body(product)
        return variation_told(product, variation, self.site, self.shop.time_zone, self.shop.time())

    def _variations(self, number: int, query: Query) -> tuple[list[Json], int]:
        product = self.shop.products.get(number)
        if product is None:
            return _page(query, (), lambda _: {})
        zone, now = self.shop.time_zone, self.shop.time()
        return _page(
            query, product.variations, lambda one: variation_body(product, one, self.site, zone, now)
        )

    def _variation(self, number: int, own: int) -> Json:
        found = self.shop.found(own)
        if found is None or found[1] is None or found[0].id != number:
            raise RefusedError(404, "woocommerce_rest_product_variation_invalid_id", "Invalid ID.")
        return variation_body(found[0], found[1], self.site, self.shop.time_zone, self.shop.time())

    def _settings(self, group: str) -> list[Json]:
        if self.role != "manager":
            raise RefusedError(403, "woocommerce_rest_cannot_view", "Sorry, you cannot list resources.")
        shop = self.shop
        values = {
            "general": {
                "woocommerce_currency": shop.currency,
                "woocommerce_calc_taxes": "yes" if shop.calc_taxes else "no",
            },
            "tax": {"woocommerce_prices_include_tax": "yes" if shop.prices_include_tax else "no"},
        }
        return [{"id": name, "value": value} for name, value in values.get(group, {}).items()]


def _asked(query: Query) -> list[str]:
    return [name for name in query.get("_fields", "").split(",") if name]


def _modified_after(product: Product, after: str, query: Query) -> bool:
    """As WordPress does it: later than that second, by the site's time unless dates_are_gmt."""
    if query.get("dates_are_gmt") != "true":
        raise RefusedError(
            400, "sandbox_local_time", "This sandbox compares in GMT only: dates_are_gmt=true."
        )
    return product.modified_at > datetime.fromisoformat(after).replace(tzinfo=UTC)


def _page(query: Query, things: Iterable[Any], body: Callable[[Any], Json]) -> tuple[list[Json], int]:
    if query.get("orderby") != "id" and int(query.get("per_page", 10)) > 1:
        raise RefusedError(
            400, "sandbox_unordered", "This sandbox pages in the order of ids only: orderby=id."
        )
    size = int(query.get("per_page", 10))
    if not 1 <= size <= 100:
        raise RefusedError(400, "rest_invalid_param", "Invalid parameter(s): per_page")
    listed = sorted(things, key=lambda thing: thing.id)
    start = int(query["offset"]) if "offset" in query else (int(query.get("page", 1)) - 1) * size
    shown = [thing for thing in listed[start : start + size] if not getattr(thing, "hidden", False)]
    return [only(body(thing), _asked(query)) for thing in shown], len(listed)
