"""A pretend Shopify shop: a made-up grocery whose products change, and the webhooks it sends about them.

Three parts that know each other in one direction only: the catalogue (what there is to sell), the shop (what
Shopify says now, and how it changes) and the webhooks (bodies, ids and headers in Shopify's shape, API version
2026-04). Everything is drawn from a seed: the same seed and start give the same bytes. No I/O.
"""

import base64
import hmac
import json
import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

API_VERSION = "2026-04"
DOMAIN = "corner-market.myshopify.com"
LOCATION_ID = 71_203_456_789
MAX_VARIANTS_IN_BODY = 100

# What Shopify writes for a product without options.
_NO_OPTIONS = ("Title", ("Default Title",))

# Shopify writes the shop's own offset into the times of a product.
_SHOP_ZONE = timezone(timedelta(hours=-5))
_EXACT_IN_DOUBLE = 2**53

Json = dict[str, Any]


# --- the catalogue


@dataclass(frozen=True)
class Photo:
    """An image of a product."""

    id: int
    src: str
    alt: str | None


@dataclass
class Variant:
    """One sellable variant; `options` are its values of the product's options."""

    id: int
    inventory_item_id: int
    options: tuple[str, ...]
    price: str | None
    compare_at_price: str | None
    barcode: str | None
    sku: str | None
    photo: Photo | None
    stock: int
    created_at: datetime
    updated_at: datetime

    @property
    def title(self) -> str:
        return " / ".join(self.options)


@dataclass
class Product:
    """A product with its variants, in the order of their positions."""

    id: int
    title: str
    vendor: str
    product_type: str
    tags: tuple[str, ...]
    options: dict[str, int]
    """Names of the options to their ids."""
    photos: list[Photo]
    created_at: datetime
    updated_at: datetime
    status: str = "active"
    variants: list[Variant] = field(default_factory=list)


_GRAMS = ("100 g", "250 g", "500 g")
_LITRES = ("0,33 l", "0,75 l", "1,5 l")
_PIECES = ("1 ×", "6 ×", "12 ×")

