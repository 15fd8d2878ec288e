"""A stand for each source: a real stand-in of its shop system with two shops, and what tests of every source do there.

Product n has the code C-n. What a shop has to say comes as `Told`: a webhook on its way, or a file on its way.
"""

import csv
import io
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar

from esl_pipeline.sandbox.shopify.catalogue import Product, Variant
from esl_pipeline.sandbox.shopify.faults import CutDownload
from esl_pipeline.sandbox.shopify.sandbox import TOKEN
from esl_pipeline.sandbox.shopify.server import running_shopify
from esl_pipeline.sandbox.shopify.shop import Shop
from esl_pipeline.sandbox.shopify.webhooks import Webhooks
from esl_pipeline.sandbox.woocommerce.api import CONSUMER_KEY, CONSUMER_SECRET
from esl_pipeline.sandbox.woocommerce.bodies import product_body
from esl_pipeline.sandbox.woocommerce.delivery import Webhook, WebhookSender
from esl_pipeline.sandbox.woocommerce.faults import Status
from esl_pipeline.sandbox.woocommerce.server import running_woocommerce
from esl_pipeline.sandbox.woocommerce.shop import Product as WooProduct
from esl_pipeline.sandbox.woocommerce.shop import Shop as WooShop

# The first look at changes goes an hour back.
_OPEN_FOR = timedelta(minutes=20)

SECRET = "canary-secret-of-the-webhooks"
A, B = 0, 1


@dataclass(frozen=True)
class Told:
    """What a shop says, on its way. path, headers and body of a webhook; or the name, bytes and time of a file."""

    path: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    file: str = ""
    at: float = 0


class Stand(ABC):
    """Two shops of one source, A and B."""

    system: str
    shops: tuple[str, str]
    # Words that nothing may show.
    canaries: tuple[str, ...] = (SECRET,)
    # A value for a setting that cannot be right, by its variable; each is told of.
    nonsense: ClassVar[Mapping[str, str]]
    sends_webhooks = True

    @abstractmethod
    def environment(self) -> dict[str, str]:
        """The source's settings."""

    @abstractmethod
    def put(self, number: int, price: str, shop: int = A) -> Told:
        """Make or change a product."""

    @abstractmethod
    def delete(self, number: int, shop: int = A) -> Told:
        """Take it out of the shop."""

    def put_file(self, told: Told, shop: int = A) -> None:  # noqa: B027 - only some have files
        """A file arrives."""

    def before_a_whole_read(self, shop: int = A) -> None:  # noqa: B027 - likewise
        """What has to be there for one."""

    @abstractmethod
    def break_a_read(self) -> None:
        """The next read of all of shop A ends half-way."""

    @abstractmethod
    def mend(self) -> None:
        """And the ones after it do not."""


class ShopifyStand(Stand):
    """Two shops of the sandbox Shopify; only the first one can be read."""

    system = "shopify"
    shops = ("corner-market.myshopify.com", "other-market.myshopify.com")
    canaries = (SECRET, TOKEN)
    nonsense: ClassVar = {
        "SHOPIFY_WEBHOOK_SECRET": ",",
        "SHOPIFY_ADMIN_TOKEN": "a=b,c",
        "SHOPIFY_ADMIN_URL": "nowhere",
        "SHOPIFY_APPS": ",",
    }

    def __init__(self, running: ExitStack, tmp_path: Path) -> None:
        start = datetime.now(UTC) - _OPEN_FOR
        self._sides = tuple(Shop(seed, start) for seed in (1, 2))
        self._webhooks = [
            Webhooks(shop, domain) for shop, domain in zip(self._sides, self.shops, strict=True)
        ]
        self._served = running.enter_context(running_shopify(self._sides[A]))

    def environment(self) -> dict[str, str]:
        return {
            "SHOPIFY_WEBHOOK_SECRET": SECRET,
            "SHOPIFY_ADMIN_TOKEN": f"{self.shops[A]}={TOKEN}",
            "SHOPIFY_ADMIN_URL": self._served.url,
        }

    def put(self, number: int, price: str, shop: int = A) -> Told:
        side = self._sides[shop]
        product = side.products.get(number)
        if product is None:
            product = _shopify_product(number, price, side.now)
            side.add(product)
        side.set_price(product, product.variants[0], price)
        return self._told(self._webhooks[shop].updated(product))

    def delete(self, number: int, shop: int = A) -> Told:
        product = self._sides[shop].products[number]
        self._sides[shop].delete(product)
        return self._told(self._webhooks[shop].deleted(product))

    def _told(self, delivery: object) -> Told:
        from esl_pipeline.sandbox.shopify.webhooks import Delivery

        assert isinstance(delivery, Delivery)
        path = f"/webhooks/shopify/{delivery.topic}"
        return Told(path, delivery.headers(SECRET), delivery.body)

    def break_a_read(self) -> None:
        self._served.sandbox.faults.replace([CutDownload(keep=0.5)])

    def mend(self) -> None:
        self._served.sandbox.faults.replace([])


def _shopify_product(number: int, price: str, now: datetime) -> Product:
    variant = Variant(
        id=number,
        inventory_item_id=number,
        options=("Default Title",),
        price=price,
        compare_at_price=None,
        barcode=f"C-{number}",
        sku=None,
        photo=None,
        measure=None,
        levels={},
        created_at=now,
        updated_at=now,
    )
    return Product(number, f"Product {number}", "", "", (), {"Title": 1}, [], now, now, variants=[variant])


