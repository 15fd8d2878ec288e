"""The client-credentials grant: one request a process and life, renewed in time and when refused."""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pydantic import SecretStr

from esl_pipeline.sandbox.shopify.faults import Status, Unauthorized
from esl_pipeline.sandbox.shopify.oauth import CLIENT_ID, CLIENT_SECRET, App, AppEdit
from esl_pipeline.sandbox.shopify.server import RunningShopify, running_shopify
from esl_pipeline.sandbox.shopify.shop import Shop
from esl_pipeline.sources.shopify import apps
from esl_pipeline.sources.shopify.admin import AdminAuthenticationError, AdminClient, AdminError, queries
from esl_pipeline.sources.shopify.admin.access import lacking
from esl_pipeline.sources.shopify.admin.bulk import run
from esl_pipeline.sources.shopify.admin.tokens import AppTokens, Grant, forget_tokens
from esl_pipeline_tests.sandbox.shopify.support import START, small_shop
from esl_pipeline_tests.sources.shopify.admin.servers import Reply, Request, Server, in_turn, serving

SHOP = "corner-market.myshopify.com"


@pytest.fixture
def shopify() -> Iterator[RunningShopify]:
    with running_shopify(Shop(1, START), app=App()) as running:
        yield running
    forget_tokens()


def the_app(*secrets: str) -> apps.App:
    return apps.App(CLIENT_ID, secrets or (CLIENT_SECRET,))


def client_of(url: str, app: apps.App | None = None, **options: Any) -> AdminClient:
    return AdminClient(url, AppTokens(url, app or the_app(), SHOP), "2026-10", shop=SHOP, **options)


def grant_of(shopify: RunningShopify, *secrets: str, pauses: list[float] | None = None) -> Grant:
    return Grant(shopify.url, the_app(*secrets), sleep=(pauses if pauses is not None else []).append)


def test_one_token_serves_all_clients_of_a_process(shopify: RunningShopify) -> None:
    for _ in range(3):
        with client_of(shopify.url) as client:
            client.execute(queries.SHOP)
            client.execute(queries.SHOP)
    assert shopify.sandbox.app.requests() == 1


