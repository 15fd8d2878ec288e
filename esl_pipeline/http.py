"""What all HTTP clients need alike: where a secret may go, trusted certificates, plain JSON, when to try again."""

import functools
import random
import re
import ssl
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx

from esl_pipeline import __version__
from esl_pipeline.addresses import is_loopback
from esl_pipeline.printable import printable

USER_AGENT = f"esl-pipeline/{__version__}"

# Uncompressed, so that a limit on an answer's size is a limit on memory too.
JSON_HEADERS = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "Content-Type": "application/json",
    "User-Agent": USER_AGENT,
}

# 423: a shop is locked for a moment; 430: Shopify's guard against unusual traffic.
_PASSING = frozenset({408, 423, 425, 429, 430})
_LONGEST_PAUSE = 3_600.0


@functools.cache
def trusted(ca_file: Path | None = None) -> ssl.SSLContext:
    """The certificates we trust: the public ones (SSL_CERT_FILE names others), or those of `ca_file` alone.

    Loaded once: that takes 50 ms. Raises OSError for a file without certificates.
    """
    return ssl.create_default_context(cafile=ca_file) if ca_file else httpx.create_ssl_context()


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds to wait by a Retry-After header, at most one hour; None where it says nothing usable.

    Takes seconds (whole or decimal) and HTTP dates; a date in the past is 0. Negative numbers and
    anything else are None.
    """
    text = (value or "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
        return min(float(text), _LONGEST_PAUSE)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    if moment.tzinfo is None:  # "-0000" and the old asctime form: UTC by RFC 9110
        moment = moment.replace(tzinfo=UTC)
    return min(max((moment - now).total_seconds(), 0.0), _LONGEST_PAUSE)


def pause_before_retry(retry_after: float | None, longest: float) -> bool | float:
    """What stamina's hook answers for a failure that may pass.

    True for its own back-off, the server's pause in seconds (with jitter), or False when that is longer than `longest`.
    """
    if retry_after is None:
        return True
    if retry_after > longest:
        return False
    return retry_after + random.uniform(0.1, 0.5)  # noqa: S311


def is_safe(url: str) -> bool:
    """Whether what is read from or sent to the URL cannot be overheard: https, or this machine itself."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    if parsed.userinfo or not parsed.host:
        return False
    return parsed.scheme == "https" or (parsed.scheme == "http" and is_loopback(parsed.host))


def reason(error: Exception) -> str:
    """A failure in words, since some of httpx have none."""
    return str(error) or type(error).__name__


def one_line(text: str, *hidden: str) -> str:
    """The start of what was said, on one line, without what is hidden."""
    for secret in hidden:
        text = text.replace(secret, "[hidden]") if secret else text
    return printable(" ".join(text.split()))[:400]


def passes(status: int) -> bool:
    """Whether a failure with this status may pass by itself."""
    return status in _PASSING or status >= 500
