"""The sign: added to a request at the last moment, and taken out of every text.

The label server takes its app-key value as a plain field: in the JSON body of a POST, in the URL
of a GET. httpx logs URLs and hangs requests on its exceptions, so the sign is added below it, in
the transport: nothing above ever holds it.
"""

import html
import json
import logging
import re
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import httpx
import orjson
from pydantic import SecretStr

REDACTED = "[sign]"
# The extension of a request that goes without it.
UNSIGNED = {"esl_unsigned": True}

# httpcore logs answer headers at DEBUG, and a redirect's Location repeats the URL that was asked for.
_LOGGERS = ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.proxy")


def redactor(sign: SecretStr) -> Callable[[str], str]:
    """A function that replaces the sign, in every spelling that a server or a log may use."""
    value = sign.get_secret_value()
    spellings = {
        value,
        quote(value),
        quote(value, safe=""),
        quote_plus(value),
        str(httpx.QueryParams({"": value}))[1:],
        json.dumps(value)[1:-1],
        html.escape(value),
        repr(value.encode())[2:-1],
    }
    longest_first = sorted(spellings, key=len, reverse=True)
    pattern = re.compile("|".join(map(_with_any_escaping, longest_first)), re.IGNORECASE)
    return lambda text: pattern.sub(REDACTED, text)


def _with_any_escaping(spelling: str) -> str:
    """A pattern for the spelling, however often its characters were escaped with backslashes."""
    stretches = re.split(r"\\+", spelling)
    return r"\\+".join(r"\\*".join(map(re.escape, stretch)) for stretch in stretches)


class SigningTransport(httpx.BaseTransport):
    """Sends what it is given, with the sign added (unless UNSIGNED): to a GET's query, to a POST's JSON object."""

    def __init__(self, sign: SecretStr, inner: httpx.BaseTransport) -> None:
        self._sign = sign
        self._inner = inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        signed = request if "esl_unsigned" in request.extensions else self._signed(request)
        return self._inner.handle_request(signed)

    def close(self) -> None:
        self._inner.close()

    def _signed(self, request: httpx.Request) -> httpx.Request:
        sign = {"sign": self._sign.get_secret_value()}
        url, content = request.url, None
        if request.method == "GET":
            url = url.copy_merge_params(sign)
        else:
            content = _with_field(request.read(), sign)
        headers = httpx.Headers(request.headers)
        headers.pop("content-length", None)
        return httpx.Request(
            request.method, url, headers=headers, content=content, extensions=request.extensions
        )


def _with_field(body: bytes, field: dict[str, str]) -> bytes:
    """A JSON object as orjson writes it, with a field behind the others: of two with one name the last one counts."""
    return body[:-1] + (b"," if body != b"{}" else b"") + orjson.dumps(field)[1:]


class LogRedaction(logging.Filter):
    """Keeps the sign out of httpx's and httpcore's log records while it is installed."""

    def __init__(self, redact: Callable[[str], str]) -> None:
        super().__init__()
        self._redact = redact

    def install(self) -> None:
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self)

    def remove(self) -> None:
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        redacted = self._redact(message)
        if redacted != message:
            record.msg, record.args = redacted, ()
        return True