# (type, vendor, sizes, names): each name is a product. Makers and goods are invented.
_GOODS: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("Brot", "Backhaus Mühlental", _PIECES, ("Roggenmischbrot", "Dinkelbrötchen", "Laugenstange „Süd“")),
    (
        "Getränke",
        "Kelterei Ährengold",
        _LITRES,
        ("Apfelsaft naturtrüb", "Rhabarberschorle", "Holunderblütensirup"),
    ),
    ("Aufstrich", "Grünhof", _GRAMS, ("Kürbiskernpesto", "Räuchertofu-Creme", "Süßer Senf")),
    ("Feinkost", "Grünhof", _GRAMS, ("Weißkrautsalat", "Käsespätzle", "Öl & Essig: Gewürzgurken")),
    (
        "Fromages",
        "La Ferme d’Élise",
        _GRAMS,
        ("Crème fraîche épaisse", "Comté affiné 18 mois", "Chèvre cendré"),
    ),
    ("Épicerie", "Maison Garrigue", _GRAMS, ("Confiture de mûres", "Pâtes aux cèpes", "Crêpes dentelle")),
    ("Boissons", "Source Haute", _LITRES, ("Limonade à l’ancienne", "Cidre brut", "Eau gazeuse")),
    ("Surgelés", "Maison Garrigue", _PIECES, ("Bûche glacée", "Gâteau basque", "Petits pâtés")),
    ("Nabiał", "Mleczarnia Łąka", _GRAMS, ("Twaróg półtłusty", "Śmietana 18%", "Żółty ser wędzony")),
    ("Pieczywo", "Piekarnia Źródło", _PIECES, ("Chleb żytni", "Bułka maślana", "Pączek z różą")),
    ("Przetwory", "Spiżarnia Babci", _GRAMS, ("Ogórki kiszone", "Powidła śliwkowe", "Ćwikła z chrzanem")),
    ("Napoje", "Spiżarnia Babci", _LITRES, ("Kompot z jabłek", "Sok z czarnej porzeczki", "Kwas chlebowy")),
    ("Τυριά", "Αγρόκτημα Ελιά", _GRAMS, ("Φέτα βαρελίσια", "Γραβιέρα Νάξου", "Κεφαλοτύρι")),
    ("Ελιές", "Αγρόκτημα Ελιά", _GRAMS, ("Ελιές Καλαμών", "Πάστα ελιάς", "Ντολμαδάκια")),
    ("Μέλι", "Μελισσώνας", _GRAMS, ("Μέλι θυμαρίσιο", "Μέλι πεύκου", "Χαλβάς με κακάο")),
    ("麺類", "山の味本舗", _GRAMS, ("讃岐うどん", "十割そば", "味噌ラーメン")),
    ("調味料", "山の味本舗", _LITRES, ("丸大豆しょうゆ", "ゆずポン酢", "みりん風調味料")),
    ("お茶", "茶園みどり", _GRAMS, ("煎茶", "ほうじ茶", "玄米茶")),
    ("菓子", "茶園みどり", _PIECES, ("抹茶ようかん", "きなこ餅 🍡", "せんべい")),
    ("حلويات", "بيت النخيل", _GRAMS, ("تمر مجدول", "حلاوة طحينية", "معمول بالفستق")),
    ("بهارات", "بيت النخيل", _GRAMS, ("زعتر بلدي", "سماق مطحون", "كمون حب")),
    ("معلبات", "سوق الزيتون", _GRAMS, ("حمص بالطحينة", "متبل باذنجان", "مخلل لفت")),
    (
        "Produce",
        "Hill & Hollow",
        _PIECES,
        ("Avocado 🥑", "Pink Lady-ish apples 🍎", "Mango “ready to eat” 🥭"),
    ),
    ("Bakery", "Hill & Hollow", _PIECES, ("Croissant 🥐", "Cinnamon roll", "Bagel <sesame> & more")),
    ("Snacks", "Tide Crisps", _GRAMS, ("Sea-salt crisps", "Chilli peanuts 🌶️", "Popcorn 50/50")),
    ("Drinks", "Fizz Works", _LITRES, ("Ginger beer", "Cold brew ☕", "Tonic 'No. 7'")),
    ("Household", "Clear Day", _PIECES, ("Sponge", "Bin bags 35 l", "Candles, unscented")),
    ("Frozen", "North Pantry", _GRAMS, ("Peas", "Blueberries 🫐", "Fish fingers")),
    ("Cereal", "North Pantry", _GRAMS, ("Rolled oats", "Muesli — no sugar", "Granola, maple")),
    ("Dairy", "Lowfield", _LITRES, ("Whole milk", "Kefir", "Oat drink")),
    ("Conservas", "La Ría", _GRAMS, ("Mejillones en escabeche", "Piñones", "Jalapeños")),
    ("Vinos", "Bodega Añil", _LITRES, ("Tinto joven", "Albariño", "Moscatel pequeño")),
    ("Dolci", "Forno Nonna Pia", _GRAMS, ("Cantucci", "Pandoro più", "Amaretti morbidi")),
    ("Pasta", "Forno Nonna Pia", _GRAMS, ("Orecchiette", "Tagliatelle all’uovo", "Gnocchi di patate")),
    ("Бакалея", "Тёплая печь", _GRAMS, ("Гречка ядрица", "Сушки с маком", "Варенье из крыжовника")),
    ("Напитки", "Тёплая печь", _LITRES, ("Морс клюквенный", "Квас", "Иван-чай")),
    ("Kaffe", "Fjordrosteriet", _GRAMS, ("Mørkristet kaffe", "Kokekaffe", "Espressobønner")),
    ("Brød", "Fjordrosteriet", _PIECES, ("Skolebrød", "Knekkebrød", "Lefse")),
    ("茶叶", "云岭茶庄", _GRAMS, ("茉莉花茶", "普洱熟茶", "铁观音")),
    ("मसाले", "हरा बाज़ार", _GRAMS, ("गरम मसाला", "हल्दी पाउडर", "इलायची")),
)
_TEAS = (
    "Assam",
    "Ceylon",
    "Darjeeling",
    "Genmaicha",
    "Kamille",
    "Keemun",
    "Minze",
    "Oolong",
    "Rooibos",
    "Sencha",
)
_TEA_WEIGHTS = ("25 g", "50 g", "75 g", "100 g", "150 g", "200 g", "250 g", "300 g", "400 g", "500 g")


