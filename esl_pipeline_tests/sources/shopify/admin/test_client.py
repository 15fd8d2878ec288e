"""The Admin client against a real server: pace, passing and lasting failures, versions, and the token's secrecy."""

import json
import logging
import socket
import traceback

import pytest
from pydantic import SecretStr

from esl_pipeline.sources.shopify.admin import (
    AdminAuthenticationError,
    AdminClient,
    AdminError,
    AdminQueryError,
    AdminTooLargeError,
    AdminUnavailableError,
)
from esl_pipeline.sources.shopify.admin.queries import SHOP as QUERY
from esl_pipeline_tests.sources.shopify.admin.servers import (
    TOKEN,
    VERSION,
    Reply,
    client_of,
    error,
    graphql,
    in_turn,
    serving,
    throttled,
)

FINE = graphql({"shop": {"name": "Corner"}})


def failing(reply: Reply) -> AdminError:
    with serving(in_turn(reply)) as server, client_of(server) as client, pytest.raises(AdminError) as raised:
        client.execute(QUERY)
    return raised.value


def test_a_query_and_its_answer() -> None:
    with serving(in_turn(FINE)) as server, client_of(server) as client:
        assert client.execute("query Product($id: ID!) { x }", {"id": "1"}) == {"shop": {"name": "Corner"}}
    (request,) = server.requests
    assert request.path == f"/admin/api/{VERSION}/graphql.json"
    assert request.headers["x-shopify-access-token"] == TOKEN
    assert request.json == {"query": "query Product($id: ID!) { x }", "variables": {"id": "1"}}


@pytest.mark.parametrize(
    ("url", "token", "version"),
    [
        ("http://corner-shop.myshopify.com", TOKEN, VERSION),
        ("https://user:secret@corner-shop.myshopify.com", TOKEN, VERSION),
        ("https://corner-shop.myshopify.com?x=1", TOKEN, VERSION),
        ("corner-shop.myshopify.com", TOKEN, VERSION),
        ("https://corner-shop.myshopify.com", "", VERSION),
        ("https://corner-shop.myshopify.com", f"{TOKEN}\r\nX-Other: 1", VERSION),
        ("https://corner-shop.myshopify.com", TOKEN, "2026-11"),
        ("https://corner-shop.myshopify.com", TOKEN, "latest"),
    ],
)
def test_what_cannot_work_is_refused_at_once(url: str, token: str, version: str) -> None:
    with pytest.raises(ValueError) as raised:
        AdminClient(url, SecretStr(token), version)
    assert TOKEN not in str(raised.value)


# --- pace


def test_a_throttled_query_waits_until_the_bucket_holds_enough() -> None:
    slept: list[float] = []
    replies = in_turn(
        throttled(requested=500, available=100, rate=100), throttled(requested=500, available=490), FINE
    )
    with serving(replies) as server, client_of(server, sleep=slept.append) as client:
        client.execute(QUERY)
    assert slept == [4.0, 0.5]
    assert len(server.requests) == 3


def test_throttling_without_figures_is_waited_for_too() -> None:
    slept: list[float] = []
    replies = in_turn(graphql(errors=[error("Throttled")]), FINE)
    with serving(replies) as server, client_of(server, sleep=slept.append) as client:
        client.execute(QUERY)
    assert slept == [2.0]


def test_endless_throttling_ends() -> None:
    slept: list[float] = []
    with (
        serving(in_turn(throttled(requested=500, available=100, rate=100))) as server,
        client_of(server, sleep=slept.append, max_throttle_seconds=10) as client,
        pytest.raises(AdminUnavailableError, match="throttled for 8 s") as raised,
    ):
        client.execute(QUERY)
    assert slept == [4.0, 4.0]
    assert raised.value.retry_after == 4.0


def test_a_query_larger_than_the_bucket_is_not_waited_for() -> None:
    assert isinstance(failing(throttled(requested=50, available=40, bucket=40)), AdminTooLargeError)


# --- failures


@pytest.mark.parametrize("status", [408, 423, 429, 430, 500, 502, 503, 504])
def test_passing_failures_are_tried_again(status: int) -> None:
    with (
        serving(in_turn(Reply(status=status), Reply(status=status), FINE)) as server,
        client_of(server) as client,
    ):
        assert client.execute(QUERY)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "reply",
    [
        Reply(b"<html>busy</html>", status=503),
        Reply(b"<html>a proxy's page</html>"),
        Reply(b"[]"),
        Reply(b'{"data": {', sent=5),
        graphql(),
        graphql(errors=[error("Internal error", "INTERNAL_SERVER_ERROR")]),
    ],
    ids=["503", "page", "list", "cut", "empty", "internal"],
)
def test_what_may_pass_is_told_as_such(reply: Reply) -> None:
    assert isinstance(failing(reply), AdminUnavailableError)


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with (
        AdminClient(url, SecretStr(TOKEN), VERSION) as client,
        pytest.raises(AdminUnavailableError, match=r"Shop at 127\.0\.0\.1: no answer"),
    ):
        client.execute(QUERY)


