"""What the sandbox label server does for each action on electronic labels and templates.

A server of the 2020 generation knows none of them; the refresh trigger and the products' actions it does.
"""

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from esl_pipeline.sandbox.label_server.actions import Action, Fields, LogicalError, array, page_of, success
from esl_pipeline.sandbox.label_server.devices import DeviceError
from esl_pipeline.sandbox.label_server.store import LabelStore

DEVICES_SINCE = 2023
"""The first generation that knows these actions."""


def _query(store: LabelStore, fields: Fields) -> list[Fields]:
    offset, size = page_of(fields)
    return _rows(store, store.fleet.page(fields["store_code"], offset, size))


def query_status(store: LabelStore, fields: Fields) -> list[Fields]:
    """The rows of chosen devices."""
    offset, size = page_of(fields)
    found = store.fleet.find(fields["store_code"], map(str, array(fields, "f3")))
    return _rows(store, found[offset : offset + size])


def _query_count(store: LabelStore, fields: Fields) -> Fields:
    return store.fleet.count(fields["store_code"])


def _bind(store: LabelStore, fields: Fields) -> Fields:
    return _bind_all(store, fields, [_binding(fields, "f1", "f2", "f3")])


def _bind_multiple(store: LabelStore, fields: Fields) -> Fields:
    items = array(fields)
    return _bind_all(
        store, fields, [_binding(item, "esl_code", "product_code", "esltemplate_id") for item in items]
    )


def _bind_all(store: LabelStore, fields: Fields, bindings: Iterable[tuple[str, str, int | None]]) -> Fields:
    _known(lambda: store.fleet.bind(fields["store_code"], bindings))
    return success()


def _unbind(store: LabelStore, fields: Fields) -> Fields:
    # Our choice: one code as text, as documented; others send arrays.
    code = fields.get("f1")
    if not isinstance(code, str) or not code:
        raise LogicalError("missing f1 field")
    _known(lambda: store.fleet.unbind(fields["store_code"], code))
    return success()


def _search(store: LabelStore, fields: Fields) -> Fields:
    codes = [str(code) for code in array(fields)]
    _known(lambda: store.fleet.flash(fields["store_code"], codes))
    return success()


def _sync(*_: object) -> Fields:
    return success()  # our server's view is always fresh


def _template_query(store: LabelStore, fields: Fields) -> list[Fields]:
    offset, size = page_of(fields)
    return [
        {
            "id": row["id"],
            "esltype_code": row["model"],
            "esltemplate_name": row["name"],
            "esltemplate_default": row["is_default"],
        }
        for row in store.fleet.templates()[offset : offset + size]
    ]


DEVICE_ACTIONS: dict[tuple[str, str, str], Action] = {
    ("GET", "esl", "query"): _query,
    ("GET", "esl", "query_count"): _query_count,
    ("POST", "esl", "query_status"): query_status,
    ("POST", "esl", "bind"): _bind,
    ("POST", "esl", "bind_multiple"): _bind_multiple,
    ("POST", "esl", "unbind"): _unbind,
    ("POST", "esl", "search"): _search,
    ("POST", "esl", "sync"): _sync,
    ("GET", "template", "query"): _template_query,
}


def _binding(item: Any, esl: str, product: str, template: str) -> tuple[str, str, int | None]:
    if not isinstance(item, dict):
        raise LogicalError("Invalid argument supplied for foreach()")
    for name in (esl, product):
        if not item.get(name):
            raise LogicalError(f"missing {name} field")
    chosen = item.get(template)
    try:
        number = None if chosen in (None, "") else int(chosen)
    except (TypeError, ValueError):
        raise LogicalError("esltemplate_id not exists") from None
    return str(item[esl]), str(item[product]).strip(), number


def _known(do: Callable[[], None]) -> None:
    try:
        do()
    except DeviceError as error:
        raise LogicalError(str(error)) from None


def _rows(store: LabelStore, rows: list[dict[str, Any]]) -> list[Fields]:
    """With the server's times: in its own zone, without saying so."""
    return [
        row | {name: _server_time(store, row[name]) for name in ("created_at", "updated_at")} for row in rows
    ]


def _server_time(store: LabelStore, at: float) -> str:
    return f"{datetime.fromtimestamp(at, store.zone):%Y-%m-%d %H:%M:%S}"
