"""Calls the addresses of alerts and of the heartbeat. They are secrets: nothing of them gets into a log or an error."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import orjson
from pydantic import SecretStr

from esl_pipeline.addresses import is_loopback
from esl_pipeline.http import JSON_HEADERS, parse_retry_after, trusted

_SECONDS, _CONNECT_SECONDS = 10.0, 5.0
_LONGEST_ANSWER = 65_536
_FIRST_PAUSE, _LONGEST_PAUSE = 15.0, 600.0


@dataclass(frozen=True)
class Answer:
    """How a call ended. error: what went wrong, in words of ours; None: nothing. retry_after: what the server wants."""

    error: str | None = None
    retry_after: float | None = None


def pause_after(attempts: int, answer: Answer) -> float:
    """Seconds until the next try, after so many: longer each time, or as long as the server asks for."""
    own: float = min(_FIRST_PAUSE * 2 ** min(attempts - 1, 10), _LONGEST_PAUSE)
    return max(own, answer.retry_after or 0)


def post(url: SecretStr, body: Any) -> Answer:
    """Send JSON. What comes back is not read but for its status: it may repeat the address."""
    return _call("POST", url, orjson.dumps(body))


def get(url: SecretStr) -> Answer:
    """Call an address."""
    return _call("GET", url, None)


def _call(method: str, url: SecretStr, content: bytes | None) -> Answer:
    address = url.get_secret_value()
    began = time.monotonic()
    try:
        with (
            _unlogged(),
            httpx.Client(
                timeout=httpx.Timeout(_SECONDS, connect=_CONNECT_SECONDS),
                headers=JSON_HEADERS,
                follow_redirects=False,
                trust_env=not is_loopback(httpx.URL(address).host),
                verify=trusted(),
            ) as http,
            http.stream(method, address, content=content) as response,
        ):
            length = 0
            for chunk in response.iter_raw():  # to its end: some close what is not read as not sent
                length += len(chunk)
                if length > _LONGEST_ANSWER or time.monotonic() - began > _SECONDS:
                    break
            return _judged(response)
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
        # Its kind alone: the error itself holds the request.
        return Answer(f"no answer ({type(error).__name__})")


def _judged(response: httpx.Response) -> Answer:
    status = response.status_code
    if 200 <= status < 300:
        return Answer()
    if 300 <= status < 400:
        return Answer(f"HTTP {status}: it redirects, which is not followed")
    asked = parse_retry_after(response.headers.get("Retry-After"), datetime.now(UTC))
    return Answer(f"HTTP {status}", asked if status in (429, 503) else None)


# What httpx and httpcore log of our calls is dropped: the first names the address, the second what is answered.
_is_ours: ContextVar[bool] = ContextVar("is a call to a secret address", default=False)
for _name in ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.http2", "httpcore.proxy"):
    logging.getLogger(_name).addFilter(lambda _record: not _is_ours.get())


@contextmanager
def _unlogged() -> Iterator[None]:
    token = _is_ours.set(True)
    try:
        yield
    finally:
        _is_ours.reset(token)
