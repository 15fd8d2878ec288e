"""The client of one shop's REST API: one request at a time, read only, and the key goes nowhere else."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Self

import httpx
import orjson
import stamina

from esl_pipeline.addresses import is_loopback
from esl_pipeline.http import (
    JSON_HEADERS,
    is_safe,
    one_line,
    parse_retry_after,
    passes,
    pause_before_retry,
    reason,
    trusted,
)
from esl_pipeline.sources.woocommerce.errors import (
    NotLetInError,
    RefusedRequestError,
    UnavailableError,
    WooCommerceError,
)
from esl_pipeline.sources.woocommerce.settings import Key

_CONNECT_SECONDS = 5.0
_RETRY_SECONDS = 20.0
_LONGEST_PAUSE_HERE = 5.0
_API = "/wp-json/wc/v3"
_NO_ROUTE = "rest_no_route"
# Of WordPress's error codes, those that are about the key itself.
_WRONG_KEY = frozenset({"woocommerce_rest_authentication_error", "woocommerce_rest_authentication_missing"})


@dataclass(frozen=True)
class Answer:
    """What was asked for. at: when the shop was asked, by its own clock; surely not later. total: of a list."""

    content: Any
    at: datetime
    total: int | None


class Client:
    """Asks `{url}/wp-json/…`; use it as a context manager.

    `url` is the address of the shop's site (https, http on this machine only), `shop` what errors call it. A passing
    failure is tried again within about twenty seconds. Redirects are not followed. No more than `max_answer_bytes` of
    an answer are read. Raises ValueError for an address that the key may not go to. Not safe to share between threads.
    """

    def __init__(
        self,
        url: str,
        key: Key,
        *,
        shop: str,
        timeout_seconds: float = 30,
        retries: int = 4,
        max_answer_bytes: int = 32_000_000,
    ) -> None:
        if not is_safe(url) or httpx.URL(url).query or httpx.URL(url).fragment:
            raise ValueError(
                "the shop's address must look like https://shop.example.com: its key goes nowhere else"
            )
        self._shop, self._key, self._url = shop, key, url.rstrip("/")
        self._timeout_seconds, self._retries = timeout_seconds, retries
        self._max_answer_bytes = max_answer_bytes
        self._http = httpx.Client(
            timeout=httpx.Timeout(timeout_seconds, connect=min(_CONNECT_SECONDS, timeout_seconds)),
            headers=JSON_HEADERS,
            trust_env=not is_loopback(httpx.URL(url).host),
            verify=trusted(),
        )

    def __repr__(self) -> str:
        return f"Client({self._shop!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, path: str, **parameters: Any) -> Answer:
        """What the REST API answers for a path such as `/products`; raises a leaf of WooCommerceError."""
        return self._tried(f"{_API}{path}", parameters, signed=True)

    def about(self) -> Mapping[str, Any]:
        """What WordPress says of the site to anybody: its name and time zone. Asked without the key."""
        fields = {"_fields": "name,timezone_string,gmt_offset"}
        content = self._tried("/wp-json/", fields, signed=False).content
        return content if isinstance(content, dict) else {}

    def _tried(self, path: str, parameters: Mapping[str, Any], *, signed: bool) -> Answer:
        for attempt in stamina.retry_context(
            on=_pause_before_another_try,
            attempts=self._retries,
            timeout=_RETRY_SECONDS,
            wait_initial=0.3,
            wait_max=5,
            wait_jitter=0.5,
        ):
            with attempt:
                return self._attempt(path, parameters, signed=signed)
        raise AssertionError("an attempt returns or raises")

    def _attempt(self, path: str, parameters: Mapping[str, Any], *, signed: bool) -> Answer:
        call = f"{path} at {self._shop}"
        failure: WooCommerceError
        began, started = time.monotonic(), datetime.now(UTC)
        try:
            response, body = self._answer(call, path, parameters, signed=signed)
        except httpx.TransportError as error:
            failure = UnavailableError(f"{call}: no answer ({_why(error)}).")
        else:
            waited = timedelta(seconds=time.monotonic() - began)
            return self._judged(call, response, body, _asked_at(response, started, waited))
        # Raised out here, so that no httpx error, whose request holds the key, hangs on it as context.
        raise failure

    def _answer(
        self, call: str, path: str, parameters: Mapping[str, Any], *, signed: bool
    ) -> tuple[httpx.Response, bytes]:
        started, answer = time.monotonic(), bytearray()
        auth = httpx.BasicAuth(self._key.consumer_key, self._key.consumer_secret) if signed else None
        with self._http.stream("GET", f"{self._url}{path}", params=dict(parameters), auth=auth) as response:
            for chunk in response.iter_raw():
                answer += chunk
                if len(answer) > self._max_answer_bytes:
                    raise RefusedRequestError(
                        f"{call}: the answer is longer than {self._max_answer_bytes:,} bytes.",
                        code="too_long",
                    )
                if time.monotonic() - started > 2 * self._timeout_seconds:
                    raise httpx.ReadTimeout("the answer trickled in too slowly")
        return response, bytes(answer)

    def _judged(self, call: str, response: httpx.Response, body: bytes, at: datetime) -> Answer:
        status, content = response.status_code, _json(body)
        if status == httpx.codes.OK and content is not None:
            total = response.headers.get("X-WP-Total", "")
            return Answer(content, at, int(total) if total.isdecimal() and len(total) < 10 else None)
        said = f"{call}: HTTP {status}{self._quoted(content, body)}"
        if status == httpx.codes.OK:
            raise UnavailableError(
                f"{said}. That is no answer of the REST API: it was cut off, or something in between speaks.",
                http_status=status,
            )
        if passes(status):
            pause = parse_retry_after(response.headers.get("Retry-After"), datetime.now(UTC))
            raise UnavailableError(f"{said}.", http_status=status, retry_after=pause)
        code = str(content.get("code", "")) if isinstance(content, dict) else ""
        raise self._not_let_in(response, code, said) or RefusedRequestError(
            f"{said}. The shop does not take this request.", code=code, http_status=status
        )

    def _not_let_in(self, response: httpx.Response, code: str, said: str) -> WooCommerceError | None:
        """What is wrong with the key or the site itself, in one sentence each."""
        status, shop = response.status_code, self._shop
        if response.is_redirect:
            place = one_line(response.headers.get("Location", "").partition("?")[0])
            why = (
                f"{shop} answers at another address now ({place}); its key is not sent there: map the shop under the "
                "address of its site, and set WOOCOMMERCE_KEYS for that"
            )
        elif status == httpx.codes.UNAUTHORIZED and code in _WRONG_KEY:
            why = f"{said}. The key of {shop} is wrong or was revoked; copy it anew (WOOCOMMERCE_KEYS)"
        elif status == httpx.codes.UNAUTHORIZED:
            why = (
                f"{said}. The key of {shop} was not seen: is it right (WOOCOMMERCE_KEYS), and does the web server pass "
                "the Authorization header on to WordPress?"
            )
        elif status == httpx.codes.FORBIDDEN and code:
            why = (
                f"{said}. The key of {shop} may not read this; give it the permission Read, and to a user who is "
                "Administrator or Shop manager"
            )
        elif status == httpx.codes.FORBIDDEN:
            why = f"{said}. Something before {shop} (firewall, security plugin) keeps us out; let the REST API through"
        elif status == httpx.codes.NOT_FOUND and code in ("", _NO_ROUTE):
            why = (
                f"{said}. There is no WooCommerce REST API version 3 at {shop}: is this the site's address, is "
                "WooCommerce active, and are the permalinks (Settings) anything but Plain?"
            )
        else:
            return None
        return NotLetInError(f"{why.removesuffix('.')}.".replace("?.", "?"), http_status=status)

    def _quoted(self, content: object, body: bytes) -> str:
        """What the shop said, without the key."""
        message = content.get("message") if isinstance(content, dict) else None
        text = str(message) if message else body[:2000].decode(errors="replace")
        said = one_line(text, self._key.consumer_key, self._key.consumer_secret).rstrip(".")
        return f" {said}" if said else ""


def _json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _asked_at(response: httpx.Response, started: datetime, waited: timedelta) -> datetime:
    """When the shop was asked, by its clock: what its Date says, less the time that the answer took and a second.

    Date is told when the answer begins and in whole seconds: what changed while it was made counts as later.
    """
    try:
        said = parsedate_to_datetime(response.headers.get("Date", ""))
    except ValueError:
        return started
    if said.tzinfo is None:
        return started
    return said.astimezone(UTC) - waited - timedelta(seconds=1)


def _why(error: httpx.TransportError) -> str:
    said = one_line(reason(error))
    return f"its certificate is not trusted: {said}" if "CERTIFICATE_VERIFY" in said else said


def _pause_before_another_try(error: Exception) -> bool | float:
    """stamina's hook: False for no retry, True for its back-off, or the server's own pause in seconds."""
    if not isinstance(error, UnavailableError):
        return False
    return pause_before_retry(error.retry_after, _LONGEST_PAUSE_HERE)
