"""The guard before an application that notes what reaches it."""

import asyncio
import logging
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from esl_pipeline.guard import Guard

OWN = "127.0.0.1:3000"
JSON = {"Content-Type": "application/json"}
FROM_PAGE = {"Origin": f"http://{OWN}", "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
LINKED = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
FRAMED = {**LINKED, "Sec-Fetch-Dest": "iframe"}
SAME_SITE = {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}


class Page:
    """Answers everything with one page, and notes what reached it."""

    def __init__(self) -> None:
        self.reached: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.reached.append(f"{scope.get('method', scope['type'])} {scope.get('path')}")
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
        elif scope["type"] == "http":
            own = [(b"Content-Security-Policy", b"script-src 'self'"), (b"X-Frame-Options", b"SAMEORIGIN")]
            await send({"type": "http.response.start", "status": 200, "headers": own})
            await send({"type": "http.response.body", "body": b"prices"})


def ask(
    method: str = "GET", path: str = "/", headers: dict[str, str] | None = None, **guard: Any
) -> httpx.Response:
    """One request; an answer of 200 is the application's, any other the guard's."""
    page = Page()

    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(Guard(page, **guard))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{OWN}") as http:
            return await http.request(method, path, headers=headers)

    answer = asyncio.run(asked())
    assert len(page.reached) == (answer.status_code == 200)
    return answer


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/api/default/product/query?sign=x", {}),  # httpx, curl: no word of a page
        ("POST", "/graphql", JSON),
        ("POST", "/api/default/product/create", {}),
        *(("GET", "/", {"Host": host}) for host in ("localhost:3000", "LOCALHOST", "[::1]:3000", "10.0.0.5:8000")),
        ("POST", "/graphql?op=RunsFeedRootQuery", FROM_PAGE | JSON),  # as Dagster's own pages ask
        ("POST", "/graphql", FROM_PAGE | {"Content-Type": "Application/JSON; charset=utf-8"}),
        ("POST", "/graphql", FROM_PAGE | JSON | {"Host": "localhost:9", "Origin": "http://localhost:9"}),
        ("GET", "/graphql", {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}),  # typed by a person
        ("GET", "/runs", LINKED),
    ],
)  # fmt: skip
def test_s32_commands_servers_own_pages_and_links_are_let_through(
    method: str, path: str, headers: dict[str, str]
) -> None:
    assert ask(method, path, headers).text == "prices"


@pytest.mark.parametrize(
    ("status", "method", "path", "headers"),
    [
        *((421, "GET", "/", {"Host": host}) for host in (
            "evil.example:3000", "localhost.evil.example", "127.0.0.1.evil.example", "localhost.", "a@localhost", "",
            "localhost:80:80", "[evil]",
        )),
        *((403, "GET", "/", FROM_PAGE | {"Origin": origin}) for origin in (
            "http://127.0.0.1:3001", "http://localhost:3000", "http://evil.example", "null", "", OWN, f"ftp://{OWN}",
            f"http://{OWN}, http://{OWN}",
        )),
        (403, "POST", "/graphql", JSON | {"Origin": "http://evil.example"}),  # a browser without Sec-Fetch
        (403, "OPTIONS", "/graphql", {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}),
        (403, "GET", "/", SAME_SITE),
        (403, "GET", "/runs", FRAMED),
        (403, "GET", "/", {"Sec-Fetch-Site": "cross-site"}),
        (403, "POST", "/", LINKED),
        (403, "HEAD", "/", LINKED),
        (403, "GET", "/", SAME_SITE | {"Sec-Fetch-Site": "same-origin, cross-site"}),
        (403, "GET", "/graphql?query=mutation{x}", {}),
        (403, "GET", "/graphql?query=mutation{x}", LINKED),
        (403, "GET", "/%67raphql?%71uery=mutation{x}", {}),
        (403, "POST", "/prefix/graphql?query=mutation{x}", JSON),
        (403, "GET", "/graphql?op=x&query=", {}),
        *((403, "POST", "/graphql", {"Content-Type": kind}) for kind in (
            "text/plain", "text/plain; application/json", "application/x-www-form-urlencoded", "",
            "multipart/form-data; boundary=application/json",
        )),
    ],
)  # fmt: skip
def test_s32_what_a_browser_carries_for_strangers_is_refused_in_a_sentence(
    status: int, method: str, path: str, headers: dict[str, str]
) -> None:
    answer = ask(method, path, headers)
    assert answer.status_code == status
    assert answer.headers["content-type"].startswith("text/plain") and answer.headers["connection"] == "close"
    assert method == "HEAD" or answer.text.endswith(".\n")
    assert "access-control-allow-origin" not in answer.headers