def test_threads_that_ask_at_once_make_one_request(shopify: RunningShopify) -> None:
    grant, found = grant_of(shopify), list[str]()
    threads = [threading.Thread(target=lambda: found.append(grant.token(SHOP))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20 and len(set(found)) == 1
    assert shopify.sandbox.app.requests() == 1

    renewed = list[str]()
    threads = [
        threading.Thread(target=lambda: renewed.append(grant.renewed(found[0], SHOP))) for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(renewed) == 20 and len(set(renewed)) == 1 and renewed[0] != found[0]
    assert shopify.sandbox.app.requests() == 2


@pytest.mark.long
def test_a_token_is_renewed_when_a_tenth_of_its_life_remains(shopify: RunningShopify) -> None:
    shopify.sandbox.app.edit(AppEdit(expires_in=1))
    began, seen = time.monotonic(), set[str]()
    with client_of(shopify.url) as client:
        while time.monotonic() - began < 2.2:
            client.execute(queries.SHOP)
            seen.add(client._sent.get_secret_value())
            time.sleep(0.02)
    # At 0, 0.9 and 1.8 seconds; never one that had ended, which would be asked for at once.
    assert len(seen) == shopify.sandbox.app.requests() == 3


def test_the_margin_is_an_hour_at_most(shopify: RunningShopify) -> None:
    grant = grant_of(shopify)
    before = time.monotonic()
    grant.token(SHOP)
    assert grant._token is not None
    assert grant._token.ends_at - grant._token.renew_at == pytest.approx(3600)
    assert grant._token.renew_at - before == pytest.approx(86_399 - 3600, abs=5)


def test_a_refused_token_is_renewed_within_the_call(shopify: RunningShopify) -> None:
    with client_of(shopify.url) as client:
        client.execute(queries.SHOP)
        shopify.sandbox.app.edit(AppEdit(end_tokens=True))
        client.execute(queries.SHOP)
    assert shopify.sandbox.app.requests() == 2


@pytest.mark.long
def test_in_the_middle_of_a_bulk_read_too() -> None:
    with running_shopify(small_shop(), app=App()) as shopify:
        ended = []

        def end_tokens(operation: object) -> None:
            ended.append(operation)
            shopify.sandbox.app.edit(AppEdit(end_tokens=True))

        with client_of(shopify.url) as client:
            operation = run(
                client, queries.BULK_CATALOGUE, on_poll=end_tokens, sleep=lambda _: time.sleep(0.01)
            )
            client.execute(queries.SHOP)
        assert operation.status == "COMPLETED" and operation.object_count > 100
        assert shopify.sandbox.app.requests("granted") == len(ended) + 1
    forget_tokens()


def test_a_token_that_is_refused_though_new_is_told_after_a_few_tries_without_a_storm(
    shopify: RunningShopify,
) -> None:
    pauses = list[float]()
    shopify.sandbox.faults.replace([Unauthorized()])
    with client_of(shopify.url) as client:
        client._tokens._grant._sleep = pauses.append  # type: ignore[attr-defined]
        with pytest.raises(AdminAuthenticationError, match="given a moment ago") as refused:
            client.execute(queries.SHOP)
    assert refused.value.problem == "token_refused"
    assert (
        shopify.sandbox.app.requests() == 1 + len(pauses) + 1 == 9
    )  # the first renewal is at once, and each is used
    assert all(0 < pause <= 8 for pause in pauses) and sum(pauses) > 8


def test_a_lasting_token_is_not_renewed(shopify: RunningShopify) -> None:
    with (
        AdminClient(shopify.url, SecretStr("shpat_wrong"), "2026-10", shop=SHOP) as client,
        pytest.raises(AdminAuthenticationError, match="SHOPIFY_ADMIN_TOKEN"),
    ):
        client.execute(queries.SHOP)
    assert shopify.sandbox.app.requests() == 0


# --- secrets that change


def test_the_newest_secret_is_tried_first_and_the_next_when_it_is_wrong(shopify: RunningShopify) -> None:
    app = shopify.sandbox.app
    grant = grant_of(shopify, "new", CLIENT_SECRET)
    first = grant.token(SHOP)
    assert (app.requests("invalid_client"), app.requests("granted")) == (1, 1)
    # What worked is tried first from then on: one request a token.
    second = grant.renewed(first, SHOP)
    assert (app.requests("invalid_client"), app.requests("granted")) == (1, 2)
    app.edit(AppEdit(secrets=["new"]))
    assert grant.renewed(second, SHOP) not in (first, second)
    assert (app.requests("invalid_client"), app.requests("granted")) == (2, 3)


def test_changed_secrets_begin_a_new_grant(shopify: RunningShopify) -> None:
    for secrets, right in ((("wrong",), False), ((CLIENT_SECRET,), True)):
        with client_of(shopify.url, the_app(*secrets)) as client:
            if right:
                client.execute(queries.SHOP)
            else:
                with pytest.raises(AdminAuthenticationError):
                    client.execute(queries.SHOP)


# --- what goes wrong


@pytest.mark.long
def test_a_failing_renewal_leaves_a_living_token_in_use(
    shopify: RunningShopify, caplog: pytest.LogCaptureFixture
) -> None:
    shopify.sandbox.app.edit(AppEdit(expires_in=1.0))
    grant = grant_of(shopify)
    first = grant.token(SHOP)
    shopify.sandbox.faults.replace([Status(on="token", status=503)])
    time.sleep(0.91)
    assert grant.token(SHOP) == first
    assert "the old one goes on" in caplog.text
    time.sleep(0.1)
    with pytest.raises(AdminError, match="HTTP 503"):
        grant.token(SHOP)


def test_a_passing_failure_of_the_token_request_is_tried_again(shopify: RunningShopify) -> None:
    shopify.sandbox.faults.replace([Status(on="token", status=502, times=2)])
    with client_of(shopify.url) as client:
        client.execute(queries.SHOP)
    assert shopify.sandbox.app.requests() == 1


@contextmanager
def answering(reply: Reply) -> Iterator[tuple[Server, AdminClient]]:
    with serving(in_turn(reply)) as server, client_of(server.url, the_app("s3cret-of-app")) as client:
        yield server, client


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (Reply(b"<html>Oauth error app_not_installed: The app</html>", 400), "is not installed in"),
        (Reply(b'{"error": "application_cannot_be_found"}', 400), "client id or secret"),
        (Reply(b"", 401), "client id or secret"),
        (Reply(b'{"error": "odd", "error_description": "no s3cret-of-app"}', 400), r"\(odd no \[hidden\]\)"),
        (Reply(b"", 404), "no shop of this name"),
        (Reply(b"", 301, {"Location": "https://new.myshopify.com/admin"}), "is called new.myshopify.com now"),
        (Reply(b"", 307, {"Location": "https://evil.example/"}), "answers at another address now"),
        (Reply(b"", 402), "is frozen"),
        (Reply(b"", 500), "HTTP 500"),
        (Reply(b"[]"), "holds no token"),
        (Reply(b'{"access_token": "two words"}'), "holds no token"),
        (Reply(b" " * 200_000), "longer than any token"),
        (Reply(b"{", sent=0), "does not answer"),
    ],
)
def test_whatever_answers_the_token_request_is_one_sentence(reply: Reply, says: str) -> None:
    with answering(reply) as (server, client), pytest.raises(AdminError, match=says) as raised:
        client.execute(queries.SHOP)
    said = str(raised.value)
    assert SHOP in said and said.endswith(".") and "s3cret" not in said and CLIENT_ID not in said
    assert {request.path for request in server.requests} == {"/admin/oauth/access_token"}


def test_the_request_is_as_documented_and_no_secret_is_in_address_or_headers() -> None:
    def answer(request: Request) -> Reply:
        return (
            Reply(b'{"access_token": "shpat_1", "expires_in": 60}')
            if "oauth" in request.path
            else Reply(status=401)
        )

    with (
        serving(answer) as server,
        client_of(server.url, the_app("s3cret-of-app"), renewals=0) as client,
        pytest.raises(AdminAuthenticationError),
    ):
        client.execute(queries.SHOP)
    asked = server.requests[0]
    assert asked.headers["content-type"] == "application/x-www-form-urlencoded"
    assert asked.form == {
        "grant_type": "client_credentials",
        "client_id": CLIENT_ID,
        "client_secret": "s3cret-of-app",
    }
    assert "s3cret" not in f"{asked.path} {asked.headers}"


@pytest.mark.parametrize(
    "url", ["http://shop.myshopify.com", "ftp://127.0.0.1", "https://u:p@shop.myshopify.com"]
)
def test_a_secret_goes_to_https_or_this_machine_only(url: str) -> None:
    with pytest.raises(ValueError, match="must look like"):
        AppTokens(url, the_app(), SHOP)


def test_no_text_anywhere_holds_id_secret_or_token(
    shopify: RunningShopify, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    texts = list[str]()
    with client_of(shopify.url) as client:
        client.execute(queries.SHOP)
        token = client._sent.get_secret_value()
        grant = client._tokens._grant  # type: ignore[attr-defined]
        texts += [
            repr(thing) for thing in (client, vars(client), vars(grant), vars(client._tokens), grant._token)
        ]
    assert token.startswith("shpat_")
    said = "".join([*texts, *(record.getMessage() for record in caplog.records)])
    assert "a new access token, which lives 86399 s" in said
    # The process's list of grants is not shown by any of them.
    assert token not in said and CLIENT_SECRET not in said and CLIENT_ID not in said


def test_a_forked_process_asks_for_its_own(shopify: RunningShopify) -> None:
    with client_of(shopify.url) as client:
        client.execute(queries.SHOP)
    assert shopify.sandbox.app.requests() == 1
    child = os.fork()
    if not child:
        code = 1
        try:
            with client_of(shopify.url) as client:
                client.execute(queries.SHOP)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert shopify.sandbox.app.requests() == 2


def test_who_may_write_may_read() -> None:
    assert lacking(["read_products", "write_inventory", "read_locations"]) == ()
    assert lacking(["write_locations"]) == ("read_products", "read_inventory")
