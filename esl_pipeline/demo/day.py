"""What happens in the demo's shop, and what its labels must show in the end. Pure; knows nothing of the pipeline.

Two waves of webhooks, the second for when the first is on the labels: what a held-back variant shows depends on what
it showed before. The truth is worked out from the shop itself, with rules of its own (`Shelf`), so that a mistake in
the pipeline's rules cannot hide itself.
"""

import copy
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal

from esl_pipeline.sandbox.shopify.catalogue import Product, Variant, price_text
from esl_pipeline.sandbox.shopify.shop import Shop
from esl_pipeline.sandbox.shopify.webhooks import Delivery, Webhooks

# Of the catalogue's texts, what no label can show: HTML, and the emoji that stand in it.
_NOT_SHOWN = re.compile("<[^>]*>|[☕\ufe0f\U0001f300-\U0001faff]")

Label = dict[str, str]
"""A label's fields by the label server's names; empty ones are left out."""

_ON_SALE = ("active", "unlisted")


@dataclass
class Wave:
    """Deliveries in the order of sending; `forged` are those of somebody who does not have the secret."""

    deliveries: list[Delivery] = field(default_factory=list)
    forged: list[Delivery] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.deliveries) + len(self.forged)


@dataclass(frozen=True)
class Difference:
    """A place where a label is not as it must be; None stands for no label."""

    store: str
    code: str
    expected: Label | None
    shown: Label | None

    @property
    def kind(self) -> str:
        if self.shown is None:
            return "missing"
        return "extra" if self.expected is None else "different"


class Shelf:
    """The labels that must hang in the store, by code; and how many variants are held back."""

    def __init__(self) -> None:
        self.labels: dict[str, Label] = {}
        self.held_back = 0
        self._code_of: dict[int, str] = {}

    def settle(self, products: Iterable[Product]) -> None:
        """What is on sale now is on the labels. A held-back variant keeps the label that it had, if it had one."""
        self.place({variant.id: label_of(product, variant) for product, variant in on_sale(products)})

    def place(self, wanted: Mapping[int, Label | None]) -> None:
        """The same of labels by the ids of what is on sale; None where none can be made."""
        claims = Counter(label["pc"] for label in wanted.values() if label)
        held = [i for i, label in wanted.items() if label is None or claims[label["pc"]] > 1]
        placed = {i: label for i, label in wanted.items() if label is not None and i not in held}
        kept = {i: self.labels[self._code_of[i]] for i in held if i in self._code_of}
        shown = kept | placed
        self._code_of = {i: label["pc"] for i, label in shown.items()}
        self.labels = {label["pc"]: label for label in shown.values()}
        self.held_back = len(held)


def on_sale(products: Iterable[Product]) -> Iterator[tuple[Product, Variant]]:
    """Every variant that belongs on a shelf."""
    for product in products:
        if product.status in _ON_SALE:
            for variant in product.variants:
                yield product, variant


def label_of(product: Product, variant: Variant) -> Label | None:
    """The label of a variant, None when no label can be made of it."""
    names = [product.title] if variant.title == "Default Title" else [product.title, variant.title]
    return made_label(variant.barcode or "", names, variant.price or "", variant.sku or "")


def made_label(code: str, names: Sequence[str], price: str, sku: str) -> Label | None:
    """A label of a product's name and, where it has one, the variant's; None when it cannot be made.

    A code is 1 to 32 letters, digits, dots, dashes and underscores and not all zeros; a price is above zero with at
    most two decimals; there is a title.
    """
    code = code.strip()
    title = " - ".join(" ".join(_NOT_SHOWN.sub("", _nfc(name)).split()) for name in names)
    sound = (
        re.fullmatch(r"[0-9A-Za-z._-]{1,32}", code)
        and code.strip("0")
        and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,2})?", price)
        and Decimal(price)
        and names[0].strip()
    )
    if not sound:
        return None
    return filled({"pc": code, "pn": title, "pp": f"{Decimal(price):.2f}", "pi": sku})


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def filled(record: Mapping[str, object]) -> Label:
    """A label's fields that hold something, as text."""
    return {name: str(value) for name, value in record.items() if value not in ("", None)}


def compare(
    expected: Mapping[str, Label], store: str, shown: Mapping[str, Mapping[str, Mapping[str, object]]]
) -> list[Difference]:
    """Every place where `shown` (store -> code -> record) is not exactly the labels `expected` in `store`."""
    wanted = {(store, code): label for code, label in expected.items()}
    found = {
        (place, code): filled(record) for place, codes in shown.items() for code, record in codes.items()
    }
    return [
        Difference(*key, wanted.get(key), found.get(key))
        for key in sorted(wanted.keys() | found.keys())
        if wanted.get(key) != found.get(key)
    ]