class Catalogue:
    """Makes products from a source of randomness; no code is given twice."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._numbers: set[int] = set()
        self._codes: set[str] = set()

    def groceries(self, at: datetime) -> Iterator[Product]:
        """120 products with one to three variants, all different."""
        for product_type, vendor, sizes, names in _GOODS:
            for name in names:
                count = self._rng.choice((1, 2, 2, 3))
                option, values = ("Size", sizes[:count]) if count > 1 else _NO_OPTIONS
                yield self.product(
                    at,
                    name,
                    vendor=vendor,
                    product_type=product_type,
                    option_names=[option],
                    options=[(value,) for value in values],
                )

    def loose_tea(self, at: datetime) -> Product:
        """One product with 100 variants, as many as Shopify puts into a body."""
        options = [(tea, weight) for tea in _TEAS for weight in _TEA_WEIGHTS]
        return self.product(
            at,
            "Tee, lose",
            vendor="Teekontor Süd",
            product_type="Tee",
            option_names=["Sorte", "Gewicht"],
            options=options,
        )

    def product(
        self,
        at: datetime,
        title: str,
        *,
        vendor: str,
        product_type: str,
        option_names: Sequence[str],
        options: Sequence[tuple[str, ...]],
    ) -> Product:
        """An active product, a variant for each of `options`, dearer from one size (the last option) to the next."""
        rng = self._rng
        # Shopify's own samples have ids beyond 2^53; today's real ones have 13 digits.
        huge = rng.random() < 0.05
        photos = [self._photo(rng.choice((title, None))) for _ in range(rng.choice((0, 1, 1, 2)))]
        product = Product(
            id=self._number(_EXACT_IN_DOUBLE * 10, 2**62) if huge else self._number(8 * 10**12, 9 * 10**12),
            title=title,
            vendor=vendor,
            product_type=product_type,
            tags=(product_type.lower(), rng.choice(("bio", "regional", "new"))),
            options={name: self._number(10**13, 2 * 10**13) for name in option_names},
            photos=photos,
            created_at=at,
            updated_at=at,
        )
        cents, step = rng.randrange(49, 900), rng.randrange(20, 300)
        sizes = list(dict.fromkeys(values[-1] for values in options))
        for values in options:
            product.variants.append(
                self._variant(
                    at,
                    values,
                    cents + step * sizes.index(values[-1]),
                    huge=huge,
                    photo=rng.choice([None, *photos[1:]]),
                )
            )
        return product

    def code(self) -> str:
        """A GTIN-13 with its right check digit, from the ranges that GS1 leaves to a shop's own use."""
        while True:
            prefix = self._rng.choice(("20", "29", "020"))
            digits = prefix + "".join(self._rng.choices("0123456789", k=12 - len(prefix)))
            code = digits + check_digit(digits)
            if code not in self._codes:
                self._codes.add(code)
                return code

    def _variant(
        self, at: datetime, options: tuple[str, ...], cents: int, *, huge: bool, photo: Photo | None
    ) -> Variant:
        rng = self._rng
        number = self._number(10**12, 10**13)
        return Variant(
            id=self._number(_EXACT_IN_DOUBLE * 10, 2**62) if huge else 40 * 10**12 + number,
            inventory_item_id=self._number(45 * 10**12, 46 * 10**12),
            options=options,
            price=price_text(cents),
            compare_at_price=price_text(cents + 50) if rng.random() < 0.1 else None,
            barcode=self.code(),
            sku=rng.choice((f"CM-{number % 10**6:06d}", f"CM-{number % 10**6:06d}", "", None)),
            photo=photo,
            stock=rng.randrange(0, 200),
            created_at=at,
            updated_at=at,
        )

    def _photo(self, alt: str | None) -> Photo:
        number = self._number(30 * 10**12, 40 * 10**12)
        return Photo(
            number, f"https://cdn.shopify.com/s/files/1/0712/0345/files/{number}.jpg?v=1767225600", alt
        )

    def _number(self, low: int, high: int) -> int:
        while (number := self._rng.randrange(low, high)) in self._numbers:
            pass
        self._numbers.add(number)
        return number


def price_text(cents: int) -> str:
    """Cents as Shopify writes a price: 249 -> "2.49"."""
    return f"{cents // 100}.{cents % 100:02d}"


def check_digit(digits: str) -> str:
    """The GS1 modulo-10 check digit of the digits before it."""
    total = sum(
        int(digit) * weight for digit, weight in zip(reversed(digits), (3, 1) * len(digits), strict=False)
    )
    return str(-total % 10)


# --- the shop


