"""A label server for machines that have none: product API and refresh trigger over real HTTP, with a page to look at.

It follows what is publicly known of the Hipoink API (the client's room says what that is). Where
nothing is known it makes a choice, each marked "our choice" below; no real server need agree.

    python -m esl_pipeline.sandbox.label_server.server --port 8010 --data labels.db

Beside the API: `GET /` draws the physical labels, `/sandbox/faults` makes calls fail, `/sandbox/state` tells
what was pushed, `/sandbox/shelf` what each physical label shows, where labels are devices (controls.py rules them), and
PUT and DELETE at `/sandbox/labels/{store}/{code}` change a label behind everyone's back.
"""

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Callable, Collection
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
import uvicorn
from fastapi import Body, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from esl_pipeline import __version__, logs
from esl_pipeline.guard import Guard
from esl_pipeline.sandbox.label_server.actions import (
    ACTIONS,
    Action,
    Fields,
    LogicalError,
    codes_of,
    query_with_code,
    success,
    without_zeros,
)
from esl_pipeline.sandbox.label_server.cards import latest_cards
from esl_pipeline.sandbox.label_server.controls import device_controls
from esl_pipeline.sandbox.label_server.device_actions import DEVICE_ACTIONS, DEVICES_SINCE, query_status
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
from esl_pipeline.sandbox.label_server.floor import Floor
from esl_pipeline.sandbox.label_server.store import LabelStore, Record
from esl_pipeline.settings import host_names_in

CLIENT_ID = "default"
SIGN = "sandbox-sign"
LABELS_SHOWN = 500


def create_app(
    store: LabelStore, *, client_id: str = CLIENT_ID, sign: str = SIGN, generation: int = DEVICES_SINCE
) -> FastAPI:
    """The sandbox as an ASGI app. For connection resets, serve it with `server`.

    generation: a server of 2020 knows no actions on devices.
    """
    app = FastAPI(title="Label server sandbox", docs_url=None, redoc_url=None, openapi_url=None)
    faults = Faults()
    actions = ACTIONS | (DEVICE_ACTIONS if generation >= DEVICES_SINCE else {})
    page = files("esl_pipeline.sandbox.label_server").joinpath("labels.html").read_text(encoding="utf-8")

    async def perform_action(
        request: Request, client: str, resource: str, action: str, fields: Fields
    ) -> Response:
        known = actions.get((request.method, resource, action))
        if known is None:
            return JSONResponse({"message": "Not Found"}, status_code=404)
        # Calls and faults know products' actions and the trigger by their bare names.
        name = action if (request.method, resource, action) in ACTIONS else f"{resource}/{action}"
        store_code, codes = str(fields.get("store_code") or ""), codes_of(name, fields)
        fields = {**fields, "store_code": store_code}
        store.count_call(name, store_code, codes)
        times_cleared = store.times_cleared
        seconds, fault = faults.fire(name, store_code, codes)
        await asyncio.sleep(seconds)

        def perform(done: Fields = fields, action: Action = known) -> Any:
            try:
                _check_caller(client, done, client_id, sign)
                if store.times_cleared != times_cleared:
                    raise LogicalError("all was forgotten meanwhile")
                return action(store, done)
            except LogicalError as refusal:
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
            "timezone": store.zone.key,
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
            "labels": None if unchanged else latest_cards(store, q, LABELS_SHOWN),
        }

    app.include_router(device_controls(store.fleet))

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
        raise LogicalError("app_key not exists")  # our choice of words
    for name in ("store_code", "sign"):
        if not fields.get(name):
            raise LogicalError(f"missing {name} field")
    if fields["sign"] != sign:
        raise LogicalError("invalid sign")  # our choice of words
    if str(fields.get("is_base64", "0")) != "0":
        raise LogicalError("is_base64 must be 0")  # our choice: nobody shows a working call with 1


def _answer(answer: Any) -> Response:
    """The answer as JSON; lists are long."""
    try:
        return Response(orjson.dumps(answer), media_type="application/json")
    except orjson.JSONEncodeError:  # an integer of more than 64 bits, half a character
        return JSONResponse(answer)


def _json_object(body: bytes) -> Fields:
    """The request's fields; like PHP, what is not a JSON object has none."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


async def _fail(
    fault: Failure, request: Request, fields: Fields, codes: list[str], perform: Callable[..., Any]
) -> Response:
    if isinstance(fault, BadCodes):
        if fault.apply and isinstance(fields.get("f1"), list):
            first_bad = next(index for index, code in enumerate(codes) if code in fault.codes)
            perform({**fields, "f1": fields["f1"][:first_bad]})
        return JSONResponse({"error_code": 1, "error_msg": fault.error_msg})
    if isinstance(fault, DropsZeros):
        return JSONResponse(perform(without_zeros(fields)))
    answer = perform() if fault.apply else success()
    match fault:
        case Hidden() if isinstance(answer, list):
            hides = set(fault.hides)
            answer = [row for row in answer if hides.isdisjoint(_keys(row))]
        case Hidden(hides=hides) if "count" in answer:
            codes_there = perform({**fields, "f1": hides}, query_with_code)
            answer = {"count": answer["count"] - len(codes_there)}
        case Hidden(hides=hides) if "online_count" in answer:
            rows = perform({**fields, "f1": 1, "f2": len(hides), "f3": hides}, query_status)
            for row in rows:
                answer["online_count" if row["online"] else "offline_count"] -= 1
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


def _keys(row: Fields) -> list[Any]:
    return [row.get("product_code"), row.get("esl_code")]


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
            log_config=None,  # whoever starts the process has configured it
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
    staff: Annotated[
        bool, typer.Option(help="Labels are devices: people bind one to each product as soon as it is there.")
    ] = False,
    poll_seconds: Annotated[float, typer.Option(min=0, help="How often a device asks for its picture.")] = 0,
    time_zone: Annotated[str, typer.Option(help="The server's; its times do not say it.")] = "UTC",
    generation: Annotated[
        int, typer.Option(help="2020: a server without actions on devices.")
    ] = DEVICES_SINCE,
    client_id: Annotated[str, typer.Option(help="The app key's name, part of every address.")] = CLIENT_ID,
    sign: Annotated[
        str, typer.Option(envvar="HIPOINK_API_SECRET", help="The app key's value, part of every call.")
    ] = SIGN,
    host_names: Annotated[
        str, typer.Option(envvar="ESL_HOST_NAMES", help="Names under which its page is reached, by commas.")
    ] = "",
) -> None:
    """Serve a sandbox label server until it is stopped."""
    logs.configure_by_variables()
    with (
        LabelStore(
            data,
            auto_trigger=auto_trigger,
            floor=Floor(staff=staff, poll_seconds=poll_seconds),
            time_zone=time_zone,
        ) as store,
        listen(port) as sock,
        contextlib.suppress(KeyboardInterrupt),
    ):
        typer.echo(f"Label server sandbox: http://127.0.0.1:{sock.getsockname()[1]}")
        app = create_app(store, client_id=client_id, sign=sign, generation=generation)
        server(app, host_names).run(sockets=[sock])


if __name__ == "__main__":
    typer.run(main)
