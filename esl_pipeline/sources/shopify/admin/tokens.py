"""Where the Admin API's access token comes from: the settings, or the client-credentials grant of an app.

Granted tokens live in this process's memory only. Each process has its own, one for an address and an app, whichever
thread asks. It is renewed when the smaller of an hour and a tenth of its life remains, and when Shopify refuses it.
"""

import logging
import os
import random
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import httpx
import orjson

from esl_pipeline.addresses import is_loopback
from esl_pipeline.http import JSON_HEADERS, is_safe, one_line, parse_retry_after, passes, reason, trusted
from esl_pipeline.sources.shopify.admin import access
from esl_pipeline.sources.shopify.admin.errors import (
    AdminAuthenticationError,
    AdminError,
    AdminUnavailableError,
)
from esl_pipeline.sources.shopify.admin.wire import CONNECT_SECONDS
from esl_pipeline.sources.shopify.apps import App

_log = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 30.0
_LONGEST_ANSWER = 100_000
_LONGEST_MARGIN = 3600.0
# Refusals nearer than this are others' doing: each new token of a process may have ended ours.
_CALM_SECONDS = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0
_WRONG_SECRET = frozenset({"invalid_client", "application_cannot_be_found"})
# Shopify answers as JSON or, for a person, as a page with "Oauth error app_not_installed: …" in it.
_ON_A_PAGE = re.compile(r"oauth error ([a-z_]+)", re.IGNORECASE)
_TOKEN = re.compile(r"[!-~]+")
# The request is a form, as documented; the answer JSON.
_HEADERS = {name: value for name, value in JSON_HEADERS.items() if name != "Content-Type"}


class Tokens(ABC):
    """What a client gets its token from."""

    granted = False
    """Whether another token can be had when one is refused."""

    @abstractmethod
    def token(self) -> str:
        """The token to send now. Raises AdminError when there is none to be had."""

    @abstractmethod
    def renewed(self, refused: str) -> str | None:
        """A token in place of one that Shopify refuses; None when there is no other."""


class LastingToken(Tokens):
    """A token that somebody made, and that stays. Raises ValueError for what cannot be one."""

    def __init__(self, token: str) -> None:
        if not _TOKEN.fullmatch(token):
            raise ValueError("the shop's Admin token is empty, or has characters that no token has")
        self._token = token

    def token(self) -> str:
        """The one."""
        return self._token

    def renewed(self, refused: str) -> None:
        """There is no other."""


class AppTokens(Tokens):
    """The tokens of an app at one shop's address; `shop` is what errors call it."""

    granted = True

    def __init__(self, address: str, app: App, shop: str) -> None:
        if not is_safe(address):
            raise ValueError("the shop's address must look like https://my-shop.myshopify.com")
        self._grant, self._shop = _grant_of(address.rstrip("/"), app), shop

    def token(self) -> str:
        """The process's token, renewed in time."""
        return self._grant.token(self._shop)

    def renewed(self, refused: str) -> str | None:
        """Another token: a new one, or the one that another thread got meanwhile. Waits where tokens are disputed."""
        return self._grant.renewed(refused, self._shop)


@dataclass(frozen=True)
class _Token:
    """A granted token; times are of the monotonic clock."""

    text: str = field(repr=False)
    renew_at: float
    ends_at: float


