"""A label server for machines that have none: product API and refresh trigger over real HTTP, with a page to look at.

It follows what is publicly known of the Hipoink API (the client's room says what that is). Where
nothing is known it makes a choice, each marked "our choice" below; no real server need agree.

    python -m esl_pipeline.sandbox.label_server.server --port 8010 --data labels.db

Beside the API: `GET /` draws the physical labels, `/sandbox/faults` makes calls fail, `/sandbox/state` tells
what was pushed, and PUT and DELETE at `/sandbox/labels/{store}/{code}` change a label behind everyone's back.
"""

import asyncio
import contextlib
import json
import socket
import sqlite3
import struct
from collections.abc import Callable, Collection
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
import uvicorn
from fastapi import Body, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from esl_pipeline import __version__
from esl_pipeline.guard import Guard
from esl_pipeline.sandbox.label_server.faults import (
    BadCodes,
    DropsZeros,
    Error,
    Failure,
    Fault,
    Faults,
    Hidden,
    Hold,
    Reset,
    Status,
    Text,
)
from esl_pipeline.sandbox.label_server.store import LabelStore, Record
from esl_pipeline.settings import host_names_in

CLIENT_ID = "default"
SIGN = "sandbox-sign"
LABELS_SHOWN = 500

Fields = dict[str, Any]

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


class _LogicalError(Exception):
    """A logical error: HTTP 200 with `error_code` 1 and this message."""


def create_app(store: LabelStore, *, client_id: str = CLIENT_ID, sign: str = SIGN) -> FastAPI:
    """The sandbox as an ASGI app. For connection resets, serve it with `server`."""
    app = FastAPI(title="Label server sandbox", docs_url=None, redoc_url=None, openapi_url=None)
    faults = Faults()
    page = files("esl_pipeline.sandbox.label_server").joinpath("labels.html").read_text(encoding="utf-8")

    async def perform_action(
        request: Request, client: str, resource: str, action: str, fields: Fields
    ) -> Response:
        known = _ACTIONS.get((request.method, resource, action))
        if known is None:
            return JSONResponse({"message": "Not Found"}, status_code=404)
        store_code, codes = str(fields.get("store_code") or ""), _codes(action, fields)
        fields = {**fields, "store_code": store_code}
        store.count_call(action, store_code, codes)
        seconds, fault = faults.fire(action, store_code, codes)
        await asyncio.sleep(seconds)

        def perform(done: Fields = fields, action: Callable[[LabelStore, Fields], Any] = known) -> Any:
            try:
                _check_caller(client, done, client_id, sign)
                return action(store, done)
            except _LogicalError as refusal:
                return {"error_code": 1, "error_msg": f"{client} {refusal}"}

        if fault is not None:
            return await _fail(fault, request, fields, codes, perform)
        return _answer(perform())

    @app.get("/api/query/env")
    def env() -> dict[str, Any]:
        store.count_call("env", "", [])
        return {
            "name": "Label server sandbox",
            "env": "local",
            "version": __version__,
            "debug": False,
            "url": "http://127.0.0.1",
            "timezone": "UTC",
            "locale": "en",
            "fallback_locale": "en",
            "cipher": "AES-256-CBC",
            "log": "single",
            "log_level": "error",
            "log_max_files": 5,
        }

    @app.get("/api/{client}/{resource}/{action}")
    async def get(request: Request, client: str, resource: str, action: str) -> Response:
        return await perform_action(request, client, resource, action, dict(request.query_params))

    @app.post("/api/{client}/{resource}/{action}")
    async def post(request: Request, client: str, resource: str, action: str) -> Response:
        fields = _json_object(await request.body())
        return await perform_action(request, client, resource, action, fields)

    @app.get("/sandbox/faults")
    def show_faults() -> list[dict[str, Any]]:
        return faults.shown()

    @app.post("/sandbox/faults")
    def replace_faults(rules: list[Fault]) -> list[dict[str, Any]]:
        faults.replace(rules)
        return faults.shown()

    @app.delete("/sandbox/faults")
    def clear_faults() -> list[dict[str, Any]]:
        return replace_faults([])

    @app.get("/sandbox/state")
    def state() -> dict[str, Any]:
        return store.state()

    @app.get("/sandbox/calls")
    def calls() -> dict[str, int]:
        """Of the state the calls alone: beside 100,000 labels the rest is long."""
        return store.calls()

    @app.delete("/sandbox/state")
    def clear_state() -> dict[str, Any]:
        store.clear()
        return store.state()

    @app.put("/sandbox/labels/{store_code}/{code}")
    def edit(store_code: str, code: str, fields: Annotated[Fields, Body()]) -> Record:
        return store.edit(store_code, code, fields)

    @app.delete("/sandbox/labels/{store_code}/{code}")
    def take_away(store_code: str, code: str) -> dict[str, int]:
        return {"count": store.take_away(store_code, code)}

    @app.get("/sandbox/labels")
    def labels(q: str = "", since: int = -1) -> dict[str, Any]:
        """What the page polls; `labels` is null when nothing has changed since revision `since`."""
        revision = store.revision()
        unchanged = since == revision
        return {
            "revision": revision,
            **store.totals(q),
            "faults": len(faults.shown()),
            "labels": None if unchanged else [_card(row) for row in store.latest(q, LABELS_SHOWN)],
        }

    @app.get("/")
    def index() -> HTMLResponse:
        policy = (
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline';"
            " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'"
        )
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    return app


