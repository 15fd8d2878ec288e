"""The pretend Shopify over real HTTP, with a page to change its products on.

    python -m esl_pipeline.sandbox.shopify.server --port 8030 --webhooks http://127.0.0.1:8000/webhooks/shopify \
        --data shop.json

Beside the Admin API and the results of bulk operations: `GET /` is the page, `/sandbox/products` what it uses,
`/admin/oauth/access_token` gives the app its tokens, `/sandbox/app` tells of the app and changes it,
`/sandbox/faults` makes the Admin API fail, `/sandbox/deliveries` tells of the webhooks and makes them go astray.
"""

import asyncio
import contextlib
import json
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl

import typer
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.types import Message, Receive, Scope, Send

from esl_pipeline import logs
from esl_pipeline.sandbox.label_server.server import listen, server
from esl_pipeline.sandbox.shopify.answers import Answer
from esl_pipeline.sandbox.shopify.bulk import Operations, keep_lines
from esl_pipeline.sandbox.shopify.catalogue import Product, Variant
from esl_pipeline.sandbox.shopify.delivery import Switches, WebhookSender
from esl_pipeline.sandbox.shopify.faults import BrokenDownload, CutDownload, Fault, Faults, Latency, Status
from esl_pipeline.sandbox.shopify.keep import keep, kept_shop
from esl_pipeline.sandbox.shopify.oauth import CLIENT_ID, TOKEN_PATH, App, AppEdit
from esl_pipeline.sandbox.shopify.sandbox import (
    TOKEN,
    ProductEdit,
    ShopifySandbox,
    VariantEdit,
    found_products,
    product_card,
)
from esl_pipeline.sandbox.shopify.shop import Shop, stocked_shop

VARIANTS_IN_LIST = 4
PRODUCTS_ON_PAGE = 20

Json = dict[str, Any]


def create_app(sandbox: ShopifySandbox) -> FastAPI:
    """The sandbox as an ASGI app."""
    app = FastAPI(title="Shopify sandbox", docs_url=None, redoc_url=None, openapi_url=None)
    shop = sandbox.shop
    page_text = files("esl_pipeline.sandbox.shopify").joinpath("shop.html").read_text(encoding="utf-8")

    @app.post("/admin/api/{version}/graphql.json")
    async def graphql(version: str, request: Request) -> Response:
        try:
            body = await request.json()
        except ValueError:
            body = None
        token = request.headers.get("X-Shopify-Access-Token")
        base_url = str(request.base_url)
        answer = await run_in_threadpool(sandbox.admin.answer, version, token, body, base_url)
        return _sent(answer)

    @app.post(TOKEN_PATH)
    async def token(request: Request) -> Response:
        return await run_in_threadpool(_token, sandbox, await request.body())

    @app.get("/sandbox/app")
    def show_app() -> Json:
        return sandbox.app.shown()

    @app.patch("/sandbox/app")
    def edit_app(edit: AppEdit) -> Json:
        sandbox.edit_app(edit)
        return sandbox.app.shown()

    @app.get("/bulk/{number}.jsonl")
    def result(number: int, request: Request) -> Response:
        expires, signature = (
            request.query_params.get("Expires", ""),
            request.query_params.get("Signature", ""),
        )
        return _result(sandbox.operations, sandbox.faults, number, expires, signature)

    @app.get("/sandbox/products")
    def products(q: str = "", page: int = 1, size: int = PRODUCTS_ON_PAGE) -> Json:
        found = found_products(shop, q)
        start = (max(page, 1) - 1) * size
        with shop.lock:
            cards = [product_card(product, VARIANTS_IN_LIST) for product in found[start : start + size]]
            total = len(shop.products)
        return {"total": total, "matching": len(found), "products": cards}

    @app.get("/sandbox/products/{product_id}")
    def product(product_id: int) -> Json:
        with shop.lock:
            return dict(product_card(_product(shop, product_id)))

    @app.patch("/sandbox/products/{product_id}")
    def edit_product(product_id: int, edit: ProductEdit) -> Json:
        with shop.lock:
            changed = _product(shop, product_id)
            sandbox.edit_product(changed, edit)
            return dict(product_card(changed))

    @app.patch("/sandbox/products/{product_id}/variants/{variant_id}")
    def edit_variant(product_id: int, variant_id: int, edit: VariantEdit) -> Json:
        with shop.lock:
            changed = _product(shop, product_id)
            sandbox.edit_variant(changed, _variant(changed, variant_id), edit)
            return dict(product_card(changed))

    @app.delete("/sandbox/products/{product_id}", status_code=204)
    def delete(product_id: int) -> None:
        with shop.lock:
            sandbox.delete(_product(shop, product_id))

    @app.get("/sandbox/faults")
    def show_faults() -> list[Json]:
        return sandbox.faults.shown()

    @app.post("/sandbox/faults")
    def replace_faults(rules: list[Fault]) -> list[Json]:
        sandbox.faults.replace(rules)
        return sandbox.faults.shown()

    @app.delete("/sandbox/faults")
    def clear_faults() -> list[Json]:
        return replace_faults([])

    @app.get("/sandbox/deliveries")
    def deliveries(last: int = 100) -> Json | None:
        return sandbox.sender.state(last) if sandbox.sender else None

    @app.put("/sandbox/deliveries/switches")
    def set_switches(switches: Switches) -> Json:
        sender = _sender(sandbox)
        sender.switches = switches
        return sender.state(0)

    @app.post("/sandbox/deliveries/subscribe")
    def subscribe() -> Json:
        sender = _sender(sandbox)
        sender.subscribe()
        return sender.state(0)

    @app.get("/")
    def index() -> HTMLResponse:
        policy = (
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline';"
            " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'"
        )
        return HTMLResponse(page_text, headers={"Content-Security-Policy": policy})

    return app


