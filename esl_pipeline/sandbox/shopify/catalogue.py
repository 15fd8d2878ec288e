"""What there is to sell: products and variants of a made-up grocery, drawn from a source of randomness. No I/O."""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation

LOCATION_ID = 71_203_456_789
"""Where the shop's shelves are; the stock of webhooks and labels is the one here."""
WAREHOUSE_ID = 71_203_456_790
MAX_VARIANTS = 2_048
"""As many as Shopify allows a product to have."""

# What Shopify writes for a product without options.
_NO_OPTIONS = ("Title", ("Default Title",))

_EXACT_IN_DOUBLE = 2**53


@dataclass(frozen=True, slots=True)
class Photo:
    """An image of a product."""

    id: int
    src: str
    alt: str | None


@dataclass(frozen=True, slots=True)
class Measure:
    """How much is in it, and the amount that its unit price is for; units and types by Shopify's names."""

    type: str
    value: float
    unit: str
    reference_value: int
    reference_unit: str
    units_per_reference: int

    def unit_price(self, price: str | None) -> str | None:
        """The price of the reference amount, with two decimals; None when the price is no number."""
        try:
            whole = Decimal(price or "")
        except InvalidOperation:
            return None
        if not whole.is_finite():
            return None
        share = Decimal(self.reference_value * self.units_per_reference) / Decimal(str(self.value))
        return str((whole * share).quantize(Decimal("0.01"), ROUND_HALF_UP))


@dataclass(slots=True)
class Level:
    """The stock of a variant at one location."""

    available: int
    updated_at: datetime


@dataclass(slots=True)
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
    measure: Measure | None
    levels: dict[int, Level]
    """By location."""
    created_at: datetime
    updated_at: datetime

    @property
    def stock(self) -> int:
        """What can be sold, over all locations."""
        return sum(level.available for level in self.levels.values())

    @property
    def title(self) -> str:
        return " / ".join(self.options)


@dataclass(slots=True)
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
    gift_card: bool = False
    variants: list[Variant] = field(default_factory=list)

    @property
    def handle(self) -> str:
        """The product's name in addresses."""
        return f"product-{self.id}"


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
    ("Bakery", "Hill & Hollow", _PIECES, ("Croissant 🥐", "Cinnamon roll", "Bagel <em>sesame</em> & more")),
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
_FINISHES = ("blank", "brüniert", "edelstahl", "messing", "schwarz", "verzinkt", "vernickelt", "weiß")
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

    def gift_card(self, at: datetime) -> Product:
        """A gift card of three amounts: sold, but not put on a shelf."""
        product = self.product(
            at,
            "Geschenkkarte",
            vendor="Corner Market",
            product_type="Gift Card",
            option_names=["Wert"],
            options=[("10 €",), ("25 €",), ("50 €",)],
        )
        product.gift_card = True
        for variant in product.variants:
            variant.barcode = None
        return product

    def bolt(self, at: datetime) -> Product:
        """One product with 2,048 variants, as many as Shopify allows: most are not in its webhooks."""
        options = [
            (f"M{size}", f"{length} mm", finish)
            for size in range(1, 17)
            for length in range(10, 170, 10)
            for finish in _FINISHES
        ]
        return self.product(
            at,
            "Schraube, einzeln",
            vendor="Clear Day",
            product_type="Household",
            option_names=["Gewinde", "Länge", "Ausführung"],
            options=options,
        )

    def warehouse(self, at: datetime, variants: int) -> Iterator[Product]:
        """Products with exactly so many variants in all, 1 to 30 each: the groceries' names, numbered."""
        names = [(kind, vendor, name) for kind, vendor, _, names in _GOODS for name in names]
        number = 0
        while variants:
            kind, vendor, name = names[number % len(names)]
            count = min(variants, self._rng.randrange(1, 31))
            yield self.product(
                at,
                f"{name} {number + 1}",
                vendor=vendor,
                product_type=kind,
                option_names=["Size"],
                options=[(f"{size * 50} g",) for size in range(1, count + 1)],
            )
            number, variants = number + 1, variants - count

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
            measure=measure_of(options[-1]),
            levels={
                LOCATION_ID: Level(rng.randrange(0, 200), at),
                # Not drawn: that would make other products of the same seed.
                WAREHOUSE_ID: Level(number % 60, at),
            },
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


_SIZE = re.compile(r"([0-9]+(?:,[0-9]+)?) (g|l)")
_UNITS = {"g": ("WEIGHT", "G", "KG", 1000), "l": ("VOLUME", "L", "L", 1)}


def measure_of(size: str) -> Measure | None:
    """The measure of a size in grams or litres, for a unit price per kilogram or litre: "250 g", "0,33 l"."""
    found = _SIZE.fullmatch(size)
    if found is None:
        return None
    kind, unit, reference, factor = _UNITS[found[2]]
    return Measure(kind, float(found[1].replace(",", ".")), unit, 1, reference, factor)


def price_text(cents: int) -> str:
    """Cents as Shopify writes a price: 249 -> "2.49"."""
    return f"{cents // 100}.{cents % 100:02d}"


def check_digit(digits: str) -> str:
    """The GS1 modulo-10 check digit of the digits before it."""
    total = sum(
        int(digit) * weight for digit, weight in zip(reversed(digits), (3, 1) * len(digits), strict=False)
    )
    return str(-total % 10)