def _check_caller(client: str, fields: Fields, client_id: str, sign: str) -> None:
    if client != client_id:
        raise _LogicalError("app_key not exists")  # our choice of words
    for name in ("store_code", "sign"):
        if not fields.get(name):
            raise _LogicalError(f"missing {name} field")
    if fields["sign"] != sign:
        raise _LogicalError("invalid sign")  # our choice of words
    if str(fields.get("is_base64", "0")) != "0":
        raise _LogicalError("is_base64 must be 0")  # our choice: nobody shows a working call with 1


def _create(store: LabelStore, fields: Fields) -> Fields:
    store.put(fields["store_code"], [_record(fields)], "create")
    return _success()


def _create_multiple(store: LabelStore, fields: Fields) -> Fields:
    # Our choice: all or nothing. The fault `bad_codes` with `apply` plays the other possibility.
    records = [_record(item) for item in _array(fields)]
    store.put(fields["store_code"], records, "create_multiple")
    return _success()


def _del_multiple(store: LabelStore, fields: Fields) -> Fields:
    # Our choice: unknown codes are no error; `count` is the number deleted.
    codes = [str(code).strip() for code in _array(fields)]
    return _success() | {"count": store.delete(fields["store_code"], codes, "del_multiple")}


def _query(store: LabelStore, fields: Fields) -> list[Fields]:
    try:
        page, size = int(fields.get("f1", 1)), int(fields.get("f2", 10))
    except ValueError:
        raise _LogicalError("f1 and f2 must be numbers") from None
    if page < 1 or size < 1:
        raise _LogicalError("f1 and f2 must be above 0")
    return [_row(row) for row in store.page(fields["store_code"], (page - 1) * size, size)]


def _query_with_code(store: LabelStore, fields: Fields) -> list[Fields]:
    return [_row(row) for row in store.find(fields["store_code"], map(str, _array(fields)))]


def _query_count(store: LabelStore, fields: Fields) -> Fields:
    return {"count": store.count(fields["store_code"])}


def _bind_task(store: LabelStore, fields: Fields) -> Fields:
    # Our choice: the whole queue is refreshed before the answer; a real store takes seconds to minutes.
    store.refresh(fields["store_code"])
    return _success()