def _product(shop: Shop, product_id: int) -> Product:
    if product_id not in shop.products:
        raise HTTPException(404, "there is no such product")
    return shop.products[product_id]


def _variant(product: Product, variant_id: int) -> Variant:
    for variant in product.variants:
        if variant.id == variant_id:
            return variant
    raise HTTPException(404, "there is no such variant")


def _sender(sandbox: ShopifySandbox) -> WebhookSender:
    if sandbox.sender is None:
        raise HTTPException(409, "this sandbox sends no webhooks")
    return sandbox.sender


def _sent(answer: Answer) -> Response:
    if isinstance(answer.content, str):
        return PlainTextResponse(answer.content, answer.status, answer.headers)
    return JSONResponse(answer.content, answer.status, answer.headers)


def _token(sandbox: ShopifySandbox, body: bytes) -> Response:
    """The answer to a token request, which is a form or, as Shopify takes it too, JSON."""
    if latency := sandbox.faults.fire(Latency, "token"):
        time.sleep(latency.ms / 1000)
    if failure := sandbox.faults.fire(Status, "token"):
        headers = {} if failure.retry_after is None else {"Retry-After": failure.retry_after}
        return PlainTextResponse(failure.body, failure.status, headers)
    try:
        said = json.loads(body)
        form = {key: value for key, value in said.items() if isinstance(value, str)}
    except (ValueError, AttributeError):
        form = dict(parse_qsl(body.decode(errors="replace")))
    return _sent(sandbox.app.grant(form))


# --- results of bulk operations


def _result(operations: Operations, faults: Faults, number: int, expires: str, signature: str) -> Response:
    if latency := faults.fire(Latency, "download"):
        time.sleep(latency.ms / 1000)
    if failure := faults.fire(Status, "download"):
        headers = {} if failure.retry_after is None else {"Retry-After": failure.retry_after}
        return PlainTextResponse(failure.body, failure.status, headers)
    operation = operations.opened(number, expires, signature)
    if operation is None:
        return _storage_error(403, "SignatureDoesNotMatch")
    if int(expires) < time.time():
        return _storage_error(400, "ExpiredToken")
    if cut := faults.fire(CutDownload):
        copy = Path(tempfile.mkstemp(prefix="esl-shopify-", suffix=".jsonl")[1])
        shutil.copyfile(operation.file, copy)
        keep_lines(copy, cut.keep)
        return FileResponse(copy, media_type="application/jsonl", background=BackgroundTask(copy.unlink))
    if broken := faults.fire(BrokenDownload):
        return _BrokenResponse(operation.file, broken, media_type="application/jsonl")
    return FileResponse(operation.file, media_type="application/jsonl")


def _storage_error(status: int, code: str) -> Response:
    """As the storage behind Shopify's addresses says it."""
    body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code></Error>"
    return Response(body, status, media_type="application/xml")


