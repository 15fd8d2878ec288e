"""The demo's shop at WooCommerce: webhooks tell of products and variations, reading brings what they leave out.

After each part of the day `catch_up` runs, as it does every few minutes: so the labels are to be as the shop is, also
where a webhook was lost or only named its variations.
"""

import json
import random
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal

import httpx

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.demo.day import Label, Shelf, made_label
from esl_pipeline.demo.shop import BY, POLICY, STORE, Act, DemoError, Fate, ShopUnderDemo, Tell
from esl_pipeline.sandbox.shopify.catalogue import Catalogue
from esl_pipeline.sandbox.woocommerce.api import CONSUMER_KEY, CONSUMER_SECRET
from esl_pipeline.sandbox.woocommerce.bodies import is_on_sale, product_body
from esl_pipeline.sandbox.woocommerce.delivery import Trouble, WebhookSender
from esl_pipeline.sandbox.woocommerce.server import TOPICS, RunningWooCommerce, running_woocommerce
from esl_pipeline.sandbox.woocommerce.shop import Item, Product, Shop, Variation, real_time, stock
from esl_pipeline.settings import Settings

TROUBLE = Trouble(lost=0.1, doubled=0.04, overtaken=0.1)
_SEED = 2026
_SENDING_SECONDS = 60.0
# A read counts for what changed before it; the shop's clock may be some seconds ahead after a burst of changes.
_READ_AFTER = timedelta(seconds=4)
_DAY = timedelta(days=1)

Thing = tuple[Product, Variation | None]