@dataclass(frozen=True)
class _Told:
    """What one webhook told of a product: how it was then, None when it is gone."""

    product_id: int
    at: datetime
    product: Product | None


class _Diary(Webhooks):
    """Webhooks that are remembered, by their event."""

    def __init__(self, shop: Shop) -> None:
        super().__init__(shop)
        self.told: dict[str, _Told] = {}

    def created(self, product: Product) -> Delivery:
        return self._noted(super().created(product), product, copy.deepcopy(product))

    def updated(self, product: Product) -> Delivery:
        return self._noted(super().updated(product), product, copy.deepcopy(product))

    def deleted(self, product: Product) -> Delivery:
        return self._noted(super().deleted(product), product, None)

    def _noted(self, delivery: Delivery, product: Product, state: Product | None) -> Delivery:
        self.told[delivery.event_id] = _Told(product.id, product.updated_at, state)
        return delivery


@dataclass(frozen=True)
class Repriced:
    """A variant that got a new price while trading, and the event that told of it."""

    product: Product
    variant: Variant
    event_id: str


class DemoDay:
    """The demo's story: `opening`, then `trading`. The shop's state is the truth after each."""

    def __init__(self, seed: int, start: datetime) -> None:
        self.shop = Shop(seed, start)
        self.webhooks = _Diary(self.shop)
        self.repriced: list[Repriced] = []
        self._flawed: list[tuple[Product, Variant]] = []

    def opening(self) -> Wave:
        """121 products come in, one of them with 100 variants; some can have no label."""
        shop, webhooks, wave = self.shop, self.webhooks, Wave()
        products = [*shop.catalogue.groceries(shop.now), shop.catalogue.loose_tea(shop.now)]
        shop.rng.shuffle(products)
        for product in products:
            shop.add(product)
        self._spoil([product for product in products if len(product.variants) == 2])
        for product in products:
            wave.deliveries.append(webhooks.created(product))
        for product in shop.rng.sample(products, 6):  # create-and-publish sends both topics for one action
            wave.deliveries.append(webhooks.updated(product))
        self._repeat(wave, 2)
        return wave

    def trading(self) -> Wave:
        """Prices, names, codes and statuses change; webhooks come late, in copies, unreadable, and forged."""
        wave = Wave()
        flawed = [product for product, _ in self._flawed]
        rest = [product for product in self.shop.products.values() if product not in flawed]
        self.shop.rng.shuffle(rest)
        # A deletion names the rounded id only, so products with a huge one stay; so does the big one, for its size.
        rest.sort(key=lambda product: product.id < 2**53 and 1 < len(product.variants) < 100)
        self._withdraw(wave, [rest.pop() for _ in range(8)])
        self._recode(wave, [rest.pop() for _ in range(5)])
        self._hold_back(wave, [rest.pop() for _ in range(8)])
        self._reprice(wave, rest[:80])
        self._rename(wave, rest[:4])
        self._repair(wave)
        self._nothing_for_a_label(wave, rest[10:20])
        self._repeat(wave, 4)
        self._unusable_and_forged(wave, rest[5])
        return wave

    def as_told(self, events: Iterable[str]) -> list[Product]:
        """The shop as somebody knows it who was told of these events (ids) only, in whatever order."""
        told = [self.webhooks.told[event] for event in events if event in self.webhooks.told]
        newest = {one.product_id: one.product for one in sorted(told, key=lambda one: one.at)}
        return [product for product in newest.values() if product is not None]

    def _spoil(self, products: list[Product]) -> None:
        """One variant of each: what cannot be a label, and two that look wrong and are not."""
        shop = self.shop
        barcodes = ["4260 1234 5678", "29" * 20, None, "", "٢٩٠٠١٢٣٤٥٦٧٨٩", "0000000000000", "29000123456X9!"]
        prices = [None, "abc", "0.00", "1.999"]
        for product, barcode in zip(products, barcodes, strict=False):
            shop.set_barcode(product, product.variants[1], barcode)
        for product, price in zip(products[len(barcodes) :], prices, strict=False):
            shop.set_price(product, product.variants[1], price)
        twin, wrong_digit, padded = products[len(barcodes) + len(prices) :][:3]
        shop.set_barcode(twin, twin.variants[1], twin.variants[0].barcode)
        shop.set_barcode(wrong_digit, wrong_digit.variants[1], "2900012345678")
        shop.set_barcode(padded, padded.variants[1], f"  {padded.variants[1].barcode} ")
        self._flawed = [
            (product, product.variants[1]) for product in products[: len(barcodes) + len(prices) + 3]
        ]

    def _reprice(self, wave: Wave, products: list[Product]) -> None:
        """80 products: most change once; some twice, and the newer webhook overtakes the older one."""
        late = []
        for number, product in enumerate(products):
            variant = self.shop.rng.choice(product.variants)
            if number % 16 == 0:
                late.append(self._new_price(product, variant))
            wave.deliveries.append(self._new_price(product, variant))
            self.repriced.append(Repriced(product, variant, wave.deliveries[-1].event_id))
        wave.deliveries += late

    def _new_price(self, product: Product, variant: Variant) -> Delivery:
        cents = int(Decimal(variant.price or "0") * 100)
        self.shop.set_price(
            product, variant, price_text(cents + self.shop.rng.choice((-20, -10, 5, 30, 100)))
        )
        return self.webhooks.updated(product)

    def _rename(self, wave: Wave, products: list[Product]) -> None:
        for product in products:
            self.shop.rename(product, unicodedata.normalize("NFD", f"{product.title}  (Neu:  größer!)"))
            wave.deliveries.append(self.webhooks.updated(product))

    def _withdraw(self, wave: Wave, products: list[Product]) -> None:
        """Deleted, no longer published, or one variant less."""
        shop, webhooks = self.shop, self.webhooks
        draft, archived, undecided, smaller, *deleted = products
        for product, status in [
            (draft, "draft"),
            (archived, "archived"),
            (undecided, "draft"),
            (undecided, "active"),
        ]:
            shop.set_status(product, status)
            wave.deliveries.append(webhooks.updated(product))
        shop.remove_variant(smaller, smaller.variants[0])
        wave.deliveries.append(webhooks.updated(smaller))
        for product in deleted:
            late = self._new_price(product, product.variants[0])
            shop.delete(product)
            wave.deliveries += [webhooks.deleted(product), late]  # the late update must not bring it back

    def _recode(self, wave: Wave, products: list[Product]) -> None:
        """New barcodes: a fresh one, two that change places, and one taken over from a product that goes."""
        shop, webhooks = self.shop, self.webhooks
        fresh, one, other, heir, gone = products
        shop.set_barcode(fresh, fresh.variants[0], shop.catalogue.code())
        codes = one.variants[0].barcode, other.variants[0].barcode
        shop.set_barcode(one, one.variants[0], codes[1])
        shop.set_barcode(other, other.variants[0], codes[0])
        shop.set_barcode(heir, heir.variants[0], gone.variants[0].barcode)
        shop.delete(gone)
        wave.deliveries += [webhooks.updated(product) for product in (fresh, one, other, heir)]
        wave.deliveries.append(webhooks.deleted(gone))

    def _hold_back(self, wave: Wave, products: list[Product]) -> None:
        """What was on a label becomes unfit for one: the label stays as it is."""
        shop = self.shop
        *spoilt, victim, rival = products
        for product, barcode in zip(spoilt[:3], ["2900 0123 4567", "29" * 20, None], strict=True):
            shop.set_barcode(product, product.variants[0], barcode)
        for product, price in zip(spoilt[3:], [None, "abc", "-1.00"], strict=True):
            shop.set_price(product, product.variants[0], price)
        shop.set_barcode(rival, rival.variants[0], victim.variants[0].barcode)
        wave.deliveries += [self.webhooks.updated(product) for product in (*spoilt, rival)]

    def _repair(self, wave: Wave) -> None:
        """Somebody corrects what was held back since the opening."""
        for product, variant in self._flawed[:2]:
            self.shop.set_barcode(product, variant, self.shop.catalogue.code())
            wave.deliveries.append(self.webhooks.updated(product))

    def _nothing_for_a_label(self, wave: Wave, products: list[Product]) -> None:
        """Orders and stock: nothing that a label shows."""
        for product in products:
            self.shop.touch(product)
            wave.deliveries.append(self.webhooks.updated(product))
        for product in products * 2:
            variant = self.shop.rng.choice(product.variants)
            self.shop.set_stock(product, variant, self.shop.rng.randrange(0, 200))
            wave.deliveries.append(self.webhooks.level(variant))

    def _repeat(self, wave: Wave, count: int) -> None:
        """Copies of a body that come as another delivery."""
        chosen = self.shop.rng.sample(wave.deliveries, count)
        wave.deliveries += [replace(delivery, webhook_id=self.webhooks.new_id()) for delivery in chosen]

    def _unusable_and_forged(self, wave: Wave, product: Product) -> None:
        """A body that breaks off in the middle, signed; and a stranger's price of one cent."""
        whole = self.webhooks.updated(product)
        tells_nothing = replace(
            whole, body=whole.body[: len(whole.body) // 2], event_id=self.webhooks.new_id()
        )
        wave.deliveries.append(tells_nothing)
        forged = copy.deepcopy(product)
        self.shop.set_price(forged, forged.variants[0], "0.01")
        wave.forged.append(self.webhooks.updated(forged))
