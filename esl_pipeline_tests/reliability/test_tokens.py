"""Tokens that live for seconds: every read ends right, and no process asks more often than a token's life makes it.

Also where every new token ends the older one, and while the app's secret is being replaced.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import psycopg
import pytest

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.receiver.app import create_app
from esl_pipeline.sandbox.shopify.delivery import WebhookSender
from esl_pipeline.sandbox.shopify.faults import BulkSlow
from esl_pipeline.sandbox.shopify.oauth import App, AppEdit
from esl_pipeline.sandbox.shopify.sandbox import ProductEdit
from esl_pipeline.sandbox.shopify.server import RunningShopify, running_shopify
from esl_pipeline.sandbox.shopify.shop import DOMAIN, Shop, stocked_shop
from esl_pipeline.settings import load_settings
from esl_pipeline.sources.shopify.admin import AdminClient, read_catalogue
from esl_pipeline.sources.shopify.admin.tokens import Grant, forget_tokens
from esl_pipeline.sources.shopify.apps import App as OurApp
from esl_pipeline_tests.hipoink import servers
from esl_pipeline_tests.orchestration.world import map_shop
from esl_pipeline_tests.reliability.token_reader import digest
from esl_pipeline_tests.sandbox.shopify.support import START, small_shop

LIFE = 5.0
RENEWED_AFTER = 0.9
ID = "an-app"


@contextmanager
def opened(shop: Shop, monkeypatch: pytest.MonkeyPatch, **app: Any) -> Iterator[RunningShopify]:
    """A sandbox whose only way in is the app's."""
    with running_shopify(shop, app=App(ID, ["secret"], **app)) as shopify:
        monkeypatch.setenv("SHOPIFY_ADMIN_URL", shopify.url)
        monkeypatch.setenv("SHOPIFY_API_KEY", ID)
        monkeypatch.setenv("SHOPIFY_API_SECRET", "secret")
        yield shopify
    forget_tokens()


def prices(shop: Shop) -> dict[str, str | None]:
    return {str(v.id): v.price for product in shop.products.values() for v in product.variants}


# --- ten processes


def readers(count: int, seconds: float) -> list[dict[str, Any]]:
    """So many processes that read the whole shop for so long; what each says."""
    command = [sys.executable, "-m", "esl_pipeline_tests.reliability.token_reader", str(seconds)]
    running = [
        subprocess.Popen(
            command, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(count)
    ]
    said = []
    for process in running:
        out, error = process.communicate(timeout=800)
        assert process.returncode == 0, error[-3000:]
        said.append(json.loads(out))
    return said


def check_reads(said: list[dict[str, Any]], shop: Shop) -> None:
    levels = sum(len(v.levels) for product in shop.products.values() for v in product.variants)
    for one in said:
        assert (one["reads"], one["levels"]) == ([digest(prices(shop))], [levels])


def check_lives(said: list[dict[str, Any]], life: float) -> None:
    """No process asked twice within a token's life, but for the margin before its end."""
    for one in said:
        gaps = [later - earlier for earlier, later in pairwise(one["asked"])]
        assert all(gap >= life * RENEWED_AFTER for gap in gaps), gaps


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("newest_only", [False, True], ids=["each good for its life", "the newest only"])
def test_ten_processes_read_10000_variants_with_tokens_of_five_seconds(
    monkeypatch: pytest.MonkeyPatch, newest_only: bool
) -> None:
    with opened(
        stocked_shop(3, variants=10_000), monkeypatch, expires_in=LIFE, newest_only=newest_only
    ) as shopify:
        shopify.sandbox.faults.replace([BulkSlow(seconds=LIFE)])
        said = readers(10, seconds=15)
        app = shopify.sandbox.app
        check_reads(said, shopify.sandbox.shop)
        granted = sum(len(one["asked"]) for one in said)
        assert app.requests() == app.requests("granted") == granted
        longest = max(one["seconds"] for one in said)
        print(
            f"{sum(one['rounds'] for one in said)} rounds in {longest:.0f} s, {granted} token requests,"
            f" {max(len(one['asked']) for one in said)} by one process"
        )
        if not newest_only:
            check_lives(said, LIFE)
            return
        # Each request ends nine tokens: no more than a few a second of all ten, not one for each call.
        assert granted <= 10 + 4 * longest


def test_where_the_newest_token_ends_the_others_they_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = list[float]()
    with opened(Shop(1, START), monkeypatch, newest_only=True) as shopify:
        grants = [Grant(shopify.url, OurApp(ID, ("secret",)), sleep=pauses.append) for _ in range(3)]
        tokens = [grant.token(DOMAIN) for grant in grants]
        for _ in range(5):
            for number, grant in enumerate(grants):
                if not shopify.sandbox.app.takes(tokens[number]):
                    tokens[number] = grant.renewed(tokens[number], DOMAIN)
                assert shopify.sandbox.app.takes(tokens[number])
    # The first renewal of each is at once; then they wait the longer, the more often they are in each other's way.
    assert len(pauses) == 3 * 5 - 3
    assert sum(pauses[:4]) < sum(pauses[-4:]) and max(pauses) <= 8


# --- the app's secret is replaced


@pytest.mark.long
def test_the_rotation_of_the_secret_loses_no_webhook_and_no_read(
    monkeypatch: pytest.MonkeyPatch, buffer: Buffer, buffer_dsn: str
) -> None:
    """The new secret is made at Shopify, set here beside the old one, which is then revoked, and left out here."""
    monkeypatch.setenv("ESL_DATABASE_URL", buffer_dsn)
    shop = small_shop()
    product = next(iter(shop.products.values()))
    map_shop(buffer, DOMAIN)
    # What Shopify takes and signs with (its oldest); what is set here; whether it ends the old secret's tokens.
    steps = (
        (["secret"], "secret", False),
        (["new", "secret"], "secret", False),
        (["new", "secret"], "new,secret", False),
        (["new"], "new,secret", True),
        (["new"], "new", False),
    )
    with opened(shop, monkeypatch) as shopify, ExitStack() as stack:
        running = stack.enter_context(client_of_now())
        for valid, ours, ended in steps:
            shopify.sandbox.app.edit(AppEdit(secrets=valid, end_tokens=ended))
            # What runs on since before this step, with the settings that it was started with.
            assert read(running) == prices(shop)
            monkeypatch.setenv("SHOPIFY_API_SECRET", ours)
            with (
                servers.running(create_app(load_settings(), buffer)) as url,
                WebhookSender(f"{url}/webhooks/shopify", valid[-1]) as sender,
            ):
                shopify.sandbox.sender = sender
                for number in range(3):
                    shopify.sandbox.edit_product(product, ProductEdit(title=f"{ours} {number}"))
                assert sender.wait(10)
                assert sender.state(0)["outcomes"] == {"delivered": 3}, sender.state()
                shopify.sandbox.sender = None
            forget_tokens()  # as a process that starts now
            running = stack.enter_context(client_of_now())
            assert read(running) == prices(shop)
    with psycopg.connect(buffer_dsn) as connection:
        assert connection.execute("select count(*) from esl.webhook_inbox").fetchone() == (3 * len(steps),)


def client_of_now() -> AdminClient:
    client = load_settings().sources["shopify"].open_admin(DOMAIN)
    assert client is not None
    return client


def read(client: AdminClient) -> dict[str, str | None]:
    facts = read_catalogue(client, shop=DOMAIN, sleep=lambda _: time.sleep(0.01))
    return {row["variant_id"]: row["price"] for part in facts for row in part.variants}
