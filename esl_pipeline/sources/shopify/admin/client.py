"""The client of one shop's Admin API: one GraphQL query at a time, at the pace that the shop allows."""

import logging
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import httpx
import orjson
import stamina
from pydantic import SecretStr

from esl_pipeline.addresses import is_loopback
from esl_pipeline.http import JSON_HEADERS, is_safe, one_line, parse_retry_after, passes, reason, trusted
from esl_pipeline.sources.shopify.admin import access, queries
from esl_pipeline.sources.shopify.admin.errors import (
    AdminAuthenticationError,
    AdminError,
    AdminQueryError,
    AdminTooLargeError,
    AdminUnavailableError,
)
from esl_pipeline.sources.shopify.admin.tokens import LastingToken, Tokens
from esl_pipeline.sources.shopify.admin.wire import CONNECT_SECONDS, RETRY_SECONDS, pause_before_another_try

_log = logging.getLogger(__name__)

_SHORTEST_THROTTLE_PAUSE = 0.5
_PASSING_CODES = frozenset({"INTERNAL_SERVER_ERROR", "TIMEOUT"})

_VERSION = re.compile(r"20[0-9]{2}-(01|04|07|10)|unstable")
_NAME = re.compile(r"(?:query|mutation)\s+(\w+)")


class AdminClient:
    """Sends queries to `{url}/admin/api/{api_version}/graphql.json`; use it as a context manager.

    `url` is the shop's https address (http on loopback only), `shop` what errors call it. `token` is one that lasts, or
    where tokens come from: then a refused one is renewed, `renewals` times in one call. A passing failure is tried
    again within about twenty seconds; a throttled query waits, with `sleep`, until the shop's bucket holds enough for
    it, `max_throttle_seconds` at most. No more than `max_answer_bytes` of an answer are read.

    `version_served` is the version of the last answer: Shopify answers with another one, instead of an
    error, when the pinned one is retired. Raises ValueError for an address, token or version that
    cannot be one. Not safe to share between threads.
    """

    def __init__(
        self,
        url: str,
        token: SecretStr | Tokens,
        api_version: str,
        *,
        shop: str | None = None,
        renewals: int = 8,
        timeout_seconds: float = 30,
        retries: int = 4,
        max_throttle_seconds: float = 120,
        max_answer_bytes: int = 32_000_000,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not is_safe(url) or httpx.URL(url).query or httpx.URL(url).fragment:
            raise ValueError("the shop's address must look like https://my-shop.myshopify.com")
        if not _VERSION.fullmatch(api_version):
            raise ValueError(f"Admin API version {api_version!r} does not look like 2026-10")
        self.version_served: str | None = None
        self.version = api_version
        self._shop = shop or httpx.URL(url).host
        self._tokens = token if isinstance(token, Tokens) else LastingToken(token.get_secret_value())
        self._renewals = renewals
        self._sent = SecretStr("")
        self._url = f"{url.rstrip('/')}/admin/api/{api_version}/graphql.json"
        self._timeout_seconds = timeout_seconds
        self._retries = retries
        self._max_throttle_seconds = max_throttle_seconds
        self._max_answer_bytes = max_answer_bytes
        self._sleep = sleep
        self._warned = False
        self._http = httpx.Client(
            timeout=httpx.Timeout(timeout_seconds, connect=min(CONNECT_SECONDS, timeout_seconds)),
            headers=JSON_HEADERS,
            trust_env=not is_loopback(httpx.URL(url).host),
            verify=trusted(),
        )

    def __repr__(self) -> str:
        return f"AdminClient({self._shop!r}, {self.version!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def execute(self, query: str, variables: Mapping[str, object] | None = None) -> dict[str, Any]:
        """The answer's `data`, whole; raises a leaf of AdminError for any error in it.

        A query that was answered by a time-out may have run: all queries here can be repeated.
        """
        name = found[1] if (found := _NAME.search(query)) else "query"
        call = f"{name} at {self._shop}"
        body = orjson.dumps({"query": query, "variables": dict(variables or {})})
        waited = 0.0
        while True:
            answer = self._tried(call, body)
            if not _is_throttled(answer):
                return self._data(call, answer)
            pause = _throttle_pause(call, answer)
            if waited + pause > self._max_throttle_seconds:
                raise AdminUnavailableError(
                    f"{call}: throttled for {waited:.0f} s and {pause:.0f} s more to go; other readers of this "
                    "app use up the shop's rate limit. Try again later.",
                    retry_after=pause,
                )
            self._sleep(pause)
            waited += pause

    def check_scopes(self) -> None:
        """Raise AdminAuthenticationError when the app lacks a needed scope. For when something was refused.

        What hinders this question is not told: the caller has an error of its own.
        """
        answer: dict[str, Any] = {}
        with suppress(AdminUnavailableError, AdminQueryError):
            answer = self._tried(f"Scopes at {self._shop}", orjson.dumps({"query": queries.SCOPES}))
        installation = (answer.get("data") or {}).get("currentAppInstallation")
        granted = [one["handle"] for one in installation["accessScopes"]] if installation else None
        if granted is not None and (missing := access.lacking(granted)):
            raise access.scope_missing(self._shop, missing)

    def _tried(self, call: str, body: bytes) -> dict[str, Any]:
        for attempt in stamina.retry_context(
            on=pause_before_another_try,
            attempts=self._retries,
            timeout=RETRY_SECONDS,
            wait_initial=0.3,
            wait_max=5,
            wait_jitter=0.5,
        ):
            with attempt:
                return self._attempt(call, body)
        raise AssertionError("an attempt returns or raises")

    def _attempt(self, call: str, body: bytes) -> dict[str, Any]:
        failure: AdminError
        try:
            response, answer = self._admitted(call, body)
        except httpx.TransportError as error:
            failure = AdminUnavailableError(f"{call}: no answer ({reason(error)}).")
        else:
            self._compare_version(response.headers.get("X-Shopify-API-Version"))
            return self._judged(call, response, answer)
        # Raised out here, so that no httpx error, whose request holds the token, hangs on it as context.
        raise failure

    def _admitted(self, call: str, body: bytes) -> tuple[httpx.Response, bytes]:
        """The answer to a token that Shopify takes, or the refusal when no other can be had."""
        self._sent = SecretStr(self._tokens.token())
        response, answer = self._answer(call, body)
        for _ in range(self._renewals):
            if (
                response.status_code != 401
                or (token := self._tokens.renewed(self._sent.get_secret_value())) is None
            ):
                break
            self._sent = SecretStr(token)
            response, answer = self._answer(call, body)
        return response, answer

    def _answer(self, call: str, body: bytes) -> tuple[httpx.Response, bytes]:
        started = time.monotonic()
        answer = bytearray()
        headers = {"X-Shopify-Access-Token": self._sent.get_secret_value()}
        with self._http.stream("POST", self._url, content=body, headers=headers) as response:
            for chunk in response.iter_raw():
                answer += chunk
                if len(answer) > self._max_answer_bytes:
                    raise AdminTooLargeError(
                        f"{call}: the answer is longer than {self._max_answer_bytes:,} bytes."
                    )
                if time.monotonic() - started > 2 * self._timeout_seconds:
                    raise httpx.ReadTimeout("the answer trickled in too slowly")
        return response, bytes(answer)

    def _judged(self, call: str, response: httpx.Response, body: bytes) -> dict[str, Any]:
        """The answer of a query that Shopify has looked at, with or without GraphQL errors."""
        status = response.status_code
        said = f"{call}: HTTP {status}{self._quoted(body)}"
        if about_shop := access.refusal(self._shop, response):
            raise about_shop
        if status == 401:
            raise access.token_refused(self._shop, granted=self._tokens.granted)
        if status == 403:
            raise AdminAuthenticationError(
                f"{said}. Check that the token is this shop's, that the app is installed, and its scopes "
                f"({', '.join(access.NEEDED_SCOPES)}).",
                http_status=status,
            )
        if passes(status):
            pause = parse_retry_after(response.headers.get("Retry-After"), datetime.now(UTC))
            raise AdminUnavailableError(f"{said}.", http_status=status, retry_after=pause)
        if status == 404:
            raise AdminQueryError(
                f"{said}. There is no such shop or no Admin API version {self.version}; "
                "use the shop's own myshopify.com address.",
                http_status=status,
            )
        if status != 200:
            raise AdminQueryError(f"{said}. Shopify does not take this request.", http_status=status)
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            raise AdminUnavailableError(
                f"{said}. That is not a GraphQL answer: something in between speaks.", http_status=status
            )
        return answer

    def _data(self, call: str, answer: Mapping[str, Any]) -> dict[str, Any]:
        errors = _errors(answer)
        data = answer.get("data")
        if not errors and isinstance(data, dict):
            return data
        codes = tuple(code for error in errors if (code := _code(error)))
        messages = "; ".join(self._clean(str(error.get("message", error))) for error in errors)
        said = f"{call}: {messages or 'an answer with neither data nor errors'}"
        if "ACCESS_DENIED" in codes:
            self.check_scopes()
            raise AdminAuthenticationError(
                f"{said}. Give the app the access scope that is named.", problem="scope_missing"
            )
        if "MAX_COST_EXCEEDED" in codes:
            raise AdminTooLargeError(said, codes=codes)
        if not errors or _PASSING_CODES.intersection(codes):
            raise AdminUnavailableError(said)
        raise AdminQueryError(said, codes=codes)

    def _compare_version(self, served: str | None) -> None:
        if served is None:
            return
        self.version_served = served
        if served != self.version and not self._warned:
            self._warned = True
            _log.warning(
                "%s answers with Admin API version %s instead of %s, which is retired: pin a newer version.",
                self._shop,
                self._clean(served),
                self.version,
            )

    def _quoted(self, body: bytes) -> str:
        text = self._clean(body[:2000].decode(errors="replace"))
        return f" {text}" if text else ""

    def _clean(self, text: str) -> str:
        """The start of what Shopify said, on one line, without the token."""
        return one_line(text, self._sent.get_secret_value())


def _errors(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    errors = answer.get("errors") or []
    if not isinstance(errors, list):
        errors = [errors]
    return [error if isinstance(error, dict) else {"message": error} for error in errors]


def _code(error: Mapping[str, Any]) -> str | None:
    extensions = error.get("extensions")
    code = extensions.get("code") if isinstance(extensions, dict) else None
    return code if isinstance(code, str) else None


def _is_throttled(answer: Mapping[str, Any]) -> bool:
    return any(
        _code(error) == "THROTTLED" or error.get("message") == "Throttled" for error in _errors(answer)
    )


def _throttle_pause(call: str, answer: Mapping[str, Any]) -> float:
    """Seconds until the shop's bucket holds what the query asks for; a short pause when Shopify does not say."""
    try:
        cost = answer["extensions"]["cost"]
        status = cost["throttleStatus"]
        requested = float(cost["requestedQueryCost"])
        missing = requested - float(status["currentlyAvailable"])
        bucket, rate = float(status["maximumAvailable"]), float(status["restoreRate"])
    except (KeyError, TypeError, ValueError):
        return 2.0
    if requested > bucket:
        raise AdminTooLargeError(
            f"{call}: the query costs {requested:.0f} points and the shop's whole bucket holds {bucket:.0f}.",
            codes=("THROTTLED",),
        )
    return max(missing / rate if rate > 0 else 2.0, _SHORTEST_THROTTLE_PAUSE)