class Shop:
    """What Shopify says now. Every change moves the shop's clock on and gives the product a newer `updated_at`.

    `start` (aware) is the shop's first moment; the clock goes on by 1 to 6 s a change.
    """

    def __init__(self, seed: int, start: datetime) -> None:
        self.rng = random.Random(seed)  # noqa: S311 (repeatable on purpose, guards nothing)
        self.catalogue = Catalogue(self.rng)
        self.products: dict[int, Product] = {}
        self.now = start.astimezone(_SHOP_ZONE).replace(microsecond=0)

    def add(self, product: Product) -> None:
        """Put a product on sale."""
        self.products[product.id] = product
        self.touch(product)
        product.created_at = product.updated_at
        for variant in product.variants:
            variant.created_at = variant.updated_at = product.updated_at

    def touch(self, product: Product, variant: Variant | None = None) -> None:
        """A product was ordered, or saved unchanged: only its time changes (and the variant's)."""
        self.now += timedelta(seconds=self.rng.randrange(1, 7))
        product.updated_at = self.now
        if variant is not None:
            variant.updated_at = self.now

    def rename(self, product: Product, title: str) -> None:
        product.title = title
        self.touch(product)

    def set_status(self, product: Product, status: str) -> None:
        """active, draft, archived or unlisted."""
        product.status = status
        self.touch(product)

    def set_price(self, product: Product, variant: Variant, price: str | None) -> None:
        variant.price = price
        self.touch(product, variant)

    def set_barcode(self, product: Product, variant: Variant, barcode: str | None) -> None:
        variant.barcode = barcode
        self.touch(product, variant)

    def set_stock(self, product: Product, variant: Variant, available: int) -> None:
        variant.stock = available
        self.touch(product, variant)

    def remove_variant(self, product: Product, variant: Variant) -> None:
        product.variants.remove(variant)
        self.touch(product)

    def delete(self, product: Product) -> None:
        del self.products[product.id]
        self.touch(product)


# --- the webhooks


@dataclass(frozen=True)
class Delivery:
    """One webhook as Shopify sends it, but for the signature. `triggered_at` is text as in the header."""

    topic: str
    body: bytes
    shop: str
    webhook_id: str
    event_id: str
    triggered_at: str
    api_version: str = API_VERSION

    def headers(self, secret: str) -> dict[str, str]:
        """The headers of the request, signed with the app's client secret."""
        return {
            "Content-Type": "application/json",
            "X-Shopify-Topic": self.topic,
            "X-Shopify-Shop-Domain": self.shop,
            "X-Shopify-API-Version": self.api_version,
            "X-Shopify-Webhook-Id": self.webhook_id,
            "X-Shopify-Event-Id": self.event_id,
            "X-Shopify-Triggered-At": self.triggered_at,
            "X-Shopify-Hmac-Sha256": sign(self.body, secret),
        }


def sign(body: bytes, secret: str) -> str:
    """X-Shopify-Hmac-Sha256: base64 of the HMAC-SHA256 of the raw body."""
    return base64.b64encode(hmac.digest(secret.encode(), body, "sha256")).decode()


class Webhooks:
    """Makes the deliveries that tell of a shop's present state; each has an id of its own."""

    def __init__(self, shop: Shop, domain: str = DOMAIN) -> None:
        self._shop, self._domain = shop, domain

    def created(self, product: Product) -> Delivery:
        return self._delivery("products/create", product_body(product), product.updated_at)

    def updated(self, product: Product) -> Delivery:
        return self._delivery("products/update", product_body(product), product.updated_at)

    def deleted(self, product: Product) -> Delivery:
        return self._delivery("products/delete", {"id": as_double(product.id)}, product.updated_at)

    def level(self, variant: Variant) -> Delivery:
        return self._delivery("inventory_levels/update", level_body(variant), variant.updated_at)

    def new_id(self) -> str:
        """A webhook or event id."""
        return str(uuid.UUID(int=self._shop.rng.getrandbits(128), version=4))

    def _delivery(self, topic: str, body: Json, at: datetime) -> Delivery:
        nanoseconds = self._shop.rng.randrange(10**9)
        return Delivery(
            topic=topic,
            body=json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode(),
            shop=self._domain,
            webhook_id=self.new_id(),
            event_id=self.new_id(),
            triggered_at=f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z",
        )