_ACTIONS: dict[tuple[str, str, str], Callable[[LabelStore, Fields], Any]] = {
    ("POST", "product", "create"): _create,
    ("POST", "product", "create_multiple"): _create_multiple,
    ("POST", "product", "del_multiple"): _del_multiple,
    ("POST", "product", "query_with_code"): _query_with_code,
    ("GET", "product", "query"): _query,
    ("GET", "product", "query_count"): _query_count,
    ("POST", "esl", "bind_task"): _bind_task,
}


def _success() -> Fields:
    return {"error_code": 0, "error_msg": ""}


def _array(fields: Fields) -> list[Any]:
    # Our choice: native arrays only. Some documents show JSON text instead.
    if not isinstance(fields.get("f1"), list):
        raise _LogicalError("Invalid argument supplied for foreach()")
    return list(fields["f1"])


def _record(item: Any) -> Record:
    """The known fields of a product; unknown ones are ignored, prices get two decimals."""
    if not isinstance(item, dict):
        raise _LogicalError("Invalid argument supplied for foreach()")
    record = {name: item[name] for name in _RESPONSE_NAMES if item.get(name) is not None}
    if "pc" in record:
        record["pc"] = str(record["pc"]).strip()
    for name in _REQUIRED:
        if record.get(name, "") == "":
            raise _LogicalError(f"missing {name} field")
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
        raise _LogicalError(f"{name} must be a number")
    return str(price)


def _row(row: sqlite3.Row) -> Fields:
    """A label as `query` returns it: response names, every field present."""
    shown = {"id": row["id"], "store_code": row["store"], **_NOTHING_SAID}
    for name, value in json.loads(row["record"]).items():
        if name in _RESPONSE_NAMES:
            shown[_RESPONSE_NAMES[name]] = value
    shown["enabled"] = 1
    shown["created_at"] = _server_time(row["created_at"])
    shown["updated_at"] = _server_time(row["updated_at"])
    return shown


def _answer(answer: Any) -> Response:
    """The answer as JSON; lists are long."""
    try:
        return Response(orjson.dumps(answer), media_type="application/json")
    except orjson.JSONEncodeError:  # an integer of more than 64 bits, half a character
        return JSONResponse(answer)


def _card(row: sqlite3.Row) -> Fields:
    """A physical label as the page draws it: what it shows, and what will be on it (`next`) while it waits."""
    shown, held = (json.loads(row[name]) if row[name] else {} for name in ("record", "held"))
    names = {"name": "pn", "price": "pp", "was": "pop", "sku": "pi", "unit": "pu", "spec": "ps"}
    return {
        "id": row["id"],
        "store": row["store"],
        "code": row["code"],
        "change": row["change"],
        "updated_at": row["changed_at"],
        "blank": not shown,
        "waits": bool(row["waits"]),
        "next": str(held.get("pp", "")),
        **{name: str(shown.get(code, "")) for name, code in names.items()},
    }


def _server_time(at: str) -> str:
    return at[:19].replace("T", " ")


