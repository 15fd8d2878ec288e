"""Stands before what has no login of its own, so that a browser carries no stranger's word to it.

What is served on loopback trusts whoever reaches it, and an operator's browser reaches it for every page that is open
in it. A browser says whom it speaks for: in `Host` the name that it looked up (a stranger's, when his name was made to
mean this machine), in `Origin` and `Sec-Fetch-Site` the page that asks. Commands and servers send neither of the two,
and are let through. Pure ASGI: it stands before any application, and adds to all answers that no page may frame them.
"""

import ipaddress
import logging
import re
import time
from collections.abc import Collection
from typing import Any
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HOST = re.compile(r"\[([0-9a-f:.]+)\](?::[0-9]+)?|([a-z0-9._-]+)(?::[0-9]+)?")
_FORBIDDEN, _MISDIRECTED = 403, 421
_SET = {
    b"x-frame-options": b"DENY",
    b"x-content-type-options": b"nosniff",
    b"cross-origin-resource-policy": b"same-origin",
}
# A policy of its own: beside another one both count, and nothing of that one is lost.
_NO_FRAMES = (b"content-security-policy", b"frame-ancestors 'none'")
_OF_PAGES = frozenset((b"origin", b"sec-fetch-site"))
_LOG_EVERY_SECONDS = 1.0

log = logging.getLogger(__name__)


class Guard:
    """The application, for its own pages, for commands and for servers.

    names: hosts, with their port where it is not the usual one, under which people reach it beside localhost and plain
    addresses (no stranger can make an address mean this machine, as he can a name; and a tunnel changes the port).
    pages: the paths to which other sites may link, and all below one that ends in /*; None is every one. only_json:
    whether a body that says what it is must be JSON, as no form's is; forms: paths that take one all the same, since
    nobody fills it in without a secret. any_host: beginnings of paths that only servers ask for, under any name.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        names: Collection[str] = (),
        pages: Collection[str] | None = None,
        only_json: bool = True,
        forms: Collection[str] = (),
        any_host: tuple[str, ...] = (),
    ) -> None:
        self._app, self._pages, self._any_host = app, pages, any_host
        self._below = tuple(page[:-1] for page in pages or () if page.endswith("/*"))
        self._only_json, self._forms = only_json, forms
        self._origins = frozenset(name.lower() for name in names)
        self._names = {"localhost", *(name.partition(":")[0] for name in self._origins)}
        self._said_at, self._unsaid = -_LOG_EVERY_SECONDS, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the application does, or refuse with a sentence."""
        if scope["type"] == "lifespan" or (refusal := self._refusal(scope)) is None:
            await self._app(scope, receive, _unframed(send))
        else:
            self._log(scope, refusal[1])
            await _refuse(scope, _unframed(send), *refusal)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers, path = _headers(scope), scope["path"]
        host = headers.get("host", "").lower()
        if not (path.startswith(self._any_host) or self._expects(host)):
            return _MISDIRECTED, "Not served under that name. If the name is yours, add it to ESL_HOST_NAMES."
        if (origin := headers.get("origin")) is not None and not self._is_ours(origin.lower(), host):
            return _FORBIDDEN, "A page of another origin may not ask for this."
        asks_for_others = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if asks_for_others and not self._is_link(scope, headers):
            return _FORBIDDEN, "Another site may link to pages of this one, and nothing else."
        # Dagster's own pages say there how an operation is called (?op=...).
        if path.endswith("/graphql") and "query" in parse_qs(scope["query_string"].decode("latin-1"), True):
            return _FORBIDDEN, "GraphQL is taken from a JSON body only, not from an address."
        kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if self._only_json and kind != "application/json" and path not in self._forms:
            return _FORBIDDEN, "A body must be JSON and say so: Content-Type: application/json."
        return None

    def _expects(self, host: str) -> bool:
        if not (found := _HOST.fullmatch(host)):
            return False
        name = found[1] or found[2]
        return name in self._names or _is_address(name)

    def _is_ours(self, origin: str, host: str) -> bool:
        scheme, _, authority = origin.partition("://")
        # A proxy may have given the request another host than the one that the browser asked for.
        return scheme in ("http", "https") and (authority == host or authority in self._origins)

    def _is_link(self, scope: Scope, headers: dict[str, str]) -> bool:
        path = scope["path"]
        if self._pages is not None and path not in self._pages and not path.startswith(self._below):
            return False
        asked = (scope.get("method"), headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest"))
        return asked == ("GET", "navigate", "document")

    def _log(self, scope: Scope, sentence: str) -> None:
        """One line a second at most: a page may ask a thousand times. Not the query, which may hold a secret."""
        if (now := time.monotonic()) - self._said_at < _LOG_EVERY_SECONDS:
            self._unsaid += 1
            return
        headers = _headers(scope)
        log.warning(
            "refused %s %a under %a from %a (and %d before it): %s",
            *(scope.get("method", "websocket"), scope["path"][:200], headers.get("host", "")[:200]),
            *(headers.get("origin", headers.get("sec-fetch-site", ""))[:200], self._unsaid, sentence),
        )
        self._said_at, self._unsaid = now, 0


def is_of_a_page(scope: Scope) -> bool:
    """Whether a browser says for which page it asks; the names of headers are in lower case, as servers give them."""
    return any(name in _OF_PAGES for name, _ in scope["headers"])


def _headers(scope: Scope) -> dict[str, str]:
    """By lower-case name; one that came twice holds both, and so is none that is expected."""
    found: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _unframed(send: Send) -> Send:
    async def send_on(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [pair for pair in message.get("headers", ()) if pair[0].lower() not in _SET]
            message = {**message, "headers": [*kept, *_SET.items(), _NO_FRAMES]}
        await send(message)

    return send_on


async def _refuse(scope: Scope, send: Send, status: int, sentence: str) -> None:
    kind = "http.response"
    if scope["type"] == "websocket":
        kind = "websocket.http.response"
        if kind not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008})
            return
    # The body is not read, so the connection cannot be used again.
    headers: list[Any] = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": f"{kind}.start", "status": status, "headers": headers})
    await send({"type": f"{kind}.body", "body": f"{sentence}\n".encode()})
