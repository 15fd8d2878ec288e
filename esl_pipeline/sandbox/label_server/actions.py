"""What the sandbox label server does for each action on products, and for the refresh trigger.

An action takes the store and the fields of a call and gives the answer; what it refuses is a LogicalError.
"""

import json
import sqlite3
from collections.abc import Callable
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from typing import Any
from zoneinfo import ZoneInfo

from esl_pipeline.sandbox.label_server.store import LabelStore, Record

Fields = dict[str, Any]
Action = Callable[[LabelStore, Fields], Any]

_RESPONSE_NAMES = {
    "pc": "product_code",
    "pn": "product_name",
    "pp": "product_price",
    "pi": "product_inner",
    "ps": "product_spec",
    "pg": "product_grade",
    "pu": "product_unit",
    "vp": "product_vip_price",
    "pop": "product_origin_price",
    "po": "product_origin",
    "pm": "product_mfrs",
    "promotion": "promotion",
    "pim": "product_image",
    "pqr": "product_qrcode",
    **{f"f{n}": f"field{n}" for n in range(1, 17)},
    "extend": "extend",
    "kc": "product_storage",
    "qty": "product_storage",
}
_NOTHING_SAID: dict[str, Any] = {**dict.fromkeys(_RESPONSE_NAMES.values(), ""), "extend": {}}
_REQUIRED = ("pc", "pn", "pp")
_PRICES = ("pp", "vp", "pop")


class LogicalError(Exception):
    """A logical error: HTTP 200 with `error_code` 1 and this message."""


def _create(store: LabelStore, fields: Fields) -> Fields:
    store.put(fields["store_code"], [_record(fields)], "create")
    return success()


def _create_multiple(store: LabelStore, fields: Fields) -> Fields:
    # Our choice: all or nothing. The fault `bad_codes` with `apply` plays the other possibility.
    records = [_record(item) for item in array(fields)]
    store.put(fields["store_code"], records, "create_multiple")
    return success()


def _del_multiple(store: LabelStore, fields: Fields) -> Fields:
    # Our choice: unknown codes are no error; `count` is the number deleted.
    codes = [str(code).strip() for code in array(fields)]
    return success() | {"count": store.delete(fields["store_code"], codes, "del_multiple")}


def _query(store: LabelStore, fields: Fields) -> list[Fields]:
    offset, size = page_of(fields)
    return [_row(row, store.zone) for row in store.page(fields["store_code"], offset, size)]


def query_with_code(store: LabelStore, fields: Fields) -> list[Fields]:
    return [_row(row, store.zone) for row in store.find(fields["store_code"], map(str, array(fields)))]


def _query_count(store: LabelStore, fields: Fields) -> Fields:
    return {"count": store.count(fields["store_code"])}


def _bind_task(store: LabelStore, fields: Fields) -> Fields:
    # Our choice: without devices the whole queue is refreshed before the answer; a real store takes seconds to minutes.
    store.refresh(fields["store_code"])
    return success()


ACTIONS: dict[tuple[str, str, str], Action] = {
    ("POST", "product", "create"): _create,
    ("POST", "product", "create_multiple"): _create_multiple,
    ("POST", "product", "del_multiple"): _del_multiple,
    ("POST", "product", "query_with_code"): query_with_code,
    ("GET", "product", "query"): _query,
    ("GET", "product", "query_count"): _query_count,
    ("POST", "esl", "bind_task"): _bind_task,
}


def success() -> Fields:
    """The answer of a change."""
    return {"error_code": 0, "error_msg": ""}


def page_of(fields: Fields) -> tuple[int, int]:
    """Offset and size of the page that a listing is asked for."""
    try:
        page, size = int(fields.get("f1", 1)), int(fields.get("f2", 10))
    except (TypeError, ValueError):
        raise LogicalError("f1 and f2 must be numbers") from None
    if page < 1 or size < 1:
        raise LogicalError("f1 and f2 must be above 0")
    return (page - 1) * size, size


def array(fields: Fields, name: str = "f1") -> list[Any]:
    """The array in a field."""
    # Our choice: native arrays only. Some documents show JSON text instead.
    if not isinstance(fields.get(name), list):
        raise LogicalError("Invalid argument supplied for foreach()")
    return list(fields[name])


def _record(item: Any) -> Record:
    """The known fields of a product; unknown ones are ignored, prices get two decimals."""
    if not isinstance(item, dict):
        raise LogicalError("Invalid argument supplied for foreach()")
    record = {name: item[name] for name in _RESPONSE_NAMES if item.get(name) is not None}
    if "pc" in record:
        record["pc"] = str(record["pc"]).strip()
    for name in _REQUIRED:
        if record.get(name, "") == "":
            raise LogicalError(f"missing {name} field")
    for name in _PRICES:
        if record.get(name, "") != "":
            record[name] = _price(name, record[name])
    return record


def _price(name: str, value: Any) -> str:
    # Our choice: what is not a decimal number is refused.
    try:
        price = Decimal(str(value)).quantize(Decimal("0.01"), ROUND_HALF_UP)
    except InvalidOperation:
        price = Decimal("NaN")
    if price.is_nan():
        raise LogicalError(f"{name} must be a number")
    return str(price)


def _row(row: sqlite3.Row, zone: ZoneInfo) -> Fields:
    """A label as `query` returns it: response names, every field present."""
    shown = {"id": row["id"], "store_code": row["store"], **_NOTHING_SAID}
    for name, value in json.loads(row["record"]).items():
        if name in _RESPONSE_NAMES:
            shown[_RESPONSE_NAMES[name]] = value
    shown["enabled"] = 1
    shown["created_at"] = _server_time(row["created_at"], zone)
    shown["updated_at"] = _server_time(row["updated_at"], zone)
    return shown


def _server_time(at: str, zone: ZoneInfo) -> str:
    """The server's times are in its own zone, and do not say so."""
    return f"{datetime.fromisoformat(at).astimezone(zone):%Y-%m-%d %H:%M:%S}"


def codes_of(action: str, fields: Fields) -> list[str]:
    """The product codes that a change names, before anything is checked."""
    if action == "create":
        return [str(fields.get("pc", "")).strip()]
    items = fields.get("f1")
    if action not in ("create_multiple", "del_multiple") or not isinstance(items, list):
        return []
    codes = [item.get("pc", "") if isinstance(item, dict) else item for item in items]
    return [str(code).strip() for code in codes]


def without_zeros(fields: Fields) -> Fields:
    """The fields with all codes in them as numbers would be written."""

    def bare(item: Any) -> Any:
        if isinstance(item, dict):
            return {**item, "pc": bare(str(item.get("pc", "")))}
        return item.lstrip("0") or "0" if isinstance(item, str) else item

    named = {"f1": [bare(item) for item in fields["f1"]]} if isinstance(fields.get("f1"), list) else {}
    return {**(bare(fields) if "pc" in fields else fields), **named}
