"""A sender that signs, and two ways to reach the application."""

import asyncio
import base64
import functools
import hmac
import json
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
from fastapi import FastAPI

from esl_pipeline.addresses import networks
from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.receiver.app import create_app
from esl_pipeline.receiver.held import Holding
from esl_pipeline.receiver.intake import Limits
from esl_pipeline.receiver.server import Server, configured
from esl_pipeline.settings import Settings, load_settings

SECRET = "current-webhook-secret"
TOKEN = "an-admin-token-of-32-characters-or-more"
SHOP = "corner-shop.myshopify.com"
PRODUCT = {
    "id": 632910392,
    "admin_graphql_api_id": "gid://shopify/Product/632910392",
    "title": "Café crème ☕",
    "updated_at": "2026-03-01T10:00:00-05:00",
    "status": "active",
    "variants": [{"id": 808950810, "price": "19.99"}],
}
LEVEL = {"inventory_item_id": 49148385, "location_id": 655441491, "available": 5}
BODIES = {
    "products/create": PRODUCT,
    "products/update": PRODUCT,
    "products/delete": {"id": 632910392},
    "inventory_levels/update": LEVEL,
    "inventory_levels/connect": LEVEL,
    "inventory_levels/disconnect": {"inventory_item_id": 49148385, "location_id": 655441491},
}

CANARY = "canary-owner@example.com"
LIFECYCLE_BODIES: dict[str, dict[str, Any]] = {
    "customers/data_request": {
        "shop_id": 954889,
        "shop_domain": SHOP,
        "customer": {"id": 191167, "email": CANARY, "phone": "555-625-1199"},
        "orders_requested": [299938],
        "data_request": {"id": 9999},
    },
    "customers/redact": {
        "shop_id": 954889,
        "shop_domain": SHOP,
        "customer": {"id": 191167, "email": CANARY},
        "orders_to_redact": [299938],
    },
    "shop/redact": {"shop_id": 954889, "shop_domain": SHOP},
    "app/uninstalled": {
        "id": 954889,
        "email": CANARY,
        "shop_owner": CANARY,
        "myshopify_domain": SHOP,
        "updated_at": "2026-03-01T10:00:00-05:00",
    },
}


def make_settings(**overrides: Any) -> Settings:
    given = {"shopify_webhook_secret": SECRET, "esl_admin_token": TOKEN, "app_environment": "development"}
    return load_settings(**(given | overrides))


def make_app(buffer: Buffer, limits: Limits | None = None, **overrides: Any) -> FastAPI:
    return create_app(make_settings(**overrides), buffer, limits)


# Made in 0.2 s: for tests of what remembers nothing from one request to the next.
kept_app = functools.cache(make_app)


def signature(raw: bytes, secret: str = SECRET) -> str:
    return base64.b64encode(hmac.digest(secret.encode(), raw, "sha256")).decode()


def signed(topic: str, raw: bytes, /, secret: str = SECRET, **changes: Any) -> dict[str, str]:
    """The headers of a delivery; `changes` by name without x_shopify_, None leaves one out."""
    headers: dict[str, str | None] = {
        "topic": topic,
        "shop_domain": SHOP,
        "hmac_sha256": signature(raw, secret),
        "webhook_id": str(uuid.uuid4()),
        "event_id": str(uuid.uuid4()),
        "triggered_at": datetime.now(UTC).isoformat(),
        "api_version": "2026-04",
    }
    return {
        f"X-Shopify-{name.replace('_', '-')}": value
        for name, value in (headers | changes).items()
        if value is not None
    }


def call(app: FastAPI, method: str, path: str, **request: Any) -> httpx.Response:
    """One request to the application in this process; an exception in the application is raised here."""

    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://receiver") as client:
            return await client.request(method, path, **request)

    return asyncio.run(go())


def deliver(app: FastAPI, topic: str, body: Any, **changes: Any) -> httpx.Response:
    """Sign and send one webhook to its own route; `body` is bytes or becomes JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return call(app, "POST", f"/webhooks/shopify/{topic}", content=raw, headers=signed(topic, raw, **changes))


@contextmanager
def served(app: FastAPI, holding: Holding | None = None, trusted: str = "") -> Iterator[str]:
    """The application on the server that the command runs, on a free port of loopback; gives its address."""
    server = Server(configured(app, "127.0.0.1", 0, networks(trusted), holding))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 10
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline, "the receiver did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def connected(url: str) -> socket.socket:
    """A bare connection to the server."""
    address = httpx.URL(url)
    return socket.create_connection((address.host, address.port or 80), timeout=10)


def raw_exchange(url: str, *pieces: bytes) -> bytes:
    """Send pieces of a request as they are and read until the server closes the connection."""
    with connected(url) as connection:
        for piece in pieces:
            connection.sendall(piece)
        received = b""
        while part := connection.recv(65_536):
            received += part
        return received