def test_a_long_pause_is_left_to_the_caller() -> None:
    with (
        serving(in_turn(Reply(status=429, headers={"Retry-After": "60.0"}), FINE)) as server,
        client_of(server) as client,
        pytest.raises(AdminUnavailableError) as raised,
    ):
        client.execute(QUERY)
    assert raised.value.retry_after == 60
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "reply",
    [
        Reply(b'{"errors": "[API] Invalid API key or access token"}', status=401),
        Reply(status=403),
        Reply(status=402),
        Reply(status=301),
    ],
    ids=["401", "403", "402", "301"],
)
def test_a_token_that_is_not_accepted_is_sent_once(reply: Reply) -> None:
    with (
        serving(in_turn(reply)) as server,
        client_of(server) as client,
        pytest.raises(AdminAuthenticationError, match=f"HTTP {reply.status}"),
    ):
        client.execute(QUERY)
    assert len(server.requests) == 1


def test_what_is_refused_for_a_scope_is_asked_for_the_scopes() -> None:
    denied = graphql({"shop": None}, errors=[error("Access denied for shop field.", "ACCESS_DENIED")])
    for scopes, says in (
        (
            graphql({"currentAppInstallation": {"accessScopes": [{"handle": "read_products"}]}}),
            "scopes read_inv",
        ),
        (denied, "Access denied for shop field"),
        (Reply(status=404), "Access denied for shop field"),
    ):
        with (
            serving(in_turn(denied, scopes)) as server,
            client_of(server) as client,
            pytest.raises(AdminAuthenticationError, match=says) as raised,
        ):
            client.execute(QUERY)
        assert raised.value.problem == "scope_missing"
        assert len(server.requests) == 2


def test_graphql_errors_are_told_with_their_codes() -> None:
    refused = failing(graphql(errors=[error("Field 'x' doesn't exist", "undefinedField"), error("and more")]))
    assert isinstance(refused, AdminQueryError)
    assert refused.codes == ("undefinedField",)
    assert "Field 'x' doesn't exist; and more" in str(refused)


def test_partial_data_is_no_answer() -> None:
    assert isinstance(failing(graphql({"shop": None}, errors=[error("half of it")])), AdminQueryError)


def test_an_unknown_shop_or_version_says_so() -> None:
    assert "no such shop or no Admin API version 2026-10" in str(
        failing(Reply(b'{"errors":"Not Found"}', status=404))
    )


def test_a_redirect_is_not_followed() -> None:
    with serving(in_turn(FINE)) as other:
        assert failing(Reply(status=301, headers={"Location": other.url})).http_status == 301
    assert other.requests == []


def test_a_query_that_costs_too_much_asks_for_smaller_pages() -> None:
    reply = graphql(errors=[error("Query cost is 1723, which exceeds the maximum", "MAX_COST_EXCEEDED")])
    assert isinstance(failing(reply), AdminTooLargeError)


def test_an_answer_without_end_is_not_read_to_its_end() -> None:
    reply = Reply(b" " * 3_000_000)
    with (
        serving(in_turn(reply)) as server,
        client_of(server, max_answer_bytes=100_000) as client,
        pytest.raises(AdminTooLargeError, match="longer than 100,000 bytes"),
    ):
        client.execute(QUERY)


# --- versions


def test_a_version_that_fell_forward_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    newer = graphql({"shop": {}}, headers={"X-Shopify-API-Version": "2027-01"})
    with serving(in_turn(newer)) as server, client_of(server) as client:
        assert client.version_served is None
        client.execute(QUERY)
        client.execute(QUERY)
        assert client.version_served == "2027-01"
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "version 2027-01 instead of 2026-10" in warning


def test_the_pinned_version_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    same = graphql({"shop": {}}, headers={"X-Shopify-API-Version": VERSION})
    with serving(in_turn(same)) as server, client_of(server) as client:
        client.execute(QUERY)
        assert client.version_served == VERSION
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


# --- the token


def test_the_token_is_nowhere_but_in_its_header(caplog: pytest.LogCaptureFixture) -> None:
    for name in (None, "httpx", "httpcore"):
        caplog.set_level(logging.DEBUG, logger=name)
    echo = json.dumps({"errors": f"token {TOKEN} is wrong"}).encode()
    replies = [
        Reply(echo, status=401),
        Reply(echo, status=500),
        Reply(echo, status=418),
        Reply(b"{", sent=0),
        graphql(errors=[error(f"no {TOKEN}")]),
    ]
    texts = []
    for reply in replies:
        with serving(in_turn(reply)) as server, client_of(server) as client:
            texts.append(repr(client))
            try:
                client.execute(QUERY)
            except AdminError as raised:
                chain: BaseException | None = raised
                while chain is not None:
                    texts += [repr(chain), *traceback.format_exception(chain)]
                    assert not hasattr(chain, "request")
                    chain = chain.__cause__ or chain.__context__
    assert len(texts) > len(replies)
    assert {"httpx", "httpcore.http11"} <= {record.name for record in caplog.records}
    assert TOKEN not in "".join([*texts, *(record.getMessage() for record in caplog.records)])