class WooCommerceStand(Stand):
    """Two shops of the sandbox WooCommerce, each with ids of its own."""

    system = "woocommerce"
    canaries = (SECRET, CONSUMER_KEY, CONSUMER_SECRET)
    nonsense: ClassVar = {
        "WOOCOMMERCE_KEYS": ",",
        "WOOCOMMERCE_WEBHOOK_SECRET": ",",
        "WOOCOMMERCE_URL": "https://example.com",
    }

    def __init__(self, running: ExitStack, tmp_path: Path) -> None:
        start = datetime.now(UTC) - _OPEN_FOR
        self._sides = tuple(WooShop(seed=seed, start=start) for seed in (1, 2))
        self._served = [running.enter_context(running_woocommerce(side)) for side in self._sides]
        self.shops = (self._served[A].shop_id, self._served[B].shop_id)
        self._products: tuple[dict[int, WooProduct], dict[int, WooProduct]] = ({}, {})

    def environment(self) -> dict[str, str]:
        keys = ",".join(f"{shop}={CONSUMER_KEY}:{CONSUMER_SECRET}" for shop in self.shops)
        return {"WOOCOMMERCE_WEBHOOK_SECRET": SECRET, "WOOCOMMERCE_KEYS": keys}

    def put(self, number: int, price: str, shop: int = A) -> Told:
        side, known = self._sides[shop], self._products[shop]
        if number not in known:
            known[number] = side.add(f"Product {number}", price, gtin=f"C-{number}")
        side.change(known[number], regular_price=price)
        site, zone = self._served[shop].url, side.time_zone
        return self._told("product.updated", product_body(known[number], site, zone, side.now), shop)

    def delete(self, number: int, shop: int = A) -> Told:
        product = self._products[shop].pop(number)
        self._sides[shop].trash(product)
        return self._told("product.deleted", {"id": product.id}, shop)

    def _told(self, topic: str, body: dict[str, object], shop: int) -> Told:
        raw = json.dumps(body).encode()
        sender = WebhookSender(self._sides[shop], self._served[shop].url)
        return Told(f"/webhooks/woocommerce/{topic}", sender.headers(Webhook(1, topic, "", SECRET), raw), raw)

    def break_a_read(self) -> None:
        # The list of products comes, and then the site is gone.
        sandbox = self._served[A].sandbox
        sandbox.before = lambda path: (
            sandbox.faults.replace([Status(status=500)]) if "products" in path else None
        )

    def mend(self) -> None:
        self._served[A].sandbox.before = None
        self._served[A].sandbox.faults.replace([])


class FilesStand(Stand):
    """Two folders into which tills write lists."""

    system = "files"
    shops = ("corner", "other")
    canaries = ("canary-folder",)
    nonsense: ClassVar = {
        "FILES_FOLDERS": ",",
        "FILES_SMALLEST_SHARE_PCT": "101",
        "FILES_SETTLE_SECONDS": "-1",
    }
    sends_webhooks = False

    def __init__(self, running: ExitStack, tmp_path: Path) -> None:
        self._folders = [tmp_path / "canary-folder" / shop for shop in self.shops]
        for folder in self._folders:
            folder.mkdir(parents=True)
        self._prices: tuple[dict[int, str], dict[int, str]] = ({}, {})
        self._clock = time.time() - 10_000
        self._broken = False

    def environment(self) -> dict[str, str]:
        folders = ",".join(f"{shop}={folder}" for shop, folder in zip(self.shops, self._folders, strict=True))
        # A shop of three products may lose one.
        return {"FILES_FOLDERS": folders, "FILES_SETTLE_SECONDS": "0", "FILES_SMALLEST_SHARE_PCT": "0"}

    def put(self, number: int, price: str, shop: int = A) -> Told:
        self._prices[shop][number] = price
        return self._list("changes", [[f"C-{number}", f"Product {number}", price, ""]])

    def delete(self, number: int, shop: int = A) -> Told:
        del self._prices[shop][number]
        return self._list("changes", [[f"C-{number}", "", "", "x"]])

    def put_file(self, told: Told, shop: int = A) -> None:
        path = self._folders[shop] / told.file
        path.write_bytes(told.body)
        os.utime(path, (told.at, told.at))

    def before_a_whole_read(self, shop: int = A) -> None:
        rows = [
            [f"C-{number}", f"Product {number}", price, ""] for number, price in self._prices[shop].items()
        ]
        whole = self._list("full", rows)
        if self._broken:  # it is written from behind, half of it
            whole = Told(file=whole.file, body=whole.body[: len(whole.body) // 2 + 3], at=whole.at)
        self.put_file(whole, shop)

    def break_a_read(self) -> None:
        self._broken = True

    def mend(self) -> None:
        self._broken = False

    def _list(self, kind: str, rows: list[list[str]]) -> Told:
        self._clock += 1
        text = io.StringIO()
        csv.writer(text, delimiter=";").writerows([["Code", "Name", "Price", "Deleted"], *rows])
        return Told(file=f"{kind}-{int(self._clock)}.csv", body=text.getvalue().encode(), at=self._clock)


STANDS: dict[str, type[Stand]] = {
    stand.system: stand for stand in (ShopifyStand, WooCommerceStand, FilesStand)
}


@contextmanager
def stand_of(system: str, tmp_path: Path) -> Iterator[Stand]:
    """The stand of a source, running."""
    with ExitStack() as running:
        yield STANDS[system](running, tmp_path)  # type: ignore[call-arg]
