"""What the shop says now, and how it changes. No I/O but the clock that it may be given."""

import random
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone

from esl_pipeline.sandbox.shopify.catalogue import (
    LOCATION_ID,
    WAREHOUSE_ID,
    Catalogue,
    Level,
    Product,
    Variant,
)
from esl_pipeline.sandbox.shopify.subscriptions import Subscriptions

DOMAIN = "corner-market.myshopify.com"
CURRENCY = "EUR"

# Shopify writes the shop's own offset into the times of a product; this zone never changes its offset.
TIME_ZONE = "America/Panama"
_SHOP_ZONE = timezone(timedelta(hours=-5))
# A stocked shop's products came in over the last week; a change takes 3.5 s of its own time.
_STOCKED_FOR = timedelta(days=7)
# So far may the clock of a shop with more than one change a second be ahead of the real one.
_LEAD = timedelta(seconds=10)


@dataclass(frozen=True)
class Location:
    """A place that holds stock."""

    id: int
    name: str
    active: bool = True


LOCATIONS = (
    Location(LOCATION_ID, "Laden Marktplatz"),
    Location(WAREHOUSE_ID, "Lager Süd"),
    Location(71_203_456_791, "Kiosk (closed)", active=False),
)


class Shop:
    """What Shopify says now. Every change moves the shop's clock on and gives the product a newer `updated_at`.

    `start` (aware) is the shop's first moment; the clock goes on by 1 to 6 s a change. Once `clock` is set, which
    gives aware times, changes happen at its time instead: a second apart, until that has taken the shop 10 s ahead.
    Threads that read more than one thing hold `lock`; the changes take it themselves.
    """

    def __init__(self, seed: int, start: datetime) -> None:
        self.rng = random.Random(seed)  # noqa: S311 (repeatable on purpose, guards nothing)
        self.catalogue = Catalogue(self.rng)
        self.products: dict[int, Product] = {}
        self.subscriptions = Subscriptions()
        self.created_at = self.now = start.astimezone(_SHOP_ZONE).replace(microsecond=0)
        self.clock: Callable[[], datetime] | None = None
        self.lock = threading.RLock()
        self._snapshots: list[Snapshot] = []

    def time(self) -> datetime:
        """The time in the shop, to the second."""
        return self.now if self.clock is None else max(self.now, self._real())

    def add(self, product: Product) -> None:
        """Put a product on sale."""
        with self.lock:
            self.products[product.id] = product
            self.touch(product)
            product.created_at = product.updated_at
            for variant in product.variants:
                variant.created_at = variant.updated_at = product.updated_at
                for level in variant.levels.values():
                    level.updated_at = product.updated_at

    def touch(self, product: Product, variant: Variant | None = None) -> None:
        """A product was ordered, or saved unchanged: only its time changes (and the variant's)."""
        with self._changing(product, variant):
            pass

    def rename(self, product: Product, title: str) -> None:
        with self._changing(product):
            product.title = title

    def set_status(self, product: Product, status: str) -> None:
        """active, draft, archived or unlisted."""
        with self._changing(product):
            product.status = status

    def set_price(self, product: Product, variant: Variant, price: str | None) -> None:
        with self._changing(product, variant):
            variant.price = price

    def set_compare_at_price(self, product: Product, variant: Variant, price: str | None) -> None:
        with self._changing(product, variant):
            variant.compare_at_price = price

    def set_barcode(self, product: Product, variant: Variant, barcode: str | None) -> None:
        with self._changing(product, variant):
            variant.barcode = barcode

    def set_stock(
        self, product: Product, variant: Variant, available: int, location_id: int = LOCATION_ID
    ) -> None:
        with self._changing(product, variant) as now:
            variant.levels[location_id] = Level(available, now)

    def disconnect(self, product: Product, variant: Variant, location_id: int = LOCATION_ID) -> None:
        """The variant is no longer stocked at a location; set_stock stocks it again."""
        with self._changing(product, variant):
            del variant.levels[location_id]

    def remove_variant(self, product: Product, variant: Variant) -> None:
        with self._changing(product):
            product.variants.remove(variant)

    def delete(self, product: Product) -> None:
        with self._changing(product):
            del self.products[product.id]

    @contextmanager
    def snapshot(self) -> Iterator["Snapshot"]:
        """The products as they are at this instant, whatever changes while it is read."""
        with self.lock:
            taken = Snapshot(self)
            self._snapshots.append(taken)
        try:
            yield taken
        finally:
            with self.lock:
                self._snapshots.remove(taken)

    def _real(self) -> datetime:
        assert self.clock is not None
        return self.clock().astimezone(_SHOP_ZONE).replace(microsecond=0)

    @contextmanager
    def _changing(self, product: Product, variant: Variant | None = None) -> Iterator[datetime]:
        """Around every change; gives its time."""
        with self.lock:
            for snapshot in self._snapshots:
                snapshot.keep(product)
            if self.clock is None:
                self.now += timedelta(seconds=self.rng.randrange(1, 7))
                product.updated_at = self.now
            else:
                real = self._real()
                if self.now < real + _LEAD:
                    self.now = max(self.now + timedelta(seconds=1), real)
                product.updated_at = max(self.now, product.updated_at + timedelta(seconds=1))
            if variant is not None:
                variant.updated_at = product.updated_at
            yield product.updated_at


class Snapshot:
    """The products of one instant; ask it for each with the shop's lock held, and read that without.

    Copies are kept of those products only that change meanwhile.
    """

    def __init__(self, shop: Shop) -> None:
        self._products, self._ids = shop.products, list(shop.products)
        self._before: dict[int, Product] = {}

    def keep(self, product: Product) -> None:
        """This product is about to change."""
        if product.id not in self._before:
            self._before[product.id] = _copy(product)

    def __iter__(self) -> Iterator[Product]:
        for product_id in self._ids:
            yield self._before.get(product_id) or _copy(self._products[product_id])


def _copy(product: Product) -> Product:
    """A product that does not change when this one does."""
    variants = [replace(variant, levels=dict(variant.levels)) for variant in product.variants]
    return replace(product, variants=variants)


def real_time() -> datetime:
    """The clock of a shop that is open now."""
    return datetime.now(UTC)


def stocked_shop(seed: int, *, variants: int | None = None) -> Shop:
    """A shop of the real time: the groceries, the teas, a gift card; or as many variants as asked for."""
    shop = Shop(seed, real_time() - _STOCKED_FOR)
    made = shop.catalogue
    products: Iterable[Product] = (
        [*made.groceries(shop.now), made.loose_tea(shop.now), made.gift_card(shop.now)]
        if variants is None
        else made.warehouse(shop.now, variants)
    )
    for product in products:
        shop.add(product)
    shop.clock = real_time
    return shop
