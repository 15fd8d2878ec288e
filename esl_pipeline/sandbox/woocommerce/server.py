"""The pretend WooCommerce over real HTTP, with switches for tests and the demo.

    python -m esl_pipeline.sandbox.woocommerce.server --port 8040 --webhooks http://127.0.0.1:8000/webhooks/woocommerce

`/sandbox/products/{id}` changes a product or variation and sends its webhooks.
"""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import format_datetime
from typing import Annotated, Any, Literal

import typer
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from pydantic import BaseModel, ConfigDict
from starlette.concurrency import run_in_threadpool

from esl_pipeline.sandbox.label_server.server import listen, server
from esl_pipeline.sandbox.woocommerce.api import CONSUMER_KEY, CONSUMER_SECRET, RefusedError, Sandbox
from esl_pipeline.sandbox.woocommerce.bodies import Json
from esl_pipeline.sandbox.woocommerce.delivery import WebhookSender
from esl_pipeline.sandbox.woocommerce.faults import (
    CutBody,
    Faults,
    Notice,
    NoTotals,
    Redirect,
    Status,
    StrippedKey,
)
from esl_pipeline.sandbox.woocommerce.shop import Shop, stocked_shop

TOPICS = ("product.created", "product.updated", "product.deleted", "product.restored")

_ROUTE = "/wp-json/wc/v3"


class Edit(BaseModel):
    """What is to change of a product or variation; what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = None
    regular_price: str | None = None
    sale_price: str | None = None
    gtin: str | None = None
    sku: str | None = None
    stock: int | None = None
    status: Literal["publish", "draft", "pending", "private"] | None = None


def create_app(sandbox: Sandbox) -> FastAPI:
    """The sandbox as an ASGI app."""
    app = FastAPI(title="WooCommerce sandbox", docs_url=None, redoc_url=None, openapi_url=None)
    shop = sandbox.shop

    @app.get(f"{sandbox.path}/wp-json/")
    def index() -> Json:
        return {"name": "Corner Market", "timezone_string": shop.time_zone, "gmt_offset": shop.gmt_offset}

    @app.get(f"{sandbox.path}{_ROUTE}/{{path:path}}")
    async def rest(path: str, request: Request) -> Response:
        answer = await run_in_threadpool(_answer, sandbox, path, request)
        answer.headers["Date"] = format_datetime(shop.time(), usegmt=True)
        return answer

    @app.patch("/sandbox/products/{thing_id}")
    def edit(thing_id: int, changes: Edit) -> Json:
        with shop.lock:
            found = shop.found(thing_id)
            if found is None:
                raise HTTPException(404, "there is no such product or variation")
            shop.change(*found, **changes.model_dump(exclude_none=True))
            return sandbox.body(found[0])

    return app


def _answer(sandbox: Sandbox, path: str, request: Request) -> Response:
    faults = sandbox.faults
    sandbox.calls.append(f"/{path}?{request.url.query}")
    if sandbox.before is not None:
        sandbox.before(f"/{path}")
    if moved := faults.fire(Redirect):
        return RedirectResponse(f"{moved.to}{_ROUTE}/{path}?{request.url.query}", 301)
    if failure := faults.fire(Status):
        headers = {} if failure.retry_after is None else {"Retry-After": failure.retry_after}
        return PlainTextResponse(failure.body, failure.status, headers)
    stripped = faults.fire(StrippedKey)
    try:
        sandbox.admit(None if stripped else request.headers.get("Authorization"))
        content, total = sandbox.answer(path, request.query_params)
    except RefusedError as refused:
        return JSONResponse(refused.body, refused.status)
    return _sent(faults, content, total)


def _sent(faults: Faults, content: Any, total: int | None) -> Response:
    headers = {"X-WP-Total": str(total)} if total is not None and not faults.fire(NoTotals) else {}
    answer = JSONResponse(content, headers=headers)
    if cut := faults.fire(CutBody):
        return Response(bytes(answer.body[: int(len(answer.body) * cut.keep)]), headers=headers)
    if faults.fire(Notice):
        return Response(
            b"<br /><b>Notice</b>: Undefined index in shop.php<br />" + answer.body, headers=headers
        )
    return answer


@dataclass(frozen=True)
class RunningWooCommerce:
    """A sandbox that is being served. url: of its site."""

    url: str
    sandbox: Sandbox

    @property
    def shop_id(self) -> str:
        """How the pipeline calls the shop."""
        return self.url.removeprefix("http://")


def _server(sandbox: Sandbox) -> uvicorn.Server:
    """Its answers are of the shop's own time."""
    made = server(create_app(sandbox))
    made.config.date_header = False
    return made


@contextmanager
def running_woocommerce(
    shop: Shop, *, port: int = 0, path: str = "", **fields: Any
) -> Iterator[RunningWooCommerce]:
    """Serve a shop from a thread of this process, on a free port of 127.0.0.1 unless one is given, below a path."""
    sandbox = Sandbox(shop, path=path, **fields)
    with listen(port) as sock:
        sandbox.site = f"http://127.0.0.1:{sock.getsockname()[1]}{path}"
        running = _server(sandbox)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [sock]}, name="woocommerce")
        thread.start()
        try:
            while not running.started:
                time.sleep(0.005)
            yield RunningWooCommerce(sandbox.site, sandbox)
        finally:
            running.should_exit = True
            thread.join()


def main(
    *,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.")] = 8040,
    webhooks: Annotated[str, typer.Option(help="Where webhooks of all topics go; none without.")] = "",
    secret: Annotated[
        str, typer.Option(envvar="WOOCOMMERCE_WEBHOOK_SECRET", help="Signs the webhooks.")
    ] = "sandbox-secret",  # noqa: S107 (of a shop that does not exist)
    variants: Annotated[int | None, typer.Option(help="Size of the shop; without it 120 products.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same products.")] = 2026,
) -> None:
    """Serve a sandbox WooCommerce until it is stopped; edits live in memory."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.ExitStack() as stack:
        shop = stocked_shop(seed, variants=variants)
        sock = stack.enter_context(listen(port))
        site = f"http://127.0.0.1:{sock.getsockname()[1]}"
        sender = stack.enter_context(WebhookSender(shop, site)) if webhooks else None
        sandbox = Sandbox(shop, sender=sender, site=site)
        for topic in TOPICS if sender and webhooks else ():
            assert sender is not None
            sender.add(topic, webhooks, secret)
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))
        typer.echo(f"WooCommerce sandbox: {site} (key {CONSUMER_KEY}, secret {CONSUMER_SECRET})")
        _server(sandbox).run(sockets=[sock])


if __name__ == "__main__":
    typer.run(main)
