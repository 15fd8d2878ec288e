"""What the types of the Admin API's schema resolve to: one small class a type, over the shop's own things.

A field's value is the attribute of its name (`updatedAt` is `updated_at`), called with the field's arguments when it
takes some. Values are what JSON shall hold.
"""

import base64
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, cached_property, lru_cache
from heapq import nsmallest
from operator import itemgetter
from typing import Any

from graphql import GraphQLError

from esl_pipeline.sandbox.shopify.catalogue import Level, Measure, Photo, Product, Variant
from esl_pipeline.sandbox.shopify.search import Fields, SearchError, a_time, an_id, parse
from esl_pipeline.sandbox.shopify.shop import CURRENCY, DOMAIN, LOCATIONS, TIME_ZONE, Location, Shop
from esl_pipeline.sandbox.shopify.subscriptions import Subscription
from esl_pipeline.sandbox.shopify.webhooks import gid

MAX_PAGE = 250

Key = tuple[int | str, ...]

_GID = re.compile(r"gid://shopify/(\w+)/([0-9]{1,20})")
_PRODUCT_SEARCH: Fields = {
    "updated_at": (a_time, lambda product: product.updated_at),
    "id": (an_id, lambda product: product.id),
}


@cache
def attribute(field_name: str) -> str:
    """The attribute that a field's value is: `compareAtPrice` is `compare_at_price`."""
    return re.sub("[A-Z]", lambda letter: "_" + letter[0].lower(), field_name)


def value_of(source: Any, field_name: str, arguments: Mapping[str, Any]) -> Any:
    """A field's value."""
    return reader_of(field_name, arguments)(source)