class WooCommerceDemo(ShopUnderDemo):
    """120 products, most of them with variations; a day of prices, sales and mistakes, and what only the night sees."""

    system = "woocommerce"
    acts = (
        Act("opening", "The shop opens: 120 products come in, many with variations", job="catch_up"),
        Act("trading", "A working day: prices, sales, names, codes, the trash, mistakes", job="catch_up"),
    )
    first_day = "with a key of its REST API and a webhook for each topic"

    def __init__(self) -> None:
        super().__init__()
        self._shelf, self._market = Shelf(), Shop(seed=_SEED)
        self._market.clock = real_time
        self._secret = secrets.token_hex(16)
        self._served: RunningWooCommerce | None = None
        self._repriced: list[Product] = []

    @property
    def shop(self) -> str:
        """Host and port of the sandbox."""
        return self._site.shop_id

    @property
    def _site(self) -> RunningWooCommerce:
        if self._served is None:
            raise DemoError("the shop does not run")
        return self._served

    @property
    def _sender(self) -> WebhookSender:
        sender = self._site.sandbox.sender
        assert sender is not None
        return sender

    @contextmanager
    def running(self) -> Iterator[None]:
        """Serve the REST API, and send."""
        with running_woocommerce(self._market) as self._served:
            sender = WebhookSender(self._market, self._served.url, trouble=TROUBLE, seed=_SEED)
            self._served.sandbox.sender = sender
            with sender:
                yield

    def environment(self) -> dict[str, str]:
        """A key and a secret of its own."""
        return {
            "WOOCOMMERCE_KEYS": f"{self.shop}={CONSUMER_KEY}:{CONSUMER_SECRET}",
            "WOOCOMMERCE_WEBHOOK_SECRET": f"{self.shop}={self._secret}",
        }

    def connect(self, settings: Settings, buffer: Buffer, receiver: str, tell: Tell) -> None:
        """What a shopkeeper does by hand in WooCommerce, and a mapping."""
        for check in settings.sources[self.system].checks([self.shop], [self.shop]):
            tell("shop", check.says)
            if check.state == "wrong":
                raise DemoError(f"the shop could not be connected: {check.says}")
        key = {"source_system": self.system, "source_store_id": self.shop, "hipoink_store_code": STORE}
        policy = {"expected_currency": self._market.currency} | POLICY
        buffer.mapping_create({**key, "settings": policy}, by=BY)
        tell("store", f"{STORE}: live, by esl-pipeline stores add")
        address = f"{receiver}/webhooks/woocommerce"
        for topic in TOPICS:
            self._sender.add(topic, address, self._secret)
        tell("webhooks", f"{len(TOPICS)} made, each with its ping answered")

    def play(self, act: str, receiver: str) -> Iterator[tuple[int, int]]:
        """Let things happen; their webhooks go out, with trouble on the way."""
        sender = self._sender
        attempts, lost = len(sender.attempts), len(sender.lost)
        {"opening": self._open, "trading": self._trade}[act]()
        forged = self._forge(receiver) if act == "trading" else 0
        deadline = time.monotonic() + _SENDING_SECONDS
        while not sender.wait(0.1):
            done = len(sender.attempts) - attempts
            yield done, done + sender.waiting
            if time.monotonic() > deadline:
                raise DemoError(f"the receiver did not take all webhooks within {_SENDING_SECONDS:.0f} s")
        sent = sender.attempts[attempts:]
        yield len(sent), len(sent)
        refused = [attempt.status for attempt in sent if attempt.status != httpx.codes.OK]
        if refused:
            raise DemoError(f"the receiver answered {refused[0]} to a webhook of the shop")
        self.fate = Fate(len(sent), forged, len(sender.lost) - lost)
        self._settle()

    @property
    def labels(self) -> Mapping[str, Label]:
        """As the shop is."""
        return self._shelf.labels

    @property
    def held_back(self) -> int:
        """By the same."""
        return self._shelf.held_back

    @property
    def rng(self) -> random.Random:
        """The shop's."""
        return self._market.rng

    def night_falls(self) -> None:
        """Deleted for good, out of the trash, and a sale whose time has come: of these no webhook told."""
        shop = self._market
        shop.listener, listener = None, shop.listener
        first, *_ = [one for one in shop.products.values() if _is_plain(one)]
        shop.delete(first)
        shop.restore(next(one for one in shop.products.values() if one.status == "trash"), "publish")
        for thing in _things(shop):
            item = _item(thing)
            if item.sale_from and item.sale_from > real_time():
                shop.sneak(*thing, sale_from=real_time() - _DAY)
        shop.listener = listener
        self._settle()

    def example(self) -> str:
        """Of a simple product, whose webhook says the price itself."""
        told = {_told_id(attempt.body) for attempt in self._sender.attempts}
        return next((product.gtin for product in self._repriced if product.id in told), "")

    def _settle(self) -> None:
        """Wait until what is read counts for all changes; what must hang by then."""
        while real_time() < max(self._market.now, self._market.latest_change()) + _READ_AFTER:
            time.sleep(0.2)
        now = self._market.time()
        wanted: dict[int, Label | None] = {}
        for product, variation in _things(self._market):
            item = _item((product, variation))
            if product.status == item.status == "publish":
                price = item.sale_price if is_on_sale(item, now) else item.regular_price
                names = [product.name, *([" / ".join(variation.options)] if variation else [])]
                wanted[item.id] = made_label(item.gtin, names, price, item.sku)
        self._shelf.place(wanted)

    def _open(self) -> None:
        """Everything is made, some of it with mistakes, and then told of."""
        shop, catalogue = self._market, Catalogue(self._market.rng)
        shop.listener, listener = None, shop.listener
        for like in catalogue.groceries(shop.now):
            stock(shop, like)
        spoilt = [thing for thing in _things(shop) if not _item(thing).sale_price][:12]
        for thing, gtin in zip(spoilt, ["4260 1234 5678", "29" * 20, "", "0000000000000"], strict=False):
            shop.change(*thing, gtin=gtin)
        for thing, price in zip(spoilt[4:], ["", "0.00", "1.999"], strict=False):
            shop.change(*thing, regular_price=price)
        shop.change(*spoilt[7], gtin=_item(spoilt[8]).gtin)
        shop.listener = listener
        for product in shop.products.values():
            self._sender.tell("created", product, None)
            for variation in product.variations:
                self._sender.tell("created", product, variation)

    def _trade(self) -> None:
        shop = self._market
        sound = [
            thing
            for thing in _things(shop)
            if made_label(_item(thing).gtin, ["-"], _item(thing).regular_price, "") is not None
        ]
        shop.rng.shuffle(sound)
        # Some products of each kind are for one purpose alone, with all their variations.
        whole = [one for one in shop.products.values() if all(thing in sound for thing in _things_of(one))]
        shop.rng.shuffle(whole)
        own = [whole.pop() for _ in range(16)]
        self._whole_products(own)
        rest = [thing for thing in sound if thing[0] not in own]
        for thing in [rest.pop() for _ in range(60)]:
            self._reprice(thing)
        now = real_time()
        for number, thing in enumerate([one for one in rest if not _item(one).sale_price][:12]):
            rest.remove(thing)
            begins = now - _DAY if number < 8 else now + _DAY
            price = _cents(Decimal(_item(thing).regular_price) * Decimal("0.8"))
            shop.change(*thing, sale_price=price, sale_from=begins, sale_to=now + 7 * _DAY)
        one, other, fresh, bad, rival, victim = [rest.pop() for _ in range(6)]
        codes = _item(one).gtin, _item(other).gtin
        shop.change(*one, gtin=codes[1])
        shop.change(*other, gtin=codes[0])
        shop.change(*fresh, gtin="2000000000015")
        shop.change(*bad, gtin="2900 0123 4567")
        shop.change(*rival, gtin=_item(victim).gtin)
        for thing in rest[:10]:  # saved unchanged, or sold: nothing for a label
            shop.change(*thing)
            shop.change(*thing, stock=shop.rng.randrange(0, 200))
        self._cut_off(rest[0][0])

    def _whole_products(self, own: list[Product]) -> None:
        """Names, statuses, the trash, variations that come and go."""
        shop = self._market
        for product in own[:4]:
            shop.change(product, name=f"{product.name}  (Neu:  größer!)")
        for product in own[4:7]:
            shop.change(product, status="draft")
        for product in own[7:10]:
            shop.trash(product)
        for number, product in enumerate(own[10:]):
            if product.kind == "variable" and number % 2:
                shop.remove_variation(product, product.variations[0])
            elif product.kind == "variable":
                shop.add_variation(product, ("5 kg",), "9.99", gtin=f"NEW-{number}")

    def _reprice(self, thing: Thing) -> None:
        item = _item(thing)
        price = Decimal(item.sale_price or item.regular_price) + self._market.rng.choice((1, 2, 5)) / Decimal(
            10
        )
        if item.sale_price and price >= Decimal(item.regular_price):
            price = Decimal(item.sale_price) - Decimal("0.10")
        if item.sale_price:
            self._market.change(*thing, sale_price=_cents(price))
        else:
            self._market.change(*thing, regular_price=_cents(price))
        if thing[1] is None:
            self._repriced.append(thing[0])

    def _cut_off(self, product: Product) -> None:
        """A body that breaks off in the middle, signed."""
        body = json.dumps(product_body(product, self._sender.site, "UTC", real_time())).encode()
        webhook = next(one for one in self._sender.webhooks if one.topic == "product.updated")
        self._sender.send_raw(webhook, body[: len(body) // 2])

    def _forge(self, receiver: str) -> int:
        """A stranger's price of one cent; it has to be refused. How many were sent."""
        product = next(one for one in self._market.products.values() if one.kind == "simple")
        body = product_body(product, self._sender.site, "UTC", real_time()) | {"regular_price": "0.01"}
        raw = json.dumps(body).encode()
        webhook = next(one for one in self._sender.webhooks if one.topic == "product.updated")
        headers = self._sender.headers(webhook, raw, secret="not the secret")  # noqa: S106
        answer = httpx.post(f"{receiver}/webhooks/woocommerce", content=raw, headers=headers)
        if answer.status_code != httpx.codes.UNAUTHORIZED:
            raise DemoError(f"the receiver answered {answer.status_code} to a forged webhook: {answer.text}")
        return 1


def _things(shop: Shop) -> list[Thing]:
    """Everything that is sold, in the order of the shop."""
    return [thing for product in shop.products.values() for thing in _things_of(product)]


def _things_of(product: Product) -> list[Thing]:
    if product.kind != "variable":
        return [(product, None)]
    return [(product, variation) for variation in product.variations]


def _item(thing: Thing) -> Item:
    return thing[1] or thing[0]


def _is_plain(product: Product) -> bool:
    return product.kind == "simple" and product.status == "publish" and bool(product.gtin)


def _cents(price: Decimal) -> str:
    return f"{price:.2f}"


def _told_id(body: bytes) -> int | None:
    try:
        return int(json.loads(body)["id"])
    except ValueError:
        return None  # it was cut off
