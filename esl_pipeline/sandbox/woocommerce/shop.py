"""What a pretend WooCommerce shop sells, and how that changes. No I/O but the clock that it may be given.

Ids are counted from 1 over products and variations alike, so two shops have the same.
"""

import itertools
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from esl_pipeline.sandbox.shopify import catalogue

CURRENCY = "EUR"
TIME_ZONE = "Europe/Berlin"
# So far may the clock of a shop with more than one change a second be ahead of the real one.
_LEAD = timedelta(seconds=10)


@dataclass(slots=True)
class Item:
    """What is sold: a simple product, or a variation. Prices are text, empty for none; a sale without dates is on."""

    id: int
    regular_price: str
    created_at: datetime
    modified_at: datetime
    sale_price: str = ""
    sale_from: datetime | None = None
    sale_to: datetime | None = None
    sku: str = ""
    gtin: str = ""
    status: str = "publish"
    manage_stock: bool = False
    stock: int | None = None
    image: str | None = None


@dataclass(slots=True)
class Variation(Item):
    """One of a variable product's: its values of the product's attributes, in their order."""

    options: tuple[str, ...] = ()


@dataclass(slots=True)
class Product(Item):
    """A product; its own prices count when it is simple."""

    name: str = ""
    kind: str = "simple"
    brand: str = ""
    category: str = ""
    tags: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    variations: list[Variation] = field(default_factory=list)
    hidden: bool = False
    """Counted in lists and not shown, as when a plugin damaged it."""

    @property
    def slug(self) -> str:
        """Its name in addresses."""
        return f"product-{self.id}"


Listener = Callable[[str, Product, Variation | None], None]
"""Told of an event (created, updated, deleted, restored) at a product, or at one variation of it."""