def reader_of(field_name: str, arguments: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Reads a field's value."""
    name, given = attribute(field_name), {attribute(key): value for key, value in arguments.items()}

    def read(source: Any) -> Any:
        value = source[name] if isinstance(source, dict) else getattr(source, name)
        return value(**given) if callable(value) else value

    return read


@lru_cache(4_096)
def instant(at: datetime) -> str:
    """A time as the Admin API writes it."""
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def number_of(kind: str, value: str) -> int:
    """The number in an id of this kind. Raises GraphQLError for anything else."""
    found = _GID.fullmatch(value)
    if found is None or found[1] != kind:
        raise GraphQLError(f"Invalid global id '{value}'")
    return int(found[2])


def matcher(query: str | None, fields: Fields) -> Callable[[Any], bool]:
    """What a search asks for; all when there is none. Raises GraphQLError when it cannot be understood."""
    try:
        return parse(query, fields) if query else lambda _: True
    except SearchError as error:
        raise GraphQLError(f"query: {error}") from None


class Connection:
    """A list that is handed out page by page in the order of its keys, or whole to a bulk operation."""

    def __init__(
        self, found: Iterable[tuple[Key, Any]], first: int | None = None, after: str | None = None
    ) -> None:
        self._found, self._first, self._after = found, first, after

    def everything(self) -> Iterator[Any]:
        """All of the list, in no promised order."""
        return (node for _, node in self._found)

    @property
    def nodes(self) -> list[Any]:
        return [node for _, node in self._page[0]]

    @property
    def edges(self) -> list[dict[str, Any]]:
        return [{"cursor": _cursor(key), "node": node} for key, node in self._page[0]]

    @property
    def page_info(self) -> dict[str, Any]:
        page, more = self._page
        return {"has_next_page": more, "end_cursor": _cursor(page[-1][0]) if page else None}

    @cached_property
    def _page(self) -> tuple[list[tuple[Key, Any]], bool]:
        first = self._first
        if first is None:
            raise GraphQLError("you must provide one of first or last")
        if not 0 < first <= MAX_PAGE:
            raise GraphQLError(f"first must be between 1 and {MAX_PAGE}: larger reads are bulk operations")
        after = _key(self._after) if self._after else None
        rest = (pair for pair in self._found if after is None or pair[0] > after)
        page = nsmallest(first + 1, rest, key=itemgetter(0))
        return page[:first], len(page) > first


def _cursor(key: Key) -> str:
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode()


def _key(cursor: str) -> Key:
    try:
        return tuple(json.loads(base64.urlsafe_b64decode(cursor)))
    except (ValueError, TypeError):
        raise GraphQLError(f"Invalid cursor for current pagination sort: {cursor}") from None


class ShopNode:
    """The shop's settings."""

    id = gid("Shop", 71_203_450)
    name = "Corner Market"
    myshopify_domain = DOMAIN
    currency_code = CURRENCY
    iana_timezone = TIME_ZONE
    taxes_included = True

    def __init__(self, shop: Shop) -> None:
        self.updated_at = instant(shop.created_at)


@dataclass(frozen=True, slots=True)
class LocationNode:
    location: Location

    @property
    def id(self) -> str:
        return gid("Location", self.location.id)

    @property
    def name(self) -> str:
        return self.location.name

    @property
    def is_active(self) -> bool:
        return self.location.active


@dataclass(frozen=True, slots=True)
class ProductNode:
    product: Product

    @property
    def id(self) -> str:
        return gid("Product", self.product.id)

    @property
    def title(self) -> str:
        return self.product.title

    @property
    def handle(self) -> str:
        return self.product.handle

    @property
    def status(self) -> str:
        return self.product.status.upper()

    @property
    def vendor(self) -> str:
        return self.product.vendor

    @property
    def product_type(self) -> str:
        return self.product.product_type

    @property
    def tags(self) -> list[str]:
        return sorted(self.product.tags)

    @property
    def published_at(self) -> str | None:
        return None if self.product.status == "draft" else instant(self.product.created_at)

    @property
    def updated_at(self) -> str:
        return instant(self.product.updated_at)

    @property
    def is_gift_card(self) -> bool:
        return self.product.gift_card

    @property
    def featured_image(self) -> dict[str, str] | None:
        return _image(self.product.photos[0] if self.product.photos else None)

    def variants(self, first: int | None = None, after: str | None = None) -> Connection:
        return Connection(
            (
                ((position, variant.id), VariantNode(self, variant))
                for position, variant in enumerate(self.product.variants)
            ),
            first,
            after,
        )


@dataclass(frozen=True, slots=True)
class VariantNode:
    product: ProductNode
    variant: Variant

    @property
    def id(self) -> str:
        return gid("ProductVariant", self.variant.id)

    @property
    def title(self) -> str:
        return self.variant.title

    @property
    def price(self) -> str:
        """Never null here, unlike in a webhook of a made-up shop."""
        return self.variant.price or "0.00"

    @property
    def compare_at_price(self) -> str | None:
        return self.variant.compare_at_price

    @property
    def barcode(self) -> str | None:
        return self.variant.barcode

    @property
    def sku(self) -> str | None:
        return self.variant.sku

    @property
    def created_at(self) -> str:
        return instant(self.variant.created_at)

    @property
    def selected_options(self) -> list[dict[str, str]]:
        pairs = zip(self.product.product.options, self.variant.options, strict=True)
        return [{"name": name, "value": value} for name, value in pairs]

    @property
    def image(self) -> dict[str, str] | None:
        return _image(self.variant.photo)

    @property
    def inventory_item(self) -> "InventoryItemNode":
        return InventoryItemNode(self.product.product, self.variant)

    @property
    def unit_price(self) -> dict[str, str] | None:
        amount = self.variant.measure.unit_price(self.variant.price) if self.variant.measure else None
        return {"amount": amount} if amount is not None else None

    @property
    def unit_price_measurement(self) -> "MeasureNode | None":
        return MeasureNode(self.variant.measure) if self.variant.measure else None


@dataclass(frozen=True, slots=True)
class MeasureNode:
    measure: Measure

    @property
    def measured_type(self) -> str:
        return self.measure.type

    @property
    def quantity_value(self) -> float:
        return self.measure.value

    @property
    def quantity_unit(self) -> str:
        return self.measure.unit

    @property
    def reference_value(self) -> int:
        return self.measure.reference_value

    @property
    def reference_unit(self) -> str:
        return self.measure.reference_unit


@dataclass(frozen=True, slots=True)
class InventoryItemNode:
    owner: Product
    variant: Variant

    @property
    def id(self) -> str:
        return gid("InventoryItem", self.variant.inventory_item_id)

    @property
    def tracked(self) -> bool:
        return not self.owner.gift_card

    def inventory_levels(self, first: int | None = None, after: str | None = None) -> Connection:
        levels = self.variant.levels.items()
        return Connection(
            (((place,), InventoryLevelNode(self, _LOCATIONS[place], level)) for place, level in levels),
            first,
            after,
        )


@dataclass(frozen=True, slots=True)
class InventoryLevelNode:
    item: InventoryItemNode
    location: LocationNode
    level: Level

    @property
    def id(self) -> str:
        item = self.item.variant.inventory_item_id
        return f"{gid('InventoryLevel', self.location.location.id)}?inventory_item_id={item}"

    @property
    def updated_at(self) -> str:
        return instant(self.level.updated_at)

    def quantities(self, names: Sequence[str]) -> list[dict[str, Any]]:
        unknown = set(names) - {"available"}
        if unknown:
            raise GraphQLError(f"this sandbox knows the quantity available only, not {', '.join(unknown)}")
        return [{"name": "available", "quantity": self.level.available}] if names else []


@dataclass(frozen=True, slots=True)
class SubscriptionNode:
    subscription: Subscription

    @property
    def id(self) -> str:
        return gid("WebhookSubscription", self.subscription.id)

    @property
    def topic(self) -> str:
        return self.subscription.topic.replace("/", "_").upper()

    @property
    def uri(self) -> str:
        return self.subscription.uri

    @property
    def format(self) -> str:
        return self.subscription.format

    @property
    def filter(self) -> str | None:
        return self.subscription.filter

    @property
    def include_fields(self) -> list[str]:
        return list(self.subscription.include_fields)


def _image(photo: Photo | None) -> dict[str, str] | None:
    return {"url": photo.src} if photo else None


_LOCATIONS: Mapping[int, LocationNode] = {place.id: LocationNode(place) for place in LOCATIONS}


class CatalogueRoot:
    """The query's fields that read the shop; its products as they are now, or those of a snapshot."""

    def __init__(self, shop: Shop, products: Iterable[Product] | None = None) -> None:
        self._shop = shop
        self._products = shop.products.values() if products is None else products

    @property
    def shop(self) -> ShopNode:
        return ShopNode(self._shop)

    def locations(
        self, first: int | None = None, after: str | None = None, include_inactive: bool = False
    ) -> Connection:
        shown = [place for place in LOCATIONS if place.active or include_inactive]
        return Connection((((place.name, place.id), _LOCATIONS[place.id]) for place in shown), first, after)

    def product(self, id: str) -> ProductNode | None:
        found = self._shop.products.get(number_of("Product", id))
        return ProductNode(found) if found else None

    def products(
        self,
        first: int | None = None,
        after: str | None = None,
        query: str | None = None,
        sort_key: str = "ID",
    ) -> Connection:
        match = matcher(query, _PRODUCT_SEARCH)
        found = (product for product in self._products if match(product))
        if sort_key == "UPDATED_AT":
            keyed = (((instant(product.updated_at), product.id), ProductNode(product)) for product in found)
            return Connection(keyed, first, after)
        return Connection((((product.id,), ProductNode(product)) for product in found), first, after)

    def product_variants(self, first: int | None = None, after: str | None = None) -> Connection:
        return Connection((((node.variant.id,), node) for node in self._variants()), first, after)

    def inventory_items(self, first: int | None = None, after: str | None = None) -> Connection:
        items = (node.inventory_item for node in self._variants())
        return Connection((((item.variant.inventory_item_id,), item) for item in items), first, after)

    def product_variants_count(self, limit: int | None = 10_000) -> dict[str, Any]:
        count = sum(len(product.variants) for product in self._products)
        if limit is not None and count > limit:
            return {"count": limit, "precision": "AT_LEAST"}
        return {"count": count, "precision": "EXACT"}

    def webhook_subscriptions(self, first: int | None = None, after: str | None = None) -> Connection:
        made = (one for one in self._shop.subscriptions.all() if one.by_api)
        return Connection((((one.id,), SubscriptionNode(one)) for one in made), first, after)

    def _variants(self) -> Iterator[VariantNode]:
        for product in self._products:
            node = ProductNode(product)
            for variant in product.variants:
                yield VariantNode(node, variant)
