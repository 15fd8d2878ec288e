"""What an electronic label shows: a picture of a product, drawn by a template at the label's last refresh. Pure.

Pictures and products are JSON text with the request codes (`pc`, `pn`, `pp`, ...). A template names the fields that it
shows, or none: then it shows all. The code is on every label.
"""

import json
from collections.abc import Mapping
from typing import Any

import orjson

NO_PRICE = "template without a price"

_NAMES = {"code": "pc", "name": "pn", "price": "pp", "was": "pop", "sku": "pi", "unit": "pu", "spec": "ps"}


def render(product: str | None, before: str | None, fields: str | None) -> str | None:
    """The picture of a product after one of `before`; None is a blank label.

    A template without a price has the price of its last print on it, if any: it stays, whatever the product costs.
    """
    if product is None or fields is None:
        return product
    record, names = orjson.loads(product), {"pc", *orjson.loads(fields)}
    picture = {name: value for name, value in record.items() if name in names}
    old = orjson.loads(before).get("pp") if before and "pp" not in names else None
    return json.dumps(picture if old is None else picture | {"pp": old}, ensure_ascii=False)


def shows_price(fields: str | None) -> bool:
    """Whether a template has a place for the price."""
    return fields is None or "pp" in orjson.loads(fields)


def is_right(picture: str | None, product: str | None, fields: str | None) -> bool:
    """Whether a picture shows the product's price, and all else that its template shows, as the product is now."""
    if picture is None or product is None:
        return False
    if fields is None and picture == product:
        return True
    shown, held = orjson.loads(picture), orjson.loads(product)
    names = shown.keys() | held.keys() if fields is None else {"pc", "pp", *orjson.loads(fields)}
    return all(shown.get(name) == held.get(name) for name in names)


def seen(record: str | None) -> dict[str, str] | None:
    """A picture or product as a person reads it."""
    if record is None:
        return None
    fields: Mapping[str, Any] = orjson.loads(record)
    return {name: str(fields.get(code, "")) for name, code in _NAMES.items()}
