"""The sandbox's app: every answer of the token endpoint, what an uninstalling ends, who signs while secrets change."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from esl_pipeline.sandbox.shopify.delivery import WebhookSender
from esl_pipeline.sandbox.shopify.oauth import CLIENT_ID, CLIENT_SECRET, App
from esl_pipeline.sandbox.shopify.sandbox import TOKEN
from esl_pipeline.sandbox.shopify.server import RunningShopify, running_shopify
from esl_pipeline.sandbox.shopify.webhooks import sign
from esl_pipeline.sources.shopify.admin import queries
from esl_pipeline_tests.sandbox.shopify.support import receiving, small_shop

FORM = {"grant_type": "client_credentials", "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}


class Caller:
    def __init__(self, shopify: RunningShopify) -> None:
        self.sandbox = shopify.sandbox
        self.http = httpx.Client(base_url=shopify.url, trust_env=False, timeout=10)

    def ask(self, **changes: str) -> httpx.Response:
        return self.http.post("/admin/oauth/access_token", json=FORM | changes)

    def token(self) -> str:
        return str(self.ask().json()["access_token"])

    def query(self, token: str, query: str = queries.SHOP) -> httpx.Response:
        headers = {"X-Shopify-Access-Token": token}
        return self.http.post("/admin/api/2026-10/graphql.json", json={"query": query}, headers=headers)

    def edit(self, **changes: Any) -> Any:
        return self.http.patch("/sandbox/app", json=changes).raise_for_status().json()


@pytest.fixture
def caller() -> Iterator[Caller]:
    with running_shopify(small_shop()) as running:
        caller = Caller(running)
        with caller.http:
            yield caller


def test_it_gives_a_token_that_opens_the_api(caller: Caller) -> None:
    said = caller.ask().json()
    assert set(said) == {"access_token", "scope", "expires_in"}
    assert said["expires_in"] == 86_399 and said["scope"] == "read_inventory,read_locations,read_products"
    assert caller.query(said["access_token"]).status_code == 200
    assert caller.query(TOKEN).status_code == 200, "the lasting one is taken beside it"
    assert caller.query("shpat_other").status_code == 401
    assert set(caller.http.post("/admin/oauth/access_token", data=FORM).json()) == set(said), "a form or JSON"
    foreign = {"Origin": "http://evil.example"}
    assert caller.http.post("/admin/oauth/access_token", data=FORM, headers=foreign).status_code == 403
    shown = caller.http.get("/sandbox/app").json()
    assert shown["token_requests"] == [{"client_id": CLIENT_ID, "outcome": "granted", "count": 2}]
    assert shown["live_tokens"] == 2 and CLIENT_SECRET not in str(shown)


def test_every_refusal(caller: Caller) -> None:
    assert caller.ask(grant_type="x").json()["error"] == "unsupported_grant_type"
    assert caller.ask(client_secret="x").json()["error"] == "invalid_client"
    assert caller.ask(client_id="x").json()["error"] == "invalid_client"
    token = caller.token()
    caller.edit(same_organisation=False)
    assert caller.ask().json()["error"] == "shop_not_permitted"
    caller.edit(same_organisation=True, installed=False)
    assert caller.ask().json()["error"] == "app_not_installed" and caller.ask().status_code == 400
    assert caller.query(token).status_code == caller.query(TOKEN).status_code == 401
    caller.edit(installed=True)
    assert caller.query(token).status_code == 401, "it has ended with the installation"
    token = caller.token()
    caller.edit(frozen=True)
    assert caller.ask().status_code == caller.query(token).status_code == 402
    caller.edit(frozen=False, renamed_to="new-name.myshopify.com")
    moved = caller.query(token)
    assert (moved.status_code, moved.headers["Location"]) == (
        301,
        "https://new-name.myshopify.com/admin/api/2026-10/graphql.json",
    )
    caller.edit(renamed_to="")
    assert caller.query(token).status_code == 200


def test_tokens_end_by_time_or_by_the_next_one(caller: Caller) -> None:
    caller.edit(expires_in=0.001)
    assert caller.query(caller.token()).status_code == 401
    caller.edit(expires_in=60)
    first, second = caller.token(), caller.token()
    assert caller.query(first).status_code == caller.query(second).status_code == 200
    caller.edit(newest_only=True)
    third = caller.token()
    assert [caller.query(token).status_code for token in (first, second, third)] == [401, 401, 200]


def test_what_lacks_a_scope_is_denied_as_shopify_does(caller: Caller) -> None:
    caller.edit(scopes=["read_inventory", "read_locations"])
    token = caller.token()
    (error,) = caller.query(token, queries.VARIANTS_COUNT).json()["errors"]
    assert error["extensions"]["code"] == "ACCESS_DENIED" and "`read_products`" in error["message"]
    granted = caller.query(token, queries.CONNECTION).json()["data"]["currentAppInstallation"]["accessScopes"]
    assert granted == [{"handle": "read_inventory"}, {"handle": "read_locations"}]


def test_an_uninstalling_is_told_once_and_ends_all_else() -> None:
    with (
        receiving() as receiver,
        WebhookSender(receiver.url, CLIENT_SECRET) as sender,
        running_shopify(small_shop(), app=App(), sender=sender) as running,
        Caller(running).http as http,
    ):
        product = next(iter(running.sandbox.shop.products.values()))
        path = f"/sandbox/products/{product.id}"
        http.patch(path, json={"title": "before"}).raise_for_status()
        http.patch("/sandbox/app", json={"installed": False}).raise_for_status()
        http.patch(path, json={"title": "after"}).raise_for_status()
        assert sender.wait(5)
        assert [r.headers["x-shopify-topic"] for r in receiver.received] == [
            "products/update",
            "app/uninstalled",
        ]
        http.patch("/sandbox/app", json={"installed": True}).raise_for_status()
        http.patch(path, json={"title": "again"}).raise_for_status()
        assert len(receiver.received) == 2, "subscriptions do not come back by themselves"


def test_the_oldest_secret_that_is_not_revoked_signs() -> None:
    with (
        receiving() as receiver,
        WebhookSender(receiver.url, "old") as sender,
        running_shopify(small_shop(), app=App(secrets=["old"]), sender=sender) as running,
        Caller(running).http as http,
    ):
        product = next(iter(running.sandbox.shop.products.values()))
        for secrets in (["old"], ["new", "old"], ["new"]):
            http.patch("/sandbox/app", json={"secrets": secrets}).raise_for_status()
            http.patch(f"/sandbox/products/{product.id}", json={"title": secrets[0]}).raise_for_status()
            assert sender.wait(5)
        signed = [request.headers["x-shopify-hmac-sha256"] for request in receiver.received]
        keys = ("old", "old", "new")
        assert signed == [
            sign(request.body, key) for request, key in zip(receiver.received, keys, strict=True)
        ]