class _BrokenResponse(FileResponse):
    """Sends a part of what it announced; the server then closes the connection, and says so in its log."""

    def __init__(self, path: Path, fault: BrokenDownload, *, media_type: str) -> None:
        super().__init__(path, media_type=media_type)
        self._fault = fault

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        left = 0

        async def send_some(message: Message) -> None:
            nonlocal left
            if message["type"] == "http.response.start":
                headers = {name.lower(): value for name, value in message["headers"]}
                left = int(int(headers[b"content-length"]) * self._fault.keep)
            else:
                body = message.get("body", b"")[:left]
                left -= len(body)
                message = {**message, "body": body, "more_body": True}
            await send(message)

        await super().__call__(scope, receive, send_some)
        await asyncio.sleep(self._fault.seconds)


# --- running it


@dataclass(frozen=True)
class RunningShopify:
    """A sandbox that is being served."""

    url: str
    sandbox: ShopifySandbox


@contextmanager
def running_shopify(
    shop: Shop,
    *,
    token: str = TOKEN,
    app: App | None = None,
    sender: WebhookSender | None = None,
    port: int = 0,
) -> Iterator[RunningShopify]:
    """Serve a shop from a thread of this process, on a free port of 127.0.0.1 unless one is given.

    It takes `token` and those that it gives to the app; with an `app` of its own only what that one says.
    """
    known = app or App(lasting_token=token)
    with ShopifySandbox(shop, app=known, sender=sender) as sandbox, listen(port) as sock:
        running = server(create_app(sandbox), forms={TOKEN_PATH})
        thread = threading.Thread(target=running.run, kwargs={"sockets": [sock]}, name="shopify")
        thread.start()
        try:
            while not running.started:
                time.sleep(0.005)
            yield RunningShopify(f"http://127.0.0.1:{sock.getsockname()[1]}", sandbox)
        finally:
            running.should_exit = True
            thread.join()


def main(
    *,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.")] = 8030,
    webhooks: Annotated[
        str, typer.Option(help="Where all webhooks go, /{topic} added, beside what is subscribed.")
    ] = "",
    secret: Annotated[
        str, typer.Option(envvar="SHOPIFY_WEBHOOK_SECRET", help="Signs the webhooks.")
    ] = "sandbox-secret",  # noqa: S107 (of a shop that does not exist)
    token: Annotated[
        str,
        typer.Option(envvar="SHOPIFY_ADMIN_TOKEN", help="A lasting token, taken beside those that it gives."),
    ] = TOKEN,
    client_id: Annotated[
        str, typer.Option(envvar="SHOPIFY_API_KEY", help="The app's, which gets tokens here.")
    ] = CLIENT_ID,
    client_secret: Annotated[
        str, typer.Option(envvar="SHOPIFY_API_SECRET", help="The app's; without one what signs the webhooks.")
    ] = "",
    data: Annotated[Path | None, typer.Option(help="JSON file; without it edits live in memory.")] = None,
    variants: Annotated[int | None, typer.Option(help="Size of the shop; without it 122 products.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same products.")] = 2026,
    retry_hours: Annotated[float, typer.Option(help="How long webhooks are tried again.")] = 4.0,
    host_names: Annotated[
        str, typer.Option(envvar="ESL_HOST_NAMES", help="Names under which its page is reached, by commas.")
    ] = "",
) -> None:
    """Serve a sandbox Shopify until it is stopped."""
    logs.configure_by_variables()
    # uvicorn ends by raising its signal again: as an exit, so that what is open here is closed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.ExitStack() as stack:
        known = data if data is not None and data.exists() else None
        shop = kept_shop(known, seed) if known else stocked_shop(seed, variants=variants)
        shop.rng.seed()  # a receiver that knows the webhook ids of an earlier start would not take them again
        if data is not None:
            keep(shop, data)
        sender = WebhookSender(webhooks, secret, subscriptions=shop.subscriptions, retry_hours=retry_hours)
        stack.enter_context(sender)
        sandbox = stack.enter_context(
            ShopifySandbox(
                shop,
                app=App(client_id, [client_secret or secret], lasting_token=token or None),
                sender=sender,
                file=data,
            )
        )
        sock = stack.enter_context(listen(port))
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))
        typer.echo(f"Shopify sandbox: http://127.0.0.1:{sock.getsockname()[1]}")
        server(create_app(sandbox), host_names, {TOKEN_PATH}).run(sockets=[sock])


if __name__ == "__main__":
    typer.run(main)
