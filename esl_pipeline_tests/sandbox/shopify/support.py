"""What the tests of the pretend Shopify share: a running one, a caller of its Admin API, a receiver of webhooks."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

from esl_pipeline.sandbox.shopify.delivery import WebhookSender
from esl_pipeline.sandbox.shopify.sandbox import TOKEN, ShopifySandbox
from esl_pipeline.sandbox.shopify.server import running_shopify
from esl_pipeline.sandbox.shopify.shop import Shop
from esl_pipeline.sources.shopify.admin import queries
from esl_pipeline_tests.waiting import eventually

START = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)


def small_shop(seed: int = 1) -> Shop:
    """The groceries, 100 teas and a gift card; at a time of its own."""
    shop = Shop(seed, START)
    made = shop.catalogue
    for product in [*made.groceries(shop.now), made.loose_tea(shop.now), made.gift_card(shop.now)]:
        shop.add(product)
    return shop


@dataclass
class Running:
    """A running sandbox and what tests ask of it."""

    url: str
    sandbox: ShopifySandbox
    http: httpx.Client

    @property
    def shop(self) -> Shop:
        return self.sandbox.shop

    def call(
        self, query: str, /, *, version: str = "2026-10", token: str = TOKEN, **variables: Any
    ) -> httpx.Response:
        return self.http.post(
            f"/admin/api/{version}/graphql.json",
            json={"query": query, "variables": variables},
            headers={"X-Shopify-Access-Token": token},
        )

    def data(self, query: str, /, **variables: Any) -> Any:
        answer = self.call(query, **variables).json()
        assert "errors" not in answer, answer["errors"]
        return answer["data"]

    def errors(self, query: str, /, **variables: Any) -> list[str]:
        return [error["message"] for error in self.call(query, **variables).json()["errors"]]

    def faults(self, *rules: dict[str, Any]) -> None:
        self.http.post("/sandbox/faults", json=list(rules)).raise_for_status()

    def start_bulk(self, query: str) -> str:
        said = self.data(queries.RUN_BULK, query=query)["bulkOperationRunQuery"]
        assert said["userErrors"] == []
        return str(said["bulkOperation"]["id"])

    def bulk(self, operation_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.data(queries.BULK_OPERATION, id=operation_id)["bulkOperation"]
        return found

    def ended_bulk(self, operation_id: str) -> dict[str, Any]:
        told: list[dict[str, Any]] = []

        def ended() -> bool:
            told.append(self.bulk(operation_id))
            return told[-1]["status"] in ("COMPLETED", "FAILED", "CANCELED")

        eventually(ended)
        return told[-1]


@contextmanager
def running(shop: Shop | None = None, sender: WebhookSender | None = None) -> Iterator[Running]:
    with (
        running_shopify(shop or small_shop(), sender=sender) as served,
        httpx.Client(base_url=served.url, timeout=10) as http,
    ):
        yield Running(served.url, served.sandbox, http)


@dataclass(frozen=True)
class Received:
    """A request that came to the receiver."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float


@dataclass
class Receiver:
    """A receiver of webhooks; `script` holds the statuses to answer with, one a request, then 200."""

    url: str
    script: list[int] = field(default_factory=list)
    always: int = 200
    hold: float = 0
    received: list[Received] = field(default_factory=list)


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver("")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.received.append(Received(self.path, headers, body, time.monotonic()))
            status = receiver.script.pop(0) if receiver.script else receiver.always
            time.sleep(receiver.hold)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}/webhooks/shopify"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