def test_s32_answers_may_not_be_framed_and_keep_their_own_policy() -> None:
    for headers in ({}, FRAMED):
        answer = ask(headers=headers)
        policies = answer.headers.get_list("content-security-policy")
        assert policies[-1] == "frame-ancestors 'none'"
        assert answer.headers.get_list("x-frame-options") == ["DENY"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert ask().headers.get_list("content-security-policy")[0] == "script-src 'self'"


def test_s32_names_that_a_person_adds() -> None:
    def of(host: str, origin: str, **guard: Any) -> int:
        return ask("POST", "/", JSON | {"Host": host, "Origin": origin}, **guard).status_code

    names = {"names": ("Shelf.example.com", "other.example.com:8443")}
    assert of("shelf.example.com", "https://shelf.example.com") == 421
    assert of("shelf.example.com", "https://shelf.example.com", **names) == 200
    assert of("other.example.com:8443", "https://other.example.com:8443", **names) == 200
    assert of("127.0.0.1:3000", "https://shelf.example.com", **names) == 200, (
        "a proxy that does not pass the host on"
    )
    assert of("127.0.0.1:3000", "https://shelf.example.com:444", **names) == 403
    assert of("127.0.0.1:3000", "http://localhost:8000", **names) == 403


def test_s32_pages_bodies_and_hosts_may_be_told() -> None:
    assert ask(headers=LINKED, pages={"/"}).status_code == 200
    assert ask(path="/api/default/esl/bind_task", headers=LINKED, pages={"/"}).status_code == 403
    assert ask("POST", headers={"Content-Type": "text/plain"}, only_json=False).status_code == 200
    tunnel = {"Host": "random.tunnel.example"}
    assert (
        ask("POST", "/webhooks/shopify/products/update", tunnel, any_host=("/webhooks/",)).status_code == 200
    )
    assert ask("POST", "/api/store-mappings/", tunnel, any_host=("/webhooks/",)).status_code == 421
    page = tunnel | {"Origin": "http://evil.example"}
    assert ask("POST", "/webhooks/shopify/products/update", page, any_host=("/webhooks/",)).status_code == 403


@pytest.mark.parametrize("can_answer", [True, False])
def test_s32_a_websocket_is_for_our_own_pages(can_answer: bool) -> None:
    def opened(*headers: tuple[bytes, bytes]) -> tuple[list[str], list[Message]]:
        page, sent = Page(), list[Message]()

        async def send(message: Message) -> None:
            sent.append(message)

        async def receive() -> Message:
            return {"type": "websocket.connect"}

        scope = {
            "type": "websocket",
            "path": "/graphql",
            "query_string": b"",
            "headers": [(b"host", OWN.encode()), *headers],
            "extensions": {"websocket.http.response": {}} if can_answer else {},
        }
        asyncio.run(Guard(page)(scope, receive, send))
        return page.reached, sent

    for own in ([], [(b"origin", f"http://{OWN}".encode())]):
        assert opened(*own) == (["websocket /graphql"], [{"type": "websocket.accept"}])
    for foreign in (
        [(b"origin", b"http://evil.example")],
        [(b"origin", f"http://{OWN}".encode()), (b"origin", b"http://evil.example")],
        [(b"sec-fetch-site", b"cross-site"), (b"sec-fetch-mode", b"websocket")],
    ):
        reached, sent = opened(*foreign)
        assert reached == []
        if can_answer:
            assert [message["type"] for message in sent] == [
                "websocket.http.response.start",
                "websocket.http.response.body",
            ]
            assert sent[0]["status"] == 403
        else:
            assert sent == [{"type": "websocket.close", "code": 1008}]


def test_s32_a_refusal_is_logged_once_a_second_without_what_the_address_asks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    guard = Guard(Page())

    async def asked() -> None:
        transport = httpx.ASGITransport(guard)
        async with httpx.AsyncClient(transport=transport, base_url="http://evil.example") as http:
            for _ in range(50):
                await http.get("/a%0Ab?sign=secret", headers={"Origin": "http://evil.example"})

    with caplog.at_level(logging.WARNING):
        asyncio.run(asked())
    (said,) = caplog.messages
    assert said.startswith("refused GET '/a\\nb' under 'evil.example' from 'http://evil.example'")
    assert "secret" not in said