def _json_object(body: bytes) -> Fields:
    """The request's fields; like PHP, what is not a JSON object has none."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _codes(action: str, fields: Fields) -> list[str]:
    """The product codes that a change names, before anything is checked."""
    if action == "create":
        return [str(fields.get("pc", "")).strip()]
    items = fields.get("f1")
    if action not in ("create_multiple", "del_multiple") or not isinstance(items, list):
        return []
    codes = [item.get("pc", "") if isinstance(item, dict) else item for item in items]
    return [str(code).strip() for code in codes]


async def _fail(
    fault: Failure, request: Request, fields: Fields, codes: list[str], perform: Callable[..., Any]
) -> Response:
    if isinstance(fault, BadCodes):
        if fault.apply and isinstance(fields.get("f1"), list):
            first_bad = next(index for index, code in enumerate(codes) if code in fault.codes)
            perform({**fields, "f1": fields["f1"][:first_bad]})
        return JSONResponse({"error_code": 1, "error_msg": fault.error_msg})
    if isinstance(fault, DropsZeros):
        return JSONResponse(perform(_without_zeros(fields)))
    answer = perform() if fault.apply else _success()
    match fault:
        case Hidden(hides=hides) if isinstance(answer, list):
            answer = [row for row in answer if row["product_code"] not in hides]
        case Hidden(hides=hides) if "count" in answer:
            codes_there = perform({**fields, "f1": hides}, _query_with_code)
            answer = {"count": answer["count"] - len(codes_there)}
        case Status(status=status, retry_after=retry_after, body=body):
            headers = {} if retry_after is None else {"Retry-After": retry_after}
            return Response(body, status, headers)
        case Error(error_code=error_code, error_msg=error_msg):
            return JSONResponse({"error_code": error_code, "error_msg": error_msg})
        case Text(body=body):
            return Response(body, media_type="text/html")
        case Hold(seconds=seconds):
            await asyncio.sleep(seconds)
        case Reset():
            _ResettableProtocol.reset(request)
    return JSONResponse(answer)


def _without_zeros(fields: Fields) -> Fields:
    """The fields with all codes in them as numbers would be written."""

    def bare(item: Any) -> Any:
        if isinstance(item, dict):
            return {**item, "pc": bare(str(item.get("pc", "")))}
        return item.lstrip("0") or "0" if isinstance(item, str) else item

    named = {"f1": [bare(item) for item in fields["f1"]]} if isinstance(fields.get("f1"), list) else {}
    return {**(bare(fields) if "pc" in fields else fields), **named}


class _ResettableProtocol(H11Protocol):
    """uvicorn's protocol, with a way to the connection below a request."""

    _open: dict[tuple[str, int], asyncio.Transport] = {}  # noqa: RUF012

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.client:
            self._open[self.client] = transport

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.client:
            self._open.pop(self.client, None)

    @classmethod
    def reset(cls, request: Request) -> None:
        """Close the request's connection with RST: lingering for 0 s throws away what is unsent."""
        if request.client is None:
            raise RuntimeError("resets need label_server.server")
        transport = cls._open[(request.client.host, request.client.port)]
        transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        transport.abort()


def server(app: FastAPI, host_names: str = "", forms: Collection[str] = ()) -> uvicorn.Server:
    """A uvicorn server for the sandbox: behind the guard, quiet, quick to stop, able to reset connections.

    forms: paths that take a form (guard.Guard).
    """
    return uvicorn.Server(
        uvicorn.Config(
            Guard(app, names=host_names_in(host_names), pages={"/"}, forms=forms),
            http=_ResettableProtocol,
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,  # its lines would hold the sign
            timeout_graceful_shutdown=1,
        )
    )


def listen(port: int) -> socket.socket:
    """A listening socket on loopback; port 0 takes a free one."""
    sock = socket.create_server(("127.0.0.1", port))
    # asyncio does this only for sockets that name their protocol; without it each answer waits 40 ms.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def main(
    *,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.")] = 8010,
    data: Annotated[Path | None, typer.Option(help="SQLite file; without it labels live in memory.")] = None,
    auto_trigger: Annotated[
        bool, typer.Option(help="Refresh physical labels with every change, or only after esl/bind_task.")
    ] = True,
    client_id: Annotated[str, typer.Option(help="The app key's name, part of every address.")] = CLIENT_ID,
    sign: Annotated[
        str, typer.Option(envvar="HIPOINK_API_SECRET", help="The app key's value, part of every call.")
    ] = SIGN,
    host_names: Annotated[
        str, typer.Option(envvar="ESL_HOST_NAMES", help="Names under which its page is reached, by commas.")
    ] = "",
) -> None:
    """Serve a sandbox label server until it is stopped."""
    with (
        LabelStore(data, auto_trigger=auto_trigger) as store,
        listen(port) as sock,
        contextlib.suppress(KeyboardInterrupt),
    ):
        typer.echo(f"Label server sandbox: http://127.0.0.1:{sock.getsockname()[1]}")
        server(create_app(store, client_id=client_id, sign=sign), host_names).run(sockets=[sock])


if __name__ == "__main__":
    typer.run(main)
