"""What WooCommerce says of a product, as facts: the same for a webhook's body and for an answer of the REST API.

A simple product is one variant of its own id; a variable one has variations, which are read beside it. Times are in UTC
though they say no zone. A sale counts while its dates say so at the moment of reading: the buffer is told the price of
that moment, not the dates.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import orjson

from esl_pipeline.labels.lengths import MOST_VARIANTS
from esl_pipeline.sources.content import instant, product_content, text_of, variant_row
from esl_pipeline.sources.facts import Facts, Row

SYSTEM = "woocommerce"
LOCATION = "0"
"""Where the stock of a shop is that knows no locations."""

_ORIGIN = ("origin", "herkunft")

Thing = Mapping[str, Any]

FIELDS = (
    *("id", "type", "parent_id", "name", "slug", "status", "permalink", "variations"),
    *(
        "date_created_gmt",
        "date_modified_gmt",
        "categories",
        "tags",
        "brands",
        "attributes",
        "images",
        "image",
    ),
    *("sku", "global_unique_id", "price", "regular_price", "sale_price"),
    *("date_on_sale_from_gmt", "date_on_sale_to_gmt", "manage_stock", "stock_quantity"),
)
"""Of a product or variation, what is read here and so what is asked for."""


def utc(value: object) -> datetime | None:
    """A time of WooCommerce's `*_gmt` fields, which say no zone; None for anything else."""
    return instant(value if not isinstance(value, str) or _says_zone(value) else f"{value}+00:00")


def _says_zone(text: str) -> bool:
    return text.endswith("Z") or "+" in text


def is_variation(thing: Thing) -> bool:
    """Whether this is one variation of a product, and not a product."""
    return thing.get("type") == "variation"


def is_variable(product: Thing) -> bool:
    """Whether its variations are sold and not the product itself; also the kinds of plugins, variable-subscription."""
    return str(product.get("type")).startswith("variable")


def is_gone(thing: Thing) -> bool:
    """Whether it is in the trash."""
    return thing.get("status") == "trash"


def number(value: object) -> str | None:
    """An id as text; None for what is none."""
    if type(value) is int and value > 0:
        return str(value)
    return (
        value
        if isinstance(value, str) and value.isdecimal() and value.isascii() and len(value) < 20
        else None
    )


def digest(*things: Thing) -> str:
    """One text for one content."""
    return hashlib.sha256(orjson.dumps(things, option=orjson.OPT_SORT_KEYS)).hexdigest()


def version(*, shop: str, product_id: str, at: datetime, triggered_at: datetime, sha256: str) -> Row:
    """Which statement about a product this is."""
    return {
        "source_system": SYSTEM,
        "source_store_id": shop,
        "product_id": product_id,
        "version_at": at.isoformat(),
        "triggered_at": triggered_at.astimezone(UTC).isoformat(),
        "body_sha256": sha256,
        "event_ids": [],
    }


def tombstone(said: Row) -> Row:
    """A product that is in the trash or gone. The trash gives things back: a read that began later may find it again,
    as after absence, so it has no digest (see esl.is_revived)."""
    return said | {"body_sha256": "", "deleted": True, "variant_ids": [], "missing_variants": 0}


def told(product: Thing, said: Row, now: datetime) -> Facts:
    """What a product's own statement tells. said: its version. Of a variable product it names the variations only."""
    if is_variable(product):
        named = _named_variations(product)
        missing = 1 if named is None else len(named)
        return Facts([said | shared(product) | _present(named, missing)])
    if product.get("type") == "grouped":  # a page for others: it is not sold itself
        return Facts([said | shared(product) | _present([], 0)])
    own = said["product_id"]
    row = _variant(product, own, own, shared(product), now, image=_first_image(product))
    return Facts(
        [said | shared(product) | _present([own], 0)],
        [row | said],
        levels=list(_levels(product, own, said)),
    )


def told_whole(
    product: Thing, variations: Iterable[Thing], said: Row, now: datetime, *, complete: bool
) -> Facts:
    """What a variable product and its variations tell. Not complete: some could not be read, none is concluded gone."""
    common, own, rows, levels = shared(product), said["product_id"], list[Row](), list[Row]()
    for variation in variations:
        if (variant_id := number(variation.get("id"))) is None or is_gone(variation):
            continue
        rows.append(
            told_variation(variation, own, variant_id, common, now, fallback=_first_image(product)) | said
        )
        levels += _levels(variation, variant_id, said)
    ids = sorted(row["variant_id"] for row in rows)
    return Facts(
        [said | common | _present(ids if complete else None, 0 if complete else 1)], rows, levels=levels
    )


def told_alone(variation: Thing, said: Row, variant_id: str, now: datetime) -> Facts:
    """What a variation's own statement tells: nothing of its product but that it is to be fetched."""
    row = told_variation(variation, said["product_id"], variant_id, {}, now)
    return Facts([said | _present(None, 1)], [row | said], levels=list(_levels(variation, variant_id, said)))


def told_variation(
    variation: Thing,
    product_id: str,
    variant_id: str,
    common: Row,
    now: datetime,
    *,
    fallback: str | None = None,
) -> Row:
    """The row of a variation. common: what its product shares; fallback: the product's image, where that is known."""
    own_image = variation.get("image")
    image = _source(own_image) or _first_image(variation) or fallback
    row = _variant(variation, product_id, variant_id, common, now, image=image)
    if image is None and not common:
        row.pop("image_url")  # it shows its product's then, which is not told here
    if variation.get("status") not in (None, "publish"):
        row["status"] = "draft"  # switched off, whatever its product is
    return row