def as_double(number: int) -> int:
    """An id as JavaScript prints it: exact up to 2^53, beyond that rounded as in Shopify's own samples."""
    return int(Decimal(repr(float(number))))


def product_body(product: Product) -> Json:
    """The body of products/create and products/update. Only the first 100 variants are in it in full."""
    newest_first = sorted(product.variants, key=lambda variant: variant.updated_at, reverse=True)
    images = [_image(product, photo, position) for position, photo in enumerate(product.photos, 1)]
    return {
        "admin_graphql_api_id": _gid("Product", product.id),
        "body_html": f"<p>{product.vendor}</p>",
        "created_at": _time(product.created_at),
        "handle": f"product-{product.id}",
        "id": as_double(product.id),
        "product_type": product.product_type,
        "published_at": None if product.status == "draft" else _time(product.created_at),
        "template_suffix": None,
        "title": product.title,
        "updated_at": _time(product.updated_at),
        "vendor": product.vendor,
        "status": product.status,
        "published_scope": "web",
        "tags": ", ".join(product.tags),
        "variants": [
            _variant(product, variant, position)
            for position, variant in enumerate(product.variants[:MAX_VARIANTS_IN_BODY], 1)
        ],
        "options": [
            {
                "name": name,
                "id": option_id,
                "product_id": as_double(product.id),
                "position": position,
                "values": list(dict.fromkeys(variant.options[position - 1] for variant in product.variants)),
            }
            for position, (name, option_id) in enumerate(product.options.items(), 1)
        ],
        "images": images,
        "image": images[0] if images else None,
        "media": [_media(product, photo, position) for position, photo in enumerate(product.photos, 1)],
        "variant_gids": [
            {
                "admin_graphql_api_id": _gid("ProductVariant", variant.id),
                "updated_at": f"{variant.updated_at.astimezone(UTC):%Y-%m-%dT%H:%M:%S}.000Z",
            }
            for variant in newest_first
        ],
        "has_variants_that_requires_components": False,
        "category": None,
    }


def level_body(variant: Variant) -> Json:
    """The body of inventory_levels/update."""
    return {
        "inventory_item_id": variant.inventory_item_id,
        "location_id": LOCATION_ID,
        "available": variant.stock,
        "updated_at": _time(variant.updated_at),
        "admin_graphql_api_id": f"{_gid('InventoryLevel', LOCATION_ID)}?inventory_item_id={variant.inventory_item_id}",
    }


def _variant(product: Product, variant: Variant, position: int) -> Json:
    first, second, third = (*variant.options, None, None)[:3]
    return {
        "admin_graphql_api_id": _gid("ProductVariant", variant.id),
        "barcode": variant.barcode,
        "compare_at_price": variant.compare_at_price,
        "created_at": _time(variant.created_at),
        "id": as_double(variant.id),
        "inventory_policy": "deny",
        "position": position,
        "price": variant.price,
        "product_id": as_double(product.id),
        "sku": variant.sku,
        "taxable": True,
        "title": variant.title,
        "updated_at": _time(variant.updated_at),
        "option1": first,
        "option2": second,
        "option3": third,
        "image_id": variant.photo.id if variant.photo else None,
        "inventory_item_id": variant.inventory_item_id,
        "inventory_quantity": variant.stock,
        "old_inventory_quantity": variant.stock,
    }


def _image(product: Product, photo: Photo, position: int) -> Json:
    return _picture(product, photo, position, "ProductImage") | {
        "src": photo.src,
        "width": 800,
        "height": 600,
    }


def _media(product: Product, photo: Photo, position: int) -> Json:
    return _picture(product, photo, position, "MediaImage") | {
        "media_content_type": "IMAGE",
        "status": "READY",
        "preview_image": {"width": 800, "height": 600, "src": photo.src, "status": "READY"},
    }


def _picture(product: Product, photo: Photo, position: int, kind: str) -> Json:
    return {
        "id": photo.id,
        "product_id": as_double(product.id),
        "position": position,
        "created_at": _time(product.created_at),
        "updated_at": _time(product.created_at),
        "alt": photo.alt,
        "variant_ids": [as_double(variant.id) for variant in product.variants if variant.photo is photo],
        "admin_graphql_api_id": _gid(kind, photo.id),
    }


def _gid(kind: str, number: int) -> str:
    return f"gid://shopify/{kind}/{number}"


def _time(at: datetime) -> str:
    return at.isoformat()