class Shop:
    """What WooCommerce says now. Every change gives what it touches a newer time of modification, to the second.

    Threads that read more than one thing hold `lock`; the changes take it themselves. `listener` is told of each
    change while it is held.
    """

    def __init__(self, *, seed: int = 2026, start: datetime | None = None) -> None:
        self.rng = random.Random(seed)  # noqa: S311 (repeatable on purpose, guards nothing)
        self.products: dict[int, Product] = {}
        self.lock = threading.RLock()
        self.listener: Listener | None = None
        self.currency, self.calc_taxes, self.prices_include_tax = CURRENCY, True, True
        self.time_zone, self.gmt_offset = TIME_ZONE, 1.0
        self.now = (start or datetime.now(UTC) - timedelta(days=7)).replace(microsecond=0)
        self.clock: Callable[[], datetime] | None = None
        self._ids = itertools.count(1)

    def add(
        self,
        name: str,
        price: str = "",
        *,
        options: Mapping[tuple[str, ...], str] | None = None,
        **fields: object,
    ) -> Product:
        """Put a product on sale. options, of a variable one: the price of each variation by its values."""
        with self.lock:
            now = self._tick()
            product = Product(next(self._ids), price, now, now, name=name)
            for key, value in fields.items():
                setattr(product, key, value)
            self.products[product.id] = product
            if options:
                product.kind, product.regular_price = "variable", ""
                product.attributes = (
                    product.attributes or ("Size", "Kind", "Third")[: len(next(iter(options)))]
                )
                for values, own in options.items():
                    self._new_variation(product, values, own)
            self._tell("created", product)
            for variation in product.variations:
                self._tell("created", product, variation)
            return product

    def add_variation(
        self, product: Product, values: tuple[str, ...], price: str, **fields: object
    ) -> Variation:
        """One more of a variable product."""
        with self.lock:
            variation = self._new_variation(product, values, price)
            for key, value in fields.items():
                setattr(variation, key, value)
            self._tell("created", product, variation)
            self.change(product)
            return variation

    def change(self, product: Product, variation: Variation | None = None, **fields: object) -> None:
        """Save a product or variation with these fields changed; none: saved unchanged."""
        with self._changing(product, variation) as thing:
            for key, value in fields.items():
                setattr(thing, key, value)

    def sneak(self, product: Product, variation: Variation | None = None, **fields: object) -> None:
        """Change it behind WooCommerce's back: no time of modification, no webhook."""
        with self.lock:
            for key, value in fields.items():
                setattr(variation or product, key, value)

    def trash(self, product: Product) -> None:
        """Put it into the trash, which is what product.deleted tells of; its variations go too."""
        with self.lock:
            product.status, product.modified_at = "trash", self._tick(product)
            for variation in product.variations:
                self._tell("deleted", product, variation)
            self._tell("deleted", product)

    def restore(self, product: Product, status: str = "draft") -> None:
        """Take it out of the trash; WordPress makes it a draft."""
        with self.lock:
            product.status, product.modified_at = status, self._tick(product)
            self._tell("restored", product)

    def delete(self, product: Product) -> None:
        """For good, without the trash: no webhook tells of it."""
        with self.lock:
            del self.products[product.id]

    def remove_variation(self, product: Product, variation: Variation) -> None:
        """Take one away; its product is saved."""
        with self.lock:
            product.variations.remove(variation)
            self.change(product)

    def found(self, thing_id: int) -> tuple[Product, Variation | None] | None:
        """The product or variation of an id."""
        if thing_id in self.products:
            return self.products[thing_id], None
        for product in self.products.values():
            for variation in product.variations:
                if variation.id == thing_id:
                    return product, variation
        return None

    def wait(self, seconds: float = 60) -> None:
        """Let time pass in a shop that has no clock."""
        with self.lock:
            self.now += timedelta(seconds=seconds)

    def time(self) -> datetime:
        """The time in the shop, to the second."""
        return self.now if self.clock is None else max(self.now, self._real())

    def latest_change(self) -> datetime:
        """When anything that is there was changed last. A product of many changes a second is ahead of `time`."""
        things = [thing for product in self.products.values() for thing in (product, *product.variations)]
        return max((thing.modified_at for thing in things), default=self.now)

    def _new_variation(self, product: Product, values: tuple[str, ...], price: str) -> Variation:
        now = self._tick(product)
        variation = Variation(next(self._ids), price, now, now, options=values)
        product.variations.append(variation)
        return variation

    @contextmanager
    def _changing(self, product: Product, variation: Variation | None) -> Iterator[Item]:
        with self.lock:
            thing = variation or product
            yield thing
            thing.modified_at = self._tick(product)
            self._tell("updated", product, variation)
            if variation is not None:  # WooCommerce then brings the product in line with its variations
                product.modified_at = thing.modified_at
                self._tell("updated", product)

    def _tick(self, product: Product | None = None) -> datetime:
        """The time of a change: a newer second than any that the product has seen."""
        newest = (
            max((thing.modified_at for thing in (product, *product.variations)), default=None)
            if product
            else None
        )
        step = timedelta(seconds=1)
        if self.clock is None:
            self.now += step
            return self.now
        real = self._real()
        if self.now < real + _LEAD:
            self.now = max(self.now + step, real)
        return max(self.now, newest + step) if newest else self.now

    def _real(self) -> datetime:
        assert self.clock is not None
        return self.clock().astimezone(UTC).replace(microsecond=0)

    def _tell(self, event: str, product: Product, variation: Variation | None = None) -> None:
        if self.listener is not None:
            self.listener(event, product, variation)


def real_time() -> datetime:
    """The clock of a shop that is open now."""
    return datetime.now(UTC)


def stocked_shop(seed: int = 2026, *, variants: int | None = None) -> Shop:
    """A shop of the real time with the groceries of the other sandbox, or as many things as asked for."""
    shop = Shop(seed=seed)
    made = catalogue.Catalogue(shop.rng)
    for product in made.groceries(shop.now) if variants is None else made.warehouse(shop.now, variants):
        stock(shop, product)
    shop.clock = real_time
    return shop


def stock(shop: Shop, like: catalogue.Product) -> Product:
    """Put a product of the other sandbox's catalogue on sale here: one variant is a simple product."""
    simple = len(like.variants) == 1
    product = shop.add(
        like.title,
        brand=like.vendor,
        category=like.product_type,
        tags=like.tags,
        kind="simple" if simple else "variable",
        attributes=() if simple else tuple(like.options),
        image=like.photos[0].src if like.photos else None,
    )
    for variant in like.variants:
        was = variant.compare_at_price
        said = {
            "regular_price": was or variant.price or "",
            "sale_price": variant.price if was else "",
            "gtin": variant.barcode or "",
            "sku": variant.sku or "",
            "manage_stock": True,
            "stock": variant.stock,
        }
        if simple:
            shop.change(product, None, **said)
        else:
            shop.add_variation(product, variant.options, "", **said)
    return product