def shared(product: Thing) -> Row:
    """What all variants of a product share, as far as it is said."""
    said: dict[str, Any] = {
        "title": product.get("name"),
        "handle": product.get("slug"),
        "status": "active" if product.get("status") == "publish" else "draft",
        "published_at": _zoned(product.get("date_created_gmt"))
        if product.get("status") == "publish"
        else None,
    }
    for name, lists in {"vendor": "brands", "product_type": "categories"}.items():
        if isinstance(product.get(lists), list):
            said[name] = next(_names(product[lists]), None)
    if isinstance(product.get("tags"), list):
        said["tags"] = list(_names(product["tags"]))
    if isinstance(product.get("attributes"), list):
        said["origin"] = _origin(product["attributes"])
    return product_content(said)


def price_now(thing: Thing, now: datetime) -> tuple[object, object]:
    """Price and higher former price at a moment.

    As WooCommerce reckons: a sale counts when its price is lower than the regular one and its dates include the moment.
    """
    regular, sale = thing.get("regular_price"), thing.get("sale_price")
    if sale in (None, ""):
        return regular if regular not in (None, "") else thing.get("price"), None
    begins, ends = utc(thing.get("date_on_sale_from_gmt")), utc(thing.get("date_on_sale_to_gmt"))
    if (begins and begins > now) or (ends and ends < now):
        return regular, None
    lower, higher = _decimal(sale), _decimal(regular)
    if higher is not None and lower is not None and lower >= higher:
        return regular, None
    # A sale price that is no number goes on, so that it is seen and held back.
    return (sale, regular) if higher is not None else (regular, None)


def _variant(
    thing: Thing, product_id: str, variant_id: str, common: Row, now: datetime, *, image: str | None
) -> Row:
    said: dict[str, Any] = {
        "inventory_item_id": variant_id,
        "image_url": image,
        "created_at": _zoned(thing.get("date_created_gmt")),
    }
    options = [] if product_id == variant_id else list(_options(thing))
    said["title"] = " / ".join(options) or None
    said |= {f"option{i + 1}": options[i] if i < len(options) else None for i in range(3)}
    said |= {
        name: thing[key]
        for name, key in {"barcode": "global_unique_id", "sku": "sku"}.items()
        if key in thing
    }
    if "regular_price" in thing or "price" in thing:
        said["price"], said["compare_at_price"] = price_now(thing, now)
    return variant_row(product_id=product_id, variant_id=variant_id, product=common, variant=said)


def _levels(thing: Thing, variant_id: str, said: Row) -> Iterator[Row]:
    """Its stock; None when it is not counted. What the product manages for its variations counts for each."""
    if "manage_stock" not in thing:
        return
    quantity = thing.get("stock_quantity") if thing["manage_stock"] in (True, "parent") else None
    whole = isinstance(quantity, int | float) and not isinstance(quantity, bool) and abs(quantity) < 2**53
    yield {
        **{name: said[name] for name in ("source_system", "source_store_id", "triggered_at", "body_sha256")},
        "inventory_item_id": variant_id,
        "location_id": LOCATION,
        "available": int(quantity) if whole and quantity is not None else None,
        "updated_at": said["version_at"],
    }


def _named_variations(product: Thing) -> list[str] | None:
    """The ids of its variations; None when it does not say which there are."""
    listed = product.get("variations")
    ids = (
        [number(one) for one in listed]
        if isinstance(listed, list) and len(listed) <= MOST_VARIANTS
        else [None]
    )
    return sorted(str(one) for one in ids) if all(ids) else None


def _present(variant_ids: list[str] | None, missing: int) -> Row:
    return {"deleted": False, "variant_ids": variant_ids, "missing_variants": missing}


def _options(variation: Thing) -> Iterator[str]:
    attributes = variation.get("attributes")
    for attribute in attributes if isinstance(attributes, list) else ():
        option = attribute.get("option") if isinstance(attribute, dict) else None
        if isinstance(option, str) and option:
            yield option


def _origin(attributes: Iterable[object]) -> str | None:
    """What the shop calls its products' origin, in an attribute of that name: "Italy", "Spain, Morocco"."""
    for attribute in attributes:
        if isinstance(attribute, dict) and str(attribute.get("name")).strip().lower() in _ORIGIN:
            options = attribute.get("options")
            texts = (text_of(one) for one in (options if isinstance(options, list) else ()))
            return ", ".join(text for text in texts if text) or None
    return None


def _names(things: Iterable[object]) -> Iterator[str]:
    return (text for thing in things if isinstance(thing, dict) and (text := text_of(thing.get("name"))))


def _first_image(thing: Thing) -> str | None:
    images = thing.get("images")
    return next(filter(None, map(_source, images)), None) if isinstance(images, list) else None


def _source(image: object) -> str | None:
    source = image.get("src") if isinstance(image, dict) else None
    return source if isinstance(source, str) and source else None


def _zoned(value: object) -> object:
    at = utc(value)
    return at.isoformat() if at else value


def _decimal(value: object) -> Decimal | None:
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return None
    return number if number.is_finite() else None