class Grant:
    """One process's token of one app at one address. Safe to share between threads: they wait for one request."""

    def __init__(self, address: str, app: App, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.app = app
        self._address = address
        self._sleep = sleep
        self._lock = threading.Lock()
        self._token: _Token | None = None
        self._worked = 0  # the secret that was right last, counted from the newest
        self._refusals, self._refused_at = 0, -_CALM_SECONDS

    def token(self, shop: str) -> str:
        """The token, asked for when there is none yet or it is about to end."""
        with self._lock:
            token, now = self._token, time.monotonic()
            if token is not None and now < token.renew_at:
                return token.text
            try:
                return self._new(shop)
            except AdminError as error:
                if token is None or now >= token.ends_at:
                    raise
                # The old one is good for a while yet: what is wrong may pass, or be mended, before it ends.
                _log.warning("No new access token yet, the old one goes on: %s", error)
                self._token = _Token(token.text, now + (token.ends_at - now) / 4, token.ends_at)
                return token.text

    def renewed(self, refused: str, shop: str) -> str:
        """A token other than the refused one. The sooner after another refusal, the longer it waits first."""
        with self._lock:
            if self._token is not None and self._token.text != refused:
                return self._token.text
            self._token = None
            now = time.monotonic()
            self._refusals = self._refusals + 1 if now - self._refused_at < _CALM_SECONDS else 0
            self._refused_at = now
            if self._refusals:
                longest = min(_FIRST_PAUSE * 2**self._refusals, _LONGEST_PAUSE)
                self._sleep(random.uniform(longest / 4, longest))  # noqa: S311
            return self._new(shop)

    def _new(self, shop: str) -> str:
        """Ask with the secret that worked last, at first the newest, and with the others when it is wrong."""
        for number in sorted(range(len(self.app.secrets)), key=lambda number: number != self._worked):
            try:
                token, life = self._asked(shop, self.app.secrets[number])
            except AdminAuthenticationError as error:
                if error.problem != "wrong_secret":
                    raise
                continue
            self._token, self._worked = token, number
            _log.info("%s: a new access token, which lives %.0f s", shop, life)
            return token.text
        raise access.wrong_secret(shop)

    def _asked(self, shop: str, secret: str) -> tuple[_Token, float]:
        asked_at = time.monotonic()
        failure: AdminError
        try:
            answer, body = self._post(secret)
        except httpx.TransportError as error:
            failure = AdminUnavailableError(f"{shop} does not answer the token request ({reason(error)}).")
        else:
            if answer.status_code == 200:
                return self._read(shop, body, asked_at)
            failure = self._refused(shop, answer, body, secret)
        # Raised out here, so that no httpx error, whose request holds the secret, hangs on it as context.
        raise failure

    def _post(self, secret: str) -> tuple[httpx.Response, bytes]:
        url = f"{self._address}/admin/oauth/access_token"
        form = {"grant_type": "client_credentials", "client_id": self.app.client_id, "client_secret": secret}
        started, timeout = time.monotonic(), httpx.Timeout(_TIMEOUT_SECONDS, connect=CONNECT_SECONDS)
        with (
            httpx.Client(
                timeout=timeout, trust_env=not is_loopback(httpx.URL(url).host), verify=trusted()
            ) as http,
            http.stream("POST", url, data=form, headers=_HEADERS, follow_redirects=False) as answer,
        ):
            body = bytearray()
            for chunk in answer.iter_raw():
                body += chunk
                if len(body) > _LONGEST_ANSWER:
                    raise httpx.ReadError("the answer is longer than any token")
                if time.monotonic() - started > 2 * _TIMEOUT_SECONDS:
                    raise httpx.ReadTimeout("the answer trickled in too slowly")
        return answer, bytes(body)

    def _read(self, shop: str, body: bytes, asked_at: float) -> tuple[_Token, float]:
        said = _json(body)
        text, life = said.get("access_token"), said.get("expires_in")
        if not isinstance(text, str) or not _TOKEN.fullmatch(text):
            raise AdminUnavailableError(
                f"The answer of {shop} to the token request holds no token: something in between speaks."
            )
        # Where Shopify does not say how long it lives, it is a day; a refusal tells otherwise.
        seconds = float(life) if isinstance(life, int | float) and life > 0 else 86_400.0
        margin = min(_LONGEST_MARGIN, seconds / 10)
        return _Token(text, asked_at + seconds - margin, asked_at + seconds), seconds

    def _refused(self, shop: str, answer: httpx.Response, body: bytes, secret: str) -> AdminError:
        status, text = answer.status_code, body.decode(errors="replace")
        if about_shop := access.refusal(shop, answer):
            return about_shop
        said = _json(body)
        code = _code(said, text)
        if code in _WRONG_SECRET or (status == 401 and not code):
            return access.wrong_secret(shop)
        if code in _SENTENCES:
            return _SENTENCES[code](shop)
        detail = one_line(f"{code} {said.get('error_description') or ''}", secret, self.app.client_id)
        heard = f"{shop} answers the token request with HTTP {status}{f' ({detail})' if detail else ''}"
        if passes(status):
            pause = parse_retry_after(answer.headers.get("Retry-After"), datetime.now(UTC))
            return AdminUnavailableError(f"{heard}.", http_status=status, retry_after=pause)
        why = "there is no shop of this name" if status == 404 else "it gives this app no token"
        return AdminAuthenticationError(f"{heard}: {why}.", http_status=status)


_SENTENCES = {"app_not_installed": access.not_installed, "shop_not_permitted": access.other_organisation}


def _code(said: Mapping[str, object], text: str) -> str:
    """The name of a refusal; "" when there is none."""
    code = said.get("error")
    if isinstance(code, str):
        return code
    found = _ON_A_PAGE.search(text)
    return found[1].lower() if found else ""


def _json(body: bytes) -> dict[str, object]:
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return said if isinstance(said, dict) else {}


_grants: dict[tuple[str, str], Grant] = {}
_grants_lock = threading.Lock()


def _grant_of(address: str, app: App) -> Grant:
    """This process's grant. Secrets that were changed meanwhile begin a new one."""
    with _grants_lock:
        known = _grants.get((address, app.client_id))
        if known is None or known.app.secrets != app.secrets:
            known = _grants[address, app.client_id] = Grant(address, app)
        return known


def forget_tokens() -> None:
    """Begin anew: a forked process must neither use its parent's tokens nor wait for a lock that nobody holds there."""
    global _grants_lock  # noqa: PLW0603
    _grants_lock = threading.Lock()
    _grants.clear()


os.register_at_fork(after_in_child=forget_tokens)
