"""What a hostile shop with a valid signature may send, drawn from a `random.Random`: pure, the same for the same seed.

A delivery begins as an ordinary body and is then spoilt in a few places, or it is no body at all. Numbers that JSON
itself allows and Python does not write (1e400, -0, 30 digits) go in as marks that are replaced in the text.
"""

import json
import random
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from esl_pipeline.labels.lengths import LENGTHS, MOST_PARTS, MOST_VARIANTS
from esl_pipeline.sources.shopify.deliveries import LIFECYCLE_TOPICS, TOPICS
from esl_pipeline_tests.world import level, product, variant, when

Body = dict[str, Any]

BODY_LIMIT = 5_000_000
"""The receiver's, as it is set where nobody sets it."""

_NASTY = (
    *(
        "\x00",
        "a\x00b",
        "\\u0000",
        "\ud800",
        "\udfff\ud800",
        "\ufffe\uffff",
        "\x1b]0;owned\x07",
        "\x9b2J",
        "\x7f\x08",
    ),
    *(
        "\u202egnihton",
        "\u2066isolate\u2069",
        "\u200b\u200d\ufeff",
        "\u2028\u2029",
        "a\r\n\tb",
        "e" + "\u0301" * 60,
    ),
    *("👩‍👩‍👧‍👦", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🇩🇪", "ﷺ", "İıſß", "Ａ１", "𝕏", "日本語", "שלום", "مرحبا"),
    *(
        "'",
        '"',
        "\\",
        "'; drop table esl.labels; --",
        "$$;select 1;$$",
        "%s %(x)s %n",
        "E'\\x27'",
        "`id`",
        "$(id)",
    ),
    *(
        "<script>alert(1)</script>",
        "<b",
        "<!--",
        "]]>",
        "&amp;&#0;&lt;",
        "<a href='x'>",
        "<br/>",
        "{{7*7}}",
        "${7*7}",
    ),
    *("{title}", "{", "}", "{{", "}}", "[", "]", "[{option1}]", "{0}", "{__class__}", "%{x}", "\\N{BULLET}"),
    *(
        "=1+1",
        "@SUM(1)",
        "+1",
        "-1",
        "null",
        "None",
        "NaN",
        "true",
        "undefined",
        "[object Object]",
        "",
        " ",
        "  \t ",
    ),
    *(
        "../../etc/passwd",
        "http://127.0.0.1:5432/",
        "file:///etc/passwd",
        "https://cdn.shopify.com/a.png",
        "//x",
    ),
)
_NUMBERS = (
    *(
        "1.00",
        "1,00",
        "1.234,56",
        "1,234.56",
        "1e5",
        "1E-5",
        "-0",
        "-0.00",
        "0.00",
        "00001",
        "+1",
        "1.",
        ".5",
        "1_000",
    ),
    *(
        "٣٫٥٠",
        "１２．００",
        "९",
        "²",
        "½",
        "Ⅷ",
        "0x10",
        "0b1",
        "0o7",
        "Infinity",
        "-Infinity",
        "NaN",
        "1e400",
        "1e-400",
    ),
    *(
        "99999999.99",
        "100000000.00",
        "0.001",
        "0.005",
        "1.005",
        "2.675",
        "9" * 31,
        "9" * 32,
        "9" * 33,
        "1 000,00",
    ),
    *("$1.00", "1.00 EUR", "€1", "free", "1.00\x00", "1.00\n", "−1.00", "1.00;", "1.00'", "(1.00)"),
)
# As JSON writes them.
_RAW = (
    "1e400",
    "-1e400",
    "-0",
    "1E5",
    "0.1e-7",
    "1" * 30,
    "-" + "9" * 19,
    "9223372036854775808",
    "1.10",
    "5e-324",
)
_MARK = "@@raw:"
_TIMES = (
    *(
        "",
        "yesterday",
        "2026-01-01",
        "2026-01-01T00:00:00",
        "0000-00-00T00:00:00Z",
        "9999-12-31T23:59:59+14:00",
    ),
    *(
        "0001-01-01T00:00:00-23:59",
        "2026-13-45T99:99:99Z",
        "2026-01-01T00:00:00.123456789Z",
        "-1",
        "1767225600",
    ),
    *("2999-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "2026-06-30T23:59:60Z", "2026-01-01T00:00:00+99:99"),
)
_LENGTHS = sorted({n + d for n in {*LENGTHS.values(), 500} for d in (-1, 0, 1)})
# Those that are read more often than the others.
_OF_A_PRODUCT = (
    *("title", "vendor", "tags", "status") * 3,
    *("updated_at", "published_at", "created_at", "handle", "product_type", "admin_graphql_api_id", "id"),
    *("body_html", "image", "images", "options", "variants", "variant_gids"),
)
_OF_A_VARIANT = (
    *("title", "barcode", "sku", "price", "compare_at_price", "option1") * 3,
    *("option2", "option3", "inventory_item_id", "image_id", "admin_graphql_api_id", "created_at", "id"),
    *("weight", "grams", "taxable", "position", "product_id"),
)
_ODD_HEADERS: Mapping[str, tuple[str, ...]] = {
    "webhook_id": ("", "x" * 255, "x" * 256, "'; --", "../../x", "a b"),
    "event_id": ("", "x" * 300, "{}"),
    "api_version": ("", "2026-04'", "x" * 40),
    "triggered_at": ("", "yesterday", "2026-01-01", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"),
    "test": ("true", "True", "maybe"),
}


@dataclass(frozen=True)
class Taken:
    """What other shops have told by now, as far as a hostile shop can know and repeat it."""

    products: Sequence[int]
    variants: Sequence[int]
    codes: Sequence[str]
    webhook_ids: Sequence[str]
    domains: Sequence[str]


@dataclass(frozen=True)
class Delivery:
    """One webhook: `headers` by name without X-Shopify-, which replace or add to the ordinary ones; `answers` are those
    that it may get at the end."""

    topic: str
    raw: bytes
    what: str
    headers: Mapping[str, str | None] = field(default_factory=dict)
    answers: frozenset[int] = frozenset({200})

    def __repr__(self) -> str:
        head = self.raw[:300].decode("utf-8", "backslashreplace")
        return f"<{self.what} {self.topic} {dict(self.headers)} {len(self.raw):,} bytes: {head!a}>"


class Hostile:
    """Draws deliveries of one shop whose own products are numbered from `first`."""

    def __init__(self, rng: random.Random, first: int) -> None:
        self._rng, self._first = rng, first

    def delivery(self, version: int, taken: Taken) -> Delivery:
        """The next one. version: its place in time."""
        kinds: Sequence[tuple[int, Callable[[int, Taken], Delivery]]] = (
            (50, self._spoilt_product),
            (10, self._many),
            (10, self._taken),
            (8, self._level),
            (5, self._shape),
            (5, self._nested),
            (5, self._bytes),
            (4, self._deleted),
            (3, self._lifecycle),
            (3, self._headers),
        )
        (draw,) = self._rng.choices([kind for _, kind in kinds], [weight for weight, _ in kinds])
        drawn = draw(version, taken)
        if len(drawn.raw) > BODY_LIMIT:
            return Delivery(drawn.topic, drawn.raw, drawn.what, drawn.headers, frozenset({413}))
        return drawn

    # --- parts

    def _text(self) -> str:
        rng = self._rng
        match rng.randrange(8):
            case 0:
                return "".join(rng.choice(_NASTY) for _ in range(rng.randint(2, 6)))
            case 1:  # at the limits of the columns
                return rng.choice((*"aé😀\u0301", "<b>", "&amp;"))[0] * rng.choice(_LENGTHS)
            case 2:
                huge = rng.choice((1_000, 10_000, 100_000, 100_000, 1_000_000))
                return (rng.choice(_NASTY) or "x") * max(1, huge // 8)
            case 3:
                return "".join(chr(rng.randrange(1, 0x3000)) for _ in range(rng.randint(1, 40)))
            case 4:
                return "".join(rng.choices(string.printable, k=rng.randint(1, 60)))
            case _:
                return rng.choice(_NASTY)

    def _value(self, depth: int = 0) -> Any:
        """Anything that JSON can say."""
        rng = self._rng
        match rng.randrange(12):
            case 0:
                return None
            case 1:
                return rng.choice((True, False))
            case 2:
                return rng.choice((0, -1, 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 10**19, 0.1, -1.5))
            case 3:
                return _MARK + rng.choice(_RAW) + "@@"
            case 4:
                return rng.choice(_TIMES)
            case 5 if depth < 3:
                return [self._value(depth + 1) for _ in range(rng.randint(0, 4))]
            case 6 if depth < 3:
                return {self._text()[:50]: self._value(depth + 1) for _ in range(rng.randint(0, 4))}
            case 7 | 8:
                return rng.choice(_NUMBERS)
            case _:
                return self._text()

    def _id(self, taken: Taken) -> Any:
        rng = self._rng
        odd = (0, -1, 2**63 - 1, 2**63, 10**20, 1.5, "1", " 1", "1e3", "", None, True, [1], {"id": 1}, "٣")
        return rng.choice((rng.choice(odd), rng.choice(taken.products), rng.choice(taken.variants)))

    def _gid(self, taken: Taken) -> Any:
        number, rng = self._id(taken), self._rng
        kind = rng.choice(("Product", "ProductVariant", "Shop", "'", "Product/1"))
        return rng.choice(
            (f"gid://shopify/{kind}/{number}", f"gid://shopify/{kind}/{number}\n", number, "gid://")
        )

    def _own_variant(self, number: int, taken: Taken) -> Body:
        rng = self._rng
        code = rng.choice(("auto", "auto", rng.choice(taken.codes), rng.choice(_NUMBERS), self._text()[:300]))
        price = rng.choice(("1.00", f"{rng.randint(1, 99)}.{rng.randint(0, 99):02}", rng.choice(_NUMBERS)))
        return variant(number, code, price)

    def _own(self, version: int, taken: Taken, variants: int = 1) -> Body:
        """An ordinary body, and one of few products, so that they change."""
        number = self._first + 10_000 * self._rng.randint(0, 11)
        return product(number, version, [self._own_variant(number + n, taken) for n in range(variants)])

    # --- deliveries

    def _spoilt_product(self, version: int, taken: Taken) -> Delivery:
        rng = self._rng
        body = self._own(version, taken, rng.choice((1, 1, 2, 3, 12)))
        for _ in range(rng.randint(1, 5)):
            target, names = (
                (body, _OF_A_PRODUCT)
                if rng.random() < 0.5
                else (
                    rng.choice(body["variants"])
                    if isinstance(body.get("variants"), list) and body["variants"]
                    else body,
                    _OF_A_VARIANT,
                )
            )
            if not isinstance(target, dict):
                continue
            name = rng.choice(names)
            match rng.randrange(8):
                case 0:
                    target.pop(name, None)
                case 1:
                    target[self._text()[:200]] = self._value()
                case 2 if name.endswith("id"):
                    target[name] = self._gid(taken) if "gid" in name or "graphql" in name else self._id(taken)
                case 3 if "price" in name:
                    target[name] = rng.choice(_NUMBERS)
                case 4 if name.endswith("_at"):
                    target[name] = rng.choice(_TIMES)
                case 5 | 6:
                    target[name] = self._text()
                case _:
                    target[name] = self._value()
        return self._said(self._product_topic(), body, "spoilt")

    def _many(self, version: int, taken: Taken) -> Delivery:
        """Too much of something, or as much as there may be."""
        rng = self._rng
        body = self._own(version, taken)
        number = body["id"]
        match rng.randrange(8):
            case 0:  # up to what a product may have
                count = rng.choice((99, 100, 101, 250, 250, MOST_VARIANTS, MOST_VARIANTS + 1))
                body = product(number, version, [variant(number + n, price="2.00") for n in range(count)])
            case 1:
                same = self._own_variant(number, taken)
                body["variants"] = [same] * rng.choice((2, 100, 3_000))
            case 2:
                body["options"] = [{"name": self._text()[:99], "values": ["v"] * 50}] * rng.choice(
                    (4, 400, 2_000)
                )
            case 3:
                body["tags"] = ", ".join(f"tag{n}" for n in range(rng.choice((251, 2_000, 60_000))))
            case 4:
                count = rng.choice((250, 5_000))
                body["images"] = [
                    {"id": n, "src": f"https://cdn.shopify.com/{n}.png", "variant_ids": [number] * 5}
                    for n in range(count)
                ]
            case 5:
                text = self._text() * 2
                body["variants"] = [
                    self._own_variant(number + n, taken)
                    | dict.fromkeys(("title", "option1", "sku"), text[:60_000])
                    for n in range(20)
                ]
            case 6:
                body["variants"] = [{}] * rng.choice((1, 300, MOST_PARTS, MOST_PARTS + 1))
            case _:
                body["variant_gids"] = [
                    {"admin_graphql_api_id": f"gid://shopify/ProductVariant/{number + n}"}
                    for n in range(rng.choice((1, 500, MOST_VARIANTS + 1)))
                ]
        return self._said(self._product_topic(), body, "many")

    def _taken(self, version: int, taken: Taken) -> Delivery:
        """With the ids of things that are another shop's: products, variants, inventory items, deliveries."""
        rng = self._rng
        theirs, their_variant = rng.choice(taken.products), rng.choice(taken.variants)
        headers = {"webhook_id": rng.choice(taken.webhook_ids)} if rng.random() < 0.3 else {}
        code, price = rng.choice((*taken.codes[-3:], "auto")), rng.choice(("0.01", "66.66", None))
        match rng.randrange(6):
            case 0:
                body = product(theirs, version, [variant(their_variant, code, price)])
            case 1:  # one's own product, another's variant
                body = self._own(version, taken)
                body["variants"] = [variant(their_variant, code, price)]
            case 2:  # one's own variant, another's inventory item
                body = self._own(version, taken)
                body["variants"][0]["inventory_item_id"] = 10_000 + their_variant
            case 3:  # two names for one product
                body = self._own(version, taken)
                body["admin_graphql_api_id"] = f"gid://shopify/Product/{theirs}"
            case 4:
                return Delivery("products/delete", json.dumps({"id": theirs}).encode(), "taken", headers)
            case _:
                available = rng.choice((0, 666, None))
                return self._said(
                    "inventory_levels/update", level(their_variant, available, version), "taken", headers
                )
        return self._said(self._product_topic(), body, "taken", headers)

    def _level(self, version: int, taken: Taken) -> Delivery:
        body = level(self._first + 10_000 * self._rng.randint(0, 11), self._rng.randint(-5, 50), version)
        topic = self._rng.choice([topic for topic in TOPICS if topic.startswith("inventory")])
        if topic.endswith("disconnect"):
            body = {name: body[name] for name in ("inventory_item_id", "location_id")}
        if self._rng.random() < 0.7:
            name = self._rng.choice([*body, "available", "x"])
            body[name] = self._id(taken) if name.endswith("_id") else self._value()
        return self._said(topic, body, "level")

    def _deleted(self, version: int, taken: Taken) -> Delivery:
        body: Any = {
            "id": self._rng.choice((self._first + 10_000 * self._rng.randint(0, 11), self._id(taken)))
        }
        if self._rng.random() < 0.3:
            body[self._text()[:20]] = self._value()
        return self._said("products/delete", body, "deleted")

    def _shape(self, version: int, taken: Taken) -> Delivery:
        """The body of one topic under another, or of none."""
        topic = self._rng.choice(TOPICS)
        bodies = (
            [],
            0,
            "text",
            None,
            {},
            {"id": self._first},
            level(1, 1, version),
            self._own(version, taken),
            self._value(),
        )
        return self._said(topic, self._rng.choice(bodies), "shape")

    def _nested(self, version: int, taken: Taken) -> Delivery:
        depth = self._rng.choice((100, 1_000, 30_000, 100_000))
        opened, closed = self._rng.choice((("[", "]"), ('{"a":', "}")))
        inner = opened * depth + ("1" if opened[0] == "{" else "") + closed * depth
        body = self._own(version, taken)
        name = self._rng.choice(("title", "variants", "images", "tags", "x"))
        raw = json.dumps(body | {name: _MARK + "@@"}).encode().replace(b'"@@raw:@@"', inner.encode())
        return Delivery(self._product_topic(), raw, "nested")

    def _bytes(self, version: int, taken: Taken) -> Delivery:
        """Bytes that are no JSON, or not quite, or only to some parsers."""
        rng = self._rng
        raw = bytearray(json.dumps(self._own(version, taken)).encode())
        match rng.randrange(8):
            case 0:
                raw = raw[: rng.randrange(len(raw))]
            case 1:
                for _ in range(rng.randint(1, 5)):
                    raw[rng.randrange(len(raw))] = rng.randrange(256)
            case 2:
                raw = bytearray(b"\xef\xbb\xbf") + raw
            case 3:
                raw += rng.choice((b"x", b"{}", b"\x00", b" " * 100_000))
            case 4:  # one key twice
                raw = bytearray(b'{"id":%d,"variants":[],' % rng.choice(taken.products)) + raw[1:]
            case 5:
                raw = bytearray(rng.randbytes(rng.randint(0, 3_000)))
            case 6:
                raw = bytearray(raw.decode().encode("utf-16"))
            case _:
                raw = bytearray(
                    b'{"id":1,"x":"' + b"a" * rng.choice((100, BODY_LIMIT - 15, BODY_LIMIT + 1)) + b'"}'
                )
        return Delivery(self._product_topic(), bytes(raw), "bytes")

    def _lifecycle(self, version: int, taken: Taken) -> Delivery:
        """Orders that this shop, or another one, has left."""
        topic = self._rng.choice(list(LIFECYCLE_TOPICS))
        domain = self._rng.choice((*taken.domains, None, "x", self._text()))
        field_ = LIFECYCLE_TOPICS[topic][0]
        body: Body = {"shop_id": 1} if topic == "shop/redact" else {"id": 1, "updated_at": when(version)}
        if self._rng.random() < 0.5:
            body[self._rng.choice(("updated_at", "customer", "id"))] = self._value()
        return self._said(topic, body | ({field_: domain} if domain else {}), "lifecycle")

    def _headers(self, version: int, taken: Taken) -> Delivery:
        """What is not signed, wrong; another shop's name, which this shop's signature does not open."""
        rng = self._rng
        raw = json.dumps(self._own(version, taken)).encode()
        match rng.randrange(4):
            case 0:
                name = {"shop_domain": taken.domains[0]}  # a shop with a secret of its own
                return Delivery("products/update", raw, "forged", name, frozenset({401}))
            case 1:
                odd = rng.choice(
                    ({"topic": "products/delete"}, {"topic": ""}, {"shop_domain": "x"}, {"topic": None})
                )
                return Delivery("products/update", raw, "headers", odd, frozenset({400, 401}))
            case 2:
                return Delivery("products/unknown", raw, "headers", {}, frozenset({404}))
            case _:
                odd_name = rng.choice(list(_ODD_HEADERS))
                return Delivery(
                    "products/update", raw, "headers", {odd_name: rng.choice(_ODD_HEADERS[odd_name])}
                )

    def _product_topic(self) -> str:
        return self._rng.choice(("products/update", "products/update", "products/create"))

    def _said(
        self, topic: str, body: Any, what: str, headers: Mapping[str, str | None] | None = None
    ) -> Delivery:
        ascii_only = self._rng.random() < 0.5
        text = json.dumps(body, ensure_ascii=ascii_only)
        for raw in _RAW:
            text = text.replace(f'"{_MARK}{raw}@@"', raw)
        return Delivery(topic, text.encode("utf-8", "surrogatepass"), what, headers or {})
